"""encoders.py against plain transformers, slow versions, known clusters; every model is made here, small and random."""
import itertools
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import speech_like
from transformers import HubertConfig, HubertModel

from audio import RATE
from configurator import Refused
from encoders import Encoder, load_centroids, windows

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2, 2), (5, 2, 2, 2, 2, 2, 2, 2) # 25 Hz; without the last: 50 Hz

def make_encoder(folder, kernels=KERNELS, strides=STRIDES, K=60, **settings):
    """A random HubertModel whose norms do something, and centroids that are frames of it: many units occur."""
    torch.manual_seed(0)
    settings = dict(feat_extract_norm='group', conv_pos_batch_norm=False, do_stable_layer_norm=False) | settings
    model = HubertModel(HubertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * len(kernels),
        conv_kernel=kernels, conv_stride=strides, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        initializer_range=.2, **settings)).eval()
    for name, p in itertools.chain(model.named_parameters(), model.named_buffers()):
        if 'norm' in name and p.is_floating_point():
            p.data.uniform_(.5, 1.5) if name.endswith(('weight', 'var')) else p.data.normal_(0, .5)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    with torch.inference_mode():
        x = torch.from_numpy(speech_like(60 * K * math.prod(strides) / RATE / 10, 99))[None]
        h = model(x, output_hidden_states=True).hidden_states[2][0]
    save_file({'centroids': h[torch.randperm(len(h))[:K]].contiguous()}, folder / 'kmeans.safetensors')
    return folder

def load(folder, **settings):
    return Encoder(folder, 2, load_centroids(folder / 'kmeans.safetensors'), **settings)

@pytest.fixture(scope='session', autouse=True)
def one_thread():
    torch.set_num_threads(1)

@pytest.fixture(scope='session')
def hubert(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp('encoder') / 'hubert')

# ----------------------------------------------------------------------------------------------------------------
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
    for wave, units in zip(waves, together):
        assert np.array_equal(encoder.encode([wave])[0], units)
    assert all(np.array_equal(a, b) for a, b in zip(encoder.encode(waves[::-1])[::-1], together))
    for encoder.batch in (0, 3 * RATE): # none, other batches
        assert all(np.array_equal(a, b) for a, b in zip(encoder.encode(waves), together))

def test_units_are_the_centroids_nearest_to_the_layer_of_plain_transformers(variant):
    model, encoder = HubertModel.from_pretrained(variant).eval(), load(variant)
    assert len(encoder.net.model.encoder.layers) == 2 and encoder.net.pad == (40, 40)
    for wave in (speech_like(3, 5), speech_like(.9, 6)):
        with torch.inference_mode():
            x = torch.nn.functional.pad(torch.from_numpy(wave), (40, 40))[None]
            h = model(x, output_hidden_states=True).hidden_states[2][0]
        distance = torch.cdist(h.double(), encoder.centroids.double())
        units = torch.from_numpy(encoder.encode([wave])[0])
        excess = distance.gather(1, units[:, None])[:, 0] - distance.min(1).values
        assert excess.max() < 1e-4, f"a unit is {excess.max():.1e} further than the nearest"

def test_frames_are_exactly_samples_over_hop(hubert):
    encoder, rng = load(hubert), np.random.default_rng(0)
    assert encoder.hop == encoder.step == 640 and encoder.net.receptive == 720
    for n in rng.integers(640, 500000, 1000): # the convolutions one after another
        frames = n + 80
        for kernel, stride in zip(KERNELS, STRIDES):
            frames = len(range(0, frames - kernel + 1, stride))
        assert frames == n // 640
    wave, lengths = speech_like(4, 1), [*rng.integers(640, 20000, 16), 640, 1279, 1280, 64000]
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
            last, frames = i == len(parts) - 1, len(x) // 5
            assert 0 <= a < b <= frames <= size and x[0] == 5 * first and len(x) == 5 * frames + rest * last
            assert (first == 0 or a >= margin) and (last or frames - b >= margin)
        blocks = windows(np.split(wave, sorted(rng.integers(0, len(wave), 6))), 5, size, margin)
        assert all(p[:3] == q[:3] and np.array_equal(p[3], q[3]) for p, q in zip(parts, blocks, strict=True))

