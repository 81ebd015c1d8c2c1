"""dpo.py: loss and gradients are the formula's and trl's; any cut, world size or accumulation gives the same run."""
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
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
HANG = 900 # seconds after which a process counts as hanging, on a machine as busy as it may be

def count_from(first, step, n):
    return [int((first + step * k) % K) for k in range(n)]

def make_pairs(folder, n=20, seed=0, units_hash='abc', text='A {} saw the {}.'):
    """A units folder of n pairs: the chosen completion counts on from the prompt, the rejected one counts down."""
    rng = np.random.default_rng(seed)
    documents = {}
    for i in range(n):
        start = int(rng.integers(K))
        n_prompt, n_chosen, n_rejected = rng.integers(4, 12, 3)
        parts = {
            'prompt': count_from(start, 1, n_prompt),
            'chosen': count_from(start + n_prompt, 1, n_chosen),
            'rejected': count_from(start + n_prompt, -1, n_rejected)}
        for part, units in parts.items():
            documents[f'{i:03d}/{part}'] = (text.format(part, i), units)
    return make_units(folder, documents, units_hash)

@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """A folder with a tokenizer, a speech and a joint model, and pairs to train on and to hold out."""
    root = tmp_path_factory.mktemp('dpo')
    make_tokenizer(root / 'tokenizer')
    for kind in ('speech', 'joint'):
        make_model(root / kind, root / 'tokenizer', kind)
    make_pairs(root / 'pairs')
    make_pairs(root / 'val', n=7, seed=1)
    return root

def small_config(inputs, out_dir, kind='speech', **changes):
    """Settings of a run of 12 steps of 8 of 20 pairs."""
    settings = dict(
        data=str(inputs / 'pairs'), val_data=str(inputs / 'val'), init=str(inputs / kind), out=str(out_dir),
        block_size=64, batch=8, micro_batch=4, lr=3e-3, max_steps=12, device='cpu', dtype='float32',
        save_every=1000, eval_every=1000, log_every=1000)
    return dpo.Config(**settings | changes)

@pytest.fixture
def config(inputs, tmp_path):
    def make(**changes):
        return small_config(inputs, changes.pop('out', tmp_path / 'run'), **changes)
    return make

def open_data(cfg):
    """vocab, tokenizer, Pairs of a Config."""
    vocab = Vocab.load(cfg.init)
    tokenizer = None if vocab.kind == 'speech' else TextTokenizer(cfg.init)
    pairs, _ = dpo.open_pairs(cfg, cfg.data, vocab, tokenizer)
    return vocab, tokenizer, pairs

def lists(arrays):
    return [array.tolist() for array in arrays]

def losses_of(out_dir):
    """repr of all that log.jsonl has of every step, but for times."""
    keys = (*MEANS, 'lr', 'grad_norm')
    return [(r['step'], *(repr(r.get(k)) for k in keys)) for r in rows_of(out_dir) if 'val' not in r]

def assert_same_end(a, b):
    assert losses_of(a) == losses_of(b)
    assert state_of(a) == state_of(b)
    assert weights_of(a) == weights_of(b)

@contextmanager
def while_fetching(step, act):
    """act() as the batch of `step` is made."""
    fetch = dpo.fetch
    def fetch_and_act(pairs, cfg, next_step, *rest):
        if next_step == step:
            act()
        return fetch(pairs, cfg, next_step, *rest)
    dpo.fetch = fetch_and_act
    try:
        yield
    finally:
        dpo.fetch = fetch

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)

# ---- the loss

def slow_log_p(model, ids, begin):
    """Sum of log p of ids[begin:] given what is before, a document alone, one token at a time."""
    hidden = model(torch.tensor(ids[None]))
    log_p = model.logits(hidden)[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]] for t in range(begin, len(ids)))

def slow_dpo(model, ref, pairs, numbers, beta):
    """The definition: the mean loss, and the rewards of the chosen and the rejected completions."""
    rewards = []
    for i in numbers:
        log_ratios = []
        for k in (2 * i, 2 * i + 1):
            ids = pairs.documents[k]
            begin = int(pairs.begins[k])
            with torch.no_grad():
                log_ref = slow_log_p(ref, ids, begin)
            log_ratios.append(slow_log_p(model, ids, begin) - log_ref)
        rewards.append(beta * torch.stack(log_ratios))
    chosen, rejected = torch.stack(rewards).unbind(1)
    return -torch.log(1 / (1 + torch.exp(-(chosen - rejected)))).mean(), chosen, rejected

@torch.no_grad()
def token_log_p(model, ids, begin):
    """log p of each of ids[begin:], float64."""
    log_p = model.logits(model(torch.tensor(ids[None])))[0].double().log_softmax(-1)
    return np.array([log_p[t - 1, ids[t]].item() for t in range(begin, len(ids))])

def reference_of(model, pairs):
    """log p of all completions' tokens, float64, laid out as Pairs.reference."""
    return np.concatenate([token_log_p(model, d, b) for d, b in zip(pairs.documents, pairs.begins)])

@torch.no_grad()
def disturb(model):
    """Moves the weights that are not 0 away from the reference."""
    for p in model.parameters():
        p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * (p != 0)

