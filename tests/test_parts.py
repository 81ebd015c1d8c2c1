"""speech/parts.py: files that libsndfile alone reads in part, made with soundfile and a few changed bytes."""
import io
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile
from small import speech_like

from speech.audio import RATE, BadAudio, load_audio, seconds_and_rate

FIRST = speech_like(2, 1)
SECOND = speech_like(1.3, 2)
STEREO = np.stack([speech_like(1, 3, 44100), speech_like(1, 4, 44100)], 1)
KINDS = {name: dict(zip(('format', 'subtype'), name.split())) for name in (
    'WAV', 'RF64', 'W64', 'AIFF', 'AU', 'CAF', 'NIST', 'SVX', 'FLAC', 'OGG', 'OGG OPUS', 'MP3',
    'WAV ULAW')}

def encoded(wave, kind='WAV', rate=RATE, **kwargs):
    """The bytes of a file."""
    data = io.BytesIO()
    soundfile.write(data, wave, rate, **KINDS[kind], **kwargs)
    return data.getvalue()

def read(folder, data, *span):
    """What load_audio reads of these bytes."""
    path = folder / 'audio'
    path.write_bytes(data)
    return load_audio(path, *span)

def refusal(folder, data):
    with pytest.raises(BadAudio) as e:
        read(folder, data)
    return str(e.value).partition('audio: ')[2]

def at(data, mark, offset, value):
    """The bytes with `value` written over those `offset` behind `mark`."""
    start = data.index(mark) + offset
    return data[:start] + value + data[start + len(value):]

# --------------------------------------------------------------------------------------------------
# joined

@pytest.mark.parametrize('kind', KINDS)
def test_files_that_are_joined_are_read_one_after_the_other(tmp_path, kind):
    files = [encoded(wave, kind) for wave in (FIRST, SECOND, FIRST)]
    waves = [read(tmp_path, data) for data in files]
    expected = np.concatenate(waves)
    assert len(expected) == 2 * len(FIRST) + len(SECOND)
    assert np.array_equal(read(tmp_path, b''.join(files)), expected)
    assert seconds_and_rate(tmp_path / 'audio') == (pytest.approx(5.3), RATE)
    assert np.abs(read(tmp_path, b''.join(files), 1.5, 4) - expected[24000:64000]).max() < 2e-3

@pytest.mark.parametrize('kind', ['FLAC', 'OGG', 'OGG OPUS', 'MP3', 'WAV'])
def test_joined_files_of_other_rates_and_channels_are_each_resampled(tmp_path, kind):
    rate = 48000 if 'OPUS' in kind else 44100
    files = [encoded(FIRST, kind), encoded(STEREO, kind, rate), encoded(SECOND, kind)]
    expected = np.concatenate([read(tmp_path, data) for data in files])
    assert np.array_equal(read(tmp_path, b''.join(files)), expected)

def test_joined_files_of_several_formats_are_read_too(tmp_path):
    files = [encoded(FIRST, 'MP3'), encoded(SECOND, 'FLAC'), encoded(FIRST, 'OGG')]
    assert len(read(tmp_path, b''.join(files))) == 2 * len(FIRST) + len(SECOND)

def test_links_of_an_ogg_chain_may_have_the_same_serial_number(tmp_path):
    data = encoded(FIRST, 'OGG')
    assert np.array_equal(read(tmp_path, 3 * data), np.tile(read(tmp_path, data), 3))

ID3V2 = b'ID3\4\0\0\0\0\1\x10' + bytes(144) # a size of 7 bits a byte
ID3V1 = b'TAG' + bytes(125)
APE = b'APETAGEX' + struct.pack('<IIII8x', 2000, 40, 1, 0xa0000000) + bytes(8)
APE += b'APETAGEX' + struct.pack('<IIII8x', 2000, 40, 1, 0x80000000)

@pytest.mark.parametrize('kind', ['MP3', 'FLAC', 'WAV'])
def test_tags_may_stand_before_between_and_behind(tmp_path, kind):
    data = encoded(FIRST, kind)
    wave = read(tmp_path, data)
    for tags in (ID3V2, ID3V1, bytes(4096), ID3V2 + ID3V2, APE + ID3V1):
        assert np.array_equal(read(tmp_path, data + tags), wave)
    assert np.array_equal(read(tmp_path, ID3V2 + data + APE + ID3V1 + ID3V2 + data), np.tile(wave, 2))

# --------------------------------------------------------------------------------------------------
# MP3 without a Xing header

