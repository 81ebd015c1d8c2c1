"""
Figures of runs, from the files that the runs left: log.jsonl (train.py) and eval.json (eval.py).

    python -m scaling.figures --runs=out/suite --out=out/figures

It draws the figures of SIMS that the runs support, and says why it does not draw the others:

    metrics.png     the best model of each budget against compute, with its fit and published models
                    (SIMS Figure 1)
    families.png    runs of the same number of steps from different TextLMs, by size (Figure 2)
    steps-X.png     from one TextLM X: interleaved, speech only and from scratch against steps
                    (Figures 3, 5, 6)
    isoflop-X.png   loss and scores of a group X against N at each budget, parabolas and their optima
                    (Figures 4, 7)

Figures have one column, the width of a phone or half a printed page. Colors can be told apart by
color-blind readers, and each has its own mark. The numbers drawn are in a .csv beside each figure.
"""
import csv
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from configurator import Refused, run
from files import atomically, read_json
from scaling.curves import budgets_of, compute, isoflop
from scaling.runs import allocations, metrics_of, read_runs

matplotlib.use('Agg')

COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9') # Okabe and Ito
MARKS = 'osD^vP'
WIDTH = 5.0 # inches
HEIGHT = 2.7 # inches of a panel
PAPERS = str(Path(__file__).parents[1] / 'papers' / 'published.json')
TASKS = {'tsc': 'tSC', 'ssc': 'sSC', 'sblimp': 'sBLIMP', 'loss': 'loss'}

@dataclass(frozen=True)
class Config:
    runs: str = 'out/suite' # folders of scaling.plan or train.py, or .json of published tables, separated by commas
    corpus: str = 'stories' # whose held-out speech the loss is measured on
    metrics: str = '' # of eval.json, separated by commas; '': those of direction S, three at most
    papers: str = PAPERS # published tables for metrics.png; '' for none
    out: str = 'out/figures' # folder for the figures

# --------------------------------------------------------------------------------------------------
# shared by the figures

def style_of(i):
    """Color and mark of the i-th of a figure's groups."""
    return {'color': COLORS[i % 6], 'marker': MARKS[i % 6]}

def clean_axes(axis):
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='y', color='#eee')
    axis.set_axisbelow(True)

def panels(n):
    """(figure, axes) of n panels below each other that share one x axis."""
    size = (WIDTH, HEIGHT * n + 0.3)
    figure, axes = plt.subplots(n, 1, figsize=size, layout='constrained', squeeze=False, sharex=True)
    for axis in axes[:, 0]:
        clean_axes(axis)
    return figure, list(axes[:, 0])

def save(figure, path, header, table):
    """Writes the picture, and its numbers into a .csv beside it."""
    with atomically(path) as tmp:
        figure.savefig(tmp, dpi=150 if figure.get_figwidth() > 10 else 200, format='png')
    plt.close(figure)
    with atomically(Path(path).with_suffix('.csv')) as tmp, open(tmp, 'w', newline='') as f:
        csv.writer(f).writerows([header, *table])

def title_of(metric):
    """'tiny/main/tsc/S' -> 'tSC S, % (tiny, main)': the task and its direction first."""
    if metric == 'loss':
        return 'loss, nats a unit'
    parts = metric.split('/')
    parents, task, direction = (parts[:-2], *parts[-2:]) if len(parts) > 1 else ([], metric, '')
    speakers = 'multi-speaker ' if task.startswith('ms_') else ''
    task = task.removeprefix('ms_')
    title = f'{speakers}{TASKS.get(task, task)} {direction}'.rstrip() + ', %'
    return title + (f" ({', '.join(parents)})" if parents else '')

def size_name(N):
    """7616354816 -> '7.6B'."""
    for scale, letter in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K'), (1, '')):
        if N >= scale:
            break
    return f'{N / scale:.0f}{letter}' if N / scale >= 100 else f'{N / scale:.2g}{letter}'

