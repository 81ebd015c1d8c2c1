"""
Compiles every Triton kernel that the repository can launch, for sm_80 and sm_90. It needs no GPU.

    python bench/aot.py        about 2 minutes, 2 s a kernel

A kernel file exports aot(sm), which yields (name, kernel, {argument: type}, {argument: constant},
options). A type that ends in :16, such as i32:16, is of numbers that are divisible by 16; pointers
always are. Prints a row for each kernel: registers per thread, bytes spilled per thread, bytes of
shared memory, and the number of wgmma instructions. tests/test_aot.py requires that the rows stay
within the limits below.

Writes bench/results/aot.json.
"""
import contextlib
import io
import re
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, commit
from files import progress, write_json
from kernels import attention, cross_entropy

FILES = [attention, cross_entropy]
SPILLS = 64 # bytes per thread
# Bytes of shared memory that a program may use, by architecture. An A100 (sm_80) has 166,912; the
# limit is that of the other GPUs of compute capability 8.x, which have less.
SHARED = {80: 101376, 90: 232448}

def cases():
    """(sm, name, kernel, signature, constants, options) of every kernel, as a list."""
    return [(sm, *case) for file in FILES for sm in SHARED for case in file.aot(sm)]

def compiled(sm, kernel, signature, constants, options):
    """Compiles a kernel for sm -> {'registers', 'spills', 'shared', 'wgmma'}, what the binary uses."""
    names = kernel.arg_names
    types = {name: signature.get(name, 'constexpr') for name in names}
    attributes = {}
    for i, kind in enumerate(types.values()):
        if kind.startswith('*') or kind.endswith(':16'):
            attributes[(i,)] = [['tt.divisibility', 16]]
    source = ASTSource(
        fn=kernel,
        signature={name: kind.removesuffix(':16') for name, kind in types.items()},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes)
    log = io.StringIO()
    knobs = triton.knobs
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True # a cached kernel has no log
        knobs.nvidia.dump_ptxas_log = True
        binary = triton.compile(source, target=GPUTarget('cuda', sm, 32), options=options)
    log = log.getvalue()
    return {'registers': int(re.search(r'Used (\d+) registers', log)[1]),
            'spills': int(re.search(r'(\d+) bytes spill stores', log)[1]),
            'shared': binary.metadata.shared,
            'wgmma': binary.asm['ptx'].count('wgmma.mma_async')}

def main():
    rows = []
    print("| sm | kernel | warps | stages | registers | spills | shared | wgmma |")
    print("|---|---|---|---|---|---|---|---|")
    for sm, name, kernel, signature, constants, options in progress(cases(), desc='kernels'):
        row = {'sm': sm,
               'kernel': name,
               'warps': options['num_warps'],
               'stages': options['num_stages'],
               **compiled(sm, kernel, signature, constants, options)}
        rows.append(row)
        print('| ' + ' | '.join(map(str, row.values())) + ' |', flush=True)
    write_json(ROOT / 'bench' / 'results' / 'aot.json', {
        'triton': triton.__version__,
        'commit': commit(),
        'command': 'python bench/aot.py',
        'rows': rows})

if __name__ == '__main__':
    main()
