"""
Compiles the kernels of a part of bench/correctness.py with all cores at once, into Triton's cache, for the scripts
that run after it on a GPU:

    python bench/prebuild.py plain             what training launches
    python bench/prebuild.py variants          what bench/correctness.py variants launches
    ... --dry                                  two of them, on tiny shapes; runs without a GPU under TRITON_INTERPRET=1

Each process of the pool launches what it compiles once, on few tokens, which Triton specialises as it does those of
training: heads, alignments and whether 16 divides a size are the same. The exit status is 1 if one of them fails.

Writes bench/results/gpu-prebuild-PART.json: the seconds of each job.
"""
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import correctness
from bench.common import DEVICE, parse_part, save, table
from bench.correctness import HEADS

PROCESSES = 12
V = 152_167

def jobs_of(part):
    """[(kind, arguments of its function below)]"""
    jobs = [('attention', *case, HEADS[case[0]], 256) for case in correctness.attention_cases(part)]
    cross_entropy = {(dtype, softcap) for _, dtype, softcap in correctness.cross_entropy_cases(part, [896])}
    jobs += [('cross-entropy', *case) for case in sorted(cross_entropy, key=str)]
    return jobs + [('norm, rotation, SwiGLU',)]

def attention(D, variant, first, heads, T):
    problem = correctness.attention_problem(D, variant, first, [[T]], heads)
    correctness.attention_kernel(*problem)()

def cross_entropy(dtype, softcap, n=64, columns=V):
    x = torch.randn(n, 896, device=DEVICE).to(dtype)
    weight = torch.randn(-(-columns // 256) * 256, 896, device=DEVICE).to(dtype)
    targets = torch.randint(columns, (n,), device=DEVICE)
    for _, kernel, _ in correctness.cross_entropy_kernels(x, weight, targets, columns, softcap):
        kernel()

def elementwise():
    for _, kernel, _, inputs in correctness.elementwise_problems(DEVICE == 'cpu', 64):
        ys = kernel(*inputs)
        correctness.outputs_and_gradients(kernel, inputs, ys)

KINDS = {'attention': attention, 'cross-entropy': cross_entropy, 'norm, rotation, SwiGLU': elementwise}

def compile_one(job):
    """Runs a job -> a row of the table."""
    kind, *arguments = job
    begin = time.perf_counter()
    row = {'kernels': kind, 'of': ', '.join(map(str, arguments))}
    try:
        KINDS[kind](*arguments)
        if DEVICE == 'cuda':
            torch.cuda.synchronize()
    except Exception as e: # whatever a compiler raises is reported in its row
        row['error'] = f'{type(e).__name__}: {e}'.splitlines()[0][:160]
    return row | {'s': round(time.perf_counter() - begin, 1)}

def rows_of(part, dry):
    if dry:
        yield from map(compile_one, [('attention', 64, 'plain', 0, False, (2, 1), 32), ('norm, rotation, SwiGLU',)])
        return
    with ProcessPoolExecutor(min(PROCESSES, os.cpu_count()), get_context('spawn')) as pool:
        yield from pool.map(compile_one, jobs_of(part))

def main():
    part, dry = parse_part(__doc__, ('plain', 'variants'))
    begin = time.perf_counter()
    rows = table(rows_of(part, dry), 'kernels', 'of', 's')
    seconds = time.perf_counter() - begin
    print(f"{seconds:.1f} s in all")
    save(f'gpu-prebuild-{part}', dry, seconds=round(seconds, 1), rows=rows)
    return int(any('error' in row for row in rows))

if __name__ == '__main__':
    raise SystemExit(main())
