"""
The packed corpus: what goes in comes out, as folders that the readers accept; items are joined as waves.
"""
import lzma
from types import SimpleNamespace

import numpy as np
import pytest
from small import K

from configurator import Refused
from corpora.folder import utterances
from speech.audio import load_audio
from speech.units import Units
from speech.words import Words
from tasks.tiny import pairs
from tiny.build.pack import Config as PackConfig
from tiny.build.pack import encode_part, export_audio, joined, kept, merged, with_joined, write_packed
from tiny.unpack import Config, main, read_packed

INFO = {'units_hash': 'abc', 'n_units': K, 'hop': 640, 'frame_hz': 25.0}

def make_docs(n=5, seed=0):
    rng, docs = np.random.default_rng(seed), []
    for i in range(n):
        runs = rng.integers(1, 5, 6 + i)
        edges = np.sort(rng.integers(0, runs.sum() * 640, 6))
        docs.append({'id': f's{i}', 'speaker': 'ab'[i % 2], 'samples': int(runs.sum() * 640 + 17), 'runs': runs,
                     'units': rng.integers(0, K, len(runs)), 'words': ['once', ' upon', ' once'] if i != 2 else [],
                     'starts': edges[0::2] if i != 2 else [], 'ends': edges[1::2] if i != 2 else []})
    return docs

def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for key in x:
            assert list(x[key]) == list(y[key]) if key not in ('samples',) else x[key] == y[key], key

def test_packing_round_trips_and_repeats_its_bytes(tmp_path):
    docs = make_docs()
    for name in 'ab':
        write_packed(tmp_path / name, docs, INFO)
    again, info = read_packed(tmp_path / 'a')
    same(docs, again)
    assert info == INFO and (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()

def test_a_corpus_spoken_in_two_goes_packs_to_the_same_bytes(tmp_path):
    docs = [{**d, 'id': f'm0000{i}/{name}'} for i in range(3) for name, d in zip(('context', 'right', 'topic'), make_docs())]
    write_packed(tmp_path / 'whole', docs, INFO)
    write_packed(tmp_path / 'first', docs[3:], INFO)
    write_packed(tmp_path / 'both', merged(kept(tmp_path / 'first', 'abc'), docs[:6]), INFO)
    assert (tmp_path / 'both').read_bytes() == (tmp_path / 'whole').read_bytes()
    again = [{**d, 'speaker': 'c'} for d in docs[3:6]]
    same(merged(docs, again), docs[:3] + again + docs[6:])
    with pytest.raises(Refused, match="units are of another encoder; --keep=False packs all of it anew"):
        kept(tmp_path / 'first', 'abd')

def test_unpacking_makes_folders_that_the_readers_accept_and_is_done_once(tmp_path, capsys):
    docs = make_docs()
    for name in ('stories', 'talk', 'items'):
        write_packed(tmp_path / f'{name}.npz.xz', docs, INFO)
    cfg = Config(packed=str(tmp_path), out=str(tmp_path / 'data'))
    main(cfg)
    units, words = Units(tmp_path / 'data' / 'talk'), Words(tmp_path / 'data' / 'talk' / 'words')
    assert [meta['id'] for meta in units.meta] == words.ids == [d['id'] for d in docs]
    for i, doc in enumerate(docs):
        assert units[i][0].tolist() == doc['units'].tolist() and units[i][1].tolist() == doc['runs'].tolist()
        assert units.meta[i]['text'] == ''.join(doc['words']) and words[i][1].tolist() == list(doc['starts'])
    main(cfg)
    assert capsys.readouterr().out.count('there already') == 3
    write_packed(tmp_path / 'talk.npz.xz', docs[:3], INFO)
    with pytest.raises(Refused, match="made from another"):
        main(cfg)

def test_a_joined_item_has_one_pause_where_the_edges_met():
    edge, pause = 1600, 4000
    wave = lambda n: np.concatenate([np.zeros(edge), np.arange(1, n + 1), np.zeros(edge)]).astype(np.int16)
    context = {'id': 'm0/context', 'speaker': 'joe', 'words': [['a', edge, edge + 500], [' b', edge + 500, edge + 1000]]}
    ending = {'id': 'm0/right', 'speaker': 'joe', 'words': [['c', edge, edge + 200]]}
    line, x = joined((context, wave(1000)), (ending, wave(200)), pause=0.25, edge=0.1)
    assert line['id'] == 'm0/context+right' and len(x) == edge + 1000 + pause + 200 + edge
    assert line['words'][-1] == [' c', edge + 1000 + pause, edge + 1200 + pause]
    assert x[edge + 1000 + pause] == 1 and not x[edge + 1000:edge + 1000 + pause].any()

def test_every_item_gets_its_seven_documents(tmp_path):
    spoken = [({'id': f'm0000{i}/{name}', 'speaker': 'joe', 'words': [['x', 2000, 3000]]}, np.ones(6400, np.int16))
              for i in range(2) for name in ('context', 'right', 'wrong', 'topic')]
    encoder = SimpleNamespace(encode=lambda waves: [np.arange(len(w) // 640) % K for w in waves])
    docs = encode_part(with_joined(spoken, PackConfig(speech='spoken')), encoder)
    assert len(docs) == 14
    for name in ('stories', 'talk', 'items'):
        write_packed(tmp_path / f'{name}.npz.xz', docs, INFO)
    main(Config(packed=str(tmp_path), out=str(tmp_path / 'data')))
    items = list(pairs(Units(tmp_path / 'data' / 'items')))
    assert [(p['id'], p['task']) for p in items] == [(f'm0000{i}', task) for i in range(2) for task in ('ssc', 'tsc')]
    assert items[0]['right']['prompt'][0] == 'x' and len(items[0]['right']['joined'][0]) == (6400 * 2 - 3200 + 4000) // 640

def test_exported_audio_is_read_back_by_the_folder_corpus(tmp_path):
    wave = (8000 * np.sin(np.arange(3200))).astype(np.int16)
    export_audio(tmp_path / 'audio', [({'id': 'm0/context', 'speaker': 'joe', 'words': [['a', 160, 800], [' b', 800, 3000]]}, wave)])
    (one,) = utterances(tmp_path / 'audio')
    assert (one['id'], one['text'], one['speaker']) == ('m0.context', 'a b', 'joe')
    assert one['words'] == [['a', 0.01, 0.05], ['b', 0.05, 0.1875]]
    assert (np.round(load_audio(one['path']) * 32768) == wave).all()

def test_broken_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(Refused, match="no such file"):
        read_packed(tmp_path / 'none')
    write_packed(tmp_path / 'a', make_docs(), INFO)
    whole = (tmp_path / 'a').read_bytes()
    for broken in (whole[:-20], b'', b'text', lzma.compress(b'not npz')):
        (tmp_path / 'b').write_bytes(broken)
        with pytest.raises(Refused, match="not a packed corpus") as e:
            read_packed(tmp_path / 'b')
        assert '\n' not in str(e.value)
