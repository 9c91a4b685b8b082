"""How much memory the segmentation of an image takes, from its grid alone.

The figures are peaks of resident memory, rounded up, as they were measured on one core with torch 2.13 and MONAI 1.6.1:
0.4 to 11.5 million voxels, 3 to 9 classes, 2D and 3D, with signals. tests/unit/inference/test_memory.py measures again.
"""

from __future__ import annotations

import math

from vqseg.config import Config
from vqseg.data.preparation import working_shape
from vqseg.inference.predictor import PATCHES_IN_ONE_PIECE, SLICES_AT_A_TIME

__all__ = ["inference_bytes"]

_FLOAT32 = 4
# Bytes a voxel of the image: MONAI's anti-aliasing works in float64, and on copies.
_RESAMPLING = 88
# Bytes a voxel of the working grid: image, its weights and windows, sums over what overlaps; and for each class its
# probabilities as they are added up, as they are returned, and in the entropy.
_WORKING, _WORKING_CLASS = 40, 10
# Feature maps of full resolution, of the first level's channels, that all levels of a window take together; what a
# network needs however small its window is.
_FEATURE_MAPS, _ANY_NETWORK = 9, 128 * 2**20


def inference_bytes(shape: tuple[int, ...], spacing: tuple[float, ...], config: Config) -> int:
    """Bytes that a prediction takes at most, its float32 image of `shape` (X, Y, Z) in RAS+ order among them.

    `spacing` in mm; `config` is the planned one of a model. Memory of a GPU counts like any other.
    """
    data = config.data
    assert data.patch_size is not None
    image, prepared = math.prod(shape), working_shape(shape, spacing, data)
    working = math.prod(prepared)
    resampling = image * (_RESAMPLING if prepared != tuple(shape) else 0)
    classes = len(data.labels) + 1
    looking = image * _FLOAT32 + working * (_WORKING + _WORKING_CLASS * classes)
    at_a_time = SLICES_AT_A_TIME if data.spatial_dims == 2 else 1
    seen = min(PATCHES_IN_ONE_PIECE * math.prod(data.patch_size) * at_a_time, working)
    channels = config.model.channels[0]
    return max(resampling, looking) + seen * channels * _FLOAT32 * _FEATURE_MAPS + _ANY_NETWORK
