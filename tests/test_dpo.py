"""dpo.py: loss and gradients are the closed formula's and trl's; any cut, world size or accumulation gives the same run."""
import io
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from small import K, make_model, make_tokenizer, make_units, speech_like
from test_train import on_ranks, rows_of, state_of, weights_of

import dpo
import tokenize_speech
from configurator import Refused
from corpora import folder, spokenswag
from evaluation.text_scores import auto_bleu2
from files import write_json
from hub.families import GPTConfig
from hub.tokenizer import TextTokenizer
from model import GPT
from speech.audio import load_audio
from speech.units import deduplicate, write_units_shard
from speech.words import write_words_shard
from tiny import preferences
from tiny.stories import items, stories
from training import checkpoint
from vocab import Vocab

torch.set_num_threads(1)
MEANS = ('loss', 'margin', 'accuracy', 'chosen', 'rejected', 'kl')

def make_pairs(folder, n=20, seed=0, units_hash='abc', text='A {} saw the {}.'):
    """A units folder of n pairs: the chosen completion counts on where the prompt stopped, the rejected one counts down."""
    rng, documents = np.random.default_rng(seed), {}
    for i in range(n):
        start, length = int(rng.integers(K)), rng.integers(4, 12, 3)
        run = lambda first, step, n: [int((first + step * k) % K) for k in range(n)]
        parts = {'prompt': run(start, 1, length[0]), 'chosen': run(start + length[0], 1, length[1]),
                 'rejected': run(start + length[0], -1, length[2])}
        for part, units in parts.items():
            documents[f'{i:03d}/{part}'] = (text.format(part, i), units)
    return make_units(folder, documents, units_hash)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('dpo')
    make_tokenizer(root / 'tokenizer')
    for kind in ('speech', 'joint'):
        make_model(root / kind, root / 'tokenizer', kind)
    make_pairs(root / 'pairs')
    make_pairs(root / 'val', n=7, seed=1)
    return root

def small(made, out_dir, kind='speech', **changes):
    """Settings of a run of 12 steps of 8 of 20 pairs."""
    return dpo.Config(**{**dict(
        data=str(made / 'pairs'), val_data=str(made / 'val'), init=str(made / kind), out=str(out_dir), block_size=64,
        batch=8, micro_batch=4, lr=3e-3, max_steps=12, device='cpu', dtype='float32', save_every=1000, eval_every=1000,
        log_every=1000), **changes})

@pytest.fixture
def config(made, tmp_path):
    return lambda **changes: small(made, changes.pop('out', tmp_path / 'run'), **changes)

def opened(cfg):
    """vocab, tokenizer, Pairs of a Config."""
    vocab = Vocab.load(cfg.init)
    tokenizer = None if vocab.kind == 'speech' else TextTokenizer(cfg.init)
    return vocab, tokenizer, dpo.open_pairs(cfg, cfg.data, vocab, tokenizer)[0]

def losses_of(out_dir):
    return [(r['step'], *(repr(r.get(k)) for k in (*MEANS, 'lr', 'grad_norm'))) for r in rows_of(out_dir) if 'val' not in r]

def assert_same_end(one, two):
    assert losses_of(one) == losses_of(two) and state_of(one) == state_of(two) and weights_of(one) == weights_of(two)

@contextmanager
def while_fetching(step, act):
    """act() as the batch of `step` is made."""
    fetch = dpo.fetch
    def fetch_and_act(pairs, cfg, at, *rest):
        if at == step:
            act()
        return fetch(pairs, cfg, at, *rest)
    dpo.fetch = fetch_and_act
    try:
        yield
    finally:
        dpo.fetch = fetch

# ---- the loss

def slow_log_p(model, ids, begin):
    """Sum of log p of ids[begin:] given what is before, a document alone, one token at a time."""
    hidden = model(torch.tensor(ids[None]))
    log_p = model.logits(hidden)[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]] for t in range(begin, len(ids)))

def slow_dpo(model, ref, pairs, numbers, beta):
    """The definition: mean loss, and the sums that are logged."""
    rewards = []
    for i in numbers:
        log_ratios = []
        for k in (2 * i, 2 * i + 1):
            ids, begin = pairs.documents[k], int(pairs.begins[k])
            with torch.no_grad():
                log_ref = slow_log_p(ref, ids, begin)
            log_ratios.append(slow_log_p(model, ids, begin) - log_ref)
        rewards.append(beta * torch.stack(log_ratios))
    chosen, rejected = torch.stack(rewards).unbind(1)
    return -torch.log(1 / (1 + torch.exp(-(chosen - rejected)))).mean(), chosen, rejected

