"""speech/audio.py against closed forms and scipy; every file is made here, the bad ones too."""
import math
import os
import struct

import numpy as np
import pytest
import soundfile
from small import speech_like

from speech.audio import RATE, BadAudio, load_audio, resample
from tokenize_speech import decode

# ----------------------------------------------------------------------------------------------------------------
# resampling

def tone(hz, rate, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate).astype(np.float32)

@pytest.mark.parametrize('rate', [8000, 11025, 22050, 24000, 44100, 48000, 96000])
def test_a_resampled_tone_is_the_tone_to_60_db(rate):
    for hz in (50, 440, 3000, 0.88 * min(rate, RATE) / 2):
        y, want = resample(tone(hz, rate), rate), tone(hz, RATE)
        inner = slice(400, -400) # the ends see the silence outside
        error = 10 * np.log10(np.mean((y - want)[inner] ** 2) / np.mean(want[inner] ** 2))
        assert error < -60, f"{rate} Hz: a tone of {hz} Hz is off by {error:.1f} dB"

@pytest.mark.parametrize('rate', [22050, 24000, 44100, 48000, 96000])
def test_what_16_khz_cannot_hold_is_removed_by_60_db(rate):
    for hz in (8100, 9000, 10000, 10900):
        y = resample(tone(hz, rate), rate)[400:-400]
        level = 10 * np.log10(np.mean(y ** 2) / .5)
        assert level < -60, f"{rate} Hz: a tone of {hz} Hz comes back at {level:.1f} dB"

@pytest.mark.parametrize('rate', [8000, 11025, 44100, 48000])
def test_resampling_agrees_with_scipy_inside_the_pass_band(rate):
    signal = pytest.importorskip('scipy.signal')
    rng = np.random.default_rng(0)
    low = min(rate, RATE)
    x = sum(rng.normal() * tone(hz, rate) for hz in rng.uniform(20, .25 * low, 30))
    common = math.gcd(rate, RATE)
    theirs = signal.resample_poly(x.astype(np.float64), RATE // common, rate // common, window=('kaiser', 14.0))
    ours = resample(x.astype(np.float32), rate)
    assert len(ours) == len(theirs)
    error = np.abs(ours - theirs)[500:-500].max() / np.abs(theirs).max()
    assert error < 1e-3, f"{error:.2e}"

@pytest.mark.parametrize('rate', [1000, 8000, 11025, 16000, 44100, 44056, 96000])
def test_resampling_keeps_duration_and_level(rate):
    for n in (1, 2, 999):
        assert abs(len(resample(np.ones(n, np.float32), rate)) - n * RATE / rate) < 1
    y = resample(np.ones(rate, np.float32), rate)
    assert np.abs(y[3000:-3000] - 1).max() < 1e-4

# ----------------------------------------------------------------------------------------------------------------
# reading

@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32', 'PCM_U8', 'FLOAT', 'DOUBLE', 'ULAW', 'ALAW'])
def test_every_sample_type_reads_as_the_same_wave(tmp_path, subtype):
    x = np.round(speech_like(.2, 1) * .3 * 128) / 128 # exact in 8 bits
    soundfile.write(tmp_path / 'a.wav', x, RATE, subtype=subtype)
    error = np.abs(load_audio(tmp_path / 'a.wav') - x).max()
    assert error < (.05 if subtype[1:] == 'LAW' else 1e-4), f"{subtype}: {error}"

def test_channels_are_averaged_and_floats_beyond_one_are_kept(tmp_path):
    left, right = speech_like(.2, 1), 3 * speech_like(.2, 2)
    soundfile.write(tmp_path / 'a.wav', np.stack([left, right], 1), RATE, subtype='FLOAT')
    assert np.abs(load_audio(tmp_path / 'a.wav') - (left + right) / 2).max() < 1e-6

def test_a_segment_is_that_part_of_the_file(tmp_path):
    x = speech_like(2, 1)
    soundfile.write(tmp_path / 'a.flac', x, RATE)
    whole = load_audio(tmp_path / 'a.flac')
    assert np.array_equal(load_audio(tmp_path / 'a.flac', .5, 1.25), whole[8000:20000])
    assert np.array_equal(load_audio(tmp_path / 'a.flac', 1.5), whole[24000:])
    with pytest.raises(BadAudio, match='TRUNCATED: 16000 of 32000 samples'):
        load_audio(tmp_path / 'a.flac', 1, 3)

def test_stereo_mp3_at_44100_reads_as_16_khz_mono(tmp_path):
    x = tone(440, 44100, 2)
    soundfile.write(tmp_path / 'a.mp3', np.stack([x, x], 1), 44100)
    y = load_audio(tmp_path / 'a.mp3')
    assert abs(len(y) - 32000) < 2000
    spectrum = np.abs(np.fft.rfft(y[8000:24000]))
    assert spectrum.argmax() == 440 and 10 * np.log10(spectrum[440] ** 2 / (spectrum ** 2).sum()) > -.1

@pytest.mark.parametrize('name', ['ünï cödé.wav', 'a b\nc.wav', 'x' * 251 + '.wav', 'wrong.mp3', 'none', '.wav'])
def test_any_file_name_will_do(tmp_path, name):
    soundfile.write(tmp_path / 'a.wav', speech_like(.1, 1), RATE)
    (tmp_path / 'a.wav').rename(tmp_path / name)
    assert len(load_audio(tmp_path / name)) == 1600

def half(path):
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2])

