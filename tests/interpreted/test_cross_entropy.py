"""
The Triton pass of kernels/cross_entropy.py under the interpreter, in float32, by the yardstick of tests/test_kernels.py.
"""
import pytest
import torch
from test_kernels import assert_as_good_as_torch, assert_slope, problem, summed

from kernels import cross_entropy as ce
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_ref, linear_cross_entropy_sum


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(ce, '_passes', lambda device: ce._pass_triton)
    monkeypatch.setattr(ce, 'BLOCK', 64) # several a row
    monkeypatch.setattr(ce, '_chunks', lambda x, targets: [slice(i, i + 16) for i in range(0, len(x), 16)])

@pytest.mark.parametrize('softcap', [0.0, 3.0])
@pytest.mark.parametrize('ignored', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('n, V, Vp', [(1, 5, 256), (37, 255, 256), (20, 300, 512), (17, 256, 256)])
def test_the_pass_is_as_good_as_torch(n, V, Vp, ignored, softcap):
    x, weight, targets, dy = problem(n, 24, V, Vp, ignored, torch.Generator().manual_seed(n))
    reference = lambda x, w: linear_cross_entropy_ref(x, w, targets, V, softcap)
    assert_as_good_as_torch(['loss', 'dx', 'dw'], lambda x, w: linear_cross_entropy(x, w, targets, V, softcap), reference,
                            [x, weight], dy, torch.float32)
    assert_as_good_as_torch(['loss', 'dx', 'dw'], lambda x, w: summed(x, w, targets, V, softcap),
                            lambda x, w: reference(x, w).sum(), [x, weight], torch.tensor(0.3), torch.float32)

def test_large_logits_and_padded_columns():
    x, weight, targets, _ = problem(20, 8, 200, 256, 0.2, torch.Generator().manual_seed(2))
    weight, padded = 100 * weight, slice(200, None)
    weight[padded] = 1e6 # would win the softmax
    inputs = x.requires_grad_(), weight.requires_grad_()
    total, losses = linear_cross_entropy_sum(*inputs, targets, 200)
    dx, dw = torch.autograd.grad(total, inputs)
    expected = linear_cross_entropy_ref(*inputs, targets, 200)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close((dx, dw), torch.autograd.grad(expected.sum(), inputs), rtol=1e-4, atol=1e-2)
    assert not dw[padded].any() and not dx[targets == -100].any() and not losses[targets == -100].any()

@pytest.mark.parametrize('way', [summed, linear_cross_entropy])
def test_the_gradient_is_the_slope_of_the_loss(way):
    x, weight, targets, _ = problem(20, 24, 255, 256, 0.3, torch.Generator().manual_seed(3))
    assert_slope(lambda x, w: way(x, w, targets, 255, 3.0).sum(), [x, weight])
