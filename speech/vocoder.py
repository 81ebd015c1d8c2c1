"""
Units back to speech, 16 kHz mono, by one of two vocoders; and training of the first on anybody's speech:

    wave, = load_vocoder('tiny/vocoder').speak([units])                  # sample.py does this
    python tokenize_speech.py --audio=FOLDER --out=out/units/mine        units of one voice
    python -m training.vocoder --units=out/units/mine --out=out/vocoder     and a vocoder for such units

SourceFilter, the embedded one: a small network says what a throat would do, and the wave follows by formula

    units (R runs) --convolutions--> run durations d (R,)       when the runs' lengths are not known: generated units
                   --repeat d--> F frames --convolutions--> x 4 --convolutions--> each 10 ms: pitch, 2 x 80 log gains
    pitch --> all harmonics in equal strength (harmonics)
    harmonics and white noise --> each through the filter of its gains (raised, filtered) --> wave (640 F samples)

(source and filter: Fant, 1960; harmonics and noise: Serra and Smith, 1990; gains from a network that learns through the
spectrum of the wave: Engel et al., 2020.) The pitch of the training speech is measured and handed to the sources, so the
wave that comes out has its harmonics where the recorded one has them, and their spectra can be compared. A small critic
joins for the second half, against blur.

HiFiGAN, the papers', is in speech/hifigan.py; `python -m speech.convert` makes its folder of the published .pt.

A vocoder folder holds config.json and model.safetensors. config.json names the units it was made for (`units_hash`
of their info.json), so units of another encoder are refused instead of spoken as noise.

Letters: B batch, R runs, F frames (of units, 25 Hz), T steps of 10 ms, C channels, S samples.
"""
import json
import math
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from configurator import Refused
from files import atomically, write_json
from speech.audio import RATE
from speech.hifigan import HiFiGAN, HiFiGANConfig
from speech.units import refuse_foreign_units

HOP, N_FFT, BANDS = 160, 1024, 80 # 10 ms; 64 ms, the longest that a filter rings; where its gains are given
LOWEST, HIGHEST = 60, 400 # Hz, of a pitch
WINDOWS = 2048, 1024, 512, 256 # samples, of the spectra that training compares

# ----------------------------------------------------------------------------------------------------------------
# source and filter

