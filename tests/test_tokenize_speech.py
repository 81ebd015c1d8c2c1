"""tokenize_speech.py against closed forms, scipy, plain transformers, slow versions; audio and encoder made here."""
import itertools
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small import speech_like
from test_audio import BAD, half
from test_encoders import hubert, load, mimi, one_thread, whisper  # noqa: F401

import tokenize_speech
from configurator import Refused
from corpora.read import read_corpus
from speech.audio import RATE, load_audio
from speech.encoders import Encoder
from speech.fused import has_bfloat16
from speech.kmeans import load_centroids
from speech.units import Units, deduplicate, write_units_shard
from tokenize_speech import Config, main

# ruff: noqa: F811 - the arguments of tests are named as the fixtures that are imported above

LIBRISPEECH = Path(__file__).parents[2] / 'shared/data/librispeech_mini'

@pytest.fixture
def corpus(tmp_path):
    """Twelve good files of different rates, formats and lengths."""
    folder = tmp_path / 'audio'
    (folder / 'deep').mkdir(parents=True)
    for i, (rate, kind) in enumerate(itertools.product((16000, 22050, 8000, 48000), ('wav', 'flac', 'ogg'))):
        path = folder / ('deep' if i % 3 else '') / f'u{i:02d}.{kind}'
        soundfile.write(path, speech_like(.3 + .37 * i, i, rate), rate)
    (folder / 'u00.txt').write_text('one two\n')
    return folder

def config(audio, encoder, out, **settings):
    settings = {'shard_docs': 5, 'workers': 2} | settings
    return Config(audio=str(audio), out=str(out), encoder=str(encoder), layer=2, device='cpu', **settings)

def changed(cfg, **settings):
    return Config(**vars(cfg) | settings)

def write_manifest(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))

def tree(folder):
    """{relative path: bytes} of all files; without the command line and settings recorded in info.json."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}
    info = json.loads(files['info.json'])
    return files | {'info.json': {k: v for k, v in info.items() if k not in ('command', 'settings')}}

# --------------------------------------------------------------------------------------------------
# the units folder

def test_repeats_are_merged_as_groupby_merges_them():
    rng = np.random.default_rng(0)
    for n in range(40):
        frames = rng.integers(0, 3, n).astype(rng.choice([np.uint16, np.int64]))
        units, runs = deduplicate(frames)
        assert [(u, len(list(g))) for u, g in itertools.groupby(frames)] == list(zip(units, runs))

@pytest.fixture
def units_folder(tmp_path):
    """A units folder of two shards, and its documents (meta, units, runs) in its order."""
    folder = tmp_path / 'units'
    rng = np.random.default_rng(0)
    docs = []
    for i, n in enumerate((3, 0, 7, 5)):
        docs.append(({'id': f'd{i}'}, rng.integers(0, 50, n), rng.integers(1, 9, n)))
    write_units_shard(folder, 0, docs[0::2])
    write_units_shard(folder, 1, docs[1::2])
    (folder / 'info.json').write_text(json.dumps({'n_units': 50, 'documents': 4}))
    return folder, docs[0::2] + docs[1::2]

def test_units_come_back_as_written(units_folder):
    folder, docs = units_folder
    u = Units(folder)
    assert len(u) == 4 and u.first == [0, 2, 4]
    assert [m['id'] for m in u.meta] == ['d0', 'd2', 'd1', 'd3']
    for i, (meta, units, runs) in enumerate(docs):
        assert u.find(meta['id']) == i
        assert np.array_equal(u[i], [units, runs]) and u[i][0].dtype == np.uint16
    with pytest.raises(IndexError):
        u[4]
    with pytest.raises(KeyError):
        u.find('d9')

def test_numbers_that_uint16_cannot_hold_are_refused(tmp_path):
    for units, runs in (([70000], [1]), ([-1], [1]), ([1], [0]), ([1], [65536]), ([1, 2], [1])):
        with pytest.raises(Refused, match='a: (units|runs) must be'):
            write_units_shard(tmp_path, 0, [({'id': 'a'}, units, runs)])
    assert list(tmp_path.iterdir()) == []

def array(name, value):
    """A fault: the second shard's NAME.npy holds value."""
    return lambda folder: np.save(folder / '00001' / f'{name}.npy', value)

