"""
What ./speedrun.sh gives a newcomer, and how long it takes.

    python bench/speedrun.py --seed=0      in a fresh clone of the last commit, with set-up: 15 minutes on 2 cores
    python bench/speedrun.py --curve       time to quality of config/tiny.py and config/tiny_adamw.py, after
                                           ./speedrun.sh, whose TextLM they start from: 45 minutes
    python bench/speedrun.py --seed=1 --clone=FOLDER   only takes the scores of a clone where that seed has been run
    python bench/speedrun.py               only writes table and picture again

The first two want a machine that does nothing else; the third records no times. What is done of the
curve is not done again. The clone stays at OUT/SEED, without its .venv: out/speedrun/speech/samples.html
in it is the page to listen to.

bench/results/speedrun.json has a run for each seed (seconds in all and of each stage, scores, machine,
commit) and a point for each run of the curve: its steps, its seconds of training (the median step
times the steps, without the TextLM's), the held-out loss of units in nats, and tSC in percent.
speedrun.md beside it is the table of the seeds, speedrun.png the curve.
"""
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, machine, save
from bench.runs import run as run_command
from configurator import Refused, run
from files import atomically, read_json
from scaling import plan
from scaling.figures import clean_axes, style_of
from scaling.figures import save as save_figure

NAME = 'speedrun'
RESULTS = ROOT / 'bench' / 'results'
SCORES = { # column: row of eval.json, of which shares are percent
    'units, nats': 'loss/stories/speech/units',
    'tSC S': 'tiny/main/tsc/S',
    'tSC S->T': 'tiny/main/tsc/S->T',
    'tSC S->T, unseen voice': 'tiny/unseen/tsc/S->T'}
RECIPES = {'tiny': "Muon, WSD (config/tiny.py)", 'tiny_adamw': "AdamW, cosine (config/tiny_adamw.py)"}
STEPS = (110, 220, 440, 1000)

@dataclass(frozen=True)
class Config:
    seed: int | None = None # run ./speedrun.sh with this seed
    clone: str = '' # of the seed's run, where ./speedrun.sh has been run already
    curve: bool = False # train and measure the runs of the curve
    dtype: str = 'bfloat16' # of the runs of the curve
    out: str = 'out/speedruns' # folder of clones and runs

def scores_of(results):
    """{column: (value, standard error)} of the rows of an eval.json, shares in percent."""
    scores = {}
    for column, name in SCORES.items():
        scale = 1 if name.startswith('loss') else 100
        scores[column] = [scale * results[name]['value'], scale * results[name]['stderr']]
    return scores

def run_seed(cfg):
    """Runs ./speedrun.sh --seed=SEED in a fresh clone -> what speedrun.json has of it."""
    clone = Path(cfg.out, str(cfg.seed)).absolute()
    if clone.exists():
        shutil.rmtree(clone)
    subprocess.run(['git', 'clone', '--quiet', ROOT, clone], check=True)
    env = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'OMP_NUM_THREADS')}
    env.setdefault('PYTHON', sys.executable)
    results = run_command(clone, './speedrun.sh', f'--seed={cfg.seed}', timeout='3600', env=env)
    shutil.rmtree(clone / '.venv', ignore_errors=True)
    if results['exit']:
        last = '; '.join(results['failure'][-2:])
        raise Refused(f"./speedrun.sh --seed={cfg.seed}: exit {results['exit']}: {last}")
    [rows] = results.pop('eval')['results'].values() # of one model
    return {**machine(), 'cores': os.cpu_count(), **results, 'scores': scores_of(rows)}

def run_of_clone(cfg):
    """What speedrun.json has of a seed whose ./speedrun.sh was run in cfg.clone by hand or in parts."""
    [rows] = read_json(Path(cfg.clone, 'out/speedrun'), 'eval.json', './speedrun.sh')['results'].values()
    settings = read_json(Path(cfg.clone, 'out/tiny'), 'settings.json', './speedrun.sh')['settings']
    if settings['seed'] != cfg.seed:
        raise Refused(f"{cfg.clone}/out/tiny: trained with seed {settings['seed']}, expected {cfg.seed}")
    commit = subprocess.run(['git', '-C', cfg.clone, 'describe', '--always', '--exclude=*'],
                            capture_output=True, text=True, check=True).stdout.strip()
    return {**machine(), 'commit': commit, 'cores': os.cpu_count(), 'scores': scores_of(rows)}

