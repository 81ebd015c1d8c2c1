"""
The units folder: what tokenize_speech.py writes and every later stage reads.

    DIR/00000/units.npy, runs.npy   (R,) uint16   units without repeats, and how many frames each lasted
    DIR/00000/offsets.npy           (n+1,) int64  document i has units[offsets[i]:offsets[i+1]]
    DIR/00000/meta.jsonl            a line a document: {"id", "path", "seconds", "speaker", "text"}
    DIR/info.json                   n_units, units_hash, hop, frame_hz, documents, hours, runs, ..., and how it was made
"""
import numpy as np

from configurator import Refused
from files import read_array, read_info, read_lines, shard_folders, write_shard


def refuse_foreign_units(units, n_units, units_hash, made_for):
    """Refuses units that the vocoder does not know, and those of another encoder, by its hash."""
    if units_hash and made_for and units_hash != made_for:
        raise Refused(f"vocoder: made for units {made_for}, given units {units_hash}: train one for these units "
                      "(python -m training.vocoder)")
    for u in units:
        if len(u) and not 0 <= min(u) <= max(u) < n_units:
            raise Refused(f"vocoder: units {min(u)}..{max(u)}, expected 0..{n_units - 1}")

def deduplicate(frames):
    """(F,) units a frame -> units without repeats, runs (the frames each lasted). [5 5 5 2 5] -> [5 2 5], [3 1 1]"""
    frames = np.asarray(frames)
    starts = np.flatnonzero(np.diff(frames, prepend=frames[:1] - 1)) # the first differs from what is before it
    return frames[starts], np.diff(starts, append=len(frames))

def write_units_shard(dir, index, docs, **lines):
    """docs: list of (meta dict, units, runs); lines: further lists of dicts to lie in the shard (words=, failures=)."""
    arrays = {'offsets': np.cumsum([0] + [len(units) for _, units, _ in docs], dtype=np.int64)}
    for name, column, lowest in (('units', 1, 0), ('runs', 2, 1)):
        for doc in docs:
            a = np.asarray(doc[column])
            if len(a) != len(doc[1]) or len(a) and not lowest <= a.min() <= a.max() <= 65535: # uint16 would wrap
                raise Refused(f"{doc[0]['id']}: {name} must be {len(doc[1])} integers from {lowest} to 65535")
        arrays[name] = np.concatenate([np.zeros(0, np.int64), *(doc[column] for doc in docs)]).astype(np.uint16)
    write_shard(dir, index, arrays, {'meta': [meta for meta, _, _ in docs], **lines})

class Units:
    """A units folder, checked. len(u) documents; u[i] -> (units, runs); u.meta[i]; u.find(id) -> i; u.info.

    u.units, u.runs, u.offsets are lists with one memory-mapped array a shard; shard s begins with document u.first[s].
    """
    def __init__(self, dir):
        self.info, self.meta, self.first, self._index = read_info(dir, 'tokenize_speech.py'), [], [0], None
        self.units, self.runs, self.offsets = [], [], []
        K = self.info.get('n_units')
        if type(K) is not int or K < 1:
            raise Refused(f"{dir}/info.json: n_units is {K!r}, expected the number of centroids")
        for folder in shard_folders(dir):
            units, runs = (read_array(folder / f'{name}.npy', np.uint16) for name in ('units', 'runs'))
            offsets = read_array(folder / 'offsets.npy', np.int64)
            meta = [line for _, line in read_lines(folder / 'meta.jsonl')]
            if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(units):
                raise Refused(f"{folder}/offsets.npy: must rise from 0 to {len(units)}, the number of units")
            if len(runs) != len(units) or (runs == 0).any():
                raise Refused(f"{folder}/runs.npy: expected {len(units)} run lengths of 1 and more")
            if len(units) and units.max() >= K:
                raise Refused(f"{folder}/units.npy: holds unit {units.max()}, info.json says {K} units")
            if len(meta) != len(offsets) - 1:
                raise Refused(f"{folder}/meta.jsonl: {len(meta)} lines, offsets.npy has {len(offsets) - 1} documents")
            self.meta += meta
            self.units.append(units), self.runs.append(runs), self.offsets.append(offsets)
            self.first.append(len(self.meta))
        if len(self.meta) != self.info.get('documents'):
            raise Refused(f"{dir}: {len(self.meta)} documents, info.json says {self.info.get('documents')}")

    def __len__(self):
        return len(self.meta)

    def __getitem__(self, i):
        if not 0 <= i < len(self.meta):
            raise IndexError(f"document {i} of {len(self.meta)}")
        s = int(np.searchsorted(self.first, i, side='right')) - 1
        a, b = self.offsets[s][i - self.first[s]:][:2]
        return self.units[s][a:b], self.runs[s][a:b]

    def find(self, id):
        """The document's number; KeyError where there is none."""
        if self._index is None:
            self._index = {meta['id']: i for i, meta in enumerate(self.meta)}
        return self._index[id]
