"""The label set: names and values of the structures, from the first source that knows them.

1. `--conf labels a,b` (or data.labels of the preset); 2. `labels.json` in the studies folder, `{"lung": 1}`;
3. the submitted labels: the names their clients gave with them, and `label_N` for a value without a name.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from vqseg.data.studies import read_label_names
from vqseg.errors import ConfigError

logger = logging.getLogger(__name__)
FINAL = DefaultLabelTag.FINAL.value


class LabelSet:
    """Resolves the label set; what was read from a file is read again only when the file changed."""

    def __init__(self, configured: Mapping[str, int], studies: Path | None) -> None:
        self._configured = dict(configured) or (read_label_names(studies) if studies else {})
        self._values: dict[tuple[str, int], frozenset[int]] = {}
        self._lock = threading.Lock()

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
            given = names_of(datastore.get_label_info(label, FINAL).get("label_info"))
            names.update({value: name for name, value in given.items()})
            if not given:
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


def names_of(label_info: Any) -> dict[str, int]:
    """Name -> value out of a client's `[{"name": ..., "idx": ...}]`; the background is left out.

    Raises `ConfigError` when it has another form.
    """
    found: dict[str, int] = {}
    for entry in label_info or []:
        try:
            name, value = str(entry["name"]), int(entry["idx"])
        except (TypeError, KeyError, ValueError):
            raise ConfigError('label_info: expected a list of {"name": ..., "idx": ...}') from None
        if value == 0 or name.lower() == "background":
            continue
        if name in found or value in found.values() or not 0 < value < 256:
            raise ConfigError(f"label_info: {name!r} with idx {value} is given twice or outside 1..255")
        found[name] = value
    return found