def curve_rows(cfg):
    """{(recipe, steps): row for scaling.plan.execute}"""
    rows = {}
    for recipe in RECIPES:
        for steps in STEPS:
            out_dir = f'{cfg.out}/{recipe}-{steps}'
            flags = [f'--max_steps={steps}', f'--dtype={cfg.dtype}', '--eval_every=1000', f'--out={out_dir}']
            rows[recipe, steps] = {
                'name': Path(out_dir).name,
                'out_dir': out_dir,
                'why_not': None,
                'train': [f'config/{recipe}.py', *flags],
                'eval': [f'--model={out_dir}', '--data=out/tokens/stories', '--max_documents=500',
                         '--directions=S,S->T']}
    return rows

def curve_point(recipe, steps, row):
    """A point of the curve from a finished run."""
    log = read_json(row['out_dir'], 'log.jsonl', 'train.py')
    ms = statistics.median(line['ms'] for line in log if 'ms' in line)
    results = read_json(row['out_dir'], 'eval.json', 'eval.py')['results']
    return {'recipe': recipe, 'steps': steps, 'seconds': round(steps * ms / 1e3, 1), 'scores': scores_of(results)}

def train_curve(cfg):
    """Trains and measures the runs of the curve -> its points."""
    rows = curve_rows(cfg)
    suite = plan.Config(family='tiny', gpu='cpu', gpus=1, out=cfg.out)
    plan.execute(suite, list(rows.values()))
    return [curve_point(*key, row) for key, row in rows.items()]

def write_table(runs):
    """speedrun.md: a line for each seed."""
    lines = ['Written by `python bench/speedrun.py`: what `./speedrun.sh --seed=N` gave, in percent',
             'and nats a unit; ± is the standard error over items or documents.', '']
    lines.append(f"| seed | in all | set-up | train: tiny | {' | '.join(SCORES)} | machine, commit |")
    lines.append('|---' * (len(SCORES) + 5) + '|')
    for seed, results in sorted(runs.items(), key=lambda item: int(item[0])):
        times = ['not measured', '', '']
        if 'seconds' in results:
            set_up = next((s for name, s in results['stages'].items() if name.startswith('set-up')), 0)
            times = [f"{results['seconds'] / 60:.1f} min", f'{set_up} s', f"{results['stages']['train: tiny']} s"]
        cells = []
        for column, (value, error) in results['scores'].items():
            digits = 3 if 'nats' in column else 1
            cells.append(f'{value:.{digits}f} ± {error:.{digits}f}')
        lines.append(f"| {seed} | {' | '.join([*times, *cells])} "
                     f"| {results['cores']} cores, {results['machine']}, {results['commit']} |")
    with atomically(RESULTS / f'{NAME}.md') as tmp:
        tmp.write_text('\n'.join(lines) + '\n', encoding='utf-8')

def draw(points):
    """speedrun.png: loss and tSC over seconds of training, for each recipe."""
    figure, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(11, 4.2), layout='constrained')
    table = []
    for i, (recipe, label) in enumerate(RECIPES.items()):
        of_recipe = [point for point in points if point['recipe'] == recipe]
        seconds = [point['seconds'] for point in of_recipe]
        style = style_of(i)
        for column, axis, line in (('units, nats', left_axis, '-'), ('tSC S->T', right_axis, '-'),
                                   ('tSC S', right_axis, '--')):
            values = [point['scores'][column][0] for point in of_recipe]
            name = label if axis is left_axis else f"{recipe}, {column.replace('->', '→')}"
            axis.plot(seconds, values, line, label=name, **style)
            table += [(recipe, column, *pair) for pair in zip(seconds, values)]
    left_axis.set(xlabel='seconds of training on 2 cores', ylabel='nats a unit', title='held-out speech (stories)')
    right_axis.set(xlabel='seconds of training on 2 cores', ylabel='accuracy, %', title='tSC, main voice')
    right_axis.axhline(50, color='#666', linestyle=':', linewidth=1)
    for axis in (left_axis, right_axis):
        clean_axes(axis)
        axis.legend(frameon=False)
    save_figure(figure, RESULTS / f'{NAME}.png', ('recipe', 'score', 'seconds', 'value'), table)

def main(cfg):
    path = RESULTS / f'{NAME}.json'
    results = read_json(RESULTS, path.name, 'bench/speedrun.py') if path.is_file() else {}
    runs = results.get('runs', {})
    points = results.get('curve', [])
    if cfg.seed is not None:
        runs[str(cfg.seed)] = run_of_clone(cfg) if cfg.clone else run_seed(cfg)
    if cfg.curve:
        points = train_curve(cfg)
    if cfg.seed is not None or cfg.curve:
        save(NAME, False, runs=runs, curve=points)
    if runs:
        write_table(runs)
    if points:
        draw(points)
    print(f"bench/results/{NAME}.json: {len(runs)} runs, {len(points)} points of the curve")

if __name__ == '__main__':
    run(main, Config)
