"""
Words and their times -> a words folder, on the clock of the units.

    python align.py --units=out/units/mine                       words the corpus gave (tokenize_speech.py kept them)
    python align.py --units=out/units/mine --words=words.jsonl   a file's: {"id", "words": [[word, start_s, end_s]]}

A words folder mirrors its units folder, shard by shard, document by document (a document without words has none):

    words/info.json             documents, words, refused by reason, settings
    words/00000/words.json      the distinct words, first seen first, each with the leading space it has in the text
                word.npy        int32, indices into words.json
                start.npy end.npy   int32, samples at 16 kHz (where units begin on whole samples: ties are exact)
                offsets.npy     int64 (n+1): words offsets[i] to offsets[i+1] are those of document i
                ids.json        document ids
                info.json       hash of the words it was made from, refused [[id, reason], ...], words repaired

Times that are missing, outside the audio, reversed or overlapping are repaired within 50 ms (`repair`), else the
document is refused: it keeps its place, without words. Its words, joined, must be its text, where a text is known.
"""
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio import RATE
from configurator import Refused, atomically, progress, record, run, sha256, write_json
from folders import read_info, read_lines, shard_folders

LIMIT = RATE // 20 # 50 ms: a repair moves an edge no further
REASONS = ('', 'MISSING_TIME', 'PAST_END', 'BEFORE_START', 'REVERSED', 'OVERLAP') # what repair answers, by index

@dataclass(frozen=True)
class Config:
    units: str = '' # units folder, as tokenize_speech.py writes it
    words: str = '' # .jsonl with words in seconds, matched by id; '': the words.jsonl of each shard of units
    out: str = '' # '': units/words, where interleave.py looks
    max_fail_frac: float = 0.05 # stop when a larger share of the documents with words is refused

    def __post_init__(self):
        if not self.units:
            raise Refused("no units folder: give --units=DIR, as tokenize_speech.py writes it")
        if not 0 <= self.max_fail_frac <= 1:
            raise Refused(f"max_fail_frac = {self.max_fail_frac}: expected a share between 0 and 1")

# ----------------------------------------------------------------------------------------------------------------
# times and spaces

def repair(starts, ends, offsets, n_samples):
    """Word times of many documents, put in order: 0 <= start <= end <= next start <= length.

    starts, ends: (W,) samples, NaN where missing; offsets: (n+1,); n_samples: (n,) length of each document's audio.
    Returns starts, ends (W,) int32 and (n,) indices into REASONS, 0 where all repairs stayed within LIMIT.
    - outside the audio: clipped; earlier than an edge before it: moved up to that edge;
    - missing: the gap its neighbors leave, when that gap fixes it to within LIMIT.
    """
    edges = np.rint(np.stack([starts, ends], 1).astype(np.float64)).ravel() # (2W,) start, end, start, end, ...
    offsets, n_samples = np.asarray(offsets, np.int64), np.asarray(n_samples, np.float64)
    doc = np.repeat(np.arange(len(n_samples)), 2 * np.diff(offsets))
    last = n_samples[doc]
    missing, late, early = np.isnan(edges), edges - last > LIMIT, edges < -LIMIT
    edges = np.clip(edges, 0, last)
    back = np.zeros(len(edges), bool)
    back[1::2] = edges[0::2] - edges[1::2] > LIMIT
    base = doc * (n_samples.max(initial=0) + 1) # one running maximum for all documents: each has its own range
    edges += base
    low = np.maximum.accumulate(np.where(missing, base, edges)) # the last known edge before, or the beginning
    high = np.minimum.accumulate(np.where(missing, base + last, edges)[::-1])[::-1] # the next known one, or the end
    lost = missing & (high - low > LIMIT)
    is_end = np.arange(len(edges)) % 2 == 1
    filled = np.where(missing, np.where(is_end, high, low), edges)
    ordered = np.maximum.accumulate(filled)
    overlap = ordered - filled > LIMIT
    reason = np.full(len(n_samples), len(REASONS))
    for code, bad in enumerate((lost, late, early, back, overlap), start=1):
        np.minimum.at(reason, doc[bad], code)
    edges = (ordered - base).astype(np.int32)
    return edges[0::2], edges[1::2], reason % len(REASONS)

