"""speech/encoders.py against plain transformers, slow versions, known clusters; models are small and random."""
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import speech_like
from transformers import (
    HubertConfig,
    HubertModel,
    MimiConfig,
    MimiModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from configurator import Refused
from speech.audio import RATE, load_audio
from speech.encoders import Encoder, moments, windows
from speech.kmeans import centroids_path, fit_kmeans, load_centroids

GOLDEN = Path(__file__).parents[2] / 'shared/data/hubert_base_golden'
KERNELS = 10, 3, 3, 3, 3, 2, 2, 2 # 25 Hz; without the last: 50 Hz
STRIDES = 5, 2, 2, 2, 2, 2, 2, 2
TINY_HASH = '5013519d3b0cbfe0' # of tiny/hubert, as the vocoder and the corpus of tiny/ know it

def make_encoder(folder, kernels=KERNELS, strides=STRIDES, K=60, **settings):
    """A random HubertModel whose norms do something, and centroids that are frames of it: many units occur."""
    torch.manual_seed(0)
    settings = dict(feat_extract_norm='group', conv_pos_batch_norm=False, do_stable_layer_norm=False) | settings
    model = HubertModel(HubertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * len(kernels),
        conv_kernel=kernels, conv_stride=strides, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        initializer_range=.2, **settings)).eval()
    for name, p in itertools.chain(model.named_parameters(), model.named_buffers()):
        if 'norm' not in name or not p.is_floating_point():
            continue
        if name.endswith(('weight', 'var')):
            p.data.uniform_(.5, 1.5)
        else:
            p.data.normal_(0, .5)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    with torch.inference_mode():
        wave = speech_like(60 * K * math.prod(strides) / RATE / 10, 99)
        h = model(torch.from_numpy(wave)[None], output_hidden_states=True).hidden_states[2][0]
    save_centroids(h, K, folder)
    return folder

def save_centroids(h, K, folder):
    """K random frames of h as centroids."""
    save_file({'centroids': h[torch.randperm(len(h))[:K]].contiguous()}, folder / 'kmeans.safetensors')

def load(folder, **settings):
    return Encoder(folder, 2, load_centroids(folder / 'kmeans.safetensors'), **settings)

def assert_all_equal(units, expected):
    for a, b in zip(units, expected, strict=True):
        assert np.array_equal(a, b)

def excess_distance(h, centroids, units):
    """How much further than the nearest centroid is that of each frame's unit, at most."""
    distance = torch.cdist(h.double(), centroids.double())
    return (distance.gather(1, torch.from_numpy(units)[:, None])[:, 0] - distance.min(1).values).max()

@pytest.fixture(scope='session', autouse=True)
def one_thread():
    torch.set_num_threads(1)

@pytest.fixture(scope='session')
def hubert(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp('encoder') / 'hubert')

# --------------------------------------------------------------------------------------------------
# encoder

VARIANTS = {'group': {}, 'mhubert': dict(conv_pos_batch_norm=True),
            'layer': dict(feat_extract_norm='layer', conv_bias=True, conv_pos_batch_norm=True),
            'large': dict(feat_extract_norm='layer', do_stable_layer_norm=True),
            '50hz': dict(kernels=KERNELS[:-1], strides=STRIDES[:-1])}

@pytest.fixture(scope='session', params=VARIANTS)
def variant(request, tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp('encoder') / request.param, **VARIANTS[request.param])

def test_units_of_a_file_are_the_same_alone_and_in_a_batch(variant):
    waves = [speech_like(s, i) for i, s in enumerate((.05, .3, .77, 1.5, 2.01, 4, 7.3))]
    encoder = load(variant)
    encoder.batch = 10**9 # as on CUDA: all in one padded batch
    together = encoder.encode(waves)
    assert len(np.unique(np.concatenate(together))) > 20 # units that never change would prove nothing
    assert_all_equal([encoder.encode([wave])[0] for wave in waves], together)
    assert_all_equal(encoder.encode(waves[::-1])[::-1], together)
    for encoder.batch in (0, 3 * RATE): # none, other batches
        assert_all_equal(encoder.encode(waves), together)

