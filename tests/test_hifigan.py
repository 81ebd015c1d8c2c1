"""
Tests of the unit HiFi-GAN (speech/hifigan.py).

It is compared with its definition, layer by layer on the weights in a dict. Batches and pieces
change nothing.
"""
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from configurator import Refused
from speech.hifigan import HiFiGAN, HiFiGANConfig
from speech.vocoder import load_vocoder, lookahead, settled

UNITS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [], [2, 7, 1, 8, 2, 8]]
RUNS = [[1, 2, 3, 1, 1, 4, 1, 2], [5], [], [1, 1, 1, 6, 1, 1]]

# A small network, with the fields that the published config.json has.
PUBLISHED = {
    'num_embeddings': 10,
    'embedding_dim': 8,
    'model_in_dim': 8,
    'upsample_initial_channel': 16,
    'upsample_rates': [5, 4, 2],
    'upsample_kernel_sizes': [11, 8, 4],
    'resblock_kernel_sizes': [3, 7],
    'resblock_dilation_sizes': [[1, 3, 5], [1, 3]],
    'dur_predictor_params': {
        'encoder_embed_dim': 8,
        'var_pred_hidden_dim': 6,
        'var_pred_kernel_size': 3,
        'var_pred_dropout': 0.5,
    },
    'sampling_rate': 16000,
    'segment_size': 8960,
    'num_gpus': 0,
}

def hifigan(folder, **changes):
    """Makes a vocoder folder with random, loud weights -> the vocoder, its weights."""
    settings = PUBLISHED | changes
    known = HiFiGANConfig.__dataclass_fields__
    cfg = HiFiGANConfig(**{key: value for key, value in settings.items() if key in known})
    torch.manual_seed(0)
    model = HiFiGAN(cfg)
    weights = {}
    for name, w in model.state_dict().items():
        weights[name] = 1.5 * w if w.ndim > 1 else w + 0.1
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(settings))
    return load_vocoder(folder), weights

def conv(w, name, x, dilation=1):
    """A convolution that keeps the length of x, with the weights of `name`."""
    weight = w[name + '.weight']
    padding = (weight.shape[-1] - 1) // 2 * dilation
    return F.conv1d(x, weight, w[name + '.bias'], dilation=dilation, padding=padding)

def durations(w, x):
    """Embedded units (C, R) -> R run lengths."""
    h = x
    for i in '12':
        h = conv(w, f'dur_predictor.conv{i}.0', h).relu().T
        norm = f'dur_predictor.ln{i}'
        h = F.layer_norm(h, h.shape[-1:], w[norm + '.weight'], w[norm + '.bias']).T
    d = F.linear(h.T, w['dur_predictor.proj.weight'], w['dur_predictor.proj.bias'])[:, 0]
    return [max(1, round(math.exp(t) - 1)) for t in d.tolist()]

def residual_block(w, name, x, dilations):
    for n, dilation in enumerate(dilations):
        h = conv(w, f'{name}.convs1.{n}', F.leaky_relu(x, 0.1), dilation)
        x = x + conv(w, f'{name}.convs2.{n}', F.leaky_relu(h, 0.1))
    return x

def definition(w, units, runs=None, speaker=None, style=None):
    """The wave of one sequence, by the definition of the published generator."""
    x = w['dict.weight'][torch.tensor(units)].T # (C, R)
    if runs is None:
        runs = durations(w, x)
    x = x.repeat_interleave(torch.tensor(runs), 1)
    for name, number in (('spkr', speaker), ('style', style)):
        if number is not None:
            vector = w[name + '.weight'][number][:, None]
            x = torch.cat([x, vector.expand(-1, x.shape[1])])
    x = conv(w, 'conv_pre', x)
    sizes = zip(PUBLISHED['upsample_rates'], PUBLISHED['upsample_kernel_sizes'])
    for i, (rate, kernel) in enumerate(sizes):
        weight = w[f'ups.{i}.weight']
        bias = w[f'ups.{i}.bias']
        padding = (kernel - rate) // 2
        x = F.conv_transpose1d(F.leaky_relu(x, 0.1), weight, bias, stride=rate, padding=padding)
        outputs = []
        for j, dilations in enumerate(PUBLISHED['resblock_dilation_sizes']):
            outputs.append(residual_block(w, f'resblocks.{2 * i + j}', x, dilations))
        x = (outputs[0] + outputs[1]) / 2
    return torch.tanh(conv(w, 'conv_post', F.leaky_relu(x, 0.01)))[0].numpy()

