"""
Compiles every Triton kernel that the repository can launch, and counts in its machine code. It needs no GPU.

    python bench/aot.py                     all kernels for sm_80 and sm_90, by the installed Triton:
                                            about 5 minutes, 4 s a kernel
    python bench/aot.py --triton=3.6.0      by another Triton: pip puts it into out/triton-3.6.0 (200 MB)
                                            the first time, and everything else stays as installed
    python bench/aot.py --only=PATTERN      the kernels whose name has a match of this regular expression,
                                            as in --only='90 attention forward'

A kernel file exports aot(sm), which yields (name, kernel, {argument: type}, {argument: constant},
options). A type that ends in :16, such as i32:16, is of numbers that are divisible by 16; pointers
always are. Prints a row for each kernel: registers per thread; bytes spilled per thread; bytes of
shared memory; blocks, the programs that fit on an SM; serialized, how often ptxas warns that it lets
one wgmma wait for another; and the counts of bench/sass.py in the inner loop. Then it names what is
out of bounds (`faults`, which tests/test_aot.py asserts too); the exit status is 1 if anything is.

Writes its rows into bench/results/aot.json, which keeps those of other kernels and other Tritons.
"""
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, commit
from bench.sass import disassemble, inner_loop
from files import progress, read_json, write_json
from kernels import attention, cross_entropy, elementwise

FILES = [attention, cross_entropy, elementwise]
RESULTS = ROOT / 'bench' / 'results' / 'aot.json'
# Bytes of shared memory that a program may use, by architecture. An A100 (sm_80) has 166,912; the
# limit is that of the other GPUs of compute capability 8.x, which have less.
SHARED = {80: 101376, 90: 232448}
# Bytes per thread that may be spilled, by kernel; no others spill. At 255 registers, the most there
# are, a few addresses and row statistics wait in L1 while the accumulators stay where they are.
# Smaller tiles spill nothing, but their products run at half the rate.
SPILLS = {'sm_90 attention dkv 128 plain': 16, # by 3.6.0 alone
          'sm_90 attention dkv 128 ALiBi': 44,
          'sm_90 attention dkv 256': 60,
          'sm_90 cross-entropy slopes soft-cap': 4}
# Gemma 2's loss on an A100, whose tanh leaves no registers to read 16 bytes at once.
NARROW = r'sm_80 cross-entropy .*soft-cap'
# The kernels whose exp2's all run beside products. In the forward of 64 channels they run beside the
# products of the other program on the SM; 256 channels and soft-caps lack the registers.
OVERLAPPED = r'sm_90 attention (forward 128|(dq|dkv) (64|128)) plain'
COLUMNS = ('sm', 'kernel', 'warps', 'stages', 'registers', 'spills', 'shared', 'blocks', 'serialized',
           'instructions', 'wgmma', 'hmma', 'exp2', 'barriers', 'narrow', 'exposed', 'exposed_exp2')

def cases():
    """(sm, name, kernel, signature, constants, options) of every kernel, as a list."""
    return [(sm, *case) for file in FILES for sm in SHARED for case in file.aot(sm)]

