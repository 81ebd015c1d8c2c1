"""
Waves -> one unit a frame, by one of three kinds of encoder; config.json of its folder says which.

    encoder = Encoder('tiny/hubert', 4, load_centroids('tiny/hubert/kmeans.safetensors'))
    [units] = encoder.encode([wave])    float32 (N,) at encoder.rate -> int64 (N // encoder.step,)

    model_type  rate    step  h_f, by which frame f is quantized
    hubert      16 kHz  640   output of layer L; the wave is padded by (receptive field - step) / 2 = 40
                              zeros on each side, step is the product of the strides
                              (mHuBERT-25Hz: layer 11; HuBERT-base: layer 9, step 320). wav2vec2 and
                              WavLM are of this kind, too
    whisper     16 kHz  640   output of layer L of the encoder, two frames of 20 ms averaged; a window is
                              padded with zeros to 30 s, as Whisper was trained
    mimi        24 kHz  1920  input of the semantic codebook, 12.5 Hz; the centroids are the 2,048 entries
                              of that codebook, neither L nor a k-means file is needed

--codebooks=n takes the first n codebooks of Mimi instead, flat: frame f has n units, that of codebook k + 1 in the
range k * 2,048 and up. No window is cut: Mimi goes on over a wave, a piece of window_s at a time, with what its
convolutions and its attention keep from the pieces before, so the units are those of the whole wave.

--segment=syllables cuts the frames into `rate` segments a second first (speech/syllables.py), and the unit of a segment
is that of its mean. The frames that a window keeps are cut on their own, so a boundary stands where two windows meet.

    unit_f = argmin_k |h_f - c_k|^2 = argmax_k (h_f . c_k - |c_k|^2 / 2), one product a batch

normalize: wave -> (wave - mean) / sqrt(variance + 1e-7), over the whole wave before it is cut, as
transformers' feature extractor does. The published recipes do so for HuBERT-large and its like,
whose convolutions have layer norms, and not for HuBERT-base and mHuBERT (fairseq's `normalize`;
slamkit). So None takes what preprocessor_config.json says where the norms are of layers, else False.

Mimi uses the band up to 12 kHz: every file is resampled to 24 kHz from its own rate, and a file of
16 kHz has nothing above 8 kHz. Only what decides the units is loaded and run: no layer above L, no
decoder, no acoustic codebook. The output of a layer is taken before any norm that ends the encoder.

Audio longer than window_s is cut into windows that overlap by 2 * margin_s; a frame comes from the
window where it is at least margin_s from a cut. Windows depend on the file alone, and a file's
units are the same alone and in any batch: HuBERT's norms over time see only the file's own frames,
and its padding is zero wherever a convolution reads it; Whisper pads every window alike; Mimi is
causal. What remains is rounding. In padded batches, 1 frame in 10,000 of a random encoder is so
near to a tie that its unit changes. In bfloat16, the default on CUDA, 4 frames in 1,000 of the
embedded encoder differ from float32 (docs/speed.md has others), and up to 2 change with the batch.

speech/fused.py has the convolutions and linear layers. A CPU encodes a window a thread, each with
one core: threads share the weights, and no thread waits for others in the middle of a window.
"""
import hashlib
import json
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from configurator import Refused
from speech.audio import RATE
from speech.fused import Front, PositionConv, fuse, has_bfloat16
from speech.mimi import FlatMimi, Mimi
from speech.nets import HEADS, HUBERTS, beyond, kind_of, padded
from speech.pretrained import load_model, model_file
from speech.syllables import LONGEST, means, refuse_rate, segment
from speech.units import deduplicate, flatten


def _cut_layers(name, config, layer, field):
    """Sets config's number of layers, which it calls `field`, to `layer`."""
    n_layers = getattr(config, field)
    if not 1 <= layer <= n_layers:
        raise Refused(f"{name}: has {n_layers} layers, --layer={layer} is not among them")
    setattr(config, field, layer)

