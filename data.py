"""
Token shards on disk, documents packed into rows, and the mixture of sources that a run reads.

A token folder (ShardWriter, Shards) holds NAME_000000.bin, ... and index.json. A shard is little-endian:

    header      64 bytes: magic 'slmtoken', version u32, bytes per token u32 (2 or 4), tokens u64,
                documents u64, hash of the vocabulary (8 bytes), zeros
    tokens      uint16 if the vocabulary has at most 65,536 ids, else uint32; zeros up to a multiple of 8 bytes
    ends        int64 (documents,): where each document ends, in tokens

A shard is written to NAME.bin.tmp, fsynced and renamed. index.json (sha256, counts and largest id
of each shard, the vocabulary, the settings) comes last: a folder without it is unfinished, and a shard
that is newer than it was changed or copied since: it is read at once, and must have the sha256 of
index.json. Shards are memory-mapped, so never edit one that a run has open.

Packing (pack): a row holds T tokens of one source. Longer documents are cut into pieces of T and a
remainder. The remainders go into rows by best fit, longest first, in groups of equal length, so
that their number hardly matters. Rows are cut up to fill others only where less than 99.5 % of all
places would hold a token. A row is

    tokens[t]      ids; zeros behind the last piece
    doc_start[t]   index in the row where token t's piece begins: attention and positions start there
    targets[t]     tokens[t + 1] if it belongs to the same piece, else -100

Mixture (Loader): row g of a run is a pure function of (seed, g). Sources alternate so that after
any number of rows each is within one row of its share. A source's rows are permuted anew each
epoch; all are read before any is repeated.
"""
import hashlib
import math
import os
import shutil
import struct
from bisect import bisect_left, insort
from collections import defaultdict
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configurator import Refused
from files import atomically, check_readable, map_npy, mapped, progress, read_json, sha256, write_json
from locks import Lock, writing_in
from vocab import MODALITIES, Vocab

MAGIC, VERSION = b'slmtoken', 1 # of a shard
INDEX_VERSION = 2 # of index.json; version 1 called the separators 'other'
HEADER = struct.Struct('<8sIIQQ8s24x') # magic, version, bytes per token, tokens, documents, vocabulary hash
FILL = 0.995     # least share of all rows' places that hold tokens
MAX_T = 65535    # the longest row: lengths are sorted as uint16
IGNORE = -100    # a target without a loss, for torch's cross-entropy
PERIOD = 10_000  # the order of the sources repeats after at most this many rows

# --------------------------------------------------------------------------------------------------
# writing

