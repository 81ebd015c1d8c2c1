"""cost.memory against what autograd keeps, on fake tensors of real sizes (shapes without numbers)."""
import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hub.families import GPTConfig
from model import GPT
from training.cost import memory

SHAPES = {
    'qwen2': dict(n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864),
    'llama': dict(n_layer=16, n_head=32, n_kv_head=8, n_embd=2048, n_ffn=8192),
    'gemma2': dict(n_layer=26, n_head=8, n_kv_head=4, n_embd=2304, head_dim=256, n_ffn=9216),
    'gpt_neox': dict(n_layer=12, n_head=12, n_embd=768, n_ffn=3072, tied=False),
    'opt': dict(n_layer=12, n_head=12, n_embd=768, n_ffn=3072, n_positions=2048),
    'bloom': dict(n_layer=24, n_head=16, n_embd=2048, n_ffn=8192)}

def kept(cfg, tokens, dtype, recompute):
    """Bytes of distinct storages that the layers keep for the backward, without parameters and their bf16 copies."""
    tensors = lambda: [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    sizes, others = {}, tensors() # others: of earlier tests
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16 if dtype == 'pure_bfloat16' else torch.float32)
        model = GPT(cfg)
        torch.set_default_dtype(torch.float32)
        model.attention = 'triton'
        for block in model.layers:
            block.recompute = recompute
        own = {x.untyped_storage()._cdata for x in [*model.parameters(), *others] if not x.is_meta}
        def pack(x):
            if x.untyped_storage()._cdata not in own:
                sizes[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            return x
        x = torch.zeros(1, tokens, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), \
                torch.autocast('cpu', torch.bfloat16, enabled=dtype != 'float32'):
            held = model.loss_sum(x, torch.zeros_like(x), x) # its graph keeps the storages, so that no address comes twice
        for y in tensors(): # what checkpoints hold is in no hook
            pack(y)
        linear = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    copied = {'none': '', 'selective': 'out', 'full': '-'}[recompute] # whose bf16 weights the graph holds
    copies = sum(2 * m.weight.numel() for name, m in linear if copied in name) if dtype == 'bfloat16' else 0
    del held
    return sum(sizes.values()) - 4 * cfg.rows * cfg.n_word - copies # 4: dW of the head

def check(family, dtype, recompute):
    cfg = GPTConfig(family=family, vocab_size=50000, **SHAPES[family])
    exact = kept(cfg, 2048, dtype, recompute)
    assert memory(cfg, 2048, dtype=dtype, recompute=recompute)['saved'] == pytest.approx(exact, rel=0.02)

# not LayerNorm in pure bf16: autocast makes it float32 on a GPU alone
@pytest.mark.parametrize('family, dtype', [(f, d) for f in SHAPES for d in ('bfloat16', 'pure_bfloat16', 'float32')
                                           if d != 'pure_bfloat16' or f in ('qwen2', 'llama', 'gemma2')])
def test_saved_activations(family, dtype):
    check(family, dtype, 'none')

@pytest.mark.parametrize('recompute', ['selective', 'full'])
@pytest.mark.parametrize('family', SHAPES)
def test_saved_activations_when_recomputing(family, recompute):
    check(family, 'bfloat16', recompute)
