"""
Compares every Triton kernel at training sizes with float64, on a GPU:

    python bench/correctness.py plain         what training Qwen2.5 launches: heads of 64 and 128 channels, the
                                              head's loss in bf16, norm, rotation and SwiGLU
    python bench/correctness.py variants      the rest: soft-cap, window, ALiBi, heads of 256, the loss in float32
                                              and with a soft-cap
    python bench/correctness.py memcheck      `plain --dry` under compute-sanitizer, if that is on the PATH
    ... --dry                                 tiny shapes, nothing written, also without a GPU

The tolerance is that of the tests. The kernel, the plain torch definition, and the definition in
float64 get the same numbers; the kernel may be off by twice the error of the torch definition in
the same dtype, plus one ulp of the largest value. The float64 definition runs one row and key head
at a time, or one chunk of rows, to fit into memory.

The kernel runs three times. In the first run, whose error is compared, empty tensors are filled
with NaN, so that an element that is never written is found; the other two must be equal to the bit.
memcheck gives each tensor an allocation of its own, and its shapes are such that Triton takes the same compiled kernels
from its cache. The exit status is 1 if anything fails.

Writes bench/results/gpu-PART.json, where `plain` is called correctness.
"""
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, ROOT, parse_part, save, table
from kernels import elementwise
from kernels.attention import INTERPRETED, attention, attention_ref, documents
from kernels.cross_entropy import IGNORED, linear_cross_entropy, linear_cross_entropy_ref, linear_cross_entropy_sum
from kernels.positions import alibi_slopes
from model import ACTIVATIONS, _RMSNorm, _rotate

BACKEND = 'triton' if DEVICE == 'cuda' or INTERPRETED else None
# {head size: (query heads, key heads)} of Qwen2.5-0.5B, Qwen2.5-7B and Gemma2-2B.
HEADS = {64: (14, 2), 128: (28, 4), 256: (8, 4)}
# The document lengths of each row.
LENGTHS = [
    [2048],
    [700, 1, 300, 1047],
    16 * [128],
    [1, 1, 1, 500, 45, 900, 600]]
COLUMNS = ('case', 'of', 'ours', 'torch', 'allowed', 'good', 'same')

def doc_start_of(lengths):
    """The document lengths of each row -> doc_start (B, T), where the document of each token begins."""
    rows = []
    for row in lengths:
        starts = torch.tensor([0, *row[:-1]]).cumsum(0)
        rows.append(starts.repeat_interleave(torch.tensor(row)))
    return torch.stack(rows)

def with_nan_filled_memory(f):
    """f() while torch.empty and its relatives return tensors full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return f()
    finally:
        torch.use_deterministic_algorithms(False)

def max_error(x, exact):
    """The largest absolute difference between x and its float64 values."""
    return (x.double() - exact).abs().max().item()

def compare(case, names, exact, reference, kernel):
    """Yields a row of COLUMNS for each output of a kernel.

    exact, reference: lists of outputs, in float64 and by the torch definition. kernel: a function
    that returns such a list, of the same bits each time.
    """
    poisoned = with_nan_filled_memory(kernel)
    first = kernel()
    second = kernel()
    for name, e, r, output, *repeats in zip(names, exact, reference, poisoned, first, second):
        kernel_error = max_error(output, e)
        torch_error = max_error(r, e)
        ulp = torch.finfo(r.dtype).eps * e.abs().max().item()
        allowed = 2 * torch_error + ulp
        yield {'case': case,
               'of': name,
               'ours': kernel_error,
               'torch': torch_error,
               'allowed': allowed,
               'good': kernel_error <= allowed, # False if the error is NaN
               'same': torch.equal(*repeats)}

def with_gradients(f, inputs, dy):
    """[y, gradient of each input] for y = f(*inputs) and the gradient dy of y."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = f(*inputs)
    gradients = torch.autograd.grad(y, inputs, dy.to(y.dtype))
    return [y.detach(), *gradients]

# --------------------------------------------------------------------------------------------------
# attention

