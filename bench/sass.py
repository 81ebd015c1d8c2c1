"""
Counts in the machine code (SASS) of a compiled kernel, as `nvdisasm -c` prints it:

    _forward:
            /*0010*/                   MUFU.EX2 R5, R5 ;
    .L_x_4:
            /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR24], R24, gsb0 ;
            /*0030*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
            /*0040*/              @!P0 BRA `(.L_x_4) ;

Hopper's matrix product (wgmma, here HGMMA) runs beside the instructions that follow it. The one with
gsb0 closes a group, and DEPBAR.LE gsb0, n waits until at most n groups still run. An instruction that
is issued while none runs is called exposed: the tensor cores are idle meanwhile, unless another warp
of the SM has products for them.
"""
import re
import subprocess
import tempfile
from typing import NamedTuple

LINE = re.compile(r'\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);')
LABEL = re.compile(r'(\.L\w+):')
EXP2 = 'MUFU.EX2'

class Instruction(NamedTuple):
    predicate: str # P0 in @P0, empty where it always runs
    opcode: str # with its suffixes
    operands: str

def disassemble(cubin):
    """The SASS of a cubin (bytes), by the nvdisasm that comes with Triton."""
    import triton
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, '-c', file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

def parse(sass):
    """-> the instructions, and {label: index of the instruction that follows it}."""
    instructions = []
    labels = {}
    for line in sass.splitlines():
        if match := LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := LINE.match(line):
            instructions.append(Instruction(match[1] or '', match[2], match[3].strip()))
    return instructions, labels

def loops(sass):
    """The loops that compute: lists of instructions, each from a label to the conditional branch back to it.

    They hold an exp2 and no other such loop. A loop that only waits for memory has no exp2.
    """
    instructions, labels = parse(sass)
    spans = []
    for i, instruction in enumerate(instructions):
        target = re.search(r'\.L\w+', instruction.operands)
        conditional = instruction.predicate or ',' in instruction.operands # Blackwell: BRA.U UP0, `(.L_x_4)
        if conditional and instruction.opcode.startswith('BRA') and target:
            start = labels[target[0]]
            if any(x.opcode == EXP2 for x in instructions[start:i]):
                spans.append((start, i + 1))
    return [instructions[a:b] for a, b in spans
            if not any(a <= c and d <= b for c, d in spans if (c, d) != (a, b))]

def exposed(loop):
    """The instructions that an iteration issues while none of its warp's wgmmas runs."""
    running = 0 # groups
    open_group = False
    for _ in range(2): # the second iteration begins with what still runs from the first
        instructions = []
        for instruction in loop:
            if instruction.opcode.startswith('HGMMA'):
                open_group = 'gsb0' not in instruction.operands
                running += not open_group
                continue
            if not (running or open_group):
                instructions.append(instruction)
            if instruction.opcode.startswith('WARPGROUP.DEPBAR'):
                running = min(running, int(instruction.operands.split(',')[1], 16))
    return instructions

def count(loop, *opcodes):
    """How many of the loop's instructions begin with one of the opcodes."""
    return sum(instruction.opcode.startswith(opcodes) for instruction in loop)

def inner_loop(sass):
    """Counts of the shortest loop that computes, or of the whole kernel where none does, as a dict.

    In attention it is the loop without a mask. wgmma and hmma: products of matrices, of Hopper and
    of any GPU since Ampere; exp2; barriers: of the whole block; narrow: loads of fewer than 4 bytes
    from global memory; exposed and exposed_exp2: see above, None without wgmma.
    """
    loop = min(loops(sass), key=len, default=parse(sass)[0])
    wgmma = count(loop, 'HGMMA')
    idle = exposed(loop)
    return {'instructions': len(loop),
            'wgmma': wgmma,
            'hmma': count(loop, 'HMMA'),
            'exp2': count(loop, EXP2),
            'barriers': count(loop, 'BAR.SYNC'),
            'narrow': sum(bool(re.match(r'LDG\..*[US](8|16)\b', x.opcode)) for x in loop),
            'exposed': len(idle) if wgmma else None,
            'exposed_exp2': count(idle, EXP2) if wgmma else None}
