"""
The People's Speech (https://huggingface.co/datasets/MLCommons/peoples_speech): 30,000 h of English, with text,
of which SIMS Table 4 has 7,000, probably clean and clean_sa.

    hf download MLCommons/peoples_speech --repo-type dataset --include 'clean/train-*' --local-dir data/ps
    python tokenize_speech.py --corpus=peoples_speech --audio=data/ps/clean --out=...

    SUBSET/train-00000-of-00804.parquet     columns id, audio (flac bytes at 16 kHz), duration_ms, text
    train/SUBSET.json and train/SUBSET/...  the older form: per recording a line {"identifier", "training_data":
                                            {"duration_ms": [...], "label": [...], "name": [...]}}; name: path in the
                                            folder SUBSET, into which the .tar files were unpacked

--audio is a folder of parquet, one of its files, or SUBSET.json. ids are FILE/ROW, so that neighboring rows are read
together; in the older form they are the names. validation and test are files of their own: leave them out, as above, or
keep them in another folder.
"""
import os

from configurator import Refused
from corpora.download import script
from corpora.tree import by_id, files, parquet_files, refuse_orphans, rows, utterance
from files import read_lines

SUBSET = "a folder of the hub's parquet, or train/SUBSET.json"

def utterances(root):
    if os.fspath(root).endswith('.json'):
        yield from by_id(_manifest(root))
        return
    for name, path in parquet_files(root, SUBSET).items():
        for number, (audio, row) in enumerate(rows(path, ('text',))):
            yield utterance(f'{name}/{number:06d}', audio, text=row['text'])

def _manifest(path):
    folder = os.fspath(path).removesuffix('.json')
    docs = []
    for place, line in read_lines(path):
        data = line.get('training_data')
        columns = [data.get(key) for key in ('name', 'label', 'duration_ms')] if isinstance(data, dict) else [None]
        if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            raise Refused(f"{place}: expected 'training_data' with equally many name, label and duration_ms")
        for name, label, _ in zip(*columns):
            id = os.path.splitext(name)[0]
            docs.append(utterance(id, os.path.join(folder, name), text=label))
    audio = files(folder, '.flac', '**', SUBSET)
    refuse_orphans(audio.values(), (u['path'] for u in docs), f'no name in {path}')
    return docs

if __name__ == '__main__':
    script(utterances)
