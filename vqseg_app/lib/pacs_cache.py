"""Series of the PACS on this machine's disk, each fetched once.

Of an image: the volume as NIfTI, and the headers of its instances, from which a DICOM SEG is written. Of a label: the
SEG as it came. Folders appear whole or not at all, so several processes can share the cache.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pydicom
from filelock import FileLock, Timeout

from vqseg.data.dicom_series import series_headers
from vqseg.data.reading import read_voxels
from vqseg.errors import ImageError
from vqseg.files import new_folder

from .memory_guard import MemoryGuard, declared_of
from .pacs import PACS, Series
from .temporary_files import temporary_folder
from .work_queue import stop_if_abandoned

# Beside what takes its place, under a name that says of which series it is.
_FORMER = ".former"


class PACSCache:
    """Args: `folder` of the cache; `largest_bytes` of images, beyond which those unused for longest are removed;
    `memory` in which each must fit."""

    def __init__(self, pacs: PACS, folder: Path, largest_bytes: float, memory: MemoryGuard) -> None:
        self._pacs, self._folder, self._largest, self._memory = pacs, folder, largest_bytes, memory
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def image(self, series: Series) -> Path:
        """The NIfTI file of a series. Raises `PACSError`, `TooLargeError`, and `ImageError` when it is no volume."""
        folder = self._folder / "images" / series.uid
        with self._alone(series):
            if not folder.exists() or _has_grown(series, folder):
                self._fetch_image(series, folder)
                self._make_room(folder)
            os.utime(folder)
        return folder / f"{series.uid}.nii.gz"

    def held(self, series: Series) -> Path | None:
        """The NIfTI file of a series where it is here already and whole."""
        folder = self._folder / "images" / series.uid
        return folder / f"{series.uid}.nii.gz" if folder.exists() and not _has_grown(series, folder) else None

    def headers(self, series: Series) -> Path:
        """Folder with the instances of a series without their pixels."""
        return self.image(series).parent / "headers"

    def label(self, segmentation: Series) -> Path:
        """The DICOM SEG of a series."""
        folder = self._folder / "labels" / segmentation.uid
        with self._alone(segmentation):
            if not folder.exists():
                with temporary_folder() as temporary, new_folder(folder) as made:
                    self._pacs.fetch(segmentation, Path(temporary))
                    shutil.copy(min(Path(temporary).iterdir()), made / "label.dcm")
        return folder / "label.dcm"

    def is_full(self) -> bool:
        """Whether one more image, of the size of the largest one, would take the place of another."""
        sizes = [_size(folder) for folder in self._images()]
        return sum(sizes) + max(sizes, default=0) >= self._largest

    def _fetch_image(self, series: Series, folder: Path) -> None:
        with temporary_folder() as temporary, new_folder(folder) as made:
            self._pacs.fetch(series, Path(temporary))
            try:
                self._memory.check_reading(declared_of(Path(temporary)), f"series {series.uid}")
                array, grid = read_voxels(Path(temporary))
            except ImageError as error:
                words = str(error).removeprefix(f"{temporary}: ").removeprefix(f"{temporary}/")
                raise ImageError(f"series {series.uid}", words) from None
            image = nib.Nifti1Image(array, grid.affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, made / f"{series.uid}.nii.gz")
            (made / "headers").mkdir()
            for number, header in enumerate(series_headers(Path(temporary)).values()):
                pydicom.dcmwrite(made / "headers" / f"{number:05d}.dcm", header)
            if folder.exists():
                folder.rename(made.with_name(f"{series.uid}{_FORMER}"))
                _size.cache_clear()

    def _make_room(self, keep: Path) -> None:
        images = sorted(self._images(), key=lambda folder: folder.stat().st_mtime)
        excess = sum(map(_size, images)) - self._largest
        for folder in images:
            if excess <= 0:
                return
            if folder != keep:
                excess -= _size(folder)
                shutil.rmtree(folder, ignore_errors=True)

    def _images(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            return [folder for folder in (self._folder / "images").iterdir() if not folder.name.startswith(".")]
        return []

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left half-written; whoever is writing holds the lock of the series."""
        for kind in ("images", "labels"):
            for written in (self._folder / kind).glob(".writing-*/*"):
                lock = self._lock(written.name.removesuffix(_FORMER))
                with contextlib.suppress(Timeout), lock.acquire(blocking=False):
                    shutil.rmtree(written.parent, ignore_errors=True)

    def _lock(self, uid: str) -> FileLock:
        return FileLock(self._folder / f".{uid}.lock")

    @contextlib.contextmanager
    def _alone(self, series: Series) -> Iterator[None]:
        """Nobody else fetches this series meanwhile. Raises `AbandonedError` while it waits for that."""
        lock = self._lock(series.uid)
        while not lock.is_locked:
            stop_if_abandoned()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=1)
        try:
            yield
        finally:
            lock.release()


def _has_grown(series: Series, folder: Path) -> bool:
    """Whether slices have come since it was fetched: a scanner sends them over minutes."""
    return sum(1 for _ in (folder / "headers").iterdir()) < series.size


@functools.cache
def _size(folder: Path) -> int:
    """Bytes in the folder of a series, which is only ever replaced as a whole."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
