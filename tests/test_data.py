"""Shards against plain lists, packing and rows against naive loops, the mixture against its definition; each fault."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import data
from configurator import Refused
from data import HEADER, Loader, Shards, ShardWriter, _schedule, pack, permute
from files import write_json
from vocab import Vocab

JOINT = Vocab('joint', n_text=300, n_units=50, tokenizer='tok', units='km')
BIG = Vocab('joint', n_text=70_000, n_units=50, tokenizer='tok', units='km')
HANG = 900 # seconds after which a process is taken to hang; a busy machine must not fail a test
PATHS = f'{os.getcwd()}:{Path(__file__).parent}' # of the modules, for a process of its own

def make_documents(n, vocab=JOINT, mean=40, seed=0):
    """Documents of log-normal lengths whose ids are random."""
    rng = np.random.default_rng(seed)
    lengths = np.rint(rng.lognormal(np.log(mean) - 0.18, 0.6, n)).astype(int)
    lengths = np.maximum(1, lengths)
    return [rng.integers(0, vocab.size, length) for length in lengths]

def write(folder, documents, vocab=JOINT, batch=7, **kwargs):
    """Writes documents, `batch` of them at a time, and opens the folder."""
    with ShardWriter(folder, 'text', vocab, **kwargs) as writer:
        for i in range(0, len(documents), batch):
            part = documents[i:i + batch]
            lengths = [len(document) for document in part]
            writer.add(np.concatenate(part), lengths)
    return Shards(folder, vocab)

def contents(folder):
    """{name: bytes} of a folder's files."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}

def run_python(code, *args):
    """Runs code in a process of its own, which can import this file and all modules."""
    environment = {**os.environ, 'PYTHONPATH': PATHS}
    command = [sys.executable, '-c', code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, env=environment)

# --------------------------------------------------------------------------------------------------
# shards

@pytest.mark.parametrize('vocab, width', [(JOINT, 2), (BIG, 4), (Vocab('text', 65536), 2), (Vocab('text', 65537), 4)])
def test_what_is_written_is_read_with_no_id_wrapped(tmp_path, vocab, width):
    documents = [*make_documents(50, vocab), np.array([0, vocab.size - 1])]
    lengths = [len(document) for document in documents]
    shards = write(tmp_path, documents, vocab, shard_tokens=500)
    assert shards.shards[0].tokens.itemsize == width
    assert len(shards.shards) > 3
    for i, document in enumerate(documents):
        assert shards.read(i).tolist() == document.tolist()
    assert shards.documents == len(documents)
    assert shards.tokens == sum(lengths)
    assert shards.lengths.tolist() == lengths
    assert shards.verify().tolist() == lengths

def test_the_file_is_laid_out_as_documented(tmp_path):
    write(tmp_path, [np.array([1, 2, 3]), np.array([4, 5])])
    raw = (tmp_path / 'text_000000.bin').read_bytes()
    assert len(raw) == 64 + 16 + 16 # the header, five uint16 padded to 16 bytes, two ends
    assert raw[:8] == b'slmtoken'
    assert np.frombuffer(raw[8:16], '<u4').tolist() == [1, 2] # version, bytes per token
    assert np.frombuffer(raw[16:32], '<u8').tolist() == [5, 2] # tokens, documents
    assert raw[32:40].hex() == JOINT.hash()
    assert np.frombuffer(raw[64:74], '<u2').tolist() == [1, 2, 3, 4, 5]
    assert np.frombuffer(raw[80:], '<i8').tolist() == [3, 5]

def test_shards_end_at_documents_and_do_not_depend_on_batches(tmp_path):
    longer_than_a_shard = np.arange(300)
    documents = [*make_documents(30), longer_than_a_shard, *make_documents(30, seed=1), longer_than_a_shard]
    for batch in (1, 7, len(documents)):
        shards = write(tmp_path / str(batch), documents, batch=batch, shard_tokens=200)
        for shard in shards.shards:
            assert shard.entry['tokens'] <= 200 or shard.entry['documents'] == 1
        assert contents(tmp_path / str(batch)) == contents(tmp_path / '1')