FAULTS = { # name: (what it does to folder f, message)
    'no folder': (lambda f: f.rename(f.with_name('gone')), 'units: no such folder; tokenize_speech.py makes it'),
    'unfinished': (lambda f: (f / 'info.json').unlink(), 'no info.json'),
    'bad info': (lambda f: (f / 'info.json').write_text('{'), 'info.json: not JSON'),
    'no n_units': (lambda f: (f / 'info.json').write_text('{}'), 'info.json: n_units is None'),
    'a shard gone': (lambda f: (f / '00000').rename(f / 'x'), 'shard 00000 is missing, 00001 is there'),
    'count': (lambda f: (f / 'info.json').write_text('{"n_units": 50, "documents": 9}'), '4 documents, info.json says'),
    'dtype': (array('units', np.zeros(5, np.int32)), '00001/units.npy: int32 of shape'),
    'matrix': (array('runs', np.ones((5, 1), np.uint16)), '00001/runs.npy: uint16 of shape'),
    'objects': (array('runs', np.array([{}, None])), '00001/runs.npy: not a whole .npy file'),
    'cut': (lambda f: half(f / '00001/units.npy'), '00001/units.npy: not a whole .npy file'),
    'empty': (lambda f: (f / '00001/units.npy').write_bytes(b''), '00001/units.npy: not a whole .npy file'),
    'offsets fall': (array('offsets', np.array([0, 6, 5])), '00001/offsets.npy: must rise from 0 to 5'),
    'offsets start': (array('offsets', np.array([1, 2, 5])), '00001/offsets.npy: must rise from 0 to 5'),
    'offsets end': (array('offsets', np.array([0, 0, 4])), '00001/offsets.npy: must rise from 0 to 5'),
    'unit': (array('units', np.full(5, 50, np.uint16)), '00001/units.npy: holds unit 50, info.json says 50 units'),
    'run of 0': (array('runs', np.zeros(5, np.uint16)), '00001/runs.npy: expected 5 run lengths'),
    'fewer runs': (array('runs', np.ones(4, np.uint16)), '00001/runs.npy: expected 5 run lengths'),
    'meta': (lambda f: (f / '00001/meta.jsonl').write_text('{}\n'), '00001/meta.jsonl: 1 lines, offsets.npy has 2 doc'),
    'numbers': (lambda f: (f / '00001/meta.jsonl').write_text('1\n2\n'), '00001/meta.jsonl:1: expected a JSON'),
    'meta cut': (lambda f: os.truncate(f / '00001/meta.jsonl', 20), '00001/meta.jsonl:2: not a line of JSON'),
}

@pytest.mark.parametrize('fault', FAULTS)
def test_a_faulty_units_folder_is_refused_by_the_name_of_the_file(units_folder, fault):
    folder, _ = units_folder
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(Refused) as e:
        Units(folder)
    assert message in str(e.value) and '\n' not in str(e.value), str(e.value)

# --------------------------------------------------------------------------------------------------
# the whole script

def test_a_folder_of_audio_becomes_the_units_of_each_file(corpus, hubert, tmp_path, capsys):
    main(config(corpus, hubert, tmp_path / 'out'))
    u = Units(tmp_path / 'out')
    encoder = load(hubert)
    ids = [m['id'] for m in u.meta]
    assert len(u) == 12 and len(u.units) == 3 and ids == sorted(ids)
    for i, meta in enumerate(u.meta):
        units, runs = u[i]
        wave = load_audio(meta['path'])
        assert meta['seconds'] == len(wave) / RATE
        assert np.array_equal(np.repeat(units, runs), encoder.encode([wave])[0])
        assert sum(runs) == len(wave) // 640 and (np.diff(units.astype(int)) != 0).all()
    assert u.meta[u.find('u00')]['text'] == 'one two' and u.meta[0]['speaker'] is None
    info = u.info
    assert (info['n_units'], info['frame_hz'], info['hop'], info['documents']) == (60, 25.0, 640, 12)
    assert info['units_hash'] == encoder.hash and info['settings']['layer'] == 2
    assert info['runs'] == sum(map(len, u.units))
    assert info['hours'] == round(sum(m['seconds'] for m in u.meta) / 3600, 4)
    assert 'shard 3/3 | 2 documents' in capsys.readouterr().out

