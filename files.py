"""
What a script leaves on disk: files and folders that are whole or absent, and a record of how they were made.

A stage hands on a folder of numbered shards, with an info.json that is written last:

    DIR/00000/NAME.npy      a column over the shard's documents: a 1-D array
    DIR/00000/NAME.jsonl    a JSON object a line
    DIR/00000/sha256.json   {NAME: sha256} of the shard's other files
    DIR/info.json           counts, and how the folder was made; without it the folder is unfinished

Such folders hold units (tokenize_speech.py), words (align.py) and the speech of the embedded corpus
(tiny/build/speak.py). Token shards, which training maps into memory, have another format (data.py).
"""
import codecs
import csv
import ctypes
import gzip
import hashlib
import json
import math
import mmap
import os
import shutil
import subprocess
import sys
import weakref
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import Refused, disk_refusal, script_name
from locks import Busy, Lock, refuse_held

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

def _bytes_of(path):
    """The bytes of a file, or of the files in a folder; 0 if there is none."""
    try:
        return sum(part.stat().st_size for part in [path, *path.rglob('*')] if part.is_file())
    except OSError: # one was removed just now
        return 0

def rename_whole(tmp, path):
    """Renames a file or folder when all of it is on the disk."""
    for part in [*sorted(tmp.rglob('*')), tmp]: # no parts if it is a file
        _fsync(part)
    os.replace(tmp, path)
    _fsync(path.parent)

@contextmanager
def atomically(path, mark='', wait=0.0):
    """Yields a temporary path to write a file or a folder to, which is then fsynced and renamed to `path`.

        with atomically('out/info.json') as tmp:
            tmp.write_text(...)

    A file replaces the old one; a folder's name must be free. If the block fails, nothing is left
    behind. All files have the mode that the umask says, whatever a library gave them (safetensors:
    0600). mark: part of the temporary name, `path`MARK.tmp, where several processes may write the
    same file at once. Another process that writes to this name raises Busy after `wait` seconds. A
    disk that is full or read-only raises Refused.
    """
    path = Path(path)
    tmp = path.with_name(path.name + mark + '.tmp')
    with Lock(f'{tmp}.lock', path, wait):
        refuse_held(path / '.lock', path) # of a stage that fills the folder bit by bit (locks.writing_in)
        _remove(tmp) # left by a killed run
        try:
            tmp.touch() # to see its mode: a process cannot read its umask without changing it for all threads
            mode = tmp.stat().st_mode
            tmp.unlink()
            yield tmp
            if tmp.is_dir() and path.is_dir() and any(path.iterdir()):
                raise Busy(f"{path}: another process has written it meanwhile")
            for part in [*tmp.rglob('*'), tmp]: # no parts if it is a file
                if part.is_file() and not part.is_symlink() and part.stat().st_mode != mode:
                    part.chmod(mode)
            rename_whole(tmp, path)
        except BaseException as e:
            refusal = disk_refusal(e, path, _bytes_of(tmp))
            with suppress(OSError): # the disk may be read-only now
                _remove(tmp)
            if refusal:
                raise refusal from None
            raise

def write_json(path, value, mark=''):
    """Writes value as indented JSON, atomically (mark: see atomically)."""
    with atomically(path, mark, wait=10) as tmp:
        text = json.dumps(value, indent=1, ensure_ascii=False) + '\n'
        tmp.write_bytes(text.encode('utf-8', 'backslashreplace')) # a path that is not UTF-8 has halves of characters

def sha256(path):
    """Hex digest of a file."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()

def fingerprint(path):
    """What a MANIFEST.json says of a file: {"bytes", "sha256"}."""
    return {'bytes': os.path.getsize(path), 'sha256': sha256(path)}

def why_changed(folder, fingerprints):
    """Why the files of a folder are not those that had these {name: fingerprint}; None if they are."""
    for name, expected in fingerprints.items():
        path = Path(folder, name)
        if Path(name).name != name or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected['bytes']:
            return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
        if sha256(path) != expected['sha256']:
            return f"{name} has changed since it was written (sha256)"
    return None

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

def parse_json(text, **options):
    """A JSON value; ValueError for what is none, also where it is nested too deeply. options: of json.loads."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None