def blocks_per_sm(sm, registers, shared, warps):
    """The programs that run on an SM at once: it has 65,536 registers, 64 warps, and shared memory, of
    which each program takes 1,024 bytes more than it asks for.

    CUDA C++ Programming Guide, technical specifications per compute capability; registers are given
    to a warp 256 at a time. The shared memory of sm_80 is an A100's.
    """
    registers_of_warp = -(-registers * 32 // 256) * 256
    memory = 167936 if sm < 90 else 233472
    return min(65536 // registers_of_warp // warps, 64 // warps, memory // (shared + 1024))

def compiled(sm, kernel, signature, constants, options):
    """Compiles a kernel for sm -> {column: value}, the COLUMNS from 'registers' on."""
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
    registers = int(re.search(r'Used (\d+) registers', log)[1])
    shared = binary.metadata.shared
    return {'registers': registers,
            'spills': int(re.search(r'(\d+) bytes spill stores', log)[1]),
            'shared': shared,
            'blocks': blocks_per_sm(sm, registers, shared, options['num_warps']),
            'serialized': log.count('serialized'), # warnings C7510 to C7514
            **inner_loop(disassemble(binary.asm['cubin']))}

def row_of(sm, name, kernel, signature, constants, options):
    """{column: value} of a case."""
    return {'sm': sm,
            'kernel': name,
            'warps': options['num_warps'],
            'stages': options['num_stages'],
            **compiled(sm, kernel, signature, constants, options)}

def faults(row, overlap=True):
    """The bounds that a row exceeds, a line each; overlap: also those of OVERLAPPED."""
    label = f"sm_{row['sm']} {row['kernel']}"
    is_attention = 'attention' in label
    spills = [most for kernel, most in SPILLS.items() if label.startswith(kernel)]
    bounds = {'spills': max(spills, default=0), 'shared': SHARED[row['sm']], 'serialized': 0, 'narrow': 0}
    if row['sm'] == 90 and is_attention: # whose products are all of Hopper's kind
        bounds['hmma'] = 0
    if overlap and re.search(OVERLAPPED, label):
        bounds['exposed_exp2'] = 0
    if 'cross-entropy' in label: # whose threads need one another only after the loop
        bounds['barriers'] = 0
    if re.match(NARROW, label):
        bounds |= {'narrow': 1, 'barriers': 7}
    lines = [f"{label}: {row[column]} {column}, expected at most {bound}"
             for column, bound in bounds.items() if (row[column] or 0) > bound]
    if row['sm'] == 90 and is_attention and not row['wgmma']:
        lines.append(f"{label}: expected wgmma in the inner loop")
    return lines

def run_with(version, arguments):
    """Runs this script by another version of Triton -> its exit status."""
    folder = ROOT / 'out' / f'triton-{version}'
    if not folder.is_dir():
        print(f"pip installs triton=={version} into out/{folder.name}", flush=True)
        unfinished = folder.with_name(f'{folder.name}.tmp{os.getpid()}')
        command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
                   '--disable-pip-version-check', f'--target={unfinished}', f'triton=={version}']
        if subprocess.run(command).returncode:
            raise SystemExit(f"aot.py: --triton={version}: pip cannot install it; expected a version such as 3.6.0")
        unfinished.rename(folder)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])])
    return subprocess.run([sys.executable, __file__, *arguments], env={**os.environ, 'PYTHONPATH': path}).returncode

def save(rows):
    """Puts rows into RESULTS, each with its Triton, commit and command, in the place of the row it repeats."""
    def key(row):
        return row['triton'], row['sm'], row['kernel']

    source = {'triton': triton.__version__,
              'commit': commit(),
              'command': f'python bench/aot.py --triton={triton.__version__}'}
    saved = read_json(RESULTS.parent, RESULTS.name, 'bench/aot.py')['rows'] if RESULTS.exists() else []
    merged = {key(row): row for row in [*saved, *({**source, **row} for row in rows)]}
    write_json(RESULTS, {**source, 'rows': sorted(merged.values(), key=key)})

def main():
    options = dict.fromkeys(('--triton', '--only'), '')
    for argument in sys.argv[1:]:
        name, equals, value = argument.partition('=')
        if name not in options or not value:
            raise SystemExit(__doc__)
        options[name] = value
    version = options['--triton']
    only = options['--only']
    if version not in ('', triton.__version__):
        return run_with(version, [argument for argument in sys.argv[1:] if '--triton' not in argument])
    chosen = [case for case in cases() if re.search(only, f'{case[0]} {case[1]}')]
    rows = []
    print(f"Triton {triton.__version__}\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for case in progress(chosen, desc='kernels'):
        row = row_of(*case)
        rows.append(row)
        print('| ' + ' | '.join(str(row[column]) for column in COLUMNS) + ' |', flush=True)
    out_of_bounds = [fault for row in rows for fault in faults(row)]
    print('\n' + '\n'.join(out_of_bounds or ['all kernels are within their bounds']))
    save(rows)
    return int(bool(out_of_bounds))

if __name__ == '__main__':
    raise SystemExit(main())