class ShardWriter:
    """Writes documents of one vocabulary into a folder, as shards of at most shard_tokens.

        with ShardWriter('out/tokens/train/text', 'text', vocab, record(cfg)) as writer:
            writer.add(tokens, lengths)   # 1-D ids of many documents, and the length of each

    A longer document has a shard of its own. The bytes depend on the documents alone, not on how
    add gets them. A folder that is complete or that another process is writing is refused; what a
    killed writer left is deleted.
    """

    def __init__(self, folder, name, vocab, record=None, shard_tokens=2**28):
        self.folder = Path(folder)
        self.name = name
        self.vocab = vocab
        self.record, self.shard_tokens = record, shard_tokens
        self.dtype = np.dtype('<u2' if vocab.size <= 65536 else '<u4')
        self.shards = [] # entries of index.json
        self.counts = np.zeros(len(MODALITIES), dtype=np.int64) # tokens of each modality
        self.file = None # the shard being written
        if self.folder.exists() and not self.folder.is_dir():
            raise Refused(f"{folder}: is a file, expected a folder to write shards in")
        self.lock = writing_in(self.folder)
        if (self.folder / 'index.json').exists():
            self.lock.close()
            raise Refused(f"{folder}: already complete (has index.json); remove the folder to write it again")
        for stale in [*self.folder.glob(f'{name}_*.bin*'), *self.folder.glob('index.json.tmp')]:
            stale.unlink()
        for stale in self.folder.glob('plan_*'): # of all versions
            shutil.rmtree(stale)

    def add(self, tokens, lengths):
        """Appends documents: their ids end to end, and the length of each. Ids outside the vocabulary are refused."""
        tokens = np.asarray(tokens)
        lengths = np.asarray(lengths)
        n_empty = (lengths < 1).sum()
        if len(tokens) != lengths.sum() or n_empty:
            raise Refused(f"{self.folder}: {len(tokens)} tokens for documents of {int(lengths.sum())} in all, "
                          f"{n_empty} of them empty; expected equal sums and no empty document")
        if not len(lengths):
            return
        ends = np.cumsum(lengths)
        if not 0 <= tokens.min() <= tokens.max() < self.vocab.size: # checked before a cast could wrap them
            first_bad = np.flatnonzero((tokens < 0) | (tokens >= self.vocab.size))[0]
            document = np.searchsorted(ends, first_bad, 'right')
            raise Refused(f"{self.folder}: id {tokens[first_bad]} in document {document} of the batch, "
                          f"expected 0..{self.vocab.size - 1}")
        first = begin = 0 # the next document, and its first token
        while first < len(ends):
            if self.file is None:
                self._open()
            shard_end = begin + self.shard_tokens - self.n_tokens
            last = int(np.searchsorted(ends, shard_end, 'right')) # documents first..last - 1 fit
            if last == first and not self.n_tokens:
                last += 1 # longer than a shard: it has one to itself
            if last > first:
                end = int(ends[last - 1])
                self._write(tokens[begin:end], ends[first:last] - begin)
                first, begin = last, end
            if first < len(ends):
                self._finish()

    def _open(self):
        self.path = self.folder / f'{self.name}_{len(self.shards):06d}.bin'
        self.file = open(f'{self.path}.tmp', 'wb')
        self.file.write(bytes(HEADER.size))
        self.n_tokens = self.max_id = 0
        self.ends = []

    def _write(self, tokens, ends):
        self.file.write(tokens.astype(self.dtype).data)
        self.ends.append(ends + self.n_tokens)
        self.n_tokens += len(tokens)
        self.max_id = max(self.max_id, int(tokens.max()))
        modality = self.vocab.modality(tokens)
        self.counts += [np.count_nonzero(modality == i) for i in range(len(MODALITIES))]

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
        """Finishes the last shard and writes index.json: from now on the folder can be read."""
        if self.file is not None:
            self._finish()
        n_documents = sum(shard['documents'] for shard in self.shards)
        n_tokens = dict(zip(MODALITIES, self.counts.tolist()))
        write_json(self.folder / 'index.json', {
            'version': INDEX_VERSION, 'vocab': self.vocab.as_dict(), 'documents': n_documents,
            'tokens': sum(n_tokens.values()), **n_tokens, 'shards': self.shards, 'record': self.record})
        self.lock.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            return self.close()
        if self.file is not None: # no index.json is written, so nobody reads the shards before this one
            self.file.close()
            os.unlink(f'{self.path}.tmp')
        self.lock.close()

# --------------------------------------------------------------------------------------------------
# reading

def read_index(folder):
    """index.json of a token folder, its 'vocab' as a Vocab; refused if it is missing or contradicts itself."""
    path = Path(folder) / 'index.json'
    check_readable(folder)
    if not Path(folder).is_dir():
        raise Refused(f"{folder}: no such folder, expected one of token shards (interleave.py writes them)")
    if not path.exists():
        raise Refused(f"{path}: missing; not a token folder, or its writer was stopped: write it again")
    index = read_json(folder, 'index.json', 'interleave.py')
    try:
        index['vocab'] = Vocab(**index['vocab'])
        if index.get('version') == 1:
            index['separators'] = index.pop('other')
        for key in ('documents', 'tokens'):
            in_shards = sum(shard[key] for shard in index['shards'])
            if index[key] != in_shards:
                raise Refused(f"{path}: says {index[key]} {key}, its shards sum to {in_shards}")
        counts = [index[name] for name in MODALITIES]
        if index['tokens'] != sum(counts):
            raise Refused(f"{path}: says {index['tokens']} tokens, by modality {' + '.join(map(str, counts))}")
        for shard in index['shards']:
            kinds = [type(shard.get(key)) for key in ('tokens', 'documents', 'max_id', 'sha256')]
            if kinds != [int, int, int, str] or Path(shard['file']).name != shard['file']:
                raise Refused(f"{path}: shard {shard['file']!r}, expected a plain file name with max_id and sha256")
    except (KeyError, TypeError, AttributeError) as e:
        raise Refused(f"{path}: corrupt, expected what ShardWriter writes ({type(e).__name__}: {e})") from None
    return index

