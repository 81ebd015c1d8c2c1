"""
Curves and scores of a few runs side by side, as one picture with its numbers.

    python -m scaling.compare --runs=out/tiny,out/tiny-speech --out=out/compare.png
"""
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

from configurator import run
from files import read_json
from scaling.figures import COLORS, MARKS, clean_axes, save
from scaling.runs import loss_curve


@dataclass(frozen=True)
class Config:
    runs: str = 'out/tiny,out/tiny-speech,out/tiny-scratch' # folders of train.py, separated by commas
    corpus: str = 'stories' # whose held-out speech the left panel shows
    voice: str = 'main' # of the items in the right panel
    out: str = 'out/figure.png'

def scores(folder, voice):
    """{(task, direction): row} of a run's eval.json."""
    rows = read_json(folder, 'eval.json', 'eval.py')['results']
    return {tuple(name.split('/')[2:]): row for name, row in rows.items() if name.startswith(f'tiny/{voice}/')}

def main(cfg):
    """Left: held-out loss on speech over tokens. Right: StoryCloze in every direction, one voice, with standard errors."""
    folders = cfg.runs.split(',')
    curves, bars = {f: loss_curve(f, cfg.corpus) for f in folders}, {f: scores(f, cfg.voice) for f in folders}
    ticks = [(task, way) for task in ('tsc', 'ssc') for way in ('S', 'S->T', 'T->S', 'T')]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 3), layout='constrained')
    table = [] # the numbers drawn
    for i, folder in enumerate(folders):
        name, look = Path(folder).name, {'color': COLORS[i % 6], 'marker': MARKS[i % 6], 'label': Path(folder).name}
        left.plot(*zip(*[(tokens / 1e6, loss) for tokens, loss in curves[folder]]), **look)
        table += [('loss', name, tokens, loss, '', '') for tokens, loss in curves[folder]]
        points = [(x + (i - (len(folders) - 1) / 2) * 0.2, bars[folder][tick]) for x, tick in enumerate(ticks)
                  if tick in bars[folder]]
        right.errorbar([x for x, _ in points], [100 * row['value'] for _, row in points],
                       [100 * (row['stderr'] or 0) for _, row in points], linestyle='none', capsize=3, **look)
        table += [('score', name, '/'.join(tick), row['value'], row['stderr'], row['n']) for tick, row in bars[folder].items()]
    left.set(xlabel='training tokens, millions', ylabel='loss, nats a unit', title=f'held-out speech ({cfg.corpus})')
    right.axhline(50, color='#666', linestyle=':', linewidth=1)
    right.axvline(3.5, color='#ccc', linewidth=1)
    right.set_xticks(range(8), [f"{'tSC' if task == 'tsc' else 'sSC'}\n{way.replace('->', '→')}" for task, way in ticks])
    right.set(ylabel='accuracy, %', title=f'spoken StoryCloze ({cfg.voice} voice)')
    for axis in (left, right):
        clean_axes(axis)
    right.legend(frameon=False)
    save(figure, cfg.out, ('panel', 'run', 'x', 'value', 'stderr', 'n'), table)
    print(f"{cfg.out}: {len(folders)} runs")

if __name__ == '__main__':
    run(main, Config)
