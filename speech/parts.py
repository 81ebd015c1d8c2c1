"""
What an audio file holds, whatever its headers say: the parts of its bytes, each of which libsndfile reads whole.

    for part in parts(data): soundfile.SoundFile(joined(part.pieces))      data: bytes or mmap

libsndfile reads the first of several streams that were joined end to end; guesses the length of an
MP3 without a Xing header from its first frame, and reads no further; has no end for a FLAC file
from a pipe; believes sizes that a writer to a pipe left at 0; and passes a file that is cut.
So the streams are walked here by their own marks, without decoding them:

    WAV, RF64, W64, AIFF, SVX, CAF    chunks; the size of the samples' chunk may be unknown
    AU, SPHERE                        a header that states the number of bytes or samples
    Ogg                               pages: a link of a chain ends where another begins (RFC 3533)
    FLAC                              frames: the numbers in their headers must be consecutive (RFC 9639)
    MP3, MP2                          frames: their headers give their lengths (ISO 11172-3, 13818-3)

What follows a part must be another part, tags (ID3, APE, Lyrics3) or zeros.
"""
import bisect
import io
import re
import struct
import zlib
from functools import lru_cache, partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np


class Damaged(ValueError):
    """Why a file cannot be read whole; `kind` as in speech/audio.py."""
    def __init__(self, why, kind='TRUNCATED'):
        super().__init__(why)
        self.kind = kind

class Part(NamedTuple):
    pieces: list # bytes-like objects: a stream that libsndfile opens
    skip: int = 0 # samples at its beginning that are not the file's
    frames: int | None = None # samples (of each channel) behind these; None: as many as libsndfile finds
    is_file: bool = False # whether the file as it is does as well

class _Joined(io.RawIOBase):
    def __init__(self, pieces):
        self.pieces = pieces
        self.ends = list(accumulate(map(len, pieces)))
        self.position = 0

    def seekable(self):
        return True

    def readable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self.position = offset + (0, self.position, self.ends[-1])[whence]
        return self.position

    def tell(self):
        return self.position

    def readinto(self, buffer):
        i = bisect.bisect_right(self.ends, self.position)
        if i == len(self.ends):
            return 0
        piece = self.pieces[i]
        start = self.position - self.ends[i] + len(piece)
        block = piece[start:start + len(buffer)]
        buffer[:len(block)] = block
        self.position += len(block)
        return len(block)

def joined(pieces):
    """Bytes-like objects one after the other -> a file to read, without a copy of them."""
    return io.BufferedReader(_Joined(pieces), 1 << 16)

def _view(data, start, end):
    return memoryview(data)[start:end]

# --------------------------------------------------------------------------------------------------
# chunks, and headers with a size

UNKNOWN_32 = 0x7f000000 # writers to a pipe declare a round number from here on: 0x7f000008, 0x7ffff000, 0xffffffff

def _samples_end(data, start, declared, n_bits, header, is_end):
    """Where the samples from `start` on end, and whether their header does not tell it.

    declared: bytes, as the header says; header: a pattern that finds the next part behind samples
    of unknown length; is_end(position): whether there the samples may end.
    """
    available = len(data) - start
    if n_bits == 64:
        unknown = declared < 0 or declared >= 1 << 62
    else:
        unknown = declared >= UNKNOWN_32 and (declared + 64) % 4096 < 128
    if unknown and declared != available or declared == 0 and not is_end(start):
        following = header.search(data, start)
        return (following.start() if following else len(data)), True
    if declared > available:
        raise Damaged(f"{declared - available} of its {declared} bytes of samples are missing")
    return start + declared, False

class Layout(NamedTuple):
    """A format of chunks: a header of so many bytes, then chunks of name, size and content."""
    pattern: re.Pattern # of its header
    header: int # bytes before the first chunk
    chunk: str # struct format of name and size
    included: int # bytes of name and size that are counted in the size
    align: int # chunks begin at multiples of this
    samples: tuple # names of the chunk that holds the samples

def _pattern(regex):
    return re.compile(regex, re.DOTALL)

