"""
The attention of kernels/attention.py in plain torch: what runs on the CPU, and what runs on a GPU
where the Triton kernels do not. That file has the mathematics and the names of the options, and
chooses the backend.

Blocks, on the CPU. A row is processed document by document, QUERIES queries at a time, so no score
outside a document or window and few above the diagonal are computed. For documents of 100-200
tokens in rows of 512 this is about 3 x faster, in bf16 and fp32, than SDPA with a mask, forward and
backward. The softmax is float32 whatever the dtype of q; only p, and the derivative of the softcap,
are saved for the backward.

SDPA, for other devices and for what the Triton kernels do not support, with a boolean mask
(B, 1, T, T). With a softcap, which SDPA lacks, the definition is computed instead. Decoding a token
with a key-value cache goes the same way on every device.
"""
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Queries of a block on the CPU: more would waste work above the diagonal, fewer starve the GEMMs.
# float32 would rather have 128, bfloat16 256.
QUERIES = 192
# Queries of a block with a dense mask: more than a row of the papers' training has.
DENSE = 2048

class Options(NamedTuple):
    """The options of `attention` that all backends share."""
    slopes: torch.Tensor | None # (H,)
    scale: float | None # None: 1 / sqrt(D)
    softcap: float # 0: none
    window: int # 0: none

# --------------------------------------------------------------------------------------------------
# the documents of a batch

def _mask(doc_start, hidden_span=None):
    """(B, T) -> (B, 1, T, T), True where query t (dim 2) sees key j (dim 3)."""
    j = torch.arange(doc_start.size(1), device=doc_start.device)
    seen = (j <= j[:, None]) & (j >= doc_start[:, :, None])
    if hidden_span is not None:
        seen = seen & ~((j >= hidden_span[..., :1]) & (j < hidden_span[..., 1:]))
    return seen[:, None]

def _spans(doc_start, hidden_span):
    """-> (row, begin, end, prefix) of each document or branch, in order.

    prefix: the indices of the beginning that a branch shares; None where there is no hidden_span.
    """
    T = doc_start.size(1)
    span_start = doc_start
    if hidden_span is not None:
        span_start = torch.where(hidden_span[..., 1] > 0, hidden_span[..., 1], doc_start)
    starts = (span_start == torch.arange(T)).nonzero().tolist() # (row, begin)
    spans = []
    for (row, begin), (next_row, next_begin) in zip(starts, [*starts[1:], (None, T)]):
        end = next_begin if row == next_row else T
        prefix = None
        if hidden_span is not None and hidden_span[row, begin, 1]:
            prefix = torch.arange(doc_start[row, begin], hidden_span[row, begin, 0])
        spans.append((row, begin, end, prefix))
    return spans

class Block(NamedTuple):
    """Queries start..end-1 of a row and the keys they see, the last of which are their own."""
    row: int
    keys: slice | torch.Tensor # indices; a tensor where a shared beginning precedes them
    start: int
    end: int

def _blocks(spans):
    """-> an object whose .all is the list of the Blocks of the spans. For a bare list,
    torch.compile would make a new graph whenever its length changes."""
    blocks = []
    for row, begin, span_end, prefix in spans:
        for start in range(begin, span_end, QUERIES):
            end = min(start + QUERIES, span_end)
            keys = slice(begin, end)
            if prefix is not None:
                keys = torch.cat((prefix, torch.arange(begin, end)))
            blocks.append(Block(row, keys, start, end))
    return SimpleNamespace(all=blocks)

# --------------------------------------------------------------------------------------------------
# blocks: the CPU

def _count(keys):
    return keys.stop - keys.start if isinstance(keys, slice) else len(keys)

def _last(keys, n):
    """The last n of keys, or all where there are fewer."""
    if isinstance(keys, slice):
        return slice(max(keys.start, keys.stop - n), keys.stop)
    return keys[-n:]