def test_workers_shards_and_batches_do_not_change_the_units(corpus, hubert, tmp_path, monkeypatch):
    main(config(corpus, hubert, tmp_path / 'a'))
    main(config(corpus, hubert, tmp_path / 'b', workers=7))
    monkeypatch.setattr(tokenize_speech, 'POOL', 2)
    main(config(corpus, hubert, tmp_path / 'c', shard_docs=12))
    assert tree(tmp_path / 'a') == tree(tmp_path / 'b')
    a = Units(tmp_path / 'a')
    c = Units(tmp_path / 'c')
    for i in range(12):
        assert np.array_equal(a[i], c[i])

def interrupted_after(shards, cfg, monkeypatch):
    """Runs main until the encoder is called once more than so many times, then a KeyboardInterrupt ends it."""
    encode = Encoder.encode
    calls = []

    def dying(self, waves):
        calls.append(len(waves))
        if len(calls) > shards:
            raise KeyboardInterrupt
        return encode(self, waves)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, 'encode', dying)
        with pytest.raises(KeyboardInterrupt):
            main(cfg)

def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(corpus, hubert, tmp_path, monkeypatch, capsys):
    (corpus / 'bad.wav').write_text('x') # its failure must outlive the interruption too
    (corpus / 'talk.m4a').write_bytes(b'....ftypM4A ') # no document, and not forgotten either
    main(config(corpus, hubert, tmp_path / 'reference', max_fail_frac=.1))
    out = tmp_path / 'out'
    cfg = config(corpus, hubert, out, max_fail_frac=.1)
    for shards in (0, 1, 0, 1): # each time from where it was
        interrupted_after(shards, cfg, monkeypatch)
        assert not (out / 'info.json').exists()
    (out / '00002.tmp').mkdir() # a kill -9 leaves it
    (out / '00002.tmp/units.npy').write_text('half')
    for rank in (0, 5): # of a run of more processes
        (out / f'info.json.{rank}.tmp').write_text('half')
    capsys.readouterr()
    main(cfg)
    assert '2 of 3 shards were there already' in capsys.readouterr().out
    assert tree(out) == tree(tmp_path / 'reference')
    main(cfg) # nothing is left to do
    assert Units(out).info['failures'] == {'NOT_AUDIO': 1}
    assert Units(out).info['left_out'] == '1 .m4a (talk.m4a)'
    assert '3 of 3 shards were there already' in capsys.readouterr().out
    assert tree(out) == tree(tmp_path / 'reference')

def test_a_folder_begun_with_other_settings_is_refused_and_left_alone(corpus, hubert, tmp_path):
    out = tmp_path / 'out'
    cfg = config(corpus, hubert, out)
    main(cfg)
    before = tree(out)
    for settings, message in (({'shard_docs': 4}, 'shard_docs was 5, is now 4'),
                              ({'layer': 1}, 'layer was 2, is now 1'),
                              ({'window_s': 9.0}, 'window_s was 30.0, is now 9.0')):
        with pytest.raises(Refused, match=message):
            main(changed(cfg, **settings))
    (corpus / 'u00.txt').write_text('another text')
    with pytest.raises(Refused, match=r'other settings \(corpus was'):
        main(cfg)
    assert tree(out) == before
    assert json.loads(before['settings.json'])['dtype'] == Units(out).info['dtype'] == 'float32'
    (out / 'settings.json').unlink()
    with pytest.raises(Refused, match='is there already'):
        main(cfg)

