"""
From the scores of items to numbers: accuracy with ties, standard errors, ZeroSpeech's averages,
paired tests.

    won_i     1 where score(right) > score(wrong), 1/2 where equal, else 0 (ZeroSpeech 2021; SIMS, Slam)
    plain     mean of won_i over the items (as slamkit prints it)
    value     items that name a `pair`, which several voices speak: mean over a pair's voices, then
              over the pairs (ZeroSpeech 2021, tasks syntactic and lexical); other items: plain
    types     value within each `type` (sBLIMP: the phenomenon; sWUGGY: the band of frequency; BLiMP:
              the set)
    stderr    s / sqrt(n) over pairs, or over items that have none; s with n - 1

Ratio of sums, such as loss per token or errors per word, over units u (documents, utterances):

    ratio     r = sum x_u / sum w_u
    stderr    sqrt(n / (n - 1) * sum (x_u - r w_u)^2) / sum w_u, over the n units with w_u > 0
              (Cochran 1977, chapter 6). A long unit has a large x_u without being worse than others:
              only its residual x_u - r w_u says how the ratio varies.

Two models on the same items: d_u = value_u(b) - value_u(a) for each unit u, a pair or an item.

    sign test   of the n units with d_u != 0, k have d_u > 0:  p = min(1, 2 P(X <= min(k, n - k))),
                X ~ Binomial(n, 1/2)
    interval    2.5th and 97.5th percentile of the mean of d over resamples of the units with replacement
                (paired bootstrap: Efron and Tibshirani 1993, chapter 13; Koehn 2004)

Runs that differ in their seed alone, with one number x_s for each of n seeds:

    interval    mean -+ t s / sqrt(n), t the 97.5th percentile of Student's t with n - 1 degrees of freedom
"""
import math

import numpy as np

from configurator import Refused

RESAMPLES = 10_000
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262) # t of 1, 2, ... degrees of freedom

# --------------------------------------------------------------------------------------------------
# one model

def wins(right, wrong):
    """1 where right > wrong, 1/2 where equal, else 0; arrays of scores -> float64 (n,)."""
    right = np.asarray(right)
    wrong = np.asarray(wrong)
    return (right > wrong) + 0.5 * (right == wrong)

def mean_and_stderr(values):
    """(mean, standard error of the mean) of a sequence; the error is None for fewer than two values."""
    values = np.asarray(values, dtype=np.float64)
    stderr = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), stderr

def ratio_and_stderr(sums, counts):
    """(sum of sums / sum of counts, its standard error by the residuals).

    Arrays (n,), counts not all 0. A single unit has no residual and so gets the error 0, not None.
    """
    total = counts.sum()
    ratio = sums.sum() / total
    n = int((counts > 0).sum())
    squares = ((sums - ratio * counts) ** 2).sum()
    return float(ratio), float(math.sqrt(squares * n / max(n - 1, 1)) / total)

def by_pair(items, won):
    """{unit: mean of won over its items}: a unit is an item's `pair`, or the item itself where it names none.

    Raises Refused where two items without a pair have the same id.
    """
    won_of = {}
    for item, w in zip(items, won, strict=True):
        unit = item.get('pair', item['id'])
        if 'pair' not in item and unit in won_of:
            raise Refused(f"item {unit} is there twice; ids must differ, or name the pair they are voices of")
        won_of.setdefault(unit, []).append(w)
    return {unit: float(np.mean(values)) for unit, values in won_of.items()}

def accuracy(items, won):
    """A row of eval.json, {'value', 'stderr', 'n', ...}, of items (dicts with id, perhaps pair and type).

    won: (n,). `plain` and `pairs` come only where items name pairs, `types` only where they have types.
    """
    units = by_pair(items, won)
    value, stderr = mean_and_stderr(list(units.values()))
    row = {'value': value, 'stderr': stderr, 'n': len(items)}
    if any('pair' in item for item in items):
        row['plain'] = mean_and_stderr(won)[0]
        row['pairs'] = len(units)
    types = {item.get('type') for item in items} - {None}
    for kind in sorted(types):
        indices = [i for i, item in enumerate(items) if item.get('type') == kind]
        units = by_pair([items[i] for i in indices], [won[i] for i in indices])
        row.setdefault('types', {})[kind] = float(np.mean(list(units.values())))
    return row

# --------------------------------------------------------------------------------------------------
# two models

def sign_test(differences):
    """Two-sided exact p of the median difference being 0; zeros are left out. 1 where nothing differs."""
    differences = np.asarray(differences)
    n = int((differences != 0).sum())
    n_above = int((differences > 0).sum())
    k = min(n_above, n - n_above)
    if n >= 1000: # 2^n is no float
        return _large_sign_test(n, k)
    tail = sum(math.comb(n, i) for i in range(k + 1)) # whole numbers: exact
    return min(1.0, float(2 * tail / 2 ** n))

def _large_sign_test(n, k):
    """The same tail by logarithms."""
    logs = []
    for i in range(k + 1):
        log_binomial = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        logs.append(log_binomial - n * math.log(2))
    top = max(logs)
    return min(1.0, 2 * math.exp(top) * math.fsum(math.exp(x - top) for x in logs))

def bootstrap(differences, resamples=RESAMPLES, seed=0):
    """(2.5th, 97.5th percentile) of the mean difference over resamples of the units with replacement."""
    # A resample is determined by how often it holds each value. There are few different values, so
    # many units cost nothing.
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    n = counts.sum()
    resampled_counts = np.random.default_rng(seed).multinomial(n, counts / n, resamples)
    means = resampled_counts @ values / n
    return tuple(float(x) for x in np.percentile(means, (2.5, 97.5)))

# --------------------------------------------------------------------------------------------------
# several seeds

def student_interval(values):
    """(mean, low, high): the mean of a number from each of 2 to 10 seeds, and its 95 % interval by Student's t."""
    n = len(values)
    if not 2 <= n <= len(STUDENT) + 1:
        raise Refused(f"{n} seeds: expected 2 to {len(STUDENT) + 1} for an interval")
    mean, stderr = mean_and_stderr(values)
    half_width = STUDENT[n - 2] * stderr
    return mean, mean - half_width, mean + half_width

def student_p(values):
    """The two-sided p-value of a mean of 0 (Student's t) of a number from each of 2 seeds or more."""
    mean, stderr = mean_and_stderr(values)
    if stderr == 0:
        return float(mean == 0)
    df = len(values) - 1
    # With t = sqrt(df) tan(x), the density is a multiple of cos(x)^(df - 1).
    x = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(x) ** (df - 1)
    above = x >= np.arctan(abs(mean) / stderr / np.sqrt(df))
    return float(density[above].sum() / density.sum())