@pytest.mark.parametrize('kind, directions', [('speech', ('S',)), ('joint', ('S',)), ('joint', ('S->T', 'T->S', 'T'))])
def test_loss_and_gradients_are_the_closed_formula_s_in_float64(config, made, tmp_path, kind, directions):
    cfg = config(kind=kind, directions=directions, beta=0.7, block_size=200)
    vocab, tokenizer, pairs = opened(cfg)
    model = GPT.from_pretrained(cfg.init).double()
    ref = GPT.from_pretrained(cfg.init).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * (p != 0)
    numbers = [3, 0, 11, 7]
    pairs.reference = np.concatenate([token_log_p(ref, d, b) for d, b in zip(pairs.documents, pairs.begins)])
    loss, parts = dpo.DPOObjective(model, 0.7)(*(torch.as_tensor(x) for x in pairs.pack(numbers)))
    (loss / len(numbers)).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    want, chosen, rejected = slow_dpo(model, ref, pairs, numbers, 0.7)
    want.backward()
    assert abs(loss.item() / 4 - want.item()) < 1e-10 and want.item() != pytest.approx(math.log(2), abs=1e-3)
    for name, p in model.named_parameters():
        assert (got[name] - p.grad).abs().max() < 1e-9, name
    mean = dpo.DPOObjective.summary(parts.tolist())
    assert mean['margin'] == pytest.approx((chosen - rejected).mean().item(), abs=1e-9)
    assert mean['chosen'] == pytest.approx(chosen.mean().item(), abs=1e-9)
    assert mean['accuracy'] == (chosen > rejected).double().mean().item()
    assert mean['targets'] == sum(len(pairs.documents[k]) - pairs.begins[k] for i in numbers for k in (2 * i, 2 * i + 1))

@torch.no_grad()
def token_log_p(model, ids, begin):
    """log p of each of ids[begin:], float64."""
    log_p = model.logits(model(torch.tensor(ids[None])))[0].double().log_softmax(-1)
    return np.array([log_p[t - 1, ids[t]].item() for t in range(begin, len(ids))])

def test_kl_is_that_of_the_reference_to_the_model_on_the_reference_s_own_samples():
    """Over all next tokens, weighted by ref: the mean of e^d - 1 - d is sum ref log(ref / pi)."""
    ref, pi = (torch.randn(9, generator=torch.Generator().manual_seed(s)).double().log_softmax(0) for s in (0, 1))
    d = pi - ref
    assert ((torch.expm1(d) - d) * ref.exp()).sum().item() == pytest.approx((ref.exp() * (ref - pi)).sum().item(), abs=1e-12)

def test_a_run_s_first_steps_are_those_of_a_plain_loop(config):
    """Four steps against the definition: documents alone, the pairs of the seed's order, clip and AdamW unfused."""
    cfg = config(max_steps=4, warmup=0.5, schedule='inverse_sqrt', val_data='')
    dpo.main(cfg)
    _, _, pairs = opened(cfg)
    model, ref = GPT.from_pretrained(cfg.init), GPT.from_pretrained(cfg.init)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0, foreach=False, fused=False)
    for step, row in enumerate(rows_of(cfg.out)[:4]):
        numbers = dpo.pairs_of_steps(cfg, len(pairs), 8 * step, 8).tolist()
        loss, chosen, rejected = slow_dpo(model, ref, pairs, numbers, cfg.beta)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        t = (step + 1) / 4
        optimizer.param_groups[0]['lr'] = 3e-3 * (t / 0.5 if t < 0.5 else math.sqrt(0.5 / t))
        optimizer.step()
        assert row['lr'] == pytest.approx(optimizer.param_groups[0]['lr'], rel=1e-12)
        assert row['loss'] == pytest.approx(loss.item(), abs=1e-4)
        assert row['margin'] == pytest.approx((chosen - rejected).mean().item(), abs=1e-4)
        assert row['grad_norm'] == pytest.approx(norm.item(), rel=2e-3)
    assert rows_of(cfg.out)[0]['loss'] == pytest.approx(math.log(2), abs=1e-5)

def test_each_pass_has_every_pair_once_in_another_order(config):
    passes = [dpo.pairs_of_steps(config(), 20, 20 * e, 20) for e in range(3)]
    assert all(sorted(p) == list(range(20)) for p in passes) and len({tuple(p) for p in passes}) == 3
    assert np.array_equal(np.concatenate(passes)[13:29], dpo.pairs_of_steps(config(), 20, 13, 16))

