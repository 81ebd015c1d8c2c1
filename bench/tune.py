"""
Chooses the tiles of the Triton kernels by timing them on this GPU, and writes them into the kernels' files:

    python bench/tune.py            attention's CONFIGS for this architecture, and cross-entropy's BLOCK
                                    and WARPS
    python bench/tune.py --dry      two candidates on tiny shapes, nothing written; runs without a GPU
                                    under TRITON_INTERPRET=1

A candidate is timed while the other passes keep their tiles. One that does not compile, needs more
shared memory than there is, or exceeds the limits of bench/aot.py in any variant is dropped.
Afterwards, run ./test.sh --all and bench/gpu.sh correctness.
"""
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby, product
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import aot
from bench.common import DEVICE, ROOT, measure, parse_dry, table
from bench.kernel_speed import DTYPE, call_of, packed
from files import atomically, progress
from kernels import attention as att
from kernels import cross_entropy as ce
from kernels.attention import INTERPRETED
from kernels.gpu import architecture

# {head size: (query heads, key heads)} of Qwen2.5-0.5B, Qwen2.5-7B and Gemma2-2B.
HEADS = {64: (14, 2), 128: (28, 4), 256: (8, 4)}
PASSES = 'forward', 'dq', 'dkv'
REGISTERS = 200 # per thread, for the accumulators and the scores alone

# --------------------------------------------------------------------------------------------------
# attention

def candidates(D, step):
    """Yields (queries of a tile, keys of a tile, warps, stages) whose accumulators fit into registers."""
    for BM, BN, warps, stages in product((16, 32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3)):
        accumulated = BM * (D + BN)
        if step == 'dkv':
            accumulated = 2 * BN * (D + BM)
        if BM * BN >= 1024 and accumulated <= REGISTERS * 32 * warps:
            yield BM, BN, warps, stages

def timed(D, step, heads, T, rows):
    """config -> a function that runs a pass with it: the forward, or the whole backward."""
    H, HK = heads
    docs = att.documents(packed(rows, T, T), 'triton')
    inputs = [torch.randn(rows, T, n, D, device=DEVICE).to(DTYPE) for n in (H, HK, HK)]

    def attention(*qkv):
        return att.attention(*qkv, docs, backend='triton')

    call = call_of(attention, inputs, 'forward' if step == 'forward' else 'backward')

    def with_config(config):
        def run():
            att.CONFIGS[architecture(inputs[0].device), D, step] = config
            return call()
        return run
    return with_config

def compile_one(job):
    """Compiles a candidate into Triton's cache, in a worker process. A failure shows later, when it is timed."""
    D, step, config = job
    measure({config: timed(D, step, HEADS[D], 256, 1)(config)}, 1)

def fits(key, config):
    """Whether every variant keeps the bounds of bench/aot.py, as tests/test_aot.py requires."""
    shipped = att.CONFIGS
    att.CONFIGS = {key: config}
    try:
        # Whether exp2's run beside products is for the clock to judge.
        return not any(aot.faults(aot.row_of(key[0], *case), overlap=False) for case in att.aot(key[0]))
    finally:
        att.CONFIGS = shipped

def fastest_first(rows):
    """The configs that ran, rows as `measure` gives them, by their times."""
    return sorted((config for config in rows if 'ms' in rows[config]),
                  key=lambda config: (rows[config]['ms'], config))

def outcome(key, rows, shipped, chosen):
    """A row of the printed table."""
    def ms(config):
        return rows.get(config, {}).get('ms')
    return {'pass': key,
            'tried': len(rows),
            'ran': len(fastest_first(rows)),
            'old': shipped,
            'old ms': ms(shipped),
            'new': chosen,
            'new ms': ms(chosen)}

