"""
What to train for a budget: the papers' rule of thumb, and what the fits of finished runs expect.

    python -m scaling.predict --flops=6.86e20                            the rule of SIMS 5
    python -m scaling.predict --runs=out/suite --flops=1e14              and the fits
    python -m scaling.predict --hours=24 --gpus=8 --gpu=H200             a budget in hours
"""
from dataclasses import dataclass

import numpy as np

from configurator import Refused, run
from scaling.curves import attempt, best_of, compute, interval, interval_text, isoflop, surface
from scaling.models import models_of
from scaling.runs import by_group, count
from training.cost import CHIPS

RULE = {'steps': 25_000, 'tokens': 4.5e9} # SIMS 5: the least of each for the largest model of a good family

@dataclass(frozen=True)
class Config:
    # the budget of the run to come: give flops or hours
    flops: float | None = None # compute, in FLOPs
    hours: float | None = None # time on these GPUs:
    gpus: int = 8
    gpu: str = 'H200' # A100, H100 or H200
    mfu: float = 0.4 # share of the GPUs' peak FLOP/s that is reached
    # finished runs, whose fits predict; the settings are those of scaling.fit
    runs: str = '' # folders of scaling.plan or train.py, separated by commas; '': the papers' rule alone
    corpus: str = 'stories' # corpus whose held-out speech the loss is measured on
    metrics: str = '' # of eval.json, separated by commas; '': all of direction S
    # the papers' rule
    family: str = 'qwen2.5' # 'qwen2.5', 'llama3.2', 'tiny', or folders and hub ids of models, separated by commas
    vocab: str = 'joint' # vocabulary of the run to come: joint or speech
    batch_tokens: int = 147456 # tokens a step

    def __post_init__(self):
        if (self.flops is None) == (self.hours is None):
            raise Refused("expected either --flops= or --hours= (with --gpus=, --gpu= and --mfu=)")
        if self.gpu not in CHIPS:
            raise Refused(f"gpu={self.gpu!r}: expected one of {', '.join(CHIPS)}")
        for name in ('flops', 'hours', 'gpus', 'mfu', 'batch_tokens'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise Refused(f"{name}={value}: expected more than 0")

def rule_of_thumb(C, family, vocab, batch_tokens):
    """The papers' advice (SIMS 5) as a line of text.

    It is the largest model of a good family that still sees 25k steps and 4.5B tokens.
    """
    models = models_of(family, vocab=vocab)
    n_tokens = {size: C / 6 / model.n_params for size, model in models.items()}
    enough = [size for size in models
              if n_tokens[size] >= RULE['tokens'] and n_tokens[size] / batch_tokens >= RULE['steps']]
    least = f"{RULE['steps']:,} steps and {RULE['tokens'] / 1e9:g}B tokens"
    if enough:
        size = enough[-1]
        return (f"rule of SIMS 5, the largest good model with at least {least}: {family} {size} "
                f"(N {models[size].n_params:,}), {n_tokens[size] / 1e9:.2f}B tokens, "
                f"{n_tokens[size] / batch_tokens:,.0f} steps")
    smallest = next(iter(models))
    return (f"rule of SIMS 5: no size of {family} would see {least} at {C:.3g} FLOPs (the smallest, {smallest}: "
            f"{n_tokens[smallest] / 1e9:.2f}B tokens); follow the iso-FLOP curves of scaling.fit and "
            "scaling.figures there")

def estimate(log_draws, form):
    """Draws of a logarithm, the first of which is the estimate -> 'value (low to high)'."""
    ends = interval(log_draws)
    if ends:
        ends = [float(np.exp(end)) for end in ends]
    return f"{np.exp(log_draws[0]):{form}} ({interval_text(ends, form)})"

def predictions(C, runs, metrics):
    """What the fits of a group's runs expect of a run of C FLOPs, as lines of text."""
    surface_fit = attempt(surface, runs)
    isoflop_fit = attempt(isoflop, runs, 'loss')
    metrics = ['loss', *(metric for metric in metrics if any(metric in run.scores for run in runs))]
    compute_fits = [attempt(compute, runs, metric) for metric in metrics]
    if 'E' in surface_fit:
        log_N, log_D, L = best_of(surface_fit['draws'], C)
        yield (f"  surface: N {estimate(log_N, '.3g')}, D {estimate(log_D, '.3g')}, "
               f"loss {L[0]:.4f} ({interval_text(interval(L), '.4f')})")
    if 'exponent_N' in isoflop_fit:
        log_G, p = isoflop_fit['draws']
        log_N = log_G + p * np.log(C)
        yield f"  iso-FLOP: N {estimate(log_N, '.3g')}, D {C / 6 / np.exp(log_N[0]):.3g}"
    for fit in compute_fits:
        if 'g' in fit:
            k, g = fit['draws']
            log_value = k + g * np.log(C)
            ends_before = fit['metric'] != 'loss' and np.exp(log_value[0]) > 1
            note = ", above 1: the power law ends before" if ends_before else ''
            yield f"  {fit['metric']} of the best model: {estimate(log_value, '.4f')}{note}"
    for fit in (surface_fit, isoflop_fit, *compute_fits):
        if 'refused' in fit:
            yield f"  refused: {fit['refused']}"
    factor = C / max(run.budget for run in runs)
    if factor > 10:
        yield f"  {factor:,.0f} times the compute of the largest run: a guess, not a prediction"

def main(cfg):
    if cfg.flops:
        C = cfg.flops
        print(f"{C:.4g} FLOPs")
    else:
        C = cfg.mfu * CHIPS[cfg.gpu].flops * cfg.gpus * cfg.hours * 3600
        print(f"{C:.4g} FLOPs: {cfg.hours:g} h on {cfg.gpus} x {cfg.gpu} at {cfg.mfu:.0%} of the peak")
    if cfg.runs:
        groups, metrics, _ = by_group(cfg)
        for name, runs in groups.items():
            print(f"{name}, {count(len(runs), 'run')}", *predictions(C, runs, metrics), sep='\n')
    print(rule_of_thumb(C, cfg.family, cfg.vocab, cfg.batch_tokens))

if __name__ == '__main__':
    run(main, Config)
