"""
eval.py against a slow reference: transformers' model on one document at a time, and items scored by hand.
"""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import K, make_items, make_model, make_tokenizer, make_units
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import eval as evaluation
from configurator import Refused
from data import Shards, ShardWriter
from eval import Config, held_out_loss, main, score_pairs
from evaluation.likelihood import document_losses, shared_prefixes
from evaluation.scores import mean_and_stderr
from hub.tokenizer import TextTokenizer
from model import GPT
from speech.units import Units
from tasks.tiny import pairs
from vocab import STYLES, Vocab, document


@pytest.fixture(scope='module')
def house(tmp_path_factory):
    """A tokenizer, items, val shards, and a random joint and speech-only model, all in one folder."""
    root = tmp_path_factory.mktemp('house')
    tokenizer = make_tokenizer(root / 'tokenizer')
    make_items(root / 'items')
    for kind in ('joint', 'speech'):
        model, vocab = make_model(root / kind, root / 'tokenizer', kind)
        source = {'joint': 'speech', 'speech': 'textless'}[kind]
        with ShardWriter(root / 'tokens' / 'val' / source, source, vocab) as writer:
            rng = np.random.default_rng(1)
            for n in (5, 12, 40):
                writer.add(vocab.unit_to_token(rng.integers(0, K, n)), [n])
    return root, tokenizer

def reference_losses(folder, ids):
    """-log p of ids 1.. by transformers, alone in its batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logp = model(torch.tensor(ids)[None]).logits[0].log_softmax(-1)
    return -logp[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].numpy()

def load(root, kind):
    """(model, vocab) of a kind."""
    return GPT.from_pretrained(root / kind).eval(), Vocab.load(root / kind)

def read_results(folder):
    """The rows of a model's eval.json."""
    return json.loads((folder / 'eval.json').read_text())['results']

@pytest.mark.parametrize('row_tokens', [1, 30, 4096]) # a document a pass, several, all in one
def test_losses_equal_transformers_one_document_at_a_time(house, row_tokens):
    model, vocab = load(house[0], 'joint')
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, vocab.size, n) for n in (7, 2, 30, 13, 1, 7)]
    documents.append(documents[0].copy())
    for ids, losses in zip(documents, document_losses(model, documents, row_tokens)):
        assert losses.shape == (len(ids) - 1,)
        np.testing.assert_allclose(losses, reference_losses(house[0] / 'joint', ids), atol=1e-5)

def n_tokens(documents, first, last, n):
    """Tokens of documents[first:last] with their first n ids stored once; they must be the same ids."""
    prefix = documents[first][:n]
    for ids in documents[first:last]:
        assert (ids[:n] == prefix).all() and len(ids) > n
    return n + sum(len(ids) - n for ids in documents[first:last])

def longest_prefix(documents):
    """The most ids that all documents begin with, short of the last id of each; None for none."""
    for n in range(min(map(len, documents)) - 1, 0, -1):
        if len({ids[:n].tobytes() for ids in documents}) == 1:
            return n
    return None

def fewest_tokens(documents, row_tokens, first=0):
    """Tokens of documents[first:] in the best of all ways to group them, by trying them all."""
    if first == len(documents):
        return 0
    sizes = []
    for last in range(first + 1, len(documents) + 1):
        n = longest_prefix(documents[first:last])
        size = n_tokens(documents, first, last, n) if n else None
        alone = last == first + 1
        if alone or size and size <= row_tokens:
            group = size or len(documents[first])
            sizes.append(group + fewest_tokens(documents, row_tokens, last))
    return min(sizes)

