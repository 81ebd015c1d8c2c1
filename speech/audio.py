"""
Any audio file -> float32 mono at 16 kHz, or the reason why it cannot be used.

    wave = load_audio('a.mp3')                   start=, end= (seconds) select a segment
    wave = load_audio('b.parquet#7')             the column 'audio' of row 7: a file's bytes, or the
                                                 path of a file beside the parquet; needs pyarrow
    for block in stream_audio('a.mp3'): ...      the same samples, about a minute of them at a time
    y = resample(x, 44100)                       (n,) at 44.1 kHz -> (ceil(n * 16000 / 44100),)

A file that cannot be used raises BadAudio, whose `kind` is one of a few words that can be counted.
A file that is shorter than its own header declares is TRUNCATED, also in the formats where
libsndfile reports no error (WAV, Ogg, MP3).
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
from speech.audio_files import is_foreign, to_flac

RATE = 16000 # Hz, of every wave and word time in this project

class BadAudio(Refused):
    """A file that cannot be used: `why` in words, and `kind`, which is one of

    MISSING     no regular file that can be read      NONFINITE   a sample is NaN or infinite
    NOT_AUDIO   not a format that libsndfile knows    TOO_LONG    longer than max_seconds
    EMPTY       no samples                            TOO_SHORT   less than one frame
    TRUNCATED   incomplete or damaged                 SILENT      all samples are equal
    """
    def __init__(self, kind, path, why):
        super().__init__(f"{path}: {kind}: {why}")
        self.kind = kind
        self.why = why

# --------------------------------------------------------------------------------------------------
# resampling

@lru_cache(maxsize=16)
def _filters(orig, new, zeros=64, rolloff=0.945, beta=9.0):
    """Polyphase filters that turn `orig` input samples into `new` output samples.

    -> first (new,): the input sample at which the filter of each output sample begins;
       filters (new, 2w): its taps, a sinc in a Kaiser window (-90 dB), normalized to 1 at 0 Hz; w.
    Flat up to 0.9 of the lower of the two Nyquist frequencies, stopped from that frequency on.
    """
    cutoff = min(1, new / orig) * rolloff # as a fraction of the input's Nyquist frequency
    w = math.ceil(zeros / cutoff)
    first, phase = np.divmod(np.arange(new) * orig, new)
    filters = np.empty((new, 2 * w), np.float32)
    for j in range(new):
        t = np.arange(1 - w, w + 1) - phase[j] / new # input samples from the output sample
        taps = np.sinc(t * cutoff) * np.i0(beta * np.sqrt(1 - np.minimum(1, (t / w) ** 2)))
        filters[j] = taps / taps.sum()
    return first, filters, w

def _resampled(blocks, rate, to):
    """Blocks of a wave at `rate` -> blocks of the same wave at `to`.

    Every `orig` input samples give a group of `new` output samples. Each output sample is the dot
    product of 2w input samples with the filter of its phase.
    """
    divisor = math.gcd(rate, to)
    orig = rate // divisor
    new = to // divisor
    if orig == new:
        yield from blocks
        return
    first, filters, w = _filters(orig, new)
    pending = np.zeros(w - 1, np.float32) # input that later outputs need; silence before the wave
    n_input = 0
    n_groups = 0 # finished ones
    for x in itertools.chain(blocks, [None]):
        if x is None: # the end of the wave: append the silence that the last outputs reach into
            remaining = -(-n_input * new // orig) // new + 1 - n_groups
            x = np.zeros(max(0, remaining * orig + 2 * w + orig - len(pending)), np.float32)
        else:
            n_input += len(x)
        pending = np.concatenate([pending, x])
        ready = max(0, (len(pending) - first[-1] - 2 * w) // orig + 1) # groups with all their input
        y = np.empty((ready, new), np.float32)
        for j in range(new if ready else 0):
            strides = (orig * x.itemsize, x.itemsize)
            rows = np.lib.stride_tricks.as_strided(pending[first[j]:], (ready, 2 * w), strides)
            # einsum does not copy overlapping rows; its sums are equal on any number of cores.
            y[:, j] = np.einsum('bk,k->b', rows, filters[j])
        yield y.reshape(-1)[:-(-n_input * new // orig) - n_groups * new]
        pending = pending[ready * orig:]
        n_groups += ready

def resample(x, rate, to=RATE):
    """float32 (n,) at `rate` -> (ceil(n * to / rate),) at `to`."""
    return x if rate == to else np.concatenate(list(_resampled([x], rate, to)))

# --------------------------------------------------------------------------------------------------
# files shorter than their headers declare

def _missing_data(f):
    """Why an open WAV or Ogg file is incomplete, or None; libsndfile raises no error for these."""
    size = f.seek(0, os.SEEK_END)
    f.seek(0)
    head = f.read(12)
    if head[:4] == b'RIFF' and head[8:] == b'WAVE':
        while len(chunk := f.read(8)) == 8:
            name, length = struct.unpack('<4sI', chunk)
            if name == b'data':
                n_missing = f.tell() + length - size
                # Programs that write to a pipe cannot know the length: they declare 2 GiB or more.
                if n_missing > 0 and length < 0x7fff0000:
                    return f"{n_missing} of the {length} bytes of its data chunk are missing"
                return None
            f.seek(length + length % 2, os.SEEK_CUR)
    if head[:4] == b'OggS':
        f.seek(max(0, size - 65307)) # the size of the largest page
        tail = f.read()
        page = tail[tail.rfind(b'OggS'):] # one byte if there is no page, as rfind is then -1
        complete = len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27:27 + page[26]])
        if not complete or not page[5] & 4: # the flag of the last page
            return "the last page of the stream is missing"
    return None

# --------------------------------------------------------------------------------------------------
# parquet

def open_parquet(path):
    """path -> pyarrow's ParquetFile. Raises Refused. Only users of parquet files need pyarrow."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise Refused(f"{path}: parquet is read by pyarrow, which is not installed: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as e: # pyarrow's ArrowInvalid is a ValueError
        raise Refused(f"{path}: not a whole parquet file ({str(e).splitlines()[0]})") from None

