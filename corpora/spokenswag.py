"""
SpokenSwag (https://huggingface.co/datasets/slprl/SpokenSwag): 67,900 triples (prompt, chosen, rejected), by Kokoro.

    hf download slprl/SpokenSwag --repo-type dataset --include 'data/train*' --local-dir data/swag
    python -m corpora.spokenswag --parquet=data/swag/data --out=data/spokenswag
    python tokenize_speech.py --audio=data/spokenswag --out=out/units/spokenswag

--parquet is a folder of .parquet files or one of them, with columns speaker, prompt_text, chosen_text, rejected_text
and the audio prompt, chosen, rejected (bytes of a file). The output is a folder as corpora/folder.py reads it, with
documents ROW/prompt, ROW/chosen and ROW/rejected, of which dpo.py makes pairs. ROW is the file's name and the row's
number.
"""
import json
from dataclasses import dataclass
from pathlib import Path

from configurator import Refused, run
from files import atomically, progress, record, visible, write_json
from speech.audio import open_parquet

PARTS = ('prompt', 'chosen', 'rejected')
COLUMNS = ('speaker', *(f'{part}_text' for part in PARTS), *PARTS)
FORMATS = {b'RIFF': 'wav', b'fLaC': 'flac', b'OggS': 'ogg'} # by a file's first bytes; everything else is called mp3

@dataclass(frozen=True)
class Config:
    parquet: str = '' # folder of SpokenSwag's .parquet files, or one of them
    out: str = '' # folder to make, for tokenize_speech.py --audio

    def __post_init__(self):
        if not self.parquet or not self.out:
            raise Refused("expected --parquet=FOLDER and --out=DIR")

def rows(path):
    """Yields (number, row as a dict) of a parquet file."""
    file = open_parquet(path)
    if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
        raise Refused(f"{path}: no column {', '.join(missing)}; expected SpokenSwag's {', '.join(COLUMNS)}")
    number = 0
    try:
        for batch in file.iter_batches(batch_size=64, columns=list(COLUMNS)):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except (OSError, ValueError) as e: # ArrowInvalid is a ValueError
        reason = str(e).splitlines()[0]
        raise Refused(f"{path}: cannot be read from row {number} on ({reason})") from None

def write_audio(path, folder):
    """Writes the audio of a parquet file into folder; yields the three manifest lines of each row."""
    for number, row in rows(path):
        id = f'{path.stem}/{number:06d}'
        lines = []
        for part in PARTS:
            audio = row[part]['bytes'] if isinstance(row[part], dict) else row[part]
            if not isinstance(audio, bytes) or not audio:
                raise Refused(f"{path}: row {number} has no audio in {part}; expected the bytes of a file")
            name = f'{id}.{part}.{FORMATS.get(audio[:4], "mp3")}'
            (folder / name).write_bytes(audio)
            text = row[f'{part}_text']
            lines.append({'id': f'{id}/{part}', 'audio': name, 'text': text, 'speaker': row['speaker']})
        yield lines

def main(cfg):
    root = Path(cfg.parquet)
    paths = visible(root, '*.parquet') if root.is_dir() else [root]
    if not paths or not root.exists():
        raise Refused(f"{root}: expected .parquet files of SpokenSwag")
    if Path(cfg.out).exists():
        raise Refused(f"{cfg.out}: exists; remove it to make it again")
    n_pairs = 0
    with atomically(cfg.out) as tmp:
        for path in paths:
            (tmp / path.stem).mkdir(parents=True)
            with open(tmp / 'manifest.jsonl', 'a', encoding='utf-8') as manifest:
                for lines in progress(write_audio(path, tmp), desc=path.name, unit='pair'):
                    manifest.writelines(json.dumps(line) + '\n' for line in lines)
                    n_pairs += 1
        write_json(tmp / 'info.json', {'pairs': n_pairs, **record(cfg)})
    print(f"{cfg.out}: {n_pairs:,} pairs")

if __name__ == '__main__':
    run(main, Config)