GUID = b'\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a' # the end of every name in W64
RIFF_GUID = b'riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0'
LAYOUTS = (
    Layout(_pattern(rb'(RIFF|RF64|BW64).{4}WAVE'), 12, '<4sI', 0, 2, (b'data',)),
    Layout(_pattern(rb'RIFX.{4}WAVE'), 12, '>4sI', 0, 2, (b'data',)),
    Layout(_pattern(rb'FORM.{4}(AIFF|AIFC|8SVX|16SV)'), 12, '>4sI', 0, 2, (b'SSND', b'BODY')),
    Layout(_pattern(re.escape(RIFF_GUID) + b'.{8}wave' + re.escape(GUID)), 40, '<16sq', 24, 8, (b'data' + GUID,)),
    Layout(_pattern(rb'caff\0\x01..desc'), 8, '>4sq', 0, 1, (b'data',)))

def _chunks(data, at, layout):
    size_of = struct.Struct(layout.chunk)
    n_bits = 8 * (size_of.size - len(layout.samples[0]))
    n_64 = None # the size of the samples in RF64's chunk ds64
    codec = None
    samples = None # where they begin and end
    patch = None # where their size is, if it must be replaced

    def chunk_at(position):
        """-> (name, where its content begins, its size), or None if there is no chunk."""
        if position + size_of.size > len(data) or _reader_at(data, position):
            return None
        name, size = size_of.unpack_from(data, position)
        printable = name[:4].isascii() and name[:4].decode().isprintable()
        return (name, position + size_of.size, size - layout.included) if printable else None

    def is_end(position):
        """Whether the samples may end here: the file ends, or a chunk or part follows that fits into it."""
        chunk = chunk_at(position)
        return len(data) - position < 8 or bool(_reader_at(data, position)) or bool(
            chunk and 0 <= chunk[2] <= len(data) - chunk[1])

    position = at + layout.header
    while chunk := chunk_at(position):
        name, start, size = chunk
        if name in layout.samples and not samples:
            declared = n_64 if n_64 is not None and size == 0xffffffff else size
            end, unknown = _samples_end(data, start, declared, n_bits, layout.pattern, is_end)
            samples = start, end
            patch = start - n_bits // 8 if unknown else None
            position = end
            if unknown:
                break
        elif samples and not 0 <= size <= len(data) - start:
            break
        else:
            if name == b'ds64':
                n_64 = struct.unpack_from('<8xQ', data, start)[0]
            elif name == b'fmt ':
                codec = struct.unpack_from(layout.chunk[0] + 'H', data, start)[0]
            position = start + max(0, size)
        padding = -(position - at) % layout.align
        # Some writers leave the padding out.
        position += padding if chunk_at(position + padding) or not chunk_at(position) else 0
    if not samples:
        return len(data), [Part([_view(data, at, len(data))])]
    start, end = samples
    if codec in (0x50, 0x55): # frames of MPEG in a WAV file
        frames = bytes(_view(data, start, end))
        return position, parts(frames) or [Part([frames])]
    if patch is None:
        return min(position, len(data)), [Part([_view(data, at, min(position, len(data)))])]
    size = end - start + layout.included
    if n_bits == 64 or size < 1 << 32:
        size = struct.pack(layout.chunk[0] + ('q' if n_bits == 64 else 'I'), size)
    else:
        size = b'\xff' * 4
    pieces = [_view(data, at, patch), size, _view(data, start, end)]
    if n_64 is not None: # libsndfile takes RF64's sizes from ds64; as RIFF, the file needs none
        pieces[0] = b'RIFF' + bytes(pieces[0][4:]).replace(b'ds64', b'JUNK', 1)
    return end, [Part(pieces)]

AU_HEADER = _pattern(rb'\.snd\0\0.{6}\0\0\0[\x01-\x1b]\0|dns\..{2}\0\0.{4}[\x01-\x1b]\0\0\0')

def _au(data, at):
    byte_order = '>' if data[at:at + 1] == b'.' else '<'
    offset, size = struct.unpack_from(byte_order + 'II', data, at + 4)

    def is_end(position):
        return position >= len(data) or bool(_reader_at(data, position))

    end, unknown = _samples_end(data, at + offset, size, 32, AU_HEADER, is_end)
    if not unknown:
        return end, [Part([_view(data, at, end)])]
    size = struct.pack(byte_order + 'I', min(end - at - offset, 0xffffffff))
    return end, [Part([_view(data, at, at + 8), size, _view(data, at + 12, end)])]