class Shard(NamedTuple):
    path: Path
    entry: dict        # of index.json
    tokens: np.ndarray # uint16 or uint32 (tokens,), memory-mapped
    ends: np.ndarray   # int64 (documents,), memory-mapped

    def verify(self):
        """Reads the file, at 1.5 GB/s if the disk gives it; refused if its sha256 differs from index.json."""
        value = sha256(self.path)
        if value != self.entry['sha256']:
            raise Refused(f"{self.path} was changed: sha256 {value}, index.json says {self.entry['sha256']}; write the "
                          "folder again, or bring the old file back")

def _verify_newer(folder, shards):
    """Verifies those of a folder's shards that are newer than its index.json, then dates that like the newest."""
    index = folder / 'index.json'
    times = [shard.path.stat().st_mtime_ns for shard in shards]
    newer = [shard for shard, time in zip(shards, times) if time > index.stat().st_mtime_ns]
    for shard in progress(newer, desc=f'{folder}: verify', unit='shard', leave=False):
        shard.verify()
    if newer:
        try:
            os.utime(index, ns=(max(times), max(times)))
        except OSError:
            pass # a folder of somebody else: they are read again next time

def _open_shard(path, entry, vocab):
    """The Shard, None if it is empty; refused if its header or size contradicts its entry in index.json."""
    try:
        with open(path, 'rb') as f:
            header = f.read(HEADER.size)
        size = path.stat().st_size
    except OSError:
        check_readable(path)
        raise Refused(f"{path}: missing, index.json lists it") from None
    if len(header) < HEADER.size:
        raise Refused(f"{path}: {size} bytes, expected at least the header's {HEADER.size}")
    magic, version, width, n_tokens, n_documents, vocab_hash = HEADER.unpack(header)
    expected_size = HEADER.size + (n_tokens * width + 7) // 8 * 8 + n_documents * 8
    checks = [('magic', magic, MAGIC), ('version', version, VERSION),
              ('bytes per token', width, 2 if vocab.size <= 65536 else 4),
              ('vocabulary', vocab_hash.hex(), vocab.hash()), ('tokens', n_tokens, entry['tokens']),
              ('documents', n_documents, entry['documents']), ('bytes', size, expected_size)]
    for field, value, expected in checks:
        if value != expected:
            raise Refused(f"{path}: {field} {value}, expected {expected}")
    if not n_tokens:
        print(f"{path}: no documents, skipped")
        return None
    tokens = mapped(path, f'<u{width}', HEADER.size, n_tokens)
    ends = mapped(path, '<i8', size - n_documents * 8, n_documents)
    if ends[-1] != n_tokens:
        raise Refused(f"{path}: documents end at {ends[-1]}, expected {n_tokens}")
    return Shard(path, entry, tokens, ends)

