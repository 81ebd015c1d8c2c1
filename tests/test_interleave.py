"""Interleaving: spans against the plain algorithm, documents against a slow builder, worked cases by hand, folders."""
import gzip
import json
import math
import shutil
import subprocess
import sys
from bisect import bisect_left, bisect_right
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import killed
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import interleave
from configurator import Refused, configure
from data import Shards, ShardWriter
from files import write_json
from hub.tokenizer import TextTokenizer
from interleave import (
    Config,
    draw_keys,
    interleaved_documents,
    spoken_by_turns,
    spoken_words,
    text_documents,
)
from speech.corpus import Batch, hash_ids
from speech.units import write_units_shard
from speech.words import WordsShard, write_words_shard
from vocab import Vocab

K, HOP = 500, 640
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = ["Once upon a time, there was a café; it's 2014 and the dog's bone -- who'd know? -- cost $43,000.",
        "the dog and the cat and the bird said: don't go there, don't go at all! "
        "naïve 東京 ご飯 😀 once upon a time"] * 3

def save_tokenizer(folder, split=QWEN, merges=400):
    """A byte-level BPE like Qwen's or GPT-2's; split=None: no pre-tokenizer, so tokens may cover several words."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = byte_level
    if split is not None:
        by_regex = pre_tokenizers.Split(Regex(split), 'isolated')
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_regex, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(['<|endoftext|>'])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({'eos_token': '<|endoftext|>'}))
    return folder

@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return TextTokenizer(save_tokenizer(tmp_path_factory.mktemp('t') / 'tokenizer'))

def joint(tokenizer):
    return Vocab('joint', tokenizer.size, K, tokenizer.hash, 'h')

# --------------------------------------------------------------------------------------------------
# spans

def slow_mix(x):
    m = 2**64 - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & m
    x = (x ^ x >> 27) * 0x94D049BB133111EB & m
    return x ^ x >> 31

def poisson_of(u, lam):
    """Inverse of the distribution function at u / 2**32."""
    k = 0
    total = math.exp(-lam)
    while math.floor(min(total, 1) * 2**32) <= u:
        k += 1
        total += math.exp(k * math.log(lam) - lam - math.lgamma(k + 1))
    return k

def plain_spans(n, lam, eta, draws):
    """SIMS's loop; draws yields (start, length), and a start that is not eligible is drawn again."""
    mask = [0] * n
    eligible = set(range(n))
    count = 0
    while count < math.ceil(n * eta) and eligible:
        s, length = next(draws, (None, None))
        if s is None:
            break
        e = min(s + length, n)
        if s not in eligible or any(mask[s:e]):
            continue
        mask[s:e] = [1] * (e - s)
        count += e - s
        eligible -= set(range(s, e + 1))
    return mask

