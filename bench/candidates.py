"""
Times twelve tiles of the attention kernels on a GPU that their machine code does not decide between:

    python bench/candidates.py [--dry]      --dry: two of them on tiny shapes; without a GPU, TRITON_INTERPRET=1

All are compiled by a pool of processes, then timed in turn, 8 rows of 2,048 tokens; the backward is timed
whole. What ships is timed with them, and nothing is changed: bench/tune.py tries all tiles and writes the
best. share is of what a bf16 product of 8,192^3 reached in the same run.

Writes bench/results/gpu-tune.json.
"""
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

from bench.common import DEVICE, ceilings, measure, parse_dry, save, table
from bench.prebuild import PROCESSES
from bench.tune import HEADS, compile_one, timed
from kernels import attention as att

# {(head size, pass): (queries of a tile, keys of a tile, warps, stages)}
CANDIDATES = {
    (64, 'forward'): [(128, 64, 4, 2), (128, 64, 8, 2), (128, 128, 8, 2)],
    (128, 'forward'): [(128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 2)],
    (64, 'dkv'): [(64, 128, 8, 2), (64, 64, 4, 2)],
    (64, 'dq'): [(128, 64, 8, 2), (128, 64, 4, 2)],
    (128, 'dq'): [(128, 64, 8, 2), (64, 64, 4, 2)]}

def rows_of(dry, limits):
    """Yields a row for each candidate."""
    B, T = (1, 48) if dry else (8, 2048)
    hopper = DEVICE == 'cpu' or torch.cuda.get_device_capability()[0] in (9, 10)
    sm = 90 if hopper else 80
    for (D, step), configs in CANDIDATES.items():
        if dry and (D, step) != (64, 'forward'):
            continue
        shipped = att.CONFIGS[sm, D, step]
        with_config = timed(D, step, (2, 1) if dry else HEADS[D], T, B)
        tried = configs[:2] if dry else list(dict.fromkeys([shipped, *configs]))
        measured = measure({config: with_config(config) for config in tried}, 1 if dry else 20)
        att.CONFIGS[sm, D, step] = shipped
        base = measured.get(shipped, {}).get('ms')
        for config, row in measured.items():
            if 'ms' in row:
                flops = 4 * D * HEADS[D][0] * B * T * (T + 1) / 2 * (1 if step == 'forward' else 2.5)
                tflops = flops / row['ms'] / 1e9
                row |= {'tflops': round(tflops, 1), 'share': round(tflops / limits['tflops'], 3)}
                if base:
                    row['of shipped'] = round(row['ms'] / base, 3)
            yield {'D': D, 'pass': step, 'tile': config, 'ships': config == shipped, **row}

def main():
    dry = parse_dry(__doc__)
    torch.manual_seed(0)
    if not dry:
        jobs = [(D, step, config) for (D, step), configs in CANDIDATES.items() for config in configs]
        with ProcessPoolExecutor(min(PROCESSES, os.cpu_count()), get_context('spawn')) as pool:
            list(pool.map(compile_one, jobs))
    limits = ceilings(dry)
    rows = table(rows_of(dry, limits), 'D', 'pass', 'tile', 'ships', 'ms', 'least', 'most', 'of shipped',
                 'tflops', 'share', on_row=lambda rows: save('gpu-tune', dry, ceilings=limits, rows=rows))
    return int(any('error' in row for row in rows if row['ships']))

if __name__ == '__main__':
    raise SystemExit(main())
