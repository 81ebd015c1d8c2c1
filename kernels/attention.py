"""
Causal attention over rows of packed documents: a token sees its own document, up to itself.

    python -m kernels.attention       checks attention against attention_ref, then times both, and SDPA

For query t and key j of a row, with scale = 1 / sqrt(D) unless it is given:

    s[t, j] = q[t].k[j] scale       for doc_start[t] <= j <= t, else -inf
    p       = softmax(s)                         o[t] = sum_j p[t, j] v[j]
    dp[t,j] = do[t].v[j]                         dv[j] = sum_t p[t, j] do[t]
    ds      = p * (dp - sum_j p * dp)            dq[t] = sum_j ds[t, j] k[j] scale,  dk[j] likewise

Some model families need one of these options; all are off by default:

    softcap c    s -> c tanh(s / c), so ds gains a factor 1 - tanh(s / c)^2    Gemma2
    window w     only the keys j > t - w, the token itself included            Gemma2, every 2nd layer
    slopes (H,)  s[t, j] - slope (t - j), ALiBi (2108.12409)                   Bloom

q is (B, T, H, D); k and v are (B, T, HK, D), and query head h reads key head h // (H / HK) (GQA).
doc_start (B, T) holds the index in its row at which token t's document begins. `documents` turns it
into what a backend needs, once a batch, for all layers.

For scoring, documents that begin alike may share that beginning. In a row P A B, the branches A and
B both continue P. The tokens of B do not see A, and their distances to P do not count it. For each
of them hidden_span (B, T, 2) holds the index of A's first token and the index after A's last. The
CPU's blocks support hidden spans; so does SDPA's mask, but only without window and slopes, because
it counts distances along the row.

There are three backends.

Triton, on a GPU in 16 bits. One program owns a block of queries (for o and dq) or of keys (for dk
and dv) and walks over the blocks of the other kind, between the diagonal and where the first
document begins or the last one ends. Only the blocks at both edges of this walk need a mask. One
program sums dk and dv over the query heads of a group, so no atomics are needed and the gradient is
the same every time. exp(x) is computed as exp2(x log2(e)), with log2(e) folded into the scale; the
forward keeps lse = log2(sum_j exp2(s log2(e))), from which the backward recomputes p
(FlashAttention-2, 2307.08691).

On Hopper a product runs beside the instructions that follow it, so the order of the lines decides
what the tensor cores do meanwhile. The forward starts q.k of the next block of keys before this
block's softmax (AHEAD); dk and dv start dp before they need p. tests/test_aot.py counts, in the
machine code, the exp2's that no product covers.

'hopper' is 'triton' with the forward of kernels/attention_hopper.py, which no GPU has run yet.

SDPA with a mask, for other devices and for what the Triton kernels do not support; and blocks of
queries on the CPU. Both are in kernels/attention_torch.py, and so is attention_decode, which
callers import from here like attention.
"""
import os
from functools import partial

import torch
import torch.nn.functional as F

from configurator import Refused
from kernels import attention_hopper
from kernels.attention_torch import Options, _blocks, _by_blocks, _by_mask, _mask, _spans
from kernels.attention_torch import attention_decode as attention_decode
from kernels.attention_torch import decode_bias as decode_bias
from kernels.gpu import architecture

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError: # e.g. macOS
    triton = None

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1' # Triton's kernels run on the CPU, slowly

# (sm, head size, pass): queries and keys of a tile, warps, stages; chosen by bench/aot.py's counts.
CONFIGS = {
    (80, 64, 'forward'): (128, 64, 8, 3),
    (80, 64, 'dq'): (64, 64, 4, 2),
    (80, 64, 'dkv'): (32, 128, 8, 2),
    (80, 128, 'forward'): (128, 64, 8, 2),
    (80, 128, 'dq'): (64, 64, 8, 2),
    (80, 128, 'dkv'): (32, 64, 8, 2),
    (80, 256, 'forward'): (64, 32, 8, 2),
    (80, 256, 'dq'): (64, 32, 8, 1),
    (80, 256, 'dkv'): (32, 32, 8, 1),
    (90, 64, 'forward'): (128, 64, 4, 2),
    (90, 64, 'dq'): (128, 64, 8, 2),
    (90, 64, 'dkv'): (64, 128, 8, 2),
    (90, 128, 'forward'): (128, 64, 8, 2),
    (90, 128, 'dq'): (128, 64, 8, 2),
    (90, 128, 'dkv'): (32, 128, 8, 2),
    (90, 256, 'forward'): (128, 64, 8, 2),
    (90, 256, 'dq'): (64, 32, 8, 2),
    (90, 256, 'dkv'): (16, 64, 8, 2),
}
# The forwards that compute q.k a block ahead, by sm and head size. 64 channels need no such thing:
# two programs share an SM, and one's products cover the other's softmax. 256 lack the registers.
AHEAD = {(90, 128)}

