"""
Units + words + text -> token shards: text, speech, interleaved and textless documents.

    python interleave.py --units=out/units/stories,out/units/talk --out=out/tokens/tiny --eot=True
    python interleave.py --units=out/units/stories --show=s000012        one document with its spans

OUT/{train,val}/SOURCE/ holds the shards (data.py has the format), OUT/info.json the counts. The documents of a source:

    text         first, text tokens [, eot]                                  transcripts (joined words), --text files
    interleaved  first, <text> or <speech> and its span, by turns [, eot]    documents with words
    speech       first, units [, eot]                                        all documents, joint vocabulary
    textless     bos, units, eos                                             all documents, speech vocabulary

first: what the text tokenizer puts before a text. Which of the n words of a document are spoken (SIMS's algorithm):

    until ceil(eta * n) words are spoken, or no word is eligible:
        s uniform among the eligible words (all at first), L ~ Poisson(lam), e = min(s + L, n)
        if a word of s..e-1 is spoken already: draw both again
        words s..e-1 become spoken; s..e-1 and e are no longer eligible

Draw j of a document is one 64-bit hash of (seed, epoch, id, j): its high half gives s, its low half L. A word that is
not eligible is drawn again, which is the uniform choice among the eligible. So a document's pattern never depends on
the other documents, their order or number, and each epoch has a new one. The spoken words a..b take the runs of units
from the first that ends at or after a's start to the last that ends at or before b's end, or, if that is none (a word
inside one run), the run a starts in. Sound before the first and after the last word is only in speech and textless.
"""
import hashlib
import json
import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from data import ShardWriter
from files import atomically, progress, read_lines, record, sha256, write_json
from hub.tokenizer import TextTokenizer
from speech.audio import RATE
from speech.units import Units
from speech.words import Words
from vocab import Vocab

SOURCES = ('text', 'speech', 'interleaved', 'textless')
MAX_DRAWS = 10_000 # of a document, where no word is eligible; at lam 10, eta 0.3 the worst (4 words) needs about 300
BATCH_DOCS, BATCH_RUNS = 8192, 1 << 20 # documents done at once: memory, never the result

@dataclass(frozen=True)
class Config:
    units: str = '' # units folders, comma-separated; the words of each are in its words/
    tokenizer: str = 'tiny/tokenizer' # text tokenizer: a folder or hub id
    text: str = '' # more text: .txt (a line is a document), .jsonl ('text' of a line), folders of such, comma-separated
    out: str = '' # folder to make
    sources: tuple = SOURCES # which to write
    eot: bool = False # end token behind every text, speech and interleaved document (off in the papers, on for tiny)
    epochs: int = 1 # interleavings of every document, each with its own spans
    lam: float = 10.0 # mean span length in words
    eta: float = 0.3 # share of words to be spoken at least
    val_frac: float = 0.01 # documents whose id hashes under this go to val/
    seed: int = 0
    show: str = '' # id of a document: print its interleaving, write nothing

    def __post_init__(self):
        if not self.units and not (self.text and self.sources == ('text',)):
            raise Refused("no units folder: give --units=DIR[,DIR], as tokenize_speech.py writes it")
        if bool(self.out) == bool(self.show):
            raise Refused("expected --out=DIR, or --show=ID to print a document")
        if not self.sources or not set(self.sources) <= set(SOURCES):
            raise Refused(f"sources = {self.sources}: expected some of {SOURCES}")
        if not (0 < self.lam <= 100 and 0 < self.eta <= 1 and 0 <= self.val_frac < 1):
            raise Refused(f"lam = {self.lam}, eta = {self.eta}, val_frac = {self.val_frac}: expected 0 < lam <= 100, "
                          "0 < eta <= 1, 0 <= val_frac < 1")
        if not (1 <= self.epochs < 2**16 and 0 <= self.seed < 2**32):
            raise Refused(f"epochs = {self.epochs}, seed = {self.seed}: expected 1 to 65,535, 0 to 4,294,967,295")

