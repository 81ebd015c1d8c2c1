"""kernels/qk_norm.py: its numbers and gradients are those of torch.rms_norm and autograd."""
import pytest
import torch

from kernels.qk_norm import qk_norm, qk_norm_ref

SHAPES = {'heads of 8': (3, 1, 8, 2 * 8), 'width of q and of k': (3, 1, 8, 4 * 8), 'no groups': (2, 2, 6, 2 * 6),
          'width, no groups': (2, 2, 6, 4 * 6), 'one head each': (1, 1, 4, 2 * 4)}

def inputs(shape, dtype=torch.float64):
    """q | k as a part of q | k | v, weights, and the gradient of the result."""
    H, HK, D, n_weights = SHAPES[shape]
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, H + 2 * HK, D, dtype=dtype)
    weight = torch.randn(n_weights, dtype=dtype).requires_grad_()
    return qkv.narrow(2, 0, H + HK).requires_grad_(), weight, torch.randn(2, 5, H + HK, D, dtype=dtype)

@pytest.mark.parametrize('shape', SHAPES)
def test_values_and_gradients_are_those_of_the_definition(shape):
    qk, weight, dy = inputs(shape)
    H = SHAPES[shape][0]
    y = qk_norm(qk, weight, 0.1, H)
    expected = qk_norm_ref(qk, weight, 0.1, H)
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y, (qk, weight), dy)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (qk, weight), dy))

@pytest.mark.parametrize('shape', SHAPES)
def test_in_bf16_the_result_is_rounded_once(shape):
    """Statistics and products are float32, as is the result, which the rotation reads; the gradient is bf16."""
    qk, weight, dy = inputs(shape, torch.bfloat16)
    H = SHAPES[shape][0]
    y = qk_norm(qk, weight.float(), 1e-6, H)
    expected = qk_norm_ref(qk.float(), weight.float(), 1e-6, H)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    dx, dw = torch.autograd.grad(y, (qk, weight), dy.float())
    expected_dx, expected_dw = torch.autograd.grad(expected, (qk, weight), dy.float())
    assert dx.dtype == torch.bfloat16
    torch.testing.assert_close(dx, expected_dx)
    torch.testing.assert_close(dw, expected_dw)

def test_a_weight_that_is_zero_has_a_gradient():
    qk, weight, dy = inputs('heads of 8')
    with torch.no_grad():
        weight[3] = 0
    [dw] = torch.autograd.grad(qk_norm(qk, weight, 1e-6, 3), weight, dy)
    assert dw[3] != 0
