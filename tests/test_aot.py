"""
Every kernel that can be launched compiles for sm_80 and sm_90, within registers and shared memory, on Hopper with its
matrix instructions. The plain kernels of head size 64 are compiled always, the others are slow.
"""
import os
import re

import pytest

from bench.aot import SHARED, SPILLS, cases, compiled

pytest.importorskip('triton')
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

CASES = [pytest.param(*case, id=f'sm_{case[0]} {case[1]}', marks=[] if re.search(' 64 plain|cross-entropy', case[1]) else pytest.mark.slow)
         for case in cases()]

@pytest.mark.parametrize('sm, name, kernel, signature, constants, options', CASES)
def test_kernel_fits(sm, name, kernel, signature, constants, options):
    row = compiled(sm, kernel, signature, constants, options)
    assert row['spills'] <= SPILLS and row['shared'] <= SHARED[sm], row
    backward_256 = ' 256 ' in name and 'forward' not in name # its tiles are too small for Hopper's matrix instructions
    matrices = 'cross-entropy' not in name # which is a pass over what a GEMM made
    assert sm < 90 or backward_256 or not matrices or row['wgmma'] > 0, row