def best_tiles(key, dry):
    """The fastest config that fits, for key = (sm, head size, pass) -> (config, row of the table)."""
    _, D, step = key
    tried = list(candidates(D, step))
    shipped = att.CONFIGS[key]
    if dry:
        tried = tried[:2]
        with_config = timed(D, step, (2, 1), 48, 1)
    else:
        with_config = timed(D, step, HEADS[D], 2048, 8)
    rows = measure({config: with_config(config) for config in tried}, 1 if dry else 20)
    att.CONFIGS[key] = shipped
    chosen = shipped
    for config in fastest_first(rows):
        if INTERPRETED or fits(key, config):
            chosen = config
            break
    return chosen, outcome(key, rows, shipped, chosen)

# --------------------------------------------------------------------------------------------------
# cross-entropy

def best_block(dry):
    """The fastest (BLOCK, WARPS) of cross-entropy's pass for the sum -> (config, row of the table)."""
    # 16 does not divide the vocabulary of training, only its padded size: Triton compiles another
    # kernel where it divides both.
    n, V, padded = (8, 500, 512) if dry else (4096, 152_167, 152_320)
    z = torch.randn(n, padded, device=DEVICE).to(DTYPE)
    targets = torch.randint(V, (n,), device=DEVICE)
    shipped = ce.BLOCK, ce.WARPS

    def with_config(config):
        def run():
            ce.BLOCK, ce.WARPS = config
            return ce._pass_triton(z, targets, None, V, 0.0, True)
        return run

    tried = list(product((2048, 4096, 8192, 16384), (8, 16, 32)))[:2 if dry else None]
    rows = measure({config: with_config(config) for config in tried}, 1 if dry else 20)
    ce.BLOCK, ce.WARPS = shipped
    chosen = fastest_first(rows)[0]
    return chosen, outcome('cross-entropy', rows, shipped, chosen)

# --------------------------------------------------------------------------------------------------
# the kernels' files

def with_table(text, configs):
    """The text of kernels/attention.py with other CONFIGS; the head sizes of an (sm, pass) share a line."""
    lines = ''
    for _, entries in groupby(configs.items(), lambda entry: entry[0][::2]):
        lines += f"    {' '.join(f'{key}: {config},' for key, config in entries)}\n"
    new, n = re.subn(r'(?ms)^(CONFIGS = \{[^\n]*\n).*?^\}', lambda match: f'{match[1]}{lines}}}', text)
    assert n == 1, f"{n} tables named CONFIGS, expected 1"
    return new

def with_block(text, block, warps):
    """The text of kernels/cross_entropy.py with other values of BLOCK and WARPS."""
    new, n = re.subn(r'(?m)^BLOCK, WARPS = \d+, \d+', f'BLOCK, WARPS = {block}, {warps}', text)
    assert n == 1, f"{n} lines that begin BLOCK, WARPS =, expected 1"
    return new

def rewrite(name, change, *values):
    """Replaces the text of kernels/NAME.py by change(text, *values)."""
    path = ROOT / 'kernels' / f'{name}.py'
    with atomically(path) as tmp:
        tmp.write_text(change(path.read_text(), *values))

def main():
    dry = parse_dry(__doc__)
    torch.manual_seed(0)
    sm = architecture(torch.device(DEVICE))
    keys = list(product([sm], [64] if dry else HEADS, PASSES))
    if not dry:
        jobs = [(D, step, config) for _, D, step in keys for config in candidates(D, step)]
        with ProcessPoolExecutor(min(12, os.cpu_count()), get_context('spawn')) as pool:
            list(progress(pool.map(compile_one, jobs), total=len(jobs), desc='compiling'))
    configs = dict(att.CONFIGS)
    rows = []
    for key in progress(keys, desc='passes'):
        configs[key], row = best_tiles(key, dry)
        rows.append(row)
    block, row = best_block(dry)
    table([*rows, row], *row)
    if not dry:
        rewrite('attention', with_table, configs)
        rewrite('cross_entropy', with_block, *block)

if __name__ == '__main__':
    main()
