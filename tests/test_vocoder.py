"""
The unit -> mel network and Griffin-Lim: a known spectrum comes back, lengths follow the runs, other units are refused. The
unit HiFi-GAN against its definition, layer by layer on the weights in a dict; batches and pieces change nothing.
"""
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from audio import RATE
from configurator import Refused
from vocoder import HOP, HiFiGAN, HiFiGANConfig, MelConfig, UnitToMel, griffin_lim, load_vocoder, log_mel, mel_bank


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
    wave, = small().speak([[3, 1, 4]], runs=[[2, 5, 1]])
    assert wave.shape == (8 * 640,) and wave.dtype == np.float32 and np.isfinite(wave).all() and np.abs(wave).max() <= 1

def test_predicted_runs_are_whole_frames_between_one_and_a_second():
    model = small()
    with torch.no_grad():
        model.duration[-1].weight.zero_()
        for log_frames, frames in ((-5, 1), (math.log(3), 3), (9, 25)):
            model.duration[-1].bias.fill_(log_frames)
            assert len(model.speak([[1, 2]])[0]) == 2 * frames * 640

def test_a_mel_that_is_too_loud_is_made_quieter_instead_of_clipped():
    model = small()
    with torch.no_grad():
        model.head.bias.fill_(5.0)
    wave, = model.speak([[1, 2, 3]], runs=[[3, 3, 3]])
    assert np.abs(wave).max() == pytest.approx(1.0) and (np.abs(wave) > 0.99).sum() < 10

def test_padding_does_not_change_a_mel_frame_far_from_it():
    model = small()
    frames = torch.randint(10, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        alone, padded = model(frames), model(torch.nn.functional.pad(frames, (0, 40)))
    torch.testing.assert_close(alone[:, :200], padded[:, :200])

def test_no_units_are_an_empty_wave_and_one_unit_is_heard():
    empty, one = small().speak([[], [7]], runs=[[], [1]])
    assert empty.shape == (0,) and len(one) == 640

def test_saving_keeps_the_network_up_to_float16(tmp_path):
    model = small('abc')
    model.save_pretrained(tmp_path, made_by='a test')
    again = load_vocoder(tmp_path)
    assert again.cfg == model.cfg and json.loads((tmp_path / 'config.json').read_text())['made_by'] == 'a test'
    frames = torch.arange(10)[None]
    torch.testing.assert_close(again(frames), model(frames), atol=5e-3, rtol=0)

@pytest.mark.parametrize('units, message', [
    ([1, 10], "vocoder: units 1..10, expected 0..9"),
    ([-1, 3], "vocoder: units -1..3, expected 0..9"),
])
def test_units_out_of_range_are_refused(units, message):
    with pytest.raises(Refused, match=message):
        small().speak([[3], units])

def test_units_of_another_encoder_are_refused():
    with pytest.raises(Refused, match="made for units abc, given units xyz"):
        small('abc').speak([[1]], units_hash='xyz')

def test_broken_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(Refused, match="no vocoder here: config.json is missing"):
        load_vocoder(tmp_path)
    small().save_pretrained(tmp_path)
    weights = tmp_path / 'model.safetensors'
    whole = weights.read_bytes()
    for broken, message in ((whole[:100], 'not a vocoder'), (b'not safetensors', 'not a vocoder')):
        weights.write_bytes(broken)
        with pytest.raises(Refused, match=message) as e:
            load_vocoder(tmp_path)
        assert '\n' not in str(e.value)
    weights.unlink()
    with pytest.raises(Refused, match="model.safetensors is missing"):
        load_vocoder(tmp_path)

# ----------------------------------------------------------------------------------------------------------------
# HiFi-GAN, with the fields that the published config.json has

PUBLISHED = dict(
    num_embeddings=10, embedding_dim=8, model_in_dim=8, upsample_initial_channel=16, upsample_rates=[5, 4, 2],
    upsample_kernel_sizes=[11, 8, 4], resblock_kernel_sizes=[3, 7], resblock_dilation_sizes=[[1, 3, 5], [1, 3]],
    dur_predictor_params={'encoder_embed_dim': 8, 'var_pred_hidden_dim': 6, 'var_pred_kernel_size': 3, 'var_pred_dropout': 0.5},
    sampling_rate=16000, segment_size=8960, num_gpus=0)

def hifigan(folder, **more):
    """A random vocoder folder with loud weights, and what is in it."""
    settings = PUBLISHED | more
    torch.manual_seed(0)
    model = HiFiGAN(HiFiGANConfig(**{k: v for k, v in settings.items() if k in HiFiGANConfig.__dataclass_fields__}))
    weights = {name: 1.5 * w if w.ndim > 1 else w + 0.1 for name, w in model.state_dict().items()}
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(settings))
    return load_vocoder(folder), weights

