"""Shards against plain lists, packing and rows against naive loops, the mixture against its definition; faults named."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configurator import Refused
from data import HEADER, Loader, Shards, ShardWriter, _schedule, pack, permute
from files import write_json
from vocab import Vocab

JOINT = Vocab('joint', n_text=300, n_units=50, tokenizer='tok', units='km')
BIG = Vocab('joint', n_text=70_000, n_units=50, tokenizer='tok', units='km')

def make_documents(n, vocab=JOINT, mean=40, seed=0):
    """Documents of log-normal lengths whose ids are random."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(1, np.rint(rng.lognormal(np.log(mean) - 0.18, 0.6, n))).astype(int)
    return [rng.integers(0, vocab.size, length) for length in lengths]

def write(folder, documents, vocab=JOINT, batch=7, **kwargs):
    with ShardWriter(folder, 'text', vocab, **kwargs) as writer:
        for i in range(0, len(documents), batch):
            part = documents[i:i + batch]
            writer.add(np.concatenate(part), [len(d) for d in part])
    return Shards(folder, vocab)

def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}

# ----------------------------------------------------------------------------------------------------------------
# shards

@pytest.mark.parametrize('vocab, width', [(JOINT, 2), (BIG, 4), (Vocab('text', 65536), 2), (Vocab('text', 65537), 4)])
def test_what_is_written_is_read_with_no_id_wrapped(tmp_path, vocab, width):
    documents = [*make_documents(50, vocab), np.array([0, vocab.size - 1])]
    shards = write(tmp_path, documents, vocab, shard_tokens=500)
    assert shards.data[0].itemsize == width and len(shards.shards) > 3
    assert [shards.read(i).tolist() for i in range(shards.documents)] == [d.tolist() for d in documents]
    assert shards.lengths.tolist() == [len(d) for d in documents] and shards.tokens == sum(map(len, documents))
    assert shards.verify().tolist() == shards.lengths.tolist()

def test_the_file_is_laid_out_as_documented(tmp_path):
    write(tmp_path, [np.array([1, 2, 3]), np.array([4, 5])])
    raw = (tmp_path / 'text_000000.bin').read_bytes()
    assert raw[:8] == b'slmtoken' and len(raw) == 64 + 16 + 16 # five uint16 padded to 16 bytes, two ends
    assert np.frombuffer(raw[8:16], '<u4').tolist() == [1, 2] and np.frombuffer(raw[16:32], '<u8').tolist() == [5, 2]
    assert raw[32:40].hex() == JOINT.hash()
    assert np.frombuffer(raw[64:74], '<u2').tolist() == [1, 2, 3, 4, 5]
    assert np.frombuffer(raw[80:], '<i8').tolist() == [3, 5]

def test_shards_end_at_documents_and_do_not_depend_on_batches(tmp_path):
    documents = make_documents(60) + [np.arange(300)] # the last is longer than a shard
    for batch in (1, 7, 61):
        shards = write(tmp_path / str(batch), documents, batch=batch, shard_tokens=200)
        assert all(e['tokens'] <= 200 or e['documents'] == 1 for _, e, *_ in shards.shards)
        assert contents(tmp_path / str(batch)) == contents(tmp_path / '1')

def test_the_index_counts_each_modality(tmp_path):
    documents = make_documents(30)
    write(tmp_path, documents, record={'seed': 3})
    index, flat = json.loads((tmp_path / 'index.json').read_text()), np.concatenate(documents)
    assert index['text'] == (flat < 300).sum() and index['separators'] == (flat >= 350).sum()
    assert index['record'] == {'seed': 3}
    assert index['units'] == ((flat >= 300) & (flat < 350)).sum() and index['shards'][0]['max_id'] == flat.max()

@pytest.mark.parametrize('tokens, lengths, message', [
    ([1, 2, 352], [1, 2], 'id 352 in document 1 of the batch, expected 0..351'),
    ([1, -1], [1, 1], 'id -1 in document 1'), ([70_000], [1], 'id 70000 in document 0'),
    ([1, 2, 3], [2], '3 tokens for documents of 2'), ([1, 2], [2, 0], '1 of them empty'),
    ([1], [], '1 tokens for documents of 0')])
def test_the_writer_refuses_before_casting(tmp_path, tokens, lengths, message):
    with pytest.raises(Refused, match=message), ShardWriter(tmp_path, 'text', JOINT) as writer:
        writer.add(np.array(tokens, dtype=np.int64), np.array(lengths, dtype=np.int64))
    assert contents(tmp_path) == {} # nothing a reader could take for data

