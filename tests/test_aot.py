"""
The compiler's word on every kernel that can be launched: it compiles for sm_80 and sm_90 within the bounds below, which
bench/aot.py counts without a GPU. A version of Triton, or an edit, that loses the overlap of products and softmax fails
here. The plain kernels of 64 and 128 channels on Hopper and cross-entropy's are always compiled; the others are slow.

    python bench/aot.py --triton=3.6.0     the same bounds, by another Triton
"""
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('triton')
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

from bench import aot
from files import read_json, write_json

ALWAYS = r'90 attention (forward|dkv) 128 plain|90 cross-entropy statistics slopes$'
CASES = []
for case in aot.cases():
    label = f'{case[0]} {case[1]}'
    CASES.append(pytest.param(*case, id=label, marks=[] if re.search(ALWAYS, label) else pytest.mark.slow))

def row(label, **changes):
    """A row that is within its bounds, but for the changes."""
    sm, _, kernel = label.partition(' ')
    return dict(sm=int(sm), kernel=kernel, spills=0, shared=65536, serialized=0, wgmma=16, hmma=0, barriers=0, narrow=0,
                exposed_exp2=0) | changes

@pytest.mark.parametrize('label, column, value', [
    ('90 attention forward 128 plain', 'exposed_exp2', 1),
    ('90 attention dkv 64 plain', 'exposed_exp2', 8),
    ('90 attention dkv 128 plain', 'spills', 20),
    ('90 attention forward 64 plain', 'spills', 4),
    ('80 attention dq 64 plain', 'shared', 102400),
    ('90 attention dq 256 softcap', 'serialized', 1),
    ('90 attention dq 64 plain', 'hmma', 8),
    ('90 cross-entropy slopes', 'narrow', 16),
    ('90 cross-entropy slopes', 'barriers', 2)])
def test_what_exceeds_a_bound_is_named(label, column, value):
    assert aot.faults(row(label)) == []
    [fault] = aot.faults(row(label, **{column: value}))
    assert f'sm_{label}: {value} {column}, expected at most' in fault

def test_exp2s_may_be_exposed_where_another_program_covers_them_and_where_tiles_are_being_tuned():
    assert aot.faults(row('90 attention forward 64 plain', exposed_exp2=68)) == []
    assert aot.faults(row('90 attention forward 128 plain', exposed_exp2=68), overlap=False) == []

def test_products_that_are_not_hoppers_are_named():
    assert aot.faults(row('90 attention dq 64 plain', wgmma=0, exposed_exp2=None)) == [
        'sm_90 attention dq 64 plain: expected wgmma in the inner loop']

@pytest.mark.parametrize('sm, registers, shared, warps, blocks', [
    (90, 255, 49184, 4, 2),    # 128 threads of 256 registers twice
    (90, 214, 115712, 8, 1),
    (90, 40, 64, 16, 3),       # 640 registers a warp of 16: 51 warps, 48 of whole programs
    (90, 32, 76800, 4, 3),     # shared memory
    (80, 64, 82944, 8, 2)])    # 163 KB, 1 of it the system's for each program
def test_programs_on_an_sm(sm, registers, shared, warps, blocks):
    assert aot.blocks_per_sm(sm, registers, shared, warps) == blocks

def test_a_row_takes_the_place_of_its_predecessor_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(aot, 'RESULTS', tmp_path / 'aot.json')
    old = dict(triton='3.6.0', sm=90, kernel='a', registers=7)
    write_json(aot.RESULTS, {'rows': [old]})
    for registers in (8, 9):
        aot.save([dict(sm=90, kernel='a', registers=registers)])
    rows = read_json(tmp_path, 'aot.json', 'bench/aot.py')['rows']
    assert [(row['triton'], row['registers']) for row in rows] == [('3.6.0', 7), (aot.triton.__version__, 9)]

def test_another_triton_is_installed_once_and_comes_first_on_the_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aot, 'ROOT', tmp_path)
    monkeypatch.setenv('PYTHONPATH', 'elsewhere')
    folder = tmp_path / 'out' / 'triton-3.6.0'
    runs = []
    def run(command, env=None):
        runs.append((command, env))
        if 'pip' in command:
            assert command[-1] == 'triton==3.6.0' and '--no-deps' in command
            Path(command[-2].removeprefix('--target=')).mkdir(parents=True)
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(aot.subprocess, 'run', run)
    for _ in range(2):
        assert aot.run_with('3.6.0', ['--only=dkv']) == 0
    assert len(runs) == 3
    for command, env in runs[1:]:
        assert command == [sys.executable, aot.__file__, '--only=dkv']
        assert env['PYTHONPATH'] == f'{folder}{os.pathsep}elsewhere'
    assert capsys.readouterr().out == 'pip installs triton==3.6.0 into out/triton-3.6.0\n'

def test_a_triton_that_cannot_be_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(aot, 'ROOT', tmp_path)
    monkeypatch.setattr(aot.subprocess, 'run', lambda command: SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit, match="--triton=3.x: pip cannot install it; expected a version such as 3.6.0"):
        aot.run_with('3.x', [])
    assert not (tmp_path / 'out' / 'triton-3.x').exists()

@pytest.mark.parametrize('sm, name, kernel, signature, constants, options', CASES)
def test_kernel_is_within_its_bounds(sm, name, kernel, signature, constants, options):
    assert aot.faults(aot.row_of(sm, name, kernel, signature, constants, options)) == []

def test_what_is_on_record_of_both_versions_is_within_the_bounds():
    rows = read_json(aot.RESULTS.parent, aot.RESULTS.name, 'bench/aot.py')['rows']
    assert {row['triton'] for row in rows} == {'3.6.0', '3.9.0'}
    assert [line for row in rows for line in aot.faults(row)] == []