def definition(w, units, runs=None, speaker=None, style=None):
    """One sequence, by the published generator's definition."""
    conv = lambda name, x, dilation=1: F.conv1d(x, w[name + '.weight'], w[name + '.bias'], dilation=dilation,
                                                padding=(w[name + '.weight'].shape[-1] - 1) // 2 * dilation)
    x = w['dict.weight'][torch.tensor(units)].T # (C, R)
    if runs is None:
        h = x
        for i in '12':
            h = conv(f'dur_predictor.conv{i}.0', h).relu().T
            h = F.layer_norm(h, h.shape[-1:], w[f'dur_predictor.ln{i}.weight'], w[f'dur_predictor.ln{i}.bias']).T
        d = F.linear(h.T, w['dur_predictor.proj.weight'], w['dur_predictor.proj.bias'])[:, 0]
        runs = [max(1, round(math.exp(t) - 1)) for t in d.tolist()]
    x = x.repeat_interleave(torch.tensor(runs), 1)
    for name, number in (('spkr', speaker), ('style', style)):
        if number is not None:
            x = torch.cat([x, w[name + '.weight'][number][:, None].expand(-1, x.shape[1])])
    x = conv('conv_pre', x)
    for i, (u, k) in enumerate(zip(PUBLISHED['upsample_rates'], PUBLISHED['upsample_kernel_sizes'])):
        x = F.conv_transpose1d(F.leaky_relu(x, 0.1), w[f'ups.{i}.weight'], w[f'ups.{i}.bias'], stride=u, padding=(k - u) // 2)
        made = []
        for j, dilations in enumerate(PUBLISHED['resblock_dilation_sizes']):
            y = x
            for n, dilation in enumerate(dilations):
                h = conv(f'resblocks.{2 * i + j}.convs1.{n}', F.leaky_relu(y, 0.1), dilation)
                y = y + conv(f'resblocks.{2 * i + j}.convs2.{n}', F.leaky_relu(h, 0.1))
            made.append(y)
        x = (made[0] + made[1]) / 2
    return torch.tanh(conv('conv_post', F.leaky_relu(x, 0.01)))[0].numpy()

UNITS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [], [2, 7, 1, 8, 2, 8]]
RUNS = [[1, 2, 3, 1, 1, 4, 1, 2], [5], [], [1, 1, 1, 6, 1, 1]]

@pytest.mark.parametrize('runs', [RUNS, None])
def test_hifigan_is_its_definition_in_any_batch(tmp_path, runs):
    model, w = hifigan(tmp_path)
    for i, wave in enumerate(model.speak(UNITS, runs)):
        expected = definition(w, UNITS[i], runs and runs[i]) if UNITS[i] else np.zeros(0)
        assert wave.dtype == np.float32 and len(wave) == len(expected) and (runs is None or len(wave) == 40 * sum(runs[i]))
        np.testing.assert_allclose(wave, expected, atol=2e-6)
        if len(wave):
            assert np.abs(wave).std() > 0.01

def test_long_waves_are_made_in_pieces_without_a_seam(tmp_path):
    model, _ = hifigan(tmp_path)
    units = np.random.default_rng(0).integers(10, size=300).tolist()
    whole, = model.speak([units], [[2] * 300])
    for seconds in (0.1, 0.5): # 40 and 200 frames
        pieces, _ = model.speak([units, [1]], [[2] * 300, [1]], seconds=seconds)
        np.testing.assert_allclose(pieces, whole, atol=2e-6)
    model.context = 6 # of 12
    assert np.abs(model.speak([units], [[2] * 300], seconds=0.5)[0] - whole).max() > 1e-4

def test_speakers_and_styles(tmp_path):
    model, w = hifigan(tmp_path, multispkr='from_input_file', num_speakers=3, multistyle='from_input_file', num_styles=2, model_in_dim=24)
    waves = {(a, b): model.speak(UNITS[:2], RUNS[:2], speaker=a, style=b) for a, b in ((0, 0), (2, 1))}
    for (a, b), both in waves.items():
        for i, wave in enumerate(both):
            np.testing.assert_allclose(wave, definition(w, UNITS[i], RUNS[i], a, b), atol=2e-6)
    assert np.abs(waves[0, 0][0] - waves[2, 1][0]).max() > 1e-3
    for how, message in ((dict(speaker=3), "speaker 3, expected 0..2"), (dict(style=-1), "style -1, expected 0..1")):
        with pytest.raises(Refused, match=message):
            model.speak(UNITS, **how)

@pytest.mark.parametrize('change, message', [
    (dict(f0=True), "expected a vocoder of units alone"), (dict(sampling_rate=22050), "at 16000 Hz"),
    (dict(upsample_initial_channel=32), "not a vocoder: Error.*in loading state_dict"), (dict(resblock_kernel_sizes=None), "not a vocoder")])
def test_other_generators_are_refused(tmp_path, change, message):
    hifigan(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(PUBLISHED | change))
    with pytest.raises(Refused, match=message) as e:
        load_vocoder(tmp_path)
    assert '\n' not in str(e.value)

def test_hifigan_refuses_units_it_was_not_made_for(tmp_path):
    model, _ = hifigan(tmp_path, units_hash='abc')
    with pytest.raises(Refused, match="units 1..10, expected 0..9"):
        model.speak([[1], [1, 10]])
    with pytest.raises(Refused, match="made for units abc, given units xyz"):
        model.speak([[1]], units_hash='xyz')