def test_units_are_the_centroids_nearest_to_the_layer_of_plain_transformers(variant):
    model = HubertModel.from_pretrained(variant).eval()
    encoder = load(variant)
    assert len(encoder.net.model.encoder.layers) == 2 and encoder.net.pad == (40, 40)
    for wave in (speech_like(3, 5), speech_like(.9, 6)):
        with torch.inference_mode():
            x = torch.nn.functional.pad(torch.from_numpy(wave), (40, 40))[None]
            h = model(x, output_hidden_states=True).hidden_states[2][0]
        excess = excess_distance(h, encoder.centroids, encoder.encode([wave])[0])
        assert excess < 1e-4, f"a unit is {excess:.1e} further than the nearest"

def test_frames_are_exactly_samples_over_hop(hubert):
    encoder = load(hubert)
    rng = np.random.default_rng(0)
    assert encoder.hop == encoder.step == 640 and encoder.net.receptive == 720
    for n in rng.integers(640, 500000, 1000): # the convolutions one after another
        frames = n + 80
        for kernel, stride in zip(KERNELS, STRIDES):
            frames = len(range(0, frames - kernel + 1, stride))
        assert frames == n // 640
    wave = speech_like(4, 1)
    lengths = [*rng.integers(640, 20000, 16), 640, 1279, 1280, 64000]
    assert [len(u) for u in encoder.encode([wave[:n] for n in lengths])] == [n // 640 for n in lengths]
    with pytest.raises(Refused, match='639 samples are less than one frame of 640'):
        encoder.encode([np.zeros(639, np.float32)])

def test_windows_keep_every_frame_once_and_far_from_cuts_whatever_the_blocks():
    rng = np.random.default_rng(0)
    for n, size, margin, rest in itertools.product(range(1, 400, 7), (20, 50), (0, 3, 9), (0, 4)):
        wave = np.arange(n * 5 + rest, dtype=np.float32) # 5 samples a frame
        parts = list(windows([wave], 5, size, margin))
        assert [first + f for first, a, b, _ in parts for f in range(a, b)] == list(range(n))
        for i, (first, a, b, x) in enumerate(parts):
            is_last = i == len(parts) - 1
            frames = len(x) // 5
            assert 0 <= a < b <= frames <= size
            assert x[0] == 5 * first and len(x) == 5 * frames + rest * is_last
            assert (first == 0 or a >= margin) and (is_last or frames - b >= margin)
        blocks = np.split(wave, sorted(rng.integers(0, len(wave), 6)))
        for p, q in zip(parts, windows(blocks, 5, size, margin), strict=True):
            assert p[:3] == q[:3] and np.array_equal(p[3], q[3])

def test_long_audio_is_its_windows_stitched_and_depends_on_nothing_else(hubert):
    wave = speech_like(9.03, 3)
    encoder = load(hubert, window_s=4, margin_s=.4) # 100 and 10 frames
    units = encoder.encode([speech_like(1, 4), wave])[1]
    parts = [wave[:64000], wave[80 * 640:180 * 640], wave[160 * 640:]]
    first, second, third = (encoder.encode([part])[0] for part in parts)
    by_hand = np.concatenate([first[:90], second[10:90], third[10:]])
    assert np.array_equal(units, by_hand) and len(units) == len(wave) // 640
    uncut = load(hubert).encode([wave])[0] # shorter than 30 s
    assert np.array_equal(load(hubert, window_s=9.1).encode([wave])[0], uncut)

def test_half_precision_weights_load_and_the_hash_follows_the_weights_not_the_files(hubert, tmp_path):
    model = HubertModel.from_pretrained(hubert)
    model.half().save_pretrained(tmp_path / 'half')
    centroids = load_centroids(hubert / 'kmeans.safetensors')
    half = Encoder(tmp_path / 'half', 2, centroids)
    model.float().save_pretrained(tmp_path / 'again', max_shard_size='20KB') # the same numbers in other files
    again = Encoder(tmp_path / 'again', 2, centroids)
    waves = [speech_like(2, 1)]
    assert half.hash == again.hash
    assert_all_equal(half.encode(waves), again.encode(waves))
    hashes = {load(hubert).hash, half.hash, Encoder(tmp_path / 'half', 1, centroids).hash,
              Encoder(tmp_path / 'half', 2, centroids + 1).hash}
    assert len(hashes) == 4

def test_encoders_that_are_none_are_refused_in_one_line(hubert, tmp_path):
    def refused(match, name, layer=2, centroids=torch.zeros(5, 32)):
        with pytest.raises(Refused, match=match) as e:
            Encoder(name, layer, centroids)
        assert '\n' not in str(e.value)

    refused('nor a hub id that can be reached', tmp_path / 'nowhere')
    refused('has 3 layers, --layer=4', hubert, 4)
    refused('has 3 layers, --layer=0', hubert, 0)
    configs = ({'model_type': 'hubert', 'hidden_size': 'x'}, {'model_type': 'hubert', 'conv_stride': [5, 2]},
               {'model_type': ['x']}, {'model_type': 'mimi', 'codebook_size': 100}, [1])
    for i, config in enumerate(configs):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / 'config.json').write_text(json.dumps(config))
        refused('expected a HubertModel, WhisperModel or MimiModel', folder)
    refused('a hubert encoder needs centroids', hubert, 2, None)
    refused('centroids have 16 numbers, .* gives 32', hubert, 2, torch.zeros(5, 16))
    for name in ('other', 'missing', 'cut'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_bytes((hubert / 'config.json').read_bytes())
    (tmp_path / 'other/config.json').write_text('{"model_type": "bert"}')
    refused("holds a 'bert', expected a HubertModel, Whisper", tmp_path / 'other')
    refused("expected a model that transformers' HubertModel reads", tmp_path / 'missing')
    weights = load_file(hubert / 'model.safetensors')
    del weights['encoder.layers.1.attention.k_proj.weight']
    save_file(weights, tmp_path / 'missing/model.safetensors', {'format': 'pt'})
    refused('lacks 1 weights of the model, the first is encoder.layers.1', tmp_path / 'missing')
    (tmp_path / 'cut/model.safetensors').write_bytes((hubert / 'model.safetensors').read_bytes()[:5000])
    refused("expected a model that transformers' HubertModel reads", tmp_path / 'cut')

def test_centroids_are_read_from_safetensors_only(tmp_path):
    path = tmp_path / 'km.bin'
    path.write_bytes(b'\x80\x04]K\x01a.')
    with pytest.raises(Refused, match='a pickled k-means is never read'):
        load_centroids(path)
    with pytest.raises(Refused, match='no such k-means file'):
        load_centroids(tmp_path / 'none.safetensors')
    for tensors, match in (({'c': torch.zeros(5, 3)}, 'centroids'), ({'centroids': torch.zeros(5)}, r'shape \(5,\)'),
                           ({'centroids': torch.full((5, 3), math.nan)}, 'finite')):
        save_file(tensors, path)
        with pytest.raises(Refused, match=match):
            load_centroids(path)


# --------------------------------------------------------------------------------------------------
# Whisper and Mimi

def make_whisper(folder, K=60):
    """A random WhisperModel of 4-second windows, and centroids that are frames of it."""
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(
        d_model=32, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=48, decoder_layers=2,
        decoder_attention_heads=4, decoder_ffn_dim=48, num_mel_bins=20, vocab_size=70, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, max_source_positions=200,
        max_target_positions=20, init_std=.2)).eval()
    model.save_pretrained(folder)
    h = whisper_frames(model, [speech_like(4, 99), speech_like(4, 98)], 2).flatten(0, 1)
    save_centroids(h, K, folder)
    return folder

