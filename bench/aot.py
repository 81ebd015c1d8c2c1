"""
Compiles every Triton kernel that the repository can launch, for sm_80 and sm_90, on any machine: it takes no GPU.

    python bench/aot.py        about 2 minutes, 2 s a kernel

A kernel file exports aot(sm), which yields (name, kernel, {argument: type}, {argument: constant}, options); a type that
ends in :16, as i32:16, is of numbers that 16 divides (all pointers are). Prints a row a kernel: registers a thread, bytes
a thread spills, bytes of shared memory, wgmma instructions. tests/test_aot.py holds the rows to the limits below.

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

from bench.common import ROOT, commit
from files import progress, write_json
from kernels import attention, cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FILES = [attention, cross_entropy]
SPILLS = 64 # bytes a thread
SHARED = {80: 101376, 90: 232448} # bytes a program can have, and the architectures; an A100 166,912, others of 8.x less

def cases():
    """(sm, name, kernel, signature, constants, options) of all."""
    return [(sm, *case) for file in FILES for sm in SHARED for case in file.aot(sm)]

def compiled(sm, kernel, signature, constants, options):
    """What a kernel takes on an sm."""
    names = kernel.arg_names
    types = {name: signature.get(name, 'constexpr') for name in names}
    source = ASTSource(fn=kernel, signature={name: kind.removesuffix(':16') for name, kind in types.items()},
                       constexprs={(names.index(name),): value for name, value in constants.items()},
                       attrs={(i,): [['tt.divisibility', 16]] for i, kind in enumerate(types.values())
                              if kind.startswith('*') or kind.endswith(':16')})
    log = io.StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.compilation.always_compile = True # a cached kernel has no log
        triton.knobs.nvidia.dump_ptxas_log = True
        made = triton.compile(source, target=GPUTarget('cuda', sm, 32), options=options)
    return {'registers': int(re.search(r'Used (\d+) registers', log.getvalue())[1]),
            'spills': int(re.search(r'(\d+) bytes spill stores', log.getvalue())[1]), 'shared': made.metadata.shared,
            'wgmma': made.asm['ptx'].count('wgmma.mma_async')}

def main():
    rows = []
    print("| sm | kernel | warps | stages | registers | spills | shared | wgmma |\n|---|---|---|---|---|---|---|---|")
    for sm, name, kernel, signature, constants, options in progress(cases(), desc='kernels'):
        rows.append({'sm': sm, 'kernel': name, 'warps': options['num_warps'], 'stages': options['num_stages'],
                     **compiled(sm, kernel, signature, constants, options)})
        print('| ' + ' | '.join(map(str, rows[-1].values())) + ' |', flush=True)
    write_json(ROOT / 'bench' / 'results' / 'aot.json',
               {'triton': triton.__version__, 'commit': commit(), 'command': 'python bench/aot.py', 'rows': rows})

if __name__ == '__main__':
    main()
