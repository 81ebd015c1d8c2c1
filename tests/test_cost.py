"""training/cost.py: the time of a step against sums by hand (its memory is in interpreted/test_memory.py), and bench/PLAN.md is its."""
from pathlib import Path

import pytest
import torch

from bench import plan
from hub.families import GPTConfig
from model import GPT
from training.cost import Chip, chip_of, memory, step_time

# easy numbers: 1e12 FLOP/s, 1e11 bytes/s of memory, 1e10 inside a node and 1e9 to others: 8e9 by all links of a node
CHIP = Chip(1e12, 1e9, 1e11, 1e10, 1e9)
CFG = GPTConfig(vocab_size=512, n_layer=2, n_head=4, n_embd=64, n_ffn=128)

def model():
    with torch.device('meta'):
        return GPT(CFG)

def time_of(world, parallel, tokens=128, batch=4096, **more):
    return step_time(CFG, CHIP, world, batch, tokens, 100, parallel, efficiency=0.5, **more)

def test_one_gpu_computes_and_updates():
    t, N = time_of(1, 'ddp'), sum(p.numel() for p in model().parameters())
    assert t['products'] == pytest.approx(4096 * model().flops_per_token(100) / 5e11)
    assert t['communication'] == t['exposed'] == 0 and t['optimizer'] == pytest.approx(28 * N / 1e11)
    assert t['seconds'] == pytest.approx(t['products'] + t['optimizer'])
    assert t['tok_s'] == pytest.approx(4096 / t['seconds'])
    assert t['mfu'] == pytest.approx(0.5 * t['products'] / t['seconds'])

@pytest.mark.parametrize('world, links', [(2, 0.8e10), (8, 0.8e10), (16, 0.8 * 8e9)])
def test_copies_sum_gradients_once_and_shards_move_at_every_micro_batch(world, links):
    N = sum(p.numel() for p in model().parameters())
    ddp, fsdp = time_of(world, 'ddp'), time_of(world, 'fsdp')
    assert ddp['communication'] == pytest.approx(2 * 4 * N * (world - 1) / world / links)
    assert fsdp['communication'] == pytest.approx(4096 / world / 128 * 8 * N * (world - 1) / world / links)
    products = 4096 / world * model().flops_per_token(100) / 5e11
    assert fsdp['products'] == pytest.approx(products) == ddp['products']
    assert fsdp['exposed'] == pytest.approx(max(0, fsdp['communication'] - products))
    last = products * 128 * world / 4096 * 2 / 3 # the backward of the last micro-batch
    assert ddp['exposed'] == pytest.approx(max(0, ddp['communication'] - last))
    assert fsdp['optimizer'] == pytest.approx(ddp['optimizer'] / world)
    assert time_of(world, 'ddp', dtype='pure_bfloat16')['communication'] == pytest.approx(ddp['communication'] / 2)

def test_recomputing_layers_is_a_forward_more_and_no_mfu():
    none, full = time_of(1, 'ddp'), time_of(1, 'ddp', recompute='full')
    head = 6 * 512 * 64
    layers = model().flops_per_token(100) - head
    assert full['products'] / none['products'] == pytest.approx((layers * 4 / 3 + head) / (layers + head))
    assert full['mfu'] < none['mfu'] and time_of(1, 'ddp', recompute='selective') == none

def test_chips_go_by_torch_s_names():
    assert chip_of('NVIDIA A100-SXM4-80GB').flops == 312e12 and chip_of('NVIDIA H200').memory > 150e9
    assert chip_of('Radeon') is None

def test_the_plan_is_what_the_formulas_give():
    path = Path(plan.__file__).parent / 'PLAN.md'
    assert path.read_text() == '\n'.join([*plan.markdown(), *plan.units()]) + '\n', "python bench/plan.py makes it anew"

def test_a_layer_that_is_made_again_counts_where_the_head_is_small():
    shape = GPTConfig(vocab_size=502, n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864)
    none, full = (memory(shape, 32 * 1024, recompute=how) for how in ('none', 'full'))
    table = shape.rows * 896
    assert full['head'] == pytest.approx(none['saved'] / 24 + 4 * table, rel=0.02) and full['head'] > 10 * none['head']
    large = GPTConfig(vocab_size=152_167, n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864)
    assert memory(large, 2048, recompute='full')['head'] == memory(large, 2048)['head'] # there the head's is more
