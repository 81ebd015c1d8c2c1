"""
Figures of runs, from what the runs themselves left: log.jsonl (train.py) and eval.json (eval.py). Never from text logs.

    python -m scaling.figures --runs=out/suite --out=out/figures          the figures of SIMS that the runs support

    metrics.png     the best model of each budget against compute, with its fit and published models (SIMS Figure 1)
    families.png    runs of as many steps from different TextLMs, by size (Figure 2)
    steps-X.png     from one TextLM X: interleaved, speech only and from scratch against steps (Figures 3, 5, 6)
    isoflop-X.png   loss and scores of a group X against N at each budget, parabolas and their optima (Figures 4, 7)

One column, as wide as a phone held in the hand or half a printed page. Colors are told apart by everyone, and each has its
mark too. The numbers drawn stand in a .csv beside each figure.
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
from scaling.runs import metrics_of, read_runs

matplotlib.use('Agg')

COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9') # Okabe and Ito: told apart by everyone
MARKS = 'osD^vP'
WIDTH, HEIGHT = 5.0, 2.7 # inches of a panel
PAPERS = str(Path(__file__).parents[1] / 'papers' / 'published.json')
TASKS = {'tsc': 'tSC', 'ssc': 'sSC', 'sblimp': 'sBLIMP', 'loss': 'loss'}

@dataclass(frozen=True)
class Config:
    runs: str = 'out/suite' # a folder of plan, folders of runs, .json files of published tables, separated by commas
    corpus: str = 'stories' # whose held-out speech is the loss
    metrics: str = '' # of eval.json, separated by commas; '': those of direction S, three at most
    papers: str = PAPERS # published tables for metrics.png; '' for none
    out: str = 'out/figures' # a folder

# ----------------------------------------------------------------------------------------------------------------
# shared by the figures

def style_of(i):
    """Color and mark of the i-th of a figure's groups."""
    return {'color': COLORS[i % 6], 'marker': MARKS[i % 6]}

def clean_axes(axis):
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='y', color='#eee')
    axis.set_axisbelow(True)

def panels(n):
    """A figure of n panels above each other, with one axis of x."""
    figure, axes = plt.subplots(n, 1, figsize=(WIDTH, HEIGHT * n + 0.3), layout='constrained', squeeze=False, sharex=True)
    for axis in axes[:, 0]:
        clean_axes(axis)
    return figure, list(axes[:, 0])

def save(figure, path, header, table):
    """The picture, and its numbers in a .csv beside it."""
    with atomically(path) as tmp:
        figure.savefig(tmp, dpi=150 if figure.get_figwidth() > 10 else 200, format='png')
    plt.close(figure)
    with atomically(Path(path).with_suffix('.csv')) as tmp, open(tmp, 'w', newline='') as f:
        csv.writer(f).writerows([header, *table])

def title_of(metric):
    """'tiny/main/tsc/S' -> 'tSC S (tiny, main)': the task and its direction first."""
    *where, task, way = ['', *metric.split('/')] if '/' in metric else ['', metric, '']
    ms, task = task.startswith('ms_'), task.removeprefix('ms_')
    name = ('multi-speaker ' if ms else '') + TASKS.get(task, task) + (f' {way}' if way else '')
    where = ', '.join(filter(None, where))
    return 'loss, nats a unit' if metric == 'loss' else f'{name}, %' + (f' ({where})' if where else '')

