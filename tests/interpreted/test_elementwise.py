"""
kernels/elementwise.py under Triton's interpreter, in float32, beside the definitions of model.py: results, gradients,
and a model whose layers take these kernels.
"""
import pytest
import torch

from bench import traffic
from hub.families import GPTConfig
from kernels import elementwise
from model import ACTIVATIONS, GPT, _RMSNorm, _rotate


def assert_same(f, definition, *inputs):
    """f(*inputs) and the gradient of each input are those of a definition in torch, which also runs in float64."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = f(*inputs)
    expected = definition(*inputs)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = definition(*exact_inputs)
    gradients_of_outputs = [torch.randn_like(y) for y in outputs]
    doubled = [dy.double() for dy in gradients_of_outputs]
    gradients = torch.autograd.grad(outputs, inputs, gradients_of_outputs)
    expected_gradients = torch.autograd.grad(expected, inputs, gradients_of_outputs)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, doubled)
    for x, e, reference in zip((*outputs, *gradients), (*exact, *exact_gradients), (*expected, *expected_gradients)):
        allowed = 2 * (reference - e).abs().max() + torch.finfo(x.dtype).eps * e.abs().max()
        assert x.shape == e.shape
        assert (x - e).abs().max() <= allowed

@pytest.mark.parametrize('shape', [(1, 1, 16), (2, 37, 24), (3, 16, 130)])
def test_norm(shape):
    torch.manual_seed(shape[1])
    w = 1 + torch.randn(shape[-1])
    assert_same(lambda x, w: [elementwise.rms_norm(x, w, 1e-5, x.dtype)],
                lambda x, w: [_RMSNorm.apply(x, w, 1e-5)], 3 * torch.randn(shape), w)

def split(qkv, H):
    HK = (qkv.size(2) - H) // 2
    return qkv.split([H, HK, HK], 2)

@pytest.mark.parametrize('rows', [1, 2]) # of the tables: one for all rows, or one each
@pytest.mark.parametrize('H, HK, D', [(4, 2, 16), (3, 3, 32), (7, 1, 64)])
def test_rotation(H, HK, D, rows):
    torch.manual_seed(D)
    B, T = 2, 21
    angle = torch.randn(rows, T, 1, D // 2)
    cos = torch.cat((angle.cos(), angle.cos()), -1) * 1.1 # as YaRN scales them
    sin = torch.cat((-angle.sin(), angle.sin()), -1) * 1.1

    def definition(qkv):
        q, k, v = split(qkv, H)
        return [_rotate(q, cos.to(q.dtype), sin.to(q.dtype)), _rotate(k, cos.to(q.dtype), sin.to(q.dtype)), v]

    assert_same(lambda qkv: elementwise.rotated(qkv, cos, sin, H), definition, torch.randn(B, T, H + 2 * HK, D))

def test_gradients_that_are_parts_or_transposed_are_rotated_too():
    torch.manual_seed(0)
    cos, sin = torch.randn(2, 1, 5, 1, 16)
    dq, dk, dv = (torch.randn(2, heads, 5, 16).transpose(1, 2) for heads in (4, 2, 2))
    expected = elementwise._rotation(dq.contiguous(), dk.contiguous(), dv.contiguous(), cos, sin, True)
    assert torch.equal(elementwise._rotation(dq, dk, dv, cos, sin, True), expected)

@pytest.mark.parametrize('shape', [(1, 1, 2), (2, 5, 46), (3, 2, 2100)])
def test_swiglu(shape):
    torch.manual_seed(shape[-1])

    def definition(h):
        g, u = h.chunk(2, -1)
        return [ACTIVATIONS['silu'](g) * u]

    assert_same(lambda h: [elementwise.swiglu(h)], definition, 3 * torch.randn(shape))

# --------------------------------------------------------------------------------------------------
# a model

SHAPE = dict(n_layer=2, n_head=4, n_embd=64, n_ffn=96)
FAMILIES = {'qwen2': {}, 'gemma2': {'head_dim': 32}, 'gpt_neox': {'tied': False}, 'opt': {'n_positions': 64}}
TOKENS = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))
DOC_START = torch.tensor([0, 10]).repeat_interleave(torch.tensor([10, 14])).expand(2, -1)

def losses_and_gradients(model, dtype=torch.float32):
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        total, losses = model.loss_sum(TOKENS, DOC_START, TOKENS)
    total.backward()
    return [losses, *(p.grad for p in model.parameters())]

@pytest.mark.parametrize('recompute', ['none', 'selective', 'full'])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_model_has_the_losses_and_gradients_of_the_cpu(family, recompute, monkeypatch):
    torch.manual_seed(0)
    cfg = GPTConfig(family=family, vocab_size=50, **SHAPE | FAMILIES[family])
    model = GPT(cfg, recompute=recompute)
    expected = losses_and_gradients(model)
    monkeypatch.setattr(elementwise, 'fused', lambda x: True)
    for x, y in zip(losses_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)

def test_cached_decoding_gives_the_same_ids(monkeypatch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, **SHAPE)).eval()
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6]] # of different lengths: each row has positions of its own
    expected = model.generate(prompts, 6, temperature=0)
    monkeypatch.setattr(elementwise, 'fused', lambda x: True)
    assert model.generate(prompts, 6, temperature=0) == expected

def test_in_bf16_the_norms_round_for_the_products_and_the_residual_stays_in_float32(monkeypatch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, **SHAPE))
    exact = losses_and_gradients(model)
    errors = []
    for fused in (False, True):
        monkeypatch.setattr(elementwise, 'fused', lambda x, fused=fused: fused)
        results = losses_and_gradients(model, torch.bfloat16)
        errors.append(max((x - y).norm() / y.norm() for x, y in zip(results, exact)))
    assert errors[1] <= 2 * errors[0] < 0.05 # the interpreter cuts numbers off where a GPU rounds them
    dtypes = []
    for module in (model.layers[0].qkv, model.layers[0].norm2):
        module.register_forward_pre_hook(lambda module, inputs: dtypes.append(inputs[0].dtype))
    losses_and_gradients(model, torch.bfloat16)
    assert dtypes == [torch.bfloat16, torch.float32]

def test_the_kernels_are_opaque_to_torch_compile(monkeypatch):
    monkeypatch.setattr(elementwise, 'fused', lambda x: True)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, **SHAPE), attention='triton')
    expected = losses_and_gradients(model)
    for block in model.layers:
        block.forward = torch.compile(block.forward, backend='aot_eager', fullgraph=True)
    for x, y in zip(losses_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(x, y)

def test_the_kernels_move_less_than_half_of_the_bytes_and_little_more_than_the_floor(monkeypatch):
    cfg = traffic.CONFIGS['Qwen2.5-0.5B']
    bytes_moved = {}
    for fused in (False, True):
        monkeypatch.setattr(elementwise, 'fused', lambda x, fused=fused: fused)
        bytes_moved[fused] = sum(traffic.of_parts(cfg)['all'])
    assert bytes_moved[True] < bytes_moved[False] / 2.4
    assert bytes_moved[True] < 1.3 * sum(traffic.floor_of(cfg)['all'])
