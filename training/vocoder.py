"""
Trains the source-filter vocoder (speech/vocoder.py) on the units and the audio of one voice.

    python -m training.vocoder --units=out/units/voice --out=out/vocoder      45 minutes of a CPU

The loss compares the generated wave with the recorded one by their spectra, their pitch and the
lengths of the runs (losses). After the share --critic_from of the minutes, an adversarial loss is
added. Its Discriminator is trained alongside and not saved.
"""
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from configurator import Refused, pick_device, run
from corpora.read import read_corpus
from files import progress, record
from locks import writing_in
from speech.audio import RATE, load_audio
from speech.units import Units
from speech.vocoder import (
    HOP,
    N_FFT,
    WINDOWS,
    SourceFilter,
    SourceFilterConfig,
    apply_filters,
    bands,
    harmonics,
    load_vocoder,
    phase,
    pitch,
)


@dataclass(frozen=True)
class Config:
    units: str = '' # a units folder of tokenize_speech.py, of one voice
    audio: str = '' # its audio, as --corpus reads it; '': the files that the units folder names
    corpus: str = 'folder' # corpora/NAME.py
    speaker: str = '' # train on the documents of this speaker only; '': all
    out: str = '' # the new vocoder
    init: str = '' # a vocoder of the same units to start from: a stopped run, another voice
    hours: float = 5.0 # of speech at most; an hour takes 0.13 GB of memory
    minutes: float = 45.0 # of training
    critic_from: float = 0.5 # share of the minutes after which the adversarial loss starts; 1: never
    batch: int = 8 # crops of speech in a step
    crop: float = 2.0 # length of a crop in seconds
    learning_rate: float = 1.5e-3 # its peak; it falls to zero
    n_embd: int = 192 # channels of the network
    n_slow: int = 6 # residual blocks at the rate of the units
    n_fast: int = 3 # residual blocks at 100 Hz
    seed: int = 0 # of random weights, crops and noise
    device: str = 'auto' # 'auto' (a GPU if there is one), 'cuda', 'cpu'

    def __post_init__(self):
        if not self.units or not self.out:
            raise Refused("expected --units=DIR (tokenize_speech.py makes it) and --out=NEW_VOCODER")
        for key in ('hours', 'minutes', 'batch', 'crop', 'learning_rate', 'n_embd'):
            if not getattr(self, key) > 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")

# --------------------------------------------------------------------------------------------------
# data

def documents(cfg, units):
    """Yields units (R,), runs (R,) and wave (S,) of documents of the speaker, up to cfg.hours.

    Raises Refused if there is no such document with audio, or if the audio is not that of the
    units.
    """
    source = units.meta
    if cfg.audio:
        source, _ = read_corpus(cfg)
    audio = {entry['id']: entry for entry in source if entry.get('path')}
    chosen = []
    for i, meta in enumerate(units.meta):
        of_speaker = cfg.speaker in ('', meta.get('speaker'))
        if meta['id'] in audio and of_speaker and len(units[i][0]):
            chosen.append(i)
    if not chosen:
        files = cfg.audio or 'the files it names'
        speaker = f" and is of speaker '{cfg.speaker}'" if cfg.speaker else ''
        raise Refused(f"{cfg.units}: none of {len(units)} documents has audio in {files}{speaker}; "
                      "expected the same ids: --audio, --corpus")
    speakers = {units.meta[i].get('speaker') for i in chosen}
    if len(speakers) > 1:
        print(f"{len(speakers)} speakers: the vocoder will have a voice between theirs; "
              "--speaker=NAME takes one")

    seconds = 0.0
    hop = RATE / units.info['frame_hz'] # samples a frame
    for i in progress(chosen, desc='pitch', unit='doc'):
        entry = audio[units.meta[i]['id']]
        wave = load_audio(entry['path'], entry.get('start'), entry.get('end'))
        n = round(units[i][1].sum(dtype=np.int64) * hop)
        if abs(len(wave) - n) >= 2 * hop:
            raise Refused(f"{entry['path']}: {len(wave)} samples of '{entry['id']}', its units are "
                          f"of {n}: other audio than {cfg.units} was made of")
        # Resampling may end a wave a sample early.
        padding = max(0, n - len(wave))
        yield *units[i], np.pad(wave[:n], (0, padding))
        seconds += n / RATE
        if seconds > cfg.hours * 3600:
            break

def streams(docs):
    """Joins documents (units, runs, wave) -> {name: tensor}.

    units and runs have a number a run, frames one a frame, log_hz and periodic one for every 10 ms,
    wave one a sample (int16).
    """
    rows = []
    for units, runs, wave in docs:
        hz, periodic = pitch(torch.from_numpy(wave))
        samples = wave.clip(-1, 1) * 32767
        rows.append({
            'units': units.astype(np.int64),
            'runs': runs.astype(np.float32),
            'frames': np.repeat(units, runs).astype(np.int64),
            'wave': samples.astype(np.int16),
            'log_hz': hz.log().numpy(),
            'periodic': periodic.numpy(),
        })
    data = {}
    for name in rows[0]:
        data[name] = torch.from_numpy(np.concatenate([row[name] for row in rows]))
    return data

