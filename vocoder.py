"""
Units back to speech: a small unit -> mel network, then Griffin-Lim (Griffin and Lim, 1984; with the momentum of
Perraudin et al., 2013). 16 kHz mono.

    wave = UnitToMel.from_pretrained('tiny/mel').speak(units)       # sample.py does this; tiny/train_vocoder.py trains

A vocoder folder holds config.json and model.safetensors. config.json names the units it was made for (`units_hash`
of their info.json), so units of another encoder are refused instead of spoken as noise.

    units (R runs) --embed--> run durations d (R,)            when the runs' lengths are not known: generated units
                   --repeat d, 25 Hz--> F frames --residual convolutions--> x 4 --> log-mel (4F, 80), 100 Hz
    log-mel --pseudo-inverse of the mel bank--> |STFT| --Griffin-Lim--> wave (640 F samples)

Letters: B batch, R runs, F frames (25 Hz), C channels, S samples.
"""
import json
from dataclasses import asdict, dataclass, fields
from functools import cache
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

    @classmethod
    def from_pretrained(cls, folder):
        """A vocoder folder; Refused in one line where it is none."""
        for name in ('config.json', 'model.safetensors'):
            if not (Path(folder) / name).is_file():
                raise Refused(f"{folder}: no vocoder here: {name} is missing")
        try:
            settings = json.loads((Path(folder) / 'config.json').read_text())
            names = {f.name for f in fields(MelConfig)}
            model = cls(MelConfig(**{k: v for k, v in settings.items() if k in names}))
            model.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / 'model.safetensors').items()})
        except (json.JSONDecodeError, SafetensorError, RuntimeError, TypeError) as e:
            raise Refused(f"{folder}: not a vocoder: {str(e).splitlines()[0]}") from None
        return model.eval()

    def save_pretrained(self, folder, **made):
        """config.json (settings and how it was made) and model.safetensors in float16."""
        with atomically(Path(folder) / 'model.safetensors') as tmp:
            save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, tmp)
        write_json(Path(folder) / 'config.json', {**asdict(self.cfg), **made})

    @torch.inference_mode()
    def speak(self, units, runs=None, units_hash=None):
        """De-duplicated units (R,), with their run lengths in frames or None (then predicted) -> float32 wave in [-1, 1].

        Raises Refused for a unit the vocoder does not know, and for units of another encoder (units_hash differs).
        """
        units = torch.as_tensor(np.asarray(units, dtype=np.int64))
        if units_hash and self.cfg.units_hash and units_hash != self.cfg.units_hash:
            raise Refused(f"vocoder: made for units {self.cfg.units_hash}, given units {units_hash}: "
                          "train one for these units (tiny/train_vocoder.py)")
        if len(units) == 0:
            return np.zeros(0, np.float32)
        if units.min() < 0 or units.max() >= self.cfg.n_units:
            raise Refused(f"vocoder: units {int(units.min())}..{int(units.max())}, expected 0..{self.cfg.n_units - 1}")
        if runs is None:
            runs = self.log_durations(units[None])[0].exp().round().clamp(1, 25) # at most a second
        frames = units.repeat_interleave(torch.as_tensor(np.asarray(runs, dtype=np.int64)))
        wave = griffin_lim(self(frames[None])[0])
        return (wave / wave.abs().max().clamp(min=1.0)).numpy() # only ever quieter: no clipping
