"""train.py on made-up shards: it learns; a cut or accumulated run is the same run; refusals are lines."""
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from small import checkpoint_tensors, make_tokenizer

import train
from configurator import Refused
from data import ShardWriter
from files import sha256
from hub.families import GPTConfig
from hub.tokenizer import TextTokenizer
from model import GPT
from training import checkpoint
from vocab import Vocab

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
T = 32 # tokens a row

def walks(rng, ids, n, mean=20):
    """n documents over ids in which each id is mostly followed by the next one; lengths vary a lot."""
    for _ in range(n):
        length = 2 + rng.poisson(mean) + 20 * (rng.random() < 0.2)
        steps = rng.choice([1, 1, 1, 2, 5], size=length)
        path = rng.integers(len(ids)) + np.cumsum(steps)
        yield [ids[i] for i in path % len(ids)]

def write(folder, vocab, docs):
    writer = ShardWriter(folder, folder.name, vocab, {})
    writer.add(np.concatenate(docs), [len(d) for d in docs])
    writer.close()

def make_corpus(root, text, n=60, seed=0):
    """root/{train,val}/{text,speech,interleaved,textless} as interleave.py lays them out, with 12 units."""
    joint = Vocab('joint', text.size, 12, text.hash, 'units')
    speech = Vocab('speech', 0, 12, '', 'units')
    rng = np.random.default_rng(seed)
    letters = list(range(65, 85))
    units = list(joint.unit_to_token(range(12)))
    for split, n_docs in (('train', n), ('val', 6)):
        write(root / split / 'text', Vocab('text', text.size, 0, text.hash), list(walks(rng, letters, n_docs)))
        write(root / split / 'speech', joint, list(walks(rng, units, n_docs)))
        pairs = zip(walks(rng, letters, n_docs, 8), walks(rng, units, n_docs, 8))
        write(root / split / 'interleaved', joint, [[joint.text, *a, joint.speech, *b] for a, b in pairs])
        textless = walks(rng, list(range(2, 14)), n_docs)
        write(root / split / 'textless', speech, [[1, *doc, 1] for doc in textless])
    return root

@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp('train')
    return make_corpus(root / 'made', make_tokenizer(root / 'tokenizer'))

def small(corpus, out_dir, **changes):
    """Settings of a run of 20 steps."""
    settings = dict(
        data=str(corpus), tokenizer=str(corpus.parent / 'tokenizer'), n_layer=1, n_head=2, n_embd=16, n_ffn=32,
        block_size=T, batch_tokens=12 * T, micro_batch=6, lr=1e-2, max_steps=20, out=str(out_dir), device='cpu',
        dtype='float32', save_every=1000, eval_every=1000, eval_rows=8, log_every=1000)
    return train.Config(**{**settings, **changes})

@pytest.fixture
def config(corpus, tmp_path):
    """A function: changes of the settings of `small` -> Config, of a run in tmp_path/run."""
    return lambda **changes: small(corpus, changes.pop('out', tmp_path / 'run'), **changes)

def rows_of(out_dir):
    return [json.loads(line) for line in Path(out_dir, 'log.jsonl').read_text().splitlines()]

def losses_of(out_dir):
    """repr of every logged loss and gradient norm, by step."""
    keys = ('loss', 'text', 'units', 'separators', 'grad_norm', 'lr')
    steps = [row for row in rows_of(out_dir) if 'val' not in row]
    return [(row['step'], *(repr(row.get(key)) for key in keys)) for row in steps]

def weights_of(out_dir):
    return sha256(Path(out_dir, 'model.safetensors'))

def state_of(out_dir):
    """Hashes of the newest checkpoint's weights and moments."""
    folder = checkpoint.folders(out_dir)[0]
    return folder.name, [sha256(path) for path in sorted(folder.glob('part-*.safetensors'))]

def digest_of_state(model, optimizer):
    """Of all weights and of the optimizer's tensors, step counts included."""
    tensors = [t for p in model.parameters() for t in (p, *optimizer.state[p].values())]
    return hash(tuple(t.detach().numpy().tobytes() for t in tensors))

