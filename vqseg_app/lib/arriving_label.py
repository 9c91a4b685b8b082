"""A label as a client sends it becomes a mask with our values: numbers are mapped by the names given with them.

OHIF numbers segments alphabetically by name, Slicer by their order in the list, and both say so in `label_info`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from vqseg.data.grid import Grid
from vqseg.data.reading import read_mask
from vqseg.errors import LabelError

from .labels import names_of
from .temporary_files import temporary_folder

_ANY = {f"label_{value}": value for value in range(1, 256)}


def read_arriving_label(
    file: Path, name: str, grid: Grid, labels: Mapping[str, int], label_info: Any, *, fixed: bool = True
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Mask in RAS+ axis order with our values, and `label_info` with the same numbers.

    `labels` are the structures that are known (empty: not yet known), `name` stands in messages. Unless the set is
    `fixed`, a structure that is not known gets the next value that is free.
    Raises `LabelError` in words when the label does not fit the image or the structures.
    """
    given = names_of(label_info)
    unknown = [structure for structure in given if labels and structure not in labels]
    if unknown and fixed:
        raise LabelError(name, f"unknown structure {unknown[0]!r}; known: {', '.join(labels)}")
    try:
        mask = _read(file, grid, given or labels or _ANY)
    except LabelError as error:
        raise LabelError(name, str(error).removeprefix(f"{file}: ")) from None
    known = {**labels, **dict(zip(unknown, count(max(labels.values(), default=0) + 1)))}
    ours = {value: known.get(structure, value) for structure, value in given.items()}
    if max(ours.values(), default=0) > 255:
        raise LabelError(name, f"there is no free value for {unknown[-1]!r}: a mask holds 1..255")
    if any(value != target for value, target in ours.items()):
        table = np.arange(256, dtype=np.uint8)
        table[list(ours)] = list(ours.values())
        mask = table[mask]
    return mask, [{"name": structure, "idx": ours[value]} for structure, value in given.items()]


def _read(file: Path, grid: Grid, values: Mapping[str, int]) -> np.ndarray:
    if not file.name.endswith(".bin"):
        return read_mask(file, grid, values)
    # OHIF sends the bare voxels, one byte each, the first axis of the image's file running fastest.
    voxels = np.fromfile(file, np.uint8)
    if voxels.size != np.prod(grid.shape):
        raise LabelError(file, f"it has {voxels.size} voxels; the image has {np.prod(grid.shape)} {grid.shape}")
    with temporary_folder() as folder:
        nifti = Path(folder) / "label.nii"
        nib.save(nib.Nifti1Image(voxels.reshape(grid.shape, order="F"), grid.affine), nifti)
        try:
            return read_mask(nifti, grid, values)
        except LabelError as error:
            raise LabelError(file, str(error).removeprefix(f"{nifti}: ")) from None
