"""
eval.py against a slow reference: transformers' model on one document at a time, and items scored by hand.
"""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import K, make_items, make_model, make_tokenizer, make_units
from transformers import AutoModelForCausalLM

import eval as evaluation
from configurator import Refused
from data import Shards, ShardWriter
from eval import Config, held_out_loss, main, score_pairs
from evaluation.likelihood import document_losses, shared_prefixes
from evaluation.scores import mean_and_stderr
from speech.units import Units
from tasks.tiny import pairs
from vocab import document


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
    from model import GPT
    from vocab import Vocab
    return GPT.from_pretrained(root / kind).eval(), Vocab.load(root / kind)

@pytest.mark.parametrize('row_tokens', [1, 30, 4096]) # a document a pass, several, all in one
def test_losses_equal_transformers_one_document_at_a_time(house, row_tokens):
    model, vocab = load(house[0], 'joint')
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, vocab.size, n) for n in (7, 2, 30, 13, 1, 7)]
    documents.append(documents[0].copy())
    for ids, ours in zip(documents, document_losses(model, documents, row_tokens)):
        assert ours.shape == (len(ids) - 1,)
        np.testing.assert_allclose(ours, reference_losses(house[0] / 'joint', ids), atol=1e-5)

def test_beginnings_that_are_shared_leave_the_fewest_tokens_of_all_ways_to_group():
    rng = np.random.default_rng(0)
    def tokens(documents, first, last, n):
        assert all((ids[:n] == documents[first][:n]).all() and len(ids) > n for ids in documents[first:last])
        return n + sum(len(ids) - n for ids in documents[first:last])
    def fewest(documents, first=0): # of all ways
        if first == len(documents):
            return 0
        found = []
        for last in range(first + 1, len(documents) + 1):
            shared = next((n for n in range(min(map(len, documents[first:last])) - 1, 0, -1)
                           if len({ids[:n].tobytes() for ids in documents[first:last]}) == 1), None)
            size = shared and tokens(documents, first, last, shared)
            if last == first + 1 or size and size <= 30:
                found.append((size or len(documents[first])) + fewest(documents, last))
        return min(found)
    shared = 0
    for _ in range(30):
        documents = sorted({tuple(rng.integers(0, 2, rng.integers(2, 12))) for _ in range(8)})
        documents = [np.array(ids) for ids in documents]
        groups = shared_prefixes(documents, 30, least=1)
        assert [a for a, _, _ in groups] == [0, *(b for _, b, _ in groups)][:-1] and groups[-1][1] == len(documents)
        assert all(b == a + 1 or tokens(documents, a, b, n) <= 30 for a, b, n in groups)
        assert sum(tokens(documents, *group) for group in groups) == fewest(documents)
        shared += sum(b > a + 1 for a, b, _ in groups)
    assert shared > 30
    assert shared_prefixes(documents, 30, least=1, most=1) == [(i, i + 1, 1) for i in range(len(documents))]

def test_what_documents_begin_with_is_computed_once(house, monkeypatch):
    model, vocab = load(house[0], 'joint')
    rng, seen = np.random.default_rng(0), []
    context, endings = rng.integers(0, vocab.size, 50), rng.integers(0, vocab.size, (3, 6))
    documents = [np.concatenate([context, ending]) for ending in endings]
    forward = model.forward
    monkeypatch.setattr(model, 'forward', lambda tokens, *rest, **more: seen.append(tokens.numel()) or forward(tokens, *rest, **more))
    document_losses(model, [*documents, documents[1]])
    assert seen == [50 + 3 * 5] # the last id of each is a target alone

def test_documents_of_each_direction(house):
    root, tokenizer = house
    _, vocab = load(root, 'joint')
    candidate = {'prompt': ('ab', [3, 4]), 'ending': ('c', [5]), 'joined': (np.array([3, 9, 5]), 2)}
    T = tokenizer.size
    text = lambda s: tokenizer.encode(s)
    for direction, ids, begin in (
            ('S', [T + 3, T + 9, T + 5], 2),
            ('T', [*text('ab'), *text(' c')], 2),
            ('S->T', [T + K, T + 3, T + 4, T + K + 1, *text(' c')], 3),
            ('T->S', [T + K + 1, *text('ab'), T + K, T + 5], 3)):
        got, at = document(vocab, tokenizer, direction, candidate)
        assert (got.tolist(), at) == (ids, begin), direction
    got, at = document(load(root, 'speech')[1], None, 'S', candidate)
    assert (got.tolist(), at) == ([1, 5, 11, 7, 1], 3)

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
    def losses(self, tokens, doc_start, targets, gap, rows):
        return targets.float()

