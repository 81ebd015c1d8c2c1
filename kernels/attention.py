"""
Causal attention over rows of packed documents. Token t of a row sees the tokens j of its own document up to itself:

    s[t, j] = q[t].k[j] scale       for doc_start[t] <= j <= t, else -inf         scale = 1 / sqrt(D), or as given
    p       = softmax(s)                            o[t] = sum_j p[t, j] v[j]
    dp[t,j] = do[t].v[j]                            dv[j] = sum_t p[t, j] do[t]
    ds      = p * (dp - sum_j p * dp)               dq[t] = sum_j ds[t, j] k[j] scale,  dk[j] alike

What some families want besides, all off by default:

    softcap c    s -> c tanh(s / c), so ds gains a factor 1 - tanh(s / c)^2       Gemma2
    window w     only the keys j > t - w, the token itself included               Gemma2, every second layer
    slopes (H,)  s[t, j] - slope (t - j), ALiBi (2108.12409)                       Bloom

Documents that begin alike may share that beginning, for scoring: of P A B the branches A and B both go on from P, so the
tokens of B do not see the gap (B, T, 2) that A is, from its first token to behind its last, and count their places
without it. On a CPU, and by SDPA's mask, which has no window and no slopes then: it would count distances along the row.

q is (B, T, H, D); k and v are (B, T, HK, D), and query head h reads key head h // (H / HK) (GQA). doc_start (B, T)
holds the index in its row where token t's document begins. What a backend needs of it is made once a batch, by
`documents`, and serves every layer.

Triton, on a GPU in 16 bits. A program owns a block of queries (o, dq) or of keys (dk, dv, summed over the query heads of
its group, so there is no atomic and the gradient is the same every time) and walks the blocks of the other kind between
the first document's begin, or end, and the diagonal. Only the blocks at both edges need a mask, those between do not.
exp(x) is exp2(x log2(e)), log2(e) folded into the scale; the forward keeps lse = log2(sum_j exp2(s log2(e))), from which
the backward makes p again (FlashAttention-2, 2307.08691). In one pass, if asked for, the programs of dk and dv add to dq too:
5 products instead of 7, in an order that is not the same every time.

SDPA, elsewhere and for what Triton's kernels do not take, with a boolean mask (B, 1, T, T), or with a softcap the definition.

On the CPU a row is walked document by document, QUERIES queries at a time, so no score outside a document or window and
few above the diagonal are computed: for documents of 100-200 tokens in rows of 512 that is about 3 x faster, in bf16
and fp32, than SDPA with a mask, forward and backward. The softmax is float32 whatever q is; only p (and the softcap's
slope) is kept for the backward.

    python kernels/attention.py       checks attention against attention_ref, then times both beside SDPA
"""
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from configurator import Refused

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError: # e.g. macOS
    triton = None

QUERIES = 256 # a block of queries on the CPU: longer wastes work above the diagonal, shorter starves the GEMMs
DENSE = 2048 # a block of queries with a dense mask: more than a row of the papers' training
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1' # Triton's kernels run on the CPU, slowly

CONFIGS = { # (sm, head size, pass): queries and keys of a tile, warps, stages. Chosen by bench/aot.py's spills
    (80, 64, 'forward'): (128, 64, 8, 3), (80, 128, 'forward'): (128, 64, 8, 2), (80, 256, 'forward'): (64, 32, 8, 2),
    (80, 64, 'dq'): (64, 64, 4, 2), (80, 128, 'dq'): (64, 64, 8, 2), (80, 256, 'dq'): (64, 32, 8, 1),
    (80, 64, 'dkv'): (32, 128, 8, 2), (80, 128, 'dkv'): (32, 64, 8, 2), (80, 256, 'dkv'): (32, 32, 8, 1),
    (80, 64, 'one-pass'): (32, 64, 8, 2), (80, 128, 'one-pass'): (16, 64, 8, 1),
    (90, 64, 'forward'): (128, 128, 8, 2), (90, 128, 'forward'): (128, 128, 8, 2), (90, 256, 'forward'): (128, 64, 8, 2),
    (90, 64, 'dq'): (128, 64, 8, 2), (90, 128, 'dq'): (128, 64, 8, 2), (90, 256, 'dq'): (64, 32, 8, 2),
    (90, 64, 'dkv'): (64, 128, 8, 2), (90, 128, 'dkv'): (32, 128, 8, 2), (90, 256, 'dkv'): (16, 64, 8, 2),
    (90, 64, 'one-pass'): (64, 128, 8, 2), (90, 128, 'one-pass'): (16, 64, 8, 2),
}


