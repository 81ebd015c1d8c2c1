"""
Each kernel against its definition in plain torch: outputs and gradients. The yardstick is the definition run in
float64: a kernel may be twice as far from it as the definition in the same dtype, plus one ulp of the largest value.
"""
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from configurator import Refused
from kernels import attention_torch, gpu
from kernels import cross_entropy as ce
from kernels.attention import attention, attention_decode, attention_ref, choose_backend, decode_bias, documents
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_ref, linear_cross_entropy_sum

DTYPES = [torch.float32, torch.bfloat16]
OUTPUTS = ['o', 'dq', 'dk', 'dv']

def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))

def run(f, inputs, dy, dtype):
    """-> f(*inputs) and the gradients of the inputs, in dtype, for the gradient dy of the output."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    y = f(*inputs)
    y.backward(dy.to(y.dtype))
    return [y.detach()] + [x.grad for x in inputs]

def assert_as_good_as_torch(names, kernel, reference, inputs, dy, dtype, spacings=None):
    """The yardstick, for the output and the gradients, which names lists.

    spacings: {name: how many spacings of dtype at the largest value may be added to twice torch's error}, else 1.
    """
    inputs = [x.to(dtype) for x in inputs] # all three runs see the same numbers
    exact = run(reference, inputs, dy.to(dtype), torch.float64)
    by_reference = run(reference, inputs, dy, dtype)
    by_kernel = run(kernel, inputs, dy, dtype)
    for name, e, r, k in zip(names, exact, by_reference, by_kernel):
        kernel_error = (k - e).abs().max().item()
        torch_error = (r - e).abs().max().item()
        ulp = torch.finfo(dtype).eps * e.abs().max().item() # the spacing of dtype at the largest value
        allowed = 2 * torch_error + (spacings or {}).get(name, 1) * ulp
        assert kernel_error <= allowed, (
            f"{name}: kernel is off by {kernel_error:.2e}, torch by {torch_error:.2e}")

def assert_slope(f, inputs):
    """Along a random direction the float32 scalar f rises as its gradient says: central differences, within 1 %."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    directions = [normal(*x.shape, seed=i) for i, x in enumerate(inputs)]
    gradients = torch.autograd.grad(f(*inputs), inputs)
    expected = sum((g * d).sum() for g, d in zip(gradients, directions)).item()
    h = 1e-3
    up = f(*(x.detach() + h * d for x, d in zip(inputs, directions))).item()
    down = f(*(x.detach() - h * d for x, d in zip(inputs, directions))).item()
    assert (up - down) / (2 * h) == pytest.approx(expected, rel=0.01)

def rows_of(*rows):
    """Document lengths of each row -> doc_start (B, T)"""
    doc_start = []
    for lengths in rows:
        begins = [sum(lengths[:i]) for i in range(len(lengths))]
        doc_start.append(torch.tensor(begins).repeat_interleave(torch.tensor(lengths)))
    return torch.stack(doc_start)

def random_inputs(B, T, H, HK, D):
    """q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, T, heads, D, generator=generator) for heads in (H, HK, HK, H)]

PACKED = {'one document': rows_of([17]),
          'lengths of 1': rows_of([1] * 9, [3, 1, 5]),
          'rows differ': rows_of([40, 7, 17], [64], [1, 62, 1]),
          'longer than a block of queries': rows_of([300, 21], [5, 316])}

def spacings_of_sums(dtype):
    """For dk and dv of blocks of queries in float32, whose sums have the order of the processor's library: on an AMD
    EPYC they are up to 13 spacings from float64 where torch's are 4."""
    return {'dk': 16, 'dv': 16} if dtype == torch.float32 else None

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('heads', [(4, 4), (14, 2), (3, 1)])
@pytest.mark.parametrize('rows', PACKED)
def test_attention_is_as_good_as_torch(rows, heads, dtype):
    doc_start = PACKED[rows]
    *qkv, dy = random_inputs(*doc_start.shape, *heads, 10)
    assert_as_good_as_torch(OUTPUTS, partial(attention, docs=documents(doc_start)),
                            partial(attention_ref, doc_start=doc_start), qkv, dy, dtype, spacings_of_sums(dtype))

SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.7, 0.03, 0.9])
VARIANTS = {'softcap': dict(softcap=2.0),
            'scale': dict(scale=0.7),
            'window': dict(window=5),
            'ALiBi': dict(slopes=SLOPES),
            'window longer than a block': dict(window=70),
            'all': dict(softcap=1.5, scale=0.5, window=33, slopes=SLOPES)}

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', VARIANTS)
def test_attention_variants_are_as_good_as_torch(name, dtype, monkeypatch):
    monkeypatch.setattr(attention_torch, 'QUERIES', 32)
    monkeypatch.setattr(attention_torch, 'DENSE', 50)
    options = VARIANTS[name]
    doc_start = rows_of([90, 7, 33], [130])
    *qkv, dy = random_inputs(2, 130, 6, 2, 8)
    for docs, starts in ((documents(doc_start), doc_start), (None, None)):
        assert_as_good_as_torch(OUTPUTS, partial(attention, docs=docs, **options),
                                partial(attention_ref, doc_start=starts, **options), qkv, dy, dtype,
                                spacings_of_sums(dtype))
    difference = attention_ref(*qkv, doc_start, **options) - attention_ref(*qkv, doc_start)
    assert difference.abs().max() > 0.05 # the option has an effect

