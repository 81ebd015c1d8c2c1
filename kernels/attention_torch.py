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
QUERIES = 256
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

def _group(x, HK):
    """(n, H, D) -> (HK, G*n, D): stacks the G query heads of a key head, so K and V are never expanded."""
    n, H, D = x.shape
    return x.view(n, HK, H // HK, D).permute(1, 2, 0, 3).reshape(HK, H // HK * n, D)

def _store_group(out, x):
    """The inverse of _group: copies x (HK, G*n, D) into out (n, H, D)."""
    HK, _, D = x.shape
    n, H, _ = out.shape
    out.view(n, HK, -1, D).copy_(x.view(HK, H // HK, n, D).permute(2, 0, 1, 3))

def _sum_group(p, x, n):
    """p (HK, G*n, m)' x (HK, G*n, D) -> (m, HK, D)"""
    HK, _, D = x.shape
    if p.dtype.itemsize < 4: # summed in float32 inside the product
        return torch.bmm(p.transpose(1, 2), x).transpose(0, 1)
    # Head by head: in float32, one sum over G*n rows would round more than attention_ref does.
    per_head = torch.bmm(p.view(-1, n, p.size(-1)).transpose(1, 2), x.view(-1, n, D)) # (HK*G, m, D)
    return per_head.view(HK, -1, p.size(-1), D).sum(1).transpose(0, 1)

def _causal_bias(n, window):
    """(n, n): 0 where query t sees key j, -inf in the future and before the window."""
    bias = torch.full((n, n), -torch.inf).triu_(1)
    if window:
        bias += torch.full((n, n), -torch.inf).tril_(-window)
    return bias

class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, blocks, options):
        slopes, scale, softcap, window = options
        H, HK, D = q.size(2), k.size(2), q.size(3)
        fp32 = torch.promote_types(q.dtype, torch.float32) # float64 stays float64
        scale = scale or D ** -0.5
        blocks = blocks.all
        if window: # drop the keys before the window of a block's first query
            blocks = [b._replace(keys=_last(b.keys, b.end - b.start + window - 1)) for b in blocks]
        causal_bias = _causal_bias(max((_count(b.keys) for b in blocks), default=0), window)
        q = q * scale
        o = q.new_empty(q.shape)
        saved_p = []
        saved_tanh_grad = []
        for row, keys, start, end in blocks:
            n = end - start # queries
            m = _count(keys)
            q_block = _group(q[row, start:end], HK)
            s = torch.bmm(q_block, k[row, keys].permute(1, 2, 0)) # (HK, G*n, m)
            s = s.view(HK, H // HK, n, m)
            if softcap:
                tanh = s.to(fp32).div(softcap).tanh_()
                s = tanh * softcap
                tanh_grad = tanh.square_().neg_().add_(1).to(q.dtype).view(HK, -1, m)
            if slopes is not None:
                distance = torch.arange(m - n, m)[:, None] - torch.arange(m) # (n, m)
                s = s - slopes.view(HK, -1, 1, 1) * distance
            s = s + causal_bias[m - n:m, :m] # at least float32 from here to the softmax
            p = s.softmax(-1).to(q.dtype).view(HK, -1, m)
            _store_group(o[row, start:end], torch.bmm(p, v[row, keys].transpose(0, 1)))
            if any(ctx.needs_input_grad):
                saved_p.append(p)
                if softcap:
                    saved_tanh_grad.append(tanh_grad)
        ctx.save_for_backward(q, k, v, *saved_p, *saved_tanh_grad)
        ctx.blocks = blocks
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, *saved = ctx.saved_tensors # q is already scaled
        saved_tanh_grad = saved[len(ctx.blocks):] # empty without a softcap
        HK = k.size(2)
        dq = q.new_empty(q.shape)
        dk = k.new_zeros(k.shape)
        dv = v.new_zeros(v.shape)
        do = do.contiguous()
        for i, (row, keys, start, end) in enumerate(ctx.blocks):
            p = saved[i]
            do_block = _group(do[row, start:end], HK)
            dp = torch.bmm(do_block, v[row, keys].permute(1, 2, 0)) # (HK, G*n, m)
            # p * (dp - sum_j p * dp), as autograd computes it. The function is private to torch,
            # but the formula in separate operations takes more time and rounds differently.
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            if saved_tanh_grad:
                ds *= saved_tanh_grad[i]
            q_block = _group(q[row, start:end], HK)
            dv[row, keys] += _sum_group(p, do_block, end - start)
            dk[row, keys] += _sum_group(ds, q_block, end - start)
            _store_group(dq[row, start:end], torch.bmm(ds, k[row, keys].transpose(0, 1)))
        return dq.mul_(ctx.scale), dk, dv, None, None

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
