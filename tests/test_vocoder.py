"""
The source-filter vocoder: each formula against its definition, waves that do not depend on pieces or batches, training that
lowers its losses on made-up voices, and the shipped one. The unit HiFi-GAN against its definition, layer by layer on the
weights in a dict; batches and pieces change nothing.
"""
import io
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from configurator import Refused, configure
from files import write_json
from speech.audio import RATE
from speech.hifigan import HiFiGAN, HiFiGANConfig
from speech.units import write_units_shard
from speech.vocoder import (
    BANDS,
    HOP,
    N_FFT,
    SourceFilter,
    SourceFilterConfig,
    bands,
    filtered,
    harmonics,
    load_vocoder,
    minimum_phase,
    periods,
    pitch,
    sharpen_formants,
)
from training.vocoder import Config, Discriminator, adversarial_loss, crops, losses, main, streams


def small(units_hash=''):
    torch.manual_seed(0)
    return SourceFilter(SourceFilterConfig(n_units=10, n_embd=16, n_slow=2, n_fast=2, units_hash=units_hash)).eval()

def buzz(hz):
    """Hz of each sample -> a voice's harmonics."""
    return 0.3 * ((np.cumsum(hz) / RATE) % 1 - 0.5).astype(np.float32)

# ----------------------------------------------------------------------------------------------------------------
# sources and filters

def test_pitch_follows_a_glide_and_tells_a_voice_from_noise():
    hz = np.linspace(90, 180, 2 * RATE)
    found, periodic = pitch(torch.from_numpy(buzz(hz)))
    off = (found.numpy() / hz[::HOP] - 1)[5:-5]
    assert len(found) == 200 and np.abs(off).max() < 0.02 and np.abs(off).mean() < 0.005, f"off by {np.abs(off).max():.4f}"
    assert periodic[5:-5].min() > 0.8
    _, periodic = pitch(torch.randn(RATE, generator=torch.Generator().manual_seed(0)))
    assert periodic.max() < 0.5
    assert all(x.isfinite().all() for x in pitch(torch.zeros(RATE)))

def test_harmonics_are_the_sum_of_cosines_of_their_phase():
    hz = torch.tensor([[100.0, 103.7, 250.0, 180.0, 180.0]])
    made = harmonics(hz, periods(hz))[0].double()
    ends = torch.cat([hz[0], hz[0, -1:]])
    f = torch.cat([torch.linspace(a, b, HOP + 1, dtype=torch.float64)[:-1] for a, b in zip(ends, ends[1:])])
    steps = torch.cat([f, ends[-1:].double()])
    phase = F.pad(((steps[1:] + steps[:-1]) / 2 / RATE).cumsum(0), (1, 0))[:-1] # of a straight line the trapezoids are exact
    for i in range(0, len(made), 7):
        K = int(RATE / 2 / f[i].float())
        expected = sum(math.cos(2 * math.pi * k * phase[i]) for k in range(1, K + 1)) * math.sqrt(2 / K)
        assert abs(made[i] - expected) < 1e-2, f"sample {i}: {made[i]:.4f}, expected {expected:.4f}"

