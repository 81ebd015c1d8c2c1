"""
The report of papers/turn.py from its turn.csv: OUT/turn.md, turn.json and turn.png.

    python -m papers.turn_report
    python -m papers.turn_report --runs=papers/results/turn.csv     the published runs

What is not finished leaves rows out.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import atomically, record, sha256, write_json
from papers.turn import (
    ACROSS,
    ARMS,
    BUDGETS,
    LOSS,
    PAIRS,
    SCORES,
    SPANS,
    Study,
    compare,
    gains,
    gains_at_equal_units,
    optima,
    read_csv,
    scores_of,
    turn_of,
)
from scaling.figures import clean_axes, plt, style_of


@dataclass(frozen=True)
class Config:
    runs: str = 'out/turn/turn.csv' # what papers.turn wrote
    out: str = 'out/turn' # folder for the report

NAMES = {LOSS: 'loss, nats a unit', **SCORES, **ACROSS}

def scale_of(metric):
    """What a value is multiplied by, so that accuracies are in percent."""
    return 1 if metric == LOSS else 100

# --------------------------------------------------------------------------------------------------
# the text

def gain_cell(row, metric):
    """A gain as text: its mean and interval, in bold where it is decided."""
    if 'why' in row:
        return 'at chance'
    scale = scale_of(metric)
    text = f"{scale * row['mean']:+.3g} ({scale * row['low']:+.3g} to {scale * row['high']:+.3g})"
    return f'**{text}**' if row['sign'] else text

def turn_cell(turn):
    """The turn of a sign as text."""
    begin, end = (C and f'{C:.0e}' for C in (turn['from'], turn['to']))
    if turn['kind'] == 'turn':
        crossing = f"; the means cross at {turn['crossing']:.1e}" if turn['crossing'] else ''
        return f'turns between {begin} and {end}{crossing}'
    return turn['kind'] + (' wherever it is decided' if turn['kind'] in ('ahead', 'behind') else '')

def table(header, rows):
    """A Markdown table as lines."""
    return [f"| {' | '.join(header)} |", '|' + '---|' * len(header), *(f"| {' | '.join(row)} |" for row in rows), '']

def gain_tables(study, result):
    """The gains of each pair of arms at equal compute, and where their signs turn; adds them to the dict result."""
    lines = []
    for arm, baseline, claim in PAIRS:
        budgets = [C for C in BUDGETS if study.at(arm, C) and study.at(baseline, C)]
        if not budgets:
            continue
        rows = []
        for metric in (LOSS, *SCORES):
            by_budget = gains(study, arm, baseline, metric)
            turn = turn_of(by_budget)
            result.setdefault(f'{arm} over {baseline}', {})[metric] = {'gains': by_budget, 'turn': turn}
            cells = [gain_cell(row, metric) for row in by_budget]
            rows.append([NAMES[metric], *cells, turn_cell(turn)])
        header = ['gain', *(f'{C:.0e} FLOPs' for C in budgets), 'in all']
        lines += [f'### {arm} over {baseline}, at equal compute', '', f'> {claim}', '', *table(header, rows)]
    return lines

def equal_units_table(study, result):
    """Interleaved over textless at equal numbers of units read."""
    rows = []
    for metric in (LOSS, *SCORES):
        by_units = gains_at_equal_units(study, metric)
        result.setdefault('interleaved over textless, equal units', {})[metric] = by_units
        if by_units:
            rows.append([NAMES[metric], *(gain_cell(row, metric) for row in by_units)])
    if not rows:
        return []
    header = ['', *(f"{row['units'] / 1e6:.2f}M units: {row['C']:.0e} FLOPs, textless {row['C of textless']:.1e}"
                    for row in by_units)]
    return ['### interleaved over textless, at equal speech', '', *table(header, rows)]

def spans_table(study, result):
    """The gains of other spans over words, everything else being equal."""
    C = ARMS['chunks'].budgets[0]
    words = study.at('interleaved', C)
    rows = []
    for name in SPANS[1:]:
        others = study.at(name, C)
        if words and others:
            by_metric = {metric: compare(others, scores_of(others, metric), words, scores_of(words, metric), metric)
                         for metric in (LOSS, *SCORES, *ACROSS)}
            result.setdefault('spans over words', {})[name] = by_metric
            rows.append([name, *(gain_cell(row, metric) for metric, row in by_metric.items())])
    if not rows:
        return []
    means = [f'{scale_of(metric) * np.mean(scores_of(words, metric)):.3g}' for metric in (LOSS, *SCORES, *ACROSS)]
    header = [f'gain over words, {C:.0e} FLOPs', *NAMES.values()]
    return ['### How to interleave', '', *table(header, [*rows, ['words, as they are', *means]])]

def runs_table(study):
    """The mean of each arm at each budget, with its size and how often it read each unit."""
    rows = []
    for name, arm in ARMS.items():
        for C in arm.budgets:
            results = study.at(name, C)
            if results:
                values = [f'{scale_of(metric) * np.mean(scores_of(results, metric)):.3g}'
                          for metric in (LOSS, *SCORES)]
                rows.append([name, f'{C:.0e}', results[0].size, f'{results[0].epochs:.1f}', *values])
    return table(['arm', 'FLOPs', 'size', 'epochs', *(NAMES[metric] for metric in (LOSS, *SCORES))], rows)

def optima_lines(chosen):
    """The best sizes of the first seed as lines of text."""
    for name, sizes in chosen.items():
        cells = [f"{size}{'' if is_inside else ' (outermost)'} at {C:.0e}" for C, (size, _, is_inside) in sizes.items()]
        yield f"Best size, {name}: {', '.join(cells)}."

# --------------------------------------------------------------------------------------------------
# the picture

def draw(study, path):
    """The gain of interleaved over each other arm at each budget, with its 95 % interval: a panel for each metric."""
    metrics = (LOSS, *SCORES)
    figure, axes = plt.subplots(len(metrics), 1, figsize=(5, 2.1 * len(metrics)), sharex=True, layout='constrained')
    for axis, metric in zip(axes, metrics):
        clean_axes(axis)
        axis.axhline(0, color='#666', linewidth=1)
        for i, (arm, baseline, _) in enumerate(PAIRS):
            rows = [row for row in gains(study, arm, baseline, metric) if 'mean' in row]
            if not rows:
                continue
            C = np.array([row['C'] for row in rows])
            scale = scale_of(metric)
            mean, low, high = (scale * np.array([row[key] for row in rows]) for key in ('mean', 'low', 'high'))
            axis.errorbar(C * 1.04 ** (i - 1), mean, [mean - low, high - mean], capsize=2, label=f'over {baseline}',
                          **style_of(i))
        if not axis.containers:
            axis.set_yticks([])
            axis.text(0.5, 0.6, 'at chance, or not run', ha='center', transform=axis.transAxes)
        axis.set_title('gain in ' + NAMES[metric] + ('' if metric == LOSS else ', points'), fontsize=9, loc='left')
    axes[0].legend(frameon=False, fontsize=8)
    axes[-1].set_xscale('log')
    axes[-1].set_xlabel('compute, FLOPs')
    with atomically(path) as tmp:
        figure.savefig(tmp, dpi=150, format='png')
    plt.close(figure)

def main(cfg):
    results = read_csv(cfg.runs)
    if not results:
        raise Refused(f"{cfg.runs}: no finished run; papers/turn.sh makes them")
    study = Study(results)
    result = {'optima': optima(study)}
    lines = [f"{len(results)} runs are finished.", '', *optima_lines(result['optima']), '', *gain_tables(study, result),
             *equal_units_table(study, result), *spans_table(study, result), '### All arms', '', *runs_table(study)]
    out = Path(cfg.out)
    with atomically(out / 'turn.md') as tmp:
        tmp.write_text('\n'.join(lines), encoding='utf-8')
    commits = sorted({r.commit for r in results})
    write_json(out / 'turn.json', {**result, 'commits of the runs': commits, 'runs': sha256(cfg.runs), **record(cfg)})
    draw(study, out / 'turn.png')
    print(*lines, sep='\n')
    print(f"{out}/turn.md, turn.json, turn.png")

if __name__ == '__main__':
    run(main, Config)
