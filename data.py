"""
Token shards, packing, and the mixture of sources that a run reads.

    python -m corpora.table --data=out                           # tables of all below: token folders, and hours and units a second of units
    python -m corpora.table --data=out/tokens/a --block_size=512 --verify=True

A folder holds NAME_000000.bin ... and index.json. A shard, little-endian:

    header      64 bytes: magic 'slmtoken', version u32, bytes per token u32 (2 or 4), tokens u64, documents u64,
                hash of the vocabulary (8 bytes), zeros
    tokens      uint16 where the vocabulary has at most 65,536 ids, else uint32; zeros up to a multiple of 8 bytes
    ends        int64 (documents,): where each document ends, in tokens

A shard is written to .tmp, fsynced, renamed; index.json (sha256, counts, largest id of each; the vocabulary; settings)
comes last, so a folder without it is unfinished. Shards are mapped, not read: never edit one that a run has open.

Packing: a row is T tokens of one source. Documents longer than T are cut into pieces of T and a rest; rests go into
rows by best fit, longest first, over the histogram of lengths (so the time hardly depends on their number); rows are
broken up to fill others only where fill would stay under 99.5 %. The plan is cached beside the shards, and mapped.

    tokens[t]      zeros in the tail that nothing filled
    doc_start[t]   index in the row where token t's piece begins: attention and positions start there
    targets[t]     tokens[t + 1] if that belongs to the same piece, else -100

Mixture: row g of a run is a pure function of (seed, g). Sources alternate so that after any number of rows each is
within one row of its weight; a source's rows are permuted anew for each pass, none repeated before all were seen.
"""
import fcntl
import hashlib
import json
import os
import shutil
import struct
from bisect import bisect_left, insort
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configurator import Refused
from files import atomically, sha256, write_json
from vocab import MODALITIES, Vocab

MAGIC, VERSION = b'slmtoken', 1 # of a shard
INDEX_VERSION = 2 # of index.json; version 1 called the separators 'other'
HEADER = struct.Struct('<8sIIQQ8s24x') # magic, version, bytes per token, tokens, documents, vocabulary hash
FILL = 0.995     # least share of a row's places that hold tokens
MAX_T = 65535    # the longest row: lengths are sorted as uint16
IGNORE = -100    # cross-entropy's "no target here"
PERIOD = 10_000  # weights are met exactly in each so many rows, or fewer

