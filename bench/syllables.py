"""
Where the segments of speech/syllables.py end, beside a uniform cut into as many, and how fast they are made.

    python bench/syllables.py AUDIO [AUDIO ...]      folders whose manifest.jsonl has times of words

Boundaries are compared with the starts and ends of words, which are all that such a manifest knows: a
syllable inside a word counts as a false one, for both cuts. F1 in percent, within 20, 30 and 50 ms,
each boundary meeting one word edge at most. The frames are those of the embedded encoder, 40 ms each.

Writes bench/results/syllables.json.
"""
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import save
from corpora.folder import utterances
from files import progress
from speech.audio import load_audio
from speech.encoders import Encoder
from speech.kmeans import load_centroids
from speech.syllables import LONGEST, segment

RATES = (5.0, 6.25, 8.33)
TOLERANCES = (0.02, 0.03, 0.05) # seconds
MERGED = 0.03 # edges of words nearer than this are one

def word_edges(words):
    """The starts and ends of words in seconds, sorted, those of two words that touch once."""
    edges = np.unique([time for _, *times in words for time in times if time is not None])
    return edges[np.diff(edges, prepend=-1) > MERGED]

def n_met(times, edges, tolerance):
    """How many times meet an edge, one each, from the first on."""
    n = 0
    i = 0
    for time_ in times:
        while i < len(edges) and edges[i] < time_ - tolerance:
            i += 1
        if i < len(edges) and edges[i] <= time_ + tolerance:
            n += 1
            i += 1
    return n

def measure(audio, encoder, rate):
    """The row of one folder and rate."""
    hz = encoder.rate / encoder.step
    met = np.zeros((2, len(TOLERANCES)))
    n_times = 0
    n_edges = 0
    seconds = 0.0
    spent = 0.0
    for utterance in progress(audio, desc=f'{rate:g} a second'):
        h, edges = utterance
        begin = time.process_time()
        lengths = segment(h, round(len(h) * rate / hz), round(LONGEST * hz))
        spent += time.process_time() - begin
        n = len(lengths)
        cuts = np.cumsum(lengths)[:-1] / hz, np.arange(1, n) * len(h) / n / hz
        met += [[n_met(times, edges, tolerance) for tolerance in TOLERANCES] for times in cuts]
        n_times += n - 1
        n_edges += len(edges)
        seconds += len(h) / hz
    cut, uniform = (200 * met / (n_times + n_edges)).round(1).tolist()
    return {'rate': rate, 'boundaries': n_times, 'word edges': n_edges, 'within': TOLERANCES, 'F1, %': cut,
            'F1 of a uniform cut, %': uniform, 'x real time': round(seconds / spent)}

def main(folders):
    if not folders:
        raise SystemExit(__doc__)
    encoder = Encoder('tiny/hubert', 4, load_centroids('tiny/hubert/kmeans.safetensors'))
    rows = {}
    for folder in folders:
        spoken = [u for u in utterances(folder) if u['words']]
        audio = [(encoder.features(load_audio(u['path'], u['start'], u['end'])), word_edges(u['words']))
                 for u in progress(spoken, desc=folder)]
        rows[Path(folder).name] = [measure(audio, encoder, rate) for rate in RATES]
        for row in rows[Path(folder).name]:
            print(folder, row)
    save('syllables', False, folders=rows)

if __name__ == '__main__':
    main(sys.argv[1:])
