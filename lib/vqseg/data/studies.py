"""Studies: an image, its label if there is one, and the patient it belongs to."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from vqseg.config import Data
from vqseg.data.reading import is_nifti, largest_value
from vqseg.errors import ConfigError, DataError, LabelError

__all__ = [
    "SplitFile",
    "Study",
    "find_studies",
    "label_names",
    "patient_of",
    "read_split",
    "study_id",
    "without_labels",
]

LABEL_NAMES_FILE = "labels.json"
_CHANNEL_SUFFIX = re.compile(r"_0000$")
_TIME_POINT_SUFFIX = re.compile(
    r"_(?:ED|ES|baseline|follow-?up|pre|post|left|right|(?:frame|ses|tp|t|time|visit|scan)-?\w*\d)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Study:
    """`id` is the image's name without its suffix; `label` is none for an unlabelled study."""

    id: str
    image: Path
    label: Path | None = None


@dataclass(frozen=True)
class SplitFile:
    """A split file: label names and values, and lists of patients or image ids by name."""

    labels: dict[str, int]
    subsets: dict[str, list[str]]

    def members(self, subset: str, studies: Iterable[Study]) -> list[Study]:
        """Studies whose id equals an entry of the subset or begins with an entry and `_`."""
        if subset not in self.subsets:
            raise DataError(f"the split has no subset {subset!r}; it has: {', '.join(self.subsets)}")
        entries = tuple(self.subsets[subset])
        return [s for s in studies if s.id in entries or s.id.startswith(tuple(f"{entry}_" for entry in entries))]


def study_id(path: Path) -> str:
    """Name of an image file or DICOM folder without the suffixes of NIfTI."""
    name = path.name
    for suffix in (".nii.gz", ".nii"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def find_studies(images: Path, labels: Path | None = None) -> list[Study]:
    """Images of a folder (NIfTI files, and sub-folders that hold DICOM files), each with its label if there is one.

    Raises `DataError` when the folder does not exist or holds no image.
    """
    for folder in filter(None, (images, labels)):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder")
    found = [path for path in sorted(images.iterdir()) if _is_image(path)]
    if not found:
        raise DataError(f"{images}: holds no image (.nii, .nii.gz or a folder with a DICOM series)")
    studies: dict[str, Study] = {}
    for path in found:
        name = study_id(path)
        if name in studies:
            raise DataError(f"{path} and {studies[name].image.name} have the same name; keep one of them")
        studies[name] = Study(name, path, _label_of(path, labels))
    return list(studies.values())


def patient_of(study: str, pattern: str = "") -> str:
    """The patient a study belongs to, from its id.

    With a `pattern`, its first match (its first group, if it has one). Without: the BIDS subject (`sub-...`), else
    the id without the channel suffix `_0000` and without the names of phases, time points and sides: `_ED`,
    `_frame01`, `_t2`, `_baseline`, `_left`.
    """
    if pattern:
        try:
            match = re.search(pattern, study)
        except re.error as error:
            raise ConfigError(f"data.patient_pattern={pattern!r} is no regular expression: {error}") from None
        return (match.lastindex and match.group(1)) or match.group() if match else study
    if subject := re.match(r"sub-[A-Za-z0-9]+", study):
        return subject.group()
    patient = _CHANNEL_SUFFIX.sub("", study)
    while (shorter := _TIME_POINT_SUFFIX.sub("", patient)) != patient and any(map(str.isdigit, shorter)):
        patient = shorter
    return patient


def read_split(path: Path) -> SplitFile:
    """Read a split file. Raises `DataError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = {str(name): int(value) for name, value in content.pop("labels").items()}
        subsets = {name: [str(entry) for entry in entries] for name, entries in content.items()}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, AttributeError, KeyError):
        raise DataError(f"{path}: expected JSON with `labels` (name: value), `train`, `val` and lists of ids") from None
    return SplitFile(labels, subsets)


def label_names(images: Path, studies: Sequence[Study]) -> dict[str, int]:
    """Names and values of the structures: `labels.json` beside the images, else `label_<value>` for 1..largest value.

    A mask that cannot be read has no say. Raises `DataError` when `labels.json` is damaged.
    """
    if named := read_label_names(images):
        return named
    largest = 0
    for study in studies:
        with contextlib.suppress(LabelError):
            largest = max(largest, largest_value(study.label) if study.label else 0)
    return {f"label_{value}": value for value in range(1, largest + 1)}


def read_label_names(folder: Path) -> dict[str, int]:
    """Content of `labels.json` in the folder, {} when there is none. Raises `DataError` when it is damaged."""
    path = folder / LABEL_NAMES_FILE
    if not path.exists():
        return {}
    try:
        return Data(labels=json.loads(path.read_text(encoding="utf-8"))).labels
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(f'{path}: expected {{"name": value, ...}} with values 1..L ({reason})') from None


def without_labels(studies: Sequence[Study]) -> list[Study]:
    """The same studies with their masks out of reach."""
    return [replace(study, label=None) for study in studies]


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return any(path.glob("*.dcm"))
    return is_nifti(path)


def _label_of(image: Path, labels: Path | None) -> Path | None:
    if labels is None:
        return None
    candidates = (labels / f"{study_id(image)}{suffix}" for suffix in (".nii.gz", ".nii"))
    return next((path for path in candidates if path.is_file()), None)