@torch.inference_mode()
def whisper_frames(model, waves, layer):
    """The plain way: transformers' features, all layers, two frames averaged by hand."""
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=4)
    x = extractor(waves, sampling_rate=RATE, return_tensors='pt').input_features
    h = model.encoder(x, output_hidden_states=True).hidden_states[layer]
    return (h[:, 0::2] + h[:, 1::2]) / 2

def make_mimi(folder):
    """A random MimiModel whose codebooks hold something."""
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(
        hidden_size=32, num_filters=4, codebook_size=128, codebook_dim=16, num_hidden_layers=2,
        vector_quantization_hidden_dimension=16, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, num_quantizers=4, upsample_groups=32, sliding_window=20)).eval()
    for name, p in model.named_buffers():
        if name.endswith('embed_sum'):
            p.normal_()
        if name.endswith('cluster_usage'):
            p.uniform_(.5, 2)
    with torch.inference_mode(): # entries that are frames: many units occur
        semantic = model.quantizer.semantic_residual_vector_quantizer
        wave = torch.from_numpy(speech_like(20, 99, 24000))
        h = semantic.input_proj(model.encoder(wave[None, None]).latents)[0].T
        codebook = semantic.layers[0].codebook
        codebook.embed_sum[:] = h[torch.randperm(len(h))[:128]] * codebook.cluster_usage[:, None]
    model.save_pretrained(folder)
    return folder

@pytest.fixture(scope='session')
def whisper(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp('encoder') / 'whisper')

