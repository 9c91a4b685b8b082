"""What a header says is what is there, in files of every kind that is read."""

from __future__ import annotations

import io
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from builders import PLANES, write_dicom
from damage import mutated
from pydicom.uid import DeflatedExplicitVRLittleEndian

from vqseg.data.header import read_declared
from vqseg.errors import ImageError

MUTATIONS = 3000


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_nifti(tmp_path: Path, kind: type, ending: str, dtype: type) -> None:
    path = tmp_path / f"image{ending}"
    image = kind(np.zeros((7, 5, 3), dtype), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    nib.save(image, path)
    with path.open("rb") as file:
        declared = read_declared(file, "image")
    assert (declared.shape, declared.stored_bytes) == ((7, 5, 3), 105 * np.dtype(dtype).itemsize)
    assert declared.reading_bytes == declared.stored_bytes + 105 * 8


def test_dicom_and_the_kind_of_it_that_says_nothing(tmp_path: Path) -> None:
    write_dicom(tmp_path / "series", np.zeros((6, 5, 4), np.int16), *PLANES["axial"], (1, 1, 1))
    file = next((tmp_path / "series").iterdir())
    slice_ = pydicom.dcmread(file)
    with file.open("rb") as stream:
        assert read_declared(stream, "slice").voxels == slice_.Rows * slice_.Columns
    slice_.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    slice_.save_as(tmp_path / "deflated.dcm")
    with pytest.raises(ImageError, match="deflated DICOM"):
        read_declared(io.BytesIO((tmp_path / "deflated.dcm").read_bytes()), "slice")


@pytest.mark.parametrize("kind", ["NIfTI", "DICOM"])
def test_a_damaged_header_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    if kind == "DICOM":
        write_dicom(tmp_path / "series", np.zeros((6, 5, 1), np.int16), *PLANES["axial"], (1, 1, 1))
        whole = next((tmp_path / "series").iterdir()).read_bytes()
    else:
        whole = nib.Nifti1Image(np.zeros((7, 5, 3), np.int16), np.eye(4)).to_bytes()
    draw, refused = random.Random(0), 0
    for _ in range(MUTATIONS):
        try:
            read_declared(io.BytesIO(mutated(whole, draw, len(whole))), "file")
        except ImageError:
            refused += 1
    assert MUTATIONS / 20 < refused < MUTATIONS


@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan, 1e30])
def test_voxels_that_begin_nowhere(offset: float) -> None:
    image = nib.Nifti1Image(np.zeros((7, 5, 3), np.int16), np.eye(4))
    image.header["vox_offset"] = offset
    with pytest.raises(ImageError, match=r"cannot be read|bytes long"):
        read_declared(io.BytesIO(image.header.binaryblock + bytes(1000)), "file")
