"""Whether there is memory for an image, asked before its voxels are read: a server that runs out of it is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from starlette.exceptions import HTTPException

from vqseg.config import Config
from vqseg.data.header import DeclaredVoxels, read_declared
from vqseg.data.reading import Volume, is_nifti, read_grid, read_image
from vqseg.errors import ImageError
from vqseg.inference.memory import inference_bytes

from .errors_over_rest import TooLargeError
from .work_queue import RETRY_AFTER

_GIB = 2**30
# Each that waits takes one of the 40 threads that answer everything else.
_MOST_WAITING, _LONGEST_WAIT_SECONDS = 16, 30.0


class MemoryGuard:
    """Args: `limit_gib` of memory for one image; none: what the machine has left at the time. Thread-safe."""

    def __init__(self, limit_gib: float | None = None) -> None:
        self._limit = None if limit_gib is None else limit_gib * _GIB
        self._turns = threading.Condition()
        self._taken = self._waiting = 0
        self._whole = 0.0

    @contextmanager
    def room_for(self, declared: DeclaredVoxels, name: str) -> Iterator[None]:
        """The block reads a file that has arrived. What others read meanwhile takes memory, so it may have to wait.

        Raises `TooLargeError` when it would not fit alone, and `HTTPException` (503) when it is not its turn in time.
        """
        needed = declared.reading_bytes
        with self._turns:
            self._wait_for(needed, name)
            self.check_reading(declared, name)
            self._taken += needed
        try:
            yield
        finally:
            with self._turns:
                self._taken -= needed
                self._turns.notify_all()

    def _wait_for(self, needed: int, name: str) -> None:
        if self._has_room(needed):
            return
        words = f"{name}: other files that have arrived take the memory for reading it: try again later"
        if self._waiting >= _MOST_WAITING:
            raise HTTPException(503, words, RETRY_AFTER)
        self._waiting += 1
        try:
            if not self._turns.wait_for(lambda: self._has_room(needed), _LONGEST_WAIT_SECONDS):
                raise HTTPException(503, words, RETRY_AFTER)
        finally:
            self._waiting -= 1

    def _has_room(self, needed: int) -> bool:
        """Whether it fits beside the files that are being read; where there are none, whether it fits is no question
        of waiting."""
        if not self._taken:
            # While some are read, what the machine has left does not say how much more they will take.
            self._whole = self._left()
            return True
        return needed <= min(self._left(), self._whole - self._taken)

    def check_file(self, image: Path, config: Config | None = None) -> None:
        """Reading an image, and with a planned `config` segmenting it, by its header alone.

        The grid of a DICOM series is known only when it was read: `check_volume`. Raises `TooLargeError`, and
        `ImageError` when there is no header that can be read.
        """
        self.check_reading(declared_of(image), image.name)
        if config is not None and is_nifti(image):
            grid = read_grid(image)
            self._check(inference_bytes(grid.canonical_shape, grid.spacing, config), image.name, "segmenting")

    def read(self, image: Path, config: Config) -> Volume:
        """An image that is to be segmented with a planned `config`. Raises `TooLargeError` and `ImageError`."""
        self.check_file(image, config)
        volume = read_image(image)
        self.check_volume(volume, config)
        return volume

    def check_volume(self, volume: Volume, config: Config) -> None:
        """Segmenting an image that was read. Raises `TooLargeError`."""
        needed = inference_bytes(volume.array.shape, volume.spacing, config) - volume.array.nbytes
        self._check(needed, Path(volume.source).name, "segmenting")

    def check_reading(self, declared: DeclaredVoxels, name: str) -> None:
        """Reading an image or a mask. Raises `TooLargeError`."""
        self._check(declared.reading_bytes, name, "reading")

    def _check(self, needed: float, name: str, work: str) -> None:
        limit = self._left()
        if needed > limit:
            whose = "there are now" if self._limit is None else "--conf infer_memory_gib allows"
            raise TooLargeError(
                f"{name}: {work} it takes about {needed / _GIB:.2f} GiB of memory, and {whose} {limit / _GIB:.2f}"
            )

    def _left(self) -> float:
        return float(psutil.virtual_memory().available) if self._limit is None else self._limit


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