def test_a_killed_writer_leaves_nothing_readable_and_the_same_command_gives_the_same_bytes(tmp_path):
    code = f"""
import os, signal, sys
sys.path[:0] = [{os.getcwd()!r}, {str(Path(__file__).parent)!r}]
from test_data import JOINT, ShardWriter, make_documents
writer = ShardWriter({str(tmp_path / 'a')!r}, 'text', JOINT, shard_tokens=200)
for i, d in enumerate(make_documents(60)):
    if i == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    writer.add(d, [len(d)])
"""
    killed = subprocess.run([sys.executable, '-c', code, '41'], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert any(name.endswith('.bin') for name in contents(tmp_path / 'a')) # whole shards were there, and half a one
    assert any(name.endswith('.tmp') for name in contents(tmp_path / 'a'))
    with pytest.raises(Refused, match='index.json: missing; not a token folder, or its writer was stopped'):
        Shards(tmp_path / 'a', JOINT)
    for size in (200, 2000): # the second: fewer shards, so older ones must be swept away
        (tmp_path / 'a' / 'index.json').unlink(missing_ok=True) # as if killed before it
        write(tmp_path / 'a', make_documents(60), shard_tokens=size)
        write(tmp_path / f'b{size}', make_documents(60), shard_tokens=size)
        assert contents(tmp_path / 'a') == contents(tmp_path / f'b{size}')

def test_a_complete_folder_and_a_second_writer_are_refused(tmp_path): # B12
    first = ShardWriter(tmp_path / 'a', 'text', JOINT)
    code = f"from data import *\nfrom test_data import JOINT\nShardWriter({str(tmp_path / 'a')!r}, 'text', JOINT)"
    second = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
                            env={**os.environ, 'PYTHONPATH': f'{os.getcwd()}:{Path(__file__).parent}'})
    assert 'another process is writing here' in second.stderr
    first.add(np.arange(9), [9])
    first.close()
    before = contents(tmp_path / 'a')
    with pytest.raises(Refused, match='already complete .has index.json.; remove the folder'):
        ShardWriter(tmp_path / 'a', 'text', JOINT)
    assert contents(tmp_path / 'a') == before

# ----------------------------------------------------------------------------------------------------------------
# faults: reliability catalogue B1-B11

def edit(path, change):
    path.write_bytes(change(path.read_bytes()))

def edit_header(path, **new):
    names = ('magic', 'version', 'width', 'tokens', 'documents', 'vocab')
    fields = dict(zip(names, HEADER.unpack(path.read_bytes()[:HEADER.size])), **new)
    edit(path, lambda raw: HEADER.pack(*fields.values()) + raw[HEADER.size:])

def edit_index(folder, change):
    index = json.loads((folder / 'index.json').read_text())
    change(index)
    (folder / 'index.json').write_text(json.dumps(index))

def edit_shard(change):
    return lambda folder: edit(folder / 'text_000000.bin', change)

def header(**new):
    return lambda folder: edit_header(folder / 'text_000000.bin', **new)

def index(change):
    return lambda folder: edit_index(folder, change)

