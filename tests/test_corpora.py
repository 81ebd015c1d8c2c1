"""corpora/: miniature trees in each corpus's layout, made here; a server on this machine for the downloads."""
import gzip
import hashlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from small import speech_like

from configurator import Refused
from corpora import (
    download,
    librilight,
    librispeech,
    ljspeech,
    peoples_speech,
    redpajama,
    spoken,
    stinystories,
    swc,
    tedlium,
    tiny,
    voxpopuli,
)
from corpora.folder import utterances
from corpora.read import corpus_names
from corpora.tree import pieces
from speech.audio import RATE, BadAudio, load_audio
from tokenize_speech import decode

LIBRISPEECH = Path(__file__).parents[2] / 'shared/data/librispeech_mini'

def test_a_folder_gives_its_audio_sorted_by_relative_path_with_the_text_beside_it(tmp_path):
    for name in ('b/two.FLAC', 'b/one.wav', 'a.ogg', 'c.d.mp3', 'notes.txt', 'cover.jpg', 'b/one.json'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'b/one.txt').write_text('\ufeff Grüße \n', encoding='utf-8')
    docs = list(utterances(tmp_path))
    assert [u['id'] for u in docs] == ['a', 'b/one', 'b/two', 'c.d']
    assert docs[1] == {'id': 'b/one', 'path': str(tmp_path / 'b/one.wav'), 'start': None, 'end': None, 'text': 'Grüße',
                        'speaker': None, 'words': None}
    assert docs[0]['text'] is None

def test_pipes_and_dangling_links_are_documents_that_will_fail_and_link_loops_end(tmp_path):
    os.mkfifo(tmp_path / 'pipe.wav')
    (tmp_path / 'nowhere.wav').symlink_to(tmp_path / 'gone')
    (tmp_path / 'self.wav').symlink_to(tmp_path / 'self.wav')
    (tmp_path / 'again').symlink_to(tmp_path)
    (tmp_path / 'folder.wav').mkdir()
    (tmp_path / 'real.wav').touch()
    (tmp_path / 'link.wav').symlink_to(tmp_path / 'real.wav')
    assert [u['id'] for u in utterances(tmp_path)] == ['nowhere', 'pipe', 'real', 'self']

@pytest.mark.parametrize('as_folder', [True, False])
def test_a_manifest_gives_its_lines_sorted_by_id(tmp_path, as_folder):
    words = [['so', 0, 0.5], ['what', None, 1.25]]
    lines = [{'id': 'z', 'audio': 'x/z.wav', 'text': 'so what', 'speaker': 's1', 'words': words, 'chapter': 7},
             {'id': 'a', 'audio': '/abs/a.wav', 'text': None}]
    (tmp_path / 'manifest.jsonl').write_text('\n\n'.join(map(json.dumps, lines)))
    (tmp_path / 'other.wav').touch() # the manifest alone decides
    a, z = utterances(tmp_path if as_folder else tmp_path / 'manifest.jsonl')
    rest = {'start': None, 'end': None}
    assert a == {'id': 'a', 'path': '/abs/a.wav', 'text': None, 'speaker': None, 'words': None} | rest
    assert z == {'id': 'z', 'path': str(tmp_path / 'x/z.wav'), 'text': 'so what', 'speaker': 's1',
                 'words': words} | rest

@pytest.mark.parametrize('line, message', [
    ('{"id": "a"', 'not a line of JSON'),
    (b'{"id": "\xff"}', 'not a line of JSON'),
    ('[1, 2]', 'expected a JSON object, got [1, 2]'),
    ('{"audio": "a.wav"}', "'id' must be a non-empty string, got None"),
    ('{"id": 7, "audio": "a.wav"}', "'id' must be a non-empty string, got 7"),
    ('{"id": "a"}', "'audio' must be a non-empty string"),
    ('{"id": "a", "audio": "a\\u0000b"}', "'audio' must be a non-empty string"),
    ('{"id": "a", "audio": "a.wav", "text": 5}', "'text' must be a string or null, got 5"),
    ('{"id": "a", "audio": "a.wav", "speaker": []}', "'speaker' must be a string or null"),
    ('{"id": "a", "audio": "a.wav", "words": "so what"}', "'words' must be a list of [word, start, end]"),
    ('{"id": "a", "audio": "a.wav", "words": [["so", 1]]}', "'words' must be a list of [word, start, end]"),
    ('{"id": "a", "audio": "a.wav", "words": [["so", NaN, 1]]}', "'words' must be a list of [word, start, end]"),
    ('{"id": "a", "audio": "a.wav", "words": [["so", "0", 1]]}', "'words' must be a list of [word, start, end]"),
])
def test_a_malformed_line_is_refused_by_file_and_line(tmp_path, line, message):
    path = tmp_path / 'list.jsonl'
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"id": "ok", "audio": "ok.wav"}\n\n' + line + b'\n')
    with pytest.raises(Refused) as e:
        list(utterances(path))
    assert f'{path}:3: ' in str(e.value)
    assert message in str(e.value)
    assert '\n' not in str(e.value)

def test_what_is_no_corpus_is_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'a.wav').touch()
    (tmp_path / 'none.jsonl').touch()
    for path, message in (('gone', 'no such file or folder'), ('empty', 'no utterance in it; expected files of audio'),
                          ('none.jsonl', 'no utterance in it'), ('a.wav', 'expected a folder of audio or a .jsonl')):
        with pytest.raises(Refused) as e:
            list(utterances(tmp_path / path))
        assert message in str(e.value) and str(tmp_path / path) in str(e.value)
    (tmp_path / 'a.txt').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(Refused, match='a.txt:1: not UTF-8'):
        list(utterances(tmp_path))

@pytest.mark.skipif(not LIBRISPEECH.is_dir(), reason='librispeech_mini is not here')
def test_librispeech_mini_reads_as_it_is():
    docs = list(utterances(LIBRISPEECH))
    ids = [u['id'] for u in docs]
    assert len(docs) == 134
    assert ids == sorted(ids)
    for u in docs:
        assert os.path.isfile(u['path'])
        assert u['text'] and u['words']
        assert u['speaker'] == u['id'].split('-')[0]

# --------------------------------------------------------------------------------------------------
# published corpora

def write(root, tree):
    """{path: text, bytes, lines of JSON as a list, or a wave} below root -> root."""
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            sphere = {'format': 'NIST', 'subtype': 'PCM_16'} if name.endswith('.sph') else {}
            soundfile.write(path, content, RATE, **sphere)
            continue
        if isinstance(content, list):
            content = ''.join(json.dumps(line) + '\n' for line in content)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
    return root

def doc(id, path, start=None, end=None, text=None, speaker=None, words=None):
    return {'id': id, 'path': str(path), 'start': start, 'end': end, 'text': text, 'speaker': speaker, 'words': words}

def refusal(corpus, root):
    with pytest.raises(Refused) as e:
        list(corpus.utterances(root))
    assert '\n' not in str(e.value)
    return str(e.value)

LIBRISPEECH_TREE = {'19/198/19-198.trans.txt': '19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n',
                    '19/198/19-198-0000.flac': b'', '19/198/19-198-0001.flac': b'',
                    '103/1240/103-1240.trans.txt': '103-1240-0000 CHAPTER ONE\n', '103/1240/103-1240-0000.flac': b''}

def test_librispeech(tmp_path):
    root = write(tmp_path / 'train-clean-100', LIBRISPEECH_TREE)
    assert list(librispeech.utterances(root)) == [
        doc('103-1240-0000', root / '103/1240/103-1240-0000.flac', text='chapter one', speaker='103'),
        doc('19-198-0000', root / '19/198/19-198-0000.flac', text='northanger abbey', speaker='19'),
        doc('19-198-0001', root / '19/198/19-198-0001.flac', text='this little work', speaker='19')]
    (root / '19/198/19-198-0001.flac').unlink() # its line is yielded, and counted as MISSING later
    docs = list(librispeech.utterances(root))
    assert len(docs) == 3
    assert decode(docs[2], 640, 60).kind == 'MISSING'
    write(root, {'19/198/19-198-0002.flac': b''})
    assert '19-198-0002.flac: no line of a .trans.txt, one of 1 such' in refusal(librispeech, root)
    assert 'expected a subset such as LibriSpeech/train-clean-100' in refusal(librispeech, tmp_path) # one too high
    assert 'no .trans.txt in it; expected a subset' in refusal(librispeech, tmp_path / 'gone')
    write(root, {'19/198/19-198.trans.txt': '19-199-0000 NORTHANGER ABBEY\n'})
    assert "19-198.trans.txt:1: expected '19-198-NUMBER TEXT'" in refusal(librispeech, root)

def test_librilight_is_cut_at_its_voice_activity(tmp_path):
    spans = [[.5, 20], [20.5, 40], [41, 60], [61, 70], [73, 75], [80, 150], [151, 152]]
    root = write(tmp_path / 'small', {'100/book_64kb/a.flac': b'', '100/book_64kb/a.json': [{'voice_activity': spans}],
                                      '99/other/b.flac': b'', '99/other/b.json': [{'voice_activity': [[0, 1]]}]})
    a = root / '100/book_64kb/a.flac'
    assert list(librilight.utterances(root)) == [
        doc('100/book_64kb/a/00000', a, .5, 60, speaker='100'), # the next would make it longer than a minute
        doc('100/book_64kb/a/00001', a, 61, 70, speaker='100'), # silence of 3 s
        doc('100/book_64kb/a/00002', a, 73, 75, speaker='100'),
        doc('100/book_64kb/a/00003', a, 80, 150, speaker='100'), # longer alone
        doc('100/book_64kb/a/00004', a, 151, 152, speaker='100'),
        doc('99/other/b/00000', root / '99/other/b.flac', 0, 1, speaker='99')]
    cases = [({}, "KeyError('voice_activity')"), ({'voice_activity': [[2, 1]]}, '[2, 1] comes after 0'),
             ({'voice_activity': [[0, 1], [.5, 2]]}, '[0.5, 2] comes after 1'), ({'voice_activity': 3}, 'TypeError')]
    for meta, reason in cases:
        write(root, {'99/other/b.json': [meta]})
        message = refusal(librilight, root)
        assert "b.json: expected JSON with 'voice_activity'" in message
        assert reason in message
    write(root, {'99/other/b.json': [{'voice_activity': []}]})
    assert 'b.json: no voice activity' in refusal(librilight, root)
    write(root, {'99/other/c.flac': b''})
    assert 'c.flac: no .json beside it' in refusal(librilight, root)
    assert 'expected small, medium or large of Libri-Light' in refusal(librilight, tmp_path)

def test_pieces_keep_every_span_once_in_order():
    assert list(pieces([(0, 30), (32, 60), (60, 61)])) == [[(0, 30), (32, 60)], [(60, 61)]] # a minute, a pause of 2 s
    rng = np.random.default_rng(0)
    edges = np.cumsum(rng.exponential(3, 2000)).round(2)
    spans = list(zip(edges[::2], edges[1::2]))
    cut = list(pieces(spans, 30, 4))
    assert [span for piece in cut for span in piece] == spans
    for piece, following in zip(cut, cut[1:]):
        assert len(piece) == 1 or piece[-1][1] - piece[0][0] <= 30
        assert all(b[0] - a[1] <= 4 for a, b in zip(piece, piece[1:]))
        assert following[0][1] - piece[0][0] > 30 or following[0][0] - piece[-1][1] > 4 # none is shorter than need be

EVENT = '20190401-0900-PLENARY_en'

def test_voxpopuli_sessions_are_cut_by_the_table(tmp_path):
    root = tmp_path / 'raw_audios/en'
    write(tmp_path, {f'raw_audios/en/2019/{EVENT}.ogg': b'', 'raw_audios/en/2020/20200102-PLENARY-2_en.ogg': b'',
                     'unlabelled_data/unlabelled_v2.tsv.gz': 'event_id\tsegment_no\tstart\tend\n'
                     f'{EVENT}\t0\t1.5\t31.5\n20190401-0900-PLENARY_de\t0\t0\t30\n{EVENT}\t1\t31.5\t40\n'
                     '20190402-ENVI_en\t0\t0\t30\n20180101-PLENARY_en\t0\t0\t30\n'})
    session = root / f'2019/{EVENT}.ogg'
    plenaries = [doc('20180101-PLENARY_en_0', root / '2018/20180101-PLENARY_en.ogg', 0, 30), # MISSING, later
                 doc(f'{EVENT}_0', session, 1.5, 31.5), doc(f'{EVENT}_1', session, 31.5, 40),
                 doc('20200102-PLENARY-2_en', root / '2020/20200102-PLENARY-2_en.ogg')] # no row: whole
    assert list(voxpopuli.utterances(root)) == plenaries
    write(root, {'2018/20180505-ENVI_en.ogg': b''}) # not the plenaries alone: en_v2
    ids = {u['id'] for u in voxpopuli.utterances(root)}
    assert ids == {u['id'] for u in plenaries} | {'20190402-ENVI_en_0', '20180505-ENVI_en'}
    table = tmp_path / 'unlabelled_data/unlabelled_v2.tsv.gz'
    header = 'event_id\tsegment_no\tstart\tend\n'
    cases = [('event_id\tstart\tend\n', 'no column segment_no; expected event_id, segment_no'),
             (header + 'x_en\t0\n', ':2: 2 cells, the header has 4'),
             (header + f'{EVENT}\t0\ta\tb\n', ':2: start and end are a, b')]
    for text, reason in cases:
        write(tmp_path, {'unlabelled_data/unlabelled_v2.tsv.gz': text})
        message = refusal(voxpopuli, root)
        assert str(table) in message
        assert reason in message
    table.write_bytes(table.read_bytes()[:20])
    assert 'not readable (Compressed file ended' in refusal(voxpopuli, root)
    table.unlink()
    assert 'unlabelled_v2.tsv.gz: no such file' in refusal(voxpopuli, root)
    assert 'expected ROOT/raw_audios/LANGUAGE' in refusal(voxpopuli, tmp_path)