@contextlib.contextmanager
def before_each_fetch(action):
    """Calls action(step) whenever a run is about to fetch the batch of a step."""
    fetch = train.fetch
    def fetch_after_action(loader, cfg, step, *rest):
        action(step)
        return fetch(loader, cfg, step, *rest)
    train.fetch = fetch_after_action
    try:
        yield
    finally:
        train.fetch = fetch

def interrupted_after(n_steps):
    """A context in which SIGTERM comes while step number `n_steps` is launched."""
    def interrupt(step):
        if step == n_steps:
            os.kill(os.getpid(), signal.SIGTERM)
    return before_each_fetch(interrupt)

def failing_at(n):
    """A context in which the batch of step n and of all later ones cannot be fetched."""
    def fail(step):
        if step >= n:
            raise ZeroDivisionError
    return before_each_fetch(fail)

@contextlib.contextmanager
def not_finite(forwards, on_rank=0, part='loss'):
    """NaN in a loss, or in a gradient alone, of the given forwards (counted from 1) on one rank."""
    forward = train.LMObjective.forward
    n_forwards = 0
    def poisoned(self, tokens, doc_start, targets):
        nonlocal n_forwards
        total, sums = forward(self, tokens, doc_start, targets)
        if not torch.is_grad_enabled():
            return total, sums
        n_forwards += 1
        if n_forwards in forwards and int(os.environ.get('RANK', 0)) == on_rank:
            weight_sum = self.model.norm.weight.sum()
            if part == 'loss':
                nan = weight_sum * math.nan
                sums[:3] += nan.detach()
            else:
                nan = (weight_sum - weight_sum).sqrt() * 0 # 0, whose gradient is inf * 0
            total = total + nan
        return total, sums
    train.LMObjective.forward = poisoned
    try:
        yield
    finally:
        train.LMObjective.forward = forward

def on_ranks(world, work, limit=900):
    """Exit codes of work(rank) in `world` forked processes that gloo joins. A hang ends after `limit` seconds."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    def run_rank(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                          MASTER_PORT=str(port))
        work(rank)
    fork = multiprocessing.get_context('fork')
    processes = [fork.Process(target=run_rank, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    end = time.monotonic() + limit
    for process in processes:
        process.join(max(0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]

# --------------------------------------------------------------------------------------------------

def test_twenty_steps_lower_the_loss_of_every_modality(config):
    val = train.main(config())
    first, last = rows_of(config().out)[0], rows_of(config().out)[19]
    for name in ('loss', 'text', 'units', 'separators'):
        assert last[name] < first[name] - 0.5, (name, first[name], last[name])
    assert first['loss'] == pytest.approx(math.log(271), abs=0.1) # T + K + 2 = 271 ids, nearly even at random weights
    assert set(val) == {'made/text', 'made/speech', 'made/interleaved'}
    assert set(val['made/text']) == {'loss', 'text', 'targets'} and 'separators' in val['made/interleaved']

def test_the_end_is_a_hugging_face_folder_with_its_record(config):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    cfg = config(max_steps=2)
    train.main(cfg)
    hf_model = AutoModelForCausalLM.from_pretrained(cfg.out)
    model = GPT.from_pretrained(cfg.out)
    ids = torch.tensor([[65, 66, 257, 258]])
    assert torch.allclose(hf_model(ids).logits, model.logits(model(ids)), atol=1e-4)
    assert AutoTokenizer.from_pretrained(cfg.out).convert_tokens_to_ids(['<Un0>', '<text>']) == [257, 270]
    settings = json.loads(Path(cfg.out, 'settings.json').read_text())
    assert (settings['steps'], settings['tokens']) == (2, 2 * 12 * T) and settings['settings']['lr'] == cfg.lr
    assert settings['flops'] == 6 * settings['parameters'] * settings['tokens']
    assert Vocab.load(cfg.out).size == 271

def test_losses_are_those_of_a_plain_loop(config, corpus):
    """Five steps against the definition: whole batch at once, torch's own cross entropy, clip and AdamW, unfused."""
    cfg = config(max_steps=5)
    train.main(cfg)
    vocab, _, loader, *_ = train.open_data(cfg)
    model = train.build_model(cfg, vocab, cfg.tokenizer, torch.device('cpu'))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0, foreach=False, fused=False)
    for step, row in enumerate(rows_of(cfg.out)[:5]):
        tokens, doc_start, targets = (torch.as_tensor(x) for x in loader.rows(12 * step, 12)[:3])
        logits = model.logits(model(tokens, doc_start)).flatten(0, 1)
        targets = targets.flatten()
        losses = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction='none')
        is_target = targets >= 0
        is_unit = (targets >= 257) & (targets < 269)
        loss = losses[is_target].mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        x = ((step + 1) / 5 - 0.01) / 0.99
        optimizer.param_groups[0]['lr'] = 5e-5 + (1e-2 - 5e-5) * 0.5 * (1 + math.cos(math.pi * x))
        optimizer.step()
        assert row['loss'] == pytest.approx(loss.item(), abs=2e-5)
        assert row['units'] == pytest.approx(losses[is_unit].mean().item(), abs=2e-5)
        assert row['grad_norm'] == pytest.approx(norm.item(), rel=1e-3)
        assert row['targets'] == int(is_target.sum())