# ----------------------------------------------------------------------------------------------------------------
# spans

GOLDEN = np.uint64(0x9E3779B97F4A7C15)

def mix(x):
    """splitmix64's finalizer: uint64 array -> uint64 array, every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

def hash_ids(ids):
    """64 stable bits of each document id."""
    digests = b''.join(hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype='<u8').astype(np.uint64)

def draw_keys(id_hashes, seed, epoch):
    """The key of a document's stream of draws: draw j is mix(key + (j + 1) * GOLDEN)."""
    return mix(id_hashes ^ mix(np.array([(seed << 16) + epoch + 1], np.uint64) * GOLDEN))

def poisson_table(lam):
    """Thresholds t_k = floor(2^32 P(X <= k)): the number of them at or below a uniform 32-bit u is Poisson(lam)."""
    k = np.arange(int(lam + 12 * lam**0.5 + 30))
    log_p = k * np.log(lam) - lam - np.cumsum(np.log(np.maximum(k, 1)))
    return (np.minimum(np.cumsum(np.exp(log_p)), 1) * 2**32).astype(np.uint64)

def spoken_words(keys, n_words, lam=10.0, eta=0.3):
    """(D,) keys and word counts -> bool (sum of n_words,): which words are spoken, document after document."""
    n_words = np.asarray(n_words, np.int64)
    change, first = np.zeros(n_words.sum() + 1, np.int8), np.cumsum(n_words) - n_words
    table, size = poisson_table(lam), np.ceil(np.log2(np.maximum(n_words, 1)))
    for power in np.unique(size[n_words > 0]): # like lengths together: as many spans each
        docs = np.flatnonzero((size == power) & (n_words > 0))
        for doc, s, e in _rounds(keys[docs], n_words[docs], table, eta):
            change[first[docs[doc]] + s] += 1 # no two spans begin, or end, at the same word
            change[first[docs[doc]] + e] -= 1
    return np.cumsum(change[:-1], dtype=np.int8) > 0

