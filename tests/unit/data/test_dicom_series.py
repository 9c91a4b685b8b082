"""A DICOM series is a volume when its slices say so, whatever its files are called; else its fault is named."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import PLANES, edit_dicom, move_slice, rotation, slice_file, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from vqseg.data.dicom_series import read_series, read_series_header, series_files
from vqseg.data.reading import read_image
from vqseg.errors import ImageError

SHAPE, SPACING, ORIGIN = (5, 4, 6), (0.8, 1.1, 3.5), (12.5, -40.25, 7.0)
quick = settings(max_examples=15, deadline=None)
Series = tuple[Path, NDArray[np.int16], NDArray[np.float64]]


def some_series(folder: Path, plane: str = "axial", shape: tuple[int, int, int] = SHAPE) -> Series:
    """A new series, its voxels and its affine; instance numbers fall while the index of the slice grows."""
    array = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    return folder / "series", array, write_dicom(folder / "series", array, *PLANES[plane], SPACING, ORIGIN)


def assert_read(folder: Path, array: NDArray, affine: NDArray) -> None:
    voxels, grid = read_series(folder)
    np.testing.assert_array_equal(voxels, array)
    np.testing.assert_allclose(grid.affine, affine, atol=1e-4)
    assert grid.shape == array.shape


@quick
@given(
    numbers=st.permutations(range(SHAPE[2])) | st.lists(st.integers(1, 3), min_size=SHAPE[2], max_size=SHAPE[2]),
    names=st.permutations(range(SHAPE[2])),
    plane=st.sampled_from(list(PLANES)),
)
def test_slices_come_in_the_order_of_space_whatever_names_and_numbers_say(
    numbers: list[int], names: list[int], plane: str
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder, array, affine = some_series(Path(temporary), plane)
        for index, (number, name) in enumerate(zip(numbers, names, strict=True)):
            edit_dicom(slice_file(folder, index), InstanceNumber=number)
            slice_file(folder, index).rename(folder / f"IM{name}")
        assert [file.name for file in series_files(folder)] == [f"IM{name}" for name in names]
        assert_read(folder, array, affine)


@quick
@given(degrees=st.tuples(*[st.floats(-180, 180)] * 3), spacing=st.tuples(*[st.floats(0.3, 6)] * 3))
def test_a_series_lies_where_the_standard_says_at_any_angle(
    degrees: tuple[float, float, float], spacing: tuple[float, float, float]
) -> None:
    turn = rotation(degrees)
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 3, 3)).astype(np.int16)
    with tempfile.TemporaryDirectory() as temporary:
        affine = write_dicom(Path(temporary) / "series", array, turn[:, 0], turn[:, 1], spacing, ORIGIN)
        assert_read(Path(temporary) / "series", array, affine)


@quick
@given(seed=st.integers(0, 10_000), plane=st.sampled_from(list(PLANES)))
def test_positions_a_little_off_are_no_fault(seed: int, plane: str) -> None:
    shifts = np.random.default_rng(seed).choice([-0.01, 0, 0.01], (SHAPE[2], 3)) * SPACING[2]
    with tempfile.TemporaryDirectory() as temporary:
        folder, array, affine = some_series(Path(temporary), plane)
        move_all(folder, shifts)
        voxels, grid = read_series(folder)
        np.testing.assert_array_equal(voxels, array)
        assert grid.displacement(type(grid)(SHAPE, affine)) < 0.05 * SPACING[2]


def test_a_file_is_a_series_of_one(tmp_path: Path) -> None:
    folder, array, affine = some_series(tmp_path)
    moved = affine.copy()
    moved[:3, 3] += 2 * affine[:3, 2]
    assert series_files(slice_file(folder, 2)) == [slice_file(folder, 2)]
    assert_read(slice_file(folder, 2), array[:, :, 2:3], moved)


def test_the_distance_of_slices_is_not_their_thickness(tmp_path: Path) -> None:
    folder, array, affine = some_series(tmp_path)
    for file in series_files(folder):
        edit_dicom(file, SliceThickness=5)
    assert_read(folder, array, affine)


def test_a_header_is_read_without_its_pixels(tmp_path: Path) -> None:
    header = read_series_header(slice_file(some_series(tmp_path)[0], 0))
    assert header.Modality == "CT"
    assert "PixelData" not in header


def move_all(folder: Path, shifts: Sequence[Sequence[float]]) -> None:
    for index, shift in enumerate(shifts):
        move_slice(folder, index, shift)


def edit_all(folder: Path, **attributes: object) -> None:
    for file in sorted(folder.iterdir()):
        edit_dicom(file, **attributes)


def copy_slice(folder: Path, index: int, number: int) -> None:
    data = pydicom.dcmread(slice_file(folder, index))
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.InstanceNumber = number
    data.save_as(folder / "another.dcm")


def make_smaller(folder: Path, index: int) -> None:
    columns, rows, _ = SHAPE
    edit_dicom(slice_file(folder, index), Rows=rows - 1, PixelData=bytes(2 * columns * (rows - 1)))


STEP = SPACING[2]
# What happens to a series of 6 slices with instances 6, 5, .., 1, and what is said of it. Slices are 3.5 mm apart.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a slice is missing": (
        lambda folder: slice_file(folder, 3).unlink(),
        r"3\.5 mm apart, but 7 mm between instances 4 and 2: some are missing",
    ),
    "the second slice is missing": (
        lambda folder: slice_file(folder, 1).unlink(),
        r"7 mm between instances 6 and 4: some are missing",
    ),
    "a slice is moved along": (
        lambda folder: move_slice(folder, 5, (0, 0, 0.2 * STEP)),
        r"4\.2 mm between instances 2 and 1: some are missing",
    ),
    "distances grow": (
        lambda folder: move_all(folder, [(0, 0, 0.03 * STEP * abs(index - 2.5) ** 2) for index in range(6)]),
        "some are missing, or it is no volume",
    ),
    "neighbours at one place": (
        lambda folder: move_slice(folder, 3, (0, 0, -STEP)),
        "same place: instances (3 and 4|4 and 3); remove one",
    ),
    "the last at the place of the second": (
        lambda folder: move_slice(folder, 5, (0, 0, -4 * STEP)),
        "same place: instances (1 and 5|5 and 1); remove one",
    ),
    "one slice more": (
        lambda folder: copy_slice(folder, 2, 77),
        "same place: instances (4 and 77|77 and 4); remove one",
    ),
    "time": (
        lambda folder: move_all(folder, [(0, 0, STEP * (index % 2 - index)) for index in range(6)]),
        "same place: instances",
    ),
    "gantry tilt": (
        lambda folder: move_all(folder, [(0, STEP * index * np.tan(np.radians(12)), 0) for index in range(6)]),
        r"tilted by 12\.0 degrees \(gantry tilt\)",
    ),
    "a slice is moved aside": (lambda folder: move_slice(folder, 2, (1.5, 0, 0)), r"instance 4 by 1\.5 mm"),
    "no slice has a position": (lambda folder: edit_all(folder, ImagePositionPatient=None), "do not say where"),
    "a slice has no position": (
        lambda folder: edit_dicom(slice_file(folder, 2), ImagePositionPatient=None),
        "do not say where",
    ),
    "a slice has an empty position": (
        lambda folder: edit_dicom(slice_file(folder, 2), ImagePositionPatient=[]),
        "do not say where",
    ),
    "no slice has a direction": (lambda folder: edit_all(folder, ImageOrientationPatient=None), "do not say where"),
    "a slice is smaller": (lambda folder: make_smaller(folder, 2), "differ in size: . in instance"),
    "the first slice is smaller": (lambda folder: make_smaller(folder, 0), "differ in size: . in instance"),
    "a slice has larger pixels": (
        lambda folder: edit_dicom(slice_file(folder, 2), PixelSpacing=[2, 2]),
        "differ in pixel spacing: .* in instance 4",
    ),
    "a slice lies across": (
        lambda folder: edit_dicom(slice_file(folder, 2), ImageOrientationPatient=[1, 0, 0, 0, 0, 1]),
        "differ in direction: .* in instance 4",
    ),
    "two series": (
        lambda folder: edit_dicom(slice_file(folder, 2), SeriesInstanceUID=generate_uid()),
        "one DICOM series.* found 2",
    ),
    "no series": (lambda folder: [file.unlink() for file in folder.iterdir()], "one DICOM series.* found 0"),
    "colour": (
        lambda folder: edit_all(
            folder,
            SamplesPerPixel=3,
            PhotometricInterpretation="RGB",
            PlanarConfiguration=0,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
            PixelData=bytes(3 * SHAPE[0] * SHAPE[1]),
        ),
        "no colour",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_series_that_is_no_volume_is_named_with_its_fault(fault: str, tmp_path: Path) -> None:
    folder, _, _ = some_series(tmp_path)
    make, words = FAULTS[fault]
    make(folder)
    with pytest.raises(ImageError, match=words) as caught:
        read_image(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("degrees", [0.5, 2, 30])
@pytest.mark.parametrize("plane", PLANES)
def test_a_tilted_gantry_is_seen_in_every_plane(plane: str, degrees: float, tmp_path: Path) -> None:
    folder, _, _ = some_series(tmp_path, plane, (5, 4, 16))
    column = np.array(PLANES[plane][1])
    move_all(folder, [column * STEP * index * np.tan(np.radians(degrees)) for index in range(16)])
    with pytest.raises(ImageError, match=rf"tilted by {degrees:.1f} degrees"):
        read_image(folder)


def test_distances_that_are_each_a_little_off_add_up(tmp_path: Path) -> None:
    folder, _, _ = some_series(tmp_path, shape=(5, 4, 21))
    move_all(folder, [(0, 0, 0.04 * STEP * min(index, 20 - index)) for index in range(21)])
    with pytest.raises(ImageError, match="it is no volume"):
        read_image(folder)


@pytest.mark.parametrize("damage", ["behind the pixels", "before the pixels", "cut"])
def test_an_element_longer_than_its_file_is_named(damage: str, tmp_path: Path) -> None:
    """GDCM would set gigabytes aside for what such an element says it holds."""
    folder, *_ = some_series(tmp_path)
    file = slice_file(folder, 0)
    content = file.read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00OW")
    endless = b"\x09\x00\x10\x10UN\x00\x00" + struct.pack("<I", 0xFFFFFFF0)
    if damage == "cut":
        content = content[:-7]
    elif damage == "behind the pixels":
        content += b"\xfc\xff\xfc\xff" + endless[4:] + bytes(20)
    else:
        content = content[:pixels] + endless + content[pixels:]
    file.write_bytes(content)
    for path in (folder, file):
        with pytest.raises(ImageError, match=f"the file ends at byte {len(content)}") as raised:
            read_image(path)
        assert file.name in str(raised.value)


@pytest.mark.parametrize("lost", ["Rows", "Columns", "everything"])
def test_a_file_without_rows_and_columns_is_refused_before_its_voxels_are_read(lost: str, tmp_path: Path) -> None:
    """Where pydicom finds no element it raises nothing, and GDCM may read text as lengths of gigabytes."""
    write_dicom(tmp_path / "series", np.zeros((6, 5, 1), np.int16), *PLANES["axial"], (1, 1, 1))
    whole = pydicom.dcmread(next((tmp_path / "series").iterdir()))
    for name in [element.keyword for element in whole] if lost == "everything" else [lost]:
        delattr(whole, name)
    whole.save_as(tmp_path / "damaged.dcm")
    with pytest.raises(ImageError, match="says nothing of Rows and Columns"):
        read_image(tmp_path / "damaged.dcm")
