"""
Times the kernels beside other implementations of the same work, on a GPU:

    python bench/kernel_speed.py kernels       documents of 2,048, beside what users have: varlen_attn (with
                                               FlashAttention 3 where it can be activated), SDPA by flash and by
                                               cuDNN, F.linear_cross_entropy, Liger
    python bench/kernel_speed.py all           documents of mean 512 too; beside torch, torch.compile, FlexAttention
    ... --dry                                  tiny shapes, nothing written, also without a GPU

    attention            16,384 tokens in rows of 2,048, in bf16. FLOPs: 4 D for each query head and
                         pair of tokens in which one attends to the other, and 2.5 times as many
                         backward, whatever else an implementation computes
    cross-entropy        8,192 rows of 152,320 logits, in bf16, forward + backward. FLOPs: 6 n V d.
                         Ours masks the last 153 columns
    norm, RoPE, SwiGLU   as in model.py, of 16,384 tokens. Bytes: each tensor is read or written once

ms is the median of the repeats, least and most are their extremes; `of ours` is ms divided by ours.
`share` is the share of the rate that this device reached minutes before in a bf16 product of
8,192^3 (TFLOP/s) or a copy (GB/s). peak_mb is the peak memory of an implementation with its inputs,
and in the backward pass with the results of the forward. A mask is made once per batch, so it is
not timed. The row of an implementation that cannot run has its error. The goals for an H200 come
last. The exit status is 1 if one of our own rows has an error.

Writes bench/results/gpu-kernels.json, or gpu-all.json.
"""
import inspect
import sys
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch._functorch import config as functorch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, ceilings, measure, parse_part, save, table
from hub.families import GPTConfig
from kernels import elementwise
from kernels.attention import INTERPRETED, attention, attention_ref, documents
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_ref, linear_cross_entropy_sum
from model import Norm, _Rotary

BACKEND = 'triton' if DEVICE == 'cuda' or INTERPRETED else None
DTYPE = torch.bfloat16 if DEVICE == 'cuda' else torch.float32
OURS = 'nanoSLM'
FA3 = 'varlen, FlashAttention 3'
COLUMNS = ('case', 'pass', 'of', 'ms', 'least', 'most', 'of ours',
           'tflops', 'gbs', 'share', 'peak_mb')
REPEATS = {'kernels': 10, 'all': 30}
# What only the part `all` measures.
SLOW = {f'{OURS}, a loss a row', 'torch', 'torch.compile', 'FlexAttention'}
D64 = 'attention 14/2 x 64, documents of 2048'
D128 = 'attention 28/4 x 128, documents of 2048'
CE = 'cross-entropy 8192 x {} x 152320'
# (case, pass, number, goal): our rate is at least the goal; or the time or memory 'of' another
# implementation, divided by ours, is.
GOALS = [
    (D64, 'forward', 'tflops', 340),
    (D64, 'backward', 'tflops', 285),
    (D128, 'forward', 'tflops', 395),
    (D128, 'backward', 'tflops', 280),
    (D64, 'forward', 'ms of varlen', 1.15),
    (D64, 'backward', 'ms of varlen', 0.95),
    (D128, 'forward', 'ms of varlen', 1.15),
    (D128, 'backward', 'ms of varlen', 0.95),
    (CE.format(896), 'both', 'tflops', 536),
    (CE.format(896), 'both', 'ms of Liger', 3.5), # 12.5 ms
    (CE.format(896), 'both', 'ms of torch.compile', 1.0),
    (CE.format(896), 'both', 'peak_mb of torch.compile', 3.0),
    (CE.format(3584), 'both', 'tflops', 638),
    (CE.format(3584), 'both', 'ms of Liger', 1.5), # 42 ms
    (CE.format(3584), 'both', 'ms of torch.compile', 1.0),
    (CE.format(3584), 'both', 'peak_mb of torch.compile', 3.0)]

def compiled(f):
    backend = 'inductor' if DEVICE == 'cuda' else 'aot_eager'
    return torch.compile(f, dynamic=False, backend=backend)

def with_flash_3(run):
    """run() with FlashAttention 3 in varlen_attn's place for torch's kernels; a row with the error if it is absent."""
    try:
        from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl
        activate_flash_attention_impl('FA3')
    except Exception as e: # of whatever package is missing
        return {FA3: {'error': f'{type(e).__name__}: {e}'.splitlines()[0][:160]}}
    try:
        return run()
    finally:
        restore_flash_attention_impl()

