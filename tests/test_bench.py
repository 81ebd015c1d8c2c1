"""
The benchmarks without a GPU: their parts on tiny shapes, and how they report the other
implementations, goals and results.
"""
import ast
import json
import os
import re
import subprocess
import sys
import tarfile

import pytest
import torch

pytest.importorskip('triton')
from small import make_model, make_tokenizer

from bench import (
    common,
    correctness,
    kernel_speed,
    ncu,
    reader_checks,
    readers,
    runs,
    speed_table,
    traffic,
    training,
    tune,
    words,
)
from bench.common import ROOT
from configurator import Refused
from files import write_json
from kernels import attention as att
from speech.words import write_words_shard

# --------------------------------------------------------------------------------------------------
# bench/common.py

def test_ways_are_measured_and_one_that_raises_says_why():
    def broken():
        raise RuntimeError("no such kernel\nand a long story")
    def working():
        torch.ones(3).sum()
    rows = common.measure({'broken': broken, 'working': working}, 3, 'cpu')
    assert rows['broken'] == {'error': 'RuntimeError: no such kernel'}
    row = rows['working']
    assert 0 <= row['least'] <= row['ms'] <= row['most']

def test_rows_are_kept_as_they_are_made(capsys):
    n_rows = []
    def count_rows(rows):
        n_rows.append(len(rows))
    generator = ({'a': i, 'b': 0.123456} for i in range(2))
    rows = common.table(generator, 'a', 'b', on_row=count_rows)
    assert n_rows == [1, 2]
    assert len(rows) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ['| a | b |', '|---|---|', '| 0 | 0.1235 |', '| 1 | 0.1235 |']

def test_a_result_says_where_and_how_and_a_dry_run_leaves_none(monkeypatch):
    files = {}
    monkeypatch.setattr(common, 'write_json', files.__setitem__)
    script = ROOT / 'bench' / 'correctness.py'
    monkeypatch.setattr(sys, 'argv', [str(script), '--dry'])
    common.save('x', True, rows=[])
    assert not files
    common.save('x', False, rows=[1])
    result = files[ROOT / 'bench' / 'results' / 'x.json']
    assert result['rows'] == [1]
    assert result['command'] == 'python bench/correctness.py --dry'
    assert result['torch'] == torch.__version__
    monkeypatch.setenv('COMMIT', 'abc')
    assert common.machine()['commit'] == 'abc'

# --------------------------------------------------------------------------------------------------
# bench/correctness.py

def test_the_table_of_the_docs_is_what_was_measured():
    lines = speed_table.table(speed_table.load_result)
    page = speed_table.PAGE.read_text(encoding='utf-8')
    assert speed_table.with_table(page, lines) == page
    assert len(lines) > 25

def test_a_row_of_the_table_follows_its_result():
    row = speed_table.compared('w', 'r', 'tokens/s', 9345, {'a': 1234567, 'b': 8.07})
    assert (row.here, row.beside) == ('9,340 tokens/s', 'a 1.23 M, b 8.07')
    assert row.times == 9345 / 1234567
    with pytest.raises(Refused, match='expected one'):
        speed_table.with_table('a page without marks', [])

def test_correctness():
    torch.manual_seed(0)
    rows = [*correctness.rows_of('plain', True), *correctness.rows_of('variants', True)]
    assert len(rows) == 14 + 26
    failed = [row for row in rows if not (row['good'] and row['same'])]
    assert not failed

def test_what_is_wrong_or_not_written_is_not_good():
    x = torch.ones(4)
    def is_good(kernel):
        [row] = correctness.compare('x', 'o', [x.double()], [x], kernel)
        return row['good']
    assert is_good(lambda: [x])
    assert not is_good(lambda: [x + 1e-6])
    assert not is_good(lambda: [torch.empty(4)]) # filled with NaN

@pytest.mark.parametrize('status, outcome', [(0, 'passed'), (9, 'failed, exit status 9: Invalid read')])
def test_memcheck(monkeypatch, tmp_path, status, outcome):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert correctness.memcheck().startswith('absent')
    script = tmp_path / 'compute-sanitizer'
    script.write_text('#!/bin/sh\n'
                      "echo '========= COMPUTE-SANITIZER'\n"
                      "echo '========= Invalid read'\n"
                      f'exit {status}\n')
    script.chmod(0o755)
    assert correctness.memcheck().replace('========= ', '').startswith(outcome)

