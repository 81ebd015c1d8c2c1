"""
Every Triton kernel at training sizes against float64, on a GPU:

    python bench/correctness.py [--dry]      --dry: tiny shapes, nothing written, also without a GPU

The yardstick of the tests: where kernel, torch and float64 are given the same numbers, the kernel may be off by twice
what the definition in torch and the same dtype is, plus one ulp of the largest value. The definition in float64 runs a row
and a key head at a time, or a chunk of rows, to fit memory. Judged is a run in which empty tensors begin as NaN, so that
what is not written shows; two runs more must be the same to the bit. Then --dry runs under compute-sanitizer's memcheck,
where that is on the PATH, each tensor in an allocation of its own. Exit status 1 if anything is off.

Writes bench/results/gpu-correctness.json.
"""
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch

from bench.common import DEVICE, ROOT, asked_dry, save, table
from kernels.attention import INTERPRETED, attention, attention_ref, documents
from kernels.cross_entropy import IGNORED, linear_cross_entropy, linear_cross_entropy_ref, linear_cross_entropy_sum
from model import alibi_slopes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BACKEND = 'triton' if DEVICE == 'cuda' or INTERPRETED else None
HEADS = {64: (14, 2), 128: (28, 4), 256: (8, 4)} # Qwen2.5-0.5B, 7B, Gemma2-2B
LENGTHS = [[2048], [700, 1, 300, 1047], 16 * [128], [1, 1, 1, 500, 45, 900, 600]] # documents of each row
COLUMNS = ('case', 'of', 'ours', 'torch', 'allowed', 'good', 'same')

def rows_of(lengths):
    """Document lengths of each row -> doc_start (B, T)"""
    begins = [torch.tensor([0, *row[:-1]]).cumsum(0) for row in lengths]
    return torch.stack([begin.repeat_interleave(torch.tensor(row)) for begin, row in zip(begins, lengths)])

def poisoned(f):
    torch.use_deterministic_algorithms(True, warn_only=True) # fills empty tensors with NaN
    try:
        return f()
    finally:
        torch.use_deterministic_algorithms(False)

def judged(case, names, exact, torchs, ours, repeats=True):
    """A row an output. ours: a function, which gives a list as exact and torchs are, the same bits each time if it repeats."""
    runs = poisoned(ours), ours(), ours()
    for name, e, t, o, first, second in zip(names, exact, torchs, *runs):
        off = [(x.double() - e).abs().max().item() for x in (o, t)]
        allowed = 2 * off[1] + torch.finfo(t.dtype).eps * e.abs().max().item()
        yield {'case': case, 'of': name, 'ours': off[0], 'torch': off[1], 'allowed': allowed,
               'good': off[0] <= allowed, 'same': torch.equal(first, second) if repeats else 'not asked'} # NaN is not good

def with_gradients(f, inputs, dy):
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = f(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(y.dtype))]

# ----------------------------------------------------------------------------------------------------------------