def with_spaces(words, text=None):
    """Words with the leading spaces they have in the text; words that bring their own spaces stay as they are."""
    if any(w[:1].isspace() for w in words[1:]):
        return list(words)
    out, at = [], 0 # at: how much of the text has been spelled
    for i, word in enumerate(w.strip() for w in words):
        begin = at
        while text is not None and begin < len(text) and text[begin].isspace():
            begin += 1
        known = text is not None and text.startswith(word, begin)
        out.append(' ' + word if i > 0 and not (known and begin == at) else word)
        at = begin + len(word) if known else at
    if words[0][:1].isspace():
        out[0] = ' ' + out[0] # as given
    return out

def _spells(words, text):
    return text is None or ''.join(words).split() == text.split()

# ----------------------------------------------------------------------------------------------------------------
# the format: one writer, one reader

def write_words_shard(folder, index, docs, info=None):
    """Shard `index` of a words folder. docs: a list of (id, words, starts, ends), times in samples at 16 kHz."""
    table, words, starts, ends, offsets = {}, [], [], [], [0]
    for name, doc_words, doc_starts, doc_ends in docs:
        if not len(doc_words) == len(doc_starts) == len(doc_ends):
            raise Refused(f"{name}: {len(doc_words)} words but {len(doc_starts)} starts, {len(doc_ends)} ends")
        words.extend(table.setdefault(word, len(table)) for word in doc_words)
        starts.extend(doc_starts)
        ends.extend(doc_ends)
        offsets.append(len(words))
    with atomically(Path(folder) / f'{index:05d}') as tmp:
        tmp.mkdir()
        for name, values, dtype in (('word', words, np.int32), ('start', starts, np.int32), ('end', ends, np.int32),
                                    ('offsets', offsets, np.int64)):
            np.save(tmp / f'{name}.npy', np.asarray(values, dtype=dtype))
        for name, value in (('words', list(table)), ('ids', [doc[0] for doc in docs]), ('info', info or {})):
            (tmp / f'{name}.json').write_text(json.dumps(value, ensure_ascii=False) + '\n', encoding='utf-8')

class WordsShard:
    """One shard: .table (list of str), .word .start .end (W,), .offsets (n+1,), .ids; shard[i]: words, starts, ends"""

    def __init__(self, folder):
        try:
            text = lambda name: (folder / name).read_text(encoding='utf-8')
            array = lambda name: np.load(folder / name, mmap_mode='r').view(np.ndarray)
            self.table, self.ids = json.loads(text('words.json')), json.loads(text('ids.json'))
            self.word, self.start, self.end = array('word.npy'), array('start.npy'), array('end.npy')
            self.offsets = np.array(array('offsets.npy'))
        except (OSError, ValueError) as e:
            raise Refused(f"{folder}: not a whole shard of words ({e}); remove it and run align.py again") from None
        n = len(self.word)
        if not (len(self.start) == len(self.end) == n == self.offsets[-1] and len(self.ids) == len(self.offsets) - 1
                and self.offsets[0] == 0 and (np.diff(self.offsets) >= 0).all()
                and (n == 0 or 0 <= self.word.min() <= self.word.max() < len(self.table))):
            raise Refused(f"{folder}: its files do not fit together; remove it and run align.py again")

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        part = slice(self.offsets[i], self.offsets[i + 1])
        return [self.table[w] for w in self.word[part]], self.start[part], self.end[part]

class Words:
    """A words folder: .info, .shards (shard s begins with document first[s]), .ids; words[i] -> words, starts, ends."""

    def __init__(self, folder):
        self.folder, self.info = Path(folder), read_info(folder, 'align.py')
        self.shards = [WordsShard(path) for path in shard_folders(folder)]
        self.ids = [name for shard in self.shards for name in shard.ids]
        self.first = np.cumsum([0] + [len(shard) for shard in self.shards])

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        shard = np.searchsorted(self.first, i, side='right') - 1
        return self.shards[shard][i - self.first[shard]]

    def find(self, name):
        if name not in self.ids:
            raise Refused(f"{self.folder}: no document '{name}'")
        return self.ids.index(name)

# ----------------------------------------------------------------------------------------------------------------

def _read_words(path, rate):
    """{id: (words, starts, ends)} of a .jsonl file; times times rate are samples, NaN where missing."""
    docs = {}
    for where, line in read_lines(path):
        if 'id' not in line or 'words' not in line:
            raise Refused(f'{where}: expected {{"id": ..., "words": [[word, start, end], ...]}}')
        if line['id'] in docs:
            raise Refused(f"{where}: document '{line['id']}' comes twice")
        try:
            samples = lambda t: np.nan if t is None else float(t * rate)
            words = [(word + '', samples(start), samples(end)) for word, start, end in line['words'] or ()]
            docs[line['id']] = tuple(zip(*words)) or ((), (), ())
        except (TypeError, ValueError):
            raise Refused(f"{where}: words of '{line['id']}': expected [word, start, end] each") from None
    return docs

