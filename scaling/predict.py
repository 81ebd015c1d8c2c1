"""
What to train for a budget: the papers' rule of thumb with its evidence, and what the fits of finished runs expect.

    python -m scaling.predict --flops=6.86e20                            the rule of SIMS 5
    python -m scaling.predict --runs=out/suite --flops=1e14              and the fits
    python -m scaling.predict --hours=24 --gpus=8 --gpu=H200             a budget in hours
"""
from dataclasses import dataclass

import numpy as np

from configurator import Refused, run
from files import read_json
from scaling.curves import attempt, best_of, compute, interval, interval_text, isoflop, surface
from scaling.models import models_of
from scaling.runs import PUBLISHED, allocations, by_group, count
from training.cost import CHIPS

# SIMS 5 trained for 2.1e18, 5e18, 2e19, 6e19 and 2e20 FLOPs. Up to 5e18 its smallest size was best in tSC; at 2e20 7B
# was, by far, on 4.2B tokens (4.38B by C = 6ND). It advises the largest size from 25k steps and 4.5B tokens on, but
# that best run had fewer, so its tokens are the least here.
STUDIED = 2.1e18
SMALLEST_UNTIL = 5e18
LARGEST_FROM = 2e20
ENOUGH = {'steps': 25_000, 'tokens': 4.2e9}

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
    family: str = 'qwen2.5' # qwen2.5, llama3.2, qwen3, olmo2, tiny, or folders and hub ids, separated by commas
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

def allocation(C, models, batch_tokens):
    """What SIMS 5 says of a budget -> (size or None, why), of models {size: Model} by rising size."""
    if C < STUDIED:
        return None, f"none for less than its smallest budget, {STUDIED:g} FLOPs"
    if C <= SMALLEST_UNTIL:
        return next(iter(models)), f"up to {SMALLEST_UNTIL:g} FLOPs the smallest size has the best tSC"
    if C < LARGEST_FROM:
        return None, (f"between {SMALLEST_UNTIL:g} and {LARGEST_FROM:g} FLOPs a size above the smallest, "
                      "which Figure 4 draws and the text does not name")
    least = f"{ENOUGH['steps']:,} steps and {ENOUGH['tokens'] / 1e9:g}B tokens"
    n_tokens = {size: C / 6 / model.n_params for size, model in models.items()}
    enough = [size for size in models
              if n_tokens[size] >= ENOUGH['tokens'] and n_tokens[size] / batch_tokens >= ENOUGH['steps']]
    if not enough:
        return None, f"no size would see {least}"
    return enough[-1], f"from {LARGEST_FROM:g} FLOPs on the largest size that sees {least}"

def evidence(C):
    """The rows of SIMS Table 2 within a factor of 4 of C FLOPs, or else the nearest ones, as lines of text."""
    rows = [row for row in read_json(PUBLISHED.parent, PUBLISHED.name, 'the repository')['rows']
            if row['table'] == 'SIMS 2']
    distances = [abs(np.log(row['flops'] / C)) for row in rows]
    farthest = max(min(distances), np.log(4))
    yield "SIMS Table 2 (papers/published.json), multi-speaker, speech to speech:"
    for row, distance in zip(rows, distances):
        if distance <= farthest:
            yield (f"  {row['model']:19} {row['params'] / 1e9:4.1f}B {row['flops']:9.3g} FLOPs   "
                   f"sSC {row['ms_ssc/S']:.2f}   tSC {row['ms_tsc/S']:.2f}")
    if min(distances) > np.log(4):
        yield f"  there is no row within a factor of 4 of {C:.4g} FLOPs"

def rule_of_thumb(C, family, vocab, batch_tokens):
    """The papers' advice for a budget with the rows that it rests on, and what each size would see: lines of text."""
    models = models_of(family, vocab=vocab)
    size, why = allocation(C, models, batch_tokens)
    yield f"rule of SIMS 5: {why}" + (f": {family} {size}" if size else '')
    for name, model in models.items():
        n_tokens = C / 6 / model.n_params
        yield (f"{'->' if name == size else '':2} {name:8} N {model.n_params:13,} {n_tokens:9.2e} tokens "
               f"{n_tokens / batch_tokens:11,.0f} steps")
    if vocab == 'speech':
        yield ("  that is for interleaved models; for textless ones SIMS 5 cites 463M parameters on 72B tokens at 2e20 "
               "FLOPs (Cuervo and Marxer)")
    yield from evidence(C)
    yield from other_allocations()

def other_allocations():
    """The published exponents of allocation as lines of text: what ten times the compute is spent on."""
    for row in allocations():
        yield (f"{row['source']}, {row['runs']} runs of {row['least_flops']:g} to {row['most_flops']:g} FLOPs: "
               f"N ~ C^{row['exponent_N']}, D ~ C^{row['exponent_D']}, so for ten times the compute "
               f"{10 ** row['exponent_N']:.1f} x the parameters and {10 ** row['exponent_D']:.1f} x the tokens")
        yield f"  its tokens: {row['tokens']}"

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
    print(*rule_of_thumb(C, cfg.family, cfg.vocab, cfg.batch_tokens), sep='\n')

if __name__ == '__main__':
    run(main, Config)
