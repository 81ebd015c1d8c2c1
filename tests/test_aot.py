"""
Every kernel that can be launched compiles for sm_80 and sm_90, within registers and shared memory, and on Hopper with
its matrix instructions. The plain kernels of head size 64 and cross-entropy's are always compiled; the others are slow.
"""
import os
import re

import pytest

pytest.importorskip('triton')
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

from bench.aot import SHARED, SPILLS, cases, compiled

CASES = []
for case in cases():
    sm, name, *_ = case
    always = re.search(' 64 plain|cross-entropy', name)
    CASES.append(pytest.param(*case, id=f'sm_{sm} {name}', marks=[] if always else pytest.mark.slow))

@pytest.mark.parametrize('sm, name, kernel, signature, constants, options', CASES)
def test_kernel_fits(sm, name, kernel, signature, constants, options):
    row = compiled(sm, kernel, signature, constants, options)
    assert row['spills'] <= SPILLS, row
    assert row['shared'] <= SHARED[sm], row
    backward_256 = ' 256 ' in name and 'forward' not in name # its tiles are too small for Hopper's matrix instructions
    has_products = 'cross-entropy' not in name # whose products are GEMMs outside the kernel
    if sm >= 90 and has_products and not backward_256:
        assert row['wgmma'] > 0, row