def test_evaluation_is_the_mean_over_the_held_out_rows(config, corpus):
    cfg = config(max_steps=2, micro_batch=2)
    val = train.main(cfg)
    _, _, _, held_out, _ = train.open_data(cfg)
    model = GPT.from_pretrained(cfg.out)
    for name, loader in held_out.items():
        rows = min(8, int(loader.n_rows[0]))
        tokens, doc_start, targets = (torch.as_tensor(x) for x in loader.rows(0, rows)[:3])
        logits = model.logits(model(tokens, doc_start)).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-100).item()
        assert rows > 2 and val[name]['loss'] == pytest.approx(loss, abs=1e-5)
        assert val[name]['targets'] == int((targets >= 0).sum())

# A pass over a source is 16 rows: step 7 is within the first one, step 15 in the second or later.
@pytest.mark.parametrize('step, dtype, optimizer', [
    (7, 'float32', 'adamw'), (15, 'float32', 'adamw'), (15, 'pure_bfloat16', 'adamw'), (15, 'float32', 'muon')])
def test_a_cut_and_resumed_run_is_the_uncut_one_to_the_bit(config, tmp_path, step, dtype, optimizer):
    uncut, cut = (config(out=str(tmp_path / name), dtype=dtype, optimizer=optimizer) for name in ('uncut', 'cut'))
    train.main(uncut)
    with interrupted_after(step):
        assert train.main(cut) is None
    assert checkpoint.folders(cut.out)[0].name != 'step-20' and not Path(cut.out, 'settings.json').exists()
    train.main(cut)
    assert losses_of(cut.out) == losses_of(uncut.out) and len(losses_of(uncut.out)) == 20
    assert state_of(cut.out) == state_of(uncut.out)
    assert weights_of(cut.out) == weights_of(uncut.out)

def test_the_run_used_by_the_resume_test_is_past_its_first_epoch_when_cut(config):
    _, _, loader, *_ = train.open_data(config())
    assert loader.n_rows.max() > 8 * 12 / 3 and loader.n_rows.max() < 16 * 12 / 3 # rows of a source at steps 8 and 16

@pytest.mark.parametrize('micro_batch', [1, 3])
def test_accumulation_changes_nothing_but_rounding(config, tmp_path, micro_batch):
    a, b = (config(micro_batch=m, out=str(tmp_path / str(m))) for m in (12, micro_batch))
    train.main(a)
    train.main(b)
    for x, y in zip(rows_of(a.out), rows_of(b.out)):
        assert x.get('targets') == y.get('targets') and x.get('loss') == pytest.approx(y.get('loss'), abs=1e-5)