@lru_cache(maxsize=8)
def _group_starts(file):
    """(groups + 1,) the first row of each row group, then the number of rows."""
    metadata = open_parquet(file).metadata
    sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    return np.cumsum([0, *sizes])

# Row groups are as large as their writer made them. Rows are read in order, so two groups suffice.
@lru_cache(maxsize=2)
def _audio_column(file, group):
    return open_parquet(file).read_row_group(group, columns=['audio']).column('audio')

_parquet_lock = Lock() # of threads that ask for the same row group at once, only one reads it

def _in_parquet(path, file, row):
    """The encoded audio of a row as bytes, or the path of a file that the row names."""
    with _parquet_lock:
        starts = _group_starts(file)
        if row >= starts[-1]:
            raise BadAudio('MISSING', path, f"the file has {starts[-1]} rows")
        group = int(np.searchsorted(starts, row, side='right')) - 1
        try:
            audio = _audio_column(file, group)[int(row - starts[group])].as_py()
        except (OSError, ValueError, KeyError) as e:
            raise BadAudio('TRUNCATED', path, f"its column 'audio' cannot be read ({e})") from None
    if isinstance(audio, dict): # as the Hugging Face hub stores audio
        audio = audio.get('bytes') or audio.get('path')
    if not isinstance(audio, (bytes, str)) or not audio:
        raise BadAudio('EMPTY', path, "the row holds neither the bytes nor the path of a file")
    return audio

# --------------------------------------------------------------------------------------------------
# reading