def read_value(path):
    """The JSON value of a file in UTF-8. Raises OSError, ValueError."""
    return parse_json(Path(path).read_text(encoding='utf-8'))

def read_json(folder, name, script):
    """The JSON object of FOLDER/NAME; for a NAME that ends in .jsonl, the list of its lines' objects.

    script: what writes the file, for the message that refuses a missing one. Anything but JSON
    objects is refused too.
    """
    path = Path(folder) / name
    try:
        text = path.read_text(encoding='utf-8')
        parts = filter(None, text.split('\n')) if path.suffix == '.jsonl' else [text]
        values = [parse_json(part) for part in parts]
    except OSError:
        check_readable(path)
        raise Refused(f"{path}: no such file; {script} writes it") from None
    except ValueError as e: # not JSON, or not UTF-8
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
    return parse_json(text, object_pairs_hook=_without_repeated_keys)

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
# text and tables

def lines(path):
    """Yields (place, line) for each line of a UTF-8 text or .gz that is not blank. place: 'PATH:LINE_NUMBER'."""
    path = os.fspath(path)
    number = 0
    try:
        with gzip.open(path) if path.endswith('.gz') else open(path, 'rb') as f:
            for number, line in enumerate(f, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                text = line.decode().rstrip('\r\n')
                if text.strip():
                    yield f'{path}:{number}', text
    except UnicodeDecodeError as e:
        raise Refused(f"{path}:{number}: not UTF-8 ({e.reason} {line[e.start]:#04x}); {_utf8_remedy(line)}") from None
    except FileNotFoundError:
        raise Refused(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as e: # the last two: a .gz that was cut short
        raise Refused(f"{path}: not readable ({e})") from None

def _utf8_remedy(line):
    """How to get text that is not UTF-8 in."""
    encoding = 'utf-16' if line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else 'cp1252'
    return f"iconv -f {encoding} -t utf-8 OLD > NEW converts what Windows programs save"

def read_text(path):
    """The text of a UTF-8 file, None if there is no such file."""
    try:
        data = Path(path).read_bytes()
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as e:
        number = data.count(b'\n', 0, e.start) + 1
        raise Refused(f"{path}:{number}: not UTF-8 ({e.reason} {data[e.start]:#04x}); {_utf8_remedy(data)}") from None
    except OSError as e:
        raise Refused(f"{path}: not readable ({e.strerror})") from None

def _cells(line, separator, place):
    """The cells of a line of csv; tabs and bars separate cells that have no quotes."""
    if separator != ',':
        return line.split(separator)
    try:
        return next(csv.reader([line], strict=True)) # of one line: a quote that does not close swallows no others
    except csv.Error as e:
        why = "a quotation mark does not close on its line" if 'unexpected end' in str(e) else e
        raise Refused(f"{place}: {why}; expected csv with a row a line, and quotes inside quotes doubled") from None

def read_table(path, columns, separator=','):
    """Yields (place, {column: text}) for each row of a table in UTF-8, whose header has these columns, perhaps others.

    With ',' cells may be quoted as in csv, but none holds a line break. Raises Refused, also for a
    row that has more or fewer cells than the header.
    """
    rows = lines(path)
    place, header_line = next(rows, (path, ''))
    header = _cells(header_line, separator, place) if header_line else []
    if missing := [column for column in columns if column not in header]:
        raise Refused(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}, "
                      f"separated by {separator!r}, got {header_line[:80]!r}")
    if twice := [column for column, n in Counter(header).items() if n > 1 and column in columns]:
        raise Refused(f"{path}: column {twice[0]} comes twice")
    for place, line in rows:
        cells = _cells(line, separator, place)
        if len(cells) != len(header):
            raise Refused(f"{place}: {len(cells)} cells, the header has {len(header)}")
        yield place, dict(zip(header, cells))

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
        write_hashes(tmp)

def write_hashes(folder):
    """Writes a shard's sha256.json, of all other files that are in it."""
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != 'sha256.json'}
    (folder / 'sha256.json').write_text(json.dumps(hashes) + '\n', encoding='utf-8')

