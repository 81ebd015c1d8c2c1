"""
The Triton pass of kernels/cross_entropy.py under the interpreter, in float32, by test_kernels.py's yardstick.
"""
import pytest
import torch
from test_kernels import assert_cross_entropy_is_as_good_as_torch, assert_slope, problem, summed

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
    x, weight, targets, dy = problem(n, 24, V, Vp, ignored, seed=n)
    assert_cross_entropy_is_as_good_as_torch(x, weight, targets, dy, V, softcap, torch.float32)

def test_large_logits_and_padded_columns():
    x, weight, targets, _ = problem(20, 8, 200, 256, 0.2, seed=2)
    weight *= 100
    weight[200:] = 1e6 # would win the softmax
    inputs = x.requires_grad_(), weight.requires_grad_()
    total, losses = linear_cross_entropy_sum(*inputs, targets, 200)
    dx, dw = torch.autograd.grad(total, inputs)
    expected = linear_cross_entropy_ref(*inputs, targets, 200)
    expected_gradients = torch.autograd.grad(expected.sum(), inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close((dx, dw), expected_gradients, rtol=1e-4, atol=1e-2)
    ignored = targets == -100
    assert not dw[200:].any()
    assert not dx[ignored].any()
    assert not losses[ignored].any()

@pytest.mark.parametrize('function', [summed, linear_cross_entropy])
def test_the_gradient_is_the_slope_of_the_loss(function):
    x, weight, targets, _ = problem(20, 24, 255, 256, 0.3, seed=3)
    assert_slope(lambda x, w: function(x, w, targets, 255, 3.0).sum(), [x, weight])

def test_a_target_outside_the_vocabulary_has_an_infinite_loss():
    """Padded columns and columns of the next row are outside too; nothing else changes."""
    x, weight, targets, _ = problem(20, 24, 200, 256, 0.2, seed=4)
    wrong = targets.clone()
    rows = torch.tensor([1, 5, 9, 13])
    wrong[rows] = torch.tensor([200, 255, 256, -5])
    right = wrong == targets
    losses = linear_cross_entropy(x, weight, targets, 200)
    for losses_of_wrong in (linear_cross_entropy(x, weight, wrong, 200),
                            linear_cross_entropy_sum(x.requires_grad_(), weight, wrong, 200)[1]):
        assert losses_of_wrong[rows].eq(torch.inf).all()
        assert torch.equal(losses_of_wrong[right], losses[right])

def test_a_row_of_whole_blocks_and_one_shorter_than_a_block():
    for V in (128, 40):
        x, weight, targets, dy = problem(20, 24, V, 128, 0.2, seed=V)
        assert_cross_entropy_is_as_good_as_torch(x, weight, targets, dy, V, 0.0, torch.float32)

def test_the_pass_is_launched_on_the_device_of_its_logits(monkeypatch):
    tensors = []
    device_of = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, 'device_of', lambda z: tensors.append(z) or device_of(z))
    x, weight, targets, _ = problem(20, 24, 255, 256, 0.3, seed=3)
    summed(x, weight, targets, 255)
    assert [tuple(z.shape) for z in tensors] == [(16, 256), (4, 256)]
