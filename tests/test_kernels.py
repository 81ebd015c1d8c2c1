"""
Each kernel against its definition in plain torch: outputs and gradients. The yardstick is the definition run in
float64: a kernel may be twice as far from it as the definition in the same dtype, plus one ulp of the largest value.
"""
import math

import pytest
import torch

from kernels import attention as att
from kernels import cross_entropy as ce
from kernels.attention import attention, attention_decode, attention_ref, documents
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_ref, linear_cross_entropy_sum

DTYPES = [torch.float32, torch.bfloat16]

def run(f, inputs, dy, dtype):
    inputs = [t.detach().to(dtype).requires_grad_() for t in inputs]
    y = f(*inputs)
    y.backward(dy.to(y.dtype))
    return [y.detach()] + [t.grad for t in inputs]

def assert_as_good_as_torch(names, kernel, reference, inputs, dy, dtype):
    inputs = [t.to(dtype) for t in inputs] # all three see the same numbers
    exact = run(reference, inputs, dy.to(dtype), torch.float64)
    for name, e, a, b in zip(names, exact, run(reference, inputs, dy, dtype), run(kernel, inputs, dy, dtype)):
        ours, torchs = (b - e).abs().max().item(), (a - e).abs().max().item()
        ulp = torch.finfo(dtype).eps * e.abs().max().item() # the spacing of dtype at the largest value
        assert ours <= 2 * torchs + ulp, f"{name}: kernel is off by {ours:.2e}, torch by {torchs:.2e}"

