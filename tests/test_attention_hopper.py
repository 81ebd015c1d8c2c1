"""
The warp-specialised forward of Hopper: its source, executed with a model of barriers and asynchronous copies, gives
what the definition gives; without any one of its barriers it does not; and it compiles for sm_90, without spills or
serialised products, with the exp2's of a softmax between the products.
"""
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip('triton')
pytest.importorskip('triton.experimental.gluon')
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

from gluon_model import Descriptor, Pointer, execute
from test_kernels import normal, rows_of
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from bench import hopper as first_run
from configurator import Refused
from kernels import attention_hopper as hopper
from kernels.attention import attention, attention_ref, choose_backend, documents

FUNCTIONS = [hopper._new_barriers, hopper._block_range, hopper._load, hopper._softmax, hopper._store,
             hopper._consume, hopper._forward]

def run(q, k, v, doc_start, BM=32, BN=16, STAGES=2, window=0, **options):
    """o (B, T, H, D) and lse (B, H, T) by the kernel's source."""
    B, T, H, D = q.shape
    HK = k.size(2)
    o = torch.full_like(q, torch.nan)
    lse = torch.full((B, H, T), torch.nan)
    tensors = [Descriptor(x.reshape(B * T, -1)) for x in (q, k, v)] + [Pointer(x) for x in (doc_start, o, lse)]
    arguments = [*tensors, D ** -0.5, window or T, T, H, HK, D, BM, BN, STAGES, 240, 24]
    execute(FUNCTIONS, (B * H, -(-T // BM)), arguments, {'LOG2E': hopper.LOG2E.value}, **options)
    return o, lse

def exact(q, k, v, doc_start, window=0):
    """The same in float64, from the definition. With values of 1 and 0 the softmax's sum can be read off."""
    o = attention_ref(q.double(), k.double(), v.double(), doc_start, window=window)
    B, T, H, D = q.shape
    s = torch.einsum('bthd,bjhd->bhtj', q.double(), k.double().repeat_interleave(H // k.size(2), 2)) * D ** -0.5
    distance = torch.arange(T)[:, None] - torch.arange(T)
    seen = (distance >= 0) & (distance < (window or T)) & (torch.arange(T) >= doc_start[:, None, :, None])
    return o, s.masked_fill(~seen, -torch.inf).logsumexp(-1) / torch.log(torch.tensor(2.0))

def inputs(B, T, H=2, HK=1, D=16):
    return normal(B, T, H + 2 * HK, D).split([H, HK, HK], dim=2)

MANY = torch.randint(1, 3, (90,), generator=torch.Generator().manual_seed(0)).tolist()
PACKED = {'one document': rows_of([150]),
          'whole blocks': rows_of([32, 64, 32]),
          'rows differ': rows_of([40, 7, 33], [80], [1, 78, 1]),
          'one token': rows_of([1]),
          '90 documents': rows_of(MANY)}

@pytest.mark.parametrize('window', [0, 25])
@pytest.mark.parametrize('rows', PACKED)
def test_the_source_gives_what_the_definition_gives(rows, window):
    q, k, v = inputs(*PACKED[rows].shape)
    actual = run(q, k, v, PACKED[rows], window=window)
    for x, y in zip(actual, exact(q, k, v, PACKED[rows], window)):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-5)

@pytest.mark.parametrize('seed', range(8))
def test_the_order_in_which_warps_and_copies_advance_changes_nothing(seed):
    doc_start = rows_of([50, 80])
    q, k, v = inputs(1, 130, H=1)
    first = run(q, k, v, doc_start)
    other = run(q, k, v, doc_start, seed=1 + seed)
    assert all(torch.equal(x, y) for x, y in zip(first, other))

def test_shipped_tiles_in_16_bits_are_as_good_as_torch():
    doc_start = rows_of([300, 90])
    q, k, v = (x.bfloat16() for x in inputs(1, 390, 2, 1, 128))
    o, _ = run(q, k, v, doc_start, hopper.BM, hopper.BN, hopper.STAGES)
    y, _ = exact(q, k, v, doc_start)
    reference = attention_ref(q, k, v, doc_start)
    ulp = torch.finfo(torch.bfloat16).eps * y.abs().max()
    assert (o - y).abs().max() <= 2 * (reference - y).abs().max() + ulp

SYNCHRONISATION = [
    'mbarrier.wait(k_free', 'mbarrier.wait(v_free', 'mbarrier.wait(q_ready', 'mbarrier.wait(k_ready.index(0)',
    'mbarrier.wait(k_ready.index(stage)', 'mbarrier.wait(v_ready.index(0)', 'mbarrier.wait(v_ready.index(stage)',
    'mbarrier.arrive(k_free.index(0)', 'mbarrier.arrive(k_free.index(stage)', 'mbarrier.arrive(v_free',
    'mbarrier.arrive(turns.index(0)', 'mbarrier.arrive(turns.index(1', 'mbarrier.expect(q_ready',
    'mbarrier.expect(k_ready', 'mbarrier.expect(v_ready']

@pytest.mark.parametrize('line', SYNCHRONISATION)
def test_without_any_one_of_its_barriers_it_fails(line):
    """So the model sees what each is for. Only the wait for a turn changes no result."""
    def without(source):
        lines = source.split('\n')
        edited = [re.sub(r'\S.*', 'pass', x) if x.strip().startswith(line) else x for x in lines]
        assert edited != lines
        return '\n'.join(edited)

    doc_start = rows_of([130])
    q, k, v = inputs(1, 130, H=1)
    correct = run(q, k, v, doc_start)
    with pytest.raises(AssertionError):
        for seed in range(5):
            actual = run(q, k, v, doc_start, seed=seed, edit=without)
            assert all(torch.equal(x, y) for x, y in zip(correct, actual))

# --------------------------------------------------------------------------------------------------

def machine_code():
    """-> ptxas' log of the kernel for sm_90, and what Triton made of it."""
    constants, options = hopper.specialization()
    types = dict.fromkeys(('window', 'T', 'H', 'HK'), 'i32')
    types |= {'scale': 'fp32', 'doc_start': '*i32', 'o': '*bf16', 'lse': '*fp32'}
    for name, rows in hopper.tile_rows().items():
        types[name] = f'tensordesc<bf16[{rows},128],{hopper.layout()!r}>'
    names = hopper._forward.arg_names
    pointers = [name for name in names if types.get(name, '').startswith('*')]
    source = GluonASTSource(
        fn=hopper._forward,
        signature={name: types.get(name, 'constexpr') for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [['tt.divisibility', 16]] for name in pointers})
    log = io.StringIO()
    knobs = triton.knobs
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True # a cached kernel has no log
        knobs.nvidia.dump_ptxas_log = True
        binary = triton.compile(source, target=GPUTarget('cuda', 90, 32), options=options)
    return log.getvalue(), binary

def loops(binary, folder):
    """The instructions of each loop over blocks of keys, as lists."""
    cubin = folder / 'kernel.cubin'
    cubin.write_bytes(binary.asm['cubin'])
    disassembler = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'nvdisasm'
    text = subprocess.run([disassembler, '-c', cubin], capture_output=True, text=True, check=True).stdout
    instructions = []
    labels = {}
    bodies = []
    for line in text.splitlines():
        if label := re.match(r'(\.L_x_\d+):', line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r'\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;', line):
            instructions.append(instruction[1])
            target = re.search(r'BRA.*(\.L_x_\d+)', instruction[1])
            if target and target[1] in labels:
                bodies.append((labels[target[1]], len(instructions)))
    # A body with a branch back inside it is an outer loop, or code that ptxas has moved to the end.
    inner = [(a, b) for a, b in bodies if not any(a <= c and d < b for c, d in bodies)]
    inner = [instructions[a:b] for a, b in inner]
    return [body for body in inner if sum('HGMMA' in x for x in body) == 16] # 8 of 16 channels, 8 of 16 keys

@pytest.mark.slow
def test_the_compiler_keeps_every_softmax_beside_a_product(tmp_path):
    """Three loops for each consumer: both products, the wait for q.k, all exp2's, the wait for p.v."""
    log, binary = machine_code()
    assert 'Used 168 registers' in log
    spilled = int(re.search(r'(\d+) bytes spill stores', log)[1])
    assert spilled <= 128 # in the masked blocks at both ends of a document, see below
    assert not re.search(r'C75\d\d|serializ', log), log # ptxas would run each product by itself
    assert binary.metadata.shared <= 232448
    bodies = loops(binary, tmp_path)
    assert len(bodies) == 6
    for body in bodies:
        products = [i for i, x in enumerate(body) if 'HGMMA' in x]
        qk_ends, pv_ends = (i for i, x in enumerate(body) if 'WARPGROUP.DEPBAR' in x)
        exponentials = [i for i, x in enumerate(body) if 'MUFU.EX2' in x]
        assert len(exponentials) == 66 # 64 for p, 2 for shrink
        assert products[-1] < qk_ends < exponentials[0]
        assert exponentials[-1] < pv_ends
    for unmasked in sorted(bodies, key=len)[:2]: # one of each consumer, where nearly all of the time goes
        assert not any('LDL' in x or 'STL' in x for x in unmasked)

# --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('D, options, error', [
    (256, {}, 'heads of 65 to 128 channels, got 256'),
    (64, {}, 'heads of 65 to 128 channels, got 64'),
    (128, {'softcap': 5.0}, 'no softcap and no ALiBi'),
    (128, {'slopes': torch.ones(2)}, 'no softcap and no ALiBi')])
def test_what_it_cannot_compute_is_refused(D, options, error, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(major=9, minor=0))
    with pytest.raises(Refused, match=error):
        hopper.check(torch.device('cuda'), D, **options)

def test_it_needs_hopper_and_is_never_chosen_by_itself(monkeypatch):
    q, k, v = inputs(1, 20)
    with pytest.raises(Refused, match="'hopper': expected a GPU"):
        attention(q, k, v, backend='hopper')
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(major=9, minor=0))
    assert choose_backend(torch.device('cuda'), None, torch.bfloat16, 128) == 'triton'
    assert choose_backend(torch.device('cuda'), 'hopper', torch.bfloat16, 128) == 'triton'
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(major=10, minor=0))
    with pytest.raises(Refused, match="'hopper': expected a GPU of compute capability 9.0, such as an H100"):
        hopper.check(torch.device('cuda'), 128)

def test_its_first_run_on_a_gpu_compares_what_it_says(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['bench/hopper.py', '--dry'])
    assert first_run.main() == 0 and 'no GPU of compute capability 9.0' in capsys.readouterr().out
    backends = []

    def by_the_device(*qkv, docs, backend, **options):
        backends.append(backend)
        return attention(*qkv, docs, **options)

    monkeypatch.setattr(first_run, 'documents', lambda doc_start, backend: documents(doc_start))
    monkeypatch.setattr(first_run, 'attention', by_the_device)
    monkeypatch.setattr(first_run, 'LENGTHS', [[40, 30]])
    rows = list(first_run.correctness_rows())
    assert [row['of'] for row in rows] == 2 * ['o', 'dq', 'dk', 'dv'] and set(backends) == {'hopper'}
    assert all(row['good'] and row['same'] for row in rows)
