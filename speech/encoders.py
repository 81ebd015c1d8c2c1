"""
Waves -> one unit a frame. Three kinds of encoder; which one a folder holds, its config.json says.

    encoder = Encoder('tiny/hubert', 4, load_centroids('tiny/hubert/kmeans.safetensors'))
    [units] = encoder.encode([wave])            float32 (N,) at encoder.rate -> int64 (N // encoder.step,)

    model_type  h_f, what frame f is quantized by                            rate    step   of the papers
    hubert      output of layer L, the wave padded by (receptive field -     16 kHz  640    mHuBERT-25Hz layer 11,
                hop) / 2 = 40 zeros on each side; step = product of strides                 HuBERT-base layer 9 (step 320)
    whisper     output of layer L of the encoder, two frames of 20 ms        16 kHz  640
                averaged; a window is padded with zeros to 30 s, as Whisper
                was trained
    mimi        the semantic codebook's input; the centroids are that        24 kHz  1920   12.5 Hz, 2,048 entries
                codebook, neither L nor a k-means file is needed

    unit_f = argmin_k |h_f - c_k|^2 = argmax_k (h_f . c_k - |c_k|^2 / 2)     one product for all frames of a batch

(Mimi knows the band up to 12 kHz: a file is resampled to 24 kHz from its own rate, and one of 16 kHz has nothing above 8.)
Only what decides the units is loaded and run: no layer above L, no decoder, no acoustic codebook. The output of a layer
is taken before any norm that ends the whole encoder.

Audio longer than window_s is cut into windows that overlap by 2 * margin_s; a frame comes from the window where it is
at least margin_s from a cut. Windows depend on the file alone, and a file's units are the same alone and in any batch:
HuBERT's norms over time see the file's own frames only, and padding is zero wherever a convolution reads it; Whisper pads
every window alike; Mimi is causal. What is left is rounding: in padded batches 1 frame in 10,000 of a random encoder is
near enough to a tie to flip; in bf16, so on CUDA, up to 2 in 1,000 of the embedded one, and 2 to 3 in 1,000 differ from
float32 (autocast on a CPU; Whisper tiny.en and the embedded encoder on 107 s of LibriSpeech).
"""
import hashlib
import json
import math
import time

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from configurator import Refused
from speech.audio import RATE

KINDS = ('hubert', 'whisper', 'mimi')

# ----------------------------------------------------------------------------------------------------------------
# what a folder holds

def _quietly(load, name, wanted):
    """load(transformers) with its news kept back and its errors in one line."""
    import transformers  # here, because readers of units need not wait for it
    from huggingface_hub.errors import StrictDataclassError  # a config.json with fields that cannot be

    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error() # the layers left out are no news
    log.disable_progress_bar()
    try:
        return load(transformers)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, SafetensorError,
            StrictDataclassError) as e:
        why = ' '.join(str(e).split())[:200] or type(e).__name__
        raise Refused(f"{name}: expected a {wanted} (config.json, model.safetensors): {why}") from None
    finally:
        log.set_verbosity(before)

def kind_of(name):
    """'hubert', 'whisper' or 'mimi', and the transformers config of a local folder or hub id."""
    config = _quietly(lambda transformers: transformers.AutoConfig.from_pretrained(name), name,
                      'HubertModel, WhisperModel or MimiModel')
    if config.model_type not in KINDS:
        raise Refused(f"{name}: holds a '{config.model_type}', expected a HubertModel, WhisperModel or MimiModel")
    return config.model_type, config

def _load(name, model, config, needed):
    """transformers' `model` in float32, eval; every weight for which needed(key) holds must come from the files."""
    net, info = _quietly(lambda transformers: getattr(transformers, model).from_pretrained(
        name, config=config, use_safetensors=True, output_loading_info=True), name, model)
    if missing := sorted(filter(needed, info['missing_keys'])): # transformers would make them up
        raise Refused(f"{name}: lacks {len(missing)} weights of the model, the first is {missing[0]}")
    return net.float().eval()

def _cut_layers(name, config, layer, field):
    if not 1 <= layer <= getattr(config, field):
        raise Refused(f"{name}: has {getattr(config, field)} layers, --layer={layer} is not among them")
    setattr(config, field, layer)

# ----------------------------------------------------------------------------------------------------------------
# the three kinds. Each: rate, step; width of h; limit (samples that every window is padded to, None: as long as it is);
# half (bf16 on CUDA); identity() -> facts and tensors that decide a unit; prepare(device); net(waves) -> h (B, F, width),
# where the first len(wave) // step rows are the wave's frames

