"""
From the scores of items to numbers: accuracy with ties, its standard error, ZeroSpeech's averages, paired tests.

    won_i     1 where score(right) > score(wrong), 1/2 where equal, 0 elsewhere              (ZeroSpeech 2021; SIMS, Slam)
    plain     mean of won_i over the items                                                   (as slamkit prints it)
    value     items that say which `pair` they are a voice of: mean over a pair's voices, then over all pairs
              (ZeroSpeech 2021, tasks syntactic and lexical); others: plain
    types     the same within each `type` (sBLIMP: the phenomenon; sWUGGY: the band of frequency; BLiMP: the set)
    stderr    s / sqrt(n) over pairs, or over items that have none; s with n - 1

Two models on the same items: d_u = value_u(b) - value_u(a) for each unit u, a pair or an item.

    sign test   of the n units with d_u != 0, k have d_u > 0:  p = min(1, 2 P(X <= min(k, n - k))), X ~ Binomial(n, 1/2)
    interval    2.5th and 97.5th percentile of the mean of d over resamples of the units with replacement
                (paired bootstrap: Efron and Tibshirani 1993, chapter 13; Koehn 2004)
"""
import math

import numpy as np

from configurator import Refused

RESAMPLES = 10_000

def wins(right, wrong):
    """1 where right > wrong, 1/2 where equal, 0 elsewhere; arrays of scores -> float64 (n,)."""
    right, wrong = np.asarray(right), np.asarray(wrong)
    return (right > wrong) + 0.5 * (right == wrong)

def mean_and_stderr(values):
    """(mean, standard error of the mean) of a sequence; the error is None for fewer than two values."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None

def by_pair(items, won):
    """{unit: mean of won over its items}: a unit is an item's `pair`, or where it says none the item itself."""
    found = {}
    for item, w in zip(items, won, strict=True):
        unit = item.get('pair', item['id'])
        if 'pair' not in item and unit in found:
            raise Refused(f"item {unit} is there twice; ids must differ, or say which pair they are voices of")
        found.setdefault(unit, []).append(w)
    return {unit: float(np.mean(w)) for unit, w in found.items()}

def accuracy(items, won):
    """items: dicts with id and perhaps pair and type; won: (n,) -> {'value', 'stderr', 'n', ...}, a row of eval.json.

    `plain`, `pairs` and `types` come only where the items have pairs or types.
    """
    units = by_pair(items, won)
    value, stderr = mean_and_stderr(list(units.values()))
    row = {'value': value, 'stderr': stderr, 'n': len(items)}
    if any('pair' in item for item in items):
        row |= {'plain': mean_and_stderr(won)[0], 'pairs': len(units)}
    types = {item.get('type') for item in items} - {None}
    if types:
        row['types'] = {kind: float(np.mean(list(by_pair(*zip(*[(item, w) for item, w in zip(items, won)
                                                                if item.get('type') == kind])).values())))
                        for kind in sorted(types)}
    return row

def sign_test(differences):
    """Two-sided exact p of the median difference being 0; zeros are left out. 1 where nothing differs."""
    d = np.asarray(differences)
    n, k = int((d != 0).sum()), int((d > 0).sum())
    tail = sum(math.comb(n, i) for i in range(min(k, n - k) + 1)) # exact: whole numbers
    return min(1.0, float(2 * tail / 2 ** n)) if n < 1000 else _large_sign_test(n, min(k, n - k))

def _large_sign_test(n, k):
    """The same by logarithms, where 2^n is no float."""
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    top = max(logs)
    return min(1.0, 2 * math.exp(top) * math.fsum(math.exp(x - top) for x in logs))

def bootstrap(differences, resamples=RESAMPLES, seed=0):
    """(2.5th, 97.5th percentile) of the mean difference, the units drawn again with replacement."""
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    n = counts.sum() # a resample is how often it holds each value: few values, so many units cost nothing
    means = np.random.default_rng(seed).multinomial(n, counts / n, resamples) @ values / n
    return tuple(float(x) for x in np.percentile(means, (2.5, 97.5)))