@pytest.mark.skipif(not has_bfloat16(), reason='this processor has no products of bfloat16')
def test_a_folder_keeps_the_dtype_it_was_begun_with(corpus, hubert, tmp_path):
    cfg = config(corpus, hubert, tmp_path / 'out', dtype='bfloat16')
    main(cfg)
    before = tree(tmp_path / 'out')
    assert json.loads(before['settings.json'])['dtype'] == Units(tmp_path / 'out').info['dtype'] == 'bfloat16'
    with pytest.raises(Refused, match=r"begun with other settings \(dtype was 'bfloat16', is now 'float32'\)"):
        main(changed(cfg, dtype=None))
    assert tree(tmp_path / 'out') == before

def test_bad_files_are_listed_and_do_not_end_the_run(corpus, hubert, tmp_path, capfd):
    main(config(corpus, hubert, tmp_path / 'reference', shard_docs=99))
    manifest = [{'id': p.stem, 'audio': str(p)} for p in sorted(corpus.rglob('u*')) if p.suffix != '.txt']
    for name, (_, make) in BAD.items():
        make(tmp_path / name)
        manifest.append({'id': name, 'audio': str(tmp_path / name)})
    write_manifest(tmp_path / 'list.jsonl', manifest)
    main(config(tmp_path / 'list.jsonl', hubert, tmp_path / 'out', max_fail_frac=.7, max_seconds=10.0))
    u = Units(tmp_path / 'out')
    failures = [json.loads(line) for line in (tmp_path / 'out/failures.jsonl').read_text().splitlines()]
    assert {f['id']: f['class'] for f in failures} == {name: kind for name, (kind, _) in BAD.items()}
    assert all(f['path'] == str(tmp_path / f['id']) and f['message'] for f in failures)
    assert len(u) == 12
    assert sum(u.info['failures'].values()) == len(BAD) and u.info['failures']['TRUNCATED'] == 11
    reference = Units(tmp_path / 'reference')
    for i, meta in enumerate(reference.meta):
        assert np.array_equal(u[u.find(meta['id'].split('/')[-1])], reference[i])

def test_too_many_bad_files_end_the_run_and_mended_ones_let_it_go_on(corpus, hubert, tmp_path):
    path = corpus / 'deep/u10.flac'
    data = path.read_bytes()
    path.write_text('oops')
    out = tmp_path / 'out'
    cfg = config(corpus, hubert, out, shard_docs=4)
    with pytest.raises(Refused, match=r'1 of 12 files cannot be used \(1 NOT_AUDIO\), max_fail_frac is 0.01; see '):
        main(cfg)
    assert json.loads((out / 'failures.jsonl').read_text())['id'] == 'deep/u10'
    assert (out / '00000').is_dir() and not (out / 'info.json').exists()
    path.write_bytes(data)
    main(cfg)
    assert len(Units(out)) == 12 and (out / 'failures.jsonl').read_text() == ''

def test_a_corpus_without_one_usable_file_is_refused(hubert, tmp_path):
    (tmp_path / 'audio').mkdir()
    (tmp_path / 'audio/a.wav').write_text('x')
    with pytest.raises(Refused, match='not one usable file'):
        main(config(tmp_path / 'audio', hubert, tmp_path / 'out', max_fail_frac=1.0))

def test_words_of_the_corpus_are_kept_in_samples_in_the_order_of_the_units(hubert, tmp_path):
    lines = []
    for name, words in (('b', [['so', 0.1, 0.25005], ['what', None, 0.9]]), ('a', None), ('c', [])):
        soundfile.write(tmp_path / f'{name}.wav', speech_like(1, 1), RATE)
        lines.append({'id': name, 'audio': f'{name}.wav', 'words': words, 'speaker': 'anna'})
    write_manifest(tmp_path / 'manifest.jsonl', lines)
    main(config(tmp_path, hubert, tmp_path / 'out'))
    written = [json.loads(line) for line in (tmp_path / 'out/00000/words.jsonl').read_text().splitlines()]
    assert written == [{'id': 'a', 'words': None},
                       {'id': 'b', 'words': [['so', 1600, 4001], ['what', None, 14400]]},
                       {'id': 'c', 'words': []}]
    assert [m['speaker'] for m in Units(tmp_path / 'out').meta] == ['anna'] * 3

