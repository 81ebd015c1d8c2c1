"""
The first run of the forward in kernels/attention_hopper.py on a Hopper GPU:

    python bench/hopper.py [--dry]      about 20 seconds; --dry: nothing, where there is no Hopper

First o, dq, dk and dv against float64, by the yardstick of bench/correctness.py, for heads of 128 channels, with
and without a window; then the time of the forward beside Triton's for documents of 2,048 tokens. Should it never
end, two warps wait for each other: `timeout 60` belongs in front.

Writes bench/results/gpu-hopper.json. What the times ought to be is in docs/past_triton.md.
"""
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, parse_dry, save, table
from bench.correctness import COLUMNS, HEADS, LENGTHS, attention_by_head, compare, doc_start_of, with_gradients
from kernels.attention import attention, documents

D = 128
H, HK = HEADS[D]

def problem(lengths):
    """-> q, k, v as views of one tensor, the gradient of the output, and doc_start."""
    doc_start = doc_start_of(lengths).to(DEVICE)
    B, T = doc_start.shape
    qkv = torch.randn(B, T, H + 2 * HK, D, device=DEVICE, dtype=torch.bfloat16)
    return qkv.split([H, HK, HK], dim=2), torch.randn(B, T, H, D, device=DEVICE, dtype=torch.bfloat16), doc_start

def correctness_rows():
    """Yields the rows of every case, as `compare` does."""
    for window in (0, 500):
        inputs, do, doc_start = problem(LENGTHS)
        options = {'softcap': 0.0, 'window': window}
        exact, reference = (attention_by_head(inputs, do, doc_start, dtype, None, **options)
                            for dtype in (torch.float64, torch.bfloat16))
        forward = partial(attention, docs=documents(doc_start, 'hopper'), backend='hopper', **options)
        case = f'hopper {H}/{HK} x {D}, window {window}'
        yield from compare(case, ('o', 'dq', 'dk', 'dv'), exact, reference, lambda: with_gradients(forward, inputs, do))

def speed_rows():
    """Yields the time of both forwards, and of their FLOPs those that a causal document of 2,048 tokens needs."""
    from triton.testing import do_bench
    inputs, _, doc_start = problem(8 * [[2048]])
    B, T = doc_start.shape
    flops = 2 * 2 * B * H * D * T * (T + 1) / 2
    for backend in ('hopper', 'triton'):
        docs = documents(doc_start, backend)
        ms = do_bench(lambda: attention(*inputs, docs, backend=backend), warmup=100, rep=200, return_mode='median')
        yield {'forward': backend, 'ms': ms, 'TFLOP/s': flops / ms / 1e9}

def main():
    dry = parse_dry(__doc__)
    if DEVICE == 'cpu' or torch.cuda.get_device_capability()[0] != 9:
        print("hopper: no GPU of compute capability 9.0; tests/test_attention_hopper.py executes the kernel's source")
        return 0
    torch.manual_seed(0)
    rows = table(correctness_rows(), *COLUMNS, on_row=lambda rows: save('gpu-hopper', dry, rows=rows))
    good = all(row['good'] and row['same'] for row in rows)
    if good:
        speed = table(speed_rows(), 'forward', 'ms', 'TFLOP/s')
        save('gpu-hopper', dry, rows=rows, speed=speed)
    return int(not good)

if __name__ == '__main__':
    raise SystemExit(main())
