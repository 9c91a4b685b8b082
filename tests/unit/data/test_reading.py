"""A mask never moves a voxel; an image that cannot be used is named, with the reason."""

from __future__ import annotations

import contextlib
import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import LABELS, ORIENTATIONS, make_affine, rotation, stored, write_dicom, write_nifti
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqseg.data.reading import largest_value, read_grid, read_image, read_mask, write_mask
from vqseg.errors import ImageError, LabelError, VQSegError

SHAPE, SPACING, OBLIQUE = (3, 4, 5), (0.7, 1.3, 2.9), (11.0, -17.0, 8.0)
in_one_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some_mask(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)


def truncated_gzip(path: Path) -> None:
    write_nifti(path, np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:-100])


def edit_header(path: Path, offset: int, form: str, *values: float) -> None:
    """Write an image, then change bytes of its header."""
    content = bytearray(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)).to_bytes())
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.touch(), "cannot be read"),
    "corrupt": (lambda path: path.write_bytes(bytes(range(256)) * 8), "cannot be read"),
    "truncated": (truncated_gzip, "cannot be read"),
    "2D": (lambda path: write_nifti(path, np.ones((4, 4), np.float32)), "2 dimensions"),
    "4D": (lambda path: write_nifti(path, np.ones((4, 4, 4, 2), np.float32)), "4 dimensions"),
    "RGB": (lambda path: write_nifti(path, np.zeros((4, 4, 4), "u1,u1,u1").astype([(c, "u1") for c in "RGB"])), "RGB"),
    "complex": (lambda path: write_nifti(path, np.ones((4, 4, 4), np.complex64)), "complex"),
    "zero affine": (lambda path: edit_header(path, 280, "<12f", *[0.0] * 12), "affine"),
    "NaN affine": (lambda path: edit_header(path, 280, "<12f", *[np.nan] * 12), "affine"),
    "huge": (lambda path: edit_header(path, 40, "<4h", 3, 30000, 30000, 30000), "size"),
    "no voxel": (lambda path: edit_header(path, 40, "<4h", 3, 4, 0, 4), "size"),
}


@pytest.mark.parametrize("kind", [*BAD, "all NaN"])
def test_bad_image_is_named_with_its_reason(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "an image.nii.gz"
    all_nan = (lambda path: write_nifti(path, np.full((4, 4, 4), np.nan, np.float32)), "finite")
    make, reason = BAD.get(kind, all_nan)
    make(path)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BAD)
def test_bad_label_is_named_as_a_label(kind: str, tmp_path: Path) -> None:
    image, label = write_nifti(tmp_path / "i.nii.gz", np.ones((4, 4, 4), np.float32)), tmp_path / "l.nii.gz"
    BAD[kind][0](label)
    with pytest.raises(LabelError, match=BAD[kind][1]) as caught:
        read_mask(label, read_grid(image), LABELS)
    assert str(label) in str(caught.value)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4, 5), np.uint8), "shape"),
        (np.full((4, 4, 4), 3, np.uint8), "value 3"),
        (np.full((4, 4, 4), 258, np.int16), "value 258"),
        (np.full((4, 4, 4), -1, np.int16), "value -1"),
        (np.full((4, 4, 4), 0.5, np.float32), "value 0.5"),
        (np.full((4, 4, 4), np.nan, np.float32), "value nan"),
        (np.full((4, 4, 4), np.inf, np.float32), "value inf"),
    ],
)
def test_label_that_does_not_fit_is_refused(array: NDArray, reason: str, tmp_path: Path) -> None:
    grid = read_grid(write_nifti(tmp_path / "i.nii.gz", np.ones((4, 4, 4), np.float32)))
    label = write_nifti(tmp_path / "l.nii.gz", array)
    with pytest.raises(LabelError, match=reason) as caught:
        read_mask(label, grid, LABELS)
    assert str(label) in str(caught.value)


def test_label_elsewhere_in_space_is_refused_and_rounding_is_not(tmp_path: Path) -> None:
    affine = make_affine(SHAPE, SPACING, "LAS", OBLIQUE)
    grid = read_grid(write_nifti(tmp_path / "i.nii.gz", np.ones(SHAPE, np.float32), affine))
    rounded, moved, flipped = affine.copy(), affine.copy(), make_affine(SHAPE, SPACING, "RAS", OBLIQUE)
    rounded[:3, 3] += 1e-4
    moved[0, 3] += SPACING[0]
    read_mask(write_nifti(tmp_path / "rounded.nii.gz", some_mask(), rounded), grid, LABELS)
    for name, other in (("moved", moved), ("flipped", flipped)):
        with pytest.raises(LabelError, match="affines differ"):
            read_mask(write_nifti(tmp_path / f"{name}.nii.gz", some_mask(), other), grid, LABELS)


