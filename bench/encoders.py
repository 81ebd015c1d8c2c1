"""
Speed of encoders.py beside plain transformers, on the same files: how many seconds of audio a second.

    python bench/encoders.py AUDIO [ENCODER:LAYER ...]     -> bench/results/encoders.json
    python bench/encoders.py AUDIO --dry                   once, on three files, of small models

AUDIO as tokenize_speech.py takes it, its first 64 files, on a CPU 3. Besides the encoders named, two of the published shapes with random
weights (speed does not depend on them): mHuBERT-25Hz, layer 11 of 12, and Mimi.

    ours           decoding, encoder up to the layer, k-means of 500 centroids (Mimi: its own codebook): tokenize_speech.py
                   without the writing; and the share of each part, decoding on its own
    transformers   a file at a time, all layers and all hidden states, no decoding, no k-means; Mimi: all its codebooks,
                   Whisper: its own feature extractor

And k-means alone: frames of 768 numbers, a window of 30 s (750, what a CPU takes at once) and 10,000, to 500 centroids, beside scikit-learn's predict where it is installed.
"""
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import DEVICE, measure, save, table
from transformers import HubertConfig, HubertModel, MimiConfig, MimiModel, WhisperFeatureExtractor, WhisperModel

from audio import load_audio
from corpora.folder import utterances
from encoders import Encoder, kind_of


def published(folder, dry):
    """{name: (folder, layer)} of the published shapes, random weights."""
    torch.manual_seed(0)
    small = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=64) if dry else {}
    hubert = HubertConfig(conv_dim=(32 if dry else 512,) * 8, conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2, 2),
                          conv_pos_batch_norm=True, **small)
    mimi = MimiConfig(**small, **(dict(num_filters=8, upsample_groups=64, num_key_value_heads=2, head_dim=32) if dry else {}))
    HubertModel(hubert).save_pretrained(folder / 'mhubert')
    model = MimiModel(mimi)
    model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed_sum.normal_()
    model.save_pretrained(folder / 'mimi')
    return {'mHuBERT-25Hz (random)': (folder / 'mhubert', hubert.num_hidden_layers - 1), 'Mimi (random)': (folder / 'mimi', 1)}

def plain(folder):
    """function(wave) that does what transformers' users do."""
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
def row(name, folder, layer, paths, repeats):
    kind, config = kind_of(folder)
    torch.manual_seed(0)
    encoder = Encoder(folder, layer, None if kind == 'mimi' else torch.randn(500, config.hidden_size), DEVICE)
    theirs, seconds = plain(folder), {'decode': 0.0}
    waves = [load_audio(path, rate=encoder.rate) for path in paths]
    audio = sum(map(len, waves)) / encoder.rate

    def ours():
        begin = time.perf_counter()
        decoded = [load_audio(path, rate=encoder.rate) for path in paths]
        seconds['decode'] += time.perf_counter() - begin
        encoder.encode(decoded)

    times = measure({'ours': ours, 'transformers': lambda: [theirs(wave) for wave in waves]}, repeats)
    if 'error' in times['transformers']:
        return {'encoder': name, 'error': times['transformers']['error']}
    speed = {way: audio / found['ms'] * 1e3 for way, found in times.items()}
    parts = {**seconds, **encoder.seconds}
    shares = {f'{part} %': 100 * spent / sum(parts.values()) for part, spent in parts.items()}
    return {'encoder': name, 'layer': encoder.layer, 'audio s': audio, **shares, 'ours, x real time': speed['ours'],
            'transformers, x real time': speed['transformers'], 'ours / transformers': speed['ours'] / speed['transformers']}

@torch.inference_mode()
def nearest(repeats, dry):
    """Rows of k-means: frames to 500 centroids."""
    with tempfile.TemporaryDirectory() as folder:
        path, layer = published(Path(folder), dry)['mHuBERT-25Hz (random)']
        C = kind_of(path)[1].hidden_size
        encoder = Encoder(path, layer, torch.randn(500, C), DEVICE)
    rows = []
    for n in (750, 10000):
        x = torch.randn(n, C)
        ways = {'encoders.py': lambda: encoder._nearest(x.to(DEVICE))}
        try:
            from sklearn.cluster import KMeans
            theirs = KMeans(500, init=x[:500].numpy(), n_init=1, max_iter=1).fit(x.numpy())
            theirs.cluster_centers_ = encoder.centroids.cpu().numpy()
            ways['scikit-learn predict, CPU'] = lambda: theirs.predict(x.numpy())
        except ImportError:
            pass
        rows += [{'k-means': way, 'frames': n, **found} for way, found in measure(ways, repeats).items()]
    return rows

def main():
    dry = '--dry' in sys.argv
    arguments = [a for a in sys.argv[1:] if a != '--dry']
    if not arguments:
        raise SystemExit(__doc__)
    paths, repeats = [u['path'] for u in utterances(arguments[0])][:64 if DEVICE == 'cuda' else 3], 1 if dry else 3
    with tempfile.TemporaryDirectory() as folder:
        named = {Path(a.rpartition(':')[0]).name: (a.rpartition(':')[0], int(a.rpartition(':')[2])) for a in arguments[1:]}
        rows = table((row(name, *which, paths, repeats) for name, which in {**named, **published(Path(folder), dry)}.items()),
                     'encoder', 'layer', 'audio s', 'decode %', 'encoder %', 'k-means %', 'ours, x real time',
                     'transformers, x real time', 'ours / transformers')
    found = table(nearest(2 if dry else 20, dry), 'k-means', 'frames', 'ms', 'least', 'most')
    save('encoders', dry, device=DEVICE, rows=rows, kmeans=found)

if __name__ == '__main__':
    main()