def test_the_reference_is_made_for_the_pairs_that_the_budget_reaches(config, tmp_path):
    """A run of 1 step is the first step of a longer one; its reference knows 8 pairs and the 5 that are evaluated."""
    short, long = (config(max_steps=n, eval_rows=5, schedule='constant', warmup=0.0, out=str(tmp_path / str(n))) for n in (1, 12))
    dpo.main(short)
    dpo.main(long)
    a, b = (load_file(Path(cfg.out, 'reference.safetensors')) for cfg in (short, long))
    _, _, pairs = opened(short)
    seen = dpo.pairs_of_steps(short, 20, 0, 8)
    known = np.isin(np.repeat(np.arange(40) // 2, pairs.count), seen)
    assert np.array_equal(~a['train'].isnan().numpy(), known) and not b['train'].isnan().any() and a['held out'].isnan().any()
    assert torch.allclose(a['train'][known], b['train'][known], atol=1e-5)
    assert rows_of(short.out)[0]['loss'] == pytest.approx(rows_of(long.out)[0]['loss'], abs=1e-6)

def test_a_row_has_no_padding_and_no_document_sees_another(config):
    cfg = config()
    _, _, pairs = opened(cfg)
    tokens, doc_start, targets, _, document, weight = pairs.pack([4, 2])
    assert tokens.size == sum(len(pairs.documents[k]) for k in (8, 9, 4, 5)) and len(weight) == 2
    assert np.unique(doc_start[0]).tolist() == np.cumsum([0] + [len(pairs.documents[k]) for k in (8, 9, 4)]).tolist()
    assert (targets >= 0).sum() == sum(pairs.count[k] for k in (8, 9, 4, 5))
    model, ids, begin = GPT.from_pretrained(cfg.init), pairs.documents[4], int(pairs.begins[4])
    with torch.no_grad():
        packed = model.losses(*(torch.as_tensor(x) for x in (tokens, doc_start, targets))).numpy()
    assert -packed[document[0] == 2].sum() == pytest.approx(token_log_p(model, ids, begin).sum(), abs=1e-4)

def test_loss_and_gradients_are_trl_s(config, made, tmp_path, monkeypatch):
    trl = pytest.importorskip('trl', reason="trl is not here: pip install trl")
    transformers, datasets = pytest.importorskip('transformers'), pytest.importorskip('datasets')
    cfg = config(beta=0.3)
    _, _, pairs = opened(cfg)
    numbers = [0, 5, 9, 2]
    model, ref = GPT.from_pretrained(cfg.init), GPT.from_pretrained(cfg.init)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * (p != 0)
    model.save_pretrained(tmp_path / 'moved', vocab=Vocab.load(cfg.init))
    pairs.reference = np.concatenate([token_log_p(ref, d, b) for d, b in zip(pairs.documents, pairs.begins)]).astype(np.float32)
    loss, parts = dpo.DPOObjective(model, 0.3)(*(torch.as_tensor(x) for x in pairs.pack(numbers)))
    (loss / 4).backward()

    theirs, their_ref = (transformers.AutoModelForCausalLM.from_pretrained(f, attn_implementation='eager') for f in (tmp_path / 'moved', cfg.init))
    ids = lambda k, part: (pairs.documents[k][:pairs.begins[k]] if part == 'prompt' else pairs.documents[k][pairs.begins[k]:]).tolist()
    rows = [{'prompt_ids': ids(2 * i, 'prompt'), 'chosen_ids': ids(2 * i, ''), 'rejected_ids': ids(2 * i + 1, '')} for i in numbers]
    monkeypatch.setattr(trl.DPOTrainer, '_prepare_dataset', lambda self, dataset, *_, **__: dataset) # ids are ready
    trainer = trl.DPOTrainer(theirs, their_ref, trl.DPOConfig(
        str(tmp_path / 'trl'), beta=0.3, report_to=[], use_cpu=True, bf16=False, max_length=None, gradient_checkpointing=False,
        per_device_train_batch_size=4), train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(cfg.init, pad_token='<PAD>'))
    batch = trainer.data_collator(rows)
    want = trainer.compute_loss(theirs, batch)
    want.backward()
    assert loss.item() / 4 == pytest.approx(want.item(), abs=2e-5)
    assert want.item() != pytest.approx(math.log(2), abs=1e-3)
    moved = {name: p.grad for name, p in theirs.named_parameters()}
    assert (model.embed.grad[:model.cfg.vocab_size] - moved['model.embed_tokens.weight']).abs().max() < 1e-5
    assert (model.layers[0].down.weight.grad - moved['model.layers.0.mlp.down_proj.weight']).abs().max() < 1e-5
    q = moved['model.layers.1.self_attn.q_proj.weight']
    assert (model.layers[1].qkv.weight.grad[:len(q)] - q).abs().max() < 1e-5

# ---- the run

@pytest.mark.parametrize('kind, directions', [('speech', ('S',)), ('joint', ('S', 'S->T'))])
def test_it_learns_to_prefer_also_what_was_held_out(config, kind, directions):
    cfg = config(kind=kind, directions=directions, max_steps=25, block_size=100)
    val = dpo.main(cfg)['held out']
    rows = rows_of(cfg.out)
    assert rows[0]['loss'] == pytest.approx(math.log(2), abs=1e-4) and rows[24]['loss'] < 0.45 and rows[24]['margin'] > 0.5
    assert val['accuracy'] > 0.9 and val['margin'] > 0.2 and val['kl'] > 0
    assert abs(rows[0]['kl']) < 1e-6 < rows[24]['kl'] and rows[24]['margin'] == pytest.approx(rows[24]['chosen'] - rows[24]['rejected'])
    from transformers import AutoModelForCausalLM
    theirs, ours = AutoModelForCausalLM.from_pretrained(cfg.out), GPT.from_pretrained(cfg.out)
    ids = torch.arange(2, 9)[None]
    assert torch.allclose(theirs(ids).logits, ours.logits(ours(ids)), atol=1e-4)
    settings = json.loads(Path(cfg.out, 'settings.json').read_text())
    assert settings['pairs'] == 25 * 8 and settings['inputs']['train pairs'] == opened(cfg)[2].hash

def test_evaluation_is_the_mean_over_the_held_out_pairs(config):
    for rows, micro_batch in ((512, 4), (5, 2)): # 7 pairs: the last micro-batch is not full
        cfg = config(max_steps=3, eval_rows=rows, micro_batch=micro_batch, out=config().out + str(rows))
        val = dpo.main(cfg)['held out']
        _, _, pairs = opened(replace(cfg, data=cfg.val_data))
        loss, chosen, rejected = slow_dpo(GPT.from_pretrained(cfg.out), GPT.from_pretrained(cfg.init), pairs, range(min(rows, 7)), cfg.beta)
        assert val['loss'] == pytest.approx(loss.item(), abs=1e-5)
        assert val['margin'] == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)

def test_accumulation_changes_nothing_but_rounding(config, tmp_path):
    runs = [config(micro_batch=m, out=str(tmp_path / str(m))) for m in (8, 2, 1)]
    for cfg in runs:
        dpo.main(cfg)
    a, *others = (rows_of(cfg.out) for cfg in runs)
    for b in others:
        for x, y in zip(a, b, strict=True):
            assert x.get('targets') == y.get('targets') and all(x.get(k) == pytest.approx(y.get(k), abs=2e-4) for k in ('loss', 'margin', 'kl'))

def test_bf16_stays_near_float32(config, tmp_path):
    runs = [config(out=str(tmp_path / dtype), dtype=dtype) for dtype in ('float32', 'bfloat16', 'pure_bfloat16')]
    for cfg in runs:
        dpo.main(cfg)
    a, *others = ([r['loss'] for r in rows_of(cfg.out)[:12]] for cfg in runs)
    for b in others:
        assert a != b and max(abs(x - y) for x, y in zip(a, b)) < 0.1

@pytest.mark.parametrize('parallel', ['ddp', 'fsdp'])
def test_two_ranks_are_one(config, tmp_path, parallel):
    one, two = (config(micro_batch=2, out=str(tmp_path / name), parallel=parallel) for name in ('one', 'two'))
    dpo.main(one)
    assert on_ranks(2, lambda rank: dpo.main(two)) == [0, 0]
    references = [load_file(Path(cfg.out, 'reference.safetensors')) for cfg in (one, two)]
    assert all(torch.allclose(references[0][name], references[1][name], atol=1e-5) for name in ('train', 'held out'))
    a, b = rows_of(one.out), rows_of(two.out)
    assert len(a) == len(b) == 13
    for x, y in zip(a, b):
        assert x.get('targets') == y.get('targets') and x.get('loss') == pytest.approx(y.get('loss'), abs=2e-4), x['step']
    for name in MEANS:
        assert a[-1]['val']['held out'][name] == pytest.approx(b[-1]['val']['held out'][name], abs=2e-3)

@pytest.mark.parametrize('cut', [1, 5])
def test_a_cut_and_resumed_run_is_the_uncut_one_to_the_bit(config, tmp_path, cut, capsys):
    whole, parts = (config(out=str(tmp_path / name)) for name in ('whole', 'parts'))
    dpo.main(whole)
    with while_fetching(cut, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert dpo.main(parts) is None
    assert not Path(parts.out, 'settings.json').exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo, 'log_probs', lambda *_: 1 / 0) # the reference of the first start is used
        dpo.main(parts)
    assert_same_end(parts.out, whole.out)
    before = {p: p.stat().st_mtime_ns for p in Path(parts.out).rglob('*')}
    assert dpo.main(parts)['held out'] == rows_of(parts.out)[-1]['val']['held out']
    assert "finished before, at step 12" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in Path(parts.out).rglob('*')} == before

