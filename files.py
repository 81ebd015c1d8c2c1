"""
What a script leaves on disk: files and folders that are whole or absent, and a record of how they were made.

A stage hands on a folder of numbered shards, with an info.json that is written last:

    DIR/00000/NAME.npy      a column over the shard's documents: a 1-D array
    DIR/00000/NAME.jsonl    a JSON object a line
    DIR/info.json           counts, and how the folder was made; without it the folder is unfinished

Such folders hold units (tokenize_speech.py), words (align.py) and the speech of the embedded corpus
(tiny/build/speak.py). Token shards, which training maps into memory, have another format (data.py).
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

# --------------------------------------------------------------------------------------------------
# whole or absent

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
    """Yields a temporary path to write a file or a folder to, which is then fsynced and renamed to `path`.

        with atomically('out/info.json') as tmp:
            tmp.write_text(...)

    A file replaces the old one; a folder's name must be free. If the block fails, nothing is left
    behind. All files have the mode that the umask says, whatever a library gave them (safetensors:
    0600). mark: part of the temporary name, `path`MARK.tmp, where several processes may write the
    same file at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + mark + '.tmp')
    _remove(tmp) # left by a killed run
    try:
        tmp.touch() # to see its mode: a process cannot read its umask without changing it for all threads
        mode = tmp.stat().st_mode
        tmp.unlink()
        yield tmp
        for part in [*sorted(tmp.rglob('*')), tmp]: # no parts if it is a file
            if part.is_file() and not part.is_symlink() and part.stat().st_mode != mode:
                part.chmod(mode)
            _fsync(part)
        os.replace(tmp, path)
        _fsync(path.parent)
    except BaseException:
        _remove(tmp)
        raise

