"""
What the finished runs of a scaling study say: iso-FLOP curves, L(N, D), and metrics over compute (scaling/curves.py).

    python -m scaling.fit --runs=out/suite          -> out/suite/fit.json, and the results as text

    C = 6 N D      N parameters with the embedding and the rows of the units, D tokens of all modalities (SIMS 5)

What is printed as `a to b` is a 95 % interval. What the data cannot support is refused, with the reason.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import record, write_json
from scaling.curves import attempt, compute, isoflop, span, surface
from scaling.runs import by_group, count


@dataclass(frozen=True)
class Config:
    runs: str = 'out/suite' # a folder of plan, folders of runs, .json files of published tables, separated by commas
    corpus: str = 'stories' # whose held-out speech is the loss
    metrics: str = '' # of eval.json, separated by commas; '': all of direction S
    out: str | None = None # where fit.json goes; None: the first folder of runs

def report(name, found):
    """What a group's fits say, as lines of text."""
    yield f"{name}, {count(found['runs'], 'run')}"
    for left in dict.fromkeys(left for f in found['isoflop'] for left in f.get('left_out', ())):
        yield f"  iso-FLOP {left}, left out"
    for f in found['isoflop']:
        for row in f.get('budgets', ()):
            at = f", the best run has N {row['best_N']:.3g}"
            if row['N_opt'] is not None:
                at = (f", N {row['N_opt']:.3g} ({span(row['N_interval'], '.3g')}), D {row['C'] / 6 / row['N_opt']:.3g}, "
                      f"{f['metric']} {row['y_opt']:.4f}")
            yield f"  iso-FLOP {row['C']:.3g}  {f['metric']}: {'optimum ' * (row['where'] != 'no optimum')}{row['where']}{at}"
        if 'exponent_N' in f:
            yield (f"  {f['metric']}: N_opt = {f['G']:.3g} C^{f['exponent_N']:.3f} ({span(f['exponent_N_interval'])}), "
                   f"D_opt ~ C^{f['exponent_D']:.3f} ({span(f['exponent_D_interval'])})")
    s = found['surface']
    if 'E' in s:
        yield f"  L(N, D) = {s['E']:.4g} + {s['A']:.4g} / N^{s['a']:.4f} + {s['B']:.4g} / D^{s['b']:.4f}"
        yield (f"     E {span(s['E_interval'], '.4g')}; a {span(s['a_interval'])}; b {span(s['b_interval'])}; "
               f"N_opt ~ C^{s['exponent']:.3f} ({span(s['exponent_interval'])})")
        worst = max(s['residuals'], key=lambda run: abs(s['residuals'][run]))
        yield f"     residuals {s['rms']:.2%} rms; the largest, {s['residuals'][worst]:+.2%}, is that of {worst}"
    for f in found['compute']:
        if 'g' in f:
            yield (f"  {f['metric']} = {np.exp(f['k']):.4g} C^{f['g']:.4f} ({span(f['g_interval'], '.4f')}), "
                   "the best of each budget")
    yield from dict.fromkeys(f"  refused: {f['refused']}" for f in (*found['isoflop'], s, *found['compute']) if 'refused' in f)

def fit_group(runs, metrics):
    metrics = [m for m in metrics if any(m in run.scores for run in runs)]
    return {'runs': len(runs), 'isoflop': [attempt(isoflop, runs, m) for m in ('loss', *metrics)],
            'surface': attempt(surface, runs), 'compute': [attempt(compute, runs, m) for m in ('loss', *metrics)]}

def main(cfg):
    groups, metrics, notes = by_group(cfg)
    found = {name: fit_group(runs, metrics) for name, runs in groups.items()}
    for name, group in found.items():
        print(*report(name, group), sep='\n')
    print(*notes, sep='\n', end='\n' if notes else '')
    first = Path(cfg.runs.split(',')[0])
    out = Path(cfg.out or (first if first.is_dir() else 'out')) / 'fit.json'
    plain = lambda value: {k: plain(v) for k, v in value.items() if k != 'draws'} if isinstance(value, dict) else \
        [plain(v) for v in value] if isinstance(value, list) else value
    write_json(out, {'groups': plain(found), 'notes': notes, **record(cfg)})
    parts = [f for g in found.values() for f in (*g['isoflop'], g['surface'], *g['compute'])]
    if not any(key in f for f in parts for key in ('exponent_N', 'E', 'g')):
        raise Refused(f"{cfg.runs}: no scaling can be fitted to these {sum(map(len, groups.values()))} runs, for the reasons "
                      "above; expected at least 3 budgets with 3 sizes each, as scaling.plan makes them")
    print(f"{out}: {len(parts) - sum('refused' in f for f in parts)} of {len(parts)} fits")

if __name__ == '__main__':
    run(main, Config)
