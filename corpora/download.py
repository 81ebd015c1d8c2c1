"""
Downloads, checks and unpacks the archives of public corpora. A corpus is a script that does this, too:

    python -m corpora.librispeech --root=data/LibriSpeech/dev-clean             shows what tokenize_speech.py would read
    python -m corpora.librispeech --download --root=data --subset=dev-clean     fills data/

An interrupted download is resumed (HTTP Range): FILE.part becomes FILE when its size is right, and
its sha256 or md5 if one is published. An archive is unpacked into a temporary folder, whose
contents are moved into place when they are complete; then the archive is deleted, and
ROOT/.downloaded/FILE records that. So more than twice its size must be free. Names and links that
lead out of ROOT, that go through a link, or that are longer than the system allows are refused.
"""
import hashlib
import json
import lzma
import os
import shutil
import tarfile
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configurator import Refused, disk_refusal, printable, refuse_unwritable, run
from files import progress, write_json
from locks import writing_in

ATTEMPTS = 5 # give up after so many attempts in a row that bring nothing
WAIT = 5.0 # seconds between attempts
BLOCK = 1 << 16 # bytes; an interrupted download loses the block that was not full

@dataclass(frozen=True)
class Config:
    root: str = '' # folder of the subset to show; with --download the folder to fill
    download: bool = False # download and unpack the subsets
    subset: str = '' # subsets to download, separated by commas; '': names those there are

    def __post_init__(self):
        if not self.root:
            raise Refused("expected --root=DIR")

def script(utterances, subsets=None):
    """Runs a corpus as a script: the last line of its file.

    subsets: {name: ((url, folder inside root, checksum), ...)}; a checksum is 'sha256:...',
    'md5:...' or None.
    """
    run(partial(main, utterances, subsets or {}), Config)

def main(utterances, subsets, cfg):
    if cfg.download:
        return download_subsets(subsets, cfg)
    counts = {'utterances': 0, 'with text': 0, 'with word times': 0}
    first = None
    for u in utterances(cfg.root):
        first = first or u
        counts['utterances'] += 1
        counts['with text'] += bool(u['text'])
        counts['with word times'] += bool(u['words'])
    print(f"{cfg.root}: {', '.join(f'{n:,} {key}' for key, n in counts.items())}; the first:")
    print(json.dumps(first, ensure_ascii=False))

def download_subsets(subsets, cfg):
    names = [name for name in cfg.subset.split(',') if name]
    refuse_unwritable(cfg.root)
    if not subsets:
        raise Refused("no archive to download; the first lines of the corpus's file tell where it is")
    if not names or not set(names) <= set(subsets):
        raise Refused(f"subset={cfg.subset}: expected some of {', '.join(subsets)}")
    with writing_in(cfg.root):
        for name in names:
            for archive in subsets[name]:
                download(cfg.root, *archive)

def download(root, url, folder='', checksum=None):
    """Downloads a file into root/folder, unless that was done before, and unpacks a .tar, .tgz, .tar.gz or .tar.bz2."""
    file = url.rpartition('/')[2]
    into = Path(root, folder)
    done = Path(root, '.downloaded', file)
    if done.exists():
        return print(f"{file}: downloaded before, as {done} records")
    into.mkdir(parents=True, exist_ok=True)
    fetch(url, into / file, checksum)
    if '.tar' in file or file.endswith('.tgz'):
        unpack(into / file, into)
        (into / file).unlink()
    write_json(done, {'url': url, 'checksum': checksum})
    print(f"{file}: in {into}")

def fetch(url, path, checksum=None):
    """Downloads url to path, which appears only when the file is complete and its checksum is right."""
    import requests  # here, because reading a corpus needs no network

    part = path.with_name(path.name + '.part')
    if path.exists(): # downloaded in a run that was interrupted while unpacking
        return
    size = _size(part)
    n_failures = 0
    while True:
        try:
            _resume(requests, url, part, checksum)
            break
        except requests.RequestException as e:
            if e.response is not None and 400 <= e.response.status_code < 500:
                raise Refused(f"{url}: {e.response.status_code} {e.response.reason}") from None
            size_before = size
            size = _size(part)
            n_failures = 1 if size > size_before else n_failures + 1
            if n_failures == ATTEMPTS:
                raise Refused(f"{url}: {e}; {size:,} bytes are in {part}, run again to go on") from None
            time.sleep(WAIT)
        except OSError as e: # the disk, not the network
            raise Refused(f"{part}: cannot be written ({e})") from None
    if checksum:
        kind, _, expected = checksum.partition(':')
        with open(part, 'rb') as f:
            digest = hashlib.file_digest(f, kind).hexdigest()
        if digest != expected:
            part.unlink()
            raise Refused(f"{url}: its {kind} is {digest}, expected {expected}; the file is deleted, run again")
    os.replace(part, path)