class Shards:
    """Token folders as one source of .documents and .tokens. Opening checks every shard and reads none but newer ones.

    vocab: the model's, None for that of the first folder. A folder whose vocabulary it does not accept is refused.
    """

    def __init__(self, folders, vocab=None):
        folders = [folders] if isinstance(folders, (str, Path)) else folders
        folders = [Path(folder) for folder in folders]
        if not folders:
            raise Refused("no token folders given")
        self.name = ','.join(map(str, folders))
        self.folder = folders[0]
        self.shards = []
        for folder in folders:
            index = read_index(folder)
            self.vocab = vocab = vocab or index['vocab']
            if not vocab.accepts(index['vocab']):
                raise Refused(f"{folder}: written in {index['vocab']}, expected {vocab}")
            opened = []
            for entry in index['shards']:
                path = folder / entry['file']
                if entry['max_id'] >= vocab.size:
                    raise Refused(f"{path}: id {entry['max_id']}, the vocabulary has {vocab.size}")
                opened.append(_open_shard(path, entry, index['vocab']))
            opened = list(filter(None, opened))
            _verify_newer(folder, opened)
            self.shards += opened
        if not self.shards:
            raise Refused(f"{self.name}: no documents")
        # All shards end to end are the source's stream; first[s]: where shard s begins in it.
        self.first = np.cumsum([0, *(len(shard.tokens) for shard in self.shards)])
        self.tokens = int(self.first[-1])
        self.documents = sum(len(shard.ends) for shard in self.shards)
        self.hash = hashlib.sha256(' '.join(shard.entry['sha256'] for shard in self.shards).encode()).hexdigest()

    @cached_property
    def lengths(self):
        """Tokens of each document, int32 (documents,)."""
        lengths = np.empty(self.documents, dtype=np.int32)
        first = 0
        for shard in self.shards:
            part = lengths[first:first + len(shard.ends)]
            part[:] = np.diff(shard.ends, prepend=0)
            first += len(part)
            if part.min() < 1:
                raise Refused(f"{shard.path}: document {part.argmin()} has {part.min()} tokens, expected at least 1")
        return lengths

    def read(self, document):
        """The ids of a document, int64."""
        for shard in self.shards:
            if document < len(shard.ends):
                begin = shard.ends[document - 1] if document else 0
                return shard.tokens[begin:shard.ends[document]].astype(np.int64)
            document -= len(shard.ends)
        raise IndexError(document)

    def verify(self):
        """Reads all shards, refuses one whose sha256 differs from index.json, and returns the lengths."""
        for shard in self.shards:
            shard.verify()
        return self.lengths

    def _write_plan(self, path, T):
        """Packs the rows and writes the plan -> None, or the plan if it cannot be written."""
        try:
            lock = Lock(self.folder / '.plan.lock', self.folder, wait=math.inf)
        except Refused:
            lock = nullcontext() # the folder cannot be written
        with lock: # all ranks of a run come here at once: the first packs, the others map the plan
            if path.exists():
                return None
            plan = pack(self.lengths, T)
            try:
                with atomically(path) as tmp:
                    tmp.mkdir()
                    for name, array in plan._asdict().items():
                        np.save(tmp / f'{name}.npy', array)
                    (tmp / 'sha256.txt').write_text(plan.hash())
            except (OSError, Refused) as e:
                print(f"{path}: not written, so that each start packs again ({getattr(e, 'strerror', e)})")
                return plan
        return None

    def plan(self, T):
        """pack(self.lengths, T), cached beside the first folder's shards under the hash of all shards' content."""
        path = self.folder / f'plan_T{T}_{self.hash[:16]}.v2' # the first version had no hash of the plan
        plan = None if path.exists() else self._write_plan(path, T)
        if plan is not None:
            return plan
        check_readable(path)
        try:
            plan = Plan(*(map_npy(path / f'{name}.npy') for name in Plan._fields))
            if plan.hash() != (path / 'sha256.txt').read_text():
                raise ValueError
        except (OSError, ValueError, IndexError):
            raise Refused(f"{path}: damaged plan, remove it to have it made again") from None
        return plan

def check_names(data):
    """Refuses corpora whose folders have the same last name, by which held-out losses are told apart."""
    names = [Path(part).name for part in data.split(',')]
    if len(set(names)) < len(names):
        raise Refused(f"data={data}: two folders have the same last name, by which losses are told apart; rename one")

# --------------------------------------------------------------------------------------------------
# packing

