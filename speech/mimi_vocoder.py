"""
Flat units of Mimi back to speech, by the decoder of the same MimiModel: no vocoder is trained, and any voice is kept.

    wave, = load_vocoder('kyutai/mimi', codebooks=8).speak([units])
"""
import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from configurator import Refused
from speech.audio import RATE, resample
from speech.encoders import Encoder
from speech.nets import beyond, kind_of
from speech.pretrained import load_model
from speech.units import refuse_foreign_units


class MimiVocoder(nn.Module):
    """What speech/vocoder.py asks of a vocoder; a run here is one unit, and lasts 1 / codebooks of a frame.

    folder: a folder or hub id of a MimiModel; cfg.units_hash is that of the flat units that it makes.
    """
    run_context = 0

    def __init__(self, folder, codebooks):
        super().__init__()
        kind, config = kind_of(folder)
        if kind != 'mimi':
            raise Refused(f"{folder}: a {kind} model; flat units of {codebooks} codebooks are spoken by the Mimi that "
                          "they come from: --vocoder=its folder or hub id")
        encoder = Encoder(folder, None, None, codebooks=codebooks)
        config.encoder_config = None
        self.model = load_model('MimiModel', folder, beyond(math.inf, 'encoder', 'downsample.'), config=config).float()
        self.codebooks = codebooks
        self.size = config.codebook_size
        self.rate = config.sampling_rate
        self.cfg = SimpleNamespace(n_units=encoder.n_units, units_hash=encoder.hash)
        self.hop = encoder.hop / codebooks # samples a unit at 16 kHz
        self.context = codebooks # the decoder is causal, but resampling reaches some milliseconds ahead

    def predicted_runs(self, units):
        """Units (R,) -> ones (R,)"""
        return torch.ones(len(units), dtype=torch.long)

    @torch.inference_mode()
    def speak(self, units, runs=None, units_hash=None):
        """A list of flat units (R,) -> a list of float32 waves at 16 kHz, of whole frames. runs are not needed.

        Raises Refused for units of another encoder and for units that are not in the order of the codebooks.
        """
        refuse_foreign_units(units, self.cfg.n_units, units_hash, self.cfg.units_hash)
        return [self._speak(np.asarray(u)) if len(u) else np.zeros(0, np.float32) for u in units]

    def _speak(self, units):
        order = np.arange(self.codebooks)
        if len(units) % self.codebooks or (units.reshape(-1, self.codebooks) // self.size != order).any():
            raise Refused(f"vocoder: {len(units)} units, expected whole frames of {self.codebooks} codebooks in turn")
        codes = units.reshape(-1, self.codebooks) - order * self.size
        codes = torch.from_numpy(codes.T.copy())[None].to(self.model.device) # (1, n, F)
        wave = self.model.decode(codes).audio_values[0, 0].float().cpu().numpy()
        return resample(wave, self.rate, RATE)
