"""tiny/train_vocoder.py: crops line up with their mels, training lowers the loss, text is compared word by word."""
import numpy as np
import torch

from tiny.train_vocoder import Config, losses, words
from vocoder import N_MELS, MelConfig, UnitToMel


def make_data(n=6, frames=40, n_units=5):
    """Documents whose mel is a constant of the unit: a network that sees the right frame can be exact."""
    generator = torch.Generator().manual_seed(0)
    level = torch.linspace(-4, 0, n_units)
    data = []
    for _ in range(n):
        units = torch.randint(n_units, (frames // 2,), generator=generator)
        units = units[torch.cat([torch.tensor([True]), units[1:] != units[:-1]])]
        runs = 1 + units % 3
        frame = units.repeat_interleave(runs)
        data.append((frame, level[frame].repeat_interleave(4)[:, None].expand(-1, N_MELS).half(), units, runs))
    return data

def test_training_lowers_both_losses():
    torch.manual_seed(0)
    model, rng = UnitToMel(MelConfig(n_units=5, n_embd=16, n_slow=1, n_fast=1)), np.random.default_rng(0)
    optimizer, data, cfg, history = torch.optim.Adam(model.parameters(), lr=1e-2), make_data(), Config(batch=4, crop=20), []
    for _ in range(120):
        mel, duration = losses(model, data, cfg, rng)
        (mel + duration).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append((mel.item(), duration.item()))
    (mel0, duration0), (mel1, duration1) = np.mean(history[:5], 0), np.mean(history[-5:], 0)
    assert mel1 < mel0 / 5 and duration1 < duration0 / 5, (mel0, mel1, duration0, duration1)

def test_a_crop_longer_than_the_document_counts_only_what_is_there():
    model, data = UnitToMel(MelConfig(n_units=5, n_embd=8, n_slow=1, n_fast=1)), make_data(n=1)
    frame, mel, units, runs = data[0]
    loss, _ = losses(model, data, Config(batch=1, crop=len(frame) + 7), np.random.default_rng(0))
    padded = torch.nn.functional.pad(frame, (0, 7))
    assert torch.isclose(loss, (model(padded[None])[0, :4 * len(frame)] - mel.float()).abs().mean())

def test_words_are_compared_without_case_and_punctuation():
    assert words("Anna's cat, it SAT. Yes?") == ["anna's", 'cat', 'it', 'sat', 'yes']
