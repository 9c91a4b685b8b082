"""The label set: names and values of the structures, from the first source that knows them.

1. `--conf labels a,b` (or data.labels of the preset); 2. `labels.json` in the studies folder, `{"lung": 1}`;
3. the submitted labels: the names their clients gave with them, and `label_N` for a value without a name. A label
   that names a further structure extends such a set.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from vqseg.data.studies import read_label_names
from vqseg.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
FINAL = DefaultLabelTag.FINAL.value
_PLACEHOLDER = re.compile(r"label_\d+")


class LabelSet:
    """Resolves the label set; what was read from a file is read again only when the file changed."""

    def __init__(self, configured: Mapping[str, int], studies: Path | None) -> None:
        self._configured = dict(configured) or (read_label_names(studies) if studies else {})
        self._values: dict[tuple[str, int], frozenset[int]] = {}
        self._lock = threading.Lock()

    @property
    def is_fixed(self) -> bool:
        """Whether the options or the file say what there is; else submitted labels may add structures."""
        return bool(self._configured)

    def resolve(self, datastore: Datastore) -> dict[str, int]:
        """Name -> value, ordered by value, without gaps; empty when nothing is known yet."""
        if self._configured:
            return dict(self._configured)
        names: dict[int, str] = {}
        values: set[int] = set()
        for image in datastore.get_labeled_images():
            label = datastore.get_label_by_image_id(image, FINAL)
            if not label:
                continue
            given = stored_names(datastore, image)
            for name, value in given.items():
                # One value for a name and one name for a value, and no other value's placeholder;
                # `check_stored_names` reports what contradicts.
                if name not in names.values() and (name == f"label_{value}" or not _PLACEHOLDER.fullmatch(name)):
                    names.setdefault(value, name)
            # The numbers in a label of a PACS mean nothing: only its names do.
            if not given and isinstance(datastore, LocalDatastore):
                values |= self._values_of(Path(datastore.get_label_uri(label, FINAL)))
        highest = max([*names, *values], default=0)
        return {names.get(value, f"label_{value}"): value for value in range(1, highest + 1)}

    def _values_of(self, path: Path) -> frozenset[int]:
        try:
            key = (str(path), path.stat().st_mtime_ns)
            with self._lock:
                if key not in self._values:
                    self._values[key] = frozenset(np.unique(np.asarray(nib.load(path).dataobj)).astype(int).tolist())
                return frozenset(value for value in self._values[key] if 0 < value < 256)
        except Exception as error:  # whatever a damaged file makes the reader raise; the training names it
            logger.warning("%s: no label values can be read (%s)", path.name, error)
            return frozenset()


def stored_names(datastore: Datastore, image: str) -> dict[str, int]:
    """Name -> value as kept with the final label of an image; empty when nothing usable is."""
    info = datastore.get_label_info(datastore.get_label_by_image_id(image, FINAL), FINAL)
    try:
        return names_of(info.get("label_info"))
    except ConfigError as error:  # one bad entry must not stop every request that needs the label set
        logger.warning("%s: the names kept with its label are not used (%s)", image, error)
        return {}


def check_stored_names(datastore: Datastore, labels: Mapping[str, int]) -> None:
    """Raises `DataError` when a final label was saved while its values meant other structures than in `labels`."""
    structures = {value: name for name, value in labels.items()}
    for image in datastore.get_labeled_images():
        for name, value in stored_names(datastore, image).items():
            # A placeholder says only that there was no name; a value beyond the set is found in the mask itself.
            if name == f"label_{value}" or (name not in labels and value not in structures):
                continue
            if labels.get(name) != value:
                now = f"{name!r} is {labels[name]}" if name in labels else f"{value} is {structures[value]!r}"
                raise DataError(
                    f"image {image!r}: its label was saved with {name!r} as value {value}, but now {now}; keep the "
                    "order of the names and add new names at the end"
                )


def names_of(label_info: Any) -> dict[str, int]:
    """Name -> value out of a client's `[{"name": ..., "idx": ...}]`; the background is left out.

    Raises `ConfigError` when it has another form.
    """
    wrong = 'label_info: expected a list of {"name": ..., "idx": ...}'
    if label_info and not isinstance(label_info, list):
        raise ConfigError(wrong)
    found: dict[str, int] = {}
    for entry in label_info or []:
        try:
            name, value = str(entry["name"]), int(entry["idx"])
        except (TypeError, KeyError, ValueError, OverflowError):
            raise ConfigError(wrong) from None
        if value == 0 or name.lower() == "background":
            continue
        if name in found or value in found.values() or not 0 < value < 256:
            raise ConfigError(f"label_info: {name!r} with idx {value} is given twice or outside 1..255")
        found[name] = value
    return found
