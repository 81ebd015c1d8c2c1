"""
Units back to speech (16 kHz, mono) by one of two vocoders, SourceFilter or HiFiGAN.

    wave, = load_vocoder('tiny/vocoder').speak([units])                    # what sample.py does
    python tokenize_speech.py --audio=FOLDER --out=out/units/mine          # units of one voice
    python -m training.vocoder --units=out/units/mine --out=out/vocoder    # a vocoder for them

SourceFilter is the vocoder of the embedded corpus, and can be trained on anybody's speech. It
models a voice as a sound source followed by a filter (Fant, 1960). A small network predicts the
pitch and the filters for every 10 ms. Signal processing without weights makes the wave from them:

    units (R runs) --convolutions--> run lengths d (R,)   only for generated units, which have none
    units --repeat d times--> F frames --convolutions, upsampling by 4, convolutions-->
        for each 10 ms: pitch, harmonic_gains (80 log gains), noise_gains (80 log gains)
    pitch --> phase --> harmonics, all of equal strength --filter with harmonic_gains--> voiced
    white noise --filter with noise_gains--> unvoiced
    voiced + unvoiced --> wave (640 F samples at 25 frames a second)

Harmonics plus noise are the model of Serra and Smith (1990). As in Engel et al. (2020), the network
learns the gains by comparing the spectrum of the wave with that of the recording. For this,
training feeds the pitch measured in the recording (see pitch) to the harmonic source, so that the
harmonics of both waves lie at the same frequencies. For the second half of training, the loss of a
small discriminator is added, against blur (training/vocoder.py).

HiFiGAN is the vocoder of the papers (speech/hifigan.py). `python -m speech.convert` makes its
folder from the published .pt file. Flat units of Mimi are spoken by their own Mimi (speech/mimi_vocoder.py).

A vocoder folder holds config.json and model.safetensors. config.json names the units that the
vocoder was made for (the `units_hash` of their info.json), so that units of another encoder are
refused instead of spoken as noise.

Shapes: B batch, R runs, F frames (of units, 25 Hz), T steps of 10 ms, C channels, S samples.
"""
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
from files import atomically, check_readable, read_json, write_json
from speech.audio import RATE
from speech.hifigan import HiFiGAN, HiFiGANConfig
from speech.mimi_vocoder import MimiVocoder
from speech.units import refuse_foreign_units

HOP = 160 # samples: a step of 10 ms
N_FFT = 1024 # samples: 64 ms, the longest that a filter rings
BANDS = 80 # frequencies at which a filter's gains are given
LOWEST, HIGHEST = 60, 400 # Hz: range of the pitch
WINDOWS = 2048, 1024, 512, 256 # samples: windows of the spectra that training compares

# --------------------------------------------------------------------------------------------------
# source and filter