def write_json(path, value, mark=''):
    """Writes value as indented JSON, atomically (mark: see atomically)."""
    with atomically(path, mark) as tmp:
        tmp.write_text(json.dumps(value, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

def sha256(path):
    """Hex digest of a file."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()

# --------------------------------------------------------------------------------------------------
# how it was made

def _git(*args):
    command = ['git', '-C', Path(__file__).parent, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

def _commit():
    """Short git commit of this folder, with '+' appended if tracked files differ from it; None outside a checkout."""
    try:
        commit = _git('rev-parse', '--short=12', 'HEAD').strip()
        return commit + '+' if _git('status', '--porcelain', '-uno') else commit
    except (OSError, subprocess.CalledProcessError):
        return None

def record(cfg):
    """How something was made, to be saved beside it. No times are in it: a command repeated gives the same bytes."""
    versions = {'python': '.'.join(map(str, sys.version_info[:3]))}
    for package in ('torch', 'numpy', 'transformers'):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    command = ' '.join([script_name(), *sys.argv[1:]])
    return {'command': command, 'settings': asdict(cfg), 'commit': _commit(), 'versions': versions}

# --------------------------------------------------------------------------------------------------
# JSON

def check_readable(path):
    """Refuses a file, or a folder with a .json, .npy or .safetensors file, that this account may not read.

    What is absent or broken is left to the caller. safetensors itself calls all three "No such file".
    """
    path = Path(path)
    try:
        parts = [path / name for name in os.listdir(path)] if path.is_dir() else [path]
        for part in parts:
            if part == path or part.suffix in ('.json', '.npy', '.safetensors'):
                with open(part, 'rb'):
                    pass
    except PermissionError as e:
        raise Refused(f"{e.filename}: this account may not read it; its owner can change that: "
                      f"chmod -R a+rX {path}") from None
    except OSError:
        pass

def read_json(folder, name, script):
    """The JSON object of FOLDER/NAME; for a NAME that ends in .jsonl, the list of its lines' objects.

    script: what writes the file, for the message that refuses a missing one. Anything but JSON
    objects is refused too.
    """
    path = Path(folder) / name
    try:
        text = path.read_text(encoding='utf-8')
        values = [json.loads(part) for part in (text.splitlines() if path.suffix == '.jsonl' else [text])]
    except OSError:
        check_readable(path)
        raise Refused(f"{path}: no such file; {script} writes it") from None
    except (ValueError, RecursionError) as e: # not JSON, not UTF-8, or nested too deeply
        raise Refused(f"{path}: not JSON ({e})") from None
    for value in values:
        if not isinstance(value, dict):
            raise Refused(f"{path}: expected a JSON object, got {json.dumps(value)[:40]}")
    return values if path.suffix == '.jsonl' else values[0]

def read_info(dir, script):
    """DIR/info.json, which a folder has once `script` has finished it."""
    check_readable(dir)
    if not Path(dir).is_dir():
        raise Refused(f"{dir}: no such folder; {script} makes it")
    if not (Path(dir) / 'info.json').exists():
        raise Refused(f"{dir}: no info.json in it, so it is not complete; {script} makes it")
    return read_json(dir, 'info.json', script)

def _without_repeated_keys(pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key comes twice in an object")
    return value

def strict_json(text):
    """A JSON value; ValueError if a key comes twice in an object, where json.loads alone would take the last."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None

def read_lines(path):
    """Yields ('PATH:LINE', dict) for each line of a .jsonl(.gz) that is not blank; a line with no object is refused."""
    try:
        with gzip.open(path) if str(path).endswith('.gz') else open(path, 'rb') as f:
            for number, line in enumerate(f, start=1):
                if not line.strip():
                    continue
                try:
                    value = strict_json(line)
                except ValueError as e: # not JSON, or not UTF-8
                    raise Refused(f"{path}:{number}: not a line of JSON ({e})") from None
                if not isinstance(value, dict):
                    start = line[:40].decode(errors='replace').strip()
                    raise Refused(f"{path}:{number}: expected a JSON object, got {start}")
                yield f'{path}:{number}', value
    except (OSError, EOFError, zlib.error) as e: # the last two: a .gz that was cut short
        raise Refused(f"{path}: not readable ({e})") from None

def write_lines(path, dicts):
    """Writes a JSON object a line."""
    Path(path).write_text(''.join(json.dumps(d) + '\n' for d in dicts), encoding='ascii')

# --------------------------------------------------------------------------------------------------
# shards

def write_shard(dir, index, arrays, lines):
    """Writes DIR/00000, atomically: NAME.npy for each array, NAME.jsonl for each list of dicts."""
    folder = Path(dir) / f'{index:05d}'
    size = sum(array.nbytes for array in arrays.values())
    if size > 1 << 30:
        raise Refused(f"{folder}: {size:,} bytes, a shard has at most 1 GiB; put fewer documents into it")
    with atomically(folder) as tmp:
        tmp.mkdir()
        for name, array in arrays.items():
            np.save(tmp / f'{name}.npy', array)
        for name, dicts in lines.items():
            write_lines(tmp / f'{name}.jsonl', dicts)

def shard_folders(dir):
    """The complete shards of a folder, in order; a missing number is refused."""
    names = sorted((name for name in os.listdir(dir) if name.isdecimal() and len(name) >= 5), key=int)
    for index, name in enumerate(names):
        if int(name) != index:
            raise Refused(f"{dir}: shard {index:05d} is missing, {name} is there")
    return [Path(dir) / name for name in names]

def read_array(path, dtype):
    """A shard's NAME.npy, memory-mapped; refused unless it is a 1-D array of dtype."""
    check_readable(path)
    try:
        array = np.load(path, mmap_mode='r')
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; the folder is not whole, make it again") from None
    except (OSError, ValueError, EOFError) as e:
        raise Refused(f"{path}: not a whole .npy file ({e})") from None
    if array.dtype != dtype or array.ndim != 1:
        raise Refused(f"{path}: {array.dtype} of shape {array.shape}, expected one row of {np.dtype(dtype)}")
    return array

# --------------------------------------------------------------------------------------------------
# while working

def unlisted(error):
    """onerror for os.walk, which otherwise skips a folder that it cannot list."""
    if not isinstance(error, FileNotFoundError): # callers have better words for a folder that is not there
        raise Refused(f"{error.filename}: cannot be listed ({error.strerror})")

def progress(iterable=None, **kwargs):
    """tqdm, silent where nobody watches (stderr is no terminal)."""
    return tqdm(iterable, disable=not sys.stderr.isatty(), **kwargs)