def test_beginnings_that_are_shared_leave_the_fewest_tokens_of_all_ways_to_group():
    rng = np.random.default_rng(0)
    n_groups_that_share = 0
    for _ in range(30):
        documents = sorted({tuple(rng.integers(0, 2, rng.integers(2, 12))) for _ in range(8)})
        documents = [np.array(ids) for ids in documents]
        groups = shared_prefixes(documents, 30, min_prefix=1)
        boundaries = [0, *(last for _, last, _ in groups)]
        assert [first for first, _, _ in groups] == boundaries[:-1] and boundaries[-1] == len(documents)
        for first, last, n in groups:
            assert last == first + 1 or n_tokens(documents, first, last, n) <= 30
        assert sum(n_tokens(documents, *group) for group in groups) == fewest_tokens(documents, 30)
        n_groups_that_share += sum(last > first + 1 for first, last, _ in groups)
    assert n_groups_that_share > 30
    alone = [(i, i + 1, 1) for i in range(len(documents))]
    assert shared_prefixes(documents, 30, min_prefix=1, max_group=1) == alone

def test_what_documents_begin_with_is_computed_once(house, monkeypatch):
    model, vocab = load(house[0], 'joint')
    rng = np.random.default_rng(0)
    context = rng.integers(0, vocab.size, 50)
    endings = rng.integers(0, vocab.size, (3, 6))
    documents = [np.concatenate([context, ending]) for ending in endings]
    seen = []
    forward = model.forward
    def counting_forward(tokens, *args, **kwargs):
        seen.append(tokens.numel())
        return forward(tokens, *args, **kwargs)
    monkeypatch.setattr(model, 'forward', counting_forward)
    document_losses(model, [*documents, documents[1]])
    assert seen == [50 + 3 * 5] # the last id of each is only a target

# The ids of a text tokenizer that splits as Qwen's does: a punctuation mark joins the letters after it.
TEXT_IDS = {'a': 0, 'b': 1, 'c': 2, '.': 3, 'Ġ': 4, 'Ġc': 5, '.c': 6, 'ab': 7} # Ġ: a blank
MERGES = [('Ġ', 'c'), ('.', 'c'), ('a', 'b')]
BOS = 8 # only of the tokenizer that has one; its text ids are 0..8, else 0..7

def tokenizer_of_ids(folder, has_bos):
    """A TextTokenizer of TEXT_IDS, which puts BOS first if it has one."""
    tokenizer = Tokenizer(models.BPE(TEXT_IDS, MERGES))
    qwen = r'[^\r\n\p{L}\p{N}]?\p{L}+|[^\s\p{L}\p{N}]+|\s+'
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(qwen), 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if has_bos:
        tokenizer.add_special_tokens(['<s>'])
        tokenizer.post_processor = TemplateProcessing(single='<s> $A', special_tokens=[('<s>', BOS)])
    folder.mkdir()
    tokenizer.save(str(folder / 'tokenizer.json'))
    return TextTokenizer(folder)

# Context "ab." of units 3 1, ending "c." of unit 2, both joined in one wave of units 3 0 2; four units. A joint
# vocabulary: the units are 8..11, <speech> is 12, <text> 13. Each document with where its ending begins, which has the
# separator before it.
# slamkit's cross-modal metric: one string of <speech>, units, <text> and texts as they are in the files, stripped, with
# a separator wherever the modality is not that of the part before, so also at the start; tokenized as a whole, so that
# ".c" is one token in T (the ending begins there). Its other metrics: the units of a wave, nothing else. A speech model
# has bos units bos (its tokenizer's template), in both styles.
DOCUMENTS = [
    ('slamkit', 'joint', 'S', [12, 11, 8, 10], 3),
    ('slamkit', 'joint', 'S->T', [12, 11, 9, 13, 2, 3], 3),
    ('slamkit', 'joint', 'T->S', [13, 7, 3, 12, 10], 3),
    ('slamkit', 'joint', 'T', [13, 7, 6, 3], 2),
    ('slamkit', 'text', 'T', [7, 6, 3], 1),
    ('slamkit', 'speech', 'S', [1, 5, 2, 4, 1], 3),
    ('training', 'joint', 'S', [11, 8, 10], 2),
    ('training', 'joint', 'S->T', [12, 11, 9, 13, 5, 3], 3),
    ('training', 'joint', 'T->S', [13, 7, 3, 12, 10], 3),
    ('training', 'joint', 'T', [7, 3, 5, 3], 2),
    ('training', 'text', 'T', [7, 3, 5, 3], 2),
    ('training', 'speech', 'S', [1, 5, 2, 4, 1], 3),
]
WHOLE = [ # one wave 3 0 2, or the text "c."
    ('joint', 'S', [11, 8, 10]), ('joint', 'T', [2, 3]), ('text', 'T', [2, 3]), ('speech', 'S', [1, 5, 2, 4, 1])]

