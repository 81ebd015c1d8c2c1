"""
Parquet of Hugging Face datasets (https://github.com/huggingface/datasets): a column 'audio' of bytes or of paths.

    hf download ORGANISATION/NAME --repo-type dataset --include 'en/train-*' --local-dir data/NAME
    python tokenize_speech.py --corpus=parquet --audio='data/NAME/en/train-*.parquet' --out=...

--audio is a .parquet file, a folder of such files, or a pattern of file names (in quotes). Text and
speaker are the first of TEXTS and SPEAKERS that the file has; other columns are not read. A path in the column is taken
from the parquet file's folder. ids are FILE/ROW, so that neighboring rows are read together. Files of
several splits (train, test, ...) in one folder are refused: name one by a pattern. Needs pyarrow.
"""
import glob
import os

from configurator import Refused
from corpora.download import script
from corpora.tree import parquet_files, rows, utterance
from speech.audio import open_parquet

TEXTS = ('text', 'sentence', 'transcription', 'transcript', 'raw_text', 'normalized_text', 'raw_transcription')
SPEAKERS = ('speaker_id', 'speaker', 'client_id')
SUBSET = "a folder of the parquet files of one split"

def _paths(root):
    """{name: path} of the files that --audio means, of one split."""
    root = os.fspath(root)
    if not os.path.exists(root) and glob.has_magic(root):
        paths = {os.path.basename(path).removesuffix('.parquet'): path for path in sorted(glob.glob(root))}
        if not paths or not all(path.endswith('.parquet') for path in paths.values()):
            raise Refused(f"{root}: {len(paths)} files have such a name, not all of them .parquet; expected some")
        return paths
    if os.path.isdir(root) and glob.glob(os.path.join(glob.escape(root), '*.arrow')):
        raise Refused(f"{root}: .arrow files, which save_to_disk wrote; expected parquet, as the hub has it")
    paths = parquet_files(root, SUBSET)
    splits = sorted({name.partition('-')[0] for name in paths if '-of-' in name})
    if len(splits) > 1:
        raise Refused(f"{root}: files of the splits {', '.join(splits)}; "
                      f"name one of them: --audio='{os.path.join(root, splits[-1])}-*.parquet'")
    return paths

def _first(columns, names):
    return next((name for name in names if name in columns), None)

def utterances(root):
    for name, path in _paths(root).items():
        columns = open_parquet(path).schema_arrow.names
        text = _first(columns, TEXTS)
        speaker = _first(columns, SPEAKERS)
        names = [column for column in (text, speaker) if column]
        for number, (audio, row) in enumerate(rows(path, names)):
            speaker_id = row.get(speaker)
            yield utterance(f'{name}/{number:06d}', audio, text=row.get(text) or None,
                            speaker=None if speaker_id is None else str(speaker_id))

if __name__ == '__main__':
    script(utterances)