@pytest.fixture(scope='session')
def mimi(tmp_path_factory):
    return make_mimi(tmp_path_factory.mktemp('encoder') / 'mimi')

def test_whisper_units_are_those_of_plain_transformers(whisper):
    model = WhisperModel.from_pretrained(whisper).eval()
    encoder = load(whisper, window_s=4, margin_s=.4)
    assert len(encoder.net.model.layers) == 2
    assert (encoder.kind, encoder.hop, encoder.step, encoder.n_units) == ('whisper', 640, 640, 60)
    waves = [speech_like(s, i) for i, s in enumerate((4, .04, 1.5, 3.03))]
    for wave, units in zip(waves, encoder.encode(waves)):
        assert len(units) == len(wave) // 640
        h = whisper_frames(model, [wave], 2)[0, :len(units)]
        features = torch.from_numpy(encoder.features(wave))
        assert features.shape == h.shape and (features - h).abs().max() < 1e-4 * h.abs().max()
        assert excess_distance(h, encoder.centroids, units) < 1e-4
    assert len(np.unique(units)) > 10

def test_the_mel_of_whisper_is_the_published_one(whisper):
    encoder = load(whisper, window_s=4, margin_s=.4)
    wave = speech_like(4, 7)
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=4)
    published = extractor(wave, sampling_rate=RATE, return_tensors='pt').input_features
    assert (encoder.net.log_mel(torch.from_numpy(wave)[None]) - published).abs().max() < 1e-5

def test_mimi_units_are_the_first_codebook_of_plain_transformers(mimi):
    model = MimiModel.from_pretrained(mimi).eval()
    encoder = Encoder(mimi, 1, None)
    assert (encoder.rate, encoder.step, encoder.hop, encoder.n_units, encoder.layer) == (24000, 1920, 1280, 128, None)
    assert centroids_path(mimi) is None
    for seconds in (.08, 1, 7.77):
        wave = speech_like(seconds, 3, 24000)
        [units] = encoder.encode([wave])
        with torch.inference_mode():
            codes = model.encode(torch.from_numpy(wave)[None, None]).audio_codes[0, 0].numpy()
        # transformers also has the last frame, which is not complete.
        assert len(units) == len(wave) // 1920 and np.array_equal(units, codes[:len(units)])
    assert len(np.unique(units)) > 20

@pytest.mark.parametrize('kind', ['whisper', 'mimi'])
def test_units_are_the_same_alone_together_and_in_blocks(kind, request):
    folder = request.getfixturevalue(kind)
    centroids = None if kind == 'mimi' else load_centroids(folder / 'kmeans.safetensors')
    encoder = Encoder(folder, 2, centroids, window_s=4, margin_s=.4)
    waves = [speech_like(s, i, encoder.rate) for i, s in enumerate((.09, .3, 1.5, 4, 2.01, 13.7))]
    alone = [encoder.encode([wave])[0] for wave in waves]
    for encoder.batch in (10**9, 9 * encoder.rate, 0):
        together = encoder.encode(waves)
        assert_all_equal(together, alone)
        assert len(np.unique(np.concatenate(together))) > 20
        for wave, units in zip(waves, alone):
            assert np.array_equal(encoder.encode_blocks(np.array_split(wave, 5)), units)
            assert len(units) == len(wave) // encoder.step

def test_windows_of_no_frames_are_refused(hubert, mimi):
    centroids = load_centroids(hubert / 'kmeans.safetensors')
    for arguments in ((hubert, 2, centroids, 'cpu', .08, .03), (mimi, 2, None, 'cpu', .2, .09)):
        with pytest.raises(Refused, match='more than two margins'):
            Encoder(*arguments)

def test_half_files_and_hashes_of_the_other_kinds(whisper, mimi, tmp_path):
    c = load_centroids(whisper / 'kmeans.safetensors')
    hashes = {Encoder(mimi, 1, None).hash}
    for layer, shift in ((1, 0), (2, 0), (2, 1)):
        hashes.add(Encoder(whisper, layer, c + shift, window_s=4, margin_s=1).hash)
    assert len(hashes) == 4 and Encoder(mimi, 8, None).hash in hashes
    model = MimiModel.from_pretrained(mimi)
    model.quantizer.acoustic_residual_vector_quantizer.layers[1].codebook.embed_sum += 1 # decides no unit
    model.decoder.upsample.conv.weight.data += 1
    model.save_pretrained(tmp_path / 'other')
    assert Encoder(tmp_path / 'other', 1, None).hash in hashes
    model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed_sum[5] += 1
    model.save_pretrained(tmp_path / 'another')
    assert Encoder(tmp_path / 'another', 1, None).hash not in hashes

