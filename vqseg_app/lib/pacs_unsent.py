"""Masks that were submitted and did not reach the PACS, kept here so that no work of an annotator is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from vqseg.files import new_file, read_json, sha256, write_json

_SUFFIXES = (".nii.gz", ".nii", ".bin", ".dcm")


class UnsentMasks:
    """Files `<folder>/unsent/<image>-<digest>.<suffix>`; `<folder>/unsent.json` says what each of them is."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._index = folder / "unsent", folder / "unsent.json"

    def keep(self, arrived: Path, image: str, told: Mapping[str, Any], write: Callable[[Path], None] | None) -> str:
        """Keep a mask, as it `arrived` or as `write` writes it (NIfTI), with what was `told` of it; returns its place.

        A mask that is sent again is kept once.
        """
        suffix = ".nii.gz" if write else next(filter(arrived.name.endswith, _SUFFIXES), "")
        file = self._folder / f"{image}-{sha256(arrived)[:12]}{suffix}"
        if write:
            write(file)
        else:
            with new_file(file) as temporary:
                shutil.copyfile(arrived, temporary)
        with FileLock(self._index.with_name(".unsent.lock")):
            write_json(self._index, {**(read_json(self._index) or {}), file.name: {"image": image, **told}})
        return f"unsent/{file.name}"