def _size(path):
    return path.stat().st_size if path.exists() else 0

def _resume(requests, url, part, checksum):
    """Appends to part what is missing; raises requests.ConnectionError if the transfer ends early."""
    size = _size(part)
    headers = {'Accept-Encoding': 'identity'}
    if size:
        headers['Range'] = f'bytes={size}-'
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        content_range = response.headers.get('Content-Range', '')
        if response.status_code == 416: # there is nothing after the first `size` bytes
            if content_range != f'bytes */{size}':
                part.unlink() # it is longer than the file, so it belongs to another one
                raise requests.ConnectionError(f"{part.name} had {size} bytes, the server says {content_range}")
            return
        response.raise_for_status()
        if response.status_code != 206 or not content_range.startswith(f'bytes {size}-'):
            size = 0 # the server cannot resume: start again
        length = response.headers.get('Content-Length')
        if length is None and not checksum:
            raise Refused(f"{url}: the server gives no length and there is no checksum: nothing says when it is whole")
        total = None if length is None else size + int(length)
        free = shutil.disk_usage(part.parent).free
        if total and free < total - size:
            raise Refused(f"{part.parent}: {free:,} bytes are free, {url} needs {total - size:,} more")
        with open(part, 'ab' if size else 'wb') as f, \
                progress(total=total, initial=size, unit='B', unit_scale=True, desc=part.stem) as bar:
            for block in response.iter_content(BLOCK):
                f.write(block)
                bar.update(len(block))
            f.flush()
            os.fsync(f.fileno())
    if total is not None and _size(part) != total:
        raise requests.ConnectionError(f"ended after {_size(part):,} of {total:,} bytes")

class Guard:
    """Refuses members of an archive before they are unpacked, whatever the Python in use makes of them.

    tarfile's own filter takes names as they are written. A member whose path goes through a link of
    the archive may lead elsewhere than its name says, also where the way is longer than the system
    resolves. Without such paths, what a name says is where it leads.
    """
    def __init__(self, archive, folder):
        self.archive = archive
        self.longest = os.pathconf(folder, 'PC_PATH_MAX') - 1 - len(os.fsencode(folder.absolute())) - 1 # bytes
        self.longest_part = os.pathconf(folder, 'PC_NAME_MAX')
        self.links = set()

    def check(self, member):
        """Raises Refused. Members have to come in the order of the archive."""
        self._check_path(member.name)
        if member.issym():
            self._check_path(f'{os.path.dirname(member.name)}/{member.linkname}', is_target=True)
            self.links.add(os.path.normpath(member.name.lstrip('/')))
        elif member.islnk():
            self._check_path(member.linkname, is_target=True)

    def _check_path(self, path, is_target=False):
        lengths = [len(os.fsencode(part)) for part in path.split('/')]
        n_bytes = sum(lengths) + len(lengths) - 1
        if n_bytes > self.longest or max(lengths) > self.longest_part:
            raise Refused(f"{self.archive}: a path in it has {n_bytes:,} bytes ({printable(path[:40])}...), here "
                          f"{self.longest:,} are possible, and {self.longest_part} a name; nothing was unpacked")
        way = []
        parts = [part for part in path.split('/') if part not in ('', '.')]
        for number, part in enumerate(parts, start=1):
            if part == '..' and not way:
                raise Refused(f"{self.archive}: cannot be unpacked ({printable(path)} leads out of it)")
            if part == '..':
                way.pop()
                continue
            way.append(part)
            if '/'.join(way) in self.links and (is_target or number < len(parts)):
                raise Refused(f"{self.archive}: {printable(path)} in it goes through the link {printable(part)}; "
                              "nothing was unpacked, do it by hand if you trust it")

def unpack(archive, root):
    """Unpacks a tar into root, completely or not at all."""
    tmp = root / (archive.name + '.unpacking')
    shutil.rmtree(tmp, ignore_errors=True) # what a killed run left
    tmp.mkdir()
    try:
        guard = Guard(archive, tmp)
        with tarfile.open(archive, 'r|*') as tar, progress(unit='B', unit_scale=True, desc=archive.name) as bar:
            for member in tar:
                guard.check(member)
                tar.extract(member, tmp, filter='data') # no absolute names, no .., no links out of tmp, no devices
                bar.update(member.size)
        _move(tmp, root)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise disk_refusal(e, root) or Refused(
            f"{archive}: cannot be unpacked ({e}); delete it and try again, or unpack it by hand") from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)

def _move(source, target):
    """Moves the contents of source into target; existing folders are merged, existing files replaced."""
    for entry in sorted(source.iterdir()):
        to = target / entry.name
        if entry.is_dir() and not entry.is_symlink() and to.is_dir():
            _move(entry, to)
        else:
            os.replace(entry, to)