def without_xing(data):
    """-> (the frames alone, the number of frames that the header stated)"""
    start = max(data.find(b'Info'), data.find(b'Xing'))
    n_frames = struct.unpack_from('>I', data, start + 8)[0]
    return data[data.index(data[:2], start):], n_frames

@pytest.mark.parametrize('mode', ['CONSTANT', 'VARIABLE'])
@pytest.mark.parametrize('order', [1, -1])
def test_an_mp3_without_a_xing_header_is_read_to_its_end(tmp_path, mode, order):
    wave = np.append(np.zeros(3 * RATE), FIRST)[::order] # the bit rate differs much between the halves
    data = encoded(wave, 'MP3', bitrate_mode=mode, compression_level=.3)
    reference = read(tmp_path, data)
    frames, n_frames = without_xing(data)
    plain = read(tmp_path, frames)
    assert len(reference) == len(wave)
    assert len(plain) == 576 * n_frames
    delay = 576 + 529 # of encoder and decoder, which the Xing header lets a decoder leave out
    assert np.abs(plain[delay:delay + len(wave)] - reference).max() < 1e-5
    assert np.abs(read(tmp_path, frames, 2, 4) - plain[32000:64000]).max() < 1e-5
    assert len(read(tmp_path, frames + ID3V1 + frames)) == 2 * len(plain)
    assert 'TRUNCATED' in refusal(tmp_path, frames[:-20])

def test_frames_behind_those_that_a_xing_header_states_are_read(tmp_path):
    data = encoded(FIRST, 'MP3')
    frames, n_frames = without_xing(data)
    assert len(read(tmp_path, data + frames)) == 576 * 2 * n_frames

def test_a_change_from_mono_to_stereo_is_followed(tmp_path):
    mono, n_mono = without_xing(encoded(FIRST, 'MP3'))
    stereo, n_stereo = without_xing(encoded(np.stack([SECOND, SECOND], 1), 'MP3'))
    assert len(read(tmp_path, mono + stereo + mono)) == 576 * (2 * n_mono + n_stereo)

# --------------------------------------------------------------------------------------------------
# lengths that a writer to a pipe cannot know

def flac_of_unknown_length(data, md5=True):
    data = data[:21] + bytes([data[21] & 0xf0]) + bytes(4) + data[26:]
    return data if md5 else data[:26] + bytes(16) + data[42:]

def unknown_lengths():
    """Yields (name, kind, bytes)."""
    for size in (0, 0x7ffff000, 0x80000000, 0xffffffff, 0xffffffff - 36):
        field = struct.pack('<I', size)
        yield f'WAV {size:x}', 'WAV', at(at(encoded(FIRST), b'RIFF', 4, field), b'data', 4, field)
    rf64 = encoded(FIRST, 'RF64')
    yield 'RF64 0', 'RF64', at(rf64, b'ds64', 8, bytes(24))
    w64 = encoded(FIRST, 'W64')
    for size in (0, -1, (1 << 63) - 1):
        yield f'W64 {size}', 'W64', at(w64, b'data', 16, struct.pack('<q', size))
    aiff = encoded(FIRST, 'AIFF')
    for size in (0, 0x7f000008):
        yield f'AIFF {size}', 'AIFF', at(aiff, b'SSND', 4, struct.pack('>I', size))
    for size in (0, 0xffffffff):
        yield f'AU {size}', 'AU', at(encoded(FIRST, 'AU'), b'.snd', 8, struct.pack('>I', size))
    yield 'CAF -1', 'CAF', at(encoded(FIRST, 'CAF'), b'data', 4, b'\xff' * 8)
    for md5 in (False, True):
        yield f'FLAC {md5}', 'FLAC', flac_of_unknown_length(encoded(FIRST, 'FLAC'), md5)

UNKNOWN = {name: (kind, data) for name, kind, data in unknown_lengths()}

@pytest.mark.parametrize('name', UNKNOWN)
def test_a_file_from_a_pipe_is_read_to_its_end(tmp_path, name):
    kind, data = UNKNOWN[name]
    wave = read(tmp_path, encoded(FIRST, kind))
    assert np.array_equal(read(tmp_path, data), wave)
    assert np.array_equal(read(tmp_path, data + data), np.tile(wave, 2))
    assert np.array_equal(read(tmp_path, data, .5, 1), wave[8000:16000])

