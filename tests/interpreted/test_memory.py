"""cost.memory against what autograd keeps, on fake tensors of real sizes (shapes without numbers)."""
import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hub.families import GPTConfig
from kernels import elementwise
from model import GPT
from training.cost import memory

SHAPES = {
    'qwen2': dict(n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864),
    'llama': dict(n_layer=16, n_head=32, n_kv_head=8, n_embd=2048, n_ffn=8192),
    'gemma2': dict(n_layer=26, n_head=8, n_kv_head=4, n_embd=2304, head_dim=256, n_ffn=9216),
    'gpt_neox': dict(n_layer=12, n_head=12, n_embd=768, n_ffn=3072, tied=False),
    'opt': dict(n_layer=12, n_head=12, n_embd=768, n_ffn=3072, n_positions=2048),
    'bloom': dict(n_layer=24, n_head=16, n_embd=2048, n_ffn=8192),
    'qwen3': dict(n_layer=28, n_head=16, n_kv_head=8, n_embd=1024, head_dim=128, n_ffn=3072),
    'smollm3': dict(n_layer=12, n_head=16, n_kv_head=4, n_embd=2048, n_ffn=11008),
    'olmo2': dict(n_layer=16, n_head=16, n_embd=2048, n_ffn=8192, tied=False),
    'olmo3': dict(n_layer=8, n_head=32, n_embd=4096, n_ffn=11008, tied=False),
}

@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(elementwise, 'fused', lambda x: True)

def live_tensors():
    return [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]

def storage_id(x):
    return x.untyped_storage()._cdata

def build_model(cfg, dtype, recompute):
    torch.set_default_dtype(torch.bfloat16 if dtype == 'pure_bfloat16' else torch.float32)
    model = GPT(cfg)
    torch.set_default_dtype(torch.float32)
    model.attention = 'triton'
    for block in model.layers:
        block.recompute = recompute
    return model

def saved_bytes(cfg, tokens, dtype, recompute):
    """Bytes of distinct storages that the layers keep for the backward, without parameters and their bf16 copies."""
    tensors_of_earlier_tests = live_tensors()
    sizes = {}
    with FakeTensorMode():
        model = build_model(cfg, dtype, recompute)
        not_counted = {storage_id(x) for x in [*model.parameters(), *tensors_of_earlier_tests] if not x.is_meta}
        def count(x):
            if storage_id(x) not in not_counted:
                sizes[storage_id(x)] = x.untyped_storage().nbytes()
            return x
        x = torch.zeros(1, tokens, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x), \
                torch.autocast('cpu', torch.bfloat16, enabled=dtype != 'float32'):
            # The graph of the loss keeps the storages alive, so that no address is used twice.
            loss = model.loss_sum(x, torch.zeros_like(x), x)
        for tensor in live_tensors(): # the hooks do not see what checkpoints keep
            count(tensor)
        linear_layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    del loss
    # The graph also holds bf16 copies of the weights of these layers.
    copied = {'none': '', 'selective': 'out', 'full': '-'}[recompute]
    copies = 0
    if dtype == 'bfloat16':
        copies = sum(2 * m.weight.numel() for name, m in linear_layers.items() if copied in name)
    head_gradient = 4 * cfg.rows * cfg.n_word
    return sum(sizes.values()) - head_gradient - copies

def check(family, dtype, recompute):
    cfg = GPTConfig(family=family, vocab_size=50000, **SHAPES[family])
    exact = saved_bytes(cfg, 2048, dtype, recompute)
    assert memory(cfg, 2048, dtype=dtype, recompute=recompute)['saved'] == pytest.approx(exact, rel=0.02)

# LayerNorm is not tested in pure bf16, because autocast makes it float32 only on a GPU.
RMSNORM_FAMILIES = ('qwen2', 'llama', 'gemma2', 'qwen3', 'smollm3', 'olmo2', 'olmo3')
CASES = [(family, dtype) for family in SHAPES for dtype in ('bfloat16', 'pure_bfloat16', 'float32')
         if dtype != 'pure_bfloat16' or family in RMSNORM_FAMILIES]

def slow_unless(quick, *case):
    return pytest.param(*case, marks=[] if quick else pytest.mark.slow)

@pytest.mark.parametrize('family, dtype', [
    slow_unless(family == 'qwen2' or dtype == 'bfloat16', family, dtype) for family, dtype in CASES])
def test_saved_activations(family, dtype):
    check(family, dtype, 'none')

@pytest.mark.parametrize('family, recompute', [
    slow_unless(family == 'qwen2' or recompute == 'selective', family, recompute)
    for family in SHAPES for recompute in ('selective', 'full')])
def test_saved_activations_when_recomputing(family, recompute):
    check(family, 'bfloat16', recompute)
