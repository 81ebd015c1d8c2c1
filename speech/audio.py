"""
Any audio file -> float32 mono at 16 kHz, or the reason why it cannot be used.

    wave = load_audio('a.mp3')                   start=, end= (seconds) select a segment
    wave = load_audio('b.parquet#7')             the column 'audio' of row 7: a file's bytes, or the
                                                 path of a file beside the parquet; needs pyarrow
    wave = load_audio('c.tar#a/1.flac')          a member of a .tar that is not compressed
    for block in stream_audio('a.mp3'): ...      the same samples, about a minute of them at a time
    y = resample(x, 44100)                       (n,) at 44.1 kHz -> (ceil(n * 16000 / 44100),)

A file that cannot be used raises BadAudio, whose `kind` is one of a few words that can be counted.
What is read is every sample that the file holds, or nothing: joined streams one after the other,
files whose length the header does not tell to their end, and a file that is incomplete is TRUNCATED,
also in the formats where libsndfile reports no error (speech/parts.py).
"""
import itertools
import math
import mmap
import os
import re
import stat
import tarfile
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np
import soundfile

from configurator import Refused
from speech.audio_files import is_foreign, to_flac
from speech.parts import Damaged, joined, parts

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
# tar

def tar_members(path):
    """Yields (open tarfile.TarFile, regular member) of a .tar. Raises Refused."""
    try:
        with tarfile.open(path, 'r:') as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    yield tar, member
    except (OSError, tarfile.TarError) as e:
        raise Refused(f"{path}: cut, or not a .tar; a compressed one has to be unpacked ({e})") from None

@lru_cache(maxsize=4) # shards are read in order, by a few threads
def _places(file):
    """{member: (where its bytes begin, how many)}"""
    return {member.name: (member.offset_data, member.size) for _, member in tar_members(file)}

def _in_tar(path, file, name):
    """The bytes of a member."""
    if name not in _places(file):
        raise BadAudio('MISSING', path, "no such member")
    begin, size = _places(file)[name]
    with open(file, 'rb') as f:
        f.seek(begin)
        return f.read(size)

# --------------------------------------------------------------------------------------------------
# reading

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

class Stream(NamedTuple):
    """A part of a file, as libsndfile opens it."""
    file: soundfile.SoundFile # as it was opened first; of several streams, closed since
    pieces: list | str # of the encoded bytes (speech/parts.py), or the path of the file
    skip: int # samples in front that are not the file's
    frames: int # samples (of each channel) behind these
    rate: int # Hz

    def open(self):
        return self.file if not self.file.closed else _sound_file(self.pieces)

def _sound_file(pieces):
    return soundfile.SoundFile(pieces if isinstance(pieces, str) else joined(pieces))

def _declared(f):
    """The samples that a file declares by libsndfile's log, for formats that speech/parts.py does not walk."""
    counts = re.findall(r'^ *(?:Frames|Rows *: *\d+ +Cols) *: *(\d+)', f.extra_info, re.MULTILINE)
    is_cut = re.search(r'truncated file|to be truncated|Data length \d+ should be', f.extra_info)
    return math.inf if is_cut else int(counts[-1]) if counts else 0

def _open(path, pieces, part=None):
    """A part, or a whole file of a format that has none, -> its Stream, open. Raises BadAudio."""
    try:
        f = _sound_file(pieces)
    except (soundfile.LibsndfileError, TypeError): # TypeError: a .raw file needs more arguments
        remedy = f"; {to_flac(path)} converts it" if is_foreign(path) else ""
        raise BadAudio('NOT_AUDIO', path, f"not a file that libsndfile can open{remedy}") from None
    if not 1000 <= f.samplerate <= 384000:
        raise BadAudio('NOT_AUDIO', path, f"a sample rate of {f.samplerate} Hz")
    if not part and f.format == 'MP3':
        raise BadAudio('NOT_AUDIO', path, "frames of MPEG that cannot be counted, as they have a free bit rate or "
                       "stand behind other bytes; encode it again")
    if not part and f.frames < _declared(f):
        raise BadAudio('TRUNCATED', path, f"{f.frames} samples are fewer than its header declares")
    skip = part.skip if part else 0
    frames = part.frames if part and part.frames is not None else f.frames
    if frames > f.frames - skip:
        raise BadAudio('TRUNCATED', path, f"{f.frames - skip} of {frames} samples can be read")
    return Stream(f, pieces, skip, frames, f.samplerate)

def file_of(path):
    """The file on disk that holds the audio of a path: a parquet file, a .tar, or the path itself."""
    match = re.fullmatch(r'(.+\.parquet)#[0-9]+|(.+?\.tar)#.+', path, re.DOTALL)
    return match[1] or match[2] if match else path

