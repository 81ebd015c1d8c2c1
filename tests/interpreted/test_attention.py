"""
Triton's attention against the definition, by the yardstick of test_kernels.py: at most twice torch's own error to
float64, plus one ulp. float32 only: the interpreter multiplies bf16 as bit patterns.
"""
from functools import partial

import pytest
import torch
from test_kernels import OUTPUTS, assert_as_good_as_torch, assert_slope, normal, rows_of

from configurator import Refused
from kernels import attention as att
from kernels.attention import attention, attention_ref, documents

SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.7])

@pytest.fixture(params=[80, 90])
def sm(request, monkeypatch):
    """80 reads by pointers, 90 by TMA descriptors."""
    monkeypatch.setattr(att, 'architecture', lambda device: request.param)
    return request.param

@pytest.fixture
def small_tiles(monkeypatch):
    """So that rows of a few blocks have an edge, an interior and a diagonal. The forward computes q.k a block ahead."""
    tiles = {'forward': (32, 16, 4, 1), 'dq': (16, 32, 4, 1), 'dkv': (16, 32, 4, 1)}
    monkeypatch.setattr(att, 'CONFIGS', {(sm, D, step): tiles[step] for sm, D, step in att.CONFIGS})
    monkeypatch.setattr(att, 'AHEAD', {(90, D) for D in (16, 32, 128)})

def random_inputs(B, T, H, HK, D):
    """q, k, v and the gradient of the output, as views of one tensor."""
    return normal(B, T, 2 * (H + HK), D).split([H, HK, HK, H], dim=2)

def check(doc_start, H, HK, D, backend='triton', **options):
    """Output and gradients are as good as torch's, by the yardstick."""
    *qkv, dy = random_inputs(*doc_start.shape, H, HK, D)
    by_triton = partial(attention, docs=documents(doc_start, backend), backend=backend, **options)
    reference = partial(attention_ref, doc_start=doc_start, **options)
    assert_as_good_as_torch(OUTPUTS, by_triton, reference, qkv, dy, torch.float32)

MANY = torch.randint(1, 3, (300,), generator=torch.Generator().manual_seed(0)).tolist()
PACKED = {'one document': rows_of([75]),
          'whole blocks': rows_of([32, 64, 32]),
          'rows differ': rows_of([40, 7, 33], [80], [1, 78, 1]),
          '300 documents': rows_of(MANY)}

@pytest.mark.parametrize('ahead', [True, False])
@pytest.mark.parametrize('rows', PACKED)
def test_documents_of_any_length(rows, ahead, small_tiles, monkeypatch):
    if not ahead:
        monkeypatch.setattr(att, 'AHEAD', set())
    check(PACKED[rows], 2, 1, 16)

def test_a_document_of_one_token_gives_its_value(small_tiles):
    docs = documents(rows_of([1] * 40), 'triton')
    q, k, v, dy = (x.clone().requires_grad_() for x in random_inputs(1, 40, 2, 1, 16))
    o = attention(q, k, v, docs, backend='triton')
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), dy)
    assert torch.equal(o, v.expand(1, 40, 2, 16))
    torch.testing.assert_close(dv, dy.sum(2, keepdim=True), rtol=0, atol=1e-6)
    # torch has 0. Here do.v and do.o, about 10, are rounded separately, by about 1e-6 of their value.
    assert max(dq.abs().max(), dk.abs().max()) < 1e-5

@pytest.mark.parametrize('heads', [(14, 2), (28, 4), (3, 1), (2, 2)])
def test_grouped_heads(heads, small_tiles):
    check(rows_of([29, 13]), *heads, 16)

@pytest.mark.parametrize('D', [64, 128, 256])
def test_shipped_tiles(D, sm):
    check(rows_of([170, 1, 29]), 2, 1, D, softcap=20.0, window=150)