NOTHING = dict(shards=[], tokens=0, documents=0, text=0, units=0, other=0)
FAULTS = {
    'B1 truncated, even':  (edit_shard(lambda b: b[:-2]), r'text_000000.bin: bytes \d+, expected \d+'),
    'B1 truncated, odd':   (edit_shard(lambda b: b[:-3]), r'text_000000.bin: bytes \d+, expected \d+'),
    'B1 grown':            (edit_shard(lambda b: b + b'x'), r'text_000000.bin: bytes \d+, expected \d+'),
    'B1 less than header': (edit_shard(lambda b: b[:20]), r'20 bytes, expected at least the header.s 64'),
    'wrong magic':         (edit_shard(lambda b: b'RIFF' + b[4:]), "magic b'RIFFoken', expected b'slmtoken'"),
    'last end':            (edit_shard(lambda b: b[:-8] + bytes(8)), 'documents end at 0, expected'),
    'missing shard':       (lambda d: (d / 'text_000000.bin').unlink(), 'bin: missing, index.json lists it'),
    'future version':      (header(version=2), 'version 2, expected 1'),
    'B4 wrong dtype':      (header(width=4), 'bytes per token 4, expected 2'),
    'B8 vocabulary':       (header(vocab=b'another!'), 'vocabulary 616e6f7468657221, expected'),
    'B9 header count':     (header(tokens=10), r'tokens 10, expected \d+'),
    'B9 shard count':      (index(lambda i: i['shards'][0].update(tokens=1)), r'says \d+ tokens, its shards sum to 1'),
    'B9 total count':      (index(lambda i: i.update(documents=7)), 'says 7 documents, its shards sum to 40'),
    'B9 modality count':   (index(lambda i: i.update(text=7)), 'tokens, by modality 7 '),
    'B9 no sha256':        (index(lambda i: i['shards'][0].pop('sha256')), 'with max_id and sha256'),
    'B9 no index':         (lambda d: (d / 'index.json').unlink(), 'index.json: missing'),
    'B9 not JSON':         (lambda d: edit(d / 'index.json', lambda b: b[:50]), 'index.json: corrupt'),
    'B9 a list':           (lambda d: (d / 'index.json').write_text('[]'), 'index.json: corrupt'),
    'B5 max id':           (index(lambda i: i['shards'][0].update(max_id=352)), 'id 352, the vocabulary has 352'),
    'outside the folder':  (index(lambda i: i['shards'][0].update(file='../x.bin')), 'plain file name'),
    'no shards':           (index(lambda i: i.update(NOTHING)), ': no documents'),
}

@pytest.mark.parametrize('fault', FAULTS)
def test_each_fault_is_refused_at_open_and_named(tmp_path, fault):
    write(tmp_path, make_documents(40))
    spoil, message = FAULTS[fault]
    spoil(tmp_path)
    for _ in range(2): # B2: on each open, not only the first
        with pytest.raises(Refused, match=message) as refusal:
            Shards(tmp_path, JOINT)
        assert str(tmp_path) in str(refusal.value) and '\n' not in str(refusal.value)

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
    documents = make_documents(40)
    write(tmp_path, documents)
    (tmp_path / 'text_000001.bin').write_bytes(HEADER.pack(b'slmtoken', 1, 2, 0, 0, bytes.fromhex(JOINT.hash())))
    edit_index(tmp_path, lambda i: i['shards'].append(
        {'file': 'text_000001.bin', 'tokens': 0, 'documents': 0, 'max_id': 0, 'sha256': ''}))
    assert Shards(tmp_path, JOINT).documents == 40
    assert 'text_000001.bin: no documents, skipped' in capsys.readouterr().out

def test_a_model_refuses_ids_of_another_vocabulary(tmp_path): # B5, B8
    shards = write(tmp_path / 'joint', make_documents(40))
    text = Vocab('text', n_text=300, tokenizer='tok')
    write(tmp_path / 'text', [d % 300 for d in make_documents(9)], text)
    assert Shards([tmp_path / 'joint', tmp_path / 'text'], JOINT).documents == 49 # text ids mean the same in both
    for other in (text, BIG, Vocab('joint', 300, 50, 'tok', 'other units'), Vocab('speech', n_units=350)):
        with pytest.raises(Refused, match='written in .*, expected'):
            Shards(tmp_path / 'joint', other)
    with pytest.raises(Refused, match='opened for'):
        Loader([shards, Shards(tmp_path / 'text', text)], None, 64, 0)

def test_changed_content_of_the_same_size_is_found(tmp_path): # B10, B5
    shards = write(tmp_path, make_documents(40))
    edit(tmp_path / 'text_000000.bin', lambda b: b[:70] + bytes([b[70] ^ 1]) + b[71:])
    with pytest.raises(Refused, match='text_000000.bin: sha256 [0-9a-f]{64}, index.json says'):
        Shards(tmp_path, JOINT).verify()
    edit(tmp_path / 'text_000000.bin', lambda b: b[:70] + b'\xff\xff' + b[72:])
    with pytest.raises(Refused, match='max_id 65535, index.json says'):
        Shards(tmp_path, JOINT).verify()
    loader = Loader([shards], None, 64, 0)
    with pytest.raises(Refused, match=f'{tmp_path}: id 65535, the vocabulary has 352'): # and never reaches a GPU
        loader.rows(0, int(loader.n_rows[0]))

