"""
Units + words + text -> token shards: text, speech, interleaved and textless documents.

    python interleave.py --units=out/units/stories,out/units/talk --out=out/tokens/tiny --eot
    python interleave.py --units=out/units/stories --show=s000012        prints one document with its spans

OUT/{train,val}/SOURCE/ holds the shards (data.py has the format), OUT/info.json the counts. The sources:

    text         first, text tokens [, eot]                                  transcripts and --text files
    interleaved  first, <text> or <speech> and its span, alternating [, eot] documents with words
    speech       first, units [, eot]                                        all documents, joint vocabulary
    textless     bos, units, eos                                             all documents, speech vocabulary

`first` is what the text tokenizer puts before a text. Which of a document's n words are spoken (SIMS's algorithm):

    until ceil(eta * n) words are spoken or no word is eligible (at first all are):
        draw s uniformly from the eligible words and L ~ Poisson(lam); e = min(s + L, n)
        if a word of s..e-1 is spoken already: draw both again
        words s..e-1 become spoken; words s..e are no longer eligible

Draw j of a document is one 64-bit hash of (seed, epoch, id, j): the high half gives s, the low half
L. If word s is not eligible, both are drawn again. So spans never depend on other documents, and
each epoch has new ones. --spans=chunks speaks lam words and writes lam (1 - eta) / eta by turns, from
a random point of this period on. --spans=utterances needs no words, but texts: the documents that
follow each other in a shard are spoken and written by turns, up to `turns` of them joined into one.

Spoken words a..b take the runs of units from the first that ends at or after a's start to the last
that ends at or before b's end, or, if there is none, the run in which a starts. Sound outside of the
words is only in speech and textless documents.
"""
import hashlib
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np

from configurator import Refused, run
from corpora.tree import TEXTS, documents
from data import ShardWriter
from files import atomically, files_of_kind, progress, read_json, record, sha256, write_json
from hub.tokenizer import TextTokenizer
from hub.word_table import WordTable, splits_at_spaces
from speech.audio import RATE
from speech.corpus import Corpus, hash_ids, joined
from speech.words import Words
from vocab import Vocab

SOURCES = ('text', 'speech', 'interleaved', 'textless')
SPANS = ('words', 'chunks', 'utterances')
COMPARED = ('text', 'speech', 'textless') # whose documents are looked up in train
MAX_DRAWS = 10_000 # after so many, no word counts as eligible; lam 10, eta 0.3 need at most about 300 (4 words)
GOLDEN = np.uint64(0x9E3779B97F4A7C15) # step of the splitmix64 generator
BATCH_DOCS, BATCH_RUNS = 8192, 1 << 20 # documents and units processed at once: decides the memory, never the result

@dataclass(frozen=True)
class Config:
    units: str = '' # units folders, comma-separated; the words of each are in its words/
    tokenizer: str = 'tiny/tokenizer' # text tokenizer: a folder or hub id
    text: str = '' # more text: .txt (a document per line), .jsonl ('text' of a line), folders of such, comma-separated
    out: str = '' # folder to make
    sources: tuple = SOURCES # which of the four to write
    eot: bool = False # end token after every text, speech and interleaved document (off in the papers, on for tiny)
    epochs: int = 1 # interleavings of every document, each with its own spans
    spans: str = 'words' # what is spoken: 'words' (SIMS), 'chunks' of lam words, or whole 'utterances'
    turns: int = 8 # documents that spans='utterances' joins into one
    lam: float = 10.0 # mean span length in words
    eta: float = 0.3 # minimum share of spoken words
    val_frac: float = 0.01 # share of documents, chosen by the hash of their id, that go to val/
    seed: int = 0 # of the spans
    show: str = '' # id of a document: print its interleaving, write nothing

    def __post_init__(self):
        if not self.units and not (self.text and self.sources == ('text',)):
            raise Refused("no units folder: give --units=DIR[,DIR], as tokenize_speech.py writes it")
        if bool(self.out) == bool(self.show):
            raise Refused("expected --out=DIR, or --show=ID to print a document")
        if self.spans not in SPANS or not 2 <= self.turns <= 1024:
            raise Refused(f"spans, turns = {self.spans!r}, {self.turns}: expected one of {', '.join(SPANS)}, "
                          "and 2 to 1,024 documents")
        if self.show and self.spans == 'utterances':
            raise Refused("--show prints the spans of one document; with spans='utterances' it has none")
        if not self.sources or not set(self.sources) <= set(SOURCES):
            raise Refused(f"sources = {self.sources}: expected some of {SOURCES}")
        if not (0 < self.lam <= 100 and 0 < self.eta <= 1 and 0 <= self.val_frac < 1):
            raise Refused(f"lam, eta, val_frac = {self.lam}, {self.eta}, {self.val_frac}: "
                          "expected 0 < lam <= 100, 0 < eta <= 1, 0 <= val_frac < 1")
        if not (1 <= self.epochs < 2**16 and 0 <= self.seed < 2**32):
            raise Refused(f"epochs = {self.epochs}, seed = {self.seed}: expected 1 to 65,535, 0 to 4,294,967,295")