def check_hashes(folder, script):
    """Reads a shard, at 1.5 GB/s if the disk gives it; refuses a file that its sha256.json does not name as it is.

    A shard of a version before this file, or of another program, has none and is taken as it is.
    script: what writes such shards, for the message.
    """
    if not (folder / 'sha256.json').exists():
        return
    for name, expected in read_json(folder, 'sha256.json', script).items():
        path = folder / Path(name).name
        if not path.is_file() or sha256(path) != expected:
            raise Refused(f"{path}: not what {script} wrote there; bring the old file back, or remove {folder} and run "
                          f"{script} again")

def hash_of_shards(dir):
    """One hash of the content of all shards of a folder, for its info.json: of their sha256.json."""
    hashes = [sha256(path / 'sha256.json') for path in shard_folders(dir) if (path / 'sha256.json').exists()]
    return hashlib.sha256(' '.join(hashes).encode()).hexdigest()[:16]

def check_hash_of_shards(dir, info, script):
    """Refuses a folder whose shards are not those that its info.json was written for, where that says it."""
    now = hash_of_shards(dir)
    if info.get('content', now) != now:
        raise Refused(f"{dir}: its shards are not those that info.json was written for (content {now}, info.json says "
                      f"{info['content']}); bring them back, or run {script} again")

class Lazy(Sequence):
    """n items, item i of which is make(i). The last `keep` that were asked for stay in memory."""
    def __init__(self, n, make, keep=2):
        self.n = n
        self.make = lru_cache(keep)(make)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(f"item {i} of {self.n}")
        return self.make(i)

def shard_folders(dir):
    """The complete shards of a folder, in order; a missing number is refused."""
    names = sorted((name for name in os.listdir(dir) if name.isdecimal() and len(name) >= 5), key=int)
    for index, name in enumerate(names):
        if int(name) != index:
            raise Refused(f"{dir}: shard {index:05d} is missing, {name} is there")
    return [Path(dir) / name for name in names]

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

def mapped(path, dtype, offset=0, n=-1):
    """n values from byte `offset` of a file on, to its end for -1, memory-mapped: an array that cannot be written.

    numpy.memmap keeps a file descriptor for each array, of which a process has 1,024 on most systems: too few for a
    corpus of many shards. Raises OSError, ValueError.
    """
    with open(path, 'rb') as f:
        size = os.fstat(f.fileno()).st_size
        if size <= offset: # an empty map is not allowed
            return np.frombuffer(b'', dtype, max(n, 0))
        address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, f.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    data = (ctypes.c_char * size).from_address(address)
    weakref.finalize(data, LIBC.munmap, address, size) # when no array needs it any more
    array = np.frombuffer(data, dtype, n, offset)
    array.flags.writeable = False
    return array

def map_npy(path):
    """A .npy file, as np.save writes it, by mapped. Raises OSError, ValueError."""
    with open(path, 'rb') as f:
        if np.lib.format.read_magic(f) != (1, 0):
            raise ValueError("not a file of np.save")
        shape, _, dtype = np.lib.format.read_array_header_1_0(f)
        return mapped(path, dtype, f.tell(), math.prod(shape)).reshape(shape)

def read_array(path, dtype):
    """A shard's NAME.npy, memory-mapped; refused unless it is a 1-D array of dtype."""
    check_readable(path)
    try:
        array = map_npy(path)
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; the folder is not whole, make it again") from None
    except (OSError, ValueError) as e:
        raise Refused(f"{path}: not a whole .npy file ({e})") from None
    if array.dtype != dtype or array.ndim != 1:
        raise Refused(f"{path}: {array.dtype} of shape {array.shape}, expected one row of {np.dtype(dtype)}")
    return array

def is_finite(tensor):
    """Whether a tensor of torch holds neither NaN nor infinity, at 20 GB/s on a core; isfinite().all(): 0.5 GB/s."""
    if not tensor.numel():
        return True
    lowest, highest = tensor.aminmax() # both are NaN if any number is
    return bool(lowest.isfinite() & highest.isfinite())

# --------------------------------------------------------------------------------------------------
# folders that a user brings

