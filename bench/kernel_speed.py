"""
The kernels beside what else does their work, on a GPU:

    python bench/kernel_speed.py [--dry]      --dry: tiny shapes, nothing written, also without a GPU

    attention       16,384 tokens in rows of 2,048, bf16. FLOPs: 4 D a query head and pair of tokens that sees one another
                    in its document, 2.5 x that backward, whatever a way computes besides
    cross-entropy   8,192 rows, a head of 152,320, bf16, forward + backward: 6 n V d. Ours masks the last 153 columns
    norm, RoPE, SwiGLU   as model.py has them, 16,384 tokens. Bytes: each tensor read or written once

Each row has its share of what this device did minutes before with a bf16 product of 8,192^3 (TFLOP/s) or a copy (GB/s), and
peak_mb: what a way holds at most, its inputs included, and its forward's where the pass is the backward. A mask is
made once a batch, so it is not timed. A way that cannot do it has why. Then the goals of an H200. Exit status 1 if one
of our own rows has an error.

Writes bench/results/gpu-kernels.json.
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

from bench.common import DEVICE, asked_dry, ceilings, measure, save, table
from hub.families import GPTConfig
from kernels.attention import INTERPRETED, attention, attention_ref, documents
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_ref, linear_cross_entropy_sum
from model import Norm, _Rotary, _rotate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BACKEND = 'triton' if DEVICE == 'cuda' or INTERPRETED else None
DTYPE = torch.bfloat16 if DEVICE == 'cuda' else torch.float32
OURS = 'nanoSLM'
COLUMNS = ('case', 'pass', 'of', 'ms', 'least', 'most', 'tflops', 'gbs', 'share', 'peak_mb')
D64, D128 = 'attention 14/2 x 64, documents of ', 'attention 28/4 x 128, documents of '
CE = 'cross-entropy 8192 x {} x 152320'
GOALS = [ # case, pass, what is at least so much: a rate, or a time (or memory) of another in ours
    (D64 + '2048', 'forward', 'tflops', 300), (D64 + '2048', 'backward', 'tflops', 215),
    (D128 + '2048', 'forward', 'tflops', 340), (D128 + '2048', 'backward', 'tflops', 235),
    (D64 + '2048', 'forward', 'ms of varlen', 1.15), (D64 + '2048', 'backward', 'ms of varlen', 0.95),
    (D128 + '2048', 'forward', 'ms of varlen', 1.15), (D128 + '2048', 'backward', 'ms of varlen', 0.95),
    (CE.format(896), 'both', 'tflops', 536), (CE.format(896), 'both', 'ms of Liger', 3.5), # 12.5 ms
    (CE.format(896), 'both', 'ms of torch.compile', 1.0), (CE.format(896), 'both', 'peak_mb of torch.compile', 3.0),
    (CE.format(3584), 'both', 'tflops', 638), (CE.format(3584), 'both', 'ms of Liger', 1.5), # 42 ms
    (CE.format(3584), 'both', 'ms of torch.compile', 1.0), (CE.format(3584), 'both', 'peak_mb of torch.compile', 3.0)]

def compiled(f):
    return torch.compile(f, dynamic=False, backend='inductor' if DEVICE == 'cuda' else 'aot_eager')

def call_of(f, inputs, what):
    """A call of f ('forward'), of its gradients after a forward in the first call ('backward'), or of both, f a scalar.
    Its inputs are its own: some ways write into theirs."""
    made = []
    def call():
        if not made:
            made.append([x.detach().clone().requires_grad_() for x in inputs])
        if what == 'forward':
            return f(*made[0])
        if what == 'both':
            return torch.autograd.grad(f(*made[0]), made[0])
        if len(made) == 1:
            y = f(*made[0])
            made.extend((y, torch.randn_like(y)))
        return torch.autograd.grad(made[1], made[0], made[2], retain_graph=True)
    return call

def rows_of(case, what, ways, inputs, limit, unit, work, repeats):
    """A row a way. work: FLOPs or bytes, as unit is 'tflops' or 'gbs'."""
    rows = measure({name: call_of(f, inputs, what) for name, f in ways.items()}, repeats)
    for name, row in rows.items():
        if 'ms' in row:
            rate = work / row['ms'] / (1e9 if unit == 'tflops' else 1e6)
            row |= {unit: round(rate, 1), 'share': round(rate / limit[unit], 3)}
        yield {'case': case, 'pass': what, 'of': name, **row}

# ----------------------------------------------------------------------------------------------------------------

def packed(B, T, mean):
    """doc_start (B, T) of documents of 1 to 2 mean - 1 tokens one after another, cut where a row ends; mean T: of T."""
    begins = torch.zeros(B * T, dtype=torch.bool)
    if mean < T:
        ends = torch.randint(1, 2 * mean, (B * T,), generator=torch.Generator().manual_seed(0)).cumsum(0)
        begins[ends[ends < B * T]] = True
    return torch.where(begins.view(B, T), torch.arange(T), 0).cummax(1).values.to(DEVICE)

def attention_ways(doc_start):
    """{name: f(q, k, v)}, (B, T, heads, D) each."""
    (B, T), docs = doc_start.shape, documents(doc_start, BACKEND)
    mask = documents(doc_start, 'sdpa') if doc_start.any() else None # without one SDPA has faster ways
    begins = (doc_start == torch.arange(T, device=DEVICE)).flatten().nonzero()[:, 0]
    ends = torch.cat((begins, begins.new_tensor([B * T]))).int()
    longest = ends.diff().max().item()
    known = inspect.signature(varlen_attn).parameters
    gqa = {'enable_gqa': True} if 'enable_gqa' in known else {} # torch 2.11 takes grouped heads without a word
    flex = compiled(flex_attention)
    @cache
    def block_mask():
        seen = lambda b, h, t, j: (j <= t) & (j >= doc_start[b, t])
        return create_block_mask(seen, B, None, T, T, device=DEVICE)
    def heads_first(f):
        return lambda *qkv: f(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)
    def sdpa(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    def cudnn(q, k, v):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return sdpa(q, k, v)
    ref = lambda q, k, v: attention_ref(q, k, v, doc_start)
    one_pass = BACKEND and 'one-pass'
    return {OURS: lambda *qkv: attention(*qkv, docs, backend=BACKEND),
            f'{OURS}, one pass': lambda *qkv: attention(*qkv, docs, backend=one_pass), 'torch': ref, 'torch.compile': compiled(ref),
            'SDPA': heads_first(sdpa), 'SDPA, cuDNN': heads_first(cudnn),
            'FlexAttention': heads_first(lambda *qkv: flex(*qkv, block_mask=block_mask(), enable_gqa=True)),
            'varlen': lambda *qkv: varlen_attn(*(x.flatten(0, 1) for x in qkv), ends, ends, longest, longest,
                                              window_size=(-1, 0), **gqa).view_as(qkv[0])}

def attention_rows(dry, limit):
    B, T, means = (2, 48, (48, 12)) if dry else (8, 2048, (2048, 512))
    for H, HK, D in ((2, 1, 64),) if dry else ((14, 2, 64), (28, 4, 128)):
        for mean in means:
            doc_start = packed(B, T, mean)
            inputs = [torch.randn(B, T, heads, D, device=DEVICE).to(DTYPE) for heads in (H, HK, HK)]
            flops = 4 * D * H * (torch.arange(1, T + 1, device=DEVICE) - doc_start).sum().item()
            case = f"attention {H}/{HK} x {D}, documents of {'mean ' * (mean < T)}{mean}"
            ways = attention_ways(doc_start)
            for what, work in (('forward', flops), ('backward', 2.5 * flops)):
                yield from rows_of(case, what, ways, inputs, limit, 'tflops', work, 1 if dry else 30)
            torch.compiler.reset()

# ----------------------------------------------------------------------------------------------------------------

def cross_entropy_rows(dry, limit):
    n, V, widths = (64, 500, (32,)) if dry else (8192, 152_167, (896, 3584))
    Vp = -(-V // 256) * 256
    for C in widths:
        inputs = torch.randn(n, C, device=DEVICE).to(DTYPE), torch.randn(Vp, C, device=DEVICE).to(DTYPE) / C ** 0.5
        targets = torch.randint(V, (n,), device=DEVICE)
        def ref(x, weight):
            return linear_cross_entropy_ref(x, weight, targets, Vp).sum() # a width of V would cost its GEMM the alignment
        def liger(x, weight):
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
            return LigerFusedLinearCrossEntropyLoss()(weight, x, targets)
        ways = {OURS: lambda x, weight: linear_cross_entropy_sum(x, weight, targets, V)[0],
                f'{OURS}, a loss a row': lambda x, weight: linear_cross_entropy(x, weight, targets, V).sum(),
                'torch': ref, 'torch.compile': compiled(ref), 'Liger': liger,
                'F.linear_cross_entropy': lambda x, weight: F.linear_cross_entropy(x, weight, targets)} # of torch 2.13
        yield from rows_of(f'cross-entropy {n} x {C} x {Vp}', 'both', ways, inputs, limit, 'tflops', 6 * n * Vp * C,
                           1 if dry else 10)
        torch.compiler.reset()

# ----------------------------------------------------------------------------------------------------------------

def elementwise_cases(dry):
    """(name, ways, inputs, bytes a forward, bytes a backward); what trains is bf16, but the residual stream float32."""
    for C, heads, D, n_ffn in ((32, 3, 16, 48),) if dry else ((896, 16, 64, 4864), (3584, 32, 128, 18944)):
        B, T = (2, 24) if dry else (8, 2048)
        x, w = torch.randn(B, T, C, device=DEVICE), torch.ones(C, device=DEVICE)
        norm = Norm(GPTConfig(n_embd=C, n_head=1)).to(DEVICE)
        plain = lambda x, w: F.rms_norm(x, w.shape, w, norm.eps)
        def liger_norm(x, w):
            from liger_kernel.transformers.functional import liger_rms_norm
            return liger_rms_norm(x, w, norm.eps, in_place=False)
        ways = {OURS: lambda x, w: functional_call(norm, {'weight': w}, (x,)), 'torch': plain,
                'torch.compile': compiled(plain), 'Liger': liger_norm}
        yield f'RMSNorm {B * T} x {C}, float32', ways, (x, w), 2 * x.nbytes, 3 * x.nbytes

        qk, cos, sin = (torch.randn(B, T, n, D, device=DEVICE) for n in (heads, 1, 1))
        qk, table_bytes = qk.to(DTYPE), cos.nbytes + sin.nbytes
        plain = lambda qk: _rotate(qk, cos, sin)
        ways = {OURS: lambda qk: _Rotary.apply(qk, cos, sin), 'torch': plain, 'torch.compile': compiled(plain)}
        yield f'RoPE {B * T} x {heads} x {D}', ways, (qk,), 2 * qk.nbytes + table_bytes, 2 * qk.nbytes + table_bytes

        h = torch.randn(B, T, 2 * n_ffn, device=DEVICE).to(DTYPE)
        def swiglu(h):
            g, u = h.chunk(2, -1)
            return F.silu(g) * u
        def liger_swiglu(h):
            from liger_kernel.transformers.functional import liger_swiglu
            return liger_swiglu(*h.chunk(2, -1))
        ways = {OURS: swiglu, 'torch.compile': compiled(swiglu), 'Liger': liger_swiglu}
        yield f'SwiGLU {B * T} x {n_ffn}', ways, (h,), h.nbytes * 3 // 2, h.nbytes * 5 // 2

def elementwise_rows(dry, limit):
    for case, ways, inputs, *moved in elementwise_cases(dry):
        for what, work in zip(('forward', 'backward'), moved):
            yield from rows_of(case, what, ways, inputs, limit, 'gbs', work, 1 if dry else 30)
        torch.compiler.reset()

# ----------------------------------------------------------------------------------------------------------------

def goals(rows):
    """A row a goal; one that could not be measured has neither `got` nor `met`."""
    found = {(row['case'], row['pass'], row['of']): row for row in rows}
    for case, what, unit, wanted in GOALS:
        key, _, other = unit.partition(' of ')
        ours, theirs = (found.get((case, what, name), {}).get(key) for name in (OURS, other or OURS))
        row = {'case': case, 'pass': what, 'goal': unit, 'wanted': wanted}
        if ours is not None and theirs is not None:
            got = theirs / ours if other else ours
            row |= {'got': round(got, 2), 'met': got >= wanted, 'share': round(got / wanted, 3)}
        yield row

def main():
    dry, rows = asked_dry(__doc__), []
    torch.manual_seed(0)
    functorch.donated_buffer = False # which a graph that is run again does not allow
    limit = ceilings(dry)
    print(f"this device's best: a bf16 product {limit['tflops']:.0f} TFLOP/s, a copy {limit['gbs']:.0f} GB/s")
    for make in (cross_entropy_rows, attention_rows, elementwise_rows):
        rows += table(make(dry, limit), *COLUMNS, keep=lambda new: save(
            'gpu-kernels', dry, ceilings=limit, rows=rows + new, goals=list(goals(rows + new))))
    table(list(goals(rows)), 'case', 'pass', 'goal', 'wanted', 'got', 'met', 'share')
    return int(any('error' in row for row in rows if row['of'].startswith(OURS)))

if __name__ == '__main__':
    raise SystemExit(main())
