"""
What lies between a layer's matrix products, on a GPU in one pass each: RMSNorm, rotary positions, SwiGLU.

    rms_norm     y = w x r,  r = 1 / sqrt(mean(x^2) + eps)
                 dx = r (w dy - x r mean(w dy x r)),  dw = sum of dy x r over the rows
    rotated      (a, b) -> (a cos - b sin, b cos + a sin), the two halves of each head of q and of k;
                 backward the transpose
    swiglu       y = silu(g) u,  silu(g) = g s,  s = 1 / (1 + exp(-g))
                 dg = dy u s (1 + g (1 - s)),  du = dy g s

In a layer of Qwen2.5-0.5B they move 116 kB a token, where torch moves 402 (`python bench/traffic.py`). All arithmetic
is in float32, and each result is rounded once. The definitions in torch are in model.py, which takes them on a CPU and
for what these kernels do not serve: heads of which a part is rotated, or other than a power of 2; other activations.
"""
import torch

from kernels.attention import _define_operator, triton
from kernels.gpu import runs_triton

if triton is not None:
    import triton.language as tl

HEADS = 4 # that a program of the rotation turns: it reads cos and sin once for all of them
TOKENS = 16 # of a program of the rotation
ROWS = 16 # of a program of the norm's backward, which sums dw over them
COLUMNS = 1024 # of a program of SwiGLU
FUSION = {'enable_fp_fusion': True} # from Triton 3.10 on it is False by default

def fused(x):
    """Whether x is on a device that these kernels serve. Tests replace it where they run Triton's interpreter."""
    return x.is_cuda and runs_triton(x.device)

# --------------------------------------------------------------------------------------------------
# the kernels