def align_shard(metas, words):
    """(docs for write_words_shard, refused [[id, reason], ...], repaired words) of a shard; words: of _read_words."""
    docs = [words.get(meta['id'], ((), (), ())) for meta in metas]
    offsets = np.cumsum([0] + [len(doc[0]) for doc in docs])
    raw = [np.array([t for doc in docs for t in doc[column]], dtype=np.float64) for column in (1, 2)]
    starts, ends, reasons = repair(*raw, offsets, [round(meta['seconds'] * RATE) for meta in metas])
    out, refused, repaired = [], [], 0
    for i, (meta, (spelled, *_)) in enumerate(zip(metas, docs)):
        part = slice(offsets[i], offsets[i + 1])
        reason = REASONS[reasons[i]]
        if not all(word.strip() for word in spelled):
            reason = 'EMPTY_WORD'
        elif spelled:
            spelled = with_spaces(spelled, meta.get('text'))
            reason = reason or ('' if _spells(spelled, meta.get('text')) else 'WORDS_TEXT_MISMATCH')
        if reason:
            refused.append([meta['id'], reason])
            spelled, part = (), slice(0, 0)
        moved = (np.rint(raw[0][part]) != starts[part]) | (np.rint(raw[1][part]) != ends[part])
        repaired += int(moved.sum())
        out.append((meta['id'], spelled, starts[part], ends[part]))
    return out, refused, repaired

def main(cfg):
    units = Path(cfg.units)
    info, shards, out = read_info(units, 'tokenize_speech.py'), shard_folders(units), Path(cfg.out or units / 'words')
    if not shards:
        raise Refused(f"{units}: no shards (00000/, ...) in it; tokenize_speech.py makes them")
    for source in [cfg.words] if cfg.words else [shard / 'words.jsonl' for shard in shards]:
        if not Path(source).is_file():
            hint = "" if cfg.words else ": the corpus gave no words; give --words=FILE.jsonl"
            raise Refused(f"{source}: no such file{hint}")
    given = _read_words(cfg.words, RATE) if cfg.words else None
    metas = lambda shard: [meta for _, meta in read_lines(shard / 'meta.jsonl')]
    if given is not None and not any(meta['id'] in given for shard in shards for meta in metas(shard)):
        raise Refused(f"{cfg.words}: none of its {len(given)} ids is a document of {units}")
    refused, repaired, with_words, n_words, n_docs = Counter(), 0, 0, 0, 0
    for shard in progress(shards, desc='align', unit='shard'):
        source, done = Path(cfg.words or shard / 'words.jsonl'), out / shard.name
        origin = hashlib.sha256((sha256(source) + sha256(shard / 'meta.jsonl')).encode()).hexdigest()[:16]
        if not done.exists():
            docs, bad, moved = align_shard(metas(shard), _read_words(source, 1) if given is None else given)
            write_words_shard(out, int(shard.name), docs, {'source': origin, 'refused': bad, 'repaired_words': moved})
        part = json.loads((done / 'info.json').read_text(encoding='utf-8'))
        if part['source'] != origin:
            raise Refused(f"{done}: made from other words or units; remove {out} or give another --out")
        made = WordsShard(done)
        refused.update(reason for _, reason in part['refused'])
        repaired, n_docs, n_words = repaired + part['repaired_words'], n_docs + len(made), n_words + len(made.word)
        with_words += int((np.diff(made.offsets) > 0).sum())
    failed = sum(refused.values())
    counts = ', '.join(f'{reason} {n}' for reason, n in sorted(refused.items()))
    if failed > cfg.max_fail_frac * (with_words + failed):
        raise Refused(f"{failed} of {with_words + failed} documents with words refused ({counts}), more than "
                      f"max_fail_frac = {cfg.max_fail_frac}; the ids are in {out}/*/info.json")
    write_json(out / 'info.json', {
        'units_hash': info.get('units_hash'), 'documents': n_docs, 'with_words': with_words, 'words': n_words,
        'repaired_words': repaired, 'refused': dict(sorted(refused.items())), **record(cfg)})
    print(f"{out}: {n_words:,} words of {with_words:,} of {n_docs:,} documents, {repaired:,} times repaired, "
          f"{failed:,} documents refused" + (f" ({counts})" if counts else ""))

if __name__ == '__main__':
    run(main, Config)