def flops_name(C):
    """2e+20 -> '2e20'."""
    return f'{C:.2g}'.replace('+', '')

def file_name(text):
    return re.sub(r'[^\w.]+', '-', text).strip('-')

def distinct(values):
    """Each value once, in the order of its first appearance."""
    return list(dict.fromkeys(values))

def in_drawn_units(metric, values):
    """Scores are drawn in percent, the loss as it is."""
    return np.asarray(values, dtype=float) * (1 if metric == 'loss' else 100)

def has(run, metric):
    if metric == 'loss':
        return run.loss is not None and np.isfinite(run.loss)
    return metric in run.scores

def value(run, metric):
    return run.loss if metric == 'loss' else run.scores[metric][0]

def error(run, metric):
    """The standard error, 0 where it is not known."""
    return 0.0 if metric == 'loss' else run.scores[metric][1] or 0.0

def value_and_error(run, metric):
    return value(run, metric), error(run, metric)

def label_ticks(axis, values, name_of):
    """Labels a logarithmic x axis, with ticks at the values if these are few, as sizes are."""
    if len(set(values)) <= 6:
        axis.set_xticks(sorted(set(values)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: name_of(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())

def draw_runs(axis, x, runs, metric, **style):
    """Runs at positions x, with the standard errors of their scores."""
    values = in_drawn_units(metric, [value(run, metric) for run in runs])
    errors = in_drawn_units(metric, [error(run, metric) for run in runs])
    axis.errorbar(x, values, errors, linestyle='none', capsize=2, **style)

def available(runs, metrics):
    """The panels of a figure: of the loss and the metrics, those that a run has."""
    return [metric for metric in ('loss', *metrics) if any(has(run, metric) for run in runs)]

def add_legend(axis, **options):
    axis.legend(frameon=False, fontsize=8, **options)

# --------------------------------------------------------------------------------------------------
# SIMS Figure 1: metrics over compute

def references(path, metric):
    """Published models with the task of a metric, without those tuned on preferences.

    -> [(name, kind, C, percent, 'TABLE row ROW')]
    """
    if not path or metric == 'loss':
        return []
    task = metric.split('/')[-2] if '/' in metric else metric
    models = {}
    for row in read_json(Path(path).parent, Path(path).name, 'the repository')['rows']:
        C = row.get('flops') or 6 * row.get('params', 0) * row.get('tokens', 0)
        if not C or row.get('dpo') or row.get('preference_tokens'):
            continue
        for key in (task, f'{task}/S'):
            if key in row:
                source = f"{row['table']} row {row['row']}"
                models.setdefault((C, row[key]), (row['model'], row['kind'], C, row[key], source))
    return list(models.values())

def draw_references(axis, path, metric, largest_C):
    """Draws published models of less than 10,000 times the largest run's compute as crosses.

    -> the rows of the table, for all of the published models.
    """
    table = []
    note = ' (other items)' if metric.startswith('tiny/') else ''
    for kind, mark, color in (('textless', 'x', '#555'), ('speech and text', '+', '#000')):
        is_textless = kind == 'textless'
        points = [point for point in references(path, metric) if (point[1] == 'textless') == is_textless]
        near = [point for point in points if point[2] < 1e4 * largest_C]
        if near:
            x = [C for _, _, C, _, _ in near]
            y = [percent for _, _, _, percent, _ in near]
            axis.plot(x, y, mark, color=color, label=f'published, {kind}{note}')
        for name, _, C, percent, _ in near:
            if name.startswith('Cuervo'): # the optimum of the one textless scaling study
                axis.annotate(name, (C, percent), (4, 4), textcoords='offset points', fontsize=7, color=color)
        for name, _, C, percent, source in points:
            table.append((metric, f'published, {kind}', name, source, C, '', '', percent / 100, ''))
    return table

def draw_group(axis, group, runs, metric, style):
    """Draws the best run of each budget of a group, and the line fitted to them.

    -> (rows of the table, the line's x and its 95 % band, or None without a fit).
    """
    C = np.array([run.budget for run in runs])
    y = np.array([value(run, metric) for run in runs])
    pick_best = np.argmin if metric == 'loss' else np.argmax
    best = [runs[indices[pick_best(y[indices])]] for indices in budgets_of(C)]
    draw_runs(axis, [run.budget for run in best], best, metric, label=group, **style)
    table = [(metric, group, run.name, 'best of its budget', run.budget, run.N, run.D, *value_and_error(run, metric))
             for run in best]
    try:
        fit = compute(runs, metric)
    except Refused as e:
        return [*table, (metric, group, '', f'no fit: {e}', '', '', '', '', '')], None
    k, g = fit['draws']
    x = np.geomspace(C.min(), C.max(), 30)
    lines = np.exp(k + g * np.log(x)[:, None]) # (30, DRAWS)
    axis.plot(x, in_drawn_units(metric, lines[:, 0]), color=style['color'], linewidth=1.2)
    band = in_drawn_units(metric, np.quantile(lines, (0.025, 0.975), axis=1))
    law = f"fit: {np.exp(fit['k']):.6g} C^{fit['g']:.6g}"
    return [*table, (metric, group, '', law, '', '', '', '', '')], (x, band)

def metric_figure(cfg, runs, metrics):
    names = available(runs, metrics)
    groups = distinct(run.group for run in runs)
    budgets = np.array([run.budget for run in runs])
    figure, axes = panels(len(names))
    table = []
    for axis, metric in zip(axes, names):
        bands = []
        for i, group in enumerate(groups):
            members = [run for run in runs if run.group == group and has(run, metric)]
            if not members:
                continue
            rows, band = draw_group(axis, group, members, metric, style_of(i))
            table += rows
            if band:
                bands.append((*band, COLORS[i % 6]))
        table += draw_references(axis, cfg.papers, metric, budgets.max())
        limits = axis.get_ylim() # without the bands, since a fit to three points may have a wide one
        for x, ends, color in bands:
            axis.fill_between(x, *ends, color=color, alpha=0.15, linewidth=0)
        axis.set_ylim(limits)
        axis.set(xscale='log', ylabel=title_of(metric))
    if np.ptp(np.log10(axes[0].get_xlim())) < 2: # too few powers of ten for the usual ticks
        means = [np.exp(np.log(budgets[indices]).mean()) for indices in budgets_of(budgets)]
        label_ticks(axes[-1], means, flops_name)
    axes[-1].set_xlabel('training compute, FLOPs')
    add_legend(max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[1])))
    header = ('metric', 'group', 'run', 'what', 'C', 'N', 'D', 'value', 'stderr')
    save(figure, Path(cfg.out) / 'metrics.png', header, table)
    return ['metrics.png']