def _streams(path):
    """A file, row of a parquet file or member of a .tar -> its streams in order. Raises BadAudio."""
    if '\0' in path:
        raise BadAudio('MISSING', path, "no file has such a name")
    row = re.fullmatch(r'(.+\.parquet)#([0-9]+)', path, re.DOTALL)
    member = re.fullmatch(r'(.+?\.tar)#(.+)', path, re.DOTALL)
    inside = row or member
    file = inside[1] if inside else path
    _check_readable(file, path)
    data = None
    if row:
        data = _in_parquet(path, file, int(row[2]))
    elif member:
        data = _in_tar(path, file, member[2])
    if isinstance(data, str):
        if '\0' in data or re.search(r'\.parquet#[0-9]+$', data):
            raise BadAudio('MISSING', path, f"the row names {data[:80]!r}, expected a file of audio")
        return _streams(os.path.join(os.path.dirname(file), data))
    if data is None:
        with open(path, 'rb') as f:
            try:
                data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError): # some file systems cannot map files
                data = f.read()
    try:
        file_parts = parts(data)
    except Damaged as e:
        raise BadAudio(e.kind, path, str(e)) from None
    if file_parts is None:
        return [_open(path, [data] if inside else path)]
    streams = []
    for part in file_parts:
        streams.append(_open(path, path if part.is_file and not inside else part.pieces, part))
        if len(file_parts) > 1: # a chain may have thousands
            streams[-1].file.close()
    return [stream for stream in streams if stream.frames] or streams[:1]

def seconds_and_rate(path):
    """The length of a file in seconds, by its samples, and the rate (Hz) of its first one. Raises BadAudio."""
    streams = _streams(os.fspath(path))
    return sum(stream.frames / stream.rate for stream in streams), streams[0].rate

def _spans(streams, path, start, end, max_seconds):
    """[(stream, first, last)], the samples from start to end (seconds). Raises BadAudio where there are none."""
    spans = []
    seconds = 0.0 # up to the beginning of the stream
    for stream in streams:
        offset = round(seconds * stream.rate)
        first = max(0, round((start or 0) * stream.rate) - offset)
        last = stream.frames if end is None else min(stream.frames, round(end * stream.rate) - offset)
        if first < last:
            spans.append((stream, first, last))
        seconds += stream.frames / stream.rate
    rate = streams[-1].rate
    n_samples = sum(last - first for _, first, last in spans)
    n_behind = max(0, round(end * rate) - round(max(seconds, start or 0) * rate)) if end else 0
    n_seconds = sum((last - first) / stream.rate for stream, first, last in spans) + n_behind / rate
    if n_seconds > max_seconds:
        raise BadAudio('TOO_LONG', path, f"{n_seconds:.0f} s, max_seconds is {max_seconds:g}")
    # The times of a corpus are rounded, or come from an MP3 that was longer by two packets.
    if n_behind > max((n_samples + n_behind) // 100, 2304):
        raise BadAudio('TRUNCATED', path, f"{n_samples} of {n_samples + n_behind} samples")
    if not spans:
        raise BadAudio('EMPTY', path, "no samples")
    return spans

def _read_mono(spans, path):
    """Blocks of float32 mono. Raises BadAudio; what only the samples can show, after the last block of a stream."""
    for stream, first, last in spans:
        n_read = 0
        n_nonfinite = 0
        with stream.open() as f:
            if first:
                f.seek(stream.skip + first)
            elif stream.skip:
                f.read(stream.skip)
            while n_read < last - first:
                block = f.read(min(1 << 20, last - first - n_read), 'float32', always_2d=True)
                if not len(block):
                    raise BadAudio('TRUNCATED', path, f"{n_read} of {last - first} samples")
                x = block.mean(1) if block.shape[1] > 1 else block[:, 0]
                n_read += len(x)
                n_nonfinite += np.count_nonzero(~np.isfinite(x))
                yield x
        if n_nonfinite:
            raise BadAudio('NONFINITE', path, f"{n_nonfinite} samples are NaN or infinite")

def stream_audio(path, start=None, end=None, max_seconds=math.inf, rate=RATE):
    """File (from start to end, in seconds) -> blocks of float32 mono at `rate`, about a minute each.

    Raises BadAudio: at once where the file cannot be opened, after the last block where it is
    incomplete.
    """
    path = os.fspath(path)
    spans = _spans(_streams(path), path, start, end, max_seconds)
    try:
        for stream_rate, same_rate in itertools.groupby(spans, lambda span: span[0].rate):
            yield from _resampled(_read_mono(same_rate, path), stream_rate, rate)
    except soundfile.LibsndfileError as e:
        raise BadAudio('TRUNCATED', path, e.error_string) from None

def load_audio(path, start=None, end=None, max_seconds=math.inf, rate=RATE, first=0):
    """File (from start to end, in seconds) -> float32 (N,), mono, at `rate`. Raises BadAudio.

    first: how many seconds of that to keep, 0 for all; what follows them by a minute or two is not read.
    """
    n = round(first * rate) or None
    blocks = []
    for block in stream_audio(path, start, end, max_seconds, rate):
        blocks.append(block)
        if n and sum(map(len, blocks)) >= n:
            break
    return np.concatenate(blocks)[:n]