# --------------------------------------------------------------------------------------------------
# The three kinds. Each is a class with
#   rate, step        Hz of the waves, samples a frame
#   width             C, the size of h_f
#   limit             how many samples every window is padded to; None: windows have any length
#   identity()        -> facts (JSON) and tensors that decide a unit
#   prepare(device)   moves it to the device
#   net(waves)        -> h (B, F, C); the first len(wave) // step rows are the wave's frames

class MaskedBatchNorm(nn.Module):
    """mHuBERT's norm before the positional convolution. Its bias would make the padding nonzero.

    frames: the number of frames of each row, set by Hubert; None: all rows have all.
    """
    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.frames = None

    def forward(self, x): # (B, C, F)
        y = self.norm(x)
        for row, n in enumerate(self.frames or []):
            y[row, :, n:] = 0
        return y

class Hubert:
    """A HubertModel, Wav2Vec2Model or WavLMModel up to `layer`. Padding does not change what a wave gets."""
    rate = RATE
    limit = None

    def __init__(self, name, config, layer):
        _cut_layers(name, config, layer, 'num_hidden_layers')

        if config.feat_extract_activation != 'gelu':
            raise Refused(f"{name}: feat_extract_activation is '{config.feat_extract_activation}', expected 'gelu', "
                          "as all published models have it")
        config.add_adapter = False # of wav2vec2: it comes after all layers
        self.model = load_model(HUBERTS[config.model_type], name, beyond(layer, *HEADS), config=config).float()
        self.config = config
        if config.do_stable_layer_norm:
            # This norm comes after the last layer of the whole model, not after every layer.
            self.model.encoder.layer_norm = nn.Identity()
        self.width = config.hidden_size
        self.step = math.prod(config.conv_stride)
        self.receptive = 1 # samples that a frame depends on
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride))):
            self.receptive = (self.receptive - 1) * stride + kernel
        overlap = self.receptive - self.step
        self.pad = (overlap // 2, (overlap + 1) // 2)

    def identity(self):
        # The shapes of the weights determine the rest of the config.
        keys = ('conv_stride', 'num_attention_heads', 'feat_extract_norm', 'do_stable_layer_norm',
                'hidden_act', 'feat_extract_activation', 'layer_norm_eps')
        tensors = self.model.state_dict()
        tensors.pop('masked_spec_embed', None)
        facts = [getattr(self.config, key) for key in keys]
        if self.config.model_type != 'hubert':
            facts += [self.config.model_type, getattr(self.config, 'max_bucket_distance', None)] # of WavLM
        return facts, tensors

    def prepare(self, device, dtype):
        self.model.to(device)
        fuse(self.model, dtype)
        self.masked = [] # what needs to know the rows' frames, and the number of convolutions before
        front = self.model.feature_extractor = Front(self.model.feature_extractor.conv_layers, dtype)
        self.masked.append((front, 1))
        position = self.model.encoder.pos_conv_embed
        if hasattr(position, 'conv'):
            position.conv = PositionConv(position.conv, dtype)
        if getattr(position, 'batch_norm', None) is not None:
            position.batch_norm = MaskedBatchNorm(position.batch_norm)
            self.masked.append((position.batch_norm, len(self.config.conv_kernel)))

    def _n_frames(self, n_samples, n_layers):
        """How many frames the first n_layers convolutions make of so many samples."""
        convolutions = list(zip(self.config.conv_kernel, self.config.conv_stride))
        for kernel, stride in convolutions[:n_layers]:
            n_samples = (n_samples - kernel) // stride + 1
        return n_samples

    def __call__(self, waves):
        lengths = [len(wave) + sum(self.pad) for wave in waves]
        device = self.model.device
        x = padded(waves, max(lengths), self.pad[0]).to(device)
        is_padded = min(lengths) < max(lengths)
        for module, n_layers in self.masked:
            module.frames = [self._n_frames(n, n_layers) for n in lengths] if is_padded else None
        mask = None
        if is_padded:
            mask = (torch.arange(x.shape[1]) < torch.tensor(lengths)[:, None]).long().to(device)
        return self.model(x, attention_mask=mask).last_hidden_state

class Whisper:
    """The encoder of a WhisperModel up to `layer`, on windows padded to its 30 s; 25 Hz."""
    rate = RATE
    step = 640

    def __init__(self, name, config, layer):
        _cut_layers(name, config, layer, 'encoder_layers')

        config.decoder_layers = 0
        self.model = load_model('WhisperModel', name, beyond(layer, 'decoder.', *HEADS), config=config).float().encoder
        self.model.layer_norm = nn.Identity()
        self.config = config
        self.width = config.d_model
        self.limit = config.max_source_positions * 320 # a position is 20 ms

    def identity(self):
        keys = ('encoder_attention_heads', 'activation_function', 'scale_embedding')
        return ['whisper', *(getattr(self.config, key) for key in keys)], self.model.state_dict()

    def prepare(self, device, dtype):
        from transformers.audio_utils import mel_filter_bank
        filters = mel_filter_bank(201, self.config.num_mel_bins, 0, 8000, RATE, 'slaney', 'slaney')
        self.filters = torch.from_numpy(filters).T.float().to(device)
        self.hann = torch.hann_window(400, device=device)
        self.model.to(device)
        fuse(self.model, dtype)

    def log_mel(self, x):
        """(B, N) -> (B, mel bins, N / 160), the input that Whisper was trained on.

        log10 of the mel power, raised to at least the maximum of the window - 8, and scaled.
        """
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.stft(x, 400, 160, window=self.hann, return_complex=True)
            power = spectrum[..., :-1].abs().square()
            mel = (self.filters @ power).clamp(min=1e-10).log10()
            loudest = mel.amax((1, 2), keepdim=True)
            return (mel.maximum(loudest - 8) + 4) / 4

    def __call__(self, waves):
        x = padded([wave[:self.limit] for wave in waves], self.limit).to(self.hann.device)
        h = self.model(self.log_mel(x)).last_hidden_state # (B, F at 50 Hz, C)
        return h.unflatten(1, (-1, 2)).float().mean(2)

# --------------------------------------------------------------------------------------------------
# the encoder

def windows(blocks, step, window, margin):
    """Cuts a wave that comes in blocks; yields (first frame, keep_from, keep_to, samples) of each window.

    window and margin are in frames. Of a window, the frames keep_from..keep_to-1 are used, counted
    from its own first. The samples behind the last complete frame belong to the last window.
    """
    buffer = np.zeros(0, np.float32)
    first = 0
    for block in blocks:
        buffer = np.concatenate([buffer, block]) if len(buffer) else np.asarray(block, np.float32)
        while len(buffer) >= (window + 1) * step: # more follows, so this is not the last window
            yield first, margin * (first > 0), window - margin, buffer[:window * step]
            buffer = buffer[(window - 2 * margin) * step:]
            first += window - 2 * margin
    yield first, margin * (first > 0), len(buffer) // step, buffer

def default_normalize(name, config):
    """Whether the published recipe of a folder or hub id normalizes waves; see the head of this file."""
    if getattr(config, 'feat_extract_norm', None) != 'layer':
        return False
    settings = model_file(name, 'preprocessor_config.json', needed=False) or {}
    return bool(settings.get('do_normalize', False))

def moments(blocks):
    """(mean, variance) of a wave that comes in blocks, in float64."""
    n = 0
    total = 0.0
    squares = 0.0
    for block in blocks:
        block = np.asarray(block, np.float64)
        n += len(block)
        total += block.sum()
        squares += np.square(block).sum()
    mean = total / max(n, 1)
    return mean, max(squares / max(n, 1) - mean ** 2, 0.0)

class Encoder:
    """encoder.encode([wave, ...]) -> the units of each wave, one a frame.

    name: folder or hub id of a HubertModel, WhisperModel or MimiModel; layer: the one whose output
    is quantized, the first is 1; centroids: (K, C), None for Mimi; window_s, margin_s: see above;
    batch_s: seconds of padded audio in a forward pass on CUDA, a CPU takes one window at a time;
    normalize: see above; dtype: 'float32' or 'bfloat16', in which products are taken, None:
    bfloat16 on CUDA unless it is Mimi, else float32; codebooks: n of flat Mimi; rate: segments a
    second, 0 for frames; labels (K,): the unit of each centroid, None where it is its number
    (speech/kmeans.py reads both from a file). Settings that do not fit together, and bfloat16 on a
    processor without AMX and AVX512_BF16, raise Refused.

    Attributes: normalize, whether waves are; rate, Hz of the waves; step, samples a frame; hop,
    samples a frame at 16 kHz; dtype; threads; n_units, K; hash, of all that decides a unit; seconds, {part: time
    spent in it so far}.
    """
    def __init__(self, name, layer, centroids, device='cpu', window_s=30.0, margin_s=2.0, batch_s=120.0,
                 normalize=None, dtype=None, codebooks=0, rate=0.0, labels=None):
        self.kind, config = kind_of(name)
        self.normalize = default_normalize(name, config) if normalize is None else normalize
        if self.normalize and self.kind != 'hubert':
            raise Refused(f"normalize=True: a {self.kind} encoder takes waves as they are; leave it out")
        self.device = torch.device(device)
        self.dtype = self._dtype(name, dtype)
        is_mimi = self.kind == 'mimi'
        if codebooks and not is_mimi:
            raise Refused(f"{name}: codebooks={codebooks}, and it is a {self.kind} encoder, which has one unit a "
                          "frame; leave --codebooks out")
        self.codebooks = codebooks
        net_class = {'hubert': Hubert, 'whisper': Whisper, 'mimi': Mimi}[self.kind]
        self.net = net = FlatMimi(name, config, codebooks) if codebooks else net_class(name, config, layer)
        if is_mimi and centroids is not None:
            raise Refused(f"{name}: Mimi has its own codebook, --kmeans does not apply")
        if not is_mimi and centroids is None:
            raise Refused(f"{name}: a {self.kind} encoder needs centroids, give --kmeans=FILE.safetensors")
        self.layer = None if is_mimi else layer
        self.centroids = torch.as_tensor(net.centroids if is_mimi else centroids).float()
        if self.centroids.shape[1] != net.width:
            raise Refused(f"centroids have {self.centroids.shape[1]} numbers, {name} gives {net.width}")
        self.labels = labels
        self.n_units = len(self.centroids) * max(codebooks, 1) if labels is None else int(labels.max()) + 1
        self.rate = net.rate
        self.step = net.step
        self.hop = net.step * RATE // net.rate
        self.segment_rate = rate
        if rate:
            refuse_rate(rate, self.rate / self.step)
            if is_mimi:
                raise Refused(f"{name}: the units of Mimi are entries of its codebooks; leave --segment out")
        self.window = round(window_s * self.rate / self.step) # in frames, as is margin
        self.margin = round(margin_s * self.rate / self.step)
        if self.window <= 2 * self.margin:
            raise Refused(f"window_s is {window_s:g}, margin_s {margin_s:g}: {self.window} and {self.margin} frames "
                          f"of {self.step / self.rate:g} s, a window must have more than two margins")
        if net.limit and self.window * self.step > net.limit:
            raise Refused(f"window_s is {window_s:g}, {name} takes {net.limit / self.rate:g} s at once")
        # Samples in a forward pass. 0 is one window at a time: without padding units are exact to
        # the bit, and a CPU is as fast.
        self.batch = int(batch_s * self.rate) if self.device.type == 'cuda' else 0
        facts, tensors = net.identity()
        facts += ['normalized'] * self.normalize
        if rate:
            facts += ['segments', rate, LONGEST]
        if labels is not None:
            tensors = {**tensors, 'labels': labels}
        self.hash = _hash(facts, tensors, self.centroids)
        net.prepare(self.device, getattr(torch, self.dtype))
        self.centroids = self.centroids.to(self.device)
        self.seconds = {'encoder': 0.0, 'k-means': 0.0}
        self.threads = torch.get_num_threads() if self.device.type == 'cpu' else 1
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))

    def _dtype(self, name, dtype):
        """The name of the dtype of products: `dtype`, or the default of the device. Raises Refused."""
        has_half = self.kind != 'mimi'
        is_cpu = self.device.type == 'cpu'
        if dtype is None:
            return 'bfloat16' if has_half and not is_cpu else 'float32'
        if dtype not in ('float32', 'bfloat16'):
            raise Refused(f"dtype is '{dtype}', must be 'float32' or 'bfloat16'")
        if dtype == 'bfloat16' and not has_half:
            raise Refused(f"{name}: the codes of Mimi are defined in float32; leave --dtype=bfloat16 out")
        if dtype == 'bfloat16' and is_cpu and not has_bfloat16():
            raise Refused("dtype is 'bfloat16', which this processor only emulates (it has neither AMX nor "
                          "AVX512_BF16); leave --dtype out")
        return dtype

    def _batches(self, cuts):
        """Lists of consecutive cuts (..., samples) that, padded to the longest, fit into one forward pass."""
        batch = []
        longest = 0
        for cut in cuts:
            length = self.net.limit or len(cut[-1])
            longest = max(longest, length)
            if batch and (len(batch) + 1) * longest > self.batch:
                yield batch
                batch = []
                longest = length
            batch.append(cut)
        if batch:
            yield batch

    @torch.inference_mode()
    def _frames(self, waves):
        """h (B, F, C) of waves that are windows."""
        is_cast = self.dtype == 'bfloat16' and self.device.type == 'cuda' # what was not replaced by speech/fused.py
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_cast):
            return self.net([np.ascontiguousarray(wave) for wave in waves]).float()

    def _nearest(self, h):
        """(..., C) -> the number of the nearest centroid, int64 on the CPU."""
        score = h @ self.centroids.T
        score -= self.centroids.square().sum(1) / 2
        nearest = score.argmax(-1).cpu()
        return (nearest if self.labels is None else self.labels[nearest]).numpy()

    def _segments(self, cut, h):
        """A cut and its h (F, C) -> of the segments of what it keeps, the lengths (S,) in frames and the means (S, C).

        Segments are counted from the start of the wave, so that all its windows together have `rate` a second.
        """
        first, keep_from, keep_to = cut[-4:-1]
        h = h[keep_from:keep_to].cpu().numpy()
        per_frame = self.segment_rate * self.step / self.rate
        n_segments = round((first + keep_to) * per_frame) - round((first + keep_from) * per_frame)
        lengths = segment(h, n_segments, round(LONGEST * self.rate / self.step))
        return lengths, means(h, lengths)

    def _run(self, cuts, quantize=True):
        """Yields each cut (..., keep_from, keep_to, samples) with the units that it keeps.

        quantize=False: with the rows of h instead, on the CPU.
        """
        waiting = deque()
        for batch in self._batches(cuts):
            waiting.append((batch, self.pool.submit(self._rows, batch, quantize)))
            if len(waiting) > 2 * self.threads:
                yield from self._kept(*waiting.popleft())
        while waiting:
            yield from self._kept(*waiting.popleft())

    def _rows(self, batch, quantize):
        """A batch of cuts -> units, or rows of h, of each; a thread of the pool does it."""
        begin = time.perf_counter()
        h = self._frames([cut[-1] for cut in batch])
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device) # only to measure the time of each part
        middle = time.perf_counter()
        if self.segment_rate:
            rows = [self._segments(cut, row) for cut, row in zip(batch, h)]
            rows = [np.stack([self._nearest(torch.from_numpy(x).to(self.device)), lengths], 1) if quantize else x
                    for lengths, x in rows]
        else:
            rows = self._nearest(h) if quantize else h.cpu().numpy()
        return rows, middle - begin, time.perf_counter() - middle

    def _kept(self, batch, future):
        rows, *seconds = future.result()
        for part, spent in zip(self.seconds, seconds):
            self.seconds[part] += spent / self.threads
        for cut, row in zip(batch, rows):
            *_, keep_from, keep_to, _ = cut
            yield cut, row if self.segment_rate else row[keep_from:keep_to]

    def _windows(self, blocks, mean=0.0, variance=None):
        """windows of a wave in blocks; variance: of the wave that is to be normalized, as is mean."""
        if variance is not None:
            scale = np.sqrt(np.float32(variance) + np.float32(1e-7))
            blocks = ((block - np.float32(mean)) / scale for block in blocks)
        return windows(blocks, self.step, self.window, self.margin)

    def _windows_of(self, wave):
        wave = np.asarray(wave, np.float32)
        return self._windows([wave], wave.mean(), wave.var()) if self.normalize else self._windows([wave])

    @torch.inference_mode()
    def _flat(self, blocks):
        """The units (F, n) of a wave in blocks, by a FlatMimi; a thread of the pool does it."""
        begin = time.perf_counter()
        units = []
        caches = None
        for *_, n_frames, piece in windows(blocks, self.step, self.window, 0):
            part, caches = self.net.units(np.ascontiguousarray(piece[:n_frames * self.step]), caches)
            units.append(part)
        self.seconds['encoder'] += (time.perf_counter() - begin) / self.threads
        return np.concatenate(units)

    def runs(self, rows):
        """What encode gives for a wave -> its units (R,) and runs (R,), as a units folder holds them."""
        if self.segment_rate:
            return rows[:, 0], rows[:, 1]
        return flatten(rows) if self.codebooks else deduplicate(rows)

    def encode(self, waves):
        """float32 (N,) waves at `rate` -> an int64 array of N // step units each; the same alone and together.

        With codebooks, each array is (N // step, codebooks). With segments, it is (S, 2), the unit and length of each.
        """
        for wave in waves:
            if len(wave) < self.step:
                raise Refused(f"{len(wave)} samples are less than one frame of {self.step}")
        if self.codebooks:
            return list(self.pool.map(self._flat, ([np.asarray(wave, np.float32)] for wave in waves)))
        cuts = [(i, *cut) for i, wave in enumerate(waves) for cut in self._windows_of(wave)]
        cuts.sort(key=lambda cut: len(cut[-1])) # windows of similar length share a batch: less padding
        pieces = [{} for _ in waves] # the rows of each wave, by where they begin
        for (i, first, keep_from, *_), rows in self._run(cuts):
            pieces[i][first + keep_from] = rows
        return [np.concatenate([rows for _, rows in sorted(by_frame.items())]) for by_frame in pieces]

    def encode_blocks(self, blocks, mean=0.0, variance=None):
        """encode([wave])[0] of a wave that comes in blocks; about a window of it is in memory at a time.

        mean, variance: its moments, which an encoder with .normalize needs.
        """
        if self.codebooks:
            return self.pool.submit(self._flat, blocks).result()
        return np.concatenate([units for _, units in self._run(self._windows(blocks, mean, variance))])

    def features(self, wave):
        """float32 (N,) at `rate` -> float32 (N // step, C), or (segments, C), what encode would quantize."""
        return np.concatenate([h for _, h in self._run(self._windows_of(wave), quantize=False)])

def _hash(facts, tensors, centroids):
    """The hash of all that decides a unit: weights up to the layer, geometry, centroids; no file names."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    tensors = {**tensors, 'centroids': centroids}
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