# --------------------------------------------------------------------------------------------------
# SIMS Figure 2: families

def family_figure(cfg, runs, metrics):
    """Interleaved runs of one number of steps, that with the most TextLMs; the largest model first."""
    interleaved = [run for run in runs if run.group.endswith('interleaved') and run.steps]
    def n_inits(steps):
        return len({run.init for run in interleaved if run.steps == steps})
    steps = max({run.steps for run in interleaved}, key=n_inits, default=0)
    members = sorted((run for run in interleaved if run.steps == steps), key=lambda run: -run.N)
    inits = distinct(run.init for run in members)
    if len(inits) < 2:
        raise Refused("families: expected interleaved runs of the same number of steps from at least 2 TextLMs")
    names = available(members, metrics)
    figure, axes = panels(len(names))
    table = []
    for axis, metric in zip(axes, names):
        for i, init in enumerate(inits):
            drawn = [run for run in members if run.init == init and has(run, metric)]
            draw_runs(axis, [i] * len(drawn), drawn, metric, **style_of(0))
            table += [(metric, init, run.name, run.N, run.steps, *value_and_error(run, metric)) for run in drawn]
        axis.set_ylabel(title_of(metric))
    N_of = {run.init: run.N for run in members}
    labels = [f'{Path(init).name} {size_name(N_of[init])}' for init in inits]
    axes[-1].set_xticks(range(len(inits)), labels, rotation=60, ha='right', fontsize=8)
    axes[0].set_title(f'{steps:,} steps', fontsize=9)
    header = ('metric', 'init', 'run', 'N', 'steps', 'value', 'stderr')
    save(figure, Path(cfg.out) / 'families.png', header, table)
    return ['families.png']

