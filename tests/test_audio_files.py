"""Which files of a folder are audio: by what they are, with the rest counted, named and told how to get in."""
import os
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from small import speech_like

from corpora.folder import utterances
from speech.audio import RATE, BadAudio, load_audio
from speech.audio_files import audio_files, is_audio, names_audio, to_flac

WAVE = speech_like(0.5, 0)
# Formats by the suffixes that people give them. libsndfile must open each, so that it is no guess of ours.
FORMATS = {'a.wav': 'WAV', 'b.flac': 'FLAC', 'c.ogg': 'OGG', 'd.mp3': 'MP3', 'e.aiff': 'AIFF', 'f.aif': 'AIFF',
           'g.au': 'AU', 'h.snd': 'AU', 'i.sph': 'NIST', 'j.w64': 'W64', 'k.rf64': 'RF64', 'l.caf': 'CAF',
           'm.oga': 'OGG', 'n.voc': 'VOC', 'o.WAV': 'WAV', 'p': 'WAV', 'q.sound': 'FLAC',
           'r.nist': 'NIST', 's.m4a': 'WAV'}
TEXTS = {'notes.txt': 'on other files', 'a.json': '{}', 'a.TextGrid': 'File type = "ooTextFile"', 'a.lab': 'h e l o'}

def write_all(folder):
    for name, kind in FORMATS.items():
        soundfile.write(folder / name, WAVE, RATE, format=kind)
    soundfile.write(folder / 't.opus', WAVE, 48000, format='OGG', subtype='OPUS')
    return folder

def test_all_that_libsndfile_opens_is_taken_whatever_it_is_called(tmp_path, capsys):
    write_all(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / 'a.txt').write_text('the text of a.wav')
    paths, left_out = audio_files(tmp_path)
    assert list(paths) == sorted([*FORMATS, 't.opus'])
    assert left_out == sorted(TEXTS) # and not a.txt
    for path in paths.values():
        assert len(load_audio(path)) > 2000
    printed = capsys.readouterr().out
    assert '1 .textgrid (a.TextGrid)' in printed and 'ffmpeg' not in printed
    docs = list(utterances(tmp_path))
    assert [doc['id'] for doc in docs] == sorted(os.path.splitext(name)[0] for name in paths)
    assert docs[0]['text'] == 'the text of a.wav'

@pytest.mark.parametrize('name, data, is_sound', [
    ('a.m4a', b'\0\0\0\x20ftypM4A \0\0\0\0', True), ('b.webm', b'\x1a\x45\xdf\xa3\1\0', True),
    ('c', b'\x1a\x45\xdf\xa3\1\0', True), ('d.bin', b'RIFF\0\0\0\0AVI ', True), ('e.pcm', bytes(100), True),
    ('e.raw', bytes(100), True), ('f.jpg', b'\xff\xd8\xff\xe0JFIF', False), ('g.npy', b'\x93NUMPY', False),
    ('h.txt', b'RIFF', False), ('i', b'', False)])
def test_sound_of_other_kinds_is_named_with_the_command_that_converts_it(tmp_path, capsys, name, data, is_sound):
    (tmp_path / "it's").mkdir()
    path = tmp_path / "it's" / name
    path.write_bytes(data)
    paths, left_out = audio_files(tmp_path)
    assert (paths, left_out) == ({}, [f"it's/{name}"])
    printed = capsys.readouterr().out
    assert f"(it's/{name})" in printed
    assert (to_flac(str(path)) in printed) == ('ffmpeg' in printed) == is_sound
    with pytest.raises(BadAudio) as e:
        load_audio(path)
    assert e.value.kind == ('NOT_AUDIO' if data else 'EMPTY')
    assert ('ffmpeg' in str(e.value)) == is_sound

@pytest.mark.skipif(not shutil.which('ffmpeg'), reason='no ffmpeg here')
def test_the_command_makes_what_is_read(tmp_path):
    soundfile.write(tmp_path / 'a.wav', WAVE, RATE)
    quiet = ['ffmpeg', '-loglevel', 'error', '-i']
    subprocess.run([*quiet, tmp_path / 'a.wav', tmp_path / 'it is.m4a'], check=True)
    command = to_flac(f'{tmp_path}/it is.m4a')
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    assert abs(len(load_audio(tmp_path / 'it is.flac')) - len(WAVE)) < 2048

def test_unfinished_files_pipes_and_video_beside_its_sound(tmp_path, capsys):
    for name in ('a.wav', 'a.wav.part', 'b.flac.tmp', 'c.wav~'):
        soundfile.write(tmp_path / name, WAVE, RATE, format='WAV')
    (tmp_path / 'a.mp4').write_bytes(b'\0\0\0\x20ftypisom')
    os.mkfifo(tmp_path / 'pipe') # opening it would wait forever
    paths, left_out = audio_files(tmp_path)
    assert list(paths) == ['a.wav'] and left_out == ['a.mp4', 'a.wav.part', 'b.flac.tmp', 'c.wav~', 'pipe']
    assert 'ffmpeg' not in capsys.readouterr().out # what a.mp4 says is there already
    assert not is_audio(str(tmp_path / 'pipe')) and names_audio('x/Y.OPUS') and not names_audio('e.g. this')

def test_audio_beside_a_manifest_that_does_not_name_it_is_counted(tmp_path, capsys):
    write_all(tmp_path)
    (tmp_path / 'manifest.jsonl').write_text('{"id": "x", "audio": "./a.wav"}\n')
    assert [doc['id'] for doc in utterances(tmp_path)] == ['x']
    assert 'left out, as not in its manifest.jsonl: ' in (printed := capsys.readouterr().out)
    assert '1 .flac (b.flac)' in printed and 'a.wav' not in printed

def test_a_units_folder_inside_is_not_looked_into(tmp_path, capsys):
    soundfile.write(tmp_path / 'a.wav', WAVE, RATE)
    (tmp_path / 'units' / '00000').mkdir(parents=True)
    np.save(tmp_path / 'units' / '00000' / 'units.npy', np.zeros(3, np.uint16))
    assert audio_files(tmp_path) == ({'a.wav': f'{tmp_path}/a.wav'}, [])
    assert capsys.readouterr().out == ''
