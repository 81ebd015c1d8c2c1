"""speech/fused.py and --dtype against plain transformers and float32."""
from pathlib import Path

import numpy as np
import pytest
import torch
from small import speech_like
from test_encoders import VARIANTS, assert_all_equal, hubert, load, make_encoder, mimi, one_thread  # noqa: F401
from torch import nn
from transformers import HubertModel

from configurator import Refused
from speech import encoders, fused
from speech.audio import load_audio
from speech.encoders import Encoder
from speech.fused import BLOCK, Front, Linear, PositionConv, has_bfloat16
from speech.kmeans import load_centroids

# ruff: noqa: F811 - the arguments of tests are named as the fixtures that are imported above

TINY = Path(__file__).parents[1] / 'tiny'
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason='this processor has no products of bfloat16')

def relative_error(x, expected):
    return ((x.double() - expected).abs().max() / expected.abs().max()).item()

@pytest.mark.parametrize('dtype, most', [('float32', 1e-4), pytest.param('bfloat16', .03, marks=needs_bfloat16)])
@pytest.mark.parametrize('name', VARIANTS)
@torch.inference_mode()
def test_the_convolutions_are_those_of_transformers(name, dtype, most, tmp_path):
    model = HubertModel.from_pretrained(make_encoder(tmp_path, **VARIANTS[name])).eval()
    front = Front(model.feature_extractor.conv_layers, getattr(torch, dtype))
    front.chunk = 32
    for n_frames in (1, 7, 31, 32, 69):
        x = torch.from_numpy(speech_like(9, 1))[:n_frames * front.step + 85][None] + .3
        expected = model.feature_extractor(x)
        y = front(x)
        assert y.shape == expected.shape and y.dtype == getattr(torch, dtype)
        assert relative_error(y, expected) < most

@torch.inference_mode()
def test_a_folded_group_norm_sees_the_frames_of_each_row_alone(tmp_path):
    model = HubertModel.from_pretrained(make_encoder(tmp_path)).eval()
    front = Front(model.feature_extractor.conv_layers, torch.float32)
    long = torch.from_numpy(speech_like(3, 1))
    short = 5 * torch.from_numpy(speech_like(1.3, 2)) - 1
    front.frames = [(len(wave) - 10) // 5 + 1 for wave in (long, short)]
    rows = front(nn.utils.rnn.pad_sequence([long, short], batch_first=True))
    for row, wave in zip(rows, (long, short)):
        expected = model.feature_extractor(wave[None])[0]
        assert relative_error(row[:, :expected.shape[1]], expected) < 1e-4

@pytest.mark.parametrize('dtype, most', [('float32', 1e-5), pytest.param('bfloat16', .02, marks=needs_bfloat16)])
@torch.inference_mode()
def test_linear_layers_and_positional_convolutions_are_those_of_torch(dtype, most):
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    for shape in ((1, 1), (2, 15), (1, 16), (3, 37)):
        plain = nn.Linear(24, 40, bias=shape[0] > 1)
        x = torch.randn(*shape, 24)
        for gelu in (False, True):
            y = plain(x)
            y = nn.functional.gelu(y) if gelu else y
            assert relative_error(Linear(plain.weight, plain.bias, dtype, gelu)(x), y) < most
    for kernel in (16, 31):
        plain = nn.Conv1d(24, 24, kernel, padding=kernel // 2, groups=3)
        conv = PositionConv(plain, dtype)
        for n in (1, 40, BLOCK, 2 * BLOCK + 3):
            x = torch.randn(2, n, 24).mT
            y = conv(x)
            assert y.shape == plain(x).shape and relative_error(y, plain(x)) < most

def tiny_waves(n):
    return [load_audio(path) for path in sorted((TINY / 'audio').rglob('*.flac'))[:n]]

def tiny_encoder(**settings):
    return Encoder(TINY / 'hubert', 4, load_centroids(TINY / 'hubert/kmeans.safetensors'), **settings)

@torch.inference_mode()
def test_float32_units_of_the_embedded_encoder_are_those_of_plain_transformers():
    """tiny/slm was trained on them. A frame in 2,000 may be so near to a tie that another processor decides it."""
    encoder = tiny_encoder()
    model = HubertModel.from_pretrained(TINY / 'hubert').float().eval()
    waves = tiny_waves(12)
    n_frames = 0
    n_other = 0
    for wave, units in zip(waves, encoder.encode(waves)):
        h = model(nn.functional.pad(torch.from_numpy(wave), (40, 40))[None]).last_hidden_state[0]
        expected = torch.cdist(h.double(), encoder.centroids.double()).argmin(1).numpy()
        n_frames += len(units)
        n_other += np.sum(units != expected)
    assert n_frames > 1000 and n_other <= n_frames / 2000

@needs_bfloat16
def test_bfloat16_gives_the_units_of_float32_for_995_frames_in_1000():
    waves = tiny_waves(20)
    expected = np.concatenate(tiny_encoder().encode(waves))
    encoder = tiny_encoder(dtype='bfloat16')
    units = np.concatenate(encoder.encode(waves))
    assert encoder.hash == tiny_encoder().hash
    assert np.mean(units == expected) >= .995 and len(np.unique(units)) > 100
    whole = np.mean(encoder.features(waves[0]) == tiny_encoder().features(waves[0]))
    assert whole < .5 # it is in bfloat16

def test_bfloat16_is_refused_where_the_processor_emulates_it(hubert, monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx512_f': True, 'amx_tile': True})
    assert not fused.has_bfloat16()
    assert load(hubert).dtype == 'float32'
    with pytest.raises(Refused, match="this processor only emulates .*; leave --dtype out") as e:
        load(hubert, dtype='bfloat16')
    assert '\n' not in str(e.value)

def test_dtypes_that_do_not_fit_are_refused_and_float32_is_the_default(hubert, mimi):
    assert load(hubert).dtype == load(hubert, dtype='float32').dtype == 'float32'
    with pytest.raises(Refused, match="dtype is 'float16', must be 'float32' or 'bfloat16'"):
        load(hubert, dtype='float16')
    with pytest.raises(Refused, match='the codes of Mimi are defined in float32'):
        Encoder(mimi, 1, None, dtype='bfloat16')

def test_units_do_not_depend_on_the_number_of_threads(hubert):
    waves = [speech_like(.5 + .4 * i, i) for i in range(12)]
    alone = load(hubert, window_s=4, margin_s=.4)
    expected = alone.encode(waves)
    assert alone.threads == 1
    torch.set_num_threads(3)
    try:
        encoder = load(hubert, window_s=4, margin_s=.4)
        assert encoder.threads == 3
        assert_all_equal(encoder.encode(waves), expected)
        long = np.concatenate(waves)
        assert np.array_equal(encoder.encode_blocks(np.array_split(long, 9)), alone.encode([long])[0])
    finally:
        torch.set_num_threads(1)

def test_an_activation_that_is_not_gelu_is_refused(hubert, tmp_path):
    model = HubertModel.from_pretrained(hubert)
    model.config.feat_extract_activation = 'relu'
    model.save_pretrained(tmp_path)
    with pytest.raises(Refused, match="feat_extract_activation is 'relu', expected 'gelu'"):
        encoders.Encoder(tmp_path, 2, torch.zeros(5, 32))