class Plan(NamedTuple):
    rows: np.ndarray   # int64 (rows + 1,): row r holds pieces rows[r]..rows[r + 1] - 1
    start: np.ndarray  # int64 (pieces,): first token of each piece in the source's stream
    length: np.ndarray # int32 (pieces,)
    cuts: np.ndarray   # int64 (): pieces cut again, beyond those of documents longer than T

    def hash(self):
        """The sha256 of all arrays: a gigabyte, the plan of 80M documents, takes 0.6 s."""
        digest = hashlib.sha256()
        for array in self:
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def fill(self, T):
        """The share of the rows' places that hold a token."""
        return self.length.sum(dtype=np.int64) / ((len(self.rows) - 1) * T)

def _best_fit(counts, T):
    """Packs counts[l] pieces of each length l < T into rows of T places by best fit, longest first.

    -> [(n_rows, pattern)]: groups of equal rows, which have n pieces of `length` for every (length, n) in the pattern.
    """
    groups = defaultdict(list) # free places in a row: [(n_rows, pattern)]
    free_sizes = []            # the keys of the groups that are not empty, ascending
    def put(free, n_rows, pattern):
        if not groups[free]:
            insort(free_sizes, free)
        groups[free].append((n_rows, pattern))
    for length in range(T - 1, 0, -1):
        remaining = int(counts[length])
        while remaining:
            # The fullest rows that still have room for the piece, else new ones.
            i = bisect_left(free_sizes, length)
            if i < len(free_sizes):
                free = free_sizes[i]
                n_rows, pattern = groups[free].pop()
                if not groups[free]:
                    del free_sizes[i]
            else:
                free, n_rows, pattern = T, remaining, ()
            per_row = min(free // length, remaining)
            n_filled = min(n_rows, remaining // per_row)
            if pattern and n_filled < n_rows:
                put(free, n_rows - n_filled, pattern)
            put(free - per_row * length, n_filled, (*pattern, (length, per_row)))
            remaining -= n_filled * per_row
    return [group for free in sorted(groups) for group in groups[free]]

def pack(lengths, T):
    """The Plan of rows of T for documents of these lengths laid end to end; every token is in exactly one piece."""
    lengths = np.asarray(lengths)
    if not 2 <= T <= MAX_T:
        raise Refused(f"block_size {T}, expected 2..{MAX_T}")
    ends = np.cumsum(lengths, dtype=np.int64)
    # A piece of T tokens fills a row. `long`: the document of each such piece; `nth`: its number there.
    n_full = lengths // T
    long = np.repeat(np.flatnonzero(n_full), n_full[n_full > 0])
    nth = np.arange(len(long)) - np.searchsorted(long, long)
    start = [ends[long] - lengths[long] + nth * T]
    length = [np.full(len(long), T, dtype=np.int32)]
    n_pieces = [np.ones(len(long), dtype=np.int64)]
    # Remainders share rows. `document` lists the documents by remainder (uint16: a radix sort), in
    # random order where that is equal, so that neighbors of the corpus are not packed together.
    rest = (lengths - n_full * T).astype(np.uint16)
    document = np.empty(len(rest), dtype=np.int32 if len(rest) < 2**31 else np.int64)
    for first in range(0, len(rest), 2**16): # in chunks, whose temporaries are small
        chunk = np.arange(first, min(first + 2**16, len(rest)))
        document[chunk] = permute(chunk, len(rest), 'pack')
    document = document[np.argsort(rest[document], kind='stable')]
    counts = np.bincount(rest, minlength=T)
    taken = np.cumsum(counts) - counts # by length: the next index into `document`
    for n_rows, pattern in _best_fit(counts, T):
        columns = []
        for size, per_row in pattern:
            n = n_rows * per_row
            columns.append(document[taken[size]:taken[size] + n].reshape(n_rows, per_row))
            taken[size] += n
        row_lengths = np.repeat(*np.array(pattern, dtype=np.int32).T)
        start.append((ends[np.concatenate(columns, axis=1)] - row_lengths).reshape(-1))
        length.append(np.tile(row_lengths, n_rows))
        n_pieces.append(np.full(n_rows, len(row_lengths)))
    rows = np.concatenate([[0], np.cumsum(np.concatenate(n_pieces))])
    return _cut_to_fill(rows, np.concatenate(start), np.concatenate(length), T)

def _cut_to_fill(rows, start, length, T):
    """The Plan of these rows; where they are filled less than FILL, the emptiest are cut up to fill the others."""
    tokens_in = np.add.reduceat(length, rows[:-1], dtype=np.int64) # (rows,)
    n_tokens = tokens_in.sum()
    n_emptied = len(tokens_in) - max(-(-n_tokens // T), int(n_tokens / (FILL * T)))
    if n_emptied <= 0:
        return Plan(rows, start, length, np.int64(0))
    rows_by_fill = np.argsort(tokens_in, kind='stable')
    is_emptied = np.zeros(len(tokens_in), dtype=bool)
    is_emptied[rows_by_fill[:n_emptied]] = True
    row = np.repeat(np.arange(len(tokens_in)), np.diff(rows)) # (pieces,)
    stays = ~is_emptied[row]
    # Lay the emptied rows' tokens end to end and pour them into the free places of the other rows,
    # the emptiest row first. The stream is cut wherever a piece ends or a row is full.
    poured = length[~stays]
    stream_ends = np.cumsum(poured, dtype=np.int64)
    filled_rows = rows_by_fill[n_emptied:]
    free_ends = np.minimum(np.cumsum(T - tokens_in[filled_rows]), stream_ends[-1])
    new_ends = np.union1d(stream_ends, free_ends[free_ends > 0])
    new_begins = np.concatenate([[0], new_ends[:-1]])
    new_row = filled_rows[np.searchsorted(free_ends, new_begins, 'right')]
    old_piece = np.searchsorted(stream_ends, new_begins, 'right')
    new_start = start[~stays][old_piece] + new_begins - (stream_ends - poured)[old_piece]
    # Sort the pieces by row, those that stay in a row before those poured into it.
    row = np.concatenate([row[stays], new_row])
    order = np.argsort(row, kind='stable')
    n_pieces = np.bincount(row, minlength=len(tokens_in))[~is_emptied]
    rows = np.concatenate([[0], np.cumsum(n_pieces)])
    start = np.concatenate([start[stays], new_start])[order]
    length = np.concatenate([length[stays], (new_ends - new_begins).astype(np.int32)])[order]
    return Plan(rows, start, length, np.int64(len(new_ends) - len(poured)))

# --------------------------------------------------------------------------------------------------
# order

def permute(i, n, *key):
    """The images of i, an array of numbers in 0..n-1, under a permutation of 0..n-1 drawn by `key`.

    A 4-round Feistel cipher, applied again until the result is below n: no table, and the same on every machine.
    """
    half = np.uint64(max(3, (n.bit_length() + 1) // 2)) # bits; the cipher permutes 2^(2 half) >= n numbers
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.frombuffer(hashlib.sha256(repr(key).encode()).digest(), dtype='<u8')
    x = np.array(i, dtype=np.uint64)
    walking = np.ones(x.shape, dtype=bool)
    while walking.any():
        high = x[walking] >> half
        low = x[walking] & mask
        for k in keys:
            mixed = (low ^ k) * np.uint64(0x9E3779B97F4A7C15) # multiplication wraps mod 2^64
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            high, low = low, high ^ (mixed >> (np.uint64(64) - half))
        x[walking] = (high << half) | low
        walking[walking] = x[walking] >= n
    return x.astype(np.int64)

def _schedule(weights):
    """The source of each row of one period (P,), and how many rows of each source come before it (P + 1, sources).

    The period is the shortest that meets the weights exactly, at most PERIOD rows, where shares are
    rounded. Each row goes to the earliest deadline among the sources that are not ahead: each stays
    within a row of its share.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    rows_in = np.outer(np.arange(1, PERIOD + 1), share) # (period, source)
    is_exact = np.abs(rows_in - np.rint(rows_in)).max(1) < 1e-6
    period = int(is_exact.argmax()) + 1 if is_exact.any() else PERIOD
    quota = np.floor(share * period + 1e-6).astype(int)
    by_remainder = np.argsort(quota - share * period, kind='stable')
    quota[by_remainder[:period - quota.sum()]] += 1
    if quota.min() < 1:
        raise Refused(f"weights {tuple(weights)}: a share below 1/{PERIOD} is too small, leave the source out")
    order = []
    rows_before = [np.zeros_like(quota)]
    for t in range(period):
        n = rows_before[t]
        deadline = -(-(n + 1) * period // quota)
        is_ahead = n * period >= quota * (t + 1)
        order.append(np.where(is_ahead, period + 1, deadline).argmin())
        rows_before.append(n + (np.arange(len(n)) == order[t]))
    return np.array(order), np.array(rows_before)

class Loader:
    """Rows of several sources, mixed by weight. Row g is a pure function of (seed, g), so
    any number of ranks can share the rows.

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
        self.n_rows = np.array([len(plan.rows) - 1 for plan in self.plans]) # of an epoch of each source
        self.order, self.rows_before = _schedule(weights)
        self.identity = {'block_size': T, 'seed': seed, 'weights': [float(w) for w in weights],
                         'sources': [source.hash for source in sources], 'rows': self.n_rows.tolist(),
                         'plans': [plan.hash() for plan in self.plans]}

    def locate(self, g):
        """(source, epoch, row of its plan) of global rows g, each int64 like g."""
        cycle, place = np.divmod(np.asarray(g, dtype=np.int64), len(self.order))
        source = self.order[place]
        rows_before = cycle * self.rows_before[-1][source] + self.rows_before[place, source]
        epoch, step = np.divmod(rows_before, self.n_rows[source])
        row = np.empty_like(step)
        for s, e in set(zip(source.tolist(), epoch.tolist())):
            same = (source == s) & (epoch == e)
            row[same] = permute(step[same], int(self.n_rows[s]), self.seed, s, e)
        return source, epoch, row

    def rows(self, first, count):
        """tokens int64, doc_start int32, targets int64 (count, T) each, and source int64 (count,), from row `first`."""
        source, _, row = self.locate(np.arange(first, first + count))
        tokens = np.zeros((count, self.T), dtype=np.int64)
        begins = np.ones((count, self.T), dtype=bool) # does a piece begin here? empty places count as pieces
        for i in range(count):
            self._fill(self.sources[source[i]], self.plans[source[i]], row[i], tokens[i], begins[i])
        vocab_size = self.sources[0].vocab.size
        if tokens.max() >= vocab_size: # before a GPU fails on an id without an embedding
            i = (tokens.max(1) >= vocab_size).argmax()
            raise Refused(f"{self.sources[source[i]].name}: id {tokens[i].max()}, the vocabulary has {vocab_size}; "
                          "a shard was changed after it was written")
        doc_start = np.maximum.accumulate(begins * np.arange(self.T, dtype=np.int32), axis=1)
        targets = np.full_like(tokens, IGNORE)
        np.copyto(targets[:, :-1], tokens[:, 1:], where=~begins[:, 1:])
        return tokens, doc_start, targets, source

    @staticmethod
    def _fill(source, plan, r, tokens, begins):
        """Writes row r of a plan into tokens (T,), and False into begins (T,) inside its pieces."""
        pieces = slice(plan.rows[r], plan.rows[r + 1])
        start = plan.start[pieces]
        shard = np.searchsorted(source.first, start, 'right') - 1
        offset = start - source.first[shard]
        t = 0
        for s, a, n in zip(shard.tolist(), offset.tolist(), plan.length[pieces].tolist()):
            tokens[t:t + n] = source.shards[s].tokens[a:a + n]
            begins[t + 1:t + n] = False
            t += n
