"""
Curves and scores of a few runs side by side, as one picture with its numbers.

    python -m scaling.compare --runs=out/tiny-adamw,out/tiny-speech --out=out/compare.png

Left: held-out loss on speech over tokens. Right: StoryCloze in every direction, in one voice, with
standard errors. The numbers are in a .csv beside the picture.
"""
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

from configurator import run
from files import read_json
from scaling.figures import clean_axes, save, style_of
from scaling.runs import loss_curve

TASKS = {'tsc': 'tSC', 'ssc': 'sSC'}
BARS = [(task, direction) for task in TASKS for direction in ('S', 'S->T', 'T->S', 'T')]

@dataclass(frozen=True)
class Config:
    runs: str = 'out/tiny-adamw,out/tiny-speech,out/tiny-scratch' # folders of train.py, separated by commas
    corpus: str = 'stories' # corpus whose held-out speech the left panel shows
    voice: str = 'main' # voice of the items in the right panel: main or unseen
    out: str = 'out/figure.png' # the picture; its numbers go into a .csv beside it

def scores(folder, voice):
    """{(task, direction): row} of a run's eval.json."""
    rows = read_json(folder, 'eval.json', 'eval.py')['results']
    prefix = f'tiny/{voice}/'
    return {tuple(name.split('/')[2:]): row for name, row in rows.items() if name.startswith(prefix)}

def draw_scores(axis, rows, shift, style):
    """Accuracies of one run in percent with standard errors, `shift` right of the ticks."""
    x = [i + shift for i, bar in enumerate(BARS) if bar in rows]
    drawn = [rows[bar] for bar in BARS if bar in rows]
    values = [100 * row['value'] for row in drawn]
    errors = [100 * (row['stderr'] or 0) for row in drawn]
    axis.errorbar(x, values, errors, linestyle='none', capsize=3, **style)

def main(cfg):
    folders = cfg.runs.split(',')
    curves = {folder: loss_curve(folder, cfg.corpus) for folder in folders}
    scores_of = {folder: scores(folder, cfg.voice) for folder in folders}
    figure, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 3), layout='constrained')
    table = [] # of the numbers drawn
    for i, folder in enumerate(folders):
        name = Path(folder).name
        style = style_of(i) | {'label': name}
        left_axis.plot(*zip(*[(tokens / 1e6, loss) for tokens, loss in curves[folder]]), **style)
        draw_scores(right_axis, scores_of[folder], (i - (len(folders) - 1) / 2) * 0.2, style)
        for tokens, loss in curves[folder]:
            table.append(('loss', name, tokens, loss, '', ''))
        for bar, row in scores_of[folder].items():
            table.append(('score', name, '/'.join(bar), row['value'], row['stderr'], row['n']))
    left_axis.set(xlabel='training tokens, millions', ylabel='loss, nats a unit',
                  title=f'held-out speech ({cfg.corpus})')
    right_axis.axhline(50, color='#666', linestyle=':', linewidth=1)
    right_axis.axvline(3.5, color='#ccc', linewidth=1)
    labels = [f"{TASKS[task]}\n{direction.replace('->', '→')}" for task, direction in BARS]
    right_axis.set_xticks(range(len(BARS)), labels)
    right_axis.set(ylabel='accuracy, %', title=f'spoken StoryCloze ({cfg.voice} voice)')
    clean_axes(left_axis)
    clean_axes(right_axis)
    right_axis.legend(frameon=False)
    save(figure, cfg.out, ('panel', 'run', 'x', 'value', 'stderr', 'n'), table)
    print(f"{cfg.out}: {len(folders)} runs")

if __name__ == '__main__':
    run(main, Config)
