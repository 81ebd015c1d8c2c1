"""Ties, averages, standard errors and paired tests: by hand, by brute force, against scipy-free definitions."""
import itertools
import math

import numpy as np
import pytest

from configurator import Refused
from evaluation.scores import accuracy, bootstrap, by_pair, mean_and_stderr, sign_test, wins
from speech.words import edit_distance


def test_ties_count_half():
    assert wins([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]).tolist() == [0, 0.5, 1]

def test_mean_and_stderr_of_known_values():
    assert mean_and_stderr([0, 1, 1, 0]) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    assert mean_and_stderr([1]) == (1.0, None)

def official(rows):
    """ZeroSpeech 2021 as its tables are made: a score a voice, the mean of a pair's voices, the means of pairs; slowly."""
    pairs, types = {}, {}
    for pair, kind, right, wrong in rows:
        pairs.setdefault(pair, (kind, []))[1].append(1.0 if right > wrong else 0.5 if right == wrong else 0.0)
    for kind, scores in pairs.values():
        types.setdefault(kind, []).append(sum(scores) / len(scores))
    every = [score for scores in types.values() for score in scores]
    return sum(every) / len(every), {kind: sum(s) / len(s) for kind, s in types.items()}

def test_official_scoring_on_made_sets_with_ties_and_voices():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = [(f'p{p}', f't{p % 3}', int(rng.integers(0, 3)), int(rng.integers(0, 3)))
                for p in range(30) for _ in range(1 + int(rng.integers(0, 4)))] # few values: many ties; voices differ in number
        items = [{'id': f'{pair}/{i}', 'pair': pair, 'type': kind} for i, (pair, kind, *_) in enumerate(rows)]
        row = accuracy(items, wins([r for *_, r, _ in rows], [w for *_, w in rows]))
        value, types = official(rows)
        assert abs(row['value'] - value) < 1e-12 and row['types'].keys() == types.keys()
        assert all(abs(row['types'][kind] - types[kind]) < 1e-12 for kind in types)
        plain = np.mean([1.0 if r > w else 0.5 if r == w else 0.0 for *_, r, w in rows])
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
    assert sign_test(d) == pytest.approx(min(1, sum(abs(sum(p)) >= observed for p in patterns) / len(patterns)))

def test_sign_test_of_many_goes_on_smoothly_from_exact_arithmetic():
    exact = lambda n, k: 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2 ** n
    assert sign_test([1] * 540 + [-1] * 460) == pytest.approx(exact(1000, 460), rel=1e-9)
    assert 0 < sign_test([1] * 3000 + [-1] * 2000) < 1e-40

def test_bootstrap_interval_is_that_of_the_normal_where_there_are_many():
    d = np.random.default_rng(1).choice([-1, -0.5, 0, 1], 4000, p=[.1, .2, .4, .3])
    low, high = bootstrap(d)
    error = 1.96 * d.std(ddof=1) / math.sqrt(len(d))
    assert low == pytest.approx(d.mean() - error, abs=0.1 * error) and high == pytest.approx(d.mean() + error, abs=0.1 * error)
    assert bootstrap([0.5, 0.5]) == (0.5, 0.5)

def test_edit_distance_is_levenshtein_s():
    def slow(a, b): # by its recursion
        return max(len(a), len(b)) if not a or not b else min(
            slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))
    assert edit_distance('kitten', 'sitting') == 3 and edit_distance([], 'ab') == 2 == edit_distance('ab', ())
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = (rng.integers(3, size=rng.integers(6)).tolist() for _ in range(2))
        assert edit_distance(a, b) == slow(a, b)
