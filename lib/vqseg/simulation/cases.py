"""The studies of a simulation, read once and kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqseg.config import Data
from vqseg.data.preparation import PreparedStudy, prepare_study, prepare_volume
from vqseg.data.reading import Volume, read_image, read_mask
from vqseg.data.studies import Study
from vqseg.errors import DataError

__all__ = ["Case", "load_cases"]


@dataclass(frozen=True)
class Case:
    """A study with its `volume`, the `image` (X, Y, Z) that the network sees of it on the working grid, its true `mask`
    uint8 (X, Y, Z) on the volume's grid, and the arrays to train on."""

    volume: Volume
    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    prepared: PreparedStudy

    @property
    def id(self) -> str:
        return self.prepared.study.id

    @cached_property
    def identity(self) -> str:
        """Changes with image and mask, wherever their files are."""
        words = f"{self.id} {self.volume.array.dtype} {self.mask.shape} {self.volume.spacing}"
        arrays = (np.ascontiguousarray(self.volume.array), np.ascontiguousarray(self.mask))
        return hashlib.sha256(words.encode() + b"".join(array.tobytes() for array in arrays)).hexdigest()[:24]

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
        # Every round looks at it; resampling it anew was a tenth of a round with ACDC.
        image = prepare_volume(volume, data)
        cases[study.id] = Case(volume, image, mask, prepare_study(study, data, cache))
    return cases