SPHERE_HEADER = _pattern(rb'NIST_1A\n *(\d+)\n')

def _sphere(data, at):
    n_header = int(SPHERE_HEADER.match(data, at)[1])
    fields = dict(re.findall(rb'(\w+) -(?:i|s\d+) (\S+)', data[at:at + n_header]))
    coding = fields.get(b'sample_coding', b'pcm').decode(errors='replace')
    if ',' in coding:
        raise Damaged(f"SPHERE of coding {coding}, which libsndfile cannot unpack; "
                      "sph2pipe -f wav IN.sph OUT.wav does", 'NOT_AUDIO')
    try:
        sizes = [int(fields[name]) for name in (b'sample_count', b'channel_count', b'sample_n_bytes')]
    except (KeyError, ValueError): # the number of samples need not be stated
        return len(data), [Part([_view(data, at, len(data))])]
    declared = sizes[0] * sizes[1] * sizes[2]
    end, _ = _samples_end(data, at + n_header, declared, 64, SPHERE_HEADER, lambda position: position >= len(data))
    return end, [Part([_view(data, at, end)])]

# --------------------------------------------------------------------------------------------------
# Ogg

REVERSED = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256)) # the bits of each byte

def _ogg_crc(page):
    """The CRC of a page whose own CRC is zeros: that of zlib with the bits of all bytes reversed, without its masks."""
    crc = zlib.crc32(page.translate(REVERSED), 0xffffffff) ^ 0xffffffff
    return int(f'{crc:032b}'[::-1], 2)

AUDIO_IN_OGG = (b'\x01vorbis', b'OpusHead', b'\x7fFLAC', b'Speex   ')

def _ogg(data, at):
    """A link of a chain: pages that begin with those that open its streams. Other streams, as video, are left out."""
    pages = [] # (serial number, where it begins, its content, its end)
    kinds = {} # of audio: {serial number: what it begins with}
    ended = set()
    numbers = {} # {serial number: the number of its next page}
    position = at
    begun = False # whether a page came that opens no stream
    while data[position:position + 4] == b'OggS':
        content = position + 27 + (data[position + 26] if position + 26 < len(data) else 0)
        end = content + sum(data[position + 27:content])
        if content > len(data) or end > len(data):
            raise Damaged(f"its page at byte {position} is cut")
        page = data[position:position + 22] + bytes(4) + data[position + 26:end]
        flags = page[5]
        granule, serial, number, crc = struct.unpack_from('<qIII', data, position + 6)
        if _ogg_crc(page) != crc: # libsndfile would leave it out
            raise Damaged(f"its page at byte {position} is damaged")
        if flags & 2: # opens a stream
            if begun:
                break
            head = data[content:content + 8]
            kinds |= {serial: magic for magic in AUDIO_IN_OGG if head.startswith(magic)}
        else:
            begun = True
        if number != numbers.get(serial, number): # it would bridge the gap
            raise Damaged(f"pages are missing before byte {position}")
        if granule: # behind the headers, as a recording of a live stream may begin with any page
            numbers[serial] = (number + 1) & 0xffffffff
        if flags & 4: # closes a stream
            ended.add(serial)
        pages.append((serial, position, content, end))
        position = end
    if len(kinds) > 1:
        raise Damaged(f"{len(kinds)} streams of audio at once; take one out: "
                      "ffmpeg -i IN -map 0:a:0 OUT.flac", 'NOT_AUDIO')
    if any(serial not in ended for serial in kinds or [pages[-1][0]]):
        raise Damaged("the last page of the stream is missing")
    if not kinds or len({serial for serial, *_ in pages}) == 1:
        pieces = [_view(data, at, position)]
    else:
        pieces = [_view(data, start, end) for serial, start, _, end in pages if serial in kinds]
    if b'\x7fFLAC' in kinds.values(): # libsndfile opens native FLAC, which the packets are, but the first 9 bytes
        packets = b''.join(_view(data, content, end) for serial, _, content, end in pages if serial in kinds)[9:]
        return position, _flac(packets, 0)[1]
    return position, [Part(pieces)]