def attention_by_head(inputs, do, doc_start, dtype, slopes, **options):
    """o, dq, dk, dv of attention_ref in dtype, for one row and key head at a time to save memory."""
    q, k, _ = inputs
    B, _, H, _ = q.shape
    HK = k.size(2)
    outputs = [torch.empty_like(x, dtype=dtype) for x in (q, *inputs)]
    for b, hk in product(range(B), range(HK)):
        query_heads = slice(hk * H // HK, (hk + 1) * H // HK)
        row = slice(b, b + 1)
        of_q = (row, slice(None), query_heads)
        of_k = (row, slice(None), slice(hk, hk + 1))

        def ref(*qkv):
            head_slopes = None if slopes is None else slopes[query_heads]
            return attention_ref(*qkv, doc_start[row], slopes=head_slopes, **options)

        part = [x[index].to(dtype) for x, index in zip(inputs, (of_q, of_k, of_k))]
        values = with_gradients(ref, part, do[of_q])
        for output, index, value in zip(outputs, (of_q, of_q, of_k, of_k), values):
            output[index] = value
    return outputs

def attention_cases(part, dry=False):
    """[(head size, variant, tokens left out at the beginning of each row)] of a part."""
    # Without 9 tokens, T is not a multiple of 16.
    plain = [(64, 'plain', 0), (64, 'plain', 9)]
    if not dry: # the rest of it
        plain += [(128, 'plain', 0), (128, 'soft-cap, window', 0)]
    if part == 'plain':
        return plain
    cases = list(product(HEADS, ('plain', 'soft-cap, window', 'ALiBi'), [0]))
    if dry and DEVICE == 'cpu':
        cases = [case for case in cases if case[0] == 64] # the interpreter is slow
    return [case for case in cases if case not in plain]

def attention_problem(D, variant, first, lengths, heads, window=500):
    """-> (q, k, v), the gradient of the output, doc_start and the options of a case."""
    doc_start = doc_start_of(lengths)[:, first:] - first
    doc_start = doc_start.clamp(min=0).to(DEVICE)
    B, T = doc_start.shape
    H, HK = heads
    dtype = torch.bfloat16 if DEVICE == 'cuda' else torch.float32 # the interpreter has no bf16
    qkv = torch.randn(B, T, H + 2 * HK, D, device=DEVICE).to(dtype)
    inputs = qkv.split([H, HK, HK], dim=2) # views, as in model.py
    do = torch.randn(B, T, H, D, device=DEVICE).to(dtype)
    options = {'softcap': 0.0, 'window': 0, 'slopes': None}
    if variant == 'soft-cap, window':
        options |= {'softcap': 5.0, 'window': window}
    if variant == 'ALiBi':
        options['slopes'] = alibi_slopes(H).to(DEVICE)
    return inputs, do, doc_start, options

def attention_kernel(inputs, do, doc_start, options):
    """A function that returns o, dq, dk and dv of the Triton kernels."""
    docs = documents(doc_start, BACKEND)

    def kernel():
        return with_gradients(lambda *qkv: attention(*qkv, docs, backend=BACKEND, **options), inputs, do)

    return kernel

def attention_rows(part, dry):
    """Yields the rows of every case of a part, as `compare` does."""
    # 144 tokens, which 16 divides as it divides 2,048, and two key heads, as one would be compiled as a
    # constant: so memcheck takes the kernels of `plain` from Triton's cache.
    lengths = [[79, 1, 64]] if dry else LENGTHS
    for D, variant, first in attention_cases(part, dry):
        heads = (4, 2) if dry else HEADS[D]
        inputs, do, doc_start, options = attention_problem(D, variant, first, lengths, heads, 60 if dry else 500)
        dtype = do.dtype
        exact = attention_by_head(inputs, do, doc_start, torch.float64, **options)
        reference = attention_by_head(inputs, do, doc_start, dtype, **options)
        case = f"attention {heads[0]}/{heads[1]} x {D}, T {do.size(1)}, {variant}, {str(dtype)[6:]}"
        kernel = attention_kernel(inputs, do, doc_start, options)
        yield from compare(case, ('o', 'dq', 'dk', 'dv'), exact, reference, kernel)

# --------------------------------------------------------------------------------------------------
# cross-entropy

def cross_entropy_by_chunk(x, weight, targets, g, V, softcap, dtype, chunk):
    """losses, dx, dW of linear_cross_entropy_ref in dtype, computed for `chunk` rows at a time."""
    weight = weight.to(dtype)
    losses = []
    dx = []
    dw = torch.zeros_like(weight)
    for rows in zip(x.split(chunk), targets.split(chunk), g.split(chunk)):
        x_rows, y, dy = rows
        ref = lambda *inputs: linear_cross_entropy_ref(*inputs, y, V, softcap)
        inputs = (x_rows.to(dtype), weight)
        loss, grad_x, grad_weight = with_gradients(ref, inputs, dy)
        losses.append(loss)
        dx.append(grad_x)
        dw += grad_weight
    return [torch.cat(losses), torch.cat(dx), dw]

def cross_entropy_cases(part, widths):
    """Yields (channels, dtype, soft-cap) of a part."""
    for C, dtype, softcap in product(widths, (torch.bfloat16, torch.float32), (0.0, 30.0)):
        if (C, dtype) == (3584, torch.float32):
            continue # training is in bf16
        is_plain = (C, dtype, softcap) == (widths[0], torch.bfloat16, 0.0)
        if is_plain == (part == 'plain'):
            yield C, dtype, softcap

def cross_entropy_kernels(x, weight, targets, V, softcap):
    """-> ((name, a function that returns losses, dx and dW, the gradients of the losses), ...)"""
    def summed():
        inputs = [w.detach().requires_grad_() for w in (x, weight)]
        total, losses = linear_cross_entropy_sum(*inputs, targets, V, softcap)
        return [losses, *torch.autograd.grad(total, inputs)]

    def per_row():
        return with_gradients(lambda *inputs: linear_cross_entropy(*inputs, targets, V, softcap), (x, weight), g_rows)

    g_rows = torch.randn(len(x), device=DEVICE)
    return ('the sum', summed, torch.ones_like(g_rows)), ('a loss a row', per_row, g_rows)

def cross_entropy_rows(part, dry):
    """Yields the rows of every case of a part, as `compare` does."""
    n, V, widths = (40, 500, [32]) if dry else (8192, 152_167, [896, 3584])
    for C, dtype, softcap in cross_entropy_cases(part, widths):
        x = torch.randn(n, C, device=DEVICE).to(dtype)
        padded = -(-V // 256) * 256
        weight = torch.randn(padded, C, device=DEVICE) / C ** 0.5 * 2
        weight = weight.to(dtype)
        targets = torch.randint(V, (n,), device=DEVICE)
        ignored = torch.rand(n, device=DEVICE) < 0.3
        targets = targets.masked_fill(ignored, IGNORED)

        for name, kernel, g in cross_entropy_kernels(x, weight, targets, V, softcap):
            inputs = (x, weight, targets, g, V, softcap)
            exact = cross_entropy_by_chunk(*inputs, torch.float64, 1024)
            reference = cross_entropy_by_chunk(*inputs, dtype, n)
            case = f"cross-entropy {n} x {C} x {V}{', soft-cap' * bool(softcap)}, {name}"
            yield from compare(f'{case}, {str(dtype)[6:]}', ('losses', 'dx', 'dW'),
                               exact, reference, kernel)

# --------------------------------------------------------------------------------------------------
# norm, rotation, SwiGLU

def elementwise_problems(dry, n_tokens=8192):
    """Yields (name, kernel, definition in torch, inputs) at Qwen2.5-0.5B's sizes; f(*inputs) -> a list of outputs."""
    if BACKEND is None:
        return # they have no path without Triton
    C, H, HK, D, n_ffn = (32, 4, 2, 16, 48) if dry else (896, 14, 2, 64, 4864)
    T = 40 if dry else n_tokens
    dtype = torch.bfloat16 if DEVICE == 'cuda' else torch.float32
    x = torch.randn(1, T, C, device=DEVICE)
    w = torch.randn(C, device=DEVICE)
    yield (f'norm {T} x {C}', lambda x, w: [elementwise.rms_norm(x, w, 1e-6, dtype)],
           lambda x, w: [_RMSNorm.apply(x, w, 1e-6)], (x, w))

    angle = torch.randn(1, T, 1, D // 2, device=DEVICE)
    cos = torch.cat((angle.cos(), angle.cos()), -1)
    sin = torch.cat((-angle.sin(), angle.sin()), -1)
    qkv = torch.randn(1, T, H + 2 * HK, D, device=DEVICE).to(dtype)

    def rotated(qkv):
        q, k, v = qkv.split([H, HK, HK], 2)
        return [*(_rotate(part, cos.to(torch.promote_types(torch.float32, part.dtype)),
                          sin.to(torch.promote_types(torch.float32, part.dtype))) for part in (q, k)), v]

    yield f'rotation {T} x {H}/{HK} x {D}', lambda qkv: elementwise.rotated(qkv, cos, sin, H), rotated, (qkv,)

    def gated(h):
        g, u = h.chunk(2, -1)
        return [ACTIVATIONS['silu'](g) * u]

    h = torch.randn(1, T, 2 * n_ffn, device=DEVICE).to(dtype)
    yield f'SwiGLU {T} x {n_ffn}', lambda h: [elementwise.swiglu(h)], gated, (h,)

def outputs_and_gradients(f, inputs, dys=None):
    """[outputs, gradient of each input] of f(*inputs) -> a list, for the gradients dys of the outputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    ys = f(*inputs)
    gradients = torch.autograd.grad(ys, inputs, [dy.to(y.dtype) for y, dy in zip(ys, dys)])
    return [*(y.detach() for y in ys), *gradients]

def elementwise_rows(dry):
    """Yields the rows of every case, as `compare` does."""
    for name, kernel, definition, inputs in elementwise_problems(dry):
        ys = kernel(*inputs)
        dys = [torch.randn(y.shape, device=DEVICE).to(y.dtype) for y in ys]
        exact = outputs_and_gradients(definition, [x.double() for x in inputs], dys)
        reference = outputs_and_gradients(definition, inputs, dys)
        rounded = [r.to(y.dtype) for r, y in zip(reference, ys)] + reference[len(ys):]
        names = [f'output {i}' for i in range(len(ys))] + [f'gradient {i}' for i in range(len(inputs))]
        yield from compare(f'{name}, {str(ys[0].dtype)[6:]}', names, exact, rounded,
                           lambda: outputs_and_gradients(kernel, inputs, dys))

# --------------------------------------------------------------------------------------------------

def memcheck():
    """Runs `plain --dry` under compute-sanitizer -> 'passed', 'absent: ...', or 'failed' and its output."""
    if shutil.which('compute-sanitizer') is None:
        return 'absent: no compute-sanitizer on the PATH'
    command = ['compute-sanitizer', '--tool', 'memcheck', '--report-api-errors', 'no',
               '--error-exitcode', '9', sys.executable, __file__, 'plain', '--dry']
    # Each tensor needs an allocation of its own: inside torch's memory pool, memcheck does not see
    # a read past the end of a tensor.
    env = {**os.environ, 'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, timeout=240,
                              capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return 'failed: not done after 240 s'
    if done.returncode == 0:
        return 'passed'
    output = (done.stdout + done.stderr).splitlines()
    messages = [x for x in output if x.startswith('=========') and x.strip('= ')]
    summary = ' '.join(messages[1:3] + messages[-1:])
    return f"failed, exit status {done.returncode}: {summary}"

def rows_of(part, dry):
    """Yields every row of a part."""
    yield from attention_rows(part, dry)
    yield from cross_entropy_rows(part, dry)
    if part == 'plain':
        yield from elementwise_rows(dry)

def main():
    part, dry = parse_part(__doc__, ('plain', 'variants', 'memcheck'))
    if part == 'memcheck':
        outcome = 'not run: --dry' if dry else memcheck()
        print(f"compute-sanitizer memcheck: {outcome}")
        save('gpu-memcheck', dry, memcheck=outcome)
        return int(outcome.startswith('failed'))
    torch.manual_seed(0)
    name = 'correctness' if part == 'plain' else part
    rows = table(rows_of(part, dry), *COLUMNS, on_row=lambda rows: save(f'gpu-{name}', dry, rows=rows))
    failed = [row for row in rows if not (row['good'] and row['same'])]
    print(f"{len(rows) - len(failed)} of {len(rows)} good and the same twice")
    return int(bool(failed))

if __name__ == '__main__':
    raise SystemExit(main())