def test_voxpopuli_transcribed(tmp_path):
    header = 'id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent\n'
    root = write(tmp_path / 'transcribed_data/en', {
        'asr_train.tsv': header + '20090112-a\tThank you.\tthank you\t28167\ttrain\tfemale\tFalse\tNone\n'
                                  '20090112-b\t\tand "yes"\tNone\ttrain\tNone\tFalse\tNone\n',
        'asr_dev.tsv': header + '20100112-c\tNo.\tno\t1\tdev\tmale\tFalse\tNone\n',
        '2009/20090112-a.ogg': b'', '2009/20090112-b.ogg': b'', '2010/20100112-c.ogg': b''})
    assert list(voxpopuli.utterances(root / 'asr_train.tsv')) == [
        doc('20090112-a', root / '2009/20090112-a.ogg', text='Thank you.', speaker='28167'),
        doc('20090112-b', root / '2009/20090112-b.ogg', text='and "yes"')]
    write(root, {'2010/20100112-d.ogg': b''})
    assert '20100112-d.ogg: no row in any asr_SPLIT.tsv' in refusal(voxpopuli, root / 'asr_train.tsv')
    write(root, {'asr_dev.tsv': 'id\ttext\n20100112-c\tNo.\n20100112-d\tYes.\n'})
    assert 'asr_dev.tsv: no column raw_text, normalized_text, speaker_id' in refusal(voxpopuli, root / 'asr_dev.tsv')

STM = """;; a comment
Jo_2010 1 Jo_2010 0.25 1.00 <o,f0,female> it 's the(2) {NOISE} talk we 'd all <sil> say we 'll want get 'em
Jo_2010 1 inter_segment_gap 1.00 1.50 <o,,> ignore_time_segment_in_scoring
Jo_2010 1 Jo_2010 1.50 2.00 <NA> about <unk> things
Jo_2010 1 Jo_2010 2.00 2.50 <NA>
"""

def test_tedlium_segments_and_the_audio_of_one(tmp_path):
    wave = np.round(speech_like(3, 0) * 32767) / 32768
    root = write(tmp_path / 'legacy/train', {'stm/Jo_2010.stm': STM, 'sph/Jo_2010.sph': wave})
    sph = root / 'sph/Jo_2010.sph'
    docs = list(tedlium.utterances(root))
    assert docs == [
        doc('Jo_2010/00002', sph, .25, 1, "it's the talk we'd all say we'll want get 'em", 'Jo_2010'),
        doc('Jo_2010/00003', sph, 1, 1.5, None),
        doc('Jo_2010/00004', sph, 1.5, 2, None, 'Jo_2010'), doc('Jo_2010/00005', sph, 2, 2.5, None, 'Jo_2010')]
    assert np.abs(decode(docs[0], 640, 60) - wave[4000:16000]).max() < 1e-4
    assert 'no .stm in it; expected a subset such as' in refusal(tedlium, tmp_path)
    for line in ('Jo_2010 1 Jo_2010 x 1 <NA> a', 'Jo 1 Jo_2010 0 1 <NA> a', 'Jo_2010 1 Jo_2010 0 1',
                 'Jo_2010 1 J 0 1 a b', 'Jo_2010 1 J -1 1 <NA> a'):
        write(root, {'stm/Jo_2010.stm': STM + line})
        assert "Jo_2010.stm:6: expected 'Jo_2010 CHANNEL SPEAKER START END <LABEL> TEXT'" in refusal(tedlium, root)
    write(root, {'sph/Al_2011.sph': b''})
    assert 'Al_2011.sph: no table in stm/' in refusal(tedlium, root)

def test_ljspeech(tmp_path):
    root = write(tmp_path / 'LJSpeech-1.1', {
        'metadata.csv': '\ufeffLJ001-0002|in 1455.|in fourteen fifty-five.\nLJ001-0001|"Printing"|"Printing"\n',
        'wavs/LJ001-0001.wav': b'', 'wavs/LJ001-0002.wav': b''})
    assert list(ljspeech.utterances(root)) == [
        doc('LJ001-0001', root / 'wavs/LJ001-0001.wav', text='"Printing"', speaker='LJ'),
        doc('LJ001-0002', root / 'wavs/LJ001-0002.wav', text='in fourteen fifty-five.', speaker='LJ')]
    write(root, {'wavs/LJ001-0003.wav': b''})
    assert 'LJ001-0003.wav: no line of metadata.csv' in refusal(ljspeech, root)
    write(root, {'metadata.csv': 'LJ001-0001|Printing\n'})
    assert "metadata.csv:1: expected 'ID|as printed|as spoken'" in refusal(ljspeech, root)
    assert 'expected the folder LJSpeech-1.1' in refusal(ljspeech, tmp_path)

# --------------------------------------------------------------------------------------------------
# Spoken Wikipedia

def swc_xml(*tokens):
    """'Word 0 500' | 'Word' (not found) | '.' -> an aligned.swc"""
    xml = []
    for token in tokens:
        word, *times = token.split()
        spoken = ''.join(f'<n pronunciation="x" start="{start}" end="{end}"><ph type="a"/></n>'
                         for start, end in zip(times[::2], times[1::2]))
        if word.isalnum() and not times:
            spoken = '<n pronunciation=""/>'
        xml.append(f'<t>{word}{spoken}</t>')
    return ('<?xml version="1.0"?><article><meta><prop key="reader.name" value="Ann"/></meta><d><section><s>'
            + '\n'.join(xml) + '</s></section></d></article>')

def test_swc_divides_a_recording_into_what_has_times_and_what_has_not(tmp_path):
    root = write(tmp_path / 'english', {
        'Apple/audio.ogg': speech_like(9, 0), 'Apple/aligned.swc': swc_xml(
            '1990 1500 1900 1900 2300', 'apples 2300 2800', ',', 'fell', 'far 3000 3500', '.', 'And 6000 6400',
            'so 6500 7000'),
        'Bee/audio.ogg': speech_like(2, 1)})
    apple = root / 'Apple/audio.ogg'
    assert list(swc.utterances(root)) == [
        doc('Apple/0/00000', apple, 0, 1.5, speaker='Ann'),
        doc('Apple/0/00001', apple, 1.5, 2.8, '1990 apples,', 'Ann', [['1990', 0, .8], ['apples,', .8, 1.3]]),
        doc('Apple/0/00002', apple, 3, 3.5, 'far.', 'Ann', [['far.', 0, .5]]), # 0.2 s are no speech
        doc('Apple/0/00003', apple, 3.5, 6, speaker='Ann'),
        doc('Apple/0/00004', apple, 6, 7, 'And so', 'Ann', [['And', 0, .4], ['so', .5, 1]]),
        doc('Apple/0/00005', apple, 7, speaker='Ann'),
        doc('Bee/0/00000', root / 'Bee/audio.ogg', 0)] # not aligned
    u = list(swc.utterances(root))[4]
    assert len(decode(u, 640, 60)) == RATE
    cases = [('<article>', 'expected XML ('), ('<d><t>a</t></d>', 'got <d> with 1'),
             ('<article/>', 'got <article> with 0'), (swc_xml('a 5 x'), "'a' has no start and end in ms")]
    for content, reason in cases:
        write(root, {'Apple/aligned.swc': content})
        message = refusal(swc, root)
        assert str(root / 'Apple/aligned.swc') in message
        assert reason in message
    write(root, {'Apple/intro.ogg': b''})
    assert 'intro.ogg: expected audio.ogg, or audio1.ogg' in refusal(swc, root)
    assert "expected the corpus's folder english" in refusal(swc, tmp_path)

