"""The demonstration studies as DICOM are those that the folder server has as NIfTI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from servers import ROOT, script_module

from vqseg.data.phantom import LABELS, write_demo_studies
from vqseg.data.reading import read_grid, read_image, read_mask

demonstration = script_module(ROOT / "apps" / "pacs" / "demonstration.py")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """NIfTI and DICOM: straight, oblique and flipped ones, three of them labelled."""
    folder = tmp_path_factory.mktemp("demonstration")
    write_demo_studies(folder / "nifti", 4)
    demonstration.write_demonstration(folder / "dicom", 4)
    return folder / "nifti", folder / "dicom"


@pytest.mark.parametrize("name", ["phantom_01", "phantom_02", "phantom_03", "phantom_04"])
def test_voxels_and_masks_lie_where_they_lay(folders: tuple[Path, Path], name: str) -> None:
    nifti, dicom = folders
    image, series = read_image(nifti / f"{name}.nii.gz"), read_image(dicom / name)
    assert np.array_equal(image.array, series.array)
    assert np.allclose(image.affine, series.affine, atol=1e-3)
    label = nifti / "labels" / "final" / f"{name}.nii.gz"
    assert (dicom / f"{name}_label.dcm").exists() == label.exists()
    if label.exists():
        stored = read_mask(dicom / f"{name}_label.dcm", read_grid(dicom / name), LABELS)
        assert np.array_equal(stored, read_mask(label, image.grid, LABELS))


def test_it_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "apps" / "pacs" / "demonstration.py"), "--help"]
    assert "--out" in subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