def test_long_audio_is_its_windows_stitched_and_depends_on_nothing_else(hubert):
    long, other = speech_like(9.03, 3), speech_like(1, 4)
    encoder = load(hubert, window_s=4, margin_s=.4) # 100 and 10 frames
    units = encoder.encode([other, long])[1]
    parts = [encoder.encode([long[a * 640:b]])[0] for a, b in ((0, 64000), (80, 180 * 640), (160, len(long)))]
    by_hand = np.concatenate([parts[0][:90], parts[1][10:90], parts[2][10:]])
    assert np.array_equal(units, by_hand) and len(units) == len(long) // 640
    whole = load(hubert).encode([long])[0] # shorter than 30 s: not cut
    assert np.array_equal(load(hubert, window_s=9.1).encode([long])[0], whole)

def test_half_precision_weights_load_and_the_hash_follows_the_weights_not_the_files(hubert, tmp_path):
    model = HubertModel.from_pretrained(hubert)
    model.half().save_pretrained(tmp_path / 'half')
    centroids = load_centroids(hubert / 'kmeans.safetensors')
    half = Encoder(tmp_path / 'half', 2, centroids)
    model.float().save_pretrained(tmp_path / 'again', max_shard_size='20KB') # the same numbers in other files
    again = Encoder(tmp_path / 'again', 2, centroids)
    waves = [speech_like(2, 1)]
    assert half.hash == again.hash and np.array_equal(half.encode(waves)[0], again.encode(waves)[0])
    hashes = {load(hubert).hash, half.hash, Encoder(tmp_path / 'half', 1, centroids).hash,
              Encoder(tmp_path / 'half', 2, centroids + 1).hash}
    assert len(hashes) == 4

def test_encoders_that_are_none_are_refused_in_one_line(hubert, tmp_path):
    def refused(match, name, layer=2, centroids=torch.zeros(5, 32)):
        with pytest.raises(Refused, match=match) as e:
            Encoder(name, layer, centroids)
        assert '\n' not in str(e.value)
    refused('expected a HubertModel', tmp_path / 'nowhere')
    refused('has 3 layers, --layer=4', hubert, 4)
    refused('has 3 layers, --layer=0', hubert, 0)
    refused('a hubert encoder needs centroids', hubert, 2, None)
    refused('centroids have 16 numbers, .* gives 32', hubert, 2, torch.zeros(5, 16))
    for name in ('other', 'missing', 'cut'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_bytes((hubert / 'config.json').read_bytes())
    (tmp_path / 'other/config.json').write_text('{"model_type": "bert"}')
    refused("holds a 'bert', expected a HubertModel, Whisper", tmp_path / 'other')
    refused('expected a HubertModel', tmp_path / 'missing')
    weights = load_file(hubert / 'model.safetensors')
    del weights['encoder.layers.1.attention.k_proj.weight']
    save_file(weights, tmp_path / 'missing/model.safetensors', {'format': 'pt'})
    refused('lacks 1 weights of the model, the first is encoder.layers.1', tmp_path / 'missing')
    (tmp_path / 'cut/model.safetensors').write_bytes((hubert / 'model.safetensors').read_bytes()[:5000])
    refused('expected a HubertModel', tmp_path / 'cut')

def test_centroids_are_read_from_safetensors_only(tmp_path):
    import pickle
    path = tmp_path / 'km.bin'
    path.write_bytes(pickle.dumps(np.zeros((5, 32))))
    with pytest.raises(Refused, match='a pickled k-means is never read'):
        load_centroids(path)
    with pytest.raises(Refused, match='no such k-means file'):
        load_centroids(tmp_path / 'none.safetensors')
    for tensors, match in (({'c': torch.zeros(5, 3)}, 'centroids'), ({'centroids': torch.zeros(5)}, r'shape \(5,\)'),
                           ({'centroids': torch.full((5, 3), math.nan)}, 'finite')):
        save_file(tensors, path)
        with pytest.raises(Refused, match=match):
            load_centroids(path)