@pytest.mark.parametrize('better, value', [('right', 1.0), ('wrong', 0.0), (None, 0.5)])
def test_a_model_that_knows_the_answer_scores_1_and_one_that_errs_0(house, better, value):
    root, tokenizer = house
    _, vocab = load(root, 'joint')
    def candidate(name):
        units = np.array([1, 2, 4 if name == better else 5])
        return {'prompt': ('a', units[:2]), 'ending': ('b', units[2:]), 'joined': (units, 2)}
    items = [{'id': f'm{i}', 'rows': ('main/ssc',), 'right': candidate('right'), 'wrong': candidate('wrong')} for i in range(4)]
    for direction in ('S', 'T->S'):
        rows, samples = score_pairs(Oracle(), vocab, tokenizer, items, direction, 100)
        assert rows['main/ssc'] == {'value': value, 'stderr': 0.0, 'n': 4, 'sum': value, 'ending': value}
        assert len(samples) == 4

def test_scores_equal_the_slow_reference(house):
    root, tokenizer = house
    main(Config(model=str(root / 'joint'), data='', items=str(root / 'items'), device='cpu'))
    results = json.loads((root / 'joint' / 'eval.json').read_text())['results']
    _, vocab = load(root, 'joint')
    corpus = list(pairs(Units(root / 'items')))
    for direction in ('S', 'S->T', 'T->S', 'T'):
        for task in ('ssc', 'tsc'):
            of = {'value': [], 'sum': [], 'ending': []}
            for pair in corpus:
                if pair['task'] == task:
                    (right, at), (wrong, _) = (document(vocab, tokenizer, direction, pair[s]) for s in ('right', 'wrong'))
                    r, w = (reference_losses(root / 'joint', ids) for ids in (right, wrong))
                    of['value'].append(float(r.mean() < w.mean()))
                    of['sum'].append(float(r.sum() < w.sum()))
                    at_wrong = document(vocab, tokenizer, direction, pair['wrong'])[1]
                    of['ending'].append(float(r[at - 1:].mean() < w[at_wrong - 1:].mean()))
            row = results[f'tiny/main/{task}/{direction}']
            assert row['n'] == 3
            for name, values in of.items():
                assert row[name] == pytest.approx(np.mean(values)), (direction, task, name)

def test_held_out_loss_is_the_mean_over_tokens_and_splits_by_modality(house):
    root, tokenizer = house
    model, vocab = load(root, 'joint')
    shards = Shards(root / 'tokens' / 'val' / 'speech', vocab)
    rows = held_out_loss(model, vocab, shards, 100, 10)
    each = [reference_losses(root / 'joint', shards.read(i)) for i in range(3)]
    assert rows['all']['value'] == pytest.approx(np.concatenate(each).mean(), abs=1e-5)
    assert rows['all']['tokens'] == 4 + 11 + 39 and rows['all']['n'] == 3
    assert rows.keys() == {'all', 'units'} and rows['units'] == rows['all']

def test_stderr_of_a_loss_is_that_of_a_mean_when_documents_are_equally_long(house, monkeypatch):
    root, _ = house
    _, vocab = load(root, 'joint')
    documents = [np.full(5, vocab.unit_offset + i) for i in range(4)]
    corpus = type('C', (), {'documents': 4, 'read': lambda self, i: documents[i]})()
    monkeypatch.setattr(evaluation, 'document_losses', lambda *_: [np.full(4, float(i)) for i in range(4)])
    row = held_out_loss(SimpleNamespace(cfg=SimpleNamespace(n_positions=100)), vocab, corpus, 100, 10)['all']
    assert (row['value'], row['stderr']) == (1.5, pytest.approx(mean_and_stderr([0, 1, 2, 3])[1]))

def test_a_speech_model_is_measured_on_speech_alone(house, tmp_path, capsys):
    root, _ = house
    folder = str(root / 'speech')
    main(Config(model=folder, data=str(root / 'tokens'), items=str(root / 'items'), out=str(tmp_path / 'e.json')))
    results = json.loads((tmp_path / 'e.json').read_text())['results'][folder]
    assert results.keys() == {'loss/tokens/textless/all', 'loss/tokens/textless/units', 'tiny/main/ssc/S', 'tiny/main/tsc/S'}
    assert results == json.loads((root / 'speech' / 'eval.json').read_text())['results']
    assert len((root / 'speech' / 'samples_tiny.jsonl').read_text().splitlines()) == 6
    row = results['tiny/main/ssc/S']
    assert f"tiny/main/ssc/S                        3 {100 * row['value']:8.1f} +-{100 * row['stderr']:.1f}" in capsys.readouterr().out