@pytest.mark.parametrize('damage', ['gone', 'cut', 'changed'])
def test_a_reference_that_is_not_what_was_stored_is_computed_again_by_the_start(config, tmp_path, damage):
    whole, parts = (config(out=str(tmp_path / name)) for name in ('whole', 'parts'))
    dpo.main(whole)
    with while_fetching(4, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        dpo.main(parts)
    path = Path(parts.out, 'reference.safetensors')
    if damage == 'gone':
        path.unlink()
    elif damage == 'cut':
        path.write_bytes(path.read_bytes()[:200])
    else:
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    dpo.main(parts)
    assert_same_end(parts.out, whole.out)

# ---- kills

def slow_run(cfg):
    """A run whose saves take as long as its steps, so that kills land in both, and in the reference."""
    save, save_reference = checkpoint.save_file, dpo.save_file
    def slowly(write):
        def wait(*args):
            time.sleep(0.03)
            write(*args)
            time.sleep(0.03)
        return wait
    checkpoint.save_file, dpo.save_file = slowly(save), slowly(save_reference)
    dpo.main(cfg)

def killed(cfg, after):
    process = multiprocessing.get_context('fork').Process(target=slow_run, args=(cfg,))
    process.start()
    process.join(after)
    process.kill()
    process.join()
    return any(Path(cfg.out).glob('*.tmp'))

def kill_at(made, tmp_path, moments):
    settings = lambda name: small(made, tmp_path / name, max_steps=8, save_every=2)
    dpo.main(untouched := settings('untouched'))
    start, in_save = time.monotonic(), 0
    killed(settings('measured'), 60)
    duration = time.monotonic() - start
    for i in range(moments):
        cfg = settings(str(i))
        in_save += killed(cfg, random.Random(i).uniform(0.05, 1) * duration)
        dpo.main(cfg)
        assert_same_end(cfg.out, untouched.out)
    return in_save

def test_a_killed_run_ends_as_an_untouched_one(made, tmp_path):
    kill_at(made, tmp_path, 3)

@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_an_untouched_one(made, tmp_path):
    assert kill_at(made, tmp_path, 20) >= 5 # of them while something was written

# ---- pairs

@pytest.mark.parametrize('text, bleu', [
    ('the cat sat on the mat and the cat sat', 4 / 9), ('a b a b a b', 1.0), ("It's a dog. It's a dog.", 0.5), ('one', 0.0), ('', 0.0)])
def test_auto_bleu_of_known_texts(text, bleu): # the papers' code gives these
    assert auto_bleu2(text) == pytest.approx(bleu, abs=1e-12)

def test_what_is_left_out_is_counted_and_listed(config, tmp_path, capsys):
    folder = tmp_path / 'some'
    texts = {'a': ('The cat sat.', 'It slept all day.'), 'b': ('Go on, go on, go on,', 'go on, go on.'), 'c': ('So it was.', 'The end.'), 'd': ('One.', 'Two.')}
    documents = {f'{item}/{part}': (text, units) for item, (prompt, chosen) in texts.items() for part, text, units in (
        ('prompt', prompt, [1, 2, 3]), ('chosen', chosen, [4, 5]), ('rejected', 'No.', [4, 5] if item == 'c' else [7, 6, 4]))}
    del documents['d/chosen']
    make_units(folder, documents)
    cfg = config(data=str(folder), max_steps=1)
    dpo.main(cfg)
    left_out = [json.loads(line) for line in Path(cfg.out, 'dropped.jsonl').read_text().splitlines()]
    assert [(line['id'].split(':')[-1], line['why']) for line in left_out] == [('b', 'auto-BLEU: 0.857'), ('c', 'equal completions'), ('d', 'no chosen')]
    assert "1 pairs, 7 targets; left out: 1 auto-BLEU, 1 equal completions, 1 no chosen" in capsys.readouterr().out
    kept = dpo.open_pairs(config(data=str(folder), max_auto_bleu=None), str(folder), Vocab.load(cfg.init), None)[0]
    assert len(kept) == 2

def test_documents_are_slam_s_with_one_run_where_prompt_and_completion_meet(config, tmp_path):
    documents = {'a/prompt': ('x', [3, 1]), 'a/chosen': ('y', [1, 4]), 'a/rejected': ('z', [5])}
    cfg = config(data=str(make_units(tmp_path / 'one', documents)))
    _, _, pairs = opened(cfg)
    assert [d.tolist() for d in pairs.documents] == [[1, 5, 3, 6, 1], [1, 5, 3, 7, 1]] and pairs.begins.tolist() == [3, 3]
    _, text, joint = opened(replace(cfg, init=cfg.init.replace('speech', 'joint'), directions=('S', 'S->T'), eot=True))
    u, eot = 257, text.eot # 257 text ids, then units, <speech>, <text>
    assert [d.tolist() for d in joint.documents] == [
        [u + 3, u + 1, u + 4, eot], [u + 3, u + 1, u + 5, eot],
        [u + K, u + 3, u + 1, u + K + 1, *text.encode(' y'), eot], [u + K, u + 3, u + 1, u + K + 1, *text.encode(' z'), eot]]

def test_slamkit_s_lines_are_read(config, tmp_path):
    part = lambda *units: {'units': list(units), 'duration': [1] * len(units)}
    lines = [{'prompt_path': 'p.wav', 'prompt': part(1, 2), 'chosen': part(3, 4), 'rejected': part(5), 'speaker': 'af_heart',
              'prompt_text': 'A cat.', 'chosen_text': 'It slept.', 'rejected_text': 'No.'}] * 2
    path = tmp_path / 'pairs.jsonl'
    path.write_text('\n'.join(map(json.dumps, lines)))
    _, _, pairs = opened(config(data=str(path)))
    assert [d.tolist() for d in pairs.documents[:2]] == [[1, 3, 4, 5, 6, 1], [1, 3, 4, 7, 1]] and len(pairs) == 2
    for bad, why in (({'units': '<Un1>'}, r"'chosen' is {'units': '<Un1>'}; expected"), (None, "'chosen' is None; expected")):
        path.write_text(json.dumps(lines[0]) + '\n' + json.dumps({**lines[0], 'chosen': bad}))
        with pytest.raises(Refused, match=f"pairs.jsonl:2: {why}"):
            opened(config(data=str(path)))
    path.write_text('\n'.join(json.dumps({**line, 'id': 7}) for line in lines))
    with pytest.raises(Refused, match="pairs.jsonl:2: the id 7 comes twice; expected one a pair"):
        opened(config(data=str(path)))
    path.write_text(json.dumps({**lines[0], 'rejected': part(K)}))
    with pytest.raises(Refused, match=rf"pairs.jsonl:1: units {K}..{K}, expected 0..{K - 1}|units .*{K}, expected 0..{K - 1}"):
        opened(config(data=str(path)))

def test_spokenswag_becomes_pairs(config, tmp_path, capsys):
    pyarrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet', reason="pyarrow is not here: pip install pyarrow")
    def sound(seed, format):
        data = io.BytesIO()
        soundfile.write(data, speech_like(0.5 + 0.1 * seed, seed), 16000, format=format)
        return {'bytes': data.getvalue(), 'path': None}
    columns = {'speaker': ['af_heart'] * 3}
    for k, (part, format) in enumerate(zip(dpo.PARTS, ('WAV', 'FLAC', 'OGG'))):
        columns |= {f'{part}_text': [f'{part} of {i}.' for i in range(3)], part: [sound(3 * i + k, format) for i in range(3)]}
    (tmp_path / 'hub').mkdir()
    parquet.write_table(pyarrow.table(columns), tmp_path / 'hub/train-00000.parquet')
    spokenswag.main(spokenswag.Config(str(tmp_path / 'hub'), str(tmp_path / 'audio')))
    found = list(folder.utterances(tmp_path / 'audio'))
    assert [u['id'] for u in found[:3]] == [f'train-00000/000000/{part}' for part in sorted(dpo.PARTS)]
    assert found[1]['text'] == 'prompt of 0.' and found[1]['speaker'] == 'af_heart'
    assert [len(load_audio(u['path'])) for u in found] == [16000 * (50 + 10 * (3 * i + k)) // 100 for i in range(3) for k in (1, 0, 2)]
    tokenize_speech.main(tokenize_speech.Config(audio=str(tmp_path / 'audio'), out=str(tmp_path / 'units')))
    pairs = dpo.read_units(tmp_path / 'units', Vocab('speech', n_units=K))
    assert sorted(pairs) == [f'train-00000/{i:06d}' for i in range(3)] and set(pairs['train-00000/000001']) == set(dpo.PARTS)
    del columns['rejected']
    parquet.write_table(pyarrow.table(columns), tmp_path / 'less.parquet')
    for root, why in ((tmp_path / 'less.parquet', "no column rejected; expected SpokenSwag's speaker, prompt_text"), (tmp_path / 'none', "expected .parquet files")):
        with pytest.raises(Refused, match=why):
            spokenswag.main(spokenswag.Config(str(root), str(tmp_path / 'other')))
    assert not (tmp_path / 'other').exists()

def spoken_stories(folder, n):
    """The first n training stories as tiny/build/speak.py names them: each word two frames of a unit of its own, silences between."""
    lines, words = [], []
    for i, story in zip(range(n), stories('train', n)):
        said, units, starts = [], [], []
        for word in story.text.split():
            units += [0] * (4 if said and said[-1].endswith('.') else 1)
            starts.append(len(units) * 640)
            units += [1 + zlib.crc32(word.strip('.,').lower().encode()) % 400] * 2
            said.append((' ' if said else '') + word)
        lines.append(({'id': f's{i:06d}', 'path': None, 'seconds': len(units) / 25, 'speaker': 'joe', 'text': story.text}, *deduplicate(units)))
        words.append((f's{i:06d}', said, starts, [s + 1280 for s in starts]))
    write_units_shard(folder, 0, lines)
    write_words_shard(folder / 'words', 0, words)
    info = {'encoder': '', 'layer': 1, 'kmeans': '', 'units_hash': 'abc', 'n_units': 500, 'hop': 640, 'frame_hz': 25.0, 'documents': n}
    write_json(folder / 'info.json', info)
    write_json(folder / 'words' / 'info.json', {'units_hash': 'abc', 'documents': n, 'words': sum(len(w[1]) for w in words), 'refused': {}})

def test_pairs_of_stories_say_what_they_should(tmp_path):
    spoken_stories(tmp_path / 'stories', 60)
    preferences.main(preferences.Config(str(tmp_path / 'stories'), str(tmp_path / 'pairs')))
    found = [dpo.read_units(tmp_path / 'pairs' / split, Vocab('speech', n_units=K, units='abc')) for split in ('train', 'val')]
    assert set(found[1]) >= {'s000000.topic', 's000020.topic', 's000040.topic'} and not set(found[0]) & set(found[1])
    told, unit = {f's{i:06d}': story for i, story in enumerate(stories('train', 60))}, lambda word: 1 + zlib.crc32(word.strip('.,').lower().encode()) % 400
    mirrors = 0
    for name, parts in (found[0] | found[1]).items():
        story, (prompt, chosen, rejected) = told[name.split('.')[0]], (parts[part] for part in dpo.PARTS)
        assert prompt[0] == ' '.join(story.sentences[:2]) and chosen[0] == story.sentences[2]
        for text, units in (prompt, chosen, rejected):
            assert [u for u in units if u] == [unit(word) for word in text.split()], (name, text)
        mirrors += name.endswith('.mirror')
        if name.endswith('.mirror'):
            assert rejected[0] == story.wrong and (chosen[1] == 0).sum() == (rejected[1] == 0).sum()
    assert mirrors > 30 and len(found[0]) + len(found[1]) == 60 + mirrors
    texts = {story.text for story in stories('train', 60)}
    assert not texts & {' '.join((*item.context, item.right)) for item in items(200)}
    with pytest.raises(Refused, match="s000000: says .* expected --seed of its stories"):
        preferences.main(preferences.Config(str(tmp_path / 'stories'), str(tmp_path / 'again'), seed=2))

# ---- refusals

def test_rows_longer_than_learned_positions_are_refused(config, made, tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(family='opt', vocab_size=K + 2, n_layer=1, n_head=2, n_embd=16, n_positions=150))
    model.save_pretrained(tmp_path / 'opt', vocab=Vocab.load(made / 'speech'))
    longest = max(a + b for a, b in np.array([len(d) for d in opened(config())[2].documents]).reshape(-1, 2))
    with pytest.raises(Refused, match=f"micro_batch=4: pairs have up to {longest} tokens, a row of .*opt 150; expected at most {150 // longest}"):
        dpo.main(config(init=str(tmp_path / 'opt')))
    dpo.main(config(init=str(tmp_path / 'opt'), micro_batch=2, max_steps=1))

def test_refused_settings_say_what_was_expected(config):
    for changes, message in [
            (dict(batch=6), "batch=6: expected 4 or 8, a multiple of world 1 x micro_batch 4"),
            (dict(directions=()), "directions=(): expected at least one, as 'S'"),
            (dict(parallel='fsdp', dtype='bfloat16'), "parallel='fsdp' with dtype='bfloat16' rounds otherwise than the "
             "reference was made: expected 'ddp', or dtype='pure_bfloat16' or 'float32'"),
            (dict(beta=0.0), "beta=0.0: expected more than 0"), (dict(schedule='cos'), "schedule='cos': expected one of cosine, constant, inverse_sqrt, wsd"),
            (dict(max_epochs=1.0), "expected exactly one of max_steps, max_epochs, max_seconds, got max_steps and max_epochs"),
            (dict(warmup=0.0), "schedule='inverse_sqrt' falls from the end of the warm-up: expected warmup above 0")]:
        with pytest.raises(Refused) as refusal:
            config(**changes)
        assert str(refusal.value) == message

def test_refused_pairs_leave_no_run_behind(config, made, tmp_path):
    make_pairs(tmp_path / 'other', units_hash='xyz')
    make_units(tmp_path / 'none', {'0/context': ('a', [1]), '0/right': ('b', [2])})
    make_units(tmp_path / 'mute', {'0/prompt': (None, [1]), '0/chosen': (None, [2]), '0/rejected': (None, [3])})
    make_units(tmp_path / 'long', {'0/prompt': ('a', [i % 7 for i in range(70)]), '0/chosen': ('b', [2]), '0/rejected': ('c', [3])})
    for changes, message in [
            (dict(data=str(tmp_path / 'nowhere')), f"{tmp_path}/nowhere: no such folder; tokenize_speech.py makes it"),
            (dict(data=str(tmp_path / 'other')), f"{tmp_path}/other: units xyz, the model was trained on abc: encode the pairs with the model's encoder"),
            (dict(data=str(tmp_path / 'none')), f"{tmp_path}/none: no pairs; expected documents ITEM/prompt, ITEM/chosen and ITEM/rejected"),
            (dict(data=str(tmp_path / 'mute')), f"{tmp_path}/mute:0: has no text, which the auto-BLEU filter needs; --max_auto_bleu=None leaves it out"),
            (dict(data=str(tmp_path / 'long')), f"{tmp_path}/long:0: a prompt of 71 tokens, 73 with a completion, block_size is 64; expected a larger one, "
                                                "or --skip_long=True to leave such pairs out"),
            (dict(data=str(tmp_path / 'long'), skip_long=True), f"{tmp_path}/long: all of 1 pairs were left out, the first: too long: 73 tokens"),
            (dict(directions=('S', 'T')), "directions=('S', 'T'): a speech model reads S, not T"),
            (dict(max_steps=None, max_epochs=0.1), "max_epochs=0.1: 20 pairs are not one step of 8"),
            (dict(init=str(tmp_path / 'no-model')), f"{tmp_path}/no-model: no such model folder; expected a folder, or a hub id like Qwen/Qwen2.5-0.5B")]:
        with pytest.raises(Refused) as refusal:
            dpo.main(config(**changes))
        assert str(refusal.value) == message and not Path(config().out).exists()

def test_a_run_of_other_settings_or_pairs_in_the_same_folder_is_refused(config, made, tmp_path):
    cfg = config(max_steps=2)
    dpo.main(cfg)
    with pytest.raises(Refused, match="holds another run: beta was 0.1 and is 0.2; take"):
        dpo.main(replace(cfg, beta=0.2))
    shutil.copytree(made / 'pairs', tmp_path / 'pairs')
    mine = config(max_steps=6, data=str(tmp_path / 'pairs'), out=str(tmp_path / 'mine'))
    with while_fetching(2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        dpo.main(mine)
    shutil.rmtree(tmp_path / 'pairs')
    make_pairs(tmp_path / 'pairs', seed=5)
    with pytest.raises(Refused, match=r"holds another run: train pairs was '\w{16}' and is '\w{16}'; take"):
        dpo.main(mine)

def test_a_step_that_is_not_finite_is_skipped(config, monkeypatch):
    forward, calls = dpo.DPOObjective.forward, [0]
    def poisoned(self, *batch):
        loss, parts = forward(self, *batch)
        calls[0] += torch.is_grad_enabled()
        nan = math.nan if torch.is_grad_enabled() and calls[0] == 3 else 1
        return loss * nan, torch.cat((parts[:5] * nan, parts[5:]))
    monkeypatch.setattr(dpo.DPOObjective, 'forward', poisoned)
    cfg = config(micro_batch=8, max_steps=5)
    dpo.main(cfg)
    assert [(r['step'], r['rows'], r['loss']) for r in rows_of(cfg.out) if r.get('skipped')] == [(3, [16, 24], None)]
    assert json.loads(Path(cfg.out, 'settings.json').read_text())['skipped'] == 1

def test_seconds_end_a_run(config):
    dpo.main(config(max_steps=None, max_seconds=0.5, warmup=0.3))
    assert len(rows_of(config().out)) > 2
