"""The PACS as MONAI Label's datastore: its CT and MR series are the images, its SEG series the final labels.

Written anew rather than on `DICOMWebDatastore` (monailabel 0.8.5), which looks at CT alone, keeps its list of labelled
images for two hours, counts SEG series instead of images, reads labels by number and converts series to files whose
geometry nobody checked.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from filelock import FileLock
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from pydicom.dataset import Dataset

from vqseg.data.dicom_seg import Origin, segment_names, write_segmentation
from vqseg.data.dicom_series import referenced_series
from vqseg.data.grid import Grid
from vqseg.data.reading import read_grid, read_mask, write_mask
from vqseg.errors import ConfigError, ImageError, LabelError
from vqseg.files import read_json, write_json

from .arriving_label import read_arriving_label
from .datastore import check_tag
from .errors_over_rest import UnknownError
from .labels import LabelSet
from .pacs import PACS, PACSError, Series
from .pacs_cache import PACSCache
from .result_files import result_file

logger = logging.getLogger(__name__)
FINAL = DefaultLabelTag.FINAL.value
MODALITIES = ("CT", "MR")
# A label that somebody saves with another program is seen after this time; our own at once.
_LIST_SECONDS = 5.0


@dataclass(frozen=True)
class _Segmentation:
    """A SEG series: the image it belongs to (empty when it does not say), when it was made, its structures."""

    series: Series
    image: str
    made: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Listing:
    """What the PACS holds: images by series UID, and the newest SEG of each labelled image."""

    images: Mapping[str, Series]
    labels: Mapping[str, _Segmentation]


class PACSStudies(Datastore):
    """Args: `pacs`; `folder` of the cache and `largest_bytes` of images in it; `label_set` says which structures there
    are; `live_version` which model made the masks that are corrected.
    """

    def __init__(
        self,
        pacs: PACS,
        folder: Path,
        largest_bytes: float,
        label_set: LabelSet,
        live_version: Callable[[], str | None],
    ) -> None:
        self._pacs, self._folder, self._label_set, self._live_version = pacs, folder, label_set, live_version
        self._cache = PACSCache(pacs, folder, largest_bytes)
        self._info = folder / "info.json"
        self._lock = threading.Lock()
        self._listed: tuple[float, _Listing] | None = None
        self._segmentations: dict[str, _Segmentation] = {}  # a SEG series never changes

    # --- what there is ---

    def list_images(self) -> list[str]:
        return list(self._listing().images)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        listing = self._listing()
        return [image for image in listing.images if image in listing.labels]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        listing = self._listing()
        return [image for image in listing.images if image not in listing.labels]

    def images_for_training(self) -> Iterator[str]:
        """The labelled images, then others as long as the cache has room for what the caller fetches meanwhile."""
        listing = self._listing()
        for image in sorted(listing.images, key=lambda image: (image not in listing.labels, image)):
            if image not in listing.labels and self._cache.is_full():
                return
            yield image

    def get_image_uri(self, image_id: str) -> str:
        return str(self._cache.image(self._image(image_id)))

    def get_image(self, image_id: str, params: Any = None) -> Any:
        return Path(self.get_image_uri(image_id)).read_bytes()

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return {**self._image(image_id).info, **self._infos().get(image_id, {})}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        self._image(image_id)
        tags = {path.parent.name: image_id for path in self._folder.glob(f"tags/*/{image_id}.nii.gz")}
        return {**tags, FINAL: image_id} if image_id in self._listing().labels else tags

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """NIfTI on the image's grid; a SEG that cannot be read with our structures stays a SEG, so that the training
        that reads it can name the reason."""
        if label_tag != FINAL:
            return str(self._tagged(label_id, label_tag))
        image = self._image(label_id)
        segmentation = self._listing().labels.get(label_id)
        if segmentation is None:
            raise UnknownError("label", label_id, self._listing().labels)
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
        segmentation = self._listing().labels.get(label_id) if label_tag == FINAL else None
        if segmentation is None:
            return {}
        numbers = self._label_set.resolve(self) if self._label_set.is_fixed else self._structures()
        return {"label_info": [{"name": name, "idx": numbers[name]} for name in segmentation.names if name in numbers]}

    def datalist(self) -> list[dict[str, Any]]:
        return [
            {"image": self.get_image_uri(image), "label": self.get_label_uri(image, FINAL)}
            for image in self.get_labeled_images()
        ]

    def status(self) -> dict[str, Any]:
        """Counts of images; while the PACS is away the server still tells about itself, and what is wrong."""
        try:
            total, labelled = len(self.list_images()), len(self.get_labeled_images())
        except PACSError as error:
            return {"total": 0, "completed": 0, "label_tags": {}, "error": str(error)}
        return {"total": total, "completed": labelled, "label_tags": {FINAL: labelled}}

    def json(self) -> Any:
        objects = {}
        for image in self.list_images():
            labels = {tag: {"ext": ".nii.gz", "info": {}} for tag in self.get_labels_by_image_id(image)}
            objects[image] = {"image": {"ext": ".nii.gz", "info": self.get_image_info(image)}, "labels": labels}
        return {"name": self.name(), "description": self.description(), "objects": objects}

    # --- what changes ---

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label and keep it: the final one in the PACS as DICOM SEG, others on this machine.

        When the PACS does not take it the mask is kept aside, and the error names the file.
        """
        check_tag(label_tag)
        series = self._image(image_id)
        grid = read_grid(self._cache.image(series))
        info = dict(label_info or {})
        labels = self._label_set.resolve(self)
        mask, names = read_arriving_label(
            Path(label_filename), image_id, grid, labels, info.get("label_info"), fixed=self._label_set.is_fixed
        )
        if label_tag != FINAL:
            write_mask(mask, grid, self._tagged(image_id, label_tag))
            return image_id
        known = {**labels, **{entry["name"]: entry["idx"] for entry in names}}
        if not known:
            known = {f"label_{value}": value for value in range(1, int(mask.max()) + 1)}
        version = info.get("model_version") or (self._live_version() if info.get("model") else None)
        origin = Origin(str(info.get("client_id") or info.get("user") or ""), str(version) if version else None)
        try:
            with tempfile.TemporaryDirectory(prefix="vqseg-") as folder:
                file = Path(folder) / "label.dcm"
                self._write(mask, grid, series, known, origin, file)
                self._pacs.store(pydicom.dcmread(file))
        except PACSError as error:
            aside = self._folder / "unsent" / f"{image_id}-{time.strftime('%Y%m%d-%H%M%S')}.nii.gz"
            write_mask(mask, grid, aside)
            raise PACSError(f"{error}. The mask is not lost: it is kept on the server as unsent/{aside.name}") from None
        self.refresh()
        return image_id

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
        with self._lock:
            self._listed = None

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

    def _listing(self) -> _Listing:
        """What the PACS holds, asked for again after some seconds. Raises `PACSError`."""
        with self._lock:
            if self._listed is None or time.monotonic() - self._listed[0] > _LIST_SECONDS:
                images = {series.uid: series for series in self._pacs.find(MODALITIES)}
                found = [self._segmentation(series) for series in self._pacs.find(["SEG"])]
                # The newest of an image comes last and stays.
                ordered = sorted(found, key=lambda segmentation: (segmentation.made, segmentation.series.uid))
                labels = {segmentation.image: segmentation for segmentation in ordered if segmentation.image in images}
                self._listed = time.monotonic(), _Listing(images, labels)
            return self._listed[1]

    def _segmentation(self, series: Series) -> _Segmentation:
        if series.uid not in self._segmentations:
            header = next(iter(self._pacs.headers(series)), Dataset())
            self._segmentations[series.uid] = _Segmentation(
                series,
                referenced_series(header),
                f"{header.get('ContentDate') or ''}{header.get('ContentTime') or ''}",
                tuple(segment_names(header).values()) if "SegmentSequence" in header else (),
            )
        return self._segmentations[series.uid]

    def _structures(self) -> dict[str, int]:
        """Every structure of the labels, numbered in the order in which they first appeared."""
        ordered = sorted(self._listing().labels.values(), key=lambda label: (label.made, label.series.uid))
        names = dict.fromkeys(name for label in ordered for name in label.names)
        return {name: number for number, name in enumerate(names, 1)}

    def _image(self, image_id: str) -> Series:
        images = self._listing().images
        if image_id not in images:
            raise UnknownError("image", image_id, images)
        return images[image_id]

    def _tagged(self, image_id: str, tag: str) -> Path:
        check_tag(tag)
        return self._folder / "tags" / tag / f"{self._image(image_id).uid}.nii.gz"

    def _infos(self) -> dict[str, dict[str, Any]]:
        return read_json(self._info) or {}
