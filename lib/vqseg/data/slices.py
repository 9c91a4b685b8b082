"""The one slice that stands for a volume where there is room for one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_seen", "reading_axis"]


def reading_axis(spacing: Sequence[float]) -> int:
    """Axis across the slices in which a volume was taken, the one with the widest `spacing` (mm); of a cube, axial."""
    return max((2, 1, 0), key=lambda axis: spacing[axis])


def as_seen(plane: NDArray) -> NDArray:
    """A plane (first, second) of a RAS+ volume as pixels (rows, columns): head or face up, the patient's right on the
    left, as radiologists look at it."""
    return np.ascontiguousarray(plane[::-1, ::-1].T)
