"""
The speech of the embedded corpus, as tiny/build/speak.py left it: a part's folder.

    python -m training.vocoder --corpus=tiny --audio=out/build/speech/stories --units=out/data/stories --out=...

    00000/audio.flac     the documents of a shard, one after another
    00000/docs.jsonl     {"id", "start", "samples", "text", "speaker", "words"} a line, times in samples at 16 kHz
"""
import os

from configurator import Refused
from corpora.tree import files, utterance
from files import read_lines
from speech.audio import RATE


def utterances(root):
    found = []
    for name, path in files(root, '.jsonl', 'SHARD/NAME', "a folder that tiny/build/speak.py wrote").items():
        if name.endswith('/docs'):
            for where, line in read_lines(path):
                try:
                    words = [[word, start / RATE, end / RATE] for word, start, end in line['words']]
                    found.append(utterance(line['id'], os.path.join(os.path.dirname(path), 'audio.flac'), line['start'] / RATE,
                                           (line['start'] + line['samples']) / RATE, line['text'], line['speaker'], words))
                except (KeyError, TypeError, ValueError) as e:
                    raise Refused(f"{where}: not a line of tiny/build/speak.py ({e!r})") from None
    yield from sorted(found, key=lambda u: u['id'])