def test_bad_settings_and_corpora_are_refused_before_anything_is_written(corpus, hubert, tmp_path):
    for settings, match in (({'audio': ''}, 'expected --audio'), ({'margin_s': 15.0}, 'two margins must fit'),
                            ({'shard_docs': 0}, 'shard_docs is 0'), ({'max_fail_frac': 1.5}, 'between 0 and 1')):
        with pytest.raises(Refused, match=match):
            Config(**{'audio': 'x', 'out': 'y'} | settings)
    out = tmp_path / 'out'
    cfg = config(corpus, hubert, out)
    for settings, match in (({'audio': str(tmp_path / 'none')}, 'no such file'), ({'device': 'tpu'}, 'device is tpu'),
                            ({'kmeans': str(tmp_path / 'none')}, 'no such k-means file'),
                            ({'encoder': str(tmp_path)}, 'expected a HubertModel'), ({'layer': 7}, 'has 3 layers')):
        with pytest.raises(Refused, match=match):
            main(changed(cfg, **settings))
    soundfile.write(corpus / 'u00.flac', speech_like(1, 1), RATE)
    with pytest.raises(Refused, match="two utterances with the id 'u00': .*u00.* and .*u00"):
        main(cfg)
    assert not out.exists()

@pytest.mark.skipif(not LIBRISPEECH.is_dir(), reason='librispeech_mini is not here')
def test_real_speech_goes_through_with_its_words(hubert, tmp_path):
    lines = [json.loads(line) for line in (LIBRISPEECH / 'manifest.jsonl').read_text().splitlines()[:6]]
    write_manifest(tmp_path / 'list.jsonl', [line | {'audio': str(LIBRISPEECH / line['audio'])} for line in lines])
    main(config(tmp_path / 'list.jsonl', hubert, tmp_path / 'out'))
    u = Units(tmp_path / 'out')
    for i, line in enumerate(sorted(lines, key=lambda line: line['id'])):
        units, runs = u[i]
        assert u.meta[i]['text'] == line['text'] and abs(u.meta[i]['seconds'] - line['duration']) < .01
        assert runs.sum() == soundfile.info(LIBRISPEECH / line['audio']).frames // 640
        assert len(np.unique(units)) > 5

# --------------------------------------------------------------------------------------------------
# other encoders, other corpora, long files

def test_mimi_gets_24_khz_and_needs_no_k_means(corpus, mimi, tmp_path):
    main(config(corpus, mimi, tmp_path / 'out'))
    u = Units(tmp_path / 'out')
    encoder = Encoder(mimi, 1, None)
    assert (u.info['kind'], u.info['frame_hz'], u.info['hop'], u.info['n_units']) == ('mimi', 12.5, 1280, 128)
    assert u.info['layer'] is u.info['kmeans'] is None
    for i, meta in enumerate(u.meta):
        wave = load_audio(meta['path'], rate=24000)
        assert np.array_equal(np.repeat(*u[i]), encoder.encode([wave])[0])
        assert meta['seconds'] == len(wave) / 24000
    with pytest.raises(Refused, match='has its own codebook'):
        main(config(corpus, mimi, tmp_path / 'other', kmeans=str(tmp_path / 'k.safetensors')))

def test_whisper_goes_through_whole(corpus, whisper, tmp_path):
    main(config(corpus, whisper, tmp_path / 'out', window_s=4.0, margin_s=.4))
    u = Units(tmp_path / 'out')
    assert (u.info['kind'], u.info['layer'], u.info['frame_hz'], u.info['n_units']) == ('whisper', 2, 25.0, 60)
    assert len(u) == 12
    for i, meta in enumerate(u.meta):
        assert u[i][1].sum() == len(load_audio(meta['path'])) // 640
    with pytest.raises(Refused, match='window_s is 30, .* takes 4 s at once'):
        main(config(corpus, whisper, tmp_path / 'other'))