def packed_loss(model, beta, pairs, numbers):
    """DPOObjective of these pairs in one row -> (sum of the losses, sums that are logged)."""
    return dpo.DPOObjective(model, beta)(*(torch.as_tensor(x) for x in pairs.pack(numbers)))

@pytest.mark.parametrize('kind, directions', [
    ('speech', ('S',)), ('joint', ('S',)), ('joint', ('S->T', 'T->S', 'T'))])
def test_loss_and_gradients_are_the_closed_formula_s_in_float64(config, kind, directions):
    cfg = config(kind=kind, directions=directions, beta=0.7, block_size=200)
    _, _, pairs = open_data(cfg)
    model = GPT.from_pretrained(cfg.init).double()
    ref = GPT.from_pretrained(cfg.init).double()
    disturb(model)
    numbers = [3, 0, 11, 7]
    pairs.reference = reference_of(ref, pairs)
    loss, parts = packed_loss(model, 0.7, pairs, numbers)
    (loss / len(numbers)).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected, chosen, rejected = slow_dpo(model, ref, pairs, numbers, 0.7)
    expected.backward()
    assert abs(loss.item() / 4 - expected.item()) < 1e-10
    assert expected.item() != pytest.approx(math.log(2), abs=1e-3)
    for name, p in model.named_parameters():
        assert (gradients[name] - p.grad).abs().max() < 1e-9, name
    mean = dpo.DPOObjective.summary(parts.tolist())
    documents = [k for i in numbers for k in (2 * i, 2 * i + 1)]
    assert mean['margin'] == pytest.approx((chosen - rejected).mean().item(), abs=1e-9)
    assert mean['chosen'] == pytest.approx(chosen.mean().item(), abs=1e-9)
    assert mean['accuracy'] == (chosen > rejected).double().mean().item()
    assert mean['targets'] == sum(len(pairs.documents[k]) - pairs.begins[k] for k in documents)

def test_kl_is_that_of_the_reference_to_the_model_on_the_reference_s_own_samples():
    """Over all next tokens, weighted by ref: the mean of e^d - 1 - d is sum ref log(ref / pi)."""
    ref, pi = (torch.randn(9, generator=torch.Generator().manual_seed(s)).double().log_softmax(0) for s in (0, 1))
    d = pi - ref
    estimate = ((torch.expm1(d) - d) * ref.exp()).sum()
    assert estimate.item() == pytest.approx((ref.exp() * (ref - pi)).sum().item(), abs=1e-12)

def test_a_run_s_first_steps_are_those_of_a_plain_loop(config):
    """Four steps against the definition: documents alone, the pairs of the seed's order, clip and AdamW unfused."""
    cfg = config(max_steps=4, warmup=0.5, schedule='inverse_sqrt', val_data='')
    dpo.main(cfg)
    _, _, pairs = open_data(cfg)
    model = GPT.from_pretrained(cfg.init)
    ref = GPT.from_pretrained(cfg.init)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0, foreach=False, fused=False)
    for step, row in enumerate(rows_of(cfg.out)[:4]):
        numbers = dpo.pairs_of_steps(cfg, len(pairs), 8 * step, 8).tolist()
        loss, chosen, rejected = slow_dpo(model, ref, pairs, numbers, cfg.beta)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        t = (step + 1) / 4
        lr = 3e-3 * (t / 0.5 if t < 0.5 else math.sqrt(0.5 / t))
        optimizer.param_groups[0]['lr'] = lr
        optimizer.step()
        assert row['lr'] == pytest.approx(lr, rel=1e-12)
        assert row['loss'] == pytest.approx(loss.item(), abs=1e-4)
        assert row['margin'] == pytest.approx((chosen - rejected).mean().item(), abs=1e-4)
        assert row['grad_norm'] == pytest.approx(norm.item(), rel=2e-3)
    assert rows_of(cfg.out)[0]['loss'] == pytest.approx(math.log(2), abs=1e-5)