def vocab_of(kind, tokenizer):
    """A vocabulary of four units."""
    return {'joint': Vocab('joint', tokenizer.size, 4, tokenizer.hash),
            'speech': Vocab('speech', n_units=4),
            'text': tokenizer.vocab}[kind]

def with_bos(ids, kind):
    """Ids of the table as the tokenizer with a BOS has them: it comes first, and what follows text moves up by one."""
    if kind == 'speech':
        return ids
    return [BOS, *(i + (i >= BOS) for i in ids)]

@pytest.mark.parametrize('has_bos', [False, True])
@pytest.mark.parametrize('style, kind, direction, expected, begin', DOCUMENTS)
def test_documents_of_each_style_and_direction(tmp_path, style, kind, direction, expected, begin, has_bos):
    tokenizer = tokenizer_of_ids(tmp_path / 'tokenizer', has_bos)
    if has_bos:
        begin += kind != 'speech'
        expected = with_bos(expected, kind)
    prompt, ending = ('ab.', [3, 1]), ('c.', [2])
    candidate = {'prompt': prompt, 'ending': ending, 'joined': (np.array([3, 0, 2]), 2)}
    ids, where = document(vocab_of(kind, tokenizer), tokenizer, direction, candidate, style)
    assert (ids.tolist(), where) == (expected, begin)
    if style == 'slamkit': # reads its files stripped
        candidate |= {'prompt': (' ab.\n', [3, 1]), 'ending': ('\tc. ', [2])}
        ids, where = document(vocab_of(kind, tokenizer), tokenizer, direction, candidate, style)
        assert (ids.tolist(), where) == (expected, begin)

@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('kind, direction, expected', WHOLE)
@pytest.mark.parametrize('prompt', [(None, None), ('', None)])
def test_whole_waves_and_texts_are_written_alike_in_both_styles(tmp_path, style, kind, direction, expected, prompt):
    tokenizer = tokenizer_of_ids(tmp_path / 'tokenizer', False)
    candidate = {'prompt': prompt, 'ending': ('c.', None), 'joined': (np.array([3, 0, 2]), None)}
    ids, where = document(vocab_of(kind, tokenizer), tokenizer, direction, candidate, style)
    assert (ids.tolist(), where) == (expected, None)

@pytest.mark.parametrize('has_bos', [False, True])
@pytest.mark.parametrize('direction, string', [
    ('S', '<speech><Un3><Un0><Un2>'), ('S->T', '<speech><Un3><Un1><text>c.'), ('T->S', '<text>ab.<speech><Un2>'),
    ('T', '<text>ab.c.')])
def test_slamkits_documents_are_those_of_transformers_tokenizer_with_added_tokens(tmp_path, direction, string, has_bos):
    tokenizer = tokenizer_of_ids(tmp_path / 'tokenizer', has_bos)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / 'tokenizer' / 'tokenizer.json'))
    reference.add_tokens([f'<Un{i}>' for i in range(4)] + ['<speech>', '<text>']) # in slamkit's order
    candidate = {'prompt': ('ab.', [3, 1]), 'ending': ('c.', [2]), 'joined': (np.array([3, 0, 2]), 2)}
    ids, _ = document(vocab_of('joint', tokenizer), tokenizer, direction, candidate, 'slamkit')
    assert ids.tolist() == reference(string).input_ids