def _padded(waves, samples, left=0):
    """Waves as rows of a (B, samples) tensor, each after `left` zeros."""
    x = torch.zeros(len(waves), samples)
    for row, wave in zip(x, waves):
        row[left:left + len(wave)] = torch.from_numpy(wave)
    return x

class MaskedGroupNorm(nn.Module):
    """One group a channel, statistics over each row's own frames (set by Hubert): what the row would get alone."""
    def __init__(self, norm):
        super().__init__()
        self.norm, self.frames = norm, None

    def forward(self, x): # (B, C, F)
        if min(self.frames) == x.shape[2]: # nothing is padded
            return self.norm(x).to(x.dtype)
        y = torch.zeros_like(x)
        for row, n in enumerate(self.frames):
            y[row:row + 1, :, :n] = self.norm(x[row:row + 1, :, :n])
        return y

class MaskedBatchNorm(MaskedGroupNorm):
    """mHuBERT's norm before the positional convolution: its bias would lift the padding off zero."""
    def forward(self, x): # (B, C, F)
        y = self.norm(x)
        for row, n in enumerate(self.frames):
            y[row, :, n:] = 0
        return y

class Hubert:
    """A HubertModel up to `layer`; norms over time and zeros behind each row as if it were alone."""
    rate, limit, half = RATE, None, True

    def __init__(self, name, config, layer):
        _cut_layers(name, config, layer, 'num_hidden_layers')
        self.model, self.config = _load(name, 'HubertModel', config, lambda key: key != 'masked_spec_embed'), config
        if config.do_stable_layer_norm:
            self.model.encoder.layer_norm = nn.Identity() # comes after the last layer of all, not after ours
        self.width, self.step, self.receptive = config.hidden_size, math.prod(config.conv_stride), 1
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride))):
            self.receptive = (self.receptive - 1) * stride + kernel
        self.pad = ((self.receptive - self.step) // 2, (self.receptive - self.step + 1) // 2)

    def identity(self):
        keys = ('conv_stride', 'num_attention_heads', 'feat_extract_norm', 'do_stable_layer_norm', 'hidden_act',
                'feat_extract_activation', 'layer_norm_eps') # the shapes of the weights say the rest
        tensors = self.model.state_dict()
        tensors.pop('masked_spec_embed', None) # training only
        return [getattr(self.config, key) for key in keys], tensors

    def prepare(self, device):
        self.masked = [] # the norms over time, and after how many convolutions they come
        if self.config.feat_extract_norm == 'group':
            first = self.model.feature_extractor.conv_layers[0]
            first.layer_norm = MaskedGroupNorm(first.layer_norm)
            self.masked.append((first.layer_norm, 1))
        position = self.model.encoder.pos_conv_embed
        if getattr(position, 'batch_norm', None) is not None:
            position.batch_norm = MaskedBatchNorm(position.batch_norm)
            self.masked.append((position.batch_norm, len(self.config.conv_kernel)))
        self.model.to(device)

    def _frames(self, samples, layers):
        """How many frames `layers` convolutions make of so many samples."""
        for kernel, stride in list(zip(self.config.conv_kernel, self.config.conv_stride))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples

    def __call__(self, waves):
        lengths = [len(w) + sum(self.pad) for w in waves]
        x = _padded(waves, max(lengths), self.pad[0])
        mask = (torch.arange(x.shape[1]) < torch.tensor(lengths)[:, None]).long().to(self.model.device)
        for norm, layers in self.masked:
            norm.frames = [self._frames(n, layers) for n in lengths]
        padded = min(lengths) < max(lengths)
        return self.model(x.to(mask.device), attention_mask=mask if padded else None).last_hidden_state

class Whisper:
    """The encoder of a WhisperModel up to `layer`, on windows padded to its 30 s; 25 Hz."""
    rate, step, half = RATE, 640, True

    def __init__(self, name, config, layer):
        _cut_layers(name, config, layer, 'encoder_layers')
        config.decoder_layers = 0
        self.model = _load(name, 'WhisperModel', config, lambda key: key.startswith('encoder.')).encoder
        self.model.layer_norm = nn.Identity()
        self.config, self.width, self.limit = config, config.d_model, config.max_source_positions * 320

    def identity(self):
        keys = ('encoder_attention_heads', 'activation_function', 'scale_embedding')
        return ['whisper', *(getattr(self.config, key) for key in keys)], self.model.state_dict()

    def prepare(self, device):
        from transformers.audio_utils import mel_filter_bank
        self.filters = torch.from_numpy(mel_filter_bank(201, self.config.num_mel_bins, 0, 8000, RATE, 'slaney', 'slaney'))
        self.filters, self.hann = self.filters.T.float().to(device), torch.hann_window(400, device=device)
        self.model.to(device)

    def log_mel(self, x):
        """(B, N) -> (B, mel bins, N / 160) as Whisper was trained: log10, at most 8 below the window's loudest, scaled."""
        with torch.autocast(x.device.type, enabled=False):
            power = torch.stft(x, 400, 160, window=self.hann, return_complex=True)[..., :-1].abs().square()
            mel = (self.filters @ power).clamp(min=1e-10).log10()
            return (mel.maximum(mel.amax((1, 2), keepdim=True) - 8) + 4) / 4

    def __call__(self, waves):
        x = _padded([wave[:self.limit] for wave in waves], self.limit).to(self.hann.device)
        h = self.model(self.log_mel(x)).last_hidden_state # (B, F at 50 Hz, C)
        return h.unflatten(1, (-1, 2)).float().mean(2)

class Mimi:
    """A MimiModel up to its semantic codebook, whose entries are `centroids`."""
    limit, half = None, False # its codes are defined by float32, as published

    def __init__(self, name, config, layer):
        if not config.use_causal_conv or config.audio_channels != 1:
            raise Refused(f"{name}: expected a causal MimiModel of one channel")
        config.decoder_config, config.num_quantizers = None, config.num_semantic_quantizers + 1 # what its config allows
        model = _load(name, 'MimiModel', config, lambda key: key.startswith(('encoder', 'quantizer.semantic')))
        self.model, semantic, self.config = model.encoder, model.quantizer.semantic_residual_vector_quantizer, config
        self.project, codebook = semantic.input_proj or nn.Identity(), semantic.layers[0].codebook
        self.centroids, self.width = codebook.embed.float(), config.codebook_dim
        self.rate, self.step = config.sampling_rate, round(config.sampling_rate / config.frame_rate)

    def identity(self):
        keys = ('sampling_rate', 'upsampling_ratios', 'num_attention_heads', 'num_key_value_heads', 'hidden_act',
                'norm_eps', 'sliding_window', 'rope_parameters', 'pad_mode', 'dilation_growth_rate', 'use_conv_shortcut')
        tensors = {**self.model.state_dict(), **{f'project.{k}': v for k, v in self.project.state_dict().items()}}
        return ['mimi', *(getattr(self.config, key) for key in keys)], tensors

    def prepare(self, device):
        self.model.to(device), self.project.to(device)

    def __call__(self, waves):
        x = _padded(waves, max(map(len, waves)))[:, None] # zeros behind a wave reach no whole frame of it
        return self.project(self.model(x.to(self.model.device)).latents).transpose(1, 2)

# ----------------------------------------------------------------------------------------------------------------
# the encoder

def windows(blocks, step, window, margin):
    """(first frame, keep_from, keep_to, samples) of each window of a wave that comes in blocks; window, margin in frames.

    Kept are the window's own frames keep_from..keep_to-1; the last window has the samples that fill no frame, too.
    """
    held, first = np.zeros(0, np.float32), 0
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else np.asarray(block, np.float32)
        while len(held) >= (window + 1) * step: # so this one is not the last
            yield first, margin * (first > 0), window - margin, held[:window * step]
            held, first = held[(window - 2 * margin) * step:], first + window - 2 * margin
    yield first, margin * (first > 0), len(held) // step, held

class Encoder:
    """encoder.encode([wave, ...]) -> units a frame. rate, step: samples a second of the waves it wants, samples a frame;
    hop: samples a frame at 16 kHz; n_units; hash: of all that decides a unit; seconds: spent so far, by part.

    name: folder or hub id of a HubertModel, WhisperModel or MimiModel; layer: whose output is quantized, 1 is the first;
    centroids: (K, C), None for Mimi; batch_s: seconds of padded audio in a forward pass on CUDA, where Hubert and Whisper
    run in bf16 (a CPU takes one window at a time, in float32). Raises Refused for what does not fit together.
    """
    def __init__(self, name, layer, centroids, device='cpu', window_s=30.0, margin_s=2.0, batch_s=120.0):
        kind, config = kind_of(name)
        self.kind, self.device = kind, torch.device(device)
        self.net = net = {'hubert': Hubert, 'whisper': Whisper, 'mimi': Mimi}[kind](name, config, layer)
        if (kind == 'mimi') == (centroids is not None):
            raise Refused(f"{name}: " + ("Mimi has its own codebook, --kmeans does not apply" if kind == 'mimi'
                                         else f"a {kind} encoder needs centroids, give --kmeans=FILE.safetensors"))
        self.layer = None if kind == 'mimi' else layer
        self.centroids = torch.as_tensor(net.centroids if kind == 'mimi' else centroids).float()
        if self.centroids.shape[1] != net.width:
            raise Refused(f"centroids have {self.centroids.shape[1]} numbers, {name} gives {net.width}")
        self.n_units, self.rate, self.step, self.hop = len(self.centroids), net.rate, net.step, net.step * RATE // net.rate
        self.window, self.margin = round(window_s * self.rate / self.step), round(margin_s * self.rate / self.step)
        if self.window <= 2 * self.margin:
            raise Refused(f"window_s is {window_s:g}, margin_s {margin_s:g}: {self.window} and {self.margin} frames of "
                          f"{self.step / self.rate:g} s, a window must have more than two margins")
        if net.limit and self.window * self.step > net.limit:
            raise Refused(f"window_s is {window_s:g}, {name} takes {net.limit / self.rate:g} s at once")
        self.batch = int(batch_s * self.rate) if self.device.type == 'cuda' else 0 # a CPU gains nothing, and is bit-exact
        self.hash = _hash(*net.identity(), self.centroids)
        net.prepare(self.device)
        self.centroids = self.centroids.to(self.device)
        self.seconds = {'encoder': 0.0, 'k-means': 0.0}

    def _batches(self, cuts):
        """Lists of consecutive cuts (..., samples) that fit into one forward pass; those of like lengths come together."""
        batch, longest = [], 0
        for cut in cuts:
            longest = max(longest, self.net.limit or len(cut[-1]))
            if batch and (len(batch) + 1) * longest > self.batch:
                yield batch
                batch, longest = [], self.net.limit or len(cut[-1])
            batch.append(cut)
        if batch:
            yield batch

    @torch.inference_mode()
    def _frames(self, waves):
        """h (B, F, C) of waves that are windows."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.net.half and self.device.type == 'cuda'):
            return self.net([np.ascontiguousarray(wave) for wave in waves]).float()

    def _nearest(self, h):
        """(..., C) -> the number of the nearest centroid, int64 on the CPU."""
        score = h @ self.centroids.T
        score -= self.centroids.square().sum(1) / 2
        return score.argmax(-1).cpu().numpy()

    def _run(self, cuts, quantize=True):
        """(cut, its window's units, or h on the CPU) for each cut (..., keep_from, keep_to, samples)."""
        for batch in self._batches(cuts):
            begin = time.perf_counter()
            h = self._frames([cut[-1] for cut in batch])
            if self.device.type == 'cuda':
                torch.cuda.synchronize(self.device) # so that the next line's time is its own
            middle = time.perf_counter()
            rows = self._nearest(h) if quantize else h.cpu().numpy()
            self.seconds['encoder'] += middle - begin
            self.seconds['k-means'] += time.perf_counter() - middle
            for cut, row in zip(batch, rows):
                yield cut, row[cut[-3]:cut[-2]]

    def _windows(self, blocks):
        return windows(blocks, self.step, self.window, self.margin)

    def encode(self, waves):
        """float32 (N,) waves at `rate` -> an int64 array of N // step units each; the same alone and together."""
        for wave in waves:
            if len(wave) < self.step:
                raise Refused(f"{len(wave)} samples are less than one frame of {self.step}")
        cuts = [(i, *cut) for i, wave in enumerate(waves) for cut in self._windows([wave])]
        cuts.sort(key=lambda cut: len(cut[-1])) # like lengths together: less padding
        out = [np.empty(len(wave) // self.step, np.int64) for wave in waves]
        for (i, first, a, b, _), units in self._run(cuts):
            out[i][first + a:first + b] = units
        return out

    def encode_blocks(self, blocks):
        """encode([wave])[0] of a wave that comes in blocks, of which a window is held at a time."""
        return np.concatenate([units for _, units in self._run(self._windows(blocks))])

    def features(self, wave):
        """float32 (N,) at `rate` -> float32 (N // step, C), what encode would quantize."""
        return np.concatenate([h for _, h in self._run(self._windows([wave]), quantize=False)])

def _hash(facts, tensors, centroids):
    """Of all that decides a unit: weights up to the layer, geometry, centroids; not of file names or formats."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    tensors = {**tensors, 'centroids': centroids}
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
