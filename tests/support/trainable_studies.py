"""Folders of studies on which a training of seconds learns something."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from builders import real_data, write_nifti

from vqseg.data.phantom import Grid, draw_anatomy, render

LABELLED, UNLABELLED = 4, 5


@dataclass(frozen=True)
class Studies:
    """A folder of studies, the first of which are labelled, and what training on them takes."""

    folder: Path
    conf: Mapping[str, str]

    @property
    def ids(self) -> list[str]:
        return sorted(path.name.removesuffix(".nii.gz") for path in self.folder.glob("*.nii.gz"))

    def label_of(self, image: str) -> Path:
        return self.folder / "labels" / "final" / f"{image}.nii.gz"


def hippocampi(folder: Path) -> Studies:
    source, final = real_data("hippocampus"), folder / "labels" / "final"
    final.mkdir(parents=True)
    for at, image in enumerate(sorted((source / "images").iterdir())[: LABELLED + UNLABELLED]):
        shutil.copy(image, folder)
        if at < LABELLED:
            shutil.copy(source / "labels" / image.name, final)
    return Studies(folder, {"labels": "anterior,posterior", "data.spacing": "[2,2,2]", "data.patch_size": "[16,24,16]"})


def phantoms(folder: Path) -> Studies:
    grid, final = Grid((32, 26, 18), (10.0, 10.0, 13.0)), folder / "labels" / "final"
    final.mkdir(parents=True)
    for number in range(LABELLED + UNLABELLED):
        rng = np.random.default_rng(number)
        image, mask = render(draw_anatomy(rng), grid, rng)
        write_nifti(folder / f"phantom_{number}.nii.gz", image, grid.affine)
        if number < LABELLED:
            write_nifti(final / f"phantom_{number}.nii.gz", mask, grid.affine)
    return Studies(folder, {"labels": "lung,tumour"})