# --------------------------------------------------------------------------------------------------
# bench/kernel_speed.py

LIMITS = {'tflops': 800.0, 'gbs': 4000.0}

def test_kernel_tables():
    rows = [*kernel_speed.cross_entropy_rows('all', True, LIMITS),
            *kernel_speed.attention_rows('all', True, LIMITS),
            *kernel_speed.elementwise_rows('all', True, LIMITS)]
    measured = {row['of'] for row in rows if 'ms' in row}
    assert {'nanoSLM', 'torch', 'torch.compile', 'SDPA'} <= measured
    for row in rows:
        if row['of'] in (kernel_speed.OURS, 'torch', 'torch.compile'):
            assert 'ms' in row, row
        assert ('share' in row) != ('error' in row), row

def test_work_over_time_is_the_rate():
    implementations = {'copy': lambda x: x * 2}
    inputs = [torch.ones(1000)]
    [row] = kernel_speed.rows_of('case', 'forward', implementations, inputs, LIMITS, 'gbs', 8e9, 1)
    assert row['gbs'] == pytest.approx(8e3 / row['ms'], rel=0.01)
    assert 'of ours' not in row # which was not measured
    assert row['share'] == pytest.approx(row['gbs'] / 4000, abs=1e-3)

def test_goals():
    case = kernel_speed.CE.format(896)
    key = {'case': case, 'pass': 'both'}
    numbers = [{'of': kernel_speed.OURS, 'ms': 10.0, 'tflops': 670.0, 'peak_mb': 1000},
               {'of': 'torch.compile', 'ms': 9.0, 'peak_mb': 4000},
               {'of': 'Liger', 'error': 'ModuleNotFoundError'}]
    rows = kernel_speed.goals([key | row for row in numbers])
    goals = {(row['case'], row['goal']): row for row in rows}
    assert len(goals) == len(kernel_speed.GOALS) - 4 # four of attention are there for both passes
    assert goals[case, 'tflops']['met']
    assert not goals[case, 'ms of torch.compile']['met']
    assert goals[case, 'ms of torch.compile']['got'] == 0.9
    assert goals[case, 'peak_mb of torch.compile']['share'] == 1.333
    assert 'met' not in goals[case, 'ms of Liger']

def test_packed_documents():
    assert not kernel_speed.packed(2, 8, 8).any()
    doc_start = kernel_speed.packed(4, 256, 16).cpu()
    lengths = torch.cat([row.unique(return_counts=True)[1] for row in doc_start])
    assert lengths.sum() == 4 * 256
    assert lengths.max() < 32
    assert 10 < lengths.float().mean() < 20
    # The token at doc_start is the first of its document.
    assert (doc_start.gather(1, doc_start) == doc_start).all()

# --------------------------------------------------------------------------------------------------
# bench/training.py

def test_training_steps():
    part = training.Part('tiny', (training.OURS, training.COMPILED, 'transformers', 'transformers, Liger'))
    rows = {row['of']: row for row in training.rows_of(part, True, {})}
    ours = rows['nanoSLM']
    assert ours['tok_s'] > 0 and ours['of ours'] == 1
    assert ours['loss'] == pytest.approx(rows[training.COMPILED]['loss'], abs=0.01)
    # transformers has another random model of the same shape.
    assert rows['transformers']['loss'] == pytest.approx(ours['loss'], abs=0.1)
    assert rows['transformers']['of ours'] == pytest.approx(rows['transformers']['ms'] / ours['ms'], rel=0.01, abs=6e-4)
    if 'ms' not in rows['transformers, Liger']:
        assert 'liger_kernel' in rows['transformers, Liger']['error']

def test_training_in_pure_bf16_and_where_its_time_goes():
    shape, micro_rows, _ = training.SHAPES['tiny']
    cfg = training.GPTConfig(vocab_size=500, **shape)
    state = {}
    batch, _ = training.batch_of(cfg, 4, 32, 8, micro_rows)
    step = training.step_of(training.build_nanoslm, cfg, batch, state,
                            weights=torch.bfloat16)
    step()
    by_kind, by_kernel = training.profile_of(step)
    n_params = sum(p.numel() for p in training.GPT(cfg).parameters())
    assert state['states'] == 8 * n_params
    assert sum(row['share'] for row in by_kind) == pytest.approx(1, abs=1e-3)
    shares = {row['what']: row['share'] for row in by_kind}
    assert shares['products'] > 0 and shares['optimizer, clip'] > 0
    times = [row['ms'] for row in by_kernel]
    assert times == sorted(times, reverse=True)
    assert all(row['calls'] > 0 for row in by_kernel)

