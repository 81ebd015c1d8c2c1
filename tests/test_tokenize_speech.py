"""tokenize_speech.py against closed forms, scipy, plain transformers, slow versions; audio and encoder made here."""
import itertools
import json
import multiprocessing
import os
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small import speech_like
from test_audio import BAD, half
from test_encoders import (
    load,
    one_thread,  # noqa: F401 (fixtures)
    )

import tokenize_speech
from configurator import Refused
from corpora.read import read_corpus
from speech.audio import RATE, load_audio
from speech.encoders import Encoder
from speech.kmeans import load_centroids
from speech.units import Units, deduplicate, write_units_shard
from tokenize_speech import Config, main

LIBRISPEECH = Path(__file__).parents[2] / 'shared/data/librispeech_mini'

@pytest.fixture
def corpus(tmp_path):
    """Twelve good files of different rates, formats and lengths."""
    folder = tmp_path / 'audio'
    (folder / 'deep').mkdir(parents=True)
    for i, (rate, kind) in enumerate(itertools.product((16000, 22050, 8000, 48000), ('wav', 'flac', 'ogg'))):
        soundfile.write(folder / ('deep' if i % 3 else '') / f'u{i:02d}.{kind}', speech_like(.3 + .37 * i, i, rate),
                        rate)
    (folder / 'u00.txt').write_text('one two\n')
    return folder

def config(audio, encoder, out, **settings):
    return Config(audio=str(audio), out=str(out), encoder=str(encoder), layer=2, device='cpu',
                  **{'shard_docs': 5, 'workers': 2} | settings)

