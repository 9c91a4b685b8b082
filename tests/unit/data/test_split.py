"""The lock: what was trained on is never validated on, and the other way round."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqseg.data.split import LockedSplit, lock_split
from vqseg.data.studies import Study, patient_of
from vqseg.errors import VQSegError

quick = settings(max_examples=25, deadline=None)
growth = st.lists(st.sets(st.integers(0, 30), max_size=8), min_size=1, max_size=5)
fractions = st.floats(0, 0.99)


def volumes(patients: set[int]) -> list[Study]:
    """Two volumes of each patient."""
    return [Study(f"p{n:02d}_{time}", Path("i")) for n in sorted(patients) for time in ("ED", "ES")]


def sides(split: LockedSplit) -> dict[str, str]:
    found = {patient_of(study.id): "training" for study in split.training}
    return found | {patient_of(study.id): "validation" for study in split.validation}


@quick
@given(growth, fractions)
def test_no_patient_ever_changes_sides(batches: list[set[int]], fraction: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, known, seen = Path(folder) / "split.json", set(), {}
        for batch in batches:
            known |= batch
            split = lock_split(volumes(known), fraction, "", path)
            now = sides(split)
            assert {patient: now[patient] for patient in seen} == seen
            seen = now
            assert sorted(s.id for s in [*split.training, *split.validation]) == sorted(s.id for s in volumes(known))
            assert not {patient_of(s.id) for s in split.training} & {patient_of(s.id) for s in split.validation}
            # Also when a mask is taken away and comes back.
            lock_split(volumes(set(sorted(known)[::2])), fraction, "", path)


@quick
@given(st.sets(st.integers(0, 30), min_size=3), st.floats(0.01, 0.99))
def test_both_sides_have_a_patient_once_there_are_three(patients: set[int], fraction: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        split = lock_split(volumes(patients), fraction, "", Path(folder) / "split.json")
    assert split.validation
    assert split.training


@quick
@given(st.permutations(sorted(volumes(set(range(9))), key=lambda study: study.id)))
def test_order_of_the_list_changes_nothing(order: list[Study]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first = lock_split(sorted(order, key=lambda study: study.id), 0.3, "", Path(folder) / "one.json")
        second = lock_split(order, 0.3, "", Path(folder) / "two.json")
    assert sides(first) == sides(second)


def test_share_is_that_of_the_patients(tmp_path: Path) -> None:
    split = lock_split(volumes(set(range(20))), 0.25, "", tmp_path / "split.json")
    assert len(split.validation) == 2 * 5
    assert "10 locked studies" in split.note


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_patients_are_all_trained_on_and_the_note_says_so(count: int, tmp_path: Path) -> None:
    split = lock_split(volumes(set(range(count))), 0.2, "", tmp_path / "split.json")
    assert split.validation == []
    assert len(split.training) == 2 * count
    assert "fewer than 3 labelled patients" in split.note
    assert f"{2 * count} labelled studies it trains on" in split.note


def test_patients_trained_on_stay_and_the_next_new_one_is_kept(tmp_path: Path) -> None:
    lock_split(volumes({1, 2}), 0.2, "", tmp_path / "split.json")
    split = lock_split(volumes({1, 2, 3}), 0.2, "", tmp_path / "split.json")
    assert {patient_of(study.id) for study in split.validation} == {"p03"}


def test_switched_off_validation_is_named(tmp_path: Path) -> None:
    split = lock_split(volumes(set(range(5))), 0, "", tmp_path / "split.json")
    assert split.validation == []
    assert "switched off" in split.note
    split = lock_split(volumes(set(range(5))), 0.2, "", tmp_path / "split.json")
    assert "every labelled patient was trained on before" in split.note


def test_pattern_decides_who_is_a_patient(tmp_path: Path) -> None:
    studies = [Study(f"scan{n}-of-{patient}", Path("i")) for patient in "abcd" for n in range(3)]
    split = lock_split(studies, 0.3, r"of-(\w)", tmp_path / "split.json")
    assert {study.id[-1] for study in split.validation}.isdisjoint({study.id[-1] for study in split.training})
    assert len(split.validation) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"patients": []}', '{"patients": {"p01": "nonsense"}}'])
def test_damaged_lock_is_never_taken_for_no_lock(text: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(VQSegError, match=r"split\.json"):
        lock_split(volumes({1, 2, 3, 4}), 0.3, "", path)
    assert path.read_text(encoding="utf-8") == text
