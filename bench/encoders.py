"""
Speed of speech/encoders.py beside plain transformers, and how often bfloat16 gives the unit of float32.

    python bench/encoders.py AUDIO ENCODER:LAYER            speed on one core, or on a GPU
    python bench/encoders.py AUDIO ENCODER:LAYER --units    how many frames keep their unit in bfloat16
    python bench/encoders.py AUDIO ENCODER:LAYER --cores    threads beside processes
    python bench/encoders.py AUDIO ENCODER:LAYER --dry      runs once and writes nothing

AUDIO is what tokenize_speech.py takes. ENCODER is a folder, or a published shape with random weights, on which the
speed does not depend: hubert-base, hubert-large, mhubert (mHuBERT-25Hz) or mimi.

    floor    of a HuBERT: GFLOP of each part for a second of audio in windows of 10 s, the rate of its largest product
             alone, and how fast all would be at these rates. A bare product is 8192 x 1024 x 1024
    speed    clips of 2, 10 and 30 s, and the first files (64 on a GPU, else 3), whose lengths differ: the encoder up
             to the layer and k-means. transformers has as many layers, in float32, and takes a file at a time
    k-means  750 frames (30 s) and 10,000, beside scikit-learn's predict
    units    of 6 files: the share of frames whose unit is that of float32, for transformers and for bfloat16.
             Centroids are those of the folder, or 500 frames of the first files. `gap` is by how much the second
             nearest centroid is further than the nearest (median, in % of its distance): random weights have
             smaller gaps than trained ones

Times are medians of interleaved repeats; on a CPU the process time of one thread, so that other load does not count.
Writes bench/results/encoder-NAME.json, with an option encoder-NAME-OPTION.json.
"""
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers import HubertConfig, HubertModel, MimiConfig, MimiModel, WhisperFeatureExtractor, WhisperModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, save, table
from corpora.folder import utterances
from speech.audio import load_audio
from speech.encoders import Encoder
from speech.fused import Linear, PositionConv, has_bfloat16
from speech.kmeans import load_centroids
from speech.nets import HUBERTS, kind_of

MHUBERT = dict(conv_dim=(512,) * 8, conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2, 2),
               conv_pos_batch_norm=True)
LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
             feat_extract_norm='layer', conv_bias=True, do_stable_layer_norm=True)
UNIT_COLUMNS = ('units of', 'frames', 'distinct', 'gap %', 'equal %')
SHAPES = {'hubert-base': {}, 'hubert-large': LARGE, 'mhubert': MHUBERT}

def measure(calls, repeats):
    """Times calls in turn: {name: function()} -> {name: {'ms', 'least', 'most'}}; ms is the median."""
    clock = time.perf_counter if DEVICE == 'cuda' else time.process_time
    times = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            begin = clock()
            call()
            if DEVICE == 'cuda':
                torch.cuda.synchronize()
            if i > 0: # the first round warms up
                times[name].append(1e3 * (clock() - begin))
    rows = {}
    for name, ms in times.items():
        rows[name] = {'ms': round(statistics.median(ms), 3),
                      'least': round(min(ms), 3),
                      'most': round(max(ms), 3)}
    return rows

def encoder_folder(name, folder):
    """`name`, the folder of an encoder; or `folder`, in which an encoder of the shape `name` has been written."""
    torch.manual_seed(0)
    if name in SHAPES:
        model = HubertModel(HubertConfig(**SHAPES[name]))
    elif name == 'mimi':
        model = MimiModel(MimiConfig())
        quantizer = model.quantizer.semantic_residual_vector_quantizer
        quantizer.layers[0].codebook.embed_sum.normal_()
    else:
        return name
    model.save_pretrained(folder)
    return folder

def transformers_encoder(folder, layer):
    """A function that encodes a wave, a NumPy array, as users of transformers do who want the output of `layer`."""
    kind, config = kind_of(folder)
    if kind == 'hubert':
        config.num_hidden_layers = layer
        model_class = getattr(transformers, HUBERTS[config.model_type])
    else:
        model_class = {'whisper': WhisperModel, 'mimi': MimiModel}[kind]
    model = model_class.from_pretrained(folder, config=config, trust_remote_code=False).float().eval().to(DEVICE)
    if getattr(config, 'do_stable_layer_norm', False):
        model.encoder.layer_norm = nn.Identity() # which follows the last layer of all alone, as in speech/encoders.py
    if kind == 'whisper':
        extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)

    def encode(wave):
        if kind == 'whisper':
            features = extractor(wave, sampling_rate=16000, return_tensors='pt').input_features
            return model.encoder(features.to(DEVICE), output_hidden_states=True)
        audio = torch.from_numpy(wave)[None].to(DEVICE)
        return model.encode(audio[None]) if kind == 'mimi' else model(audio).last_hidden_state

    return encode