def attention_ref(q, k, v, doc_start=None, scale=None, softcap=0.0, window=0, slopes=None):
    """The definition, in torch and any dtype: q (B, T, H, D), k and v (B, T, HK, D) -> (B, T, H, D).
    doc_start is (B, T); None: a row is one document."""
    B, T, H, D = q.shape
    k = k.repeat_interleave(H // k.size(2), dim=2) # (B, T, H, D)
    v = v.repeat_interleave(H // v.size(2), dim=2)
    t = torch.arange(T, device=q.device)
    distance = t[:, None] - t # (T, T)
    seen = (distance >= 0) & (distance < (window or T)) # (T, T)
    if doc_start is not None:
        seen = seen & (t >= doc_start[:, None, :, None]) # (B, 1, T, T)
    s = torch.einsum('bthd,bjhd->bhtj', q, k)
    s = s.to(torch.promote_types(q.dtype, torch.float32)) * (scale or D ** -0.5)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if slopes is not None:
        s = s - slopes[:, None, None] * distance
    p = s.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
    return torch.einsum('bhtj,bjhd->bthd', p, v)

def choose_backend(device, requested=None, dtype=torch.bfloat16, D=64, softcap=0.0):
    """-> 'blocks', 'triton' or 'sdpa': the requested backend; for None the fastest of the device.

    Raises Refused where device, dtype, head size D or softcap rule the requested backend out.
    """
    # In 32 bits a GPU's tensor cores would round the inputs to 19 bits.
    supported = D <= 256 and (dtype.itemsize == 2 or device.type == 'cpu')
    if requested is None:
        if device.type == 'cpu':
            return 'blocks'
        return 'triton' if supported and architecture(device) else 'sdpa'
    error = f"attention backend {requested!r}:"
    if requested == 'sdpa':
        if softcap:
            raise Refused(f"{error} it has no softcap, which this model needs; expected None")
        return 'sdpa'
    if requested not in ('triton', 'hopper'):
        raise Refused(f"{error} expected 'triton', 'hopper' or 'sdpa'")
    if triton is None:
        raise Refused(f"{error} triton is not installed; take 'sdpa'")
    if device.type != 'cuda' and not INTERPRETED:
        raise Refused(f"{error} expected a GPU (or TRITON_INTERPRET=1), got {device.type}; take 'sdpa'")
    if architecture(device) is None:
        raise Refused(f"{error} expected an NVIDIA GPU of compute capability 8.x, 9.0 or 12.x, "
                      f"got {torch.cuda.get_device_name(device)}; take 'sdpa'")
    if not supported:
        raise Refused(f"{error} expected 16 bits and heads of at most 256 channels, "
                      f"got {dtype}, {D}; take 'sdpa'")
    if requested == 'hopper':
        attention_hopper.check(device, D, softcap)
    return 'triton'

# --------------------------------------------------------------------------------------------------
# the documents of a batch

def documents(doc_start, backend=None, hidden_span=None):
    """What `attention` needs to know of doc_start (B, T) and hidden_span (B, T, 2), computed once a batch.

    For Triton: where each token's document begins and where it ends, both int32 (B, T). For SDPA,
    and on a GPU with hidden spans: a mask (B, 1, T, T). On the CPU: the blocks of queries.
    """
    chosen = choose_backend(doc_start.device, backend)
    if chosen == 'triton' and hidden_span is None:
        doc_start = doc_start.to(torch.int32).contiguous()
        # doc_start ascends along a row: a document ends where the next larger value begins.
        doc_end = torch.searchsorted(doc_start, doc_start, right=True, out_int32=True)
        return doc_start, doc_end
    if chosen != 'blocks':
        return _mask(doc_start, hidden_span)
    return _blocks(_spans(doc_start, hidden_span))

# --------------------------------------------------------------------------------------------------
# Triton: the kernels

if triton is not None:
    LOG2E = tl.constexpr(1.4426950408889634) # exp(x) = exp2(x LOG2E), and exp2 is what a GPU has

    @triton.jit
    def _tile(x, b, begin, head, stride, T, ROWS: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr):
        """-> (ROWS, D): the tokens from begin on of row b, one head. Past the end of the row there
        are other tokens, which every mask hides."""
        if TMA:
            tile = x.load([b * T + begin, head * D])
        else:
            t = tl.minimum(begin + tl.arange(0, ROWS), T - 1)
            x += (b * T).to(tl.int64) * stride + head * D
            tile = tl.load(x + t[:, None] * stride + tl.arange(0, D)[None, :])
        return tile

    @triton.jit
    def _store(x, b, begin, head, heads, T, tile, ROWS: tl.constexpr, D: tl.constexpr):
        """The reverse of _tile: writes a tile (ROWS, D) into x (B, T, heads, D)."""
        t = begin + tl.arange(0, ROWS)
        x += (b * T).to(tl.int64) * heads * D + head * D
        tl.store(x + t[:, None] * heads * D + tl.arange(0, D)[None, :],
                 tile.to(x.dtype.element_ty), mask=t[:, None] < T)

    @triton.jit
    def _tanh(x):
        e = tl.exp2(tl.abs(x) * (-2 * LOG2E))
        large = (1 - e) / (1 + e)
        y = x * x
        # The Taylor series, for where 1 - e would cancel.
        small = x * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
        return tl.where(y < 0.09, small, tl.where(x < 0, -large, large))

    @triton.jit
    def _scores(qk, distance, seen, slope, scale, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
                MASKED: tl.constexpr):
        """q.k, distance t - j and seen of a tile -> s and unit, whose product is the score times LOG2E,
        and the derivative of the score by q.k scale.

        A plain score is scaled by unit alone, in the fused multiply-add of the exponent."""
        unit = 1.0
        tanh_grad = 1.0
        if SOFTCAP > 0:
            tanh = _tanh(qk * (scale / SOFTCAP))
            s = tanh * (SOFTCAP * LOG2E)
            tanh_grad = 1 - tanh * tanh
        elif ALIBI:
            s = qk * (scale * LOG2E)
        else:
            s = qk
            unit = scale * LOG2E
        if ALIBI:
            s -= slope * LOG2E * distance.to(tl.float32)
        if MASKED:
            s = tl.where(seen, s, -float('inf'))
        return s, unit, tanh_grad

    @triton.jit
    def _key_range(doc_start, b, begin, window, T, BM: tl.constexpr, BN: tl.constexpr):
        """-> the BM queries t from begin on, the first key that each sees, and the edges of the
        loop over keys: where it begins, needs no mask, needs a mask again, and ends."""
        t = begin + tl.arange(0, BM)
        first = tl.maximum(tl.load(doc_start + b * T + tl.minimum(t, T - 1)), t - window + 1)
        low = tl.min(first)
        high = tl.minimum(begin + BM, T)
        interior = tl.minimum(low + tl.cdiv(tl.max(first) - low, BN) * BN, high)
        diagonal = interior + tl.maximum(begin + 1 - interior, 0) // BN * BN
        return t, first, (low, interior, diagonal, high)

    @triton.jit
    def _seen_keys(t, first, start, BN: tl.constexpr):
        """-> t - j and whether t sees j, both (BM, BN), for the BN keys j from start on."""
        j = start + tl.arange(0, BN)
        distance = t[:, None] - j[None, :]
        # 0 <= t - j <= t - first in one comparison: without a sign, a negative distance is the largest.
        return distance, distance.to(tl.uint32) <= (t - first).to(tl.uint32)[:, None]

    @triton.jit
    def _forward(q, k, v, doc_start, slopes, o, lse, q_stride, k_stride, v_stride, scale, window,
                 T, H, HK, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, D: tl.constexpr,
                 BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr, AHEAD: tl.constexpr):
        b = tl.program_id(0) // H
        h = tl.program_id(0) % H
        hk = h * HK // H
        # The last queries of a row see most keys: they go first.
        begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM
        t, first, edges = _key_range(doc_start, b, begin, window, T, BM, BN)
        slope = tl.load(slopes + h) if ALIBI else 0.0
        q_tile = _tile(q, b, begin, h, q_stride, T, BM, D, TMA)
        # The maximum begins finite: where a query sees no key of a block, exp2(-inf - m) is 0.
        m = tl.full((BM,), -1e30, tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, D), tl.float32)
        if AHEAD:
            qk = tl.dot(q_tile, _tile(k, b, edges[0], hk, k_stride, T, BN, D, TMA).T) # (BM, BN)
        for part in tl.static_range(3): # left edge, interior, diagonal
            for start in range(edges[part], edges[part + 1], BN):
                distance, seen = _seen_keys(t, first, start, BN)
                if AHEAD:
                    next_qk = tl.dot(q_tile, _tile(k, b, start + BN, hk, k_stride, T, BN, D, TMA).T)
                else:
                    qk = tl.dot(q_tile, _tile(k, b, start, hk, k_stride, T, BN, D, TMA).T)
                s, unit, _ = _scores(qk, distance, seen, slope, scale, SOFTCAP, ALIBI, part != 1)
                new_m = tl.maximum(m, tl.max(s, 1) * unit)
                p = tl.exp2(s * unit - new_m[:, None])
                shrink = tl.exp2(m - new_m)
                v_tile = _tile(v, b, start, hk, v_stride, T, BN, D, TMA)
                acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * shrink[:, None])
                total = total * shrink + tl.sum(p, 1)
                m = new_m
                if AHEAD:
                    qk = next_qk
        _store(o, b, begin, h, H, T, acc / total[:, None], BM, D)
        tl.store(lse + tl.program_id(0) * T + t, m + tl.log2(total), mask=t < T)

    @triton.jit
    def _backward_q(q, k, v, do, o, lse, delta, doc_start, slopes, dq, q_stride, k_stride, v_stride,
                    do_stride, scale, window, T, H, HK, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
                    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr):
        b = tl.program_id(0) // H
        h = tl.program_id(0) % H
        begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM
        t, first, edges = _key_range(doc_start, b, begin, window, T, BM, BN)
        slope = tl.load(slopes + h) if ALIBI else 0.0
        do_tile = _tile(do, b, begin, h, do_stride, T, BM, D, TMA)
        o_tile = _tile(o, b, begin, h, H * D, T, BM, D, False)
        p_dp = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1) # (BM,), sum_j p dp = o.do
        tl.store(delta + tl.program_id(0) * T + t, p_dp, mask=t < T)
        q_tile = _tile(q, b, begin, h, q_stride, T, BM, D, TMA)
        norm = tl.load(lse + tl.program_id(0) * T + tl.minimum(t, T - 1))
        acc = tl.zeros((BM, D), tl.float32)
        for part in tl.static_range(3): # left edge, interior, diagonal
            for start in range(edges[part], edges[part + 1], BN):
                distance, seen = _seen_keys(t, first, start, BN)
                k_tile = _tile(k, b, start, h * HK // H, k_stride, T, BN, D, TMA)
                v_tile = _tile(v, b, start, h * HK // H, v_stride, T, BN, D, TMA)
                qk = tl.dot(q_tile, k_tile.T) # (BM, BN)
                s, unit, tanh_grad = _scores(qk, distance, seen, slope, scale, SOFTCAP, ALIBI, part != 1)
                p = tl.exp2(s * unit - norm[:, None])
                ds = p * (tl.dot(do_tile, v_tile.T) - p_dp[:, None]) * tanh_grad
                acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc)
        _store(dq, b, begin, h, H, T, acc * scale, BM, D)

    @triton.jit
    def _query_range(doc_end, b, begin, window, T, BM: tl.constexpr, BN: tl.constexpr):
        """-> the BN keys j from begin on, the end of the queries that see each, and the edges of
        the loop over queries: where it begins, needs no mask, needs a mask again, and ends."""
        j = begin + tl.arange(0, BN)
        end = tl.minimum(tl.load(doc_end + b * T + tl.minimum(j, T - 1)), j + window)
        high = tl.minimum(tl.max(end), T)
        interior = tl.minimum(begin + tl.cdiv(BN, BM) * BM, high)
        right = interior + tl.maximum(tl.min(end) - interior, 0) // BM * BM
        return j, end, (begin, interior, right, high)

    @triton.jit
    def _backward_kv(q, k, v, do, lse, delta, doc_end, slopes, dk, dv, q_stride, k_stride,
                     v_stride, do_stride, scale, window, T, H, HK,
                     SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, D: tl.constexpr,
                     BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr):
        b = tl.program_id(0) // HK
        hk = tl.program_id(0) % HK
        begin = tl.program_id(1) * BN # the first keys of a row are seen most: they go first
        j, end, edges = _query_range(doc_end, b, begin, window, T, BM, BN)
        k_tile = _tile(k, b, begin, hk, k_stride, T, BN, D, TMA)
        v_tile = _tile(v, b, begin, hk, v_stride, T, BN, D, TMA)
        acc_k = tl.zeros((BN, D), tl.float32)
        acc_v = tl.zeros((BN, D), tl.float32)
        for h in range(hk * (H // HK), (hk + 1) * (H // HK)): # the query heads of the group
            slope = tl.load(slopes + h) if ALIBI else 0.0
            for part in tl.static_range(3): # diagonal, interior, right edge
                for start in range(edges[part], edges[part + 1], BM):
                    t = start + tl.arange(0, BM)
                    distance = t[None, :] - j[:, None]
                    seen = (distance >= 0) & (t[None, :] < end[:, None])
                    row = (b * H + h) * T + tl.minimum(t, T - 1)
                    q_tile = _tile(q, b, start, h, q_stride, T, BM, D, TMA)
                    do_tile = _tile(do, b, start, h, do_stride, T, BM, D, TMA)
                    qk = tl.dot(k_tile, q_tile.T) # (BN, BM)
                    s, unit, tanh_grad = _scores(qk, distance, seen, slope, scale, SOFTCAP, ALIBI, part != 1)
                    p = tl.exp2(s * unit - tl.load(lse + row)[None, :])
                    dp = tl.dot(v_tile, do_tile.T) # before the product for dv, so that it runs beside the exp2's
                    acc_v = tl.dot(p.to(do_tile.dtype), do_tile, acc_v)
                    ds = p * (dp - tl.load(delta + row)[None, :]) * tanh_grad
                    acc_k = tl.dot(ds.to(q_tile.dtype), q_tile, acc_k)
        _store(dk, b, begin, hk, HK, T, acc_k * scale, BN, D)
        _store(dv, b, begin, hk, HK, T, acc_v, BN, D)

    # The kernel of each pass.
    KERNELS = {'forward': _forward, 'dq': _backward_q, 'dkv': _backward_kv}

# --------------------------------------------------------------------------------------------------
# Triton: launching them

def _specialization(step, sm, D, softcap, alibi):
    """What a pass is compiled for: the kernel's constants, and Triton's options."""
    BM, BN, warps, stages = CONFIGS[sm, max(D, 64), step]
    constants = dict(SOFTCAP=softcap, ALIBI=alibi, D=D, BM=BM, BN=BN, TMA=sm >= 90)
    if step == 'forward':
        constants['AHEAD'] = (sm, D) in AHEAD
    # From Triton 3.10 on, enable_fp_fusion is False by default.
    return constants, {'num_warps': warps, 'num_stages': stages, 'enable_fp_fusion': True}

def _tile_rows(constants):
    """The tokens in a tile of each tensor that is read in tiles."""
    return {'q': constants['BM'], 'k': constants['BN'], 'v': constants['BN'], 'do': constants['BM']}

def _flat(x):
    """(B, T, heads, D) -> (B T, heads D): a view where x is a part of one q | k | v. What TMA cannot
    address is copied: rows that overlap, as of an expanded gradient, or do not begin at 16 bytes."""
    x = x.flatten(2).flatten(0, 1)
    rows_are_apart = x.stride(1) == 1 and x.stride(0) >= x.size(1)
    aligned = x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0
    return x if rows_are_apart and aligned else x.clone(memory_format=torch.contiguous_format)

def _launch(step, tensors, options):
    """Runs a pass on the kernel's tensors, by name. Those that are read in tiles are passed as TMA
    descriptors on Hopper, else as pointers."""
    B, T, H, D = tensors['q'].shape
    HK = tensors['k'].size(2)
    sm = architecture(tensors['q'].device)
    slopes, scale, softcap, window = options
    constants, compile_options = _specialization(step, sm, D, softcap, slopes is not None)
    arguments = dict(tensors, slopes=slopes, scale=scale, window=window or T, T=T, H=H, HK=HK)
    for name, rows in _tile_rows(constants).items():
        if name in tensors:
            x = _flat(tensors[name])
            arguments[f'{name}_stride'] = x.stride(0)
            if constants['TMA']:
                x = TensorDescriptor(x, [*x.shape], [*x.stride()], [rows, D])
            arguments[name] = x
    heads, rows = (HK, constants['BN']) if step == 'dkv' else (H, constants['BM'])
    grid = B * heads, triton.cdiv(T, rows)
    with torch.cuda.device_of(tensors['q']): # Triton launches on the current device
        KERNELS[step][grid](**arguments, **constants, **compile_options)

def _attention_forward(q, k, v, doc_start, *options):
    o, lse = _empty_forward(q)
    _launch('forward', dict(q=q, k=k, v=v, doc_start=doc_start, o=o, lse=lse), Options(*options))
    return o, lse

def _attention_forward_hopper(q, k, v, doc_start, *options):
    slopes, scale, softcap, window = options
    o, lse = _empty_forward(q)
    attention_hopper.check(q.device, q.size(-1), softcap, slopes)
    attention_hopper.launch(_flat(q), _flat(k), _flat(v), doc_start, o, lse, scale, window, k.size(2))
    return o, lse

def _attention_backward(do, q, k, v, o, lse, doc_start, doc_end, *options):
    options = Options(*options)
    dq, dk, dv = _empty_backward(do, q, k, v)
    delta = torch.empty_like(lse) # sum_j p dp
    inputs = dict(q=q, k=k, v=v, do=do, lse=lse, delta=delta)
    _launch('dq', dict(inputs, doc_start=doc_start, o=o, dq=dq), options) # also writes delta
    _launch('dkv', dict(inputs, doc_end=doc_end, dk=dk, dv=dv), options)
    return dq, dk, dv

def _empty_forward(q, *_):
    """o, shaped like q, and lse (B, H, T)."""
    B, T, H, D = q.shape
    return q.new_empty(B, T, H, D), q.new_empty(B, H, T, dtype=torch.float32)

def _empty_backward(do, q, k, v, *_):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

# Operators are opaque to torch.compile, which has nothing to fuse into these kernels.
_library = torch.library.Library('nanoslm', 'FRAGMENT') # lives as long as the operators

def _define_operator(name, schema, implementation, fake):
    _library.define(name + schema)
    for device in ('CUDA', 'CPU'):
        _library.impl(name, implementation, device)
    torch.library.register_fake(f'nanoslm::{name}', fake, lib=_library)

_FORWARD = ("(Tensor q, Tensor k, Tensor v, Tensor doc_start, "
            "Tensor? slopes, float scale, float softcap, int window) -> (Tensor, Tensor)")
_define_operator('attention_forward', _FORWARD, _attention_forward, _empty_forward)
_define_operator('attention_forward_hopper', _FORWARD, _attention_forward_hopper, _empty_forward)
_define_operator(
    'attention_backward',
    "(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor doc_start, Tensor doc_end, "
    "Tensor? slopes, float scale, float softcap, int window) -> (Tensor, Tensor, Tensor)",
    _attention_backward, _empty_backward)

class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, doc_start, doc_end, backend, slopes, *scalars):
        operators = torch.ops.nanoslm
        forward = operators.attention_forward_hopper if backend == 'hopper' else operators.attention_forward
        o, lse = forward(q, k, v, doc_start, slopes, *scalars)
        ctx.save_for_backward(q, k, v, o, lse, doc_start, doc_end, slopes)
        ctx.scalars = scalars # scale, softcap, window
        return o

    @staticmethod
    def backward(ctx, do):
        arguments = do, *ctx.saved_tensors, *ctx.scalars
        dq, dk, dv = torch.ops.nanoslm.attention_backward(*arguments)
        return dq, dk, dv, None, None, None, None, None, None, None

def _by_triton(q, k, v, docs, backend, options):
    D = q.size(-1)
    options = options._replace(scale=options.scale or D ** -0.5)
    if options.scale < 0: # the largest q.k would have the smallest score
        raise Refused(f"attention: expected a positive scale, got {options.scale}")
    # A tile's sides are powers of 2, at least 16. Padding with zeros changes no product.
    padded = max(16, 1 << (D - 1).bit_length())
    if padded > D:
        q, k, v = (F.pad(x, (0, padded - D)) for x in (q, k, v))
    return _Triton.apply(q, k, v, *docs, backend, *options)[..., :D]

def aot(sm):
    """All that can be launched on an sm, in bf16, for bench/aot.py.

    Yields a name, the kernel, {argument: type}, {argument: constant} and Triton's options. A type
    that ends in :16 is of numbers that 16 divides. A window is only a number to the kernels.
    """
    for arch, D, step in CONFIGS:
        if arch != sm:
            continue
        for variant, softcap in {'plain': 0.0, 'softcap': 50.0, 'ALiBi': 0.0}.items():
            constants, compile_options = _specialization(step, sm, D, softcap, variant == 'ALiBi')
            if variant != 'ALiBi':
                constants['slopes'] = None
            types = dict.fromkeys(('window', 'H', 'HK'), 'i32') | {'T': 'i32:16', 'scale': 'fp32'}
            types |= dict.fromkeys(('o', 'dq', 'dk', 'dv'), '*bf16')
            types |= dict.fromkeys(('slopes', 'lse', 'delta'), '*fp32')
            types |= dict.fromkeys(('doc_start', 'doc_end'), '*i32')
            for name, rows in _tile_rows(constants).items():
                types[name] = f'tensordesc<bf16[{rows},{D}]>' if constants['TMA'] else '*bf16'
                types[f'{name}_stride'] = 'i32:16'
            kernel = KERNELS[step]
            signature = {name: types[name] for name in kernel.arg_names if name not in constants}
            yield f'attention {step} {D} {variant}', kernel, signature, constants, compile_options

# --------------------------------------------------------------------------------------------------
# any backend

def attention(q, k, v, docs=None, scale=None, softcap=0.0, window=0, slopes=None, backend=None):
    """attention_ref by the fastest backend of the device, or by 'triton', 'hopper' or 'sdpa'.

    q (B, T, H, D), k and v (B, T, HK, D) -> (B, T, H, D). docs: documents(doc_start, backend); None
    where a row is one document. Raises Refused as choose_backend does.
    """
    B, T, H, D = q.shape
    options = Options(slopes, scale, softcap, window)
    chosen = choose_backend(q.device, backend, q.dtype, D, softcap)
    if chosen == 'blocks':
        docs = docs or _blocks([(row, 0, T, None) for row in range(B)])
        return _by_blocks(q, k, v, docs, options)
    if chosen == 'triton' and not isinstance(docs, torch.Tensor): # rows with hidden spans have a mask
        docs = docs or documents(torch.zeros(B, T, dtype=torch.int32, device=q.device), 'triton')
        return _by_triton(q, k, v, docs, backend, options)
    if isinstance(docs, tuple): # computed for Triton, whose kernels do not support these heads
        docs = _mask(docs[0])
    if docs is None and not (softcap or window or slopes is not None):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v)) # (B, H, T, D)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return o.transpose(1, 2)
    return _by_mask(q, k, v, docs, options)