# --------------------------------------------------------------------------------------------------
# SIMS Figures 3, 5 and 6: metrics over steps

def draw_steps(axis, kind, runs, metric, style):
    """Draws the mean score of a kind of run at each number of steps. -> rows of the table.

    The error bars are the standard error over seeds or, of a single run, that of its evaluation.
    """
    counts = sorted({run.steps for run in runs})
    means = []
    errors = []
    table = []
    for steps in counts:
        seeds = [run for run in runs if run.steps == steps]
        values = [value(run, metric) for run in seeds]
        means.append(np.mean(values))
        if len(seeds) > 1:
            errors.append(np.std(values, ddof=1) / len(seeds) ** 0.5)
        else:
            errors.append(error(seeds[0], metric))
        table.append((metric, kind, steps, means[-1], errors[-1], len(seeds)))
    means = in_drawn_units(metric, means)
    errors = in_drawn_units(metric, errors)
    axis.errorbar(counts, means, errors, capsize=2, label=kind, **style)
    return table

def steps_figure(cfg, init, runs, metrics):
    """The figure of the runs from one TextLM -> its file name."""
    names = available(runs, metrics)
    kinds = distinct(run.group for run in runs)
    figure, axes = panels(len(names))
    table = []
    for axis, metric in zip(axes, names):
        for i, kind in enumerate(kinds):
            members = [run for run in runs if run.group == kind and has(run, metric)]
            table += draw_steps(axis, kind, members, metric, style_of(i))
        axis.set(xscale='log', ylabel=title_of(metric))
        label_ticks(axis, [run.steps for run in runs], '{:g}'.format)
    axes[-1].set_xlabel('training steps')
    add_legend(axes[0])
    name = f"steps-{file_name(Path(init).name)}.png"
    save(figure, Path(cfg.out) / name, ('metric', 'kind', 'steps', 'value', 'stderr', 'runs'), table)
    return name

def steps_figures(cfg, runs, metrics):
    """One figure for each TextLM with runs of one kind at 2 or more different numbers of steps."""
    written = []
    inits = distinct(run.init for run in runs)
    for init in inits:
        members = [run for run in runs if run.init == init and run.steps]
        if init != 'scratch':
            # Beside them, the same sizes from random weights.
            sizes = {run.N for run in members}
            members += [run for run in runs if run.init == 'scratch' and run.steps and run.N in sizes]
        points = {(run.group, run.steps) for run in members}
        has_curve = len(points) > len({kind for kind, _ in points})
        is_one_model = len({run.N for run in members}) <= 2 # with at most two vocabularies
        if has_curve and is_one_model:
            written.append(steps_figure(cfg, init, members, metrics))
    if not written:
        raise Refused("steps: expected runs of one TextLM with 2 or more different numbers of steps")
    return written

# --------------------------------------------------------------------------------------------------
# SIMS Figures 4 and 7: iso-FLOP curves