def test_ends_that_run_backwards_are_found(tmp_path):
    write(tmp_path, [np.arange(5), np.arange(5), np.arange(5)])
    edit(tmp_path / 'text_000000.bin', lambda b: b[:-24] + np.array([8, 5, 15], '<i8').tobytes())
    with pytest.raises(Refused, match='text_000000.bin: document 1 has -3 tokens'):
        Shards(tmp_path, JOINT).plan(4)

@pytest.mark.parametrize('weights, message', [
    ([1, 0], r'weights \(1, 0\), expected each above 0'), ([2, -1], 'expected each above 0'),
    ([0, 0], 'expected each above 0'), ([float('nan'), 1], 'expected each above 0'), ([1], '1 weights for 2 sources'),
    ([1, 1e-9], 'is no share, leave the source out')])
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

# ----------------------------------------------------------------------------------------------------------------
# packing

def log_normal(n, mean, sigma=0.6, seed=0):
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, n)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)

def check_plan(lengths, plan, T):
    """Every token in exactly one piece, no piece over a document's edge, no row over T: by a plain loop."""
    document = np.repeat(np.arange(len(lengths)), lengths)
    seen = np.zeros(lengths.sum(), dtype=int)
    for r in range(len(plan.rows) - 1):
        used = 0
        assert plan.rows[r] < plan.rows[r + 1], "an empty row"
        for p in range(plan.rows[r], plan.rows[r + 1]):
            start, length = plan.start[p], plan.length[p]
            assert length > 0 and document[start] == document[start + length - 1]
            seen[start:start + length] += 1
            used += length
        assert used <= T
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
    assert abs(plan.fill(T) - lengths.sum() / (T * (len(plan.rows) - 1))) < 1e-12

@pytest.mark.parametrize('lengths', [
    np.full(1000, 300), np.random.default_rng(0).integers(260, 400, 3000), np.full(7, 512), np.full(3, 1),
    np.array([1]), np.array([1536]), np.array([5000, 1, 2]), np.full(999, 257), np.arange(1, 600), np.full(50, 511)])
