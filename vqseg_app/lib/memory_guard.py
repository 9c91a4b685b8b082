"""Whether there is memory for an image, asked before its voxels are read: a server that runs out of it is killed."""

from __future__ import annotations

from pathlib import Path

import psutil

from vqseg.config import Config
from vqseg.data.header import DeclaredVoxels, read_declared
from vqseg.data.reading import Volume, is_nifti, read_grid
from vqseg.errors import ImageError
from vqseg.inference.memory import inference_bytes

from .errors_over_rest import TooLargeError

_GIB = 2**30


class MemoryGuard:
    """Args: `limit_gib` of memory for one image; none: what the machine has left at the time."""

    def __init__(self, limit_gib: float | None = None) -> None:
        self._limit = None if limit_gib is None else limit_gib * _GIB

    def check_file(self, image: Path, config: Config) -> None:
        """Reading an image and segmenting it with a planned `config`, by its header alone.

        The grid of a DICOM series is known only when it was read: `check_volume`. Raises `TooLargeError`, and
        `ImageError` when there is no header that can be read.
        """
        self.check_reading(declared_of(image), image.name)
        if is_nifti(image):
            grid = read_grid(image)
            self._check(inference_bytes(grid.canonical_shape, grid.spacing, config), image.name, "segmenting")

    def check_volume(self, volume: Volume, config: Config) -> None:
        """Segmenting an image that was read. Raises `TooLargeError`."""
        needed = inference_bytes(volume.array.shape, volume.spacing, config) - volume.array.nbytes
        self._check(needed, Path(volume.source).name, "segmenting")

    def check_reading(self, declared: DeclaredVoxels, name: str) -> None:
        """Reading an image or a mask. Raises `TooLargeError`."""
        self._check(declared.reading_bytes, name, "reading")

    def _check(self, needed: float, name: str, work: str) -> None:
        limit = psutil.virtual_memory().available if self._limit is None else self._limit
        if needed > limit:
            whose = "there are now" if self._limit is None else "--conf infer_memory_gib allows"
            raise TooLargeError(
                f"{name}: {work} it takes about {needed / _GIB:.2f} GiB of memory, and {whose} {limit / _GIB:.2f}"
            )


def declared_of(image: Path) -> DeclaredVoxels:
    """What a file, or the files of a DICOM series in a folder together, say of their voxels. Raises `ImageError`."""
    if not image.is_dir():
        return _declared_by(image)
    slices = [_declared_by(file) for file in sorted(image.iterdir()) if file.is_file()]
    if not slices:
        raise ImageError(image, "there is no file in the folder")
    voxels, bits = sum(part.voxels for part in slices), max(part.bits for part in slices)
    return DeclaredVoxels((voxels,), bits, any(part.scaled for part in slices))


def _declared_by(file: Path) -> DeclaredVoxels:
    try:
        with file.open("rb") as stream:
            return read_declared(stream, str(file))
    except OSError as error:
        raise ImageError(file, f"it cannot be read ({error.strerror})") from None