@pytest.mark.parametrize('runs', [RUNS, None])
def test_hifigan_is_its_definition_in_any_batch(tmp_path, runs):
    model, w = hifigan(tmp_path)
    for i, wave in enumerate(model.speak(UNITS, runs)):
        expected = definition(w, UNITS[i], runs and runs[i]) if UNITS[i] else np.zeros(0)
        assert wave.dtype == np.float32 and len(wave) == len(expected)
        if runs is not None:
            assert len(wave) == 40 * sum(runs[i])
        np.testing.assert_allclose(wave, expected, atol=2e-6)
        if len(wave):
            assert np.abs(wave).std() > 0.01

def test_long_waves_are_made_in_pieces_without_a_seam(tmp_path):
    model, _ = hifigan(tmp_path)
    units = np.random.default_rng(0).integers(10, size=300).tolist()
    runs = [2] * 300
    expected, = model.speak([units], [runs])
    for seconds in (0.1, 0.5): # 40 and 200 frames
        in_pieces, _ = model.speak([units, [1]], [runs, [1]], seconds=seconds)
        np.testing.assert_allclose(in_pieces, expected, atol=2e-6)
    model.context = 6 # of the 12 that it needs
    in_pieces, = model.speak([units], [runs], seconds=0.5)
    assert np.abs(in_pieces - expected).max() > 1e-4

def test_speakers_and_styles(tmp_path):
    model, w = hifigan(tmp_path, multispkr='from_input_file', num_speakers=3,
                       multistyle='from_input_file', num_styles=2, model_in_dim=24)
    first_waves = []
    for speaker, style in ((0, 0), (2, 1)):
        waves = model.speak(UNITS[:2], RUNS[:2], speaker=speaker, style=style)
        for wave, units, runs in zip(waves, UNITS, RUNS):
            expected = definition(w, units, runs, speaker, style)
            np.testing.assert_allclose(wave, expected, atol=2e-6)
        first_waves.append(waves[0])
    assert np.abs(first_waves[0] - first_waves[1]).max() > 1e-3
    with pytest.raises(Refused, match="speaker 3, expected 0..2"):
        model.speak(UNITS, speaker=3)
    with pytest.raises(Refused, match="style -1, expected 0..1"):
        model.speak(UNITS, style=-1)

@pytest.mark.parametrize('change, message', [
    ({'f0': True}, "expected a vocoder of units alone"),
    ({'sampling_rate': 22050}, "at 16000 Hz"),
    ({'upsample_initial_channel': 32}, "not a vocoder: Error.*in loading state_dict"),
    ({'resblock_kernel_sizes': None}, "not a vocoder"),
])
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

@pytest.mark.parametrize('durations', [PUBLISHED['dur_predictor_params'], None])
def test_units_to_come_do_not_change_what_is_settled(tmp_path, durations):
    vocoder, _ = hifigan(tmp_path, dur_predictor_params=durations)
    units = np.random.default_rng(0).integers(0, 10, 200)
    for n in (60, 120):
        end = settled(vocoder, units[:n])
        begun, = vocoder.speak([units[:n]])
        for other in range(3):
            rest = np.random.default_rng(other).integers(0, 10, 80)
            longer, = vocoder.speak([np.concatenate([units[:n], rest])])
            np.testing.assert_allclose(longer[:end], begun[:end], atol=1e-5)
        assert len(begun) - end < 2 * lookahead(vocoder) * begun.size / n
        assert not np.allclose(longer[:len(begun)], begun, atol=1e-3) # the rest may change