# --------------------------------------------------------------------------------------------------
# spans

def mix(x):
    """splitmix64's finalizer: uint64 array -> uint64 array, every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

def hash_documents(tokens, lengths):
    """64 stable bits of the content of each document: ids end to end, and the length of each."""
    data = memoryview(np.asarray(tokens, '<u4').tobytes())
    edges = [0, *(4 * np.cumsum(lengths)).tolist()]
    digests = [hashlib.blake2b(data[a:b], digest_size=8).digest() for a, b in zip(edges, edges[1:])]
    return np.frombuffer(b''.join(digests), dtype='<u8').astype(np.uint64)

def draw_keys(id_hashes, seed, epoch):
    """The key of each document's stream of draws: draw j is mix(key + (j + 1) * GOLDEN)."""
    return mix(id_hashes ^ mix(np.array([(seed << 16) + epoch + 1], np.uint64) * GOLDEN))

def poisson_table(lam):
    """Thresholds t_k = floor(2^32 P(X <= k)). How many are at or below a uniform 32-bit u is Poisson(lam)."""
    k = np.arange(int(lam + 12 * lam**0.5 + 30))
    log_p = k * np.log(lam) - lam - np.cumsum(np.log(np.maximum(k, 1)))
    return (np.minimum(np.cumsum(np.exp(log_p)), 1) * 2**32).astype(np.uint64)

def spoken_words(keys, n_words, lam=10.0, eta=0.3):
    """Which words are spoken: (D,) keys and word counts -> bool (sum of n_words,), document after document."""
    n_words = np.asarray(n_words, np.int64)
    first_word = np.cumsum(n_words) - n_words
    change = np.zeros(n_words.sum() + 1, np.int8) # +1 where a span starts, -1 where one ends
    table = poisson_table(lam)
    # Documents of similar length are done together, since they need about as many spans.
    magnitude = np.ceil(np.log2(np.maximum(n_words, 1)))
    for power in np.unique(magnitude[n_words > 0]):
        docs = np.flatnonzero((magnitude == power) & (n_words > 0))
        for doc, starts, ends in _rounds(keys[docs], n_words[docs], table, eta):
            # No two spans of a document start, or end, at the same word: no index comes twice.
            change[first_word[docs[doc]] + starts] += 1
            change[first_word[docs[doc]] + ends] -= 1
    return np.cumsum(change[:-1], dtype=np.int8) > 0

def spoken_by_turns(random, n_words, spoken, written):
    """Which words are spoken, `spoken` and `written` words by turns: bool, document after document.

    random (D,): 64 random bits a document, which choose where in this period it begins.
    """
    n_words = np.asarray(n_words, np.int64)
    period = spoken + written
    begin = ((random >> np.uint64(32)) * np.uint64(period) >> np.uint64(32)).astype(np.int64)
    position = np.arange(n_words.sum()) - np.repeat(np.cumsum(n_words) - n_words - begin, n_words)
    return position % period < spoken