def test_a_long_file_is_encoded_while_it_is_read_and_gets_the_same_units(corpus, hubert, tmp_path, monkeypatch):
    soundfile.write(corpus / 'b.flac', speech_like(9.03, 1, 44100), 44100)
    soundfile.write(corpus / 'c.wav', np.full(5 * RATE, .25), RATE) # silent, as only its end shows
    soundfile.write(corpus / 'd.wav', speech_like(8, 1), RATE)
    half(corpus / 'd.wav')
    soundfile.write(corpus / 'e.wav', np.append(speech_like(4, 1), np.nan), RATE, 'FLOAT')
    settings = dict(window_s=1.0, margin_s=.2, max_fail_frac=.5)
    main(config(corpus, hubert, tmp_path / 'reference', **settings))
    monkeypatch.setattr(tokenize_speech, 'LONG', .5)
    read = tokenize_speech.stream_audio
    blocks = []

    def in_small_blocks(*args):
        for block in read(*args):
            for part in np.array_split(block, 1 + len(block) // 5000):
                blocks.append(len(part))
                yield part

    monkeypatch.setattr(tokenize_speech, 'stream_audio', in_small_blocks)
    main(config(corpus, hubert, tmp_path / 'out', **settings))
    assert tree(tmp_path / 'out') == tree(tmp_path / 'reference') and len(blocks) > 100
    assert Units(tmp_path / 'out').info['failures'] == {'NONFINITE': 1, 'SILENT': 1, 'TRUNCATED': 1}

MINE = """
def utterances(root):
    rest = {'path': f'{root}/x.wav', 'end': None, 'text': None, 'speaker': 's', 'words': None}
    return [{'id': 'b', 'start': None, **rest}, {'id': 'a', 'start': .5, **rest}]
"""

def test_another_corpus_is_read_by_its_own_file(hubert, tmp_path, monkeypatch):
    soundfile.write(tmp_path / 'x.wav', speech_like(1, 1), RATE)
    with pytest.raises(Refused, match=r"corpus is 'mine', expected one of corpora/\*.py: .*folder, .*librispeech") as e:
        main(config(tmp_path, hubert, tmp_path / 'out', corpus='mine'))
    assert '\n' not in str(e.value)
    names = str(e.value).split(': ')[-1].split(', ')
    helpers = ('__init__', 'download', 'read', 'spokenswag', 'table', 'tree') # files of corpora/ without utterances
    assert not set(helpers) & set(names)
    for name in ('../folder', 'folder.py', '', *helpers):
        with pytest.raises(Refused, match='expected one of corpora'):
            main(config(tmp_path, hubert, tmp_path / 'out', corpus=name))
    (tmp_path / 'corpora').mkdir()
    (tmp_path / 'corpora/mine.py').write_text(MINE)
    monkeypatch.setattr('corpora.read.FOLDER', tmp_path / 'corpora')
    monkeypatch.setattr('corpora.__path__', [str(tmp_path / 'corpora')])
    main(config(tmp_path, hubert, tmp_path / 'out', corpus='mine'))
    u = Units(tmp_path / 'out')
    assert [m['id'] for m in u.meta] == ['a', 'b']
    assert [u[i][1].sum() for i in (0, 1)] == [12, 25]

# --------------------------------------------------------------------------------------------------
# centroids from the corpus

def test_centroids_are_fitted_on_the_corpus_and_used(corpus, hubert, tmp_path, capsys):
    def fitted(name, **settings):
        path = tmp_path / f'{name}.safetensors'
        main(config(corpus, hubert, '', fit_kmeans=20, kmeans=str(path), **settings))
        return load_centroids(path)

    a = fitted('a')
    other_seed = fitted('c', seed=1)
    few_frames = fitted('d', fit_seconds=3.0)
    assert '20 centroids of 74 frames' in capsys.readouterr().out
    assert a.shape == (20, 32) and not torch.equal(a, other_seed)
    assert torch.equal(a, fitted('b', workers=1))
    encoder = load(hubert)
    paths = [next(corpus.rglob(f'u{i:02d}.[!t]*')) for i in range(12)]
    x = torch.from_numpy(np.concatenate([encoder.features(load_audio(path)) for path in paths]))

    def inertia(centroids):
        return torch.cdist(x, centroids).min(1).values.square().mean()

    assert inertia(a) < .8 * inertia(x[:20])
    assert inertia(a) < 1.02 * inertia(other_seed) and inertia(a) < inertia(few_frames)
    main(config(corpus, hubert, tmp_path / 'out', kmeans=str(tmp_path / 'a.safetensors')))
    u = Units(tmp_path / 'out')
    assert u.info['n_units'] == 20 and len(np.unique(np.concatenate(u.units))) > 15

def test_a_fit_that_cannot_be_is_refused(corpus, hubert, mimi, tmp_path, monkeypatch):
    new = str(tmp_path / 'k.safetensors')
    cases = (('too few for 9999 centroids', hubert, {'fit_kmeans': 9999}), ('nothing to fit', mimi, {}),
             ('is there already', hubert, {'kmeans': str(hubert / 'kmeans.safetensors')}))
    for match, folder, settings in cases:
        with pytest.raises(Refused, match=match):
            main(config(corpus, folder, '', **{'fit_kmeans': 5, 'kmeans': new} | settings))
    with pytest.raises(Refused, match='with --kmeans=NEW'):
        config(corpus, hubert, '', fit_kmeans=5)
    copies = tmp_path / 'copies'
    copies.mkdir()
    for i in range(4):
        soundfile.write(copies / f'{i}.wav', speech_like(.5, 0), 16000)
    with pytest.raises(Refused, match='48 frames, 12 of them distinct, too few for 13 centroids'):
        main(config(copies, hubert, '', fit_kmeans=13, kmeans=new))
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(Refused, match='in one process'):
        main(config(corpus, hubert, '', fit_kmeans=5, kmeans=new))
    assert not Path(new).exists()

# --------------------------------------------------------------------------------------------------
# several processes

def spawn(cfg, rank, world):
    """A process of its own that runs main as torchrun's rank does."""
    def work():
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        main(cfg)

    process = multiprocessing.get_context('fork').Process(target=work)
    process.start()
    return process

def on_ranks(cfg, world):
    """Exit codes of `world` processes."""
    processes = [spawn(cfg, rank, world) for rank in range(world)]
    for process in processes:
        process.join(900)
    return [process.exitcode for process in processes]

@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(corpus, hubert, tmp_path):
    (corpus / 'bad.wav').write_text('x')
    for world in (1, 3, 9): # the last are more ranks than shards
        cfg = config(corpus, hubert, tmp_path / str(world), shard_docs=2, max_fail_frac=.2)
        assert on_ranks(cfg, world) == [0] * world
    assert tree(tmp_path / '1') == tree(tmp_path / '3') == tree(tmp_path / '9')
    assert len(Units(tmp_path / '3').units) == 7

def test_tasks_of_an_array_need_a_number_and_a_count_alone_and_come_in_any_order(corpus, hubert, tmp_path, monkeypatch):
    main(config(corpus, hubert, tmp_path / 'whole', shard_docs=2))
    monkeypatch.setenv('WORLD_SIZE', '3')
    for task in '2', '0', '1':
        assert not (tmp_path / 'array' / 'info.json').exists()
        monkeypatch.setenv('RANK', task)
        main(config(corpus, hubert, tmp_path / 'array', shard_docs=2))
    assert tree(tmp_path / 'array') == tree(tmp_path / 'whole')

def test_the_last_rank_to_finish_writes_info_and_one_that_fails_holds_nobody_up(corpus, hubert, tmp_path, capfd):
    out = tmp_path / 'out'
    cfg = config(corpus, hubert, out, shard_docs=2)
    for _ in range(2):
        spawn(cfg, 1, 2).join(900)
        assert not (out / 'info.json').exists()
    assert 'rank 1 is done, 3 of 6 shards are other ranks' in capfd.readouterr().out
    spawn(cfg, 0, 2).join(900)
    assert len(Units(out)) == 12
    (corpus / 'deep/u01.flac').write_text('x') # in the first shard, of rank 0
    cfg = config(corpus, hubert, tmp_path / 'other', shard_docs=2)
    assert on_ranks(cfg, 2) == [1, 0] and not (tmp_path / 'other/info.json').exists()
    assert sorted(p.name for p in (tmp_path / 'other').iterdir() if p.is_dir()) == ['00001', '00003', '00005']

def test_ranks_that_exceed_the_share_of_failures_together_are_refused_with_what_to_do(corpus, hubert, tmp_path):
    for name in ('u00', 'u09'):
        next(corpus.rglob(f'{name}.[!t]*')).write_text('x')
    cfg = config(corpus, hubert, tmp_path / 'out', shard_docs=6, max_fail_frac=.2)
    assert on_ranks(cfg, 2) == [0, 0]
    message = '2 of 12 files cannot be used .*; when mended, delete the shards that list them and run'
    with pytest.raises(Refused, match=message):
        main(changed(cfg, max_fail_frac=.1))

def entries(folder):
    """How many files and folders there are below a folder, unfinished ones included."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))

def killed_at(cfg, world, n_entries):
    """Starts `world` processes and kills all of them when cfg.out holds so many entries."""
    processes = [spawn(cfg, rank, world) for rank in range(world)]
    while entries(Path(cfg.out)) < n_entries and any(process.is_alive() for process in processes):
        time.sleep(.005)
    for process in processes:
        process.kill()
        process.join()

@pytest.mark.slow
def test_runs_killed_at_any_moment_end_with_the_same_bytes_at_another_number_of_processes(corpus, hubert, tmp_path):
    for i in range(12, 40):
        soundfile.write(corpus / f'u{i}.flac', speech_like(1 + i / 10, i), RATE)
    (corpus / 'bad.wav').write_text('x')
    reference = tmp_path / 'reference'
    cfg = config(corpus, hubert, reference, shard_docs=3, max_fail_frac=.2)
    assert on_ranks(cfg, 1) == [0]
    rng = np.random.default_rng(0)
    complete = set() # shards at the moments of the kills
    for i, n_entries in enumerate(np.linspace(1, entries(reference), 10).astype(int)):
        out = tmp_path / f'k{i}'
        before, after = rng.choice([1, 2, 3], 2, replace=False).tolist()
        killed_at(changed(cfg, out=str(out)), before, n_entries)
        complete.add(len([p for p in out.glob('0*') if p.suffix != '.tmp']))
        assert on_ranks(changed(cfg, out=str(out)), after) == [0] * after
        assert tree(out) == tree(reference), f"killed {i}"
    assert len(complete) > 3, f"the kills met {complete} complete shards"

# --------------------------------------------------------------------------------------------------
# corpora that are refused

@pytest.mark.parametrize('change, message', [
    ({'start': float('nan')}, "'a' is from nan to None s of"),
    ({'start': 2.0, 'end': 1.0}, "'a' is from 2.0 to 1.0 s of"),
    ({'end': float('inf')}, "expected rising seconds"),
    ({'id': 'caf\udce9', 'path': '/x/caf\udce9.wav'}, "has a name that is not UTF-8")])
def test_utterances_that_cannot_be_are_refused_before_anything_is_made(tmp_path, monkeypatch, change, message):
    utterance = {'id': 'a', 'path': '/x/a.wav', **dict.fromkeys(('start', 'end', 'text', 'speaker', 'words'))}
    monkeypatch.setattr('corpora.folder.in_any_order', lambda root: iter([utterance | change]))
    with pytest.raises(Refused, match=message):
        read_corpus(Config(audio=str(tmp_path), out=str(tmp_path / 'out')))

def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / 'in' / 'shut').mkdir(parents=True)
    scandir = os.scandir

    def shut(path):
        if str(path).endswith('shut'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', shut)
    with pytest.raises(Refused, match='shut: cannot be listed .Permission denied'):
        read_corpus(Config(audio=str(tmp_path / 'in'), out=str(tmp_path / 'out')))