@pytest.mark.parametrize('part, optimizer', [('loss', 'adamw'), ('gradient', 'adamw'), ('gradient', 'muon')])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_alone(config, monkeypatch, part, optimizer):
    """The state after two steps and a poisoned third is the state after two steps; the row numbers are logged."""
    cfg = config(max_steps=20, micro_batch=12, optimizer=optimizer)
    states = {}
    read, make_optimizer = train.Log.read, train.make_optimizer
    def read_spy(log): # called after each step is launched
        states[len(states) + 1] = digest_of_state(*read_spy.trained)
        return read(log)
    def make_spy(model, *rest):
        optimizer = make_optimizer(model, *rest)
        read_spy.trained = model, optimizer
        return optimizer
    monkeypatch.setattr(train.Log, 'read', read_spy)
    monkeypatch.setattr(train, 'make_optimizer', make_spy)
    with not_finite({3}, part=part):
        train.main(cfg)
    assert states[3] == states[2] and len({states[1], states[2], states[4], states[5]}) == 4
    [skipped] = [r for r in rows_of(cfg.out) if r.get('skipped')]
    assert (skipped['step'], skipped['rows']) == (3, [24, 36])
    assert skipped['loss' if part == 'loss' else 'grad_norm'] is None

def test_five_bad_steps_in_a_row_end_the_run_with_17_and_name_the_last_good(config, capsys):
    cfg = config(micro_batch=12, save_every=2)
    with not_finite({5, 6, 7, 8, 9}), pytest.raises(SystemExit) as end:
        train.main(cfg)
    assert end.value.code == 17
    assert f"the last good checkpoint is {cfg.out}/step-8" in capsys.readouterr().out
    weights = [checkpoint_tensors(folder)['embed'] for folder in checkpoint.folders(cfg.out)] # step-8 and step-6
    assert torch.equal(*weights) and weights[0].isfinite().all() # all skipped between them

def test_six_bad_steps_of_which_four_in_a_row_do_not_end_it(config):
    with not_finite({2, 3, 5, 6, 7, 8}):
        train.main(config(micro_batch=12))
    assert json.loads(Path(config().out, 'settings.json').read_text())['skipped'] == 6

def test_a_batch_without_targets_changes_nothing_and_is_counted(config, monkeypatch, capsys):
    cfg = config(max_steps=4, save_every=2)
    fetch = train.fetch
    def fetch_blank(loader, c, step, *rest):
        micro_batches, n_targets, attended_keys = fetch(loader, c, step, *rest)
        if step < 2:
            return micro_batches, n_targets, attended_keys
        blank = [(tokens, starts, torch.full_like(targets, -100)) for tokens, starts, targets in micro_batches]
        return blank, n_targets * 0, attended_keys
    monkeypatch.setattr(train, 'fetch', fetch_blank)
    train.main(cfg)
    assert [r['loss'] for r in rows_of(cfg.out)[2:4]] == [0, 0] and 'skipped' not in rows_of(cfg.out)[3]
    before, after = (checkpoint_tensors(Path(cfg.out, name)) for name in ('step-2', 'step-4'))
    assert all(torch.equal(value, before[name]) for name, value in after.items()) and before['embed.exp_avg'].any()
    printed = capsys.readouterr().out
    assert 'step 3/4 | no targets' in printed and 'tokens; 2 steps without a target' in printed
    assert json.loads(Path(cfg.out, 'settings.json').read_text())['no_targets'] == 2

def test_documents_of_one_token_are_refused_to_train_on_and_left_out_of_the_held_out_data(corpus, tmp_path):
    text = Vocab('text', 257, 0, TextTokenizer(corpus.parent / 'tokenizer').hash)
    for split, docs in (('train', [[5, 6, 7]] * 40), ('val', [[5]] * 40)):
        write(tmp_path / 'mixed' / split / 'text', text, docs)
    write(tmp_path / 'single' / 'train' / 'text', text, [[5]] * 40)
    settings = dict(sources=('text',), vocab='text', max_steps=1)
    assert train.main(small(corpus, tmp_path / 'run', data=str(tmp_path / 'mixed'), **settings)) == {}
    with pytest.raises(Refused, match='single/train/text: each of its 40 documents is a single token'):
        train.main(small(corpus, tmp_path / 'none', data=str(tmp_path / 'single'), **settings))
    assert not (tmp_path / 'none').exists()

def test_a_finished_run_says_so_and_touches_nothing(config, capsys):
    cfg = config(max_steps=3)
    val = train.main(cfg)
    before = {p: p.stat().st_mtime_ns for p in Path(cfg.out).rglob('*')}
    assert train.main(cfg) == val
    assert "finished before, at step 3" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in Path(cfg.out).rglob('*')} == before

