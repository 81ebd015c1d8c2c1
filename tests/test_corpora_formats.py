"""corpora/lhotse.py, nemo.py, parquet.py, webdataset.py: what other tools write, as lines and bytes made by hand."""
import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from small import speech_like

from configurator import Refused
from corpora import lhotse, nemo, parquet, webdataset
from corpora.tree import utterance
from speech.audio import RATE, BadAudio, load_audio

ARGUMENTS = {'start': None, 'end': None, 'text': None, 'speaker': None, 'words': None}

def doc(id, path, **fields):
    return utterance(id, str(path), **{**ARGUMENTS, **fields})

def refusal(reader, root):
    with pytest.raises(Refused) as e:
        list(reader.utterances(root))
    return str(e.value)

def encoded(wave, format='FLAC'):
    with io.BytesIO() as f:
        soundfile.write(f, wave, RATE, format=format, subtype='PCM_16')
        return f.getvalue()

# --------------------------------------------------------------------------------------------------
# lhotse

def recording(id, path, channels=(0,), **fields):
    source = {'type': 'file', 'channels': list(channels), 'source': str(path)}
    return {'id': id, 'sources': [source], 'sampling_rate': RATE, 'num_samples': 4 * RATE, 'duration': 4.0,
            'channel_ids': list(channels), **fields}

def supervision(id, start, duration, text, **fields):
    return {'id': id, 'recording_id': 'a', 'start': start, 'duration': duration, 'channel': 0, 'text': text, **fields}

def alignment(*words):
    """word: (text, start, duration), as Lhotse 1.33 writes it, with a score that is absent."""
    return {'alignment': {'word': [[*word, None] for word in words]}}

def cut(id, start, duration, supervisions, **fields):
    return {'id': id, 'start': start, 'duration': duration, 'channel': 0, 'supervisions': supervisions,
            'recording': recording('a', 'a.wav'), 'type': 'MonoCut', **fields}

def write_manifest(path, lines):
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
    return path

def rounded(words):
    return [[word, round(start, 6), round(end, 6)] for word, start, end in words]

def test_supervisions_are_the_utterances_of_the_recordings_beside_them(tmp_path):
    (tmp_path / 'a.wav').write_bytes(encoded(speech_like(4, 0), 'WAV'))
    write_manifest(tmp_path / 'x_recordings_train.jsonl.gz', [recording('a', 'a.wav'), recording('b', '/far/b.flac')])
    manifest = write_manifest(tmp_path / 'x_supervisions_train.jsonl.gz', [
        supervision('s2', 1.5, 1.0, 'two words', speaker='A', **alignment(('two', 1.5, .25), ('words', 2.0, .5))),
        supervision('s1', 0.5, 0.75, 'one', recording_id='b'),
        supervision('s3', 3, 1, None)])
    docs = list(lhotse.utterances(manifest))
    assert [u['id'] for u in docs] == ['s1', 's2', 's3']
    assert docs[0] == doc('s1', '/far/b.flac', start=0.5, end=1.25, text='one')
    assert docs[2] == doc('s3', tmp_path / 'a.wav', start=3, end=4)
    assert rounded(docs[1].pop('words')) == [['two', 0.0, 0.25], ['words', 0.5, 1.0]]
    assert docs[1] == {k: v for k, v in doc('s2', tmp_path / 'a.wav', start=1.5, end=2.5, text='two words',
                                             speaker='A').items() if k != 'words'}
    write_manifest(tmp_path / 'x_recordings_train.jsonl.gz', [recording('a', 'a.wav')])
    assert 'train.jsonl.gz:2: recording b is not in' in refusal(lhotse, manifest)

@pytest.mark.parametrize('times_of', ['recording', 'cut'])
def test_words_of_a_cut_count_from_its_start_whichever_way_the_alignment_counts(tmp_path, times_of):
    """Lhotse leaves alignments in the time of the recording when it cuts; its aligners write the time of the cut."""
    shift = 1.5 if times_of == 'recording' else 0.0
    supervisions = [supervision('s2', 1.0, 0.5, 'you', speaker='B', **alignment(('you', 1.0 + shift, .5))),
                    supervision('s1', 0.25, 0.5, ' thank ', speaker='A', **alignment(('thank', 0.25 + shift, .5))),
                    supervision('s3', 1.6, 0.1, '', speaker='A')]
    manifest = write_manifest(tmp_path / 'cuts.jsonl', [cut('c', 1.5, 2.0, supervisions)])
    u, = lhotse.utterances(manifest)
    assert (u['start'], u['end'], u['text'], u['speaker']) == (1.5, 3.5, 'thank you', None)
    assert rounded(u['words']) == [['thank', 0.25, 0.75], ['you', 1.0, 1.5]]