def test_the_index_counts_each_modality(tmp_path):
    documents = make_documents(30)
    write(tmp_path, documents, record={'seed': 3})
    index = json.loads((tmp_path / 'index.json').read_text())
    tokens = np.concatenate(documents)
    assert index['text'] == (tokens < 300).sum()
    assert index['units'] == ((tokens >= 300) & (tokens < 350)).sum()
    assert index['separators'] == (tokens >= 350).sum()
    assert index['record'] == {'seed': 3}
    assert index['shards'][0]['max_id'] == tokens.max()

@pytest.mark.parametrize('tokens, lengths, message', [
    ([1, 2, 352], [1, 2], 'id 352 in document 1 of the batch, expected 0..351'),
    ([1, -1], [1, 1], 'id -1 in document 1'),
    ([70_000], [1], 'id 70000 in document 0'),
    ([1, 2, 3], [2], '3 tokens for documents of 2'),
    ([1, 2], [2, 0], '1 of them empty'),
    ([1], [], '1 tokens for documents of 0'),
])
def test_the_writer_refuses_before_casting(tmp_path, tokens, lengths, message):
    with pytest.raises(Refused, match=message), ShardWriter(tmp_path, 'text', JOINT) as writer:
        writer.add(np.array(tokens, dtype=np.int64), np.array(lengths, dtype=np.int64))
    assert contents(tmp_path) == {} # nothing a reader could take for data

KILLED = """
import os, signal, sys
from test_data import JOINT, ShardWriter, make_documents
writer = ShardWriter(sys.argv[1], 'text', JOINT, shard_tokens=200)
for i, document in enumerate(make_documents(60)):
    if i == 41:
        os.kill(os.getpid(), signal.SIGKILL)
    writer.add(document, [len(document)])
"""

def test_a_killed_writer_leaves_nothing_readable_and_the_same_command_gives_the_same_bytes(tmp_path):
    killed = run_python(KILLED, tmp_path / 'a')
    assert killed.returncode == -signal.SIGKILL
    names = contents(tmp_path / 'a')
    assert any(name.endswith('.bin') for name in names) # some shards were finished
    assert any(name.endswith('.tmp') for name in names) # and one was not
    with pytest.raises(Refused, match='index.json: missing; not a token folder, or its writer was stopped'):
        Shards(tmp_path / 'a', JOINT)
    for size in (200, 2000): # the second gives fewer shards, so older ones must be deleted
        (tmp_path / 'a' / 'index.json').unlink(missing_ok=True) # as if the writer was killed before it
        write(tmp_path / 'a', make_documents(60), shard_tokens=size)
        write(tmp_path / f'b{size}', make_documents(60), shard_tokens=size)
        assert contents(tmp_path / 'a') == contents(tmp_path / f'b{size}')

SECOND = """
import sys
from test_data import JOINT, ShardWriter
ShardWriter(sys.argv[1], 'text', JOINT)
"""

def test_a_complete_folder_and_a_second_writer_are_refused(tmp_path): # B12
    first = ShardWriter(tmp_path / 'a', 'text', JOINT)
    second = run_python(SECOND, tmp_path / 'a')
    assert 'another process is writing here' in second.stderr
    first.add(np.arange(9), [9])
    first.close()
    before = contents(tmp_path / 'a')
    with pytest.raises(Refused, match='already complete .has index.json.; remove the folder'):
        ShardWriter(tmp_path / 'a', 'text', JOINT)
    assert contents(tmp_path / 'a') == before

# --------------------------------------------------------------------------------------------------
# faults: reliability catalogue B1-B11

# Each function gives one that spoils a folder.

def shard_bytes(start, stop, new):
    """Puts new bytes in place of [start:stop] of the shard."""
    def spoil(folder):
        raw = bytearray((folder / 'text_000000.bin').read_bytes())
        raw[start:stop] = new
        (folder / 'text_000000.bin').write_bytes(raw)
    return spoil