def test_flac_in_ogg_is_read_which_libsndfile_refuses(tmp_path):
    """Its packets are those of a native file; pages of one packet each, with a CRC by the polynomial of RFC 3533."""
    native = encoded(FIRST[:12000], 'FLAC')
    start = 4
    blocks = []
    last = False
    while not last:
        last = native[start] & 0x80
        size = 4 + int.from_bytes(native[start + 1:start + 4], 'big')
        blocks.append(native[start:start + size])
        start += size
    packets = [b'\x7fFLAC\1\0' + struct.pack('>H', len(blocks) - 1) + b'fLaC' + blocks[0], *blocks[1:], native[start:]]
    pages = []
    for i, packet in enumerate(packets):
        flags = 2 if i == 0 else 4 if i == len(packets) - 1 else 0
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        head = b'OggS\0' + struct.pack('<BqII', flags, 0, 7, i)
        page = head + bytes(4) + bytes([len(lacing)]) + lacing + packet
        crc = 0
        for byte in page:
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1 ^ (0x04c11db7 if crc >> 31 else 0)) & 0xffffffff
        pages.append(at(page, b'OggS', 22, struct.pack('<I', crc)))
    assert np.array_equal(read(tmp_path, b''.join(pages)), read(tmp_path, native))

# --------------------------------------------------------------------------------------------------
# cut, damaged, or other than declared