if triton is not None:
    @triton.jit
    def _norm(x, w, y, r, C, eps, BLOCK: tl.constexpr):
        """x, y (rows, C), w (C,), r (rows,): one program a row."""
        row = tl.program_id(0).to(tl.int64)
        c = tl.arange(0, BLOCK)
        x_row = tl.load(x + row * C + c, mask=c < C, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x_row * x_row, 0) / C + eps)
        w_row = tl.load(w + c, mask=c < C, other=0.0).to(tl.float32)
        tl.store(r + row, scale)
        tl.store(y + row * C + c, (x_row * scale * w_row).to(y.dtype.element_ty), mask=c < C)

    @triton.jit
    def _norm_backward(dy, x, w, r, dx, dw, n, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        """dw (programs, C): the sum over the rows of a program."""
        c = tl.arange(0, BLOCK)
        w_row = tl.load(w + c, mask=c < C, other=0.0).to(tl.float32)
        dw_sum = tl.zeros((BLOCK,), tl.float32)
        begin = tl.program_id(0) * ROWS
        for row in range(begin, tl.minimum(begin + ROWS, n)):
            at = tl.cast(row, tl.int64) * C + c
            scale = tl.load(r + row)
            unit = tl.load(x + at, mask=c < C, other=0.0).to(tl.float32) * scale
            dy_row = tl.load(dy + at, mask=c < C, other=0.0).to(tl.float32)
            dw_sum += dy_row * unit
            slope = dy_row * w_row
            slope -= unit * (tl.sum(slope * unit, 0) / C)
            tl.store(dx + at, (slope * scale).to(dx.dtype.element_ty), mask=c < C)
        tl.store(dw + tl.program_id(0).to(tl.int64) * C + c, dw_sum, mask=c < C)

    @triton.jit
    def _rotate(q, k, v, cos, sin, y, q_stride, k_stride, v_stride, n, period, turn, H: tl.constexpr, HK: tl.constexpr,
                D: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr):
        """q, k, v (n, heads, D), a token every *_stride numbers -> y (n, H + 2 HK, D): q and k rotated, and v.

        cos, sin (period, D), from which token t takes row t % period; turn: 1, or -1 for the transpose.
        """
        t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
        c = tl.arange(0, D // 2)[None, :]
        table = t % period * D + c
        cosine = tl.load(cos + table, mask=t < n)
        sine = tl.load(sin + table + D // 2, mask=t < n) * turn # its first half is negated
        t = t.to(tl.int64)
        for i in tl.static_range(HEADS):
            head = tl.program_id(1) * HEADS + i
            if head < H:
                x = q + t * q_stride + head * D + c
            elif head < H + HK:
                x = k + t * k_stride + (head - H) * D + c
            else:
                x = v + t * v_stride + (head - H - HK) * D + c
            exists = t < tl.where(head < H + 2 * HK, n, 0)
            a = tl.load(x, mask=exists).to(tl.float32)
            b = tl.load(x + D // 2, mask=exists).to(tl.float32)
            turned_a = tl.where(head < H + HK, a * cosine - b * sine, a)
            turned_b = tl.where(head < H + HK, b * cosine + a * sine, b)
            out = y + (t * (H + 2 * HK) + head) * D + c
            tl.store(out, turned_a.to(y.dtype.element_ty), mask=exists)
            tl.store(out + D // 2, turned_b.to(y.dtype.element_ty), mask=exists)

    @triton.jit
    def _swiglu(h, dy, y, dh, F, BACKWARD: tl.constexpr, COLUMNS: tl.constexpr):
        """h, dh (rows, 2 F): g | u; y, dy (rows, F). Writes y, or dh."""
        row = tl.program_id(0).to(tl.int64)
        c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        g = tl.load(h + row * 2 * F + c, mask=c < F).to(tl.float32)
        u = tl.load(h + row * 2 * F + F + c, mask=c < F).to(tl.float32)
        s = 1 / (1 + tl.exp(-g))
        if BACKWARD:
            dy_row = tl.load(dy + row * F + c, mask=c < F).to(tl.float32)
            dg = dy_row * u * s * (1 + g * (1 - s))
            tl.store(dh + row * 2 * F + c, dg.to(dh.dtype.element_ty), mask=c < F)
            tl.store(dh + row * 2 * F + F + c, (dy_row * g * s).to(dh.dtype.element_ty), mask=c < F)
        else:
            tl.store(y + row * F + c, (g * s * u).to(y.dtype.element_ty), mask=c < F)

# --------------------------------------------------------------------------------------------------
# launching them, as operators that are opaque to torch.compile

def _norm_options(C):
    """Constants and options of the norm's kernels for rows of C channels."""
    block = triton.next_power_of_2(C)
    return {'BLOCK': block, 'num_warps': min(max(block // 256, 4), 16), **FUSION}

def _norm_forward(x, w, eps, dtype):
    y, r = _empty_norm(x, w, eps, dtype)
    C = x.size(-1)
    with torch.cuda.device_of(x):
        _norm[(r.numel(),)](x.contiguous(), w, y, r, C, eps, **_norm_options(C))
    return y, r

def _norm_gradients(dy, x, w, r):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    C = x.size(-1)
    n = r.numel()
    n_programs = triton.cdiv(n, ROWS)
    dw = w.new_empty(n_programs, C, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _norm_backward[(n_programs,)](dy.contiguous(), x.contiguous(), w, r, dx, dw, n, C, ROWS=ROWS,
                                      **_norm_options(C))
    return dx, dw.sum(0).to(w.dtype)

def _empty_norm(x, w, eps, dtype):
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:-1], dtype=torch.float32)

def _empty_norm_gradients(dy, x, w, r):
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(w)

def _by_token(x):
    """x (B, T, heads, D), its stride from token to token; a copy of x where the heads of a token are not in one row."""
    flat = x.flatten(2).flatten(0, 1) # (B T, heads D), a view where x is a part of one q | k | v
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    return flat, flat.stride(0)

def _rotation(q, k, v, cos, sin, backward):
    B, T, H, D = q.shape
    HK = k.size(2)
    y = _empty_rotation(q, k, v)
    (q, q_stride), (k, k_stride), (v, v_stride) = (_by_token(x) for x in (q, k, v))
    grid = triton.cdiv(B * T, TOKENS), triton.cdiv(H + 2 * HK, HEADS)
    constants = dict(H=H, HK=HK, D=D, HEADS=HEADS, TOKENS=TOKENS, **FUSION)
    with torch.cuda.device_of(q):
        _rotate[grid](q, k, v, cos.contiguous(), sin.contiguous(), y, q_stride, k_stride, v_stride, B * T,
                      cos.numel() // D, -1.0 if backward else 1.0, **constants)
    return y

def _empty_rotation(q, k, v, *_):
    B, T, H, D = q.shape
    return q.new_empty(B, T, H + 2 * k.size(2), D)

def _launch_swiglu(h, dy):
    F = h.size(-1) // 2
    h = h.contiguous()
    out = _empty_swiglu(h, dy)
    with torch.cuda.device_of(h):
        _swiglu[h.numel() // (2 * F), triton.cdiv(F, COLUMNS)](
            h, None if dy is None else dy.contiguous(), out, out, F, BACKWARD=dy is not None, COLUMNS=COLUMNS, **FUSION)
    return out

def _empty_swiglu(h, dy):
    """The result of the forward, where dy is None, or the gradient of h."""
    return h.new_empty(h.shape if dy is not None else (*h.shape[:-1], h.size(-1) // 2))

_define_operator('norm', "(Tensor x, Tensor w, float eps, ScalarType dtype) -> (Tensor, Tensor)",
                 _norm_forward, _empty_norm)
_define_operator('norm_gradients', "(Tensor dy, Tensor x, Tensor w, Tensor r) -> (Tensor, Tensor)",
                 _norm_gradients, _empty_norm_gradients)
_define_operator('rotation', "(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, bool backward) -> Tensor",
                 _rotation, _empty_rotation)
_define_operator('swiglu', "(Tensor h, Tensor? dy) -> Tensor", _launch_swiglu, _empty_swiglu)
_ops = torch.ops.nanoslm

# --------------------------------------------------------------------------------------------------

class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps, dtype):
        y, r = _ops.norm(x, w, eps, dtype)
        ctx.save_for_backward(x, w, r)
        return y

    @staticmethod
    def backward(ctx, dy):
        return *_ops.norm_gradients(dy, *ctx.saved_tensors), None, None

class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, H):
        ctx.save_for_backward(cos, sin)
        HK = (qkv.size(2) - H) // 2
        return _ops.rotation(*qkv.split([H, HK, HK], 2), cos, sin, False).split([H, HK, HK], 2)

    @staticmethod
    def backward(ctx, dq, dk, dv):
        return _ops.rotation(dq, dk, dv, *ctx.saved_tensors, True), None, None, None

class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return _ops.swiglu(h, None)

    @staticmethod
    def backward(ctx, dy):
        return _ops.swiglu(ctx.saved_tensors[0], dy)

def rms_norm(x, w, eps, dtype):
    """x (..., C), w (C,) -> w x / sqrt(mean(x^2) + eps) in dtype, (..., C)"""
    return _Norm.apply(x, w, eps, dtype)

def can_rotate(D, n_rope):
    """Whether `rotated` serves heads of D channels, of which n_rope are rotated."""
    return D == n_rope and D >= 16 and D & (D - 1) == 0

def rotated(qkv, cos, sin, H):
    """q | k | v (B, T, H + 2 HK, D), cos and sin (B or 1, T, 1, D) as GPT.rotary gives them -> q, k, rotated, and v.

    All three are parts of one new tensor, so that qkv need not be kept.
    """
    return _Rotated.apply(qkv, cos, sin, H)

def swiglu(h):
    """g | u (..., 2 F) -> silu(g) u, (..., F). The backward keeps h alone."""
    return _SwiGLU.apply(h)

def aot(sm):
    """All that is launched at Qwen2.5's sizes, in bf16 with a float32 residual, as aot of kernels/attention.py."""
    norm = {'x': '*fp32', 'w': '*fp32', 'y': '*bf16', 'r': '*fp32', 'dy': '*bf16', 'dx': '*fp32', 'dw': '*fp32',
            'n': 'i32:16', 'C': 'i32:16', 'eps': 'fp32'}
    rotate = dict.fromkeys(('q', 'k', 'v', 'y'), '*bf16') | {
        'cos': '*fp32', 'sin': '*fp32', 'q_stride': 'i32:16', 'k_stride': 'i32:16', 'v_stride': 'i32:16',
        'n': 'i32:16', 'period': 'i32:16', 'turn': 'fp32'}
    gate = dict.fromkeys(('h', 'dy', 'y', 'dh'), '*bf16') | {'F': 'i32:16'}
    cases = []
    for C in (896, 2048, 3584):
        options = _norm_options(C)
        warps = {'num_warps': options['num_warps']}
        block = {'BLOCK': options['BLOCK']}
        cases += [(f'norm {C}', _norm, norm, block, warps),
                  (f'norm backward {C}', _norm_backward, norm, block | {'ROWS': ROWS}, warps)]
    for H, HK, D in ((14, 2, 64), (28, 4, 128), (8, 4, 256)):
        constants = dict(H=H, HK=HK, D=D, HEADS=HEADS, TOKENS=TOKENS)
        cases.append((f'rotation {H}/{HK} x {D}', _rotate, rotate, constants, {'num_warps': 4}))
    for backward in (False, True):
        constants = {'BACKWARD': backward, 'COLUMNS': COLUMNS}
        if not backward:
            constants['dy'] = None
        cases.append((f"SwiGLU{' backward' * backward}", _swiglu, gate, constants, {'num_warps': 4}))
    for name, kernel, types, constants, options in cases:
        signature = {name: types[name] for name in kernel.arg_names if name not in constants}
        yield name, kernel, signature, constants, {**options, **FUSION, 'num_stages': 2}