@cache
@torch.inference_mode(False) # the cached tensor is used in training, too
def bands():
    """(BANDS, N_FFT / 2 + 1) matrix: gains at BANDS frequencies -> gains at all FFT bins.

    The BANDS frequencies are equally spaced on the mel scale, 2595 log10(1 + f / 700). Gains
    between them are interpolated linearly; gains below the first and above the last are constant.
    """
    max_mel = 2595 * math.log10(1 + RATE / 2 / 700)
    mel = torch.linspace(0, max_mel, BANDS + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1) # Hz
    f = torch.linspace(0, RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    widths = edges.diff()[:, None]
    up = (f - edges[:-2, None]) / widths[:-1]
    down = (edges[2:, None] - f) / widths[1:]
    triangles = torch.minimum(up, down).clamp(min=0)
    triangles[0, f <= edges[1]] = 1
    triangles[-1, f >= edges[-2]] = 1
    return triangles.float()

@cache
@torch.inference_mode(False)
def minimum_phase():
    """(BANDS, N_FFT / 2 + 1) complex matrix: log gains -> log frequency response of a filter.

    Many filters have the same gains; this is the minimum-phase one, which responds with the least
    delay. A filter is minimum-phase if the cepstrum (inverse FFT of its log response) is zero at
    negative times. So the part of the cepstrum at negative times is folded onto positive times.
    """
    fold = torch.ones(N_FFT)
    fold[1:N_FFT // 2] = 2
    fold[N_FFT // 2 + 1:] = 0
    return torch.fft.rfft(torch.fft.irfft(bands()) * fold)

def pitch(wave):
    """Wave (S,) -> pitch in Hz (T,) at samples t HOP, and how periodic it is there (T,), 0 to 1.

    The score of a lag (a candidate period, in samples) is the normalized square difference function
    (McLeod and Wyvill, 2005) of 64 ms. A Viterbi search finds the path of lags over time that has
    the highest sum of scores, less 2 for each octave that it moves. The path has a pitch
    everywhere, also where the wave is not periodic.
    """
    n = N_FFT
    lags = torch.arange(RATE // HIGHEST, RATE // LOWEST + 1)
    x = F.pad(wave, (n // 2, n // 2)).unfold(-1, n, HOP)
    x = x[:len(wave) // HOP] # (T, n)

    # For each lag: the sum of x[i] x[i + lag], and the sum of x[i]^2 + x[i + lag]^2.
    spectrum = torch.fft.rfft(x, 2 * n)
    products = torch.fft.irfft(spectrum.abs().square())[:, lags]
    power = F.pad(x.double().square().cumsum(-1), (1, 0))
    powers = power[:, n - lags] + power[:, -1:] - power[:, lags]
    score = 2 * products / powers.float().clamp(min=1e-3) # (T, lags)

    # A wave repeats after two periods as well as after one: -0.02 octaves prefers the shorter lag.
    octaves = lags.log2()
    move = -2 * (octaves[:, None] - octaves).abs()
    best = score[0]
    origins = []
    for step_score in score[1:] - 0.02 * octaves:
        best, origin = (best + move).max(-1)
        best = best + step_score
        origins.append(origin)
    path = [best.argmax()]
    for origin in reversed(origins):
        path.append(origin[path[-1]])
    path = torch.stack(path[::-1]).clamp(1, len(lags) - 2)

    # The period lies at the peak of the parabola through the scores of three neighboring lags.
    neighbors = path[:, None] + torch.arange(-1, 2)
    a, b, c = score.gather(-1, neighbors).unbind(-1)
    offset = (a - c) / (2 * (a - 2 * b + c))
    offset = torch.where((b > a) & (b >= c), offset, 0.0)
    return RATE / (lags[path] + offset), b.clamp(0, 1)

def phase(hz):
    """Pitch in Hz (B, T) at samples t HOP -> its phase there (B, T) in periods, modulo 1; float64."""
    steps = (hz[:, 1:].double() + hz[:, :-1]) * (HOP / RATE / 2)
    return F.pad(steps.cumsum(-1), (1, 0)) % 1

def harmonics(hz, start_phase):
    """Pitch in Hz and phase in periods, both (B, T) -> sum of the harmonics (B, T HOP).

    These are all harmonics below RATE / 2, equally strong. The pitch is linear between two steps,
    so its phase p is a parabola. With K harmonics, the sum over k = 1..K of cos(2 pi k p) is
    (sin(pi (2K + 1) p) / sin(pi p) - 1) / 2. It is scaled to a power of 1.
    """
    j = torch.arange(HOP, device=hz.device) / HOP
    slope = F.pad(hz, (0, 1), mode='replicate').diff()[..., None]
    hz = hz[..., None]
    p = start_phase[..., None] + (hz * j + slope * j.square() / 2) * (HOP / RATE)
    p = (p - p.round()).float()
    K = (RATE / 2 / (hz + slope * j)).floor()
    # The ratio of the sines tends to 2K + 1 as p tends to 0.
    limit = 2 * K + 1
    near_zero = p.abs() < 1e-6
    denominator = (torch.pi * p.masked_fill(near_zero, 0.5)).sin()
    ratio = (torch.pi * limit * p).sin() / denominator
    ratio = torch.where(near_zero, limit, ratio)
    return ((ratio - 1) / (2 * K).sqrt()).flatten(1)

def apply_filters(*parts):
    """Pairs of source (B, T HOP) and log gains (B, T, BANDS) -> sum of filtered sources (B, T HOP).

    A source is cut into Hann windows of two steps, which overlap and sum to 1. Each window goes
    through the filter that belongs to its center.
    """
    spectrum = 0
    for source, gains in parts:
        log_response = minimum_phase().to(source.device)
        gains = F.pad(gains, (0, 0, 0, 1), mode='replicate')
        response = torch.polar((gains @ log_response.real).exp(), gains @ log_response.imag)
        window = torch.hann_window(2 * HOP, device=source.device)
        windows = F.pad(source, (HOP, HOP)).unfold(-1, 2 * HOP, HOP)
        spectrum = spectrum + torch.fft.rfft(windows * window, N_FFT) * response
    # Overlap-add: the output of each window goes on for N_FFT samples.
    outputs = torch.fft.irfft(spectrum).mT # (B, N_FFT, T + 1)
    S = source.shape[1]
    wave = F.fold(outputs, (1, S + N_FFT), (1, N_FFT), stride=(1, HOP))
    return wave[:, 0, 0, HOP:HOP + S]

def sharpen_formants(gains, contrast):
    """Log gains (..., BANDS) -> log gains with peaks and valleys `contrast` times as large.

    Peaks and valleys are what differs from the straight line fitted to the gains over the bands.
    The power of white noise through the filter stays the same. The network predicts flat gains
    where it is unsure; deepening the valleys is an old remedy from speech coding, the postfilter
    (Chen and Gersho, 1995).
    """
    # A line is a sum of the two rows of this orthonormal basis.
    basis = torch.stack([torch.ones(BANDS), torch.linspace(-1, 1, BANDS)]).to(gains.device)
    basis = basis / basis.norm(dim=1, keepdim=True)
    straight = gains @ basis.T @ basis
    sharp = straight + contrast * (gains - straight)
    log_widths = bands().sum(1).log().to(gains.device)

    def log_power(g):
        return (2 * g + log_widths).logsumexp(-1, keepdim=True)

    return sharp + (log_power(gains) - log_power(sharp)) / 2

# --------------------------------------------------------------------------------------------------
# the network

def pieces(n, step, margin):
    """Cuts n positions into pieces of `step`. Yields two slices for each piece.

    The first is the piece with up to `margin` more positions on each side, the second is the piece
    within the first.
    """
    for first in range(0, n, step):
        start = max(0, first - margin)
        stop = min(n, first + step)
        yield slice(start, min(n, stop + margin)), slice(first - start, stop - start)

@dataclass(frozen=True)
class SourceFilterConfig:
    n_units: int = 500
    n_embd: int = 192
    n_slow: int = 6 # residual blocks at the rate of the units
    n_fast: int = 3 # residual blocks at 100 Hz
    units_hash: str = '' # from the info.json of the units; other units are refused
    frame_hz: float = 25.0
    contrast: float = 1.3 # of sharpen_formants when speaking; 1 leaves the gains as learned

    def __post_init__(self):
        if RATE / HOP % self.frame_hz:
            raise Refused(f"vocoder: units at {self.frame_hz} Hz, "
                          f"expected a rate that divides {RATE // HOP} Hz")

    @property
    def n_blocks(self):
        return self.n_slow + self.n_fast

class Block(nn.Module):
    """Residual block: norm of each frame -> convolution of width 5 -> GELU -> 1x1 convolution."""
    def __init__(self, n_embd, dilation):
        super().__init__()
        self.norm = nn.LayerNorm(n_embd) # not over time: padding would change it
        self.conv = nn.Conv1d(n_embd, n_embd, 5, padding=2 * dilation, dilation=dilation)
        self.mix = nn.Conv1d(n_embd, n_embd, 1)

    def forward(self, x): # (B, C, F)
        normed = self.norm(x.mT).mT
        return x + self.mix(F.gelu(self.conv(normed)))

def blocks(n_embd, n):
    """n blocks with dilations 1, 2, 4, 1, 2, 4, ..."""
    return [Block(n_embd, 2 ** (i % 3)) for i in range(n)]

class SourceFilter(nn.Module):
    """Units -> pitch and filters of each 10 ms -> wave. The top of this file has a picture."""
    def __init__(self, cfg: SourceFilterConfig):
        super().__init__()
        self.cfg = cfg
        C = cfg.n_embd
        self.up = round(RATE / HOP / cfg.frame_hz) # 10 ms steps a frame: 4
        self.hop = self.up * HOP # samples a frame: 640
        self.duration_embed = nn.Embedding(cfg.n_units, C // 2)
        self.duration = nn.Sequential(*blocks(C // 2, 3), nn.Conv1d(C // 2, 1, 1))
        self.embed = nn.Embedding(cfg.n_units, C)
        self.slow = nn.Sequential(*blocks(C, cfg.n_slow))
        self.upsample = nn.ConvTranspose1d(C, C, self.up, stride=self.up)
        self.fast = nn.Sequential(*blocks(C, cfg.n_fast))
        self.head = nn.Conv1d(C, 1 + 2 * BANDS, 1)
        # Start with a quiet, even sound at 120 Hz.
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.fill_(-4.0)
            self.head.bias[0] = math.log(120)

    def log_durations(self, units):
        """Units (B, R) -> log of each run's expected length in frames (B, R)."""
        return self.duration(self.duration_embed(units).mT)[:, 0]

    def forward(self, frames):
        """Unit of each frame (B, F) -> log pitch (B, T), two log gains (B, T, BANDS); T = up F.

        The gains are those of the harmonics and those of the noise. The pitch is in Hz.
        """
        x = self.slow(self.embed(frames).mT)
        x = self.fast(self.upsample(x))
        x = self.head(x).mT.float()
        log_hz, harmonic_gains, noise_gains = x.split([1, BANDS, BANDS], dim=-1)
        log_hz = log_hz[..., 0].clamp(math.log(LOWEST), math.log(HIGHEST))
        return log_hz, harmonic_gains, noise_gains

    @cached_property
    def context(self):
        """The most frames on each side that the output of a frame depends on."""
        def reach(layers):
            return sum(2 * block.conv.dilation[0] for block in layers)
        return reach(self.slow) + math.ceil(reach(self.fast) / self.up) + 1

    @cached_property
    def run_context(self):
        """The most runs on each side that the length of a run depends on."""
        return sum(2 * block.conv.dilation[0] for block in self.duration[:-1])

    def save_pretrained(self, folder, **provenance):
        """Writes model.safetensors (float16) and config.json (settings, provenance)."""
        weights = {name: w.half().cpu().contiguous() for name, w in self.state_dict().items()}
        with atomically(Path(folder) / 'model.safetensors') as tmp:
            save_file(weights, tmp)
        write_json(Path(folder) / 'config.json', {**asdict(self.cfg), **provenance})

    @torch.inference_mode()
    def speak(self, units, runs=None, units_hash=None, seconds=20.0):
        """A list of de-duplicated units (R,) -> a list of float32 waves in [-1, 1].

        runs: a list of run lengths in frames (R,); None: they are predicted. A wave longer than
        `seconds` is made in pieces, to save memory; the result is the same up to rounding. Raises
        Refused for units that the vocoder was not made for (refuse_foreign_units).
        """
        refuse_foreign_units(units, self.cfg.n_units, units_hash, self.cfg.units_hash)
        step = max(1, round(seconds * self.cfg.frame_hz))
        waves = []
        for u, r in zip(units, runs or [None] * len(units)):
            waves.append(self._speak(u, r, step) if len(u) else np.zeros(0, np.float32))
        return waves

    def predicted_runs(self, units):
        """Units (R,) -> run lengths in frames (R,), each from 1 frame to a second.

        The ends of the runs are rounded, not their lengths, so that rounding errors do not add up.
        """
        log_durations = self.log_durations(self._tensor(units)[None])[0].double()
        durations = log_durations.exp().clamp(1, self.cfg.frame_hz)
        ends = (durations.cumsum(0) + 0.5).floor()
        return F.pad(ends, (1, 0)).diff().long()

    def _tensor(self, values):
        return torch.as_tensor(values, dtype=torch.long, device=self.head.weight.device)

    def _speak(self, units, runs, step):
        """One wave (S,), made in pieces of `step` frames."""
        runs = self.predicted_runs(units) if runs is None else self._tensor(runs)
        frames = self._tensor(units).repeat_interleave(runs)[None]
        outputs = []
        for padded, inner in pieces(frames.shape[1], step, self.context):
            inner = slice(inner.start * self.up, inner.stop * self.up)
            outputs.append([y[:, inner] for y in self(frames[:, padded])])
        log_hz, *gains = (torch.cat(parts, 1) for parts in zip(*outputs))
        harmonic_gains, noise_gains = (sharpen_formants(g, self.cfg.contrast) for g in gains)
        hz = log_hz.exp()
        start_phase = phase(hz)
        T = hz.shape[1]
        noise = torch.randn(T * HOP, generator=torch.Generator().manual_seed(0))

        wave = []
        for padded, inner in pieces(T, step * self.up, N_FFT // HOP + 2):
            voiced = harmonics(hz[:, padded], start_phase[:, padded])
            unvoiced = noise[None, padded.start * HOP:padded.stop * HOP].to(hz.device)
            piece = apply_filters(
                (voiced, harmonic_gains[:, padded]),
                (unvoiced, noise_gains[:, padded]),
            )
            wave.append(piece[0, inner.start * HOP:inner.stop * HOP].cpu())
        wave = torch.cat(wave)
        # A wave that is too loud is scaled down instead of clipped; none is made louder.
        return (wave / wave.abs().max().clamp(min=1.0)).numpy()

# --------------------------------------------------------------------------------------------------
# speaking while units are still being generated

def lookahead(vocoder):
    """How many runs after a unit decide its sound, at most: each lasts a frame or longer."""
    return vocoder.run_context + vocoder.context + 1

@torch.inference_mode()
def settled(vocoder, units):
    """How many samples of the wave of `units` (R,) are the same whatever units follow.

    The lengths of the last runs may still change, and what sounds in the `context` frames before
    them. One frame more is for the filters, which overlap. A wave that speak makes softer is the exception.
    """
    runs = vocoder.predicted_runs(units)
    frames = int(runs[:max(0, len(runs) - vocoder.run_context)].sum())
    return int(max(0, frames - vocoder.context - 1) * vocoder.hop)

# --------------------------------------------------------------------------------------------------
# vocoder folders

def load_vocoder(folder, codebooks=0):
    """The SourceFilter or HiFiGAN of a folder, in eval mode. Raises Refused if there is none.

    codebooks: of the units, as in info.json; above 0, folder (or a hub id) has the Mimi that they come from.
    """
    if codebooks:
        return MimiVocoder(folder, codebooks)
    root = Path(folder)
    check_readable(root)
    for name in ('config.json', 'model.safetensors'):
        if not (root / name).is_file():
            raise Refused(f"{folder}: no vocoder here: {name} is missing")
    try:
        settings = read_json(root, 'config.json', 'training.vocoder')
        kind, config = SourceFilter, SourceFilterConfig
        if 'upsample_rates' in settings:
            kind, config = HiFiGAN, HiFiGANConfig
        settings = {f.name: settings[f.name] for f in fields(config) if f.name in settings}
        config = config(**settings)
        weights = {name: w.float() for name, w in load_file(root / 'model.safetensors').items()}
        if config.n_blocks > len(weights):
            raise Refused(f"{config.n_blocks:,} blocks in config.json, and {len(weights):,} tensors")
        with torch.device('meta'): # takes no memory, whatever the sizes in config.json
            model = kind(config)
        model.load_state_dict(weights, assign=True)
    except (SafetensorError, RuntimeError, TypeError, ValueError, ArithmeticError) as e:
        raise Refused(f"{folder}: not a vocoder: {str(e).splitlines()[0]}") from None
    for name, w in model.state_dict().items():
        if not w.isfinite().all():
            raise Refused(f"{folder}: {name} has values that are not finite: "
                          "its training or copying failed; make the folder again")
    return model.eval()