def attention_ref(q, k, v, doc_start=None, scale=None, softcap=0.0, window=0, slopes=None):
    """The definition, in torch, any dtype: q (B, T, H, D), k and v (B, T, HK, D), doc_start (B, T) -> (B, T, H, D)."""
    B, T, H, D = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = (x.repeat_interleave(H // k.size(2), dim=2) for x in (k, v)) # (B, T, H, D)
    t = torch.arange(T, device=q.device)
    back = t[:, None] - t # (T, T)
    seen = (back >= 0) & (back < (window or T)) # (T, T)
    if doc_start is not None:
        seen = seen & (t >= doc_start[:, None, :, None]) # (B, 1, T, T)
    s = torch.einsum('bthd,bjhd->bhtj', q, k).to(wide) * (scale or D ** -0.5)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if slopes is not None:
        s = s - slopes[:, None, None] * back
    p = s.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
    return torch.einsum('bhtj,bjhd->bthd', p, v)

def choose_backend(device, asked=None, dtype=torch.bfloat16, D=64, softcap=0.0):
    """'blocks', 'triton' or 'sdpa': the one asked for, refused where it cannot be had, else the fastest of a device."""
    fits = D <= 256 and (dtype.itemsize == 2 or device.type == 'cpu') # tensor cores round 32 bits to 19
    if asked is None:
        return 'blocks' if device.type == 'cpu' else 'triton' if device.type == 'cuda' and triton and fits else 'sdpa'
    if asked not in ('triton', 'one-pass', 'sdpa'):
        raise Refused(f"attention backend {asked!r}: expected 'triton', 'one-pass' or 'sdpa'")
    if asked == 'sdpa' and softcap:
        raise Refused("attention backend 'sdpa': it has no softcap, which this model needs; expected None")
    if asked != 'sdpa' and triton is None:
        raise Refused(f"attention backend {asked!r}: triton is not installed; take 'sdpa'")
    if asked != 'sdpa' and device.type != 'cuda' and not INTERPRETED:
        raise Refused(f"attention backend {asked!r}: expected a GPU (or TRITON_INTERPRET=1), got {device.type}; take 'sdpa'")
    if asked != 'sdpa' and not fits:
        raise Refused(f"attention backend {asked!r}: expected 16 bits and heads of at most 256 channels, got {dtype}, {D}")
    if asked == 'one-pass' and D > 128: # 256 would spill
        raise Refused(f"attention backend 'one-pass': expected heads of at most 128 channels, got {D}; take 'triton'")
    return 'sdpa' if asked == 'sdpa' else 'triton'

def documents(doc_start, backend=None, gap=None):
    """What `attention` wants to know of doc_start (B, T), made once a batch: for Triton doc_start and where documents end,
    both int32 (B, T), for SDPA (and on a GPU with gaps) a mask, on the CPU blocks of queries."""
    way = choose_backend(doc_start.device, backend)
    if way == 'triton' and gap is None:
        doc_start = doc_start.to(torch.int32).contiguous()
        # doc_start ascends, so the first token whose document begins later is where a document ends
        return doc_start, torch.searchsorted(doc_start, doc_start, right=True, out_int32=True)
    if way != 'blocks':
        return _mask(doc_start, gap)
    T, own = doc_start.size(1), doc_start if gap is None else torch.where(gap[..., 1] > 0, gap[..., 1], doc_start)
    first = (own == torch.arange(T)).nonzero().tolist() # (row, begin) of each document or branch, in order
    ends = [begin if row == previous else T for (previous, _), (row, begin) in zip(first, first[1:])] + [T]
    spans = [(row, begin, end) for (row, begin), end in zip(first, ends)]
    return _blocks(spans if gap is None else [
        (row, begin, end, torch.arange(doc_start[row, begin], gap[row, begin, 0])) if gap[row, begin, 1] else (row, begin, end)
        for row, begin, end in spans])

def _mask(doc_start, gap=None):
    """(B, T) -> (B, 1, T, T), True where a key is seen."""
    t = torch.arange(doc_start.size(1), device=doc_start.device)
    seen = (t <= t[:, None]) & (t >= doc_start[:, :, None])
    return (seen if gap is None else seen & ~((t >= gap[..., :1]) & (t < gap[..., 1:])))[:, None]

def _blocks(spans):
    """(row, begin, end) of documents -> .all of (row, keys, i, j): queries i..j-1 see keys, of which they are the last,
    causally; keys is a slice, or a tensor of places where the span goes on to say those of a shared beginning.
    In an object, as torch.compile would make a new graph for a list of another length."""
    def keys(begin, j, *shared):
        return torch.cat((*shared, torch.arange(begin, j))) if shared else slice(begin, j)
    return SimpleNamespace(all=[(row, keys(begin, min(i + QUERIES, end), *shared), i, min(i + QUERIES, end))
                                for row, begin, end, *shared in spans for i in range(begin, end, QUERIES)])

def _count(keys):
    return keys.stop - keys.start if isinstance(keys, slice) else len(keys)

def _last(keys, n):
    """The last n of keys, or all."""
    return slice(max(keys.start, keys.stop - n), keys.stop) if isinstance(keys, slice) else keys[-n:]

def _group(x, HK):
    """(n, H, D) -> (HK, G*n, D): the G query heads of a key head one below the other, so K and V are never expanded."""
    n, H, D = x.shape
    return x.view(n, HK, H // HK, D).permute(1, 2, 0, 3).reshape(HK, H // HK * n, D)

def _ungroup(x, H):
    """The inverse of _group: (HK, G*n, D) -> (n, HK, G, D), which views as (n, H, D)."""
    HK, rows, D = x.shape
    return x.view(HK, H // HK, rows * HK // H, D).permute(2, 0, 1, 3)

def _sum_group(p, x, n):
    """p (HK, G*n, m)' x (HK, G*n, D) -> (m, HK, D)"""
    HK, _, D = x.shape
    if p.dtype.itemsize < 4: # summed in float32 inside the product
        return torch.bmm(p.transpose(1, 2), x).transpose(0, 1)
    # head by head: in float32 one sum over G*n rows would round more than attention_ref does
    heads = torch.bmm(p.view(-1, n, p.size(-1)).transpose(1, 2), x.view(-1, n, D)) # (HK*G, m, D)
    return heads.view(HK, -1, p.size(-1), D).sum(1).transpose(0, 1)

class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, blocks, scale, softcap, window, slopes):
        B, T, H, D = q.shape
        HK, wide, blocks = k.size(2), torch.promote_types(q.dtype, torch.float32), blocks.all
        if window: # the keys before the first query's window are left out
            blocks = [(row, _last(keys, j - i + window - 1), i, j) for row, keys, i, j in blocks]
        q, o, kept = q * scale, q.new_empty(q.shape), []
        longest = max((_count(keys) for _, keys, *_ in blocks), default=0)
        hidden = torch.full((longest, longest), -torch.inf).triu_(1) # the future
        if window:
            hidden += torch.full((longest, longest), -torch.inf).tril_(-window)
        for row, keys, i, j in blocks:
            n, m = j - i, _count(keys) # queries, keys
            s = torch.bmm(_group(q[row, i:j], HK), k[row, keys].permute(1, 2, 0)) # (HK, G*n, m)
            s, slope = s.view(HK, H // HK, n, m), None
            if softcap:
                tanh = s.to(wide).div(softcap).tanh_()
                s, slope = tanh * softcap, tanh.square_().neg_().add_(1).to(q.dtype).view(HK, -1, m)
            if slopes is not None:
                back = torch.arange(m - n, m)[:, None] - torch.arange(m) # (n, m)
                s = s - slopes.view(HK, -1, 1, 1) * back
            p = (s + hidden[m - n:m, :m]).softmax(-1).to(q.dtype).view(HK, -1, m) # float32 at least until here
            o[row, i:j].view(n, HK, -1, D).copy_(_ungroup(torch.bmm(p, v[row, keys].transpose(0, 1)), H))
            if any(ctx.needs_input_grad):
                kept += [p, slope] if softcap else [p]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.blocks, ctx.scale, ctx.each = blocks, scale, 2 if softcap else 1
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, *kept = ctx.saved_tensors # q is already scaled
        H, D = q.shape[2:]
        HK = k.size(2)
        dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        do = do.contiguous()
        for n, (row, keys, i, j) in enumerate(ctx.blocks):
            p, *slope = kept[n * ctx.each:(n + 1) * ctx.each]
            dog = _group(do[row, i:j], HK)
            dp = torch.bmm(dog, v[row, keys].permute(1, 2, 0)) # (HK, G*n, m)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype) # p * (dp - sum p * dp) in one pass
            if slope:
                ds *= slope[0]
            dv[row, keys] += _sum_group(p, dog, j - i)
            dk[row, keys] += _sum_group(ds, _group(q[row, i:j], HK), j - i)
            dq[row, i:j].view(j - i, HK, -1, D).copy_(_ungroup(torch.bmm(ds, k[row, keys].transpose(0, 1)), H))
        return dq.mul_(ctx.scale), dk, dv, None, None, None, None, None

_by_blocks = torch.compiler.disable(_Blocks.apply) # compiled, every new length of a document would be a new graph

if triton is not None:
    LOG2E = tl.constexpr(1.4426950408889634) # exp(x) = exp2(x LOG2E), and exp2 is what a GPU has

    @triton.jit
    def _tile(x, b, begin, head, stride, T, ROWS: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr):
        """Tokens begin.. of row b, one head: (ROWS, D). Past the end of the row it has others, which no mask lets through."""
        if TMA:
            tile = x.load([b * T + begin, head * D])
        else:
            t = tl.minimum(begin + tl.arange(0, ROWS), T - 1)
            x += (b * T).to(tl.int64) * stride + head * D
            tile = tl.load(x + t[:, None] * stride + tl.arange(0, D)[None, :])
        return tile

    @triton.jit
    def _store(x, b, begin, head, heads, T, tile, ROWS: tl.constexpr, D: tl.constexpr):
        t = begin + tl.arange(0, ROWS)
        x += (b * T).to(tl.int64) * heads * D + head * D # x (B, T, heads, D)
        tl.store(x + t[:, None] * heads * D + tl.arange(0, D)[None, :], tile.to(x.dtype.element_ty), mask=t[:, None] < T)

    @triton.jit
    def _tanh(x):
        e = tl.exp2(tl.abs(x) * (-2 * LOG2E))
        far, y = (1 - e) / (1 + e), x * x
        near = x * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835))))) # where 1 - e would cancel
        return tl.where(y < 0.09, near, tl.where(x < 0, -far, far))

    @triton.jit
    def _scores(qk, back, seen, slope, scale, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, MASKED: tl.constexpr):
        """q.k and back = t - j of a tile -> s LOG2E, and ds / d(q.k scale)."""
        rate = 1.0
        if SOFTCAP > 0:
            tanh = _tanh(qk * (scale / SOFTCAP))
            s, rate = tanh * (SOFTCAP * LOG2E), 1 - tanh * tanh
        else:
            s = qk * (scale * LOG2E)
        if ALIBI:
            s -= slope * LOG2E * back.to(tl.float32)
        if MASKED:
            s = tl.where(seen, s, -float('inf'))
        return s, rate

    @triton.jit
    def _keys_seen(doc_start, b, begin, window, T, BM: tl.constexpr, BN: tl.constexpr):
        """Of queries begin.., the first key each one sees (BM,), and where the loop over their keys begins, is free of
        masks from, needs them again from, and ends."""
        t = begin + tl.arange(0, BM)
        first = tl.maximum(tl.load(doc_start + b * T + tl.minimum(t, T - 1)), t - window + 1)
        low, high = tl.min(first), tl.minimum(begin + BM, T)
        inner = tl.minimum(low + tl.cdiv(tl.max(first) - low, BN) * BN, high)
        diagonal = inner + tl.maximum(begin + 1 - inner, 0) // BN * BN
        return t, first, (low, inner, diagonal, high)

    @triton.jit
    def _forward(q, k, v, doc_start, slopes, o, lse, q_stride, k_stride, v_stride, scale, window, T, H, HK,
                 SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                 TMA: tl.constexpr):
        b, h = tl.program_id(0) // H, tl.program_id(0) % H
        begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM # the last queries of a row see most: they go first
        t, first, edges = _keys_seen(doc_start, b, begin, window, T, BM, BN)
        slope = tl.load(slopes + h) if ALIBI else 0.0
        q_tile = _tile(q, b, begin, h, q_stride, T, BM, D, TMA)
        m = tl.full((BM,), -1e30, tl.float32) # finite: exp2(-inf - m) is 0 where a query sees none of a block's keys
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, D), tl.float32)
        for part in tl.static_range(3): # left edge, interior, diagonal
            for start in range(edges[part], edges[part + 1], BN):
                j = start + tl.arange(0, BN)
                back = t[:, None] - j[None, :]
                seen = (back >= 0) & (j[None, :] >= first[:, None])
                k_tile = _tile(k, b, start, h * HK // H, k_stride, T, BN, D, TMA)
                s, _ = _scores(tl.dot(q_tile, k_tile.T), back, seen, slope, scale, SOFTCAP, ALIBI, part != 1) # (BM, BN)
                new = tl.maximum(m, tl.max(s, 1))
                p, shrink = tl.exp2(s - new[:, None]), tl.exp2(m - new)
                v_tile = _tile(v, b, start, h * HK // H, v_stride, T, BN, D, TMA)
                acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * shrink[:, None])
                total = total * shrink + tl.sum(p, 1)
                m = new
        _store(o, b, begin, h, H, T, acc / total[:, None], BM, D)
        tl.store(lse + tl.program_id(0) * T + t, m + tl.log2(total), mask=t < T)

    @triton.jit
    def _backward_q(q, k, v, do, o, lse, delta, doc_start, slopes, dq, q_stride, k_stride, v_stride, do_stride, scale, window,
                    T, H, HK, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
                    BN: tl.constexpr, TMA: tl.constexpr):
        b, h = tl.program_id(0) // H, tl.program_id(0) % H
        begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM
        t, first, edges = _keys_seen(doc_start, b, begin, window, T, BM, BN)
        slope = tl.load(slopes + h) if ALIBI else 0.0
        do_tile = _tile(do, b, begin, h, do_stride, T, BM, D, TMA)
        o_tile = _tile(o, b, begin, h, H * D, T, BM, D, False)
        d = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1) # (BM,), sum_j p dp
        tl.store(delta + tl.program_id(0) * T + t, d, mask=t < T)
        q_tile = _tile(q, b, begin, h, q_stride, T, BM, D, TMA)
        norm = tl.load(lse + tl.program_id(0) * T + tl.minimum(t, T - 1))
        acc = tl.zeros((BM, D), tl.float32)
        for part in tl.static_range(3): # left edge, interior, diagonal
            for start in range(edges[part], edges[part + 1], BN):
                j = start + tl.arange(0, BN)
                back = t[:, None] - j[None, :]
                seen = (back >= 0) & (j[None, :] >= first[:, None])
                k_tile = _tile(k, b, start, h * HK // H, k_stride, T, BN, D, TMA)
                v_tile = _tile(v, b, start, h * HK // H, v_stride, T, BN, D, TMA)
                s, rate = _scores(tl.dot(q_tile, k_tile.T), back, seen, slope, scale, SOFTCAP, ALIBI, part != 1) # (BM, BN)
                ds = tl.exp2(s - norm[:, None]) * (tl.dot(do_tile, v_tile.T) - d[:, None]) * rate
                acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc)
        _store(dq, b, begin, h, H, T, acc * scale, BM, D)

    @triton.jit
    def _backward_kv(q, k, v, do, lse, delta, doc_end, slopes, dk, dv, dq, q_stride, k_stride, v_stride, do_stride, scale, window,
                     T, H, HK, ONE_PASS: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, D: tl.constexpr,
                     BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr):
        b, hk = tl.program_id(0) // HK, tl.program_id(0) % HK
        begin = tl.program_id(1) * BN # the first keys of a row are seen most: they go first
        j = begin + tl.arange(0, BN)
        end = tl.minimum(tl.load(doc_end + b * T + tl.minimum(j, T - 1)), j + window) # (BN,), queries that see j end here
        high = tl.minimum(tl.max(end), T)
        inner = tl.minimum(begin + tl.cdiv(BN, BM) * BM, high)
        edges = (begin, inner, inner + tl.maximum(tl.min(end) - inner, 0) // BM * BM, high)
        k_tile = _tile(k, b, begin, hk, k_stride, T, BN, D, TMA)
        v_tile = _tile(v, b, begin, hk, v_stride, T, BN, D, TMA)
        acc_k, acc_v = tl.zeros((BN, D), tl.float32), tl.zeros((BN, D), tl.float32)
        for h in range(hk * (H // HK), (hk + 1) * (H // HK)): # the query heads of the group
            slope = tl.load(slopes + h) if ALIBI else 0.0
            for part in tl.static_range(3): # diagonal, interior, right edge
                for start in range(edges[part], edges[part + 1], BM):
                    t = start + tl.arange(0, BM)
                    back = t[None, :] - j[:, None]
                    seen = (back >= 0) & (t[None, :] < end[:, None])
                    row = (b * H + h) * T + tl.minimum(t, T - 1)
                    q_tile = _tile(q, b, start, h, q_stride, T, BM, D, TMA)
                    s, rate = _scores(tl.dot(k_tile, q_tile.T), back, seen, slope, scale, SOFTCAP, ALIBI, part != 1) # (BN, BM)
                    p = tl.exp2(s - tl.load(lse + row)[None, :])
                    do_tile = _tile(do, b, start, h, do_stride, T, BM, D, TMA)
                    acc_v = tl.dot(p.to(do_tile.dtype), do_tile, acc_v)
                    ds = p * (tl.dot(v_tile, do_tile.T) - tl.load(delta + row)[None, :]) * rate
                    acc_k = tl.dot(ds.to(q_tile.dtype), q_tile, acc_k)
                    if ONE_PASS: # by pointers everywhere: the interpreter has no sum by TMA
                        part_q = tl.dot(ds.to(k_tile.dtype).T, k_tile) * scale # (BM, D)
                        to = dq + (b * T).to(tl.int64) * H * D + h * D
                        tl.atomic_add(to + (t[:, None] * (H * D) + tl.arange(0, D)[None, :]), part_q,
                                      mask=t[:, None] < T, sem='relaxed')
        _store(dk, b, begin, hk, HK, T, acc_k * scale, BN, D)
        _store(dv, b, begin, hk, HK, T, acc_v, BN, D)

def _sm(device):
    """The architecture of CONFIGS that suits a device: Blackwell for servers has Hopper's TMA and shared memory."""
    return 90 if device.type == 'cpu' or torch.cuda.get_device_capability(device)[0] in (9, 10) else 80

def _options(warps, stages):
    return {'num_warps': warps, 'num_stages': stages, 'enable_fp_fusion': True} # the default will be False in Triton 3.10

def _flat(x):
    """(B, T, heads, D) -> (B T, heads D), a view where x is a part of one q | k | v."""
    x = x.flatten(2).flatten(0, 1)
    return x if x.stride(1) == 1 else x.contiguous()

def _launch(step, tensors, shape, scale, softcap, window):
    """Runs a pass with its tensors by name. Those read in tiles go in as TMA's descriptors on Hopper, else as pointers."""
    B, T, H, HK, D = shape
    sm, strides = _sm(tensors['q'].device), {}
    BM, BN, warps, stages = CONFIGS[sm, max(D, 64), step]
    for name, rows in {'q': BM, 'k': BN, 'v': BN, 'do': BM}.items():
        if name in tensors:
            x = _flat(tensors[name])
            strides[f'{name}_stride'] = x.stride(0)
            tensors[name] = TensorDescriptor(x, [*x.shape], [*x.stride()], [rows, D]) if sm >= 90 else x
    kernel, heads, rows = {'forward': (_forward, H, BM), 'dq': (_backward_q, H, BM), 'dkv': (_backward_kv, HK, BN),
                           'one-pass': (_backward_kv, HK, BN)}[step]
    if kernel is _backward_kv:
        tensors['ONE_PASS'] = step == 'one-pass'
    kernel[(B * heads, triton.cdiv(T, rows))](**tensors, **strides, scale=scale, window=window or T, T=T, H=H, HK=HK,
        SOFTCAP=softcap, ALIBI=tensors['slopes'] is not None, D=D, BM=BM, BN=BN, TMA=sm >= 90, **_options(warps, stages))

def _attention_forward(q, k, v, doc_start, slopes, scale, softcap, window):
    B, T, H, D = q.shape
    o, lse = _forward_like(q)
    _launch('forward', dict(q=q, k=k, v=v, doc_start=doc_start, slopes=slopes, o=o, lse=lse), (B, T, H, k.size(2), D),
            scale, softcap, window)
    return o, lse

def _attention_backward(do, q, k, v, o, lse, doc_start, doc_end, slopes, scale, softcap, window, one_pass):
    B, T, H, D = q.shape
    dq, dk, dv = _backward_like(do, q, k, v)
    read = dict(q=q, k=k, v=v, do=do, lse=lse, slopes=slopes, delta=torch.empty_like(lse)) # delta: sum_j p dp
    to_kv = dict(doc_end=doc_end, dk=dk, dv=dv, dq=None)
    passes = [('dq', dict(doc_start=doc_start, o=o, dq=dq)), ('dkv', to_kv)] # the first makes delta
    if one_pass:
        torch.sum(o.float() * do, -1, out=read['delta'].transpose(1, 2))
        dq = torch.zeros_like(dq, dtype=torch.float32)
        passes = [('one-pass', to_kv | dict(dq=dq))]
    for step, more in passes:
        _launch(step, read | more, (B, T, H, k.size(2), D), scale, softcap, window)
    return dq.to(q.dtype), dk, dv

def _forward_like(q, *rest):
    """o like q and lse (B, H, T), empty."""
    B, T, H, D = q.shape
    return q.new_empty(B, T, H, D), q.new_empty(B, H, T, dtype=torch.float32)

def _backward_like(do, q, k, v, *rest):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))

# opaque to torch.compile, which has nothing to fuse into them
_ops = torch.library.Library('nanoslm', 'FRAGMENT')
for _name, _schema, _run, _like in (
        ('attention_forward', "(Tensor q, Tensor k, Tensor v, Tensor doc_start, Tensor? slopes, float scale, "
         "float softcap, int window) -> (Tensor, Tensor)", _attention_forward, _forward_like),
        ('attention_backward', "(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor doc_start, "
         "Tensor doc_end, Tensor? slopes, float scale, float softcap, int window, bool one_pass) -> (Tensor, Tensor, Tensor)",
         _attention_backward, _backward_like)):
    _ops.define(_name + _schema)
    for _key in ('CUDA', 'CPU'):
        _ops.impl(_name, _run, _key)
    torch.library.register_fake(f'nanoslm::{_name}', _like, lib=_ops)

class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, doc_start, doc_end, slopes, one_pass, *how):
        o, lse = torch.ops.nanoslm.attention_forward(q, k, v, doc_start, slopes, *how)
        ctx.save_for_backward(q, k, v, o, lse, doc_start, doc_end, slopes)
        ctx.how = *how, one_pass # scale, softcap, window, one_pass
        return o

    @staticmethod
    def backward(ctx, do):
        dq, dk, dv = torch.ops.nanoslm.attention_backward(do, *ctx.saved_tensors, *ctx.how)
        return dq, dk, dv, None, None, None, None, None, None, None

def _by_triton(q, k, v, docs, one_pass, scale, softcap, window, slopes):
    D = q.size(-1)
    padded = max(16, 1 << (D - 1).bit_length()) # a tile's sides are powers of 2, 16 at least
    if padded > D: # zeros change no product
        q, k, v = (F.pad(x, (0, padded - D)) for x in (q, k, v))
    return _Triton.apply(q, k, v, *docs, slopes, one_pass, scale, softcap, window)[..., :D]

def aot(sm):
    """What can be launched on an sm, in bf16: yields name, kernel, {argument: type}, {argument: constant}, options.
    A type that ends in :16 is of numbers that 16 divides. A window is no kernel of its own, only a number."""
    ints = dict.fromkeys(('window', 'H', 'HK'), 'i32') | {'T': 'i32:16', 'scale': 'fp32'}
    pointers = (dict.fromkeys(('o', 'dq', 'dk', 'dv'), '*bf16') | dict.fromkeys(('slopes', 'lse', 'delta'), '*fp32')
                | dict.fromkeys(('doc_start', 'doc_end'), '*i32'))
    for (of, D, step), (BM, BN, warps, stages) in CONFIGS.items():
        tiles = {x: f'tensordesc<bf16[{rows},{D}]>' if sm >= 90 else '*bf16'
                 for x, rows in {'q': BM, 'k': BN, 'v': BN, 'do': BM}.items()}
        pointers['dq'] = '*fp32' if step == 'one-pass' else '*bf16'
        types = ints | pointers | tiles | {f'{x}_stride': 'i32:16' for x in tiles}
        for variant, softcap in {'plain': 0.0, 'softcap': 50.0, 'ALiBi': 0.0}.items() if of == sm else ():
            constants = dict(SOFTCAP=softcap, ALIBI=variant == 'ALiBi', D=D, BM=BM, BN=BN, TMA=sm >= 90)
            constants |= {} if variant == 'ALiBi' else {'slopes': None}
            kernel = {'forward': _forward, 'dq': _backward_q}.get(step, _backward_kv)
            if kernel is _backward_kv:
                constants |= {'ONE_PASS': True} if step == 'one-pass' else {'ONE_PASS': False, 'dq': None}
            signature = {name: types[name] for name in kernel.arg_names if name not in constants}
            yield f'attention {step} {D} {variant}', kernel, signature, constants, _options(warps, stages)

def attention(q, k, v, docs=None, scale=None, softcap=0.0, window=0, slopes=None, backend=None):
    """attention_ref by the fastest way of the device, or the one asked for: 'triton', 'one-pass' or 'sdpa'.
    docs: documents(doc_start, backend); None where a row is one document."""
    B, T, H, D = q.shape
    way = choose_backend(q.device, backend, q.dtype, D, softcap)
    if way == 'blocks':
        docs = docs or _blocks([(row, 0, T) for row in range(B)])
        return _by_blocks(q, k, v, docs, scale or D ** -0.5, softcap, window, slopes)
    if way == 'triton' and not isinstance(docs, torch.Tensor): # a mask, where rows have gaps
        docs = docs or documents(torch.zeros(B, T, dtype=torch.int32, device=q.device), 'triton')
        return _by_triton(q, k, v, docs, backend == 'one-pass', scale or D ** -0.5, softcap, window, slopes)
    if isinstance(docs, tuple): # made for Triton, whose kernels do not take these heads
        docs = _mask(docs[0])
    if docs is None and not (softcap or window or slopes is not None):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v)) # (B, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)
    return _masked(q, k, v, docs, scale, softcap, window, slopes)