@cache
@torch.inference_mode(False) # kept for training too
def bands():
    """(BANDS, N_FFT / 2 + 1): gains at BANDS frequencies, equally far apart on the mel scale 2595 log10(1 + f / 700), ->
    gains at all, straight in between."""
    mel = torch.linspace(0, 2595 * math.log10(1 + RATE / 2 / 700), BANDS + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1) # Hz
    f = torch.linspace(0, RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    up = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(up, down).clamp(min=0)
    triangles[0, f <= edges[1]] = triangles[-1, f >= edges[-2]] = 1 # level at both ends
    return triangles.float()

@cache
@torch.inference_mode(False)
def minimum_phase():
    """(BANDS, N_FFT / 2 + 1) complex: log gains -> log of the filter's response. Of all filters with these gains it is
    the one that answers soonest; a log response is that when its cepstrum has no negative times."""
    fold = torch.ones(N_FFT)
    fold[1:N_FFT // 2], fold[N_FFT // 2 + 1:] = 2, 0
    return torch.fft.rfft(torch.fft.irfft(bands()) * fold)

def pitch(wave):
    """(S,) -> Hz (T,) at samples t HOP, and how periodic the wave is there, 0 to 1.

    A lag's score is the normalized square difference function (McLeod and Wyvill, 2005) of 64 ms. Of all paths through
    the lags that one is taken whose scores, less 2 for each octave of movement, have the highest sum: it goes on
    through what has no pitch.
    """
    lags, n = torch.arange(RATE // HIGHEST, RATE // LOWEST + 1), N_FFT
    x = F.pad(wave, (n // 2, n // 2)).unfold(-1, n, HOP)[:len(wave) // HOP] # (T, n)
    power = F.pad(x.double().square().cumsum(-1), (1, 0))
    product = torch.fft.irfft(torch.fft.rfft(x, 2 * n).abs().square())[:, lags] # sum of x[i] x[i + lag]
    both = power[:, n - lags] + power[:, -1:] - power[:, lags] # sum of x[i]^2 + x[i + lag]^2
    score = 2 * product / both.float().clamp(min=1e-3) # (T, lags)
    octaves = lags.log2()
    move = -2 * (octaves[:, None] - octaves).abs()
    best, came = score[0], []
    for now in score[1:] - 0.02 * octaves: # of lags as good, the shortest: two periods are as like as one
        best, last = (best + move).max(-1)
        best = best + now
        came.append(last)
    path = [best.argmax()]
    for last in reversed(came):
        path.append(last[path[-1]])
    path = torch.stack(path[::-1]).clamp(1, len(lags) - 2)
    a, b, c = (score.gather(-1, (path + d)[:, None])[:, 0] for d in (-1, 0, 1))
    peak = torch.where((b > a) & (b >= c), (a - c) / (2 * (a - 2 * b + c)), 0.0) # of a parabola through three lags
    return RATE / (lags[path] + peak), b.clamp(0, 1)

def periods(hz):
    """Hz (B, T) at samples t HOP -> how many periods (B, T) have passed there, less whole ones; float64."""
    steps = (hz[:, 1:].double() + hz[:, :-1]) * (HOP / RATE / 2)
    return F.pad(steps.cumsum(-1), (1, 0)) % 1

def harmonics(hz, passed):
    """Hz and periods passed, both (B, T) -> (B, T HOP): all harmonics below RATE / 2 in equal strength, power 1.

    Between two steps the pitch is straight, its phase p a parabola; cos(2 pi k p), k = 1..K, sum to
    (sin(pi (2K + 1) p) / sin(pi p) - 1) / 2.
    """
    j = torch.arange(HOP, device=hz.device) / HOP
    slope = F.pad(hz, (0, 1), mode='replicate').diff()[..., None]
    p = passed[..., None] + (hz[..., None] * j + slope * j.square() / 2) * (HOP / RATE)
    p, K = (p - p.round()).float(), (RATE / 2 / (hz[..., None] + slope * j)).floor()
    near = p.abs() < 1e-6
    ratio = (torch.pi * (2 * K + 1) * p).sin() / (torch.pi * p.masked_fill(near, 0.5)).sin()
    return ((torch.where(near, 2 * K + 1, ratio) - 1) / (2 * K).sqrt()).flatten(1)

def filtered(*parts):
    """(source (B, T HOP), log gains (B, T, BANDS)), ... -> (B, T HOP): the sum of the sources, each through its filter.

    A source is cut into Hann windows of two steps, which sum to 1, and each window goes through the filter at its center.
    """
    spectrum = 0
    for source, gain in parts:
        gain, log_response = F.pad(gain, (0, 0, 0, 1), mode='replicate'), minimum_phase().to(source.device)
        response = torch.polar((gain @ log_response.real).exp(), gain @ log_response.imag)
        window = torch.hann_window(2 * HOP, device=source.device)
        spectrum = spectrum + torch.fft.rfft(F.pad(source, (HOP, HOP)).unfold(-1, 2 * HOP, HOP) * window, N_FFT) * response
    rings = torch.fft.irfft(spectrum).transpose(1, 2) # (B, N_FFT, T + 1)
    wave = F.fold(rings, (1, source.shape[1] + N_FFT), (1, N_FFT), stride=(1, HOP))[:, 0, 0]
    return wave[:, HOP:HOP + source.shape[1]]

def sharpen_formants(gain, contrast):
    """Log gains (..., BANDS) with what differs from a straight line over the bands made so many times as large, the power
    of white noise behind them as it was.

    What a network is unsure of it makes flat; a filter that deepens the valleys again is an old remedy in coding (Chen and
    Gersho, 1995).
    """
    line = torch.stack([torch.ones(BANDS), torch.linspace(-1, 1, BANDS)]).to(gain.device)
    line = line / line.norm(dim=1, keepdim=True)
    straight, widths = gain @ line.T @ line, bands().sum(1).log().to(gain.device)
    power = lambda g: (2 * g + widths).logsumexp(-1, keepdim=True)
    new = straight + contrast * (gain - straight)
    return new + (power(gain) - power(new)) / 2

def pieces(n, step, margin):
    """n things in pieces of step: slices (piece with a margin on both sides, the piece in that)."""
    for at in range(0, n, step):
        start, stop = max(0, at - margin), min(n, at + step)
        yield slice(start, min(n, stop + margin)), slice(at - start, stop - start)

@dataclass(frozen=True)
class SourceFilterConfig:
    n_units: int = 500
    n_embd: int = 192
    n_slow: int = 6 # residual blocks at the units' rate
    n_fast: int = 3 # and at 100 Hz
    units_hash: str = '' # of the units' info.json: other units are refused
    frame_hz: float = 25.0
    contrast: float = 1.3 # of peaks and valleys over frequency when speaking; 1: as they were learned

    def __post_init__(self):
        if RATE / HOP % self.frame_hz:
            raise Refused(f"vocoder: units at {self.frame_hz} Hz, expected a rate that goes into {RATE // HOP} Hz")

class Block(nn.Module):
    """Residual: norm of each frame -> convolution of width 5 -> GELU -> 1x1 convolution."""
    def __init__(self, n_embd, dilation):
        super().__init__()
        self.norm = nn.LayerNorm(n_embd) # not over time: padding would change it
        self.conv = nn.Conv1d(n_embd, n_embd, 5, padding=2 * dilation, dilation=dilation)
        self.mix = nn.Conv1d(n_embd, n_embd, 1)

    def forward(self, x): # (B, C, F)
        return x + self.mix(F.gelu(self.conv(self.norm(x.transpose(1, 2)).transpose(1, 2))))

def blocks(n_embd, n):
    """n of them, each third of which sees 4 times as far."""
    return [Block(n_embd, 2 ** (i % 3)) for i in range(n)]

class SourceFilter(nn.Module):
    def __init__(self, cfg: SourceFilterConfig):
        super().__init__()
        self.cfg = cfg
        C, self.up = cfg.n_embd, round(RATE / HOP / cfg.frame_hz) # steps of 10 ms a frame: 4
        self.duration_embed = nn.Embedding(cfg.n_units, C // 2)
        self.duration = nn.Sequential(*blocks(C // 2, 3), nn.Conv1d(C // 2, 1, 1))
        self.embed = nn.Embedding(cfg.n_units, C)
        self.slow = nn.Sequential(*blocks(C, cfg.n_slow))
        self.upsample = nn.ConvTranspose1d(C, C, self.up, stride=self.up)
        self.fast = nn.Sequential(*blocks(C, cfg.n_fast))
        self.head = nn.Conv1d(C, 1 + 2 * BANDS, 1)
        with torch.no_grad(): # an even, quiet sound at first
            self.head.weight.mul_(0.1)
            self.head.bias.fill_(-4.0)
            self.head.bias[0] = math.log(120)

    def log_durations(self, units):
        """(B, R) runs -> (B, R) log of each run's expected length in frames."""
        return self.duration(self.duration_embed(units).transpose(1, 2))[:, 0]

    def forward(self, frames):
        """(B, F) unit of each frame -> log Hz (B, T), log gains of the harmonics and of the noise (B, T, BANDS), T = up F."""
        x = self.slow(self.embed(frames).transpose(1, 2))
        x = self.head(self.fast(self.upsample(x))).transpose(1, 2).float()
        return x[..., 0].clamp(math.log(LOWEST), math.log(HIGHEST)), x[..., 1:1 + BANDS], x[..., 1 + BANDS:]

    @cached_property
    def context(self):
        """Frames on each side that a frame's steps depend on, at most."""
        reach = lambda blocks: sum(2 * block.conv.dilation[0] for block in blocks)
        return reach(self.slow) + math.ceil(reach(self.fast) / self.up) + 1

    def save_pretrained(self, folder, **made):
        """config.json (settings and how it was made) and model.safetensors in float16."""
        with atomically(Path(folder) / 'model.safetensors') as tmp:
            save_file({k: v.half().cpu().contiguous() for k, v in self.state_dict().items()}, tmp)
        write_json(Path(folder) / 'config.json', {**asdict(self.cfg), **made})

    @torch.inference_mode()
    def speak(self, units, runs=None, units_hash=None, seconds=20.0):
        """A list of de-duplicated units (R,), with their run lengths in frames or None (then predicted) -> a list of
        float32 waves in [-1, 1]; a long wave is made in pieces of at most so many seconds, the same to rounding.
        Refused as check() says."""
        refuse_foreign_units(units, self.cfg.n_units, units_hash, self.cfg.units_hash)
        step = max(1, round(seconds * self.cfg.frame_hz))
        pairs = zip(units, runs or [None] * len(units))
        return [self._speak(u, r, step) if len(u) else np.zeros(0, np.float32) for u, r in pairs]

    def predicted_runs(self, units):
        """(R,) -> (R,) frames, from 1 to a second's; what rounding takes from a run, it gives to the next."""
        ends = self.log_durations(units[None])[0].double().exp().clamp(1, self.cfg.frame_hz).cumsum(0)
        return F.pad((ends + 0.5).floor(), (1, 0)).diff().long()

    def _speak(self, units, runs, step):
        """step: frames of a piece."""
        tensor, up = lambda x: torch.as_tensor(np.asarray(x, dtype=np.int64), device=self.head.weight.device), self.up
        units = tensor(units)
        frames = units.repeat_interleave(self.predicted_runs(units) if runs is None else tensor(runs))[None]
        said = [[y[:, own.start * up:own.stop * up] for y in self(frames[:, wide])]
                for wide, own in pieces(frames.shape[1], step, self.context)]
        log_hz, *gains = (torch.cat(parts, 1) for parts in zip(*said))
        hz, (voice, breath), wave = log_hz.exp(), (sharpen_formants(gain, self.cfg.contrast) for gain in gains), []
        passed, noise = periods(hz), torch.randn(hz.shape[1] * HOP, generator=torch.Generator().manual_seed(0))
        for wide, own in pieces(hz.shape[1], step * up, N_FFT // HOP + 2):
            source = noise[None, wide.start * HOP:wide.stop * HOP].to(hz.device)
            made = filtered((harmonics(hz[:, wide], passed[:, wide]), voice[:, wide]), (source, breath[:, wide]))
            wave.append(made[0, own.start * HOP:own.stop * HOP].cpu())
        wave = torch.cat(wave)
        return (wave / wave.abs().max().clamp(min=1.0)).numpy() # only ever quieter: no clipping

# ----------------------------------------------------------------------------------------------------------------

def load_vocoder(folder):
    """The vocoder in a folder, of either kind; Refused in one line where there is none."""
    for name in ('config.json', 'model.safetensors'):
        if not (Path(folder) / name).is_file():
            raise Refused(f"{folder}: no vocoder here: {name} is missing")
    try:
        settings = json.loads((Path(folder) / 'config.json').read_text())
        kind, config = (HiFiGAN, HiFiGANConfig) if 'upsample_rates' in settings else (SourceFilter, SourceFilterConfig)
        model = kind(config(**{f.name: settings[f.name] for f in fields(config) if f.name in settings}))
        model.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / 'model.safetensors').items()})
    except (json.JSONDecodeError, SafetensorError, RuntimeError, TypeError, ValueError) as e:
        raise Refused(f"{folder}: not a vocoder: {str(e).splitlines()[0]}") from None
    if bad := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise Refused(f"{folder}: {bad[0]} has values that are not finite: its training or copying failed; make the folder again")
    return model.eval()