def test_label_must_be_nifti(tmp_path: Path) -> None:
    grid = read_grid(write_nifti(tmp_path / "i.nii.gz", np.ones(SHAPE, np.float32)))
    (tmp_path / "mask.png").touch()
    with pytest.raises(LabelError, match="NIfTI"):
        read_mask(tmp_path / "mask.png", grid, LABELS)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("degrees", [(0.0, 0.0, 0.0), OBLIQUE], ids=["straight", "oblique"])
def test_mask_comes_back_without_moving_a_voxel(
    orientation: str, degrees: tuple[float, float, float], tmp_path: Path
) -> None:
    affine = make_affine(SHAPE, SPACING, orientation, degrees, centre=(5, -30, 12))
    path = write_nifti(tmp_path / "mask.nii.gz", some_mask(), affine)
    grid = read_grid(path)
    mask = read_mask(path, grid, LABELS)
    write_mask(mask, grid, tmp_path / "again.nii.gz")
    array, written = stored(tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(array, some_mask())
    np.testing.assert_array_equal(written, stored(path)[1])
    assert array.dtype == np.uint8
    # In memory: the same voxels at the same places in the patient, on axes along R, A and S.
    assert mask.shape == grid.canonical_shape
    assert "".join(nib.aff2axcodes(grid.canonical_affine)) == "RAS"
    np.testing.assert_allclose(nib.affines.voxel_sizes(grid.canonical_affine), grid.spacing)
    for value in (1, 2):
        in_memory = nib.affines.apply_affine(grid.canonical_affine, np.argwhere(mask == value))
        in_file = nib.affines.apply_affine(grid.affine, np.argwhere(some_mask() == value))
        order = [np.lexsort(np.round(points, 3).T) for points in (in_memory, in_file)]
        np.testing.assert_allclose(in_memory[order[0]], in_file[order[1]], atol=1e-4)


@in_one_folder
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 9)] * 3),
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
)
def test_any_grid_restores_what_it_reorients(
    tmp_path: Path,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    degrees: tuple[float, float, float],
    orientation: str,
) -> None:
    affine = make_affine(shape, spacing, orientation, degrees)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    volume = read_image(write_nifti(tmp_path / "i.nii", array, affine))
    np.testing.assert_array_equal(volume.grid.restore(volume.array), array)
    assert volume.array.shape == volume.grid.canonical_shape
    np.testing.assert_allclose(sorted(volume.spacing), sorted(spacing), rtol=1e-4)


def test_trailing_axes_of_one_are_no_dimensions(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "i.nii.gz", some_mask()[..., None].astype(np.float32))
    assert read_image(path).array.shape == SHAPE
    mask = write_nifti(tmp_path / "m.nii.gz", some_mask()[..., None])
    np.testing.assert_array_equal(read_mask(mask, read_grid(path), LABELS), some_mask())


def test_scaled_and_big_endian_values_are_read_as_meant(tmp_path: Path) -> None:
    values = np.arange(60, dtype=">i2").reshape(SHAPE)
    image = nib.Nifti1Image(values, np.eye(4), header=nib.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(2, -1024)
    nib.save(image, tmp_path / "i.nii.gz")
    stored_values = np.asarray(nib.load(tmp_path / "i.nii.gz").dataobj)
    np.testing.assert_allclose(read_image(tmp_path / "i.nii.gz").array, stored_values)


def test_voxels_that_are_not_finite_become_the_lowest(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.float32).reshape(SHAPE) - 7
    array[0, 0, 1:] = np.nan, np.inf, -np.inf, np.nan
    image = read_image(write_nifti(tmp_path / "i.nii.gz", array)).array
    assert np.isfinite(image).all()
    assert set(image[0, 0]) == {-7.0}
    np.testing.assert_array_equal(image[1:], array[1:])


def test_values_beyond_float32_do_no_harm(tmp_path: Path) -> None:
    array = np.ones(SHAPE)
    array[0, 0, 0] = 1e300
    assert np.isfinite(read_image(write_nifti(tmp_path / "i.nii.gz", array)).array).all()


@in_one_folder
@given(position=st.integers(0, 351), value=st.integers(0, 255))
def test_a_damaged_header_never_shows_a_stack_trace(tmp_path: Path, position: int, value: int) -> None:
    content = bytearray(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)).to_bytes())
    content[position] = value
    path = tmp_path / "i.nii"
    path.write_bytes(bytes(content))
    for read in (read_grid, read_image, largest_value):
        try:
            read(path)
        except VQSegError as error:
            assert str(path) in str(error)  # noqa: PT017 - no error is as right


