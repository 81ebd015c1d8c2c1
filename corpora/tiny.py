"""
The speech of the embedded corpus as tiny/build/speak.py writes it. The root is the folder of one part.

    python -m training.vocoder --corpus=tiny --audio=out/build/speech/stories --units=out/data/stories --out=...

    00000/audio.flac     the documents of a shard, one after another
    00000/docs.jsonl     {"id", "start", "samples", "text", "speaker", "words"} per line, times in samples at 16 kHz
"""
import os

from configurator import Refused
from corpora.tree import by_id, files, utterance
from files import read_lines
from speech.audio import RATE


def utterances(root):
    docs = []
    for name, path in files(root, '.jsonl', 'SHARD/NAME', "a folder that tiny/build/speak.py wrote").items():
        if not name.endswith('/docs'):
            continue
        audio = os.path.join(os.path.dirname(path), 'audio.flac')
        for place, line in read_lines(path):
            try:
                words = [[word, start / RATE, end / RATE] for word, start, end in line['words']]
                start = line['start'] / RATE
                end = (line['start'] + line['samples']) / RATE
                docs.append(utterance(line['id'], audio, start, end, line['text'], line['speaker'], words))
            except (KeyError, TypeError, ValueError) as e:
                raise Refused(f"{place}: not a line of tiny/build/speak.py ({e!r})") from None
    yield from by_id(docs)
