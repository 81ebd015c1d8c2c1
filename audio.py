"""
Any audio file -> float32 mono at 16 kHz, or the reason why not.

    wave = load_audio('a.mp3')                        start=, end= in seconds cut a segment out
    wave = load_audio('b.parquet#7')                  the 'audio' of row 7 (bytes, or a path beside the file); pyarrow
    y = resample(x, 44100)                            (n,) at 44.1 kHz -> (ceil(n * 16000 / 44100),) at 16 kHz

A file that cannot be used raises BadAudio, whose `kind` is one of a few words that can be counted. Files shorter than
their own header says are found out even where libsndfile keeps quiet (WAV, Ogg, MP3).
"""
import io
import math
import os
import re
import stat
import struct
from functools import lru_cache
from threading import Lock

import numpy as np
import soundfile

from configurator import Refused

RATE = 16000 # Hz, of every wave and word time in this project

class BadAudio(Refused):
    """A file that cannot be used. kind: MISSING (no readable regular file), NOT_AUDIO, EMPTY (no sample), TRUNCATED (or
    damaged), NONFINITE, TOO_LONG, TOO_SHORT (not one frame), SILENT (every sample equal)."""
    def __init__(self, kind, path, why):
        super().__init__(f"{path}: {kind}: {why}")
        self.kind, self.why = kind, why

@lru_cache(maxsize=16)
def _filters(orig, new, zeros=64, rolloff=0.945, beta=9.0):
    """Per output phase: its first input sample, its 2w taps of a sinc in a Kaiser window (-90 dB), 1 at DC; and w.

    Flat up to 0.9 of the lower of the two Nyquist frequencies, stopped from there on.
    """
    low = min(1, new / orig) * rolloff # cut-off / input Nyquist
    w = math.ceil(zeros / low)
    first, phase = np.divmod(np.arange(new) * orig, new)
    h = np.empty((new, 2 * w), np.float32)
    for j in range(new):
        t = np.arange(1 - w, w + 1) - phase[j] / new # input samples from the output's place
        taps = np.sinc(t * low) * np.i0(beta * np.sqrt(1 - np.minimum(1, (t / w) ** 2)))
        h[j] = taps / taps.sum()
    return first, h, w

def resample(x, rate, to=RATE):
    """float32 (n,) at `rate` -> (ceil(n * to / rate),) at `to`: each sample is 2w input samples times its taps."""
    orig, new = rate // math.gcd(rate, to), to // math.gcd(rate, to)
    if orig == new:
        return x
    first, h, w = _filters(orig, new)
    n = -(-len(x) * new // orig)
    blocks = -(-n // new)
    x = np.pad(x, (w - 1, blocks * orig + w + 1 - len(x) + orig))
    y = np.empty((blocks, new), np.float32)
    for j in range(min(new, n)): # einsum: no copy of the overlapping rows, and the same sum on any number of cores
        rows = np.lib.stride_tricks.as_strided(x[first[j]:], (blocks, 2 * w), (orig * x.itemsize, x.itemsize))
        y[:, j] = np.einsum('bk,k->b', rows, h[j])
    return y.reshape(-1)[:n]

def _declared_more(f):
    """Why the file is shorter than its own header says, or None; for the two formats where libsndfile keeps quiet."""
    size = f.seek(0, os.SEEK_END)
    f.seek(0)
    head = f.read(12)
    if head[:4] == b'RIFF' and head[8:] == b'WAVE':
        while len(chunk := f.read(8)) == 8:
            name, length = struct.unpack('<4sI', chunk)
            if name == b'data': # 2 GiB and more is what writers to a pipe put, who cannot know
                lacks = f.tell() + length - size
                return f"data chunk of {length} bytes lacks {lacks}" if lacks > 0 and length < 0x7fff0000 else None
            f.seek(length + length % 2, os.SEEK_CUR)
    if head[:4] == b'OggS':
        f.seek(max(0, size - 65307)) # the largest page
        last = (tail := f.read()).rfind(b'OggS')
        page = tail[last:]
        whole = last >= 0 and len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27:27 + page[26]])
        return None if whole and page[5] & 4 else "the last page of the stream is not there"
    return None

