"""
Which files are audio: what libsndfile opens, whatever it is called.

    paths, left_out = audio_files('FOLDER')      {'a/b.opus': 'FOLDER/a/b.opus', ...}, ['c.m4a', ...]
    is_audio('notes.txt') -> False
    names_audio('clip.m4a') -> True              to judge by the name alone

A suffix of libsndfile's formats is taken at its word: whether such a file is whole shows when it is
read. Files with another suffix, except text, are opened (0.1 ms each on a local disk).
"""
import os
import shlex

import soundfile

from configurator import ranks
from files import name_some, outside_units, print_links, walk

# Names of formats that are no suffixes, or are those of features as well; suffixes of formats of another name.
NOT_SUFFIXES = {'raw', 'mat4', 'mat5', 'svx', 'nist', 'wavex', 'ircam', 'mpc2k', 'htk'}
OPENED = {name.lower() for name in soundfile.available_formats()} - NOT_SUFFIXES
OPENED |= {'aif', 'aifc', 'bwf', 'mp1', 'mp2', 'oga', 'opus', 'snd', 'sph', 'wave'}
TEXT = set('txt json jsonl csv tsv textgrid lab ctm stm trn srt vtt xml eaf md html log yaml py sh'.split())
UNFINISHED = ('.tmp', '.part', '.partial', '.crdownload', '~')

# Sound that libsndfile cannot open and ffmpeg can: by suffix, and by the bytes at the beginning.
FOREIGN = set('m4a m4b mp4 m4v mov aac webm mkv mka wma asf avi flv amr awb 3gp 3g2 ape wv tta ac3 eac3 dts spx '
              'ogv ogx mpg mpeg vob ra rm dsf dff'.split())
HEADLESS = {'raw', 'pcm'} # samples alone: their rate and coding have to be said
MAGIC = ((4, b'ftyp'), (0, b'\x1a\x45\xdf\xa3'), (0, b'\x30\x26\xb2\x75'), (0, b'OggS'), (0, b'RIFF'), (0, b'ID3'),
         (0, b'#!AMR'), (0, b'FLV'), (0, b'wvpk'), (0, b'MAC '), (0, b'TTA1'), (0, b'.RMF'),
         (0, b'\xff\xf1'), (0, b'\xff\xf9')) # the last two: AAC as a stream

def _suffix(path):
    return os.path.splitext(path)[1].lower().removeprefix('.')

def names_audio(name):
    """Whether a file of this name would be sound or video, of a kind that can be read or not."""
    return _suffix(name) in OPENED | FOREIGN | HEADLESS

def is_audio(path):
    """Whether libsndfile opens a file; one with a suffix of its formats counts, also if it is damaged or not there."""
    suffix = _suffix(path)
    if suffix in OPENED:
        return True
    if suffix in TEXT or path.lower().endswith(UNFINISHED) or not os.path.isfile(path):
        return False
    try:
        soundfile.info(path)
    except (soundfile.LibsndfileError, TypeError): # TypeError: a .raw file needs more arguments
        return False
    return True

def is_foreign(path):
    """Whether a file that libsndfile cannot open is sound, as far as its suffix or its first bytes tell."""
    if _suffix(path) in TEXT or path.lower().endswith(UNFINISHED):
        return False
    try:
        with open(path, 'rb') as f:
            head = f.read(16)
    except OSError:
        return False
    return _suffix(path) in FOREIGN | HEADLESS or any(head[at:at + len(mark)] == mark for at, mark in MAGIC)

def to_flac(path):
    """The command that makes a file that can be read of sound that cannot."""
    coding = '-f s16le -ar RATE -ac CHANNELS ' if _suffix(path) in HEADLESS else ''
    return f"ffmpeg {coding}-i {shlex.quote(path)} {shlex.quote(os.path.splitext(path)[0] + '.flac')}"

def audio_files(root, out=None):
    """({name: path} of the audio below a folder, the names of the other files), both sorted; see files.walk.

    NAME.txt beside audio of that name is its text, and none of the others. Units folders are not
    looked into, nor is the folder `out`. What was left out is printed in a line or two. Raises
    Refused.
    """
    links = []
    paths = outside_units(walk(root, out, links))
    audio = {name: path for name, path in paths.items() if is_audio(path)}
    stems = {os.path.splitext(name)[0] for name in audio}
    left_out = [name for name in paths
                if name not in audio and not (name.endswith('.txt') and name.removesuffix('.txt') in stems)]
    if ranks()[0] > 0: # the others print the same
        return audio, sorted(left_out + links)
    if left_out:
        print(f"{root}: left out, as not audio that libsndfile opens: {name_some(left_out)}")
    foreign = [name for name in left_out if os.path.splitext(name)[0] not in stems
               and os.path.isfile(paths[name]) and is_foreign(paths[name])]
    if foreign:
        print(f"{root}: {len(foreign)} of these are sound, to be converted: {to_flac(paths[foreign[0]])}")
    print_links(root, links)
    return audio, sorted(left_out + links)
