"""
Tests of the source-filter vocoder (speech/vocoder.py) and its training (training/vocoder.py).

Each formula is compared with its definition. Waves do not depend on pieces or batches. Training
lowers its losses on made-up voices. The shipped vocoder speaks the shipped corpus.
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

from configurator import Refused, configure
from files import write_json
from speech.audio import RATE
from speech.units import write_units_shard
from speech.vocoder import (
    BANDS,
    HOP,
    N_FFT,
    SourceFilter,
    SourceFilterConfig,
    apply_filters,
    bands,
    harmonics,
    load_vocoder,
    lookahead,
    minimum_phase,
    phase,
    pitch,
    settled,
    sharpen_formants,
)
from training.vocoder import Config, Discriminator, adversarial_loss, crops, losses, main, streams


def small(units_hash=''):
    """A small vocoder of 10 units with random weights."""
    torch.manual_seed(0)
    cfg = SourceFilterConfig(n_units=10, n_embd=16, n_slow=2, n_fast=2, units_hash=units_hash)
    return SourceFilter(cfg).eval()

def sawtooth(hz):
    """Pitch of each sample in Hz -> a wave with all harmonics of it."""
    return 0.3 * ((np.cumsum(hz) / RATE) % 1 - 0.5).astype(np.float32)

def seeded():
    return torch.Generator().manual_seed(0)

# --------------------------------------------------------------------------------------------------
# sources and filters

def test_pitch_follows_a_glide_and_tells_a_voice_from_noise():
    hz = np.linspace(90, 180, 2 * RATE)
    measured, periodic = pitch(torch.from_numpy(sawtooth(hz)))
    assert len(measured) == 200
    error = np.abs(measured.numpy() / hz[::HOP] - 1)[5:-5]
    assert error.max() < 0.02 and error.mean() < 0.005, f"off by {error.max():.4f}"
    assert periodic[5:-5].min() > 0.8
    _, periodic = pitch(torch.randn(RATE, generator=seeded()))
    assert periodic.max() < 0.5
    for values in pitch(torch.zeros(RATE)):
        assert values.isfinite().all()

def test_harmonics_are_the_sum_of_cosines_of_their_phase():
    hz = torch.tensor([[100.0, 103.7, 250.0, 180.0, 180.0]])
    wave = harmonics(hz, phase(hz))[0].double()
    edges = torch.cat([hz[0], hz[0, -1:]])
    ramps = []
    for first, last in zip(edges, edges[1:]):
        ramps.append(torch.linspace(first, last, HOP + 1, dtype=torch.float64)[:-1])
    f = torch.cat(ramps) # pitch of each sample
    # The trapezoidal rule is exact for straight lines.
    ends = torch.cat([f[1:], edges[-1:].double()])
    periods = F.pad(((ends + f) / 2 / RATE).cumsum(0), (1, 0))[:-1]
    for i in range(0, len(wave), 7):
        K = int(RATE / 2 / f[i].float())
        cosines = [math.cos(2 * math.pi * k * periods[i]) for k in range(1, K + 1)]
        expected = sum(cosines) * math.sqrt(2 / K)
        assert abs(wave[i] - expected) < 1e-2, f"sample {i}: {wave[i]:.4f}, expected {expected:.4f}"

def test_equal_gains_pass_a_source_through():
    source = torch.randn(2, 10 * HOP, generator=seeded())
    gains = torch.zeros(2, 10, BANDS)
    wave = apply_filters((source, gains))
    torch.testing.assert_close(wave, source, atol=1e-5, rtol=0)
    wave = apply_filters((source, gains - 1), (source, gains - 2))
    expected = source * (math.exp(-1) + math.exp(-2))
    torch.testing.assert_close(wave, expected, atol=1e-5, rtol=0)

def test_a_filter_has_the_gains_it_was_given_and_rings_after_the_pulse():
    gains = torch.randn(BANDS, generator=seeded())
    start = 4 * HOP
    pulse = torch.zeros(1, 12 * HOP)
    pulse[0, start] = 1
    wave = apply_filters((pulse, gains.expand(1, 12, BANDS)))[0]
    # The cepstrum is finite, so a little comes before the pulse.
    assert wave[:start].abs().max() < 0.05 * wave.abs().max()
    response = torch.fft.rfft(wave[start:start + N_FFT]).abs().log()
    expected = gains @ bands()
    log_gains = (minimum_phase().T @ gains.cfloat()).real
    torch.testing.assert_close(log_gains, expected, atol=1e-4, rtol=1e-4)
    assert (response - expected).abs().mean() < 0.05
    torch.testing.assert_close(bands().sum(0), torch.ones(N_FFT // 2 + 1))

def test_contrast_leaves_loudness_and_tilt_alone():
    line = torch.linspace(-3, 1, BANDS)
    peaks = torch.cos(torch.linspace(0, 12, BANDS))
    torch.testing.assert_close(sharpen_formants(line, 2.0), line, atol=1e-5, rtol=0)
    torch.testing.assert_close(sharpen_formants(peaks, 1.0), peaks, atol=1e-5, rtol=0)
    gains = line + peaks
    sharp = sharpen_formants(gains, 2.0)
    x = np.arange(BANDS)
    residual = peaks.numpy() - np.polyval(np.polyfit(x, peaks.numpy(), 1), x)
    offset = (sharp - gains).numpy() - residual
    # The same for all bands: it undoes the change of loudness.
    assert offset.std() < 1e-4 and offset.mean() < -0.1
    source = torch.randn(1, 200 * HOP, generator=seeded())
    before = apply_filters((source, gains.expand(1, 200, BANDS)))
    after = apply_filters((source, sharp.expand(1, 200, BANDS)))
    assert abs(before.square().mean() / after.square().mean() - 1) < 0.1

# --------------------------------------------------------------------------------------------------
# speaking

def test_wave_length_is_the_sum_of_the_runs_in_frames_of_640_samples():
    wave, = small().speak([[3, 1, 4]], runs=[[2, 5, 1]])
    assert wave.shape == (8 * 640,) and wave.dtype == np.float32
    assert np.isfinite(wave).all() and np.abs(wave).max() <= 1

def test_predicted_runs_are_whole_frames_between_one_and_a_second():
    model = small()
    last = model.duration[-1]
    with torch.no_grad():
        last.weight.zero_()
        for log_frames, frames in ((-5, 1), (math.log(3), 3), (9, 25)):
            last.bias.fill_(log_frames)
            wave, = model.speak([[1, 2]])
            assert len(wave) == 2 * frames * 640
        last.bias.fill_(math.log(1.4))
        runs = model.predicted_runs(torch.tensor([1, 2] * 10))
        assert runs.sum() == 28 and runs.unique().tolist() == [1, 2] # nothing is lost by rounding

def test_units_to_come_do_not_change_what_is_settled():
    model = small()
    units = np.random.default_rng(0).integers(0, 10, 150)
    assert settled(model, units[:5]) == 0
    for n in (70, 110):
        end = settled(model, units[:n])
        begun, = model.speak([units[:n]])
        for other in range(3):
            rest = np.random.default_rng(other).integers(0, 10, 80)
            longer, = model.speak([np.concatenate([units[:n], rest])])
            np.testing.assert_allclose(longer[:end], begun[:end], atol=1e-4)
        assert 0 < end < len(begun)
        assert len(begun) - end <= 2 * lookahead(model) * len(begun) / n # and not much more is held back than must be
        assert not np.allclose(longer[:len(begun)], begun, atol=1e-3)

def test_a_wave_that_is_too_loud_is_made_quieter_instead_of_clipped():
    model = small()
    with torch.no_grad():
        model.head.bias[1:] += 9
    wave, = model.speak([[1, 2, 3]], runs=[[3, 3, 3]])
    assert np.abs(wave).max() == pytest.approx(1.0)
    assert (np.abs(wave) > 0.99).sum() < 10

def test_the_network_sees_as_far_as_it_says():
    model = small()
    up = model.up
    reach = model.context
    frames = torch.randint(10, (1, 60), generator=seeded())
    changed = frames.clone()
    changed[0, 30] = (frames[0, 30] + 1) % 10
    with torch.inference_mode():
        for a, b in zip(model(frames), model(changed)):
            difference = (a - b)[0].reshape(60 * up, -1).abs().amax(1)
            steps = difference.nonzero()[:, 0]
            assert (30 - reach) * up <= steps.min() and steps.max() < (31 + reach) * up

def test_a_long_wave_in_pieces_and_a_batch_are_the_same_waves():
    model = small()
    with torch.no_grad():
        model.head.weight.mul_(5) # so that the sound changes from frame to frame
    units = np.random.default_rng(0).integers(10, size=150)
    runs = 1 + units % 3
    expected, = model.speak([units], [runs], seconds=60)
    assert np.abs(expected).max() > 0.05
    single, = model.speak([[7]], [[5]])
    for seconds in (0.5, 3.0):
        in_pieces, short = model.speak([units, [7]], [runs, [5]], seconds=seconds)
        np.testing.assert_allclose(in_pieces, expected, atol=1e-5)
        np.testing.assert_array_equal(short, single)

def test_no_units_are_an_empty_wave_and_one_unit_is_heard():
    empty, single = small().speak([[], [7]], runs=[[], [1]])
    assert empty.shape == (0,) and len(single) == 640
    empty, = small().speak([[]])
    assert len(empty) == 0

def test_ten_thousand_units_are_one_finite_wave():
    units = np.arange(10_000) % 10
    wave, = small().speak([units], [np.ones(10_000, int)])
    assert wave.shape == (640 * 10_000,) and np.isfinite(wave).all() and 0 < np.abs(wave).max() <= 1

def test_saving_keeps_the_network_up_to_float16(tmp_path):
    model = small('abc')
    model.save_pretrained(tmp_path, made_by='a test')
    loaded = load_vocoder(tmp_path)
    assert loaded.cfg == model.cfg
    assert json.loads((tmp_path / 'config.json').read_text())['made_by'] == 'a test'
    frames = torch.arange(10)[None]
    for a, b in zip(loaded(frames), model(frames)):
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
    data = weights.read_bytes()
    for broken in (data[:100], b'not safetensors'):
        weights.write_bytes(broken)
        with pytest.raises(Refused, match='not a vocoder') as e:
            load_vocoder(tmp_path)
        assert '\n' not in str(e.value)
    model = small()
    model.head.bias.data[7] = math.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(Refused, match="head.bias has values that are not finite"):
        load_vocoder(tmp_path)
    weights.unlink()
    with pytest.raises(Refused, match="model.safetensors is missing"):
        load_vocoder(tmp_path)
    write_json(tmp_path / 'config.json', {'n_units': 10, 'frame_hz': 30.0})
    weights.write_bytes(data)
    with pytest.raises(Refused, match="units at 30.0 Hz, expected a rate that divides 100 Hz"):
        load_vocoder(tmp_path)

def test_the_shipped_vocoder_speaks_units_of_the_shipped_corpus():
    tiny = Path(__file__).parents[1] / 'tiny'
    with np.load(io.BytesIO(lzma.decompress((tiny / 'talk.npz.xz').read_bytes()))) as packed:
        n = packed['n_units'][0]
        units = packed['units'][:n]
        runs = packed['runs'][:n]
        info = json.loads(packed['info'].tobytes())
    assert (tiny / 'vocoder' / 'model.safetensors').stat().st_size < 6e6
    model = load_vocoder(tiny / 'vocoder')
    true_runs, = model.speak([units], [runs], info['units_hash'])
    predicted_runs, = model.speak([units], None, info['units_hash'])
    assert len(true_runs) == 640 * runs.sum()
    assert abs(len(predicted_runs) / len(true_runs) - 1) < 0.4
    for wave in (true_runs, predicted_runs):
        assert 0.01 < np.sqrt((wave ** 2).mean()) < 0.2
        assert np.abs(wave).max() < 1 and abs(wave.mean()) < 0.01

# --------------------------------------------------------------------------------------------------
# training

def make_speech(folder, n=4, n_frames=60):
    """Makes a folder of audio and its units folder.

    Each of 5 units has its own pitch, loudness and share of noise.
    """
    n_units = 5
    hop = 640
    rng = np.random.default_rng(0)
    docs = []
    (folder / 'audio').mkdir()
    for i in range(n):
        units = rng.integers(n_units, size=n_frames)
        units = units[np.flatnonzero(np.diff(units, prepend=-1))]
        runs = 1 + units % 3
        samples = np.repeat(units, runs * hop) # the unit of each sample
        voice = sawtooth(100.0 + 20 * samples) * (samples > 0)
        noise = 0.02 * samples * rng.standard_normal(len(samples))
        path = folder / 'audio' / f'{i}.wav'
        soundfile.write(path, (voice + noise).astype(np.float32), RATE)
        meta = {'id': str(i), 'path': str(path), 'start': None, 'end': None, 'speaker': 'ab'[i % 2]}
        docs.append((meta, units, runs))
    write_units_shard(folder / 'units', 0, docs)
    info = {'n_units': n_units, 'units_hash': 'abc', 'frame_hz': RATE / hop, 'documents': n}
    write_json(folder / 'units' / 'info.json', info)
    return docs

def with_waves(docs):
    """The documents of make_speech -> units, runs, wave of each."""
    documents = []
    for meta, units, runs in docs:
        wave, _ = soundfile.read(meta['path'], dtype='float32')
        documents.append((units, runs, wave))
    return documents

def test_what_is_louder_than_full_scale_is_clipped_and_not_turned_over():
    loud = 1.02 * np.sin(np.arange(RATE) * 2 * np.pi * 100 / RATE).astype(np.float32)
    data = streams([(np.array([1]), np.array([25]), loud)])
    wave = data['wave'].numpy() / 32767
    np.testing.assert_allclose(wave, loud.clip(-1, 1), atol=1e-4)

def test_training_lowers_every_loss(tmp_path):
    data = streams(with_waves(make_speech(tmp_path)))
    assert len(data['wave']) == 640 * len(data['frames']) == 160 * len(data['log_hz'])
    assert len(data['units']) == len(data['runs'])
    torch.manual_seed(0)
    model = SourceFilter(SourceFilterConfig(n_units=5, n_embd=32, n_slow=1, n_fast=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    generator = seeded()
    history = []
    for _ in range(40):
        batch = crops(data, 10, 4, model.up, rng)
        loss, generated, recorded = losses(model, batch, generator)
        assert generated.shape == recorded.shape == (4, 6400)
        sum(loss.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append([loss[name].item() for name in ('spectrum', 'pitch', 'runs')])
    ratios = np.mean(history[-5:], 0) / np.mean(history[:3], 0)
    assert ratios[0] < 0.6 and ratios[1] < 0.6 and ratios[2] < 1, ratios

def test_crops_line_up(tmp_path):
    (units, runs, wave), = with_waves(make_speech(tmp_path, n=1))
    batch = crops(streams([(units, runs, wave)]), 7, 3, 4, np.random.default_rng(0))
    frames = np.repeat(units, runs)
    for crop_frames, crop_wave in zip(batch['frames'].numpy(), batch['wave'].numpy()):
        errors = []
        for start in range(len(frames) - 6):
            if (frames[start:start + 7] == crop_frames).all():
                difference = wave[start * 640:(start + 7) * 640] - crop_wave / 32767
                errors.append(np.abs(difference).max())
        assert min(errors) < 1e-4

def test_the_discriminator_learns_to_tell_and_its_scores_reach_the_wave():
    torch.manual_seed(0)
    discriminator = Discriminator()
    recorded = 0.1 * torch.randn(2, 8000)
    generated = (0.01 * torch.randn(2, 8000)).requires_grad_()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = adversarial_loss(discriminator, optimizer, generated, recorded)
    optimizer.zero_grad()
    real_scores, _ = discriminator(recorded)
    fake_scores, _ = discriminator(generated)
    assert real_scores.mean() > fake_scores.mean() + 0.5
    sum(loss.values()).backward()
    assert generated.grad.norm() > 0

TRAIN = [
    '--minutes=0.01',
    '--batch=2',
    '--crop=0.4',
    '--n_embd=16',
    '--n_slow=1',
    '--n_fast=1',
    '--device=cpu',
]

def train(argv):
    main(configure(Config, argv))

def test_the_command_makes_a_vocoder_that_can_be_gone_on_from(tmp_path, capsys):
    make_speech(tmp_path)
    argv = [f'--units={tmp_path}/units', f'--out={tmp_path}/new', *TRAIN]
    # The adversarial loss comes with the first step, as a slow machine may not get to a second.
    train([*argv, '--critic_from=-1'])
    printed = capsys.readouterr().out
    assert '2 speakers: the vocoder will have a voice between theirs' in printed
    assert '| adversarial' in printed and '| feature_matching' in printed
    wave, = load_vocoder(tmp_path / 'new').speak([[1, 2]], [[2, 2]], 'abc')
    assert len(wave) == 4 * 640
    assert json.loads((tmp_path / 'new/config.json').read_text())['settings']['crop'] == 0.4
    with pytest.raises(Refused, match="new: a vocoder is there"):
        train(argv)
    argv[1] = f'--out={tmp_path}/newer'
    train([*argv, f'--audio={tmp_path}/audio', f'--init={tmp_path}/new', '--speaker=a'])
    assert 'speakers' not in capsys.readouterr().out
    assert load_vocoder(tmp_path / 'newer').cfg.n_embd == 16

@pytest.mark.parametrize('change, message', [
    ({'units': '{0}/none'}, "none: no such folder; tokenize_speech.py makes it"),
    ({'audio': '{0}/none'}, "none: no such file or folder"),
    ({'corpus': 'mine', 'audio': '{0}/audio'}, "corpus is 'mine', expected one of"),
    ({'speaker': 'c'}, "none of 4 documents has audio in the files it names and is of speaker 'c'"),
    ({'init': '{0}/other'}, "other: not a vocoder of python -m training.vocoder for units abc"),
    ({'crop': 60.0}, "units with audio, a crop has up to 1500: more speech, or a smaller --crop"),
    ({'minutes': 0.0}, "minutes is 0.0, must be above 0"),
    ({'out': ''}, "expected --units=DIR"),
    ({'device': 'tpu'}, "device is tpu"),
])
def test_what_cannot_be_trained_on_is_refused(tmp_path, change, message):
    make_speech(tmp_path)
    small('abc').save_pretrained(tmp_path / 'other') # of 10 units instead of 5
    settings = {'units': '{0}/units', 'out': '{0}/new'} | change
    argv = [f'--{key}={value}'.format(tmp_path) for key, value in settings.items()]
    with pytest.raises(Refused, match=message) as e:
        train([*TRAIN, *argv])
    assert '\n' not in str(e.value) and not (tmp_path / 'new').exists()

def test_other_audio_than_the_units_were_made_of_is_refused(tmp_path):
    make_speech(tmp_path)
    soundfile.write(tmp_path / 'audio' / '2.wav', np.zeros(RATE, np.float32), RATE)
    message = "2.wav: 16000 samples of '2', its units are of .*: other audio than"
    with pytest.raises(Refused, match=message):
        train([f'--units={tmp_path}/units', f'--out={tmp_path}/new', *TRAIN])
