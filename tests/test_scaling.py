"""Plans have the papers' numbers; fits find a known truth and refuse what data cannot carry; suites survive a kill;
figures are files."""
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from configurator import Refused, configure
from files import write_json
from hub.families import GPTConfig
from scaling import compare, curves, figures, fit, plan, predict
from scaling.compare import scores
from scaling.curves import compute, isoflop, surface
from scaling.models import n_params
from scaling.runs import Run, loss_curve, metrics_of, read_runs

ROOT = Path(__file__).parents[1]
PAPERS = str(ROOT / 'papers' / 'published.json')
PATIENCE = 900 # seconds that a child process may take; a busy machine is slow
TSC = 'tiny/main/tsc/S'
JOINT = ('text', 'speech', 'interleaved') # the sources of an interleaved run

TRUTH = {'E': 1.2, 'A': 120.0, 'B': 300.0, 'a': 0.32, 'b': 0.27} # L(N, D) of the synthetic runs
P = TRUTH['b'] / (TRUTH['a'] + TRUTH['b']) # N_opt ~ C^P
BUDGETS = (1e18, 4e18, 1.6e19, 6.4e19, 2.56e20)

def best_n(C):
    """N_opt at C FLOPs, by the formula of Hoffmann et al."""
    A, B, a, b = (TRUTH[name] for name in 'ABab')
    return (a * A / (b * B)) ** (1 / (a + b)) * (C / 6) ** P

def synthetic_runs(seed=0, noise=0.005, budgets=BUDGETS, sizes=5, width=1.5):
    """Runs around the optimum of each budget, with relative noise on the loss and scores that follow it."""
    rng = np.random.default_rng(seed)
    runs = []
    for C in budgets:
        for N in best_n(C) * np.exp(np.linspace(-width, width, sizes)):
            D = C / 6 / N
            loss = TRUTH['E'] + TRUTH['A'] / N ** TRUTH['a'] + TRUTH['B'] / D ** TRUTH['b']
            loss *= 1 + noise * rng.standard_normal()
            score = 0.5 * (C / 1e18) ** 0.05 * (1 - 0.02 * np.log(N / best_n(C)) ** 2)
            name = f'{C:g}-{N:.3g}'
            runs.append(Run(name, 'interleaved', 'x', N, D, C, int(D / 1e5), loss, {TSC: (score, 0.005)}))
    return runs

def write_jsonl(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))

