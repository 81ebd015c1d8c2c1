"""
The units folder: what tokenize_speech.py writes and every later stage reads.

    DIR/00000/units.npy     (R,) uint16, the units of all documents of the shard, one after another
    DIR/00000/runs.npy      (R,) uint16, how many frames each lasted
    DIR/00000/offsets.npy   (n+1,) int64, document i has units[offsets[i]:offsets[i+1]]
    DIR/00000/meta.jsonl    a line a document: {"id", "path", "start", "end" (seconds in path, null: all of it),
                            "seconds", "speaker", "text"}
    DIR/00000/words.jsonl   {"id", "words": [[word, start, end], ...]}, times in samples at 16 kHz; only
                            if the corpus has words
    DIR/00000/failures.jsonl    the files that could not be used (tokenize_speech.py)
    DIR/00000/audio.jsonl   the files that the shard was made of (speech/sources.py)
    DIR/00000/sha256.json   of the files of the shard
    DIR/info.json           n_units (K), units_hash, hop, frame_hz, encoder, layer, documents, hours, runs, content
                            (hash of the shards), ..., and how it was made; a folder without it is unfinished

What info.json says is all that the later stages know of a tokenizer. hop and frame_hz are of frames. By default a
frame has one unit, and repeats are merged into runs. Where it says `codebooks` (flat Mimi), every frame has so many
units, one of each codebook in turn (vocab.py), nothing is merged, and the first unit of a frame has run 1, the others
0: so the runs up to a unit always sum to frames, and a cut in time never parts a frame. Where it says `segment`, a
unit is a segment, such as a syllable, and its run the segment's length.
"""
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from configurator import Refused
from files import (
    Lazy,
    check_hash_of_shards,
    check_hashes,
    progress,
    read_array,
    read_info,
    read_lines,
    shard_folders,
    write_shard,
)

SCRIPT = 'tokenize_speech.py' # what writes units folders, for messages

def refuse_foreign_units(units, n_units, units_hash, made_for):
    """Raises Refused if a vocoder cannot speak these units.

    units: arrays of ids, which must lie in 0..n_units-1. units_hash: the hash of the encoder that
    they come from; made_for: the hash of the units that the vocoder was trained on. The two must be
    equal where both are known.
    """
    if units_hash and made_for and units_hash != made_for:
        raise Refused(f"vocoder: made for units {made_for}, given units {units_hash}: train one for these units "
                      "(python -m training.vocoder)")
    for ids in units:
        if len(ids) and not 0 <= min(ids) <= max(ids) < n_units:
            raise Refused(f"vocoder: units {min(ids)}..{max(ids)}, expected 0..{n_units - 1}")

def deduplicate(frames):
    """(F,) the unit of each frame -> units without repeats, runs (how many frames each lasted).

    [5 5 5 2 5] -> [5 2 5], [3 1 1]
    """
    frames = np.asarray(frames)
    # What is put before the first frame differs from it, so that a run begins there.
    starts = np.flatnonzero(np.diff(frames, prepend=frames[:1] - 1))
    return frames[starts], np.diff(starts, append=len(frames))

def flatten(codes):
    """(F, n) the units of each frame -> units (F n,), runs: 1 for the first unit of a frame, 0 for the others."""
    runs = np.zeros_like(codes)
    runs[:, 0] = 1
    return codes.ravel(), runs.ravel()

def write_units_shard(dir, index, docs, codebooks=0, **lines):
    """Writes shard `index` of a units folder. docs: a list of (meta dict, units, runs); codebooks: as in info.json.

    lines: lists of dicts that become further .jsonl files of the shard: words=[...],
    failures=[...]. Raises Refused for numbers that uint16 cannot hold.
    """
    lengths = [len(units) for _, units, _ in docs]
    arrays = {'offsets': np.cumsum([0] + lengths, dtype=np.int64)}
    for name, column, lowest in (('units', 1, 0), ('runs', 2, int(codebooks < 2))):
        parts = [np.zeros(0, np.int64)]
        for doc, length in zip(docs, lengths):
            part = np.asarray(doc[column])
            if len(part) != length or length and not lowest <= part.min() <= part.max() <= 65535:
                raise Refused(f"{doc[0]['id']}: {name} must be {length} integers from {lowest} to 65535")
            parts.append(part)
        arrays[name] = np.concatenate(parts).astype(np.uint16)
    write_shard(dir, index, arrays, {'meta': [meta for meta, _, _ in docs], **lines})

