"""
The folders that a stage hands on: numbered shards, each whole or absent, and an info.json that comes last.

    DIR/00000/NAME.npy      a column of the shard's documents, one row of numbers
    DIR/00000/NAME.jsonl    a JSON object a line
    DIR/info.json           counts, and how it was made; a folder without it is unfinished

What is in them: units (tokenize_speech.py), words (align.py), the speech of the embedded corpus (tiny/speak.py). Token
shards, which training maps, are another format (data.py).
"""
import gzip
import json
import os
import zlib
from pathlib import Path

import numpy as np

from configurator import Refused, atomically


def unlisted(error):
    """For os.walk, which else passes over a folder that it cannot list."""
    if not isinstance(error, FileNotFoundError): # what is not there, callers say better
        raise Refused(f"{error.filename}: cannot be listed ({error.strerror})")

def write_lines(path, dicts):
    Path(path).write_text(''.join(json.dumps(d) + '\n' for d in dicts), encoding='ascii')

def write_shard(dir, index, arrays, lines):
    """DIR/00000 with NAME.npy for every array, NAME.jsonl for every list of dicts; it appears whole or not at all."""
    folder = Path(dir) / f'{index:05d}'
    if (size := sum(a.nbytes for a in arrays.values())) > 1 << 30:
        raise Refused(f"{folder}: {size:,} bytes, a shard has at most 1 GiB; put fewer documents into it")
    with atomically(folder) as tmp:
        tmp.mkdir()
        for name, array in arrays.items():
            np.save(tmp / f'{name}.npy', array)
        for name, dicts in lines.items():
            write_lines(tmp / f'{name}.jsonl', dicts)

def shard_folders(dir):
    """The complete shards of a folder, in order; none may be missing."""
    names = sorted((name for name in os.listdir(dir) if name.isdecimal() and len(name) >= 5), key=int)
    for index, name in enumerate(names):
        if int(name) != index:
            raise Refused(f"{dir}: shard {index:05d} is missing, {name} is there")
    return [Path(dir) / name for name in names]

def read_array(path, dtype):
    """A shard's NAME.npy, memory-mapped and checked: one row of dtype."""
    try:
        a = np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError) as e:
        raise Refused(f"{path}: not a whole .npy file ({e})") from None
    if a.dtype != dtype or a.ndim != 1:
        raise Refused(f"{path}: {a.dtype} of shape {a.shape}, expected one row of {np.dtype(dtype)}")
    return a

def _once(pairs):
    """An object's pairs as a dict, each key once."""
    if len(value := dict(pairs)) != len(pairs):
        raise ValueError("a key comes twice in an object")
    return value

def strict_json(text):
    """A JSON value; ValueError where a key comes twice, of which Python would take the last."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None

def read_lines(path):
    """(where, dict) of each line of a .jsonl(.gz); a line that is not a JSON object is refused with its number."""
    try:
        with gzip.open(path) if str(path).endswith('.gz') else open(path, 'rb') as f:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    try:
                        value = strict_json(line)
                    except ValueError as e: # not JSON, or not UTF-8
                        raise Refused(f"{path}:{number}: not a line of JSON ({e})") from None
                    if not isinstance(value, dict):
                        raise Refused(f"{path}:{number}: expected a JSON object, got {line[:40].decode(errors='replace').strip()}")
                    yield f'{path}:{number}', value
    except (OSError, EOFError, zlib.error) as e: # the last two: a .gz cut short
        raise Refused(f"{path}: not readable ({e})") from None

def read_info(dir, script):
    """DIR/info.json, which a folder has when `script` has finished it."""
    try:
        return json.loads((Path(dir) / 'info.json').read_text(encoding='utf-8'))
    except FileNotFoundError:
        what = "no info.json in it, so it is not complete" if Path(dir).is_dir() else "no such folder"
        raise Refused(f"{dir}: {what}; {script} makes it") from None
    except (OSError, ValueError) as e:
        raise Refused(f"{dir}/info.json: not JSON ({e})") from None
