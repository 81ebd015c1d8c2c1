"""Segments of frames: the exact cut, what the encoder makes of it, and the folder that it ends in."""
from itertools import combinations
from math import inf

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import speech_like
from test_encoders import hubert, mimi  # noqa: F401
from test_tokenize_speech import corpus  # noqa: F401

import tokenize_speech
from configurator import Refused
from corpora.folder import utterances
from speech.audio import load_audio
from speech.encoders import Encoder
from speech.kmeans import load_centroids, load_segments, merge
from speech.syllables import best_cut, cut_costs, means, segment, similarities
from speech.unit_cache import load_encoder
from speech.units import Units

EMBEDDED = 'tiny/hubert/kmeans.safetensors'

def normalized_cut(x, begin, end, window):
    """1 - W(S, S) / W(S, all) of frames begin..end-1, from the definition."""
    x = x - x.mean(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = abs(np.arange(len(x))[:, None] - np.arange(len(x)))
    W = np.where(apart < window, np.maximum(x @ x.T, 0), 0)
    return 1 - W[begin:end, begin:end].sum() / W[begin:end].sum()

@pytest.mark.parametrize('F, K, window', [(9, 3, 4), (10, 4, 10), (7, 7, 3), (8, 2, 4), (1, 1, 2)])
def test_the_cut_is_the_best_of_all(F, K, window):
    for seed in range(5):
        x = np.cumsum(np.random.default_rng(seed).standard_normal((F, 5)), 0)
        if F == 1: # which is its own mean
            assert best_cut(cut_costs(similarities(x, window)), 1).tolist() == [1]
            continue
        least = inf
        for inner in combinations(range(1, F), K - 1):
            edges = [0, *inner, F]
            if max(np.diff(edges)) <= window:
                cost = sum(normalized_cut(x, a, b, window) for a, b in zip(edges, edges[1:]))
                if cost < least - 1e-9:
                    least = cost
                    best = edges[1:]
        assert best_cut(cut_costs(similarities(x, window)), K).tolist() == best

def test_there_are_as_many_segments_as_can_be():
    x = np.random.default_rng(0).standard_normal((20, 3))
    for K, n in ((6, 6), (0, 4), (1, 4), (99, 20)): # of 5 frames at most
        lengths = segment(x, K, 5)
        assert len(lengths) == n and lengths.sum() == 20 and 1 <= lengths.min() and lengths.max() <= 5
    x = np.repeat(np.eye(4)[[0, 1, 2, 0]], [3, 5, 2, 4], axis=0) # frames alike stay together
    lengths = segment(x, 4, 6)
    assert lengths.tolist() == [3, 5, 2, 4] and np.array_equal(means(x, lengths), np.eye(4)[[0, 1, 2, 0]])

def hits(times, truth, tolerance):
    return int((abs(times[:, None] - truth).min(1) <= tolerance).sum())

def test_boundaries_of_words_are_met_better_than_by_a_uniform_cut():
    """At 5 a second, within 30 ms. tiny/audio has exact times of words, and none of syllables."""
    encoder = Encoder('tiny/hubert', 4, load_centroids(EMBEDDED))
    score = {'cut': 0, 'uniform': 0}
    for u in list(utterances('tiny/audio'))[:10]:
        h = encoder.features(load_audio(u['path']))
        lengths = segment(h, round(len(h) / 5), 12)
        truth = np.array([time for _, *times in u['words'] for time in times])
        score['cut'] += hits(np.cumsum(lengths)[:-1] / 25, truth, .03)
        score['uniform'] += hits(np.arange(1, len(lengths)) * len(h) / len(lengths) / 25, truth, .03)
    assert score['cut'] > 1.1 * score['uniform'] > 0

@pytest.fixture(scope='module')
def syllables(tmp_path_factory):
    """A k-means file of 12 clusters of segments, of which 7 units are made, fitted to tiny/audio."""
    path = tmp_path_factory.mktemp('syllables') / 'k.safetensors'
    tokenize_speech.main(tokenize_speech.Config(audio='tiny/audio', kmeans=str(path), fit_kmeans=12, merge=7,
                                                segment='syllables', rate=6.25, device='cpu', fit_seconds=30))
    return path

def test_segments_become_units_and_runs(syllables):
    encoder = load_encoder('tiny/hubert', 4, syllables, 'cpu')
    assert (encoder.n_units, encoder.segment_rate) == (7, 6.25) and len(encoder.centroids) == 12
    wave = speech_like(7.3, 1)
    [rows] = encoder.encode([wave])
    units, runs = encoder.runs(rows)
    assert runs.sum() == len(wave) // 640 == 182 and len(runs) == 46 and runs.max() <= 12 # 182 / 25 * 6.25 = 45.5
    frames = Encoder('tiny/hubert', 4, load_centroids(EMBEDDED)).features(wave)
    assert np.array_equal(runs, segment(frames, 46, 12))
    distances = torch.cdist(torch.from_numpy(means(frames, runs)), encoder.centroids)
    assert np.array_equal(units, encoder.labels[distances.argmin(1)])

def test_long_waves_have_the_rate_and_are_the_same_in_blocks(syllables):
    centroids, segments = load_centroids(syllables), load_segments(syllables)
    encoder = Encoder('tiny/hubert', 4, centroids, window_s=3, margin_s=.4, **segments)
    waves = [speech_like(s, i) for i, s in enumerate((11.7, .1, 3))]
    alone = [encoder.encode([wave])[0] for wave in waves]
    for wave, rows, together in zip(waves, alone, encoder.encode(waves)):
        assert np.array_equal(rows, together)
        assert np.array_equal(rows, encoder.encode_blocks(np.array_split(wave, 4)))
        assert rows[:, 1].sum() == len(wave) // 640
    assert abs(len(alone[0]) - 11.7 * 6.25) <= 1

def test_a_folder_of_syllables_says_so(syllables, corpus, tmp_path):  # noqa: F811
    def tokenize(out, **changes):
        settings = {'encoder': 'tiny/hubert', 'device': 'cpu', 'shard_docs': 5, **changes}
        tokenize_speech.main(tokenize_speech.Config(audio=str(corpus), out=str(tmp_path / out), **settings))
    tokenize('units', kmeans=str(syllables))
    info = Units(tmp_path / 'units').info
    assert (info['segment'], info['rate'], info['n_units'], info['frame_hz']) == ('syllables', 6.25, 7, 25)
    frames = Encoder('tiny/hubert', 4, load_centroids(EMBEDDED))
    assert info['units_hash'] not in (frames.hash, Encoder('tiny/hubert', 4, load_centroids(syllables)).hash)
    with pytest.raises(Refused, match='of segments at --rate=6.25, asked for are segments at --rate=5'):
        tokenize('b', kmeans=str(syllables), segment='syllables', rate=5.0)
    with pytest.raises(Refused, match='of frames, asked for are segments at --rate=6.25'):
        tokenize('b', segment='syllables')

def test_rates_that_frames_cannot_have_are_refused(syllables, mimi):  # noqa: F811
    for rate in (1.9, 25.5):
        with pytest.raises(Refused, match=r'the encoder has 25 frames a second.*expected 2 to 25'):
            Encoder('tiny/hubert', 4, load_centroids(EMBEDDED), rate=rate)
    with pytest.raises(Refused, match='the units of Mimi are entries of its codebooks'):
        Encoder(mimi, 1, None, rate=6.25)
    for changes, words in (({'segment': 'words'}, "expected syllables"),
                           ({'merge': 5, 'fit_kmeans': 4}, 'at most fit_kmeans'),
                           ({'rate': 5.0}, 'add --segment=syllables')):
        with pytest.raises(Refused, match=words):
            tokenize_speech.Config(audio='a', kmeans='k', out='o', **changes)

def test_merged_clusters_are_those_of_scikit_learn():
    cluster = pytest.importorskip('sklearn.cluster')
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((40, 3)))
    labels = merge(x, torch.ones(40), 6)
    theirs = cluster.AgglomerativeClustering(6, linkage='ward').fit_predict(x.numpy())
    assert sorted(labels.unique().tolist()) == list(range(6))
    assert np.array_equal(labels[:, None] == labels, theirs[:, None] == theirs)

def test_clusters_are_joined_where_the_squares_grow_least():
    x = torch.tensor([[0.], [1], [5], [5.5], [20]])
    assert merge(x, torch.tensor([1, 1, 1, 1, 1]), 3).tolist() == [0, 0, 1, 1, 2]
    assert merge(x, torch.tensor([1, 1, 100, 100, 1]), 4).tolist() == [0, 0, 1, 2, 3] # many rows would move

def test_labels_are_in_the_file(syllables):
    tensors = load_file(syllables)
    assert tensors['rate'] == 6.25 and tensors['labels'].shape == (12,) and len(tensors['labels'].unique()) == 7
    assert load_segments(EMBEDDED) == {}