def _read_mono(f, raw, path, start, end, max_seconds):
    """Blocks of float32 mono at the rate of the open file f; raw() opens the encoded bytes.

    Raises BadAudio. What only the samples can show is checked after the last block.
    """
    first = round((start or 0) * f.samplerate)
    last = f.frames if end is None else round(end * f.samplerate)
    n_samples = last - first
    if n_samples > max_seconds * f.samplerate:
        raise BadAudio('TOO_LONG', path, f"{n_samples / f.samplerate:.0f} s, max_seconds is {max_seconds:g}")
    with raw() as encoded:
        if why := _missing_data(encoded):
            raise BadAudio('TRUNCATED', path, why)
    if first:
        f.seek(min(first, f.frames))
    n_read = 0
    n_nonfinite = 0
    while n_read < n_samples:
        block = f.read(min(1 << 20, n_samples - n_read), 'float32', always_2d=True)
        if not len(block):
            break
        x = block.mean(1) if block.shape[1] > 1 else block[:, 0]
        n_read += len(x)
        n_nonfinite += np.count_nonzero(~np.isfinite(x))
        yield x
    # The length that an MP3 declares may be wrong by two packets.
    if n_samples - n_read > max(n_samples // 100, 2304):
        raise BadAudio('TRUNCATED', path, f"{n_read} of {n_samples} samples")
    if not n_read:
        raise BadAudio('EMPTY', path, "no samples")
    if n_nonfinite:
        raise BadAudio('NONFINITE', path, f"{n_nonfinite} samples are NaN or infinite")

def _check_readable(file, path):
    """Raises BadAudio where `file` cannot be read. Does not open it: opening a pipe would block."""
    try:
        regular = stat.S_ISREG(os.stat(file).st_mode)
    except OSError as e:
        raise BadAudio('MISSING', path, e.strerror) from None
    if not regular:
        raise BadAudio('MISSING', path, "not a regular file")
    if not os.access(file, os.R_OK):
        raise BadAudio('MISSING', path, "no permission to read it")
    if os.path.getsize(file) == 0:
        raise BadAudio('EMPTY', path, "0 bytes")

def stream_audio(path, start=None, end=None, max_seconds=math.inf, rate=RATE):
    """File (from start to end, in seconds) -> blocks of float32 mono at `rate`, about a minute each.

    Raises BadAudio: at once where the file cannot be opened, after the last block where it is
    incomplete.
    """
    path = os.fspath(path)
    if '\0' in path:
        raise BadAudio('MISSING', path, "no file has such a name")
    row = re.fullmatch(r'(.+\.parquet)#([0-9]+)', path, re.DOTALL)
    file = row[1] if row else path
    _check_readable(file, path)
    data = _in_parquet(path, file, int(row[2])) if row else None
    if isinstance(data, str):
        if '\0' in data or re.search(r'\.parquet#[0-9]+$', data):
            raise BadAudio('MISSING', path, f"the row names {data[:80]!r}, expected a file of audio")
        neighbor = os.path.join(os.path.dirname(file), data)
        yield from stream_audio(neighbor, start, end, max_seconds, rate)
        return

    def raw():
        return io.BytesIO(data) if row else open(path, 'rb')

    try:
        f = soundfile.SoundFile(raw() if row else path)
    except (soundfile.LibsndfileError, TypeError): # TypeError: a .raw file needs more arguments
        remedy = f"; {to_flac(path)} converts it" if is_foreign(path) else ""
        raise BadAudio('NOT_AUDIO', path, f"not a file that libsndfile can open{remedy}") from None
    with f:
        if not 1000 <= f.samplerate <= 384000:
            raise BadAudio('NOT_AUDIO', path, f"a sample rate of {f.samplerate} Hz")
        if f.frames > 1 << 60: # FLAC written to a pipe: libsndfile cannot read to its end
            raise BadAudio('TRUNCATED', path, "its header states no length; encode it again")
        blocks = _read_mono(f, raw, path, start, end, max_seconds)
        try:
            yield from _resampled(blocks, f.samplerate, rate)
        except soundfile.LibsndfileError as e:
            raise BadAudio('TRUNCATED', path, e.error_string) from None

def load_audio(path, start=None, end=None, max_seconds=math.inf, rate=RATE):
    """File (from start to end, in seconds) -> float32 (N,), mono, at `rate`. Raises BadAudio."""
    return np.concatenate(list(stream_audio(path, start, end, max_seconds, rate)))
