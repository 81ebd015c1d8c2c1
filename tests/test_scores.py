"""Ties, averages, standard errors and paired tests: by hand, by brute force, against scipy-free definitions."""
import itertools
import math

import numpy as np
import pytest

from configurator import Refused
from evaluation.scores import (
    STUDENT,
    accuracy,
    bootstrap,
    by_pair,
    mean_and_stderr,
    ratio_and_stderr,
    sign_test,
    student_interval,
    student_p,
    wins,
)
from speech.words import edit_distance


def test_ties_count_half():
    assert wins([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]).tolist() == [0, 0.5, 1]

def test_mean_and_stderr_of_known_values():
    assert mean_and_stderr([0, 1, 1, 0]) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    assert mean_and_stderr([1]) == (1.0, None)

def test_a_ratios_error_is_that_of_a_mean_where_units_are_equally_long():
    ratio, stderr = ratio_and_stderr(np.array([0.0, 4, 8, 12]), np.array([4, 4, 4, 4]))
    mean, stderr_of_mean = mean_and_stderr([0, 1, 2, 3])
    assert (ratio, stderr) == (mean, pytest.approx(stderr_of_mean))

def test_a_ratios_error_is_the_spread_of_its_residuals_over_units_that_count():
    sums = np.array([1.0, 6, 0])
    counts = np.array([1, 2, 0]) # the last has no say; ratio 7 / 3, residuals 1 - 7 / 3 and 6 - 14 / 3
    assert ratio_and_stderr(sums, counts) == (7 / 3, pytest.approx(math.sqrt(2 * (4 / 3) ** 2 * 2 / 1) / 3))
    assert ratio_and_stderr(np.array([2.0, 6]), np.array([1, 3])) == (2.0, 0.0) # long, but no worse

def won(right, wrong):
    """What wins gives, for two numbers."""
    if right == wrong:
        return 0.5
    return 1.0 if right > wrong else 0.0

def official(rows):
    """(value, types) as ZeroSpeech 2021 makes its tables: a score a voice, means over pairs' voices, then over pairs.

    rows: (pair, type, score of the right, score of the wrong).
    """
    voices = {}
    type_of = {}
    for pair, kind, right, wrong in rows:
        voices.setdefault(pair, []).append(won(right, wrong))
        type_of[pair] = kind
    pairs = {pair: sum(scores) / len(scores) for pair, scores in voices.items()}
    types = {}
    for pair, score in pairs.items():
        types.setdefault(type_of[pair], []).append(score)
    means = {kind: sum(scores) / len(scores) for kind, scores in types.items()}
    return sum(pairs.values()) / len(pairs), means

def test_official_scoring_on_made_sets_with_ties_and_voices():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = []
        for p in range(30):
            for _ in range(1 + int(rng.integers(0, 4))): # voices differ in number
                right, wrong = rng.integers(0, 3, 2).tolist() # few values: many ties
                rows.append((f'p{p}', f't{p % 3}', right, wrong))
        items = [{'id': f'{pair}/{i}', 'pair': pair, 'type': kind} for i, (pair, kind, _, _) in enumerate(rows)]
        right = [row[2] for row in rows]
        wrong = [row[3] for row in rows]
        row = accuracy(items, wins(right, wrong))
        value, types = official(rows)
        assert abs(row['value'] - value) < 1e-12 and row['types'].keys() == types.keys()
        assert all(abs(row['types'][kind] - types[kind]) < 1e-12 for kind in types)
        plain = np.mean([won(r, w) for r, w in zip(right, wrong)])
        assert abs(row['plain'] - plain) < 1e-12 and (row['n'], row['pairs']) == (len(rows), 30)

def test_voices_are_averaged_before_pairs_so_a_pair_of_many_voices_weighs_no_more():
    items = [{'id': f'a{i}', 'pair': 'a'} for i in range(9)] + [{'id': 'b', 'pair': 'b'}]
    row = accuracy(items, [1] * 9 + [0])
    assert (row['value'], row['plain'], row['stderr']) == (0.5, 0.9, 0.5)