def test_swc_times_go_on_from_part_to_part(tmp_path):
    words = ('One 500 1000', 'two 3500 4000', 'ten 19000 19500')
    write(tmp_path, {'U/aligned.swc': swc_xml(*words)})
    root = write(tmp_path, {f'U/audio{i}.ogg': speech_like(2, i) for i in range(1, 11)})
    docs = [u for u in swc.utterances(root) if u['words']]
    assert [(u['id'], Path(u['path']).name, u['start'], u['end'], u['text']) for u in docs] == [
        ('U/0/00000', 'audio1.ogg', .5, 1, 'One'), ('U/1/00001', 'audio2.ogg', 1.5, 2, 'two'),
        ('U/9/00000', 'audio10.ogg', 1, 1.5, 'ten')]
    write(root, {'U/audio2.ogg': b'OggS', 'V/aligned.swc': swc_xml('a 0 500')})
    assert 'audio2.ogg: cannot be used (TRUNCATED' in refusal(swc, root)
    write(root, {'U/audio2.ogg': speech_like(2, 2)})
    assert list(swc.utterances(root))[-1] == doc('V/0/00000', root / 'V/audio.ogg', 0, .5, 'a', 'Ann', [['a', 0, .5]])

# --------------------------------------------------------------------------------------------------
# parquet

def encoded(wave, format='FLAC'):
    with io.BytesIO() as f:
        soundfile.write(f, wave, RATE, format=format, subtype='PCM_16')
        return f.getvalue()

def write_parquet(path, rows, **kwargs):
    pa = pytest.importorskip('pyarrow')
    pq = pytest.importorskip('pyarrow.parquet')
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **kwargs)

def test_stinystories_is_read_from_parquet_and_its_audio_too(tmp_path):
    waves = [np.round(speech_like(.5 + i / 10, i) * 32767) / 32768 for i in range(5)]
    words = [{'word': 'Once', 'start_time': .1, 'end_time': .25}, {'word': ' upon', 'start_time': .25, 'end_time': .5}]
    rows = []
    for i, wave in enumerate(waves):
        audio = {'bytes': encoded(wave, 'WAV' if i % 2 else 'FLAC'), 'path': f'{i}.wav'}
        rows.append({'audio': audio, 'text': f'Once upon {i}', 'aligned_text': words, 'split_sentence': False})
    rows[3]['audio'] = {'bytes': None, 'path': 'beside/3.wav'} # a path instead of bytes
    rows[4]['aligned_text'] = []
    write(tmp_path, {'data/beside/3.wav': waves[3]})
    file = tmp_path / 'data/data-00000-of-02191.parquet'
    write_parquet(file, rows, row_group_size=2)
    docs = list(stinystories.utterances(tmp_path / 'data'))
    assert docs == list(stinystories.utterances(file))
    assert docs[1] == doc('data-00000-of-02191/000001', f'{file}#1', text='Once upon 1', speaker='LJ',
                            words=[['Once', .1, .25], [' upon', .25, .5]])
    assert docs[4]['words'] is None
    with ThreadPoolExecutor(8) as pool: # in any order, at the same time
        decoded_waves = pool.map(lambda u: decode(u, 640, 60), docs[::-1] * 9)
        for wave, decoded in zip(waves[::-1] * 9, decoded_waves):
            assert np.abs(decoded - wave).max() < 1e-4
    assert np.array_equal(load_audio(f'{file}#2', .125, .25), load_audio(f'{file}#2')[2000:4000])
    assert 'expected the folder data' in refusal(stinystories, tmp_path)
    write_parquet(file, [{'text': 'a'}])
    assert 'no column aligned_text, audio; expected audio, text' in refusal(stinystories, file)
    write_parquet(file, [{'text': 'a', 'audio': b'', 'aligned_text': [{'w': 'a'}]}])
    assert '#0: expected aligned_text with word, start_time' in refusal(stinystories, file)
    file.write_bytes(file.read_bytes()[:-9])
    assert 'not a whole parquet file' in refusal(stinystories, file)

def test_bad_audio_in_parquet_is_counted_like_a_bad_file(tmp_path):
    valid = encoded(speech_like(1, 0), 'WAV')
    audio = [valid, b'not audio', b'', valid[:-1000], None, b'RIFF']
    file = tmp_path / 'a.parquet'
    write_parquet(file, [{'audio': {'bytes': b, 'path': None}} for b in audio])
    load_audio(f'{file}#0')
    kinds = []
    for row in range(1, len(audio) + 1):
        with pytest.raises(BadAudio) as e:
            load_audio(f'{file}#{row}')
        kinds.append(e.value.kind)
    assert kinds == ['NOT_AUDIO', 'EMPTY', 'TRUNCATED', 'EMPTY', 'NOT_AUDIO', 'MISSING']
    with pytest.raises(BadAudio, match=r'gone.parquet#0: MISSING'):
        load_audio(tmp_path / 'gone.parquet#0')

def test_without_pyarrow_parquet_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    write(tmp_path, {'a.parquet': b'PAR1'})
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    assert refusal(stinystories, tmp_path).endswith('pip install pyarrow')

def test_peoples_speech_in_both_forms(tmp_path):
    rows = [{'id': f'a_DOT_mp3_0000{i}.flac', 'audio': {'bytes': encoded(speech_like(.2, i)), 'path': None},
             'duration_ms': 200, 'text': f'hello {i}'} for i in (1, 0)]
    file = tmp_path / 'clean/train-00000-of-00804.parquet'
    write_parquet(file, rows)
    assert list(peoples_speech.utterances(tmp_path / 'clean')) == [
        doc('train-00000-of-00804/000000', f'{file}#0', text='hello 1'),
        doc('train-00000-of-00804/000001', f'{file}#1', text='hello 0')]
    root = write(tmp_path / 'train', {
        'dirty.json': [{'identifier': 'a', 'training_data': {'duration_ms': [1, 2], 'label': ['b one', 'b two'],
                                                             'name': ['a/b1.flac', 'a/b0.flac']}}],
        'dirty/a/b0.flac': b'', 'dirty/a/b1.flac': b''})
    assert list(peoples_speech.utterances(root / 'dirty.json')) == [
        doc('a/b0', root / 'dirty/a/b0.flac', text='b two'), doc('a/b1', root / 'dirty/a/b1.flac', text='b one')]
    write(root, {'dirty/a/b2.flac': b''})
    assert 'b2.flac: no name in ' in refusal(peoples_speech, root / 'dirty.json')
    for data in (None, {'name': ['a'], 'label': [], 'duration_ms': [1]},
                 {'name': 'a', 'label': 'a', 'duration_ms': 'a'}):
        write(root, {'dirty.json': [{'training_data': data}]})
        message = refusal(peoples_speech, root / 'dirty.json')
        assert "dirty.json:1: expected 'training_data' with equally many" in message
    write_parquet(file, [{'audio': b'', 'sentence': 'a'}])
    assert 'no column text; expected audio, text, got audio, sentence' in refusal(peoples_speech, tmp_path / 'clean')
    assert "expected a folder of the hub's parquet" in refusal(peoples_speech, tmp_path)