# --------------------------------------------------------------------------------------------------
# FLAC

FLAC_HEADER = _pattern(rb'fLaC[\0\x80]\0\0"')

def _next_stream(data, start):
    """Where the next FLAC stream begins, or the data end."""
    position = start
    while position < len(data):
        block = data[position:position + (1 << 20)] # bytes are searched faster than a mapped file
        mark = block.find(b'fLaC')
        if mark >= 0 and FLAC_HEADER.match(data, position + mark):
            return position + mark
        position += mark + 4 if mark >= 0 else max(1, len(block) - 3)
    return len(data)

def _pairs(data, pair, start):
    """Yields where the two bytes of `pair` stand in data[start:]; four times as fast as bytes.find."""
    if len(pair) < 2:
        return
    value = np.frombuffer(pair, np.uint16)[0]
    size = 1 << 24
    for begin in range(start, len(data) - 1, size):
        block = data[begin:begin + size + 1]
        even, odd = (np.frombuffer(block, np.uint16, (len(block) - i) // 2, i) == value for i in (0, 1))
        yield from np.sort(np.append(2 * np.flatnonzero(even), 2 * np.flatnonzero(odd) + 1) + begin).tolist()

def _crc_table(n_bits, polynomial):
    table = []
    for value in range(256):
        crc = value << (n_bits - 8)
        for _ in range(8):
            crc = (crc << 1) ^ (polynomial if crc >> (n_bits - 1) else 0)
            crc &= (1 << n_bits) - 1
        table.append(crc)
    return table

CRC_8 = _crc_table(8, 0x07)
CRC_16 = _crc_table(16, 0x8005)

def _crc_16(data):
    """Yields the CRC up to each byte: 0 where a frame ends, which has its own CRC behind it."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xffff) ^ CRC_16[crc >> 8 ^ byte]
        yield crc

def _frame_end(data, start, end):
    """Where the last frame of a stream ends, behind which only tags or another part may come. Raises Damaged."""
    for i, crc in enumerate(_crc_16(data[start:end]), start + 1):
        if crc == 0:
            follows = _after_tags(data, i)
            if follows >= end or _reader_at(data, follows):
                return i
    raise Damaged(f"its frame at byte {start} is cut or damaged, or what follows belongs to nothing")

N_SAMPLES = {1: 192, **{code: 576 << (code - 2) for code in range(2, 6)}, **{code: 1 << code for code in range(8, 16)}}

def _flac_header(head):
    """The 16 bytes where a frame may begin -> (number of the frame or of its first sample, samples), or None."""
    if len(head) < 8 or not head[2] & 0xf0 or head[2] & 15 == 15 or head[3] > 0xae:
        return None
    number = head[4]
    position = 5
    if number >= 0xc0: # coded as UTF-8, in up to 7 bytes
        position = 4 + (8 - (number ^ 0xff).bit_length())
        number &= 0x7f >> (position - 4)
        for byte in head[5:position]:
            number = number << 6 | byte & 0x3f
    size_code = head[2] >> 4
    n_samples = N_SAMPLES.get(size_code)
    if n_samples is None: # in 1 or 2 bytes behind the number
        n_samples = int.from_bytes(head[position:position + size_code - 5], 'big') + 1
        position += size_code - 5
    rate_code = head[2] & 15
    if rate_code > 11:
        position += 1 if rate_code == 12 else 2
    crc = 0
    for byte in head[:position + 1]: # with its own CRC behind it, a header has CRC 0
        crc = CRC_8[crc ^ byte]
    return None if crc else (number, n_samples)

def _flac(data, at):
    position = at + 4
    last = False
    while not last: # blocks of metadata
        last = data[position] & 0x80
        position += 4 + int.from_bytes(data[position + 1:position + 4], 'big')
    declared = int.from_bytes(data[at + 21:at + 26], 'big') & 0xfffffffff # 36 bits; 0: unknown
    sync = bytes(data[position:position + 2]) # of all frames; the second byte tells what they are numbered by
    by_sample = sync[1:] == b'\xf9'
    end = len(data) if declared else _next_stream(data, position)
    expected = None
    n_samples = 0
    last_frame = position
    stray = None # where a header has another number than is expected
    for mark in _pairs(data, sync, position):
        if mark >= end:
            break
        header = _flac_header(data[mark:mark + 16])
        if header and (expected is None or header[0] == expected):
            number, n_frame = header
            n_samples += n_frame
            expected = number + (n_frame if by_sample else 1)
            last_frame = mark
            if n_samples == declared:
                end = _next_stream(data, mark)
        elif header:
            stray = mark
    if n_samples < declared:
        raise Damaged(f"{n_samples} of {declared} samples")
    largest = int.from_bytes(data[at + 15:at + 18], 'big') # bytes of a frame; 0: unknown
    if n_samples and (n_samples > declared or largest and end - last_frame > largest):
        end = _frame_end(data, last_frame, end)
    if n_samples == declared:
        return end, [Part([_view(data, at, end)])]
    if stray and stray > last_frame and 0 in _crc_16(data[stray:end]):
        raise Damaged(f"frames are missing before byte {stray}")
    total = (data[at + 21] & 0xf0) << 32 | n_samples
    return end, [Part([_view(data, at, at + 21), total.to_bytes(5, 'big'), _view(data, at + 26, end)])]

# --------------------------------------------------------------------------------------------------
# MPEG

KBPS = { # (version 1, layer): the bit rates that a header can name; 0: free
    (True, 1): range(0, 449, 32),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}
FORMAT = 0xfe0c # the bits of a header's second and third byte that hold version, layer and sample rate

@lru_cache(maxsize=1)
def _mpeg_frames():
    """{second and third byte of a header: (bytes of the frame, samples)}"""
    frames = {}
    for key in range(0xe000, 0x10000):
        version = key >> 11 & 3 # 0: 2.5, 2: 2, 3: 1
        layer = 4 - (key >> 9 & 3)
        kbps = key >> 4 & 15
        rate = key >> 2 & 3
        if version == 1 or layer == 4 or kbps in (0, 15) or rate == 3:
            continue
        hz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
        n_samples = {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer]
        unit = 4 if layer == 1 else 1 # bytes: lengths and padding are counted in these
        length = n_samples // 8 * KBPS[version == 3, layer][kbps] * 1000 // (hz * unit)
        frames[key] = (length + (key >> 1 & 1)) * unit, n_samples
    return frames

def _mpeg_frame(data, at):
    """A frame -> (bytes, samples), or None if there is none."""
    head = data[at:at + 3]
    return _mpeg_frames().get(head[1] << 8 | head[2]) if len(head) == 3 and head[0] == 0xff else None

def _side_info(head):
    """Bytes between the header of a frame of layer 3 and where its samples, or a Xing header, begin."""
    is_mono = head[3] >> 6 == 3
    has_crc = not head[1] & 1
    size = (17 if is_mono else 32) if head[1] & 8 else (9 if is_mono else 17)
    return size + 2 * has_crc

def _silence(head):
    """The smallest frame of silence that precedes frames with this header (4 bytes)."""
    is_stereo_2 = head[1] & 6 == 4 and head[3] >> 6 != 3 # which has no low bit rates
    for kbps in range(4 if is_stereo_2 else 1, 15):
        silent = bytes([0xff, head[1] | 1, kbps << 4 | head[2] & 0x0c, head[3]])
        length, _ = _mpeg_frame(silent, 0)
        if length >= 4 + 32:
            return silent + bytes(length - 4)

def _mpeg(data, at):
    """Frames of one format, up to another Xing header.

    A Xing header is believed if as many frames follow as it states. Where there is none, libsndfile
    takes the length of the file over that of the first frame for the number of frames, and reads no
    further: a small frame of silence in front makes it read to the end.
    """
    head = data[at:at + 4]
    key = head[1] << 8 | head[2]
    is_mono = head[3] >> 6 == 3
    lengths = _mpeg_frames()
    n_samples = lengths[key][1]
    stated = None # frames, by a Xing or VBRI header
    first = at
    tag = at + 4 + _side_info(head)
    if data[tag:tag + 4] in (b'Xing', b'Info'):
        flags, stated = struct.unpack_from('>II', data, tag + 4)
        stated = stated if flags & 1 else 0
    elif data[at + 36:at + 40] == b'VBRI':
        stated = struct.unpack_from('>I', data, at + 50)[0]
        tag = at + 36
    if stated is not None:
        first = at + lengths[key][0]
    form = key & FORMAT
    position = first
    n_frames = 0
    while (frame := data[position:position + 4])[:1] == b'\xff' and len(frame) == 4:
        key = frame[1] << 8 | frame[2]
        if key not in lengths or key & FORMAT != form or (frame[3] >> 6 == 3) != is_mono:
            break
        after = position + 4 + _side_info(frame)
        if data[after:after + 4] in (b'Xing', b'Info') or data[position + 36:position + 40] == b'VBRI':
            break
        position += lengths[key][0]
        n_frames += 1
    if position < len(data) < position + 4 and frame[:1] == b'\xff':
        raise Damaged("its last frame is cut")
    if position > len(data):
        raise Damaged(f"its last frame lacks {position - len(data)} bytes")
    if stated and n_frames + 1 < stated: # some encoders count the header, which is a frame itself
        raise Damaged(f"{n_frames} of {stated} frames")
    if stated == n_frames and data[tag:tag + 4] != b'VBRI':
        return position, [Part([_view(data, at, position)])]
    silence = _silence(head)
    return position, [Part([silence, _view(data, first, position)], n_samples, n_frames * n_samples)]

# --------------------------------------------------------------------------------------------------
# files

TAGS = _pattern(rb'TAG.{125}|LYRICSBEGIN.{,5100}?LYRICS(?:END|200)|\0+')

def _after_id3(data, at):
    """Where an ID3v2 tag ends that begins at `at`; `at` if there is none."""
    head = data[at:at + 10]
    if head[:3] != b'ID3' or len(head) < 10 or max(head[6:]) > 127: # a size of 4 times 7 bits
        return at
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return at + 10 + size + 10 * (head[5] >> 4 & 1)

def _after_tags(data, at):
    """Where tags and zeros end that begin at `at`."""
    while True:
        head = data[at:at + 32]
        if head[:3] == b'ID3' and (end := _after_id3(data, at)) > at:
            at = end
        elif head[:8] == b'APETAGEX' and len(head) == 32: # if it has a header, this is it
            at += 32 + (struct.unpack_from('<I', head, 12)[0] if head[23] & 0x20 else 0)
        elif match := TAGS.match(data, at):
            at = match.end()
        else:
            return at

def _reader_at(data, at):
    """The function that reads the part which begins there, or None."""
    head = data[at:at + 4]
    if head == b'OggS':
        return _ogg
    for pattern, read in ((FLAC_HEADER, _flac), (AU_HEADER, _au), (SPHERE_HEADER, _sphere)):
        if pattern.match(data, at):
            return read
    for layout in LAYOUTS:
        if layout.pattern.match(data, at):
            return partial(_chunks, layout=layout)
    frame = _mpeg_frame(data, at)
    if frame:
        end = _after_tags(data, at + frame[0])
        if end >= len(data) or _mpeg_frame(data, end):
            return _mpeg
    return None

def parts(data):
    """The bytes of a file -> [Part, ...] in the order of their samples.

    None for formats that are not walked here. Raises Damaged where something is missing, or follows
    that no part explains.
    """
    result = []
    try:
        at = _after_tags(data, 0)
        while len(data) - at >= 8 or not result:
            read = _reader_at(data, at)
            if read is None:
                if not result:
                    return None
                raise Damaged(f"{len(data) - at} bytes, from byte {at} on, belong to nothing that its headers declare")
            start = at
            end, more = read(data, at)
            result += more
            is_first = at in (0, _after_id3(data, 0))
            is_last = end >= len(data) or end == len(data) - 128 and data[end:end + 3] == b'TAG'
            at = _after_tags(data, end)
    except (struct.error, IndexError):
        raise Damaged("its header is cut") from None
    first = result[0]
    is_unchanged = first.frames is None and [len(piece) for piece in first.pieces] == [end - start]
    if len(result) == 1 and is_unchanged and is_first and is_last: # but for ID3 tags
        return [first._replace(is_file=True)]
    return result