# --------------------------------------------------------------------------------------------------
# the floor

def parts_of(config, n_layers, n_frames):
    """{part: FLOPs for n_frames} of a HuBERT up to layer n_layers; a multiplication and an addition are two."""
    width = config.hidden_size
    step = math.prod(config.conv_stride)
    convolutions = 0
    n = n_frames * step
    n_inputs = 1
    for kernel, stride, n_outputs in zip(config.conv_kernel, config.conv_stride, config.conv_dim):
        n //= stride
        convolutions += 2 * n * kernel * n_inputs * n_outputs
        n_inputs = n_outputs
    position = config.num_conv_pos_embeddings * width / config.num_conv_pos_embedding_groups
    return {'convolutions': convolutions,
            'feature projection': 2 * n_frames * n_inputs * width,
            'positional convolution': 2 * n_frames * width * position,
            'attention: projections': n_layers * 8 * n_frames * width ** 2,
            'attention: scores, sums': n_layers * 4 * n_frames ** 2 * width,
            'MLP': n_layers * 4 * n_frames * width * config.intermediate_size}

def products(config, n_frames, dtype):
    """{part: (FLOPs, a call)}, the largest product of each part alone."""
    def random_linear(n_rows, n_inputs, n_outputs):
        layer = Linear(torch.randn(n_outputs, n_inputs, device=DEVICE), torch.randn(n_outputs, device=DEVICE), dtype)
        x = torch.randn(n_rows, n_inputs, device=DEVICE, dtype=dtype)
        return 2 * n_rows * n_inputs * n_outputs, lambda: layer(x)

    width = config.hidden_size
    n_second = n_frames * math.prod(config.conv_stride[2:])
    groups = config.num_conv_pos_embedding_groups
    kernel = config.num_conv_pos_embeddings
    conv = PositionConv(nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups).to(DEVICE), dtype)
    x = torch.randn(1, n_frames, width, device=DEVICE, dtype=dtype).mT
    heads = config.num_attention_heads
    q = torch.randn(1, heads, n_frames, width // heads, device=DEVICE, dtype=dtype)
    attention = nn.functional.scaled_dot_product_attention
    return {'convolutions': random_linear(n_second, config.conv_dim[0] * config.conv_kernel[1], config.conv_dim[1]),
            'feature projection': random_linear(n_frames, config.conv_dim[-1], width),
            'positional convolution': (2 * n_frames * width ** 2 * kernel // groups, lambda: conv(x)),
            'attention: projections': random_linear(n_frames, width, width),
            'attention: scores, sums': (4 * n_frames ** 2 * width, lambda: attention(q, q, q)),
            'MLP': random_linear(n_frames, width, config.intermediate_size),
            'bare product': random_linear(8192, 1024, 1024)}

@torch.inference_mode()
def floor_rows(config, layer, dtypes, repeats):
    """Yields a row for each part, one for the sum and one for a bare product."""
    n_seconds = 10
    n_frames = 16000 * n_seconds // math.prod(config.conv_stride)
    flops = parts_of(config, layer, n_frames)
    calls = {}
    n_flops = {}
    for dtype in dtypes:
        for part, (n, call) in products(config, n_frames, getattr(torch, dtype)).items():
            n_flops[part] = n
            calls[dtype, part] = call
    times = measure(calls, repeats)
    total = {'part': 'all', 'GFLOP/s of audio': sum(flops.values()) / n_seconds / 1e9}
    seconds = dict.fromkeys(dtypes, 0.0)
    for part in n_flops:
        row = {'part': part}
        if part in flops:
            row['GFLOP/s of audio'] = flops[part] / n_seconds / 1e9
        for dtype in dtypes:
            rate = n_flops[part] / times[dtype, part]['ms'] / 1e6
            row[f'{dtype} GFLOP/s'] = rate
            seconds[dtype] += flops.get(part, 0) / rate / 1e9
        yield row
    for dtype in dtypes:
        total[f'{dtype} GFLOP/s'] = sum(flops.values()) / seconds[dtype] / 1e9
        total[f'{dtype} x real time'] = n_seconds / seconds[dtype]
    yield total

# --------------------------------------------------------------------------------------------------
# speed and units

def clips_of(waves, rate, lengths):
    """{name: list of waves}: clips of so many seconds out of the waves, and the waves."""
    audio = np.concatenate(waves)
    audio = np.tile(audio, 1 + max(lengths) * rate // len(audio))
    clips = {f'{seconds} s': [audio[:seconds * rate]] for seconds in lengths}
    return clips | {'files': waves}

@torch.inference_mode()
def speed_rows(encoders, hf_encode, waves, lengths, repeats):
    """Yields a row for each clip and way: {dtype: Encoder} beside transformers."""
    reference = next(iter(encoders.values()))
    for name, clips in clips_of(waves, reference.rate, lengths).items():
        seconds = sum(map(len, clips)) / reference.rate
        calls = {'transformers': lambda: [hf_encode(wave) for wave in clips]}
        for way, encoder in encoders.items():
            calls[way] = lambda encoder=encoder: encoder.encode(clips)
        times = measure(calls, repeats)
        for way, row in times.items():
            yield {'clip': name, 'way': way, 'audio s': round(seconds, 1), **row,
                   'x real time': round(seconds / row['ms'] * 1e3, 2),
                   'x transformers': round(times['transformers']['ms'] / row['ms'], 2)}

def gap_of(encoder, features):
    """By how much the second nearest centroid is further than the nearest, median, in % of the latter's distance."""
    h = torch.from_numpy(features).to(encoder.device)
    nearest = torch.cdist(h, encoder.centroids).topk(2, largest=False).values
    return 100 * (nearest[:, 1] / nearest[:, 0] - 1).median().item()

@torch.inference_mode()
def unit_rows(encoders, hf_encode, waves):
    """Yields a row for each way: frames whose unit is that of the first encoder."""
    names = iter(encoders)
    reference = encoders[next(names)]
    expected = np.concatenate(reference.encode(waves))
    gap = gap_of(reference, reference.features(waves[0]))
    units = {}
    if reference.kind == 'hubert':
        padded = [np.pad(wave, reference.net.pad) for wave in waves]
        hs = [hf_encode(wave)[0] for wave in padded]
        units['transformers'] = np.concatenate([reference._nearest(h.float()) for h in hs])
    for name in names:
        units[name] = np.concatenate(encoders[name].encode(waves))
    for way, ids in units.items():
        yield {'units of': way, 'frames': len(ids), 'distinct': len(np.unique(expected)), 'gap %': gap,
               'equal %': 100 * np.mean(ids == expected)}

@torch.inference_mode()
def kmeans_rows(encoder, repeats):
    """Yields a row for each implementation of k-means and number of frames."""
    for n in (750, 10000):
        x = torch.randn(n, encoder.centroids.shape[1])
        calls = {'encoders.py': lambda: encoder._nearest(x.to(DEVICE))}
        try:
            from sklearn.cluster import KMeans
            kmeans = KMeans(8, n_init=1, max_iter=1).fit(x.numpy())
            kmeans.cluster_centers_ = encoder.centroids.cpu().numpy()
            calls['scikit-learn predict, CPU'] = lambda: kmeans.predict(x.numpy())
        except ImportError:
            pass
        for name, row in measure(calls, repeats).items():
            yield {'k-means': name, 'frames': n, 'C': x.shape[1], 'K': encoder.n_units, **row}

# --------------------------------------------------------------------------------------------------
# several cores

def work(folder, layer, centroids, dtype, waves):
    """What a process does: loads the encoder and encodes twice; the seconds of the second time."""
    torch.set_num_threads(1)
    encoder = Encoder(folder, layer, centroids, dtype=dtype)
    encoder.encode(waves)
    begin = time.perf_counter()
    encoder.encode(waves)
    return time.perf_counter() - begin

def encoder_on(n_threads, arguments):
    """An encoder with so many threads, each of one core."""
    torch.set_num_threads(n_threads)
    encoder = Encoder(*arguments[:3], dtype=arguments[3])
    torch.set_num_threads(1)
    return encoder

def seconds_of(call, repeats):
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])

def cores_rows(arguments, paths, repeats):
    """Yields a row for each way of using all cores; wall time. arguments: (folder, layer, centroids, dtype)."""
    n_cores = len(os.sched_getaffinity(0))
    one = encoder_on(1, arguments)
    waves = [load_audio(path, rate=one.rate) for path in paths]
    total = sum(map(len, waves)) / one.rate
    threads = encoder_on(n_cores, arguments)
    times = {'one core': seconds_of(lambda: one.encode(waves), repeats),
             'threads of one core each': seconds_of(lambda: threads.encode(waves), repeats),
             'the same, decoding too': seconds_of(
                 lambda: threads.encode([load_audio(path, rate=one.rate) for path in paths]), repeats)}
    one.pool.submit(torch.set_num_threads, n_cores).result()
    times['a window on all cores'] = seconds_of(lambda: one.encode(waves), repeats)
    parts = [waves[i::n_cores] for i in range(n_cores)]
    with ProcessPoolExecutor(n_cores, multiprocessing.get_context('spawn')) as pool:
        jobs = [pool.submit(work, *arguments, part) for part in parts]
        times['processes'] = max(job.result() for job in jobs)
    for way, seconds in times.items():
        yield {'way': way, 'cores': 1 if way == 'one core' else n_cores, 'audio s': round(total, 1),
               's': seconds, 'x real time': total / seconds, 'x one core': times['one core'] / seconds}

# --------------------------------------------------------------------------------------------------

def centroids_of(folder, layer, waves):
    """Those of the folder, or 500 frames of the waves; without waves 500 random ones; None for Mimi."""
    kind, config = kind_of(folder)
    path = Path(folder, 'kmeans.safetensors')
    if kind == 'mimi':
        return None
    if path.exists():
        return load_centroids(path)
    if not waves:
        return torch.randn(500, config.hidden_size)
    encoder = Encoder(folder, layer, torch.zeros(1, config.hidden_size), DEVICE)
    frames = np.concatenate([encoder.features(wave) for wave in waves])
    order = np.random.default_rng(0).permutation(len(frames))
    return torch.from_numpy(frames[order[:500]])

def make_encoders(folder, layer, centroids, dtypes):
    """{way: Encoder} of the dtypes; on a GPU also with the layers compiled."""
    kind, _ = kind_of(folder)
    encoders = {dtype: Encoder(folder, layer, centroids, DEVICE, dtype=dtype) for dtype in dtypes}
    if DEVICE == 'cuda' and kind == 'hubert':
        encoders['bfloat16, compiled'] = Encoder(folder, layer, centroids, DEVICE)
        encoders['bfloat16, compiled'].net.model.encoder.compile(dynamic=True)
    return encoders

def main():
    options = [argument for argument in sys.argv[1:] if argument in ('--dry', '--cores', '--units')]
    arguments = [argument for argument in sys.argv[1:] if argument not in options]
    dry = '--dry' in options
    encoder_name, _, layer = arguments[-1].rpartition(':') if len(arguments) == 2 else ('', '', '')
    if not layer.isdecimal():
        raise SystemExit(__doc__)
    transformers.utils.logging.set_verbosity_error() # about layers that are left out
    n_files = 64 if DEVICE == 'cuda' else 6 if len(options) > 0 else 3
    n_files = 2 if dry else n_files
    paths = [utterance['path'] for utterance in itertools.islice(utterances(arguments[0]), n_files)]
    name = Path(encoder_name).name
    repeats = 1 if dry else 3
    with tempfile.TemporaryDirectory() as tmp:
        folder = encoder_folder(encoder_name, tmp)
        kind, config = kind_of(folder)
        rate = config.sampling_rate if kind == 'mimi' else 16000
        waves = [load_audio(path, rate=rate) for path in paths]
        is_half = kind != 'mimi' and (DEVICE == 'cuda' or has_bfloat16())
        dtypes = ['float32'] + ['bfloat16'] * is_half
        centroids = centroids_of(folder, int(layer), waves[:4] if '--units' in options else [])
        encoders = make_encoders(folder, int(layer), centroids, dtypes)
        if '--cores' in options:
            job = (folder, int(layer), centroids, dtypes[-1])
            rows = table(cores_rows(job, paths, 1 if dry else 3), 'way', 'cores', 's', 'x real time', 'x one core')
            save(f'encoder-{name}-cores', dry, device=DEVICE, dtype=dtypes[-1], rows=rows)
            return
        hf_encode = transformers_encoder(folder, int(layer))
        if '--units' in options:
            units = table(unit_rows(encoders, hf_encode, waves), *UNIT_COLUMNS)
            save(f'encoder-{name}-units', dry, device=DEVICE, layer=int(layer), units=units)
            return
        floor = []
        if kind == 'hubert':
            columns = [f'{dtype} {unit}' for dtype in dtypes for unit in ('GFLOP/s', 'x real time')]
            floor = table(floor_rows(config, int(layer), dtypes, repeats), 'part', 'GFLOP/s of audio', *columns)
        lengths = (2,) if dry else (2, 10, 30)
        rows = table(speed_rows(encoders, hf_encode, waves, lengths, repeats),
                     'clip', 'way', 'audio s', 'ms', 'x real time', 'x transformers')
        kmeans = table(kmeans_rows(encoders['float32'], repeats), 'k-means', 'frames', 'C', 'K', 'ms')
    save(f'encoder-{name}', dry, device=DEVICE, layer=int(layer), floor=floor, rows=rows, kmeans=kmeans)

if __name__ == '__main__':
    main()