def _grouped(x, HK, scale=1.0):
    """(B, T, H, D) -> scaled, (B, HK, T * G, D): the G query heads of a key head are queries of one head."""
    B, T, H, D = x.shape
    grouped = x.new_empty(B, HK, T, H // HK, D)
    torch.mul(x.view(B, T, HK, -1, D).transpose(1, 2), scale, out=grouped)
    return grouped.flatten(2, 3)

def _ungrouped(x, T, scale=1.0):
    """The inverse: (B, HK, T * G, D) -> (B, T, H, D)"""
    B, HK, _, D = x.shape
    heads = x.new_empty(B, T, HK, x.size(2) // T, D)
    torch.mul(x.view(B, HK, T, -1, D).transpose(1, 2), scale, out=heads)
    return heads.flatten(2, 3)

def _add_products(total, p, x, G):
    """total (HK, m, D) += p (HK, n * G, m)' x (HK, n * G, D)"""
    if p.dtype.itemsize < 4: # summed in float32 inside the product
        total.baddbmm_(p.transpose(1, 2), x)
        return
    for g in range(G): # in float32, one sum over n * G rows would round more than attention_ref does
        total.baddbmm_(p[:, g::G].transpose(1, 2), x[:, g::G])

def _causal_bias(n, window, dtype):
    """(n, n): 0 where query t sees key j, -inf in the future and before the window."""
    bias = torch.full((n, n), -torch.inf, dtype=dtype).triu_(1)
    if window:
        bias += torch.full((n, n), -torch.inf, dtype=dtype).tril_(-window)
    return bias

class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, blocks, options):
        slopes, scale, softcap, window = options
        T, H, D = q.shape[1:]
        HK = k.size(2)
        G = H // HK
        fp32 = torch.promote_types(q.dtype, torch.float32) # float64 stays float64
        scale = scale or D ** -0.5
        blocks = blocks.all
        if window: # drop the keys before the window of a block's first query
            blocks = [b._replace(keys=_last(b.keys, b.end - b.start + window - 1)) for b in blocks]
        longest = max(((_count(b.keys) if window else b.end - b.start) for b in blocks), default=0)
        causal_bias = _causal_bias(longest, window, q.dtype)
        q = _grouped(q, HK, scale)
        o = torch.empty_like(q)
        saved_p = []
        saved_tanh_grad = []
        for row, keys, start, end in blocks:
            n = end - start # queries
            m = _count(keys)
            queries = slice(start * G, end * G)
            s = torch.bmm(q[row, :, queries], k[row, keys].permute(1, 2, 0)) # (HK, n * G, m)
            if softcap:
                tanh = s.to(fp32).div_(softcap).tanh_()
                s = tanh * softcap
                tanh_grad = tanh.square_().neg_().add_(1).to(q.dtype)
            s_by_head = s.view(HK, n, G, m)
            if slopes is not None:
                distance = torch.arange(m - n, m)[:, None, None] - torch.arange(m) # (n, 1, m)
                s_by_head = s_by_head - slopes.view(HK, 1, G, 1) * distance
            masked = m if window else n # without a window, only the queries' own keys may be hidden
            s_by_head.narrow(3, m - masked, masked).add_(causal_bias[masked - n:masked, None, :masked])
            p = s_by_head.view_as(s).softmax(-1).to(q.dtype) # inside, torch sums in float32
            o[row, :, queries] = torch.bmm(p, v[row, keys].transpose(0, 1))
            if any(ctx.needs_input_grad):
                saved_p.append(p)
                if softcap:
                    saved_tanh_grad.append(tanh_grad)
        ctx.save_for_backward(q, k, v, *saved_p, *saved_tanh_grad)
        ctx.blocks = blocks
        ctx.scale = scale
        return _ungrouped(o, T)

    @staticmethod
    def backward(ctx, do):
        q, k, v, *saved = ctx.saved_tensors # q is already scaled, and grouped
        saved_tanh_grad = saved[len(ctx.blocks):] # empty without a softcap
        T, HK = k.shape[1:3]
        G = do.size(2) // HK
        do = _grouped(do, HK)
        dq = torch.empty_like(q)
        dk = k.new_zeros(k.transpose(1, 2).shape) # (B, HK, T, D)
        dv = torch.zeros_like(dk)
        for i, (row, keys, start, end) in enumerate(ctx.blocks):
            p = saved[i]
            queries = slice(start * G, end * G)
            dp = torch.bmm(do[row, :, queries], v[row, keys].permute(1, 2, 0)) # (HK, n * G, m)
            # p * (dp - sum_j p * dp), as autograd computes it. The function is private to torch,
            # but the formula in separate operations takes more time and rounds differently.
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            if saved_tanh_grad:
                ds *= saved_tanh_grad[i]
            for total, weights, x in ((dv, p, do), (dk, ds, q)):
                if isinstance(keys, slice):
                    _add_products(total[row, :, keys], weights, x[row, :, queries], G)
                else:
                    part = total[row, :, keys]
                    _add_products(part, weights, x[row, :, queries], G)
                    total[row, :, keys] = part
            dq[row, :, queries] = torch.bmm(ds, k[row, keys].transpose(0, 1))
        return _ungrouped(dq, T, ctx.scale), dk.transpose(1, 2), dv.transpose(1, 2), None, None

# Compiled, every new length of a document would be a new graph.
_by_blocks = torch.compiler.disable(_Blocks.apply)

# --------------------------------------------------------------------------------------------------
# SDPA with a mask, and decoding

def _by_mask(q, k, v, mask, options):
    """By SDPA with a mask (B, 1, T, T), True where a key is seen; None: causal. DENSE queries at a
    time, as torch may save all their scores."""
    slopes, scale, softcap, window = options
    q, k, v = (x.transpose(1, 2) for x in (q, k, v)) # (B, H, T, D)
    t = torch.arange(q.size(2), device=q.device)
    outputs = []
    for start in range(0, len(t), DENSE):
        queries = slice(start, start + DENSE)
        distance = t[queries, None] - t # (queries, T)
        bias = distance >= 0 if mask is None else mask[:, :, queries]
        if window:
            bias = bias & (distance < window)
        if slopes is not None:
            alibi = -slopes[:, None, None] * distance # (H, queries, T)
            bias = alibi.masked_fill(~bias, -torch.inf).to(q.dtype) # (B or 1, H, queries, T)
        outputs.append(_dense(q[:, :, queries], k, v, bias, scale, softcap, enable_gqa=True))
    return torch.cat(outputs, 2).transpose(1, 2)

def _dense(q, k, v, bias, scale, softcap, enable_gqa=False, sdpa=True):
    """SDPA, or with a softcap the definition. bias: True where a key is seen, or what is added to
    the scores; None: every key is seen. sdpa: False where the definition is faster."""
    if sdpa and not softcap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        v = v.repeat_interleave(q.size(1) // v.size(1), dim=1)
    s = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * (scale or q.size(-1) ** -0.5)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if bias is not None:
        s = s.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else s + bias
    return s.softmax(-1).to(q.dtype) @ v

def decode_bias(column, n, begin=None, window=0, slopes=None, dtype=torch.float32):
    """What attention_decode adds to the scores of a new token at `column` (1,) with n keys: -inf where one is not seen.

    -> (B or 1, 1, 1, n), with slopes (B or 1, HK * G, 1, n). begin (B, 1): the index at which each
    row's document begins; None: 0. Its shape depends on no value: a graph can hold it.
    """
    distance = column - torch.arange(n, device=column.device) # negative for keys to come
    seen = distance >= 0
    if window:
        seen = seen & (distance < window)
    if begin is not None:
        seen = seen & (distance <= column - begin) # (B, n)
    bias = column.new_zeros((), dtype=dtype)
    if slopes is not None:
        bias = (-slopes[:, None, None] * distance).to(dtype) # (H, 1, n)
    return bias.masked_fill(~seen.view(-1, 1, 1, n), -torch.inf)

def attention_decode(q, k, v, bias=None, scale=None, softcap=0.0):
    """attention for one new token: q (B, 1, H, D) -> (B, 1, H, D).

    k and v (B, HK, n, D) are the keys and values, the new token's own among them. bias is that of
    decode_bias; None: every key is seen.
    """
    B, _, H, D = q.shape
    HK, n = k.shape[1:3]
    if bias is not None and bias.size(1) > 1: # (B or 1, H, 1, n)
        bias = bias.view(-1, HK, H // HK, n)
    # (B, HK, G, D): to SDPA the query heads of a group are queries of one head. On a CPU it reads many
    # short rows of keys at 3/4 of the speed of a batched product.
    sdpa = not q.is_cpu or q.dtype != torch.float32 or B * HK < 16
    return _dense(q.view(B, HK, H // HK, D), k, v, bias, scale, softcap, sdpa=sdpa).reshape(B, 1, H, D)