def is_hidden(name):
    """Whether a name is one that programs keep for themselves: .git, .ipynb_checkpoints, macOS's ._NAME."""
    return name.startswith('.')

def _entries(folder):
    """What a folder holds that is not hidden, sorted; nothing if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except FileNotFoundError: # callers have better words for it
        return []
    except OSError as e:
        raise Refused(f"{folder}: cannot be listed ({e.strerror})") from None

def _number(folder):
    """What tells a folder from all others, by whatever name; None if it cannot be looked up."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino

def walk(root, out=None, links=None):
    """{name: path} of the files below a folder, sorted; a name is the path inside root, with '/'. Raises Refused.

    Hidden files and folders are left out, and the folder `out`, into which the caller writes.
    Links are followed, but nothing is read twice: what stands below root is read in its own place,
    whatever links lead there; of several links to a folder elsewhere the first is followed; links
    to files elsewhere are files. The names of the links left out are appended to `links`.
    """
    known = {_number(out)} - {_number(root)} if out else set() # the numbers of folders
    paths = {}
    linked_files = []
    left_out = []
    folders = [('', os.fspath(root))]
    linked_folders = deque() # followed after all that stands in its own place
    while folders or linked_folders:
        prefix, folder = folders.pop() if folders else linked_folders.popleft()
        if _number(folder) in known:
            left_out += [prefix.rstrip('/')] if os.path.islink(folder) else []
            continue
        known.add(_number(folder))
        for entry in _entries(folder):
            name = prefix + entry.name
            if entry.is_symlink():
                is_folder = os.path.isdir(entry.path)
                (linked_folders if is_folder else linked_files).append((name + '/' * is_folder, entry.path))
            elif entry.is_dir():
                folders.append((name + '/', entry.path))
            else:
                paths[name] = entry.path
    for name, path in linked_files:
        target_folder, target = os.path.split(os.path.realpath(path))
        if _number(target_folder) in known and not is_hidden(target) and os.path.exists(path):
            left_out.append(name)
        else:
            paths[name] = path
    if links is not None:
        links += sorted(left_out)
    return dict(sorted(paths.items()))

def visible(folder, pattern):
    """The paths in a folder that match a pattern of Path.glob, sorted, without hidden ones."""
    return sorted(path for path in Path(folder).glob(pattern) if not is_hidden(path.name))

def outside_units(paths):
    """Those of walk's {name: path} that are not inside a units folder (speech/units.py)."""
    folders = {name.removesuffix('00000/units.npy') for name in paths if name.endswith('00000/units.npy')}
    return {name: path for name, path in paths.items() if not name.startswith(tuple(folders))}

def files_of_kind(root, endings, out=None):
    """{name: path} of the files below a folder (see walk) whose names end in one of `endings`; a line names the others.

    Units folders are not looked into.
    """
    links = []
    paths = outside_units(walk(root, out, links))
    chosen = {name: path for name, path in paths.items() if name.lower().endswith(endings)}
    if others := [name for name in paths if name not in chosen]:
        print(f"{root}: left out, as not {' '.join(endings)}: {name_some(others)}")
    print_links(root, links)
    return chosen

def print_links(root, links):
    """A line about the links below root that were left out."""
    if links:
        print(f"{root}: left out, as links to what is read in its own place: {', '.join(links[:5])}"
              + (f" and {len(links) - 5} more" if len(links) > 5 else ''))

def name_some(names):
    """'2 .m4a (a.m4a, b.m4a), 1 .json (c.json)': how many files there are of each suffix, and the first three."""
    by_suffix = {}
    for name in sorted(names):
        by_suffix.setdefault(Path(name).suffix.lower() or 'without suffix', []).append(name)
    kinds = sorted(by_suffix.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = [f"{len(files):,} {suffix} ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})"
             for suffix, files in kinds]
    return ', '.join(parts[:8]) + (f' and {len(parts) - 8} more kinds' if len(parts) > 8 else '')

# --------------------------------------------------------------------------------------------------
# while working

def progress(iterable=None, **kwargs):
    """tqdm, silent where nobody watches (stderr is no terminal)."""
    return tqdm(iterable, disable=not sys.stderr.isatty(), **kwargs)
