"""
The GPU queue without a GPU: its parts on tiny shapes, and what becomes of competitors, limits and results.
"""
import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from bench import common, correctness, kernel_speed, runs, training, tune, words
from bench.common import ROOT
from files import write_json
from kernels import attention as att
from speech.words import write_words_shard

pytest.importorskip('triton')


def test_ways_are_measured_and_one_that_raises_says_why():
    def broken():
        raise RuntimeError("no such kernel\nand a long story")
    rows = common.measure({'ours': lambda: torch.ones(3).sum(), 'theirs': broken}, 3, 'cpu')
    assert rows['theirs'] == {'error': 'RuntimeError: no such kernel'}
    assert 0 <= rows['ours']['least'] <= rows['ours']['ms'] <= rows['ours']['most']

def test_rows_are_kept_as_they_are_made(capsys):
    kept = []
    rows = common.table(({'a': i, 'b': 0.123456} for i in range(2)), 'a', 'b', keep=lambda rows: kept.append(len(rows)))
    assert kept == [1, 2] and len(rows) == 2
    assert capsys.readouterr().out.splitlines()[1:] == ['| a | b |', '|---|---|', '| 0 | 0.1235 |', '| 1 | 0.1235 |']

def test_a_result_says_where_and_how_and_a_dry_run_leaves_none(monkeypatch):
    found = {}
    monkeypatch.setattr(common, 'write_json', lambda path, value: found.update({path: value}))
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'bench' / 'correctness.py'), '--dry'])
    common.save('x', True, rows=[])
    assert not found
    common.save('x', False, rows=[1])
    made = found[ROOT / 'bench' / 'results' / 'x.json']
    assert made['rows'] == [1] and made['command'] == 'python bench/correctness.py --dry'
    assert made['torch'] == torch.__version__
    monkeypatch.setenv('COMMIT', 'abc')
    assert common.machine()['commit'] == 'abc'

def test_correctness():
    torch.manual_seed(0)
    rows = [*correctness.attention_rows(True), *correctness.cross_entropy_rows(True)]
    assert len(rows) == 40 and all(row['good'] and row['same'] for row in rows), [row for row in rows if not row['good']]

def test_what_is_wrong_or_not_written_is_not_good():
    one = [torch.ones(4)]
    judge = lambda ours: [row['good'] for row in correctness.judged('x', 'o', [one[0].double()], one, ours)]
    assert judge(lambda: one) == [True]
    assert judge(lambda: [one[0] + 1e-6]) == [False] and judge(lambda: [torch.empty(4)]) == [False] # which is NaN

