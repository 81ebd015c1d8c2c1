"""bench/sass.py on a short text of machine code, counted by hand."""
from bench import sass

TEXT = """
\t.target\tsm_90a
.text._kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   MUFU.EX2 R9, R9 ;
.L_x_1:
        /*0020*/                   LDG.E.U16 R3, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/              @!P0 SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR16+0x20000], R8 ;
        /*0050*/              @!P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0060*/                   WARPGROUP.ARRIVE ;
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR24], RZ, !UPT ;
        /*0080*/                   MUFU.EX2 R5, R5 ;
        /*0090*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR24], R24, gsb0 ;
        /*00a0*/                   MUFU.EX2 R6, R6 ;
        /*00b0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*00c0*/                   FADD R5, R5, R6 ;
        /*00d0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*00e0*/                   MUFU.EX2 R7, R7 ;
        /*00f0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0100*/               @P0 BRA `(.L_x_1) ;
.L_x_4:
        /*0110*/              @!P2 MUFU.EX2 R5, R5 ;
        /*0120*/                   FADD R5, R5, R6 ;
        /*0130*/               @P0 BRA `(.L_x_4) ;
        /*0140*/                   EXIT ;
.L_x_3:
        /*0150*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR16+0x20000], R8 ;
        /*0160*/              @!P1 BRA `(.L_x_3) ;
        /*0170*/                   BRA `(.L_x_2) ;
.L_x_5:
        /*0180*/                   BRA `(.L_x_5);
"""
PRODUCTS, SUMS = sass.loops(TEXT)

def opcodes(instructions):
    return [instruction.opcode for instruction in instructions]

def test_instructions_and_labels_are_read():
    instructions, labels = sass.parse(TEXT)
    assert len(instructions) == 25
    assert labels == {'.L_x_1': 2, '.L_x_2': 6, '.L_x_4': 17, '.L_x_3': 21, '.L_x_5': 24}
    assert instructions[5] == ('!P1', 'BRA', '`(.L_x_3)')
    assert instructions[17] == ('!P2', 'MUFU.EX2', 'R5, R5')

def test_loops_that_only_wait_are_no_loops():
    """Not the one at .L_x_3, which spins outside; nor is the jump from there back into the body one."""
    assert (len(PRODUCTS), len(SUMS)) == (15, 3)

def test_a_loop_around_another_is_left_out():
    inner = TEXT.replace('/*00c0*/                   FADD R5, R5, R6', '/*00c0*/ @P3 BRA `(.L_x_2)')
    assert [len(loop) for loop in sass.loops(inner)] == [7, 3]

def test_exposed_is_what_no_wgmma_runs_beside():
    """Those before the first product and after the wait for all of them; a wait for all but one group ends none."""
    before = ['LDG.E.U16', 'LDG.E.128', 'SYNCS.PHASECHK.TRANS64.TRYWAIT', 'BRA', 'WARPGROUP.ARRIVE']
    assert opcodes(sass.exposed(PRODUCTS)) == before + ['MUFU.EX2', 'BAR.SYNC.DEFER_BLOCKING', 'BRA']

def test_a_group_that_is_never_waited_for_runs_into_the_next_iteration():
    never = [instruction for instruction in PRODUCTS if 'DEPBAR' not in instruction.opcode]
    assert sass.exposed(never) == []

def test_products_that_are_waited_for_one_by_one_cover_nothing():
    serialized = []
    for instruction in PRODUCTS:
        serialized.append(instruction)
        if instruction.opcode.startswith('HGMMA'):
            serialized.append(sass.Instruction('', 'WARPGROUP.DEPBAR.LE', 'gsb0, 0x0'))
    closed = [x._replace(operands=x.operands + ', gsb0') for x in serialized]
    assert opcodes(sass.exposed(closed)).count('MUFU.EX2') == 3

def test_counts_of_the_shortest_loop():
    without_sums = TEXT.replace('@P0 BRA `(.L_x_4)', 'NOP')
    assert sass.inner_loop(without_sums) == dict(
        instructions=15, wgmma=2, hmma=0, exp2=3, barriers=1, narrow=1, exposed=8, exposed_exp2=1)
    without_loops = without_sums.replace('MUFU.EX2', 'MUFU.RCP')
    assert sass.inner_loop(without_loops)['instructions'] == 25
    assert sass.inner_loop(TEXT) == dict(
        instructions=3, wgmma=0, hmma=0, exp2=1, barriers=0, narrow=0, exposed=None, exposed_exp2=None)
