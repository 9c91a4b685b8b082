"""Where the voxels of a file lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

__all__ = ["LPS_TO_RAS", "Grid"]

# DICOM and ITK count to the patient's left and back, NIfTI to the right and front.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a file: `shape` (X, Y, Z) and the 4x4 `affine` from voxels to RAS millimetres."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def orientation(self) -> NDArray[np.float64]:
        """nibabel's orientation: for each file axis the RAS axis it runs along and its sign."""
        return nib.io_orientation(self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres on the R, A and S axes."""
        return tuple(nib.affines.voxel_sizes(self.canonical_affine))

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """Affine of the same voxels in RAS+ axis order."""
        return self.affine @ nib.orientations.inv_ornt_aff(self.orientation, self.shape)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape of the same voxels in RAS+ axis order."""
        shape = [0, 0, 0]
        for size, axis in zip(self.shape, self.orientation[:, 0], strict=True):
            shape[int(axis)] = size
        return shape[0], shape[1], shape[2]

    def to_ras(self, array: NDArray) -> NDArray:
        """Bring an array of the file's axis order to RAS+ axis order, as a copy with ordinary strides."""
        return nib.apply_orientation(array, self.orientation).copy()

    def restore(self, array: NDArray) -> NDArray:
        """Bring an array of RAS+ axis order back to the file's axis order."""
        axes = self.orientation[:, 0].astype(int)
        restored = array.transpose(axes)
        flipped = [axis for axis, sign in enumerate(self.orientation[:, 1]) if sign < 0]
        return np.flip(restored, flipped).copy()

    def displacement(self, other: Grid) -> float:
        """Largest distance in millimetres between the corners of two grids of one shape."""
        corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], np.float64)
        corners[:, :3] *= np.array(self.shape) - 1
        return float(np.linalg.norm(corners @ (self.affine - other.affine).T, axis=1).max())