def test_memcheck(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert correctness.memcheck().startswith('absent')
    for status, said in ((0, 'passed'), (9, 'failed, exit status 9: Invalid read')):
        script = tmp_path / 'compute-sanitizer'
        script.write_text(f"#!/bin/sh\necho '========= COMPUTE-SANITIZER'\necho '========= Invalid read'\nexit {status}\n")
        script.chmod(0o755)
        assert correctness.memcheck().replace('========= ', '').startswith(said)

LIMIT = {'tflops': 800.0, 'gbs': 4000.0}

def test_kernel_tables():
    rows = [row for make in (kernel_speed.cross_entropy_rows, kernel_speed.attention_rows, kernel_speed.elementwise_rows)
            for row in make(True, LIMIT)]
    done = {row['of'] for row in rows if 'ms' in row}
    assert {'nanoSLM', 'torch', 'torch.compile', 'SDPA'} <= done
    assert all('ms' in row or row['of'] not in (kernel_speed.OURS, 'torch', 'torch.compile') for row in rows)
    for row in rows:
        assert ('share' in row) != ('error' in row), row

def test_work_over_time_is_the_rate():
    ways = {'copy': lambda x: x * 2}
    row, = kernel_speed.rows_of('case', 'forward', ways, [torch.ones(1000)], LIMIT, 'gbs', 8e9, 1)
    assert row['gbs'] == pytest.approx(8e3 / row['ms'], rel=0.01)
    assert row['share'] == pytest.approx(row['gbs'] / 4000, abs=1e-3)

def test_goals():
    case = kernel_speed.CE.format(896)
    row = lambda of, **more: {'case': case, 'pass': 'both', 'of': of, **more}
    rows = [row(kernel_speed.OURS, ms=10.0, tflops=670.0, peak_mb=1000), row('torch.compile', ms=9.0, peak_mb=4000),
            row('Liger', error='ModuleNotFoundError')]
    goals = {(goal['case'], goal['goal']): goal for goal in kernel_speed.goals(rows)}
    assert len(goals) == len(kernel_speed.GOALS) - 4 # those of attention have two passes
    assert goals[case, 'tflops']['met'] and not goals[case, 'ms of torch.compile']['met']
    assert goals[case, 'ms of torch.compile']['got'] == 0.9 and goals[case, 'peak_mb of torch.compile']['share'] == 1.333
    assert 'met' not in goals[case, 'ms of Liger']

def test_packed_documents():
    doc_start = kernel_speed.packed(4, 256, 16).cpu()
    assert not kernel_speed.packed(2, 8, 8).any()
    lengths = torch.cat([torch.bincount(row)[row.unique()] for row in doc_start])
    assert lengths.sum() == 4 * 256 and lengths.max() < 32 and 10 < lengths.float().mean() < 20
    assert (doc_start.gather(1, doc_start) == doc_start).all() # a document begins where it says

@pytest.mark.skipif(not shutil.which('g++'), reason="torch.compile needs a C++ compiler on a CPU")
def test_training_steps():
    (how,) = training.TINY.values()
    rows = list(training.rows_of('tiny', *how, dry=True))
    by = {(row['of'], row['documents']): row for row in rows}
    ours, compiled, theirs = (by[of, 32] for of in list(training.WAYS)[:3])
    assert ours['tok_s'] > 0 and ours['loss'] == pytest.approx(compiled['loss'], abs=0.01)
    assert theirs['loss'] == pytest.approx(ours['loss'], abs=0.1) # a random model of the same shape

def test_training_in_pure_bf16_and_where_its_time_goes():
    shape, micro, _ = training.TINY['tiny']
    cfg, seen = training.GPTConfig(vocab_size=500, **shape), {}
    batch, _ = training.batch_of(cfg, 4, 32, 8, micro)
    step = training.step_of(training.ours, cfg, batch, seen, weights=torch.bfloat16)
    parts = {row['what']: row for row in training.profile_of(step)}
    assert seen['states'] == 8 * sum(p.numel() for p in training.GPT(cfg).parameters())
    assert sum(row['share'] for row in parts.values()) == pytest.approx(1, abs=1e-3)
    assert parts['products']['share'] > 0.02 and 'mm' in parts['products']['kernels']
    assert 'adam' in parts['optimizer, clip']['kernels']

DRY = {'train_cpu': 'nanoSLM, --compile', 'prepare': 'interleave: documents 200', 'eval': '| second run |',
       'sample': '| 2 | units, top-k 25 | nanoSLM |'} # what they print

@pytest.mark.parametrize('script', [pytest.param(name, marks=() if name in ('prepare', 'sample') else pytest.mark.slow) for name in DRY])
def test_scripts_without_a_gpu_run_dry(script, tmp_path):
    results = ROOT / 'bench' / 'results'
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    done = subprocess.run([sys.executable, f'bench/{script}.py', '--dry'], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert DRY[script] in done.stdout
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before

def test_goals_of_training():
    row = lambda of, **numbers: {'model': 'Qwen2.5-0.5B', 'documents': 2048, 'of': of, **numbers}
    met = {goal['goal']: goal for goal in training.goals([row('nanoSLM', tok_s=150_000, ms=10.0, saved_mb=100),
                                                          row('transformers', ms=17.0, saved_mb=400)])}
    assert met.keys() == {'tok_s', 'ms of transformers', 'saved_mb of transformers'} # no mfu off a known chip
    assert met['tok_s']['met'] and not met['ms of transformers']['met'] and met['ms of transformers']['got'] == 1.7
    assert met['saved_mb of transformers']['met']

def test_the_queue_refuses_a_part_it_does_not_know():
    done = subprocess.run(['bench/gpu.sh', 'kernel'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "bench/gpu.sh: kernel: expected --dry, correctness, kernels, training, large or runs\n"

def test_the_queue_goes_on_after_a_part_that_fails(tmp_path):
    python = tmp_path / 'python3' # of which the first part fails
    python.write_text('#!/bin/sh\ncase $1 in -c) ;; *correctness.py) exit 3 ;; *) echo "ran $*" ;; esac\n')
    python.chmod(0o755)
    done = subprocess.run(['bench/gpu.sh', 'correctness', 'kernels'], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {'PATH': f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 1 and 'FAILED  correctness (exit 3)' in done.stdout
    assert 'ran bench/kernel_speed.py\n' in done.stdout

# ----------------------------------------------------------------------------------------------------------------

def test_a_run_says_how_far_it_came(tmp_path):
    tree = tmp_path / 'tree'
    (tree / 'out').mkdir(parents=True)
    (tree / 'requirements.txt').write_text('torch\n')
    (tree / 'speedrun.sh').write_text(
        'cmp requirements.txt .venv/installed; .venv/bin/python -c "import torch"; mkdir -p out/speedrun\n'
        'echo "   12 s  train: tiny                                    step 9"; echo "{}" >out/speedrun/eval.json\n'
        'echo "FAILED  evaluate"; exit 1\n')
    found = runs.run(runs.copy_of(tree, tmp_path / 'copy'), 'bash', '-e', 'speedrun.sh')
    assert found['exit'] == 1 and found['stages'] == {'train: tiny': 12} and found['eval'] == {}
    assert found['failure'][-1] == 'FAILED  evaluate'
    assert not list((tree / 'out').iterdir())

# ----------------------------------------------------------------------------------------------------------------

def test_only_the_table_is_rewritten():
    text = (ROOT / 'kernels' / 'attention.py').read_text()
    assert tune.with_table(text, att.CONFIGS) == text
    table = {key: (64, 32, 4, i) for i, key in enumerate(att.CONFIGS)}
    new = tune.with_table(text, table)
    assigned, = (node for node in ast.parse(new).body if isinstance(node, ast.Assign) and node.targets[0].id == 'CONFIGS')
    assert ast.literal_eval(assigned.value) == table
    cut = lambda t: (t[:t.index('CONFIGS = {')], t[t.index('\n}', t.index('CONFIGS = {')):])
    assert cut(new) == cut(text)

def test_only_the_block_is_rewritten():
    text = (ROOT / 'kernels' / 'cross_entropy.py').read_text()
    line = next(line for line in text.splitlines() if line.startswith('BLOCK, WARPS ='))
    new = tune.with_block(text, 1024, 16)
    assert new.splitlines().count(line) == 0 and 'BLOCK, WARPS = 1024, 16' in new
    assert len(new.splitlines()) == len(text.splitlines()) and tune.with_block(new, *ast.literal_eval(
        ast.parse(line).body[0].value)) == text

def test_what_ships_is_a_candidate():
    for (_, D, step), config in att.CONFIGS.items():
        assert config in list(tune.candidates(D, step)), (D, step, config)

def test_the_fastest_that_fits_is_chosen(monkeypatch):
    key, shipped = (90, 64, 'forward'), dict(att.CONFIGS)
    speed = {config: i for i, config in enumerate(tune.candidates(64, 'forward'))} # ms
    fastest, second, third = list(speed)[:3]
    monkeypatch.setattr(tune, 'timed', lambda *_: lambda config: config)
    monkeypatch.setattr(tune, 'INTERPRETED', False)
    monkeypatch.setattr(tune, 'fits', lambda key, config: config != second)
    def measured(ways, repeats):
        return {c: {'error': 'out of resource'} if c == fastest else {'ms': speed[c]} for c in ways}
    monkeypatch.setattr(tune, 'measure', measured)
    chosen, row = tune.best_tiles(key, dry=False)
    assert chosen == third and row['ran'] == row['tried'] - 1 and att.CONFIGS == shipped

@pytest.mark.slow
def test_what_ships_fits():
    if os.environ.get('TRITON_INTERPRET') == '1':
        pytest.skip("Triton's interpreter compiles nothing")
    key, shipped = (90, 64, 'forward'), dict(att.CONFIGS)
    assert tune.fits(key, att.CONFIGS[key]) and att.CONFIGS == shipped

def test_tuning_dry():
    done = subprocess.run([sys.executable, 'bench/tune.py', '--dry'], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {'TRITON_INTERPRET': '1'})
    assert done.returncode == 0, done.stderr
    assert "(90, 64, 'dkv')" in done.stdout and '| cross-entropy | 2 | 2 |' in done.stdout

def test_word_times_beside_a_manifest(tmp_path, monkeypatch, capsys):
    write_words_shard(tmp_path / 'words', 0, [('a', ['The', ' Dog,', ' sat'], [160, 3200, 8000], [1600, 4800, 9600]), ('b', [], [], [])])
    write_json(tmp_path / 'words' / 'info.json', {'command': 'align.py', 'refused': {}})
    lines = [{'id': 'a', 'audio': 'a.wav', 'words': [['a', 0, 0.1], ['dog', .21, .5], ['sat', .5, None]]}, {'id': 'b', 'audio': 'b.wav'}]
    (tmp_path / 'm.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    monkeypatch.setattr(words, 'ROOT', tmp_path)
    words.main(words.Config(words=str(tmp_path / 'words'), manifest=str(tmp_path / 'm.jsonl'), name='x'))
    [row] = json.loads((tmp_path / 'bench/results/x.json').read_text())['rows']
    assert (row['matched'], row['words'], row['documents']) == (1, 3, 2)
    assert row['start']['bias_ms'] == -10 and row['end'] == {'median_ms': 200, 'mean_ms': 200, 'under_100_ms': 0, 'bias_ms': -200}

def test_results_are_json():
    for path in (ROOT / 'bench' / 'results').glob('*.json'):
        assert {'commit', 'command'} <= set(json.loads(path.read_text())), path
