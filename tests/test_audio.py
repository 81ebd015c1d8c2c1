"""speech/audio.py against closed forms and scipy. Every file is made here, the bad ones too."""
import math
import os
import struct

import numpy as np
import pytest
import soundfile
from small import speech_like

from speech.audio import RATE, BadAudio, load_audio, resample
from tokenize_speech import decode

# --------------------------------------------------------------------------------------------------
# resampling

def tone(hz, rate, seconds=1.0):
    t = np.arange(round(seconds * rate)) / rate
    return np.sin(2 * np.pi * hz * t).astype(np.float32)

def db(power):
    return 10 * np.log10(power)

@pytest.mark.parametrize('rate', [8000, 11025, 22050, 24000, 44100, 48000, 96000])
def test_a_resampled_tone_is_the_tone_to_60_db(rate):
    inner = slice(400, -400) # the ends see the silence outside
    for hz in (50, 440, 3000, 0.88 * min(rate, RATE) / 2):
        y = resample(tone(hz, rate), rate)
        expected = tone(hz, RATE)
        difference = (y - expected)[inner]
        error = db(np.mean(difference ** 2) / np.mean(expected[inner] ** 2))
        assert error < -60, f"{rate} Hz: a tone of {hz} Hz is off by {error:.1f} dB"

@pytest.mark.parametrize('rate', [22050, 24000, 44100, 48000, 96000])
def test_what_16_khz_cannot_hold_is_removed_by_60_db(rate):
    for hz in (8100, 9000, 10000, 10900):
        y = resample(tone(hz, rate), rate)[400:-400]
        level = db(np.mean(y ** 2) / .5)
        assert level < -60, f"{rate} Hz: a tone of {hz} Hz comes back at {level:.1f} dB"

@pytest.mark.parametrize('rate', [8000, 11025, 44100, 48000])
def test_resampling_agrees_with_scipy_inside_the_pass_band(rate):
    signal = pytest.importorskip('scipy.signal')
    rng = np.random.default_rng(0)
    low = min(rate, RATE)
    x = sum(rng.normal() * tone(hz, rate) for hz in rng.uniform(20, .25 * low, 30))
    divisor = math.gcd(rate, RATE)
    window = 'kaiser', 14.0
    expected = signal.resample_poly(x.astype(np.float64), RATE // divisor, rate // divisor, window=window)
    y = resample(x.astype(np.float32), rate)
    assert len(y) == len(expected)
    error = np.abs(y - expected)[500:-500].max() / np.abs(expected).max()
    assert error < 1e-3, f"{error:.2e}"

@pytest.mark.parametrize('rate', [1000, 8000, 11025, 16000, 44100, 44056, 96000])
def test_resampling_keeps_duration_and_level(rate):
    for n in (1, 2, 999):
        y = resample(np.ones(n, np.float32), rate)
        assert abs(len(y) - n * RATE / rate) < 1
    y = resample(np.ones(rate, np.float32), rate)
    assert np.abs(y[3000:-3000] - 1).max() < 1e-4

# --------------------------------------------------------------------------------------------------
# reading

@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32', 'PCM_U8', 'FLOAT', 'DOUBLE', 'ULAW', 'ALAW'])
def test_every_sample_type_reads_as_the_same_wave(tmp_path, subtype):
    x = np.round(speech_like(.2, 1) * .3 * 128) / 128 # exact in 8 bits
    soundfile.write(tmp_path / 'a.wav', x, RATE, subtype=subtype)
    error = np.abs(load_audio(tmp_path / 'a.wav') - x).max()
    tolerance = .05 if subtype[1:] == 'LAW' else 1e-4
    assert error < tolerance, f"{subtype}: {error}"

def test_channels_are_averaged_and_floats_beyond_one_are_kept(tmp_path):
    first = speech_like(.2, 1)
    second = 3 * speech_like(.2, 2)
    soundfile.write(tmp_path / 'a.wav', np.stack([first, second], 1), RATE, subtype='FLOAT')
    difference = load_audio(tmp_path / 'a.wav') - (first + second) / 2
    assert np.abs(difference).max() < 1e-6

@pytest.mark.parametrize('rate', [16000, 44100])
def test_the_first_seconds_are_those_of_the_whole_file(tmp_path, rate):
    soundfile.write(tmp_path / 'a.wav', speech_like(70, 0, rate), rate)
    whole = load_audio(tmp_path / 'a.wav')
    for first in (0, 1.5, 69, 99):
        np.testing.assert_array_equal(load_audio(tmp_path / 'a.wav', first=first), whole[:round(first * RATE) or None])

def test_a_segment_is_that_part_of_the_file(tmp_path):
    path = tmp_path / 'a.flac'
    soundfile.write(path, speech_like(2, 1), RATE)
    wave = load_audio(path)
    assert np.array_equal(load_audio(path, .5, 1.25), wave[8000:20000])
    assert np.array_equal(load_audio(path, 1.5), wave[24000:])
    with pytest.raises(BadAudio, match='TRUNCATED: 16000 of 32000 samples'):
        load_audio(path, 1, 3)

def test_stereo_mp3_at_44100_reads_as_16_khz_mono(tmp_path):
    x = tone(440, 44100, 2)
    soundfile.write(tmp_path / 'a.mp3', np.stack([x, x], 1), 44100)
    y = load_audio(tmp_path / 'a.mp3')
    assert abs(len(y) - 32000) < 2000
    spectrum = np.abs(np.fft.rfft(y[8000:24000]))
    assert spectrum.argmax() == 440
    assert db(spectrum[440] ** 2 / (spectrum ** 2).sum()) > -.1

@pytest.mark.parametrize('name', ['ünï cödé.wav', 'a b\nc.wav', 'x' * 251 + '.wav', 'wrong.mp3', 'none', '.wav'])
def test_any_file_name_will_do(tmp_path, name):
    soundfile.write(tmp_path / 'a.wav', speech_like(.1, 1), RATE)
    (tmp_path / 'a.wav').rename(tmp_path / name)
    assert len(load_audio(tmp_path / name)) == 1600

# --------------------------------------------------------------------------------------------------
# bad files: each function makes one at the path it is given

def half(path):
    """Cuts an existing file in half."""
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2])

