"""
The People's Speech (https://huggingface.co/datasets/MLCommons/peoples_speech): 30,000 h of English, with text.

    hf download MLCommons/peoples_speech --repo-type dataset --include 'clean/train-*' --local-dir data/ps
    python tokenize_speech.py --corpus=peoples_speech --audio=data/ps/clean --out=...

    SUBSET/train-00000-of-00804.parquet     columns id, audio (flac bytes at 16 kHz), duration_ms, text
    train/SUBSET.json and train/SUBSET/...  the older form: a recording a line, {"identifier", "training_data":
                                            {"duration_ms": [...], "label": [...], "name": [...]}}; name: path in the
                                            folder SUBSET, into which the .tar files were unpacked

--audio is a folder of parquet, one of its files, or SUBSET.json. The hub keeps validation and test apart: so do the
same, by --include or by folders.
"""
import os

from configurator import Refused
from corpora.download import script
from corpora.tree import files, parquet_files, refuse_orphans, rows, utterance
from folders import read_lines

SUBSET = "a folder of the hub's parquet, or train/SUBSET.json"

def utterances(root):
    read = _manifest if os.fspath(root).endswith('.json') else _parquet
    yield from sorted(read(root), key=lambda u: u['id'])

def _parquet(root):
    for path in parquet_files(root, SUBSET).values():
        for audio, row in rows(path, ('id', 'text')):
            if not isinstance(row['id'], str):
                raise Refused(f"{audio}: id is {row['id']!r}, expected a string")
            yield utterance(row['id'], audio, text=row['text'])

def _manifest(path):
    folder, found = os.fspath(path).removesuffix('.json'), []
    for where, line in read_lines(path):
        data = line.get('training_data')
        columns = [data.get(key) for key in ('name', 'label', 'duration_ms')] if isinstance(data, dict) else [None]
        if not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            raise Refused(f"{where}: expected 'training_data' with equally many name, label and duration_ms")
        found += [utterance(os.path.splitext(name)[0], os.path.join(folder, name), text=label)
                  for name, label, _ in zip(*columns)]
    audio = files(folder, '.flac', '**', SUBSET)
    refuse_orphans(audio.values(), (u['path'] for u in found), f'no name in {path}')
    return found

if __name__ == '__main__':
    script(utterances)