def test_the_ending_begins_at_the_run_that_holds_the_first_frame_after_the_context(house):
    root, _ = house
    corpus = Units(root / 'items')
    pair = next(pairs(corpus))
    units, begin = pair['right']['joined']
    _, runs = corpus[corpus.find('m00000/context+right')]
    frames = corpus[corpus.find('m00000/context')][1].sum()
    ends = np.cumsum(runs)
    assert ends[begin] > frames >= (ends[begin - 1] if begin else 0)

class Oracle:
    """Every id likelier the smaller it is: losses are the ids themselves."""
    embed = torch.zeros(1)
    cfg = SimpleNamespace(position='rope', n_positions=100)
    def losses(self, tokens, doc_start, targets, hidden_span, rows):
        return targets.float()

@pytest.mark.parametrize('better, value', [('right', 1.0), ('wrong', 0.0), (None, 0.5)])
def test_a_model_that_knows_the_answer_scores_1_and_one_that_errs_0(house, better, value):
    root, tokenizer = house
    _, vocab = load(root, 'joint')
    def candidate(name):
        units = np.array([1, 2, 4 if name == better else 5])
        return {'prompt': ('a', units[:2]), 'ending': ('b', units[2:]), 'joined': (units, 2)}
    pair = {'right': candidate('right'), 'wrong': candidate('wrong')}
    items = [{'id': f'm{i}', 'rows': ('main/ssc',), **pair} for i in range(4)]
    for direction in ('S', 'T->S'):
        rows, samples = score_pairs(Oracle(), vocab, tokenizer, items, direction, 100)
        assert rows['main/ssc'] == {'value': value, 'stderr': 0.0, 'n': 4, 'sum': value, 'ending': value}
        assert len(samples) == 4

def reference_scores(root, vocab, tokenizer, direction, candidate):
    """Log-likelihoods of a candidate by transformers: mean a token, sum, mean a token of the ending."""
    ids, begin = document(vocab, tokenizer, direction, candidate)
    log_p = -reference_losses(root / 'joint', ids)
    return {'value': log_p.mean(), 'sum': log_p.sum(), 'ending': log_p[begin - 1:].mean()}

def test_scores_equal_the_slow_reference(house):
    root, tokenizer = house
    main(Config(model=str(root / 'joint'), data='', items=str(root / 'items'), device='cpu'))
    results = read_results(root / 'joint')
    _, vocab = load(root, 'joint')
    corpus = list(pairs(Units(root / 'items')))
    for direction in ('S', 'S->T', 'T->S', 'T'):
        for task in ('ssc', 'tsc'):
            won = {'value': [], 'sum': [], 'ending': []}
            for pair in corpus:
                if pair['task'] != task:
                    continue
                right = reference_scores(root, vocab, tokenizer, direction, pair['right'])
                wrong = reference_scores(root, vocab, tokenizer, direction, pair['wrong'])
                for name in won:
                    won[name].append(float(right[name] > wrong[name]))
            row = results[f'tiny/main/{task}/{direction}']
            assert row['n'] == 3
            for name in won:
                assert row[name] == pytest.approx(np.mean(won[name])), (direction, task, name)

def test_held_out_documents_of_one_token_are_not_measured_and_no_zero(house, tmp_path, capsys):
    model, vocab = load(house[0], 'joint')
    for source in ('speech', 'interleaved'):
        with ShardWriter(tmp_path / 'tokens' / 'val' / source, source, vocab) as writer:
            writer.add([7, 7, 8], [1, 1, 1] if source == 'speech' else [3])
    rows = evaluation.measure_losses(Config(data=str(tmp_path / 'tokens')), model, vocab)
    assert rows and all('/interleaved/' in name for name in rows)
    assert 'val/speech: not measured, each of its documents is a single token' in capsys.readouterr().out

def test_held_out_loss_is_the_mean_over_tokens_and_splits_by_modality(house):
    root, tokenizer = house
    model, vocab = load(root, 'joint')
    shards = Shards(root / 'tokens' / 'val' / 'speech', vocab)
    rows = held_out_loss(model, vocab, shards, 100, 10)
    losses = [reference_losses(root / 'joint', shards.read(i)) for i in range(3)]
    assert rows['all']['value'] == pytest.approx(np.concatenate(losses).mean(), abs=1e-5)
    assert rows['all']['tokens'] == 4 + 11 + 39 and rows['all']['n'] == 3
    assert rows.keys() == {'all', 'units'} and rows['units'] == rows['all']

