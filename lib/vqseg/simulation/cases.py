"""The studies of a simulation, read once and kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqseg.config import Data
from vqseg.data.preparation import PreparedStudy, prepare_study
from vqseg.data.reading import Volume, read_image, read_mask
from vqseg.data.studies import Study
from vqseg.errors import DataError

__all__ = ["Case", "load_cases"]


@dataclass(frozen=True)
class Case:
    """A study with its `volume`, its true `mask` uint8 (X, Y, Z) on the volume's grid, and the arrays to train on."""

    volume: Volume
    mask: NDArray[np.uint8]
    prepared: PreparedStudy

    @property
    def id(self) -> str:
        return self.prepared.study.id

    @property
    def identity(self) -> str:
        """Changes with the files that the case was made of: a prepared file is called by their hash."""
        assert self.prepared.foreground is not None
        return self.prepared.foreground.name

    @property
    def without_label(self) -> PreparedStudy:
        return replace(self.prepared, label=None, foreground=None)

    @property
    def foreground_voxels(self) -> int:
        """What an annotator would have to paint."""
        return int(np.count_nonzero(self.mask))

    def slices(self, axis: int | None) -> int:
        """Slices along `axis`; of a volume without slices those along its coarsest axis, the last of equal ones."""
        coarsest = 2 - int(np.argmax(self.volume.spacing[::-1]))
        return self.mask.shape[coarsest if axis is None else axis]


def load_cases(studies: Sequence[Study], data: Data, cache: Path) -> dict[str, Case]:
    """Cases by id, in their order. Raises `DataError` for a study without a mask, `ImageError` or `LabelError`."""
    cases = {}
    for study in sorted(studies, key=lambda study: study.id):
        if study.label is None:
            raise DataError(f"{study.id}: has no mask; a simulation needs those of all studies")
        volume = read_image(study.image)
        mask = read_mask(study.label, volume.grid, data.labels)
        cases[study.id] = Case(volume, mask, prepare_study(study, data, cache))
    return cases
