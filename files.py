"""
The folders that a stage hands on: numbered shards, each whole or absent, and an info.json that comes last.

    DIR/00000/NAME.npy      a column of the shard's documents, one row of numbers
    DIR/00000/NAME.jsonl    a JSON object a line
    DIR/info.json           counts, and how it was made; a folder without it is unfinished

What is in them: units (tokenize_speech.py), words (align.py), the speech of the embedded corpus (tiny/build/speak.py). Token
shards, which training maps, are another format (data.py).
"""
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import Refused, script_name


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

def _commit():
    """Short git commit of this folder, '+' behind it when tracked files differ from it; None outside a checkout."""
    try:
        here = Path(__file__).parent
        git = lambda *args: subprocess.run(['git', '-C', here, *args], capture_output=True, text=True, check=True).stdout
        return git('rev-parse', '--short=12', 'HEAD').strip() + ('+' if git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.CalledProcessError):
        return None

def record(cfg):
    """How an artefact was made, to be saved beside it: command, settings, commit, versions. No times: bytes repeat."""
    versions = {'python': '.'.join(map(str, sys.version_info[:3]))}
    for package in ('torch', 'numpy', 'transformers'):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    return {'command': ' '.join([script_name(), *sys.argv[1:]]), 'settings': asdict(cfg),
            'commit': _commit(), 'versions': versions}

def _fsync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

@contextmanager
def atomically(path, mark=''):
    """Yields `path`.tmp to be made (a file, or a folder of files); then fsync and rename to `path`. Nothing is left on failure.
    mark: `path`MARK.tmp instead, where several processes may write the same file at once.

        with atomically('out/info.json') as tmp:
            tmp.write_text(...)

    A file replaces the old one; a folder's name must be free.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + mark + '.tmp')
    _remove(tmp) # of a killed run
    try:
        yield tmp
        for part in sorted(tmp.rglob('*')) if tmp.is_dir() else []:
            _fsync(part)
        _fsync(tmp)
        os.replace(tmp, path)
        _fsync(path.parent)
    except BaseException:
        _remove(tmp)
        raise

def write_json(path, value, mark=''):
    """value as indented JSON, atomically."""
    with atomically(path, mark) as tmp:
        tmp.write_text(json.dumps(value, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

def sha256(path):
    """Hex digest of a file."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()

def progress(iterable=None, **kwargs):
    """tqdm, silent where nobody watches (stderr is no terminal)."""
    return tqdm(iterable, disable=not sys.stderr.isatty(), **kwargs)

def read_json(folder, name, script):
    """A run's file: the object of NAME.json, the list of objects of NAME.jsonl."""
    path = Path(folder) / name
    try:
        text = path.read_text(encoding='utf-8')
        return [json.loads(line) for line in text.splitlines()] if path.suffix == '.jsonl' else json.loads(text)
    except OSError:
        raise Refused(f"{path}: no such file; {script} writes it") from None
    except ValueError as e:
        raise Refused(f"{path}: not JSON ({e})") from None