def test_what_does_not_fit_the_kind_is_refused_in_one_line(whisper, mimi, tmp_path):
    c = load_centroids(whisper / 'kmeans.safetensors')
    cases = (('window_s is 30, .* takes 4 s at once', whisper, 2, c), ('has 3 layers, --layer=4', whisper, 4, c),
             ('a whisper encoder needs centroids', whisper, 2, None), ('has its own codebook', mimi, 2, c))
    for match, *arguments in cases:
        with pytest.raises(Refused, match=match) as e:
            Encoder(*arguments)
        assert '\n' not in str(e.value)
    projection = 'quantizer.semantic_residual_vector_quantizer.input_proj.weight'
    for kind, key in ((whisper, 'encoder.conv1.weight'), (mimi, projection)):
        folder = tmp_path / kind.name
        folder.mkdir()
        (folder / 'config.json').write_bytes((kind / 'config.json').read_bytes())
        weights = load_file(kind / 'model.safetensors')
        del weights[key]
        save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
        with pytest.raises(Refused, match='lacks 1 weights of the model, the first is .*' + key.rsplit('.', 2)[1]):
            Encoder(folder, 2, c if kind is whisper else None, window_s=4)

# --------------------------------------------------------------------------------------------------
# k-means

def inertia(x, centroids):
    return torch.cdist(x.double(), centroids.double()).min(1).values.square().mean().item()

def test_made_clusters_are_found_again_whatever_the_seed():
    rng = torch.Generator().manual_seed(0)
    centers = 10 * torch.randn(40, 8, generator=rng)
    clusters = torch.randint(40, (6000,), generator=rng)
    x = (centers[clusters] + .1 * torch.randn(6000, 8, generator=rng)) + 100
    for seed in range(3):
        centroids, mean = fit_kmeans(x, 40, seed)
        distance = torch.cdist(centroids - 100, centers)
        assert distance.min(0).values.max() < .1 and distance.argmin(1).unique().numel() == 40
        assert abs(mean - inertia(x, centroids)) < 1e-3 * mean and abs(mean - 8 * .01) < .01
    assert torch.equal(centroids, fit_kmeans(x, 40, seed)[0])
    assert not torch.equal(centroids, fit_kmeans(x, 40, 9)[0])

def test_as_many_centroids_as_rows_and_equal_rows_end():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    centroids, mean = fit_kmeans(x, 7)
    assert mean < 1e-6 and torch.cdist(centroids, x).min(1).values.max() < 1e-3
    assert fit_kmeans(torch.ones(50, 3), 5)[0].isfinite().all()

@pytest.mark.parametrize('K', [10, 100])
def test_the_distance_is_at_most_5_percent_above_that_of_sklearn(K):
    cluster = pytest.importorskip('sklearn.cluster')
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((5000, 16)) * rng.choice([.1, 3], (5000, 1))
    x = np.cumsum(steps, 0).astype(np.float32) % 20 # clumps and tails
    for seed in range(2):
        sklearn = cluster.KMeans(K, n_init=1, random_state=seed).fit(x).inertia_ / len(x)
        centroids, _ = fit_kmeans(torch.from_numpy(x), K, seed)
        distance = inertia(torch.from_numpy(x), centroids)
        assert distance < 1.05 * sklearn, f"{distance:.4f}, sklearn {sklearn:.4f}"

# --------------------------------------------------------------------------------------------------
# real HuBERT-base: 11.9 s, its layer 9 and its km500 units (the centroids themselves are not there)

@pytest.mark.skipif(not GOLDEN.is_dir(), reason='hubert_base_golden is not here')
def test_real_features_and_units_fit_each_other_and_the_frames(tmp_path):
    wave = load_audio(GOLDEN / '6313-76958-0021.flac')
    encoder = load(make_encoder(tmp_path / '50hz', **VARIANTS['50hz'])) # the strides of HuBERT-base, small and random
    h = torch.from_numpy(np.load(GOLDEN / 'sample.base.L9.npy'))
    units = np.array((GOLDEN / 'sample.base.L9.km500.km').read_text().split(), int)
    assert len(encoder.encode([wave])[0]) == len(wave) // 320 == len(h) == len(units) == 596
    ids = np.unique(units) # 233 of the 500; the mean of a unit's frames stands in for its centroid
    encoder.centroids = torch.stack([h[units == k].mean(0) for k in ids])
    agreement = (ids[encoder._nearest(h)] == units).mean()
    assert agreement > .85, f"{agreement:.3f} of the frames are nearest to their own unit's mean"