def header(**new):
    """Other values in the shard's header."""
    def spoil(folder):
        names = ('magic', 'version', 'width', 'tokens', 'documents', 'vocab')
        raw = (folder / 'text_000000.bin').read_bytes()[:HEADER.size]
        fields = dict(zip(names, HEADER.unpack(raw))) | new
        shard_bytes(0, HEADER.size, HEADER.pack(*fields.values()))(folder)
    return spoil

def changed_index(change):
    """index.json after change(its object)."""
    def spoil(folder):
        index = json.loads((folder / 'index.json').read_text())
        change(index)
        (folder / 'index.json').write_text(json.dumps(index))
    return spoil

def index(**new):
    """Other values in index.json."""
    return changed_index(lambda index: index.update(new))

def entry(**new):
    """Other values in the shard's entry in index.json."""
    return changed_index(lambda index: index['shards'][0].update(new))

def without(name):
    return lambda folder: (folder / name).unlink()

def index_text(text):
    return lambda folder: (folder / 'index.json').write_text(text)

END = sys.maxsize
NO_SHARDS = index(shards=[], tokens=0, documents=0, text=0, units=0, separators=0)
FAULTS = {
    'B1 truncated, even':  (shard_bytes(-2, END, b''), r'text_000000.bin: bytes \d+, expected \d+'),
    'B1 truncated, odd':   (shard_bytes(-3, END, b''), r'text_000000.bin: bytes \d+, expected \d+'),
    'B1 grown':            (shard_bytes(END, END, b'x'), r'text_000000.bin: bytes \d+, expected \d+'),
    'B1 less than header': (shard_bytes(20, END, b''), r'20 bytes, expected at least the header.s 64'),
    'wrong magic':         (shard_bytes(0, 4, b'RIFF'), "magic b'RIFFoken', expected b'slmtoken'"),
    'last end':            (shard_bytes(-8, END, bytes(8)), 'documents end at 0, expected'),
    'missing shard':       (without('text_000000.bin'), 'bin: missing, index.json lists it'),
    'future version':      (header(version=2), 'version 2, expected 1'),
    'B4 wrong dtype':      (header(width=4), 'bytes per token 4, expected 2'),
    'B8 vocabulary':       (header(vocab=b'another!'), 'vocabulary 616e6f7468657221, expected'),
    'B9 header count':     (header(tokens=10), r'tokens 10, expected \d+'),
    'B9 shard count':      (entry(tokens=1), r'says \d+ tokens, its shards sum to 1'),
    'B9 total count':      (index(documents=7), 'says 7 documents, its shards sum to 40'),
    'B9 modality count':   (index(text=7), 'tokens, by modality 7 '),
    'B9 no sha256':        (changed_index(lambda index: index['shards'][0].pop('sha256')), 'with max_id and sha256'),
    'B9 no index':         (without('index.json'), 'index.json: missing'),
    'B9 not JSON':         (index_text('{"version": 2, '), 'index.json: not JSON'),
    'B9 a list':           (index_text('[]'), 'index.json: expected a JSON object'),
    'B9 another object':   (index_text('{"weight_map": {}}'), 'index.json: corrupt, expected what ShardWriter writes'),
    'B5 max id':           (entry(max_id=352), 'id 352, the vocabulary has 352'),
    'outside the folder':  (entry(file='../x.bin'), 'plain file name'),
    'no shards':           (NO_SHARDS, ': no documents'),
}

@pytest.mark.parametrize('fault', FAULTS)
def test_each_fault_is_refused_at_open_and_named(tmp_path, fault):
    write(tmp_path, make_documents(40))
    spoil, message = FAULTS[fault]
    spoil(tmp_path)
    for _ in range(2): # B2: on each open, not only the first
        with pytest.raises(Refused, match=message) as refusal:
            Shards(tmp_path, JOINT)
        assert str(tmp_path) in str(refusal.value)
        assert '\n' not in str(refusal.value)

