"""
Speed of speech/encoders.py beside plain transformers on the same files, in seconds of audio per second.

    python bench/encoders.py AUDIO ENCODER:LAYER
    python bench/encoders.py AUDIO ENCODER:LAYER --dry      runs once and writes nothing

AUDIO is what tokenize_speech.py takes; its first 64 files are encoded, on a CPU the first 3.
ENCODER is a folder, or mhubert or mimi: the published architecture (mHuBERT-25Hz with 12 layers, or
Mimi) with random weights, on which the speed does not depend.

    encoders.py    what tokenize_speech.py does, except for writing: decoding, the encoder up to the
                   layer, k-means with 500 centroids (Mimi: its own codebook). The columns with % are
                   the shares of the time that these parts take
    transformers   one file at a time, all layers and all hidden states (Mimi: all its codebooks),
                   without decoding and k-means; Whisper includes its feature extractor

Times are medians of interleaved repeats, on a CPU the process time of one thread, so that other
load on the machine does not count. k-means is also timed alone, on 750 frames (30 s, what a CPU
takes at a time) and on 10,000, beside scikit-learn's predict if it is installed.

Writes bench/results/encoder-NAME.json.
"""
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import HubertConfig, HubertModel, MimiConfig, MimiModel, WhisperFeatureExtractor, WhisperModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, save, table
from corpora.folder import utterances
from speech.audio import load_audio
from speech.encoders import Encoder, kind_of

COLUMNS = ('encoder', 'layer', 'way', 'audio s', 'ms', 'x real time',
           'decode %', 'encoder %', 'k-means %')

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
    """`name`, the folder of an encoder; or `folder` with random weights for 'mhubert' and 'mimi'."""
    torch.manual_seed(0)
    if name == 'mhubert':
        config = HubertConfig(
            conv_dim=(512,) * 8,
            conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2),
            conv_stride=(5, 2, 2, 2, 2, 2, 2, 2),
            conv_pos_batch_norm=True)
        model = HubertModel(config)
    elif name == 'mimi':
        model = MimiModel(MimiConfig())
        quantizer = model.quantizer.semantic_residual_vector_quantizer
        quantizer.layers[0].codebook.embed_sum.normal_()
    else:
        return name
    model.save_pretrained(folder)
    return folder

def transformers_encoder(folder):
    """A function that encodes a wave, a NumPy array, as users of transformers do."""
    kind, config = kind_of(folder)
    classes = {'hubert': HubertModel, 'whisper': WhisperModel, 'mimi': MimiModel}
    model = classes[kind].from_pretrained(folder).float().eval().to(DEVICE)
    if kind == 'whisper':
        extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)

    def encode(wave):
        if kind == 'whisper':
            features = extractor(wave, sampling_rate=16000, return_tensors='pt').input_features
            return model.encoder(features.to(DEVICE), output_hidden_states=True)
        audio = torch.from_numpy(wave)[None].to(DEVICE)
        if kind == 'mimi':
            return model.encode(audio[None])
        return model(audio, output_hidden_states=True)

    return encode

@torch.inference_mode()
def encoder_rows(name, encoder, hf_encode, paths, repeats):
    """Yields a row for speech/encoders.py and one for transformers, each of which encodes all paths."""
    waves = [load_audio(path, rate=encoder.rate) for path in paths]
    audio_seconds = sum(map(len, waves)) / encoder.rate
    decode_seconds = 0.0

    def encode():
        nonlocal decode_seconds
        begin = time.perf_counter()
        decoded = [load_audio(path, rate=encoder.rate) for path in paths]
        decode_seconds += time.perf_counter() - begin
        encoder.encode(decoded)

    def encode_with_transformers():
        for wave in waves:
            hf_encode(wave)

    times = measure({'encoders.py': encode, 'transformers': encode_with_transformers}, repeats)
    parts = {'decode': decode_seconds, **encoder.seconds}
    total = sum(parts.values())
    shares = {f'{part} %': 100 * seconds / total for part, seconds in parts.items()}
    for library, row in times.items():
        yield {'encoder': name,
               'layer': encoder.layer,
               'way': library,
               'audio s': round(audio_seconds, 1),
               **row,
               'x real time': round(audio_seconds / row['ms'] * 1e3, 2),
               **(shares if library == 'encoders.py' else {})}

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

def main():
    dry = '--dry' in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != '--dry']
    if len(arguments) != 2:
        raise SystemExit(__doc__)
    encoder_name, _, layer = arguments[1].rpartition(':')
    if not layer.isdecimal():
        raise SystemExit(__doc__)
    paths = [utterance['path'] for utterance in utterances(arguments[0])]
    paths = paths[:64 if DEVICE == 'cuda' else 3]
    name = Path(encoder_name).name
    with tempfile.TemporaryDirectory() as tmp:
        folder = encoder_folder(encoder_name, tmp)
        kind, config = kind_of(folder)
        torch.manual_seed(0)
        centroids = None if kind == 'mimi' else torch.randn(500, config.hidden_size)
        encoder = Encoder(folder, int(layer), centroids, DEVICE)
        hf_encode = transformers_encoder(folder)
        rows = table(encoder_rows(name, encoder, hf_encode, paths, 1 if dry else 3), *COLUMNS)
    kmeans = table(kmeans_rows(encoder, 2 if dry else 10),
                   'k-means', 'frames', 'C', 'K', 'ms', 'least', 'most')
    save(f'encoder-{name}', dry, device=DEVICE, rows=rows, kmeans=kmeans)

if __name__ == '__main__':
    main()
