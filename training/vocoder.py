"""
Trains the vocoder of speech/vocoder.py on the units and the audio of one voice.

    python -m training.vocoder --units=out/units/voice --out=out/vocoder        --minutes=45, of a CPU
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
from speech.audio import RATE, load_audio
from speech.units import Units
from speech.vocoder import (
    HOP,
    N_FFT,
    WINDOWS,
    SourceFilter,
    SourceFilterConfig,
    bands,
    filtered,
    harmonics,
    load_vocoder,
    periods,
    pitch,
)


@dataclass(frozen=True)
class Config:
    units: str = '' # a units folder of tokenize_speech.py, of one voice
    audio: str = '' # that folder's audio, as --corpus reads it, by id; '': where the units folder says it is
    corpus: str = 'folder' # corpora/NAME.py
    speaker: str = '' # only the documents of this one; '': all
    out: str = '' # the new vocoder
    init: str = '' # a vocoder of the same units to go on from: a cut run, another voice
    hours: float = 5.0 # of speech at most; 0.13 GB of memory each
    minutes: float = 45.0 # of training
    critic_from: float = 0.5 # share of the minutes after which a second network judges, too; 1: never
    batch: int = 8 # crops
    crop: float = 2.0 # seconds
    learning_rate: float = 1.5e-3 # falls to zero
    n_embd: int = 192
    n_slow: int = 6
    n_fast: int = 3
    seed: int = 0
    device: str = 'auto'

    def __post_init__(self):
        if not self.units or not self.out:
            raise Refused("expected --units=DIR (tokenize_speech.py makes it) and --out=NEW_VOCODER")
        for key in ('hours', 'minutes', 'batch', 'crop', 'learning_rate', 'n_embd'):
            if not getattr(self, key) > 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")

def documents(cfg, units):
    """Units, runs, wave of the documents that have audio, until there are cfg.hours."""
    if cfg.audio:
        found = {u['id']: u for u in read_corpus(cfg)}
    else:
        found = {meta['id']: meta for meta in units.meta if meta.get('path')}
    chosen = [i for i, meta in enumerate(units.meta)
              if meta['id'] in found and cfg.speaker in ('', meta.get('speaker')) and len(units[i][0])]
    if not chosen:
        raise Refused(f"{cfg.units}: none of {len(units)} documents has audio in {cfg.audio or 'the files it names'}"
                      + (f" and is of speaker '{cfg.speaker}'" if cfg.speaker else '') + "; expected the same ids: --audio, --corpus")
    if len(voices := {units.meta[i].get('speaker') for i in chosen}) > 1:
        print(f"{len(voices)} speakers: the vocoder will have a voice between theirs; --speaker=NAME takes one")
    seconds, samples = 0.0, RATE / units.info['frame_hz']
    for i in progress(chosen, desc='pitch', unit='doc'):
        u = found[units.meta[i]['id']]
        wave = load_audio(u['path'], u.get('start'), u.get('end'))
        n = round(units[i][1].sum(dtype=np.int64) * samples)
        if abs(len(wave) - n) >= 2 * samples:
            raise Refused(f"{u['path']}: {len(wave)} samples of '{u['id']}', its units are of {n}: other audio than {cfg.units} "
                          "was made of")
        yield *units[i], np.pad(wave[:n], (0, max(0, n - len(wave)))) # resampling may end a sample early
        if (seconds := seconds + n / RATE) > cfg.hours * 3600:
            break

def streams(docs):
    """Documents (units, runs, wave) one after another: a dict of tensors with a row a run, frame, step or sample."""
    columns = {name: [] for name in ('units', 'runs', 'frames', 'wave', 'log_hz', 'periodic')}
    for units, runs, wave in docs:
        hz, periodic = pitch(torch.from_numpy(wave))
        frames, samples = np.repeat(units, runs).astype(np.int64), (wave.clip(-1, 1) * 32767).astype(np.int16)
        row = units.astype(np.int64), runs.astype(np.float32), frames, samples
        for column, value in zip(columns.values(), (*map(torch.from_numpy, row), hz.log(), periodic)):
            column.append(value)
    return {name: torch.cat(column) for name, column in columns.items()}

def crops(data, size, n, up, rng):
    """n crops of `size` frames from anywhere, each name with a row a crop; units and runs are from elsewhere than the rest."""
    def cut(names, total, per):
        at = rng.integers(0, total - size + 1, n)
        return {name: torch.stack([data[name][a * k:(a + size) * k] for a in at]) for name, k in zip(names, per)}
    return cut(('units', 'runs'), len(data['units']), (1, 1)) | \
        cut(('frames', 'wave', 'log_hz', 'periodic'), len(data['frames']), (1, up * HOP, up, up))

def spectra(wave):
    """(B, S) -> its magnitudes in windows of each length."""
    window = lambda n: torch.hann_window(n, device=wave.device)
    return [torch.stft(wave, n, n // 2, window=window(n), return_complex=True).abs() for n in WINDOWS]

def losses(model, batch, generator):
    """(what is minimized, as a sum; the wave that was made; the recorded one).

    Of the spectra the L1 of log magnitudes and the share of the magnitudes that is off; the L1 of log pitch, where there is
    one; of the runs' lengths, as a Poisson variable's, the negative log-likelihood.
    """
    device = batch['frames'].device
    with torch.autocast(device.type, torch.bfloat16):
        log_hz, voice, breath = model(batch['frames'])
        log_runs = model.log_durations(batch['units']).float()
    hz, wave = batch['log_hz'].exp(), batch['wave'].float() / 32767
    noise = torch.randn(wave.shape, generator=generator).to(device)
    made = filtered((harmonics(hz, periods(hz)), voice), (noise, breath))
    off = [(a.clamp(min=1e-3).log() - b.clamp(min=1e-3).log()).abs().mean() + (a - b).norm() / b.norm().clamp(min=1e-3)
           for a, b in zip(spectra(made), spectra(wave))]
    pitch_off = ((log_hz - batch['log_hz']).abs() * batch['periodic']).sum() / batch['periodic'].sum().clamp(min=1)
    runs_off = (log_runs.exp() - batch['runs'] * log_runs).mean()
    return {'spectrum': sum(off) / len(off), 'pitch': 2 * pitch_off, 'runs': 0.1 * runs_off}, made, wave

class Discriminator(nn.Module):
    """Waves (B, S) -> how much each patch of their band spectra looks recorded (1) or made (0), and what every layer saw.

    A network that learns from differences alone says the mean of what might have been, which is blurred; blur is what a
    critic sees first (least squares: Mao et al., 2017; patches: Isola et al., 2017; features: Larsen et al., 2016).
    """
    def __init__(self, C=24):
        super().__init__()
        widths = 1, C, 2 * C, 2 * C, 2 * C
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in zip(widths, widths[1:]))
        self.out = nn.Conv2d(2 * C, 1, 3, padding=1)

    def forward(self, wave):
        n = N_FFT // 2 # 32 ms
        magnitude = torch.stft(wave, n, HOP, window=torch.hann_window(n, device=wave.device), return_complex=True).abs()
        x, seen = ((bands()[:, ::2].to(wave.device) @ magnitude).clamp(min=1e-2).log()[:, None] + 1) / 2, []
        with torch.autocast(wave.device.type, torch.bfloat16):
            for layer in self.layers:
                x = F.leaky_relu(layer(x), 0.2)
                seen.append(x.float())
            return self.out(x).float(), seen

def adversarial_loss(critic, optimizer, made, wave):
    """A step of the critic's own; then what its verdict adds to the losses."""
    (real, wanted), (fake, _) = critic(wave), critic(made.detach())
    ((real - 1).square().mean() + fake.square().mean()).backward()
    optimizer.step()
    verdict, seen = critic(made)
    return {'critic': 0.2 * (verdict - 1).square().mean(),
            'features': 0.5 * sum((a - b.detach()).abs().mean() / b.detach().abs().mean() for a, b in zip(seen, wanted)) / len(seen)}

