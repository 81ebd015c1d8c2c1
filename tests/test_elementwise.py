"""
kernels/elementwise.py compiles for sm_80 and sm_90 without spills, and is for NVIDIA GPUs from sm_80 on. Its results
are tested in tests/interpreted/.
"""
import os
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('triton')
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

from bench.aot import compiled
from kernels import elementwise

CASES = []
for sm in (80, 90):
    for name, *case in elementwise.aot(sm):
        of_half_a_billion = any(x in name for x in ('896', '14/2', 'SwiGLU'))
        marks = [] if of_half_a_billion else pytest.mark.slow
        CASES.append(pytest.param(sm, case, id=f'sm_{sm} {name}', marks=marks))

@pytest.mark.parametrize('sm, case', CASES)
def test_the_kernel_compiles_without_spills(sm, case):
    row = compiled(sm, *case)
    assert row['spills'] == 0, row
    assert row['registers'] <= 128, row

@pytest.mark.parametrize('major, hip, expected', [
    (7, None, False), (8, None, True), (9, None, True), (9, '6.4', False)])
def test_which_gpus_run_the_kernels(major, hip, expected, monkeypatch):
    monkeypatch.setattr(torch.version, 'hip', hip)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(major=major, minor=0))
    assert elementwise.fused(SimpleNamespace(is_cuda=True, device=torch.device('cuda:0'))) is expected
    assert not elementwise.fused(torch.ones(1))
