"""
Preference pairs of training stories, for dpo.py: a prompt is a story's first two sentences, chosen is how it ends.

    python -m tiny.preferences          out/data/stories -> out/data/pairs/{train,val}, units folders as dpo.py reads them

Nothing is spoken for them, and no evaluation story is used (tiny/stories.py holds them out by their tuples). Rejected is

    STORY.topic    the ending of another story that shares no name, object or place: both completions as they were spoken
    STORY.mirror   the ending of the mirrored story, which contradicts the prompt: the words in which the two endings
                   differ are cut out of the prompt, where both alternatives are named, and put into the ending. So are
                   those of the chosen ending: the joints, at the same places in both, tell nothing

A story whose prompt lacks one of those words ('held' and 'broke' are never said before) has no mirror. Sentences are
parted in the middle of the pause between them. One story in 20 is for val.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import atomically, record, write_json
from speech.units import Units, deduplicate, write_units_shard
from speech.words import Words
from tiny.stories import stories

SHARD_DOCS = 30_000
VAL_ONE_IN = 20

@dataclass(frozen=True)
class Config:
    units: str = 'out/data/stories' # with words/ in it; stories of tiny/stories.py, as tiny/build/speak.py names them
    out: str = 'out/data/pairs' # train/ and val/ come into it
    kinds: tuple = ('topic', 'mirror')
    seed: int = 1 # of the stories

    def __post_init__(self):
        if not self.kinds or not set(self.kinds) <= {'topic', 'mirror'}:
            raise Refused(f"kinds={self.kinds}: expected 'topic', 'mirror' or both")

def plain(word):
    return word.strip(' .,').lower()

class Spoken:
    """A document by frames: .frames (F,) units, .words, and .at, the first frame of each word and of what is after it."""

    def __init__(self, units, runs, words, starts, ends, hop):
        self.frames, self.words = np.repeat(units, runs), words
        self.at = [(int(s) // hop, -(-int(e) // hop)) for s, e in zip(starts, ends)]

    def sentence(self, k):
        """(first word, last word + 1, first frame, last frame + 1) of sentence k."""
        last = [0] + [i + 1 for i, word in enumerate(self.words) if word.endswith('.')]
        middles = [0] + [(before[1] + after[0]) // 2 for before, after in zip(self.at, self.at[1:])] + [len(self.frames)]
        return last[k], last[k + 1], middles[last[k]], middles[last[k + 1]]

def mirror(spoken, story):
    """Frames of the right and of the wrong ending, joined at the same places; None where the prompt lacks a word."""
    a, b, first, last = spoken.sentence(2)
    right, wrong = ([plain(word) for word in text.split()] for text in (story.sentences[2], story.wrong))
    said = {plain(word): spoken.at[i] for i, word in reversed(list(enumerate(spoken.words[:a])))} # where it is first said
    places = [i for i, (x, y) in enumerate(zip(right, wrong)) if x != y]
    if len(right) != len(wrong) or not all({right[i], wrong[i]} <= said.keys() for i in places):
        return None
    def joined(ending):
        pieces, at = [], first
        for i in places:
            begin, end = spoken.at[a + i]
            pieces += [spoken.frames[at:begin], spoken.frames[slice(*said[ending[i]])]]
            at = end
        return np.concatenate([*pieces, spoken.frames[at:last]])
    return joined(right), joined(wrong)

def pairs(units, words, seed, kinds):
    """Yields (name, {part: (text, frames)}); stories whose words are not those of the grammar are refused."""
    told = {}
    for i, story in zip(range(max(int(meta['id'][1:]) for meta in units.meta) + 1), stories('train', 10 ** 9, seed)):
        told[f's{i:06d}'] = story
    spoken = []
    for i, meta in enumerate(units.meta):
        story = told[meta['id']]
        if meta['text'] != story.text:
            raise Refused(f"{meta['id']}: says '{meta['text'][:40]}...', tiny.stories '{story.text[:40]}...'; expected "
                          "--seed of its stories")
        spoken.append((meta['id'], story, Spoken(*units[i], *words[i], units.info['hop'])))
    for n, (name, story, said) in enumerate(spoken):
        _, _, begin, end = said.sentence(2)
        prompt, ending = (' '.join(story.sentences[:2]), said.frames[:begin]), story.sentences[2]
        if 'topic' in kinds:
            other = next((o for o in spoken[n + 1:] + spoken[:n] if not o[1].words & story.words), None)
            if other is not None:
                _, _, first, last = other[2].sentence(2)
                yield f'{name}.topic', {'prompt': prompt, 'chosen': (ending, said.frames[begin:end]),
                                        'rejected': (other[1].sentences[2], other[2].frames[first:last])}
        if 'mirror' in kinds and (both := mirror(said, story)):
            yield f'{name}.mirror', {'prompt': prompt, 'chosen': (ending, both[0]), 'rejected': (story.wrong, both[1])}

def write(out, found, info, made):
    """A units folder of pairs [(name, parts)]."""
    with atomically(out) as tmp:
        docs = []
        for name, parts in found:
            for part, (text, frames) in parts.items():
                docs.append(({'id': f'{name}/{part}', 'path': None, 'seconds': len(frames) / info['frame_hz'],
                              'speaker': 'joe', 'text': text}, *deduplicate(frames)))
        for index in range(0, -(-len(docs) // SHARD_DOCS)):
            write_units_shard(tmp, index, docs[index * SHARD_DOCS:(index + 1) * SHARD_DOCS])
        same = ('encoder', 'layer', 'kmeans', 'units_hash', 'n_units', 'frame_hz', 'hop')
        write_json(tmp / 'info.json', {**{key: info[key] for key in same}, 'documents': len(docs),
                                       'runs': sum(len(units) for _, units, _ in docs), **made})
    kinds = [name.rsplit('.', 1)[1] for name, _ in found]
    print(f"{out}: {', '.join(f'{kinds.count(kind):,} {kind}' for kind in dict.fromkeys(kinds))}")

def main(cfg):
    out, made = Path(cfg.out), record(cfg)
    if out.exists():
        raise Refused(f"{out}: is there already; remove it to make it again")
    units = Units(cfg.units)
    found = list(pairs(units, Words(Path(cfg.units) / 'words'), cfg.seed, cfg.kinds))
    is_val = lambda name: int(name[1:].split('.')[0]) % VAL_ONE_IN == 0
    for split in ('train', 'val'):
        write(out / split, [pair for pair in found if is_val(pair[0]) == (split == 'val')], units.info, made)

if __name__ == '__main__':
    run(main, Config)