def crops(data, size, n, up, rng):
    """n random crops -> {name: (n, ...)}. up: 10 ms steps a frame.

    units and runs are cropped to `size` runs. The others are cropped to the same `size` frames,
    elsewhere than units and runs.
    """
    per_run = {'units': 1, 'runs': 1}
    per_frame = {'frames': 1, 'wave': up * HOP, 'log_hz': up, 'periodic': up}
    batch = {}
    for rates, total in ((per_run, len(data['units'])), (per_frame, len(data['frames']))):
        starts = rng.integers(0, total - size + 1, n)
        for name, rate in rates.items():
            rows = [data[name][start * rate:(start + size) * rate] for start in starts]
            batch[name] = torch.stack(rows)
    return batch

# --------------------------------------------------------------------------------------------------
# losses

def spectra(wave):
    """Wave (B, S) -> list of its magnitude spectra, one for each length in WINDOWS."""
    magnitudes = []
    for n in WINDOWS:
        window = torch.hann_window(n, device=wave.device)
        spectrum = torch.stft(wave, n, n // 2, window=window, return_complex=True)
        magnitudes.append(spectrum.abs())
    return magnitudes

def spectral_distance(a, b):
    """L1 distance of the log magnitudes, plus the norm of the difference relative to that of b."""
    log_distance = (a.clamp(min=1e-3).log() - b.clamp(min=1e-3).log()).abs().mean()
    return log_distance + (a - b).norm() / b.norm().clamp(min=1e-3)

def losses(model, batch, generator):
    """-> {name: loss}, whose sum is minimized; generated and recorded waves, both (B, S).

    spectrum: mean distance of the magnitude spectra. pitch: L1 distance of the log pitch, weighted
    by how periodic the recording is. runs: negative log-likelihood of the run lengths, as Poisson
    variables.
    """
    device = batch['frames'].device
    with torch.autocast(device.type, torch.bfloat16):
        log_hz, harmonic_gains, noise_gains = model(batch['frames'])
        log_runs = model.log_durations(batch['units']).float()
    hz = batch['log_hz'].exp()
    recorded = batch['wave'].float() / 32767
    noise = torch.randn(recorded.shape, generator=generator).to(device)
    voiced = harmonics(hz, phase(hz))
    generated = apply_filters((voiced, harmonic_gains), (noise, noise_gains))

    distances = [spectral_distance(a, b) for a, b in zip(spectra(generated), spectra(recorded))]
    periodic = batch['periodic']
    pitch_error = (log_hz - batch['log_hz']).abs() * periodic
    runs_loss = (log_runs.exp() - batch['runs'] * log_runs).mean()
    loss = {
        'spectrum': sum(distances) / len(distances),
        'pitch': 2 * (pitch_error.sum() / periodic.sum().clamp(min=1)),
        'runs': 0.1 * runs_loss,
    }
    return loss, generated, recorded

class Discriminator(nn.Module):
    """Wave (B, S) -> a score for each patch of its band spectrum, and the features of every layer.

    A score of 1 says that the patch looks recorded, 0 that it looks generated (least-squares GAN:
    Mao et al., 2017; patches: Isola et al., 2017). A network that learns from distances alone
    predicts the mean of all that is likely, which is blurred. Blur is easy to detect for a
    discriminator.
    """
    def __init__(self, C=24):
        super().__init__()
        widths = 1, C, 2 * C, 2 * C, 2 * C
        self.layers = nn.ModuleList()
        for n_in, n_out in zip(widths, widths[1:]):
            self.layers.append(nn.Conv2d(n_in, n_out, 5, stride=2, padding=2))
        self.out = nn.Conv2d(2 * C, 1, 3, padding=1)

    def forward(self, wave):
        n = N_FFT // 2 # 32 ms
        window = torch.hann_window(n, device=wave.device)
        magnitude = torch.stft(wave, n, HOP, window=window, return_complex=True).abs()
        log_bands = (bands()[:, ::2].to(wave.device) @ magnitude).clamp(min=1e-2).log()
        x = (log_bands[:, None] + 1) / 2
        features = []
        with torch.autocast(wave.device.type, torch.bfloat16):
            for layer in self.layers:
                x = F.leaky_relu(layer(x), 0.2)
                features.append(x.float())
            return self.out(x).float(), features

def adversarial_loss(discriminator, optimizer, generated, recorded):
    """Trains the discriminator for a step -> {name: loss} for the vocoder.

    adversarial: how far the scores of the generated wave are from those of a recording.
    feature_matching: L1 distance of the discriminator's features (Larsen et al., 2016).
    """
    real_scores, real_features = discriminator(recorded)
    fake_scores, _ = discriminator(generated.detach())
    ((real_scores - 1).square().mean() + fake_scores.square().mean()).backward()
    optimizer.step()

    scores, features = discriminator(generated)
    distances = []
    for a, b in zip(features, real_features):
        b = b.detach()
        distances.append((a - b).abs().mean() / b.abs().mean())
    return {
        'adversarial': 0.2 * (scores - 1).square().mean(),
        'feature_matching': 0.5 * sum(distances) / len(distances),
    }

# --------------------------------------------------------------------------------------------------
# training

def train(cfg, model, data, size, device):
    """The training loop, for cfg.minutes; saves the model into cfg.out. size: frames of a crop."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    discriminator = Discriminator().to(device)
    discriminator_optimizer = torch.optim.AdamW(
        discriminator.parameters(), lr=3e-4, betas=(0.8, 0.99))
    rng = np.random.default_rng(cfg.seed)
    generator = torch.Generator().manual_seed(cfg.seed)
    smooth = {} # moving average of each loss
    step = 0
    done = 0.0 # share of the minutes
    start = time.monotonic()
    while done < 1:
        # Warm up for 2 % of the time, and follow half a cosine down to zero.
        decay = 0.5 + 0.5 * math.cos(math.pi * done)
        for group in optimizer.param_groups:
            group['lr'] = cfg.learning_rate * min(done / 0.02 + 0.01, decay)

        batch = crops(data, size, cfg.batch, model.up, rng)
        batch = {name: x.to(device) for name, x in batch.items()}
        loss, generated, recorded = losses(model, batch, generator)
        if done > cfg.critic_from:
            loss |= adversarial_loss(discriminator, discriminator_optimizer, generated, recorded)
        sum(loss.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # The vocoder's loss has left gradients in the discriminator, too.
        discriminator_optimizer.zero_grad()

        for name, x in loss.items():
            smooth[name] = 0.99 * smooth.get(name, x.item()) + 0.01 * x.item()
        step += 1
        done = (time.monotonic() - start) / (60 * cfg.minutes)
        if step % 100 == 0 or done >= 1:
            means = ' | '.join(f'{name} {x:.3f}' for name, x in smooth.items())
            ms = 60000 * cfg.minutes * done / step
            print(f"step {step} | {100 * done:.0f} % | {means} | {ms:.0f} ms", flush=True)
        if step % 1000 == 0 or done >= 1:
            means = {name: round(x, 4) for name, x in smooth.items()}
            model.save_pretrained(cfg.out, trained={'steps': step, **means}, **record(cfg))

def main(cfg):
    with writing_in(cfg.out):
        train_anew(cfg)

def train_anew(cfg):
    """Trains a vocoder of these settings."""
    if (Path(cfg.out) / 'config.json').exists():
        raise Refused(f"{cfg.out}: a vocoder is there; remove it or give another --out "
                      f"(--init={cfg.out} goes on from it)")
    units = Units(cfg.units)
    if units.codebooks:
        raise Refused(f"{cfg.units}: flat units of {units.codebooks} codebooks need no training: their Mimi speaks "
                      f"them, --vocoder={units.info['encoder']}")
    device = pick_device(cfg.device)
    facts = {key: units.info[key] for key in ('n_units', 'units_hash', 'frame_hz')}
    torch.manual_seed(cfg.seed)
    config = SourceFilterConfig(**facts, n_embd=cfg.n_embd, n_slow=cfg.n_slow, n_fast=cfg.n_fast)
    model = SourceFilter(config)
    if cfg.init:
        model = load_vocoder(cfg.init)
        differing = [key for key in facts if getattr(model.cfg, key, None) != facts[key]]
        if differing or not isinstance(model, SourceFilter):
            raise Refused(f"{cfg.init}: not a vocoder of python -m training.vocoder for units "
                          f"{facts['units_hash']}")
    model = model.to(device).train()
    size = round(cfg.crop * units.info['frame_hz'])
    data = streams(documents(cfg, units))
    if len(data['units']) < size:
        raise Refused(f"{cfg.units}: {len(data['units'])} units with audio, a crop has up to "
                      f"{size}: more speech, or a smaller --crop")
    hours = len(data['frames']) / units.info['frame_hz'] / 3600
    n_params = sum(p.numel() for p in model.parameters())
    print(f"{hours:.2f} h of speech, {n_params / 1e6:.2f} M parameters")
    train(cfg, model, data, size, device)
    print(f"{cfg.out}: speaks units {facts['units_hash']}; python sample.py --vocoder={cfg.out}")

if __name__ == '__main__':
    run(main, Config)