def test_each_pass_has_every_pair_once_in_another_order(config):
    passes = [dpo.pairs_of_steps(config(), 20, 20 * e, 20) for e in range(3)]
    assert all(sorted(p) == list(range(20)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert np.array_equal(np.concatenate(passes)[13:29], dpo.pairs_of_steps(config(), 20, 13, 16))

def test_the_reference_is_made_for_the_pairs_that_the_budget_reaches(config, tmp_path):
    """A run of 1 step is the first step of a longer one; its reference knows 8 pairs and the 5 that are evaluated."""
    settings = dict(eval_rows=5, schedule='constant', warmup=0.0)
    short = config(max_steps=1, out=str(tmp_path / 'short'), **settings)
    long = config(max_steps=12, out=str(tmp_path / 'long'), **settings)
    dpo.main(short)
    dpo.main(long)
    a, b = (load_file(Path(cfg.out, 'reference.safetensors')) for cfg in (short, long))
    _, _, pairs = open_data(short)
    pair_of_target = np.repeat(np.arange(40) // 2, np.diff(pairs.offsets))
    known = np.isin(pair_of_target, dpo.pairs_of_steps(short, 20, 0, 8))
    assert np.array_equal(~a['train'].isnan().numpy(), known)
    assert not b['train'].isnan().any()
    assert a['held out'].isnan().any()
    assert torch.allclose(a['train'][known], b['train'][known], atol=1e-5)
    assert rows_of(short.out)[0]['loss'] == pytest.approx(rows_of(long.out)[0]['loss'], abs=1e-6)

def test_a_row_has_no_padding_and_no_document_sees_another(config):
    cfg = config()
    _, _, pairs = open_data(cfg)
    tokens, doc_start, targets, _, document, weight = pairs.pack([4, 2])
    lengths = [len(pairs.documents[k]) for k in (8, 9, 4, 5)]
    assert tokens.size == sum(lengths) and len(weight) == 2
    assert np.unique(doc_start[0]).tolist() == np.cumsum([0] + lengths[:3]).tolist()
    assert (targets >= 0).sum() == sum(np.diff(pairs.offsets)[k] for k in (8, 9, 4, 5))
    model = GPT.from_pretrained(cfg.init)
    with torch.no_grad():
        losses = model.losses(*(torch.as_tensor(x) for x in (tokens, doc_start, targets))).numpy()
    alone = token_log_p(model, pairs.documents[4], int(pairs.begins[4])).sum()
    assert -losses[document[0] == 2].sum() == pytest.approx(alone, abs=1e-4)

def test_loss_and_gradients_are_trl_s(config, tmp_path, monkeypatch):
    trl = pytest.importorskip('trl', reason="trl is not here: pip install trl")
    transformers = pytest.importorskip('transformers')
    datasets = pytest.importorskip('datasets')
    cfg = config(beta=0.3)
    _, _, pairs = open_data(cfg)
    numbers = [0, 5, 9, 2]
    model = GPT.from_pretrained(cfg.init)
    disturb(model)
    model.save_pretrained(tmp_path / 'moved', vocab=Vocab.load(cfg.init))
    pairs.reference = reference_of(GPT.from_pretrained(cfg.init), pairs).astype(np.float32)
    loss, _ = packed_loss(model, 0.3, pairs, numbers)
    (loss / 4).backward()

    def load_hf(path):
        return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation='eager')
    hf_model = load_hf(tmp_path / 'moved')
    hf_ref = load_hf(cfg.init)
    rows = []
    for i in numbers:
        chosen, rejected = pairs.documents[2 * i:2 * i + 2]
        begin, rejected_begin = pairs.begins[2 * i:2 * i + 2]
        rows.append({'prompt_ids': chosen[:begin].tolist(), 'chosen_ids': chosen[begin:].tolist(),
                     'rejected_ids': rejected[rejected_begin:].tolist()})
    # The rows have their ids already.
    monkeypatch.setattr(trl.DPOTrainer, '_prepare_dataset', lambda self, dataset, *_, **__: dataset)
    settings = trl.DPOConfig(
        str(tmp_path / 'trl'), beta=0.3, report_to=[], use_cpu=True, bf16=False, max_length=None,
        gradient_checkpointing=False, per_device_train_batch_size=4)
    trainer = trl.DPOTrainer(
        hf_model, hf_ref, settings, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(cfg.init, pad_token='<PAD>'))
    expected = trainer.compute_loss(hf_model, trainer.data_collator(rows))
    expected.backward()
    assert loss.item() / 4 == pytest.approx(expected.item(), abs=2e-5)
    assert expected.item() != pytest.approx(math.log(2), abs=1e-3)
    gradients = {name: p.grad for name, p in hf_model.named_parameters()}
    embed = gradients['model.embed_tokens.weight']
    down = gradients['model.layers.0.mlp.down_proj.weight']
    q = gradients['model.layers.1.self_attn.q_proj.weight']
    assert (model.embed.grad[:model.cfg.vocab_size] - embed).abs().max() < 1e-5
    assert (model.layers[0].down.weight.grad - down).abs().max() < 1e-5
    assert (model.layers[1].qkv.weight.grad[:len(q)] - q).abs().max() < 1e-5

# ---- the run

@pytest.mark.parametrize('kind, directions', [('speech', ('S',)), ('joint', ('S', 'S->T'))])
def test_it_learns_to_prefer_also_what_was_held_out(config, kind, directions):
    cfg = config(kind=kind, directions=directions, max_steps=25, block_size=100)
    val = dpo.main(cfg)['held out']
    rows = rows_of(cfg.out)
    first = rows[0]
    last = rows[24]
    assert first['loss'] == pytest.approx(math.log(2), abs=1e-4)
    assert last['loss'] < 0.45 and last['margin'] > 0.5
    assert val['accuracy'] > 0.9 and val['margin'] > 0.2 and val['kl'] > 0
    assert abs(first['kl']) < 1e-6 < last['kl']
    assert last['margin'] == pytest.approx(last['chosen'] - last['rejected'])
    from transformers import AutoModelForCausalLM
    hf_model = AutoModelForCausalLM.from_pretrained(cfg.out)
    model = GPT.from_pretrained(cfg.out)
    ids = torch.arange(2, 9)[None]
    assert torch.allclose(hf_model(ids).logits, model.logits(model(ids)), atol=1e-4)
    settings = json.loads(Path(cfg.out, 'settings.json').read_text())
    assert settings['pairs'] == 25 * 8
    assert settings['inputs']['train pairs'] == open_data(cfg)[2].hash

def test_evaluation_is_the_mean_over_the_held_out_pairs(config):
    for rows, micro_batch in ((512, 4), (5, 2)): # 7 pairs: the last micro-batch is not full
        cfg = config(max_steps=3, eval_rows=rows, micro_batch=micro_batch, out=config().out + str(rows))
        val = dpo.main(cfg)['held out']
        _, _, pairs = open_data(replace(cfg, data=cfg.val_data))
        model = GPT.from_pretrained(cfg.out)
        ref = GPT.from_pretrained(cfg.init)
        loss, chosen, rejected = slow_dpo(model, ref, pairs, range(min(rows, 7)), cfg.beta)
        assert val['loss'] == pytest.approx(loss.item(), abs=1e-5)
        assert val['margin'] == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)

def test_accumulation_changes_nothing_but_rounding(config, tmp_path):
    runs = [config(micro_batch=m, out=str(tmp_path / str(m))) for m in (8, 2, 1)]
    for cfg in runs:
        dpo.main(cfg)
    a, *others = (rows_of(cfg.out) for cfg in runs)
    for b in others:
        for x, y in zip(a, b, strict=True):
            assert x.get('targets') == y.get('targets')
            for key in ('loss', 'margin', 'kl'):
                assert x.get(key) == pytest.approx(y.get(key), abs=2e-4), key

def test_bf16_stays_near_float32(config, tmp_path):
    runs = [config(out=str(tmp_path / dtype), dtype=dtype) for dtype in ('float32', 'bfloat16', 'pure_bfloat16')]
    for cfg in runs:
        dpo.main(cfg)
    a, *others = ([r['loss'] for r in rows_of(cfg.out)[:12]] for cfg in runs)
    for b in others:
        assert a != b and max(abs(x - y) for x, y in zip(a, b)) < 0.1

@pytest.mark.parametrize('parallel', ['ddp', 'fsdp'])
def test_two_ranks_are_one(config, tmp_path, parallel):
    alone, shared = (config(micro_batch=2, out=str(tmp_path / name), parallel=parallel) for name in ('one', 'two'))
    dpo.main(alone)
    assert on_ranks(2, lambda rank: dpo.main(shared), HANG) == [0, 0]
    references = [load_file(Path(cfg.out, 'reference.safetensors')) for cfg in (alone, shared)]
    for name in ('train', 'held out'):
        assert torch.allclose(references[0][name], references[1][name], atol=1e-5)
    a = rows_of(alone.out)
    b = rows_of(shared.out)
    assert len(a) == len(b) == 13
    for x, y in zip(a, b):
        assert x.get('targets') == y.get('targets')
        assert x.get('loss') == pytest.approx(y.get('loss'), abs=2e-4), x['step']
    for name in MEANS:
        assert a[-1]['val']['held out'][name] == pytest.approx(b[-1]['val']['held out'][name], abs=2e-3)

def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob('*')}

