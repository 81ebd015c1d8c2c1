"""
Compares word times with those of a manifest (corpora/folder.py), for the words that both have.

    python bench/words.py --words=out/units/words --manifest=DIR/manifest.jsonl --name=words-whisper-base

Words match in order and by their letters, ignoring case and accents. An error is a time of --words
minus that of --manifest, in ms. Printed are the median and the mean of the absolute errors, the
share under 100 ms, and the median of the signed errors (bias). Writes bench/results/NAME.json.
"""
import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, machine
from configurator import Refused, run
from corpora.folder import utterances
from files import write_json
from speech.audio import RATE
from speech.words import Words, letters_of


@dataclass(frozen=True)
class Config:
    words: str = '' # words folder, as align.py writes it
    manifest: str = '' # manifest.jsonl with words in seconds; its documents are matched by id
    name: str = '' # name of the result, bench/results/NAME.json

    def __post_init__(self):
        if not (self.words and self.manifest and self.name):
            raise Refused("expected --words=DIR, --manifest=FILE.jsonl and --name=NAME")

def letters(word):
    """The letters by which words are compared."""
    return ''.join(letter for letter, _ in letters_of(word))

def differences(words, reference):
    """The errors of start and end in ms, (n, 2), of the words that both have.

    words: a Words folder; reference: {id: [[word, start, end]]} in seconds. Words of the reference
    without a start or an end are left out.
    """
    errors = [np.zeros((0, 2))]
    for i, id in enumerate(words.ids):
        timed = [entry for entry in reference.get(id) or () if None not in entry]
        spelled, starts, ends = words[i]
        matcher = SequenceMatcher(
            None,
            [letters(word) for word in spelled],
            [letters(word) for word, *_ in timed],
            autojunk=False)
        for a, b, n in matcher.get_matching_blocks():
            for k in range(n):
                _, start, end = timed[b + k]
                errors.append([1000 * (starts[a + k] / RATE - start), 1000 * (ends[a + k] / RATE - end)])
    return np.vstack(errors)

def main(cfg):
    words = Words(cfg.words)
    reference = {utterance['id']: utterance['words'] for utterance in utterances(cfg.manifest)}
    errors = differences(words, reference)
    if not len(errors):
        raise Refused(f"{cfg.manifest}: none of its words is in {cfg.words}; are their ids the same?")
    n = sum(len(reference.get(id) or ()) for id in words.ids)
    row = {'documents': len(words),
           'words': n,
           'matched': len(errors),
           'refused': words.info.get('refused')}
    for column, side in enumerate(('start', 'end')):
        ms = errors[:, column]
        summary = {'median_ms': np.median(abs(ms)),
                   'mean_ms': abs(ms).mean(),
                   'under_100_ms': (abs(ms) < 100).mean(),
                   'bias_ms': np.median(ms)}
        row[side] = {key: round(float(value), 3) for key, value in summary.items()}
        print(f"{side}: {', '.join(f'{key} {value:g}' for key, value in row[side].items())}")
    print(f"{len(errors):,} of {n:,} words match, in {len(words)} documents")
    write_json(ROOT / 'bench' / 'results' / f'{cfg.name}.json', {
        **machine(),
        'command': ' '.join(['python bench/words.py', *sys.argv[1:]]),
        'words_made_by': {key: words.info.get(key) for key in ('command', 'commit')},
        'rows': [row]})

if __name__ == '__main__':
    run(main, Config)