def open_parquet(path):
    """pyarrow's ParquetFile. Only who has parquet needs pyarrow."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise Refused(f"{path}: parquet is read by pyarrow, which is not here: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as e: # ArrowInvalid is a ValueError
        raise Refused(f"{path}: not a whole parquet file ({str(e).splitlines()[0]})") from None

@lru_cache(maxsize=8)
def _first_rows(file):
    """(groups + 1,) the first row of each row group, and how many rows there are."""
    metadata = open_parquet(file).metadata
    return np.cumsum([0, *(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))])

@lru_cache(maxsize=2) # whole row groups, as large as their writer made them; rows are asked for in order
def _audio_column(file, group):
    return open_parquet(file).read_row_group(group, columns=['audio']).column('audio')

_one_reads = Lock() # threads want the same row group at the same time

def _in_parquet(path, file, row):
    """The encoded audio of a row as bytes, or the path of the file that it names."""
    with _one_reads:
        first = _first_rows(file)
        if row >= first[-1]:
            raise BadAudio('MISSING', path, f"the file has {first[-1]} rows")
        group = int(np.searchsorted(first, row, side='right')) - 1
        try:
            audio = _audio_column(file, group)[int(row - first[group])].as_py()
        except (OSError, ValueError, KeyError) as e:
            raise BadAudio('TRUNCATED', path, f"no column 'audio' to be read ({e})") from None
    if isinstance(audio, dict): # as the hub stores it
        audio = audio.get('bytes') or audio.get('path')
    if not isinstance(audio, (bytes, str)) or not audio:
        raise BadAudio('EMPTY', path, "neither bytes nor a path in the row")
    return audio

def _read_mono(path, source, start, end, max_seconds):
    """float32 mono at the file's own rate, the rate, and how many samples should have come."""
    parts, got = [], 0
    with soundfile.SoundFile(source) as f:
        if not 1000 <= f.samplerate <= 384000:
            raise BadAudio('NOT_AUDIO', path, f"a sample rate of {f.samplerate} Hz")
        if f.frames > 1 << 60: # FLAC written to a pipe: libsndfile cannot read to its end
            raise BadAudio('TRUNCATED', path, "its header states no length; encode it again")
        first = round((start or 0) * f.samplerate)
        last = f.frames if end is None else round(end * f.samplerate)
        if last - first > max_seconds * f.samplerate:
            raise BadAudio('TOO_LONG', path, f"{(last - first) / f.samplerate:.0f} s, max_seconds is {max_seconds:g}")
        if first:
            f.seek(min(first, f.frames))
        while got < last - first and len(block := f.read(min(1 << 20, last - first - got), 'float32', always_2d=True)):
            parts.append(block.mean(1) if block.shape[1] > 1 else block[:, 0])
            got += len(block)
        return np.concatenate([np.zeros(0, np.float32), *parts]), f.samplerate, last - first

def load_audio(path, start=None, end=None, max_seconds=math.inf):
    """File (from start to end, in seconds) -> float32 (N,), mono, 16 kHz. Raises BadAudio."""
    path = os.fspath(path)
    row = re.fullmatch(r'(.+\.parquet)#([0-9]+)', path, re.DOTALL)
    file = row[1] if row else path
    try:
        regular = stat.S_ISREG(os.stat(file).st_mode)
    except OSError as e:
        raise BadAudio('MISSING', path, e.strerror) from None
    if not regular:
        raise BadAudio('MISSING', path, "not a regular file") # opening a pipe would wait forever
    if not os.access(file, os.R_OK):
        raise BadAudio('MISSING', path, "no permission to read it")
    if os.path.getsize(file) == 0:
        raise BadAudio('EMPTY', path, "0 bytes")
    source = lambda: path # a new one for each reader
    if row:
        data = _in_parquet(path, file, int(row[2]))
        if isinstance(data, str):
            return load_audio(os.path.join(os.path.dirname(file), data), start, end, max_seconds)
        source = lambda: io.BytesIO(data)
    try:
        soundfile.SoundFile(source()).close()
    except (soundfile.LibsndfileError, TypeError): # TypeError: soundfile wants more settings for a .raw
        raise BadAudio('NOT_AUDIO', path, "not a file that libsndfile can open") from None
    try:
        x, rate, wanted = _read_mono(path, source(), start, end, max_seconds)
    except soundfile.LibsndfileError as e:
        raise BadAudio('TRUNCATED', path, e.error_string) from None
    with io.BytesIO(data) if row else open(path, 'rb') as f:
        if why := _declared_more(f):
            raise BadAudio('TRUNCATED', path, why)
    if wanted - len(x) > max(wanted // 100, 2304): # an mp3's own count may be two packets off
        raise BadAudio('TRUNCATED', path, f"{len(x)} of {wanted} samples")
    if not len(x):
        raise BadAudio('EMPTY', path, "no samples")
    if not np.isfinite(x).all():
        raise BadAudio('NONFINITE', path, f"{np.count_nonzero(~np.isfinite(x))} samples are NaN or infinite")
    return resample(x, rate)
