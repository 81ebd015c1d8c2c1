"""
The compiler's word on every kernel that can be launched: it compiles for sm_80 and sm_90 within the bounds below, which
bench/aot.py counts without a GPU. A version of Triton, or an edit, that loses the overlap of products and softmax fails
here. The plain kernels of 64 and 128 channels on Hopper and cross-entropy's are always compiled; the others are slow.

    python bench/aot.py --triton=3.6.0     the same bounds, by another Triton
"""
import os
import re

import pytest

pytest.importorskip('triton')
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

from bench import aot

ALWAYS = r'90 attention (forward|dkv) (64|128) plain|90 cross-entropy statistics slopes$'
CASES = []
for case in aot.cases():
    label = f'{case[0]} {case[1]}'
    CASES.append(pytest.param(*case, id=label, marks=[] if re.search(ALWAYS, label) else pytest.mark.slow))

@pytest.mark.parametrize('sm, name, kernel, signature, constants, options', CASES)
def test_kernel_is_within_its_bounds(sm, name, kernel, signature, constants, options):
    assert aot.faults(aot.row_of(sm, name, kernel, signature, constants, options)) == []