@pytest.mark.parametrize('name', VARIANTS)
def test_attention_variants_by_a_mask_are_the_definition(name, monkeypatch):
    """What a GPU runs where Triton's kernels cannot."""
    monkeypatch.setattr(attention_torch, 'DENSE', 50)
    options = dict(slopes=None, scale=None, softcap=0.0, window=0) | VARIANTS[name]
    doc_start = rows_of([90, 7, 33], [130])
    q, k, v, _ = random_inputs(2, 130, 6, 2, 8)
    causal_mask = (torch.arange(130) >= doc_start[:, :, None]).tril()[:, None]
    for mask, starts in ((causal_mask, doc_start), (None, None)):
        o = attention_torch._by_mask(q, k, v, mask, attention_torch.Options(**options))
        torch.testing.assert_close(o, attention_ref(q, k, v, starts, **options), rtol=0, atol=1e-5)

def test_attention_ref_by_hand():
    q, k, v = normal(3, 1, 4, 2, 3, dtype=torch.float64)
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    o = attention_ref(q, k, v, scale=0.3, softcap=2.0, window=2, slopes=slopes)
    for h in range(2):
        for t in range(4):
            seen = [t - 1, t] if t else [0]
            s = []
            for j in seen:
                capped = 2 * math.tanh(0.3 * float(q[0, t, h] @ k[0, j, h]) / 2)
                s.append(capped - float(slopes[h]) * (t - j))
            total = sum(math.exp(score) for score in s)
            expected = sum(math.exp(score) / total * v[0, j, h] for score, j in zip(s, seen))
            torch.testing.assert_close(o[0, t, h], expected)