def test_stderr_of_a_loss_is_that_of_a_mean_when_documents_are_equally_long(house, monkeypatch):
    root, _ = house
    _, vocab = load(root, 'joint')
    documents = [np.full(5, vocab.unit_offset + i) for i in range(4)]
    corpus = SimpleNamespace(documents=4, read=documents.__getitem__)
    losses = [np.full(4, float(i)) for i in range(4)]
    monkeypatch.setattr(evaluation, 'document_losses', lambda *_: losses)
    model = SimpleNamespace(cfg=SimpleNamespace(n_positions=100))
    row = held_out_loss(model, vocab, corpus, 100, 10)['all']
    assert (row['value'], row['stderr']) == (1.5, pytest.approx(mean_and_stderr([0, 1, 2, 3])[1]))

def test_a_speech_model_is_measured_on_speech_alone(house, tmp_path, capsys):
    root, _ = house
    folder = str(root / 'speech')
    out = tmp_path / 'e.json'
    main(Config(model=folder, data=str(root / 'tokens'), items=str(root / 'items'), out=str(out)))
    results = json.loads(out.read_text())['results'][folder]
    losses = {'loss/tokens/textless/all', 'loss/tokens/textless/units'}
    assert results.keys() == losses | {'tiny/main/ssc/S', 'tiny/main/tsc/S'}
    assert results == read_results(root / 'speech')
    assert len((root / 'speech' / 'samples_tiny.jsonl').read_text().splitlines()) == 6
    row = results['tiny/main/ssc/S']
    value = f"{100 * row['value']:8.1f} +-{100 * row['stderr']:.1f}"
    assert f"tiny/main/ssc/S                        3 {value}" in capsys.readouterr().out

def test_knowledge_is_scored_in_every_direction_like_the_same_items_of_ssc(house, tmp_path, capsys):
    root, _ = house
    source = Units(root / 'items')
    documents = {meta['id'].replace('m', 'k', 1): (meta['text'], source[i][0]) for i, meta in enumerate(source.meta)}
    items = make_units(tmp_path / 'items', {f'm{name[1:]}': document for name, document in documents.items()})
    knowledge = make_units(tmp_path / 'knowledge', {
        name: document for name, document in documents.items() if 'topic' not in name})
    main(Config(model=str(root / 'joint'), data='', items=str(items), tasks='tiny,knowledge',
                where=f'knowledge={knowledge}', device='cpu'))
    results = read_results(root / 'joint')
    for direction in ('S', 'S->T', 'T->S', 'T'):
        assert results[f'knowledge/main/{direction}'] == pytest.approx(results[f'tiny/main/ssc/{direction}'])
    with pytest.raises(Refused, match='no task'):
        Config(tasks='knowlege')

def test_a_missing_document_is_an_error_that_names_it(tmp_path):
    documents = {f'm00000/{name}': ('x', [1, 2]) for name in ('context', 'right', 'context+right')}
    root = make_units(tmp_path / 'items', documents)
    with pytest.raises(Refused, match="document 'm00000/wrong' is missing"):
        list(pairs(Units(root)))

def test_items_of_another_encoder_are_refused(house, tmp_path):
    root, _ = house
    items = make_units(tmp_path / 'items', {'m00000/context': ('x', [1])}, units_hash='other')
    out = tmp_path / 'e.json'
    with pytest.raises(Refused, match="units other, the model was trained on abc"):
        main(Config(model=str(root / 'joint'), data='', items=str(items), out=str(out)))
    assert not out.exists()

def test_the_directions_that_are_asked_for(house):
    root, _ = house
    directions = ('S', 'S->T')
    main(Config(model=str(root / 'joint'), data='', items=str(root / 'items'), device='cpu', directions=directions))
    samples = (root / 'joint' / 'samples_tiny.jsonl').read_text().splitlines()
    assert {json.loads(line)['direction'] for line in samples} == {'S', 'S->T'}

