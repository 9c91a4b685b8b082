"""Small real parts for tests: NIfTI files on any grid, DICOM series, studies with two blobs, a tiny configuration."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds
from torch import nn

from vqseg.config import Config, load_config
from vqseg.data.grid import Grid
from vqseg.data.reading import Volume
from vqseg.data.studies import Study
from vqseg.networks.vqseg import VQSeg
from vqseg.torchvision_schemas import import_transformers

LABELS = {"left": 1, "right": 2}

# All 48 ways to lay the three axes of an array along the patient's, as nibabel writes them.
ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*axes)
]

TINY: dict[str, Any] = {
    "data.labels": LABELS,
    "data.patch_size": (8, 8, 8),
    "data.spacing": (2.0, 2.0, 2.0),
    "model.channels": (4, 8),
    "model.first_quantized_level": 1,
    "model.shallow_skips": False,
    "model.code_groups": 1,
    "model.codebook_size": 32,
    "model.code_dim": 4,
    "train.steps": 6,
    "train.labelled_batch": 1,
    "train.unlabelled_batch": 1,
    "train.validate_every": 3,
    "train.checkpoint_every": 2,
    "train.mixed_precision": False,
}
TINY_2D: dict[str, Any] = {"data.spatial_dims": 2, "data.slice_axis": 2, "data.patch_size": (8, 8)}
TINY_FOUNDATION: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def tiny_config(overrides: dict[str, Any] | None = None) -> Config:
    """A planned configuration with two levels and an 8^3 patch."""
    return load_config(overrides=TINY | (overrides or {}))


def tiny_network(config: Config, seed: int = 0) -> VQSeg:
    """The same weights for the same seed, without touching the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VQSeg(config).eval()


def state_of(network: nn.Module) -> dict[str, NDArray]:
    """A copy of all weights and buffers."""
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}


def foundation_folder(
    path: Path,
    *,
    kind: str = "Dinov2",
    mean: Sequence[float] = (0.4, 0.45, 0.5),
    std: Sequence[float] = (0.2, 0.25, 0.3),
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """A folder of transformers with a tiny vision transformer of random weights; the same seed gives the same ones.

    `kind` as transformers names its classes; `overrides` of the architecture.
    """
    transformers = import_transformers()
    config = getattr(transformers, f"{kind}Config")(**TINY_FOUNDATION | overrides)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(path)
    size = {"height": config.image_size, "width": config.image_size}
    processor = transformers.BitImageProcessor(image_mean=list(mean), image_std=list(std), size=size, crop_size=size)
    processor.save_pretrained(path)
    return path


def cut_off_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 does before a process starts; without it a test would wait for the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def rotation(degrees: Sequence[float]) -> NDArray[np.float64]:
    """Rotation about the three axes, one after another."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


TURN = rotation((12, -7, 20))

# How DICOM slices can lie: the directions (LPS) in which the column and the row index grow.
PLANES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "mirrored": ((-1, 0, 0), (0, 1, 0)),
    "oblique": (TURN[:, 0], TURN[:, 1]),
}


def make_affine(
    shape: Sequence[int],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    orientation: str = "RAS",
    degrees: Sequence[float] = (0.0, 0.0, 0.0),
    centre: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """Affine of a file of `shape`, its axes along `orientation`, `spacing` in the file's axis order; `centre` in mm."""
    axes = nib.orientations.axcodes2ornt(tuple(orientation))
    affine = np.eye(4)
    for file_axis, (axis, sign) in enumerate(axes):
        affine[:3, file_axis] = np.eye(3)[int(axis)] * sign * spacing[file_axis]
    affine[:3, :3] = rotation(degrees) @ affine[:3, :3]
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write_nifti(path: Path, array: NDArray, affine: NDArray | None = None) -> Path:
    """Write an array of the file's own axis order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    nib.save(image, path)
    return path


def stored(path: Path) -> tuple[NDArray, NDArray[np.float64]]:
    """What a file holds, in its own axis order, read without the library."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def make_volume(array: NDArray, affine: NDArray | None = None) -> Volume:
    """A volume as `read_image` makes it of a file with this array and affine."""
    grid = Grid(array.shape, np.eye(4) if affine is None else affine)
    return Volume(np.ascontiguousarray(grid.to_ras(array.astype(np.float32))), grid)


def blob_pair(
    shape: Sequence[int], affine: NDArray, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and mask of two bright balls in millimetres, one on each side of the patient's middle."""
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(tuple(shape)), 0, -1))
    image = rng.normal(0, 0.1, tuple(shape)).astype(np.float32)
    mask = np.zeros(tuple(shape), np.uint8)
    for value, side in ((1, -1), (2, 1)):
        centre = np.array([side * 5.0, 0, 0]) + rng.uniform(-1, 1, 3)
        inside = np.linalg.norm(points - centre, axis=-1) < 4
        image[inside] += 2 * value
        mask[inside] = value
    return image, mask


