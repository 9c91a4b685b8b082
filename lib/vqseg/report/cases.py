"""The best and the worst cases of a validation, one slice of each, and what the codebook was used for until then.

They are kept in `<run>/last_training/cases.npz` when the validation is done, so that a report needs no prediction of
its own and can be written also of a training that was killed.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqseg.data.reading import Volume
from vqseg.data.slices import reading_axis
from vqseg.files import new_file

__all__ = ["Case", "CaseFile", "ExtremeCases", "read_cases", "write_cases"]

_EACH = 3
_FILE = Path("last_training") / "cases.npz"


@dataclass(frozen=True)
class Case:
    """The slice `index` of `depth` across `axis` of a study: `image` uint8, 0 to 255 without its darkest and brightest
    hundredth, `reference` and `prediction` uint8, all (first, second) of the other axes with their `spacing` in mm.
    `dice` of the whole study; 0 or 1 where neither mask holds anything."""

    study: str
    dice: float
    image: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    spacing: tuple[float, float]
    axis: int
    index: int
    depth: int


def case_of(
    study: str, dice: float, volume: Volume, reference: NDArray[np.uint8], prediction: NDArray[np.uint8]
) -> Case:
    """The slice with the most voxels that are in either mask; the middle one where none is."""
    axis = reading_axis(volume.spacing)
    others = tuple(other for other in range(3) if other != axis)
    counts = ((reference > 0) | (prediction > 0)).sum(axis=others)
    index = int(counts.argmax()) if counts.any() else len(counts) // 2
    plane = volume.array.take(index, axis).astype(np.float64)
    low, high = np.percentile(plane, (1, 99))
    grey = (255 * ((plane - low) / max(float(high - low), 1e-6)).clip(0, 1)).round().astype(np.uint8)
    spacing = (volume.spacing[others[0]], volume.spacing[others[1]])
    place = (slice(None),) * axis + (index,)
    return Case(study, dice, grey, reference[place].copy(), prediction[place].copy(), spacing, axis, index, len(counts))


@dataclass
class ExtremeCases:
    """Takes the cases of a validation one after another and keeps the three worst and the three best."""

    worst_first: list[Case] = field(default_factory=list)

    def add(
        self, study: str, dice: float, volume: Volume, reference: NDArray[np.uint8], prediction: NDArray[np.uint8]
    ) -> None:
        """Look at a study with its masks, all of one shape in RAS+ axis order."""
        case = case_of(study, dice, volume, reference, prediction)
        bisect.insort(self.worst_first, case, key=lambda one: (math.isfinite(one.dice), one.dice, one.study))
        if len(self.worst_first) > 2 * _EACH:
            del self.worst_first[_EACH]


@dataclass(frozen=True)
class CaseFile:
    """Of the validation at `step` of `training`: cases, worst first, and how often each code (K,) was chosen in the
    training until then, none without a codebook."""

    training: str
    step: int
    worst_first: Sequence[Case]
    usage: NDArray[np.int64] | None = None

    @property
    def worst(self) -> Sequence[Case]:
        """Up to three, the worst first."""
        return self.worst_first[: min(_EACH, -(-len(self.worst_first) // 2))]

    @property
    def best(self) -> Sequence[Case]:
        """Up to three others, the best first."""
        return self.worst_first[len(self.worst) :][::-1][:_EACH]


def write_cases(run: Path, kept: CaseFile) -> None:
    """Take the place of what was kept before."""
    words = [
        {"study": c.study, "dice": c.dice, "spacing": c.spacing, "axis": c.axis, "index": c.index, "depth": c.depth}
        for c in kept.worst_first
    ]
    head = json.dumps({"training": kept.training, "step": kept.step, "cases": words})
    arrays: dict[str, NDArray] = {"usage": np.zeros(0, np.int64) if kept.usage is None else kept.usage}
    for number, case in enumerate(kept.worst_first):
        arrays |= {f"{name}_{number}": getattr(case, name) for name in ("image", "reference", "prediction")}
    with new_file(run / _FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, head=np.array(head), **arrays)


def read_cases(run: Path, training: str, step: int) -> CaseFile | None:
    """What was kept of that validation, none when it is of another one or damaged."""
    try:
        # Opened here, for numpy leaves a damaged file open.
        with (run / _FILE).open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = dict(content)
        head = json.loads(str(arrays["head"]))
        if (head["training"], head["step"]) != (training, step):
            return None
        cases = [_case(words, number, arrays) for number, words in enumerate(head["cases"])]
    except Exception:  # there is no end to what numpy, zipfile and zlib raise for a damaged file
        return None
    usage = arrays["usage"]
    return CaseFile(training, step, cases, usage if usage.size else None)


def _case(words: Mapping[str, Any], number: int, arrays: Mapping[str, NDArray]) -> Case:
    planes: dict[str, Any] = {name: arrays[f"{name}_{number}"] for name in ("image", "reference", "prediction")}
    return Case(**planes | {**words, "spacing": tuple(words["spacing"])})