def test_a_missing_document_is_an_error_that_names_it(tmp_path):
    root = make_units(tmp_path / 'items', {f'm00000/{name}': ('x', [1, 2]) for name in ('context', 'right', 'context+right')})
    with pytest.raises(Refused, match="document 'm00000/wrong' is missing"):
        list(pairs(Units(root)))

def test_items_of_another_encoder_are_refused(house, tmp_path):
    root, _ = house
    make_units(tmp_path / 'items', {'m00000/context': ('x', [1])}, units_hash='other')
    with pytest.raises(Refused, match="units other, the model was trained on abc"):
        main(Config(model=str(root / 'joint'), data='', items=str(tmp_path / 'items'), out=str(tmp_path / 'e.json')))
    assert not (tmp_path / 'e.json').exists()

def test_the_directions_that_are_asked_for(house):
    root, _ = house
    main(Config(model=str(root / 'joint'), data='', items=str(root / 'items'), device='cpu', directions=('S', 'S->T')))
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
    with pytest.raises(Refused, match=message):
        main(Config(**{'model': str(house[0] / 'joint'), 'items': str(house[0] / 'items'), **settings}))

def test_bits_per_second_are_bits_a_unit_times_units_a_second(house, tmp_path):
    root, _ = house
    folder, rng = tmp_path / 'corpus', np.random.default_rng(2)
    vocab = load(root, 'speech')[1]
    for split, lengths in (('train', (30, 20)), ('val', (10, 40))):
        with ShardWriter(folder / split / 'textless', 'textless', vocab) as writer:
            for n in lengths: # as interleave.py writes them: bos units eos
                writer.add(np.array([1, *vocab.unit_to_token(rng.integers(0, K, n)), 1]), [n + 2])
    main(Config(model=str(root / 'speech'), data=str(folder), items=''))
    read = lambda: json.loads((root / 'speech' / 'eval.json').read_text())['results']['loss/corpus/textless/units']
    assert 'bits_per_second' not in read() # nothing says how long the speech is
    (folder / 'info.json').write_text(json.dumps({'hours': 5 / 3600}))
    main(Config(model=str(root / 'speech'), data=str(folder), items=''))
    row = read()
    assert row['units_per_second'] == 100 / 5 and row['tokens'] == 50
    assert row['bits_per_second'] == pytest.approx(row['value'] / np.log(2) * 20)

def test_a_held_out_document_longer_than_the_positions_is_taken_in_pieces_and_counted(house, tmp_path):
    root, _ = house
    make_model(tmp_path / 'm', root / 'tokenizer', 'joint')
    config = json.loads((tmp_path / 'm' / 'config.json').read_text())
    (tmp_path / 'm' / 'config.json').write_text(json.dumps({**config, 'max_position_embeddings': 15}))
    main(Config(model=str(tmp_path / 'm'), data=str(root / 'tokens'), items='', device='cpu'))
    row = json.loads((tmp_path / 'm' / 'eval.json').read_text())['results']['loss/tokens/speech/all']
    assert (row['tokens'], row['n'], row['cut']) == (4 + 11 + 14 + 14 + 9, 5, 1) # of 5, 12 and 40 units
    vocab, model = load(root, 'joint')[1], tmp_path / 'm'
    documents = [Shards(root / 'tokens' / 'val' / 'speech', vocab).read(i) for i in range(3)]
    pieces = [d[at:at + 15] for d in documents for at in range(0, len(d), 15)]
    assert row['value'] == pytest.approx(np.concatenate([reference_losses(model, p) for p in pieces]).mean(), abs=1e-5)

class Diverged(Oracle):
    def losses(self, tokens, doc_start, targets, gap, rows):
        return torch.full((len(targets),), torch.nan)

def test_a_model_without_finite_likelihoods_is_refused_not_scored_0(house):
    root, tokenizer = house
    _, vocab = load(root, 'joint')
    candidate = {'prompt': ('a', np.array([1])), 'ending': ('b', np.array([2])), 'joined': (np.array([1, 2]), 1)}
    items = [{'id': 'm0', 'rows': ('main/ssc',), 'right': candidate, 'wrong': candidate}]
    with pytest.raises(Refused, match='m0, S: the model gives no finite likelihood; has its training diverged'):
        score_pairs(Diverged(), vocab, tokenizer, items, 'S', 100)