@contextmanager
def _locked(folder, wait):
    """An exclusive lock on a folder, dropped by the kernel with the process. Yields False if taken and not wait."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)

# ----------------------------------------------------------------------------------------------------------------
# writing

class ShardWriter:
    """Writes documents of one vocabulary into a folder, as shards of at most shard_tokens; a longer document has its own.

        with ShardWriter('out/tokens/train/text', 'text', vocab, record(cfg)) as writer:
            writer.add(tokens, lengths)   # 1-D ids of many documents, and how many belong to each

    The bytes depend on the documents alone, not on how add's batches were cut. A folder that is complete (has its
    index.json) or that another process is writing is refused; what a killed writer left is swept away.
    """

    def __init__(self, folder, name, vocab, record=None, shard_tokens=2**28):
        self.folder, self.name, self.vocab = Path(folder), name, vocab
        self.record, self.shard_tokens = record, shard_tokens
        self.dtype = np.dtype('<u2' if vocab.size <= 65536 else '<u4')
        self.shards, self.counts, self.file = [], np.zeros(3, dtype=np.int64), None # counts: a number for each of MODALITIES
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise Refused(f"{folder}: is a file, expected a folder to write shards in") from None
        self.lock = _locked(self.folder, wait=False)
        if not self.lock.__enter__():
            self._unlock()
            raise Refused(f"{folder}: another process is writing here")
        if (self.folder / 'index.json').exists():
            self._unlock()
            raise Refused(f"{folder}: already complete (has index.json); remove the folder to write it again")
        for stale in [*self.folder.glob(f'{name}_*.bin*'), *self.folder.glob('index.json.tmp')]:
            stale.unlink()
        for stale in self.folder.glob('plan_*'):
            shutil.rmtree(stale)

    def add(self, tokens, lengths):
        tokens, lengths = np.asarray(tokens), np.asarray(lengths)
        if len(tokens) != lengths.sum() or (lengths < 1).any():
            raise Refused(f"{self.folder}: {len(tokens)} tokens for documents of {int(lengths.sum())} in all, "
                          f"{(lengths < 1).sum()} of them empty; expected equal sums and no empty document")
        if not len(lengths):
            return
        if not 0 <= tokens.min() <= tokens.max() < self.vocab.size: # before any cast: ids must not wrap
            at = np.flatnonzero((tokens < 0) | (tokens >= self.vocab.size))[0]
            document = np.searchsorted(np.cumsum(lengths), at, 'right')
            raise Refused(f"{self.folder}: id {tokens[at]} in document {document} of the batch, "
                          f"expected 0..{self.vocab.size - 1}")
        ends, done, base = np.cumsum(lengths), 0, 0
        while done < len(ends):
            if self.file is None:
                self._open()
            room = self.shard_tokens - self.n_tokens
            until = int(np.searchsorted(ends, base + room, 'right')) # the last that fits, + 1
            if until == done and self.n_tokens:
                self._finish()
                continue
            until = max(until, done + 1) # a document longer than a shard has one to itself
            self._write(tokens[base:ends[until - 1]], ends[done:until] - base)
            done, base = until, int(ends[until - 1])

    def _open(self):
        self.path = self.folder / f'{self.name}_{len(self.shards):06d}.bin'
        self.file = open(f'{self.path}.tmp', 'wb')
        self.file.write(bytes(HEADER.size))
        self.n_tokens, self.max_id, self.ends = 0, 0, []

    def _write(self, tokens, ends):
        self.file.write(tokens.astype(self.dtype).data)
        self.ends.append(ends + self.n_tokens)
        self.n_tokens += len(tokens)
        self.max_id = max(self.max_id, int(tokens.max()))
        modality = self.vocab.modality(tokens)
        self.counts += [len(tokens) - np.count_nonzero(modality), (modality == 1).sum(), (modality == 2).sum()]

    def _finish(self):
        ends = np.concatenate(self.ends).astype('<i8')
        self.file.write(bytes(-self.n_tokens * self.dtype.itemsize % 8))
        self.file.write(ends.data)
        self.file.seek(0)
        self.file.write(HEADER.pack(MAGIC, VERSION, self.dtype.itemsize, self.n_tokens, len(ends),
                                    bytes.fromhex(self.vocab.hash())))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(f'{self.path}.tmp', self.path)
        self.file = None
        self.shards.append({'file': self.path.name, 'tokens': self.n_tokens, 'documents': len(ends),
                            'max_id': self.max_id, 'sha256': sha256(self.path)})

    def close(self):
        """Finishes the last shard and writes index.json: from here on the folder can be read."""
        if self.file is not None:
            self._finish()
        write_json(self.folder / 'index.json', {
            'version': INDEX_VERSION, 'vocab': asdict(self.vocab), 'documents': sum(s['documents'] for s in self.shards),
            'tokens': int(self.counts.sum()), **dict(zip(MODALITIES, self.counts.tolist())), 'shards': self.shards,
            'record': self.record})
        self._unlock()

    def _unlock(self):
        self.lock.__exit__(None, None, None)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            return self.close()
        if self.file is not None: # no index.json is written, so nobody reads what is there
            self.file.close()
            os.unlink(f'{self.path}.tmp')
        self._unlock()

# ----------------------------------------------------------------------------------------------------------------
# reading

def _read_index(folder):
    path = Path(folder) / 'index.json'
    if not Path(folder).is_dir():
        raise Refused(f"{folder}: no such folder, expected one of token shards (interleave.py writes them)")
    try:
        index = json.loads(path.read_text(encoding='utf-8'))
        index['vocab'] = Vocab(**index['vocab'])
        for key in ('documents', 'tokens'):
            found = sum(shard[key] for shard in index['shards'])
            if index[key] != found:
                raise Refused(f"{path}: says {index[key]} {key}, its shards sum to {found}")
        if index.get('version') == 1:
            index['separators'] = index.pop('other')
        parts = [index[name] for name in MODALITIES]
        if index['tokens'] != sum(parts):
            raise Refused(f"{path}: says {index['tokens']} tokens, by modality {' + '.join(map(str, parts))}")
        for shard in index['shards']:
            if Path(shard['file']).name != shard['file'] or not {'max_id', 'sha256'} <= shard.keys():
                raise Refused(f"{path}: shard {shard['file']!r}, expected a plain file name with max_id and sha256")
    except FileNotFoundError:
        raise Refused(f"{path}: missing; not a token folder, or its writer was stopped: write it again") from None
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Refused(f"{path}: corrupt, expected what ShardWriter writes ({type(e).__name__}: {e})") from None
    return index

def _open_shard(path, entry, vocab):
    """(tokens, ends) of a shard, mapped, after its header, its size and its entry in the index agree."""
    try:
        with open(path, 'rb') as f:
            head = f.read(HEADER.size)
        size = path.stat().st_size
    except OSError:
        raise Refused(f"{path}: missing, index.json lists it") from None
    if len(head) < HEADER.size:
        raise Refused(f"{path}: {size} bytes, expected at least the header's {HEADER.size}")
    magic, version, width, n_tokens, n_documents, vocab_hash = HEADER.unpack(head)
    want_width = 2 if vocab.size <= 65536 else 4
    want_size = HEADER.size + (n_tokens * width + 7) // 8 * 8 + n_documents * 8
    for what, found, expected in (
            ('magic', magic, MAGIC), ('version', version, VERSION), ('bytes per token', width, want_width),
            ('vocabulary', vocab_hash.hex(), vocab.hash()), ('tokens', n_tokens, entry['tokens']),
            ('documents', n_documents, entry['documents']), ('bytes', size, want_size)):
        if found != expected:
            raise Refused(f"{path}: {what} {found}, expected {expected}")
    if not n_tokens:
        return None
    tokens = np.memmap(path, f'<u{width}', 'r', HEADER.size, (n_tokens,)).view(np.ndarray)
    ends = np.memmap(path, '<i8', 'r', size - n_documents * 8, (n_documents,)).view(np.ndarray)
    if ends[-1] != n_tokens:
        raise Refused(f"{path}: documents end at {ends[-1]}, expected {n_tokens}")
    return tokens, ends

class Shards:
    """Token folders as one source of documents. Opening checks every shard (see _open_shard) and reads none.

    .documents .tokens .lengths (documents,)   .read(i) -> int64 ids of document i   .plan(T)   .verify()
    vocab: the model's; folders in another that it does not accept are refused (None: the first folder's).
    """

    def __init__(self, folders, vocab=None):
        folders = [Path(f) for f in ([folders] if isinstance(folders, (str, Path)) else folders)]
        if not folders:
            raise Refused("no token folders given")
        self.name, self.folder, self.shards = ','.join(map(str, folders)), folders[0], []
        for folder in folders:
            index = _read_index(folder)
            self.vocab = vocab = vocab or index['vocab']
            if not vocab.accepts(index['vocab']):
                raise Refused(f"{folder}: written in {index['vocab']}, expected {vocab}")
            for entry in index['shards']:
                path = folder / entry['file']
                if entry['max_id'] >= vocab.size:
                    raise Refused(f"{path}: id {entry['max_id']}, the vocabulary has {vocab.size}")
                mapped = _open_shard(path, entry, index['vocab'])
                if mapped is None:
                    print(f"{path}: no documents, skipped")
                    continue
                self.shards.append((path, entry, *mapped))
        if not self.shards:
            raise Refused(f"{self.name}: no documents")
        self.data = [tokens for _, _, tokens, _ in self.shards]
        self.first = np.cumsum([0, *map(len, self.data)]) # a shard's first token in the source's one long stream
        self.tokens = int(self.first[-1])
        self.documents = sum(len(ends) for *_, ends in self.shards)
        self.hash = hashlib.sha256(' '.join(entry['sha256'] for _, entry, *_ in self.shards).encode()).hexdigest()

    @cached_property
    def lengths(self):
        out = np.empty(self.documents, dtype=np.int32)
        at = 0
        for path, _, _, ends in self.shards:
            part = out[at:at + len(ends)]
            part[0], part[1:], at = ends[0], np.diff(ends), at + len(ends)
            if part.min() < 1:
                raise Refused(f"{path}: document {part.argmin()} has {part.min()} tokens, expected at least 1")
        return out

    def read(self, document):
        for _, _, tokens, ends in self.shards:
            if document < len(ends):
                return tokens[ends[document - 1] if document else 0:ends[document]].astype(np.int64)
            document -= len(ends)
        raise IndexError(document)

    def verify(self):
        """Reads everything: sha256, counts and largest id of every shard as index.json says, or Refused."""
        for path, entry, tokens, _ in self.shards:
            for what, found in (('max_id', int(tokens.max())), ('sha256', sha256(path))):
                if found != entry[what]:
                    raise Refused(f"{path}: {what} {found}, index.json says {entry[what]}: the file was changed")
        return self.lengths

    def plan(self, T):
        """pack(self.lengths, T), cached beside the first folder's shards under the hash of all shards' content."""
        path = self.folder / f'plan_T{T}_{self.hash[:16]}'
        with _locked(self.folder, wait=True): # ranks of a run come here together: one packs, the others map
            if not path.exists():
                plan = pack(self.lengths, T)
                try:
                    with atomically(path) as tmp:
                        tmp.mkdir()
                        for name, array in plan._asdict().items():
                            np.save(tmp / f'{name}.npy', array)
                except OSError as e:
                    print(f"{path}: not written ({e.strerror}); packing again next time")
                    return plan
        try:
            plan = Plan(*(np.load(path / f'{name}.npy', mmap_mode='r').view(np.ndarray) for name in Plan._fields))
            if len(plan.start) != len(plan.length) or plan.rows[-1] != len(plan.start):
                raise ValueError
        except (OSError, ValueError, IndexError):
            raise Refused(f"{path}: damaged plan, remove it to have it made again") from None
        return plan

def check_names(data):
    """Refuses corpora whose folders have the same last name, by which held-out losses are told apart."""
    names = [Path(part).name for part in data.split(',')]
    if len(set(names)) < len(names):
        raise Refused(f"data={data}: two folders have the same last name, by which losses are told apart; rename one")

# ----------------------------------------------------------------------------------------------------------------
# packing

class Plan(NamedTuple):
    rows: np.ndarray   # int64 (rows + 1,): row r holds pieces rows[r]..rows[r + 1] - 1
    start: np.ndarray  # int64 (pieces,): first token of each piece in the source's stream
    length: np.ndarray # int32 (pieces,)
    cuts: np.ndarray   # int64 (): pieces cut again, beyond those of documents longer than T

    def fill(self, T):
        return self.length.sum(dtype=np.int64) / ((len(self.rows) - 1) * T)

def _best_fit(counts, T):
    """Rows for counts[l] pieces of each length l < T: groups (rows, pattern), a pattern is [(length, how many), ...].

    Best fit, longest first, on whole groups of equal rows. A group's pattern is a linked list, shared by its splits.
    """
    groups, rooms = defaultdict(list), [] # room left -> [(rows, pattern)]; the rooms that have any, ascending
    def put(room, rows, pattern):
        if not groups[room]:
            insort(rooms, room)
        groups[room].append((rows, pattern))
    for length in range(T - 1, 0, -1):
        left = int(counts[length])
        while left:
            at = bisect_left(rooms, length)
            room = rooms[at] if at < len(rooms) else T
            rows, pattern = groups[room].pop() if at < len(rooms) else (left, None) # else: open new rows
            if at < len(rooms) and not groups[room]:
                del rooms[at]
            each = min(room // length, left) # pieces of this length a row takes
            taking = min(rows, left // each)
            if pattern is not None and taking < rows:
                put(room, rows - taking, pattern)
            put(room - each * length, taking, (pattern, length, each))
            left -= taking * each
    for room in sorted(groups):
        for rows, pattern in groups[room]:
            steps = []
            while pattern is not None:
                pattern, length, each = pattern
                steps.append((length, each))
            yield rows, steps[::-1]

def pack(lengths, T):
    """Plan of rows of T for documents of these lengths laid end to end; every token is in exactly one piece."""
    lengths = np.asarray(lengths)
    if not 2 <= T <= MAX_T:
        raise Refused(f"block_size {T}, expected 2..{MAX_T}")
    ends = np.cumsum(lengths, dtype=np.int64)
    whole = lengths // T # pieces that fill a row
    rest = (lengths - whole * T).astype(np.uint16)
    long = np.flatnonzero(whole)
    nth = np.arange(whole[long].sum()) - np.repeat(np.cumsum(whole[long]) - whole[long], whole[long])
    start = [np.repeat(ends[long] - lengths[long], whole[long]) + nth * T]
    length, n_pieces = [np.full(len(nth), T, dtype=np.int32)], [np.ones(len(nth), dtype=np.int64)]
    # documents by length of their rest, shuffled within a length: neighbors of the corpus are not put together
    order = np.empty(len(lengths), dtype=np.int32 if len(lengths) < 2**31 else np.int64)
    for at in range(0, len(order), 2**16):
        order[at:at + 2**16] = permute(np.arange(at, min(at + 2**16, len(order))), len(order), 'pack')
    order = order[np.argsort(rest[order], kind='stable')] # radix on uint16
    counts = np.bincount(rest, minlength=T)
    taken = np.cumsum(counts) - counts # per length: the next of `order`
    for rows, pattern in _best_fit(counts, T):
        width, column = sum(each for _, each in pattern), 0
        documents, piece = np.empty((rows, width), dtype=order.dtype), np.empty(width, dtype=np.int32)
        for size, each in pattern:
            documents[:, column:column + each] = order[taken[size]:taken[size] + rows * each].reshape(rows, each)
            piece[column:column + each] = size
            taken[size] += rows * each
            column += each
        start.append((ends[documents] - piece).reshape(-1))
        length.append(np.tile(piece, rows))
        n_pieces.append(np.full(rows, width))
    start, length, n_pieces = np.concatenate(start), np.concatenate(length), np.concatenate(n_pieces)
    return _cut_to_fill(np.concatenate([[0], np.cumsum(n_pieces)]), start, length, T)

def _cut_to_fill(rows, start, length, T):
    """The plan, with its emptiest rows cut up to fill the room of the others where fill is under FILL."""
    used = np.add.reduceat(length, rows[:-1], dtype=np.int64) # tokens in each row
    wanted = max(-(-used.sum() // T), int(used.sum() / (FILL * T))) # rows
    if len(used) <= wanted:
        return Plan(rows, start, length, np.int64(0))
    by_use = np.argsort(used, kind='stable')
    n_donors = len(used) - wanted
    donor = np.zeros(len(used), dtype=bool)
    donor[by_use[:n_donors]] = True
    row = np.repeat(np.arange(len(used)), np.diff(rows)) # of each piece
    given, kept = np.flatnonzero(donor[row]), np.flatnonzero(~donor[row])
    pieces_end = np.cumsum(length[given], dtype=np.int64) # the donors' tokens as one stream, cut where a piece or ...
    takers = by_use[n_donors:] # ... the room of a row ends; the rows with most room take first
    room_end = np.minimum(np.cumsum(T - used[takers]), pieces_end[-1])
    cut = np.union1d(pieces_end, room_end[room_end > 0])
    begin = np.concatenate([[0], cut[:-1]])
    source = np.searchsorted(pieces_end, begin, 'right')
    new_row = takers[np.searchsorted(room_end, begin, 'right')]
    new_start = start[given][source] + begin - (pieces_end - length[given])[source]
    row = np.concatenate([row[kept], new_row])
    order = np.argsort(row, kind='stable')
    n_pieces = np.bincount(row, minlength=len(used))[~donor]
    return Plan(np.concatenate([[0], np.cumsum(n_pieces)]), np.concatenate([start[kept], new_start])[order],
                np.concatenate([length[kept], (cut - begin).astype(np.int32)])[order], np.int64(len(cut) - len(given)))

# ----------------------------------------------------------------------------------------------------------------
# order

def permute(i, n, *key):
    """Where a permutation of 0..n-1, drawn by `key`, takes each of i.

    A 4-round Feistel cipher, walked until it lands below n: no state, no table, the same on every machine and numpy.
    """
    half = np.uint64(max(3, (n.bit_length() + 1) // 2)) # bits; the cipher permutes 2^(2 half) >= n numbers
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.frombuffer(hashlib.sha256(repr(key).encode()).digest(), dtype='<u8')
    x = np.array(i, dtype=np.uint64)
    walking = np.ones(x.shape, dtype=bool)
    while walking.any():
        left, right = x[walking] >> half, x[walking] & mask
        for k in keys:
            mixed = (right ^ k) * np.uint64(0x9E3779B97F4A7C15) # multiplication wraps mod 2^64
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ (mixed >> (np.uint64(64) - half))
        x[walking] = (left << half) | right
        walking[walking] = x[walking] >= n
    return x.astype(np.int64)

def _schedule(weights):
    """Sources of one period of rows (P,), and how many rows each has had before: (P + 1, sources).

    The shortest period up to PERIOD that meets the weights exactly, else PERIOD rows with shares rounded. In it the
    next row goes to the earliest deadline among the sources that are not ahead: each stays within a row of its share.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    periods = np.arange(1, PERIOD + 1)
    exact = np.flatnonzero(np.abs(np.outer(periods, share) - np.rint(np.outer(periods, share))).max(1) < 1e-6)
    period = int(periods[exact[0]]) if len(exact) else PERIOD
    quota = np.floor(share * period + 1e-6).astype(int)
    quota[np.argsort(quota - share * period, kind='stable')[:period - quota.sum()]] += 1 # largest remainders
    if quota.min() < 1:
        raise Refused(f"weights {tuple(weights)}: a share under 1/{PERIOD} is no share, leave the source out")
    had, order = np.zeros((period + 1, len(quota)), dtype=np.int64), np.zeros(period, dtype=np.int64)
    for t in range(period):
        n = had[t]
        deadline = np.where(n * period < quota * (t + 1), -(-(n + 1) * period // quota), period + 1)
        order[t] = deadline.argmin()
        had[t + 1] = n
        had[t + 1, order[t]] += 1
    return order, had

class Loader:
    """Rows of several sources, mixed by weight. Row g is a pure function of (seed, g): any world size takes its slice.

    sources: list of Shards; weights: share of the rows, None for equal ones. .identity must be equal on resume.
    """

    def __init__(self, sources, weights, T, seed):
        weights = [1] * len(sources) if weights is None else list(weights)
        if not sources or len(weights) != len(sources):
            raise Refused(f"{len(weights)} weights for {len(sources)} sources, expected one each")
        if not all(w > 0 and np.isfinite(w) for w in weights):
            raise Refused(f"weights {tuple(weights)}, expected each above 0; to leave a source out, do not name it")
        for source in sources:
            if source.vocab != sources[0].vocab:
                raise Refused(f"{source.name}: opened for {source.vocab}, {sources[0].name} for {sources[0].vocab}")
            if 2 <= T <= MAX_T and source.tokens < T:
                raise Refused(f"{source.name}: {source.tokens} tokens, fewer than one row of {T}")
        self.sources, self.T, self.seed = sources, T, seed
        self.plans = [source.plan(T) for source in sources]
        self.n_rows = np.array([len(plan.rows) - 1 for plan in self.plans]) # of one pass over each source
        self.order, self.had = _schedule(weights)
        self.identity = {'block_size': T, 'seed': seed, 'weights': [float(w) for w in weights],
                         'sources': [source.hash for source in sources], 'rows': self.n_rows.tolist()}

    def locate(self, g):
        """(source, epoch, row of its plan) of global rows g, each int64 like g."""
        cycle, at = np.divmod(np.asarray(g, dtype=np.int64), len(self.order))
        source = self.order[at]
        epoch, step = np.divmod(cycle * self.had[-1][source] + self.had[at, source], self.n_rows[source])
        row = np.empty_like(step)
        for s, e in set(zip(source.tolist(), epoch.tolist())):
            same = (source == s) & (epoch == e)
            row[same] = permute(step[same], int(self.n_rows[s]), self.seed, s, e)
        return source, epoch, row

    def rows(self, first, count):
        """tokens int64, doc_start int32, targets int64, each (count, T), and source int64 (count,), from row `first`."""
        source, _, row = self.locate(np.arange(first, first + count))
        tokens = np.zeros((count, self.T), dtype=np.int64)
        begins = np.ones((count, self.T), dtype=bool) # each place of the tail is a piece of its own
        for i, (s, r) in enumerate(zip(source.tolist(), row.tolist())):
            self._fill(self.sources[s], self.plans[s], r, tokens[i], begins[i])
        if tokens.max() >= self.sources[0].vocab.size: # index.json's max_id was wrong: say so before a GPU does
            bad = np.flatnonzero(tokens.max(1) >= self.sources[0].vocab.size)[0]
            raise Refused(f"{self.sources[source[bad]].name}: id {tokens[bad].max()}, the vocabulary has "
                          f"{self.sources[0].vocab.size}; a shard was changed after it was written")
        doc_start = np.maximum.accumulate(begins * np.arange(self.T, dtype=np.int32), axis=1)
        targets = np.full_like(tokens, IGNORE)
        np.copyto(targets[:, :-1], tokens[:, 1:], where=~begins[:, 1:])
        return tokens, doc_start, targets, source

    @staticmethod
    def _fill(shards, plan, r, tokens, begins):
        pieces = slice(plan.rows[r], plan.rows[r + 1])
        start = plan.start[pieces]
        shard = np.searchsorted(shards.first, start, 'right') - 1
        at = 0
        for s, a, n in zip(shard.tolist(), (start - shards.first[shard]).tolist(), plan.length[pieces].tolist()):
            tokens[at:at + n] = shards.data[s][a:a + n]
            begins[at + 1:at + n] = False
            at += n
