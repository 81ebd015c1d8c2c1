"""
The units and words of documents, as interleave.py reads them: Corpus, a units folder with its words, gives them in
Batches of flat arrays.
"""
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from configurator import Refused
from files import Lazy
from speech.units import Units
from speech.words import Words


def hash_ids(ids):
    """64 stable bits of each document id."""
    digests = [hashlib.blake2b(id.encode(errors='surrogatepass'), digest_size=8).digest() for id in ids]
    return np.frombuffer(b''.join(digests), dtype='<u8').astype(np.uint64)

@dataclass
class Batch:
    """Documents of one shard, flat: their units and words one after another. D documents, U units, W words."""
    units: np.ndarray # (U,) uint16
    runs: np.ndarray # (U,) uint16, frames that each unit lasts
    unit_offsets: np.ndarray # (D+1,)
    word: np.ndarray # (W,) index into the WordTable
    start: np.ndarray # (W,) samples at 16 kHz
    end: np.ndarray # (W,)
    word_offsets: np.ndarray # (D+1,)
    exact: np.ndarray # (D,) bool, tokenize joined texts

    def __post_init__(self):
        self.n_words = np.diff(self.word_offsets)
        self.doc = np.repeat(np.arange(len(self.n_words)), self.n_words) # (W,)
        self.opening = self.word_offsets[:-1][self.n_words > 0] # first word of each document that has words
        self.closing = self.word_offsets[1:][self.n_words > 0] - 1

def joined(batch, first, table, hop):
    """A Batch of longer documents: document g has the documents first[g] to first[g + 1] - 1 of `batch`.

    table: the WordTable of its words; hop: samples a frame.
    """
    ends = np.append(first[1:], len(batch.n_words))
    run_end = np.concatenate([[0], np.cumsum(batch.runs, dtype=np.int64)]) * hop
    doc_start = run_end[batch.unit_offsets[:-1]] # (D,) samples
    shift = (doc_start - np.repeat(doc_start[first], ends - first))[batch.doc] # (W,)
    word_offsets = np.append(batch.word_offsets[first], len(batch.word))
    longer = replace(batch, unit_offsets=np.append(batch.unit_offsets[first], len(batch.units)),
                     start=batch.start + shift, end=batch.end + shift, word_offsets=word_offsets,
                     exact=np.logical_or.reduceat(batch.exact, first))
    longer.word = np.array(batch.word)
    longer.word[longer.opening] = table.bare[longer.word[longer.opening]]
    return longer

class Utterances:
    """What Words is, with a single word a document: its text, from its first sample to its last."""
    def __init__(self, units):
        self.units = units
        self.info = {}
        self.shards = Lazy(len(units.units), self._shard)

    def _shard(self, s):
        units = self.units
        texts = [(meta.get('text') or '').strip() for meta in units.meta.shards[s]]
        run_end = np.concatenate([[0], np.cumsum(units.runs[s], dtype=np.int64)]) * units.info['hop']
        has_word = np.array([bool(text) for text in texts], bool) & (np.diff(units.offsets[s]) > 0)
        samples = np.diff(run_end[units.offsets[s]])[has_word]
        # From sample 1 on, since a run that ends at the beginning of a word belongs to it.
        return SimpleNamespace(table=[f' {text}' for text in texts], word=np.flatnonzero(has_word), ids=texts,
                               start=np.ones_like(samples), end=samples, offsets=np.append(0, np.cumsum(has_word)))

class Corpus:
    """A units folder with its words, checked against each other.

    words: 'words' for those of align.py, 'utterances' for whole documents, None for none.
    """
    def __init__(self, folder, words):
        self.folder = folder
        self.units = Units(folder)
        self.words = None
        if words:
            self.words = Utterances(self.units) if words == 'utterances' else Words(Path(folder) / 'words')
        self.seconds = 0.0
        hashes = [np.zeros(0, np.uint64)]
        for s, metas in enumerate(self.units.meta.shards): # one shard at a time is in memory
            ids = [meta['id'] for meta in metas]
            if words == 'words':
                self._check_words(s, ids)
            hashes.append(hash_ids(ids))
            self.seconds += sum(meta['seconds'] for meta in metas)
        self.hashes = np.concatenate(hashes)

    def _check_words(self, s, ids):
        """Refuses a words folder whose shard s does not have these documents, or that has other shards."""
        same_shards = self.words.first == self.units.first
        others = self.words.shards[s].ids if s < len(self.words.shards) else []
        if not same_shards or ids != others:
            differences = [f", '{a}' is '{b}'" for a, b in zip(ids, others) if a != b]
            raise Refused(f"{self.folder}/words: not the documents of {self.folder} ({len(self.words)} of "
                          f"{len(self.units)}{''.join(differences[:1])}); remove it and run align.py again")

    def batch(self, s, a, b, table=None):
        """Documents a..b-1 of shard s, with words if the shard's WordTable is given."""
        offsets = np.array(self.units.offsets[s][a:b + 1])
        units = np.array(self.units.units[s][offsets[0]:offsets[-1]])
        runs = np.array(self.units.runs[s][offsets[0]:offsets[-1]])
        offsets -= offsets[0]
        if table is None:
            empty = np.zeros(0, np.int64)
            return Batch(units, runs, offsets, empty, empty, empty, 0 * offsets, np.zeros(b - a, bool))
        shard = self.words.shards[s]
        word_offsets = shard.offsets[a:b + 1]
        if len(without_units := np.flatnonzero((np.diff(offsets) == 0) & (np.diff(word_offsets) > 0))):
            raise Refused(f"{self.folder}: '{shard.ids[a + without_units[0]]}' has words but no units")
        columns = (np.array(x[word_offsets[0]:word_offsets[-1]]) for x in (shard.word, shard.start, shard.end))
        return Batch(units, runs, offsets, *columns, word_offsets - word_offsets[0], table.exact[a:b])
