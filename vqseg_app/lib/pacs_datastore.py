"""The PACS as MONAI Label's datastore: its CT and MR series are the images, its SEG series the final labels.

Written anew rather than on `DICOMWebDatastore` (monailabel 0.8.5), which looks at CT alone, keeps its list of labelled
images for two hours, counts SEG series instead of images, reads labels by number and converts series to files whose
geometry nobody checked.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Hashable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from filelock import FileLock
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from pydicom.dataset import Dataset

from vqseg.data.dicom_seg import Origin, write_segmentation
from vqseg.data.dicom_series import read_series_header, referenced_series
from vqseg.data.grid import Grid
from vqseg.data.reading import is_nifti, read_grid, read_mask, write_mask
from vqseg.errors import ConfigError, ImageError, LabelError, VQSegError
from vqseg.files import new_file, read_json, write_json

from .arriving_label import read_arriving_label
from .datastore import check_tag
from .errors_over_rest import UnknownError
from .label_versions import LabelVersion, LabelVersions, utc, version_named
from .labels import LabelSet
from .memory_guard import MemoryGuard
from .pacs import PACS, UID_PATTERN, PACSError, Series
from .pacs_cache import PACSCache
from .pacs_listing import Listing, PACSListing, Segmentation
from .pacs_unsent import UnsentMasks
from .result_files import result_file
from .temporary_files import temporary_folder

logger = logging.getLogger(__name__)
FINAL = DefaultLabelTag.FINAL.value
MODALITIES = ("CT", "MR")


class PACSStudies(Datastore):
    """Args: `pacs`; `folder` of the cache and `largest_bytes` of images in it; `label_set` says which structures there
    are; `memory` in which an image must fit.
    """

    def __init__(
        self,
        pacs: PACS,
        folder: Path,
        largest_bytes: float,
        label_set: LabelSet,
        memory: MemoryGuard,
    ) -> None:
        self._pacs, self._folder, self._label_set = pacs, folder, label_set
        self._cache = PACSCache(pacs, folder, largest_bytes, memory)
        self._held = PACSListing(pacs, MODALITIES)
        self._unsent = UnsentMasks(folder)
        self._versions = LabelVersions(folder / "label_versions")
        self._info = folder / "info.json"

    # --- what there is ---

    def list_images(self) -> list[str]:
        """Those known before too, while the PACS is away: work on what is in the cache goes on."""
        return list(self._held.known().images)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        listing = self._held.now()
        return [image for image in listing.images if image in listing.labels]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        listing = self._held.now()
        return [image for image in listing.images if image not in listing.labels]

    def images_for_training(self) -> Iterator[str]:
        """The labelled images, then others as long as the cache has room for what the caller fetches meanwhile."""
        listing = self._held.now()
        for image in sorted(listing.images, key=lambda image: (image not in listing.labels, image)):
            if image not in listing.labels and self._cache.is_full():
                return
            yield image

    def get_image_uri(self, image_id: str) -> str:
        return str(self._cache.image(self._image(image_id)))

    def image_on_disk(self, image_id: str) -> Path | None:
        """The file of an image that need not be fetched from the PACS; none when it must."""
        return self._cache.held(self._image(image_id))

    def image_state(self, image_id: str) -> str:
        """Changes when slices come to a series; those that it has never change."""
        series = self._image(image_id)
        return f"{series.uid} {series.size}"

    def label_state(self, image_id: str) -> str:
        """Changes with the final label of an image; empty without one."""
        held = self._held.now().labels.get(image_id)
        return held.series.uid if held else ""

    def get_image(self, image_id: str, params: Any = None) -> Any:
        return Path(self.get_image_uri(image_id)).read_bytes()

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return {**self._image(image_id).info, **self._infos().get(image_id, {})}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        self._image(image_id)
        tags = {path.parent.name: image_id for path in self._folder.glob(f"tags/*/{image_id}.nii.gz")}
        return {**tags, FINAL: image_id} if image_id in self._held.now().labels else tags

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """NIfTI on the image's grid; a SEG that cannot be read with our structures stays a SEG, so that the training
        that reads it can name the reason."""
        if label_tag != FINAL:
            return str(self._tagged(label_id, label_tag))
        image = self._image(label_id)
        segmentation = self._held.now().labels.get(label_id)
        if segmentation is None:
            raise UnknownError("label", label_id, self._held.now().labels)
        source = self._cache.label(segmentation.series)
        labels = self._label_set.resolve(self)
        try:
            grid = read_grid(self._cache.image(image))
            mask = read_mask(source, grid, labels)
        except ImageError as error:
            logger.warning("the label of %s is not used: %s", label_id, error)
            return str(source)
        target = source.parent / f"{label_id}.nii.gz"
        write_mask(mask, grid, target)
        return str(target)

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        return Path(self.get_label_uri(label_id, label_tag)).read_bytes()

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """The names of a final label's structures, with our numbers; the numbers in a SEG mean nothing."""
        segmentation = self._held.now().labels.get(label_id) if label_tag == FINAL else None
        if segmentation is None:
            return {}
        numbers = self._label_set.resolve(self) if self._label_set.is_fixed else self._structures()
        names = dict.fromkeys(segmentation.names)
        return {"label_info": [{"name": name, "idx": numbers[name]} for name in names if name in numbers]}

    def datalist(self) -> list[dict[str, Any]]:
        return [
            {"image": self.get_image_uri(image), "label": self.get_label_uri(image, FINAL)}
            for image in self.get_labeled_images()
        ]

    def status(self) -> dict[str, Any]:
        """Counts of images; while the PACS is away or slow the server still tells about itself, and what is wrong."""
        listing, wrong = self._held.last or Listing(), {}
        try:
            listing = self._held.now(hurry=True)
        except PACSError as error:
            wrong = {"error": str(error)}
        labelled = len(listing.labels)
        return {"total": len(listing.images), "completed": labelled, "label_tags": {FINAL: labelled}, **wrong}

    def json(self) -> Any:
        objects = {}
        for image in self.list_images():
            labels = {tag: {"ext": ".nii.gz", "info": {}} for tag in self.get_labels_by_image_id(image)}
            objects[image] = {"image": {"ext": ".nii.gz", "info": self.get_image_info(image)}, "labels": labels}
        return {"name": self.name(), "description": self.description(), "objects": objects}

    # --- what changes ---

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label and keep it: the final one in the PACS as DICOM SEG, others on this machine.

        When it is refused, or the PACS does not take it, the mask is kept aside, and the error names the file.
        """
        check_tag(label_tag)
        if not re.fullmatch(UID_PATTERN, image_id):  # it becomes part of a file's name
            raise UnknownError("image", image_id, self.list_images())
        arrived, info = Path(label_filename), dict(label_info or {})
        creator = str(info.get("client_id") or info.get("user") or "")
        told = {"tag": label_tag, "creator": creator, "label_info": info.get("label_info") or []}
        with self._kept_when_refused(image_id, arrived, told):
            series = self._image(image_id)
            grid = read_grid(self._cache.image(series))
            labels = self._label_set.resolve(self)
            mask, names = read_arriving_label(
                arrived, image_id, grid, labels, info.get("label_info"), fixed=self._label_set.is_fixed
            )
            _check_reference(arrived, image_id)
            if label_tag != FINAL:
                # A SEG in the PACS is a version by itself.
                kept = self._versions.keep(
                    image_id, label_tag, partial(write_mask, mask, grid), {**info, "label_info": names}
                )
                with new_file(self._tagged(image_id, label_tag)) as temporary:
                    shutil.copyfile(self._versions.file(kept), temporary)
                return image_id
        if not mask.any():
            raise LabelError(image_id, "the mask is empty: a label needs at least one voxel of one structure")
        known = {**labels, **{entry["name"]: entry["idx"] for entry in names}}
        if not known:
            known = {f"label_{value}": value for value in range(1, int(mask.max()) + 1)}
        version = info.get("model_version")
        told["label_info"] = [{"name": name, "idx": value} for name, value in known.items()]
        with (
            self._kept_when_refused(image_id, arrived, told, lambda file: write_mask(mask, grid, file)),
            temporary_folder() as folder,
        ):
            file = Path(folder) / "label.dcm"
            self._write(mask, grid, series, known, Origin(creator, str(version) if version else None), file)
            segmentation = pydicom.dcmread(file)
            self._make_newest(segmentation, image_id)
            self._pacs.store(segmentation)
        self._unsent.forget(arrived, image_id)
        self.refresh()
        return image_id

    def label_versions(self, image_id: str) -> list[LabelVersion]:
        """The labels of other tags that were ever kept, then every SEG of an image, the oldest first."""
        self._image(image_id)
        held = self._held.now().segmentations
        return [*self._versions.of(image_id), *(_version(one) for one in held if one.image == image_id)]

    def every_label_version(self) -> list[LabelVersion]:
        """The versions of the labels of all images."""
        return [*self._versions.all(), *map(_version, (self._held.last or Listing()).segmentations)]

    def labels_state(self) -> Hashable:
        """Changes with every label that the PACS is known to hold."""
        held = self._held.watched()
        return tuple(one.series.uid for one in held.segmentations), len(held.labels)

    def images_state(self) -> Hashable:
        """Changes with every image that the PACS is known to hold, and with its slices."""
        # Sorted: a PACS need not list them in the same order twice.
        return tuple(sorted((series.uid, series.size) for series in self._held.watched().images.values()))

    def label_version_file(self, image_id: str, version: str) -> Path:
        """The mask of a version, NIfTI or DICOM SEG. Raises `UnknownError`, and `DataError` when it is damaged."""
        return self._version_file(version_named(self.label_versions(image_id), version))

    def restore_label(self, image_id: str, version: str, user: str) -> str:
        """Send a version to the PACS once more, as the newest SEG. Raises `UnknownError`, `DataError`, `LabelError`."""
        former = version_named(self.label_versions(image_id), version)
        info = {"label_info": former.label_info, "model_version": former.model_version, "user": user}
        return self.save_label(image_id, str(self._version_file(former)), FINAL, info)

    def as_segmentation(self, image_id: str, mask: Path, labels: Mapping[str, int], model_version: str) -> Path:
        """A mask of the model as a new temporary DICOM SEG. Raises `LabelError` when it is empty."""
        series = self._image(image_id)
        grid = read_grid(self._cache.image(series))
        with result_file(".dcm") as file:
            self._write(read_mask(mask, grid, labels), grid, series, labels, Origin("", model_version), file)
        return file

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        self._image(image_id)
        with FileLock(self._folder / ".info.lock"):
            infos = self._infos()
            try:
                write_json(self._info, {**infos, image_id: {**infos.get(image_id, {}), **info}})
            except ValueError as error:
                raise ConfigError(f"the index of the studies cannot hold this: {error}") from None

    def refresh(self) -> None:
        self._held.forget()

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        raise ConfigError("what is known of a label stands in its DICOM SEG, which does not change")

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        raise ConfigError("the studies are in a PACS: send new images there")

    def remove_image(self, image_id: str) -> None:
        raise ConfigError("the studies are in a PACS: remove images there")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        if label_tag == FINAL:
            raise ConfigError("final labels are in the PACS: remove the SEG series there")
        self._tagged(label_id, label_tag).unlink(missing_ok=True)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        raise ConfigError("the studies are in a PACS: an archive of them is made there")

    def name(self) -> str:
        return self._pacs.url

    def description(self) -> str:
        return "CT and MR series of a PACS, labels as DICOM SEG"

    def set_name(self, name: str) -> None:
        raise ConfigError("a PACS has the name of its address")

    def set_description(self, description: str) -> None:
        raise ConfigError("a PACS has no description that could be set")

    # --- inside ---

    def _write(
        self, mask: np.ndarray, grid: Grid, series: Series, labels: Mapping[str, int], origin: Origin, file: Path
    ) -> None:
        """Write a DICOM SEG of an image; the message of a `LabelError` names the image, not the temporary file."""
        try:
            write_segmentation(mask, grid, self._cache.headers(series), labels, origin, file)
        except LabelError as error:
            raise LabelError(series.uid, str(error).removeprefix(f"{file}: ")) from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # There is no end to what the headers of a series may lack that highdicom needs.
            raise LabelError(series.uid, f"no DICOM SEG of this series can be written ({error})") from None

    def _make_newest(self, segmentation: Dataset, image_id: str) -> None:
        """The newest of an image's SEG is its label: one of a clock that is ahead, or was, must not hide it."""
        try:
            listing = self._held.now(hurry=True)
        except PACSError:  # a label is taken also while the PACS lists nothing
            listing = self._held.last or Listing()
        held = listing.labels.get(image_id)
        if held is None or held.made < f"{segmentation.ContentDate}{segmentation.ContentTime}":
            return
        with contextlib.suppress(ValueError):  # other programs write what they like
            made = datetime.strptime(held.made.partition(".")[0], "%Y%m%d%H%M%S") + timedelta(seconds=1)
            segmentation.ContentDate, segmentation.ContentTime = made.strftime("%Y%m%d"), made.strftime("%H%M%S.%f")

    @contextlib.contextmanager
    def _kept_when_refused(
        self, image_id: str, arrived: Path, told: Mapping[str, Any], write: Callable[[Path], None] | None = None
    ) -> Iterator[None]:
        """Keep a mask aside, as it `arrived` or as `write` writes it, when the block fails; the error then says so."""
        try:
            yield
        except Exception as error:
            try:
                place = self._unsent.keep(arrived, image_id, {**told, "reason": str(error)}, write)
                words = f"The mask is not lost: it is kept on the server as {place}"
            except OSError as full:
                words = f"The mask could not be kept on the server ({full.strerror}): keep it where it is"
            if isinstance(error, VQSegError):
                error.args = (f"{error}. {words}",)
            else:
                logger.error(words)
            raise

    def _version_file(self, version: LabelVersion) -> Path:
        held = self._held.now().segmentations
        series = next((one.series for one in held if one.series.uid == version.version), None)
        return self._cache.label(series) if series else self._versions.file(version)

    def _structures(self) -> dict[str, int]:
        """Every structure of the labels, numbered in the order in which they first appeared."""
        ordered = sorted(self._held.now().labels.values(), key=lambda label: (label.made, label.series.uid))
        names = dict.fromkeys(name for label in ordered for name in label.names)
        return {name: number for number, name in enumerate(names, 1)}

    def _image(self, image_id: str) -> Series:
        images = self._held.known().images
        if image_id not in images:
            raise UnknownError("image", image_id, images)
        return images[image_id]

    def _tagged(self, image_id: str, tag: str) -> Path:
        check_tag(tag)
        return self._folder / "tags" / tag / f"{self._image(image_id).uid}.nii.gz"

    def _infos(self) -> dict[str, dict[str, Any]]:
        return read_json(self._info) or {}


def _version(segmentation: Segmentation) -> LabelVersion:
    """A SEG says when it was made in the time of the machine that made it, which is taken for this one's."""
    try:
        made = utc(datetime.strptime(segmentation.made.partition(".")[0], "%Y%m%d%H%M%S"))
    except ValueError:
        made = ""
    return LabelVersion(
        version=segmentation.series.uid,
        image=segmentation.image,
        tag=FINAL,
        time=made,
        user=segmentation.creator or None,
        model_version=segmentation.model_version,
        sha256=None,
        label_info=[{"name": name, "idx": number} for number, name in enumerate(segmentation.names, 1)],
        info={},
    )


def _check_reference(label: Path, image_id: str) -> None:
    """Raises `LabelError` for a DICOM label that says it belongs to another series; other kinds do not say."""
    if is_nifti(label) or label.name.endswith(".bin"):
        return
    other = referenced_series(read_series_header(label))
    if other and other != image_id:
        raise LabelError(image_id, f"the mask is that of another series, {other}")
