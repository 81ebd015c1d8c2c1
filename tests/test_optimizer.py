"""training/optimizer.py: an update of Muon against its definition, of all else against AdamW; skipped steps; memory."""
import copy
import math

import pytest
import torch

from hub.families import GPTConfig
from model import GPT
from training.cost import memory
from training.optimizer import make_optimizer

LR = 1e-2

def model_with_gradients(seed=0, **shape):
    """A small model with random gradients; its layers have matrices, norms and biases."""
    torch.manual_seed(seed)
    shape = {'n_layer': 2, 'n_head': 2, 'n_embd': 24, 'n_ffn': 40, **shape}
    model = GPT(GPTConfig(vocab_size=50, **shape))
    set_gradients(model)
    return model

def set_gradients(model):
    for p in model.parameters():
        p.grad = torch.randn_like(p)

def is_matrix(name):
    return name.startswith('layers.') and name.endswith('.weight') and 'norm' not in name

def changes_after_a_step(model, name):
    """{parameter: its change} by one step of the optimizer `name`."""
    before = copy.deepcopy(dict(model.named_parameters()))
    make_optimizer(model, LR, name).step()
    return {key: (p - before[key]).detach() for key, p in model.named_parameters()}

def test_a_matrix_of_a_layer_moves_along_the_singular_vectors_of_its_gradient_and_all_else_as_by_adamw():
    model = model_with_gradients()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    by_adamw = changes_after_a_step(model_with_gradients(), 'adamw')
    changes = changes_after_a_step(model, 'muon')
    matrices = [name for name in changes if is_matrix(name)]
    assert len(matrices) == 2 * 4
    for name, change in changes.items():
        if name not in matrices:
            assert torch.equal(change, by_adamw[name]), name
            continue
        U, _, V = torch.linalg.svd(gradients[name].double(), full_matrices=False)
        scaled = change.double() / (-LR * 0.2 * math.sqrt(max(change.shape)))
        along = U.T @ scaled @ V.T # diagonal, with values about 1
        off_diagonal = along - torch.diag(along.diagonal())
        assert 0.6 < along.diagonal().min() and along.diagonal().max() < 1.3, name
        assert off_diagonal.abs().max() < 0.05, name

def test_momentum_is_nesterov_s_over_three_steps():
    """The direction of the third step is that of 0.95 B + 0.05 G, with B = 0.95 B + 0.05 G."""
    model = model_with_gradients()
    optimizer = make_optimizer(model, LR, 'muon')
    weight = model.layers[0].qkv.weight
    mean = torch.zeros_like(weight)
    for _ in range(3):
        set_gradients(model)
        before = weight.detach().clone()
        mean = 0.95 * mean + 0.05 * weight.grad
        optimizer.step()
    assert torch.allclose(optimizer.state[weight]['momentum_buffer'], mean, atol=1e-6)
    U, _, V = torch.linalg.svd(0.95 * mean + 0.05 * weight.grad, full_matrices=False)
    along = U.T @ (before - weight.detach()) @ V.T / (LR * 0.2 * math.sqrt(max(weight.shape)))
    assert 0.6 < along.diagonal().min() and along.diagonal().max() < 1.3

def test_one_rate_is_that_of_all_groups_and_a_skipped_step_changes_nothing():
    model = model_with_gradients()
    optimizer = make_optimizer(model, LR, 'muon')
    assert [group['lr'] for group in optimizer.param_groups] == [LR, LR]
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))
    optimizer.step()
    before = copy.deepcopy([(p, optimizer.state[p]) for p in model.parameters()])
    set_gradients(model)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for p, (old, old_state) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)
        assert all(torch.equal(value, old_state[key]) for key, value in optimizer.state[p].items())
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not any(torch.equal(p, old) for p, (old, _) in zip(model.parameters(), before))
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())

@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('dtype, word', [('float32', 4), ('pure_bfloat16', 2)])
def test_moments_take_the_memory_that_the_formula_says(optimizer, dtype, word):
    model = model_with_gradients().to(torch.float32 if word == 4 else torch.bfloat16)
    set_gradients(model)
    state = make_optimizer(model, LR, optimizer)
    state.step()
    n_bytes = sum(value.nbytes for p in model.parameters() for key, value in state.state[p].items() if key != 'step')
    assert memory(model.cfg, 64, dtype=dtype, optimizer=optimizer)['moments'] == n_bytes
