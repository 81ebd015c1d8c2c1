"""
The files that a shard of units was made of, and whether they are still the same.

    DIR/00000/audio.jsonl    {"path", "bytes", "mtime_ns", "inode", "sha256"} a line: a file of audio, parquet or tar

The sha256 of a file that was just decoded, which the page cache holds, takes 2 % of the time of
decoding it if it is MP3, 8 % for FLAC and 25 % for WAV: 0.1 s for an hour of speech. To look at
size, time and inode of a million files takes 3 s of a local disk, and minutes of a remote one. Only
a file in which one of these has changed is read again: one that was touched, copied or moved is the
same.
"""
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from configurator import Refused
from files import check_hashes, progress, read_lines, sha256
from speech.audio import file_of

FACTS = ('bytes', 'mtime_ns', 'inode')

def _facts(path):
    """{bytes, mtime_ns, inode} of a file; None where there is none, or something else, as a pipe."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return dict(zip(FACTS, (status.st_size, status.st_mtime_ns, status.st_ino)))

@lru_cache(maxsize=64) # a parquet or tar of many shards is read once
def _sha256(path, *facts):
    return sha256(path)

def source_of(path):
    """The line of audio.jsonl of a file; None if it cannot be read, which is a failure of its documents."""
    facts = _facts(path)
    try:
        return facts and {'path': path, **facts, 'sha256': _sha256(path, *facts.values())}
    except OSError: # a file that may not be read
        return None

def sources_of(paths, pool):
    """The lines of audio.jsonl of the audio at these paths."""
    files = sorted(set(map(file_of, paths)))
    return list(filter(None, pool.map(source_of, files)))

def is_unchanged(source):
    """Whether the file of a line of audio.jsonl has the content that it had, or was removed since."""
    facts = _facts(source['path'])
    if facts is None or all(source[key] == facts[key] for key in FACTS):
        return True
    return facts['bytes'] == source['bytes'] and _sha256(source['path'], *facts.values()) == source['sha256']

def read_sources(folder):
    """The lines of a shard's audio.jsonl; none if it is of an earlier version or another program."""
    path = folder / 'audio.jsonl'
    return [line for _, line in read_lines(path)] if path.exists() else []

def check_shards(folders, workers):
    """Refuses shards that are not as they were written, or whose audio was changed since."""
    with ThreadPoolExecutor(workers) as pool:
        for folder in progress(folders, desc='verify', unit='shard', leave=False):
            check_hashes(folder, 'tokenize_speech.py')
            sources = read_sources(folder)
            for source, unchanged in zip(sources, pool.map(is_unchanged, sources)):
                if not unchanged:
                    raise Refused(f"{source['path']}: was changed after {folder} was made of it; bring the old file "
                                  f"back, or remove {folder} to have it made again")
