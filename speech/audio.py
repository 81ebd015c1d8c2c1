"""
Any audio file -> float32 mono at 16 kHz, or the reason why not.

    wave = load_audio('a.mp3')                        start=, end= in seconds cut a segment out
    wave = load_audio('b.parquet#7')                  the 'audio' of row 7 (bytes, or a path beside the file); pyarrow
    for block in stream_audio('a.mp3'): ...           the same samples, of which a minute is held at a time
    y = resample(x, 44100)                            (n,) at 44.1 kHz -> (ceil(n * 16000 / 44100),) at 16 kHz

A file that cannot be used raises BadAudio, whose `kind` is one of a few words that can be counted. Files shorter than
their own header says are found out even where libsndfile keeps quiet (WAV, Ogg, MP3).
"""
import io
import itertools
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

def _resampled(blocks, rate, to):
    """Blocks of a wave at `rate` -> its blocks at `to`: each sample is 2w input samples times its taps."""
    orig, new = rate // math.gcd(rate, to), to // math.gcd(rate, to)
    if orig == new:
        yield from blocks
        return
    first, h, w = _filters(orig, new)
    held, n, done = np.zeros(w - 1, np.float32), 0, 0
    for x in itertools.chain(blocks, [None]):
        if x is None: # the end: zeros behind it, for the samples that are still to come
            x = np.zeros(max(0, (-(-n * new // orig) // new + 1 - done) * orig + 2 * w + orig - len(held)), np.float32)
        else:
            n += len(x)
        held = np.concatenate([held, x])
        groups = max(0, (len(held) - first[-1] - 2 * w) // orig + 1) # of `new` samples, for which all input is there
        y = np.empty((groups, new), np.float32)
        for j in range(new if groups else 0): # einsum: no copy of overlapping rows, and the same sum on any number of cores
            rows = np.lib.stride_tricks.as_strided(held[first[j]:], (groups, 2 * w), (orig * x.itemsize, x.itemsize))
            y[:, j] = np.einsum('bk,k->b', rows, h[j])
        yield y.reshape(-1)[:-(-n * new // orig) - done * new]
        held, done = held[groups * orig:], done + groups

def resample(x, rate, to=RATE):
    """float32 (n,) at `rate` -> (ceil(n * to / rate),) at `to`."""
    return x if rate == to else np.concatenate(list(_resampled([x], rate, to)))

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

def _read_mono(f, raw, path, start, end, max_seconds):
    """Blocks of float32 mono at the file's own rate; all checks of what came are made behind the last. raw(): its bytes."""
    first = round((start or 0) * f.samplerate)
    last = f.frames if end is None else round(end * f.samplerate)
    if last - first > max_seconds * f.samplerate:
        raise BadAudio('TOO_LONG', path, f"{(last - first) / f.samplerate:.0f} s, max_seconds is {max_seconds:g}")
    with raw() as bytes_:
        if why := _declared_more(bytes_):
            raise BadAudio('TRUNCATED', path, why)
    if first:
        f.seek(min(first, f.frames))
    wanted, got, bad = last - first, 0, 0
    while got < wanted and len(block := f.read(min(1 << 20, wanted - got), 'float32', always_2d=True)):
        x = block.mean(1) if block.shape[1] > 1 else block[:, 0]
        got, bad = got + len(x), bad + np.count_nonzero(~np.isfinite(x))
        yield x
    if wanted - got > max(wanted // 100, 2304): # an mp3's own count may be two packets off
        raise BadAudio('TRUNCATED', path, f"{got} of {wanted} samples")
    if not got:
        raise BadAudio('EMPTY', path, "no samples")
    if bad:
        raise BadAudio('NONFINITE', path, f"{bad} samples are NaN or infinite")

def stream_audio(path, start=None, end=None, max_seconds=math.inf, rate=RATE):
    """File (from start to end, in seconds) -> its float32 mono samples at `rate` in blocks of a minute or so.

    Raises BadAudio: at once for what cannot be opened, behind the last block for what is not whole.
    """
    path = os.fspath(path)
    if '\0' in path:
        raise BadAudio('MISSING', path, "no file has such a name")
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
    raw = lambda: open(path, 'rb')
    if row:
        data = _in_parquet(path, file, int(row[2]))
        if isinstance(data, str) and ('\0' in data or re.search(r'\.parquet#[0-9]+$', data)):
            raise BadAudio('MISSING', path, f"the row names {data[:80]!r}, expected a file of audio")
        if isinstance(data, str):
            yield from stream_audio(os.path.join(os.path.dirname(file), data), start, end, max_seconds, rate)
            return
        raw = lambda: io.BytesIO(data)
    try:
        f = soundfile.SoundFile(raw() if row else path)
    except (soundfile.LibsndfileError, TypeError): # TypeError: soundfile wants more settings for a .raw
        raise BadAudio('NOT_AUDIO', path, "not a file that libsndfile can open") from None
    with f:
        if not 1000 <= f.samplerate <= 384000:
            raise BadAudio('NOT_AUDIO', path, f"a sample rate of {f.samplerate} Hz")
        if f.frames > 1 << 60: # FLAC written to a pipe: libsndfile cannot read to its end
            raise BadAudio('TRUNCATED', path, "its header states no length; encode it again")
        try:
            yield from _resampled(_read_mono(f, raw, path, start, end, max_seconds), f.samplerate, rate)
        except soundfile.LibsndfileError as e:
            raise BadAudio('TRUNCATED', path, e.error_string) from None

def load_audio(path, start=None, end=None, max_seconds=math.inf, rate=RATE):
    """File (from start to end, in seconds) -> float32 (N,), mono, at `rate`. Raises BadAudio."""
    return np.concatenate(list(stream_audio(path, start, end, max_seconds, rate)))
