"""
tiny/build/score_vocoder.py: Griffin-Lim restores a mel spectrum, a share and its error follow the definition, and a
missing package is refused.
"""
import builtins
import math

import numpy as np
import pytest
import torch

from configurator import Refused
from speech.audio import RATE
from speech.vocoder import BANDS, HOP, bands
from tiny.build.score_vocoder import griffin_lim, load_mos, log_mel, ratio


def test_a_tone_is_loudest_in_the_band_whose_center_is_nearest():
    centers = torch.linspace(0, RATE / 2, bands().shape[1])[bands().argmax(1)] # Hz
    for hz in (500, 1000, 3000):
        mel = log_mel(0.5 * torch.sin(2 * math.pi * hz * torch.arange(RATE) / RATE))
        assert mel.shape == (RATE // HOP, BANDS)
        loudest = centers[mel[20:-20].mean(0).argmax()].item()
        assert abs(loudest - hz) < 0.06 * hz, f"{hz} Hz tone, loudest band at {loudest:.0f} Hz"

def test_griffin_lim_brings_the_mel_spectrum_back():
    # A voice's harmonics, which swell and fade four times, and a little breath.
    t = torch.arange(RATE) / RATE
    buzz = (120 * t) % 1 - 0.5
    breath = 0.02 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    mel = log_mel(buzz * (1.1 + torch.sin(8 * math.pi * t)) + breath)
    def error(restored):
        return (log_mel(restored) - mel).abs().mean().item()
    restored = error(griffin_lim(mel))
    random_phases = error(griffin_lim(mel, iterations=0))
    assert restored < 0.2, f"off by {restored:.2f} nats"
    assert restored < random_phases / 2, f"off by {restored:.2f} nats, with random phases by {random_phases:.2f}"

def test_a_share_of_sums_and_its_error_by_the_residuals():
    share, error = ratio([(1, 10), (3, 20), (0, 10)])
    residuals = np.array([1, 3, 0]) - 0.1 * np.array([10, 20, 10])
    assert share == 0.1
    assert error == pytest.approx(math.sqrt((residuals ** 2).sum() * 3 / 2) / 40)
    assert ratio([(1, 4)] * 5) == (0.25, 0.0)

@pytest.mark.parametrize('error', [
    ImportError("No module named 'distillmos'"), OSError("Could not load this library: _torchaudio.so")], ids=repr)
def test_without_the_predictor_of_opinions_one_line_says_what_to_install(error, monkeypatch):
    real_import = builtins.__import__
    def missing(name, *args):
        if name == 'distillmos':
            raise error
        return real_import(name, *args)
    monkeypatch.setattr(builtins, '__import__', missing)
    with pytest.raises(Refused, match=f"{error}; pip install distillmos"):
        load_mos()
