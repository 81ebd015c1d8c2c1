"""
The scaling study: which runs, what they say, what to train next.

    python scaling.py plan --family=qwen2.5 --budgets=2.1e18,5e18,2e19,6e19,2e20      table, runs.jsonl, torchrun lines
    python scaling.py plan ... --run           trains and evaluates them one after another; again: goes on where it was cut
    python scaling.py fit --runs=out/suite                  iso-FLOP curves, L(N, D), metrics over compute (fits.py)
    python scaling.py predict --runs=out/suite --flops=6.86e20      best N and D, metrics expected; or --gpus= and --hours=
    python scaling.py figures --runs=out/suite              the papers' figures, each with its numbers (figures.py)
    python scaling.py compare --runs=out/tiny,out/tiny-speech       curves and scores of a few runs side by side

    C = 6 N D      N parameters with the embedding and the rows of the units, D tokens of all modalities (SIMS 5)

What is printed as `a to b` is a 95 % interval (fits.py says how it is made). What the data cannot support is refused, with why.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import figures
import fits
import suite
from configurator import Refused, configure, record, write_json
from cost import CHIPS

RULE = {'steps': 25_000, 'tokens': 4.5e9} # SIMS 5: at least so many of each for the largest model of a good family

@dataclass(frozen=True)
class Fit:
    runs: str = 'out/suite' # a folder of plan, folders of runs, .json files of published tables, separated by commas
    corpus: str = 'stories' # whose held-out speech is the loss
    metrics: str = '' # of eval.json, separated by commas; '': all of direction S
    out: str | None = None # where fit.json goes; None: the first folder of runs

@dataclass(frozen=True)
class Predict:
    flops: float | None = None # of the run to come; or
    hours: float | None = None # of so many
    gpus: int = 8 # GPUs of kind
    gpu: str = 'H200' # at
    mfu: float = 0.4 # of the peak
    runs: str = '' # as in Fit; '': the papers' rule alone
    family: str = 'qwen2.5' # for the rule: as in Plan
    vocab: str = 'joint' # or 'speech'
    batch_tokens: int = 147456 # a step
    corpus: str = 'stories'
    metrics: str = ''

    def __post_init__(self):
        if (self.flops is None) == (self.hours is None):
            raise Refused("expected either --flops= or --hours= (with --gpus=, --gpu= and --mfu=)")
        if self.gpu not in CHIPS:
            raise Refused(f"gpu={self.gpu!r}: expected one of {', '.join(CHIPS)}")
        for name in ('flops', 'hours', 'gpus', 'mfu', 'batch_tokens'):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise Refused(f"{name}={getattr(self, name)}: expected more than 0")

# ----------------------------------------------------------------------------------------------------------------
# fit, predict

def by_group(cfg):
    """({group: its runs}, metrics asked for or found, notes) of Fit or Predict."""
    runs, notes = fits.read_runs(cfg.runs, cfg.corpus)
    metrics = fits.metrics_of(runs, cfg.metrics)
    groups = {name: [run for run in runs if run.group == name] for name in dict.fromkeys(run.group for run in runs)}
    return groups, metrics, notes

def attempt(fit, *args):
    """A fit's result, or {'refused': why}."""
    try:
        return fit(*args)
    except Refused as e:
        return {'refused': str(e)}

def span(values, form='.3f'):
    return 'interval not determined' if values is None else f"{values[0]:{form}} to {values[1]:{form}}"

def report(name, found):
    """What a group's fits say, as lines of text."""
    yield f"{name}, {fits.count(found['runs'], 'run')}"
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
    return {'runs': len(runs), 'isoflop': [attempt(fits.isoflop, runs, m) for m in ('loss', *metrics)],
            'surface': attempt(fits.surface, runs), 'compute': [attempt(fits.compute, runs, m) for m in ('loss', *metrics)]}

def fit(cfg):
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
                      "above; expected at least 3 budgets with 3 sizes each, as scaling.py plan makes them")
    print(f"{out}: {len(parts) - sum('refused' in f for f in parts)} of {len(parts)} fits")

