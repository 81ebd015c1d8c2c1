"""
training/cost.py: the time of a step against sums by hand, and bench/PLAN.md against the formulas. Memory is tested in
interpreted/test_memory.py.
"""
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import plan
from hub.families import GPTConfig
from model import GPT
from training.cost import Chip, chip_of, memory, step_time

# Easy numbers. All links of a node to others carry 8e9 bytes/s.
CHIP = Chip(flops=1e12, memory=1e9, hbm=1e11, inside=1e10, outside=1e9)
CFG = GPTConfig(vocab_size=512, n_layer=2, n_head=4, n_embd=64, n_ffn=128)

def model():
    with torch.device('meta'):
        return GPT(CFG)

def n_params():
    return sum(p.numel() for p in model().parameters())

def flops_per_token():
    return model().flops_per_token(100)

def time_of(world, parallel, **options):
    """step_time of 4,096 tokens a step in micro-batches of 128, with products at half the peak."""
    return step_time(CFG, CHIP, world, 4096, 128, 100, parallel, efficiency=0.5, **options)

def test_one_gpu_computes_and_updates():
    t = time_of(1, 'ddp')
    assert t['products'] == pytest.approx(4096 * flops_per_token() / 5e11)
    assert t['communication'] == t['exposed'] == 0
    assert t['optimizer'] == pytest.approx(28 * n_params() / 1e11)
    assert t['seconds'] == pytest.approx(t['products'] + t['optimizer'])
    assert t['tok_s'] == pytest.approx(4096 / t['seconds'])
    assert t['mfu'] == pytest.approx(0.5 * t['products'] / t['seconds'])

@pytest.mark.parametrize('world, links', [(2, 0.8e10), (8, 0.8e10), (16, 0.8 * 8e9)])
def test_copies_sum_gradients_once_and_shards_move_at_every_micro_batch(world, links):
    ddp = time_of(world, 'ddp')
    fsdp = time_of(world, 'fsdp')
    ring = (world - 1) / world / links
    n_micro = 4096 / world / 128
    assert ddp['communication'] == pytest.approx(2 * 4 * n_params() * ring)
    assert fsdp['communication'] == pytest.approx(n_micro * 8 * n_params() * ring)
    products = 4096 / world * flops_per_token() / 5e11
    assert fsdp['products'] == pytest.approx(products) == ddp['products']
    assert fsdp['exposed'] == pytest.approx(max(0, fsdp['communication'] - products))
    last_backward = products / n_micro * 2 / 3
    assert ddp['exposed'] == pytest.approx(max(0, ddp['communication'] - last_backward))
    assert fsdp['optimizer'] == pytest.approx(ddp['optimizer'] / world)
    pure_bfloat16 = time_of(world, 'ddp', dtype='pure_bfloat16')
    assert pure_bfloat16['communication'] == pytest.approx(ddp['communication'] / 2)

def test_recomputing_layers_is_a_forward_more_and_no_mfu():
    none = time_of(1, 'ddp')
    full = time_of(1, 'ddp', recompute='full')
    head = 6 * 512 * 64
    layers = flops_per_token() - head
    assert full['products'] / none['products'] == pytest.approx((layers * 4 / 3 + head) / (layers + head))
    assert full['mfu'] < none['mfu']
    assert time_of(1, 'ddp', recompute='selective') == none

def test_chips_go_by_torch_s_names():
    assert chip_of('NVIDIA A100-SXM4-80GB').flops == 312e12
    assert chip_of('NVIDIA H200').memory > 150e9
    assert chip_of('Radeon') is None

def test_the_plan_is_what_the_formulas_give():
    path = Path(plan.__file__).parent / 'PLAN.md'
    expected = '\n'.join([*plan.markdown(), *plan.units()]) + '\n'
    assert path.read_text() == expected, "run python bench/plan.py to write it again"

def test_a_layer_that_is_made_again_counts_where_the_head_is_small():
    shape = GPTConfig(vocab_size=502, n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864)
    none = memory(shape, 32 * 1024, recompute='none')
    full = memory(shape, 32 * 1024, recompute='full')
    table = shape.rows * 896
    assert full['head'] == pytest.approx(none['saved'] / 24 + 4 * table, rel=0.02)
    assert full['head'] > 10 * none['head']
    # Where the vocabulary is large, the head needs more than a layer.
    large = replace(shape, vocab_size=152_167)
    assert memory(large, 2048, recompute='full')['head'] == memory(large, 2048)['head']