def size_name(N):
    """7616354816 -> '7.6B'."""
    scale, letter = next(pair for pair in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K'), (1, '')) if N >= pair[0] or pair[0] == 1)
    return f'{N / scale:.0f}{letter}' if N / scale >= 100 else f'{N / scale:.2g}{letter}'

def scaled(metric, values):
    """Scores are drawn in percent."""
    return np.asarray(values, dtype=float) * (1 if metric == 'loss' else 100)

def has(run, metric):
    return run.loss is not None and np.isfinite(run.loss) if metric == 'loss' else metric in run.scores

def value(run, metric):
    return run.loss if metric == 'loss' else run.scores[metric][0]

def error(run, metric):
    return 0.0 if metric == 'loss' else run.scores[metric][1] or 0.0

def ticks(axis, values, name):
    """Names of a logarithmic axis: those of the values where they are few, as sizes of a family are."""
    if len(set(values)) <= 6:
        axis.set_xticks(sorted(set(values)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: name(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())

def flops_name(C):
    """2e+20 -> '2e20'."""
    return f'{C:.2g}'.replace('+', '')

def dots(axis, x, runs, metric, **kwargs):
    """Runs at x, with the standard errors of their scores."""
    axis.errorbar(x, scaled(metric, [value(run, metric) for run in runs]), scaled(metric, [error(run, metric) for run in runs]),
                  linestyle='none', capsize=2, **kwargs)

def shown(runs, metrics):
    """The panels of a figure: the loss where a run has one, and the metrics that one has."""
    return [m for m in ('loss', *metrics) if any(has(run, m) for run in runs)]

def legend(axis, **kwargs):
    axis.legend(frameon=False, fontsize=8, **kwargs)

# ----------------------------------------------------------------------------------------------------------------
# the figures of SIMS: each draws what it can, or is Refused

def references(path, metric):
    """Published models with the task of a metric: (name, kind, C, percent, table and row); preference-tuned ones left out."""
    if not path or metric == 'loss':
        return []
    task, found = metric.split('/')[-2] if '/' in metric else metric, {}
    for row in read_json(Path(path).parent, Path(path).name, 'the repository')['rows']:
        C = row.get('flops') or 6 * row.get('params', 0) * row.get('tokens', 0)
        if C and not row.get('dpo') and not row.get('preference_tokens'):
            for key in (task, f'{task}/S'):
                if key in row:
                    where = f"{row['table']} row {row['row']}"
                    found.setdefault((C, row[key]), (row['model'], row['kind'], C, row[key], where))
    return list(found.values())

def draw_references(axis, path, metric, most):
    """Published models of less than 10,000 times the compute of the largest run as crosses; all as rows of the table."""
    table, other = [], ' (other items)' if metric.startswith('tiny/') else ''
    for kind, mark, color in (('textless', 'x', '#555'), ('speech and text', '+', '#000')):
        points = [p for p in references(path, metric) if (p[1] == 'textless') == (kind == 'textless')]
        near = [p for p in points if p[2] < 1e4 * most]
        if near:
            axis.plot([p[2] for p in near], [p[3] for p in near], mark, color=color, label=f'published, {kind}{other}')
        for p in near:
            if p[0].startswith('Cuervo'): # the optimum of the one textless scaling study
                axis.annotate(p[0], p[2:4], (4, 4), textcoords='offset points', fontsize=7, color=color)
        table += [(metric, f'published, {kind}', p[0], p[4], p[2], '', '', p[3] / 100, '') for p in points]
    return table

def metric_figure(cfg, runs, metrics):
    """SIMS Figure 1."""
    names, table = shown(runs, metrics), []
    groups = list(dict.fromkeys(run.group for run in runs))
    figure, axes = panels(len(names))
    for axis, metric in zip(axes, names):
        bands = []
        for i, group in enumerate(groups):
            of = [run for run in runs if run.group == group and has(run, metric)]
            if not of:
                continue
            C, y = np.array([run.budget for run in of]), np.array([value(run, metric) for run in of])
            pick = np.argmin if metric == 'loss' else np.argmax
            best = [run for k in budgets_of(C) for run in [of[k[pick(y[k])]]]]
            dots(axis, [r.budget for r in best], best, metric, label=group, **style_of(i))
            table += [(metric, group, r.name, 'best of its budget', r.budget, r.N, r.D, value(r, metric), error(r, metric))
                      for r in best]
            try:
                f = compute(of, metric)
            except Refused as e:
                table.append((metric, group, '', f'no fit: {e}', '', '', '', '', ''))
                continue
            x = np.geomspace(C.min(), C.max(), 30)
            lines = np.exp(f['draws'][0] + f['draws'][1] * np.log(x)[:, None]) # (30, DRAWS)
            axis.plot(x, scaled(metric, lines[:, 0]), color=COLORS[i % 6], linewidth=1.2)
            bands.append((x, scaled(metric, np.quantile(lines, (0.025, 0.975), axis=1)), COLORS[i % 6]))
            table.append((metric, group, '', f"fit: {np.exp(f['k']):.6g} C^{f['g']:.6g}", '', '', '', '', ''))
        table += draw_references(axis, cfg.papers, metric, max(run.budget for run in runs))
        limits = axis.get_ylim() # of the runs: a band of three points may be wide
        for x, ends, color in bands:
            axis.fill_between(x, *ends, color=color, alpha=0.15, linewidth=0)
        axis.set_ylim(limits)
        axis.set(xscale='log', ylabel=title_of(metric))
    budgets = [run.budget for run in runs]
    if np.ptp(np.log10(axes[0].get_xlim())) < 2: # too few powers of ten for the usual ticks
        ticks(axes[-1], [np.exp(np.log(np.array(budgets)[of]).mean()) for of in budgets_of(np.array(budgets))], flops_name)
    axes[-1].set_xlabel('training compute, FLOPs')
    legend(max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[1])))
    save(figure, Path(cfg.out) / 'metrics.png', ('metric', 'group', 'run', 'what', 'C', 'N', 'D', 'value', 'stderr'), table)
    return ['metrics.png']

def family_figure(cfg, runs, metrics):
    """SIMS Figure 2: interleaved runs of as many steps, the largest TextLM first."""
    inter = [run for run in runs if run.group.endswith('interleaved') and run.steps]
    steps = [run.steps for run in inter]
    most = max(set(steps), key=lambda s: len({run.init for run in inter if run.steps == s}), default=0)
    of = sorted((run for run in inter if run.steps == most), key=lambda run: -run.N)
    if len({run.init for run in of}) < 2:
        raise Refused("families: expected interleaved runs of as many steps from at least 2 TextLMs")
    names, inits = shown(of, metrics), list(dict.fromkeys(run.init for run in of))
    figure, axes = panels(len(names))
    table = []
    for axis, metric in zip(axes, names):
        for i, init in enumerate(inits):
            its = [run for run in of if run.init == init and has(run, metric)]
            dots(axis, [i] * len(its), its, metric, **style_of(0))
            table += [(metric, init, r.name, r.N, r.steps, value(r, metric), error(r, metric)) for r in its]
        axis.set_ylabel(title_of(metric))
    size = {run.init: run.N for run in of}
    labels = [f'{Path(init).name} {size_name(size[init])}' for init in inits]
    axes[-1].set_xticks(range(len(inits)), labels, rotation=60, ha='right', fontsize=8)
    axes[0].set_title(f'{most:,} steps', fontsize=9)
    save(figure, Path(cfg.out) / 'families.png', ('metric', 'init', 'run', 'N', 'steps', 'value', 'stderr'), table)
    return ['families.png']

def steps_figures(cfg, runs, metrics):
    """SIMS Figures 3, 5 and 6: one for each TextLM whose runs have at least 2 step counts of a kind."""
    made = []
    for init in dict.fromkeys(r.init for r in runs):
        of = [run for run in runs if run.init == init and run.steps]
        if init != 'scratch': # the same size from random weights, beside it
            of += [run for run in runs if run.init == 'scratch' and run.steps and run.N in {its.N for its in of}]
        kinds = list(dict.fromkeys(run.group for run in of))
        if not any(len({run.steps for run in of if run.group == kind}) > 1 for kind in kinds) or len({run.N for run in of}) > 2:
            continue # at most the two vocabularies of one model
        names, table = shown(of, metrics), []
        figure, axes = panels(len(names))
        for axis, metric in zip(axes, names):
            for i, kind in enumerate(kinds):
                at = {s: [run for run in of if run.group == kind and run.steps == s and has(run, metric)]
                      for s in sorted({run.steps for run in of})}
                at = {s: its for s, its in at.items() if its}
                mean = [np.mean([value(r, metric) for r in its]) for its in at.values()]
                bars = [np.std([value(r, metric) for r in its], ddof=1) / len(its) ** 0.5 if len(its) > 1
                        else error(its[0], metric) for its in at.values()] # over seeds, or of the evaluation
                axis.errorbar(list(at), scaled(metric, mean), scaled(metric, bars), capsize=2, label=kind, **style_of(i))
                table += [(metric, kind, s, m, bar, len(its)) for (s, its), m, bar in zip(at.items(), mean, bars)]
            axis.set(xscale='log', ylabel=title_of(metric))
            ticks(axis, [run.steps for run in of], '{:g}'.format)
        axes[-1].set_xlabel('training steps')
        legend(axes[0])
        made.append(f"steps-{_file_name(Path(init).name)}.png")
        save(figure, Path(cfg.out) / made[-1], ('metric', 'kind', 'steps', 'value', 'stderr', 'runs'), table)
    if not made:
        raise Refused("steps: expected runs of one TextLM at 2 or more step counts")
    return made

def isoflop_figures(cfg, runs, metrics):
    """SIMS Figures 4 and 7: one for each group with a budget of at least 3 sizes."""
    made, why = [], []
    for group in dict.fromkeys(r.group for r in runs):
        of, found = [run for run in runs if run.group == group], {}
        for metric in shown(of, metrics):
            try:
                found[metric] = isoflop(of, metric)
            except Refused as e:
                why.append(f"{group}: {e}")
        if not found:
            continue
        figure, axes = panels(len(found))
        table = []
        for axis, (metric, f) in zip(axes, found.items()):
            for i, row in enumerate(f['budgets']):
                x = np.geomspace(min(row['N']), max(row['N']), 60)
                axis.errorbar(row['N'], scaled(metric, row['y']), scaled(metric, row['stderr']), linestyle='none', capsize=2,
                              linewidth=0.8, label=flops_name(row['C']), **style_of(i))
                axis.plot(x, scaled(metric, np.polyval(row['parabola'], np.log(x))), color=COLORS[i % 6], linewidth=1.2,
                          linestyle='-' if row['where'] == 'inside' else ':')
                if row['where'] == 'inside':
                    axis.plot(row['N_opt'], scaled(metric, row['y_opt']), '*', color=COLORS[i % 6], markeredgecolor='black',
                              markersize=11)
                table += [(metric, row['C'], N, y, 'run') for N, y in zip(row['N'], row['y'])]
                table.append((metric, row['C'], row['N_opt'], row['y_opt'], f"optimum, {row['where']}"))
            axis.set(xscale='log', ylabel=title_of(metric))
            ticks(axis, [N for row in f['budgets'] for N in row['N']], size_name)
        axes[-1].set_xlabel('parameters N   (star: optimum inside the grid; dotted: none there)')
        legend(axes[0], title='FLOPs', title_fontsize=8, ncols=2)
        made.append(f"isoflop-{_file_name(group)}.png")
        save(figure, Path(cfg.out) / made[-1], ('metric', 'C', 'N', 'value', 'what'), table)
    if not made:
        raise Refused('; '.join(why) or "iso-FLOP: no run has a loss or a score")
    return made

def _file_name(text):
    return re.sub(r'[^\w.]+', '-', text).strip('-')

def main(cfg):
    runs, notes = read_runs(cfg.runs, cfg.corpus)
    metrics, made = metrics_of(runs, cfg.metrics), []
    metrics = metrics if cfg.metrics else metrics[:3]
    with plt.rc_context({'font.size': 9.5, 'axes.labelsize': 9.5, 'lines.markersize': 5}):
        for draw in (metric_figure, family_figure, steps_figures, isoflop_figures):
            try:
                made += draw(cfg, runs, metrics)
            except Refused as e:
                notes.append(f"refused: {e}")
    print(*notes, *(f"{cfg.out}/{name}" for name in made), sep='\n')

if __name__ == '__main__':
    run(main, Config)