def draw_isoflop(axis, metric, fit):
    """Draws runs, parabola and optimum of each budget of isoflop's result. -> rows of the table."""
    table = []
    for i, row in enumerate(fit['budgets']):
        style = style_of(i)
        color = style['color']
        is_inside = row['where'] == 'inside'
        values = in_drawn_units(metric, row['y'])
        errors = in_drawn_units(metric, row['stderr'])
        axis.errorbar(row['N'], values, errors, linestyle='none', capsize=2, linewidth=0.8,
                      label=flops_name(row['C']), **style)
        x = np.geomspace(min(row['N']), max(row['N']), 60)
        parabola = in_drawn_units(metric, np.polyval(row['parabola'], np.log(x)))
        axis.plot(x, parabola, color=color, linewidth=1.2, linestyle='-' if is_inside else ':')
        if is_inside:
            top = in_drawn_units(metric, row['y_opt'])
            axis.plot(row['N_opt'], top, '*', color=color, markeredgecolor='black', markersize=11)
        table += [(metric, row['C'], N, y, 'run') for N, y in zip(row['N'], row['y'])]
        table.append((metric, row['C'], row['N_opt'], row['y_opt'], f"optimum, {row['where']}"))
    table += draw_allocations(axis, metric, fit)
    axis.set(xscale='log', ylabel=title_of(metric))
    label_ticks(axis, [N for row in fit['budgets'] for N in row['N']], size_name)
    return table

def draw_allocations(axis, metric, fit):
    """Draws where the optima of larger budgets would be by the published exponents, as diamonds on the parabolas.

    They start from the optimum of the smallest budget that has one inside; without it nothing is drawn.
    -> rows of the table.
    """
    inside = [row for row in fit['budgets'] if row['where'] == 'inside']
    table = []
    for published in allocations() if inside else ():
        first = min(inside, key=lambda row: row['C'])
        for i, row in enumerate(fit['budgets']):
            if row['C'] <= first['C']:
                continue
            N = first['N_opt'] * (row['C'] / first['C']) ** published['exponent_N']
            y = np.polyval(row['parabola'], np.log(N))
            if min(row['N']) <= N <= max(row['N']):
                axis.plot(N, in_drawn_units(metric, y), 'D', color='white', markeredgecolor=style_of(i)['color'])
            table.append((metric, row['C'], N, y, f"{published['source']}'s exponent from {first['C']:.3g} FLOPs"))
    return table

def isoflop_figures(cfg, runs, metrics):
    """One figure for each group that has a budget with at least 3 sizes."""
    written = []
    reasons = []
    groups = distinct(run.group for run in runs)
    for group in groups:
        members = [run for run in runs if run.group == group]
        fits_of = {}
        for metric in available(members, metrics):
            try:
                fits_of[metric] = isoflop(members, metric)
            except Refused as e:
                reasons.append(f"{group}: {e}")
        if not fits_of:
            continue
        figure, axes = panels(len(fits_of))
        table = []
        for axis, (metric, fit) in zip(axes, fits_of.items()):
            table += draw_isoflop(axis, metric, fit)
        axes[-1].set_xlabel('parameters N   (star: optimum inside the grid; dotted: none there; '
                            "diamond: by SODA's exponent)")
        add_legend(axes[0], title='FLOPs', title_fontsize=8, ncols=2)
        written.append(f"isoflop-{file_name(group)}.png")
        save(figure, Path(cfg.out) / written[-1], ('metric', 'C', 'N', 'value', 'what'), table)
    if not written:
        raise Refused('; '.join(reasons) or "iso-FLOP: no run has a loss or a score")
    return written

# --------------------------------------------------------------------------------------------------

def main(cfg):
    runs, notes = read_runs(cfg.runs, cfg.corpus)
    metrics = metrics_of(runs, cfg.metrics)
    if not cfg.metrics:
        metrics = metrics[:3]
    written = []
    with plt.rc_context({'font.size': 9.5, 'axes.labelsize': 9.5, 'lines.markersize': 5}):
        for draw in (metric_figure, family_figure, steps_figures, isoflop_figures):
            try:
                written += draw(cfg, runs, metrics)
            except Refused as e:
                notes.append(f"refused: {e}")
    print(*notes, *(f"{cfg.out}/{name}" for name in written), sep='\n')

if __name__ == '__main__':
    run(main, Config)