@pytest.mark.parametrize('D', [64, 128, 256])
def test_shipped_tiles_beside_sdpa(D):
    """torch's own fused attention is the yardstick, because it too computes sum_j p dp as do.o, where o is rounded. In
    the definition that rounding cancels, which for 256 channels is more than a factor of 2 in the error of dq."""
    doc_start = rows_of([170, 1, 29])
    *qkv, dy = random_inputs(1, 200, 2, 1, D)
    by_triton, by_sdpa = (partial(attention, docs=documents(doc_start, backend), backend=backend)
                          for backend in ('triton', 'sdpa'))
    assert_as_good_as_torch(OUTPUTS, by_triton, by_sdpa, qkv, dy, torch.float32)

VARIANTS = [dict(softcap=2.0),
            dict(softcap=50.0, scale=1.0),
            dict(window=5),
            dict(window=50),
            dict(slopes=SLOPES),
            dict(softcap=1.5, scale=0.5, window=33, slopes=SLOPES)]

@pytest.mark.parametrize('options', VARIANTS, ids=str)
def test_variants(options, small_tiles):
    check(rows_of([90, 7, 33]), 4, 2, 16, **options)

@pytest.mark.parametrize('D', [10, 32, 80])
def test_head_sizes_between_powers_of_two(D, small_tiles):
    check(rows_of([30, 20]), 2, 1, D)

def test_the_gradient_is_the_slope(small_tiles):
    *qkv, dy = random_inputs(1, 42, 4, 2, 16)
    docs = documents(rows_of([29, 13]), 'triton')
    def scalar(q, k, v):
        return (attention(q, k, v, docs, backend='triton', softcap=2.0, window=20) * dy).sum()
    assert_slope(scalar, qkv)

def test_without_documents_a_row_is_one(small_tiles):
    q, k, v, dy = normal(2, 50, 5, 16).split([2, 1, 1, 1], dim=2)
    assert_as_good_as_torch(OUTPUTS, partial(attention, backend='triton', window=20), partial(attention_ref, window=20),
                            [q, k, v], dy.repeat(1, 1, 2, 1), torch.float32)

def test_documents_begin_and_end():
    begin, end = documents(rows_of([3, 1, 2], [6]), 'triton')
    assert begin.tolist() == [[0, 0, 0, 3, 4, 4], [0] * 6]
    assert end.tolist() == [[3, 3, 3, 4, 6, 6], [6] * 6]
    assert begin.dtype == end.dtype == torch.int32

def of_one_tensor(docs, backend='triton'):
    """attention of the views q, k, v of one (B, T, 4 + 2 + 2, 16)."""
    return lambda qkv: attention(*qkv.split([4, 2, 2], dim=2), docs, backend=backend)

def test_views_of_one_tensor(sm, small_tiles):
    doc_start = rows_of([40, 10], [50])
    qkv = normal(2, 50, 8, 16)
    dy = normal(2, 50, 4, 16)
    def reference(qkv):
        return attention_ref(*qkv.split([4, 2, 2], dim=2), doc_start)
    assert_as_good_as_torch(['o', 'dqkv'], of_one_tensor(documents(doc_start, 'triton')), reference, [qkv], dy,
                            torch.float32)

def test_views_in_another_order_and_an_expanded_gradient(small_tiles):
    doc_start = rows_of([40, 10])
    docs = documents(doc_start, 'triton')
    inputs = [normal(1, heads, 50, 16).requires_grad_() for heads in (4, 2, 2)] # (B, heads, T, D)
    views = [x.transpose(1, 2) for x in inputs]
    gradients = torch.autograd.grad(attention(*views, docs, backend='triton').sum(), inputs)
    expected = torch.autograd.grad(attention_ref(*views, doc_start).sum(), inputs)
    for a, b in zip(gradients, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

def strided(tokens, heads, row, first=0):
    """q of 16 channels whose tokens are `row` numbers apart, from number `first` of the memory on."""
    return normal(first + tokens * row + 32).as_strided((1, tokens, heads, 16), (tokens * row, row, 16, 1), first)

@pytest.mark.parametrize('x, copied', [
    (strided(20, 2, 48), False),    # a part of one q | k | v
    (strided(20, 2, 0, 32), True),  # expanded over the tokens
    (strided(20, 2, 16), True),     # rows that overlap
    (strided(20, 2, 33), True),     # 132 bytes a row, which 16 does not divide
    (strided(20, 2, 48, 1), True)]) # begins at byte 4
def test_what_tma_cannot_address_is_copied(x, copied, small_tiles):
    flat = att._flat(x)
    assert (flat.data_ptr() != x.data_ptr()) == copied
    assert flat.stride(1) == 1 and flat.stride(0) >= 32
    assert torch.equal(flat, x.reshape(-1, 32))
    assert torch.equal(attention(x, x, x, backend='triton'), attention(*3 * [x.clone()], backend='triton'))

def test_kernels_are_launched_on_the_device_of_their_tensors(small_tiles, monkeypatch):
    tensors = []
    device_of = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, 'device_of', lambda x: tensors.append(x) or device_of(x))
    q = normal(1, 20, 2, 16).requires_grad_()
    attention(q, q, q, backend='triton').sum().backward()
    assert [x.data_ptr() for x in tensors] == 3 * [q.data_ptr()] # forward, dq, dkv

