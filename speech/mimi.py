"""
Mimi (Defossez et al., 2024, Moshi) as an encoder: its first codebook, or the first n of them, flat.
"""
import math

import torch
from torch import nn

from configurator import Refused
from speech.nets import beyond, padded
from speech.pretrained import load_model


class Mimi:
    """A MimiModel up to its semantic codebook, whose entries are `centroids`."""
    limit = None
    n_quantizers = 1

    def __init__(self, name, config, layer):
        if not config.use_causal_conv or config.audio_channels != 1:
            raise Refused(f"{name}: expected a causal MimiModel of one channel")

        config.decoder_config = None
        least = config.num_semantic_quantizers + 1 # that MimiConfig allows
        config.num_quantizers = max(self.n_quantizers, least)
        unused = ('decoder', 'upsample.')
        if self.n_quantizers <= config.num_semantic_quantizers:
            unused += ('quantizer.acoustic',)
        model = load_model('MimiModel', name, beyond(math.inf, *unused), config=config).float()
        self.quantizer = model.quantizer
        semantic = model.quantizer.semantic_residual_vector_quantizer
        self.model = model.encoder
        self.project = semantic.input_proj or nn.Identity()
        self.centroids = semantic.layers[0].codebook.embed.float()
        self.config = config
        self.width = config.codebook_dim
        self.rate = config.sampling_rate
        self.step = round(config.sampling_rate / config.frame_rate)

    def identity(self):
        keys = ('sampling_rate', 'upsampling_ratios', 'num_attention_heads', 'num_key_value_heads',
                'hidden_act', 'norm_eps', 'sliding_window', 'rope_parameters', 'pad_mode',
                'dilation_growth_rate', 'use_conv_shortcut')
        projection = {f'project.{key}': tensor for key, tensor in self.project.state_dict().items()}
        return ['mimi', *(getattr(self.config, key) for key in keys)], self.model.state_dict() | projection

    def prepare(self, device, dtype):
        self.model.to(device)
        self.project.to(device)

    def __call__(self, waves):
        # Mimi is causal: no complete frame depends on the zeros behind a wave.
        x = padded(waves, max(map(len, waves)))[:, None]
        return self.project(self.model(x.to(self.model.device)).latents).transpose(1, 2)

class FlatMimi(Mimi):
    """A MimiModel up to codebook n, which reads a wave piece by piece."""
    def __init__(self, name, config, n):
        size = config.codebook_size
        if not 1 <= n <= config.num_quantizers or n * size > 65535: # units are uint16
            raise Refused(f"{name}: codebooks is {n}; it has {config.num_quantizers} of {size} entries, "
                          f"expected 1 to {min(config.num_quantizers, 65535 // size)}")
        self.n_quantizers = n
        super().__init__(name, config, None)
        self.first = torch.arange(n) * size # the first unit of each codebook

    def identity(self):
        facts, tensors = super().identity()
        if self.n_quantizers > self.config.num_semantic_quantizers:
            tensors |= {f'quantizer.{key}': tensor for key, tensor in self.quantizer.state_dict().items()}
        return facts + ['flat', self.n_quantizers], tensors

    def prepare(self, device, dtype):
        super().prepare(device, dtype)
        self.quantizer.to(device)

    def units(self, piece, caches):
        """A piece of a wave, whole frames -> units (F, n), int64 on the CPU, and the caches for the next piece.

        caches: of the piece before, None for the first.
        """
        x = torch.from_numpy(piece).to(self.model.device)[None, None]
        y = self.model(x, use_streaming=True, **caches or {})
        codes = self.quantizer.encode(y.latents, self.n_quantizers) # (n, 1, F)
        units = codes[:, 0].T.cpu() + self.first
        return units.numpy(), {'past_key_values': y.past_key_values, 'padding_cache': y.padding_cache}
