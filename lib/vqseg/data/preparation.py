"""From a volume to the array the network sees, and the cache of such arrays on disk.

Arrays lie in the cache as `.npy` and are memory-mapped, so that a training holds a few patches in memory and never the
data set. An entry's name is a hash of the file's identity and of the settings that shaped it: nothing goes stale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Resize
from numpy.typing import NDArray
from torch.nn import functional

from vqseg.config import Data
from vqseg.data.reading import MAX_VOXELS, Volume, read_grid, read_image, read_mask
from vqseg.data.studies import Study
from vqseg.errors import ImageError, LabelError
from vqseg.files import new_file

__all__ = ["PreparedStudy", "prepare_label", "prepare_study", "prepare_volume", "resize_classes", "working_shape"]

_FOREGROUND_VOXELS = 2000
_ROUNDING = 1e-6  # of float32, relative


@dataclass(frozen=True)
class PreparedStudy:
    """Paths of memory-mappable arrays on the working grid.

    `image` float16 (X, Y, Z); `label` uint8 (X, Y, Z) and `foreground` int32 (n, 4), rows of value, x, y, z, or none;
    `guide` float16 (slices, C, h, w), features of the foundation model, or none.
    """

    study: Study
    image: Path
    label: Path | None
    foreground: Path | None
    guide: Path | None = None


def working_shape(shape: tuple[int, ...], spacing: tuple[float, ...], data: Data) -> tuple[int, ...]:
    """Shape of a volume after resampling to the working spacing of a planned configuration."""
    assert not isinstance(data.spacing, str), "the configuration has not been planned"
    return tuple(
        max(1, round(size * own / wanted)) if wanted else size
        for size, own, wanted in zip(shape, spacing, data.spacing, strict=True)
    )


def prepare_volume(volume: Volume, data: Data) -> NDArray[np.float32]:
    """Image (X, Y, Z) float32 on the working grid with normalised intensities. Raises `ImageError`."""
    array = volume.array
    shape = working_shape(array.shape, volume.spacing, data)
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise ImageError(volume.source, f"voxels of {volume.spacing} mm would become {shape}; is its unit wrong?")
    if shape != array.shape:
        resize = Resize(shape, mode="trilinear", align_corners=False, anti_aliasing=True)
        array = np.asarray(resize(array[None]))[0]
    return _normalise(array, data.window)


def prepare_label(mask: NDArray[np.uint8], spacing: tuple[float, ...], data: Data) -> NDArray[np.uint8]:
    """Mask (X, Y, Z) on the working grid: each class is resampled linearly and the largest wins."""
    shape = working_shape(mask.shape, spacing, data)
    if shape == mask.shape:
        return mask
    classes = range(len(data.labels) + 1)
    return resize_classes((torch.from_numpy(mask == value).float() for value in classes), shape)


def resize_classes(scores: Iterable[torch.Tensor], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Class of the largest score at each voxel of `shape`, from the classes' scores (X, Y, Z), one after another."""
    best = torch.full(shape, -torch.inf)
    winner = torch.zeros(shape, dtype=torch.uint8)
    for value, score in enumerate(scores):
        if score.shape != shape:
            score = functional.interpolate(score[None, None], shape, mode="trilinear", align_corners=False)[0, 0]
        larger = score > best
        winner[larger] = value
        best = torch.where(larger, score, best)
    return winner.numpy()


def prepare_study(study: Study, data: Data, cache: Path) -> PreparedStudy:
    """Prepare a study's image, and its label if it has one, unless the cache has them.

    Raises `ImageError` or `LabelError`.
    """
    settings = data.model_dump(include={"spacing", "window"})
    image = cache / f"{_identity(study.image, settings, ImageError)}.image.npy"
    if not image.exists():
        _save(image, prepare_volume(read_image(study.image), data).astype(np.float16))
    if study.label is None:
        return PreparedStudy(study, image, None, None)
    settings["labels"] = data.labels
    key = _identity(study.label, settings | {"image": image.name}, LabelError)
    label, foreground = cache / f"{key}.label.npy", cache / f"{key}.foreground.npy"
    if not foreground.exists():
        grid = read_grid(study.image)
        mask = prepare_label(read_mask(study.label, grid, data.labels), grid.spacing, data)
        _save(label, mask)
        _save(foreground, _foreground(mask))
    return PreparedStudy(study, image, label, foreground)


def _normalise(array: NDArray[np.float32], window: tuple[float, float] | None) -> NDArray[np.float32]:
    if window is not None:
        low, high = window
        return (array.clip(low, high) - (low + high) / 2) / ((high - low) / 2)
    # A percentile of every tenth voxel of a large volume is as good and ten times faster.
    flat = array.reshape(-1)
    low, high = np.percentile(flat[:: max(1, len(flat) // 10**6)], (0.5, 99.5))
    # Resampling, and the mean of many equal values, are not quite their value: nothing is to be made of that.
    if high - low <= _ROUNDING * max(abs(low), abs(high)):
        return np.zeros_like(array)
    array = array.clip(low, high)
    return ((array - array.mean()) / max(float(array.std()), 1e-6)).astype(np.float32)


def _foreground(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Rows of value, x, y, z: at most `_FOREGROUND_VOXELS` voxels of each class, evenly spread over the class."""
    rows = [np.zeros((0, 4), np.int32)]
    for value in np.unique(mask[mask > 0]):
        voxels = np.argwhere(mask == value)
        kept = voxels[np.linspace(0, len(voxels) - 1, min(len(voxels), _FOREGROUND_VOXELS)).astype(int)]
        rows.append(np.column_stack([np.full(len(kept), value), kept]).astype(np.int32))
    return np.concatenate(rows)


def _identity(path: Path, settings: Mapping, error: type[ImageError]) -> str:
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as cause:
        raise error(path, f"it cannot be read ({cause.strerror})") from None
    return hashlib.sha256(repr((stamps, sorted(settings.items()))).encode()).hexdigest()[:32]


def _save(path: Path, array: NDArray) -> None:
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