def by_head(inputs, do, doc_start, dtype, slopes, **how):
    """o, dq, dk, dv of attention_ref in dtype."""
    q, k, _ = inputs
    (B, _, H, _), HK = q.shape, k.size(2)
    found = [torch.empty(x.shape, dtype=dtype, device=x.device) for x in (q, *inputs)]
    for b, hk in product(range(B), range(HK)):
        heads, own = slice(hk * H // HK, (hk + 1) * H // HK), slice(hk, hk + 1)
        at = [(slice(b, b + 1), slice(None), which) for which in (heads, heads, own, own)] # of o, dq, dk, dv
        ref = lambda *x: attention_ref(*x, doc_start[b:b + 1], slopes=None if slopes is None else slopes[heads], **how)
        part = [x[place].to(dtype) for x, place in zip(inputs, at[1:])]
        for x, place, value in zip(found, at, with_gradients(ref, part, do[at[0]])):
            x[place] = value
    return found

def attention_rows(dry):
    dtype = torch.bfloat16 if DEVICE == 'cuda' else torch.float32 # the interpreter has no bf16
    lengths, heads = (LENGTHS, HEADS) if not dry else \
        ([[75, 1, 64]], dict.fromkeys(HEADS if DEVICE == 'cuda' else [64], (2, 1))) # all sizes for memcheck
    plain = {'softcap': 0.0, 'window': 0, 'slopes': False}
    variants = {'plain': plain, 'soft-cap, window': plain | {'softcap': 5.0, 'window': 60 if dry else 500},
                'ALiBi': plain | {'slopes': True}}
    cases = [(D, name, 0) for D in heads for name in variants] + [(64, 'plain', 9)] # T no multiple of 16
    for D, name, less in cases:
        doc_start = rows_of(lengths)[:, less:].sub(less).clamp(min=0).to(DEVICE)
        (H, HK), (B, T) = heads[D], doc_start.shape
        qkv, how = torch.randn(B, T, H + 2 * HK, D, device=DEVICE).to(dtype), dict(variants[name])
        inputs, do = qkv.split([H, HK, HK], dim=2), torch.randn(B, T, H, D, device=DEVICE).to(dtype) # views, as in model.py
        how['slopes'] = alibi_slopes(H).to(DEVICE) if how['slopes'] else None
        docs = documents(doc_start, BACKEND)
        exact, torchs = (by_head(inputs, do, doc_start, kind, **how) for kind in (torch.float64, dtype))
        for backend in [BACKEND, *(['one-pass'] if BACKEND and D <= 128 else [])]:
            ours = lambda backend=backend: with_gradients(lambda *x: attention(*x, docs, backend=backend, **how), inputs, do)
            case = f'attention {H}/{HK} x {D}, T {T}, {name}, {str(dtype)[6:]}' + ', one pass' * (backend == 'one-pass')
            yield from judged(case, ('o', 'dq', 'dk', 'dv'), exact, torchs, ours, backend != 'one-pass')

# ----------------------------------------------------------------------------------------------------------------

def by_rows(x, weight, targets, g, V, softcap, dtype, rows):
    """losses, dx, dW of linear_cross_entropy_ref in dtype, `rows` at a time."""
    weight = weight.to(dtype)
    losses, dx, dw = [], [], torch.zeros_like(weight)
    for part, y, slope in zip(x.split(rows), targets.split(rows), g.split(rows)):
        ref = lambda *inputs: linear_cross_entropy_ref(*inputs, y, V, softcap)
        loss, more, of_weight = with_gradients(ref, (part.to(dtype), weight), slope)
        losses, dx = [*losses, loss], [*dx, more]
        dw += of_weight
    return [torch.cat(losses), torch.cat(dx), dw]

def cross_entropy_rows(dry):
    n, V, widths = (40, 500, [32]) if dry else (8192, 152_167, [896, 3584])
    for C, dtype, softcap in product(widths, (torch.bfloat16, torch.float32), (0.0, 30.0)):
        if (C, dtype) == (3584, torch.float32):
            continue # training is in bf16
        x = torch.randn(n, C, device=DEVICE).to(dtype)
        weight = (torch.randn(-(-V // 256) * 256, C, device=DEVICE) / C ** 0.5 * 2).to(dtype)
        targets = torch.randint(V, (n,), device=DEVICE).masked_fill(torch.rand(n, device=DEVICE) < 0.3, IGNORED)
        for way, g in (('the sum', torch.ones(n, device=DEVICE)), ('a loss a row', torch.randn(n, device=DEVICE))):
            exact, torchs = (by_rows(x, weight, targets, g, V, softcap, kind, rows)
                             for kind, rows in ((torch.float64, 1024), (dtype, n)))
            def ours():
                if way == 'a loss a row':
                    return with_gradients(lambda *w: linear_cross_entropy(*w, targets, V, softcap), (x, weight), g)
                inputs = [w.detach().requires_grad_() for w in (x, weight)]
                total, losses = linear_cross_entropy_sum(*inputs, targets, V, softcap)
                return [losses, *torch.autograd.grad(total, inputs)]
            yield from judged(f"cross-entropy {n} x {C} x {V}{', soft-cap' * bool(softcap)}, {way}, {str(dtype)[6:]}",
                              ('losses', 'dx', 'dW'), exact, torchs, ours)

# ----------------------------------------------------------------------------------------------------------------

def memcheck():
    """'passed', or what is wrong."""
    if shutil.which('compute-sanitizer') is None:
        return 'absent: no compute-sanitizer on the PATH'
    command = ['compute-sanitizer', '--tool', 'memcheck', '--report-api-errors', 'no', '--error-exitcode', '9',
               sys.executable, __file__, '--dry']
    try: # one tensor an allocation: inside torch's pool a read past a tensor's end is no error
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240,
                              env={**os.environ, 'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'})
    except subprocess.TimeoutExpired:
        return 'failed: not done after 240 s'
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith('=========') and line.strip('= ')]
    return 'passed' if done.returncode == 0 else f"failed, exit status {done.returncode}: {' '.join(said[1:3] + said[-1:])}"

def main():
    dry, rows = asked_dry(__doc__), []
    torch.manual_seed(0)
    for make in (attention_rows, cross_entropy_rows):
        rows += table(make(dry), *COLUMNS,
                      keep=lambda new: save('gpu-correctness', dry, memcheck='not run', rows=rows + new))
    checked = 'not run: --dry is what it runs' if dry else memcheck()
    print(f"\ncompute-sanitizer memcheck: {checked}")
    save('gpu-correctness', dry, memcheck=checked, rows=rows)
    bad = [row for row in rows if not (row['good'] and row['same'])]
    print(f"{len(rows) - len(bad)} of {len(rows)} good and the same twice")
    return int(bool(bad) or checked.startswith('failed'))

if __name__ == '__main__':
    raise SystemExit(main())