@pytest.mark.parametrize('cut', [1, 5])
def test_a_cut_and_resumed_run_is_the_uncut_one_to_the_bit(config, tmp_path, cut, capsys):
    uncut, parts = (config(out=str(tmp_path / name)) for name in ('uncut', 'parts'))
    dpo.main(uncut)
    with while_fetching(cut, terminate):
        assert dpo.main(parts) is None
    assert not Path(parts.out, 'settings.json').exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo, 'log_probs', lambda *_: 1 / 0) # the reference of the first start is used
        dpo.main(parts)
    assert_same_end(parts.out, uncut.out)
    before = modification_times(parts.out)
    assert dpo.main(parts)['held out'] == rows_of(parts.out)[-1]['val']['held out']
    assert "finished before, at step 12" in capsys.readouterr().out
    assert modification_times(parts.out) == before

@pytest.mark.parametrize('damage', ['gone', 'cut', 'changed'])
def test_a_reference_that_is_not_what_was_stored_is_computed_again_by_the_start(config, tmp_path, damage):
    uncut, parts = (config(out=str(tmp_path / name)) for name in ('uncut', 'parts'))
    dpo.main(uncut)
    with while_fetching(4, terminate):
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
    assert_same_end(parts.out, uncut.out)

@contextmanager
def at_part(n, act):
    """act() before part n, from 1, of a reference is computed; the parts are counted in the list that it yields."""
    parts = []
    log_probs = dpo.log_probs
    def act_and_compute(run, model, pairs, numbers):
        parts.append(len(numbers))
        if len(parts) == n:
            act()
        return log_probs(run, model, pairs, numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo, 'log_probs', act_and_compute)
        yield parts

def test_a_signal_before_the_reference_is_whole_saves_its_parts(config, tmp_path, capsys):
    """20 pairs to train on in parts of 8, then 7 held-out ones."""
    uncut, cut = (config(out=str(tmp_path / name)) for name in ('uncut', 'cut'))
    dpo.main(uncut)
    with at_part(2, terminate) as parts:
        assert dpo.main(cut) is None
    assert parts == [8, 8]
    path = Path(cut.out, 'reference.safetensors')
    assert (f"stopped by a signal after 2 of 4 parts of the reference, which are in {path}; "
            "the same command goes on from there") in capsys.readouterr().out
    assert not checkpoint.folders(cut.out)
    with at_part(9, terminate) as parts:
        dpo.main(cut)
    assert parts == [4, 7]
    assert_same_end(cut.out, uncut.out)
    assert path.read_bytes() == Path(uncut.out, 'reference.safetensors').read_bytes()

