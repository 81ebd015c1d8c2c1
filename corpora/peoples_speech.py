"""
The People's Speech (https://huggingface.co/datasets/MLCommons/peoples_speech): 30,000 h of English, with text.

    hf download MLCommons/peoples_speech --repo-type dataset --include 'clean/train-*' --local-dir data/ps
    python tokenize_speech.py --corpus=peoples_speech --audio=data/ps/clean --out=...

    SUBSET/train-00000-of-00804.parquet     columns id, audio (flac bytes at 16 kHz), duration_ms, text
    train/SUBSET.json and train/SUBSET/...  the older form: a recording a line, {"identifier", "training_data":
                                            {"duration_ms": [...], "label": [...], "name": [...]}}; name: path in the
                                            folder SUBSET, into which the .tar files were unpacked

--audio is a folder of parquet, one of its files, or SUBSET.json. ids are FILE/ROW, so that rows that lie together are
read together, or the name. validation and test are files of their own: leave them out, as above, or in another folder.
"""
import os

from configurator import Refused
from corpora.download import script
from corpora.tree import files, parquet_files, refuse_orphans, rows, utterance
from files import read_lines

SUBSET = "a folder of the hub's parquet, or train/SUBSET.json"

def utterances(root):
    if os.fspath(root).endswith('.json'):
        yield from sorted(_manifest(root), key=lambda u: u['id'])
        return
    for name, path in parquet_files(root, SUBSET).items():
        for number, (audio, row) in enumerate(rows(path, ('text',))):
            yield utterance(f'{name}/{number:06d}', audio, text=row['text'])

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
