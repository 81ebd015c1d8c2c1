"""
Speed of speech/encoders.py beside plain transformers, on the same files: how many seconds of audio a second.

    python bench/encoders.py AUDIO ENCODER:LAYER     -> bench/results/encoder-NAME.json
    python bench/encoders.py AUDIO ENCODER:LAYER --dry      once, nothing is kept

AUDIO as tokenize_speech.py takes it, its first 64 files, on a CPU 3. ENCODER is a folder, or mhubert or mimi: the published
shape (mHuBERT-25Hz, 12 layers; Mimi) with random weights, of which speed does not depend.

    ours           decoding, encoder up to the layer, k-means of 500 centroids (Mimi: its own codebook): tokenize_speech.py
                   without the writing; and the share of each part, decoding on its own
    transformers   a file at a time, all layers and all hidden states, no decoding, no k-means; Mimi: all its codebooks,
                   Whisper: its own feature extractor

Medians of interleaved repeats; on a CPU the processor's time of one thread, so that other work on the machine does not count.
And k-means alone: 750 frames (30 s, what a CPU takes at once) and 10,000, beside scikit-learn's predict if it is installed.
"""
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import DEVICE, save, table
from transformers import HubertConfig, HubertModel, MimiConfig, MimiModel, WhisperFeatureExtractor, WhisperModel

from corpora.folder import utterances
from speech.audio import load_audio
from speech.encoders import Encoder, kind_of


def measure(ways, repeats):
    """{name: way()} -> {name: {'ms', 'least', 'most'}}."""
    clock, taken = time.perf_counter if DEVICE == 'cuda' else time.process_time, {name: [] for name in ways}
    for i in range(repeats + 1):
        for name, way in ways.items():
            begin = clock()
            way()
            if DEVICE == 'cuda':
                torch.cuda.synchronize()
            taken[name] += [1e3 * (clock() - begin)] * (i > 0) # the first warms up
    return {name: {'ms': round(statistics.median(ms), 3), 'least': round(min(ms), 3), 'most': round(max(ms), 3)}
            for name, ms in taken.items()}

def made(name, folder):
    """The folder of an encoder; of 'mhubert' and 'mimi' one with random weights of the published shape."""
    torch.manual_seed(0)
    if name == 'mhubert':
        HubertModel(HubertConfig(conv_dim=(512,) * 8, conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2),
                                 conv_stride=(5, 2, 2, 2, 2, 2, 2, 2), conv_pos_batch_norm=True)).save_pretrained(folder)
    elif name == 'mimi':
        model = MimiModel(MimiConfig())
        model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed_sum.normal_()
        model.save_pretrained(folder)
    else:
        return name
    return folder

def plain(folder):
    """function(wave) that does what users of transformers do."""
    kind, config = kind_of(folder)
    Model = {'hubert': HubertModel, 'whisper': WhisperModel, 'mimi': MimiModel}[kind]
    model = Model.from_pretrained(folder).float().eval().to(DEVICE)
    if kind == 'whisper':
        extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        return lambda wave: model.encoder(extractor(wave, sampling_rate=16000, return_tensors='pt').input_features.to(DEVICE),
                                          output_hidden_states=True)
    if kind == 'mimi':
        return lambda wave: model.encode(torch.from_numpy(wave)[None, None].to(DEVICE))
    return lambda wave: model(torch.from_numpy(wave)[None].to(DEVICE), output_hidden_states=True)

@torch.inference_mode()
def rows_of(name, encoder, theirs, paths, repeats):
    seconds, waves = {'decode': 0.0}, [load_audio(path, rate=encoder.rate) for path in paths]
    audio = sum(map(len, waves)) / encoder.rate

    def ours():
        begin = time.perf_counter()
        decoded = [load_audio(path, rate=encoder.rate) for path in paths]
        seconds['decode'] += time.perf_counter() - begin
        encoder.encode(decoded)

    found = measure({'encoders.py': ours, 'transformers': lambda: [theirs(wave) for wave in waves]}, repeats)
    parts = {**seconds, **encoder.seconds}
    shares = {f'{part} %': 100 * spent / sum(parts.values()) for part, spent in parts.items()}
    for way, row in found.items():
        yield {'encoder': name, 'layer': encoder.layer, 'way': way, 'audio s': round(audio, 1), **row,
               'x real time': round(audio / row['ms'] * 1e3, 2),
               **(shares if way == 'encoders.py' else {})}

@torch.inference_mode()
def kmeans_of(encoder, repeats):
    for n in (750, 10000):
        x = torch.randn(n, encoder.centroids.shape[1])
        ways = {'encoders.py': lambda: encoder._nearest(x.to(DEVICE))}
        try:
            from sklearn.cluster import KMeans
            theirs = KMeans(8, n_init=1, max_iter=1).fit(x.numpy())
            theirs.cluster_centers_ = encoder.centroids.cpu().numpy()
            ways['scikit-learn predict, CPU'] = lambda: theirs.predict(x.numpy())
        except ImportError:
            pass
        for way, row in measure(ways, repeats).items():
            yield {'k-means': way, 'frames': n, 'C': x.shape[1], 'K': encoder.n_units, **row}

def main():
    dry, arguments = '--dry' in sys.argv, [a for a in sys.argv[1:] if a != '--dry']
    if len(arguments) != 2 or not arguments[1].rpartition(':')[2].isdecimal():
        raise SystemExit(__doc__)
    which, _, layer = arguments[1].rpartition(':')
    paths, repeats = [u['path'] for u in utterances(arguments[0])][:64 if DEVICE == 'cuda' else 3], 1 if dry else 3
    with tempfile.TemporaryDirectory() as folder:
        folder, name = made(which, folder), Path(which).name
        kind, config = kind_of(folder)
        torch.manual_seed(0)
        encoder = Encoder(folder, int(layer), None if kind == 'mimi' else torch.randn(500, config.hidden_size), DEVICE)
        rows = table(rows_of(name, encoder, plain(folder), paths, repeats), 'encoder', 'layer', 'way', 'audio s', 'ms',
                     'x real time', 'decode %', 'encoder %', 'k-means %')
    found = table(kmeans_of(encoder, 2 if dry else 10), 'k-means', 'frames', 'C', 'K', 'ms', 'least', 'most')
    save(f'encoder-{name}', dry, device=DEVICE, rows=rows, kmeans=found)

if __name__ == '__main__':
    main()