def test_an_id_that_is_there_twice_is_refused():
    with pytest.raises(Refused, match='item x is there twice'):
        by_pair([{'id': 'x'}, {'id': 'x'}], [1, 0])

@pytest.mark.parametrize('d', [[0, 0], [1], [1, 1, 1, 1, 1, -1], [-1, 1, 0, 0.5, 0.25, -0.5, 1]])
def test_sign_test_equals_the_sum_over_all_sign_patterns(d):
    d = [x for x in d if x]
    observed = abs(sum(np.sign(d)))
    patterns = list(itertools.product((-1, 1), repeat=len(d)))
    n_extreme = sum(abs(sum(pattern)) >= observed for pattern in patterns)
    assert sign_test(d) == pytest.approx(min(1, n_extreme / len(patterns)))

def test_sign_test_of_many_goes_on_smoothly_from_exact_arithmetic():
    exact = 2 * sum(math.comb(1000, i) for i in range(461)) / 2 ** 1000
    assert sign_test([1] * 540 + [-1] * 460) == pytest.approx(exact, rel=1e-9)
    assert 0 < sign_test([1] * 3000 + [-1] * 2000) < 1e-40

def test_bootstrap_interval_is_that_of_the_normal_where_there_are_many():
    d = np.random.default_rng(1).choice([-1, -0.5, 0, 1], 4000, p=[.1, .2, .4, .3])
    low, high = bootstrap(d)
    error = 1.96 * d.std(ddof=1) / math.sqrt(len(d))
    assert low == pytest.approx(d.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(d.mean() + error, abs=0.1 * error)
    assert bootstrap([0.5, 0.5]) == (0.5, 0.5)

def test_95_percent_of_students_distribution_lie_between_its_bounds():
    for degrees, bound in enumerate(STUDENT, 1):
        # t = x sqrt(degrees) / sqrt(1 - x^2) has the density of the t distribution for x of (1 - x^2)^(degrees / 2 - 1)
        x = np.sin(np.linspace(0, math.pi / 2, 200_001)) # the density in x is infinite at 1 for one degree
        angle_density = np.cos(np.linspace(0, math.pi / 2, 200_001)) ** (degrees - 1)
        inside = x * math.sqrt(degrees) < bound * np.sqrt(1 - x ** 2)
        assert angle_density[inside].sum() / angle_density.sum() == pytest.approx(0.95, abs=2e-4)

def test_students_interval_of_known_seeds():
    mean, low, high = student_interval([1, 2, 3, 4, 5]) # s = sqrt(2.5)
    assert mean == 3
    assert (high - mean, mean - low) == pytest.approx((2.776 * math.sqrt(0.5), 2.776 * math.sqrt(0.5)))
    with pytest.raises(Refused, match='1 seeds: expected 2 to 10'):
        student_interval([1])

def test_a_p_value_is_student_s():
    """At the bounds of the 95 % interval p is 0.05; with 3 seeds, 2 degrees of freedom, there is a closed form."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 10):
        values = rng.normal(1, 1, n)
        mean, low, _ = student_interval(values)
        assert student_p(values - mean + (mean - low)) == pytest.approx(0.05, abs=1e-3)
    values = np.array([1.0, 2.0, 4.0])
    t = values.mean() / (values.std(ddof=1) / math.sqrt(3))
    assert student_p(values) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-4)
    assert student_p(-values) == student_p(values)
    assert (student_p([0, 0, 0]), student_p([1, 1, 1])) == (1, 0)

def test_edit_distance_is_levenshtein_s():
    def slow(a, b): # by its recursion
        if not a or not b:
            return max(len(a), len(b))
        replaced = slow(a[1:], b[1:]) + (a[0] != b[0])
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, replaced)
    assert edit_distance('kitten', 'sitting') == 3
    assert edit_distance([], 'ab') == edit_distance('ab', ()) == 2
    rng = np.random.default_rng(0)
    for _ in range(100):
        a = rng.integers(3, size=rng.integers(6)).tolist()
        b = rng.integers(3, size=rng.integers(6)).tolist()
        assert edit_distance(a, b) == slow(a, b)