def _masked(q, k, v, mask, scale, softcap, window, slopes):
    """With a mask (B, 1, T, T), True where a key is seen; DENSE queries at a time, as torch may keep all their scores."""
    out, t = [], torch.arange(q.size(1), device=q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v)) # (B, H, T, D)
    for at in range(0, len(t), DENSE):
        back = t[at:at + DENSE, None] - t # (queries, T)
        seen = back >= 0 if mask is None else mask[:, :, at:at + DENSE]
        if window:
            seen = seen & (back < window)
        if slopes is not None:
            seen = (-slopes[:, None, None] * back).masked_fill(~seen, -torch.inf).to(q.dtype) # (B or 1, H, queries, T)
        out.append(_dense(q[:, :, at:at + DENSE], k, v, seen, scale, softcap, enable_gqa=True))
    return torch.cat(out, 2).transpose(1, 2)

def _dense(q, k, v, mask, scale, softcap, enable_gqa=False):
    """SDPA, also with a softcap. mask: True where a key is seen, or what is added to the scores."""
    if not softcap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    s = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * (scale or q.size(-1) ** -0.5)
    s = softcap * torch.tanh(s / softcap)
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask
    return s.softmax(-1).to(q.dtype) @ v

def attention_decode(q, k, v, begin=None, scale=None, softcap=0.0, window=0, slopes=None):
    """One token more: q (B, 1, H, D) over the keys and values so far, its own last: k, v (B, HK, N, D) -> (B, 1, H, D).
    begin (B, 1): where each row's document begins among the N; None: at 0."""
    B, _, H, D = q.shape
    HK, N = k.shape[1:3]
    first, mask = max(0, N - window) if window else 0, None
    if first:
        k, v = k[:, :, first:], v[:, :, first:]
    if begin is not None:
        mask = (torch.arange(first, N, device=q.device) >= begin)[:, None, None] # (B, 1, 1, keys)
    if slopes is not None:
        bias = slopes.view(HK, -1, 1) * torch.arange(first - N + 1, 1, device=q.device) # (HK, G, keys)
        mask = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, -torch.inf)
    # (B, HK, G, D): the heads of a group as if they were times
    return _dense(q.view(B, HK, H // HK, D), k, v, mask, scale, softcap).reshape(B, 1, H, D)


def _main():
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    B, T, H, HK, D = (8, 2048, 14, 2, 64) if device == 'cuda' else (8, 512, 4, 2, 64)
    generator = torch.Generator().manual_seed(0)
    begins = torch.rand(B, T, generator=generator) < 1 / 150 # documents of 150 tokens on average
    doc_start = torch.where(begins, torch.arange(T), 0).cummax(1).values.to(device)
    docs = documents(doc_start)
    mask = documents(doc_start, 'sdpa')
    ways = {'attention_ref': lambda *x: attention_ref(*x, doc_start), 'attention': lambda *x: attention(*x, docs),
            'SDPA, mask': lambda *x: attention(*x, mask, backend='sdpa')}
    print(f"{device}, B {B}, T {T}, H {H}/{HK}, D {D}, documents of 150 tokens, {torch.get_num_threads()} threads\n")
    print("| implementation | dtype | forward + backward, ms |\n|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(B, T, h, D, generator=generator).to(device, dtype).requires_grad_() for h in (H, HK, HK)]
        exact = attention_ref(*(x.double() for x in inputs), doc_start)
        torchs, off = ((ways[name](*inputs) - exact).abs().max().item() for name in ('attention_ref', 'attention'))
        assert off <= 2 * torchs + torch.finfo(dtype).eps, f"attention is off by {off:.2e}, torch by {torchs:.2e}"
        for name, way in ways.items():
            times = []
            for _ in range(6):
                begin = time.perf_counter()
                way(*inputs).sum().backward()
                if device == 'cuda':
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
            print(f"| {name} | {str(dtype)[6:]} | {min(times) * 1e3:.1f} |")

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == '__main__':
    _main()