def rule_of_thumb(C, family, vocab, batch_tokens):
    """The papers' advice (SIMS 5) as lines: the largest model of a good family that still sees 25k steps and 4.5B tokens."""
    models = suite.models_of(family, vocab=vocab)
    good = [(size, N) for size, (_, _, N) in models.items()
            if C / 6 / N >= RULE['tokens'] and C / 6 / N / batch_tokens >= RULE['steps']]
    least = f"{RULE['steps']:,} steps and {RULE['tokens'] / 1e9:g}B tokens"
    if good:
        size, N = good[-1]
        yield (f"rule of SIMS 5, the largest good model with at least {least}: {family} {size} "
               f"(N {N:,}), {C / 6 / N / 1e9:.2f}B tokens, {C / 6 / N / batch_tokens:,.0f} steps")
    else:
        size, (_, _, N) = next(iter(models.items()))
        yield (f"rule of SIMS 5: no size of {family} would see {least} at {C:.3g} FLOPs (the smallest, {size}: "
               f"{C / 6 / N / 1e9:.2f}B tokens); there follow the iso-FLOP curves, fit and figures")

def predictions(C, runs, metrics):
    """What a group's fits expect of a run of C FLOPs, as lines."""
    far, s = C / max(run.budget for run in runs), attempt(fits.surface, runs)
    i = attempt(fits.isoflop, runs, 'loss')
    if 'E' in s:
        lnN, lnD, L = fits.best_of(s['draws'], C)
        yield (f"  surface: N {np.exp(lnN[0]):.3g} ({span(_exp(fits.interval(lnN)), '.3g')}), D {np.exp(lnD[0]):.3g} "
               f"({span(_exp(fits.interval(lnD)), '.3g')}), loss {L[0]:.4f} ({span(fits.interval(L), '.4f')})")
    if 'exponent_N' in i:
        lnN = i['draws'][0] + i['draws'][1] * np.log(C)
        yield (f"  iso-FLOP: N {np.exp(lnN[0]):.3g} ({span(_exp(fits.interval(lnN)), '.3g')}), "
               f"D {C / 6 / np.exp(lnN[0]):.3g}")
    over = [attempt(fits.compute, runs, m) for m in ('loss', *metrics) if m == 'loss' or any(m in r.scores for r in runs)]
    for f in over:
        if 'g' in f:
            ln = f['draws'][0] + f['draws'][1] * np.log(C)
            value, ends = np.exp(ln[0]), _exp(fits.interval(ln))
            full = ", above 1: the power law ends before" if f['metric'] != 'loss' and value > 1 else ''
            yield f"  {f['metric']} of the best model: {value:.4f} ({span(ends, '.4f')}){full}"
    yield from (f"  refused: {f['refused']}" for f in (s, i, *over) if 'refused' in f)
    if far > 10:
        yield f"  {far:,.0f} times the compute of the largest run: a guess, not a prediction"

def _exp(ends):
    return ends and [float(np.exp(v)) for v in ends]

def predict(cfg):
    C = cfg.flops or cfg.mfu * CHIPS[cfg.gpu].flops * cfg.gpus * cfg.hours * 3600
    print(f"{C:.4g} FLOPs" + ('' if cfg.flops else f": {cfg.hours:g} h on {cfg.gpus} x {cfg.gpu} at {cfg.mfu:.0%} of the peak"))
    if cfg.runs:
        groups, metrics, _ = by_group(cfg)
        for name, runs in groups.items():
            print(f"{name}, {fits.count(len(runs), 'run')}", *predictions(C, runs, metrics), sep='\n')
    print(*rule_of_thumb(C, cfg.family, cfg.vocab, cfg.batch_tokens), sep='\n')

# ----------------------------------------------------------------------------------------------------------------

COMMANDS = {'plan': (suite.plan, suite.Plan), 'fit': (fit, Fit), 'predict': (predict, Predict),
            'figures': (figures.main, figures.Config), 'compare': (figures.compare, figures.Compare)}

def main(argv):
    if not argv or argv[0] not in COMMANDS:
        if argv and argv[0] in ('--help', '-h'):
            return print(__doc__)
        raise Refused(f"{argv[0] if argv else 'no command'}: expected one of {', '.join(COMMANDS)}, then --key=value; "
                      "--help says more")
    command, Config = COMMANDS[argv[0]]
    command(configure(Config, ['--run=True' if arg == '--run' else arg for arg in argv[1:]]))

if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except Refused as e:
        raise SystemExit(f"scaling.py: {e}") from None