def test_a_run_killed_between_its_last_checkpoint_and_its_export_is_exported(config):
    cfg = config(max_steps=3)
    val = train.main(cfg)
    weights = weights_of(cfg.out)
    for name in ('settings.json', 'model.safetensors', 'config.json'):
        Path(cfg.out, name).unlink()
    assert train.main(cfg) == val and weights_of(cfg.out) == weights
    assert len(rows_of(cfg.out)) == 4 # three steps and one evaluation, none twice

# ---- starting points

def test_textlm_then_twist_keeps_text_rows_and_a_slm_starts_as_it_is(config, tmp_path):
    text = config(vocab='text', sources=('text',), max_steps=3, out=str(tmp_path / 'text'))
    train.main(text)
    none = dict(n_layer=None, n_head=None, n_embd=None, n_ffn=None, tokenizer=None)
    joint = config(init=text.out, max_steps=3, out=str(tmp_path / 'joint'), **none)
    vocab, *_ = train.open_data(joint)
    start = train.build_model(joint, vocab, joint.init, 'cpu')
    textlm = GPT.from_pretrained(text.out)
    assert torch.equal(start.embed[:257], textlm.embed[:257]) and start.cfg.vocab_size == 271
    train.main(joint)
    further = config(init=joint.out, max_steps=3, out=str(tmp_path / 'further'), **none)
    start_again = train.build_model(further, vocab, joint.out, 'cpu')
    assert torch.equal(start_again.embed, GPT.from_pretrained(joint.out).embed)
    train.main(further)
    speech = config(init=text.out, vocab='speech', sources=('textless',), rope_theta=1e4, max_steps=3,
                    out=str(tmp_path / 'speech'), **none)
    train.main(speech)
    assert GPT.from_pretrained(speech.out).cfg.vocab_size == 14
    assert GPT.from_pretrained(speech.out).cfg.rope_theta == 1e4
    gslm = config(init_config=text.out, max_steps=3, out=str(tmp_path / 'gslm'), **none)
    assert train.build_model(gslm, vocab, text.out, 'cpu').num_params() == start.num_params()
    with pytest.raises(Refused, match="its vocabulary .speech, 14 ids, .* expected that, or a TextLM"):
        train.main(config(init=speech.out, out=str(tmp_path / 'no'), **none | {'tokenizer': text.tokenizer}))

@pytest.mark.parametrize('family', ['gemma2', 'gpt_neox', 'opt', 'bloom'])
def test_every_family_becomes_an_slm_that_transformers_loads(family, config, tmp_path):
    probe = config()
    vocab, *_ = train.open_data(probe)
    tokenizer = TextTokenizer(probe.tokenizer)
    torch.manual_seed(0)
    shape = {'n_kv_head': 2, 'head_dim': 16} if family == 'gemma2' else {}
    tied = family != 'gpt_neox'
    textlm = GPT(GPTConfig(family=family, vocab_size=tokenizer.size, n_layer=2, n_embd=32, tied=tied, **shape))
    textlm.save_pretrained(tmp_path / 'text', vocab=tokenizer.vocab, tokenizer=probe.tokenizer)
    none = dict(n_layer=None, n_head=None, n_embd=None, n_ffn=None, tokenizer=None)
    cfg = config(init=str(tmp_path / 'text'), max_steps=3, out=str(tmp_path / 'slm'), **none)
    train.main(cfg)
    model = GPT.from_pretrained(cfg.out)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(cfg.out, attn_implementation='eager').eval()
    tokens = torch.randint(vocab.size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model.logits(model(tokens)) - hf_model(input_ids=tokens).logits).abs().max() < 1e-5
    assert not torch.equal(model.embed[:tokenizer.size], textlm.embed[:tokenizer.size]) # it learned
    if family in ('opt', 'bloom'):
        with pytest.raises(Refused, match=f'rope_theta=10000.0: {family} has no rotary positions'):
            train.main(config(init=str(tmp_path / 'text'), rope_theta=1e4, out=str(tmp_path / 'no'), **none))

