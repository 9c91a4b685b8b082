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
        name = f"{_stem(arrived, image)}{suffix}"
        if write:
            write(self._folder / name)
        else:
            with new_file(self._folder / name) as temporary:
                shutil.copyfile(arrived, temporary)
        self._replace(_stem(arrived, image), {name: {"image": image, **told}})
        return f"unsent/{name}"

    def forget(self, arrived: Path, image: str) -> None:
        """Remove what was kept of a mask that reached the PACS after all: sent again it would hide newer labels."""
        self._replace(_stem(arrived, image), {})

    def _replace(self, stem: str, entries: Mapping[str, Any]) -> None:
        """Let there be nothing else of one mask, in the index and among the files, than what `entries` tell."""
        former = {f"{stem}{suffix}" for suffix in ("", *_SUFFIXES)} - set(entries)
        with FileLock(self._index.with_name(".unsent.lock")):
            index = read_json(self._index) or {}
            now = {name: told for name, told in index.items() if name not in former} | entries
            if now != index:
                write_json(self._index, now)
        for name in former:
            (self._folder / name).unlink(missing_ok=True)


def _stem(arrived: Path, image: str) -> str:
    return f"{image}-{sha256(arrived)[:12]}"
