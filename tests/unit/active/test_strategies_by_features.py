"""Strategies by the features of whole studies: what each of them is for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from study_signals import STRUCTURES, WIDTH, order, rank, signals

from vqseg.active.pool import Pool
from vqseg.inference.signals import StudySignals


def grid() -> dict[str, StudySignals]:
    """Two tight groups, a large one at 0 and a small one at 10, and a lonely study at 100."""
    places = {"a0": 0.0, "a1": 0.1, "a2": 0.2, "a3": 0.3, "b0": 10.0, "b1": 10.1, "z": 100.0}
    return {name: signals(features=[place, 0, 0]) for name, place in places.items()}


def test_coreset_takes_the_farthest_and_typical_the_middle_of_the_largest_group() -> None:
    labelled = [signals(features=[10.05, 0, 0])]
    pool = Pool.of(grid(), labelled, structures=STRUCTURES)
    assert order("coreset", pool, picks=2)[:2] == ["z", "a0"]
    assert (
        order(
            "typical",
            Pool.of({name: one for name, one in grid().items() if name != "z"}, labelled, structures=STRUCTURES),
        )[0][0]
        == "a"
    )
    # A lonely study is no group to learn from, as long as one of many is missing.
    pool = Pool.of(grid(), [*labelled, signals(features=[100.0, 0, 0])], structures=STRUCTURES)
    assert order("typical", pool)[0] in {"a1", "a2"}
    # A few outliers come behind a group that is labelled already.
    many = {f"m{n}": signals(features=[n / 10, 0, 0]) for n in range(6)}
    few = {f"few{n}": signals(features=[50 + n / 10, 0, 0]) for n in range(5)}
    pool = Pool.of(many | few, [signals(features=[0.25, 0, 0])], structures=STRUCTURES)
    assert order("typical", pool)[0] in many
    # Once one of the group is taken, the next is not its neighbour.
    places = {"a": 0, "b": 50, "c": 90}
    apart = {f"{group}{n}": signals(features=[at + n / 10, 0, 0]) for group, at in places.items() for n in range(4)}
    assert {study[0] for study in order("typical", Pool.of(apart, structures=STRUCTURES), picks=3)[:3]} == {
        "a",
        "b",
        "c",
    }


def test_typical_tells_the_group_and_what_its_score_is_made_of() -> None:
    labelled = [signals(features=[place, 0, 0]) for place in (10.05, 100)]
    ranking = rank("typical", Pool.of(grid(), labelled, structures=STRUCTURES), picks=2)
    assert ranking[0].reason == "it is typical of a group of 4 studies, none of them labelled or reserved"
    assert next(one for one in ranking if one.id == "z").reason.endswith("of 2 studies, 1 of them labelled or reserved")
    alone = rank("typical", Pool.of(grid(), labelled[:1], structures=STRUCTURES), picks=2)
    assert next(one for one in alone if one.id == "z").reason == "it is alone in a group of its own"
    # The group that has no open study takes no place.
    near = {name: grid()[name] for name in ("a0", "a1")}
    pool = Pool.of(near, [signals(features=[place, 0, 0]) for place in (0.05, 0.15, 500)], structures=STRUCTURES)
    assert 0 < rank("typical", pool, most_clusters=2)[0].score <= 1
    for one in ranking:
        assert one.score == pytest.approx(sum(part.value for part in one.parts))


@pytest.mark.parametrize("seed", range(5))
def test_typical_finds_the_groups_without_labels_among_many(seed: int) -> None:
    """Of sixty groups with ten open studies each every other one holds two labelled ones."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(0, 100, (60, 3))
    near = {f"{group:02}_{n}": centre + draw.normal(size=3) for group, centre in enumerate(centres) for n in range(10)}
    labelled = [signals(features=centre + draw.normal(size=3)) for centre in centres[::2] for _ in range(2)]
    pool = Pool.of({study: signals(features=at) for study, at in near.items()}, labelled, structures=STRUCTURES)
    ranking = rank("typical", pool, seed=seed, picks=10)
    assert len(ranking) == len(near)
    assert all(int(one.id[:2]) % 2 for one in ranking[:10])
    assert len({one.id[:2] for one in ranking[:10]}) == 10


def closeness(features: NDArray, labelled: list[NDArray]) -> float:
    """G of MaxHerding as its paper has it, with the bandwidth of the strategy."""
    distances = np.linalg.norm(features[:, None] - features, axis=-1)
    bandwidth = np.median(distances[distances > 0])
    near = [np.exp(-(np.linalg.norm(features - one, axis=-1) ** 2) / (2 * bandwidth**2)) for one in labelled]
    return float(np.mean(np.max(near, axis=0))) if near else 0.0


def test_max_herding_adds_most_to_how_close_every_study_is() -> None:
    """Each score is what labelling the study would add, after every pick; and it is greedy."""
    draw = np.random.default_rng(0)
    features, known = draw.normal(size=(12, WIDTH)), draw.normal(size=(2, WIDTH))
    studies = {f"s{number:02}": signals(features=row) for number, row in enumerate(features)}
    pool = Pool.of(studies, [signals(features=row) for row in known], structures=STRUCTURES)
    labelled = list(known)
    for one in rank("max_herding", pool, picks=4)[:4]:
        gains = [closeness(features, [*labelled, row]) - closeness(features, labelled) for row in features]
        assert one.score == pytest.approx(max(gains))
        assert one.id == f"s{int(np.argmax(gains)):02}"
        labelled.append(features[int(np.argmax(gains))])


def test_coreset_begins_in_the_middle() -> None:
    places = {"a": 0.0, "b": 5.0, "c": 10.0}
    pool = Pool.of({name: signals(features=[place, 0, 0]) for name, place in places.items()}, structures=STRUCTURES)
    assert order("coreset", pool, picks=2) == ["b", "a", "c"]
    only = Pool.of({"a": signals()}, structures=STRUCTURES)
    assert "middle" in rank("coreset", only)[0].reason