@pytest.mark.parametrize('kernel, kind', [
    ('aten::mm', 'products'), ('aten::addmm', 'products'), ('sm90_xmma_gemm_bf16', 'products'),
    ('aten::_fused_adamw_', 'optimizer, clip'), ('Optimizer.step#AdamW.step', 'optimizer, clip'),
    ('_backward_kv', 'attention'), ('_pass', 'loss'), ('aten::copy_', 'copies'),
    ('_norm_backward', 'norm, rotation, SwiGLU'), ('_swiglu', 'norm, rotation, SwiGLU'),
    ('aten::mul', 'other elementwise')])
def test_a_kernel_counts_under_its_kind(kernel, kind):
    assert training.kind_of(kernel) == kind

def test_goals_of_training():
    key = {'model': 'Qwen2.5-0.5B', 'documents': 2048}
    numbers = [{'of': 'nanoSLM', 'tok_s': 150_000, 'ms': 10.0, 'saved_mb': 100},
               {'of': 'transformers', 'ms': 17.0, 'saved_mb': 400}]
    rows = training.goals([key | row for row in numbers])
    goals = {row['goal']: row for row in rows}
    # Without a known chip there is no MFU.
    assert goals.keys() == {'tok_s', 'ms of transformers', 'saved_mb of transformers'}
    assert goals['tok_s']['met']
    assert not goals['ms of transformers']['met']
    assert goals['ms of transformers']['got'] == 1.7
    assert goals['saved_mb of transformers']['met']

# --------------------------------------------------------------------------------------------------
# whole scripts

DRY_OUTPUTS = { # {script: a part of what it prints}
    'train_cpu': 'nanoSLM, --compile',
    'prepare': 'interleave: documents 200',
    'eval': '| second run |',
    'sample': '| 2 | units, top-k 25 | nanoSLM |',
    'sample --graph': '| 2 | units, top-k 25 | nanoSLM, graph |'}

def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.iterdir()}

@pytest.mark.parametrize('script', [
    pytest.param('train_cpu', marks=pytest.mark.slow),
    pytest.param('prepare', marks=pytest.mark.slow),
    pytest.param('eval', marks=pytest.mark.slow),
    'sample',
    pytest.param('sample --graph', marks=pytest.mark.slow)])