def write_run(folder, run, sources=JOINT, init='out/text'):
    """The files that train.py and eval.py leave, as far as they are read here."""
    folder.mkdir(parents=True)
    settings = {'batch_tokens': 1000, 'sources': sources, 'init': init, 'init_config': None}
    write_json(folder / 'settings.json', {'settings': settings, 'parameters': run.N, 'tokens': run.D, 'flops': run.C,
                                          'steps': run.steps})
    source = 'speech' if 'speech' in sources else 'textless'
    lines = [{'step': 1, 'loss': 9.0}]
    for step, loss in ((run.steps // 2, 2 * run.loss), (run.steps, run.loss)):
        means = {'loss': 7.0, 'speech': loss, 'targets': 9}
        lines.append({'step': step, 'val': {f'stories/{source}': means}})
    write_jsonl(folder / 'log.jsonl', lines)
    results = {'loss/stories/speech/units': {'value': 1.0, 'stderr': 0.1, 'n': 9, 'tokens': 9}}
    for name, (value, error) in run.scores.items():
        results[name] = {'value': value, 'stderr': error, 'n': 100}
    write_json(folder / 'eval.json', {'results': results})
    return folder

def write_suite(folder, runs, family='qwen2.5'):
    """The folder that scaling.plan --run leaves, as far as it is read here."""
    rows = []
    for run in runs:
        out_dir = write_run(folder / run.name, run, init='out/text-' + run.name.split('-')[1])
        rows.append({'name': run.name, 'family': family, 'out_dir': str(out_dir)})
    write_jsonl(folder / 'runs.jsonl', rows)
    return folder

# --------------------------------------------------------------------------------------------------
# plan

def run_plan(argv):
    plan.main(configure(plan.Config, argv))

def plan_of(**settings):
    return plan.plan_of(plan.Config(**settings))

def rows_of(**settings):
    return {(row['size'], row['flops']): row for row in plan_of(**settings)}

BELOW, FROM = 5e-4, 3e-4 # SIMS A.2: the peak rate below 2e20 FLOPs, and from there on
PLAN = [ # (size, FLOPs, tokens or None where the paper names none, rate, where the paper has them)
    ('0.5B', 2.1e18, None, BELOW, 'SIMS 5, A.2'),
    ('1.5B', 2.1e18, None, BELOW, 'SIMS 5, A.2'),
    ('0.5B', 5e18, None, BELOW, 'SIMS 5, A.2'),
    ('3B', 2e19, None, BELOW, 'SIMS 5, A.2'),
    ('7B', 2e19, None, BELOW, 'SIMS 5, A.2'),
    ('0.5B', 6e19, None, BELOW, 'SIMS A.2: the better of both rates at 6e19'),
    ('1.5B', 6e19, None, BELOW, 'SIMS A.2: the better of both rates at 6e19'),
    ('3B', 6e19, None, BELOW, 'SIMS A.2: the better of both rates at 6e19'),
    ('7B', 6e19, None, FROM, 'SIMS A.2: the better of both rates at 6e19'),
    ('0.5B', 2e20, None, FROM, 'SIMS A.2'),
    ('1.5B', 2e20, None, FROM, 'SIMS Table 2, A.2'),
    ('3B', 2e20, None, FROM, 'SIMS Table 2, A.2'),
    ('7B', 2e20, 4.2e9, FROM, 'SIMS 5, A.2'),
    ('7B', 6.86e20, 15e9, FROM, 'SIMS 5.1, A.2'),
]

@pytest.fixture(scope='module')
def papers_plan():
    return rows_of(budgets=f'{plan.Config.budgets},6.86e20')

@pytest.mark.parametrize('size, C, tokens, lr, source', PLAN)
def test_a_row_of_the_plan_is_the_papers(papers_plan, size, C, tokens, lr, source):
    row = papers_plan[size, C]
    assert row['lr'] == lr, source
    assert tokens is None or row['tokens'] == pytest.approx(tokens, rel=0.05), source
    assert 6 * row['N'] * row['tokens'] == pytest.approx(C, rel=0.004) # whole steps
    assert row['tokens'] / row['steps'] * 5000 == pytest.approx(720e6, rel=0.03) # SIMS 4.3

def test_the_plan_has_all_sizes_and_budgets_of_sims(papers_plan): # its section 5, and Table 2's 7.6B
    sizes = ('0.5B', '1.5B', '3B', '7B')
    assert set(papers_plan) == {(size, C) for size in sizes for C in (2.1e18, 5e18, 2e19, 6e19, 2e20, 6.86e20)}
    assert papers_plan['7B', 2e20]['N'] == 7_616_354_816 # the published checkpoint's

def test_the_rate_of_a_7b_without_text_is_that_of_7b():
    speech_only = rows_of(base='config/slam.py', sizes='3B,7B', budgets='6e19')
    assert speech_only['7B', 6e19]['lr'] == FROM # N is 6.5e9

def test_train_py_would_make_as_many_steps():
    for row in plan_of(family='tiny', budgets='1e12', gpu='cpu'):
        cfg = plan.parse_settings(row['train'])
        assert plan.train.total_steps(cfg, 6 * row['N'] * cfg.batch_tokens) == row['steps']
        n_ids = 2048 + 500 + 2 # text, units, separators
        assert n_params(replace(plan.train.shape_of(cfg), vocab_size=n_ids)) == row['N']

def test_hours_follow_the_mfu_and_memory_the_gpu():
    key = ('7B', 2e20)
    fast, slow = (rows_of(sizes='7B', budgets='2e20', mfu=mfu)[key] for mfu in (0.5, 0.25))
    assert slow['hours'] == pytest.approx(2 * fast['hours'])
    # 6ND is not quite what the MFU counts.
    assert fast['hours'] == pytest.approx(2e20 / (0.5 * 8 * 989.4e12) / 3600, rel=0.08)
    assert rows_of(sizes='7B', budgets='2e20', gpu='A100')[key]['parallel'] == 'fsdp'
    why_not = rows_of(sizes='7B', budgets='2e20', gpus=1, gpu='A100')[key]['why_not']
    assert 'GB' in why_not and 'A100' in why_not

def test_what_is_not_feasible_is_said():
    rows = rows_of(sizes='0.5B,7B', budgets='1e13,2e20', tokens=20e9)
    assert '3.37 epochs' in rows['0.5B', 2e20]['why_not']
    assert rows['7B', 2e20]['why_not'] is None
    assert 'a step alone' in rows['7B', 1e13]['why_not']
    rows = rows_of(sizes='0.5B', gpus=7)
    assert rows['0.5B', 2e20]['why_not'] == '72 rows a step do not divide by 7 GPUs'

def test_a_plan_is_a_table_a_file_and_commands(tmp_path, capsys):
    run_plan(['--sizes=0.5B,7B', '--budgets=1e15,2e20', '--price=2.5', '--gpus=16', '--gpu=A100',
              '--base=config/slam.py', '--lr=1e-3', f'--out={tmp_path}'])
    printed = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in (tmp_path / 'runs.jsonl').read_text().splitlines()]
    assert [row['size'] for row in rows] == ['0.5B', '7B', '0.5B', '7B']
    assert rows[0]['N'] == 358_347_904 # Slam Table 7: units alone
    assert json.loads((tmp_path / 'plan.json').read_text())['settings']['price'] == 2.5
    total = next(line for line in printed if 'runs:' in line)
    gpu_hours = sum(row['hours'] for row in rows if not row['why_not']) * 16
    assert total.startswith('3 of 4 runs')
    assert f'{gpu_hours:,.1f} GPU hours, {gpu_hours * 2.5:,.0f} in all' in total
    commands = [line for line in printed if line.startswith('torchrun')]
    assert len(commands) == 3
    for command in commands:
        assert '--nproc_per_node=8 --nnodes=2 --rdzv_backend=c10d' in command
        assert ' train.py config/slam.py ' in command

def write_config(folder):
    """A model folder without weights."""
    folder.mkdir()
    shape = GPTConfig(vocab_size=2000, n_layer=2, n_embd=64, n_head=2)
    write_json(folder / 'config.json', shape.to_hf())
    return folder

def test_scratch_and_folders_and_seeds(tmp_path):
    folder = str(write_config(tmp_path / 'a'))
    [row] = plan_of(family=folder, budgets='1e13', base='config/tiny.py', gpu='cpu')
    assert f'--init={folder}' in row['train'] and row['family'] == 'models' and row['size'] == 'a'
    [row] = plan_of(sizes='0.5B', init='scratch', budgets='2e18')
    assert {'--init=scratch', '--init_config=Qwen/Qwen2.5-0.5B'} < set(row['train'])
    init = str(tmp_path / '{size}').replace('{size}', 'a')
    [row] = plan_of(family='tiny', sizes='1M', init=init, budgets='1e13', gpu='cpu')
    assert f'--init={folder}' in row['train']
    rows = plan_of(family='facebook/opt-125m,bigscience/bloom-1b7', budgets='1e18') # known: no download
    assert [row['size'] for row in rows] == ['opt-125m', 'bloom-1b7'] and rows[1]['N'] > 1.7e9
    rows = plan_of(family='tiny', sizes='1M', seeds=2, budgets='1e13', gpu='cpu')
    assert [plan.parse_settings(row['train']).seed for row in rows] == [0, 1]
    assert len({row['out_dir'] for row in rows}) == 2

@pytest.mark.parametrize('settings, message', [
    ({'budgets': '2e20,x'}, "budgets='2e20,x': expected numbers above 0"),
    ({'sizes': '9B'}, 'qwen2.5 has no 9B; expected some of 0.5B'),
    ({'gpu': 'P100'}, "gpu='P100': expected one of A100"),
    ({'mfu': 40.0}, 'expected a share of the peak'),
    ({'family': 'gpt9'}, 'gpt9: no such model folder'),
    ({'family': 'a/x,b/x'}, 'two of these have the same last name'),
    ({'base': 'config/none.py'}, 'no such config file'),
    ({'gpus': 12}, 'whole nodes of 8')])
def test_a_bad_plan_is_refused_in_a_line(settings, message):
    with pytest.raises(Refused, match=message.replace('.', r'\.')):
        plan_of(**settings)

# --------------------------------------------------------------------------------------------------
# running a plan

# Stands in for train.py and eval.py: it notes the call, and leaves the files that the plan looks for. The training of
# the run SLOW stops half-way the first time, until it is killed or the other run of the plan is finished.
STUB = '''
import json, shutil, sys, time
from pathlib import Path

args = dict(arg[2:].split('=', 1) for arg in sys.argv[1:] if arg.startswith('--'))
out = Path(args.get('out') or args['model'])
out.mkdir(parents=True, exist_ok=True)
with open(out.parent / 'calls.txt', 'a') as f:
    f.write(f"{Path(sys.argv[0]).name} {out.name}\\n")
if 'model' in args:
    settings = {key: int(value) if value.isdigit() else value for key, value in args.items()}
    tasks = dict.fromkeys(('tiny', 'loss'), {'settings': settings})
    (out / 'eval.json').write_text(json.dumps({'results': {}, 'tasks': tasks}))
else:
    if out.name == SLOW and not (out / 'half').is_file():
        (out / 'half').write_text('')
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not (out.parent / 'tiny-1M-1e12' / 'eval.json').is_file():
            time.sleep(0.05)
    shutil.copy(Path(__file__).parent / (out.name + '.json'), out / 'settings.json')
'''
SMALL = 'tiny-0.25M-1e12'
LARGE = 'tiny-1M-1e12'

def write_settings(path, row, init):
    """The settings.json that train.py would leave for a row of a plan."""
    write_json(path, {'settings': asdict(plan.parse_settings(row['train'])),
                      'inputs': {'weights of init': plan.hash_of_init(init)}})

def write_stubs(folder, slow=''):
    """Arguments of a plan of two runs whose training and evaluation are STUB."""
    for name in ('train', 'eval'):
        stub = STUB.replace('SLOW', repr(slow)).replace('PATIENCE', str(PATIENCE))
        (folder / f'{name}_stub.py').write_text(stub)
    argv = ['--family=tiny', '--sizes=0.25M,1M', '--budgets=1e12', '--gpu=cpu', f'--out={folder}/suite',
            f'--train={folder}/train_stub.py', f'--eval={folder}/eval_stub.py', '--run']
    for row in plan.plan_of(configure(plan.Config, argv)):
        write_settings(folder / f"{row['name']}.json", row, 'scratch')
    return argv

@pytest.fixture
def start_plan():
    """A function that starts a plan as a process of its own, and returns when its slow run has written the file `half`.

    What still runs at the end of the test is ended.
    """
    children = []
    def start(argv, half, **options):
        child = subprocess.Popen([sys.executable, '-m', 'scaling.plan', *argv], **options)
        children.append(child)
        while not half.is_file() and child.poll() is None:
            time.sleep(0.05)
        return child
    yield start
    for child in children:
        child.terminate()
        child.wait()

def calls_in(suite):
    return (suite / 'calls.txt').read_text().splitlines()

@pytest.mark.slow
def test_a_suite_that_is_killed_goes_on_where_it_was(tmp_path, monkeypatch, capsys, start_plan):
    monkeypatch.chdir(ROOT)
    suite = tmp_path / 'suite'
    argv = write_stubs(tmp_path, slow=LARGE)
    child = start_plan(argv, suite / LARGE / 'half', stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.kill(child.pid, signal.SIGTERM) # it hands the signal on to the training
    printed, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert f'{LARGE}: a signal came; the same command goes on from there' in printed
    planned = (suite / 'runs.jsonl').read_bytes()
    run_plan([*argv[:-1], '--run=True'])
    run_plan(argv) # nothing to do
    assert (suite / 'runs.jsonl').read_bytes() == planned
    assert calls_in(suite) == [f'train_stub.py {SMALL}', f'eval_stub.py {SMALL}', f'train_stub.py {LARGE}',
                               f'train_stub.py {LARGE}', f'eval_stub.py {LARGE}']
    with pytest.raises(Refused, match='trained with lr=0.002, not 0.001: expected the plan'):
        run_plan([*argv, '--lr=1e-3'])
    run_plan([*argv, '--eval_flags=--max_items=7']) # other scores: evaluated again, not trained
    assert calls_in(suite)[5:] == [f'eval_stub.py {SMALL}', f'eval_stub.py {LARGE}']

def test_a_run_from_other_weights_is_not_a_plan_s(tmp_path):
    start = write_config(tmp_path / 'start')
    (start / 'model.safetensors').write_bytes(b'the first')
    [row] = plan_of(family=str(start), budgets='1e13', base='config/tiny.py', gpu='cpu', out=str(tmp_path / 'suite'))
    write_settings(Path(row['out_dir']) / 'settings.json', row, str(start))
    assert plan.is_trained(row)
    (start / 'model.safetensors').write_bytes(b'another')
    plan.hash_of_init.cache_clear()
    with pytest.raises(Refused, match='trained with other weights than .*start has now'):
        plan.is_trained(row)

def test_processes_share_the_runs_of_a_plan(tmp_path, monkeypatch, start_plan):
    monkeypatch.chdir(ROOT)
    suite = tmp_path / 'suite'
    argv = write_stubs(tmp_path, slow=SMALL)
    child = start_plan(argv, suite / SMALL / 'half', stdout=subprocess.DEVNULL)
    run_plan(argv) # takes the other run meanwhile, then waits for the child's
    calls = calls_in(suite)
    assert child.wait(timeout=PATIENCE) == 0
    assert calls == [f'train_stub.py {SMALL}', f'train_stub.py {LARGE}', f'eval_stub.py {LARGE}',
                     f'eval_stub.py {SMALL}']

def test_a_run_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = write_stubs(tmp_path)
    (tmp_path / 'train_stub.py').write_text('raise SystemExit(17)')
    with pytest.raises(Refused, match=f'{SMALL}: .*train_stub.py ended with status 17; the same command goes on'):
        run_plan(argv)
    (tmp_path / 'train_stub.py').write_text('')
    with pytest.raises(Refused, match='ended with status 0, unfinished'):
        run_plan(argv)

# --------------------------------------------------------------------------------------------------
# fits

def coverage(seeds, noise):
    """How often the intervals hold the truth: of a, b and the exponent of N_opt by the surface, and of the exponent
    by the parabolas."""
    hits = np.zeros(4, dtype=int)
    for seed in seeds:
        runs = synthetic_runs(seed, noise)
        by_surface = surface(runs)
        by_parabolas = isoflop(runs, 'loss')
        intervals = ((by_surface['a_interval'], TRUTH['a']),
                     (by_surface['b_interval'], TRUTH['b']),
                     (by_surface['exponent_interval'], P),
                     (by_parabolas['exponent_N_interval'], P))
        hits += [ends is not None and ends[0] <= truth <= ends[1] for ends, truth in intervals]
    return hits

def test_intervals_hold_the_truth_most_of_the_time(monkeypatch):
    monkeypatch.setattr(curves, 'DRAWS', 300)
    assert (coverage(range(8), 0.005) >= 6).all() # 8 draws at 95 %: below 6 once in 170

@pytest.mark.slow
def test_intervals_hold_the_truth_in_88_of_100():
    assert (coverage(range(100), 0.005) >= 88).all()

def test_without_noise_the_surface_is_found():
    result = surface(synthetic_runs(noise=1e-7))
    for name, truth in TRUTH.items():
        assert result[name] == pytest.approx(truth, rel=2e-3 if name in 'AB' else 5e-4), name
    log_N, log_D, _ = curves.best_of(result['draws'], 1e21)
    assert np.exp(log_N[0]) == pytest.approx(best_n(1e21), rel=0.01)
    assert np.exp(log_N + log_D)[0] == pytest.approx(1e21 / 6)

def test_projection_solves_the_linear_part_as_numpy_does():
    runs = synthetic_runs(3, 0.01)
    N, D, L = (np.array([getattr(run, name) for run in runs]) for name in ('N', 'D', 'loss'))
    log_N = np.log(N) - np.log(N).mean()
    log_D = np.log(D) - np.log(D).mean()
    w = 1 / L
    a, b = np.array(0.3), np.array(0.25)
    X = np.stack((np.ones_like(L), np.exp(-0.3 * log_N), np.exp(-0.25 * log_D)), 1) * w[:, None]
    expected, [expected_sse], *_ = np.linalg.lstsq(X, L * w, rcond=None)
    *solution, sse = curves.solve_linear_part(a, b, log_N, log_D, L, w)
    assert np.allclose(solution, expected) and sse == pytest.approx(expected_sse)
    *_, sse = curves.solve_linear_part(a, b, log_N, log_D, 5 - L, w) # would need A and B below 0
    assert sse == np.inf

def runs_with_vertex(log_N, center, C):
    """Runs of a budget whose losses lie on a parabola with its minimum at ln N = center."""
    runs = []
    for n in log_N:
        N = np.exp(n)
        loss = 2 + 0.1 * (n - center) ** 2
        runs.append(Run(f'{C:g}-{n:.2f}', 'x', '', N, C / 6 / N, C, 10, loss, {}))
    return runs

def wheres(runs, metric):
    return [row['where'] for row in isoflop(runs, metric)['budgets']]

def test_parabolas_find_the_vertex_and_say_where_it_lies():
    log_N = np.log(np.array([1e8, 3e8, 1e9, 3e9]))
    middle = runs_with_vertex(log_N, log_N.mean(), 1e19)
    runs = runs_with_vertex(log_N, log_N[0] - 1, 1e18) + middle
    runs += runs_with_vertex(log_N, log_N[3] + 1, 1e20)
    runs += runs_with_vertex(log_N, log_N[1], 1e21)[:2]
    result = isoflop(runs, 'loss')
    assert [row['where'] for row in result['budgets']] == ['below the grid', 'inside', 'above the grid']
    assert result['budgets'][1]['N_opt'] == pytest.approx(np.exp(log_N.mean()))
    assert result['budgets'][1]['y_opt'] == pytest.approx(2)
    assert result['left_out'] == ['1e+21 FLOPs: 2 sizes']
    assert result['refused'] == ('loss: N_opt(C) needs 3 budgets whose optimum lies inside the grid, there is 1 of 3: '
                                 'one budget gives no exponent')
    steep = [run._replace(loss=loss) for run, loss in zip(middle, (1.8, 1.9, 5.0))]
    assert wheres(steep, 'loss') == ['not bracketed']
    hill = [run._replace(loss=4 - run.loss) for run in middle]
    [row] = isoflop(hill, 'loss')['budgets']
    ends = (pytest.approx(np.exp(log_N[0])), pytest.approx(np.exp(log_N[3])))
    assert row['where'] == 'no optimum' and row['best_N'] in ends
    upward = [run._replace(scores={'m': (run.loss / 10, None)}) for run in hill]
    assert wheres(upward, 'm') == ['inside'] # a score is best where it is highest

def test_budgets_are_the_planned_ones_where_they_are_known():
    runs = []
    for i, run in enumerate(synthetic_runs()):
        whole_steps = 0.8 if i % 5 == 4 else 1
        runs.append(run._replace(C=run.C * whole_steps, planned=run.C))
    assert [row['C'] for row in isoflop(runs, 'loss')['budgets']] == pytest.approx(BUDGETS)
    unplanned = isoflop([run._replace(planned=None) for run in runs], 'loss')
    assert len(unplanned['budgets']) == 5 and len(unplanned['left_out']) == 5

def test_three_sizes_leave_no_residual_so_a_loss_has_no_interval():
    result = isoflop(synthetic_runs(sizes=3), 'loss')
    assert result['rms'] is None and result['exponent_N_interval'] is None
    assert all(row['N_interval'] is None for row in result['budgets'])
    by_evaluation_error = isoflop(synthetic_runs(sizes=3), TSC)
    assert by_evaluation_error['exponent_N_interval'] is not None

def test_a_metric_over_compute_is_that_of_the_best_model():
    result = compute(synthetic_runs(), TSC)
    assert result['C'] == list(BUDGETS)
    assert result['N'] == pytest.approx([best_n(C) for C in BUDGETS])
    assert result['g'] == pytest.approx(0.05)
    assert result['g_interval'][0] < 0.05 < result['g_interval'][1]
    assert compute(synthetic_runs(), 'loss')['g'] < 0

def isoflop_of_loss(runs):
    return isoflop(runs, 'loss')

def compute_of_loss(runs):
    return compute(runs, 'loss')

def compute_of_tsc(runs):
    return compute(runs, 'tsc')

def compute_of_ssc(runs):
    return compute(runs, 'ssc')

def genppl(runs):
    return metrics_of(runs, 'genppl/whole')

FLAT = [run._replace(loss=2.0) for run in synthetic_runs()]
INVERTED = [run._replace(loss=1 / run.loss) for run in synthetic_runs()]
WITH_NAN = [run._replace(loss=float('nan') if i == 3 else run.loss) for i, run in enumerate(synthetic_runs())]
AT_CHANCE = [run._replace(scores={'tsc': (0.5 + 0.001 * i, 0.02)}) for i, run in enumerate(synthetic_runs(sizes=1))]
WITH_GENPPL = [run._replace(scores={'genppl/whole': (88.3, 1.0)}) for run in synthetic_runs()]

@pytest.mark.parametrize('fit, runs, message', [
    (surface, synthetic_runs(sizes=6)[:6], '5 unknowns: expected at least 7 runs, got 6'),
    (surface, synthetic_runs(budgets=BUDGETS[:1], sizes=9), 'one budget: N and D = C / 6N move together'),
    (surface, FLAT, 'the loss is flat, 2 in all runs'),
    (surface, WITH_NAN, 'loss is not finite in 1e'),
    (surface, INVERTED, 'does not fall with both N and D|run[s]? to the edge'),
    (isoflop_of_loss, synthetic_runs(sizes=2), 'no budget has 3 sizes for a parabola'),
    (isoflop_of_loss, FLAT, 'loss: flat, 2 in all runs'),
    (compute_of_loss, synthetic_runs(budgets=BUDGETS[:1]), 'one budget, and a line through a point fits anything'),
    (compute_of_loss, synthetic_runs(budgets=BUDGETS[:2]),
     'two budgets, and a line through two points fits anything'),
    (compute_of_tsc, AT_CHANCE, 'no budget is 2 standard errors away from chance'),
    (genppl, WITH_GENPPL, 'metrics: genppl/whole: expected accuracies, of which more is better'),
    (compute_of_ssc, synthetic_runs(), 'no run has ssc')])
def test_what_the_data_cannot_support_is_refused(fit, runs, message):
    with pytest.raises(Refused, match=message):
        fit(runs)

def test_the_papers_tables_alone_are_refused_with_reasons(tmp_path, capsys):
    with pytest.raises(Refused, match='no scaling can be fitted to these 6 runs'):
        fit.main(fit.Config(runs=PAPERS, out=str(tmp_path)))
    printed = capsys.readouterr().out
    assert 'two budgets, and a line through two points fits anything' in printed and 'no run has a loss' in printed
    assert 'iso-FLOP 6.86e+20 FLOPs: 1 size, left out' in printed and 'rows left out' in printed

def test_fit_and_predict_from_the_files_of_runs(tmp_path, capsys):
    folder = write_suite(tmp_path / 'suite', synthetic_runs())
    fit.main(fit.Config(runs=str(folder)))
    group = json.loads((folder / 'fit.json').read_text())['groups']['qwen2.5, interleaved']
    assert group['surface']['a'] == pytest.approx(TRUTH['a'], abs=0.06)
    assert len(group['surface']['residuals']) == 25 and 'draws' not in group['surface']
    assert group['isoflop'][0]['exponent_N'] == pytest.approx(P, abs=0.05)
    assert 'SODA: N_opt ~ C^0.367, D_opt ~ C^0.579' in capsys.readouterr().out
    predict.main(predict.Config(flops=1e21, runs=str(folder)))
    printed = capsys.readouterr().out
    assert 'surface: N ' in printed and 'iso-FLOP: N ' in printed
    assert f'{TSC} of the best model: 0.70' in printed and 'a guess' not in printed
    (next(folder.glob('1e+18*')) / 'eval.json').unlink()
    runs, notes = read_runs(str(folder), 'stories')
    assert runs[0].planned is None and len(runs) == 24 and '1 of 25 runs are not finished' in notes[0]

def test_a_corpus_without_evaluation_is_said(tmp_path):
    folder = write_suite(tmp_path / 'suite', synthetic_runs()[:3])
    runs, _ = read_runs(str(folder), 'talk')
    with pytest.raises(Refused, match='no run has a loss on the held-out speech of --corpus='):
        surface(runs)

LLAMA = 'SIMS (Llama-3.2)     3.2B   5.9e+19 FLOPs   sSC 58.23   tSC 86.22'
QWEN_7B = 'SIMS (Qwen2.5)       7.6B     2e+20 FLOPs   sSC 58.73   tSC 87.67'
QWEN_3B = 'SIMS (Qwen2.5)       3.0B     2e+20 FLOPs   sSC 57.00   tSC 85.36'
SIMS_7B = 'SIMS (Qwen2.5)       7.6B  6.86e+20 FLOPs   sSC 60.33   tSC 88.27'

@pytest.mark.parametrize('C, size, tokens, why, rows', [
    (1e18, None, None, 'none for less than its smallest budget', {LLAMA}),
    (2.1e18, '0.5B', '7.08e+08', 'the smallest size has the best tSC', {LLAMA}),
    (5e18, '0.5B', '1.69e+09', 'the smallest size has the best tSC', {LLAMA}),
    (6e19, None, None, 'a size above the smallest, which Figure 4 draws', {LLAMA, QWEN_3B, QWEN_7B}),
    (2e20, '7B', '4.38e+09', 'the largest size that sees 25,000 steps and 4.2B', {LLAMA, QWEN_3B, QWEN_7B, SIMS_7B}),
    (6.86e20, '7B', '1.50e+10', 'the largest size', {QWEN_3B, QWEN_7B, SIMS_7B})])
def test_the_rule_is_that_of_sims_5_with_the_rows_it_rests_on(capsys, C, size, tokens, why, rows):
    predict.main(predict.Config(flops=C))
    printed = capsys.readouterr().out
    chosen = re.findall(r'^-> (\S+) .* (\S+) tokens', printed, re.M)
    assert chosen == ([(size, tokens)] if size else [])
    assert why in printed and 'SIMS Table 2' in printed
    assert {row for row in (LLAMA, QWEN_3B, QWEN_7B, SIMS_7B) if row in printed} == rows
    assert ('no row within a factor of 4' in printed) == (C < 1e19)

def test_the_rule_knows_other_families_textless_models_and_hours(capsys):
    predict.main(predict.Config(flops=2e20, family='llama3.2', vocab='speech'))
    printed = capsys.readouterr().out
    assert '-> 3B ' in printed and '463M parameters on 72B tokens' in printed
    predict.main(predict.Config(hours=1.0, gpus=1, mfu=0.5))
    assert '1.781e+18 FLOPs: 1 h on 1 x H200' in capsys.readouterr().out
    assert predict.allocation(2e20, {'70B': predict.models_of('qwen2.5')['7B']._replace(n_params=70e9)}, 147456) == (
        None, 'no size would see 25,000 steps and 4.2B tokens')

def test_the_docs_show_what_predict_prints(capsys):
    predict.main(predict.Config(flops=2e20))
    assert capsys.readouterr().out in (ROOT / 'docs' / 'scaling.md').read_text(encoding='utf-8')

@pytest.mark.parametrize('settings, message', [
    ({}, 'either --flops= or --hours='),
    ({'flops': 1e20, 'hours': 2.0}, 'either'),
    ({'flops': -1.0}, 'flops=-1.0: expected more than 0')])
def test_a_bad_prediction_is_refused(settings, message):
    with pytest.raises(Refused, match=message):
        predict.Config(**settings)

# --------------------------------------------------------------------------------------------------
# figures

def table_of(path):
    with open(path, newline='') as f:
        return list(csv.DictReader(f))

def is_png(path):
    return path.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'

def write_runs_of_steps(folder):
    """An interleaved and a speech-only model at three numbers of steps, and one model from another TextLM."""
    for kind, sources in (('inter', JOINT), ('speech', ('textless',))):
        for steps in (100, 300, 1000):
            loss = 3 - 0.2 * np.log10(steps)
            run = Run('', '', '', 1e8, steps * 1000, 6e11 * steps, steps, loss, {TSC: (0.6, 0.01)})
            write_run(folder / f'{kind}-{steps}', run, sources, 'out/text-x')
    run = Run('', '', '', 2e8, 1e6, 1.2e15, 1000, 2.2, {TSC: (0.7, 0.01)})
    write_run(folder / 'other', run, init='out/text-y')

def test_every_figure_has_its_numbers_beside_it(tmp_path, capsys):
    write_suite(tmp_path / 'suite', synthetic_runs())
    write_runs_of_steps(tmp_path / 'steps')
    out = tmp_path / 'figures'
    figures.main(figures.Config(runs=f'{tmp_path}/suite,{tmp_path}/steps', out=str(out)))
    names = {'metrics', 'families', 'steps-text-x', 'isoflop-qwen2.5-interleaved'}
    assert {path.stem for path in out.glob('*.png')} == names
    assert {path.stem for path in out.glob('*.csv')} == names
    assert all(is_png(path) for path in out.glob('*.png'))

    steps = [row for row in table_of(out / 'steps-text-x.csv') if row['metric'] == TSC]
    assert {(row['kind'], row['steps'], row['value']) for row in steps} == {
        (kind, n_steps, '0.6') for kind in ('interleaved', 'speech only') for n_steps in ('100', '300', '1000')}
    isoflop_rows = [row for row in table_of(out / 'isoflop-qwen2.5-interleaved.csv') if row['metric'] == 'loss']
    points = [row['what'] for row in isoflop_rows]
    assert points.count('run') == 25 and points.count('optimum, inside') == 5
    marks = [row for row in isoflop_rows if "SODA's exponent" in row['what']]
    first = next(row for row in isoflop_rows if row['what'] == 'optimum, inside')
    assert len(marks) == 4
    for row in marks:
        growth = (float(row['C']) / float(first['C'])) ** 0.367
        assert float(row['N']) == pytest.approx(float(first['N']) * growth, rel=1e-3)
    groups = {row['group'] for row in table_of(out / 'metrics.csv')}
    assert {'published, textless', 'published, speech and text', 'qwen2.5, interleaved'} < groups
    families = table_of(out / 'families.csv')
    assert [row['run'] for row in families if row['metric'] == 'loss'] == ['other', 'inter-1000']

def test_figures_from_the_papers_alone(tmp_path, capsys):
    figures.main(figures.Config(runs=PAPERS, out=str(tmp_path)))
    printed = capsys.readouterr().out
    assert is_png(tmp_path / 'metrics.png') and is_png(tmp_path / 'isoflop-qwen2.5-interleaved.png')
    assert 'refused: families' in printed
    with pytest.raises(Refused, match='metrics: no run has x'):
        figures.main(figures.Config(runs=PAPERS, metrics='x', out=str(tmp_path)))

def test_published_rows_have_their_source():
    published = json.loads(Path(PAPERS).read_text())
    rows = published['rows']
    sims_tables = {f'SIMS {i}' for i in (1, 2, 3, 4)}
    slam_tables = {f'Slam {i}' for i in (1, 2, 3, 8, 9, 10, 11)}
    assert {row['table'] for row in rows} == sims_tables | slam_tables
    assert all(row['table'].split()[0] in published['sources'] and row['row'] >= 1 for row in rows)
    [sims] = [row for row in rows if row['table'] == 'SIMS 2' and row.get('flops') == 6.86e20]
    assert (sims['ms_tsc/S'], sims['ms_ssc/S->T'], sims['params']) == (88.27, 67.73, 7.6e9)
    hours = sum(row['hours'] for row in rows if row['table'] == 'SIMS 4')
    assert hours == pytest.approx(84e3 + 30e3, rel=0.01) # the text of SIMS
    [soda] = published['allocations']
    assert soda['source'] in published['sources'] and soda['least_flops'] < soda['most_flops']
    # "optimal data grows 1.6 times faster than optimal model size" (SODA, abstract)
    assert soda['exponent_D'] / soda['exponent_N'] == pytest.approx(1.6, abs=0.05)

def test_the_other_published_allocation_stands_beside_the_rule(capsys):
    predict.main(predict.Config(flops=2e20))
    printed = capsys.readouterr().out
    assert 'SODA, 64 runs of 3e+18 to 3e+20 FLOPs: N ~ C^0.367, D ~ C^0.579' in printed
    assert '2.3 x the parameters and 3.8 x the tokens' in printed

# --------------------------------------------------------------------------------------------------
# a few runs side by side

def make_run(folder, source='speech', losses=(3.0, 2.0)):
    """The files of a run that scaling.compare reads."""
    folder.mkdir(parents=True)
    write_json(folder / 'settings.json', {'settings': {'batch_tokens': 1000}})
    lines = [{'step': 1, 'loss': 9.0}]
    for i, loss in enumerate(losses):
        val = {f'stories/{source}': {'loss': 7.0, 'speech': loss}, 'stories/text': {'loss': 1.0}}
        lines.append({'step': 5 * (i + 1), 'val': val})
    write_jsonl(folder / 'log.jsonl', lines)
    row = {'value': 0.6, 'stderr': 0.1, 'n': 24}
    results = {'loss/stories/speech/all': row, TSC: row, 'tiny/main/ssc/S->T': row,
               'tiny/unseen/tsc/S': {**row, 'value': 0.1}}
    write_json(folder / 'eval.json', {'results': results})
    return folder

@pytest.mark.parametrize('source', ['speech', 'textless'])
def test_the_curve_is_the_speech_loss_at_the_tokens_seen(tmp_path, source):
    assert loss_curve(make_run(tmp_path / 'a', source), 'stories') == [(5000, 3.0), (10000, 2.0)]

def test_scores_are_those_of_the_voice(tmp_path):
    main_voice = scores(make_run(tmp_path / 'a'), 'main')
    assert main_voice.keys() == {('tsc', 'S'), ('ssc', 'S->T')} and main_voice['tsc', 'S']['value'] == 0.6
    assert scores(tmp_path / 'a', 'unseen')['tsc', 'S']['value'] == 0.1

def test_the_figure_is_a_picture_with_its_numbers_beside_it(tmp_path):
    runs = [make_run(tmp_path / 'a'), make_run(tmp_path / 'b', 'textless', (4.0,))]
    compare.main(compare.Config(runs=','.join(map(str, runs)), out=str(tmp_path / 'figure.png')))
    assert is_png(tmp_path / 'figure.png')
    rows = table_of(tmp_path / 'figure.csv')
    assert [(row['run'], row['x'], row['value']) for row in rows if row['panel'] == 'loss'] == [
        ('a', '5000', '3.0'), ('a', '10000', '2.0'), ('b', '5000', '4.0')]
    assert {(row['run'], row['x'], row['value'], row['n']) for row in rows if row['panel'] == 'score'} == {
        (name, x, '0.6', '24') for name in 'ab' for x in ('tsc/S', 'ssc/S->T')}

@pytest.mark.parametrize('file, script', [
    ('settings.json', 'train.py'), ('log.jsonl', 'train.py'), ('eval.json', 'eval.py')])
def test_a_run_that_lacks_a_file_is_named(tmp_path, file, script):
    run = make_run(tmp_path / 'a')
    cfg = compare.Config(runs=str(run), out=str(tmp_path / 'figure.png'))
    (run / file).write_text('{"cut')
    with pytest.raises(Refused, match=f'a/{file}: not JSON'):
        compare.main(cfg)
    (run / file).unlink()
    with pytest.raises(Refused, match=f'a/{file}: no such file; {script} writes it'):
        compare.main(cfg)
    assert not (tmp_path / 'figure.png').exists()