def test_the_gradient_is_the_same_every_time(small_tiles):
    f = of_one_tensor(documents(rows_of([40, 10]), 'triton'))
    qkv = normal(1, 50, 8, 16).requires_grad_()
    first, second = (torch.autograd.grad(f(qkv).square().sum(), qkv)[0] for _ in range(2))
    assert torch.equal(first, second)

def test_compiled_is_eager(small_tiles):
    doc_start = rows_of([30, 10], [40])
    qkv = normal(2, 40, 8, 16).requires_grad_()
    dy = normal(2, 40, 4, 16)
    def eager(qkv):
        return of_one_tensor(documents(doc_start, 'triton'))(qkv)
    compiled = torch.compile(eager, fullgraph=True, backend='aot_eager')
    results = []
    for f in (eager, compiled):
        y = f(qkv)
        results.append((y, *torch.autograd.grad(y, qkv, dy)))
    assert all(torch.equal(a, b) for a, b in zip(*results))

def test_ops_are_as_they_are_declared(small_tiles):
    ops = torch.ops.nanoslm
    q, k, v, do = normal(1, 20, 8, 16).split([3, 1, 1, 3], dim=2)
    docs = documents(rows_of([13, 7]), 'triton')
    plain = att.Options(slopes=None, scale=0.25, softcap=0.0, window=0)
    for options in (plain, att.Options(slopes=SLOPES[:3], scale=0.25, softcap=2.0, window=5)):
        torch.library.opcheck(ops.attention_forward.default, (q, k, v, docs[0], *options))
        o, lse = ops.attention_forward(q, k, v, docs[0], *options)
        arguments = do, q, k, v, o, lse, *docs, *options
        torch.library.opcheck(ops.attention_backward.default, arguments)

def test_what_cannot_be_done_is_refused(monkeypatch):
    q = normal(1, 4, 2, 16)
    q_512 = normal(1, 4, 2, 512)
    with pytest.raises(Refused, match="'flash': expected 'triton', 'hopper' or 'sdpa'"):
        attention(q, q, q, backend='flash')
    with pytest.raises(Refused, match="no softcap"):
        attention(q, q, q, softcap=5.0, backend='sdpa')
    with pytest.raises(Refused, match="at most 256 channels, got torch.float32, 512"):
        attention(q_512, q_512, q_512, backend='triton')
    with pytest.raises(Refused, match="expected a positive scale, got -1.0"):
        attention(q, q, q, scale=-1.0, backend='triton')
    monkeypatch.setattr(att, 'INTERPRETED', False)
    with pytest.raises(Refused, match="expected a GPU"):
        documents(rows_of([4]), 'triton')
    monkeypatch.setattr(att, 'triton', None)
    with pytest.raises(Refused, match="not installed"):
        attention(q, q, q, backend='triton')

def test_sdpa_when_asked_for():
    q, k, v = normal(1, 30, 4, 16).split([2, 1, 1], dim=2)
    doc_start = rows_of([20, 10])
    o = attention(q, k, v, documents(doc_start, 'sdpa'), window=7, backend='sdpa')
    torch.testing.assert_close(o, attention_ref(q, k, v, doc_start, window=7), rtol=0, atol=1e-5)
