"""training/processes.py: several processes make the steps of one, with copies of the weights or with shards."""
# ruff: noqa: F401, F811 (fixtures of test_train)
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import checkpoint_tensors
from test_train import (
    config,
    corpus,
    interrupted_after,
    losses_of,
    not_finite,
    on_ranks,
    rows_of,
)
from torch._inductor import config as inductor
from torch.distributed.tensor import DTensor

import model as model_file
import train
from training import checkpoint
from training.processes import processes, wrap_distributed


@pytest.mark.parametrize('parallel', ['ddp', 'fsdp'])
@pytest.mark.parametrize('world, micro_batch', [(2, 3), (4, 1)])
def test_ranks_are_one_also_when_one_has_more_targets_and_a_nan(config, tmp_path, world, micro_batch, parallel):
    """Same losses within 1e-5, in 2 or 3 micro-steps a rank; a NaN in the last of rank 1 alone skips step 4 on all."""
    single = config(micro_batch=12, out=str(tmp_path / 'single'))
    several = config(micro_batch=1, out=str(tmp_path / 'several'), parallel=parallel)
    with not_finite({4}):
        train.main(single)
    def work(rank):
        with not_finite({4 * 12 // world // micro_batch}, on_rank=1):
            train.main(replace(several, micro_batch=micro_batch))
    assert on_ranks(world, work) == [0] * world
    a, b = rows_of(single.out), rows_of(several.out)
    assert [r['step'] for r in b] == [*range(1, 21), 20]
    assert [r.get('targets') for r in a] == [r.get('targets') for r in b]
    for x, y in zip(a, b):
        assert x.get('skipped') == y.get('skipped') == (True if x['step'] == 4 else None)
        for name in ('loss', 'text', 'units', 'separators'):
            if x.get(name) is not None and x['step'] != 4:
                assert x[name] == pytest.approx(y[name], abs=1e-5), (x['step'], name)
    for name, mean in a[-1]['val'].items():
        assert mean['loss'] == pytest.approx(b[-1]['val'][name]['loss'], abs=1e-5)
    _, _, loader, *_ = train.open_data(single)
    counts = [(loader.rows(first, 3)[2] >= 0).sum() for first in (0, 3, 6, 9)]
    assert counts[0] + counts[2] != counts[1] + counts[3] # so a mean of the ranks' means would have differed

@pytest.mark.parametrize('dtype, within', [
    ('float32', 1e-4), pytest.param('bfloat16', 0.05, marks=pytest.mark.slow)])
def test_shards_resume_to_the_bit_and_at_any_world_size(config, tmp_path, dtype, within):
    """Cut at step 12 under fsdp: two ranks end as if uncut, to the bit; one, three and four within rounding.

    Each checkpoint comes right after an evaluation, and has the float32 weights and moments all the same.
    """
    changes = dict(micro_batch=1, parallel='fsdp', dtype=dtype, eval_every=4, save_every=4)
    runs = {name: config(out=str(tmp_path / name), **changes) for name in ('uncut', 'cut', *'1234')}
    cut = runs['cut']
    def run_cut(rank):
        with interrupted_after(12):
            train.main(cut)
    def run_uncut(rank):
        make_optimizer = train.make_optimizer
        parameters = []
        def spy(*args):
            parameters.extend(args[0].parameters())
            return make_optimizer(*args)
        train.make_optimizer = spy
        train.main(runs['uncut'])
        assert parameters
        assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in parameters)
    assert on_ranks(2, run_uncut) == on_ranks(2, run_cut) == [0, 0]
    for world in (1, 2, 3, 4):
        shutil.copytree(cut.out, tmp_path / str(world))
        assert on_ranks(world, lambda rank, world=world: train.main(runs[str(world)])) == [0] * world
    expected = load_file(tmp_path / 'uncut/model.safetensors')
    for world in '1234':
        resumed = load_file(tmp_path / world / 'model.safetensors')
        for name, value in expected.items():
            if world == '2':
                assert torch.equal(value, resumed[name]), name
            assert (value - resumed[name]).abs().max() < within, name
    table = expected['model.embed_tokens.weight']
    assert not torch.equal(table, table.bfloat16().float())
    moments = checkpoint_tensors(tmp_path / 'uncut/step-20')
    assert {'embed.exp_avg', 'norm.weight.exp_avg', 'layers.0.qkv.weight.exp_avg'} <= set(moments)

@pytest.mark.parametrize('parallel', [pytest.param('ddp', marks=pytest.mark.slow), 'fsdp'])
def test_a_checkpoint_of_two_ranks_is_the_same_when_three_have_read_and_saved_it(config, tmp_path, parallel):
    cut = config(out=str(tmp_path / 'two'), micro_batch=3, max_steps=2, parallel='fsdp')
    assert on_ranks(2, lambda rank: train.main(cut)) == [0, 0]
    folder = Path(cut.out, 'step-2')
    cfg = replace(cut, out=str(tmp_path / 'three'), micro_batch=4, parallel=parallel)
    def work(rank):
        with processes(cfg) as place:
            vocab, tokenizer, *_ = train.open_data(cfg)
            run = checkpoint.open_run(cfg, (), place, [], vocab, tokenizer, {})
            objective = train.LMObjective(train.model_to_fill(folder, cfg, place.device), vocab)
            wrap_distributed(objective, cfg, place.world, place.device)
            optimizer = train.make_optimizer(objective.model, 1e-3)
            checkpoint.load(folder, objective.model, optimizer, place)
            log = train.Log(cfg, run.state, objective.model, rank, 3, place.device, None)
            saver = checkpoint.Saver(run, objective.model, optimizer, log)
            saver.start(2, 0.0, False)
            saver.wait()
    assert on_ranks(3, work) == [0, 0, 0]
    again = Path(cfg.out, 'step-2')
    assert len(list(again.glob('part-*'))) == 3 and checkpoint.why_unusable(again) is None
    expected, tensors = checkpoint_tensors(folder), checkpoint_tensors(again)
    assert expected.keys() == tensors.keys() and len(expected) > 20
    for name, value in expected.items():
        assert torch.equal(value, tensors[name]), name

def test_shards_of_gradients_are_all_that_is_kept_between_micro_batches(config):
    cfg = config(parallel='fsdp', micro_batch=2, max_steps=2) # 3 micro-batches a rank
    def work(rank):
        call = torch.nn.Module.__call__
        have_shards = [] # before each micro-batch: which values `has_shard` takes over the parameters
        def has_shard(p):
            return p.grad is not None and p.grad.to_local().shape == p.to_local().shape
        def spy(objective, *batch): # outside of FSDP's hooks, where the parameters are shards
            have_shards.append({has_shard(p) for p in objective.model.parameters()})
            return call(objective, *batch)
        train.LMObjective.__call__ = spy
        train.main(cfg)
        assert have_shards[:6] == [{False}, {True}, {True}] * 2, have_shards
    assert on_ranks(2, work) == [0, 0]

@pytest.mark.parametrize('world', [1, 2])
@pytest.mark.parametrize('recompute', ['selective', 'full'])
def test_recomputing_changes_nothing_also_in_shards(config, tmp_path, recompute, world):
    a, b = (config(out=str(tmp_path / setting), max_steps=4, micro_batch=3, parallel='fsdp', recompute=setting)
            for setting in ('none', recompute))
    def work(cfg):
        recomputed = model_file.recomputed
        calls = []
        def spy(*args):
            calls.append(args)
            return recomputed(*args)
        model_file.recomputed = spy
        train.main(cfg)
        assert bool(calls) == (cfg.recompute != 'none')
    for cfg in (a, b):
        assert on_ranks(world, lambda rank, cfg=cfg: work(cfg)) == [0] * world
    assert losses_of(a.out) == losses_of(b.out)

@pytest.mark.skipif(not shutil.which('g++'), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize('parallel, recompute, world', [
    pytest.param('ddp', 'selective', 1, marks=pytest.mark.slow), 
    pytest.param('ddp', 'none', 2, marks=pytest.mark.slow), ('fsdp', 'full', 2)])
def test_compiled_layers_learn_the_same(config, tmp_path, parallel, recompute, world):
    runs = [config(out=str(tmp_path / str(on)), max_steps=4, micro_batch=3, parallel=parallel, recompute=recompute,
                   compile=on) for on in (False, True)]
    def work(cfg):
        inductor.compile_threads = 1 # in this process: a pool does not outlive a fork
        compile_function = torch.compile
        compiled = []
        def spy(function, **options):
            compiled.append(function)
            return compile_function(function, **options)
        torch.compile = spy
        train.main(cfg)
        assert len(compiled) == cfg.compile # for the one layer
    for cfg in runs:
        assert on_ranks(world, lambda rank, cfg=cfg: work(cfg)) == [0] * world
    for a, b in zip(*(rows_of(run.out)[:4] for run in runs)):
        assert a['loss'] == pytest.approx(b['loss'], abs=1e-5)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-4)
    plain, compiled = (load_file(Path(run.out, 'model.safetensors')) for run in runs)
    assert plain.keys() == compiled.keys()

@pytest.mark.parametrize('parallel, within', [('ddp', 1e-6), ('fsdp', 1e-3)])
def test_muon_on_two_ranks_is_muon_on_one_and_resumes_to_the_bit(config, tmp_path, parallel, within):
    """A rank of FSDP has half of each matrix, which moves by about 1e-2 as the whole does.

    The ranks' parts of its products are rounded to bfloat16 before they are summed.
    """
    changes = dict(optimizer='muon', parallel=parallel, save_every=2, max_steps=4)
    single, uncut, cut = (config(out=str(tmp_path / name), **changes) for name in ('single', 'uncut', 'cut'))
    train.main(single)
    def run_all(rank):
        with interrupted_after(2):
            train.main(cut)
    assert on_ranks(2, lambda rank: train.main(uncut)) == on_ranks(2, run_all) == [0, 0]
    assert rows_of(cut.out)[-1]['step'] == 2
    assert on_ranks(2, lambda rank: train.main(cut)) == [0, 0]
    tensors = []
    for cfg in (single, uncut, cut):
        folder = Path(cfg.out, 'step-4')
        tensors.append(checkpoint_tensors(folder) | load_file(Path(cfg.out, 'model.safetensors')))
    assert {'layers.0.qkv.weight.momentum_buffer', 'embed.exp_avg'} <= set(tensors[0])
    assert 'layers.0.qkv.weight.exp_avg' not in tensors[0]
    for name, value in tensors[1].items():
        assert torch.equal(value, tensors[2][name]), name
        assert (value - tensors[0][name]).abs().max() < within, name
