"""kernels/qk_norm.py: its numbers and gradients are those of torch.rms_norm, a rotation, and autograd."""
import pytest
import torch

from kernels import qk_norm
from kernels.qk_norm import norm_rotate, norm_rotate_ref

SHAPES = {'heads of 8': (3, 1, 8, 2 * 8), 'width of q and of k': (3, 1, 8, 4 * 8), 'no groups': (2, 2, 6, 2 * 6),
          'width, no groups': (2, 2, 6, 4 * 6), 'one head each': (1, 1, 4, 2 * 4)}
ROPES = {'no rope': None, 'a half of the channels': (0.5, False), 'all': (1, False), 'positions of each row': (1, True)}
B, T = 2, 5

def inputs(shape, rope, dtype=torch.float64):
    """q | k as a part of q | k | v, weights, the tables of cos and sin, and the gradient of the result."""
    H, HK, D, n_weights = SHAPES[shape]
    torch.manual_seed(0)
    qkv = torch.randn(B, T, H + 2 * HK, D, dtype=dtype)
    weight = torch.randn(n_weights, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_()
    tables = None
    if ROPES[rope]:
        share, by_row = ROPES[rope]
        angle = torch.randn(*([B] if by_row else []), T, 1, max(1, int(D * share) // 2), dtype=weight.dtype)
        tables = torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)
    return qkv.narrow(2, 0, H + HK).requires_grad_(), weight, tables, torch.randn(B, T, H + HK, D, dtype=dtype)

@pytest.mark.parametrize('piece', [2 ** 18, 200, 50])
@pytest.mark.parametrize('rope', ROPES)
@pytest.mark.parametrize('shape', SHAPES)
def test_values_and_gradients_are_those_of_the_definition(shape, rope, piece, monkeypatch):
    monkeypatch.setattr(qk_norm, 'PIECE', piece) # also of a row, and of a part of one
    qk, weight, tables, dy = inputs(shape, rope)
    H = SHAPES[shape][0]
    y = norm_rotate(qk, weight, 0.1, H, tables)
    expected = norm_rotate_ref(qk, weight, 0.1, H, tables)
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y, (qk, weight), dy)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (qk, weight), dy))

@pytest.mark.parametrize('shape', SHAPES)
def test_in_bf16_everything_is_rounded_once(shape):
    qk, weight, tables, dy = inputs(shape, 'all', torch.bfloat16)
    H = SHAPES[shape][0]
    y = norm_rotate(qk, weight, 1e-6, H, tables)
    exact = qk.detach().float().requires_grad_()
    expected = norm_rotate_ref(exact, weight, 1e-6, H, tables)
    torch.testing.assert_close(y, expected.bfloat16())
    dx, dw = torch.autograd.grad(y, (qk, weight), dy)
    expected_dx, expected_dw = torch.autograd.grad(expected, (exact, weight), dy.float())
    torch.testing.assert_close(dx, expected_dx.bfloat16())
    torch.testing.assert_close(dw, expected_dw)

def test_a_weight_that_is_zero_has_a_gradient():
    qk, weight, tables, dy = inputs('heads of 8', 'all')
    with torch.no_grad():
        weight[3] = 0
    [dw] = torch.autograd.grad(norm_rotate(qk, weight, 1e-6, 3, tables), weight, dy)
    assert dw[3] != 0