def write_studies(
    folder: Path, count: int, labelled: int | None = None, *, shape: Sequence[int] = (12, 8, 8), seed: int = 0
) -> list[Study]:
    """`count` studies s_01.. in `folder/images`, masks of the first `labelled` (all by default) in `folder/labels`.

    Voxels of 2 mm; every second study is stored with permuted and flipped axes.
    """
    studies = []
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        orientation, size = ("RAS", tuple(shape)) if index % 2 == 0 else ("PSL", (shape[1], shape[2], shape[0]))
        affine = make_affine(size, (2.0, 2.0, 2.0), orientation)
        image, mask = blob_pair(size, affine, np.random.default_rng((seed, index)))
        name = f"s{index + 1:02d}.nii.gz"
        path, label = write_nifti(folder / "images" / name, image, affine), None
        if labelled is None or index < labelled:
            label = write_nifti(folder / "labels" / name, mask, affine)
        studies.append(Study(name[:-7], path, label))
    return studies


def write_dicom(
    folder: Path,
    array: NDArray[np.int16],
    row: Sequence[float],
    column: Sequence[float],
    spacing: Sequence[float],
    origin: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """Write an array (columns, rows, slices) as a series and return the affine to RAS that the standard gives it.

    `row` and `column` are the directions (LPS) in which the column and the row index grow; `spacing` between columns,
    rows and slices. File names are in no order, so that only the positions say how slices follow each other.
    """
    folder.mkdir(parents=True)
    row, column = np.asarray(row, np.float64), np.asarray(column, np.float64)
    normal = np.cross(row, column)
    series, study = generate_uid(), generate_uid()
    for index in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, generate_uid()
        path = slice_file(folder, index)
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.is_little_endian, data.is_implicit_VR = True, False
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID = series, study
        data.FrameOfReferenceUID, data.StudyID, data.AccessionNumber = study, "", ""
        data.StudyDate, data.StudyTime = "20200101", "120000"
        data.PatientName, data.PatientBirthDate, data.PatientSex = "Doe^Jane", "", ""
        data.Modality, data.PatientID, data.InstanceNumber = "CT", "test", array.shape[2] - index
        data.Columns, data.Rows = array.shape[:2]
        data.ImageOrientationPatient = [format_number_as_ds(value) for value in (*row, *column)]
        position = np.asarray(origin) + index * spacing[2] * normal
        data.ImagePositionPatient = [format_number_as_ds(value) for value in position]
        data.PixelSpacing, data.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = np.ascontiguousarray(array[:, :, index].T).tobytes()
        pydicom.dcmwrite(path, data)
    lps = np.eye(4)
    lps[:3, :3] = np.column_stack([row * spacing[0], column * spacing[1], normal * spacing[2]])
    lps[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def write_identified(source: Path, folder: Path) -> Path:
    """Copy a series whose files lack the UIDs without which no PACS takes them, with new ones; returns `folder`."""
    study, series = generate_uid(), generate_uid()
    folder.mkdir(parents=True)
    for file in source.iterdir():
        data = pydicom.dcmread(file)
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
        data.save_as(folder / file.name)
    return folder


def slice_file(folder: Path, index: int) -> Path:
    """The file in which `write_dicom` puts slice `index`, the first along the normal being 0."""
    return folder / f"{(index * 7) % 101:03d}.dcm"


def edit_dicom(path: Path, **attributes: Any) -> None:
    """Change attributes of a DICOM file; none removes one."""
    data = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    data.save_as(path)


def move_slice(folder: Path, index: int, shift: Sequence[float]) -> None:
    """Move a slice by millimetres in the patient (LPS)."""
    path = slice_file(folder, index)
    position = np.array(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient, np.float64) + shift
    edit_dicom(path, ImagePositionPatient=[format_number_as_ds(value) for value in position])


def real_data(name: str) -> Path:
    """A file or folder of the real images; without them the test is skipped. `VQSEG_DATA` says where they are."""
    root = Path(os.environ.get("VQSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (root / name).exists():
        pytest.skip(f"needs the real images: there is no {root / name}; VQSEG_DATA says where they are")
    return root / name