def _in_order(units, runs, offsets, K, codebooks):
    """Whether documents are whole frames of one unit of each codebook, in turn, with their runs."""
    if (offsets % codebooks).any():
        return False
    order = np.arange(codebooks)
    by_frame = units.reshape(-1, codebooks) // (K // codebooks)
    return bool((by_frame == order).all() and (runs.reshape(-1, codebooks) == (order == 0)).all())

def _check_shard(folder, K, codebooks):
    """The number of a shard's documents. Raises Refused if its files do not fit together, or were changed."""
    units = read_array(folder / 'units.npy', np.uint16)
    runs = read_array(folder / 'runs.npy', np.uint16)
    offsets = read_array(folder / 'offsets.npy', np.int64)
    n_lines = sum(1 for _ in read_lines(folder / 'meta.jsonl'))
    if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(units):
        raise Refused(f"{folder}/offsets.npy: must rise from 0 to {len(units)}, the number of units")
    if len(runs) != len(units) or codebooks < 2 and (runs == 0).any():
        raise Refused(f"{folder}/runs.npy: expected {len(units)} run lengths of 1 and more")
    if len(units) and units.max() >= K:
        raise Refused(f"{folder}/units.npy: holds unit {units.max()}, info.json says {K} units")
    if codebooks and not _in_order(units, runs, offsets, K, codebooks):
        raise Refused(f"{folder}: not whole frames of {codebooks} codebooks in turn, each with its own range of "
                      f"{K // codebooks} units; write the folder again")
    if n_lines != len(offsets) - 1:
        raise Refused(f"{folder}/meta.jsonl: {n_lines} lines, offsets.npy has {len(offsets) - 1} documents")
    check_hashes(folder, SCRIPT)
    return n_lines

def _arrays(folders, name, dtype):
    """NAME.npy of each shard."""
    def read(s):
        return read_array(folders[s] / f'{name}.npy', dtype)
    return Lazy(len(folders), read, keep=8)

class Metas(Sequence):
    """The objects of meta.jsonl of all shards, one after another; those of two shards at a time are in memory."""
    def __init__(self, folders, first):
        self.first = first
        def read(s):
            return [line for _, line in read_lines(folders[s] / 'meta.jsonl')]
        self.shards = Lazy(len(folders), read)

    def __len__(self):
        return self.first[-1]

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        s = bisect_right(self.first, i) - 1
        return self.shards[s][i - self.first[s]]

class Units:
    """A units folder, checked: every file is read once. len(u) documents; u[i] -> (units, runs); u.meta[i];
    u.find(id) -> i; u.info.

    u.units, u.runs, u.offsets, u.meta.shards have an item a shard, mapped or read when it is asked
    for, so that a corpus of any size takes little memory; shard s begins with document u.first[s].
    u.codebooks: units a frame of flat units, else 0.
    """
    def __init__(self, dir):
        self.info = read_info(dir, SCRIPT)
        K = self.info.get('n_units')
        if type(K) is not int or K < 1:
            raise Refused(f"{dir}/info.json: n_units is {K!r}, expected the number of centroids")
        self.codebooks = self.info.get('codebooks', 0)
        if type(self.codebooks) is not int or self.codebooks < 0 or self.codebooks and K % self.codebooks:
            raise Refused(f"{dir}/info.json: codebooks is {self.codebooks!r}, expected a divisor of n_units, {K}")
        folders = shard_folders(dir)
        self.first = [0]
        for folder in progress(folders, desc=f'{dir}: check', unit='shard', leave=False):
            self.first.append(self.first[-1] + _check_shard(folder, K, self.codebooks))
        if self.first[-1] != self.info.get('documents'):
            raise Refused(f"{dir}: {self.first[-1]} documents, info.json says {self.info.get('documents')}")
        check_hash_of_shards(dir, self.info, SCRIPT)
        self.meta = Metas(folders, self.first)
        self.units = _arrays(folders, 'units', np.uint16)
        self.runs = _arrays(folders, 'runs', np.uint16)
        self.offsets = _arrays(folders, 'offsets', np.int64)
        self._index = None # {id: i}, made when it is first needed

    def __len__(self):
        return len(self.meta)

    def __getitem__(self, i):
        if not 0 <= i < len(self.meta):
            raise IndexError(f"document {i} of {len(self.meta)}")
        shard = bisect_right(self.first, i) - 1
        row = i - self.first[shard]
        begin, end = self.offsets[shard][row:row + 2]
        return self.units[shard][begin:end], self.runs[shard][begin:end]

    def find(self, id):
        """The document's number; KeyError where there is none."""
        if self._index is None:
            self._index = {meta['id']: i for i, meta in enumerate(self.meta)}
        return self._index[id]