def test_the_embedded_corpus_is_read_as_it_was_spoken(tmp_path):
    wave = np.round(speech_like(1.0, 0) * 32767) / 32768
    def line(id, start, samples):
        return {'id': id, 'start': start, 'samples': samples, 'text': 'one', 'speaker': 'joe', 'room': None,
                'words': [['one', 1600, 4800]]}
    write(tmp_path, {
        '00007/docs.jsonl': [line('b', 0, 6000), line('a', 6000, 10000)],
        '00007/refused.jsonl': [{'id': 'x'}],
        '00007/audio.flac': wave,
        '00003/docs.jsonl': [line('c', 0, 16000)],
        '00003/refused.jsonl': [{'id': 'x'}],
        '00003/audio.flac': wave})
    docs = list(tiny.utterances(tmp_path))
    assert [u['id'] for u in docs] == ['a', 'b', 'c']
    for u in docs:
        assert (u['text'], u['speaker'], u['words']) == ('one', 'joe', [['one', 0.1, 0.3]])
    audio = load_audio(docs[0]['path'], docs[0]['start'], docs[0]['end'])
    np.testing.assert_allclose(audio, wave[6000:], atol=1e-4)
    write(tmp_path, {'00003/docs.jsonl': [{'id': 'c'}]})
    assert "docs.jsonl:1: not a line of tiny/build/speak.py (KeyError('words'))" in refusal(tiny, tmp_path)
    assert 'expected a folder that tiny/build/speak.py wrote' in refusal(tiny, tmp_path / 'none')

def test_every_corpus_has_utterances_and_says_what_it_reads():
    with_utterances = []
    for path in sorted((Path(__file__).parents[1] / 'corpora').glob('*.py')):
        module = importlib.import_module(f'corpora.{path.stem}')
        function = getattr(module, 'utterances', None)
        if function is not None and function.__module__ == module.__name__:
            with_utterances.append(path.stem)
        own_formats = ('folder', 'spoken', 'tiny', '__init__', 'download', 'read', 'table', 'tree')
        assert path.stem in own_formats or 'https://' in module.__doc__
    assert corpus_names() == with_utterances
    assert {'folder', 'librispeech', 'tiny'} <= set(with_utterances)
    assert not {'__init__', 'download', 'read', 'spokenswag', 'table', 'tree'} & set(with_utterances)

def test_a_file_of_corpora_that_is_not_python_is_refused_by_its_line(tmp_path, monkeypatch):
    write(tmp_path, {'a.py': 'def utterances(root):\n    return []\n', 'b.py': 'import os\n\ndef utterances(:\n',
                     'c.py': 'def helper():\n    def utterances(root):\n        pass\n'})
    monkeypatch.setattr('corpora.read.FOLDER', tmp_path)
    with pytest.raises(Refused, match='b.py:3: not Python: '):
        corpus_names()
    (tmp_path / 'b.py').unlink()
    assert corpus_names() == ['a']

# --------------------------------------------------------------------------------------------------
# downloads

class Server(ThreadingHTTPServer):
    """Serves .files, under the conditions that a test sets."""
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files = {}
        self.ranges = True # does it honor Range
        self.length = True # does it give Content-Length
        self.cut = [] # the next answers break off after so many bytes
        self.requests = [] # the Range of each request
        self.url = f'http://127.0.0.1:{self.server_port}'

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        content = server.files.get(self.path.lstrip('/'))
        requested_range = self.headers.get('Range')
        server.requests.append(requested_range)
        if content is None:
            return self.send_error(404)
        first = 0
        if server.ranges and requested_range:
            first = int(re.fullmatch(r'bytes=(\d+)-', requested_range)[1])
        if first >= len(content):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(content)}')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        self.send_response(206 if first else 200)
        if first:
            self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
        if server.length:
            self.send_header('Content-Length', str(len(content) - first))
        self.end_headers()
        end = first + server.cut.pop(0) if server.cut else len(content)
        self.wfile.write(content[first:end])

    def log_message(self, *args):
        pass

@pytest.fixture
def server(monkeypatch):
    for name, value in (('WAIT', 0.0), ('ATTEMPTS', 3), ('BLOCK', 1000)):
        monkeypatch.setattr(download, name, value)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = 'sha256:' + hashlib.sha256(CONTENT).hexdigest()

def test_a_download_that_was_cut_goes_on_where_it_stopped(server, tmp_path):
    server.files['a.bin'] = CONTENT
    server.cut = [100_000, 50_000]
    download.download(tmp_path, f'{server.url}/a.bin', 'in', SHA256)
    assert (tmp_path / 'in/a.bin').read_bytes() == CONTENT
    assert server.requests == [None, 'bytes=100000-', 'bytes=150000-']
    download.download(tmp_path, f'{server.url}/a.bin', 'in', SHA256) # done: not asked for again
    assert len(server.requests) == 3
    assert sorted(path.name for path in (tmp_path / 'in').iterdir()) == ['a.bin']

def test_a_download_begins_anew_where_the_server_cannot_go_on(server, tmp_path):
    server.files['a.bin'] = CONTENT
    server.cut = [100_000]
    server.ranges = False
    download.fetch(f'{server.url}/a.bin', tmp_path / 'a.bin')
    assert (tmp_path / 'a.bin').read_bytes() == CONTENT and server.requests == [None, 'bytes=100000-']
    server.ranges = True
    (tmp_path / 'b.bin.part').write_bytes(CONTENT + b'of another file')
    server.files['b.bin'] = CONTENT
    download.fetch(f'{server.url}/b.bin', tmp_path / 'b.bin')
    assert (tmp_path / 'b.bin').read_bytes() == CONTENT
    (tmp_path / 'c.bin.part').write_bytes(CONTENT) # killed before it was renamed
    server.files['c.bin'] = CONTENT
    download.fetch(f'{server.url}/c.bin', tmp_path / 'c.bin', 'md5:' + hashlib.md5(CONTENT).hexdigest())
    assert (tmp_path / 'c.bin').read_bytes() == CONTENT and not (tmp_path / 'c.bin.part').exists()

def test_what_is_wrong_with_a_download_is_said(server, tmp_path):
    def message(name, checksum=None):
        with pytest.raises(Refused) as e:
            download.fetch(f'{server.url}/{name}', tmp_path / name, checksum)
        assert not (tmp_path / name).exists() and '\n' not in str(e.value)
        return str(e.value)
    server.files['a.bin'] = CONTENT
    server.cut = [1000, 1000, 1000, 1000, 0, 0] # more than 3 in all, 3 without a byte
    assert message('a.bin').endswith('4,000 bytes are in ' + str(tmp_path / 'a.bin.part') + ', run again to go on')
    assert 'its sha256 is ' in message('a.bin', 'sha256:' + '0' * 64)
    assert not (tmp_path / 'a.bin.part').exists()
    assert '404' in message('gone.bin')
    assert server.requests[-2:] != [None, None] # not tried again
    server.length = False
    assert 'nothing says when it is whole' in message('a.bin')
    server.length = True
    download.fetch(f'{server.url}/a.bin', tmp_path / 'right.bin', SHA256)

def tar(members, mode='w:gz'):
    """{name: bytes, or TarInfo} -> a tar."""
    with io.BytesIO() as f:
        with tarfile.open(fileobj=f, mode=mode) as archive:
            for name, content in members.items():
                if isinstance(content, tarfile.TarInfo):
                    content.name = name
                    archive.addfile(content)
                else:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return f.getvalue()