@pytest.mark.slow
def test_a_signal_to_one_rank_before_the_reference_is_whole_ends_all(config, tmp_path):
    uncut, cut = (config(out=str(tmp_path / name)) for name in ('uncut', 'cut'))
    def work(rank):
        with at_part(2 if rank == 1 else 9, terminate) as parts:
            assert dpo.main(cut) is None
        assert parts == [8, 8]
    assert on_ranks(2, work) == [0, 0]
    for cfg in (cut, uncut):
        assert on_ranks(2, lambda rank, cfg=cfg: dpo.main(cfg)) == [0, 0]
    assert_same_end(cut.out, uncut.out)

def test_two_equal_runs_have_equal_bytes(config, tmp_path):
    files = []
    for name in 'ab':
        torch.manual_seed(ord(name)) # whatever was drawn in this process before
        cfg = config(out=str(tmp_path / name), max_steps=2, save_every=1)
        dpo.main(cfg)
        paths = sorted(Path(cfg.out).rglob('*.safetensors'))
        files.append({str(path.relative_to(cfg.out)): path.read_bytes() for path in paths})
    assert files[0] == files[1]
    assert {'reference.safetensors', 'step-2/part-00000.safetensors', 'model.safetensors'} <= files[0].keys()
    metadata = safe_open(tmp_path / 'a/reference.safetensors', 'numpy').metadata()
    assert len(metadata) == 1 # of several, safetensors writes the order at random

# ---- kills

@contextmanager
def at_each_event(act):
    """act() when a run computes log-probabilities or a batch, and before and after it writes a file of tensors."""
    def before(function):
        def act_first(*args):
            act()
            return function(*args)
        return act_first
    def around(function):
        def act_twice(*args):
            act()
            result = function(*args)
            act()
            return result
        return act_twice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo, 'log_probs', before(dpo.log_probs))
        patch.setattr(dpo, 'fetch', before(dpo.fetch))
        patch.setattr(dpo, 'save_file', around(dpo.save_file))
        patch.setattr(checkpoint, 'write_part', around(checkpoint.write_part))
        yield

def killed(cfg, moment):
    """A run in a process that SIGKILL ends at its moment-th event, counted from 1; was something being written?"""
    def work():
        events = []
        def kill_in_time():
            events.append(None)
            if len(events) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        with at_each_event(kill_in_time):
            dpo.main(cfg)
    process = multiprocessing.get_context('fork').Process(target=work)
    process.start()
    process.join(HANG)
    status = process.exitcode
    process.kill()
    process.join()
    assert status == -signal.SIGKILL, f"event {moment}: exit status {status}"
    return any(Path(cfg.out).glob('*.tmp'))

def kill_at(inputs, tmp_path, n_moments):
    """Kills runs at events from the first to the last and resumes them -> how many were writing something."""
    def settings(name):
        return small_config(inputs, tmp_path / name, max_steps=8, save_every=2)
    untouched = settings('untouched')
    events = []
    with at_each_event(lambda: events.append(None)):
        dpo.main(untouched)
    in_save = 0
    for moment in np.linspace(1, len(events), n_moments).round().astype(int).tolist():
        cfg = settings(str(moment))
        in_save += killed(cfg, moment)
        dpo.main(cfg)
        assert_same_end(cfg.out, untouched.out)
    return in_save

def test_a_killed_run_ends_as_an_untouched_one(inputs, tmp_path):
    kill_at(inputs, tmp_path, 3)

@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_an_untouched_one(inputs, tmp_path):
    assert kill_at(inputs, tmp_path, 20) >= 5 # of them while something was written

# ---- pairs

@pytest.mark.parametrize('text, bleu', [
    ('the cat sat on the mat and the cat sat', 4 / 9), ('a b a b a b', 1.0), ("It's a dog. It's a dog.", 0.5),
    ('one', 0.0), ('', 0.0)])
def test_auto_bleu_of_known_texts(text, bleu): # the papers' code gives these
    assert auto_bleu2(text) == pytest.approx(bleu, abs=1e-12)

def test_what_is_left_out_is_counted_and_listed(config, tmp_path, capsys):
    texts = {'a': ('The cat sat.', 'It slept all day.'), 'b': ('Go on, go on, go on,', 'go on, go on.'),
             'c': ('So it was.', 'The end.'), 'd': ('One.', 'Two.')}
    documents = {}
    for item, (prompt, chosen) in texts.items():
        documents[f'{item}/prompt'] = (prompt, [1, 2, 3])
        documents[f'{item}/chosen'] = (chosen, [4, 5])
        documents[f'{item}/rejected'] = ('No.', [4, 5] if item == 'c' else [7, 6, 4])
    del documents['d/chosen']
    data = str(make_units(tmp_path / 'some', documents))
    cfg = config(data=data, max_steps=1)
    dpo.main(cfg)
    left_out = [json.loads(line) for line in Path(cfg.out, 'dropped.jsonl').read_text().splitlines()]
    assert [(line['id'].split(':')[-1], line['why']) for line in left_out] == [
        ('b', 'auto-BLEU: 0.857'), ('c', 'equal completions'), ('d', 'no chosen')]
    counts = "1 pairs, 7 targets; left out: 1 auto-BLEU, 1 equal completions, 1 no chosen"
    assert counts in capsys.readouterr().out
    pairs, _ = dpo.open_pairs(config(data=data, max_auto_bleu=None), data, Vocab.load(cfg.init), None)
    assert len(pairs) == 2