# --------------------------------------------------------------------------------------------------

def _main():
    from torch.utils.benchmark import Timer
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    B, T, H, HK, D = (8, 2048, 14, 2, 64) if device == 'cuda' else (8, 512, 4, 2, 64)
    generator = torch.Generator().manual_seed(0)
    begins = torch.rand(B, T, generator=generator) < 1 / 150 # documents of 150 tokens on average
    doc_start = torch.where(begins, torch.arange(T), 0).cummax(1).values.to(device)
    implementations = {
        'attention_ref': partial(attention_ref, doc_start=doc_start),
        'attention': partial(attention, docs=documents(doc_start)),
        'SDPA, mask': partial(attention, docs=documents(doc_start, 'sdpa'), backend='sdpa'),
    }
    threads = torch.get_num_threads()
    print(f"{device}, B {B}, T {T}, H {H}/{HK}, D {D}, documents of 150 tokens, {threads} threads\n")
    print("| implementation | dtype | forward + backward, ms |\n|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = []
        for heads in (H, HK, HK):
            x = torch.randn(B, T, heads, D, generator=generator)
            inputs.append(x.to(device, dtype).requires_grad_())
        exact = attention_ref(*(x.double() for x in inputs), doc_start)
        ref_error, error = ((implementations[name](*inputs) - exact).abs().max().item()
                            for name in ('attention_ref', 'attention'))
        allowed = 2 * ref_error + torch.finfo(dtype).eps
        assert error <= allowed, f"attention: error {error:.2e}, expected at most {allowed:.2e}"
        for name, run in implementations.items():
            timer = Timer('run(*inputs).sum().backward()', num_threads=threads,
                          globals={'run': run, 'inputs': inputs})
            ms = min(timer.blocked_autorange(min_run_time=1).times) * 1e3
            print(f"| {name} | {str(dtype)[6:]} | {ms:.1f} |")

if __name__ == '__main__':
    _main()
