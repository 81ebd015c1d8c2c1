"""
Compares every Triton kernel at training sizes with float64, on a GPU:

    python bench/correctness.py [--dry]      --dry: tiny shapes, nothing written, also without a GPU

The tolerance is that of the tests. The kernel, the plain torch definition, and the definition in
float64 get the same numbers; the kernel may be off by twice the error of the torch definition in
the same dtype, plus one ulp of the largest value. The float64 definition runs one row and key head
at a time, or one chunk of rows, to fit into memory.

The kernel runs three times. In the first run, whose error is compared, empty tensors are filled
with NaN, so that an element that is never written is found; the other two must be equal to the bit.
Then `--dry` runs under compute-sanitizer's memcheck, if that is on the PATH, with each tensor in an
allocation of its own; its shapes are such that Triton takes the same compiled kernels from its cache.
The exit status is 1 if anything fails.

Writes bench/results/gpu-correctness.json.
"""
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, ROOT, parse_dry, save, table
from kernels.attention import INTERPRETED, attention, attention_ref, documents
from kernels.cross_entropy import IGNORED, linear_cross_entropy, linear_cross_entropy_ref, linear_cross_entropy_sum
from model import alibi_slopes

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

def compare(case, names, exact, reference, kernel, deterministic=True):
    """Yields a row of COLUMNS for each output of a kernel.

    exact, reference: lists of outputs, in float64 and by the torch definition. kernel: a function
    that returns such a list; deterministic: whether it must return the same bits each time.
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
               'same': torch.equal(*repeats) if deterministic else 'not asked'}

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

def attention_rows(dry):
    """Yields the rows of every case, as `compare` does."""
    dtype = torch.bfloat16 if DEVICE == 'cuda' else torch.float32 # the interpreter has no bf16
    lengths = LENGTHS
    heads = HEADS
    if dry:
        lengths = [[79, 1, 64]] # 144 tokens: 16 divides them, as it divides 2,048
        sizes = HEADS if DEVICE == 'cuda' else [64] # on a GPU all sizes, for memcheck
        heads = dict.fromkeys(sizes, (4, 2)) # one key head would be compiled as a constant
    # The last case leaves out the first 9 tokens of each row, so that T is not a multiple of 16.
    cases = list(product(heads, ('plain', 'soft-cap, window', 'ALiBi'), [0]))
    cases.append((64, 'plain', 9))
    for D, variant, first in cases:
        doc_start = doc_start_of(lengths)[:, first:] - first
        doc_start = doc_start.clamp(min=0).to(DEVICE)
        B, T = doc_start.shape
        H, HK = heads[D]
        qkv = torch.randn(B, T, H + 2 * HK, D, device=DEVICE).to(dtype)
        inputs = qkv.split([H, HK, HK], dim=2) # views, as in model.py
        do = torch.randn(B, T, H, D, device=DEVICE).to(dtype)
        options = {'softcap': 0.0, 'window': 0, 'slopes': None}
        if variant == 'soft-cap, window':
            options |= {'softcap': 5.0, 'window': 60 if dry else 500}
        if variant == 'ALiBi':
            options['slopes'] = alibi_slopes(H).to(DEVICE)
        docs = documents(doc_start, BACKEND)
        exact = attention_by_head(inputs, do, doc_start, torch.float64, **options)
        reference = attention_by_head(inputs, do, doc_start, dtype, **options)
        for backend in (BACKEND, 'one-pass'):
            one_pass = backend == 'one-pass'
            if one_pass and (BACKEND is None or D > 64):
                continue

            def kernel():
                f = lambda *qkv: attention(*qkv, docs, backend=backend, **options)
                return with_gradients(f, inputs, do)

            case = f'attention {H}/{HK} x {D}, T {T}, {variant}, {str(dtype)[6:]}'
            yield from compare(case + ', one pass' * one_pass, ('o', 'dq', 'dk', 'dv'),
                               exact, reference, kernel, deterministic=not one_pass)

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

def cross_entropy_rows(dry):
    """Yields the rows of every case, as `compare` does."""
    n, V, widths = (40, 500, [32]) if dry else (8192, 152_167, [896, 3584])
    dtypes = (torch.bfloat16, torch.float32)
    for C, dtype, softcap in product(widths, dtypes, (0.0, 30.0)):
        if (C, dtype) == (3584, torch.float32):
            continue # training is in bf16
        x = torch.randn(n, C, device=DEVICE).to(dtype)
        padded = -(-V // 256) * 256
        weight = torch.randn(padded, C, device=DEVICE) / C ** 0.5 * 2
        weight = weight.to(dtype)
        targets = torch.randint(V, (n,), device=DEVICE)
        ignored = torch.rand(n, device=DEVICE) < 0.3
        targets = targets.masked_fill(ignored, IGNORED)

        def summed():
            inputs = [w.detach().requires_grad_() for w in (x, weight)]
            total, losses = linear_cross_entropy_sum(*inputs, targets, V, softcap)
            return [losses, *torch.autograd.grad(total, inputs)]

        def per_row():
            f = lambda *inputs: linear_cross_entropy(*inputs, targets, V, softcap)
            return with_gradients(f, (x, weight), g_rows)

        g_sum = torch.ones(n, device=DEVICE)
        g_rows = torch.randn(n, device=DEVICE)
        for name, kernel, g in (('the sum', summed, g_sum), ('a loss a row', per_row, g_rows)):
            inputs = (x, weight, targets, g, V, softcap)
            exact = cross_entropy_by_chunk(*inputs, torch.float64, 1024)
            reference = cross_entropy_by_chunk(*inputs, dtype, n)
            case = f"cross-entropy {n} x {C} x {V}{', soft-cap' * bool(softcap)}, {name}"
            yield from compare(f'{case}, {str(dtype)[6:]}', ('losses', 'dx', 'dW'),
                               exact, reference, kernel)

# --------------------------------------------------------------------------------------------------

def memcheck():
    """Runs `--dry` under compute-sanitizer -> 'passed', 'absent: ...', or 'failed' and its output."""
    if shutil.which('compute-sanitizer') is None:
        return 'absent: no compute-sanitizer on the PATH'
    command = ['compute-sanitizer', '--tool', 'memcheck', '--report-api-errors', 'no',
               '--error-exitcode', '9', sys.executable, __file__, '--dry']
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

def main():
    dry = parse_dry(__doc__)
    torch.manual_seed(0)
    rows = []

    def save_partial(new):
        save('gpu-correctness', dry, memcheck='not run', rows=rows + new)

    for rows_of_kernel in (attention_rows, cross_entropy_rows):
        rows += table(rows_of_kernel(dry), *COLUMNS, on_row=save_partial)
    checked = 'not run: --dry is what it runs' if dry else memcheck()
    print(f"\ncompute-sanitizer memcheck: {checked}")
    save('gpu-correctness', dry, memcheck=checked, rows=rows)
    failed = [row for row in rows if not (row['good'] and row['same'])]
    print(f"{len(rows) - len(failed)} of {len(rows)} good and the same twice")
    return int(bool(failed) or checked.startswith('failed'))

if __name__ == '__main__':
    raise SystemExit(main())
