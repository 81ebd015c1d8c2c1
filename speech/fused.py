"""
Faster modules in place of those of transformers' speech encoders; the values are the same up to rounding.

    Linear    nn.Linear, its weights packed once for the processor, GELU in the same pass over the output
    Conv      nn.Conv1d, likewise, with the channels last in memory
    Front     HuBERT's convolutions: (B, N) waves -> (B, C, F)

Each multiplies in its dtype and adds up in float32. What is between them, the residual stream and the norms of the
layers, stays in float32; so does the wave, which the first convolution takes as a sum of two bfloat16 numbers.

A group norm with one group a channel is folded into the first convolution. For frame f of a wave, u_f are the k
samples under the kernel, and y_f = w . u_f. Hence over the frames mean(y) = w . mean(u) and
var(y) = w' cov(u) w, with a (k, k) matrix instead of the (F, C) output, and the norm is

    gamma (y_f - mean(y)) / sqrt(var(y) + eps) + beta = w_2 . u_f + b_2
    w_2 = gamma w / sqrt(w' cov(u) w + eps)             b_2 = beta - w_2 . mean(u)
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

FUSABLE = {'intermediate_dense': 'intermediate_act_fn', 'fc1': 'activation_fn'} # a linear layer: the activation behind

CHUNK = 2 ** 21 # numbers that the first convolution makes at a time on a CPU; its cache holds them
BLOCK = 128 # frames that the positional convolution makes at a time on a CPU
# A product has a multiple of so many rows, as oneDNN takes about 2 ms to prepare for a new shape. AMX has tiles of 16.
ROWS = {torch.float32: 4, torch.bfloat16: 16}

def has_bfloat16():
    """Whether this processor has products of bfloat16 numbers (AMX, AVX512_BF16). Others emulate them, slowly."""
    has = torch.cpu.get_capabilities().get
    return bool(has('amx_bf16') or has('avx512_bf16'))

def is_packable(tensor):
    return tensor.device.type == 'cpu' and torch.backends.mkldnn.is_available()

class Linear(nn.Module):
    def __init__(self, weight, bias, dtype, gelu=False):
        super().__init__()
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.attribute = 'gelu' if gelu else 'none'
        self.packed = None
        if is_packable(weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x): # (..., C) -> (..., D)
        dtype = self.weight.dtype
        if self.packed is None:
            y = F.linear(x.to(dtype), self.weight, self.bias)
            return F.gelu(y) if self.attribute == 'gelu' else y
        n = math.prod(x.shape[:-1])
        shape = (*x.shape[:-1], -1)
        n_more = -n % ROWS[dtype]
        if n_more > 0:
            padded = x.new_empty(n + n_more, x.shape[-1], dtype=dtype)
            padded[:n].view(x.shape).copy_(x)
            x = padded
        y = torch.ops.mkldnn._linear_pointwise(x.to(dtype), self.packed, self.bias, self.attribute, [], 'none')
        return y.view(-1, y.shape[-1])[:n].view(shape)

class PositionConv(nn.Module):
    """The positional convolution, nn.Conv1d with stride 1; (B, C, T) -> (B, C, F).

    On a CPU it makes BLOCK frames at a time: packed weights are for one shape, others may take 100 x as long.
    """
    def __init__(self, conv, dtype):
        super().__init__()
        if conv.in_channels // conv.groups % 16 > 0: # for 8 channels a group, torch 2.13.0 returns other numbers
            dtype = torch.float32
        weight = conv.weight.detach().to(dtype).unsqueeze(2)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = conv.bias.detach().to(dtype)
        self.padding = conv.padding[0]
        self.groups = conv.groups
        self.span = BLOCK + conv.kernel_size[0] - 1 # frames that BLOCK frames of the output depend on
        self.packed = None
        if is_packable(weight):
            size = (1, conv.in_channels, 1, self.span)
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, (0, 0), (1, 1), (1, 1), self.groups, size)

    def block(self, x):
        arguments = x, self.packed, self.bias, (0, 0), (1, 1), (1, 1), self.groups, 'none', [], ''
        return torch.ops.mkldnn._convolution_pointwise(*arguments)

    def forward(self, x):
        n = x.shape[2] + 2 * self.padding - self.weight.shape[3] + 1
        after = self.padding if self.packed is None else self.padding + -n % BLOCK
        x = F.pad(x.mT.to(self.weight.dtype), (0, 0, self.padding, after)).mT.unsqueeze(2) # channels are last in memory
        if self.packed is None:
            return F.conv2d(x, self.weight, self.bias, groups=self.groups)[:, :, 0]
        y = [self.block(x[..., begin:begin + self.span]) for begin in range(0, n, BLOCK)]
        return torch.cat(y, 3)[:, :, 0, :n]

class Front(nn.Module):
    """The convolutions of a HubertModel, Wav2Vec2Model or WavLMModel, whose activation is GELU.

    frames: how many frames each row has after the first convolution, over which a group norm takes
    its statistics; None: all rows have all.
    """
    def __init__(self, layers, dtype):
        super().__init__()
        self.dtype = dtype
        self.frames = None
        self.kernels = [layer.conv.kernel_size[0] for layer in layers]
        self.strides = [layer.conv.stride[0] for layer in layers]
        self.step = math.prod(self.strides)
        self.receptive = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides)):
            self.receptive = (self.receptive - 1) * stride + kernel
        self.norms = nn.ModuleList(getattr(layer, 'layer_norm', nn.Identity()) for layer in layers)
        self.is_grouped = isinstance(self.norms[0], nn.GroupNorm)
        first = layers[0].conv
        self.weight = first.weight.detach()[:, 0]
        self.bias = None if first.bias is None else first.bias.detach()
        self.chunk = max(8, CHUNK * self.strides[0] // (first.out_channels * self.step)) # frames
        self.convs = nn.ModuleList()
        for layer in layers[1:]:
            weight = layer.conv.weight.mT.flatten(1) # (D, k C)
            self.convs.append(Linear(weight, layer.conv.bias, dtype, gelu=self.is_grouped))

    def folded(self, u):
        """(B, F, k) -> weights (B, C, k), biases (B, C) of the first convolution with each row's group norm in it."""
        norm = self.norms[0]
        n = torch.tensor(self.frames or [u.shape[1]] * len(u), device=u.device)[:, None, None]
        u = u.double() * (torch.arange(u.shape[1], device=u.device)[:, None] < n)
        mean = u.sum(1, keepdim=True) / n
        covariance = u.mT @ u / n - mean.mT @ mean
        weight = self.weight.double()
        variance = (weight @ covariance * weight).sum(2)
        weight = (norm.weight / (variance + norm.eps).sqrt())[..., None] * weight
        bias = norm.bias - (weight @ mean.mT)[..., 0]
        return weight.float(), bias.float()

    def first(self, x):
        """(B, N) -> the first convolution of each row, with its norm if that is a group norm."""
        weights = self.weight[None].expand(len(x), -1, -1)
        biases = [self.bias] * len(x)
        if self.is_grouped:
            weights, biases = self.folded(x.unfold(1, self.kernels[0], self.strides[0]))
        if self.dtype == torch.bfloat16: # with the rest below, the product of two sums without that of their rests
            high = weights.bfloat16()
            weights = torch.cat([high, high, weights - high], 2)
        return [Linear(weight, bias, self.dtype, self.is_grouped) for weight, bias in zip(weights, biases)]

    def convolved(self, x, first):
        """(B, N) -> (B, F, C)."""
        u = x.unfold(1, self.kernels[0], self.strides[0])
        if self.dtype == torch.bfloat16:
            high = u.bfloat16()
            u = torch.cat([high, (u - high).bfloat16(), high], 2)
        rows = [conv(row) for conv, row in zip(first, u)]
        x = rows[0][None] if len(rows) == 1 else torch.stack(rows)
        if not self.is_grouped:
            x = F.gelu(self.norms[0](x))
        for conv, norm, kernel, stride in zip(self.convs, self.norms[1:], self.kernels[1:], self.strides[1:]):
            x = conv(x.unfold(1, kernel, stride).mT.flatten(2))
            if not self.is_grouped:
                x = F.gelu(norm(x))
        return x

    def forward(self, x): # (B, N) -> (B, C, F)
        n = (x.shape[1] - self.receptive) // self.step + 1
        size = self.chunk if x.device.type == 'cpu' else n
        if self.is_grouped: # the norm removes any constant, here before it costs digits
            x = x - x.mean(1, keepdim=True)
        first = self.first(x)
        chunks = []
        for begin in range(0, n, size):
            n_frames = min(size, n - begin)
            rounded = n_frames + -n_frames % 4
            part = x[:, begin * self.step:(begin + rounded - 1) * self.step + self.receptive]
            missing = (rounded - 1) * self.step + self.receptive - part.shape[1]
            chunks.append(self.convolved(F.pad(part, (0, missing)), first)[:, :n_frames])
        return torch.cat(chunks, 1).mT

def fuse(model, dtype):
    """Replaces, in place, every nn.Linear of a model of transformers, and the GELU behind it, by a Linear of dtype."""
    for module in list(model.modules()):
        if type(module).__name__ == 'WavLMAttention': # reads the weights of its linear layers
            continue
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear:
                continue
            activation = FUSABLE.get(name)
            gelu = type(getattr(module, activation or '', None)).__name__ == 'GELUActivation'
            if gelu:
                setattr(module, activation, nn.Identity())
            setattr(module, name, Linear(child.weight, child.bias, dtype, gelu))
