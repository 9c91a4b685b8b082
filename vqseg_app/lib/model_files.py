"""What a model says of studies, kept beside it: small files, each whole or not at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from vqseg.files import new_file

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ModelFiles:
    """Files `<folder>/<model identity>/<name>`; several processes may read and write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, model: str, name: str, read: Callable[[BinaryIO], T]) -> T | None:
        """What `read` makes of a file; none when it is not there or damaged, which `read` says by a `ValueError`."""
        try:
            with (self._folder / model / name).open("rb") as file:
                return read(file)
        except (OSError, ValueError):
            return None

    def write(self, model: str, name: str, write: Callable[[BinaryIO], None]) -> None:
        """Keep what `write` writes; a full disk costs time later and must not fail the request."""
        try:
            with new_file(self._folder / model / name) as temporary, temporary.open("wb") as file:
                write(file)
        except OSError as error:
            logger.warning("what model %s says of a study is not kept (%s)", model, error)

    def forget_all_but(self, model: str) -> None:
        """What another model says is nothing to compare with."""
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name != model:
                    shutil.rmtree(folder, ignore_errors=True)