def test_equal_gains_pass_a_source_through():
    source = torch.randn(2, 10 * HOP, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(filtered((source, torch.zeros(2, 10, BANDS))), source, atol=1e-5, rtol=0)
    both = filtered((source, torch.full((2, 10, BANDS), -1.0)), (source, torch.full((2, 10, BANDS), -2.0)))
    torch.testing.assert_close(both, source * (math.exp(-1) + math.exp(-2)), atol=1e-5, rtol=0)

def test_a_filter_has_the_gains_it_was_given_and_rings_after_the_pulse():
    gains = torch.randn(BANDS, generator=torch.Generator().manual_seed(0))
    pulse = torch.zeros(1, 12 * HOP)
    pulse[0, 4 * HOP] = 1
    wave = filtered((pulse, gains.expand(1, 12, BANDS)))[0]
    assert wave[:4 * HOP].abs().max() < 0.05 * wave.abs().max() # what the finite cepstrum lets through
    got = torch.fft.rfft(wave[4 * HOP:4 * HOP + N_FFT]).abs().log()
    expected = gains @ bands()
    torch.testing.assert_close((minimum_phase().T @ gains.cfloat()).real, expected, atol=1e-4, rtol=1e-4)
    assert (got - expected).abs().mean() < 0.05
    torch.testing.assert_close(bands().sum(0), torch.ones(N_FFT // 2 + 1))

def test_contrast_leaves_loudness_and_tilt_alone():
    line, peaks = torch.linspace(-3, 1, BANDS), torch.cos(torch.linspace(0, 12, BANDS))
    torch.testing.assert_close(sharpen_formants(line, 2.0), line, atol=1e-5, rtol=0)
    torch.testing.assert_close(sharpen_formants(peaks, 1.0), peaks, atol=1e-5, rtol=0)
    more, bare = sharpen_formants(line + peaks, 2.0), peaks.numpy()
    bare = bare - np.polyval(np.polyfit(np.arange(BANDS), bare, 1), np.arange(BANDS))
    difference = (more - line - peaks).numpy() - bare # the same for all bands
    assert difference.std() < 1e-4 and difference.mean() < -0.1
    source = torch.randn(1, 200 * HOP, generator=torch.Generator().manual_seed(0))
    loudness = [filtered((source, gain.expand(1, 200, BANDS))).square().mean() for gain in (line + peaks, more)]
    assert abs(loudness[0] / loudness[1] - 1) < 0.1

# ----------------------------------------------------------------------------------------------------------------
# speaking

UNITS, RUNS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [], [2, 7, 1, 8, 2, 8]], [[1, 2, 3, 1, 1, 4, 1, 2], [5], [], [1, 1, 1, 6, 1, 1]]

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
        model.duration[-1].bias.fill_(math.log(1.4))
        runs = model.predicted_runs(torch.tensor([1, 2] * 10))
        assert runs.sum() == 28 and runs.unique().tolist() == [1, 2] # nothing is lost by rounding

def test_a_wave_that_is_too_loud_is_made_quieter_instead_of_clipped():
    model = small()
    with torch.no_grad():
        model.head.bias[1:] += 9
    wave, = model.speak([[1, 2, 3]], runs=[[3, 3, 3]])
    assert np.abs(wave).max() == pytest.approx(1.0) and (np.abs(wave) > 0.99).sum() < 10

def test_the_network_sees_as_far_as_it_says():
    model = small()
    frames = torch.randint(10, (1, 60), generator=torch.Generator().manual_seed(0))
    other, up, reach = frames.clone(), model.up, model.context
    other[0, 30] = (frames[0, 30] + 1) % 10
    with torch.inference_mode():
        for a, b in zip(model(frames), model(other)):
            differs = (a - b)[0].reshape(60 * up, -1).abs().amax(1).nonzero()[:, 0]
            assert (30 - reach) * up <= differs.min() and differs.max() < (31 + reach) * up

def test_a_long_wave_in_pieces_and_a_batch_are_the_same_waves():
    model = small()
    with torch.no_grad():
        model.head.weight.mul_(5) # something that changes from frame to frame
    units = np.random.default_rng(0).integers(10, size=150)
    runs = 1 + units % 3
    whole, = model.speak([units], [runs], seconds=60)
    for seconds in (0.5, 3.0):
        pieces, one = model.speak([units, [7]], [runs, [5]], seconds=seconds)
        np.testing.assert_allclose(pieces, whole, atol=1e-5)
    assert np.abs(whole).max() > 0.05
    np.testing.assert_array_equal(one, model.speak([[7]], [[5]])[0])

def test_no_units_are_an_empty_wave_and_one_unit_is_heard():
    empty, one = small().speak([[], [7]], runs=[[], [1]])
    assert empty.shape == (0,) and len(one) == 640
    assert [len(x) for x in small().speak([[]])] == [0]

def test_ten_thousand_units_are_one_finite_wave():
    units = np.arange(10_000) % 10
    wave, = small().speak([units], [np.ones(10_000, int)])
    assert wave.shape == (640 * 10_000,) and np.isfinite(wave).all() and 0 < np.abs(wave).max() <= 1

def test_saving_keeps_the_network_up_to_float16(tmp_path):
    model = small('abc')
    model.save_pretrained(tmp_path, made_by='a test')
    again = load_vocoder(tmp_path)
    assert again.cfg == model.cfg and json.loads((tmp_path / 'config.json').read_text())['made_by'] == 'a test'
    frames = torch.arange(10)[None]
    for a, b in zip(again(frames), model(frames)):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=0)

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
    broken = small()
    broken.head.bias.data[7] = math.nan
    broken.save_pretrained(tmp_path)
    with pytest.raises(Refused, match="head.bias has values that are not finite"):
        load_vocoder(tmp_path)
    weights.unlink()
    with pytest.raises(Refused, match="model.safetensors is missing"):
        load_vocoder(tmp_path)
    write_json(tmp_path / 'config.json', {'n_units': 10, 'frame_hz': 30.0})
    weights.write_bytes(whole)
    with pytest.raises(Refused, match="units at 30.0 Hz, expected a rate that goes into 100 Hz"):
        load_vocoder(tmp_path)

def test_the_shipped_vocoder_speaks_units_of_the_shipped_corpus():
    tiny = Path(__file__).parents[1] / 'tiny'
    with np.load(io.BytesIO(lzma.decompress((tiny / 'talk.npz.xz').read_bytes()))) as packed:
        n, units, runs, info = (packed[key] for key in ('n_units', 'units', 'runs', 'info'))
    model, units, runs = load_vocoder(tiny / 'vocoder'), units[:n[0]], runs[:n[0]]
    assert (tiny / 'vocoder' / 'model.safetensors').stat().st_size < 6e6
    units_hash = json.loads(info.tobytes())['units_hash']
    own, = model.speak([units], [runs], units_hash)
    predicted, = model.speak([units], None, units_hash)
    assert len(own) == 640 * runs.sum() and abs(len(predicted) / len(own) - 1) < 0.4
    for wave in (own, predicted):
        assert 0.01 < np.sqrt((wave ** 2).mean()) < 0.2 and np.abs(wave).max() < 1 and abs(wave.mean()) < 0.01

# ----------------------------------------------------------------------------------------------------------------
# training

def speech(folder, n=4, frames=60, n_units=5, hop=640, **more):
    """A folder of audio and its units folder: each unit has a pitch, a loudness and a share of noise of its own."""
    rng, docs = np.random.default_rng(0), []
    (folder / 'audio').mkdir()
    for i in range(n):
        units = rng.integers(n_units, size=frames)
        units = units[np.flatnonzero(np.diff(units, prepend=-1))]
        runs = 1 + units % 3
        of = np.repeat(units, runs * hop)
        wave = (buzz(100.0 + 20 * of) * (of > 0) + 0.02 * of * rng.standard_normal(len(of))).astype(np.float32)
        path = folder / 'audio' / f'{i}.wav'
        soundfile.write(path, wave, RATE)
        docs.append(({'id': str(i), 'path': str(path), 'start': None, 'end': None, 'speaker': 'ab'[i % 2]}, units, runs))
    write_units_shard(folder / 'units', 0, docs)
    write_json(folder / 'units' / 'info.json', {'n_units': n_units, 'units_hash': 'abc', 'frame_hz': RATE / hop, 'documents': n} | more)
    return docs

def test_what_is_louder_than_full_scale_is_clipped_and_not_turned_over():
    loud = 1.02 * np.sin(np.arange(RATE) * 2 * np.pi * 100 / RATE).astype(np.float32)
    kept = streams([(np.array([1]), np.array([25]), loud)])['wave'].numpy() / 32767
    np.testing.assert_allclose(kept, loud.clip(-1, 1), atol=1e-4)

def test_training_lowers_every_loss(tmp_path):
    docs = [(units, runs, soundfile.read(meta['path'], dtype='float32')[0]) for meta, units, runs in speech(tmp_path)]
    data, rng, generator, history = streams(docs), np.random.default_rng(0), torch.Generator().manual_seed(0), []
    assert len(data['wave']) == 640 * len(data['frames']) == 160 * len(data['log_hz']) and len(data['units']) == len(data['runs'])
    torch.manual_seed(0)
    model = SourceFilter(SourceFilterConfig(n_units=5, n_embd=32, n_slow=1, n_fast=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss, made, wave = losses(model, crops(data, 10, 4, model.up, rng), generator)
        assert made.shape == wave.shape == (4, 6400)
        sum(loss.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append([x.item() for x in loss.values()])
    first, last = np.mean(history[:3], 0), np.mean(history[-5:], 0)
    assert last[0] < 0.6 * first[0] and last[1] < 0.6 * first[1] and last[2] < first[2], (first, last)

def test_crops_line_up(tmp_path):
    docs = [(units, runs, soundfile.read(meta['path'], dtype='float32')[0]) for meta, units, runs in speech(tmp_path, n=1)]
    batch = crops(streams(docs), 7, 3, 4, np.random.default_rng(0))
    frames = np.repeat(*docs[0][:2])
    for frame, wave in zip(batch['frames'].numpy(), batch['wave'].numpy()):
        there = [a for a in range(len(frames) - 6) if (frames[a:a + 7] == frame).all()]
        assert any(np.abs(docs[0][2][a * 640:(a + 7) * 640] - wave / 32767).max() < 1e-4 for a in there)

def test_the_critic_learns_to_tell_and_its_verdict_reaches_the_wave():
    torch.manual_seed(0)
    critic, wave = Discriminator(), 0.1 * torch.randn(2, 8000)
    optimizer, made = torch.optim.Adam(critic.parameters(), lr=1e-3), (0.01 * torch.randn(2, 8000)).requires_grad_()
    for _ in range(30):
        optimizer.zero_grad()
        verdict = adversarial_loss(critic, optimizer, made, wave)
    optimizer.zero_grad()
    assert critic(wave)[0].mean() > critic(made)[0].mean() + 0.5
    sum(verdict.values()).backward()
    assert made.grad.norm() > 0

TRAIN = ['--minutes=0.01', '--batch=2', '--crop=0.4', '--n_embd=16', '--n_slow=1', '--n_fast=1', '--device=cpu']

def train(argv):
    main(configure(Config, argv))

def test_the_command_makes_a_vocoder_that_can_be_gone_on_from(tmp_path, capsys):
    speech(tmp_path)
    where = [f'--units={tmp_path}/units', f'--out={tmp_path}/new']
    train([*where, *TRAIN])
    said = capsys.readouterr().out
    assert '2 speakers: the vocoder will have a voice between theirs' in said and '| critic' in said
    wave, = load_vocoder(tmp_path / 'new').speak([[1, 2]], [[2, 2]], 'abc')
    assert len(wave) == 4 * 640 and json.loads((tmp_path / 'new/config.json').read_text())['settings']['crop'] == 0.4
    with pytest.raises(Refused, match="new: a vocoder is there"):
        train([*where, *TRAIN])
    train([where[0], f'--audio={tmp_path}/audio', f'--out={tmp_path}/newer', f'--init={tmp_path}/new', '--speaker=a', *TRAIN])
    assert 'speakers' not in capsys.readouterr().out and load_vocoder(tmp_path / 'newer').cfg.n_embd == 16

@pytest.mark.parametrize('change, message', [
    ({'units': '{0}/none'}, "none: no such folder; tokenize_speech.py makes it"),
    ({'audio': '{0}/none'}, "none: no such file or folder"),
    ({'corpus': 'mine', 'audio': '{0}/audio'}, "corpus is 'mine', expected one of"),
    ({'speaker': 'c'}, "none of 4 documents has audio in the files it names and is of speaker 'c'"),
    ({'init': '{0}/other'}, "other: not a vocoder of python -m training.vocoder for units abc"),
    ({'crop': 60.0}, "units with audio, a crop has up to 1500: more speech, or a smaller --crop"),
    ({'minutes': 0.0}, "minutes is 0.0, must be above 0"), ({'out': ''}, "expected --units=DIR"), ({'device': 'tpu'}, "device is tpu")])
def test_what_cannot_be_trained_on_is_refused(tmp_path, change, message):
    speech(tmp_path)
    small('abc').save_pretrained(tmp_path / 'other') # of 10 units
    settings = {'units': '{0}/units', 'out': '{0}/new'} | change
    with pytest.raises(Refused, match=message) as e:
        train([*TRAIN, *(f'--{key}={value}'.format(tmp_path) for key, value in settings.items())])
    assert '\n' not in str(e.value) and not (tmp_path / 'new').exists()

def test_other_audio_than_the_units_were_made_of_is_refused(tmp_path):
    speech(tmp_path)
    soundfile.write(tmp_path / 'audio' / '2.wav', np.zeros(RATE, np.float32), RATE)
    with pytest.raises(Refused, match="2.wav: 16000 samples of '2', its units are of .*: other audio than"):
        train([f'--units={tmp_path}/units', f'--out={tmp_path}/new', *TRAIN])

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