def test_lengths_that_do_not_fit_together_are_cut_and_counted(lengths):
    plan = pack(lengths, 512)
    check_plan(lengths, plan, 512)
    least, rows = -(-lengths.sum() // 512), len(plan.rows) - 1
    assert rows <= max(least, lengths.sum() / (0.995 * 512)), f"{rows} rows, {least} would do"

@pytest.mark.parametrize('seed', range(20))
def test_random_small_sets_are_packed_whole(seed):
    rng = np.random.default_rng(seed)
    T = int(rng.integers(2, 40))
    lengths = rng.integers(1, rng.integers(2, 100), rng.integers(1, 200))
    check_plan(lengths, pack(lengths, T), T)

def test_pieces_are_not_cut_where_best_fit_fills_the_rows():
    lengths = log_normal(20_000, 100)
    plan = pack(lengths, 2048)
    assert plan.cuts == 0 and len(plan.start) == len(lengths)

def test_neighbors_of_the_corpus_do_not_share_rows():
    lengths = log_normal(20_000, 120)
    plan = pack(lengths, 512)
    document = np.searchsorted(np.cumsum(lengths), plan.start, 'right')
    row = np.repeat(np.arange(len(plan.rows) - 1), np.diff(plan.rows))
    apart = np.abs(document[1:] - document[:-1])[row[1:] == row[:-1]]
    assert 0.9 < np.median(apart) / (0.293 * 20_000) < 1.1 # two random documents are 0.293 n apart in the median

def test_the_plan_is_cached_and_made_anew_for_other_shards(tmp_path, monkeypatch):
    import data
    shards = write(tmp_path / 'a', make_documents(200))
    fresh, calls = shards.plan(128), []
    monkeypatch.setattr(data, 'pack', lambda *args: calls.append(args) or pack(*args))
    cached = Shards(tmp_path / 'a', JOINT).plan(128)
    assert not calls and all((a == b).all() for a, b in zip(fresh, cached))
    assert isinstance(cached.start.base, np.memmap)
    shards.plan(64)
    assert len(calls) == 1 # another T
    write(tmp_path / 'b', make_documents(100, seed=1))
    both = Shards([tmp_path / 'a', tmp_path / 'b'], JOINT)
    check_plan(both.lengths, both.plan(128), 128)
    assert len(calls) == 2 # other shards
    (next((tmp_path / 'a').glob('plan_T64_*')) / 'start.npy').write_bytes(b'x')
    with pytest.raises(Refused, match='plan_T64_.*damaged plan, remove it'):
        shards.plan(64)

# ----------------------------------------------------------------------------------------------------------------
# rows

@pytest.fixture
def sources(tmp_path):
    """Three sources of different sizes; the second is two folders, and ids tell document and place."""
    speech = write(tmp_path / 's', make_documents(300, mean=60, seed=1), shard_tokens=2000)
    write(tmp_path / 't1', make_documents(80, seed=2))
    write(tmp_path / 't2', make_documents(60, seed=3))
    text = Shards([tmp_path / 't1', tmp_path / 't2'], JOINT)
    return [speech, text, write(tmp_path / 'i', make_documents(400, mean=90, seed=4), shard_tokens=3000)]

def naive_row(source, plan, r, T):
    stream = np.concatenate([source.read(i) for i in range(source.documents)])
    tokens, doc_start, targets = [], [], []
    for p in range(plan.rows[r], plan.rows[r + 1]):
        piece = stream[plan.start[p]:plan.start[p] + plan.length[p]].tolist()
        doc_start += [len(tokens)] * len(piece)
        targets += piece[1:] + [-100]
        tokens += piece
    tail = T - len(tokens)
    return tokens + [0] * tail, doc_start + list(range(len(tokens), T)), targets + [-100] * tail

def test_rows_are_those_of_a_naive_loop(sources):
    loader = Loader(sources, None, 128, seed=3)
    tokens, doc_start, targets, source = loader.rows(5, 60)
    assert (tokens.dtype, doc_start.dtype, targets.dtype) == (np.int64, np.int32, np.int64)
    where, _, row = loader.locate(np.arange(5, 65))
    assert (where == source).all()
    for i in range(60):
        want = naive_row(sources[source[i]], loader.plans[source[i]], row[i], 128)
        assert (tokens[i].tolist(), doc_start[i].tolist(), targets[i].tolist()) == want, f"row {5 + i}"

def test_every_document_piece_is_seen_once_an_epoch(sources):
    loader = Loader(sources[:1], None, 256, seed=3)
    for epoch in range(2):
        tokens, doc_start, targets, _ = loader.rows(epoch * int(loader.n_rows[0]), int(loader.n_rows[0]))
        pieces = []
        for i, row in enumerate(tokens):
            for begin in np.unique(doc_start[i]):
                pieces.append(tuple(row[doc_start[i] == begin]))
        expected = [tuple(d[i:i + 256]) for d in map(sources[0].read, range(300)) for i in range(0, len(d), 256)]
        tail = sum(len(p) == 1 and p == (0,) for p in pieces) - sum(p == (0,) for p in expected)
        assert int(loader.plans[0].cuts) == 0
        assert sorted(pieces) == sorted(expected + [(0,)] * tail)

def test_rows_do_not_depend_on_how_they_are_asked_for(sources):
    whole = Loader(sources, (5, 3, 2), 128, seed=1).rows(40, 24)
    for world in (1, 2, 3, 8): # each rank takes its slice, from a loader of its own
        parts = [Loader(sources, (5, 3, 2), 128, seed=1).rows(40 + r * 24 // world, 24 // world) for r in range(world)]
        for one, many in zip(whole, zip(*parts)):
            assert (one == np.concatenate(many)).all()

def test_an_epoch_visits_each_row_once_and_the_next_in_another_order(sources):
    loader = Loader(sources, None, 128, seed=0)
    source, epoch, row = loader.locate(np.arange(2000))
    for s, n in enumerate(loader.n_rows):
        mine = row[source == s]
        for e in range(len(mine) // n):
            assert sorted(mine[e * n:(e + 1) * n]) == list(range(n)), f"source {s}, epoch {e}"
            assert (epoch[source == s][e * n:(e + 1) * n] == e).all()
        assert mine[:n].tolist() != mine[n:2 * n].tolist()
    other_seed = Loader(sources, None, 128, seed=1).locate(np.arange(2000))[2]
    assert (other_seed != row).mean() > 0.9

@pytest.mark.parametrize('weights', [(1,), (1, 1, 1), (0.5, 0.3, 0.2), (7, 2, 1, 1, 13), (1, 100), 
                                     (0.1, 0.7, 0.123456), (2**.5, 3.14159, 1)])
def test_any_window_of_rows_is_balanced(weights):
    order, had = _schedule(weights)
    share = np.array(weights) / sum(weights)
    counts = np.cumsum(np.eye(len(weights), dtype=int)[np.tile(order, 3)], axis=0)
    ahead = counts - share * np.arange(1, len(counts) + 1)[:, None]
    rounding = len(counts) * 1e-4 if len(order) == 10_000 else 0 # of shares that no period meets exactly
    assert np.abs(ahead).max() < 1 + rounding, f"{np.abs(ahead).max()} rows off"
    assert (had[1:] == counts[:len(order)]).all()

def test_equal_weights_take_turns_and_decimal_weights_are_met_exactly():
    assert _schedule([1, 1, 1])[0].tolist() == [0, 1, 2]
    assert _schedule([0.5, 0.3, 0.2])[1][-1].tolist() == [5, 3, 2]

@pytest.mark.parametrize('n', [1, 2, 3, 63, 64, 65, 1000, 4097])
def test_permute_is_a_permutation_that_the_key_draws(n):
    orders = np.stack([permute(np.arange(n), n, seed, 'x') for seed in range(200)])
    assert (np.sort(orders, axis=1) == np.arange(n)).all()
    assert permute(np.arange(n)[n // 2:], n, 0, 'x').tolist() == orders[0, n // 2:].tolist() # each on its own
    if n >= 63: # uniform: the image of a place, and of its neighbor, is anywhere
        for place in (0, 1, n - 1):
            image = orders[:, place] / n
            assert abs(image.mean() - 0.5) < 5 * (1 / 12 / 200)**.5 and 0.2 < image.std() < 0.37
        assert abs(np.corrcoef(orders[:, 0], orders[:, 1])[0, 1]) < 0.3

def test_permute_is_the_same_on_every_machine_and_version():
    assert permute(np.arange(10), 10, 0, 1, 2).tolist() == [6, 0, 8, 5, 3, 2, 9, 4, 7, 1] # else resumed runs change

def test_a_resumed_run_can_tell_other_data(sources, tmp_path):
    same = Loader(sources, None, 128, 0).identity
    assert same == Loader(sources, (2, 2, 2), 128, 0).identity | {'weights': [1.0, 1.0, 1.0]}
    assert json.loads(json.dumps(same)) == same
    other = write(tmp_path / 'other', make_documents(300, mean=60, seed=9), shard_tokens=2000)
    for changed in (Loader(sources, None, 64, 0), Loader(sources, None, 128, 1), Loader(sources, (2, 1, 1), 128, 0),
                    Loader([other, *sources[1:]], None, 128, 0)):
        assert changed.identity != same

def test_the_table_shows_each_folder(tmp_path):
    write(tmp_path / 'train' / 'speech', [np.arange(300, 350)] * 20)
    write(tmp_path / 'val' / 'text', [np.arange(7)] * 3 + [np.arange(100)] * 4)
    ShardWriter(tmp_path / 'val' / 'speech', 'speech', JOINT).close() # no document went to this split
    def table(*args):
        return subprocess.run([sys.executable, '-m', 'corpora.table', *args], capture_output=True, text=True, timeout=60)
    lines = table(f'--data={tmp_path}', '--block_size=100', '--verify').stdout.splitlines()
    assert f"| {tmp_path}/train/speech | 20 | 1,000 | 50.0 | 32 █ 63 | 0.0% | 100.0% | 0.0% | 100.00% | 0 |" in lines
    assert f"| {tmp_path}/val/text | 7 | 421 | 60.1 | 4 ▆   █ 127 | 100.0% | 0.0% | 0.0% | 84.20% | 0 |" in lines
    assert any(line.startswith(f"| {tmp_path}/val/speech | 0 | 0 |") for line in lines)
    write_json(tmp_path / 'units/info.json', {'units_hash': 'x', 'documents': 3, 'hours': 2.0, 'runs': 140_000})
    write_json(tmp_path / 'units/words/info.json', {'units_hash': 'x', 'documents': 3, 'words': 9})
    both = table(f'--data={tmp_path}').stdout.splitlines()
    assert both[-1] == f"| {tmp_path}/units | 3 | 2.00 | 140,000 | 19.4 |" and len(both) == 1 + 2 + 3 + 3 # the first names the override
    assert table(f'--data={tmp_path}/units').stdout.splitlines()[1:] == both[-3:]
    assert table('--data=nowhere').stderr == \
        'corpora/table.py: nowhere: no such folder, expected one of token shards (interleave.py writes them)\n'
    assert table().stderr == 'corpora/table.py: expected --data=DIR, a folder of token shards or of units, or one above several\n'