def test_the_first_version_of_the_index_is_read(tmp_path):
    write(tmp_path, make_documents(40))
    changed_index(lambda index: index.update(version=1, other=index.pop('separators')))(tmp_path)
    assert Shards(tmp_path, JOINT).documents == 40

def test_a_missing_folder_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(Refused, match='nowhere: no such folder'):
        Shards(tmp_path / 'nowhere', JOINT)
    with pytest.raises(Refused, match='index.json: missing'):
        Shards(tmp_path, JOINT)
    with pytest.raises(Refused, match='no token folders given'):
        Shards([], JOINT)
    (tmp_path / 'file').write_text('x')
    with pytest.raises(Refused, match='is a file, expected a folder'):
        ShardWriter(tmp_path / 'file', 'text', JOINT)

def test_an_empty_shard_is_skipped_with_a_notice(tmp_path, capsys): # B3
    write(tmp_path, make_documents(40))
    empty_header = HEADER.pack(b'slmtoken', 1, 2, 0, 0, bytes.fromhex(JOINT.hash()))
    (tmp_path / 'text_000001.bin').write_bytes(empty_header)
    empty_entry = {'file': 'text_000001.bin', 'tokens': 0, 'documents': 0, 'max_id': 0, 'sha256': ''}
    changed_index(lambda index: index['shards'].append(empty_entry))(tmp_path)
    assert Shards(tmp_path, JOINT).documents == 40
    assert 'text_000001.bin: no documents, skipped' in capsys.readouterr().out

def test_a_model_refuses_ids_of_another_vocabulary(tmp_path): # B5, B8
    shards = write(tmp_path / 'joint', make_documents(40))
    text = Vocab('text', n_text=300, tokenizer='tok')
    write(tmp_path / 'text', [document % 300 for document in make_documents(9)], text)
    assert Shards([tmp_path / 'joint', tmp_path / 'text'], JOINT).documents == 49 # text ids mean the same in both
    for foreign in (text, BIG, Vocab('joint', 300, 50, 'tok', 'other units'), Vocab('speech', n_units=350)):
        with pytest.raises(Refused, match='written in .*, expected'):
            Shards(tmp_path / 'joint', foreign)
    with pytest.raises(Refused, match='opened for'):
        Loader([shards, Shards(tmp_path / 'text', text)], None, 64, 0)

def test_changed_content_of_the_same_size_is_found(tmp_path): # B10, B5
    shards = write(tmp_path, make_documents(40))
    old = (tmp_path / 'text_000000.bin').read_bytes()[70]
    shard_bytes(70, 71, bytes([old ^ 1]))(tmp_path)
    with pytest.raises(Refused, match='text_000000.bin was changed: sha256 [0-9a-f]{64}, index.json says'):
        Shards(tmp_path, JOINT).verify()
    shard_bytes(70, 72, b'\xff\xff')(tmp_path)
    with pytest.raises(Refused, match='text_000000.bin was changed: sha256'):
        shards.verify()
    loader = Loader([shards], None, 64, 0)
    with pytest.raises(Refused, match=f'{tmp_path}: id 65535, the vocabulary has 352'): # and never reaches a GPU
        loader.rows(0, int(loader.n_rows[0]))

def test_ends_that_run_backwards_are_found(tmp_path):
    write(tmp_path, [np.arange(5), np.arange(5), np.arange(5)])
    shard_bytes(-24, END, np.array([8, 5, 15], '<i8').tobytes())(tmp_path)
    os.utime(tmp_path / 'text_000000.bin', (1, 1)) # a newer file is read and refused for its hash
    with pytest.raises(Refused, match='text_000000.bin: document 1 has -3 tokens'):
        Shards(tmp_path, JOINT).plan(4)

