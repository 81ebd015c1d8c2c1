"""What tokenize_speech.py, align.py and interleave.py hold of a corpus does not grow with it, but for a few numbers.

case                                                              outcome
17a  tokenize_speech.py: all utterances of a manifest             a number each in memory, the rest in a temporary file
17b  align.py: all words of --words                               a number each in memory, the rest in a temporary file
17c  interleave.py: all lines of meta.jsonl, ids, tables of words a shard at a time
17d  interleave.py: a file of --text                              a batch at a time

Each part is run on a corpus and on one twice as large, in processes of their own, and may hold at
most 100 bytes more for each utterance more. As lists they held 1,000 and more.
"""
import json
import subprocess
import sys

import numpy as np
import pytest
from small import K

from files import hash_of_shards, write_json
from speech.units import write_units_shard
from speech.words import write_words_shard

TEXT = 'this was said in it and so on'
READ = { # part: (how many utterances, what reads the corpus in FOLDER)
    'utterances': (60_000, "read_corpus(Namespace(audio=f'{FOLDER}/list.jsonl', corpus='folder'))[0].hash"),
    'words': (20_000, "StoredWords(f'{FOLDER}/words.jsonl', Ids(shard_folders(f'{FOLDER}/units')))[7]"),
    'units': (20_000, "corpus = Corpus(f'{FOLDER}/units', 'words'); [corpus.batch(s, 0, 9) for s in range(10)]"),
    'text': (60_000, "interleave.write_texts(cfg, f'{FOLDER}/text.txt', out, tokenizer)")}
SCRIPT = """
import sys
from argparse import Namespace
import interleave
from align import Ids
from corpora.read import read_corpus
from files import shard_folders
from hub.tokenizer import TextTokenizer
from speech.corpus import Corpus
from speech.word_files import StoredWords
FOLDER = sys.argv[1]
tokenizer = TextTokenizer('tiny/tokenizer')
cfg = Namespace(eot=False, val_frac=0.1)
class out:
    add = staticmethod(lambda *_: None)
{}
for line in open('/proc/self/status'): # ru_maxrss would count the process that started this one
    if line.startswith('VmHWM'):
        print(line.split()[1])
"""

def write_corpus(folder, part, n):
    """What the part reads of a corpus of n utterances."""
    ids = [f'speaker/chapter/{i:07d}' for i in range(n)]
    timed = [[word, i * 0.1, i * 0.1 + 0.1] for i, word in enumerate(TEXT.split())]
    if part == 'utterances':
        lines = [json.dumps({'id': id, 'audio': f'{id}.flac', 'text': 3 * TEXT}) + '\n' for id in reversed(ids)]
        (folder / 'list.jsonl').write_text(''.join(lines))
    if part == 'text':
        (folder / 'text.txt').write_text(''.join(f'{id} {5 * TEXT}\n' for id in ids))
    if part == 'words':
        (folder / 'words.jsonl').write_text(''.join(json.dumps({'id': id, 'words': timed}) + '\n' for id in ids))
    if part in ('words', 'units'):
        units = np.arange(20) % K
        runs = np.ones(20, int)
        for s, first in enumerate(range(0, n, 2000)):
            some = ids[first:first + 2000]
            docs = [({'id': id, 'path': f'{id}.flac', 'seconds': 0.8, 'text': 3 * TEXT}, units, runs) for id in some]
            write_units_shard(folder / 'units', s, docs)
            words = [(id, [f' {id}{i}' for i in range(4)], [0] * 4, [9] * 4) for id in some] # each in the table
            write_words_shard(folder / 'units/words', s, words)
        for place in (folder / 'units', folder / 'units/words'):
            content = hash_of_shards(place)
            write_json(place / 'info.json', {'n_units': K, 'documents': n, 'hop': 640, 'content': content})

@pytest.mark.slow
@pytest.mark.parametrize('part', READ)
def test_a_corpus_twice_as_large_takes_100_bytes_an_utterance_more_at_most(tmp_path, part):
    n, read = READ[part]
    peaks = []
    for size in (n, 2 * n):
        folder = tmp_path / str(size)
        folder.mkdir()
        write_corpus(folder, part, size)
        command = [sys.executable, '-c', SCRIPT.format(read), str(folder)]
        peaks.append(1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
    assert (peaks[1] - peaks[0]) / n < 100, peaks
