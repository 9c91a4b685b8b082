"""Every label that was ever kept, with who, when, and the model version that proposed it: nothing here is overwritten.

Files `<folder>/<image>.<number>.nii.gz`, or `.nii`, and `<image>.<number>.json`, without which the mask does not count.
For a studies folder this is `.vqseg/label_versions/` in it, so that versions go where the studies go. Not in `labels/`:
there monailabel 0.8.5 takes every folder for a label tag. Images it looks for in the studies folder itself alone, and
whoever reads `labels/final/` finds what is final and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from vqseg.errors import DataError
from vqseg.files import new_file, sha256

from .errors_over_rest import UnknownError

logger = logging.getLogger(__name__)
_NUMBER = re.compile(r"[0-9]{4,9}")
_OWN = ("user", "model_version", "label_info")


class LabelVersion(BaseModel):
    """`version` is a number, or the series UID of a DICOM SEG, whose `sha256` only the PACS knows. `user` is none for a
    file that nobody submitted, `model_version` for a mask that no model of this server proposed, as far as is known;
    `time` is UTC, ISO 8601; `info` whatever else came with the label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: str
    image: str
    tag: str
    time: str
    user: str | None
    model_version: str | None
    sha256: str | None
    label_info: list[Any]
    info: dict[str, Any]

    def label_details(self) -> dict[str, Any]:
        """What an index of labels holds of this one."""
        return {**self.info, "user": self.user, "model_version": self.model_version, "label_info": self.label_info}


class LabelVersions:
    """Several threads and processes may keep versions at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read_before: dict[str, LabelVersion] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def keep(
        self,
        image: str,
        tag: str,
        write: Callable[[Path], Any],
        info: Mapping[str, Any],
        *,
        suffix: str = ".nii.gz",
        time: datetime | None = None,
    ) -> LabelVersion:
        """Keep what `write` writes into a file with this suffix, whole or not at all, as the next version of a label,
        made now unless a `time` is given. Raises `OSError`.
        """
        check_name(image)
        with FileLock(self.folder / ".lock"):
            number = f"{max((int(known) for known in self._numbers(image)), default=0) + 1:04d}"
            mask, names = self.folder / f"{image}.{number}{suffix}", info.get("label_info")
            with new_file(mask) as temporary:
                write(temporary)
                temporary.chmod(0o444)
            version = LabelVersion(
                version=number,
                image=image,
                tag=tag,
                time=utc(time) if time else utc_now(),
                user=_text(info.get("user")),
                model_version=_text(info.get("model_version")),
                sha256=sha256(mask),
                label_info=names if isinstance(names, list) else [],
                info={key: value for key, value in info.items() if key not in _OWN},
            )
            with new_file(self._described(image, number)) as temporary:
                temporary.write_text(version.model_dump_json(indent=1) + "\n", encoding="utf-8")
                temporary.chmod(0o444)
        return version

    def of(self, image: str) -> list[LabelVersion]:
        """Every version of the labels of an image, the oldest first."""
        return [version for number in self._numbers(image) if (version := self._read(image, number)) is not None]

    def all(self) -> list[LabelVersion]:
        """Every version of the labels of all images. They never change, so each file is read once."""
        names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".json")}
        for name in names - self._read_before.keys():
            image, _, number = name.removesuffix(".json").rpartition(".")
            if _NUMBER.fullmatch(number) and (version := self._read(image, number)):
                self._read_before[name] = version
        return [version for name, version in list(self._read_before.items()) if name in names]

    def holds(self, image: str, file: Path) -> bool:
        """Whether a label is among the versions of those of an image, byte by byte."""
        checksum = sha256(file)
        # The newest first, for the live label is one of the last.
        kept = (self._read(image, number) for number in reversed(self._numbers(image)))
        return any(version is not None and version.sha256 == checksum for version in kept)

    def find(self, image: str, number: str) -> LabelVersion:
        """Raises `UnknownError`."""
        return version_named(self.of(image), number)

    def file(self, version: LabelVersion) -> Path:
        """The mask, as it was kept. Raises `DataError` when it is another by now."""
        for suffix in (".nii.gz", ".nii"):
            file = self.folder / f"{version.image}.{version.version}{suffix}"
            if file.is_file() and sha256(file) == version.sha256:
                return file
        raise DataError(
            f"label version {version.version} of {version.image!r} is damaged: its file is not what was kept"
        )

    def _numbers(self, image: str) -> list[str]:
        check_name(image)
        with contextlib.suppress(FileNotFoundError):
            names = [
                name[len(image) + 1 : -len(".json")] for name in os.listdir(self.folder) if self._is_of(image, name)
            ]
            return sorted(filter(_NUMBER.fullmatch, names), key=int)
        return []

    @staticmethod
    def _is_of(image: str, name: str) -> bool:
        return name.startswith(f"{image}.") and name.endswith(".json")

    def _described(self, image: str, number: str) -> Path:
        return self.folder / f"{image}.{number}.json"

    def _read(self, image: str, number: str) -> LabelVersion | None:
        try:
            return LabelVersion.model_validate_json(self._described(image, number).read_bytes())
        except (OSError, ValidationError) as error:
            logger.warning("label version %s of %s cannot be read: %s", number, image, type(error).__name__)
            return None


def version_named(versions: Iterable[LabelVersion], name: str) -> LabelVersion:
    """The one of that name. Raises `UnknownError`."""
    known = {version.version: version for version in versions}
    if name not in known:
        raise UnknownError("label version", name, known)
    return known[name]


def check_name(image: str) -> None:
    """An image id becomes a part of a file's name. Raises `UnknownError`."""
    if not image or "/" in image or "\0" in image or image in (".", ".."):
        raise UnknownError("image", image, [])


def utc(time: datetime) -> str:
    """ISO 8601 in UTC, to the microsecond."""
    return time.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def utc_now() -> str:
    """Now, in the same form."""
    return utc(datetime.now(timezone.utc))


def _text(value: Any) -> str | None:
    return str(value) if value else None