@pytest.mark.parametrize('weights, message', [
    ([1, 0], r'weights \(1, 0\), expected each above 0'),
    ([2, -1], 'expected each above 0'),
    ([0, 0], 'expected each above 0'),
    ([float('nan'), 1], 'expected each above 0'),
    ([1], '1 weights for 2 sources'),
    ([1, 1e-9], 'a share below 1/10000 is too small, leave the source out'),
])
def test_weights_that_are_no_shares_are_refused(tmp_path, weights, message): # B11
    shards = write(tmp_path, make_documents(40))
    with pytest.raises(Refused, match=message):
        Loader([shards, shards], weights, 64, 0)

def test_a_source_shorter_than_a_row_is_refused_with_both_lengths(tmp_path): # B7
    shards = write(tmp_path, [np.arange(60), np.arange(39)])
    Loader([shards], None, 99, 0)
    with pytest.raises(Refused, match=f'{tmp_path}: 99 tokens, fewer than one row of 100'):
        Loader([shards], None, 100, 0)
    for T in (1, 0, -5, 65536):
        with pytest.raises(Refused, match=f'block_size {T}, expected 2..65535|fewer than one row'):
            Loader([shards], None, T, 0)
    with pytest.raises(Refused, match='0 weights for 0 sources'):
        Loader([], None, 64, 0)

# --------------------------------------------------------------------------------------------------
# packing

def log_normal(n, mean, sigma=0.6, seed=0):
    lengths = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, n)
    return np.maximum(1, np.rint(lengths)).astype(np.int64)

