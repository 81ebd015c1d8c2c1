"""
Archives of public corpora: downloaded, checked, unpacked. And what a corpus does as a script:

    python -m corpora.librispeech --root=data/LibriSpeech/dev-clean             what tokenize_speech.py would see of it
    python -m corpora.librispeech --download --root=data --subset=dev-clean     fills data/

A download that was cut goes on where it stopped (HTTP Range): FILE.part becomes FILE when its size, and its sha256 or
md5 where one is published, are right. An archive is unpacked beside its place, moved there when it is whole, and then
deleted; ROOT/.downloaded/FILE says that it was. So twice its size must be free. Names and links that lead out of ROOT
are refused.
"""
import hashlib
import json
import lzma
import os
import shutil
import sys
import tarfile
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configurator import Refused, run
from files import progress, write_json

ATTEMPTS, WAIT = 5, 5.0 # how often in a row nothing may come, and the seconds between
BLOCK = 1 << 16 # bytes; where a download is cut, the block that was not full is lost

@dataclass(frozen=True)
class Config:
    root: str = '' # the subset to look at; with --download the folder to fill
    download: bool = False # fetch and unpack
    subset: str = '' # what to download, comma-separated; '' shows what there is

    def __post_init__(self):
        if not self.root:
            raise Refused("expected --root=DIR")

def script(utterances, subsets=None):
    """The last line of a corpus. subsets: {name: ((url, folder inside root, 'sha256:...', 'md5:...' or None), ...)}"""
    sys.argv = ['--download=True' if arg == '--download' else arg for arg in sys.argv]
    run(partial(main, utterances, subsets or {}), Config)

def main(utterances, subsets, cfg):
    if cfg.download:
        wanted = [name for name in cfg.subset.split(',') if name]
        if not wanted or not set(wanted) <= set(subsets):
            raise Refused(f"subset={cfg.subset}: expected some of {', '.join(subsets)}" if subsets else
                          "no archive to download; the first lines of the corpus's file say where it is")
        for name in wanted:
            for archive in subsets[name]:
                download(cfg.root, *archive)
        return
    counts, first = {'utterances': 0, 'with text': 0, 'with word times': 0}, None
    for u in utterances(cfg.root):
        first = first or u
        for key, there in zip(counts, (True, u['text'], u['words'])):
            counts[key] += bool(there)
    print(f"{cfg.root}: {', '.join(f'{n:,} {key}' for key, n in counts.items())}; the first:")
    print(json.dumps(first, ensure_ascii=False))

def download(root, url, folder='', checksum=None):
    """One file into root/folder; a .tar, .tgz, .tar.gz or .tar.bz2 unpacked there. Nothing if it was done before."""
    file = url.rpartition('/')[2]
    into, done = Path(root, folder), Path(root, '.downloaded', file)
    if done.exists():
        return print(f"{file}: downloaded before, {done} says so")
    into.mkdir(parents=True, exist_ok=True)
    fetch(url, into / file, checksum)
    if '.tar' in file or file.endswith('.tgz'):
        unpack(into / file, into)
        (into / file).unlink()
    write_json(done, {'url': url, 'checksum': checksum})
    print(f"{file}: in {into}")

def fetch(url, path, checksum=None):
    """url -> path, which appears when it is whole and right."""
    import requests  # here, because reading a corpus needs no network

    part = path.with_name(path.name + '.part')
    if path.exists(): # downloaded, then unpacking was cut
        return
    have, tries = _size(part), 0
    while True:
        try:
            _go_on(requests, url, part, checksum)
            break
        except requests.RequestException as e:
            if e.response is not None and 400 <= e.response.status_code < 500:
                raise Refused(f"{url}: {e.response.status_code} {e.response.reason}") from None
            before, have = have, _size(part)
            tries = 1 if have > before else tries + 1
            if tries == ATTEMPTS:
                raise Refused(f"{url}: {e}; {have:,} bytes are in {part}, run again to go on") from None
            time.sleep(WAIT)
        except OSError as e: # the disk, not the network
            raise Refused(f"{part}: cannot be written ({e})") from None
    kind, _, wanted = (checksum or '').partition(':')
    if wanted:
        with open(part, 'rb') as f:
            got = hashlib.file_digest(f, kind).hexdigest()
        if got != wanted:
            part.unlink()
            raise Refused(f"{url}: its {kind} is {got}, expected {wanted}; it is deleted, run again")
    os.replace(part, path)

def _size(path):
    return path.stat().st_size if path.exists() else 0

def _go_on(requests, url, part, checksum):
    """Appends what is missing to part; requests.ConnectionError if that ends early."""
    have = _size(part)
    headers = {'Accept-Encoding': 'identity', **({'Range': f'bytes={have}-'} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        said = response.headers.get('Content-Range', '')
        if response.status_code == 416: # nothing behind what is there
            if said != f'bytes */{have}':
                part.unlink() # longer than the file: of another one
                raise requests.ConnectionError(f"{part.name} had {have} bytes, the server says {said}")
            return
        response.raise_for_status()
        if response.status_code != 206 or not said.startswith(f'bytes {have}-'):
            have = 0 # it cannot go on: from the beginning
        length = response.headers.get('Content-Length')
        if length is None and not checksum:
            raise Refused(f"{url}: the server gives no length, and there is no checksum: nothing says when it is whole")
        total = None if length is None else have + int(length)
        if total and (free := shutil.disk_usage(part.parent).free) < total - have:
            raise Refused(f"{part.parent}: {free:,} bytes are free, {url} needs {total - have:,} more")
        with open(part, 'ab' if have else 'wb') as f, \
                progress(total=total, initial=have, unit='B', unit_scale=True, desc=part.stem) as bar:
            for block in response.iter_content(BLOCK):
                f.write(block)
                bar.update(len(block))
            f.flush()
            os.fsync(f.fileno())
    if total is not None and (size := _size(part)) != total:
        raise requests.ConnectionError(f"ended after {size:,} of {total:,} bytes")

def unpack(archive, root):
    """A tar into root, whole or not at all."""
    tmp = root / (archive.name + '.unpacking')
    shutil.rmtree(tmp, ignore_errors=True) # of a killed run
    tmp.mkdir()
    try:
        with tarfile.open(archive, 'r|*') as tar, progress(unit='B', unit_scale=True, desc=archive.name) as bar:
            for member in tar:
                tar.extract(member, tmp, filter='data') # no absolute names, no .., no links out of tmp, no devices
                bar.update(member.size)
        _move(tmp, root)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise Refused(f"{archive}: cannot be unpacked ({e}); delete it and try again, or unpack it by hand") from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)

def _move(source, target):
    """What is in source into target; folders that are there already are joined, files replaced."""
    for entry in sorted(source.iterdir()):
        to = target / entry.name
        if entry.is_dir() and not entry.is_symlink() and to.is_dir():
            _move(entry, to)
        else:
            os.replace(entry, to)
