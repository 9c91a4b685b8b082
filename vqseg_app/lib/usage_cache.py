"""Code usage of studies, kept beside the model that counted it: one small file a study, model and image."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import numpy as np

from vqseg.files import new_file

logger = logging.getLogger(__name__)


class UsageCache:
    """Files `<folder>/<model identity>/<image identity>.npy`; several processes may read and write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, model: str, image: Path) -> np.ndarray | None:
        """Counts of an image by a model; none when they are not there or damaged."""
        try:
            counts = np.load(self._file(model, image), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return counts if counts.ndim == 1 and counts.dtype == np.int64 else None

    def put(self, model: str, image: Path, counts: np.ndarray) -> None:
        """Keep counts, whole or not at all; a full disk costs time later and must not fail the request."""
        try:
            with new_file(self._file(model, image)) as temporary, temporary.open("wb") as file:
                np.save(file, np.asarray(counts, np.int64), allow_pickle=False)
        except OSError as error:
            logger.warning("%s: its code usage is not kept (%s)", image.name, error)

    def forget_all_but(self, model: str) -> None:
        """Counts of another model say nothing about this one."""
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name != model:
                    shutil.rmtree(folder, ignore_errors=True)

    def _file(self, model: str, image: Path) -> Path:
        state = image.stat()
        identity = hashlib.sha256(f"{image.name}|{state.st_size}|{state.st_mtime_ns}".encode()).hexdigest()[:24]
        return self._folder / model / f"{identity}.npy"
