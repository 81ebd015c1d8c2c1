"""model.memory against what autograd keeps, on fake tensors of real sizes (shapes without numbers)."""
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from families import GPTConfig
from model import GPT, memory

SHAPES = {
    'qwen2': dict(n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864),
    'llama': dict(n_layer=16, n_head=32, n_kv_head=8, n_embd=2048, n_ffn=8192),
    'gemma2': dict(n_layer=26, n_head=8, n_kv_head=4, n_embd=2304, head_dim=256, n_ffn=9216),
    'gpt_neox': dict(n_layer=12, n_head=12, n_embd=768, n_ffn=3072, tied=False),
    'opt': dict(n_layer=12, n_head=12, n_embd=768, n_ffn=3072, n_positions=2048),
    'bloom': dict(n_layer=24, n_head=16, n_embd=2048, n_ffn=8192)}

def kept(cfg, tokens, dtype):
    """Bytes of distinct storages, parameters apart, that the layers keep for the backward."""
    sizes = {}
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16 if dtype == 'pure_bfloat16' else torch.float32)
        model = GPT(cfg)
        torch.set_default_dtype(torch.float32)
        model.attention = 'triton'
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        def pack(x):
            if x.untyped_storage()._cdata not in own:
                sizes[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            return x
        x = torch.zeros(1, tokens, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), \
                torch.autocast('cpu', torch.bfloat16, enabled=dtype != 'float32'):
            loss, _ = model.loss_sum(x, torch.zeros_like(x), x)
        weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    dw, dx = 4 * cfg.rows * cfg.n_word, 0
    return sum(sizes.values()) - dw - (2 * weights if dtype == 'bfloat16' else 0), loss

@pytest.mark.parametrize('dtype', ['bfloat16', 'pure_bfloat16', 'float32'])
@pytest.mark.parametrize('family', SHAPES)
def test_saved_activations(family, dtype):
    cfg = GPTConfig(family=family, vocab_size=50000, **SHAPES[family])
    exact, _ = kept(cfg, 2048, dtype)
    said = memory(cfg, 2048, dtype=dtype)['saved']
    print(family, dtype, said / exact)
    assert said == pytest.approx(exact, rel=0.1)