@pytest.mark.parametrize('dtype, within', [('bfloat16', 0.05), ('pure_bfloat16', 0.1)])
def test_bf16_stays_near_float32(config, tmp_path, dtype, within):
    a, b = config(out=str(tmp_path / 'a')), config(dtype=dtype, out=str(tmp_path / 'b'))
    train.main(a)
    train.main(b)
    x, y = ([r['loss'] for r in rows_of(c.out)[:20]] for c in (a, b))
    assert x != y and max(abs(p - q) for p, q in zip(x, y)) < within
    moments = checkpoint_tensors(Path(b.out, 'step-20'))['layers.0.qkv.weight.exp_avg']
    assert moments.dtype == (torch.bfloat16 if dtype == 'pure_bfloat16' else torch.float32)

def test_attention_by_sdpa_differs_by_rounding_alone(config, tmp_path):
    a, b = config(out=str(tmp_path / 'a')), config(attention='sdpa', out=str(tmp_path / 'b'))
    train.main(a)
    train.main(b)
    x, y = ([r['loss'] for r in rows_of(c.out)[:20]] for c in (a, b))
    assert x != y and x == pytest.approx(y, abs=1e-5)

# ---- schedule and budget

@pytest.mark.parametrize('schedule, rates', [
    ('cosine', {0.005: 5e-4, 0.01: 1e-3, 0.505: 5.25e-4, 1.0: 5e-5}),
    ('constant', {0.005: 5e-4, 0.01: 1e-3, 1.0: 1e-3}),
    ('inverse_sqrt', {0.005: 5e-4, 0.01: 1e-3, 0.04: 5e-4, 1.0: 1e-4}),
    ('wsd', {0.005: 5e-4, 0.01: 1e-3, 0.8: 1e-3, 0.9: 5.25e-4, 1.0: 5e-5})])
def test_schedule_has_the_closed_form_s_values(config, schedule, rates):
    cfg = config(lr=1e-3, schedule=schedule)
    for t, lr in rates.items():
        assert train.learning_rate(cfg, t) == pytest.approx(lr, rel=1e-12), t

def test_budgets_give_the_steps_they_buy(config):
    per_step, flops = 12 * T, 6.0 * 1000 * 12 * T
    assert train.total_steps(config(max_steps=7), flops) == 7
    assert train.total_steps(config(max_steps=None, max_tokens=10 * per_step + 5), flops) == 10
    assert train.total_steps(config(max_steps=None, max_flops=11.5 * flops), flops) == 11
    assert train.total_steps(config(max_steps=None, max_seconds=3.0), flops) is None
    with pytest.raises(Refused, match='the budget buys no step: one is 384 tokens and 2.30e.06 FLOPs'):
        train.total_steps(config(max_steps=None, max_tokens=100), flops)

def after(seconds, clock, function):
    """The function, with clock[0] so many seconds later."""
    def slow(*args):
        clock[0] += seconds
        return function(*args)
    return slow

