"""
The papers' unit HiFi-GAN (Kong et al. 2020; on units: Polyak et al. 2021), in the layout that
textlesslib publishes for mHuBERT-25Hz and, with speakers and styles, for HuBERT-base.
`python -m speech.convert` makes its folder from the published .pt.

    units --embed--> d = max(1, round(exp(predictor) - 1)) --repeat d times--> F frames
          --append speaker, style--> stages of: transposed convolution, mean of residual blocks
          --tanh--> wave (640 F samples at 25 Hz)

B batch, R runs (units without repeats), F frames, C channels.
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

PIECES = 8 # pieces of waves in a batch, each of `seconds` at most

@dataclass(frozen=True)
class HiFiGANConfig:
    """The settings of the published config.json that decide the network."""
    num_embeddings: int
    embedding_dim: int
    upsample_initial_channel: int
    upsample_rates: tuple
    upsample_kernel_sizes: tuple
    resblock_kernel_sizes: tuple
    resblock_dilation_sizes: tuple
    model_in_dim: int = 80
    dur_predictor_params: dict | None = None # the arguments of Durations
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
            raise Refused(f"config.json: f0={self.f0!r}, embedder_params={self.embedder_params!r}, "
                          f"sampling_rate={self.sampling_rate}: expected a vocoder of units alone "
                          f"(or speaker and style numbers) at {RATE} Hz")

    @property
    def n_blocks(self):
        return len(self.upsample_rates) * len(self.resblock_kernel_sizes)

def masked(x, lengths):
    """x (B, C, F) with zeros after each row's end, as a convolution sees them for a row alone."""
    if lengths is None:
        return x
    inside = torch.arange(x.size(-1), device=x.device) < lengths[:, None]
    return x * inside[:, None]

class ResBlock(nn.Module):
    def __init__(self, C, kernel, dilations):
        super().__init__()

        def conv(d):
            return nn.Conv1d(C, C, kernel, dilation=d, padding=(kernel - 1) * d // 2)

        self.convs1 = nn.ModuleList(map(conv, dilations))
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x, lengths): # (B, C, F)
        for first, second in zip(self.convs1, self.convs2):
            h = masked(first(F.leaky_relu(x, 0.1)), lengths)
            x = x + masked(second(F.leaky_relu(h, 0.1)), lengths)
        return x