def test_scripts_without_a_gpu_run_dry(script):
    results = ROOT / 'bench' / 'results'
    before = modification_times(results)
    name, *options = script.split()
    done = subprocess.run([sys.executable, f'bench/{name}.py', *options, '--dry'],
                          cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert DRY_OUTPUTS[script] in done.stdout
    assert modification_times(results) == before

# --------------------------------------------------------------------------------------------------
# bench/gpu.sh

def queue():
    """[(call, part, limit, seconds that it should take)] of bench/gpu.sh."""
    text = (ROOT / 'bench' / 'gpu.sh').read_text()
    lines = text.partition("queue='\n")[2].partition("\n'")[0].splitlines()
    fields = [line.split()[:4] for line in lines]
    return [(call, part, int(limit), int(should)) for call, part, limit, should in fields]

def run_queue(*arguments, **variables):
    return subprocess.run(['bench/gpu.sh', *arguments], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | variables)

def test_the_calls_keep_within_their_minutes_even_if_each_part_takes_all_its_time():
    for call, most in (('short', 480), ('second', 240)):
        limits = [limit for name, _, limit, _ in queue() if name == call]
        assert sum(limits) <= most
    for _, part, limit, should in queue():
        assert should <= 0.9 * limit, part

def test_the_queue_refuses_a_part_it_does_not_know():
    done = run_queue('kernel')
    assert done.returncode == 1
    parts = ' '.join(part for _, part, *_ in queue())
    assert done.stdout == ("bench/gpu.sh: kernel: expected --dry, short, second, or of these parts: "
                           f"{parts}\n")
    assert run_queue().returncode == 1

@pytest.fixture
def stand_in(tmp_path):
    """Variables with a python3 on the PATH that only says what it was asked to run, and fails in correctness.py."""
    python = tmp_path / 'python3'
    python.write_text('#!/bin/sh\n'
                      'case "$*" in -c*) ;; *correctness.py*) exit 3 ;; *) echo "ran $*" ;; esac\n')
    python.chmod(0o755)
    return {'PATH': f"{tmp_path}:{os.environ['PATH']}"}

def test_the_queue_goes_on_after_a_part_that_fails(stand_in):
    done = run_queue('correctness', 'kernels', **stand_in)
    assert done.returncode == 1
    assert 'FAILED  correctness (exit 3)' in done.stdout
    assert 'ran bench/kernel_speed.py kernels\n' in done.stdout

def test_a_call_runs_its_parts_in_their_order(stand_in):
    done = run_queue('second', **stand_in)
    starts = [line.split()[1] for line in done.stdout.splitlines() if line.startswith('====')]
    assert starts == [part for call, part, *_ in queue() if call == 'second']
    assert 'ran bench/training.py 1.5B' in done.stdout

def test_a_part_is_stopped_when_its_time_is_up(stand_in, tmp_path):
    (tmp_path / 'bench').mkdir()
    text = (ROOT / 'bench' / 'gpu.sh').read_text()
    limited = re.sub(r'(?m)^(short +ncu +)\d+', r'\g<1>1', text)
    assert limited != text
    script = tmp_path / 'bench' / 'gpu.sh'
    script.write_text(limited)
    script.chmod(0o755)
    python = tmp_path / 'python3'
    python.write_text(python.read_text().replace('*) echo', '*ncu.py) exec sleep 60 ;; *) echo'))
    done = subprocess.run([script, 'ncu', 'step'], capture_output=True, text=True, env=os.environ | stand_in)
    assert done.returncode == 1
    assert 'FAILED  ncu (its 1 s were up)' in done.stdout
    assert 'ran bench/training.py step\n' in done.stdout

def test_what_was_measured_is_in_one_archive_after_each_part(stand_in, tmp_path):
    result = ROOT / 'bench' / 'results' / 'gpu-of-a-test.json'
    script = tmp_path / 'python3'
    script.write_text(f'#!/bin/sh\n[ "$1" = -c ] || echo "{{}}" >{result}\n')
    try:
        run_queue('compile', RESULTS=str(tmp_path / 'results.tar.gz'), **stand_in)
    finally:
        result.unlink(missing_ok=True)
    with tarfile.open(tmp_path / 'results.tar.gz') as archive:
        assert 'bench/results/gpu-of-a-test.json' in archive.getnames()

# Every part on tiny shapes. Those that another test runs, or that differ by a shape alone, are slow.
QUICK = 'step',

@pytest.mark.parametrize('part', [
    pytest.param(part, marks=[] if part in QUICK else pytest.mark.slow) for _, part, *_ in queue()])
def test_a_part_runs_dry(part):
    before = modification_times(ROOT / 'bench' / 'results')
    done = run_queue('--dry', part)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {'memcheck': '', 'hopper': 'no GPU of compute capability 9.0'}.get(part, '\n|') # a table
    assert f'==== {part} ' in done.stdout and expected in done.stdout
    assert modification_times(ROOT / 'bench' / 'results') == before

# --------------------------------------------------------------------------------------------------
# bench/ncu.py, bench/traffic.py

def test_counters_are_read_from_the_lines_of_a_table():
    [row] = ncu.counters(ncu.EXAMPLE)
    assert row['gpu__time_duration.sum'] == ('1,234.5', 'us')
    assert ncu.counters('==ERROR== The application returned an error code (1).') == []

X = torch.zeros(6, 4) # 96 bytes
ROW = torch.ones(4) # 16 bytes

@pytest.mark.parametrize('f, n', [
    (lambda: X.t(), 0), # a view
    (lambda: X + 1, 2 * 96),
    (lambda: X * X, 2 * 96), # read once
    (lambda: X.add_(1), 2 * 96),
    (lambda: X.copy_(ROW), 96 + 16), # overwritten, not read
    (lambda: X + ROW.expand(6, 4), 2 * 96 + 16),
    (lambda: torch.add(X, ROW, out=X), 2 * 96 + 16),
    (lambda: X[:2].sum(), 32 + 4),
    (lambda: X @ X.T, 0)]) # products are left out
def test_the_bytes_of_an_operator(f, n):
    with traffic.Traffic() as counted:
        f()
    assert counted.bytes.total() == n, counted.bytes

def test_a_run_says_how_far_it_came(tmp_path):
    tree = tmp_path / 'tree'
    (tree / 'out').mkdir(parents=True)
    (tree / 'requirements.txt').write_text('torch\n')
    (tree / 'speedrun.sh').write_text(
        'cmp requirements.txt .venv/installed\n'
        '.venv/bin/python -c "import torch"\n'
        'mkdir -p out/speedrun\n'
        'echo "   12 s  train: tiny                                    step 9"\n'
        'echo "{}" >out/speedrun/eval.json\n'
        'echo "FAILED  evaluate"\n'
        'exit 1\n')
    copy = runs.copy_tree(tree, tmp_path / 'copy')
    results = runs.run(copy, 'bash', '-e', 'speedrun.sh')
    assert results['exit'] == 1
    assert results['stages'] == {'train: tiny': 12}
    assert results['eval'] == {}
    assert results['failure'][-1] == 'FAILED  evaluate'
    assert not list((tree / 'out').iterdir())

# --------------------------------------------------------------------------------------------------
# bench/tune.py

def assigned_value(source, name):
    """The value of the top-level `name = literal` of a Python source."""
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    [value] = [node.value for node in assignments if ast.unparse(node.targets[0]) == name]
    return ast.literal_eval(value)

def around_table(source):
    """What stands before and after the entries of CONFIGS."""
    begin = source.index('CONFIGS = {')
    end = source.index('\n}', begin)
    return source[:begin], source[end:]

def test_only_the_table_is_rewritten():
    source = (ROOT / 'kernels' / 'attention.py').read_text()
    assert tune.with_table(source, att.CONFIGS) == source
    configs = {key: (64, 32, 4, i) for i, key in enumerate(att.CONFIGS)}
    rewritten = tune.with_table(source, configs)
    assert assigned_value(rewritten, 'CONFIGS') == configs
    assert around_table(rewritten) == around_table(source)

def test_only_the_block_is_rewritten():
    source = (ROOT / 'kernels' / 'cross_entropy.py').read_text()
    [line] = [line for line in source.splitlines() if line.startswith('BLOCK, WARPS =')]
    rewritten = tune.with_block(source, 1024, 16)
    assert line not in rewritten.splitlines()
    assert 'BLOCK, WARPS = 1024, 16' in rewritten
    assert len(rewritten.splitlines()) == len(source.splitlines())
    shipped = assigned_value(line, '(BLOCK, WARPS)')
    assert tune.with_block(rewritten, *shipped) == source

def test_what_ships_is_a_candidate():
    for (_, D, step), config in att.CONFIGS.items():
        assert config in list(tune.candidates(D, step)), (D, step, config)

def test_the_fastest_that_fits_is_chosen(monkeypatch):
    key = (90, 64, 'forward')
    shipped = dict(att.CONFIGS)
    ms = {config: i for i, config in enumerate(tune.candidates(64, 'forward'))}
    fastest, second, third, *_ = ms

    def measure(configs, repeats):
        rows = {config: {'ms': ms[config]} for config in configs}
        rows[fastest] = {'error': 'out of resource'}
        return rows

    monkeypatch.setattr(tune, 'timed', lambda *_: lambda config: config)
    monkeypatch.setattr(tune, 'INTERPRETED', False)
    monkeypatch.setattr(tune, 'fits', lambda key, config: config != second)
    monkeypatch.setattr(tune, 'measure', measure)
    chosen, row = tune.best_tiles(key, dry=False)
    assert chosen == third
    assert row['ran'] == row['tried'] - 1
    assert att.CONFIGS == shipped

@pytest.mark.slow
def test_what_ships_fits():
    if os.environ.get('TRITON_INTERPRET') == '1':
        pytest.skip("Triton's interpreter compiles nothing")
    key = (90, 64, 'forward')
    shipped = dict(att.CONFIGS)
    assert tune.fits(key, att.CONFIGS[key])
    assert att.CONFIGS == shipped

@pytest.mark.slow
def test_tuning_dry():
    done = subprocess.run([sys.executable, 'bench/tune.py', '--dry'], cwd=ROOT,
                          capture_output=True, text=True, env=os.environ | {'TRITON_INTERPRET': '1'})
    assert done.returncode == 0, done.stderr
    assert "(90, 64, 'dkv')" in done.stdout
    assert '| cross-entropy | 2 | 2 |' in done.stdout

# --------------------------------------------------------------------------------------------------

def test_word_times_beside_a_manifest(tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'words'
    starts = [160, 3200, 8000]
    ends = [1600, 4800, 9600]
    docs = [('a', ['The', ' Dog,', ' sat'], starts, ends), ('b', [], [], [])]
    write_words_shard(folder, 0, docs)
    write_json(folder / 'info.json', {'command': 'align.py', 'refused': {}})
    timed = [['a', 0, 0.1], ['dog', .21, .5], ['sat', .5, None]]
    lines = [{'id': 'a', 'audio': 'a.wav', 'words': timed},
             {'id': 'b', 'audio': 'b.wav'}]
    manifest = tmp_path / 'm.jsonl'
    manifest.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    monkeypatch.setattr(words, 'ROOT', tmp_path)
    cfg = words.Config(words=str(folder), manifest=str(manifest), name='x')
    words.main(cfg)
    result = json.loads((tmp_path / 'bench/results/x.json').read_text())
    [row] = result['rows']
    assert row['matched'] == 1
    assert row['words'] == 3
    assert row['documents'] == 2
    assert row['start']['bias_ms'] == -10
    assert row['end'] == {'median_ms': 200,
                          'mean_ms': 200,
                          'under_100_ms': 0,
                          'bias_ms': -200}

def test_results_are_json():
    for path in (ROOT / 'bench' / 'results').glob('*.json'):
        result = json.loads(path.read_text())
        assert {'commit', 'command'} <= result.keys(), path

# --------------------------------------------------------------------------------------------------
# bench/readers.py

@pytest.fixture(params=['joint', 'speech', 'text'])
def case(request, tmp_path, monkeypatch):
    """What bench/readers.py compares, of a random model with each kind of vocabulary."""
    monkeypatch.setattr(reader_checks, 'ROWS', [])
    make_tokenizer(tmp_path / 'tokenizer')
    make_model(tmp_path / 'model', tmp_path / 'tokenizer', request.param)
    return readers.make_case(tmp_path / 'model', tmp_path)

def test_transformers_reads_what_we_save_and_we_what_it_saves(case):
    reader_checks.READERS['transformers'](case)
    rows = [*reader_checks.ROWS, readers.read_back(os.path.join(case['case'], 'resaved'), case)]
    assert len(rows) == 5
    assert all(row['ok'] for row in rows), rows
    assert len(case['log_likelihoods']) == 4 and max(case['log_likelihoods']) < 0

def test_a_reader_that_sees_something_else_is_a_row_that_says_what(case):
    changed = [expected + 1 for expected in reader_checks.load_tensors(case['logits'])]
    reader_checks.save_tensors(changed, case['logits'])
    case['greedy'][1][5] += 1
    case['ids'][0] = case['ids'][0][1:]
    case['size'] += 1
    reader_checks.READERS['transformers'](case)
    logits, greedy, ids, saved = reader_checks.ROWS
    assert not any(row['ok'] for row in reader_checks.ROWS)
    assert logits['result'].startswith('largest distance 1.0e+00')
    assert greedy['result'].startswith('2 of 3 equal') and greedy['result'].endswith('at place 5')
    assert '2 of 3 equal' in ids['result'] and f"for {case['size']}" in saved['result']
    reader_checks.checking('x', case.__getitem__, 'absent')
    assert reader_checks.ROWS[-1] == {'check': 'x', 'ok': False, 'result': "KeyError: 'absent'"}

def test_a_reader_that_dies_or_is_not_run_is_a_row(case, tmp_path):
    [row] = readers.reader_rows('transformers', '/bin/false', case)
    assert row['ok'] is False and row['result'] == 'no message'
    [row] = readers.reader_rows('vllm', sys.executable, case)
    assert row['ok'] is None and row['result'] == readers.NOT_RUN['vllm']

def test_an_environment_is_made_once_for_the_same_pins(tmp_path, monkeypatch):
    commands = []
    def run(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)
    monkeypatch.setattr(readers.subprocess, 'run', run)
    python = readers.environment('peft', tmp_path)
    assert readers.environment('peft', tmp_path) == python
    [command] = commands
    assert command[-2:] == list(readers.PINS['peft'])
    shared = 'import torch, sys; print(torch.__file__, sys.prefix)'
    monkeypatch.undo()
    output = subprocess.run([python, '-c', shared], capture_output=True, text=True, env={}).stdout.split()
    assert output == [torch.__file__, str(tmp_path / 'peft')]

def test_a_reader_that_nobody_knows_is_refused():
    with pytest.raises(Refused, match="no reader 'trk'; one of transformers, trl"):
        readers.Config(readers='trk')