@pytest.mark.parametrize('kind', KINDS)
def test_a_cut_file_is_truncated_wherever_it_is_cut(tmp_path, kind):
    data = encoded(FIRST, kind)
    for cut in (len(data) // 3, len(data) // 2, len(data) * 9 // 10 + 1, len(data) - 1):
        if kind == 'CAF' and cut < 5000: # within its header
            continue
        assert refusal(tmp_path, data[:cut]).startswith('TRUNCATED')
        assert refusal(tmp_path, data + data[:cut]).startswith('TRUNCATED')

@pytest.mark.parametrize('name', [name for name in UNKNOWN if UNKNOWN[name][0] == 'FLAC'])
def test_a_cut_flac_file_of_unknown_length_is_truncated(tmp_path, name):
    data = UNKNOWN[name][1]
    assert refusal(tmp_path, data[:len(data) * 2 // 3]).startswith('TRUNCATED')
    assert refusal(tmp_path, data[:-1]).startswith('TRUNCATED')

@pytest.mark.parametrize('format', ['VOC', 'AVR', 'MAT4', 'MAT5', 'MPC2K', 'WVE'])
def test_cut_files_of_rarer_formats_are_truncated(tmp_path, format):
    data = io.BytesIO()
    soundfile.write(data, FIRST, RATE, format=format)
    data = data.getvalue()
    assert len(read(tmp_path, data)) in (32000, 64000) # WVE is always of 8 kHz
    assert refusal(tmp_path, data[:len(data) // 2]).startswith('TRUNCATED')

@pytest.mark.parametrize('kind', ['WAV', 'RF64', 'W64', 'AIFF', 'AU', 'CAF', 'NIST'])
def test_more_samples_than_the_header_declares_are_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(128, 256, 4000, np.uint8).tobytes()
    assert refusal(tmp_path, encoded(FIRST, kind) + noise).startswith('TRUNCATED: 4000 bytes')

def test_a_flac_header_that_states_too_few_samples_does_not_hide_the_others(tmp_path):
    data = encoded(FIRST, 'FLAC')
    fewer = data[:22] + struct.pack('>I', 20000) + data[26:]
    assert np.array_equal(read(tmp_path, fewer), read(tmp_path, data))

def flac_frames(data):
    """Where the frames of 4,096 samples begin, whose headers start alike."""
    first = data.index(b'\xff\xf8')
    starts = []
    while first >= 0:
        if data[first + 2] >> 4 == data[data.index(b'\xff\xf8') + 2] >> 4 and data[first + 4] == len(starts):
            starts.append(first)
        first = data.find(b'\xff\xf8', first + 2)
    return starts

def test_flac_frames_that_are_missing_are_not_read_as_silence(tmp_path):
    data = encoded(FIRST, 'FLAC')
    starts = flac_frames(data)
    assert len(starts) >= 6
    hole = data[:starts[2]] + data[starts[4]:]
    assert refusal(tmp_path, hole).startswith('TRUNCATED')
    assert refusal(tmp_path, flac_of_unknown_length(hole)).startswith('TRUNCATED: frames are missing')

@pytest.mark.parametrize('kind', ['OGG', 'OGG OPUS'])
def test_a_damaged_or_missing_page_is_not_left_out_silently(tmp_path, kind):
    data = encoded(speech_like(9, 1), kind)
    starts = [i for i in range(len(data)) if data.startswith(b'OggS', i)]
    damaged = bytearray(data)
    damaged[starts[-2] + 300] ^= 1
    assert refusal(tmp_path, bytes(damaged)).startswith('TRUNCATED: its page at byte')
    for i in range(3, len(starts) - 1):
        assert refusal(tmp_path, data[:starts[i]] + data[starts[i + 1]:]).startswith('TRUNCATED: pages are missing')

def test_two_streams_at_once_are_refused_by_name(tmp_path):
    first = encoded(FIRST, 'OGG')
    second = encoded(SECOND, 'OGG')
    cut_first = first.index(b'OggS', 1)
    cut_second = second.index(b'OggS', 1)
    both = first[:cut_first] + second[:cut_second] + first[cut_first:] + second[cut_second:]
    assert refusal(tmp_path, both).startswith('NOT_AUDIO: 2 streams of audio at once; take one out: ffmpeg')

def test_sphere_that_is_compressed_by_shorten_is_refused_by_name(tmp_path):
    data = encoded(FIRST, 'NIST').replace(b's3 pcm\n', b's26 pcm,embedded-shorten-v2.00\n')
    assert 'NOT_AUDIO: SPHERE of coding pcm,embedded-shorten-v2.00' in refusal(tmp_path, data)
    assert 'sph2pipe' in refusal(tmp_path, data)

def test_chunks_of_any_name_and_size_may_stand_around_the_samples(tmp_path):
    data = encoded(FIRST[:999], subtype='PCM_U8') # an odd number of bytes, then one of padding
    data = data[:36 + 8 + 999]
    wave = read(tmp_path, data)
    assert len(wave) == 999
    chunk = b'LIST' + struct.pack('<I', 5) + b'INFOx'
    for tail in (b'\0' + chunk + b'\0', chunk, b'\0' + chunk + b'\0id3 ' + struct.pack('<I', 4) + b'abcd', b'\0\n'):
        assert np.array_equal(read(tmp_path, data[:12] + chunk + b'\0' + data[12:] + tail), wave)
    assert np.array_equal(read(tmp_path, data + chunk + data), np.tile(wave, 2))

def test_bytes_in_parquet_are_read_as_files_are(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    joined = encoded(FIRST, 'FLAC') + encoded(SECOND, 'FLAC')
    plain, _ = without_xing(encoded(FIRST, 'MP3'))
    rows = [{'bytes': data, 'path': None} for data in (joined, plain, plain[:-9], flac_of_unknown_length(joined))]
    parquet.write_table(pyarrow.table({'audio': rows}), tmp_path / 'a.parquet')
    for i, data in enumerate((joined, plain)):
        assert np.array_equal(load_audio(f'{tmp_path}/a.parquet#{i}'), read(tmp_path, data))
    with pytest.raises(BadAudio, match='TRUNCATED'):
        load_audio(f'{tmp_path}/a.parquet#2')
    assert np.array_equal(load_audio(f'{tmp_path}/a.parquet#3'), read(tmp_path, joined))

# --------------------------------------------------------------------------------------------------
# real encoders

@pytest.mark.skipif(not shutil.which('ffmpeg'), reason="ffmpeg is not installed")
@pytest.mark.parametrize('options', [
    '-f wav', '-f flac', '-f w64', '-f caf', '-f au', '-f mp3', '-f mp3 -q:a 4', '-f mp2', '-f ogg -c:a flac',
    '-f ogg -c:a libvorbis', '-f ogg -c:a libopus'])
def test_what_ffmpeg_writes_to_a_pipe_is_read_as_ffmpeg_reads_it(tmp_path, options):
    def ffmpeg(*arguments, data):
        command = ['ffmpeg', '-v', 'error', '-i', '-', *arguments, '-']
        process = subprocess.run(command, input=data, capture_output=True)
        return process.stdout if not process.returncode else pytest.skip(process.stderr.decode().splitlines()[-1])

    wave = np.append(np.zeros(RATE), FIRST)
    data = ffmpeg(*options.split(), data=encoded(wave))
    y = read(tmp_path, data)
    assert len(y) >= len(wave)
    assert np.array_equal(read(tmp_path, data + data)[:len(y) - 2000], y[:-2000])
    assert len(read(tmp_path, data + data)) == 2 * len(y)
    if options != '-f w64': # which ffmpeg cannot read from a pipe
        expected = np.frombuffer(ffmpeg('-f', 's16le', '-ar', '16000', '-ac', '1', data=data), '<i2') / 32768
        assert len(y) == len(expected)
        assert 'opus' in options or np.abs(y - expected).max() < 1e-3 # ffmpeg's own decoder of Opus differs