def link(to):
    info = tarfile.TarInfo()
    info.type = tarfile.SYMTYPE
    info.linkname = to
    return info

def test_a_corpus_is_downloaded_by_its_command_and_read(server, tmp_path, monkeypatch, capsys):
    for part in ('19', '103'): # two archives of one folder
        members = {}
        for name, content in LIBRISPEECH_TREE.items():
            if name.startswith(part + '/'):
                members[f'LibriSpeech/dev-clean/{name}'] = content.encode() if isinstance(content, str) else b'x'
        server.files[f'{part}.tar.gz'] = tar(members)
    subsets = {'dev-clean': tuple((f'{server.url}/{part}.tar.gz', '', None) for part in ('19', '103'))}
    def command(*args):
        monkeypatch.setattr(sys, 'argv', ['corpora/librispeech.py', *args])
        download.script(librispeech.utterances, subsets)
        return capsys.readouterr().out
    assert '19.tar.gz: in ' in command('--download', f'--root={tmp_path}', '--subset=dev-clean')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.downloaded', 'LibriSpeech'] # nothing lies about
    n_requests = len(server.requests)
    assert 'downloaded before' in command('--download', f'--root={tmp_path}', '--subset=dev-clean')
    assert len(server.requests) == n_requests
    assert '3 utterances, 3 with text, 0 with word times' in command(f'--root={tmp_path}/LibriSpeech/dev-clean')
    for args, message in ((('--download', '--root=x'), 'expected some of dev-clean'), ((), 'expected --root=DIR'),
                          (('--download', '--root=x', '--subset=dev'), 'subset=dev: expected some of dev-clean')):
        with pytest.raises(SystemExit, match=message):
            command(*args)