def test_seconds_end_a_run_and_its_schedule(config, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(train.time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(train, 'fetch', after(0.05, clock, train.fetch))
    train.main(config(max_steps=None, max_seconds=1.0, eval_rows=1))
    rows = [r for r in rows_of(config().out) if 'val' not in r]
    assert len(rows) == 20
    assert max(r['lr'] for r in rows) > 9e-3 and rows[-1]['lr'] < 2e-3 # down by the clock

# ---- refusals

def test_refused_inputs_leave_no_run_behind(config, tmp_path, corpus):
    cases = [(dict(data=str(tmp_path / 'none')),
              f"{tmp_path}/none/train/text: no such folder; expected token shards as interleave.py writes them"),
             (dict(vocab='speech'),
              f"vocab='speech': no shards of {corpus} (text, speech, interleaved) have such a vocabulary"),
             (dict(data=f'{corpus},{tmp_path}/other/{corpus.name}'),
              f"data={corpus},{tmp_path}/other/{corpus.name}: two folders have the same last name, "
              "by which losses are told apart; rename one"),
             (dict(weights=(1, 2)), "2 weights for 3 sources, expected one each")]
    for changes, message in cases:
        with pytest.raises(Refused) as refusal:
            train.main(config(**changes))
        assert str(refusal.value) == message and not Path(config().out).exists()

def test_another_tokenizer_is_refused(config, tmp_path):
    make_tokenizer(tmp_path)
    path = tmp_path / 'tokenizer.json'
    spec = json.loads(path.read_text())
    spec['pre_tokenizer']['add_prefix_space'] = True
    path.write_text(json.dumps(spec))
    with pytest.raises(Refused, match='its text tokenizer did not make the shards: tokenizer [0-9a-f]{16} of 257 ids'):
        train.main(config(tokenizer=str(tmp_path)))

def test_a_changed_run_in_the_same_folder_is_refused_with_the_fields(config, tmp_path):
    train.main(config(max_steps=2))
    before = weights_of(config().out)
    with pytest.raises(Refused) as refusal:
        train.main(config(max_steps=2, lr=2e-2, seed=5))
    out = config().out
    assert str(refusal.value) == (f"{out} holds another run: lr was 0.01 and is 0.02, seed was 0 and is 5; "
                                  "take the old settings back or choose another --out")
    assert weights_of(out) == before
    # These may change: the run has finished all the same.
    train.main(config(max_steps=2, micro_batch=3, save_every=7, attention='sdpa'))

def test_a_run_of_a_version_without_a_setting_goes_on_with_its_default(config, monkeypatch):
    read_state = checkpoint.read_state
    def read_older(folder):
        state = read_state(folder)
        del state['run']['optimizer'], state['run']['sources']
        return state
    train.main(config(max_steps=2))
    monkeypatch.setattr(checkpoint, 'read_state', read_older)
    train.main(config(max_steps=2))
    with pytest.raises(Refused, match="holds another run: optimizer was 'adamw' and is 'muon'; take"):
        train.main(config(max_steps=2, optimizer='muon'))

def test_changed_shards_are_refused_on_resume(config, tmp_path):
    tokenizer = TextTokenizer(config().tokenizer)
    corpus = make_corpus(tmp_path / 'first', tokenizer, n=20)
    cfg = config(data=str(corpus), max_steps=6)
    with interrupted_after(2):
        train.main(cfg)
    changed = make_corpus(tmp_path / 'changed', tokenizer, n=20, seed=9)
    shutil.rmtree(corpus / 'train' / 'speech')
    shutil.move(changed / 'train' / 'speech', corpus / 'train')
    with pytest.raises(Refused, match=r"holds another run: speech shards was '\w{16}' and is '\w{16}', speech plan"):
        train.main(cfg)

# ---- the command line, and what the loop is given

def command(cfg):
    """The command line of a Config."""
    settings = asdict(cfg)
    defaults = {field.name: field.default for field in fields(cfg)}
    arguments = [f'--{name}={value}' for name, value in settings.items() if value != defaults[name]]
    return [sys.executable, 'train.py', *arguments]

def test_sigterm_saves_once_exits_0_and_the_same_command_goes_on(config, tmp_path):
    cfg = config(max_steps=1_000_000, log_every=1, out=str(tmp_path / 'cli')) # the signal comes long before the end
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command(cfg), cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        for text in process.stdout:
            if text.startswith('step 5/'):
                process.send_signal(signal.SIGTERM)
                break
        rest, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0 and 'stopped by a signal, saved as' in rest
    assert len(checkpoint.folders(cfg.out)) == 1 and checkpoint.why_unusable(checkpoint.folders(cfg.out)[0]) is None

def test_the_command_line_refuses_in_one_line(config):
    line = [sys.executable, 'train.py', 'config/tiny_text.py', '--n_layr=4']
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (1, "train.py: --n_layr=4: no setting 'n_layr', did you mean 'n_layer'?\n")

def test_keys_of_a_batch_are_the_tokens_places_in_their_documents(config):
    cfg = config()
    _, _, loader, *_ = train.open_data(cfg)
    micro_batches, _, attended_keys = train.fetch(loader, cfg, 0, 0, 1, torch.device('cpu'))
    expected = 0
    for _, doc_start, _ in micro_batches:
        for row in doc_start.tolist():
            expected += sum(t - start + 1 for t, start in enumerate(row))
    assert attended_keys == expected
