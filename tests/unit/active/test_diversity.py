"""Choice by features: the k-centre's guarantee, and what is typical of a cluster."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqseg.active.diversity import distance_to_nearest, typicality

quick = settings(max_examples=40, deadline=None)
clouds = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(size=(9, 3)))


def farthest_first(features: NDArray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int(distance_to_nearest(features, features[chosen]).argmax()))
    return chosen


@quick
@given(clouds, st.integers(1, 4))
def test_farthest_first_has_at_most_twice_the_best_radius(features: NDArray, count: int) -> None:
    def radius(chosen: list[int]) -> float:
        return float(distance_to_nearest(features, features[chosen]).max())

    best = min(radius(list(chosen)) for chosen in itertools.combinations(range(len(features)), count))
    assert radius(farthest_first(features, count)) <= 2 * best + 1e-9


def test_distances_by_hand() -> None:
    features = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    np.testing.assert_allclose(distance_to_nearest(features, features[:1]), [0, 5, 1])
    assert np.isinf(distance_to_nearest(features, features[:0])).all()


@quick
@given(clouds, st.integers(2, 5))
def test_the_middle_of_a_cluster_is_more_typical_than_an_outlier(features: NDArray, neighbours: int) -> None:
    far = np.vstack([features, features.mean(0) + 100])
    found = typicality(far, neighbours)
    assert found.argmin() == len(features)
    np.testing.assert_allclose(typicality(far * 2, neighbours), found / 2)


@pytest.mark.parametrize("count", [0, 1])
def test_without_others_there_is_no_distance(count: int) -> None:
    found = typicality(np.zeros((count, 2)))
    assert found.shape == (count,)
    assert np.isinf(found).all()