def assert_slope(f, inputs):
    """Along a random direction the float32 scalar f rises as its gradient says: central differences, within 1 %."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    ways = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i, x in enumerate(inputs)]
    said = sum((g * way).sum() for g, way in zip(torch.autograd.grad(f(*inputs), inputs), ways)).item()
    up, down = (f(*(x.detach() + h * way for x, way in zip(inputs, ways))).item() for h in (1e-3, -1e-3))
    assert (up - down) / 2e-3 == pytest.approx(said, rel=0.01)

def rows_of(*rows):
    """Document lengths of each row -> doc_start (B, T)"""
    return torch.stack([torch.cat([torch.full((n,), sum(row[:i])) for i, n in enumerate(row)]) for row in rows])

PACKED = {'one document': rows_of([17]),
          'lengths of 1': rows_of([1] * 9, [3, 1, 5]),
          'rows differ': rows_of([40, 7, 17], [64], [1, 62, 1]),
          'longer than a block of queries': rows_of([300, 21], [5, 316])}

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('heads', [(4, 4), (14, 2), (3, 1)])
@pytest.mark.parametrize('rows', PACKED)
def test_attention_is_as_good_as_torch(rows, heads, dtype):
    generator = torch.Generator().manual_seed(0)
    doc_start, (H, HK), D = PACKED[rows], heads, 10
    B, T = doc_start.shape
    q, k, v, dy = (torch.randn(B, T, n, D, generator=generator) for n in (H, HK, HK, H))
    docs = documents(doc_start)
    assert_as_good_as_torch(['o', 'dq', 'dk', 'dv'], lambda *x: attention(*x, docs),
                            lambda *x: attention_ref(*x, doc_start), [q, k, v], dy, dtype)

SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.7, 0.03, 0.9])
VARIANTS = {'softcap': {'softcap': 2.0}, 'scale': {'scale': 0.7}, 'window': {'window': 5}, 'ALiBi': {'slopes': SLOPES},
            'window longer than a block': {'window': 70}, 'all': dict(softcap=1.5, scale=0.5, window=33, slopes=SLOPES)}

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', VARIANTS)
def test_attention_variants_are_as_good_as_torch(name, dtype, monkeypatch):
    monkeypatch.setattr(att, 'QUERIES', 32)
    monkeypatch.setattr(att, 'DENSE', 50)
    generator, doc_start, how = torch.Generator().manual_seed(0), rows_of([90, 7, 33], [130]), VARIANTS[name]
    q, k, v, dy = (torch.randn(2, 130, n, 8, generator=generator) for n in (6, 2, 2, 6))
    for docs, starts in ((documents(doc_start), doc_start), (None, None)):
        reference = lambda *x, starts=starts: attention_ref(*x, starts, **how)
        assert_as_good_as_torch(['o', 'dq', 'dk', 'dv'], lambda *x, docs=docs: attention(*x, docs, **how), reference,
                                [q, k, v], dy, dtype)
    plain = attention_ref(q, k, v, doc_start)
    assert (attention_ref(q, k, v, doc_start, **how) - plain).abs().max() > 0.05 # the variant is one
    mask = (torch.arange(130) >= doc_start[:, :, None]).tril()[:, None]
    how = {'scale': None, 'softcap': 0.0, 'window': 0, 'slopes': None, **how}
    for mask, starts in ((mask, doc_start), (None, None)): # what a GPU runs
        got = att._masked(q, k, v, mask, *how.values())
        torch.testing.assert_close(got, attention_ref(q, k, v, starts, **how), rtol=0, atol=1e-5)

def test_attention_ref_by_hand():
    q, k, v = torch.randn(3, 1, 4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    got = attention_ref(q, k, v, scale=0.3, softcap=2.0, window=2, slopes=slopes)
    for h in range(2):
        for t in range(4):
            seen = [t - 1, t] if t else [0]
            s = [2 * math.tanh(0.3 * float(q[0, t, h] @ k[0, j, h]) / 2) - float(slopes[h]) * (t - j) for j in seen]
            p = [math.exp(x) / sum(map(math.exp, s)) for x in s]
            expected = sum(w * v[0, j, h] for w, j in zip(p, seen))
            torch.testing.assert_close(got[0, t, h], expected)

@pytest.mark.parametrize('name', ['plain', *VARIANTS])
def test_decoding_a_token_is_the_last_row_of_attention(name):
    how, begin = VARIANTS.get(name, {}), torch.tensor([[0], [9]])
    q, k, v = (torch.randn(2, 80, n, 8, generator=torch.Generator().manual_seed(n)) for n in (6, 2, 2))
    for starts in (begin, None):
        doc_start = None if starts is None else starts.expand(2, 80).where(torch.arange(80) >= starts, 0)
        expected = attention_ref(q, k, v, doc_start, **how)[:, -1:]
        got = attention_decode(q[:, -1:], k.transpose(1, 2), v.transpose(1, 2), starts, **how)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

@pytest.mark.parametrize('dtype', DTYPES)
def test_attention_without_documents_is_causal_over_the_row(dtype):
    q, k, v, dy = torch.randn(4, 2, 270, 4, 8, generator=torch.Generator().manual_seed(0))
    assert_as_good_as_torch(['o', 'dq', 'dk', 'dv'], attention, attention_ref, [q, k, v], dy, dtype)

def test_attention_of_a_document_does_not_see_the_others():
    q, k, v = torch.randn(3, 1, 30, 2, 8, generator=torch.Generator().manual_seed(0))
    y = attention(q, k, v, documents(rows_of([11, 8, 11])))
    for piece in (slice(0, 11), slice(11, 19), slice(19, 30)):
        alone = attention_ref(q[:, piece], k[:, piece], v[:, piece])
        torch.testing.assert_close(y[:, piece], alone, rtol=0, atol=1e-6)

def test_attention_gradcheck(monkeypatch):
    monkeypatch.setattr(att, 'QUERIES', 4) # several blocks a document
    q, k, v = (torch.randn(2, 9, n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).requires_grad_()
               for n in (4, 2, 2))
    docs = documents(rows_of([6, 3], [9]))
    for how in ({}, dict(scale=0.4, softcap=1.5, window=3, slopes=torch.tensor([0.5, 0.25, 0.1, 0.7]))):
        assert torch.autograd.gradcheck(lambda *x, how=how: attention(*x, docs, **how), (q, k, v))

def problem(n, C, V, Vp, ignored, generator):
    x, weight, dy = (torch.randn(*shape, generator=generator) for shape in ((n, C), (Vp, C), (n,)))
    targets = torch.randint(V, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < ignored] = -100
    return x, weight, targets, dy

def summed(x, weight, targets, V, softcap=0.0):
    return linear_cross_entropy_sum(x, weight, targets, V, softcap)[0]

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('ignored', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('n, V, Vp', [(1, 5, 256), (37, 255, 256), (50, 300, 512), (64, 256, 256)])
def test_cross_entropy_is_as_good_as_torch(n, V, Vp, ignored, dtype, monkeypatch):
    monkeypatch.setattr(ce, 'ROWS', {'cpu': 16})
    x, weight, targets, dy = problem(n, 24, V, Vp, ignored, torch.Generator().manual_seed(n))
    for softcap in (0.0, 3.0):
        reference = lambda x, w, c=softcap: linear_cross_entropy_ref(x, w, targets, V, c)
        assert_as_good_as_torch(['loss', 'dx', 'dw'], lambda x, w, c=softcap: linear_cross_entropy(x, w, targets, V, c),
                                reference, [x, weight], dy, dtype)
        assert_as_good_as_torch(['loss', 'dx', 'dw'], lambda x, w, c=softcap: summed(x, w, targets, V, c),
                                lambda x, w, f=reference: f(x, w).sum(), [x, weight], torch.tensor(0.3), dtype)

@pytest.mark.parametrize('way', [linear_cross_entropy, summed])
@pytest.mark.parametrize('softcap', [0.0, 2.0])
def test_cross_entropy_gradcheck(way, softcap, monkeypatch):
    monkeypatch.setattr(ce, 'ROWS', {'cpu': 4})
    x, weight, targets, _ = problem(10, 6, 7, 9, 0.2, torch.Generator().manual_seed(1))
    x, weight = (t.double().requires_grad_() for t in (x, weight))
    assert torch.autograd.gradcheck(lambda x, w: way(x, w, targets, 7, softcap), (x, weight))

def test_the_sum_and_its_losses_are_those_of_the_rows():
    x, weight, targets, _ = problem(40, 8, 200, 256, 0.3, torch.Generator().manual_seed(4))
    rows, (total, losses) = (way(x.requires_grad_(), weight, targets, 200) for way in
                             (linear_cross_entropy, linear_cross_entropy_sum))
    assert torch.equal(rows, losses) and torch.equal(total, losses.sum())
    assert total.requires_grad and not losses.requires_grad
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy_sum(x, weight, targets, 200)[1], losses)

@pytest.mark.parametrize('leaves_out', [True, False]) # ignored rows: left out on a CPU, masked on a GPU
def test_cross_entropy_of_ignored_rows_and_padded_columns_is_nothing(leaves_out, monkeypatch):
    if not leaves_out:
        monkeypatch.setattr(ce, '_chunks', lambda x, targets: [slice(0, 25), slice(25, 50)])
    x, weight, targets, _ = problem(40, 8, 200, 256, 0.5, torch.Generator().manual_seed(2))
    weight[200:] = 1e4 # would win the softmax
    x, weight = x.requires_grad_(), weight.requires_grad_()
    for way in (linear_cross_entropy, lambda *problem: linear_cross_entropy_sum(*problem)[1]):
        losses = way(x, weight, targets, 200)
        ignored = targets == -100
        assert losses.dtype == torch.float32 and losses.isfinite().all()
        assert not losses[ignored].any() and (losses[~ignored] > 0).all()
        torch.testing.assert_close(losses, linear_cross_entropy_ref(x, weight, targets, 200))
    expected = torch.autograd.grad(linear_cross_entropy_ref(x, weight, targets, 200).sum(), (x, weight))
    for total in (linear_cross_entropy(x, weight, targets, 200).sum(), summed(x, weight, targets, 200)):
        dx, dw = torch.autograd.grad(total, (x, weight))
        assert not dx[ignored].any() and not dw[200:].any()
        torch.testing.assert_close((dx, dw), expected)

def test_cross_entropy_never_holds_more_rows_of_logits_than_a_chunk(monkeypatch):
    monkeypatch.setattr(ce, 'ROWS', {'cpu': 8})
    made, real = [], ce._pass_torch
    monkeypatch.setattr(ce, '_pass_torch', lambda z, *rest: made.append(len(z)) or real(z, *rest))
    x, weight, targets, _ = problem(42, 8, 200, 256, 0.0, torch.Generator().manual_seed(3))
    summed(x.requires_grad_(), weight, targets, 200).backward()
    assert made == [8] * 5 + [2] # forward and backward in one
    linear_cross_entropy(x, weight, targets, 200).sum().backward()
    assert made == ([8] * 5 + [2]) * 3 # the backward makes them again

def test_cross_entropy_operators_are_well_behaved():
    x, weight, targets, _ = problem(20, 8, 30, 256, 0.2, torch.Generator().manual_seed(5))
    _, stats = torch.ops.nanoslm.cross_entropy(x, weight, targets, 30, 0.0)
    torch.library.opcheck(torch.ops.nanoslm.cross_entropy.default, (x, weight, targets, 30, 2.0))
    for stats, g in ((None, None), (stats, torch.ones(20))):
        torch.library.opcheck(torch.ops.nanoslm.cross_entropy_slopes.default, (x, weight, targets, stats, g, 30, 0.0))

def test_cross_entropy_compiles_whole():
    x, weight, targets, _ = problem(20, 8, 30, 256, 0.2, torch.Generator().manual_seed(6))
    for way in (summed, lambda *problem: (linear_cross_entropy(*problem) * 0.5).sum()):
        found = []
        for f in (way, torch.compile(way, fullgraph=True, backend='aot_eager')):
            inputs = [t.clone().requires_grad_() for t in (x, weight)]
            loss = f(*inputs, targets, 30)
            found.append((loss, *torch.autograd.grad(loss, inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*found))
