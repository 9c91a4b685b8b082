"""Which labelled studies are locked for validation. A patient is either trained on or validated on, for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqseg.data.studies import Study, patient_of
from vqseg.errors import DataError
from vqseg.files import read_json, write_json

__all__ = ["LockedSplit", "lock_split"]

_LEAST_PATIENTS = 3


@dataclass(frozen=True)
class LockedSplit:
    """Labelled studies: `training` and `validation`; `note` says in words what is validated on."""

    training: list[Study]
    validation: list[Study]
    note: str


def lock_split(labelled: Sequence[Study], fraction: float, pattern: str, path: Path) -> LockedSplit:
    """Split labelled studies by patient and keep the decision in `path`.

    A patient that was ever assigned keeps its side. New patients are assigned in an order that follows from their names
    alone, to validation until the share `fraction` of the labelled patients is reached (at least one patient, once
    there are three). So neither unlabelled studies nor the order of arrival change anything, and no later training can
    learn from a study that an earlier model was validated on. Raises `DataError` when the file is damaged.
    """
    sides = _read(path)
    patients = sorted({patient_of(study.id, pattern) for study in labelled}, key=_rank)
    locked = sum(sides.get(patient) == "validation" for patient in patients)
    enough = len(patients) >= _LEAST_PATIENTS and fraction > 0
    wanted = min(max(1, round(fraction * len(patients))), len(patients) - 1) if enough else 0
    for patient in patients:
        if patient not in sides:
            sides[patient] = "validation" if locked < wanted else "training"
            locked += sides[patient] == "validation"
    write_json(path, {"patients": sides})
    validation = [s for s in labelled if sides[patient_of(s.id, pattern)] == "validation"]
    training = [s for s in labelled if sides[patient_of(s.id, pattern)] == "training"]
    if validation:
        locked_ones = "1 locked study that is" if len(validation) == 1 else f"{len(validation)} locked studies that are"
        return LockedSplit(training, validation, f"{locked_ones} never trained on")
    if fraction == 0:
        why = "validation is switched off"
    elif not enough:
        why = f"fewer than {_LEAST_PATIENTS} labelled patients"
    else:
        why = "every labelled patient was trained on before; the next new one is kept for validation"
    return LockedSplit(training, [], f"the {len(training)} labelled studies it trains on ({why})")


def _read(path: Path) -> dict[str, str]:
    """Sides by patient. A damaged file is an error: taken for an empty one, it would let trained patients validate."""
    if not path.exists():
        return {}
    content = read_json(path)
    sides = content.get("patients") if isinstance(content, dict) else None
    if not isinstance(sides, dict) or not set(sides.values()) <= {"training", "validation"}:
        raise DataError(f"{path}: damaged; restore it from a copy, or remove it to lock a new validation split")
    return sides


def _rank(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()