def call_of(f, inputs, which):
    """A function that runs one pass of f on copies of the inputs; some implementations overwrite theirs.

    which: 'forward'; 'backward', after a forward in the first call; or 'both', of a scalar f.
    """
    copies = []
    forward = [] # y and its gradient, for the backward
    def call():
        if not copies:
            copies.extend(x.detach().clone().requires_grad_() for x in inputs)
        if which == 'forward':
            return f(*copies)
        if which == 'both':
            return torch.autograd.grad(f(*copies), copies)
        if not forward:
            y = f(*copies)
            ys = y if isinstance(y, tuple) else (y,)
            forward.extend((ys, [torch.randn_like(y) for y in ys]))
        ys, dys = forward
        return torch.autograd.grad(ys, copies, dys, retain_graph=True)
    return call

def rows_of(case, which, implementations, inputs, limits, unit, work, repeats):
    """Yields a row for each of {name: f}. work: FLOPs if unit is 'tflops', bytes if it is 'gbs'."""
    calls = {name: call_of(f, inputs, which) for name, f in implementations.items()}
    rows = measure({name: call for name, call in calls.items() if name != FA3}, repeats)
    if FA3 in implementations: # by itself: it is activated for all of torch
        rows |= with_flash_3(lambda: measure({FA3: calls[FA3]}, repeats))
    ours = rows.get(OURS, {}).get('ms')
    for name, row in rows.items():
        if 'ms' in row:
            rate = work / row['ms'] / (1e9 if unit == 'tflops' else 1e6)
            row |= {unit: round(rate, 1), 'share': round(rate / limits[unit], 3)}
            if ours:
                row['of ours'] = round(row['ms'] / ours, 3)
        yield {'case': case, 'pass': which, 'of': name, **row}

# --------------------------------------------------------------------------------------------------
# attention

def packed(B, T, mean):
    """doc_start (B, T) of documents of random lengths from 1 to 2 mean - 1, cut where a row ends.

    If mean is T, each row is one document.
    """
    begins = torch.zeros(B * T, dtype=torch.bool)
    if mean < T:
        generator = torch.Generator().manual_seed(0)
        ends = torch.randint(1, 2 * mean, (B * T,), generator=generator).cumsum(0)
        begins[ends[ends < B * T]] = True
    begin_positions = torch.where(begins.view(B, T), torch.arange(T), 0)
    return begin_positions.cummax(1).values.to(DEVICE)

def heads_first(f):
    """f, of tensors (B, heads, T, D), as a function of tensors (B, T, heads, D)."""
    def transposed(*qkv):
        y = f(*(x.transpose(1, 2) for x in qkv))
        return y.transpose(1, 2)
    return transposed

def attention_implementations(doc_start):
    """{name: f(q, k, v)}; q, k, v and the result have the shape (B, T, heads, D)."""
    B, T = doc_start.shape
    docs = documents(doc_start, BACKEND)
    # A mask excludes the fast kernels of SDPA, so there is none where each row is one document.
    mask = documents(doc_start, 'sdpa') if doc_start.any() else None
    is_begin = doc_start == torch.arange(T, device=DEVICE)
    begins = is_begin.flatten().nonzero()[:, 0]
    bounds = torch.cat((begins, begins.new_tensor([B * T])))
    bounds = bounds.int()
    longest = bounds.diff().max().item()
    # torch 2.11 has no such option: its varlen_attn always accepts grouped heads.
    has_option = 'enable_gqa' in inspect.signature(varlen_attn).parameters
    gqa = {'enable_gqa': True} if has_option else {}
    compiled_flex = compiled(flex_attention)

    def ours(*qkv):
        return attention(*qkv, docs, backend=BACKEND)

    def ref(q, k, v):
        return attention_ref(q, k, v, doc_start)

    def sdpa(q, k, v):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)

    def cudnn(q, k, v):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return sdpa(q, k, v)

    @cache
    def block_mask(): # made in the first call
        def attends(b, h, t, j):
            return (j <= t) & (j >= doc_start[b, t])
        return create_block_mask(attends, B, None, T, T, device=DEVICE)

    def flex(*qkv):
        return compiled_flex(*qkv, block_mask=block_mask(), enable_gqa=True)

    def varlen(*qkv):
        flat = (x.flatten(0, 1) for x in qkv)
        y = varlen_attn(*flat, bounds, bounds, longest, longest,
                        window_size=(-1, 0), **gqa)
        return y.view_as(qkv[0])

    return {OURS: ours,
            'torch': ref,
            'torch.compile': compiled(ref),
            'SDPA': heads_first(sdpa),
            'SDPA, cuDNN': heads_first(cudnn),
            'FlexAttention': heads_first(flex),
            'varlen': varlen,
            FA3: varlen}