def test_grid_of_a_nifti_needs_its_header_only(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "i.nii", np.ones(SHAPE, np.float32))
    path.write_bytes(path.read_bytes()[:352])
    assert read_grid(path).shape == SHAPE


@pytest.mark.parametrize("array", [np.full(SHAPE, np.inf), np.full(SHAPE, np.nan), np.zeros(SHAPE, np.complex64)])
def test_largest_value_of_a_bad_mask_is_an_error_in_words(array: NDArray, tmp_path: Path) -> None:
    with pytest.raises(LabelError):
        largest_value(write_nifti(tmp_path / "m.nii.gz", array))


def test_mask_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = read_grid(write_nifti(tmp_path / "i.nii.gz", np.ones(SHAPE, np.float32)))
    write_mask(some_mask(), grid, tmp_path / "new folder" / "m.nii.gz")
    before = (tmp_path / "new folder" / "m.nii.gz").read_bytes()

    def half(image: nib.Nifti1Image, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", half)
    with pytest.raises(KeyboardInterrupt):
        write_mask(np.zeros(SHAPE, np.uint8), grid, tmp_path / "new folder" / "m.nii.gz")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new folder").iterdir()} == {"m.nii.gz": before}


TURN = rotation((12, -7, 20))


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ((1, 0, 0), (0, 1, 0)),
        ((0, 1, 0), (0, 0, -1)),
        ((1, 0, 0), (0, 0, -1)),
        ((-1, 0, 0), (0, 1, 0)),
        (TURN[:, 0], TURN[:, 1]),
    ],
    ids=["axial", "sagittal", "coronal", "mirrored", "oblique"],
)
def test_dicom_series_lies_where_the_standard_says(
    row: tuple[float, float, float], column: tuple[float, float, float], tmp_path: Path
) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    expected = write_dicom(tmp_path / "series", array, row, column, (0.8, 1.1, 3.5), (12.5, -40.25, 7.0))
    volume = read_image(tmp_path / "series")
    as_nifti = read_image(write_nifti(tmp_path / "same.nii.gz", array, expected))
    np.testing.assert_array_equal(volume.array, as_nifti.array)
    np.testing.assert_allclose(volume.affine, as_nifti.affine, atol=1e-4)
    assert read_grid(tmp_path / "series").canonical_shape == as_nifti.array.shape


def test_dicom_series_of_one_slice(tmp_path: Path) -> None:
    array = np.arange(30, dtype=np.int16).reshape(6, 5, 1)
    affine = write_dicom(tmp_path / "series", array, (1, 0, 0), (0, 1, 0), (0.8, 1.1, 3.5))
    volume = read_image(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, read_image(write_nifti(tmp_path / "n.nii.gz", array, affine)).array)
    np.testing.assert_allclose(volume.spacing, (0.8, 1.1, 3.5))


def test_mask_on_a_dicom_grid_comes_back(tmp_path: Path) -> None:
    write_dicom(tmp_path / "series", np.zeros((6, 5, 4), np.int16), TURN[:, 0], TURN[:, 1], (0.8, 1.1, 3.5))
    grid = read_grid(tmp_path / "series")
    mask = some_mask(grid.canonical_shape)
    write_mask(mask, grid, tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", grid, LABELS), mask)


def test_folder_without_one_series_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_dicom(tmp_path / name, np.zeros((3, 3, 2), np.int16), (1, 0, 0), (0, 1, 0), (1, 1, 1))
    both = tmp_path / "both"
    both.mkdir()
    for name in ("one", "two"):
        for path in (tmp_path / name).iterdir():
            path.rename(both / f"{name}{path.name}")
    with pytest.raises(ImageError, match="found 2"):
        read_image(both)
    (tmp_path / "bad.dcm").write_bytes(b"no dicom")
    with pytest.raises(ImageError, match=r"bad\.dcm"):
        read_image(tmp_path / "bad.dcm")


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(
    ("size", "spacing", "refusal"),
    [
        (100, 100.0, None),
        (101, 100.0, "its voxel size is wrong"),
        (10, 101.0, "a voxel is 101 mm long"),
        (10, 1e30, "a voxel is 1e\\+30 mm long"),
    ],
)
def test_an_image_or_a_voxel_longer_than_any_body_is_refused(
    tmp_path: Path, axis: int, size: int, spacing: float, refusal: str | None
) -> None:
    affine, shape, path = np.eye(4), [4, 4, 4], tmp_path / "long.nii.gz"
    affine[axis, axis], shape[axis] = spacing, size
    write_nifti(path, np.zeros(shape, np.int16), affine)
    with pytest.raises(ImageError, match=refusal) if refusal else contextlib.nullcontext():
        assert read_grid(path).shape == read_image(path).grid.shape
