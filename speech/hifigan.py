"""
The papers' unit HiFi-GAN (Kong et al., 2020; on units: Polyak et al., 2021), in the layout that textlesslib publishes for
mHuBERT-25Hz and, with speakers and styles, HuBERT-base; `python -m speech.convert` makes the folder of the .pt

    units --embed--> d = max(1, round(exp(predictor) - 1)) --repeat d--> F frames [+ speaker, style]
          --> stages of: transposed convolution, mean of residual blocks --> tanh --> wave (640 F samples at 25 Hz)

B batch, R runs, F frames (of units), C channels.
"""
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from configurator import Refused
from speech.audio import RATE
from speech.units import refuse_foreign_units

PIECES = 8 # of waves that are made at once

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
    """Modules are named as in the published files, whose weight norm speech/convert.py has multiplied out."""
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
        """As SourceFilter.speak. speaker and style are numbers of the vocoder's lists, where it has some."""
        cfg, device = self.cfg, self.conv_post.weight.device
        refuse_foreign_units(units, cfg.num_embeddings, units_hash, cfg.units_hash)
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
