"""Scores by code usage: values worked out by hand, and laws that hold for every pool."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse, stats

from vqseg.active.scores import (
    code_density,
    coverage,
    coverage_gains,
    density_ratio,
    plug_in_entropy,
    power_noised,
    surprise,
    usage_shares,
)

quick = settings(max_examples=50, deadline=None)
CODES = 6
pools = st.lists(st.lists(st.integers(0, 9), min_size=CODES, max_size=CODES), min_size=1, max_size=6).map(
    lambda rows: np.array(rows, np.int64)
)


def csr(rows: NDArray | list[list[int]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows))


def densities(rows: NDArray, labelled: NDArray, smoothing: float = 0.5) -> tuple[NDArray, NDArray]:
    in_use = rows.sum(0) > 0
    return code_density(rows.sum(0), in_use, smoothing), code_density(labelled, in_use, smoothing)


@quick
@given(pools)
def test_shares_sum_to_one_wherever_there_is_a_token(rows: NDArray) -> None:
    shares = usage_shares(csr(rows))
    np.testing.assert_allclose(shares.sum(1), rows.any(1))
    np.testing.assert_allclose(shares.todense() * rows.sum(1, keepdims=True), rows, atol=1e-9)


@quick
@given(pools)
def test_plug_in_entropy_is_that_of_scipy(rows: NDArray) -> None:
    expected = [stats.entropy(row) if row.any() else 0 for row in rows]
    np.testing.assert_allclose(plug_in_entropy(csr(rows)), expected, atol=1e-9)


def test_density_by_hand() -> None:
    """Three of five tokens and half a token more of each of the two codes in use."""
    found = code_density(np.array([3.0, 2.0, 0.0]), np.array([True, True, False]), 0.5)
    np.testing.assert_allclose(found, [3.5 / 6, 2.5 / 6, 0])


@quick
@given(pools, st.floats(0.01, 10))
def test_density_is_a_distribution_over_the_codes_in_use(rows: NDArray, smoothing: float) -> None:
    in_use = rows.sum(0) > 0
    found = code_density(rows[0], in_use, smoothing)
    assert ((found > 0) == in_use).all()
    assert found.sum() == pytest.approx(float(in_use.any()))


def test_ratio_by_hand() -> None:
    """The pool uses both codes equally, the labels the first one alone."""
    pool, labelled = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    found = density_ratio(csr([[4, 0], [0, 4], [2, 2], [0, 0]]), pool, labelled).sum(1)
    first, second = math.log(0.5 / 0.9), math.log(0.5 / 0.1)
    np.testing.assert_allclose(found, [first, second, (first + second) / 2, 0])


@quick
@given(pools)
def test_ratio_of_the_whole_pool_is_a_divergence(rows: NDArray) -> None:
    """Over the pool as one study it is KL(f_P || f_L): never negative, 0 when the labels are the pool."""
    total = rows.sum(0)
    pool, labelled = densities(rows, rows[0], smoothing=1e-9)
    as_one = density_ratio(csr([total]), pool, labelled).sum(1)[0]
    assert as_one >= -1e-9
    if total.any():
        assert as_one == pytest.approx(stats.entropy(pool[pool > 0], labelled[pool > 0]), rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(density_ratio(csr(rows), *densities(rows, total)).sum(1), 0, atol=1e-9)


@quick
@given(pools, st.permutations(range(CODES)), st.integers(2, 5))
def test_neither_names_of_codes_nor_length_matter(rows: NDArray, names: list[int], times: int) -> None:
    def scores(studies: NDArray, others: NDArray) -> list[NDArray]:
        pool, labelled = densities(others, others[0])
        counts = csr(studies)
        return [density_ratio(counts, pool, labelled).sum(1), surprise(counts, labelled), plug_in_entropy(counts)]

    expected = scores(rows, rows)
    np.testing.assert_allclose(scores(rows[:, names], rows[:, names]), expected, atol=1e-9)
    np.testing.assert_allclose(scores(rows * times, rows), expected, atol=1e-9)


def test_an_outlier_surprises_but_is_not_typical_of_the_pool() -> None:
    """Nine studies of an unlabelled site and one broken scan: R takes the scan first, D a study of the site."""
    rows = np.array([[100, 0, 0]] * 10 + [[0, 100, 0]] * 9 + [[0, 0, 100]])
    pool, labelled = densities(rows, rows[0])
    by_ratio, by_surprise = density_ratio(csr(rows), pool, labelled).sum(1), surprise(csr(rows), labelled)
    assert by_ratio[10] > by_ratio[19] > by_ratio[0]
    assert by_surprise[19] >= by_surprise[10] > by_surprise[0]
    # Once a study of the site is taken, there is less left to learn from the others of it.
    _, later = densities(rows, rows[0] + rows[10])
    assert density_ratio(csr(rows), pool, later).sum(1)[10] < by_ratio[10]


def test_coverage_by_hand() -> None:
    weights = np.array([0.7, 0.2, 0.1])
    assert coverage(np.array([5.0, 10.0, 100.0]), weights, 10) == pytest.approx(0.35 + 0.2 + 0.1)
    np.testing.assert_allclose(
        coverage_gains(csr([[10, 0, 0], [0, 50, 50], [2, 0, 0]]), np.array([5.0, 0, 100.0]), weights, 10).sum(1),
        [0.35, 0.2, 0.14],
    )


@quick
@given(pools, st.floats(0.5, 20), st.data())
def test_coverage_is_monotone_and_submodular(rows: NDArray, enough: float, data: st.DataObject) -> None:
    weights = np.linspace(0.1, 1, CODES)
    small = data.draw(st.sets(st.integers(0, len(rows) - 1)))
    large = small | data.draw(st.sets(st.integers(0, len(rows) - 1)))
    few, many = (rows[sorted(chosen)].sum(0).astype(float) for chosen in (small, large))
    gains_few, gains_many = (coverage_gains(csr(rows), covered, weights, enough).sum(1) for covered in (few, many))
    assert (gains_many >= -1e-12).all()
    assert (gains_few >= gains_many - 1e-9).all()
    for row, gain in zip(rows, gains_many, strict=True):
        assert gain == pytest.approx(coverage(many + row, weights, enough) - coverage(many, weights, enough), abs=1e-9)


@quick
@given(pools.filter(lambda rows: len(rows) >= 3), st.floats(0.5, 20))
def test_greedy_coverage_is_as_good_as_the_theorem_says(rows: NDArray, enough: float) -> None:
    weights, covered = np.linspace(0.1, 1, CODES), np.zeros(CODES)
    for _ in range(2):
        covered = covered + rows[coverage_gains(csr(rows), covered, weights, enough).sum(1).argmax()]
    best = max(coverage(a + b, weights, enough) for a, b in itertools.combinations(rows.astype(float), 2))
    assert coverage(covered, weights, enough) >= (1 - 1 / math.e) * best - 1e-9


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_first_place_is_drawn_with_probability_proportional_to_the_power(beta: float) -> None:
    scores, draws = np.array([0.0, 1.0, 2.0, 4.0]), 20_000
    generator = np.random.default_rng(0)
    first = [power_noised(scores, beta, generator).argmax() for _ in range(draws)]
    expected = scores**beta / (scores**beta).sum() * draws
    found = np.bincount(first, minlength=4)
    assert found[0] == 0
    assert stats.chisquare(found[1:], expected[1:]).pvalue > 1e-4
    # The control: draws at another power are told apart.
    other = scores ** (2 * beta) / (scores ** (2 * beta)).sum() * draws
    assert stats.chisquare(found[1:], other[1:]).pvalue < 1e-6


def test_a_score_of_nothing_comes_last_whatever_the_noise() -> None:
    noised = power_noised(np.array([0.0, -1.0, 1e-9]), 1.0, np.random.default_rng(0))
    assert list(noised[:2]) == [-np.inf, -np.inf]
    assert np.isfinite(noised[2])
