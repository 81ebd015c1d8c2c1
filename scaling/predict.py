"""
What to train for a budget: the papers' rule of thumb, and what the fits of finished runs expect.

    python -m scaling.predict --flops=6.86e20                            the rule of SIMS 5
    python -m scaling.predict --runs=out/suite --flops=1e14              and fits; or --gpus= and --hours=
"""
from dataclasses import dataclass

import numpy as np

from configurator import Refused, run
from scaling.curves import attempt, best_of, compute, interval, isoflop, span, surface
from scaling.models import models_of
from scaling.runs import by_group, count
from training.cost import CHIPS

RULE = {'steps': 25_000, 'tokens': 4.5e9} # SIMS 5: at least so many of each for the largest model of a good family

@dataclass(frozen=True)
class Config:
    flops: float | None = None # of the run to come; or
    hours: float | None = None # of so many
    gpus: int = 8 # GPUs of kind
    gpu: str = 'H200' # at
    mfu: float = 0.4 # of the peak
    runs: str = '' # as in scaling.fit; '': the papers' rule alone
    family: str = 'qwen2.5' # for the rule: as in scaling.plan
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

def rule_of_thumb(C, family, vocab, batch_tokens):
    """The papers' advice (SIMS 5) as lines: the largest model of a good family that still sees 25k steps and 4.5B tokens."""
    models = models_of(family, vocab=vocab)
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
    far, s = C / max(run.budget for run in runs), attempt(surface, runs)
    i = attempt(isoflop, runs, 'loss')
    if 'E' in s:
        lnN, lnD, L = best_of(s['draws'], C)
        yield (f"  surface: N {np.exp(lnN[0]):.3g} ({span(_exp(interval(lnN)), '.3g')}), D {np.exp(lnD[0]):.3g} "
               f"({span(_exp(interval(lnD)), '.3g')}), loss {L[0]:.4f} ({span(interval(L), '.4f')})")
    if 'exponent_N' in i:
        lnN = i['draws'][0] + i['draws'][1] * np.log(C)
        yield (f"  iso-FLOP: N {np.exp(lnN[0]):.3g} ({span(_exp(interval(lnN)), '.3g')}), "
               f"D {C / 6 / np.exp(lnN[0]):.3g}")
    over = [attempt(compute, runs, m) for m in ('loss', *metrics) if m == 'loss' or any(m in r.scores for r in runs)]
    for f in over:
        if 'g' in f:
            ln = f['draws'][0] + f['draws'][1] * np.log(C)
            value, ends = np.exp(ln[0]), _exp(interval(ln))
            full = ", above 1: the power law ends before" if f['metric'] != 'loss' and value > 1 else ''
            yield f"  {f['metric']} of the best model: {value:.4f} ({span(ends, '.4f')}){full}"
    yield from (f"  refused: {f['refused']}" for f in (s, i, *over) if 'refused' in f)
    if far > 10:
        yield f"  {far:,.0f} times the compute of the largest run: a guess, not a prediction"

def _exp(ends):
    return ends and [float(np.exp(v)) for v in ends]

def main(cfg):
    C = cfg.flops or cfg.mfu * CHIPS[cfg.gpu].flops * cfg.gpus * cfg.hours * 3600
    print(f"{C:.4g} FLOPs" + ('' if cfg.flops else f": {cfg.hours:g} h on {cfg.gpus} x {cfg.gpu} at {cfg.mfu:.0%} of the peak"))
    if cfg.runs:
        groups, metrics, _ = by_group(cfg)
        for name, runs in groups.items():
            print(f"{name}, {count(len(runs), 'run')}", *predictions(C, runs, metrics), sep='\n')
    print(*rule_of_thumb(C, cfg.family, cfg.vocab, cfg.batch_tokens), sep='\n')

if __name__ == '__main__':
    run(main, Config)
