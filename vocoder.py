"""
Units back to speech, 16 kHz mono, by one of two vocoders:

    wave, = load_vocoder('tiny/mel').speak([units])       # sample.py does this; tiny/train_vocoder.py trains

UnitToMel, the embedded one: a small network, then Griffin-Lim (Griffin and Lim, 1984; with the momentum of Perraudin et
al., 2013)

    units (R runs) --embed--> run durations d (R,)            when the runs' lengths are not known: generated units
                   --repeat d, 25 Hz--> F frames --residual convolutions--> x 4 --> log-mel (4F, 80), 100 Hz
    log-mel --pseudo-inverse of the mel bank--> |STFT| --Griffin-Lim--> wave (640 F samples)

HiFiGAN, the papers' (Kong et al., 2020, on units: Polyak et al., 2021), in the layout that textlesslib publishes for
mHuBERT-25Hz and, with speakers and styles, HuBERT-base; `python convert.py` makes the folder of the .pt

    units --embed--> d = max(1, round(exp(predictor) - 1)) --repeat d--> F frames [+ speaker, style]
          --> stages of: transposed convolution, mean of residual blocks --> tanh --> wave (640 F samples at 25 Hz)

A vocoder folder holds config.json and model.safetensors. config.json names the units it was made for (`units_hash`
of their info.json), so units of another encoder are refused instead of spoken as noise.

Letters: B batch, R runs, F frames (25 Hz), C channels, S samples.
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

from audio import RATE
from configurator import Refused, atomically, write_json

N_FFT, HOP, N_MELS = 1024, 160, 80 # 64 ms windows every 10 ms
FLOOR = 1e-5 # the smallest magnitude a log-mel shows
PIECES = 8 # of waves that HiFiGAN makes at once

# ----------------------------------------------------------------------------------------------------------------
# mel spectrograms and back

@cache
def mel_bank():
    """(N_MELS, N_FFT / 2 + 1) triangular filters, 0 to 8 kHz, equally wide on the mel scale 2595 log10(1 + f / 700)."""
    mel = torch.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), N_MELS + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1) # Hz
    f = torch.linspace(0, RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    up = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(up, down).clamp(min=0).float()

def stft(wave):
    """(..., S) -> complex (..., N_FFT / 2 + 1, S / HOP + 1)"""
    return torch.stft(wave, N_FFT, HOP, window=torch.hann_window(N_FFT, device=wave.device), return_complex=True)

def log_mel(wave):
    """(S,) -> (S // HOP, N_MELS) natural log of the mel magnitudes; frame t is centered on sample t * HOP."""
    return (mel_bank().to(wave.device) @ stft(wave).abs()).clamp(min=FLOOR).log().T[:len(wave) // HOP]

def griffin_lim(mel, iterations=60, momentum=0.99):
    """Log-mel (T, N_MELS) -> wave (T * HOP,): phases that make the magnitudes consistent, from a seeded random start."""
    bank = mel_bank().to(mel.device)
    magnitude = (torch.linalg.pinv(bank) @ mel.float().exp().T).clamp(min=FLOOR) # (N_FFT / 2 + 1, T)
    magnitude = F.pad(magnitude, (0, 1), mode='replicate') # the frame centered on the last sample
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(magnitude.shape, generator=generator).to(mel.device) * (2 * torch.pi)
    spectrum, last = torch.polar(torch.ones_like(magnitude), phase), torch.zeros_like(magnitude, dtype=torch.complex64)
    window = torch.hann_window(N_FFT, device=mel.device)
    invert = lambda s: torch.istft(magnitude * s, N_FFT, HOP, window=window, length=len(mel) * HOP)
    for _ in range(iterations):
        consistent = stft(invert(spectrum))
        spectrum = consistent + momentum * (consistent - last)
        spectrum, last = spectrum / spectrum.abs().clamp(min=1e-12), consistent
    return invert(spectrum)

# ----------------------------------------------------------------------------------------------------------------
# units -> mel

@dataclass(frozen=True)
class MelConfig:
    n_units: int = 500
    n_embd: int = 128
    n_slow: int = 3 # residual blocks at the units' rate
    n_fast: int = 2 # and at the mel's
    units_hash: str = '' # of the units' info.json: other units are refused
    frame_hz: float = 25.0

class Block(nn.Module):
    """Residual: norm of each frame -> convolution of width 5 -> GELU -> 1x1 convolution."""
    def __init__(self, n_embd, dilation):
        super().__init__()
        self.norm = nn.LayerNorm(n_embd) # not over time: padding would change it
        self.conv = nn.Conv1d(n_embd, n_embd, 5, padding=2 * dilation, dilation=dilation)
        self.mix = nn.Conv1d(n_embd, n_embd, 1)

    def forward(self, x): # (B, C, F)
        return x + self.mix(F.gelu(self.conv(self.norm(x.transpose(1, 2)).transpose(1, 2))))

class UnitToMel(nn.Module):
    def __init__(self, cfg: MelConfig):
        super().__init__()
        self.cfg = cfg
        C, self.up = cfg.n_embd, round(RATE / HOP / cfg.frame_hz) # mel frames a unit frame: 4
        self.embed = nn.Embedding(cfg.n_units, C)
        self.duration = nn.Sequential(Block(C, 1), nn.Conv1d(C, 1, 1)) # log of a run's length in frames
        self.slow = nn.Sequential(*(Block(C, 2 ** i) for i in range(cfg.n_slow)))
        self.upsample = nn.ConvTranspose1d(C, C, self.up, stride=self.up)
        self.fast = nn.Sequential(*(Block(C, 2 ** i) for i in range(cfg.n_fast)))
        self.head = nn.Conv1d(C, N_MELS, 1)

    def log_durations(self, units):
        """(B, R) runs -> (B, R) log of each run's length in frames."""
        return self.duration(self.embed(units).transpose(1, 2))[:, 0]

    def forward(self, frames):
        """(B, F) unit of each frame -> (B, up * F, N_MELS) log-mel."""
        x = self.slow(self.embed(frames).transpose(1, 2))
        return self.head(self.fast(self.upsample(x))).transpose(1, 2)

    def save_pretrained(self, folder, **made):
        """config.json (settings and how it was made) and model.safetensors in float16."""
        with atomically(Path(folder) / 'model.safetensors') as tmp:
            save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, tmp)
        write_json(Path(folder) / 'config.json', {**asdict(self.cfg), **made})

    @torch.inference_mode()
    def speak(self, units, runs=None, units_hash=None):
        """A list of de-duplicated units (R,), with their run lengths in frames or None (then predicted) -> a list of
        float32 waves in [-1, 1]. Refused as check() says."""
        check(units, self.cfg.n_units, units_hash, self.cfg.units_hash)
        return [self._speak(torch.as_tensor(np.asarray(u, dtype=np.int64)), r) for u, r in zip(units, runs or [None] * len(units))]

    def _speak(self, units, runs):
        if len(units) == 0:
            return np.zeros(0, np.float32)
        if runs is None:
            runs = self.log_durations(units[None])[0].exp().round().clamp(1, 25) # at most a second
        frames = units.repeat_interleave(torch.as_tensor(np.asarray(runs, dtype=np.int64)))
        wave = griffin_lim(self(frames[None])[0])
        return (wave / wave.abs().max().clamp(min=1.0)).numpy() # only ever quieter: no clipping

# ----------------------------------------------------------------------------------------------------------------
# the papers' unit HiFi-GAN

@dataclass(frozen=True)
class HiFiGANConfig:
    """The published config.json's settings that decide the network."""
    num_embeddings: int
    embedding_dim: int
    upsample_initial_channel: int
    upsample_rates: tuple
    upsample_kernel_sizes: tuple
    resblock_kernel_sizes: tuple
    resblock_dilation_sizes: tuple
    model_in_dim: int = 80
    dur_predictor_params: dict | None = None # {'encoder_embed_dim', 'var_pred_hidden_dim', 'var_pred_kernel_size', ...}
    multispkr: str | bool | None = None
    num_speakers: int = 200
    multistyle: str | bool | None = None
    num_styles: int = 100
    sampling_rate: int = RATE
    f0: bool | None = None
    embedder_params: dict | None = None
    units_hash: str = ''

    def __post_init__(self):
        if self.f0 or self.embedder_params or self.sampling_rate != RATE:
            raise Refused(f"config.json: f0={self.f0!r}, embedder_params={self.embedder_params!r}, sampling_rate="
                          f"{self.sampling_rate}: expected a vocoder of units alone (or speaker and style numbers) at {RATE} Hz")

def masked(x, lengths):
    """x (B, C, F) with zeros behind each row's length, as a convolution would find there if the row were alone."""
    return x if lengths is None else x * (torch.arange(x.size(-1), device=x.device) < lengths[:, None])[:, None]

class ResBlock(nn.Module):
    def __init__(self, C, kernel, dilations):
        super().__init__()
        conv = lambda d: nn.Conv1d(C, C, kernel, dilation=d, padding=(kernel - 1) * d // 2)
        self.convs1, self.convs2 = nn.ModuleList(map(conv, dilations)), nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x, lengths): # (B, C, F)
        for first, second in zip(self.convs1, self.convs2):
            h = masked(first(F.leaky_relu(x, 0.1)), lengths)
            x = x + masked(second(F.leaky_relu(h, 0.1)), lengths)
        return x

class Durations(nn.Module):
    """log(1 + frames) of each run; dropout is only there in training, which is not done here."""
    def __init__(self, encoder_embed_dim, var_pred_hidden_dim, var_pred_kernel_size, **_):
        super().__init__()
        C, k = var_pred_hidden_dim, var_pred_kernel_size
        self.conv1 = nn.Sequential(nn.Conv1d(encoder_embed_dim, C, k, padding=(k - 1) // 2), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv1d(C, C, k, padding=1), nn.ReLU())
        self.ln1, self.ln2, self.proj = nn.LayerNorm(C), nn.LayerNorm(C), nn.Linear(C, 1)

    def forward(self, x, lengths): # (B, C, R) -> (B, R)
        h = self.ln1(self.conv1(x).transpose(1, 2)).transpose(1, 2)
        h = self.ln2(self.conv2(masked(h, lengths)).transpose(1, 2))
        return self.proj(h)[..., 0]

class HiFiGAN(nn.Module):
    """Modules are named as in the published files, whose weight norm convert.py has multiplied out."""
    def __init__(self, cfg: HiFiGANConfig):
        super().__init__()
        self.cfg, C = cfg, cfg.upsample_initial_channel
        self.dict = nn.Embedding(cfg.num_embeddings, cfg.embedding_dim)
        self.spkr = nn.Embedding(cfg.num_speakers, cfg.embedding_dim) if cfg.multispkr else None
        self.style = nn.Embedding(cfg.num_styles, cfg.embedding_dim) if cfg.multistyle else None
        self.dur_predictor = Durations(**cfg.dur_predictor_params) if cfg.dur_predictor_params else None
        self.conv_pre = nn.Conv1d(cfg.model_in_dim, C, 7, padding=3)
        stages = list(zip(cfg.upsample_rates, cfg.upsample_kernel_sizes))
        self.ups = nn.ModuleList(nn.ConvTranspose1d(C >> i, C >> i + 1, k, u, padding=(k - u) // 2) for i, (u, k) in enumerate(stages))
        blocks = list(zip(cfg.resblock_kernel_sizes, cfg.resblock_dilation_sizes))
        self.resblocks = nn.ModuleList(ResBlock(C >> i + 1, *block) for i in range(len(stages)) for block in blocks)
        self.conv_post = nn.Conv1d(C >> len(stages), 1, 7, padding=3)
        self.hop = math.prod(cfg.upsample_rates) # samples a frame

    def forward(self, x, lengths=None):
        """(B, model_in_dim, F) -> (B, hop F); lengths (B,) in frames where rows are shorter than F."""
        n = len(self.cfg.resblock_kernel_sizes)
        x = masked(self.conv_pre(x), lengths)
        for i, up in enumerate(self.ups):
            lengths = None if lengths is None else lengths * up.stride[0]
            x = masked(up(F.leaky_relu(x, 0.1)), lengths)
            x = sum(block(x, lengths) for block in self.resblocks[n * i:n * (i + 1)]) / n
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0] # leaky by 0.01 here

    @cached_property
    def context(self):
        """Frames on each side that a frame's samples depend on, at most."""
        reach, rate, cfg = 3.0, 1, self.cfg
        for u, k in zip(cfg.upsample_rates, cfg.upsample_kernel_sizes):
            reach, rate = reach + math.ceil(k / u) / rate, rate * u
            reach += max((k - 1) // 2 * sum(d + 1 for d in ds) for k, ds in zip(cfg.resblock_kernel_sizes, cfg.resblock_dilation_sizes)) / rate
        return math.ceil(reach + 3 / rate)

    @torch.inference_mode()
    def speak(self, units, runs=None, units_hash=None, speaker=0, style=0, seconds=20.0):
        """As UnitToMel.speak; a long wave is made in pieces of at most so many seconds, the same to rounding. speaker and
        style are numbers of the vocoder's lists, where it has some. Lengths are predicted where runs is None."""
        cfg, device = self.cfg, self.conv_post.weight.device
        check(units, cfg.num_embeddings, units_hash, cfg.units_hash)
        for name, number, table in (('speaker', speaker, self.spkr), ('style', style, self.style)):
            if not 0 <= number < (1 if table is None else table.num_embeddings):
                raise Refused(f"vocoder: {name} {number}, expected 0..{0 if table is None else table.num_embeddings - 1}")
        tensors = lambda lists: [torch.as_tensor(np.asarray(x, dtype=np.int64), device=device) for x in lists]
        runs = self._durations(tensors(units)) if runs is None else tensors(runs)
        frames = [u.repeat_interleave(r) for u, r in zip(tensors(units), runs)]
        step, reach = max(1, round(seconds * RATE / self.hop)), self.context
        pieces = [(i, a) for i, f in enumerate(frames) for a in range(0, len(f), step)]
        cut = lambda i, a: frames[i][max(0, a - reach):a + step + reach]
        pieces.sort(key=lambda piece: len(cut(*piece))) # like lengths together: less padding
        waves = [np.zeros(len(f) * self.hop, np.float32) for f in frames]
        for at in range(0, len(pieces), PIECES):
            batch = pieces[at:at + PIECES]
            x, lengths = self._embed([cut(*piece) for piece in batch])
            more = [table.weight[number] for table, number in ((self.spkr, speaker), (self.style, style)) if table is not None]
            x = masked(torch.cat([x, *(v[None, :, None].expand(len(x), -1, x.size(-1)) for v in more)], 1), lengths)
            for (i, a), wave in zip(batch, self(x, lengths).cpu().numpy()):
                own, skipped = waves[i][a * self.hop:(a + step) * self.hop], min(a, reach) * self.hop
                own[:] = wave[skipped:skipped + len(own)]
        return waves

    def _embed(self, rows):
        """[(F,) units] -> (B, C, F) zero where a row has ended, and their lengths, None where these are equal."""
        x = self.dict(nn.utils.rnn.pad_sequence(rows, batch_first=True)).transpose(1, 2)
        lengths = torch.tensor([len(row) for row in rows], device=x.device)
        lengths = None if len(set(lengths.tolist())) == 1 else lengths
        return masked(x, lengths), lengths

    def _durations(self, rows):
        """[(R,) units] -> [(R,) frames of each run]"""
        if self.dur_predictor is None or not any(map(len, rows)):
            return [torch.ones_like(row) for row in rows]
        runs = (self.dur_predictor(*self._embed(rows)).exp() - 1).round().clamp(min=1).long()
        return [row[:len(of)] for row, of in zip(runs, rows)]

# ----------------------------------------------------------------------------------------------------------------

def check(units, n_units, units_hash, made_for):
    """Refuses units that the vocoder does not know, and those of another encoder (the hashes differ)."""
    if units_hash and made_for and units_hash != made_for:
        raise Refused(f"vocoder: made for units {made_for}, given units {units_hash}: train one for these units "
                      "(tiny/train_vocoder.py)")
    for u in units:
        if len(u) and not 0 <= min(u) <= max(u) < n_units:
            raise Refused(f"vocoder: units {min(u)}..{max(u)}, expected 0..{n_units - 1}")

def load_vocoder(folder):
    """The vocoder in a folder, of either kind; Refused in one line where there is none."""
    for name in ('config.json', 'model.safetensors'):
        if not (Path(folder) / name).is_file():
            raise Refused(f"{folder}: no vocoder here: {name} is missing")
    try:
        settings = json.loads((Path(folder) / 'config.json').read_text())
        kind, config = (HiFiGAN, HiFiGANConfig) if 'upsample_rates' in settings else (UnitToMel, MelConfig)
        model = kind(config(**{f.name: settings[f.name] for f in fields(config) if f.name in settings}))
        model.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / 'model.safetensors').items()})
    except (json.JSONDecodeError, SafetensorError, RuntimeError, TypeError, ValueError) as e:
        raise Refused(f"{folder}: not a vocoder: {str(e).splitlines()[0]}") from None
    return model.eval()