def check_plan(lengths, plan, T):
    """Every token in exactly one piece, no piece over a document's edge, no row over T: by a plain loop."""
    document = np.repeat(np.arange(len(lengths)), lengths)
    seen = np.zeros(lengths.sum(), dtype=int)
    for r in range(len(plan.rows) - 1):
        n_tokens = 0
        assert plan.rows[r] < plan.rows[r + 1], "an empty row"
        for p in range(plan.rows[r], plan.rows[r + 1]):
            start = plan.start[p]
            length = plan.length[p]
            assert length > 0
            assert document[start] == document[start + length - 1]
            seen[start:start + length] += 1
            n_tokens += length
        assert n_tokens <= T
    assert (seen == 1).all()
    without_cuts = (-(-lengths // T)).sum()
    assert len(plan.start) == without_cuts + plan.cuts

@pytest.mark.parametrize('mean, T', [(120, 512), (300, 512), (120, 2048), (300, 2048), (20, 512), (900, 512)])
def test_rows_hold_every_token_once_and_are_full(mean, T):
    lengths = log_normal(20_000, mean)
    plan = pack(lengths, T)
    check_plan(lengths, plan, T)
    assert plan.fill(T) >= 0.995, f"{plan.fill(T):.4f}"
    assert plan.cuts <= 0.01 * len(lengths), f"{plan.cuts} pieces cut"
    n_places = T * (len(plan.rows) - 1)
    assert abs(plan.fill(T) - lengths.sum() / n_places) < 1e-12

@pytest.mark.parametrize('lengths', [
    np.full(1000, 300), np.random.default_rng(0).integers(260, 400, 3000), np.full(7, 512), np.full(3, 1),
    np.array([1]), np.array([1536]), np.array([5000, 1, 2]), np.full(999, 257), np.arange(1, 600), np.full(50, 511)])
def test_lengths_that_do_not_fit_together_are_cut_and_counted(lengths):
    plan = pack(lengths, 512)
    check_plan(lengths, plan, 512)
    n_rows = len(plan.rows) - 1
    least = -(-lengths.sum() // 512)
    assert n_rows <= max(least, lengths.sum() / (0.995 * 512)), f"{n_rows} rows, {least} would do"

@pytest.mark.parametrize('seed', range(20))
def test_random_small_sets_are_packed_whole(seed):
    rng = np.random.default_rng(seed)
    T = int(rng.integers(2, 40))
    longest = rng.integers(2, 100)
    lengths = rng.integers(1, longest, rng.integers(1, 200))
    check_plan(lengths, pack(lengths, T), T)

def test_pieces_are_not_cut_where_best_fit_fills_the_rows():
    lengths = log_normal(20_000, 100)
    plan = pack(lengths, 2048)
    assert plan.cuts == 0
    assert len(plan.start) == len(lengths)

def test_neighbors_of_the_corpus_do_not_share_rows():
    lengths = log_normal(20_000, 120)
    plan = pack(lengths, 512)
    document = np.searchsorted(np.cumsum(lengths), plan.start, 'right')
    row = np.repeat(np.arange(len(plan.rows) - 1), np.diff(plan.rows))
    distance = np.abs(np.diff(document))
    in_one_row = distance[row[1:] == row[:-1]]
    assert 0.9 < np.median(in_one_row) / (0.293 * 20_000) < 1.1 # the median distance of two random documents is 0.293 n

def test_the_plan_is_cached_and_made_anew_for_other_shards(tmp_path, monkeypatch):
    shards = write(tmp_path / 'a', make_documents(200))
    fresh = shards.plan(128)
    calls = []
    def counted(*args):
        calls.append(args)
        return pack(*args)
    monkeypatch.setattr(data, 'pack', counted)
    cached = Shards(tmp_path / 'a', JOINT).plan(128)
    assert not calls
    for name in fresh._fields:
        assert (getattr(fresh, name) == getattr(cached, name)).all()
    assert not cached.start.flags.writeable # mapped
    shards.plan(64)
    assert len(calls) == 1 # another T
    write(tmp_path / 'b', make_documents(100, seed=1))
    both = Shards([tmp_path / 'a', tmp_path / 'b'], JOINT)
    check_plan(both.lengths, both.plan(128), 128)
    assert len(calls) == 2 # other shards
    folder = next((tmp_path / 'a').glob('plan_T64_*'))
    (folder / 'start.npy').write_bytes(b'x')
    with pytest.raises(Refused, match='plan_T64_.*damaged plan, remove it'):
        shards.plan(64)

def test_a_plan_that_cannot_be_written_is_packed_again(tmp_path, monkeypatch, capsys):
    shards = write(tmp_path, make_documents(200))
    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(data.np, 'save', full)
    check_plan(shards.lengths, shards.plan(64), 64)
    printed = capsys.readouterr().out
    assert 'not written, so that each start packs again (' in printed and 'No space left on device' in printed
    assert not list(tmp_path.glob('plan_*'))

# --------------------------------------------------------------------------------------------------
# rows

@pytest.fixture
def sources(tmp_path):
    """Three sources of different sizes; the second is two folders, and ids tell document and place."""
    speech = write(tmp_path / 's', make_documents(300, mean=60, seed=1), shard_tokens=2000)
    write(tmp_path / 't1', make_documents(80, seed=2))
    write(tmp_path / 't2', make_documents(60, seed=3))
    text = Shards([tmp_path / 't1', tmp_path / 't2'], JOINT)
    interleaved = write(tmp_path / 'i', make_documents(400, mean=90, seed=4), shard_tokens=3000)
    return [speech, text, interleaved]

def naive_row(source, plan, r, T):
    """tokens, doc_start and targets of a row as lists, from the definition."""
    stream = np.concatenate([source.read(i) for i in range(source.documents)])
    tokens, doc_start, targets = [], [], []
    for p in range(plan.rows[r], plan.rows[r + 1]):
        piece = stream[plan.start[p]:plan.start[p] + plan.length[p]].tolist()
        doc_start += [len(tokens)] * len(piece)
        targets += piece[1:] + [-100]
        tokens += piece
    tail = T - len(tokens)
    doc_start += range(len(tokens), T)
    return tokens + [0] * tail, doc_start, targets + [-100] * tail

def test_rows_are_those_of_a_naive_loop(sources):
    loader = Loader(sources, None, 128, seed=3)
    tokens, doc_start, targets, source = loader.rows(5, 60)
    assert (tokens.dtype, doc_start.dtype, targets.dtype) == (np.int64, np.int32, np.int64)
    located, _, row = loader.locate(np.arange(5, 65))
    assert (located == source).all()
    for i in range(60):
        expected = naive_row(sources[source[i]], loader.plans[source[i]], row[i], 128)
        assert (tokens[i].tolist(), doc_start[i].tolist(), targets[i].tolist()) == expected, f"row {5 + i}"

def test_every_document_piece_is_seen_once_an_epoch(sources):
    loader = Loader(sources[:1], None, 256, seed=3)
    assert int(loader.plans[0].cuts) == 0
    expected = []
    for document in map(sources[0].read, range(300)):
        expected += [tuple(document[i:i + 256]) for i in range(0, len(document), 256)]
    n_rows = int(loader.n_rows[0])
    for epoch in range(2):
        tokens, doc_start, _, _ = loader.rows(epoch * n_rows, n_rows)
        pieces = []
        for i, row in enumerate(tokens):
            for begin in np.unique(doc_start[i]):
                pieces.append(tuple(row[doc_start[i] == begin]))
        padding = pieces.count((0,)) - expected.count((0,)) # each place of a row's tail looks like a piece of id 0
        assert sorted(pieces) == sorted(expected + [(0,)] * padding)

def test_rows_do_not_depend_on_how_they_are_asked_for(sources):
    at_once = Loader(sources, (5, 3, 2), 128, seed=1).rows(40, 24)
    for world in (1, 2, 3, 8):
        n = 24 // world
        parts = []
        for rank in range(world): # each takes its slice, from a loader of its own
            loader = Loader(sources, (5, 3, 2), 128, seed=1)
            parts.append(loader.rows(40 + rank * n, n))
        for array, arrays in zip(at_once, zip(*parts)):
            assert (array == np.concatenate(arrays)).all()

def test_an_epoch_visits_each_row_once_and_the_next_in_another_order(sources):
    loader = Loader(sources, None, 128, seed=0)
    source, epoch, row = loader.locate(np.arange(2000))
    for s, n in enumerate(loader.n_rows):
        rows = row[source == s]
        epochs = epoch[source == s]
        for e in range(len(rows) // n):
            in_epoch = slice(e * n, (e + 1) * n)
            assert sorted(rows[in_epoch]) == list(range(n)), f"source {s}, epoch {e}"
            assert (epochs[in_epoch] == e).all()
        assert rows[:n].tolist() != rows[n:2 * n].tolist()
    _, _, row_of_seed_1 = Loader(sources, None, 128, seed=1).locate(np.arange(2000))
    assert (row_of_seed_1 != row).mean() > 0.9

@pytest.mark.parametrize('weights', [(1,), (1, 1, 1), (0.5, 0.3, 0.2), (7, 2, 1, 1, 13), (1, 100),
                                     (0.1, 0.7, 0.123456), (2**.5, 3.14159, 1)])
def test_any_window_of_rows_is_balanced(weights):
    order, rows_before = _schedule(weights)
    share = np.array(weights) / sum(weights)
    three_periods = np.tile(order, 3)
    counts = np.cumsum(np.eye(len(weights), dtype=int)[three_periods], axis=0)
    ahead = counts - share * np.arange(1, len(counts) + 1)[:, None]
    rounding = len(counts) * 1e-4 if len(order) == 10_000 else 0 # of shares that no period meets exactly
    assert np.abs(ahead).max() < 1 + rounding, f"{np.abs(ahead).max()} rows off"
    assert (rows_before[1:] == counts[:len(order)]).all()

def test_equal_weights_take_turns_and_decimal_weights_are_met_exactly():
    assert _schedule([1, 1, 1])[0].tolist() == [0, 1, 2]
    _, rows_before = _schedule([0.5, 0.3, 0.2])
    assert rows_before[-1].tolist() == [5, 3, 2]

@pytest.mark.parametrize('n', [1, 2, 3, 63, 64, 65, 1000, 4097])
def test_permute_is_a_permutation_that_the_key_draws(n):
    numbers = np.arange(n)
    orders = np.stack([permute(numbers, n, seed, 'x') for seed in range(200)])
    assert (np.sort(orders, axis=1) == numbers).all()
    assert permute(numbers[n // 2:], n, 0, 'x').tolist() == orders[0, n // 2:].tolist() # does not depend on the others
    if n >= 63: # uniform: the image of a place, and of its neighbor, is anywhere
        for place in (0, 1, n - 1):
            image = orders[:, place] / n
            assert abs(image.mean() - 0.5) < 5 * (1 / 12 / 200)**.5
            assert 0.2 < image.std() < 0.37
        assert abs(np.corrcoef(orders[:, 0], orders[:, 1])[0, 1]) < 0.3

def test_permute_is_the_same_on_every_machine_and_version():
    assert permute(np.arange(10), 10, 0, 1, 2).tolist() == [6, 0, 8, 5, 3, 2, 9, 4, 7, 1] # else resumed runs change

def test_a_resumed_run_can_tell_other_data(sources, tmp_path):
    identity = Loader(sources, None, 128, 0).identity
    assert identity == Loader(sources, (2, 2, 2), 128, 0).identity | {'weights': [1.0, 1.0, 1.0]}
    assert json.loads(json.dumps(identity)) == identity
    foreign = write(tmp_path / 'foreign', make_documents(300, mean=60, seed=9), shard_tokens=2000)
    for changed in (Loader(sources, None, 64, 0), Loader(sources, None, 128, 1), Loader(sources, (2, 1, 1), 128, 0),
                    Loader([foreign, *sources[1:]], None, 128, 0)):
        assert changed.identity != identity

# --------------------------------------------------------------------------------------------------
# corpora/table.py

def table(*args):
    """Runs python -m corpora.table."""
    command = [sys.executable, '-m', 'corpora.table', *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG)

@pytest.mark.slow
def test_the_table_shows_each_folder(tmp_path):
    write(tmp_path / 'train' / 'speech', [np.arange(300, 350)] * 20)
    write(tmp_path / 'val' / 'text', [np.arange(7)] * 3 + [np.arange(100)] * 4)
    ShardWriter(tmp_path / 'val' / 'speech', 'speech', JOINT).close() # no document went to this split
    lines = table(f'--data={tmp_path}', '--block_size=100', '--verify').stdout.splitlines()
    assert f"| {tmp_path}/train/speech | 20 | 1,000 | 50.0 | 32 █ 63 | 0.0% | 100.0% | 0.0% | 100.00% | 0 |" in lines
    assert f"| {tmp_path}/val/text | 7 | 421 | 60.1 | 4 ▆   █ 127 | 100.0% | 0.0% | 0.0% | 84.20% | 0 |" in lines
    assert f"| {tmp_path}/val/speech | 0 | 0 |  |  |  |  |  |  |  |" in lines
    write_json(tmp_path / 'units/info.json', {'units_hash': 'x', 'documents': 3, 'hours': 2.0, 'runs': 140_000})
    write_json(tmp_path / 'units/words/info.json', {'units_hash': 'x', 'documents': 3, 'words': 9})
    both = table(f'--data={tmp_path}').stdout.splitlines()
    assert len(both) == 1 + 5 + 3 # the overridden setting; two lines of header and three folders; and one
    assert both[-1] == f"| {tmp_path}/units | 3 | 2.00 | 140,000 | 19.4 |"
    assert table(f'--data={tmp_path}/units').stdout.splitlines()[1:] == both[-3:]

@pytest.mark.slow
def test_the_table_refuses_a_folder_without_data():
    assert table('--data=nowhere').stderr == (
        'corpora/table.py: nowhere: no such folder, expected one of token shards (interleave.py writes them)\n')
    assert table().stderr == (
        'corpora/table.py: expected --data=DIR, a folder of token shards or of units, or one above several\n')