def test_words_outside_their_supervision_are_left_out_and_counted(tmp_path, capsys):
    far = supervision('s', 0.0, 0.5, 'far', **alignment(('far', 9.0, .2)))
    unaligned = supervision('t', 0.6, 0.4, 'no times')
    manifest = write_manifest(tmp_path / 'cuts.jsonl', [cut('c', 1.5, 1.0, [far]), cut('d', 0.0, 1.0, [unaligned])])
    docs = list(lhotse.utterances(manifest))
    assert [(u['text'], u['words']) for u in docs] == [('far', None), ('no times', None)]
    assert '1 of 2 utterances come without their words' in capsys.readouterr().out

def test_a_cut_of_all_channels_is_read_and_one_of_several_is_refused(tmp_path):
    stereo = recording('a', 'a.wav', channels=(0, 1))
    both = cut('c', 0.0, 1.0, [], channel=[0, 1], type='MultiCut', recording=stereo)
    assert list(lhotse.utterances(write_manifest(tmp_path / 'cuts.jsonl', [both])))[0]['path'] == 'a.wav'
    one = cut('c', 0.0, 1.0, [], recording=stereo)
    message = refusal(lhotse, write_manifest(tmp_path / 'cuts.jsonl', [one]))
    assert 'cuts.jsonl:1: channel 0 of recording a, which has the channels [0, 1]' in message

@pytest.mark.parametrize('line, message', [
    (cut('c', 0.0, 1.0, [], type='MixedCut'), 'a MixedCut, expected cuts of one recording'),
    (cut('c', 0.0, 1.0, [], recording=recording('a', 'a.wav', transforms=[{'name': 'Speed'}])),
     'recording a is changed by Speed'),
    (cut('c', 0.0, 1.0, [], recording={'id': 'a', 'sources': [{'type': 'url'}]}),
     'recording a has the sources url, expected one'),
    (cut('c', '0', 1.0, []), "'start' is '0', not what Lhotse writes"),
    (cut('c', 0.0, 1.0, None), "'supervisions' is 'None', not what"),
    (cut('c', 0.0, 1.0, [supervision('s', 0, 1, 'a', alignment={'word': [['a']]})]), 'alignment of s: expected [word'),
    ({'audio_filepath': 'a.wav', 'duration': 1.0, 'text': 'of NeMo'}, 'a line without a type, expected cuts')])
def test_what_cannot_be_read_as_it_sounds_is_refused_by_its_line(tmp_path, line, message):
    manifest = write_manifest(tmp_path / 'cuts.jsonl', [cut('b', 0.0, 1.0, []), line])
    assert f'cuts.jsonl:2: {message}' in refusal(lhotse, manifest)

def test_resampling_is_no_change_of_a_recording(tmp_path):
    resampled = recording('a', 'a.wav', transforms=[{'name': 'Resample', 'kwargs': {'source_sampling_rate': 44100}}])
    manifest = write_manifest(tmp_path / 'cuts.jsonl', [cut('c', 0.0, 1.0, [], recording=resampled)])
    assert [u['id'] for u in lhotse.utterances(manifest)] == ['c']
    assert 'expected a manifest of Lhotse' in refusal(lhotse, tmp_path)

# --------------------------------------------------------------------------------------------------
# nemo

def test_a_nemo_manifest_gives_its_files_and_parts_of_files(tmp_path):
    manifest = write_manifest(tmp_path / 'train.json', [
        {'audio_filepath': 'clips/b.wav', 'duration': 2.0, 'text': ' hello ', 'lang': 'en'},
        {'audio_filepath': str(tmp_path / 'clips/a.flac'), 'duration': 2.0, 'offset': 1.5, 'text': ''},
        {'audio_filepath': 'clips/a.flac', 'offset': 4, 'speaker': 'joe'}])
    clips = tmp_path / 'clips'
    assert list(nemo.utterances(manifest)) == [
        doc('a@1.5', clips / 'a.flac', start=1.5, end=3.5),
        doc('a@4', clips / 'a.flac', start=4, speaker='joe'),
        doc('b', clips / 'b.wav', text='hello')]
    for line, message in (({'audio': 'a.wav'}, "expected a string 'audio_filepath', got 'None'"),
                          ({'audio_filepath': 'a.wav', 'offset': '1'}, "'offset' is '1', expected seconds"),
                          ({'audio_filepath': 'a.wav', 'text': 7}, "'text' is '7', expected a string")):
        assert f'train.json:1: {message}' in refusal(nemo, write_manifest(manifest, [line]))

# --------------------------------------------------------------------------------------------------
# parquet

def write_parquet(path, rows):
    pa = pytest.importorskip('pyarrow')
    pq = pytest.importorskip('pyarrow.parquet')
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path

