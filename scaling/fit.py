"""
Fits the finished runs of a scaling study: iso-FLOP curves, L(N, D), and metrics over compute.

    python -m scaling.fit --runs=out/suite          -> out/suite/fit.json, and the results as text

    C = 6 N D      N parameters with the embedding and the rows of the units, D tokens of all
                   modalities (SIMS 5)

The fits are those of scaling/curves.py. What is printed as `a to b` is a 95 % interval. What the
data cannot support is refused, with the reason.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import record, write_json
from scaling.curves import attempt, compute, interval_text, isoflop, surface
from scaling.runs import allocations, by_group, count


@dataclass(frozen=True)
class Config:
    runs: str = 'out/suite' # folders of scaling.plan or train.py, or .json of published tables, separated by commas
    corpus: str = 'stories' # whose held-out speech the loss is measured on
    metrics: str = '' # of eval.json, separated by commas; '': all of direction S
    out: str | None = None # folder for fit.json; None: the first folder of runs

def isoflop_lines(fit):
    """The result of isoflop as lines of text."""
    metric = fit['metric']
    for row in fit['budgets']:
        optimum = '' if row['where'] == 'no optimum' else 'optimum '
        if row['N_opt'] is None:
            vertex = f"the best run has N {row['best_N']:.3g}"
        else:
            N_opt = row['N_opt']
            vertex = (f"N {N_opt:.3g} ({interval_text(row['N_interval'], '.3g')}), D {row['C'] / 6 / N_opt:.3g}, "
                      f"{metric} {row['y_opt']:.4f}")
        yield f"  iso-FLOP {row['C']:.3g}  {metric}: {optimum}{row['where']}, {vertex}"
    if 'exponent_N' in fit:
        yield (f"  {metric}: N_opt = {fit['G']:.3g} C^{fit['exponent_N']:.3f} "
               f"({interval_text(fit['exponent_N_interval'])}), "
               f"D_opt ~ C^{fit['exponent_D']:.3f} ({interval_text(fit['exponent_D_interval'])})")
        for row in allocations():
            yield f"     {row['source']}: N_opt ~ C^{row['exponent_N']}, D_opt ~ C^{row['exponent_D']}"

def surface_lines(fit):
    """The result of surface as lines of text."""
    yield (f"  L(N, D) = {fit['E']:.4g} + {fit['A']:.4g} / N^{fit['a']:.4f} "
           f"+ {fit['B']:.4g} / D^{fit['b']:.4f}")
    yield (f"     E {interval_text(fit['E_interval'], '.4g')}; a {interval_text(fit['a_interval'])}; "
           f"b {interval_text(fit['b_interval'])}; "
           f"N_opt ~ C^{fit['exponent']:.3f} ({interval_text(fit['exponent_interval'])})")
    residuals = fit['residuals']
    largest = max(residuals, key=lambda name: abs(residuals[name]))
    yield (f"     residuals {fit['rms']:.2%} rms; the largest, {residuals[largest]:+.2%}, "
           f"is that of {largest}")

def report(name, group_fits):
    """The fits of a group as lines of text."""
    yield f"{name}, {count(group_fits['runs'], 'run')}"
    left_out = [budget for fit in group_fits['isoflop'] for budget in fit.get('left_out', ())]
    for budget in dict.fromkeys(left_out):
        yield f"  iso-FLOP {budget}, left out"
    for fit in group_fits['isoflop']:
        if 'budgets' in fit:
            yield from isoflop_lines(fit)
    if 'E' in group_fits['surface']:
        yield from surface_lines(group_fits['surface'])
    for fit in group_fits['compute']:
        if 'g' in fit:
            yield (f"  {fit['metric']} = {np.exp(fit['k']):.4g} C^{fit['g']:.4f} "
                   f"({interval_text(fit['g_interval'], '.4f')}), the best of each budget")
    reasons = [fit['refused'] for fit in all_fits(group_fits) if 'refused' in fit]
    for reason in dict.fromkeys(reasons):
        yield f"  refused: {reason}"

def fit_group(runs, metrics):
    """{'runs': their number, 'isoflop': [fit of each metric], 'surface': fit, 'compute': [fits]}."""
    metrics = ['loss', *(metric for metric in metrics if any(metric in run.scores for run in runs))]
    return {'runs': len(runs),
            'isoflop': [attempt(isoflop, runs, metric) for metric in metrics],
            'surface': attempt(surface, runs),
            'compute': [attempt(compute, runs, metric) for metric in metrics]}

def all_fits(group_fits):
    return [*group_fits['isoflop'], group_fits['surface'], *group_fits['compute']]

def without_draws(value):
    """A fit as fit.json has it."""
    if isinstance(value, dict):
        return {key: without_draws(item) for key, item in value.items() if key != 'draws'}
    if isinstance(value, list):
        return [without_draws(item) for item in value]
    return value

def main(cfg):
    groups, metrics, notes = by_group(cfg)
    fits_by_group = {name: fit_group(runs, metrics) for name, runs in groups.items()}
    for name, group_fits in fits_by_group.items():
        print(*report(name, group_fits), sep='\n')
    for note in notes:
        print(note)
    first = Path(cfg.runs.split(',')[0])
    out = Path(cfg.out or (first if first.is_dir() else 'out')) / 'fit.json'
    write_json(out, {'groups': without_draws(fits_by_group), 'notes': notes, **record(cfg)})
    results = [fit for group_fits in fits_by_group.values() for fit in all_fits(group_fits)]
    if not any(key in fit for fit in results for key in ('exponent_N', 'E', 'g')):
        n_runs = sum(map(len, groups.values()))
        raise Refused(f"{cfg.runs}: no scaling can be fitted to these {n_runs} runs, for the reasons above; "
                      "expected at least 3 budgets with 3 sizes each, as scaling.plan makes them")
    n_refused = sum('refused' in fit for fit in results)
    print(f"{out}: {len(results) - n_refused} of {len(results)} fits")

if __name__ == '__main__':
    run(main, Config)
