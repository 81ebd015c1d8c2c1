"""
Spans that are not SIMS's: of fixed lengths, and whole utterances (interleave.py, --spans).
"""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from files import Lazy


def spoken_by_turns(random, n_words, spoken, written):
    """Which words are spoken, `spoken` and `written` words by turns: bool, document after document.

    random (D,): 64 random bits a document, which choose where in this period it begins.
    """
    n_words = np.asarray(n_words, np.int64)
    period = spoken + written
    begin = ((random >> np.uint64(32)) * np.uint64(period) >> np.uint64(32)).astype(np.int64)
    position = np.arange(n_words.sum()) - np.repeat(np.cumsum(n_words) - n_words - begin, n_words)
    return position % period < spoken

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