def chosen(implementations, part):
    """Those of {name: f} that a part measures."""
    return {name: f for name, f in implementations.items() if part == 'all' or name not in SLOW}

def attention_rows(part, dry, limits):
    B, T, means = (2, 48, (48, 12)) if dry else (8, 2048, (2048, 512))
    if part != 'all':
        means = means[:1]
    shapes = [(14, 2, 64), (28, 4, 128)]
    if dry:
        shapes = [(2, 1, 64)]
    for H, HK, D in shapes:
        for mean in means:
            doc_start = packed(B, T, mean)
            inputs = [torch.randn(B, T, n, D, device=DEVICE).to(DTYPE)
                      for n in (H, HK, HK)]
            keys = torch.arange(1, T + 1, device=DEVICE) - doc_start # that a token attends to
            flops = 4 * D * H * keys.sum().item()
            length = f'mean {mean}' if mean < T else mean
            case = f'attention {H}/{HK} x {D}, documents of {length}'
            implementations = chosen(attention_implementations(doc_start), part)
            for which, work in (('forward', flops), ('backward', 2.5 * flops)):
                yield from rows_of(case, which, implementations, inputs, limits, 'tflops', work,
                                   1 if dry else REPEATS[part])
            torch.compiler.reset()

# --------------------------------------------------------------------------------------------------
# cross-entropy

