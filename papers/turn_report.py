"""
The report of papers/turn.py, from its finished runs: OUT/turn.md, turn.json, turn.png and turn.csv.

    python -m papers.turn_report
    python -m papers.turn_report --known=papers/results/turn.csv     from the published runs, without training

What is not finished leaves rows out.
"""
from pathlib import Path

import numpy as np

from configurator import Refused, run
from evaluation.scores import student_interval
from files import atomically, record, write_json
from papers.turn import (
    ACROSS,
    ARMS,
    BUDGETS,
    LOSS,
    PAIRS,
    SCORES,
    SPANS,
    Config,
    Study,
    gains,
    gains_at_equal_units,
    optima,
    scores_of,
    turn_of,
    write_csv,
)
from scaling.figures import clean_axes, plt, style_of

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
    begin, end, crossing = turn['from'], turn['to'], turn['crossing']
    if begin and end:
        text = f'{begin:.0e} to {end:.0e}'
    elif end:
        text = f'below {end:.0e}'
    elif begin:
        text = f'above {begin:.0e}'
    else:
        text = 'not decided'
    return text + (f'; the means cross at {crossing:.1e}' if crossing else '')

def table(header, rows):
    """A Markdown table as lines."""
    return [f"| {' | '.join(header)} |", '|' + '---|' * len(header), *(f"| {' | '.join(row)} |" for row in rows), '']

def gain_tables(study, result):
    """The gains of each pair of arms at equal compute, and where their signs turn; adds them to the dict result."""
    lines = []
    for arm, baseline, claim in PAIRS:
        budgets = [C for C in BUDGETS if study.at(arm, C) and C in ARMS[baseline].budgets and study.at(baseline, C)]
        if not budgets:
            continue
        rows = []
        for metric in (LOSS, *SCORES):
            by_budget = gains(study, arm, baseline, metric)
            turn = turn_of(by_budget)
            result.setdefault(f'{arm} over {baseline}', {})[metric] = {'gains': by_budget, 'turn': turn}
            cells = [gain_cell(row, metric) for row in by_budget]
            rows.append([NAMES[metric], *cells, turn_cell(turn)])
        header = ['', *(f'{C:.0e}' for C in budgets), 'the sign turns at, FLOPs']
        lines += [f'### {arm} over {baseline}, at equal compute', '', f'> {claim}', '', *table(header, rows)]
    return lines

def equal_units_table(study, result):
    """Interleaved over textless at equal numbers of units read."""
    rows = []
    for metric in (LOSS, *SCORES):
        by_units = gains_at_equal_units(study, 'interleaved', 'textless', metric)
        result.setdefault('interleaved over textless, equal units', {})[metric] = by_units
        if by_units:
            rows.append([NAMES[metric], *(gain_cell(row, metric) for row in by_units)])
    if not rows:
        return []
    header = ['', *(f"{row['C']:.0e} FLOPs, {row['units'] / 1e6:.2f}M units" for row in by_units)]
    return ['### interleaved over textless, at equal speech', '', *table(header, rows)]

def spans_table(study, result):
    """The scores of models that differ in their spans alone."""
    C = ARMS['chunks'].budgets[0]
    rows = []
    for name in SPANS:
        results = study.at(name, C)
        if not results:
            return []
        cells = []
        for metric in (LOSS, *SCORES, *ACROSS):
            mean, low, high = student_interval(scores_of(results, metric))
            result.setdefault('spans', {}).setdefault(name, {})[metric] = {'mean': mean, 'low': low, 'high': high}
            scale = scale_of(metric)
            cells.append(f'{scale * mean:.3g} ± {scale * (high - mean):.2g}')
        rows.append(['words' if name == 'interleaved' else name, *cells])
    header = [f'spans, {C:.0e} FLOPs', *NAMES.values()]
    return ['### How to interleave', '', *table(header, rows)]

def runs_table(study):
    """The mean of each arm at each budget, with its size and how often it read its scarcest source."""
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
            axis.text(0.5, 0.6, 'at chance', ha='center', transform=axis.transAxes)
        axis.set_title('gain in ' + NAMES[metric] + ('' if metric == LOSS else ', points'), fontsize=9, loc='left')
    axes[0].legend(frameon=False, fontsize=8)
    axes[-1].set_xscale('log')
    axes[-1].set_xlabel('compute, FLOPs')
    with atomically(path) as tmp:
        figure.savefig(tmp, dpi=150, format='png')
    plt.close(figure)

def main(cfg):
    study = Study(cfg)
    results = study.all_results()
    if not results:
        raise Refused(f"{cfg.out}: no finished run; papers/turn.sh makes them")
    result = {'optima': optima(study)}
    summary = f"{len(results)} runs are finished, {len(study.todo) or 'none'} of the next budget are not."
    lines = [summary, '', *optima_lines(result['optima']), '', *gain_tables(study, result),
             *equal_units_table(study, result), *spans_table(study, result), '### All arms', '', *runs_table(study)]
    out = Path(cfg.out)
    with atomically(out / 'turn.md') as tmp:
        tmp.write_text('\n'.join(lines), encoding='utf-8')
    write_json(out / 'turn.json', {**result, 'commits': sorted({r.commit for r in results}), **record(cfg)})
    write_csv(out / 'turn.csv', results)
    draw(study, out / 'turn.png')
    print(*lines, sep='\n')
    print(f"{out}/turn.md, turn.json, turn.png, turn.csv")

if __name__ == '__main__':
    run(main, Config)
