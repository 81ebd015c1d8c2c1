"""
Chooses the tiles of the Triton kernels by their times on this GPU, and writes them into the kernels' files:

    python bench/tune.py            attention's CONFIGS for this architecture, and cross-entropy's BLOCK and WARPS
    python bench/tune.py --dry      two candidates on tiny shapes, nothing written: with TRITON_INTERPRET=1, no GPU

A candidate is timed with the other passes as they stand. One that does not compile, wants more shared memory than there
is, or breaks the limits of bench/aot.py in any variant is dropped. Afterwards: ./test.sh --all and bench/gpu.sh correctness.
"""
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby, product
from multiprocessing import get_context
from pathlib import Path

import torch

from bench import aot
from bench.common import DEVICE, ROOT, asked_dry, measure, table
from bench.kernel_speed import DTYPE, call_of, packed
from files import atomically, progress
from kernels import attention as att
from kernels import cross_entropy as ce
from kernels.attention import INTERPRETED

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

HEADS = {64: (14, 2), 128: (28, 4), 256: (8, 4)} # Qwen2.5-0.5B, 7B, Gemma2-2B
PASSES = 'forward', 'dq', 'dkv', 'one-pass'
REGISTERS = 200 # a thread, of the accumulators and the scores alone

def candidates(D, step):
    """Tiles, warps and stages whose accumulators fit the registers."""
    for BM, BN, warps, stages in product((16, 32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3)):
        floats = {'dkv': 2 * BN * (D + BM), 'one-pass': 2 * BN * (D + BM) + BM * D}.get(step, BM * (D + BN))
        if BM * BN >= 1024 and floats <= REGISTERS * 32 * warps:
            yield BM, BN, warps, stages

def timed(D, step, heads, T, rows):
    """config -> a call of the pass with it: the forward, or the whole backward."""
    H, HK = heads
    docs, backend = att.documents(packed(rows, T, T), 'triton'), 'one-pass' if step == 'one-pass' else 'triton'
    inputs = [torch.randn(rows, T, n, D, device=DEVICE).to(DTYPE) for n in (H, HK, HK)]
    call = call_of(lambda *qkv: att.attention(*qkv, docs, backend=backend), inputs,
                   'forward' if step == 'forward' else 'backward')
    def of(config):
        def way():
            att.CONFIGS[att._sm(inputs[0].device), D, step] = config
            return call()
        return way
    return of

def compile_one(job):
    """In a process of its own, into Triton's cache. What cannot be compiled shows when it is timed."""
    D, step, config = job
    measure({config: timed(D, step, HEADS[D], 256, 1)(config)}, 1)

def fits(key, config):
    """Whether the limits of bench/aot.py hold in every variant, as tests/test_aot.py has it."""
    sm, D, step = key
    shipped, att.CONFIGS = att.CONFIGS, {key: config}
    try:
        made = [aot.compiled(sm, *case) for _, _, *case in aot.cases() if case[0].fn.__module__ == att.__name__]
    finally:
        att.CONFIGS = shipped
    return all(row['spills'] <= aot.SPILLS and row['shared'] <= aot.SHARED[sm]
               and (sm < 90 or row['wgmma'] or D == 256 and step != 'forward') for row in made)

def outcome(key, rows, ranked, old, new):
    ms = lambda config: rows.get(config, {}).get('ms')
    return {'pass': key, 'tried': len(rows), 'ran': len(ranked), 'old': old, 'old ms': ms(old), 'new': new,
            'new ms': ms(new)}

def best_tiles(key, dry):
    """The fastest configuration of a (sm, head size, pass) that fits."""
    _, D, step = key
    tried, shipped = list(candidates(D, step)), att.CONFIGS[key]
    tried, of = (tried[:2], timed(D, step, (2, 1), 48, 1)) if dry else (tried, timed(D, step, HEADS[D], 2048, 8))
    rows = measure({config: of(config) for config in tried}, 1 if dry else 20)
    att.CONFIGS[key] = shipped
    ranked = sorted((row['ms'], config) for config, row in rows.items() if 'ms' in row)
    chosen = next((config for _, config in ranked if INTERPRETED or fits(key, config)), shipped)
    return chosen, outcome(key, rows, ranked, shipped, chosen)

def best_block(dry):
    """BLOCK and WARPS of cross-entropy's pass, for the sum."""
    n, V = (8, 512) if dry else (4096, 152_320)
    z, targets = torch.randn(n, V, device=DEVICE).to(DTYPE), torch.randint(V, (n,), device=DEVICE)
    shipped = ce.BLOCK, ce.WARPS
    def of(config):
        def way():
            ce.BLOCK, ce.WARPS = config
            return ce._pass_triton(z, targets, None, V, 0.0, True)
        return way
    tried = list(product((1024, 2048, 4096, 8192), (4, 8, 16)))[:2 if dry else None]
    rows = measure({config: of(config) for config in tried}, 1 if dry else 20)
    ce.BLOCK, ce.WARPS = shipped
    ranked = sorted((row['ms'], config) for config, row in rows.items() if 'ms' in row)
    return ranked[0][1], outcome('cross-entropy', rows, ranked, shipped, ranked[0][1])

# ----------------------------------------------------------------------------------------------------------------

def with_table(text, table):
    """kernels/attention.py with another table between the braces of CONFIGS, a pass a line."""
    lines = ''.join(f"    {' '.join(f'{key}: {value},' for key, value in of)}\n"
                    for _, of in groupby(table.items(), lambda entry: entry[0][::2])) # of an (sm, pass)
    new, n = re.subn(r'(?ms)^(CONFIGS = \{[^\n]*\n).*?^\}', lambda match: f'{match[1]}{lines}}}', text)
    assert n == 1, f"{n} tables named CONFIGS, expected 1"
    return new

def with_block(text, block, warps):
    """kernels/cross_entropy.py with other numbers behind BLOCK, WARPS."""
    new, n = re.subn(r'(?m)^BLOCK, WARPS = \d+, \d+', f'BLOCK, WARPS = {block}, {warps}', text)
    assert n == 1, f"{n} lines that begin BLOCK, WARPS =, expected 1"
    return new

def main():
    dry = asked_dry(__doc__)
    torch.manual_seed(0)
    sm, heads = att._sm(torch.device(DEVICE)), [64] if dry else list(HEADS)
    keys = [(sm, D, step) for D in heads for step in PASSES if (sm, D, step) in att.CONFIGS] # no one-pass of 256
    if not dry:
        jobs = [(D, step, config) for _, D, step in keys for config in candidates(D, step)]
        with ProcessPoolExecutor(min(12, os.cpu_count()), get_context('spawn')) as pool:
            list(progress(pool.map(compile_one, jobs), total=len(jobs), desc='compiling'))
    chosen, rows = dict(att.CONFIGS), []
    for key in progress(keys, desc='passes'):
        chosen[key], row = best_tiles(key, dry)
        rows.append(row)
    block, row = best_block(dry)
    table([*rows, row], *row)
    if not dry:
        for name, new in (('attention', lambda text: with_table(text, chosen)),
                          ('cross_entropy', lambda text: with_block(text, *block))):
            path = ROOT / 'kernels' / f'{name}.py'
            with atomically(path) as tmp:
                tmp.write_text(new(path.read_text()))

if __name__ == '__main__':
    main()