def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path):
    inside = {'a/b/1.txt': b'one', 'a/2.txt': b'two', 'a/link': link('b/1.txt')}
    write(tmp_path, {'a/b/1.txt': 'old', 'a/b/kept.txt': 'kept', 'x.tar.bz2': tar(inside, 'w:bz2')})
    download.unpack(tmp_path / 'x.tar.bz2', tmp_path)
    texts = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob('*.txt')}
    assert texts == {'a/b/1.txt': 'one', 'a/2.txt': 'two', 'a/b/kept.txt': 'kept'}
    assert (tmp_path / 'a/link').read_text() == 'one'
    fifo = tarfile.TarInfo()
    fifo.type = tarfile.FIFOTYPE
    root = tmp_path / 'root'
    for name, content in (('../out.txt', b'x'), ('l', link('/etc/passwd')), ('l', link('../../up')), ('p', fifo)):
        archive = write(root, {'y.tar.gz': b''}) / 'y.tar.gz'
        archive.write_bytes(tar({'first.txt': b'1', name: content}))
        with pytest.raises(Refused, match='y.tar.gz: cannot be unpacked'):
            download.unpack(archive, root)
        assert [p.name for p in root.iterdir()] == ['y.tar.gz'] and not (tmp_path / 'out.txt').exists()
    archive.write_bytes(tar({'/out.txt': b'x'})) # tarfile drops the leading /
    download.unpack(archive, root)
    assert (root / 'out.txt').exists() and not Path('/out.txt').exists()
    for mode in ('w', 'w:gz', 'w:bz2'): # cut short
        complete = tar({'a': CONTENT, 'b': CONTENT}, mode)
        archive.write_bytes(complete[:len(complete) * 2 // 3])
        with pytest.raises(Refused, match='delete it and try again'):
            download.unpack(archive, root)
    archive.write_bytes(tar({'a': CONTENT}, 'w'))
    download.unpack(archive, root)
    assert (root / 'a').read_bytes() == CONTENT

def hard_link(to):
    info = link(to)
    info.type = tarfile.LNKTYPE
    return info

DEEP = '/'.join(['a' * 100] * 50) # 5,049 bytes, longer than the 4,096 of a path
@pytest.mark.parametrize('members, message', [
    ({DEEP: b'x'}, r'a path in it has 5,049 bytes \(a{40}...\), here [0-9,]+ are possible, and 255 a name'),
    ({'b' * 256: b'x'}, r'a path in it has 256 bytes'),
    ({'l': link(DEEP)}, r'a path in it has 5,050 bytes'),
    ({'d/1': b'x', 'l': link('d'), 'l/2': b'x'}, r'l/2 in it goes through the link l; nothing was unpacked'),
    ({'d/1': b'x', 'l': link('d'), 'm': link('l/1')}, r'/l/1 in it goes through the link l;'),
    ({'d/1': b'x', 'l': link('d/1'), 'm': hard_link('l')}, r'l in it goes through the link l;'),
    ({'d/1': b'x', 'd/l': link('1'), 'e': link('d/l/../1')}, r'/d/l/../1 in it goes through the link l;'),
    ({'d/1': b'x', './d//l': link('.'), '/d/l/2': b'x'}, r'/d/l/2 in it goes through the link l;')])
def test_what_a_name_in_an_archive_says_is_where_it_leads(tmp_path, members, message):
    """Each of them stays inside when it is unpacked, or is refused by the system."""
    (tmp_path / 'x.tar').write_bytes(tar({'first.txt': b'1', **members}, 'w'))
    with pytest.raises(Refused, match=rf'^{tmp_path}/x.tar: {message}'):
        download.unpack(tmp_path / 'x.tar', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['x.tar']

def test_links_between_files_of_an_archive_are_kept(tmp_path):
    (tmp_path / 'x.tar').write_bytes(tar({'a/1': b'1', 'b/l': link('../a/1'), 'b/h': hard_link('a/1')}))
    download.unpack(tmp_path / 'x.tar', tmp_path)
    assert (tmp_path / 'b/l').read_bytes() == (tmp_path / 'b/h').read_bytes() == b'1'

def test_what_is_downloaded_has_an_address_and_a_checksum_that_can_be_one():
    for corpus in (librispeech, librilight, voxpopuli, tedlium, ljspeech, swc):
        for archives in corpus.SUBSETS.values():
            for url, folder, checksum in archives:
                assert url.startswith('https://') and url.rpartition('/')[2] and '..' not in folder
                assert checksum is None or re.fullmatch('sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}', checksum)
    assert len(voxpopuli.SUBSETS['en_v2']) == 25

# --------------------------------------------------------------------------------------------------
# text

def text_of(n_words, length=4, seed=0):
    """Different words of so many letters: nothing repeats."""
    rng = np.random.default_rng(seed)
    return ' '.join(''.join(rng.choice(list('abcdefghijklmnop'), length)) for _ in range(n_words))

@pytest.mark.parametrize('text, rule', [
    (text_of(49), 'words'), (text_of(50), None), (text_of(100_000), None), (text_of(100_001), 'words'), ('', 'words'),
    (text_of(50, 3), None), (text_of(49, 3) + ' ab', 'word_length'), (text_of(50, 10), None), # bounds are inside
    (text_of(49, 10) + ' abcdefghijk', 'word_length'), (text_of(45) + ' #' * 5 + text_of(5), None),
    (text_of(90) + ' a#b' * 10, None), (text_of(89) + ' a#b' * 10, 'symbols'),
    (text_of(89) + ' and...' * 10, 'symbols'),
    (text_of(90, 5) + ' wait…' * 11, 'symbols'),
    ('\n'.join(['\u2022 ' + text_of(6, seed=i) for i in range(9)] + [text_of(6)]), None),
    ('\n'.join(['  \u2013 ' + text_of(6, seed=i) for i in range(10)] + ['']), 'bullets'),
    ('\n'.join(['\u2022 ' + text_of(6, seed=i) for i in range(19)] + [text_of(6)]), 'bullets'),
    (text_of(80) + ' The, cats!' * 10, None), # 60 of 380 characters
    (text_of(80) + ' abcd efgh' * 10, None), # 80 of 400 characters: 0.2
    (text_of(79) + ' abcd efgh' * 10, 'top_2gram'),
    (text_of(46, 3) + f" {'a' * 20} {'b' * 20}" * 2, 'top_2gram'),
    (text_of(48, 3) + f" {'a' * 20} {'b' * 20}", None), # once
])
def test_gopher_rules_at_their_bounds(text, rule):
    assert redpajama.broken_rule(redpajama.signals(text)) == rule, redpajama.signals(text)

def quality(**changes):
    """quality_signals of a good document but for `changes`."""
    bullets = changes.pop('rps_lines_start_with_bulletpoint', [1.0] * 9 + [0.0])
    values = {'rps_doc_word_count': 50, 'rps_doc_mean_word_length': 3.0, 'rps_doc_symbol_to_word_ratio': .1,
              'ccnet_nlines': 10, 'rps_doc_frac_chars_top_2gram': .2, **changes}
    signals = {name: [[0, 100, value]] for name, value in values.items()}
    signals['rps_lines_start_with_bulletpoint'] = [[i, i + 1, value] for i, value in enumerate(bullets)]
    return signals

@pytest.mark.parametrize('values, rule', [
    ({}, None), ({'rps_doc_word_count': 49}, 'words'), ({'rps_doc_word_count': 100_001}, 'words'),
    ({'rps_doc_mean_word_length': 2.99}, 'word_length'), ({'rps_doc_mean_word_length': 10.01}, 'word_length'),
    ({'rps_doc_symbol_to_word_ratio': .11}, 'symbols'), ({'rps_doc_frac_chars_top_2gram': .21}, 'top_2gram'),
    ({'rps_lines_start_with_bulletpoint': [1.0] * 10}, 'bullets'),
    ({'rps_doc_word_count': 0, 'rps_doc_mean_word_length': None, 'ccnet_nlines': 0}, 'words')])
def test_published_signals_decide_where_there_are_some(values, rule):
    assert redpajama.broken_rule(redpajama.published(quality(**values), 'x')) == rule
    assert redpajama.broken_rule(redpajama.published(json.dumps(quality(**values)), 'x')) == rule

def test_redpajama_does_not_read_what_it_wrote_and_follows_links(tmp_path, capsys):
    root = write(tmp_path / 'text', {'a.txt': 'A text.\n', '._a.txt': b'\xff', 'notes.md': 'x',
                                     'd/b.jsonl': [{'text': 'b'}]})
    write(tmp_path / 'more', {'c.txt': 'C.\n'})
    (root / 'more').symlink_to(tmp_path / 'more')
    cfg = redpajama.Config(str(root), str(root / 'filtered'))
    for _ in range(2):
        redpajama.main(cfg)
        assert redpajama.output_names(cfg) == {name.rpartition('.')[0]: str(root / name)
                                               for name in ('a.txt', 'd/b.jsonl', 'more/c.txt')}
    assert '1 .md (notes.md)' in capsys.readouterr().out

def test_speakers_joined_by_links_are_read(tmp_path):
    write(tmp_path / 'clean', {'19/198/19-198-0000.flac': b'', '19/198/19-198.trans.txt': '19-198-0000 GOOD DAY\n'})
    write(tmp_path / 'mix', {'20/200/20-200-0000.flac': b'', '20/200/20-200.trans.txt': '20-200-0000 HELLO\n'})
    (tmp_path / 'mix' / '19').symlink_to(tmp_path / 'clean' / '19')
    (tmp_path / 'mix' / '21').symlink_to(tmp_path / 'clean' / '19') # again: not read twice
    docs = list(librispeech.utterances(tmp_path / 'mix'))
    assert [(u['id'], u['path']) for u in docs] == [
        ('19-198-0000', f'{tmp_path}/mix/19/198/19-198-0000.flac'),
        ('20-200-0000', f'{tmp_path}/mix/20/200/20-200-0000.flac')]

def test_redpajama_is_filtered_file_by_file(tmp_path, capsys):
    long = text_of(60)
    short = 'too short'
    ids = [f'2023-14/0000/en_head.json.gz/{i}' for i in range(3)]
    root = write(tmp_path / 'documents/rp2', { # a path may have the word twice
        'documents/2023-14/0000/en_head.json.gz': [{'raw_content': text, 'url': 'u'} for text in (long, 'é', long)],
        'quality_signals/2023-14/0000/en_head.signals.json.gz':
            [{'id': id, 'quality_signals': quality(**v)} for id, v in zip(ids, ({}, {}, {'rps_doc_word_count': 3}))],
        'documents/2023-14/0000/en_tail.json.gz': [{'raw_content': long}, {'raw_content': short}]}) # has no signals
    cfg = redpajama.Config(str(root), str(tmp_path / 'out'))
    redpajama.main(cfg)
    head = tmp_path / 'out/2023-14/0000/en_head.jsonl'
    tail = tmp_path / 'out/2023-14/0000/en_tail.jsonl'
    assert [json.loads(line) for line in head.open()] == [{'id': ids[0], 'text': long}, {'id': ids[1], 'text': 'é'}]
    assert [json.loads(line) for line in tail.open()] == [{'id': 'en_tail.json.gz:1', 'text': long}]
    info = json.loads((tmp_path / 'out/info.json').read_text())
    assert {k: info[k] for k in ('files', 'documents', 'kept', 'words', 'signals_published')} == {
        'files': 2, 'documents': 5, 'kept': 3, 'words': 2, 'signals_published': 3}
    printed = capsys.readouterr().out
    assert '3 of 5 documents; 2 words, 0 word_length' in printed and '3 had published signals' in printed
    head.with_suffix('.counts.json').unlink() # killed before the counts: this file again, the other not
    stamp = tail.stat().st_mtime_ns
    redpajama.main(cfg)
    assert tail.stat().st_mtime_ns == stamp and head.with_suffix('.counts.json').exists()
    mixed = write(tmp_path / 'mixed', {'a.txt': f'{long}\n{short}\n', 'b.jsonl.gz': [
        {'raw_content': short, 'doc_id': 'd1', 'quality_signals': json.dumps(quality())}, {'text': long, 'id': 'd2'}]})
    redpajama.main(redpajama.Config(str(mixed), str(tmp_path / 'out2')))
    ids = [json.loads(line)['id'] for name in 'ab' for line in (tmp_path / f'out2/{name}.jsonl').open()]
    assert ids == ['a.txt:1', 'd1', 'd2']

@pytest.mark.parametrize('tree, message', [
    ({'x.md': 'text'}, 'no text in it; expected .txt .txt.gz .jsonl'),
    ({'x.jsonl': [{'content': 'a'}]}, "x.jsonl:1: expected a string 'raw_content' or 'text'"),
    ({'x.jsonl': [{'text': 'a', 'quality_signals': '{}'}]}, 'not the quality_signals of RedPajama V2'),
    ({'x.jsonl': [{'text': 'a', 'quality_signals': '{"'}]}, 'not the quality_signals of RedPajama V2'),
    ({'documents/x.json.gz': [{'raw_content': 'a'}], 'quality_signals/x.signals.json.gz': []}, 'not one line with an'),
    ({'documents/x.json.gz': [], 'quality_signals/x.signals.json.gz': [{'id': 'a'}]}, 'not one line with an id')])
def test_other_text_is_refused(tmp_path, tree, message):
    root = write(tmp_path / 'in', tree)
    with pytest.raises(Refused) as e:
        redpajama.main(redpajama.Config(str(root), str(tmp_path / 'out')))
    assert message in str(e.value) and '\n' not in str(e.value)
    assert not list(tmp_path.glob('out/**/x.jsonl*'))
    with pytest.raises(Refused, match='text without audio'):
        redpajama.utterances(root)

# --------------------------------------------------------------------------------------------------
# read out

VOICE = """
import json, sys
import numpy as np, soundfile
wav, words, argument = sys.argv[1:]
text = sys.stdin.read()
assert argument == '-' or argument == text
if 'fail' in text:
    sys.exit('cannot say that')
times = [[word, i / 10, i / 10 + .1] for i, word in enumerate(text.split())]
if 'nowav' not in text:
    soundfile.write(wav, np.sin(np.arange(len(times) * 2205)), 22050, format='WAV')
open(words, 'w').write('[["a"]]' if 'badwords' in text else json.dumps(times))
"""

def test_a_text_is_read_out_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    texts = ['Once upon a time', 'please fail', 'a "quoted" {wav} $(text)', 'nowav', 'badwords here', 'the end']
    write(tmp_path, {'voice.py': VOICE, 'texts.jsonl': [{'id': f'd{i}', 'text': t} for i, t in enumerate(texts)]})
    out = tmp_path / 'out'
    settings = {'text': str(tmp_path / 'texts.jsonl'), 'out': str(out), 'shard_docs': 4, 'max_fail_frac': .5,
                'speaker': 'v', 'command': f'{sys.executable} {tmp_path}/voice.py {{wav}} {{words}} {{text}}'}
    def cfg(**changes):
        return spoken.Config(**{**settings, **changes})
    run = subprocess.run
    calls = []
    def killed_at_the_fifth(*args, **kwargs):
        calls.append(kwargs['input'].decode())
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run(*args, **kwargs)
    killed = SimpleNamespace(run=killed_at_the_fifth, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(spoken, 'subprocess', killed)
    with pytest.raises(KeyboardInterrupt):
        spoken.main(cfg())
    assert sorted(p.name for p in out.iterdir()) == ['00000', 'settings.json']
    assert 'python -m corpora.spoken makes it' in refusal(spoken, out)
    spoken.main(cfg())
    assert calls[:4] == texts[:4] and set(calls[4:]) == set(texts[4:]) # the first shard was not said again
    docs = list(spoken.utterances(out))
    assert [u['id'] for u in docs] == ['d0', 'd2', 'd5']
    assert docs[0] == doc('d0', out / '00000/0000.wav', text=texts[0], speaker='v', words=[
        ['Once', 0, .1], ['upon', .1, .2], ['a', .2, .30000000000000004], ['time', .3, .4]])
    assert docs[1]['text'] == texts[2] and len(decode(docs[2], 640, 60)) == .2 * RATE
    failures = [json.loads(line) for s in '01' for line in (out / f'0000{s}/failures.jsonl').open()]
    assert [f['id'] for f in failures] == ['d1', 'd3', 'd4']
    assert failures[0]['reason'] == 'status 1: cannot say that' and failures[1]['reason'].startswith('MISSING')
    assert failures[2]['reason'].startswith('words: ') and len(list(out.rglob('*.w*'))) == 3 # no word files left
    for change, message in (({'speaker': 'w'}, 'begun with another text or command'),
                            ({'command': 'no-such {wav}'}, 'no program'),
                            ({'out': str(tmp_path / 'o2'), 'max_fail_frac': .1}, '2 of 6 documents not spoken')):
        with pytest.raises(Refused, match=message):
            spoken.main(cfg(**change))
    for command, message in (('espeak', 'expected --text=FILE'), ("espeak '{wav}", 'No closing quotation')):
        with pytest.raises(Refused, match=message):
            cfg(command=command)

def test_redpajama_refuses_two_inputs_for_one_output_and_another_s_output(tmp_path):
    for name in ('a/x.txt', 'b/x.txt'):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text_of(60) + '\n')
    redpajama.main(redpajama.Config(str(tmp_path / 'a'), str(tmp_path / 'out')))
    with pytest.raises(Refused, match=r'x.counts.json: was made from .*a/x.txt, not from .*b/x.txt'):
        redpajama.main(redpajama.Config(str(tmp_path / 'b'), str(tmp_path / 'out')))
    (tmp_path / 'a/x.jsonl').write_text(json.dumps({'text': text_of(60)}) + '\n')
    with pytest.raises(Refused, match=r'x.txt: .*x.jsonl would be .*x.jsonl too'):
        redpajama.main(redpajama.Config(str(tmp_path / 'a'), str(tmp_path / 'new')))

def test_rows_of_parquet_that_name_themselves_or_nothing_are_bad_audio(tmp_path):
    pa = pytest.importorskip('pyarrow')
    pq = pytest.importorskip('pyarrow.parquet')
    path = tmp_path / 'x.parquet'
    pq.write_table(pa.table({'audio': [{'bytes': None, 'path': 'x.parquet#0'}, {'bytes': None, 'path': 'a\0b'}]}), path)
    for row in (0, 1):
        with pytest.raises(BadAudio, match='MISSING: the row names'):
            load_audio(f'{path}#{row}')
    with pytest.raises(BadAudio, match='no file has such a name'):
        load_audio('a\0b.wav')

def test_the_hours_that_the_docs_quote_from_sims_are_those_of_its_table_4():
    root = Path(__file__).parents[1]
    rows = json.loads((root / 'papers' / 'published.json').read_text(encoding='utf-8'))['rows']
    hours = {row['data'].lower().replace('-', ''): row['hours'] for row in rows if row['table'] == 'SIMS 4'}
    page = (root / 'docs' / 'your_speech.md').read_text(encoding='utf-8')
    quoted = dict(re.findall(r'^\| `(\w+)` \| [\d,]+ \| ([\d,]+) \|', page, re.M))
    assert len(quoted) == len(hours) == 7
    for corpus, text in quoted.items():
        assert float(text.replace(',', '')) == hours[corpus.replace('_', '').replace('peoples', 'people')]
    for module in (librilight, peoples_speech, swc, tedlium):
        text = quoted[module.__name__.removeprefix('corpora.')]
        assert f'SIMS Table 4: {text}' in ' '.join(module.__doc__.split()) or f'Table 4 has {text}' in module.__doc__
    rates = {row['data']: row['tokens'] / row['hours'] / 3600 for row in rows if row['table'] == 'SIMS 4'}
    swc_rate = rates.pop('SWC')
    assert 18.9 < min(rates.values()) and max(rates.values()) < 20.5 and swc_rate < 10
