"""
The unit -> mel network and Griffin-Lim: a known spectrum comes back, lengths follow the runs, other units are refused.
"""
import json
import math

import numpy as np
import pytest
import torch

from audio import RATE
from configurator import Refused
from vocoder import HOP, MelConfig, UnitToMel, griffin_lim, log_mel, mel_bank


def tone(hz, seconds=1.0):
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE)) / RATE)

def small(units_hash=''):
    torch.manual_seed(0)
    return UnitToMel(MelConfig(n_units=10, n_embd=16, n_slow=1, n_fast=1, units_hash=units_hash)).eval()

def test_a_tone_is_loudest_in_the_filter_whose_center_is_nearest():
    centers = (mel_bank() * torch.linspace(0, RATE / 2, mel_bank().shape[1])).sum(1) / mel_bank().sum(1) # Hz
    for hz in (500, 1000, 3000):
        mel = log_mel(tone(hz))
        assert mel.shape == (RATE // HOP, 80)
        found = centers[mel[20:-20].mean(0).argmax()].item()
        assert abs(found - hz) < 0.06 * hz, f"{hz} Hz tone, loudest filter at {found:.0f} Hz"

def test_griffin_lim_brings_the_mel_spectrum_back():
    t, generator = torch.arange(RATE) / RATE, torch.Generator().manual_seed(0)
    buzz = (120 * t) % 1 - 0.5 # a voice's harmonics, swelling and fading four times, and a little breath
    wave = buzz * (1.1 + torch.sin(8 * math.pi * t)) + 0.02 * torch.randn(RATE, generator=generator)
    mel = log_mel(wave)
    off = (log_mel(griffin_lim(mel)) - mel).abs().mean().item()
    one = (log_mel(griffin_lim(mel, iterations=0)) - mel).abs().mean().item() # random phases as they are
    assert off < 0.2 and off < one / 2, f"off by {off:.2f} nats, with random phases by {one:.2f}"

def test_wave_length_is_the_sum_of_the_runs_in_frames_of_640_samples():
    wave = small().speak([3, 1, 4], runs=[2, 5, 1])
    assert wave.shape == (8 * 640,) and wave.dtype == np.float32 and np.isfinite(wave).all() and np.abs(wave).max() <= 1

def test_predicted_runs_are_whole_frames_between_one_and_a_second():
    model = small()
    with torch.no_grad():
        model.duration[-1].weight.zero_()
        for log_frames, frames in ((-5, 1), (math.log(3), 3), (9, 25)):
            model.duration[-1].bias.fill_(log_frames)
            assert len(model.speak([1, 2])) == 2 * frames * 640

def test_a_mel_that_is_too_loud_is_made_quieter_instead_of_clipped():
    model = small()
    with torch.no_grad():
        model.head.bias.fill_(5.0)
    wave = model.speak([1, 2, 3], runs=[3, 3, 3])
    assert np.abs(wave).max() == pytest.approx(1.0) and (np.abs(wave) > 0.99).sum() < 10

def test_padding_does_not_change_a_mel_frame_far_from_it():
    model = small()
    frames = torch.randint(10, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        alone, padded = model(frames), model(torch.nn.functional.pad(frames, (0, 40)))
    torch.testing.assert_close(alone[:, :200], padded[:, :200])

def test_no_units_are_an_empty_wave_and_one_unit_is_heard():
    assert small().speak([]).shape == (0,)
    assert len(small().speak([7], runs=[1])) == 640

def test_saving_keeps_the_network_up_to_float16(tmp_path):
    model = small('abc')
    model.save_pretrained(tmp_path, made_by='a test')
    again = UnitToMel.from_pretrained(tmp_path)
    assert again.cfg == model.cfg and json.loads((tmp_path / 'config.json').read_text())['made_by'] == 'a test'
    frames = torch.arange(10)[None]
    torch.testing.assert_close(again(frames), model(frames), atol=5e-3, rtol=0)

@pytest.mark.parametrize('units, message', [
    ([1, 10], "vocoder: units 1..10, expected 0..9"),
    ([-1, 3], "vocoder: units -1..3, expected 0..9"),
])
def test_units_out_of_range_are_refused(units, message):
    with pytest.raises(Refused, match=message):
        small().speak(units)

def test_units_of_another_encoder_are_refused():
    with pytest.raises(Refused, match="made for units abc, given units xyz"):
        small('abc').speak([1], units_hash='xyz')

def test_broken_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(Refused, match="no vocoder here: config.json is missing"):
        UnitToMel.from_pretrained(tmp_path)
    small().save_pretrained(tmp_path)
    weights = tmp_path / 'model.safetensors'
    whole = weights.read_bytes()
    for broken, message in ((whole[:100], 'not a vocoder'), (b'not safetensors', 'not a vocoder')):
        weights.write_bytes(broken)
        with pytest.raises(Refused, match=message) as e:
            UnitToMel.from_pretrained(tmp_path)
        assert '\n' not in str(e.value)
    weights.unlink()
    with pytest.raises(Refused, match="model.safetensors is missing"):
        UnitToMel.from_pretrained(tmp_path)
