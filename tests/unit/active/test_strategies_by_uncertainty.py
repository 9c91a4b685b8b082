"""Strategies by what the model is unsure of: what each of them is for."""

from __future__ import annotations

import numpy as np
import pytest
from study_signals import STRUCTURES, order, rank, signals

from vqseg.active.pool import Pool


@pytest.mark.parametrize("name", ["predictive_entropy", "perturbation"])
def test_each_structure_weighs_the_same_and_a_missing_one_nothing(name: str) -> None:
    studies = {
        "half": signals(entropy=(0.3, 0.1)),
        "one": signals(entropy=(0.5, np.nan)),
        "none": signals(entropy=(np.nan, np.nan)),
        "sure": signals(entropy=(0.0, 0.1)),
    }
    ranked = rank(name, Pool.of(studies, structures=STRUCTURES))
    assert [one.id for one in ranked] == ["one", "half", "sure", "none"]
    assert [one.score for one in ranked] == pytest.approx([0.5, 0.2, 0.05, -np.inf])
    assert [(part.name, part.value) for part in ranked[1].parts] == [("left", 0.3), ("right", 0.1)]
    assert "left is 0.300 nats" in ranked[1].reason


def test_clasp_pe_takes_the_structures_in_turn_and_follows_its_schedule() -> None:
    studies = {f"l{n}": signals(entropy=(1 + n / 10, 0.01)) for n in range(5)}
    studies |= {f"r{n}": signals(entropy=(0.01, 0.1 + n / 100)) for n in range(5)}
    late, early = (Pool.of(studies, structures=STRUCTURES, progress=progress) for progress in (1.0, 0.0))
    for seed in range(10):
        first, second, third, fourth, fifth = (one.id for one in rank("clasp_pe", late, picks=5, seed=seed)[:5])
        assert {first[0], second[0]} == {fourth[0], fifth[0]} == {"l", "r"}
        # Every third pick is made for the mean, which is the larger on this side.
        assert third[0] == "l"
    turns = [one.reason for one in rank("clasp_pe", late, picks=3)[:3]]
    assert sorted(("left" in reason, "right" in reason) for reason in turns[:2]) == [(False, True), (True, False)]
    assert "all structures together" in turns[2]
    best = {f"{side}{n}" for side in "lr" for n in (3, 4)}

    def exploited(pool: Pool) -> int:
        return sum(rank("clasp_pe", pool, seed=seed)[0].id in best for seed in range(100))

    assert exploited(late) > exploited(early) + 15
    # Predictive entropy alone never looks at the structure of which the model is surer.
    assert {study[0] for study in order("predictive_entropy", late, picks=4)[:4]} == {"l"}


def test_the_turns_of_clasp_pe_go_on_where_studies_are_asked_for_one_by_one() -> None:
    studies = {f"s{n}": signals(entropy=(n / 10, n / 10)) for n in range(4)}

    def reasons(taken: int) -> set[str]:
        pool = Pool.of(studies, structures=STRUCTURES, taken=taken)
        return {rank("clasp_pe", pool, seed=seed)[0].reason.split(";")[0].split(",")[0] for seed in range(20)}

    for taken in range(9):
        assert reasons(taken) == (
            {"it is the turn of all structures together"}
            if taken % 3 == 2
            else {f"it is the turn of {structure}" for structure in STRUCTURES}
        )


@pytest.mark.parametrize(("progress", "power"), [(0.0, 1.0), (0.5, 10.0), (1.0, 100.0)])
def test_the_noise_of_clasp_pe_fades_while_the_labelling_goes_on(progress: float, power: float) -> None:
    """When it is the turn of all structures it is the entropy under power noise, whose exponent goes from 1 to 100."""
    studies = {f"s{n}": signals(class_entropy=(n / 10, 0.3, 0.1)) for n in range(6)}
    pool = Pool.of(studies, structures=STRUCTURES, progress=progress, taken=2)
    for seed in range(5):
        found = rank("clasp_pe", pool, seed=seed)
        expected = rank("power_entropy", pool, seed=seed, power=power)
        assert (found[0].id, found[0].score) == (expected[0].id, pytest.approx(expected[0].score))


def test_power_entropy_is_the_entropy_when_there_is_no_noise() -> None:
    """That of all voxels, of which the background is one part."""
    studies = {f"s{n}": signals(class_entropy=(n / 10, 0.3, 0.1)) for n in range(6)}
    pool = Pool.of(studies, structures=STRUCTURES)
    assert order("power_entropy", pool, power=1e6) == ["s5", "s4", "s3", "s2", "s1", "s0"]
    best = rank("power_entropy", pool, power=1e6)[0]
    assert "0.9 nats" in best.reason
    assert [(part.name, part.value) for part in best.parts] == [("background", 0.5), ("left", 0.3), ("right", 0.1)]
    assert len({rank("power_entropy", pool, seed=seed)[0].id for seed in range(30)}) > 1


def test_disagreement_is_told_with_the_number_of_codes_it_was_drawn_from() -> None:
    told = Pool.of({"a": signals()}, structures=STRUCTURES, replacement_codes=15.94)
    assert "(effective number of replacement codes: 15.9)" in rank("perturbation", told)[0].reason
    assert "replacement" not in rank("predictive_entropy", told)[0].reason
