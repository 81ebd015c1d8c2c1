"""
Word times beside those of a manifest (corpora/folder.py), for the words that both have.

    python bench/words.py --words=out/units/words --manifest=DIR/manifest.jsonl --name=words-whisper-base

Words match in order and by their letters, case and accents aside. Errors are ours minus theirs, in ms: the median and the
mean of their sizes, the share under 100 ms, and their median with its sign (bias). Writes bench/results/NAME.json.
"""
import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from bench.common import ROOT, machine
from configurator import Refused, run
from corpora.folder import utterances
from files import write_json
from speech.audio import RATE
from speech.words import Words, letters_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@dataclass(frozen=True)
class Config:
    words: str = '' # words folder, as align.py writes it
    manifest: str = '' # .jsonl with words in seconds, matched by id
    name: str = '' # of the result

    def __post_init__(self):
        if not (self.words and self.manifest and self.name):
            raise Refused("expected --words=DIR, --manifest=FILE.jsonl and --name=NAME")

def differences(words, truth):
    """Start and end errors in ms, (n, 2), of the words of a Words folder that truth, {id: [[word, start, end]]}, has too."""
    out = [np.zeros((0, 2))]
    letters = lambda w: ''.join(c for c, _ in letters_of(w))
    for i, id in enumerate(words.ids):
        theirs = [w for w in truth.get(id) or () if None not in w]
        spelled, starts, ends = words[i]
        same = SequenceMatcher(None, [letters(w) for w in spelled], [letters(w) for w, *_ in theirs], autojunk=False)
        out += [[1000 * (starts[m.a + k] / RATE - theirs[m.b + k][1]), 1000 * (ends[m.a + k] / RATE - theirs[m.b + k][2])]
                for m in same.get_matching_blocks() for k in range(m.size)]
    return np.vstack(out)

def main(cfg):
    words, truth = Words(cfg.words), {u['id']: u['words'] for u in utterances(cfg.manifest)}
    errors = differences(words, truth)
    if not len(errors):
        raise Refused(f"{cfg.manifest}: no word of it is in {cfg.words}")
    n = sum(len(truth.get(id) or ()) for id in words.ids)
    row = {'documents': len(words), 'words': n, 'matched': len(errors), 'refused': words.info.get('refused')}
    for column, side in enumerate(('start', 'end')):
        e = errors[:, column]
        row[side] = {'median_ms': np.median(abs(e)), 'mean_ms': abs(e).mean(), 'under_100_ms': (abs(e) < 100).mean(), 'bias_ms': np.median(e)}
        row[side] = {key: round(float(value), 3) for key, value in row[side].items()}
        print(f"{side}: {', '.join(f'{key} {value:g}' for key, value in row[side].items())}")
    print(f"{len(errors):,} of {n:,} words match, in {len(words)} documents")
    made = {key: words.info.get(key) for key in ('command', 'commit')}
    write_json(ROOT / 'bench' / 'results' / f'{cfg.name}.json',
               {**machine(), 'command': ' '.join(['python bench/words.py', *sys.argv[1:]]), 'words_made_by': made, 'rows': [row]})

if __name__ == '__main__':
    run(main, Config)