def test_completions_without_a_token_are_left_out_and_counted(inputs, config, monkeypatch):
    """A text of which a tokenizer makes nothing would always be the likelier one: its log-likelihood is 0."""
    documents_of = dpo.documents_of
    def empty_rejected(cfg, name, item, vocab, tokenizer):
        (chosen, begin), (rejected, _) = documents_of(cfg, name, item, vocab, tokenizer)
        return (chosen, begin), (rejected[:begin] if name.endswith('003') else rejected, begin)
    monkeypatch.setattr(dpo, 'documents_of', empty_rejected)
    cfg = config()
    pairs, dropped = dpo.open_pairs(cfg, cfg.data, Vocab.load(cfg.init), None)
    assert len(pairs) == 19 and [line['why'] for line in dropped] == ['a completion without a token']

def test_documents_are_slam_s_with_one_run_where_prompt_and_completion_meet(config, tmp_path):
    documents = {'a/prompt': ('x', [3, 1]), 'a/chosen': ('y', [1, 4]), 'a/rejected': ('z', [5])}
    cfg = config(data=str(make_units(tmp_path / 'one', documents)))
    _, _, pairs = open_data(cfg)
    assert lists(pairs.documents) == [[1, 5, 3, 6, 1], [1, 5, 3, 7, 1]]
    assert pairs.begins.tolist() == [3, 3]
    joint_init = cfg.init.replace('speech', 'joint')
    _, text, joint = open_data(replace(cfg, init=joint_init, directions=('S', 'S->T'), eot=True))
    u = 257 # text ids, then units, <speech>, <text>
    prompt_to_text = [u + K, u + 3, u + 1, u + K + 1]
    assert lists(joint.documents) == [
        [u + 3, u + 1, u + 4, text.eot],
        [u + 3, u + 1, u + 5, text.eot],
        [*prompt_to_text, *text.encode(' y'), text.eot],
        [*prompt_to_text, *text.encode(' z'), text.eot]]

def slamkit_part(*units):
    return {'units': list(units), 'duration': [1] * len(units)}

def test_slamkit_s_lines_are_read(config, tmp_path):
    line = {'prompt_path': 'p.wav', 'prompt': slamkit_part(1, 2), 'chosen': slamkit_part(3, 4),
            'rejected': slamkit_part(5), 'speaker': 'af_heart',
            'prompt_text': 'A cat.', 'chosen_text': 'It slept.', 'rejected_text': 'No.'}
    path = tmp_path / 'pairs.jsonl'
    def pairs_of(*lines):
        path.write_text('\n'.join(map(json.dumps, lines)))
        return open_data(config(data=str(path)))[2]
    pairs = pairs_of(line, line)
    assert lists(pairs.documents[:2]) == [[1, 3, 4, 5, 6, 1], [1, 3, 4, 7, 1]] and len(pairs) == 2
    with pytest.raises(Refused, match=r"pairs.jsonl:2: 'chosen' is {'units': '<Un1>'}; expected"):
        pairs_of(line, {**line, 'chosen': {'units': '<Un1>'}})
    with pytest.raises(Refused, match="pairs.jsonl:2: 'chosen' is None; expected"):
        pairs_of(line, {**line, 'chosen': None})
    with pytest.raises(Refused, match="pairs.jsonl:2: a second pair .*pairs.jsonl:7; expected a different id for each"):
        pairs_of({**line, 'id': 7}, {**line, 'id': 7})
    with pytest.raises(Refused, match="pairs.jsonl:2: a second pair .*pairs.jsonl:2; expected a different id for each"):
        pairs_of({**line, 'id': 2}, line) # the id of one is the line number of the other
    with pytest.raises(Refused, match=rf"pairs.jsonl:1: units {K}..{K}, expected 0..{K - 1}|"
                                      rf"units .*{K}, expected 0..{K - 1}"):
        pairs_of({**line, 'rejected': slamkit_part(K)})

def encoded_sound(seed, format):
    """A cell of a column of audio: speech of 0.5 + 0.1 seed seconds as the bytes of a file."""
    data = io.BytesIO()
    soundfile.write(data, speech_like(0.5 + 0.1 * seed, seed), 16000, format=format)
    return {'bytes': data.getvalue(), 'path': None}