def link_to_nowhere(path):
    path.symlink_to('nowhere')

def link_to_itself(path):
    path.symlink_to(path.name)

def text_file(path):
    path.write_text('no audio at all\n' * 99)

def json_file(path):
    path.write_text('{}')

def zero_bytes(path):
    path.write_bytes(bytes(5000))

def headers_only(path):
    soundfile.write(path, np.zeros(0, np.float32), RATE)

def cut(path, **kwargs):
    soundfile.write(path, speech_like(3, 1), RATE, **kwargs)
    half(path)

def cut_opus(path):
    cut(path, format='OGG', subtype='OPUS')

def without_last_page(path):
    soundfile.write(path, speech_like(3, 1), RATE)
    data = path.read_bytes()
    path.write_bytes(data[:data.rindex(b'OggS')])

def with_value(path, value, index=700):
    x = speech_like(.2, 1)
    x[index] = value
    soundfile.write(path, x, RATE, subtype='FLOAT')

def with_nan(path):
    with_value(path, np.nan)

def with_infinity(path):
    with_value(path, -np.inf)

def one_sample_short(path):
    soundfile.write(path, speech_like(.2, 1)[:639], RATE)

def eleven_seconds(path):
    soundfile.write(path, speech_like(11, 1), RATE)

def silence(path):
    soundfile.write(path, np.zeros(16000), RATE)

def constant(path):
    soundfile.write(path, np.full(16000, .25), RATE)

BAD = { # name: (kind, how to make it)
    'gone.wav': ('MISSING', lambda path: None),
    'link.wav': ('MISSING', link_to_nowhere),
    'loop.wav': ('MISSING', link_to_itself),
    'pipe.wav': ('MISSING', os.mkfifo),
    'folder.wav': ('MISSING', os.mkdir),
    'text.wav': ('NOT_AUDIO', text_file),
    'text.mp3': ('NOT_AUDIO', text_file),
    'json.raw': ('NOT_AUDIO', json_file),
    'zeros.flac': ('NOT_AUDIO', zero_bytes),
    'empty.wav': ('EMPTY', lambda path: path.touch()),
    'header.wav': ('EMPTY', headers_only),
    'half.wav': ('TRUNCATED', cut),
    'half.flac': ('TRUNCATED', cut),
    'half.ogg': ('TRUNCATED', cut),
    'page.ogg': ('TRUNCATED', without_last_page),
    'half.mp3': ('TRUNCATED', cut),
    'half.opus': ('TRUNCATED', cut_opus),
    'half.aiff': ('TRUNCATED', cut),
    'half.au': ('TRUNCATED', cut),
    'half.rf64': ('TRUNCATED', cut),
    'half.w64': ('TRUNCATED', cut),
    'half.nist': ('TRUNCATED', cut),
    'nan.wav': ('NONFINITE', with_nan),
    'inf.wav': ('NONFINITE', with_infinity),
    'short.wav': ('TOO_SHORT', one_sample_short),
    'long.wav': ('TOO_LONG', eleven_seconds),
    'silent.wav': ('SILENT', silence),
    'dc.wav': ('SILENT', constant),
}

@pytest.mark.parametrize('name', BAD)
def test_a_bad_file_is_recorded_with_its_class(tmp_path, name, capfd):
    kind, make = BAD[name]
    path = tmp_path / name
    make(path)
    result = decode({'path': str(path), 'start': None, 'end': None}, 640, 10)
    assert isinstance(result, BadAudio) and result.kind == kind, f"{name}: {result}"
    assert str(result).startswith(f'{path}: {kind}: ')
    assert '\n' not in str(result)

def test_a_wav_from_a_pipe_which_does_not_know_its_length_is_read_whole(tmp_path):
    path = tmp_path / 'a.wav'
    soundfile.write(path, speech_like(1, 1), RATE)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = struct.pack('<I', 0xffffffff)
    path.write_bytes(data)
    assert len(load_audio(path)) == RATE

def test_what_is_left_behind_whole_samples_does_not_matter(tmp_path):
    wave = np.round(speech_like(1, 0) * 32767) / 32768
    soundfile.write(tmp_path / 'a.wav', wave, RATE, subtype='PCM_16')
    data = (tmp_path / 'a.wav').read_bytes()
    for ending in (b'\r\n' * 5, bytes(range(16)), b'LIST' + (400).to_bytes(4, 'little') + b'INFOINAM'):
        (tmp_path / 'b.wav').write_bytes(data + ending)
        assert np.abs(load_audio(tmp_path / 'b.wav') - wave).max() < 1e-4, ending
    (tmp_path / 'b.wav').write_bytes(data + bytes(range(1, 256)) * 8)
    with pytest.raises(BadAudio, match='belong to nothing'):
        load_audio(tmp_path / 'b.wav')
