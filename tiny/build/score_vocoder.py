"""
Measure a vocoder on spoken items that it was not trained on: words, naturalness, lengths, speed. To VOCODER/score.json.

    python -m tiny.build.score_vocoder --items=out/build/speech/items-main --asr=openai/whisper-base

Each item (its context and right ending) is heard as it was spoken; after wave -> mel -> Griffin-Lim, which knows the mel
spectrum itself; after wave -> units -> vocoder with the units' own run lengths; and with those that the vocoder predicts.

    wer        share of wrong words, as a Whisper hears them (evaluation/generation.py)
    mos        naturalness, 1 to 5, as DistillMOS predicts it (Stahl and Gamper, 2025; the package carries its weights)
    run_ms     how far a predicted run is from its own, mean in ms
    length     predicted seconds / own seconds; length_off: how far an item's is from 1, mean
    x_real_time    seconds of speech made in a second, of `threads` threads

The error beside a value is its standard error over items.
"""
import json
import math
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from configurator import Refused, run
from evaluation.generation import load_asr
from evaluation.scores import mean_and_stderr
from evaluation.text_scores import word_errors
from files import progress, record, write_json
from speech.audio import RATE
from speech.unit_cache import load_encoder
from speech.vocoder import HOP, N_FFT, bands, load_vocoder
from tiny.build.pack import Config as PackConfig
from tiny.build.pack import encode_part, with_joined
from tiny.build.speak import documents


@dataclass(frozen=True)
class Config:
    vocoder: str = 'tiny/vocoder'
    items: str = 'out/build/speech/items-main' # shards of tiny/build/speak.py
    n: int = 100 # of them
    encoder: str = 'tiny/hubert'
    layer: int = 4
    asr: str = 'openai/whisper-base' # Whisper, a folder or hub id
    versions: tuple = ('original', 'griffin_lim', 'own_runs', 'predicted_runs') # of the speech; rows of others stay as they are
    threads: int = 2

def log_mel(wave):
    """(S,) -> (S // HOP, BANDS) natural log of the mel magnitudes; frame t is centered on sample t * HOP."""
    spectrum = torch.stft(wave, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)
    return (bands() @ spectrum.abs()).clamp(min=1e-5).log().T[:len(wave) // HOP]

def griffin_lim(mel, iterations=60, momentum=0.99):
    """Log-mel (T, BANDS) -> wave (T * HOP,): phases that make the magnitudes consistent, from a seeded random start (Griffin
    and Lim, 1984; with the momentum of Perraudin et al., 2013)."""
    magnitude = (torch.linalg.pinv(bands()) @ mel.exp().T).clamp(min=1e-5) # (N_FFT / 2 + 1, T)
    magnitude = F.pad(magnitude, (0, 1), mode='replicate') # the frame centered on the last sample
    phase = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)) * (2 * torch.pi)
    spectrum, last = torch.polar(torch.ones_like(magnitude), phase), torch.zeros_like(magnitude, dtype=torch.complex64)
    window = torch.hann_window(N_FFT)
    invert = lambda s: torch.istft(magnitude * s, N_FFT, HOP, window=window, length=len(mel) * HOP)
    for _ in range(iterations):
        consistent = torch.stft(invert(spectrum), N_FFT, HOP, window=window, return_complex=True)
        spectrum = consistent + momentum * (consistent - last)
        spectrum, last = spectrum / spectrum.abs().clamp(min=1e-12), consistent
    return invert(spectrum)

def load_mos():
    """A function from a wave to its predicted mean opinion score."""
    try:
        import distillmos
    except ImportError as e:
        raise Refused(f"{e}; pip install -r tiny/build/requirements.txt has what this measures with") from None
    model = distillmos.ConvTransformerSQAModel().eval()
    return lambda wave: model(torch.from_numpy(wave)[None]).item()

def ratio(counts):
    """[(part, whole)] an item -> the share of the sums, and its standard error by the residuals."""
    part, whole = np.array(counts, dtype=np.float64).T
    share, n = part.sum() / whole.sum(), len(part)
    return share, math.sqrt(((part - share * whole) ** 2).sum() * n / max(1, n - 1)) / whole.sum()

@torch.inference_mode()
def main(cfg):
    torch.set_num_threads(cfg.threads)
    encoder, vocoder = load_encoder(cfg.encoder, cfg.layer, None, 'cpu'), load_vocoder(cfg.vocoder)
    asr, mos = load_asr(cfg.asr, 'cpu'), load_mos()
    wanted = (pair for pair in with_joined(documents(cfg.items), PackConfig()) if pair[0]['id'].endswith('context+right'))
    pairs = list(islice(wanted, cfg.n))
    docs, waves = encode_part(pairs, encoder), [wave.astype(np.float32) / 32768 for _, wave in pairs]
    units, runs = ([doc[key] for doc in docs] for key in ('units', 'runs'))
    make = {'original': lambda: waves, 'griffin_lim': lambda: [griffin_lim(log_mel(torch.from_numpy(w))).numpy() for w in waves],
            'own_runs': lambda: vocoder.speak(units, runs, encoder.hash), 'predicted_runs': lambda: vocoder.speak(units, None, encoder.hash)}
    path, truth = Path(cfg.vocoder) / 'score.json', [''.join(word for word, _, _ in line['words']) for line, _ in pairs]
    scores = json.loads(path.read_text()) if path.exists() else {'rows': {}, 'samples': {}}
    for name in cfg.versions:
        start = time.perf_counter()
        made = make[name]()
        speed, heard = sum(map(len, made)) / RATE / (time.perf_counter() - start), asr(made)
        row = dict(zip(('wer', 'wer_stderr'), ratio([word_errors(*pair) for pair in zip(truth, heard)])), n=len(made))
        row |= zip(('mos', 'mos_stderr'), mean_and_stderr([mos(wave) for wave in progress(made, desc='mos')]))
        if name != 'original':
            row['x_real_time'] = speed
        if name == 'predicted_runs':
            of = [vocoder.predicted_runs(torch.from_numpy(u.astype(np.int64))).numpy() for u in units]
            off = ratio([(np.abs(a - b).sum(), len(b)) for a, b in zip(of, runs)])
            row |= zip(('run_ms', 'run_ms_stderr'), (x * 1000 * encoder.hop / RATE for x in off))
            lengths = np.array([(a.sum(), b.sum(dtype=np.int64)) for a, b in zip(of, runs)])
            row['length'], row['length_off'] = np.divide(*lengths.sum(0)), np.abs(np.divide(*lengths.T) - 1).mean()
        print(f"{name:16} wrong words {100 * row['wer']:.1f} % ± {100 * row['wer_stderr']:.1f}, naturalness {row['mos']:.2f} ± "
              f"{row['mos_stderr']:.2f} (n = {len(made)}), {speed:.0f} x real time", flush=True)
        scores['rows'][name] = {key: x if key == 'n' else float(x) for key, x in row.items()}
        scores['samples'][name] = [{'id': line['id'], 'text': text, 'heard': h} for (line, _), text, h in list(zip(pairs, truth, heard))[:5]]
    write_json(path, scores | record(cfg))

if __name__ == '__main__':
    run(main, Config)