def main(cfg):
    if (Path(cfg.out) / 'config.json').exists():
        raise Refused(f"{cfg.out}: a vocoder is there; remove it or give another --out (--init={cfg.out} goes on from it)")
    units, device = Units(cfg.units), pick_device(cfg.device)
    facts = {'n_units': units.info['n_units'], 'units_hash': units.info['units_hash'], 'frame_hz': units.info['frame_hz']}
    torch.manual_seed(cfg.seed)
    model = SourceFilter(SourceFilterConfig(**facts, n_embd=cfg.n_embd, n_slow=cfg.n_slow, n_fast=cfg.n_fast))
    if cfg.init:
        model = load_vocoder(cfg.init)
        if not isinstance(model, SourceFilter) or any(getattr(model.cfg, key) != value for key, value in facts.items()):
            raise Refused(f"{cfg.init}: not a vocoder of python -m training.vocoder for units {facts['units_hash']}")
    model = model.to(device).train()
    size, data = round(cfg.crop * units.info['frame_hz']), streams(documents(cfg, units))
    if len(data['units']) < size:
        raise Refused(f"{cfg.units}: {len(data['units'])} units with audio, a crop has up to {size}: more speech, or a smaller --crop")
    print(f"{len(data['frames']) / units.info['frame_hz'] / 3600:.2f} h of speech, "
          f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    critic = Discriminator().to(device)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-4, betas=(0.8, 0.99))
    rng, generator, smooth, step = np.random.default_rng(cfg.seed), torch.Generator().manual_seed(cfg.seed), {}, 0
    start, done = time.monotonic(), 0.0
    while done < 1:
        for group in optimizer.param_groups: # a warm-up of 2 %, then half a cosine
            group['lr'] = cfg.learning_rate * min(done / 0.02 + 0.01, 0.5 + 0.5 * math.cos(math.pi * done))
        batch = crops(data, size, cfg.batch, model.up, rng)
        loss, made, wave = losses(model, {name: x.to(device) for name, x in batch.items()}, generator)
        if done > cfg.critic_from:
            loss |= adversarial_loss(critic, critic_optimizer, made, wave)
        sum(loss.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        critic_optimizer.zero_grad() # what went through the critic to the wave
        smooth = {name: 0.99 * smooth.get(name, x.item()) + 0.01 * x.item() for name, x in loss.items()}
        step, done = step + 1, (time.monotonic() - start) / (60 * cfg.minutes)
        if step % 100 == 0 or done >= 1:
            print(f"step {step} | {100 * done:.0f} % | " + ' | '.join(f'{name} {x:.3f}' for name, x in smooth.items())
                  + f" | {60000 * cfg.minutes * done / step:.0f} ms", flush=True)
        if step % 1000 == 0 or done >= 1:
            model.save_pretrained(cfg.out, trained={'steps': step, **{name: round(x, 4) for name, x in smooth.items()}}, **record(cfg))
    print(f"{cfg.out}: speaks units {facts['units_hash']}; python sample.py --vocoder={cfg.out}")

if __name__ == '__main__':
    run(main, Config)