@pytest.mark.parametrize('settings, message', [
    ({'model': 'none', 'data': ''}, "none: no such model folder; expected a folder, or a hub id"),
    ({'items': 'none', 'data': ''}, "none: no such folder; tokenize_speech.py makes it"),
    ({'data': 'none'}, "none: no val/SOURCE shards that a joint model reads"),
    ({'data': '', 'items': ''}, "nothing to measure"),
    ({'directions': ('S', 'X')}, r"directions=\('S', 'X'\): expected some of S,S->T,T->S,T"),
])
def test_bad_input_is_one_line(house, settings, message):
    root, _ = house
    defaults = {'model': str(root / 'joint'), 'items': str(root / 'items')}
    with pytest.raises(Refused, match=message):
        main(Config(**{**defaults, **settings}))

def test_bits_per_second_are_bits_a_unit_times_units_a_second(house, tmp_path):
    root, _ = house
    folder = tmp_path / 'corpus'
    rng = np.random.default_rng(2)
    _, vocab = load(root, 'speech')
    for split, lengths in (('train', (30, 20)), ('val', (10, 40))):
        with ShardWriter(folder / split / 'textless', 'textless', vocab) as writer:
            for n in lengths: # as interleave.py writes them: bos units eos
                units = vocab.unit_to_token(rng.integers(0, K, n))
                writer.add(np.array([1, *units, 1]), [n + 2])
    def measure():
        main(Config(model=str(root / 'speech'), data=str(folder), items=''))
        return read_results(root / 'speech')['loss/corpus/textless/units']
    assert 'bits_per_second' not in measure() # nothing says how long the speech is
    (folder / 'info.json').write_text(json.dumps({'hours': 5 / 3600}))
    row = measure()
    assert row['units_per_second'] == 100 / 5 and row['tokens'] == 50
    assert row['bits_per_second'] == pytest.approx(row['value'] / np.log(2) * 20)

def test_a_held_out_document_longer_than_the_positions_is_taken_in_pieces_and_counted(house, tmp_path):
    root, _ = house
    model = tmp_path / 'm'
    make_model(model, root / 'tokenizer', 'joint')
    config = json.loads((model / 'config.json').read_text())
    (model / 'config.json').write_text(json.dumps({**config, 'max_position_embeddings': 15}))
    main(Config(model=str(model), data=str(root / 'tokens'), items='', device='cpu'))
    row = read_results(model)['loss/tokens/speech/all']
    assert (row['tokens'], row['n'], row['cut']) == (4 + 11 + 14 + 14 + 9, 5, 1) # of 5, 12 and 40 units
    _, vocab = load(root, 'joint')
    shards = Shards(root / 'tokens' / 'val' / 'speech', vocab)
    documents = [shards.read(i) for i in range(3)]
    pieces = [ids[start:start + 15] for ids in documents for start in range(0, len(ids), 15)]
    losses = np.concatenate([reference_losses(model, piece) for piece in pieces])
    assert row['value'] == pytest.approx(losses.mean(), abs=1e-5)

class Diverged(Oracle):
    """A model whose losses are not finite."""
    def losses(self, tokens, doc_start, targets, hidden_span, rows):
        return torch.full((len(targets),), torch.nan)

def test_a_model_without_finite_likelihoods_is_refused_not_scored_0(house):
    root, tokenizer = house
    _, vocab = load(root, 'joint')
    candidate = {'prompt': ('a', np.array([1])), 'ending': ('b', np.array([2])), 'joined': (np.array([1, 2]), 1)}
    items = [{'id': 'm0', 'rows': ('main/ssc',), 'right': candidate, 'wrong': candidate}]
    with pytest.raises(Refused, match='m0, S: the model gives no finite likelihood; has its training diverged'):
        score_pairs(Diverged(), vocab, tokenizer, items, 'S', 100)