def tree(folder):
    """{relative path: bytes} of all files; without the command line and settings recorded in info.json."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}
    info = json.loads(files['info.json'])
    return files | {'info.json': {k: v for k, v in info.items() if k not in ('command', 'settings')}}

# ----------------------------------------------------------------------------------------------------------------
# the units folder

def test_repeats_are_merged_as_groupby_merges_them():
    rng = np.random.default_rng(0)
    for n in range(40):
        frames = rng.integers(0, 3, n).astype(rng.choice([np.uint16, np.int64]))
        units, runs = deduplicate(frames)
        assert [(u, len(list(g))) for u, g in itertools.groupby(frames)] == list(zip(units, runs))

def write_folder(folder, docs, shards=2, **info):
    for s in range(shards):
        write_units_shard(folder, s, docs[s::shards])
    (folder / 'info.json').write_text(json.dumps({'n_units': 50, 'documents': len(docs)} | info))
    return folder

@pytest.fixture
def made(tmp_path):
    rng = np.random.default_rng(0)
    docs = [({'id': f'd{i}'}, rng.integers(0, 50, n), rng.integers(1, 9, n)) for i, n in enumerate((3, 0, 7, 5))]
    return write_folder(tmp_path / 'units', docs), [docs[i] for i in (0, 2, 1, 3)]

def test_units_come_back_as_written(made):
    folder, docs = made
    u = Units(folder)
    assert len(u) == 4 and u.first == [0, 2, 4] and [m['id'] for m in u.meta] == ['d0', 'd2', 'd1', 'd3']
    for i, (meta, units, runs) in enumerate(docs):
        assert u.find(meta['id']) == i and np.array_equal(u[i], [units, runs]) and u[i][0].dtype == np.uint16
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
    return lambda f: np.save(f / '00001' / f'{name}.npy', value)

FAULTS = {
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
def test_a_faulty_units_folder_is_refused_by_the_name_of_the_file(made, fault):
    spoil, message = FAULTS[fault]
    spoil(made[0])
    with pytest.raises(Refused) as e:
        Units(made[0])
    assert message in str(e.value) and '\n' not in str(e.value), str(e.value)

# ----------------------------------------------------------------------------------------------------------------
# the whole script

def test_a_folder_of_audio_becomes_the_units_of_each_file(corpus, hubert, tmp_path, capsys): # noqa: F811
    main(config(corpus, hubert, tmp_path / 'out'))
    u, encoder = Units(tmp_path / 'out'), load(hubert)
    assert len(u) == 12 and len(u.units) == 3 and [m['id'] for m in u.meta] == sorted(m['id'] for m in u.meta)
    for i, meta in enumerate(u.meta):
        wave = load_audio(meta['path'])
        assert np.array_equal(np.repeat(*u[i]), encoder.encode([wave])[0]) and meta['seconds'] == len(wave) / RATE
        assert sum(u[i][1]) == len(wave) // 640 and (np.diff(u[i][0].astype(int)) != 0).all()
    assert u.meta[u.find('u00')]['text'] == 'one two' and u.meta[0]['speaker'] is None
    info = u.info
    assert (info['n_units'], info['frame_hz'], info['hop'], info['documents']) == (60, 25.0, 640, 12)
    assert info['units_hash'] == encoder.hash and info['settings']['layer'] == 2
    assert info['runs'] == sum(map(len, u.units))
    assert info['hours'] == round(sum(m['seconds'] for m in u.meta) / 3600, 4)
    assert 'shard 3/3 | 2 documents' in capsys.readouterr().out

def test_workers_shards_and_batches_do_not_change_the_units(corpus, hubert, tmp_path, monkeypatch): # noqa: F811
    main(config(corpus, hubert, tmp_path / 'a'))
    main(config(corpus, hubert, tmp_path / 'b', workers=7))
    monkeypatch.setattr(tokenize_speech, 'POOL', 2)
    main(config(corpus, hubert, tmp_path / 'c', shard_docs=12))
    a, b, c = tree(tmp_path / 'a'), tree(tmp_path / 'b'), Units(tmp_path / 'c')
    assert a == b
    for i in range(12):
        assert np.array_equal(Units(tmp_path / 'a')[i], c[i])

def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(corpus, hubert, tmp_path, monkeypatch, capsys): # noqa: F811
    (corpus / 'bad.wav').write_text('x') # its failure must outlive the interruption too
    main(config(corpus, hubert, tmp_path / 'whole', max_fail_frac=.1))
    encode = Encoder.encode
    for shards in (0, 1, 0, 1): # how many it finishes before it is killed, each time from where it was
        def dying(self, waves, left=[shards]):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return encode(self, waves)
        monkeypatch.setattr(Encoder, 'encode', dying)
        with pytest.raises(KeyboardInterrupt):
            main(config(corpus, hubert, tmp_path / 'out', max_fail_frac=.1))
        assert not (tmp_path / 'out/info.json').exists()
    monkeypatch.setattr(Encoder, 'encode', encode)
    (tmp_path / 'out/00002.tmp').mkdir() # a kill -9 leaves it
    (tmp_path / 'out/00002.tmp/units.npy').write_text('half')
    for rank in (0, 5): # of a run of more processes
        (tmp_path / f'out/info.json.{rank}.tmp').write_text('half')
    capsys.readouterr()
    main(config(corpus, hubert, tmp_path / 'out', max_fail_frac=.1))
    assert '2 of 3 shards were there already' in capsys.readouterr().out
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')
    main(config(corpus, hubert, tmp_path / 'out', max_fail_frac=.1)) # nothing left to do
    assert Units(tmp_path / 'out').info['failures'] == {'NOT_AUDIO': 1}
    assert '3 of 3 shards were there already' in capsys.readouterr().out
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')

def test_a_folder_begun_with_other_settings_is_refused_and_left_alone(corpus, hubert, tmp_path): # noqa: F811
    main(config(corpus, hubert, tmp_path / 'out'))
    before = tree(tmp_path / 'out')
    for settings, field in (({'shard_docs': 4}, 'shard_docs was 5, is now 4'), ({'layer': 1}, 'layer was 2, is now 1'),
                            ({'window_s': 9.0}, 'window_s was 30.0, is now 9.0')):
        with pytest.raises(Refused, match=field):
            main(Config(**vars(config(corpus, hubert, tmp_path / 'out')) | settings))
    (corpus / 'u00.txt').write_text('another text')
    with pytest.raises(Refused, match=r'other settings \(corpus was'):
        main(config(corpus, hubert, tmp_path / 'out'))
    assert tree(tmp_path / 'out') == before
    (tmp_path / 'out/settings.json').unlink()
    with pytest.raises(Refused, match='is there already'):
        main(config(corpus, hubert, tmp_path / 'out'))

def test_bad_files_are_listed_and_do_not_end_the_run(corpus, hubert, tmp_path, capfd): # noqa: F811
    main(config(corpus, hubert, tmp_path / 'good', shard_docs=99))
    manifest = [{'id': p.stem, 'audio': str(p)} for p in sorted(corpus.rglob('u*')) if p.suffix != '.txt']
    for name, (_, make) in BAD.items():
        make(tmp_path / name)
        manifest.append({'id': name, 'audio': str(tmp_path / name)})
    (tmp_path / 'list.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in manifest))
    main(config(tmp_path / 'list.jsonl', hubert, tmp_path / 'out', max_fail_frac=.7, max_seconds=10.0))
    u, good = Units(tmp_path / 'out'), Units(tmp_path / 'good')
    failures = [json.loads(line) for line in (tmp_path / 'out/failures.jsonl').read_text().splitlines()]
    assert {f['id']: f['class'] for f in failures} == {name: kind for name, (kind, _) in BAD.items()}
    assert all(f['path'] == str(tmp_path / f['id']) and f['message'] for f in failures)
    assert len(u) == 12 and sum(u.info['failures'].values()) == len(BAD) and u.info['failures']['TRUNCATED'] == 7
    for i, meta in enumerate(good.meta):
        assert np.array_equal(u[u.find(meta['id'].split('/')[-1])], good[i])

def test_too_many_bad_files_end_the_run_and_mended_ones_let_it_go_on(corpus, hubert, tmp_path): # noqa: F811
    bad = corpus / 'deep/u10.flac'
    data = bad.read_bytes()
    bad.write_text('oops')
    with pytest.raises(Refused, match=r'1 of 12 files cannot be used \(1 NOT_AUDIO\), max_fail_frac is 0.01; see '):
        main(config(corpus, hubert, tmp_path / 'out', shard_docs=4))
    assert json.loads((tmp_path / 'out/failures.jsonl').read_text())['id'] == 'deep/u10'
    assert (tmp_path / 'out/00000').is_dir() and not (tmp_path / 'out/info.json').exists()
    bad.write_bytes(data)
    main(config(corpus, hubert, tmp_path / 'out', shard_docs=4))
    assert len(Units(tmp_path / 'out')) == 12 and (tmp_path / 'out/failures.jsonl').read_text() == ''

def test_a_corpus_without_one_usable_file_is_refused(hubert, tmp_path): # noqa: F811
    (tmp_path / 'audio').mkdir()
    (tmp_path / 'audio/a.wav').write_text('x')
    with pytest.raises(Refused, match='not one usable file'):
        main(config(tmp_path / 'audio', hubert, tmp_path / 'out', max_fail_frac=1.0))

def test_words_of_the_corpus_are_kept_in_samples_in_the_order_of_the_units(hubert, tmp_path): # noqa: F811
    lines = []
    for name, words in (('b', [['so', 0.1, 0.25005], ['what', None, 0.9]]), ('a', None), ('c', [])):
        soundfile.write(tmp_path / f'{name}.wav', speech_like(1, 1), RATE)
        lines.append({'id': name, 'audio': f'{name}.wav', 'words': words, 'speaker': 'anna'})
    (tmp_path / 'manifest.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    main(config(tmp_path, hubert, tmp_path / 'out'))
    kept = [json.loads(line) for line in (tmp_path / 'out/00000/words.jsonl').read_text().splitlines()]
    assert kept == [{'id': 'a', 'words': None}, {'id': 'b', 'words': [['so', 1600, 4001], ['what', None, 14400]]},
                    {'id': 'c', 'words': []}]
    assert [m['speaker'] for m in Units(tmp_path / 'out').meta] == ['anna'] * 3

def test_bad_settings_and_corpora_are_refused_before_anything_is_written(corpus, hubert, tmp_path): # noqa: F811
    for settings, match in (({'audio': ''}, 'expected --audio'), ({'margin_s': 15.0}, 'two margins must fit'),
                            ({'shard_docs': 0}, 'shard_docs is 0'), ({'max_fail_frac': 1.5}, 'between 0 and 1')):
        with pytest.raises(Refused, match=match):
            Config(**{'audio': 'x', 'out': 'y'} | settings)
    out = tmp_path / 'out'
    for settings, match in (({'audio': str(tmp_path / 'none')}, 'no such file'), ({'device': 'tpu'}, 'device is tpu'),
                            ({'kmeans': str(tmp_path / 'none')}, 'no such k-means file'), ({'encoder': str(tmp_path)}, 'expected a HubertModel'), ({'layer': 7}, 'has 3 layers')):
        with pytest.raises(Refused, match=match):
            main(Config(**vars(config(corpus, hubert, out)) | settings))
    soundfile.write(corpus / 'u00.flac', speech_like(1, 1), RATE)
    with pytest.raises(Refused, match="two utterances with the id 'u00': .*u00.* and .*u00"):
        main(config(corpus, hubert, out))
    assert not out.exists()

@pytest.mark.skipif(not LIBRISPEECH.is_dir(), reason='librispeech_mini is not here')
def test_real_speech_goes_through_with_its_words(hubert, tmp_path): # noqa: F811
    lines = [json.loads(line) for line in (LIBRISPEECH / 'manifest.jsonl').read_text().splitlines()[:6]]
    absolute = [line | {'audio': str(LIBRISPEECH / line['audio'])} for line in lines]
    (tmp_path / 'list.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in absolute))
    main(config(tmp_path / 'list.jsonl', hubert, tmp_path / 'out'))
    u = Units(tmp_path / 'out')
    for i, line in enumerate(sorted(lines, key=lambda line: line['id'])):
        assert u.meta[i]['text'] == line['text'] and abs(u.meta[i]['seconds'] - line['duration']) < .01
        assert u[i][1].sum() == soundfile.info(LIBRISPEECH / line['audio']).frames // 640
        assert len(np.unique(u[i][0])) > 5

# ----------------------------------------------------------------------------------------------------------------
# other encoders, other corpora, long files

def test_mimi_gets_24_khz_and_needs_no_k_means(corpus, mimi, tmp_path): # noqa: F811
    main(config(corpus, mimi, tmp_path / 'out'))
    u, encoder = Units(tmp_path / 'out'), Encoder(mimi, 1, None)
    assert (u.info['kind'], u.info['frame_hz'], u.info['hop'], u.info['n_units']) == ('mimi', 12.5, 1280, 128)
    assert u.info['layer'] is u.info['kmeans'] is None
    for i, meta in enumerate(u.meta):
        wave = load_audio(meta['path'], rate=24000)
        assert np.array_equal(np.repeat(*u[i]), encoder.encode([wave])[0]) and meta['seconds'] == len(wave) / 24000
    with pytest.raises(Refused, match='has its own codebook'):
        main(config(corpus, mimi, tmp_path / 'other', kmeans=str(tmp_path / 'k.safetensors')))

def test_whisper_goes_through_whole(corpus, whisper, tmp_path): # noqa: F811
    main(config(corpus, whisper, tmp_path / 'out', window_s=4.0, margin_s=.4))
    u = Units(tmp_path / 'out')
    assert (u.info['kind'], u.info['layer'], u.info['frame_hz'], u.info['n_units'], len(u)) == ('whisper', 2, 25.0, 60, 12)
    for i, meta in enumerate(u.meta):
        assert u[i][1].sum() == len(load_audio(meta['path'])) // 640
    with pytest.raises(Refused, match='window_s is 30, .* takes 4 s at once'):
        main(config(corpus, whisper, tmp_path / 'other'))

def test_a_long_file_is_encoded_while_it_is_read_and_gets_the_same_units(corpus, hubert, tmp_path, monkeypatch): # noqa: F811
    soundfile.write(corpus / 'b.flac', speech_like(9.03, 1, 44100), 44100)
    soundfile.write(corpus / 'c.wav', np.full(5 * RATE, .25), RATE) # silent, as only its end shows
    soundfile.write(corpus / 'd.wav', speech_like(8, 1), RATE)
    half(corpus / 'd.wav')
    soundfile.write(corpus / 'e.wav', np.append(speech_like(4, 1), np.nan), RATE, 'FLOAT')
    settings = dict(window_s=1.0, margin_s=.2, max_fail_frac=.5)
    main(config(corpus, hubert, tmp_path / 'whole', **settings))
    monkeypatch.setattr(tokenize_speech, 'LONG', .5)
    read, blocks = tokenize_speech.stream_audio, []
    def in_small_blocks(*args):
        for block in read(*args):
            for part in np.array_split(block, 1 + len(block) // 5000):
                blocks.append(len(part))
                yield part
    monkeypatch.setattr(tokenize_speech, 'stream_audio', in_small_blocks)
    main(config(corpus, hubert, tmp_path / 'out', **settings))
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole') and len(blocks) > 100
    assert Units(tmp_path / 'out').info['failures'] == {'NONFINITE': 1, 'SILENT': 1, 'TRUNCATED': 1}

def test_another_corpus_is_read_by_its_own_file(hubert, tmp_path, monkeypatch): # noqa: F811
    module = types.ModuleType('corpora.mine')
    soundfile.write(tmp_path / 'x.wav', speech_like(1, 1), RATE)
    module.utterances = lambda root: [{'id': name, 'path': f'{root}/x.wav', 'start': start, 'end': None, 'text': None,
                                       'speaker': 's', 'words': None} for name, start in (('b', None), ('a', .5))]
    with pytest.raises(Refused, match=r"corpus is 'mine', expected one of corpora/\*.py: .*folder") as e:
        main(config(tmp_path, hubert, tmp_path / 'out', corpus='mine'))
    assert '\n' not in str(e.value)
    for name in ('../folder', 'folder.py', '', '__init__', 'tree', 'spokenswag'):
        with pytest.raises(Refused, match='expected one of corpora'):
            main(config(tmp_path, hubert, tmp_path / 'out', corpus=name))
    monkeypatch.setitem(sys.modules, 'corpora.mine', module)
    monkeypatch.setattr(Path, 'glob', lambda self, pattern: [Path('corpora/mine.py')] if self.name == 'corpora' else [])
    main(config(tmp_path, hubert, tmp_path / 'out', corpus='mine'))
    assert [m['id'] for m in Units(tmp_path / 'out').meta] == ['a', 'b']
    assert [r.sum() for _, r in map(Units(tmp_path / 'out').__getitem__, (0, 1))] == [12, 25]

# ----------------------------------------------------------------------------------------------------------------
# centroids from the corpus

def test_centroids_are_fitted_on_the_corpus_and_used(corpus, hubert, tmp_path, capsys): # noqa: F811
    fit = lambda name, **settings: main(config(corpus, hubert, '', fit_kmeans=20, kmeans=str(tmp_path / name), **settings))
    fit('a.safetensors'), fit('b.safetensors', workers=1), fit('c.safetensors', seed=1), fit('d.safetensors', fit_seconds=3.0)
    a, b, c, d = (load_centroids(tmp_path / f'{name}.safetensors') for name in 'abcd')
    assert a.shape == (20, 32) and torch.equal(a, b) and not torch.equal(a, c) and '20 centroids of 74 frames' in capsys.readouterr().out
    encoder, x = load(hubert), []
    for i in range(12):
        x.append(encoder.features(load_audio(next(corpus.rglob(f'u{i:02d}.[!t]*')))))
    x = torch.from_numpy(np.concatenate(x))
    spread = lambda c: torch.cdist(x, c).min(1).values.square().mean()
    assert spread(a) < .8 * spread(x[:20]) and spread(a) < 1.02 * spread(c) and spread(a) < spread(d)
    main(config(corpus, hubert, tmp_path / 'out', kmeans=str(tmp_path / 'a.safetensors')))
    u = Units(tmp_path / 'out')
    assert u.info['n_units'] == 20 and len(np.unique(np.concatenate(u.units))) > 15

def test_a_fit_that_cannot_be_is_refused(corpus, hubert, mimi, tmp_path, monkeypatch): # noqa: F811
    new = str(tmp_path / 'k.safetensors')
    for match, folder, settings in (('too few for 9999 centroids', hubert, {'fit_kmeans': 9999}), ('nothing to fit', mimi, {}),
                                    ('is there already', hubert, {'kmeans': str(hubert / 'kmeans.safetensors')})):
        with pytest.raises(Refused, match=match):
            main(config(corpus, folder, '', **{'fit_kmeans': 5, 'kmeans': new} | settings))
    with pytest.raises(Refused, match='with --kmeans=NEW'):
        config(corpus, hubert, '', fit_kmeans=5)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(Refused, match='in one process'):
        main(config(corpus, hubert, '', fit_kmeans=5, kmeans=new))
    assert not Path(new).exists()

# ----------------------------------------------------------------------------------------------------------------
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
        process.join(60)
    return [process.exitcode for process in processes]

def test_any_number_of_processes_writes_the_same_bytes(corpus, hubert, tmp_path): # noqa: F811
    (corpus / 'bad.wav').write_text('x')
    run = lambda name, world: on_ranks(config(corpus, hubert, tmp_path / name, shard_docs=2, max_fail_frac=.2), world)
    assert run('one', 1) == [0] and run('three', 3) == [0] * 3 and run('nine', 9) == [0] * 9 # more ranks than shards
    assert tree(tmp_path / 'one') == tree(tmp_path / 'three') == tree(tmp_path / 'nine')
    assert len(Units(tmp_path / 'three').units) == 7

def test_the_last_rank_to_finish_writes_info_and_one_that_fails_holds_nobody_up(corpus, hubert, tmp_path, capfd): # noqa: F811
    cfg = config(corpus, hubert, tmp_path / 'out', shard_docs=2)
    assert [spawn(cfg, 1, 2).join(60) or (tmp_path / 'out/info.json').exists() for _ in range(2)] == [False, False]
    assert 'rank 1 is done, 3 of 6 shards are other ranks' in capfd.readouterr().out
    assert spawn(cfg, 0, 2).join(60) or len(Units(tmp_path / 'out')) == 12
    (corpus / 'deep/u01.flac').write_text('x') # in the first shard, of rank 0
    cfg = config(corpus, hubert, tmp_path / 'other', shard_docs=2)
    assert on_ranks(cfg, 2) == [1, 0] and not (tmp_path / 'other/info.json').exists()
    assert sorted(p.name for p in (tmp_path / 'other').iterdir() if p.is_dir()) == ['00001', '00003', '00005']

def test_ranks_that_exceed_the_share_of_failures_together_are_refused_with_what_to_do(corpus, hubert, tmp_path): # noqa: F811
    for name in ('u00.flac', 'u09.wav'):
        next(corpus.rglob(name.split('.')[0] + '.[!t]*')).write_text('x')
    cfg = lambda frac: config(corpus, hubert, tmp_path / 'out', shard_docs=6, max_fail_frac=frac)
    assert on_ranks(cfg(.2), 2) == [0, 0]
    with pytest.raises(Refused, match='2 of 12 files cannot be used .*; when mended, delete the shards that list them and run'):
        main(cfg(.1))

def killed_at(cfg, world, after):
    """Starts `world` processes and kills all of them after so many seconds."""
    processes = [spawn(cfg, rank, world) for rank in range(world)]
    time.sleep(after)
    for process in processes:
        process.kill()
        process.join()

@pytest.mark.slow
def test_runs_killed_at_any_moment_end_with_the_same_bytes_at_another_number_of_processes(corpus, hubert, tmp_path): # noqa: F811
    for i in range(12, 40):
        soundfile.write(corpus / f'u{i}.flac', speech_like(1 + i / 10, i), RATE)
    (corpus / 'bad.wav').write_text('x')
    run = lambda name: config(corpus, hubert, tmp_path / name, shard_docs=3, max_fail_frac=.2)
    start = time.perf_counter()
    assert on_ranks(run('whole'), 1) == [0]
    took, rng, shards = time.perf_counter() - start, np.random.default_rng(0), set()
    for i in range(10):
        cfg, (before, after) = run(f'k{i}'), rng.choice([1, 2, 3], 2, replace=False)
        killed_at(cfg, before, rng.uniform(.05, 1) * took)
        there = sorted(Path(cfg.out).glob('0*')) if Path(cfg.out).exists() else []
        shards.add(len([p for p in there if p.suffix != '.tmp']))
        assert on_ranks(cfg, int(after)) == [0] * after
        assert tree(Path(cfg.out)) == tree(tmp_path / 'whole'), f"killed {i}"
    assert len(shards) > 3, f"the kills met {shards} complete shards"

# ---- what a corpus may not say

@pytest.mark.parametrize('change, message', [
    ({'start': float('nan')}, "'a' is from nan to None s of"), ({'start': 2.0, 'end': 1.0}, "'a' is from 2.0 to 1.0 s of"),
    ({'end': float('inf')}, "expected rising seconds"), ({'id': 'caf\udce9', 'path': '/x/caf\udce9.wav'}, "has a name that is not UTF-8")])
def test_utterances_that_cannot_be_are_refused_before_anything_is_made(tmp_path, monkeypatch, change, message):
    u = {'id': 'a', 'path': '/x/a.wav', 'start': None, 'end': None, 'text': None, 'speaker': None, 'words': None} | change
    monkeypatch.setattr('corpora.folder.utterances', lambda root: [u])
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
