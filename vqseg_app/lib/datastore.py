"""The studies folder: MONAI Label's local datastore, made safe for several threads and processes, and labels that are
checked on arrival.

Reasons (monailabel 0.8.5, `LocalDatastore`): ids and tags become paths unchecked; the content of a label is never
looked at; the whole index is kept in memory and written back, so a second process erases what a client just saved;
the folder's watcher empties the index for a moment in its own thread.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.local import DataModel, LocalDatastore

from vqseg.data.reading import read_grid, read_image, write_mask
from vqseg.errors import ConfigError, ImageError

from .arriving_label import read_arriving_label
from .errors_over_rest import ConflictError, UnknownError
from .labels import LabelSet
from .process import is_child

_ID = re.compile(r"[^\W_][\w .()+@-]{0,199}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class StudiesFolder(LocalDatastore):
    """`label_set` says which values a label may hold."""

    def __init__(self, folder: str, label_set: LabelSet) -> None:
        self.label_set = label_set
        self._threads = threading.RLock()
        # Not `.lock`: that one is taken inside the methods of the base class.
        self._processes = FileLock(Path(folder) / ".vqseg.lock")
        super().__init__(
            folder,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            # A child works with the index that the server wrote and never changes it on its own.
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD and not is_child(),
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY or is_child(),
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone among threads and processes, with the index as the last writer left it."""
        with self._threads, self._processes:
            self._init_from_datastore_file()
            yield

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label, bring it to the image's grid and our values, and keep it, whole or not at all."""
        if not _TAG.fullmatch(label_tag):
            raise ConfigError(f"label tag {label_tag!r}: expected up to 64 letters, digits, - and _")
        grid = read_grid(Path(self._known_image(image_id)))
        info = dict(label_info or {})
        mask, info["label_info"] = read_arriving_label(
            Path(label_filename), f"{image_id}.nii.gz", grid, self.label_set.resolve(self), info.get("label_info")
        )
        with self._writing():
            study = self._datastore.objects.get(image_id)
            if study is None:
                raise UnknownError("image", image_id, self._datastore.objects)
            former = self.get_label_uri(image_id, label_tag)
            target = Path(self._datastore.label_path(label_tag)) / f"{image_id}.nii.gz"
            write_mask(mask, grid, target)
            info.update(ts=int(time.time()), name=target.name)
            study.labels[label_tag] = DataModel(info=info, ext=".nii.gz")
            self._update_datastore_file()
            if former and Path(former) != target.resolve():
                Path(former).unlink(missing_ok=True)
        return image_id

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Check an image and keep it; one that is there stays as it is, since labels may belong to it."""
        file = Path(image_filename)
        image_id = image_id or self._to_id(file.name)[0]
        if not _ID.fullmatch(image_id) or ".." in image_id:
            raise ConfigError(f"image id {image_id!r}: expected up to 200 letters, digits, spaces and . _ - ( ) + @")
        try:
            read_image(file)
        except ImageError as error:
            raise ImageError(image_id, str(error).removeprefix(f"{file}: ")) from None
        with self._writing():
            if image_id in self._datastore.objects:
                raise ConflictError(f"image {image_id!r} is there already; remove it first or choose another id")
            return super().add_image(image_id, image_filename, image_info)

    def remove_image(self, image_id: str) -> None:
        with self._writing():
            self._known_image(image_id)
            super().remove_image(image_id)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        with self._writing():
            super().remove_label(label_id, label_tag)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        with self._writing():
            super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        with self._writing():
            super().update_label_info(label_id, label_tag, info)

    def _reconcile_datastore(self) -> None:
        with self._writing():
            super()._reconcile_datastore()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._threads:
            super()._init_from_datastore_file(throw_exception)

    def list_images(self) -> list[str]:
        with self._threads:
            return super().list_images()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        with self._threads:
            return super().get_labeled_images(label_tag, labels)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        with self._threads:
            return super().get_unlabeled_images(label_tag, labels)

    def get_image_uri(self, image_id: str) -> str:
        with self._threads:
            return super().get_image_uri(image_id)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        with self._threads:
            return super().get_image_info(image_id)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        with self._threads:
            return super().get_label_uri(label_id, label_tag)

    def status(self) -> dict[str, Any]:
        with self._threads:
            return super().status()

    def json(self) -> Any:
        with self._threads:
            return super().json()

    def _known_image(self, image_id: str) -> str:
        uri = self.get_image_uri(image_id)
        if not uri:
            raise UnknownError("image", image_id, self.list_images())
        return uri