# --------------------------------------------------------------------------------------------------
# normalized waves

def make_layer_norm_encoder(folder, classes, do_normalize):
    """A random model of HuBERT-large's kind with its feature extractor, 3 layers; classes: (config, model)."""
    torch.manual_seed(0)
    make_config, make_model = classes
    model = make_model(make_config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_extract_norm='layer', conv_bias=True,
        do_stable_layer_norm=True, initializer_range=.2)).eval()
    for name, p in model.feature_extractor.named_parameters():
        if name.endswith('bias'):
            torch.nn.init.normal_(p, std=.2) # without biases, the first norm would undo any gain
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    h = plain_layer(model, speech_like(20, 99))
    save_centroids(h, 60, folder)
    return model

def plain_layer(model, x):
    """Layer 2 of a model of transformers, of a wave that is padded as Encoder pads it."""
    with torch.inference_mode():
        x = torch.nn.functional.pad(torch.from_numpy(np.asarray(x)), (40, 40))[None]
        return model(x, output_hidden_states=True).hidden_states[2][0]

@pytest.mark.parametrize('do_normalize', [True, False])
@pytest.mark.parametrize('kind', ['hubert', 'wav2vec2', 'wavlm'])
def test_waves_are_normalized_as_transformers_feature_extractor_does(kind, do_normalize, tmp_path):
    classes = {'hubert': (HubertConfig, HubertModel), 'wav2vec2': (Wav2Vec2Config, Wav2Vec2Model),
               'wavlm': (WavLMConfig, WavLMModel)}[kind]
    model = make_layer_norm_encoder(tmp_path, classes, do_normalize)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    encoder = load(tmp_path)
    other = load(tmp_path, normalize=not do_normalize)
    assert encoder.normalize is do_normalize and encoder.hash != other.hash
    for gain in (1, .02):
        wave = gain * speech_like(3, 5) + np.float32(.01)
        x = extractor(wave, sampling_rate=RATE, return_tensors='np').input_values[0]
        h = plain_layer(model, x)
        [units] = encoder.encode([wave])
        assert excess_distance(h, encoder.centroids, units) < 1e-4
        assert torch.allclose(torch.from_numpy(encoder.features(wave)), h[:len(units)], atol=1e-4)
        assert np.mean(other.encode([wave])[0] == units) < .9

def test_a_long_wave_is_normalized_as_a_whole_also_in_blocks(tmp_path):
    make_layer_norm_encoder(tmp_path, (HubertConfig, HubertModel), True)
    settings = dict(window_s=4, margin_s=1)
    wave = np.concatenate([speech_like(9, 1), .02 * speech_like(9, 2)])
    x = Wav2Vec2FeatureExtractor().zero_mean_unit_var_norm([wave], None)[0]
    expected = load(tmp_path, normalize=False, **settings).encode([x])[0]
    encoder = load(tmp_path, **settings)
    assert np.array_equal(encoder.encode([wave])[0], expected)
    blocks = np.array_split(wave, 7)
    assert np.mean(encoder.encode_blocks(blocks, *moments(blocks)) == expected) > .99 # moments in float64
    assert np.mean(load(tmp_path, normalize=False, **settings).encode([wave])[0] == expected) < .9

def test_published_recipes_and_hashes_of_encoders_with_group_norms_stay(hubert, tmp_path):
    """HuBERT-base's and mHuBERT's folders say do_normalize, slamkit and textlesslib do not normalize for them."""
    shutil.copytree(hubert, tmp_path / 'base')
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / 'base')
    encoder = load(tmp_path / 'base')
    assert encoder.normalize is False and encoder.hash == load(hubert).hash
    assert load(tmp_path / 'base', normalize=True).hash != encoder.hash
    tiny = Path(__file__).parents[1] / 'tiny/hubert'
    assert Encoder(tiny, 4, load_centroids(tiny / 'kmeans.safetensors')).hash == TINY_HASH

def test_whisper_and_mimi_take_waves_as_they_are(mimi):
    with pytest.raises(Refused, match='a mimi encoder takes waves as they are'):
        Encoder(mimi, 1, None, normalize=True)