def choose_spoken(cfg, keys, n_words):
    """Which words are spoken, as cfg.spans says; a word of 'utterances' is a whole document."""
    if cfg.spans == 'words':
        return spoken_words(keys, n_words, cfg.lam, cfg.eta)
    random = mix(keys + GOLDEN)
    if cfg.spans == 'utterances':
        return spoken_by_turns(random, n_words, 1, 1)
    length = max(1, round(cfg.lam))
    return spoken_by_turns(random, n_words, length, max(1, round(length * (1 - cfg.eta) / cfg.eta)))

def _rounds(keys, n_words, table, eta):
    """Yields (documents, starts, ends), at most one new span per document each time, until all have enough."""
    live = np.arange(len(n_words)) # documents that need more spoken words
    missing = np.ceil(n_words * eta).astype(np.int64)
    next_draw = np.zeros(len(n_words), np.int64)
    spans = np.zeros((2, 0, len(n_words)), np.int64) # starts and ends: (2, spans so far, live)
    while len(live):
        # Several draws at once; the first valid one counts.
        n_tries = min(256, max(2, (1 << 16) // spans[0].size)) if spans.size else 1
        draw = next_draw[:, None] + np.arange(n_tries) # (live, tries)
        bits = mix(keys[live, None] + (draw + 1).astype(np.uint64) * GOLDEN)
        n = n_words[live, None]
        start = ((bits >> np.uint64(32)) * n.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
        end = np.minimum(start + np.searchsorted(table, bits & np.uint64(0xFFFFFFFF), side='right'), n)
        valid = draw < MAX_DRAWS
        for s, e in zip(*spans[..., None]):
            # Valid: start is eligible and no word is spoken already. A span with L = 0 speaks no word,
            # but its start is no longer eligible.
            valid &= (start > e) | ((start < s) & ((end <= s) | (s == e)))
        choice = valid.argmax(1)
        row = np.flatnonzero(valid[np.arange(len(live)), choice]) # the documents that get a span
        start = start[row, choice[row]]
        end = end[row, choice[row]]
        missing[row] -= end - start
        next_draw += n_tries
        next_draw[row] -= n_tries - 1 - choice[row]
        spoken = end > start
        yield live[row][spoken], start[spoken], end[spoken]
        # A document that got no span has one beyond all words instead.
        new_spans = np.full((2, 1, len(live)), np.iinfo(np.int64).max)
        new_spans[:, 0, row] = start, end
        unfinished = (missing > 0) & (next_draw < MAX_DRAWS)
        spans = np.concatenate([spans, new_spans], axis=1)[:, :, unfinished]
        live, missing, next_draw = (array[unfinished] for array in (live, missing, next_draw))

# --------------------------------------------------------------------------------------------------
# documents
#
# Each word of a document (in unit_documents, each document) is a row of three pieces: what stands before it, the
# content, and what stands after it. A piece is pool[start:start + count] of one pool of tokens.

BEFORE, CONTENT, AFTER = range(3)

def cut_documents(pool, start, count, offsets):
    """-> (tokens, lengths): the rows' pieces one after another; document d has rows offsets[d]..offsets[d+1]-1."""
    start, count = start.ravel(), count.ravel()
    end = np.concatenate([[0], np.cumsum(count)])
    tokens = pool[np.repeat(start - end[:-1], count) + np.arange(end[-1])]
    return tokens, np.diff(end[3 * offsets])

def unit_ranges(runs, unit_offsets, hop, doc, start, end, codebooks=0):
    """The runs i..j-1 (indices of runs, never none) of each span, from start to end (samples) of document doc.

    Flat units (codebooks above 0) are cut between frames, as the runs within a frame end together.
    """
    least = max(codebooks, 1)
    run_end = np.cumsum(runs, dtype=np.int64) * hop # on a clock that goes on from document to document
    first, stop = unit_offsets[doc], unit_offsets[doc + 1]
    doc_start = np.concatenate([[0], run_end])[first]
    i = np.clip(np.searchsorted(run_end, doc_start + start, side='left'), first, stop - least)
    j = np.clip(np.searchsorted(run_end, doc_start + end, side='right'), i + least, stop)
    return i, j

def text_pieces(batch, words, first, last, table, tokenizer, eot, separators=(), strip=False):
    """-> (pool, start, count) of documents: tokenizer.first, text tokens, eot. The pool ends with
    tokenizer.first, separators and eot. In `exact` documents the words of each span first..last are
    tokenized as one text."""
    start, count = np.zeros((2, len(words), 3), np.int64)
    start[:, CONTENT] = table.first[words]
    count[:, CONTENT] = table.count[words]
    exact = batch.exact[batch.doc[first]]
    first, last = first[exact], last[exact]
    texts = [''.join(table.strings[w] for w in words[a:b + 1]) for a, b in zip(first, last)]
    texts = [text.strip() for text in texts] if strip else texts
    encoded = tokenizer.encode_batch(texts) if texts else []
    for a, b in zip(first, last):
        count[a:b + 1, CONTENT] = 0
    count[first, CONTENT] = [len(ids) for ids in encoded]
    start[first, CONTENT] = len(table.tokens) + np.cumsum(count[first, CONTENT]) - count[first, CONTENT]
    extra = [i for ids in encoded for i in ids]
    pool = np.concatenate([table.tokens, np.array([*extra, *tokenizer.first, *separators, *eot], np.int32)])
    start[batch.opening, BEFORE] = len(table.tokens) + len(extra)
    count[batch.opening, BEFORE] = len(tokenizer.first)
    start[batch.closing, AFTER] = len(pool) - len(eot)
    count[batch.closing, AFTER] = len(eot)
    return pool, start, count

def interleaved_documents(batch, spoken, table, tokenizer, vocab, hop, eot=()):
    """spoken (W,): which words are -> (tokens int32, lengths (D,)); a document without words has length 0."""
    # A span: consecutive words of one document and one modality.
    opens_span = np.ones(len(spoken), bool)
    opens_span[1:] = (spoken[1:] != spoken[:-1]) | (batch.doc[1:] != batch.doc[:-1])
    first = np.flatnonzero(opens_span)
    last = np.append(first[1:], len(spoken))[:len(first)] - 1
    is_text = ~spoken[first]
    separators = [vocab.text, *tokenizer.first, vocab.speech]
    text_spans = first[is_text], last[is_text]
    pool, start, count = text_pieces(batch, batch.word, *text_spans, table, tokenizer, eot, separators)
    # A span begins with its separator, a document's first span with tokenizer.first and its separator.
    # All of these are slices of the pool's end: first, <text>, first, <speech>, eot.
    speech_at = len(pool) - len(eot) - 1
    text_at = speech_at - len(tokenizer.first) - 1
    start[first, BEFORE] = np.where(is_text, text_at, speech_at) - count[first, BEFORE]
    count[first, BEFORE] += 1
    # The first word of a spoken span has the units of the whole span, the others have nothing.
    a, b = first[~is_text], last[~is_text]
    i, j = unit_ranges(batch.runs, batch.unit_offsets, hop, batch.doc[a], batch.start[a], batch.end[b],
                       vocab.codebooks)
    count[spoken, CONTENT] = 0
    start[a, CONTENT] = len(pool) + i
    count[a, CONTENT] = j - i
    pool = np.concatenate([pool, vocab.unit_to_token(batch.units).astype(np.int32)])
    return cut_documents(pool, start, count, batch.word_offsets)

def text_documents(batch, table, tokenizer, eot=()):
    """-> (tokens, lengths): the words of each document, joined and stripped."""
    words = np.array(batch.word)
    words[batch.opening] = table.bare[words[batch.opening]]
    pieces = text_pieces(batch, words, batch.opening, batch.closing, table, tokenizer, eot, strip=True)
    return cut_documents(*pieces, batch.word_offsets)

def unit_documents(units, unit_offsets, first, last):
    """-> (tokens, lengths): first, a document's units (as token ids), last; nothing for a document without units."""
    n_units = np.diff(unit_offsets)
    fixed = np.array([*first, *last], np.int32)
    start, count = np.zeros((2, len(n_units), 3), np.int64)
    start[:, CONTENT] = len(fixed) + unit_offsets[:-1]
    start[:, AFTER] = len(first)
    count[n_units > 0] = len(first), 0, len(last)
    count[:, CONTENT] = n_units
    return cut_documents(np.concatenate([fixed, units.astype(np.int32)]), start, count, np.arange(len(n_units) + 1))

def cuts(offsets, multiple=1):
    """Yields (a, b): documents a..b-1, at most BATCH_DOCS and, if more than `multiple`, BATCH_RUNS units. All but the
    last batch have a multiple of `multiple` documents."""
    a = 0
    while a < len(offsets) - 1:
        within_runs = int(np.searchsorted(offsets, offsets[a] + BATCH_RUNS, side='right')) - 1
        n = min(BATCH_DOCS, within_runs - a) // multiple * multiple
        b = min(len(offsets) - 1, a + max(multiple, n))
        yield a, b
        a = b

def is_val(id_hashes, val_frac):
    """Which documents are for validation: the same whatever the seed, the settings and the corpus around them."""
    return mix(id_hashes + GOLDEN) < np.uint64(val_frac * 2**64)

def texts_of(path):
    """Yields (id, text) of the documents of a --text file, except empty ones."""
    for id, text, _ in documents(path):
        if text.strip():
            yield id, text

# --------------------------------------------------------------------------------------------------
# the run

class SplitWriter(ExitStack):
    """Writes the shards of OUT/{train,val}/SOURCE, each opened when its first document comes."""
    def __init__(self, folder, vocabs, provenance):
        super().__init__()
        self.folder = Path(folder)
        self.vocabs = vocabs
        self.provenance = provenance
        self.writers = {} # {'train/text': ShardWriter, ...}
        self.counts = {} # {'train/text': {'documents': 0, 'tokens': 0}, ...}
        self.hashes = {} # {'train/text': [hashes of its documents, ...], ...}

    def add(self, source, tokens, lengths, val):
        """lengths: (D,) tokens of each document, 0 if it is not of this source; val: (D,) bool."""
        token_val = np.repeat(val, lengths) if val.any() else None
        for split, docs in (('train', ~val), ('val', val)):
            n_tokens = lengths[docs & (lengths > 0)]
            if not len(n_tokens):
                continue
            name = f'{split}/{source}'
            if name not in self.writers:
                writer = ShardWriter(self.folder / name, source, self.vocabs[source], self.provenance)
                self.writers[name] = self.enter_context(writer)
                self.counts[name] = {'documents': 0, 'tokens': 0}
            chosen = slice(None) if token_val is None else token_val == (split == 'val')
            self.writers[name].add(tokens[chosen], n_tokens)
            if source in COMPARED:
                self.hashes.setdefault(name, []).append(hash_documents(tokens[chosen], n_tokens))
            self.counts[name]['documents'] += len(n_tokens)
            self.counts[name]['tokens'] += int(n_tokens.sum())
            if n_single := int((n_tokens == 1).sum()): # nothing is predicted in them
                self.counts[name]['single_tokens'] = self.counts[name].get('single_tokens', 0) + n_single

    def equal_documents(self):
        """{source: how many of its documents for val, and how many more of those for train, train holds already}."""
        counts = {}
        for source in COMPARED:
            train, val = (np.concatenate(self.hashes.pop(f'{split}/{source}', [np.array([], np.uint64)]))
                          for split in ('train', 'val')) # 8 bytes a document, the others of which are freed
            if len(train):
                train.sort()
                is_in_train = train[np.minimum(np.searchsorted(train, val), len(train) - 1)] == val
                n_again = np.count_nonzero(train[1:] == train[:-1])
                counts[source] = {'val': int(is_in_train.sum()), 'train': int(n_again)}
        return counts

def open_corpora(cfg):
    """The corpora of --units, which must all have units of one kind."""
    with_words = bool({'text', 'interleaved'} & set(cfg.sources))
    folders = [folder for folder in cfg.units.split(',') if folder]
    if len(set(folders)) < len(folders):
        raise Refused(f"units = {cfg.units}: a folder comes twice")
    words = None if not with_words else 'utterances' if cfg.spans == 'utterances' else 'words'
    corpora = [Corpus(folder, words) for folder in folders]
    for key in ('n_units', 'hop', 'codebooks', 'units_hash'):
        if len(values := {corpus.units.info.get(key) for corpus in corpora}) > 1:
            raise Refused(f"units = {cfg.units}: {key} differs: {sorted(map(str, values))}; expected one kind of units")
    return corpora

def make_vocabs(corpora, tokenizer):
    """{source: the vocabulary that it is written in}."""
    info = corpora[0].units.info if corpora else {}
    units = {'n_units': info.get('n_units'), 'units': info.get('units_hash') or '',
             'codebooks': info.get('codebooks', 0)}
    text = {'n_text': tokenizer.size, 'tokenizer': tokenizer.hash} if tokenizer else {}
    vocabs = {'text': Vocab('text', **text)} if tokenizer else {}
    if corpora:
        vocabs['textless'] = Vocab('speech', **units)
    if corpora and tokenizer:
        vocabs['speech'] = vocabs['interleaved'] = Vocab('joint', **text, **units)
    return vocabs

def write_interleaved(cfg, corpus, batch, hashes, val, epoch, out, vocab, table, tokenizer, eot, counts):
    """Writes the interleaved documents of a batch. In utterances, one ends at a held-out document and before it."""
    hop = corpus.units.info['hop']
    if epoch == 0: # these two count documents, not interleavings
        counts.update(without_words=int((batch.n_words == 0).sum()), exactly_tokenized=int(batch.exact.sum()))
    if cfg.spans == 'utterances':
        begins = np.arange(len(val)) % cfg.turns == 0
        begins[1:] |= val[1:] != val[:-1]
        first = np.flatnonzero(begins)
        batch = joined(batch, first, table, hop)
        hashes = hashes[first]
        val = val[first]
    spoken = choose_spoken(cfg, draw_keys(hashes, cfg.seed, epoch), batch.n_words)
    tokens, lengths = interleaved_documents(batch, spoken, table, tokenizer, vocab, hop, eot)
    out.add('interleaved', tokens, lengths, val)
    unit_tokens = (tokens >= tokenizer.size) & (tokens < vocab.speech)
    counts.update(words=len(spoken), spoken_words=int(spoken.sum()), unit_tokens=int(unit_tokens.sum()))

def write_shard(cfg, corpus, s, epoch, out, vocabs, tokenizer, splits, counts):
    """Writes all documents of units shard s; after the first epoch, only their new interleaving."""
    table = WordTable(corpus.words.shards[s], tokenizer, splits) if corpus.words else None
    eot = [tokenizer.eot] if cfg.eot and tokenizer else []
    hashes = corpus.hashes[corpus.units.first[s]:]
    sources = cfg.sources if epoch == 0 else {'interleaved'} & set(cfg.sources)
    for a, b in cuts(corpus.units.offsets[s], cfg.turns if cfg.spans == 'utterances' else 1):
        batch = corpus.batch(s, a, b, table)
        val = is_val(hashes[a:b], cfg.val_frac)
        if 'text' in sources:
            out.add('text', *text_documents(batch, table, tokenizer, eot), val)
        if 'speech' in sources:
            units = vocabs['speech'].unit_to_token(batch.units)
            out.add('speech', *unit_documents(units, batch.unit_offsets, tokenizer.first, eot), val)
        if 'interleaved' in sources:
            write_interleaved(cfg, corpus, batch, hashes[a:b], val, epoch, out, vocabs['interleaved'], table, tokenizer,
                              eot, counts)
        if 'textless' in sources:
            units = vocabs['textless'].unit_to_token(batch.units)
            bos = [vocabs['textless'].bos]
            out.add('textless', *unit_documents(units, batch.unit_offsets, bos, bos), val)

def write_texts(cfg, path, out, tokenizer):
    """Adds the documents of a --text file to the text source."""
    docs = texts_of(path)
    eot = [tokenizer.eot] if cfg.eot else []
    is_empty = True
    while batch := list(islice(docs, BATCH_DOCS)):
        is_empty = False
        ids, texts = zip(*batch)
        encoded = [[*tokenizer.first, *tokens, *eot] for tokens in tokenizer.encode_batch(list(texts))]
        lengths = np.array([len(tokens) for tokens in encoded])
        out.add('text', np.concatenate(encoded), lengths, is_val(hash_ids(ids), cfg.val_frac))
    if is_empty:
        raise Refused(f"{path}: no text in it")

def show(cfg, corpora, tokenizer):
    """Prints the spans of the document cfg.show."""
    corpus = next((corpus for corpus in corpora if cfg.show in corpus.words.ids), None)
    if corpus is None:
        raise Refused(f"no document '{cfg.show}' in {cfg.units}")
    hop = corpus.units.info['hop']
    doc = corpus.words.find(cfg.show)
    words, starts, ends = corpus.words[doc]
    units, runs = corpus.units[doc]
    spoken = choose_spoken(cfg, draw_keys(corpus.hashes[doc:doc + 1], cfg.seed, 0), [len(words)])
    edges = [0, *(np.flatnonzero(spoken[1:] != spoken[:-1]) + 1), len(words)] if words else []
    print(f"{cfg.show}: {len(words)} words, {spoken.sum()} spoken, {len(units)} units, {runs.sum() * hop / RATE:.2f} s")
    for a, b in zip(edges, edges[1:]):
        text = ''.join(words[a:b])
        if spoken[a]:
            (i,), (j,) = unit_ranges(runs, np.array([0, len(runs)]), hop, np.array([0]), starts[a:a + 1], ends[b - 1:b],
                                     corpus.units.codebooks)
            print(f"<speech>{text}    {starts[a] / RATE:.2f}-{ends[b - 1] / RATE:.2f} s, units {units[i:j].tolist()}")
        else:
            print(f"<text>{text}    {tokenizer.encode(text)}")

def describe_inputs(cfg, corpora, texts, tokenizer):
    """All that the output depends on: hashes of the inputs and of the tokenizer, and the settings."""
    files = [Path(corpus.folder) / 'info.json' for corpus in corpora]
    files += [corpus.words.folder / 'info.json' for corpus in corpora if isinstance(corpus.words, Words)]
    settings = json.loads(json.dumps(asdict(cfg))) # with lists for tuples, as they are read back
    del settings['out']
    return {'inputs': {str(path): sha256(path) for path in [*files, *texts]},
            'tokenizer': tokenizer.hash if tokenizer else None, 'settings': settings}

def is_finished(out_dir, description):
    """Whether out_dir was made from exactly these inputs; anything else in its place is refused."""
    if not out_dir.exists():
        return False
    try:
        info = read_json(out_dir, 'info.json', 'interleave.py')
    except Refused:
        raise Refused(f"{out_dir}: exists and was not made by this script; take another --out") from None
    # A setting that did not exist when the folder was made has its default.
    info['settings'] = {field.name: field.default for field in fields(Config)} | info.get('settings', {})
    del info['settings']['out']
    if differing := [key for key in description if info.get(key) != description[key]]:
        raise Refused(f"{out_dir}: exists, made with other {' and '.join(differing)}; take another --out or delete it")
    return True

def text_files(cfg):
    """The files of --text and of its folders."""
    if cfg.text and 'text' not in cfg.sources:
        raise Refused(f"text = {cfg.text}: sources = {cfg.sources} has no 'text'")
    files = []
    for path in filter(None, cfg.text.split(',')):
        inside = files_of_kind(path, TEXTS, cfg.out).values() if Path(path).is_dir() else [path]
        if not inside:
            raise Refused(f"text = {path}: none of {' '.join(TEXTS)} in this folder")
        files += inside
    for path in files:
        if not Path(path).is_file():
            raise Refused(f"{path}: no such text file")
    return files

def report(cfg, info):
    """Prints what was written, a line per folder."""
    for name, n in info['written'].items():
        single = f"; {n['single_tokens']:,} documents are a single token" if 'single_tokens' in n else ''
        print(f"{cfg.out}/{name}: {n['documents']:,} documents, {n['tokens']:,} tokens{single}")
    for source in cfg.sources:
        if f'train/{source}' not in info['written']:
            print(f"{cfg.out}/train/{source}: not written, since no document has what it needs")
    for source, n in info['equal_documents'].items():
        if n['val'] or n['train']:
            n_val = info['written'].get(f'val/{source}', {}).get('documents', 0)
            print(f"{source}: train holds {n['val']:,} of the {n_val:,} documents of val as well, and "
                  f"{n['train']:,} documents more than once; a loss on the former is not held out")
    n = info['interleaved']
    if n.get('words'):
        tokens = sum(c['tokens'] for name, c in info['written'].items() if name.endswith('/interleaved'))
        print(f"interleaved: {n['spoken_words'] / n['words']:.1%} of words spoken, {n['unit_tokens'] / tokens:.1%} of "
              f"tokens units; {n['without_words']:,} wordless documents, {n['exactly_tokenized']:,} tokenized whole")
    refused = ', '.join(f'{reason} {count}' for reason, count in info['refused'].items())
    print(f"{info['documents']:,} documents, {info['hours']:.2f} h of speech; refused by align.py: {refused or 'none'}")

def main(cfg):
    corpora = open_corpora(cfg)
    tokenizer = TextTokenizer(cfg.tokenizer) if set(cfg.sources) != {'textless'} else None
    if cfg.eot and tokenizer and tokenizer.eot is None:
        raise Refused(f"{cfg.tokenizer}: has no end token; leave out --eot")
    if cfg.show:
        return show(cfg, corpora, tokenizer)
    vocabs = make_vocabs(corpora, tokenizer)
    texts = text_files(cfg)
    description = describe_inputs(cfg, corpora, texts, tokenizer)
    if is_finished(Path(cfg.out), description):
        return print(f"{Path(cfg.out)}: complete already, nothing to do")
    splits = tokenizer is not None and splits_at_spaces(tokenizer)
    counts = Counter()
    epochs = range(cfg.epochs if 'interleaved' in cfg.sources else 1)
    jobs = [(c, s, epoch) for epoch in epochs for c in corpora for s in range(len(c.units.units))]
    with atomically(cfg.out) as tmp:
        tmp.mkdir()
        with SplitWriter(tmp, vocabs, record(cfg)) as out:
            for corpus, s, epoch in progress(jobs, desc='interleave', unit='shard'):
                write_shard(cfg, corpus, s, epoch, out, vocabs, tokenizer, splits, counts)
            for path in texts:
                write_texts(cfg, path, out, tokenizer)
        if not out.counts:
            raise Refused(f"units = {cfg.units}: no document for any of {cfg.sources}")
        refused = sum((Counter(corpus.words.info.get('refused')) for corpus in corpora if corpus.words), Counter())
        seconds = sum(corpus.seconds for corpus in corpora)
        info = {'documents': sum(len(corpus.units) for corpus in corpora), 'written': dict(sorted(out.counts.items())),
                'hours': round(seconds / 3600, 4), 'interleaved': dict(counts),
                'equal_documents': out.equal_documents(), 'refused': dict(sorted(refused.items())), **description,
                **record(cfg)}
        write_json(tmp / 'info.json', info)
    report(cfg, info)

if __name__ == '__main__':
    run(main, Config)