def _rounds(keys, n, table, eta):
    """Yields (documents, starts, ends) of spans, at most one a document each time, until all documents have enough."""
    live, missing = np.arange(len(n)), np.ceil(n * eta).astype(np.int64)
    draw, width = np.zeros(len(n), np.int64), 0 # next draw of each live document; spans it has at most
    S, E = (np.full((len(n), 4), np.iinfo(np.int64).max) for _ in range(2)) # (documents, spans), S = E where L was 0
    while len(live):
        tries = 1 if width == 0 else min(256, max(2, (1 << 16) // (len(live) * width)))
        j = draw[:, None] + np.arange(tries) # (live, tries): several draws at once, the first valid one counts
        bits = mix(keys[live, None] + (j + 1).astype(np.uint64) * GOLDEN)
        s = ((bits >> np.uint64(32)) * n[live, None].astype(np.uint64) >> np.uint64(32)).astype(np.int64)
        length = np.searchsorted(table, bits & np.uint64(0xFFFFFFFF), side='right')
        e = np.minimum(s + length, n[live, None])
        valid = j < MAX_DRAWS
        for i in range(width): # eligible, and not into a spoken word; an empty span only takes its start away
            Si, Ei = S[:, i, None], E[:, i, None]
            valid &= (s > Ei) | ((s < Si) & ((e <= Si) | (Si == Ei)))
        pick = valid.argmax(1)
        row = np.flatnonzero(valid[np.arange(len(live)), pick])
        s, e = s[row, pick[row]], e[row, pick[row]]
        missing[row] -= e - s
        draw += tries
        draw[row] -= tries - 1 - pick[row]
        yield live[row][e > s], s[e > s], e[e > s]
        if width == S.shape[1]:
            S, E = (np.pad(a, ((0, 0), (0, width)), constant_values=np.iinfo(np.int64).max) for a in (S, E))
        S[row, width], E[row, width] = s, e
        width += 1
        go = (missing > 0) & (draw < MAX_DRAWS)
        live, missing, draw, S, E = (a[go] for a in (live, missing, draw, S, E))

# ----------------------------------------------------------------------------------------------------------------
# text of words

class WordTable:
    """Tokens of a shard's distinct words, each tokenized once. The tokens of joined words are their words' tokens when

    1. no token has a space behind another character, so none covers parts of two words (`splits_at_spaces`);
    2. the words meet at a space: the right one is ' ' and a character that is no space, the left one ends in none; and
    3. for each (last character, first two characters) that meet in the shard, one such pair was tried: what a
       pre-tokenizer or normalizer does at the boundary depends on those.
    Documents with a pair for which that does not hold are `exact`: their texts are joined and tokenized one by one.

    .tokens, .first, .count: word w has tokens[first[w]:first[w] + count[w]]; .bare[w]: w without leading space.
    """

    def __init__(self, shard, tokenizer, splits):
        strings = {word: i for i, word in enumerate(shard.table)}
        self.bare = np.array([strings.setdefault(word.lstrip(), len(strings)) for word in shard.table], np.int64)
        self.strings = list(strings)
        encoded = tokenizer.encode_batch(self.strings) if self.strings else []
        self.count = np.array([len(ids) for ids in encoded], np.int64)
        self.first = np.cumsum(self.count) - self.count
        self.tokens = np.array([i for ids in encoded for i in ids], np.int32)
        self.exact = self._exact(shard, tokenizer, encoded, splits)

    def _exact(self, shard, tokenizer, encoded, splits):
        words = np.asarray(shard.word)
        doc = np.repeat(np.arange(len(shard)), np.diff(shard.offsets))
        trailing = np.array([w[-1:].isspace() for w in shard.table], bool)
        exact = np.zeros(len(shard), bool)
        exact[doc[trailing[words]]] = True # also what strip() would take from the end of a text
        meets = np.flatnonzero(doc[1:] == doc[:-1]) # word i and i + 1
        if not len(meets):
            return exact
        spaced = np.array([w[:1] == ' ' and not w[1:2].isspace() and len(w) > 1 for w in shard.table], bool)
        lefts, rights = {}, {}
        left = np.array([lefts.setdefault(w[-1:], len(lefts)) for w in shard.table], np.int64)
        right = np.array([rights.setdefault(w[:2], len(rights)) for w in shard.table], np.int64)
        pairs, tried, kind = np.unique(left[words[meets]] * len(rights) + right[words[meets + 1]],
                                       return_index=True, return_inverse=True)
        both = [(words[i], words[i + 1]) for i in meets[tried]]
        joined = tokenizer.encode_batch([self.strings[a] + self.strings[b] for a, b in both])
        good = np.array([splits and list(ids) == [*encoded[a], *encoded[b]] for ids, (a, b) in zip(joined, both)])
        exact[doc[meets[~(good[kind] & spaced[words[meets + 1]])]]] = True
        return exact

def splits_at_spaces(tokenizer):
    """True if no token spells a space behind another character: then no token can cover parts of two words."""
    crossing = re.compile(r'\S ')
    return not any(crossing.search(tokenizer.decode([i])) for i in range(tokenizer.size))

# ----------------------------------------------------------------------------------------------------------------
# documents. Every source is rows of three pieces (what leads, content, what ends), cut out of one pool of tokens

@dataclass
class Batch:
    """Documents of one shard, flat: their units and words one after another. D documents, U units, W words."""
    units: np.ndarray # (U,) uint16
    runs: np.ndarray # (U,) uint16, frames each unit lasted
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

def concatenate(pool, start, count):
    """pool[start:start + count] of all pieces, one after another; start, count: (pieces, columns), row by row."""
    start, count = start.ravel(), count.ravel()
    end = np.cumsum(count)
    return pool[np.repeat(start - (end - count), count) + np.arange(end[-1] if len(end) else 0)]

def unit_ranges(runs, unit_offsets, hop, doc, start, end):
    """The runs i..j-1 of each span (from start to end, in samples, of document doc), indices of runs; never empty."""
    clock = np.cumsum(runs, dtype=np.int64) * hop # where each run ends, all documents one behind the other
    lo, hi = unit_offsets[doc], unit_offsets[doc + 1]
    base = np.concatenate([[0], clock])[lo]
    i = np.clip(np.searchsorted(clock, base + start, side='left'), lo, hi - 1)
    j = np.clip(np.searchsorted(clock, base + end, side='right'), i + 1, hi)
    return i, j

def interleaved_documents(batch, keys, table, tokenizer, vocab, hop, eot=(), lam=10.0, eta=0.3):
    """(tokens int32, lengths (D,), spoken (W,)); a document without words has length 0."""
    n, F, doc = len(batch.word), len(tokenizer.first), batch.doc
    spoken = spoken_words(keys, batch.n_words, lam, eta)
    begins = np.ones(n, bool) # a span: words of one modality
    begins[1:] = (spoken[1:] != spoken[:-1]) | (doc[1:] != doc[:-1])
    spans = np.flatnonzero(begins)
    last = np.append(spans[1:], n)[:len(spans)] - 1
    fixed = [*tokenizer.first, vocab.text, *tokenizer.first, vocab.speech, *eot]
    start, count = np.zeros((n, 3), np.int64), np.zeros((n, 3), np.int64)
    start[spans, 0], count[spans, 0] = F + (F + 1) * spoken[spans], 1 # a separator where a span begins,
    start[batch.opening, 0] -= F # with `first` before it where a document does
    count[batch.opening, 0] += F
    start[batch.closing, 2], count[batch.closing, 2] = 2 * F + 2, len(eot)
    at_units = len(fixed) + len(table.tokens)
    start[:, 1], count[:, 1] = len(fixed) + table.first[batch.word], table.count[batch.word] * ~spoken
    a, b = spans[spoken[spans]], last[spoken[spans]]
    i, j = unit_ranges(batch.runs, batch.unit_offsets, hop, doc[a], batch.start[a], batch.end[b])
    start[a, 1], count[a, 1] = at_units + i, j - i
    whole = ~spoken[spans] & batch.exact[doc[spans]]
    extra = exact_texts(spans[whole], last[whole], batch, table, tokenizer, start, count, at_units + len(batch.units))
    units = vocab.unit_to_token(batch.units).astype(np.int32)
    pool = np.concatenate([np.array(fixed, np.int32), table.tokens, units, extra])
    return concatenate(pool, start, count), lengths_of(count, batch.word_offsets), spoken

def text_documents(batch, table, tokenizer, eot=()):
    """(tokens, lengths): the words of each document, joined and stripped."""
    n, fixed, words = len(batch.word), [*tokenizer.first, *eot], np.array(batch.word)
    words[batch.opening] = table.bare[words[batch.opening]]
    start, count = np.zeros((n, 3), np.int64), np.zeros((n, 3), np.int64)
    count[batch.opening, 0] = len(tokenizer.first)
    start[batch.closing, 2], count[batch.closing, 2] = len(tokenizer.first), len(eot)
    start[:, 1], count[:, 1] = len(fixed) + table.first[words], table.count[words]
    whole = batch.exact[batch.doc[batch.opening]]
    extra = exact_texts(batch.opening[whole], batch.closing[whole], batch, table, tokenizer, start, count,
                        len(fixed) + len(table.tokens), strip=True)
    pool = np.concatenate([np.array(fixed, np.int32), table.tokens, extra])
    return concatenate(pool, start, count), lengths_of(count, batch.word_offsets)

def exact_texts(firsts, lasts, batch, table, tokenizer, start, count, at, strip=False):
    """Words firsts..lasts become one piece each, of their joined text's tokens: returned, for the pool from `at` on."""
    if not len(firsts):
        return np.zeros(0, np.int32)
    texts = [''.join(table.strings[w] for w in batch.word[a:b + 1]) for a, b in zip(firsts, lasts)]
    encoded = tokenizer.encode_batch([text.strip() for text in texts] if strip else texts)
    sizes = np.array([len(ids) for ids in encoded], np.int64)
    for a, b in zip(firsts, lasts):
        count[a:b + 1, 1] = 0
    start[firsts, 1], count[firsts, 1] = at + np.cumsum(sizes) - sizes, sizes
    return np.array([i for ids in encoded for i in ids], np.int32)

def unit_documents(units, unit_offsets, first, last):
    """(tokens, lengths): first, a document's units (token ids already), last; nothing where there are no units."""
    sizes, n = np.diff(unit_offsets), len(unit_offsets) - 1
    fixed = [*first, *last]
    start = np.stack([np.zeros(n, np.int64), len(fixed) + unit_offsets[:-1], np.full(n, len(first))], 1)
    count = np.stack([np.full(n, len(first)), sizes, np.full(n, len(last))], 1) * (sizes > 0)[:, None]
    return concatenate(np.concatenate([np.array(fixed, np.int32), units.astype(np.int32)]), start, count), count.sum(1)

def lengths_of(count, word_offsets):
    """Tokens of each document, from those of its words' pieces (W, 3)."""
    return np.diff(np.concatenate([[0], np.cumsum(count.sum(1))])[word_offsets])

# ----------------------------------------------------------------------------------------------------------------
# folders

class Corpus:
    """A units folder with its words folder, checked against each other."""

    def __init__(self, folder, want_words):
        self.folder, self.units = folder, Units(folder)
        self.words = Words(Path(folder) / 'words') if want_words else None
        ids = [meta['id'] for meta in self.units.meta]
        if want_words and (ids != self.words.ids or list(self.units.first) != list(self.words.first)):
            differ = [f", '{a}' is '{b}'" for a, b in zip(ids, self.words.ids) if a != b]
            raise Refused(f"{folder}/words: not the documents of {folder} ({len(self.words)} of {len(ids)}"
                          f"{''.join(differ[:1])}); remove it and run align.py again")
        self.hashes = hash_ids(ids)

    def batch(self, s, a, b, table=None):
        """Documents a..b-1 of shard s."""
        offsets = np.array(self.units.offsets[s][a:b + 1])
        units, runs = (np.array(x[s][offsets[0]:offsets[-1]]) for x in (self.units.units, self.units.runs))
        if table is None:
            none = np.zeros(0, np.int64)
            return Batch(units, runs, offsets - offsets[0], none, none, none, 0 * offsets, np.zeros(b - a, bool))
        shard = self.words.shards[s]
        word_offsets = shard.offsets[a:b + 1]
        if len(bad := np.flatnonzero((np.diff(offsets) == 0) & (np.diff(word_offsets) > 0))):
            raise Refused(f"{self.folder}: '{shard.ids[a + bad[0]]}' has words but no units")
        columns = (np.array(x[word_offsets[0]:word_offsets[-1]]) for x in (shard.word, shard.start, shard.end))
        return Batch(units, runs, offsets - offsets[0], *columns, word_offsets - word_offsets[0], table.exact[a:b])

def cuts(offsets):
    """Yields a, b: consecutive documents, at most BATCH_DOCS and, if more than one, BATCH_RUNS units."""
    a, n = 0, len(offsets) - 1
    while a < n:
        b = min(n, a + BATCH_DOCS, max(a + 1, int(np.searchsorted(offsets, offsets[a] + BATCH_RUNS, side='right')) - 1))
        yield a, b
        a = b

def is_val(id_hashes, val_frac):
    """The same documents whatever the seed, the setting or the corpus around them."""
    return mix(id_hashes + GOLDEN) < np.uint64(val_frac * 2**64)

def texts_of(path):
    """(id, text) of each document of a .txt file (one a line) or a .jsonl file ('text'); empty ones are left out."""
    name = Path(path).name
    if path.endswith('.jsonl'):
        for where, line in read_lines(path):
            if not isinstance(line.get('text'), str):
                raise Refused(f"{where}: no string 'text'")
            if line['text'].strip():
                id = line.get('id')
                yield id if isinstance(id, str) and id else f"{name}:{where.rpartition(':')[2]}", line['text']
        return
    try:
        with open(path, encoding='utf-8-sig', newline='\n') as f:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    yield f'{name}:{number}', line.strip()
    except (OSError, UnicodeDecodeError) as e:
        raise Refused(f"{path}: not readable as UTF-8 text: {e}") from None

# ----------------------------------------------------------------------------------------------------------------
# the run

class Output:
    """The shards of OUT/{train,val}/SOURCE, opened when their first document comes."""

    def __init__(self, folder, vocabs, how):
        self.folder, self.vocabs, self.how, self.stack = Path(folder), vocabs, how, ExitStack()
        self.writers, self.counts = {}, {}

    def add(self, source, tokens, lengths, val):
        """Documents of `lengths` tokens, 0 where a source has nothing of one; val: (D,) bool."""
        inside = np.repeat(val, lengths) if val.any() else None
        for split, docs in (('train', ~val), ('val', val)):
            sizes = lengths[docs & (lengths > 0)]
            if not len(sizes):
                continue
            name = f'{split}/{source}'
            if name not in self.writers:
                writer = ShardWriter(self.folder / name, source, self.vocabs[source], self.how)
                self.writers[name] = self.stack.enter_context(writer)
                self.counts[name] = {'documents': 0, 'tokens': 0}
            self.writers[name].add(tokens if inside is None else tokens[inside if split == 'val' else ~inside], sizes)
            self.counts[name]['documents'] += len(sizes)
            self.counts[name]['tokens'] += int(sizes.sum())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error) # finishes all shards, or drops what an error left

def open_corpora(cfg):
    """The corpora of --units, which must have one kind of units."""
    want_words = bool({'text', 'interleaved'} & set(cfg.sources))
    folders = [folder for folder in cfg.units.split(',') if folder]
    if len(set(folders)) < len(folders):
        raise Refused(f"units = {cfg.units}: a folder comes twice")
    corpora = [Corpus(folder, want_words) for folder in folders]
    for key in ('n_units', 'hop', 'units_hash'):
        if len(values := {corpus.units.info.get(key) for corpus in corpora}) > 1:
            raise Refused(f"units = {cfg.units}: {key} differs ({', '.join(sorted(map(str, values)))}); "
                          "units of one encoder and one k-means go together")
    return corpora

def make_vocabs(corpora, tokenizer):
    """The vocabulary each source is written in."""
    info = corpora[0].units.info if corpora else {}
    vocabs, K, units = {}, info.get('n_units'), info.get('units_hash') or ''
    if tokenizer:
        vocabs['text'] = Vocab('text', n_text=tokenizer.size, tokenizer=tokenizer.hash)
    if corpora:
        vocabs['textless'] = Vocab('speech', n_units=K, units=units)
    if corpora and tokenizer:
        vocabs['speech'] = vocabs['interleaved'] = Vocab('joint', tokenizer.size, K, tokenizer.hash, units)
    return vocabs

def write_shard(cfg, corpus, s, epoch, out, vocabs, tokenizer, splits, counts):
    """All documents of one units shard; after the first epoch only their new interleaving."""
    table = WordTable(corpus.words.shards[s], tokenizer, splits) if corpus.words else None
    eot, hashes = [tokenizer.eot] if cfg.eot and tokenizer else [], corpus.hashes[corpus.units.first[s]:]
    sources = cfg.sources if epoch == 0 else {'interleaved'} & set(cfg.sources)
    for a, b in cuts(corpus.units.offsets[s]):
        batch, val = corpus.batch(s, a, b, table), is_val(hashes[a:b], cfg.val_frac)
        if 'text' in sources:
            out.add('text', *text_documents(batch, table, tokenizer, eot), val)
        if 'speech' in sources:
            units = vocabs['speech'].unit_to_token(batch.units)
            out.add('speech', *unit_documents(units, batch.unit_offsets, tokenizer.first, eot), val)
        if 'interleaved' in sources:
            keys = draw_keys(hashes[a:b], cfg.seed, epoch)
            tokens, lengths, spoken = interleaved_documents(
                batch, keys, table, tokenizer, vocabs['interleaved'], corpus.units.info['hop'], eot, cfg.lam, cfg.eta)
            out.add('interleaved', tokens, lengths, val)
            unit_tokens = (tokens >= tokenizer.size) & (tokens < vocabs['interleaved'].speech)
            counts.update(words=len(spoken), spoken_words=int(spoken.sum()), unit_tokens=int(unit_tokens.sum()))
            if epoch == 0: # of documents
                counts.update(without_words=int((lengths == 0).sum()), exactly_tokenized=int(batch.exact.sum()))
        if 'textless' in sources:
            units, bos = vocabs['textless'].unit_to_token(batch.units), vocabs['textless'].bos
            out.add('textless', *unit_documents(units, batch.unit_offsets, [bos], [bos]), val)

def write_texts(cfg, path, out, tokenizer):
    """The text source's share of a --text file."""
    docs, eot = list(texts_of(path)), [tokenizer.eot] if cfg.eot else []
    if not docs:
        raise Refused(f"{path}: no text in it")
    for a in range(0, len(docs), BATCH_DOCS):
        ids, texts = zip(*docs[a:a + BATCH_DOCS])
        encoded = [[*tokenizer.first, *tokens, *eot] for tokens in tokenizer.encode_batch(list(texts))]
        tokens, lengths = np.concatenate(encoded), np.array([len(doc) for doc in encoded])
        out.add('text', tokens, lengths, is_val(hash_ids(ids), cfg.val_frac))

def show(cfg, corpora, tokenizer):
    """Prints a document as its spans."""
    corpus = next((c for c in corpora if cfg.show in c.words.ids), None)
    if corpus is None:
        raise Refused(f"no document '{cfg.show}' in {cfg.units}")
    i, info = corpus.words.find(cfg.show), corpus.units.info
    words, starts, ends = corpus.words[i]
    (units, runs), keys = corpus.units[i], draw_keys(corpus.hashes[i:i + 1], cfg.seed, 0)
    spoken = spoken_words(keys, [len(words)], cfg.lam, cfg.eta)
    edges = [0, *(np.flatnonzero(spoken[1:] != spoken[:-1]) + 1), len(words)] if words else []
    print(f"{cfg.show}: {len(words)} words, {spoken.sum()} spoken, {len(units)} units, "
          f"{runs.sum() * info['hop'] / RATE:.2f} s")
    for a, b in zip(edges, edges[1:]):
        text = ''.join(words[a:b])
        if not spoken[a]:
            print(f"<text>{text}    {tokenizer.encode(text)}")
            continue
        i, j = (int(x[0]) for x in unit_ranges(runs, np.array([0, len(runs)]), info['hop'], np.array([0]),
                                               starts[a:a + 1], ends[b - 1:b]))
        print(f"<speech>{text}    {starts[a] / RATE:.2f}-{ends[b - 1] / RATE:.2f} s, units {units[i:j].tolist()}")

def describe_inputs(cfg, corpora, texts, tokenizer):
    """What the output is a function of."""
    for path in texts:
        if not Path(path).is_file():
            raise Refused(f"{path}: no such text file")
    files = [Path(corpus.folder) / 'info.json' for corpus in corpora]
    files += [corpus.words.folder / 'info.json' for corpus in corpora if corpus.words]
    settings = json.loads(json.dumps(asdict(cfg))) # as they are read back
    del settings['out']
    return {'inputs': {str(path): sha256(path) for path in [*files, *texts]},
            'tokenizer': tokenizer.hash if tokenizer else None, 'settings': settings}

def is_finished(out_dir, made_of):
    """Was out_dir made of just this? Anything else that lies there is refused."""
    if not out_dir.exists():
        return False
    try:
        was = json.loads((out_dir / 'info.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        raise Refused(f"{out_dir}: is there already and was not made by this script; take another --out") from None
    was['settings'] = {k: v for k, v in was.get('settings', {}).items() if k != 'out'}
    if differing := [key for key in made_of if was.get(key) != made_of[key]]:
        raise Refused(f"{out_dir}: is there already, made with other {' and '.join(differing)}; "
                      "take another --out or delete it")
    return True

def text_files(cfg):
    """The files of --text; Refused where it names none, or nothing is to be made of them."""
    if cfg.text and 'text' not in cfg.sources:
        raise Refused(f"text = {cfg.text}: sources = {cfg.sources} has no 'text'")
    found = []
    for path in filter(None, cfg.text.split(',')):
        inside = sorted(p for p in Path(path).rglob('*') if p.suffix in ('.txt', '.jsonl')) if Path(path).is_dir() else [path]
        if not inside:
            raise Refused(f"text = {path}: no .txt or .jsonl file in this folder")
        found += map(str, inside)
    return found

def main(cfg):
    sources = cfg.sources
    corpora = open_corpora(cfg)
    tokenizer = TextTokenizer(cfg.tokenizer) if set(sources) != {'textless'} else None
    if cfg.eot and tokenizer and tokenizer.eot is None:
        raise Refused(f"{cfg.tokenizer}: has no end token; leave out --eot")
    if cfg.show:
        return show(cfg, corpora, tokenizer)
    out_dir, vocabs = Path(cfg.out), make_vocabs(corpora, tokenizer)
    texts = text_files(cfg)
    made_of = describe_inputs(cfg, corpora, texts, tokenizer)
    if is_finished(out_dir, made_of):
        return print(f"{out_dir}: complete already, nothing to do")
    splits, counts = tokenizer is not None and splits_at_spaces(tokenizer), Counter()
    with atomically(out_dir) as tmp:
        tmp.mkdir()
        jobs = [(corpus, s, epoch) for epoch in range(cfg.epochs if 'interleaved' in sources else 1)
                for corpus in corpora for s in range(len(corpus.units.units))]
        with Output(tmp, vocabs, record(cfg)) as out:
            for corpus, s, epoch in progress(jobs, desc='interleave', unit='shard'):
                write_shard(cfg, corpus, s, epoch, out, vocabs, tokenizer, splits, counts)
            for path in texts:
                write_texts(cfg, path, out, tokenizer)
        if not out.counts:
            raise Refused(f"units = {cfg.units}: no document for any of {sources}")
        refused = sum((Counter(corpus.words.info.get('refused')) for corpus in corpora if corpus.words), Counter())
        info = {'documents': sum(len(corpus.units) for corpus in corpora), 'written': dict(sorted(out.counts.items())),
                'hours': round(sum(meta['seconds'] for corpus in corpora for meta in corpus.units.meta) / 3600, 4),
                'interleaved': dict(counts), 'refused': dict(sorted(refused.items())), **made_of, **record(cfg)}
        write_json(tmp / 'info.json', info)
    report(cfg, info)

def report(cfg, info):
    """What was written, a line a folder."""
    for name, n in info['written'].items():
        print(f"{cfg.out}/{name}: {n['documents']:,} documents, {n['tokens']:,} tokens")
    for name in (f'train/{source}' for source in cfg.sources):
        if name not in info['written']:
            print(f"{cfg.out}/{name}: not there, no document has what it takes")
    n = info['interleaved']
    if n.get('words'):
        tokens = sum(c['tokens'] for name, c in info['written'].items() if name.endswith('/interleaved'))
        spoken, units = n['spoken_words'] / n['words'], n['unit_tokens'] / tokens
        print(f"interleaved: {spoken:.1%} of the words spoken, {units:.1%} of the tokens units; {n['without_words']:,} "
              f"documents without words, {n['exactly_tokenized']:,} tokenized text by text")
    refused = ', '.join(f'{reason} {count}' for reason, count in info['refused'].items())
    print(f"{info['documents']:,} documents, {info['hours']:.2f} h of speech; refused by align.py: {refused or 'none'}")

if __name__ == '__main__':
    run(main, Config)