class Durations(nn.Module):
    """log(1 + frames) of each run. The dropout of training is left out."""
    def __init__(self, encoder_embed_dim, var_pred_hidden_dim, var_pred_kernel_size, **_):
        super().__init__()
        C = var_pred_hidden_dim
        k = var_pred_kernel_size
        first = nn.Conv1d(encoder_embed_dim, C, k, padding=(k - 1) // 2)
        second = nn.Conv1d(C, C, k, padding=1)
        self.conv1 = nn.Sequential(first, nn.ReLU())
        self.conv2 = nn.Sequential(second, nn.ReLU())
        self.ln1 = nn.LayerNorm(C)
        self.ln2 = nn.LayerNorm(C)
        self.proj = nn.Linear(C, 1)

    def forward(self, x, lengths): # (B, C, R) -> (B, R)
        h = self.ln1(self.conv1(x).mT).mT
        h = self.ln2(self.conv2(masked(h, lengths)).mT)
        return self.proj(h)[..., 0]

class HiFiGAN(nn.Module):
    """Modules are named as in the published files. Weight norm was multiplied out by speech/convert.py."""
    def __init__(self, cfg: HiFiGANConfig):
        super().__init__()
        self.cfg = cfg
        C = cfg.upsample_initial_channel
        self.dict = nn.Embedding(cfg.num_embeddings, cfg.embedding_dim)
        self.spkr = nn.Embedding(cfg.num_speakers, cfg.embedding_dim) if cfg.multispkr else None
        self.style = nn.Embedding(cfg.num_styles, cfg.embedding_dim) if cfg.multistyle else None
        params = cfg.dur_predictor_params
        self.dur_predictor = Durations(**params) if params else None
        self.conv_pre = nn.Conv1d(cfg.model_in_dim, C, 7, padding=3)
        self.ups = nn.ModuleList()
        for rate, kernel in zip(cfg.upsample_rates, cfg.upsample_kernel_sizes):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(C, C // 2, kernel, rate, padding=padding))
            C //= 2
        blocks = list(zip(cfg.resblock_kernel_sizes, cfg.resblock_dilation_sizes))
        self.resblocks = nn.ModuleList()
        for up in self.ups:
            self.resblocks.extend(ResBlock(up.out_channels, *block) for block in blocks)
        self.conv_post = nn.Conv1d(C, 1, 7, padding=3)
        self.hop = math.prod(cfg.upsample_rates) # samples a frame

    def forward(self, x, lengths=None):
        """(B, model_in_dim, F) -> (B, hop F); lengths (B,): frames of rows, None: all F."""
        n = len(self.cfg.resblock_kernel_sizes)
        x = masked(self.conv_pre(x), lengths)
        for i, up in enumerate(self.ups):
            if lengths is not None:
                lengths = lengths * up.stride[0]
            x = masked(up(F.leaky_relu(x, 0.1)), lengths)
            x = sum(block(x, lengths) for block in self.resblocks[n * i:n * (i + 1)]) / n
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0] # a slope of 0.01, as published

    @cached_property
    def context(self):
        """The most frames on each side that a frame's samples depend on."""
        cfg = self.cfg
        blocks = zip(cfg.resblock_kernel_sizes, cfg.resblock_dilation_sizes)
        block_reach = max((k - 1) // 2 * sum(d + 1 for d in dilations) for k, dilations in blocks)
        reach = 3.0 # of conv_pre, in frames
        rate = 1 # samples a frame, at the stage
        for u, k in zip(cfg.upsample_rates, cfg.upsample_kernel_sizes):
            reach += math.ceil(k / u) / rate
            rate *= u
            reach += block_reach / rate
        return math.ceil(reach + 3 / rate)

    @cached_property
    def run_context(self):
        """The most runs on each side that the length of a run depends on."""
        params = self.cfg.dur_predictor_params
        if params is None:
            return 0
        k = params['var_pred_kernel_size']
        return (k - 1) // 2 + k - 2 # of conv1, and of conv2 with its padding of 1

    def predicted_runs(self, units):
        """Units (R,) -> run lengths in frames (R,)"""
        return self._durations(self._tensors([units]))[0]

    @torch.inference_mode()
    def speak(self, units, runs=None, units_hash=None, speaker=0, style=0, seconds=20.0):
        """Lists of units -> a wave each, as SourceFilter.speak does.

        speaker, style: numbers in the vocoder's tables, 0 where it has none. Raises Refused.
        """
        cfg = self.cfg
        refuse_foreign_units(units, cfg.num_embeddings, units_hash, cfg.units_hash)
        voice = [] # vectors that every frame gets
        for name, number, table in (('speaker', speaker, self.spkr), ('style', style, self.style)):
            n = 1 if table is None else table.num_embeddings
            if not 0 <= number < n:
                raise Refused(f"vocoder: {name} {number}, expected 0..{n - 1}")
            if table is not None:
                voice.append(table.weight[number])
        units = self._tensors(units)
        runs = self._durations(units) if runs is None else self._tensors(runs)
        frames = [u.repeat_interleave(r) for u, r in zip(units, runs)]
        waves = [np.zeros(len(f) * self.hop, np.float32) for f in frames]
        step = max(1, round(seconds * RATE / self.hop)) # frames of a piece
        reach = self.context
        pieces = [] # (frames with context, wave, first frame)
        for i, f in enumerate(frames):
            for first in range(0, len(f), step):
                pieces.append((f[max(0, first - reach):first + step + reach], i, first))
        pieces.sort(key=lambda piece: len(piece[0])) # similar lengths together: less padding
        for start in range(0, len(pieces), PIECES):
            batch = pieces[start:start + PIECES]
            x, lengths = self._embed([piece for piece, _, _ in batch])
            vectors = [v[None, :, None].expand(len(x), -1, x.size(-1)) for v in voice]
            x = masked(torch.cat([x, *vectors], 1), lengths)
            for (_, i, first), wave in zip(batch, self(x, lengths).cpu().numpy()):
                samples = waves[i][first * self.hop:(first + step) * self.hop]
                skipped = min(first, reach) * self.hop
                samples[:] = wave[skipped:skipped + len(samples)]
        return waves

    def _tensors(self, lists):
        device = self.conv_post.weight.device
        return [torch.as_tensor(np.asarray(x, dtype=np.int64), device=device) for x in lists]

    def _embed(self, rows):
        """[(F,) units] -> (B, C, F), 0 after the end of a row; lengths (B,), None if all equal."""
        x = self.dict(nn.utils.rnn.pad_sequence(rows, batch_first=True)).mT
        lengths = [len(row) for row in rows]
        lengths = torch.tensor(lengths, device=x.device) if len(set(lengths)) > 1 else None
        return masked(x, lengths), lengths

    def _durations(self, rows):
        """[(R,) units] -> [(R,) frames of each run]"""
        if self.dur_predictor is None or not any(map(len, rows)):
            return [torch.ones_like(row) for row in rows]
        log_frames = self.dur_predictor(*self._embed(rows))
        runs = (log_frames.exp() - 1).round().clamp(min=1).long()
        return [run[:len(row)] for run, row in zip(runs, rows)]