def test_spokenswag_becomes_pairs(config, tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet', reason="pyarrow is not here: pip install pyarrow")
    columns = {'speaker': ['af_heart'] * 3}
    for k, (part, format) in enumerate(zip(dpo.PARTS, ('WAV', 'FLAC', 'OGG'))):
        columns[f'{part}_text'] = [f'{part} of {i}.' for i in range(3)]
        columns[part] = [encoded_sound(3 * i + k, format) for i in range(3)]
    hub = tmp_path / 'hub'
    audio = tmp_path / 'audio'
    hub.mkdir()
    parquet.write_table(pyarrow.table(columns), hub / 'train-00000.parquet')
    spokenswag.main(spokenswag.Config(str(hub), str(audio)))
    utterances = list(folder.utterances(audio))
    assert [u['id'] for u in utterances[:3]] == [f'train-00000/000000/{part}' for part in sorted(dpo.PARTS)]
    assert utterances[1]['text'] == 'prompt of 0.' and utterances[1]['speaker'] == 'af_heart'
    seeds = [3 * i + k for i in range(3) for k in (1, 0, 2)] # the parts are sorted by name
    assert [len(load_audio(u['path'])) for u in utterances] == [16000 * (50 + 10 * seed) // 100 for seed in seeds]

    tokenize_speech.main(tokenize_speech.Config(audio=str(audio), out=str(tmp_path / 'units')))
    pairs = dpo.read_units(tmp_path / 'units', Vocab('speech', n_units=K))
    assert sorted(pairs) == [f'train-00000/{i:06d}' for i in range(3)]
    assert set(pairs['train-00000/000001']) == set(dpo.PARTS)

    del columns['rejected']
    parquet.write_table(pyarrow.table(columns), tmp_path / 'less.parquet')
    for name, why in (('less.parquet', "no column rejected; expected SpokenSwag's speaker, prompt_text"),
                      ('none', "expected .parquet files")):
        with pytest.raises(Refused, match=why):
            spokenswag.main(spokenswag.Config(str(tmp_path / name), str(tmp_path / 'other')))
    assert not (tmp_path / 'other').exists()

def unit_of(word):
    """A unit for each word, not 0."""
    return 1 + zlib.crc32(word.strip('.,').lower().encode()) % 400

def spoken_stories(folder, n):
    """The first n training stories, named as tiny/build/speak.py does.

    Each word is two frames of its unit, with silence between words.
    """
    documents = []
    words = []
    for i, story in zip(range(n), stories('train', n)):
        story_words = []
        units = []
        starts = []
        for word in story.text.split():
            after_sentence = story_words and story_words[-1].endswith('.')
            units += [0] * (4 if after_sentence else 1)
            starts.append(len(units) * 640)
            units += [unit_of(word)] * 2
            story_words.append((' ' if story_words else '') + word)
        name = f's{i:06d}'
        meta = {'id': name, 'path': None, 'seconds': len(units) / 25, 'speaker': 'joe', 'text': story.text}
        documents.append((meta, *deduplicate(units)))
        words.append((name, story_words, starts, [start + 1280 for start in starts]))
    write_units_shard(folder, 0, documents)
    write_words_shard(folder / 'words', 0, words)
    write_json(folder / 'info.json', {
        'encoder': '', 'layer': 1, 'kmeans': '', 'units_hash': 'abc', 'n_units': 500, 'hop': 640,
        'frame_hz': 25.0, 'documents': n})
    n_words = sum(len(story_words) for _, story_words, *_ in words)
    write_json(folder / 'words' / 'info.json', {
        'units_hash': 'abc', 'documents': n, 'words': n_words, 'refused': {}})

def test_pairs_of_stories_say_what_they_should(tmp_path):
    spoken_stories(tmp_path / 'stories', 60)
    preferences.main(preferences.Config(str(tmp_path / 'stories'), str(tmp_path / 'pairs')))
    vocab = Vocab('speech', n_units=K, units='abc')
    train, val = (dpo.read_units(tmp_path / 'pairs' / split, vocab) for split in ('train', 'val'))
    assert set(val) >= {'s000000.topic', 's000020.topic', 's000040.topic'}
    assert not set(train) & set(val)
    stories_by_id = {f's{i:06d}': story for i, story in enumerate(stories('train', 60))}
    mirrors = 0
    for name, parts in (train | val).items():
        story = stories_by_id[name.split('.')[0]]
        prompt, chosen, rejected = (parts[part] for part in dpo.PARTS)
        assert prompt[0] == ' '.join(story.sentences[:2])
        assert chosen[0] == story.sentences[2]
        for text, units in (prompt, chosen, rejected):
            assert [u for u in units if u] == [unit_of(word) for word in text.split()], (name, text)
        if name.endswith('.mirror'):
            mirrors += 1
            assert rejected[0] == story.wrong
            assert (chosen[1] == 0).sum() == (rejected[1] == 0).sum()
    assert mirrors > 30
    assert len(train) + len(val) == 60 + mirrors
    texts = {story.text for story in stories('train', 60)}
    assert not texts & {' '.join((*item.context, item.right)) for item in items(200)}
    with pytest.raises(Refused, match="s000000: says .* give the --seed that made its stories"):
        preferences.main(preferences.Config(str(tmp_path / 'stories'), str(tmp_path / 'again'), seed=2))

# ---- refusals

def test_rows_longer_than_learned_positions_are_refused(config, inputs, tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(family='opt', vocab_size=K + 2, n_layer=1, n_head=2, n_embd=16, n_positions=150))
    model.save_pretrained(tmp_path / 'opt', vocab=Vocab.load(inputs / 'speech'))
    _, _, pairs = open_data(config())
    lengths = np.array([len(d) for d in pairs.documents]).reshape(-1, 2)
    longest = lengths.sum(1).max()
    with pytest.raises(Refused, match=f"micro_batch=4: pairs have up to {longest} tokens, a row of .*opt 150; "
                                      f"expected at most {150 // longest}"):
        dpo.main(config(init=str(tmp_path / 'opt')))
    dpo.main(config(init=str(tmp_path / 'opt'), micro_batch=2, max_steps=1))

@pytest.mark.parametrize('changes, message', [
    (dict(batch=6), "batch=6: expected 4 or 8, a multiple of world 1 x micro_batch 4"),
    (dict(directions=()), "directions=(): expected at least one, such as 'S'"),
    (dict(parallel='fsdp', dtype='bfloat16'),
     "parallel='fsdp' with dtype='bfloat16' would round otherwise than the reference does: "
     "expected parallel='ddp', or dtype='pure_bfloat16' or 'float32'"),
    (dict(beta=0.0), "beta=0.0: expected more than 0"),
    (dict(schedule='cos'), "schedule='cos': expected one of cosine, constant, inverse_sqrt, wsd"),
    (dict(max_epochs=1.0), "expected exactly one of max_steps, max_epochs, max_seconds, got max_steps and max_epochs"),
    (dict(warmup=0.0), "schedule='inverse_sqrt' falls from the end of the warm-up: expected warmup above 0")])
def test_refused_settings_say_what_was_expected(config, changes, message):
    with pytest.raises(Refused) as refusal:
        config(**changes)
    assert str(refusal.value) == message

@pytest.mark.parametrize('changes, message', [
    (dict(data='nowhere'), "ROOT/nowhere: no such folder; tokenize_speech.py makes it"),
    (dict(data='other'),
     "ROOT/other: units xyz, the model was trained on abc: encode the pairs with the model's encoder"),
    (dict(data='none'), "ROOT/none: no pairs; expected documents ITEM/prompt, ITEM/chosen, ITEM/rejected"),
    (dict(data='mute'),
     "ROOT/mute:0: has no text, which the auto-BLEU filter needs; --max_auto_bleu=None turns it off"),
    (dict(data='mute', directions=('S', 'T'), kind='joint'),
     "ROOT/mute:0: has no text, which directions other than 'S' need"),
    (dict(data='long'),
     "ROOT/long:0: a prompt of 71 tokens, 73 with a completion, block_size is 64; expected a larger one, "
     "or --skip_long=True to leave such pairs out"),
    (dict(data='long', skip_long=True),
     "ROOT/long: no pair of 1 can be used, the first for: too long: 73 tokens"),
    (dict(directions=('S', 'T')), "directions=('S', 'T'): a speech model reads S, not T"),
    (dict(max_steps=None, max_epochs=0.1), "max_epochs=0.1: 20 pairs are not one step of 8"),
    (dict(init='no-model'),
     "ROOT/no-model: no such model folder; expected a folder, or a hub id like Qwen/Qwen2.5-0.5B")])
def test_refused_pairs_leave_no_run_behind(config, tmp_path, changes, message):
    make_pairs(tmp_path / 'other', units_hash='xyz')
    make_units(tmp_path / 'none', {'0/context': ('a', [1]), '0/right': ('b', [2])})
    make_units(tmp_path / 'mute', {'0/prompt': (None, [1]), '0/chosen': (None, [2]), '0/rejected': (None, [3])})
    make_units(tmp_path / 'long', {
        '0/prompt': ('a', [i % 7 for i in range(70)]), '0/chosen': ('b', [2]), '0/rejected': ('c', [3])})
    paths = {key: str(tmp_path / changes[key]) for key in ('data', 'init') if key in changes}
    with pytest.raises(Refused) as refusal:
        dpo.main(config(**changes | paths))
    assert str(refusal.value) == message.replace('ROOT', str(tmp_path))
    assert not Path(config().out).exists()

def test_a_run_of_other_settings_or_pairs_in_the_same_folder_is_refused(config, inputs, tmp_path):
    cfg = config(max_steps=2)
    dpo.main(cfg)
    with pytest.raises(Refused, match="holds another run: beta was 0.1 and is 0.2; take"):
        dpo.main(replace(cfg, beta=0.2))
    shutil.copytree(inputs / 'pairs', tmp_path / 'pairs')
    cut = config(max_steps=6, data=str(tmp_path / 'pairs'), out=str(tmp_path / 'cut'))
    with while_fetching(2, terminate):
        dpo.main(cut)
    shutil.rmtree(tmp_path / 'pairs')
    make_pairs(tmp_path / 'pairs', seed=5)
    with pytest.raises(Refused, match=r"holds another run: train pairs was '\w{16}' and is '\w{16}'; take"):
        dpo.main(cut)

def test_a_step_that_is_not_finite_is_skipped(config, monkeypatch):
    forward = dpo.DPOObjective.forward
    training_calls = []
    def poisoned(self, *batch):
        loss, parts = forward(self, *batch)
        if not torch.is_grad_enabled():
            return loss, parts
        training_calls.append(None)
        factor = math.nan if len(training_calls) == 3 else 1
        return loss * factor, torch.cat((parts[:5] * factor, parts[5:]))
    monkeypatch.setattr(dpo.DPOObjective, 'forward', poisoned)
    cfg = config(micro_batch=8, max_steps=5)
    dpo.main(cfg)
    skipped = [(r['step'], r['rows'], r['loss']) for r in rows_of(cfg.out) if r.get('skipped')]
    assert skipped == [(3, [16, 24], None)]
    assert json.loads(Path(cfg.out, 'settings.json').read_text())['skipped'] == 1

def test_seconds_end_a_run(config):
    """However slow the machine is: the clock is read a step late, so there are two steps and the evaluation."""
    dpo.main(config(max_steps=None, max_seconds=0.5, warmup=0.3))
    assert len(rows_of(config().out)) > 2