@pytest.mark.parametrize('B', [2, 8]) # by SDPA, by the definition
@pytest.mark.parametrize('name', ['plain', *VARIANTS])
def test_decoding_a_token_is_the_last_row_of_attention(name, B):
    options = VARIANTS.get(name, {})
    q, k, v = (normal(B, 90, heads, 8, seed=heads) for heads in (6, 2, 2))
    keys, values = k.transpose(1, 2), v.transpose(1, 2) # ten of them are behind the token's own
    settings = {key: options[key] for key in ('scale', 'softcap') if key in options}
    column = torch.tensor([79])
    for begin in (torch.tensor([[0], [9]]).repeat(B // 2, 1), None):
        doc_start = None if begin is None else begin.expand(B, 80).where(torch.arange(80) >= begin, 0)
        expected = attention_ref(q[:, :80], k[:, :80], v[:, :80], doc_start, **options)[:, -1:]
        bias = decode_bias(column, 90, begin, options.get('window', 0), options.get('slopes'))
        o = attention_decode(q[:, 79:80], keys, values, bias, **settings)
        torch.testing.assert_close(o, expected, rtol=0, atol=1e-5)

@pytest.mark.parametrize('dtype', DTYPES)
def test_attention_without_documents_is_causal_over_the_row(dtype):
    q, k, v, dy = normal(4, 2, 270, 4, 8)
    assert_as_good_as_torch(OUTPUTS, attention, attention_ref, [q, k, v], dy, dtype)

def test_attention_of_a_document_does_not_see_the_others():
    q, k, v = normal(3, 1, 30, 2, 8)
    y = attention(q, k, v, documents(rows_of([11, 8, 11])))
    for document in (slice(0, 11), slice(11, 19), slice(19, 30)):
        alone = attention_ref(q[:, document], k[:, document], v[:, document])
        torch.testing.assert_close(y[:, document], alone, rtol=0, atol=1e-6)

def test_attention_gradcheck(monkeypatch):
    monkeypatch.setattr(attention_torch, 'QUERIES', 4) # several blocks a document
    q, k, v = (normal(2, 9, heads, 4, seed=heads, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2))
    docs = documents(rows_of([6, 3], [9]))
    for options in ({}, dict(scale=0.4, softcap=1.5, window=3, slopes=SLOPES[:4])):
        assert torch.autograd.gradcheck(partial(attention, docs=docs, **options), (q, k, v))

def problem(n, C, V, Vp, ignored, seed):
    """Random x (n, C), weight (Vp, C), targets (n,), each ignored with a probability, and dy (n,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, C, generator=generator)
    weight = torch.randn(Vp, C, generator=generator)
    dy = torch.randn(n, generator=generator)
    targets = torch.randint(V, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < ignored] = -100
    return x, weight, targets, dy

def summed(x, weight, targets, vocab_size, softcap=0.0):
    return linear_cross_entropy_sum(x, weight, targets, vocab_size, softcap)[0]

def assert_cross_entropy_is_as_good_as_torch(x, weight, targets, dy, V, softcap, dtype):
    """Both functions: a loss a row with the gradients dy of the losses, and the sum with a gradient of 0.3."""
    names = ['loss', 'dx', 'dw']
    head = dict(targets=targets, vocab_size=V, softcap=softcap)
    reference = partial(linear_cross_entropy_ref, **head)
    assert_as_good_as_torch(names, partial(linear_cross_entropy, **head), reference, [x, weight], dy, dtype)
    assert_as_good_as_torch(names, partial(summed, **head), lambda x, w: reference(x, w).sum(),
                            [x, weight], torch.tensor(0.3), dtype)

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('ignored', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('n, V, Vp', [(1, 5, 256), (37, 255, 256), (50, 300, 512), (64, 256, 256)])
def test_cross_entropy_is_as_good_as_torch(n, V, Vp, ignored, dtype, monkeypatch):
    monkeypatch.setattr(ce, 'ROWS', {'cpu': 16})
    x, weight, targets, dy = problem(n, 24, V, Vp, ignored, seed=n)
    for softcap in (0.0, 3.0):
        assert_cross_entropy_is_as_good_as_torch(x, weight, targets, dy, V, softcap, dtype)

@pytest.mark.parametrize('function', [summed, linear_cross_entropy])
def test_cross_entropy_of_no_rows(function):
    x, weight, targets, _ = problem(10, 8, 20, 32, 1.1, seed=7) # all are ignored
    weight.requires_grad_()
    for rows in (slice(0), slice(10)):
        total = function(x[rows], weight, targets[rows], 20).sum()
        assert total == 0
        assert not torch.autograd.grad(total, weight)[0].any()

@pytest.mark.parametrize('function', [linear_cross_entropy, summed])
@pytest.mark.parametrize('softcap', [0.0, 2.0])
def test_cross_entropy_gradcheck(function, softcap, monkeypatch):
    monkeypatch.setattr(ce, 'ROWS', {'cpu': 4})
    x, weight, targets, _ = problem(10, 6, 7, 9, 0.2, seed=1)
    inputs = x.double().requires_grad_(), weight.double().requires_grad_()
    f = partial(function, targets=targets, vocab_size=7, softcap=softcap)
    assert torch.autograd.gradcheck(f, inputs)

def test_the_sum_and_its_losses_are_those_of_the_rows():
    x, weight, targets, _ = problem(40, 8, 200, 256, 0.3, seed=4)
    x.requires_grad_()
    row_losses = linear_cross_entropy(x, weight, targets, 200)
    total, losses = linear_cross_entropy_sum(x, weight, targets, 200)
    assert torch.equal(row_losses, losses)
    assert torch.equal(total, losses.sum())
    assert total.requires_grad and not losses.requires_grad
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy_sum(x, weight, targets, 200)[1], losses)

@pytest.mark.parametrize('leaves_out', [True, False]) # ignored rows: left out on a CPU, masked on a GPU
def test_cross_entropy_of_ignored_rows_and_padded_columns_is_nothing(leaves_out, monkeypatch):
    if not leaves_out:
        monkeypatch.setattr(ce, '_chunks', lambda x, targets: [slice(0, 25), slice(25, 50)])
    x, weight, targets, _ = problem(40, 8, 200, 256, 0.5, seed=2)
    weight[200:] = 1e4 # would win the softmax
    inputs = x.requires_grad_(), weight.requires_grad_()
    ignored = targets == -100
    row_losses = linear_cross_entropy(*inputs, targets, 200)
    total, losses_of_sum = linear_cross_entropy_sum(*inputs, targets, 200)
    expected = linear_cross_entropy_ref(*inputs, targets, 200)
    for losses in (row_losses, losses_of_sum):
        assert losses.dtype == torch.float32
        assert losses.isfinite().all()
        assert not losses[ignored].any()
        assert (losses[~ignored] > 0).all()
        torch.testing.assert_close(losses, expected)
    expected_gradients = torch.autograd.grad(expected.sum(), inputs)
    for scalar in (row_losses.sum(), total):
        dx, dw = torch.autograd.grad(scalar, inputs)
        assert not dx[ignored].any()
        assert not dw[200:].any()
        torch.testing.assert_close((dx, dw), expected_gradients)

def test_cross_entropy_never_holds_more_rows_of_logits_than_a_chunk(monkeypatch):
    monkeypatch.setattr(ce, 'ROWS', {'cpu': 8})
    chunk_sizes = []
    real_pass = ce._pass_torch
    def counting_pass(z, *rest):
        chunk_sizes.append(len(z))
        return real_pass(z, *rest)
    monkeypatch.setattr(ce, '_pass_torch', counting_pass)
    x, weight, targets, _ = problem(42, 8, 200, 256, 0.0, seed=3)
    summed(x.requires_grad_(), weight, targets, 200).backward()
    assert chunk_sizes == [8] * 5 + [2] # forward and backward in one
    linear_cross_entropy(x, weight, targets, 200).sum().backward()
    assert chunk_sizes == ([8] * 5 + [2]) * 3 # the backward computes them again

def test_cross_entropy_operators_are_well_behaved():
    x, weight, targets, _ = problem(20, 8, 30, 256, 0.2, seed=5)
    ops = torch.ops.nanoslm
    _, stats = ops.cross_entropy(x, weight, targets, 30, 0.0)
    torch.library.opcheck(ops.cross_entropy.default, (x, weight, targets, 30, 2.0))
    for row_stats, g in ((None, None), (stats, torch.ones(20))):
        torch.library.opcheck(ops.cross_entropy_gradients.default, (x, weight, targets, row_stats, g, 30, 0.0))

def test_cross_entropy_compiles_whole():
    x, weight, targets, _ = problem(20, 8, 30, 256, 0.2, seed=6)
    def weighted_rows(x, weight, targets, V):
        return (linear_cross_entropy(x, weight, targets, V) * 0.5).sum()
    for eager in (summed, weighted_rows):
        results = []
        for f in (eager, torch.compile(eager, fullgraph=True, backend='aot_eager')):
            inputs = [tensor.clone().requires_grad_() for tensor in (x, weight)]
            loss = f(*inputs, targets, 30)
            results.append((loss, *torch.autograd.grad(loss, inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*results))

# --------------------------------------------------------------------------------------------------
# kernels/gpu.py

@pytest.mark.parametrize('capability, tiles', [
    ((7, 5), None), ((8, 0), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), None), ((11, 0), None), ((12, 0), 80)])
def test_a_gpu_takes_the_tiles_of_its_architecture_or_torchs_attention(capability, tiles, monkeypatch):
    pytest.importorskip('triton')
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'some GPU')
    device = torch.device('cuda')
    assert gpu.architecture(device) == tiles
    assert choose_backend(device) == ('triton' if tiles else 'sdpa')
    assert ce._passes(device) == (ce._pass_triton if capability[0] >= 8 else ce._pass_torch)
    if tiles is None:
        with pytest.raises(Refused, match="capability 8.x, 9.0 or 12.x, got some GPU; take 'sdpa'"):
            choose_backend(device, 'triton')

def test_amds_gpus_take_torchs_attention(monkeypatch):
    """Their capabilities, as (9, 4), are not Hopper's."""
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(major=9, minor=4))
    monkeypatch.setattr(torch.version, 'hip', '7.0')
    assert gpu.architecture(torch.device('cuda')) is None
    assert not gpu.runs_triton(torch.device('cuda'))
    assert choose_backend(torch.device('cuda')) == 'sdpa'