def hashed_draws(key, n, lam):
    for j in range(interleave.MAX_DRAWS):
        bits = slow_mix(key + (j + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1)
        yield (bits >> 32) * n >> 32, poisson_of(bits & 0xFFFFFFFF, lam)

def papers_spans(n, rng, lam=10, eta=.3):
    """The papers' code, to the letter, on numpy's generator."""
    mask = np.zeros(n)
    eligible = set(range(n))
    count = 0
    while count < math.ceil(n * eta) and eligible:
        s = rng.choice(list(eligible))
        e = min(s + rng.poisson(lam), n)
        if np.any(mask[s:e] == 1):
            continue
        mask[s:e] = 1
        count += e - s
        eligible -= set(range(s, e))
        if e < n:
            eligible -= {e}
    return mask

def keys_of(ids, seed=0, epoch=0):
    return draw_keys(hash_ids(ids), seed, epoch)

@pytest.mark.parametrize('lam, eta', [(10, .3), (2, .5), (0.3, .3), (10, .8), (40, 1)])
def test_spans_are_those_of_the_plain_loop_over_the_same_draws(lam, eta, monkeypatch):
    monkeypatch.setattr(interleave, 'MAX_DRAWS', 700) # which lam = 40 reaches
    lengths = [1, 2, 3, 4, 5, 0, 7, 10, 11, 40, 63, 64, 65, 200] * 3
    keys = keys_of([f'd{i}' for i in range(len(lengths))], 3, 1)
    expected = []
    for key, n in zip(keys.tolist(), lengths):
        expected += plain_spans(n, lam, eta, hashed_draws(key, n, lam))
    assert spoken_words(keys, lengths, lam, eta).astype(int).tolist() == expected

@pytest.mark.parametrize('n, documents, share',
                         [(10, 20000, .633), (30, 8000, .431), (100, 2000, .343), (1000, 300, .304)])
def test_share_of_spoken_words_is_the_published_one(n, documents, share):
    spoken = spoken_words(keys_of(map(str, range(documents))), [n] * documents)
    mean = spoken.reshape(documents, n).mean(1).mean()
    assert abs(mean - share) < .015, mean # published from few draws: the first is .644 in truth

@pytest.mark.parametrize('n', [9, 12, 45])
def test_every_word_is_spoken_as_often_as_under_numpys_generator(n):
    fast = spoken_words(keys_of(map(str, range(20000))), [n] * 20000).reshape(-1, n)
    rng = np.random.default_rng(0)
    slow = np.array([papers_spans(n, rng) for _ in range(1200)])
    error = (slow.var(0) / len(slow) + fast.var(0) / len(fast)) ** .5
    assert (abs(fast.mean(0) - slow.mean(0)) < 4.5 * error).all(), (fast.mean(0), slow.mean(0))
    def spans_per_document(mask):
        return (np.diff(mask.astype(int), axis=1, prepend=0) == 1).sum(1)
    a = spans_per_document(fast)
    b = spans_per_document(slow)
    error = (a.var() / len(a) + b.var() / len(b)) ** .5
    assert abs(a.mean() - b.mean()) < 4.5 * error + 1e-9, (a.mean(), b.mean())

def test_a_document_has_its_own_spans_whatever_is_around_it_and_other_ones_each_epoch_and_seed():
    ids = [f'd{i}' for i in range(300)]
    lengths = np.random.default_rng(0).integers(0, 90, 300)
    def spans_of(ids, lengths, seed=0, epoch=0):
        return np.split(spoken_words(keys_of(ids, seed, epoch), lengths), np.cumsum(lengths)[:-1])
    together = spans_of(ids, lengths)
    alone = [spans_of([id], [n])[0] for id, n in zip(ids, lengths)]
    reversed_order = spans_of(ids[::-1], lengths[::-1])[::-1]
    for a, b, c in zip(alone, together, reversed_order):
        assert (a == b).all() and (a == c).all()
    for seed, epoch in ((0, 1), (1, 0)):
        pairs = zip(alone, spans_of(ids, lengths, seed, epoch))
        assert np.mean([(a == b).all() for a, b in pairs if len(a) > 30]) < .05

def test_spans_of_fixed_lengths_alternate_from_a_random_point_on():
    lengths = [0, 1, 2, 500] * 50
    keys = keys_of([f'd{i}' for i in range(len(lengths))])
    spoken = spoken_by_turns(interleave.mix(keys), lengths, 3, 7)
    documents = np.split(spoken, np.cumsum(lengths)[:-1])
    assert [len(document) for document in documents] == lengths
    begins = set()
    for document in documents[3::4]:
        begin = next(i for i in range(10) if not document[i] and document[i + 1]) + 1 # of the first whole span
        begins.add(begin)
        assert document.tolist() == [(i - begin) % 10 < 3 for i in range(500)]
    assert len(begins) == 10
    chunks = Config(units='u', out='o', spans='chunks', lam=6, eta=.3)
    assert abs(interleave.choose_spoken(chunks, keys, lengths).mean() - .3) < .01

# --------------------------------------------------------------------------------------------------
# documents

def make_batch(folder, docs, tokenizer, splits=True):
    """docs: (id, words, starts, ends, units, runs) -> Batch, WordTable"""
    index = len(list(folder.iterdir()))
    write_words_shard(folder, index, [doc[:4] for doc in docs])
    shard = WordsShard(folder / f'{index:05d}')
    table = interleave.WordTable(shard, tokenizer, splits)
    units = np.array([unit for doc in docs for unit in doc[4]], np.uint16)
    runs = np.array([run for doc in docs for run in doc[5]], np.uint16)
    offsets = np.cumsum([0] + [len(doc[4]) for doc in docs])
    return Batch(units, runs, offsets, shard.word, shard.start, shard.end, shard.offsets, table.exact), table

def slow_document(tokenizer, words, starts, ends, units, runs, spoken):
    """The papers' builder on integers, with a plain list for everything."""
    vocab = joint(tokenizer)
    out = list(tokenizer.first)
    unit_end = [end * HOP for end in np.cumsum(runs, dtype=int).tolist()]
    a = 0
    while a < len(words):
        b = a
        while b < len(words) and spoken[b] == spoken[a]:
            b += 1
        if spoken[a]:
            i = min(bisect_left(unit_end, starts[a]), len(units) - 1)
            j = max(bisect_right(unit_end, ends[b - 1]), i + 1)
            out += [vocab.speech] + [tokenizer.size + int(u) for u in units[i:j]]
        else:
            out += [vocab.text] + tokenizer.encode(''.join(words[a:b]))
        a = b
    return out

def random_docs(n, seed, vocabulary):
    rng = np.random.default_rng(seed)
    docs = []
    for i in range(n):
        runs = rng.integers(1, 6, rng.integers(1, 200))
        units = rng.integers(0, K, len(runs))
        total = int(runs.sum()) * HOP
        n_words = int(rng.integers(0, 60))
        edges = np.sort(rng.integers(0, total + 400, 2 * n_words)) # past the last whole frame too
        edges = np.where(rng.random(2 * n_words) < .3, edges // HOP * HOP, edges) # ties with unit boundaries
        words = [' ' * (j > 0 or i % 2) + str(w) for j, w in enumerate(rng.choice(vocabulary, n_words))]
        docs.append((f'doc-{seed}-{i}', words, edges[0::2].tolist(), edges[1::2].tolist(), units, runs))
    return docs

VOCABULARY = ["dog", "dog's", "don't", "2014", "$43,000.", "--", "naïve", "東京", "😀", "it's,", "<Un5>", "<speech>",
              "a", "'s", "the", "e\u0301te\u0301", "\u0301x", "100%", "Once", "\u200bzero", "tab\tin", "in side",
              "<|endoftext|>", "!!!", "ご飯。"]

SIMPLE = ['once', 'upon', 'a', 'time', 'the', 'dog', 'said']

def split(tokens, lengths):
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]

def built(docs, batch, table, tokenizer, eot=()):
    """Yields (document, its interleaved ids, its text's ids, which words are spoken)."""
    keys = keys_of([doc[0] for doc in docs])
    spoken = spoken_words(keys, batch.n_words)
    tokens, lengths = interleaved_documents(batch, spoken, table, tokenizer, joint(tokenizer), HOP, eot)
    texts = split(*text_documents(batch, table, tokenizer, eot))
    masks = np.split(spoken, batch.word_offsets[1:-1])
    return zip(docs, split(tokens, lengths), texts, masks, strict=True)

@pytest.mark.parametrize('first', [[], [7]])
def test_documents_equal_the_slow_builder(tmp_path, tokenizer, first, monkeypatch):
    monkeypatch.setattr(tokenizer, 'first', first)
    docs = random_docs(400, 1, VOCABULARY)
    batch, table = make_batch(tmp_path, docs, tokenizer)
    for doc, ids, text_ids, mask in built(docs, batch, table, tokenizer, eot=[9]):
        if doc[1]:
            assert ids == slow_document(tokenizer, *doc[1:], mask) + [9], doc[0]
            assert text_ids == [*first, *tokenizer.encode(''.join(doc[1]).strip()), 9], doc[0]
        else:
            assert ids == [] and text_ids == [], doc[0]
    assert not batch.exact.any(), "ordinary spaced words need no exact path"

def by_hand(tmp_path, tokenizer, words, mask):
    """Tokens of a worked case: units 5 9 5 7 3 8 that last 2 1 3 1 2 1 frames, times of words in seconds."""
    starts = [round(start * 16000) for _, start, _ in words]
    ends = [round(end * 16000) for _, _, end in words]
    doc = ('x', [word for word, _, _ in words], starts, ends, [5, 9, 5, 7, 3, 8], [2, 1, 3, 1, 2, 1])
    batch, table = make_batch(tmp_path, [doc], tokenizer)
    tokens, _ = interleaved_documents(batch, np.array(mask, bool), table, tokenizer, joint(tokenizer), HOP)
    return tokens.tolist()

def test_worked_cases(tmp_path, tokenizer):
    def case(words, mask):
        return by_hand(tmp_path, tokenizer, words, mask)
    T = tokenizer.size
    speech = T + 500
    text = T + 501
    (a,), (b,), (c,) = (tokenizer.encode(w) for w in (' a', ' b', ' c'))
    ids = case([(' a', 0, .1), (' b', .1, .2), (' c', .2, .4)], [1, 0, 1])
    assert ids == [speech, T + 5, text, b, speech, T + 5, T + 7, T + 3, T + 8]
    ids = case([(' a', 0, .08), (' b', .08, .28), (' c', .28, .4)], [0, 1, 0])
    assert ids == [text, a, speech, T + 5, T + 9, T + 5, T + 7, text, c] # the run that ends exactly at .08 is in
    assert case([(' a', .13, .2), (' b', .2, .3)], [1, 0]) == [speech, T + 5, text, b] # inside one run: that run
    assert case([(' a', 0, .1), (' b', .1, .2)], [0, 0]) == [text, a, b]
    assert case([(' a', .5, .6)], [1]) == [speech, T + 8] # after the last unit: the last unit
    assert case([], []) == []

def assert_exact(folder, tokenizer, docs, splits=True):
    """Every document is tokenized exactly, as joined text."""
    folder.mkdir(exist_ok=True)
    batch, table = make_batch(folder, docs, tokenizer, splits)
    for doc, ids, text_ids, mask in built(docs, batch, table, tokenizer):
        assert ids == slow_document(tokenizer, *doc[1:], mask), doc
        assert text_ids == tokenizer.encode(''.join(doc[1]).strip()), doc

def timed(*texts):
    return [(str(i), words, range(len(words)), range(len(words)), [1], [9]) for i, words in enumerate(texts)]

def with_decoys(tokenizer, pairs):
    """Documents of one pair each, after decoys: pairs that look the same where they meet, so that those are tried."""
    decoys = [(f'Q{a[-1]}', f'{b[:2]}Q') for a, b in pairs]
    def joins(a, b):
        return tokenizer.encode(a) + tokenizer.encode(b) == tokenizer.encode(a + b)
    differ = any(joins(*decoy) and not joins(*pair) for decoy, pair in zip(decoys, pairs))
    assert differ, "no pair is like that"
    return timed(*decoys, *pairs)

def test_words_that_do_not_meet_at_a_space_are_tokenized_as_joined_text(tmp_path, tokenizer):
    words = [' Once', ' up', 'on', ' a', ' time', ',', 'n ', ' the', ' dog', "'s", ' bone', ' ', ' a', '\nb'] * 4
    assert_exact(tmp_path / 'a', tokenizer, timed(*(words[i:] for i in range(40))))
    cut = [(w[:i], w[i:]) for w in TEXT[0].split() for i in range(1, len(w))]
    assert_exact(tmp_path / 'b', tokenizer, with_decoys(tokenizer, cut))
    assert_exact(tmp_path / 'c', tokenizer, timed(['the', ' dog '], ['the', ' dog', '  '])) # spaces at the end

def test_a_tokenizer_that_merges_across_spaces_is_found_out(tmp_path, tokenizer):
    merging = TextTokenizer(save_tokenizer(tmp_path / 'tokenizer', split=None))
    assert interleave.splits_at_spaces(tokenizer) and not interleave.splits_at_spaces(merging)
    words = [w if i == 0 else ' ' + w for i, w in enumerate(TEXT[1].split())]
    assert merging.encode(''.join(words)) != [t for w in words for t in merging.encode(w)], "the case is none"
    docs = with_decoys(merging, list(zip(words, words[1:])))
    assert_exact(tmp_path / 'words', merging, docs, interleave.splits_at_spaces(merging))

def test_a_pair_of_words_that_changes_at_its_boundary_takes_the_exact_path(tmp_path, tokenizer):
    class Lookahead: # no token covers two words, yet 'z' is another token before a space than at the end
        size = tokenizer.size
        first = []
        def encode_batch(self, texts):
            return [tokenizer.encode(t.replace('z ', 'y ')) for t in texts]
        def encode(self, text):
            return self.encode_batch([text])[0]
    docs = [('x', ['jazz', ' is', ' it'], [0, 1, 2], [1, 2, 3], [1], [1]),
            ('y', ['it', ' is'], [0, 1], [1, 2], [1], [1])]
    batch, table = make_batch(tmp_path, docs, Lookahead())
    assert batch.exact.tolist() == [True, False]
    texts = split(*text_documents(batch, table, Lookahead()))
    assert texts == [tokenizer.encode('jazy is it'), tokenizer.encode('it is')]

def test_spans_tile_the_document_each_word_once_and_the_units_of_its_time(tmp_path, tokenizer):
    n = 40
    frames = 300
    # A unit per frame, a word every 7 frames: the units of a spoken span tell its words.
    words = [f' w{i}' for i in range(n)]
    starts = np.arange(n) * 7 * HOP
    docs = [(f'{i}', words, starts, starts + 7 * HOP, np.arange(frames) % K, np.ones(frames, int)) for i in range(100)]
    batch, table = make_batch(tmp_path, docs, tokenizer)
    vocab = joint(tokenizer)
    for _, ids, _, _ in built(docs, batch, table, tokenizer):
        words_in_spans = []
        marks = [i for i, token in enumerate(ids) if token in (vocab.speech, vocab.text)]
        for a, b in zip(marks, [*marks[1:], len(ids)]):
            assert b > a + 1, "an empty span"
            if ids[a] == vocab.speech:
                units = [token - tokenizer.size for token in ids[a + 1:b]]
                assert units == list(range(units[0], units[-1] + 1))
                first = -(-units[0] // 7) # the run that ends at the span's beginning is in: one frame before it
                assert units[0] == max(first * 7 - 1, 0) and units[-1] % 7 == 6
                words_in_spans += range(first, units[-1] // 7 + 1)
            else:
                words_in_spans += [int(w[1:]) for w in tokenizer.decode(ids[a + 1:b]).split()]
        assert words_in_spans == list(range(n))
        assert all(ids[a] != ids[b] for a, b in zip(marks, marks[1:])), "separators alternate"

# --------------------------------------------------------------------------------------------------
# folders

def make_folder(folder, shards, words=True, **info):
    """A units folder with words: shards is a list of lists of docs."""
    folder.mkdir(parents=True)
    docs = [doc for shard in shards for doc in shard]
    for index, shard in enumerate(shards):
        metas = [{'id': d[0], 'seconds': float(np.sum(d[5])) / 25} for d in shard]
        write_units_shard(folder, index, [(meta, d[4], d[5]) for meta, d in zip(metas, shard)])
        if words:
            write_words_shard(folder / 'words', index, [d[:4] for d in shard])
    write_json(folder / 'info.json', {'n_units': K, 'hop': HOP, 'units_hash': 'h', 'documents': len(docs), **info})
    if words:
        write_json(folder / 'words' / 'info.json', {'documents': len(docs), 'refused': {'OVERLAP': 1}})
    return folder

@pytest.fixture
def mine(tmp_path):
    docs = random_docs(300, 5, SIMPLE)
    return make_folder(tmp_path / 'units', [docs[:170], docs[170:171], docs[171:]])

def settings(tokenizer, out, units, **changes):
    return Config(units=str(units), tokenizer=tokenizer.name, out=str(out), val_frac=.1, **changes)

def all_bytes(folder, pattern='*.bin'):
    paths = sorted(path for path in Path(folder).rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

def read(folder, vocab):
    shards = Shards([folder], vocab)
    return [shards.read(i).tolist() for i in range(shards.documents)]

def test_the_same_bytes_however_the_documents_are_batched_or_sharded(tmp_path, tokenizer, mine, monkeypatch):
    text = tmp_path / 'more.txt'
    text.write_text("once upon a time\n\nthe dog said <Un5>\n")
    changes = dict(text=str(text), epochs=2, eot=True)
    interleave.main(settings(tokenizer, tmp_path / 'a', mine, **changes))
    expected = all_bytes(tmp_path / 'a')
    assert len(expected) == 8, sorted(expected)
    monkeypatch.setattr(interleave, 'BATCH_DOCS', 7)
    monkeypatch.setattr(interleave, 'BATCH_RUNS', 300)
    interleave.main(settings(tokenizer, tmp_path / 'b', mine, **changes))
    assert all_bytes(tmp_path / 'b') == expected
    docs = random_docs(300, 5, SIMPLE)
    resharded = make_folder(tmp_path / 'resharded', [docs[:11], docs[11:]])
    interleave.main(settings(tokenizer, tmp_path / 'c', resharded, **changes))
    assert all_bytes(tmp_path / 'c') == expected
    info = json.loads((tmp_path / 'a' / 'info.json').read_text())
    def written(source):
        return sum(info['written'][f'{split}/{source}']['documents'] for split in ('train', 'val'))
    n_with_words = sum(bool(doc[1]) for doc in docs)
    assert (written('speech'), written('textless'), written('interleaved')) == (300, 300, 2 * n_with_words)
    assert written('text') == n_with_words + 2
    assert info['interleaved']['without_words'] == 300 - n_with_words
    assert info['refused'] == {'OVERLAP': 1}
    assert info['written']['val/speech']['documents'] in range(15, 50)

def test_every_source_holds_its_documents(tmp_path, tokenizer, mine):
    out = tmp_path / 'out'
    interleave.main(settings(tokenizer, out, mine, eot=True))
    docs = random_docs(300, 5, SIMPLE)
    vocab = joint(tokenizer)
    textless = Vocab('speech', n_units=K, units='h')
    eot = [tokenizer.eot]
    val = interleave.is_val(hash_ids([doc[0] for doc in docs]), .1)
    for split, in_split in (('train', ~val), ('val', val)):
        split_docs = [doc for doc, inside in zip(docs, in_split) if inside]
        speech = [[tokenizer.size + int(u) for u in doc[4]] + eot for doc in split_docs]
        assert read(out / split / 'speech', vocab) == speech
        assert read(out / split / 'textless', textless) == [[1, *(2 + int(u) for u in doc[4]), 1] for doc in split_docs]
        with_words = [doc for doc in split_docs if doc[1]]
        texts = [tokenizer.encode(''.join(doc[1]).strip()) + eot for doc in with_words]
        assert read(out / split / 'text', vocab) == texts
        for doc, ids in zip(with_words, read(out / split / 'interleaved', vocab), strict=True):
            key = int(keys_of([doc[0]])[0])
            n = len(doc[1])
            mask = plain_spans(n, 10, .3, hashed_draws(key, n, 10))
            assert ids == slow_document(tokenizer, *doc[1:], mask) + eot

def test_a_finished_output_is_kept_and_a_killed_one_made_again(tmp_path, tokenizer, mine, monkeypatch, capsys):
    cfg = settings(tokenizer, tmp_path / 'out', mine)
    done = []
    real = interleave.write_shard
    def killed(*args):
        if done:
            raise KeyboardInterrupt
        done.append(real(*args))
    monkeypatch.setattr(interleave, 'write_shard', killed)
    with pytest.raises(KeyboardInterrupt):
        interleave.main(cfg)
    assert not (tmp_path / 'out').exists()
    monkeypatch.setattr(interleave, 'write_shard', real)
    (tmp_path / 'out.tmp' / 'train').mkdir(parents=True) # what a kill -9 leaves
    interleave.main(cfg)
    interleave.main(settings(tokenizer, tmp_path / 'undisturbed', mine))
    assert all_bytes(tmp_path / 'out') == all_bytes(tmp_path / 'undisturbed')
    before = (tmp_path / 'out' / 'info.json').read_bytes()
    capsys.readouterr()
    interleave.main(cfg)
    assert capsys.readouterr().out == f"{cfg.out}: complete already, nothing to do\n"
    with pytest.raises(Refused, match='made with other settings; take another --out or delete it'):
        interleave.main(settings(tokenizer, tmp_path / 'out', mine, seed=1))
    assert (tmp_path / 'out' / 'info.json').read_bytes() == before

@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_with_the_same_bytes(tmp_path, tokenizer, mine):
    out = tmp_path / 'made' / 'out'
    cfg = settings(tokenizer, out, mine)
    out.parent.mkdir()
    n_changes = killed(lambda: interleave.main(cfg), str(out))
    expected = all_bytes(out, '*')
    for moment in np.random.default_rng(0).choice(n_changes, 10, replace=False).tolist():
        shutil.rmtree(out, ignore_errors=True)
        killed(lambda: interleave.main(cfg), str(out), moment)
        interleave.main(cfg)
        assert all_bytes(out, '*') == expected, moment

def test_show_prints_the_document(tmp_path, tokenizer, mine, capsys):
    doc = next(d for d in random_docs(300, 5, SIMPLE) if len(d[1]) > 40)
    interleave.main(Config(units=str(mine), tokenizer=tokenizer.name, show=doc[0]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'{doc[0]}: {len(doc[1])} words, ')
    spans = [line.removeprefix('<text>').removeprefix('<speech>').partition('    ')[0] for line in lines[1:]]
    assert ''.join(spans) == ''.join(doc[1])

def test_bad_input_is_refused_in_one_line(tmp_path, tokenizer, mine):
    base = dict(units=str(mine), tokenizer=tokenizer.name, out=str(tmp_path / 'no'))
    def refused(message, **changes):
        with pytest.raises(Refused) as e:
            interleave.main(Config(**{**base, **changes}))
        assert message in str(e.value), e.value
        assert '\n' not in str(e.value), e.value
        assert not (tmp_path / 'no').exists()
        assert not (tmp_path / 'no.tmp').exists()
    silent = make_folder(tmp_path / 'silent', [random_docs(3, 6, ['a'])], words=False)
    refused('no such folder; align.py makes it', units=str(silent))
    refused('nowhere: no such folder; tokenize_speech.py makes it', units=str(tmp_path / 'nowhere'))
    refused('a folder comes twice', units=f'{mine},{mine}')
    (tmp_path / 'empty').mkdir()
    refused('none of .txt .txt.gz .jsonl .jsonl.gz .json.gz in this folder', text=str(tmp_path / 'empty'))
    refused("has no 'text'", text='more.txt', sources=('speech',))
    foreign = make_folder(tmp_path / 'z', [random_docs(3, 6, ['a'])], units_hash='g')
    refused('units_hash differs', units=f'{mine},{foreign}')
    refused('expected some of', sources=('speech', 'song'))
    refused('expected 0 < lam <= 100', eta=0.0)
    refused('no units folder', units='')
    refused('expected --out=DIR, or --show=ID', out='')
    refused('no such text file', text=str(tmp_path / 'no.txt'))
    refused('no such tokenizer folder', tokenizer=str(tmp_path / 'no' / 'tokenizer'))
    refused("no document 'who'", show='who', out='')
    (tmp_path / 'bad.jsonl').write_text('{"text": "a"}\n{"text": 3}\n')
    refused("bad.jsonl:2: expected a string 'raw_content' or 'text', got 3", text=str(tmp_path / 'bad.jsonl'))
    (tmp_path / 'empty.txt').write_text('\n')
    refused('no text in it', text=str(tmp_path / 'empty.txt'))
    docs = random_docs(3, 7, ['a'])
    mute = make_folder(tmp_path / 'mute', [[('m', ['a'], [0], [9], [], [])]])
    refused("'m' has words but no units", units=str(mute))
    swapped = make_folder(tmp_path / 'swapped', [docs], words=False)
    write_words_shard(swapped / 'words', 0, [d[:4] for d in docs[::-1]])
    write_json(swapped / 'words' / 'info.json', {'refused': {}})
    refused("not the documents of", units=str(swapped))
    few_units = make_folder(tmp_path / 'few', [docs], n_units=3)
    refused('info.json says 3 units', units=str(few_units))
    with pytest.raises(Refused, match="no setting 'etaa', did you mean 'eta'?"):
        configure(Config, ['--etaa=1'])

@pytest.mark.slow
@pytest.mark.parametrize('n', [300, 3000])
def test_a_corpus_may_have_more_shards_than_a_process_may_open_files(tmp_path, tokenizer, n):
    save_tokenizer(tmp_path / 'tokenizer')
    docs = random_docs(n, 5, SIMPLE)
    make_folder(tmp_path / 'units', [[doc] for doc in docs])
    command = 'ulimit -n 256; exec "$0" "$@"'
    def limited(*arguments):
        result = subprocess.run(['bash', '-c', command, sys.executable, *arguments], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout
    limited('interleave.py', f'--units={tmp_path}/units', f'--tokenizer={tmp_path}/tokenizer', f'--out={tmp_path}/out',
            '--sources=speech')
    index = json.loads((tmp_path / 'out/train/speech/index.json').read_text())
    assert index['documents'] > 0.9 * n
    vocab = joint(tokenizer)
    with ShardWriter(tmp_path / 'many', 'text', vocab, shard_tokens=4) as writer:
        for i in range(n):
            writer.add(np.full(4, i % 250), [4])
    script = (f"import data; shards = data.Shards({str(tmp_path / 'many')!r}); print(shards.documents, shards.tokens); "
              "loader = data.Loader([shards], None, 8, 0); print(len(loader.rows(0, int(loader.n_rows[0]))[0]))")
    assert limited('-c', script).split() == [str(n), str(4 * n), str(n // 2)]

def make_utterances(folder, documents):
    """A units folder without words; documents: (id, text, units, runs)."""
    docs = [({'id': id, 'seconds': float(np.sum(runs)) / 25, 'text': text}, np.array(units), np.array(runs))
            for id, text, units, runs in documents]
    write_units_shard(folder, 0, docs)
    write_json(folder / 'info.json', {'n_units': K, 'hop': HOP, 'units_hash': 'h', 'documents': len(docs)})
    return folder

def test_utterances_are_spoken_and_written_by_turns_without_an_aligner(tmp_path, tokenizer, monkeypatch):
    rng = np.random.default_rng(0)
    documents = [(f'u{i:03d}', None if i == 5 else f'the dog {i}', rng.integers(0, K, 4), rng.integers(1, 4, 4))
                 for i in range(61)]
    units = make_utterances(tmp_path / 'units', documents)
    held_out = interleave.is_val(hash_ids([doc[0] for doc in documents]), .1)
    vocab = joint(tokenizer)
    expected = {'train': [], 'val': []} # with both ways to begin
    group = []
    for i, (doc, val) in enumerate(zip(documents, held_out)):
        group.append(doc)
        if i + 1 == len(documents) or (i + 1) % 4 == 0 or held_out[i + 1] != val:
            ways = []
            for begin in (0, 1):
                ids = []
                for turn, (_, text, unit_ids, _) in enumerate(doc for doc in group if doc[1]):
                    text_ids = tokenizer.encode(' ' * (turn > 0) + text)
                    speech_ids = [vocab.speech, *(tokenizer.size + unit_ids).tolist()]
                    ids += speech_ids if (turn + begin) % 2 else [vocab.text, *text_ids]
                ways.append(ids)
            expected['val' if val else 'train'].append(ways)
            group = []
    changes = dict(spans='utterances', turns=4)
    interleave.main(settings(tokenizer, tmp_path / 'a', units, **changes))
    choices = set()
    for split, documents_of_split in expected.items():
        written = read(tmp_path / 'a' / split / 'interleaved', vocab)
        for ids, ways in zip(written, [ways for ways in documents_of_split if ways[0]], strict=True):
            choices.add(ways.index(ids))
    assert choices == {0, 1}
    texts = read(tmp_path / 'a' / 'train' / 'text', vocab)
    assert texts == [tokenizer.encode(doc[1]) for doc, val in zip(documents, held_out) if doc[1] and not val]
    monkeypatch.setattr(interleave, 'BATCH_DOCS', 9)
    interleave.main(settings(tokenizer, tmp_path / 'b', units, **changes))
    assert all_bytes(tmp_path / 'a') == all_bytes(tmp_path / 'b')
    with pytest.raises(Refused, match="--show prints the spans of one document; with spans='utterances' it has none"):
        Config(units='u', show='x', spans='utterances')
    with pytest.raises(Refused, match="expected one of words, chunks, utterances, and 2 to 1,024 documents"):
        Config(units='u', out='o', spans='sentences')

def test_text_files_give_a_document_a_line(tmp_path):
    (tmp_path / 'a.txt').write_bytes('\ufeffonce upon\r\n\r\n a\u2028b \x0c c\n'.encode())
    (tmp_path / 'b.jsonl').write_text('{"text": " x\\ny"}\n\n{"text": " "}\n{"text": "z", "other": 1}')
    def read(name):
        return list(interleave.texts_of(str(tmp_path / name)))
    assert read('a.txt') == [('a.txt:1', 'once upon'), ('a.txt:3', 'a\u2028b \x0c c')]
    assert read('b.jsonl') == [('b.jsonl:1', ' x\ny'), ('b.jsonl:4', 'z')]

def test_folders_of_text_are_read_through_links_and_without_what_programs_leave(tmp_path, tokenizer, capsys):
    text = tmp_path / 'text'
    for name in ('a.txt', '.ipynb_checkpoints/a-checkpoint.txt', '._a.txt', 'notes.md', '../more/b.TXT'):
        path = text / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'one {path.name}\ntwo {path.name}\n')
    (text / 'more').symlink_to(tmp_path / 'more')
    (text / 'round').symlink_to(text)
    (text / 'c.jsonl.gz').write_bytes(gzip.compress(b'{"text": "three"}\n'))
    cfg = interleave.Config(text=str(text), sources=('text',), out=str(text / 'tokens'), tokenizer=tokenizer.name)
    assert interleave.text_files(cfg) == [f'{text}/{name}' for name in ('a.txt', 'c.jsonl.gz', 'more/b.TXT')]
    printed = capsys.readouterr().out
    assert '1 .md (notes.md)' in printed and 'links to what is read in its own place: round' in printed

def test_documents_of_val_that_train_holds_are_counted(tmp_path, tokenizer, capsys):
    """By content: the ids, which decide where a document goes, differ."""
    texts = [f'a text of number {i}' for i in range(60)]
    (tmp_path / 'a.txt').write_text('\n'.join(texts))
    (tmp_path / 'copy.txt').write_text('\n'.join(texts[:30]))
    docs = random_docs(40, 6, ['a'])
    units = make_folder(tmp_path / 'units', [docs])
    again = make_folder(tmp_path / 'again', [[(f'again-{id}', *rest) for id, *rest in docs]])
    cfg = settings(tokenizer, tmp_path / 'out', units, sources=('text', 'speech', 'textless'))
    cfg = replace(cfg, units=f'{units},{again}', text=f"{tmp_path}/a.txt,{tmp_path}/copy.txt", val_frac=0.3)
    interleave.main(cfg)
    vocabs = {'text': Vocab('text', tokenizer.size, tokenizer=tokenizer.hash), 'speech': joint(tokenizer),
              'textless': Vocab('speech', n_units=K, units='h')}
    counts = json.loads((tmp_path / 'out' / 'info.json').read_text())['equal_documents']
    for source in ('text', 'speech', 'textless'):
        train, val = (read(tmp_path / 'out' / name / source, vocabs[source]) for name in ('train', 'val'))
        different = {tuple(doc) for doc in train}
        assert counts[source] == {'val': sum(tuple(doc) in different for doc in val),
                                  'train': len(train) - len(different)}
        assert counts[source]['val'] > 3
    assert f"text: train holds {counts['text']['val']} of the" in capsys.readouterr().out

def test_without_words_speech_and_textless_are_written(tmp_path, tokenizer):
    silent = make_folder(tmp_path / 'silent', [random_docs(30, 6, ['a'])], words=False)
    interleave.main(settings(tokenizer, tmp_path / 'out', silent, sources=('speech', 'textless')))
    assert sorted(p.name for p in (tmp_path / 'out' / 'train').iterdir()) == ['speech', 'textless']

def test_documents_of_a_single_token_are_counted_as_nothing_is_predicted_in_them(tokenizer, tmp_path, capsys):
    (tmp_path / 'a.txt').write_text('q\nx\nq x\n')
    cfg = Config(text=str(tmp_path / 'a.txt'), sources=('text',), tokenizer=str(tokenizer.name), val_frac=0,
                 out=str(tmp_path / 'tokens'))
    interleave.main(cfg)
    written = json.loads((tmp_path / 'tokens' / 'info.json').read_text())['written']['train/text']
    assert (written['documents'], written['single_tokens']) == (3, 2)
    assert 'tokens; 2 documents are a single token' in capsys.readouterr().out
