"""The studies folder: MONAI Label's local datastore, made safe for several threads and processes, and labels that are
checked on arrival.

Reasons (monailabel 0.8.5, `LocalDatastore`): ids and tags become paths unchecked; the content of a label is never
looked at; the whole index is kept in memory and written back, so a second process erases what a client just saved;
the folder's watcher empties the index for a moment in its own thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from watchdog.events import FileCreatedEvent, FileDeletedEvent, FileModifiedEvent, FileSystemEvent

from vqseg.data.reading import read_grid, read_image, write_mask
from vqseg.errors import ConfigError, ImageError
from vqseg.files import new_file, remove_leftovers

from .arriving_label import read_arriving_label
from .errors_over_rest import ConflictError, UnknownError
from .index_repair import fault_of, recover_label_details, set_aside, without_nan
from .label_versions import LabelVersion, LabelVersions
from .labels import LabelSet
from .process import is_child
from .temporary_files import temporary_folder

_ID = re.compile(r"[^\W_][\w .()+@-]{0,199}")
_CHANGES: list[type[FileSystemEvent]] = [FileCreatedEvent, FileDeletedEvent, FileModifiedEvent]
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class StudiesFolder(LocalDatastore):
    """`label_set` says which values a label may hold."""

    def __init__(self, folder: str, label_set: LabelSet) -> None:
        self.label_set = label_set
        self._versions = LabelVersions(Path(folder) / ".vqseg" / "label_versions")
        # Locks, in the order in which they are taken. Threads before processes: a file lock that is waited for is
        # looked at every 50 ms only.
        self._submitters = threading.RLock()
        self._submitting_processes = FileLock(self._versions.folder / ".submitting.lock")
        self._writers = threading.RLock()
        # Not `.lock`: that one is taken inside the methods of the base class.
        self._processes = FileLock(Path(folder) / ".vqseg.lock")
        self._memory = threading.RLock()
        self._reader: int | None = None
        self._known_states: set[tuple[int, int] | None] = set()
        super().__init__(
            folder,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            # A child works with the index that the server wrote and never changes it on its own.
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD and not is_child(),
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY or is_child(),
        )
        if observer := getattr(self, "_observer", None):
            self._watch_only_what_counts(observer)
        with self._writing():
            for written in (self._datastore_path, self._versions.folder, *Path(folder, "labels").iterdir()):
                remove_leftovers(Path(written))

    def _watch_only_what_counts(self, observer: Any) -> None:
        """Let the watcher look into the folders of images and labels, and no deeper.

        monailabel 0.8.5 watches every folder below, though it heeds these alone; so watchdog 7.1 trips over the folders
        in which files are written before they appear, and says so at length. It reports every file that is opened or
        closed as well, a fifth of what a busy server did.
        """
        observer.unschedule_all()
        labels = Path(self._datastore.label_path(None))
        for folder in (self._datastore_path, *filter(Path.is_dir, labels.iterdir())):
            observer.schedule(self._handler, str(folder), event_filter=_CHANGES)

    @contextmanager
    def _submitting(self) -> Iterator[None]:
        """Alone in changing labels; others change the index meanwhile, for it takes the disk long to keep a version."""
        with self._submitters, self._submitting_processes:
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone among threads and processes in changing the index, as the last writer left it.

        Others read meanwhile: they wait for a change of what is in memory, and not for the disk.
        """
        with self._writers, self._processes:
            self._catch_up()
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """With the index as the last writer of any process left it, which no thread changes meanwhile."""
        self._catch_up()
        with self._memory:
            outer, self._reader = self._reader, threading.get_ident()
            try:
                yield
            finally:
                self._reader = outer

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label, bring it to the image's grid and our values, and keep it, whole or not at all."""
        check_tag(label_tag)
        grid = read_grid(Path(self._known_image(image_id)))
        info = dict(label_info or {})

        def write(labels: Mapping[str, int], place: Path) -> None:
            file, fixed = Path(label_filename), self.label_set.is_fixed
            names = (label_info or {}).get("label_info")
            name = f"{image_id}.nii.gz"
            mask, info["label_info"] = read_arriving_label(file, name, grid, labels, names, fixed=fixed)
            write_mask(mask, grid, place)

        known = self.label_set.resolve(self)
        with temporary_folder() as folder:
            # Outside the lock, for packing a large mask takes seconds in which nobody else would be answered.
            written = Path(folder) / "label.nii.gz"
            write(known, written)
            with self._submitting():
                if (now := self.label_set.resolve(self)) != known:
                    # Meanwhile another label took the value that a new structure was to get.
                    write(now, written)
                self._keep_label(image_id, label_tag, written, info)
        return image_id

    def _keep_label(self, image_id: str, label_tag: str, written: Path, info: dict[str, Any]) -> None:
        """Make a file the label and a version of it; what was the label stays a version."""
        self._known_image(image_id)
        self._keep_former(image_id, label_tag)
        self._versions.keep(image_id, label_tag, partial(shutil.copyfile, written), info)
        target = Path(self._datastore.label_path(label_tag)) / f"{image_id}.nii.gz"
        with self._writing():
            self._known_image(image_id)
            former = self.get_label_uri(image_id, label_tag)
            with new_file(target) as temporary:
                shutil.copyfile(written, temporary)
            info.update(ts=int(time.time()), name=target.name)
            label = DataModel(info=_storable(info), ext=".nii.gz")
            self._change_index(lambda studies: studies.objects[image_id].labels.update({label_tag: label}))
            if former and Path(former) != target.resolve():
                Path(former).unlink(missing_ok=True)

    def label_versions(self, image_id: str) -> list[LabelVersion]:
        """Every label of an image that was ever kept, the oldest first, be it removed since. Raises `UnknownError`."""
        versions = self._versions.of(image_id)
        if not versions:
            self._known_image(image_id)
        return versions

    def every_label_version(self) -> list[LabelVersion]:
        """The versions of the labels of all images."""
        return self._versions.all()

    def labels_state(self) -> Hashable:
        """Changes with every label that is kept or removed."""
        return _state_of(self._versions.folder), self.status()["completed"]

    def images_state(self) -> Hashable:
        """Changes with every image that comes or goes."""
        return tuple(sorted(self.list_images()))

    def label_version_file(self, image_id: str, version: str) -> Path:
        """The mask of a version. Raises `UnknownError`, and `DataError` when it is damaged."""
        return self._versions.file(self._versions.find(image_id, version))

    def restore_label(self, image_id: str, version: str, user: str) -> str:
        """Submit a version once more, as the final label. Raises `UnknownError`, `DataError`, `LabelError`."""
        former = self._versions.find(image_id, version)
        origin = {"label_info": former.label_info, "model_version": former.model_version}
        info = {**origin, "user": user, "restored": version}
        return self.save_label(image_id, str(self._versions.file(former)), DefaultLabelTag.FINAL.value, info)

    def _keep_former(self, image_id: str, label_tag: str) -> None:
        """Keep a label that lies in the folder without having been submitted, before it is replaced or removed."""
        file = Path(self.get_label_uri(image_id, label_tag) or "-")
        if file.is_file() and not self._versions.holds(image_id, file):
            # What the index says of the user and the model is said of another file.
            info = {**self.get_label_info(image_id, label_tag), "user": None, "model_version": None}
            made = datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)
            write, suffix = partial(shutil.copyfile, file), self._to_id(file.name)[1]
            self._versions.keep(image_id, label_tag, write, info, suffix=suffix, time=made)

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
            extension = self._to_id(file.name)[1]
            target = Path(self._datastore.image_path()) / f"{image_id}{extension}"
            with new_file(target) as temporary:
                shutil.copyfile(file, temporary)
            info = {**(image_info or {}), "ts": int(time.time()), "name": target.name}
            study = ImageLabelModel(image=DataModel(info=_storable(info), ext=extension))
            self._change_index(lambda studies: studies.objects.update({image_id: study}))
            return image_id

    def remove_image(self, image_id: str) -> None:
        with self._submitting(), self._writing():
            self._known_image(image_id)
            super().remove_image(image_id)
            self.refresh()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        with self._submitting(), self._writing():
            if not self.get_label_uri(label_id, label_tag):
                raise UnknownError(f"label ({label_tag})", label_id, self.get_labeled_images(label_tag))
            self._keep_former(label_id, label_tag)
            super().remove_label(label_id, label_tag)
            self.refresh()  # else the index has it until the watcher has looked

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        with self._writing():
            self._known_image(image_id)
            self._change_index(lambda studies: studies.objects[image_id].image.info.update(_storable(info)))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        with self._writing():
            if not self.get_label_uri(label_id, label_tag):
                raise UnknownError(f"label ({label_tag})", label_id, self.get_labeled_images(label_tag))
            self._change_index(lambda studies: studies.objects[label_id].labels[label_tag].info.update(_storable(info)))

    def _on_any_event(self, event: FileSystemEvent) -> None:
        """Look through the folders when a file came or went of which the index does not know; most are our own."""
        with self._writing():
            if not self._is_told(Path(os.fsdecode(event.src_path))):
                super()._on_any_event(event)

    def _is_told(self, file: Path) -> bool:
        """Whether the index, as it was just read, says that a file is there, or that it is not, as it is."""
        if file == Path(self._datastore_config_path):
            return True
        name, extension = self._to_id(file.name)
        with self._reading():
            study = self._datastore.objects.get(name)
            is_image = file.parent == Path(self._datastore.image_path())
            entry = study and (study.image if is_image else study.labels.get(file.parent.name))
            return bool(entry and entry.ext == extension) == file.exists()

    def _reconcile_datastore(self) -> None:
        with self._writing(), self._memory:
            super()._reconcile_datastore()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        index = Path(self._datastore_config_path)
        if _state_of(index) not in self._known_states and fault_of(index):
            self._repair(index)
        with self._memory:
            super()._init_from_datastore_file(throw_exception)

    def _repair(self, index: Path) -> None:
        """Replace an index that cannot be read by what is in memory, which at the start is nothing, and on the disk."""
        with self._writers, self._processes, self._memory:
            # Meanwhile another process may have done so.
            if (fault := fault_of(index)) is None:
                return
            content = without_nan(index)
            set_aside(index, fault)
            if content is not None:
                content.base_path = self._datastore_path
                self._datastore = content
            self._update_datastore_file()
            Path(self._datastore.label_path(None)).mkdir(exist_ok=True)
            super()._reconcile_datastore()
            recover_label_details(self._datastore, self._versions)
            self._update_datastore_file()

    def _update_datastore_file(self, lock: bool = True) -> None:
        self._change_index(lambda studies: None, lock)

    def _change_index(self, change: Callable[[LocalDatastoreModel], None], lock: bool = True) -> None:
        """Change what is in memory and write the index, whole or not at all: half of one stops the server's next start.

        Unlike in the base class, `_ignore_event_config` stays unset: the watcher reports no change of a file that was
        replaced, and would ignore somebody else's next change instead. Our own files find it by `_catch_up`.
        """
        index = Path(self._datastore_config_path)
        try:
            with self._memory:
                changed = self._datastore
                change(changed)
                # By pydantic, in one line: Python takes forty times as long to indent it, and everybody waits.
                text = changed.model_dump_json(exclude={"base_path"})
            with FileLock(self._lock_file) if lock else nullcontext(), new_file(index) as temporary:
                temporary.write_text(text, encoding="utf-8")
                # As it will be known once it has taken the place of the former one.
                self._known_states = {*self._known_states, _state_of(temporary)}
        except BaseException:
            self._known_states = set()  # what is in memory was not kept: the next look reads the file again
            raise
        with self._memory:
            # Whoever wrote without the locks may have been read meanwhile.
            self._known_states = {_state_of(index)} if self._datastore is changed else set()
            self._config_ts = index.stat().st_mtime

    def _catch_up(self) -> None:
        """Read the index again when it is another file than last time.

        The time alone is too coarse: two processes can write within one tick of the file system's clock.
        """
        index = Path(self._datastore_config_path)
        # A reader that reads on in another method must not wait for a writer, who may wait for it.
        if _state_of(index) in self._known_states or self._reader == threading.get_ident():
            return
        if fault_of(index):
            self._repair(index)
        with self._memory:
            state = _state_of(index)
            if state not in self._known_states:
                self._config_ts = 0
                super()._init_from_datastore_file()
                is_read = bool(self._config_ts) or state is None
                self._known_states = {state} if is_read else set()

    def list_images(self) -> list[str]:
        with self._reading():
            return super().list_images()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        with self._reading():
            return super().get_labeled_images(label_tag, labels)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        with self._reading():
            return super().get_unlabeled_images(label_tag, labels)

    def get_image_uri(self, image_id: str) -> str:
        with self._reading():
            return super().get_image_uri(image_id)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        with self._reading():
            return super().get_image_info(image_id)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        with self._reading():
            return super().get_label_uri(label_id, label_tag)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        with self._reading():
            return dict(super().get_label_info(label_id, label_tag))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        with self._reading():
            return super().get_labels_by_image_id(image_id)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        with self._reading():
            return super().datalist(full_path)

    def status(self) -> dict[str, Any]:
        with self._reading():
            return super().status()

    def json(self) -> Any:
        with self._reading():
            return super().json()

    def _known_image(self, image_id: str) -> str:
        uri = self.get_image_uri(image_id)
        if not uri:
            raise UnknownError("image", image_id, self.list_images())
        return uri


def check_tag(tag: str) -> None:
    """A tag becomes the name of a folder. Raises `ConfigError`."""
    if not _TAG.fullmatch(tag):
        raise ConfigError(f"label tag {tag!r}: expected up to 64 letters, digits, - and _")


def _storable(info: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept with an image or a label, as JSON has it. Raises `ConfigError`."""
    try:
        return json.loads(json.dumps(dict(info), default=str, allow_nan=False))
    except ValueError as error:
        raise ConfigError(f"the index of the studies cannot hold this: {error}") from None


def _state_of(file: Path) -> tuple[int, int] | None:
    """Changes whenever a file is replaced or written to; none when there is no file."""
    try:
        state = file.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns
