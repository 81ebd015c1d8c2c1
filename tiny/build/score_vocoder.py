"""
Scores a vocoder on spoken items that it was not trained on: words, naturalness, lengths, speed.

    python -m tiny.build.score_vocoder --items=out/build/speech/items-main --asr=openai/whisper-base
                                                                           -> VOCODER/score.json

An item is its context with the right ending. Each item is scored in four versions:

    original         as it was spoken
    griffin_lim      wave -> mel -> Griffin-Lim, which is given the mel spectrum itself
    own_runs         wave -> units -> vocoder with the run lengths of the units
    predicted_runs   wave -> units -> vocoder with run lengths that it predicts

    wer              share of wrong words in what a Whisper model hears (evaluation/text_scores.py)
    mos              naturalness from 1 to 5, predicted by DistillMOS (Stahl and Gamper, 2025),
                     whose package has its weights
    run_ms           mean absolute error of a predicted run, in ms
    length           predicted seconds / own seconds
    length_off       mean over items of how far this ratio is from 1
    x_real_time      seconds of speech made per second, with `threads` threads

The error beside a value (_stderr) is its standard error over items.
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
    vocoder: str = 'tiny/vocoder' # folder of the vocoder, into which score.json is written
    items: str = 'out/build/speech/items-main' # folder of spoken items, as tiny/build/speak.py writes it
    n: int = 100 # items to score
    encoder: str = 'tiny/hubert' # encoder of the vocoder's units
    layer: int = 4 # layer of the encoder
    asr: str = 'openai/whisper-base' # Whisper that hears the words, a folder or hub id
    # the versions to score; score.json keeps its rows of other versions
    versions: tuple = ('original', 'griffin_lim', 'own_runs', 'predicted_runs')
    threads: int = 2 # threads of torch

def log_mel(wave):
    """(S,) -> (S // HOP, BANDS): natural log of the mel magnitudes. Frame t is centered on sample t * HOP."""
    spectrum = torch.stft(wave, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)
    return (bands() @ spectrum.abs()).clamp(min=1e-5).log().T[:len(wave) // HOP]

def griffin_lim(mel, iterations=60, momentum=0.99):
    """Log-mel (T, BANDS) -> wave (T * HOP,): finds phases that make the magnitudes consistent.

    It starts from seeded random phases (Griffin and Lim, 1984; momentum of Perraudin et al., 2013).
    """
    magnitude = (torch.linalg.pinv(bands()) @ mel.exp().T).clamp(min=1e-5) # (N_FFT / 2 + 1, T)
    # One more frame, centered on the last sample.
    magnitude = F.pad(magnitude, (0, 1), mode='replicate')
    phase = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)) * (2 * torch.pi)
    spectrum = torch.polar(torch.ones_like(magnitude), phase)
    previous = torch.zeros_like(spectrum)
    window = torch.hann_window(N_FFT)
    def invert(spectrum):
        return torch.istft(magnitude * spectrum, N_FFT, HOP, window=window, length=len(mel) * HOP)
    for _ in range(iterations):
        consistent = torch.stft(invert(spectrum), N_FFT, HOP, window=window, return_complex=True)
        spectrum = consistent + momentum * (consistent - previous)
        spectrum = spectrum / spectrum.abs().clamp(min=1e-12)
        previous = consistent
    return invert(spectrum)

def load_mos():
    """A function from a wave to its predicted mean opinion score. Raises Refused if distillmos cannot be imported."""
    try:
        import distillmos
    except (ImportError, OSError) as e: # OSError: its torchaudio finds no library of torch that it was built for
        raise Refused(f"{e}; pip install distillmos==0.9.1, and a torchaudio that fits this torch") from None
    model = distillmos.ConvTransformerSQAModel().eval()
    def score(wave):
        return model(torch.from_numpy(wave)[None]).item()
    return score

def ratio(counts):
    """[(part, total)] of the items -> sum of parts / sum of totals, and its standard error from the residuals."""
    part, total = np.array(counts, dtype=np.float64).T
    n = len(part)
    share = part.sum() / total.sum()
    variance = ((part - share * total) ** 2).sum() * n / max(1, n - 1)
    return share, math.sqrt(variance) / total.sum()

def run_errors(vocoder, units, runs, hop):
    """{'run_ms', 'run_ms_stderr', 'length', 'length_off'} of the runs that the vocoder predicts for items."""
    counts = []
    lengths = []
    for item_units, item_runs in zip(units, runs):
        predicted = vocoder.predicted_runs(torch.from_numpy(item_units.astype(np.int64))).numpy()
        counts.append((np.abs(predicted - item_runs).sum(), len(item_runs)))
        lengths.append((predicted.sum(), item_runs.sum(dtype=np.int64)))
    error, stderr = ratio(counts)
    lengths = np.array(lengths)
    return {
        'run_ms': error * 1000 * hop / RATE,
        'run_ms_stderr': stderr * 1000 * hop / RATE,
        'length': np.divide(*lengths.sum(0)),
        'length_off': np.abs(np.divide(*lengths.T) - 1).mean()}

@torch.inference_mode()
def main(cfg):
    torch.set_num_threads(cfg.threads)
    encoder = load_encoder(cfg.encoder, cfg.layer, None, 'cpu')
    vocoder = load_vocoder(cfg.vocoder)
    asr = load_asr(cfg.asr, 'cpu')
    mos = load_mos()
    items = (pair for pair in with_joined(documents(cfg.items), PackConfig())
             if pair[0]['id'].endswith('context+right'))
    pairs = list(islice(items, cfg.n))
    docs = encode_part(pairs, encoder)
    units = [doc['units'] for doc in docs]
    runs = [doc['runs'] for doc in docs]
    lines, waves = zip(*pairs)
    texts = [''.join(word for word, _, _ in line['words']) for line in lines]
    waves = [wave.astype(np.float32) / 32768 for wave in waves]

    def speech(version):
        if version == 'original':
            return waves
        if version == 'griffin_lim':
            return [griffin_lim(log_mel(torch.from_numpy(wave))).numpy() for wave in waves]
        return vocoder.speak(units, runs if version == 'own_runs' else None, encoder.hash)

    path = Path(cfg.vocoder) / 'score.json'
    scores = json.loads(path.read_text()) if path.exists() else {'rows': {}, 'samples': {}}
    for version in cfg.versions:
        start = time.perf_counter()
        spoken = speech(version)
        speed = sum(map(len, spoken)) / RATE / (time.perf_counter() - start)
        transcripts = asr(spoken)
        row = {}
        row['wer'], row['wer_stderr'] = ratio(list(map(word_errors, texts, transcripts)))
        row['n'] = len(spoken)
        row['mos'], row['mos_stderr'] = mean_and_stderr([mos(wave) for wave in progress(spoken, desc='mos')])
        if version != 'original':
            row['x_real_time'] = speed
        if version == 'predicted_runs':
            row |= run_errors(vocoder, units, runs, encoder.hop)
        print(f"{version:16} wrong words {100 * row['wer']:.1f} % ± {100 * row['wer_stderr']:.1f}, "
              f"naturalness {row['mos']:.2f} ± {row['mos_stderr']:.2f} (n = {len(spoken)}), "
              f"{speed:.0f} x real time", flush=True)
        scores['rows'][version] = {key: x if key == 'n' else float(x) for key, x in row.items()}
        scores['samples'][version] = [
            {'id': line['id'], 'text': text, 'heard': transcript}
            for line, text, transcript in zip(lines[:5], texts, transcripts)]
    write_json(path, scores | record(cfg))

if __name__ == '__main__':
    run(main, Config)
