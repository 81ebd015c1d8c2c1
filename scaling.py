"""
Figures of runs, from what the runs themselves left: log.jsonl (train.py) and eval.json (eval.py). Never from text logs.

    python scaling.py --runs=out/tiny,out/tiny-speech,out/tiny-scratch --out=out/figure.png

Left: held-out loss on speech (nats a unit) against training tokens. Right: StoryCloze in every direction, main voice, with
standard errors; the dotted line is chance. The numbers drawn go to a .csv beside the figure.
"""
import csv
import json
from dataclasses import dataclass
from pathlib import Path

from configurator import Refused, atomically, run

COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9') # Okabe and Ito: told apart by everyone
MARKS = 'osD^vP'

@dataclass(frozen=True)
class Config:
    runs: str = 'out/tiny,out/tiny-speech,out/tiny-scratch' # folders of train.py, separated by commas
    corpus: str = 'stories' # whose held-out speech the left panel shows
    voice: str = 'main' # of the items in the right panel
    out: str = 'out/figure.png'

def read_json(folder, name, script):
    """A run's file: the object of NAME.json, the list of objects of NAME.jsonl."""
    path = Path(folder) / name
    try:
        text = path.read_text(encoding='utf-8')
        return [json.loads(line) for line in text.splitlines()] if path.suffix == '.jsonl' else json.loads(text)
    except OSError:
        raise Refused(f"{path}: no such file; {script} writes it") from None
    except ValueError as e:
        raise Refused(f"{path}: not JSON ({e})") from None

def loss_curve(folder, corpus):
    """[(tokens, loss on held-out speech)] of a run; its speech source is 'speech' or, speech-only, 'textless'."""
    settings = read_json(folder, 'settings.json', 'train.py')['settings']
    points = []
    for row in read_json(folder, 'log.jsonl', 'train.py'):
        for source in ('speech', 'textless'):
            if mean := row.get('val', {}).get(f'{corpus}/{source}'):
                points.append((row['step'] * settings['batch_tokens'], mean['speech']))
    return points

def scores(folder, voice):
    """{(task, direction): row} of a run's eval.json."""
    rows = read_json(folder, 'eval.json', 'eval.py')['results']
    return {tuple(name.split('/')[2:]): row for name, row in rows.items() if name.startswith(f'tiny/{voice}/')}

def main(cfg):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    folders = cfg.runs.split(',')
    curves, bars = {f: loss_curve(f, cfg.corpus) for f in folders}, {f: scores(f, cfg.voice) for f in folders}
    ticks = [(task, way) for task in ('tsc', 'ssc') for way in ('S', 'S->T', 'T->S', 'T')]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 3), layout='constrained')
    table = [] # the numbers drawn
    for i, folder in enumerate(folders):
        name, look = Path(folder).name, {'color': COLORS[i % 6], 'marker': MARKS[i % 6], 'label': Path(folder).name}
        left.plot(*zip(*[(tokens / 1e6, loss) for tokens, loss in curves[folder]]), **look)
        table += [('loss', name, tokens, loss, '', '') for tokens, loss in curves[folder]]
        points = [(x + (i - (len(folders) - 1) / 2) * 0.2, bars[folder][tick]) for x, tick in enumerate(ticks) if tick in bars[folder]]
        right.errorbar([x for x, _ in points], [100 * row['value'] for _, row in points],
                       [100 * (row['stderr'] or 0) for _, row in points], linestyle='none', capsize=3, **look)
        table += [('score', name, '/'.join(tick), row['value'], row['stderr'], row['n']) for tick, row in bars[folder].items()]
    left.set(xlabel='training tokens, millions', ylabel='loss, nats a unit', title=f'held-out speech ({cfg.corpus})')
    right.axhline(50, color='#666', linestyle=':', linewidth=1)
    right.axvline(3.5, color='#ccc', linewidth=1)
    right.set_xticks(range(8), [f"{'tSC' if task == 'tsc' else 'sSC'}\n{way.replace('->', '→')}" for task, way in ticks])
    right.set(ylabel='accuracy, %', title=f'spoken StoryCloze ({cfg.voice} voice)')
    for axis in (left, right):
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(axis='y', color='#eee')
    right.legend(frameon=False)
    with atomically(cfg.out) as tmp:
        figure.savefig(tmp, dpi=150, format='png')
    with atomically(Path(cfg.out).with_suffix('.csv')) as tmp, open(tmp, 'w', newline='') as f:
        csv.writer(f).writerows([('panel', 'run', 'x', 'value', 'stderr', 'n'), *table])
    print(f"{cfg.out}: {len(folders)} runs")

if __name__ == '__main__':
    run(main, Config)
