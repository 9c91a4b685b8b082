"""Laws of the numbers that say which strategy is better."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vqseg.simulation.statistics import (
    area,
    bootstrap_interval,
    bootstrap_ranks,
    compare,
    foreground_efficiency,
    holm,
    smallest_difference,
)

quick = settings(max_examples=50, deadline=None)
scores = st.floats(-1, 1)
rows = st.lists(scores, min_size=3, max_size=8)


@quick
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-5, 5))
def test_the_area_does_not_depend_on_the_unit_of_the_budget(values: list[float], unit: float, start: float) -> None:
    budgets = list(range(len(values)))
    scaled = [start + unit * budget for budget in budgets]
    assert area(budgets, values) == pytest.approx(area(scaled, values))
    assert min(values) - 1e-9 <= area(budgets, values) <= max(values) + 1e-9


def test_the_area_of_a_straight_line_is_its_middle() -> None:
    assert area([3, 6, 18], [0.0, 0.2, 1.0]) == pytest.approx(0.5)


@quick
@given(st.floats(0.5, 30), st.floats(0, 0.5), st.floats(0.6, 1))
def test_foreground_efficiency_is_the_rate_at_which_a_curve_saturates(rate: float, start: float, full: float) -> None:
    shares = np.linspace(0.02, 0.2, 6)
    values = full - (full - start) * np.exp(-rate * (shares - shares[0]))
    found = foreground_efficiency(shares.tolist(), values.tolist(), full)
    assert found == pytest.approx(rate, rel=1e-9)


def test_a_curve_that_reaches_what_all_masks_give_is_the_most_efficient() -> None:
    shares = [0.1, 0.2, 0.3, 0.4]
    short, reached, above = (
        foreground_efficiency(shares, values, 0.8)
        for values in ([0.5, 0.6, 0.65, 0.7], [0.5, 0.7, 0.79, 0.8], [0.5, 0.75, 0.81, 0.82])
    )
    assert short is not None
    assert reached is not None
    assert above is not None
    assert short < reached < above


@quick
@given(st.lists(st.floats(0.2, 0.8), min_size=5, max_size=5), st.floats(0.21, 0.8), st.floats(0.001, 0.1))
def test_no_other_rate_fits_better(values: list[float], full: float, step: float) -> None:
    curve = np.array([0.2, *values])
    beyond = step * np.arange(6)

    def squares(rate: float) -> float:
        return float(np.square(curve - full + (full - 0.2) * np.exp(-rate * beyond)).sum())

    found = foreground_efficiency(beyond.tolist(), curve.tolist(), full)
    assert found is not None
    others = [*np.linspace(-100, 1000, 3001), *(found * np.linspace(0.9, 1.1, 21))]
    assert squares(found) <= min(squares(rate) for rate in others if -100 <= rate <= 1000) + 1e-12


def test_what_is_reached_with_the_first_step_is_the_fastest() -> None:
    for values in ([0.5, 0.8, 0.8, 0.8], [0.5, 0.9, 0.95, 0.9]):
        assert foreground_efficiency([0.1, 0.2, 0.3, 0.4], values, 0.8) == 1000


def test_foreground_efficiency_is_not_told_where_no_foreground_is_annotated() -> None:
    assert foreground_efficiency([0.1, 0.1, 0.1], [0.5, 0.6, 0.7], 0.8) is None


@pytest.mark.parametrize(("values", "full"), [([0.5, 0.6, 0.7], 0.5), ([0.5, 0.4, 0.3], 0.45)])
def test_foreground_efficiency_is_not_told_where_all_masks_are_no_better(values: list[float], full: float) -> None:
    assert foreground_efficiency([0.1, 0.2, 0.3], values, full) is None


def test_just_above_the_smallest_difference_one_arm_of_many_is_told_from_none() -> None:
    noise = np.array([-0.02, 0.01, 0.0, 0.015, -0.005])
    arms = {f"arm{number}": noise.tolist() for number in range(18)}
    needed = smallest_difference(arms)
    assert needed is not None
    for factor, p_is_small in ((0.999, False), (1.001, True)):
        arms["arm3"] = (noise + factor * needed).tolist()
        assert (compare(arms)["arm3"].p < 0.05) == p_is_small
    assert smallest_difference({"one": [0.1]}) is None


@quick
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_stays_between_no_correction_and_bonferroni(values: dict[str, float]) -> None:
    corrected = holm(values)
    assert list(corrected) == list(values)
    for name, value in values.items():
        assert value <= corrected[name] <= min(1.0, value * len(values)) + 1e-12
    order = sorted(values, key=lambda name: values[name])
    assert [corrected[name] for name in order] == sorted(corrected.values())


def test_holm_of_a_worked_example() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )


@quick
@given(rows, st.floats(0.5, 0.99))
def test_an_interval_holds_the_mean_and_grows_with_its_level(values: list[float], level: float) -> None:
    assume(np.ptp(values) > 1e-3)
    low, high = bootstrap_interval(values, level)
    wider = bootstrap_interval(values, 1 - (1 - level) / 4)
    assert min(values) - 1e-9 <= wider[0] <= low <= high <= wider[1] <= max(values) + 1e-9
    assert bootstrap_interval(values, level) == (low, high)


def test_the_interval_of_many_seeds_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(size=400)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert bootstrap_interval(values.tolist(), 0.95) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.01
    )


def test_ranks_follow_the_means_and_share_a_tie() -> None:
    ranks = bootstrap_ranks({"worst": [0.1, 0.2], "best": [0.8, 0.9], "same": [0.8, 0.9]})
    assert ranks == {"worst": 3.0, "best": 1.5, "same": 1.5}


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_noise_is_hardly_ever_better(seeds: int) -> None:
    """Of families of four differences that are nothing but noise, at most one in twenty has a winner."""
    draw, found = np.random.default_rng(seeds), 0
    for _ in range(200):
        family = {str(number): draw.normal(size=seeds).tolist() for number in range(4)}
        found += any(comparison.better for comparison in compare(family).values())
    assert found <= 200 * 0.05 + 5


def test_a_clear_difference_is_found_and_its_opposite_is_not() -> None:
    clear = [0.10, 0.12, 0.09, 0.11, 0.10]
    found = compare({"more": clear, "less": [-value for value in clear], "none": [0.01, -0.01, 0.02, -0.02, 0.0]})
    assert {name: one.better for name, one in found.items()} == {"more": True, "less": False, "none": False}
    assert found["more"].low <= found["more"].difference <= found["more"].high


def test_more_comparisons_ask_for_more_evidence() -> None:
    values = [0.04, 0.01, 0.06, 0.03, 0.01]
    alone = compare({"arm": values})["arm"]
    among = compare({"arm": values} | {f"other {number}": values[::-1] for number in range(20)})["arm"]
    assert alone.better
    assert among.p > alone.p
    assert not among.better


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1]])
def test_one_seed_proves_nothing(values: list[float]) -> None:
    assert not compare({"arm": values})["arm"].better