def test_parquet_of_datasets_gives_bytes_or_paths_and_the_text_by_any_of_its_names(tmp_path):
    wave = np.round(speech_like(.5, 0) * 32767) / 32768
    (tmp_path / 'b.flac').write_bytes(encoded(wave))
    rows = [{'audio': {'bytes': encoded(wave, 'WAV'), 'path': 'a.wav'}, 'sentence': 'one', 'client_id': 'x', 'age': 7},
            {'audio': {'bytes': None, 'path': 'b.flac'}, 'sentence': '', 'client_id': None, 'age': 8}]
    file = write_parquet(tmp_path / 'train-00000-of-00002.parquet', rows)
    expected = [doc('train-00000-of-00002/000000', f'{file}#0', text='one', speaker='x'),
                doc('train-00000-of-00002/000001', f'{file}#1')]
    assert list(parquet.utterances(file)) == list(parquet.utterances(tmp_path)) == expected
    assert list(parquet.utterances(tmp_path / 'train-*.parquet')) == expected
    for u in expected:
        assert np.abs(load_audio(u['path']) - wave).max() < 1e-4
    write_parquet(tmp_path / 'test-00000-of-00001.parquet', rows)
    message = refusal(parquet, tmp_path)
    assert f"files of the splits test, train; name one of them: --audio='{tmp_path}/train-*.parquet'" in message
    assert '0 files have such a name' in refusal(parquet, tmp_path / 'dev-*.parquet')
    (tmp_path / 'data-00000-of-00001.arrow').write_bytes(b'')
    assert 'expected parquet, as the hub has it' in refusal(parquet, tmp_path)

# --------------------------------------------------------------------------------------------------
# webdataset

def write_tar(path, members):
    """members: {name: bytes or a JSON value}"""
    with tarfile.open(path, 'w') as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path

def test_webdataset_shards_are_read_without_unpacking_them(tmp_path):
    waves = [np.round(speech_like(.5 + i / 4, i) * 32767) / 32768 for i in range(3)]
    shard = write_tar(tmp_path / 'EN-B0.tar', {
        'k/b.flac': encoded(waves[0]), 'k/b.json': {'text': ' Hello.', 'speaker': 'S1', 'dnsmos': 3.3},
        'k/a.json': {'id': 'a'}, 'k/a.wav': encoded(waves[1], 'WAV'), 'k/a.txt': b'from the txt\n',
        'k/c.json': {'text': 'no audio'}})
    other = write_tar(tmp_path / 'EN-B1.tar', {'a.tar.flac': encoded(waves[2])})
    docs = list(webdataset.utterances(tmp_path))
    assert docs == [doc('EN-B0/k/a', f'{shard}#k/a.wav', text='from the txt'),
                    doc('EN-B0/k/b', f'{shard}#k/b.flac', text='Hello.', speaker='S1'),
                    doc('EN-B0/k/c', f'{shard}#k/c', text='no audio'),
                    doc('EN-B1/a', f'{other}#a.tar.flac')]
    assert list(webdataset.utterances(other)) == docs[3:]
    for u, wave in zip([docs[1], docs[0], docs[3]], waves):
        assert np.abs(load_audio(u['path']) - wave).max() < 1e-4
    assert np.array_equal(load_audio(docs[1]['path'], .125, .25), load_audio(docs[1]['path'])[2000:4000])
    with pytest.raises(BadAudio, match='k/c: MISSING: no such member'):
        load_audio(docs[2]['path'])
    with pytest.raises(BadAudio, match='gone.tar#k: MISSING'):
        load_audio(f'{tmp_path}/gone.tar#k')

@pytest.mark.parametrize('members, message', [
    ({'a.wav': b'1', 'a.flac': b'2'}, 'a.flac beside a.wav: two audio files of one key'),
    ({'a.wav': b'1', 'a.json': b'{'}, 'a.json: expected UTF-8 text or JSON'),
    ({'a.wav': b'1', 'a.json': [1]}, 'a.json: expected a JSON object'),
    ({'a.wav': b'1', 'a.txt': b'\xff\xfe'}, 'a.txt: expected UTF-8 text or JSON')])
def test_a_shard_that_says_two_things_or_none_is_refused_by_its_member(tmp_path, members, message):
    assert message in refusal(webdataset, write_tar(tmp_path / 's.tar', members))

def test_a_compressed_or_cut_shard_is_refused(tmp_path):
    shard = write_tar(tmp_path / 's.tar', {'a.wav': encoded(speech_like(1, 0), 'WAV'), 'b.wav': b'12'})
    data = shard.read_bytes()
    shard.write_bytes(gzip.compress(data))
    assert 'a compressed one has to be unpacked' in refusal(webdataset, shard)
    shard.write_bytes(data[:20000])
    assert 's.tar: cut' in refusal(webdataset, shard)
