"""
Tests of tiny/build/pack.py and tiny/unpack.py: the packed corpus.

What goes in comes out, as folders that the readers accept. Items are joined as waves.
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
from tasks.tiny import knowledge, pairs
from tiny.build.pack import (
    ENDINGS,
    encode_part,
    export_audio,
    join_ending,
    merge,
    packed_docs,
    with_joined,
    write_packed,
)
from tiny.build.pack import Config as PackConfig
from tiny.unpack import Config, main, read_packed

INFO = {'units_hash': 'abc', 'n_units': K, 'hop': 640, 'frame_hz': 25.0}
PACKED = ('stories', 'talk', 'items')

def make_docs(n=5):
    """Random documents as write_packed takes them; the third has no words."""
    rng = np.random.default_rng(0)
    docs = []
    for i in range(n):
        runs = rng.integers(1, 5, 6 + i)
        n_samples = int(runs.sum() * 640)
        times = np.sort(rng.integers(0, n_samples, 6))
        has_words = i != 2
        docs.append({
            'id': f's{i}',
            'speaker': 'ab'[i % 2],
            'samples': n_samples + 17,
            'runs': runs,
            'units': rng.integers(0, K, len(runs)),
            'words': ['once', ' upon', ' once'] if has_words else [],
            'starts': times[0::2] if has_words else [],
            'ends': times[1::2] if has_words else [],
        })
    return docs

def assert_same(docs, expected):
    assert len(docs) == len(expected)
    for a, b in zip(docs, expected):
        assert a.keys() == b.keys()
        for key in a:
            if key == 'samples':
                assert a[key] == b[key]
            else:
                assert list(a[key]) == list(b[key]), key

def test_packing_round_trips_and_repeats_its_bytes(tmp_path):
    docs = make_docs()
    for name in 'ab':
        write_packed(tmp_path / name, docs, INFO)
    unpacked, info = read_packed(tmp_path / 'a')
    assert_same(unpacked, docs)
    assert info == INFO
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()

def test_a_corpus_spoken_in_two_goes_packs_to_the_same_bytes(tmp_path):
    docs = []
    for i in range(3):
        for name, doc in zip(('context', 'right', 'topic'), make_docs()):
            docs.append({**doc, 'id': f'm0000{i}/{name}'})
    write_packed(tmp_path / 'all', docs, INFO)
    write_packed(tmp_path / 'first', docs[3:], INFO)
    first = packed_docs(tmp_path / 'first', 'abc')
    write_packed(tmp_path / 'both', merge(first, docs[:6]), INFO)
    assert (tmp_path / 'both').read_bytes() == (tmp_path / 'all').read_bytes()
    replaced = [{**doc, 'speaker': 'c'} for doc in docs[3:6]]
    assert_same(merge(docs, replaced), docs[:3] + replaced + docs[6:])
    with pytest.raises(Refused, match="units are of another encoder; without --keep all of it is packed anew"):
        packed_docs(tmp_path / 'first', 'abd')

def test_unpacking_makes_folders_that_the_readers_accept_and_is_done_once(tmp_path, capsys):
    docs = make_docs()
    for name in PACKED:
        write_packed(tmp_path / f'{name}.npz.xz', docs, INFO)
    cfg = Config(packed=str(tmp_path), out=str(tmp_path / 'data'))
    main(cfg)
    units = Units(tmp_path / 'data' / 'talk')
    words = Words(tmp_path / 'data' / 'talk' / 'words')
    ids = [doc['id'] for doc in docs]
    assert words.ids == ids
    assert [meta['id'] for meta in units.meta] == ids
    for i, doc in enumerate(docs):
        assert units[i][0].tolist() == doc['units'].tolist()
        assert units[i][1].tolist() == doc['runs'].tolist()
        assert units.meta[i]['text'] == ''.join(doc['words'])
        assert words[i][1].tolist() == list(doc['starts'])
    main(cfg)
    assert capsys.readouterr().out.count('there already') == 3
    write_packed(tmp_path / 'talk.npz.xz', docs[:3], INFO)
    with pytest.raises(Refused, match="made from another"):
        main(cfg)

def test_a_joined_item_has_one_pause_where_the_edges_met():
    edge = 1600 # samples
    pause = 4000

    def wave(n):
        return np.concatenate([np.zeros(edge), np.arange(1, n + 1), np.zeros(edge)]).astype(np.int16)

    context_words = [['a', edge, edge + 500], [' b', edge + 500, edge + 1000]]
    context = {'id': 'm0/context', 'speaker': 'joe', 'words': context_words}
    ending = {'id': 'm0/right', 'speaker': 'joe', 'words': [['c', edge, edge + 200]]}
    line, x = join_ending((context, wave(1000)), (ending, wave(200)), pause=0.25, edge=0.1)
    assert line['id'] == 'm0/context+right'
    assert len(x) == edge + 1000 + pause + 200 + edge
    start = edge + 1000 + pause # of the ending
    assert line['words'] == [*context_words, [' c', start, start + 200]]
    assert x[start] == 1
    assert not x[edge + 1000:start].any()

def packed_items(tmp_path, name, letter):
    """Two items, packed and unpacked under `name` -> the units folder."""
    spoken = []
    for i in range(2):
        for segment in ('context', *ENDINGS[name]):
            line = {'id': f'{letter}0000{i}/{segment}', 'speaker': 'joe', 'words': [['x', 2000, 3000]]}
            spoken.append((line, np.ones(6400, np.int16)))

    def encode(waves):
        return [np.arange(len(w) // 640) % K for w in waves]

    joined = with_joined(spoken, ENDINGS[name], PackConfig(speech='spoken'))
    docs = encode_part(joined, SimpleNamespace(encode=encode))
    write_packed(tmp_path / f'{name}.npz.xz', docs, INFO)
    main(Config(packed=str(tmp_path), out=str(tmp_path / 'data'), parts=name))
    return Units(tmp_path / 'data' / name)

def test_every_item_gets_its_seven_documents(tmp_path):
    corpus = packed_items(tmp_path, 'items', 'm')
    assert len(corpus) == 14
    items = list(pairs(corpus))
    expected = [(f'm0000{i}', task) for i in range(2) for task in ('ssc', 'tsc')]
    assert [(item['id'], item['task']) for item in items] == expected
    right = items[0]['right']
    assert right['prompt'][0] == 'x'
    assert len(right['joined'][0]) == (6400 * 2 - 3200 + 4000) // 640

def test_a_knowledge_item_has_two_endings_and_one_pair(tmp_path):
    corpus = packed_items(tmp_path, 'knowledge', 'k')
    assert len(corpus) == 10
    assert [(item['id'], item['rows']) for item in knowledge(corpus)] == [('k00000', ('main',)), ('k00001', ('main',))]
    with pytest.raises(Refused, match="document 'k00000/topic' is missing; every item has context, right"):
        list(pairs(corpus))

def test_a_part_that_is_not_there_is_named():
    with pytest.raises(Refused, match="parts=stories,song: no part 'song'; there are stories, talk, items"):
        Config(parts='stories,song')
    assert Config(parts='all').names[:4] == (*PACKED, 'stories-more')

def test_exported_audio_is_read_back_by_the_folder_corpus(tmp_path):
    wave = (8000 * np.sin(np.arange(3200))).astype(np.int16)
    line = {'id': 'm0/context', 'speaker': 'joe', 'words': [['a', 160, 800], [' b', 800, 3000]]}
    export_audio(tmp_path / 'audio', [(line, wave)])
    utterance, = utterances(tmp_path / 'audio')
    assert utterance['id'] == 'm0.context'
    assert utterance['text'] == 'a b'
    assert utterance['speaker'] == 'joe'
    assert utterance['words'] == [['a', 0.01, 0.05], ['b', 0.05, 0.1875]]
    assert (np.round(load_audio(utterance['path']) * 32768) == wave).all()

def test_broken_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(Refused, match="no such file"):
        read_packed(tmp_path / 'none')
    path = tmp_path / 'a'
    write_packed(path, make_docs(), INFO)
    data = path.read_bytes()
    for broken in (data[:-20], b'', b'text', lzma.compress(b'not npz')):
        path.write_bytes(broken)
        with pytest.raises(Refused, match="not a packed corpus") as e:
            read_packed(path)
        assert '\n' not in str(e.value)
