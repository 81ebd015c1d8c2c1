"""
Preference pairs of training stories, for dpo.py. The prompt is the first two sentences of a story,
the chosen completion is its ending.

    python -m tiny.preferences     out/data/stories -> out/data/pairs/{train,val}, units folders as dpo.py reads them

No new speech is needed, and no evaluation story is used (tiny/stories.py holds them out by their
tuples). There are two kinds of rejected completions:

    STORY.topic    The ending of another story that shares no name, object or place. Both
                   completions are as spoken.
    STORY.mirror   The ending of the mirrored story, which contradicts the prompt. The prompt names
                   both alternatives, so the words in which the two endings differ are cut out of
                   the prompt and pasted into the ending. The chosen ending gets its own words
                   pasted in at the same places, so the joins give nothing away.

A story whose prompt lacks one of these words has no mirror ('held' and 'broke' are never said
before the ending). One story in 20 is for val.
"""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import atomically, hash_of_shards, record, write_json
from speech.units import Units, deduplicate, write_units_shard
from speech.words import Words
from tiny.stories import stories

SHARD_DOCS = 30_000
VAL_ONE_IN = 20

@dataclass(frozen=True)
class Config:
    units: str = 'out/data/stories' # units folder of the stories with words/ in it, as tiny.unpack makes it
    out: str = 'out/data/pairs' # folder to make, with train/ and val/
    kinds: tuple = ('topic', 'mirror') # kinds of rejected completions: topic, mirror or both
    seed: int = 1 # the seed that tiny.stories made the stories with

    def __post_init__(self):
        if not self.kinds or not set(self.kinds) <= {'topic', 'mirror'}:
            raise Refused(f"kinds={self.kinds}: expected 'topic', 'mirror' or both")

def plain(word):
    return word.strip(' .,').lower()

class Spoken:
    """A spoken story: .frames (F,) the unit of each frame, .words, and .spans, the [first, end) frames of each word."""

    def __init__(self, units, runs, words, starts, ends, hop):
        self.frames = np.repeat(units, runs)
        self.words = words
        self.spans = [(int(start) // hop, -(-int(end) // hop)) for start, end in zip(starts, ends)]

    def sentence(self, k):
        """(first word, last word + 1, first frame, last frame + 1) of sentence k.

        Sentences are split in the middle of the pause between them.
        """
        ends = [i + 1 for i, word in enumerate(self.words) if word.endswith('.')]
        first, end = [0, *ends][k:k + 2]
        middles = [(a[1] + b[0]) // 2 for a, b in zip(self.spans, self.spans[1:])]
        boundaries = [0, *middles, len(self.frames)]
        return first, end, boundaries[first], boundaries[end]

    def ending(self):
        """The frames of the third sentence."""
        _, _, begin, end = self.sentence(2)
        return self.frames[begin:end]

def mirror(spoken, story):
    """The frames of the right and of the wrong ending, joined at the same places; None if the prompt lacks a word."""
    first_word, _, begin, end = spoken.sentence(2)
    right = [plain(word) for word in story.sentences[2].split()]
    wrong = [plain(word) for word in story.wrong.split()]
    if len(right) != len(wrong):
        return None
    # The frames of each word where the prompt says it first.
    prompt = {}
    for word, span in zip(spoken.words[:first_word], spoken.spans):
        prompt.setdefault(plain(word), span)
    places = [i for i in range(len(right)) if right[i] != wrong[i]]
    if not all({right[i], wrong[i]} <= prompt.keys() for i in places):
        return None
    def joined(ending):
        pieces = []
        position = begin
        for i in places:
            first, last = spoken.spans[first_word + i]
            pieces += [spoken.frames[position:first], spoken.frames[slice(*prompt[ending[i]])]]
            position = last
        return np.concatenate([*pieces, spoken.frames[position:end]])
    return joined(right), joined(wrong)

def read_stories(units, words, seed):
    """[(name, story, Spoken)]. Raises Refused for a text that is not the grammar's."""
    last = max(int(meta['id'][1:]) for meta in units.meta)
    by_name = {f's{i:06d}': story for i, story in enumerate(stories('train', last + 1, seed))}
    documents = []
    for i, meta in enumerate(units.meta):
        name = meta['id']
        story = by_name[name]
        if meta['text'] != story.text:
            raise Refused(f"{name}: says '{meta['text'][:40]}...', tiny.stories '{story.text[:40]}...'; "
                          "give the --seed that made its stories")
        documents.append((name, story, Spoken(*units[i], *words[i], units.info['hop'])))
    return documents

def pairs(units, words, seed, kinds):
    """Yields (name, {part: (text, frames)}). Raises Refused for a text that is not the grammar's."""
    documents = read_stories(units, words, seed)
    for n, (name, story, spoken) in enumerate(documents):
        _, _, begin, _ = spoken.sentence(2)
        prompt = (' '.join(story.sentences[:2]), spoken.frames[:begin])
        ending = story.sentences[2]
        if 'topic' in kinds:
            # The next story, around the end of the list, that shares no word of a slot.
            candidates = documents[n + 1:] + documents[:n]
            unrelated = next((doc for doc in candidates if not doc[1].words & story.words), None)
            if unrelated:
                yield f'{name}.topic', {
                    'prompt': prompt,
                    'chosen': (ending, spoken.ending()),
                    'rejected': (unrelated[1].sentences[2], unrelated[2].ending())}
        mirrored = mirror(spoken, story) if 'mirror' in kinds else None
        if mirrored:
            yield f'{name}.mirror', {
                'prompt': prompt,
                'chosen': (ending, mirrored[0]),
                'rejected': (story.wrong, mirrored[1])}

def write(out, named_pairs, info, made_by):
    """Writes a units folder of [(name, parts)]. info: that of the stories' units; made_by: record(cfg)."""
    docs = []
    for name, parts in named_pairs:
        for part, (text, frames) in parts.items():
            meta = {'id': f'{name}/{part}', 'path': None, 'seconds': len(frames) / info['frame_hz'],
                    'speaker': 'joe', 'text': text}
            docs.append((meta, *deduplicate(frames)))
    with atomically(out) as tmp:
        for index, first in enumerate(range(0, len(docs), SHARD_DOCS)):
            write_units_shard(tmp, index, docs[first:first + SHARD_DOCS])
        names = ('encoder', 'layer', 'kmeans', 'units_hash', 'n_units', 'frame_hz', 'hop')
        write_json(tmp / 'info.json', {
            **{name: info[name] for name in names},
            'documents': len(docs),
            'runs': sum(len(units) for _, units, _ in docs),
            'content': hash_of_shards(tmp),
            **made_by})
    kinds = Counter(name.rsplit('.', 1)[1] for name, _ in named_pairs)
    print(f"{out}: {', '.join(f'{n:,} {kind}' for kind, n in kinds.items())}")

def main(cfg):
    out = Path(cfg.out)
    made_by = record(cfg)
    if out.exists():
        raise Refused(f"{out}: exists; remove it to make the pairs again")
    units = Units(cfg.units)
    words = Words(Path(cfg.units) / 'words')
    splits = {'train': [], 'val': []}
    for name, parts in pairs(units, words, cfg.seed, cfg.kinds):
        i = int(name[1:].split('.')[0])
        splits['train' if i % VAL_ONE_IN else 'val'].append((name, parts))
    for split, named_pairs in splits.items():
        write(out / split, named_pairs, units.info, made_by)

if __name__ == '__main__':
    run(main, Config)
