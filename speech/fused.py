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
import torch
from torch import nn
from torch.nn import functional as F

FUSABLE = {'intermediate_dense': 'intermediate_act_fn', 'fc1': 'activation_fn'} # a linear layer: the activation behind

def has_bfloat16():
    """Whether this processor has products of bfloat16 numbers (AMX, AVX512_BF16). Others emulate them, slowly."""
    has = torch.cpu.get_capabilities().get
    return bool(has('amx_bf16') or has('avx512_bf16'))

def is_packable(tensor):
    return tensor.device.type == 'cpu' and torch.backends.mkldnn.is_available()

def linear(x, weight, bias, gelu, packed=None):
    """F.linear, then F.gelu if gelu. packed: the weight as _reorder_linear_weight makes it."""
    if packed is None:
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, 'gelu' if gelu else 'none', [], 'none')

class Linear(nn.Module):
    def __init__(self, weight, bias, dtype, gelu=False):
        super().__init__()
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.gelu = gelu
        self.packed = None
        if is_packable(weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x): # (..., C) -> (..., D)
        return linear(x.to(self.weight.dtype), self.weight, self.bias, self.gelu, self.packed)

class Conv(nn.Module):
    def __init__(self, conv, dtype, gelu=False):
        super().__init__()
        weight = conv.weight.detach().to(dtype).unsqueeze(2)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.geometry = (0, conv.padding[0]), (1, conv.stride[0]), (1, 1), conv.groups
        self.gelu = gelu
        self.packed = None
        if is_packable(weight):
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry)

    def forward(self, x): # (B, C, T) -> (B, D, F)
        x = x.to(self.weight.dtype).unsqueeze(2).contiguous(memory_format=torch.channels_last)
        if self.packed is not None:
            attribute = 'gelu' if self.gelu else 'none'
            arguments = (x, self.packed, self.bias, *self.geometry, attribute, [], 'none')
            return torch.ops.mkldnn._convolution_pointwise(*arguments).squeeze(2)
        padding, stride, dilation, groups = self.geometry
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups).squeeze(2)
        return F.gelu(y) if self.gelu else y

class Front(nn.Module):
    """The convolutions of a HubertModel, Wav2Vec2Model or WavLMModel, whose activation is GELU.

    frames: how many frames each row has after the first convolution, over which a group norm takes
    its statistics; None: all rows have all.
    """
    def __init__(self, layers, dtype):
        super().__init__()
        self.dtype = dtype
        self.frames = None
        self.norms = nn.ModuleList(getattr(layer, 'layer_norm', nn.Identity()) for layer in layers)
        self.is_grouped = isinstance(self.norms[0], nn.GroupNorm)
        first = layers[0].conv
        self.kernel = first.kernel_size[0]
        self.stride = first.stride[0]
        self.weight = first.weight.detach()[:, 0]
        self.bias = None if first.bias is None else first.bias.detach()
        self.convs = nn.ModuleList(Conv(layer.conv, dtype, gelu=self.is_grouped) for layer in layers[1:])

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
        """(B, N) -> (B, F, C) in dtype."""
        u = x.unfold(1, self.kernel, self.stride)
        weights = self.weight[None].expand(len(u), -1, -1)
        biases = [self.bias] * len(u)
        if self.is_grouped:
            weights, biases = self.folded(u)
        if self.dtype == torch.bfloat16: # u and weight are sums of two; the product of their small parts is left out
            high = u.bfloat16()
            weights_high = weights.bfloat16()
            u = torch.cat([high, (u - high).bfloat16(), high], 2)
            weights = torch.cat([weights_high, weights_high, (weights - weights_high).bfloat16()], 2)
        rows = []
        for row, weight, bias in zip(u, weights, biases):
            rows.append(Linear(weight, bias, self.dtype, self.is_grouped)(row))
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    def forward(self, x): # (B, N) -> (B, C, F)
        x = self.first(x).transpose(1, 2)
        if self.is_grouped:
            for conv in self.convs:
                x = conv(x)
            return x
        x = F.gelu(self.norms[0](x.mT)).mT
        for conv, norm in zip(self.convs, self.norms[1:]):
            x = F.gelu(norm(conv(x).mT)).mT
        return x

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