def cross_entropy_rows(part, dry, limits):
    n, V, widths = (64, 500, (32,)) if dry else (8192, 152_167, (896, 3584))
    padded = -(-V // 256) * 256
    for C in widths:
        x = torch.randn(n, C, device=DEVICE).to(DTYPE)
        weight = torch.randn(padded, C, device=DEVICE).to(DTYPE) / C ** 0.5
        targets = torch.randint(V, (n,), device=DEVICE)

        def ours(x, weight):
            return linear_cross_entropy_sum(x, weight, targets, V)[0]

        def per_row(x, weight):
            return linear_cross_entropy(x, weight, targets, V).sum()

        def ref(x, weight): # of all columns: a width of V would cost the product its alignment
            return linear_cross_entropy_ref(x, weight, targets, padded).sum()

        def liger(x, weight):
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
            return LigerFusedLinearCrossEntropyLoss()(weight, x, targets)

        def torch_fused(x, weight): # since torch 2.13
            return F.linear_cross_entropy(x, weight, targets)

        def torch_chunked(x, weight):
            return F.linear_cross_entropy(x, weight, targets, options=torch.nn.LinearCrossEntropyOptions())

        implementations = {OURS: ours,
                           f'{OURS}, a loss a row': per_row,
                           'torch': ref,
                           'torch.compile': compiled(ref),
                           'Liger': liger,
                           'F.linear_cross_entropy': torch_fused,
                           'F.linear_cross_entropy, chunked': torch_chunked}
        yield from rows_of(f'cross-entropy {n} x {C} x {padded}', 'both',
                           chosen(implementations, part), (x, weight), limits,
                           'tflops', 6 * n * padded * C, 1 if dry else 8)
        torch.compiler.reset()

# --------------------------------------------------------------------------------------------------
# norm, RoPE, SwiGLU

def norm_implementations(C):
    """{name: f(x, weight)} of RMSNorm, x (B, T, C)."""
    norm = Norm(GPTConfig(n_embd=C, n_head=1)).to(DEVICE)

    def ours(x, w):
        return functional_call(norm, {'weight': w}, (x,))

    def plain(x, w):
        return F.rms_norm(x, w.shape, w, norm.eps)

    def liger(x, w):
        from liger_kernel.transformers.functional import liger_rms_norm
        return liger_rms_norm(x, w, norm.eps, in_place=False)

    return {OURS: ours,
            'torch': plain,
            'torch.compile': compiled(plain),
            'Liger': liger}

def rope_implementations(cos, sin, H, HK):
    """{name: f(qkv)} of the rotation, q | k | v (B, T, H + 2 HK, D) -> q and k rotated, and v."""
    def plain(qkv):
        qk, v = qkv.split([H + HK, HK], 2)
        return *_Rotary.apply(qk, cos, sin).split([H, HK], 2), v

    def ours(qkv):
        return elementwise.rotated(qkv, cos, sin, H)

    return {OURS: ours if elementwise.fused(cos) else plain,
            'torch': plain,
            'torch.compile': compiled(plain)}

def swiglu_implementations():
    """{name: f(h)} of SwiGLU, h (B, T, 2 n_ffn)."""
    def plain(h):
        gate, up = h.chunk(2, -1)
        return F.silu(gate) * up

    def ours(h):
        return elementwise.swiglu(h) if elementwise.fused(h) else plain(h)

    def liger(h):
        from liger_kernel.transformers.functional import liger_swiglu
        return liger_swiglu(*h.chunk(2, -1))

    return {OURS: ours,
            'torch': plain,
            'torch.compile': compiled(plain),
            'Liger': liger}

def elementwise_cases(dry):
    """Yields (name, {name: f}, inputs, bytes moved by a forward, bytes moved by a backward).

    Training has bf16 tensors, except for the residual stream, which is float32.
    """
    B, T = (2, 24) if dry else (8, 2048)
    n = B * T
    shapes = [(896, 14, 2, 64, 4864), (3584, 28, 4, 128, 18944)]
    if dry:
        shapes = [(32, 4, 2, 16, 48)]
    for C, H, HK, D, n_ffn in shapes:
        x = torch.randn(B, T, C, device=DEVICE)
        weight = torch.ones(C, device=DEVICE)
        yield (f'RMSNorm {n} x {C}, float32', norm_implementations(C), (x, weight),
               2 * x.nbytes, 3 * x.nbytes)

        qkv = torch.randn(B, T, H + 2 * HK, D, device=DEVICE).to(DTYPE)
        cos = torch.randn(1, T, 1, D, device=DEVICE)
        sin = torch.randn(1, T, 1, D, device=DEVICE)
        moved = 2 * qkv.nbytes + (cos.nbytes + sin.nbytes) // 2
        yield f'RoPE {n} x {H}/{HK} x {D}', rope_implementations(cos, sin, H, HK), (qkv,), moved, moved

        h = torch.randn(B, T, 2 * n_ffn, device=DEVICE).to(DTYPE)
        yield (f'SwiGLU {n} x {n_ffn}', swiglu_implementations(), (h,),
               h.nbytes * 3 // 2, h.nbytes * 5 // 2)

def elementwise_rows(part, dry, limits):
    for case, implementations, inputs, *moved in elementwise_cases(dry):
        if part != 'all': # it takes seconds a case
            implementations.pop('torch.compile')
        for which, work in zip(('forward', 'backward'), moved):
            yield from rows_of(case, which, implementations, inputs, limits, 'gbs', work,
                               1 if dry else REPEATS[part])
        torch.compiler.reset()

# --------------------------------------------------------------------------------------------------

def goals(rows):
    """Yields a row for each of GOALS; one that could not be measured has neither 'got' nor 'met'."""
    measured = {(row['case'], row['pass'], row['of']): row for row in rows}
    for case, which, number, goal in GOALS:
        key, _, implementation = number.partition(' of ')
        value = measured.get((case, which, OURS), {}).get(key)
        baseline = measured.get((case, which, implementation or OURS), {}).get(key)
        row = {'case': case, 'pass': which, 'goal': number, 'wanted': goal}
        if value is not None and baseline is not None:
            result = baseline / value if implementation else value
            row |= {'got': round(result, 2),
                    'met': result >= goal,
                    'share': round(result / goal, 3)}
        yield row

def main():
    part, dry = parse_part(__doc__, REPEATS)
    torch.manual_seed(0)
    functorch.donated_buffer = False # else a compiled backward cannot run twice
    limits = ceilings(dry)
    print(f"this device's best: a bf16 product {limits['tflops']:.0f} TFLOP/s, "
          f"a copy {limits['gbs']:.0f} GB/s")
    rows = []

    def save_partial(new):
        so_far = rows + new
        save(f'gpu-{part}', dry, ceilings=limits, rows=so_far,
             goals=list(goals(so_far)))

    for rows_of_kernel in (attention_rows, cross_entropy_rows, elementwise_rows):
        rows += table(rows_of_kernel(part, dry, limits), *COLUMNS, on_row=save_partial)
    table(goals(rows), 'case', 'pass', 'goal', 'wanted', 'got', 'met', 'share')
    return int(any('error' in row for row in rows if row['of'].startswith(OURS)))

if __name__ == '__main__':
    raise SystemExit(main())