def headers_only(path):
    soundfile.write(path, np.zeros(0, np.float32), RATE)

def cut(path, **kwargs):
    soundfile.write(path, speech_like(3, 1), RATE, **kwargs)
    half(path)

def without_last_page(path):
    soundfile.write(path, speech_like(3, 1), RATE)
    data = path.read_bytes()
    path.write_bytes(data[:data.rindex(b'OggS')])

def no_length(path):
    soundfile.write(path, speech_like(1, 1), RATE)
    data = bytearray(path.read_bytes())
    data[21], data[22:26] = data[21] & 0xf0, bytes(4) # STREAMINFO's 36-bit number of samples
    path.write_bytes(data)

def with_value(path, value, at=700):
    x = speech_like(.2, 1)
    x[at] = value
    soundfile.write(path, x, RATE, subtype='FLOAT')

BAD = { # name: (class, how to make it)
    'gone.wav': ('MISSING', lambda p: None),
    'link.wav': ('MISSING', lambda p: p.symlink_to('nowhere')),
    'loop.wav': ('MISSING', lambda p: p.symlink_to('loop.wav')),
    'pipe.wav': ('MISSING', os.mkfifo),
    'folder.wav': ('MISSING', lambda p: p.mkdir()),
    'text.wav': ('NOT_AUDIO', lambda p: p.write_text('no audio at all\n' * 99)),
    'text.mp3': ('NOT_AUDIO', lambda p: p.write_text('no audio at all\n' * 99)),
    'json.raw': ('NOT_AUDIO', lambda p: p.write_text('{}')),
    'zeros.flac': ('NOT_AUDIO', lambda p: p.write_bytes(bytes(5000))),
    'empty.wav': ('EMPTY', lambda p: p.touch()),
    'header.wav': ('EMPTY', headers_only),
    'half.wav': ('TRUNCATED', cut),
    'half.flac': ('TRUNCATED', cut),
    'half.ogg': ('TRUNCATED', cut),
    'page.ogg': ('TRUNCATED', without_last_page),
    'half.mp3': ('TRUNCATED', cut),
    'half.opus': ('TRUNCATED', lambda p: cut(p, format='OGG', subtype='OPUS')),
    'pipe.flac': ('TRUNCATED', no_length),
    'nan.wav': ('NONFINITE', lambda p: with_value(p, np.nan)),
    'inf.wav': ('NONFINITE', lambda p: with_value(p, -np.inf)),
    'short.wav': ('TOO_SHORT', lambda p: soundfile.write(p, speech_like(.2, 1)[:639], RATE)),
    'long.wav': ('TOO_LONG', lambda p: soundfile.write(p, speech_like(11, 1), RATE)),
    'silent.wav': ('SILENT', lambda p: soundfile.write(p, np.zeros(16000), RATE)),
    'dc.wav': ('SILENT', lambda p: soundfile.write(p, np.full(16000, .25), RATE)),
}

@pytest.mark.parametrize('name', BAD)
def test_a_bad_file_is_recorded_with_its_class(tmp_path, name, capfd):
    kind, make = BAD[name]
    make(tmp_path / name)
    found = decode({'path': str(tmp_path / name), 'start': None, 'end': None}, 640, 10)
    assert isinstance(found, BadAudio) and found.kind == kind, f"{name}: {found}"
    assert str(found).startswith(f'{tmp_path / name}: {kind}: ') and '\n' not in str(found)

def test_a_wav_from_a_pipe_which_does_not_know_its_length_is_read_whole(tmp_path):
    soundfile.write(tmp_path / 'a.wav', speech_like(1, 1), RATE)
    data = bytearray((tmp_path / 'a.wav').read_bytes())
    data[4:8] = data[40:44] = struct.pack('<I', 0xffffffff)
    (tmp_path / 'a.wav').write_bytes(data)
    assert len(load_audio(tmp_path / 'a.wav')) == RATE
