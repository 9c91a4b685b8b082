"""Contours become the voxels whose centres they enclose, wherever the slices lie; what does not fit is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from builders import PLANES, edit_dicom, real_data, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from vqseg.data.grid import LPS_TO_RAS, Grid
from vqseg.data.reading import read_grid, read_mask
from vqseg.data.rtstruct import decode_structure_set, region_names
from vqseg.errors import LabelError

SHAPE, SPACING, ORIGIN = (60, 50, 5), (0.8, 1.1, 3.5), (12.5, -40.25, 7.0)
LABELS = {"organ": 1, "tumour": 2}
quick = settings(max_examples=15, deadline=None)
Contour = NDArray[np.float64]


def some_grid(folder: Path, plane: str = "axial") -> Grid:
    write_dicom(folder / "series", np.zeros(SHAPE, np.int16), *PLANES[plane], SPACING, ORIGIN)
    return read_grid(folder / "series")


def circle(radius: float, level: float = 2, centre: Sequence[float] = (30, 25), points: int = 120) -> Contour:
    """Points in voxels of a circle around `centre`, its radius in mm."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    across = centre[0] + radius / SPACING[0] * np.cos(angles), centre[1] + radius / SPACING[1] * np.sin(angles)
    return np.stack([*across, np.full(points, level, np.float64)], axis=1)


def rectangle(first: Sequence[float], last: Sequence[float], level: float = 2) -> Contour:
    (left, top), (right, bottom) = first, last
    return np.array([[left, top, level], [right, top, level], [right, bottom, level], [left, bottom, level]])


def write_regions(
    path: Path, grid: Grid, regions: Mapping[str, Sequence[Contour]], kind: str = "CLOSED_PLANAR"
) -> Path:
    """Write a structure set of contours, whose points (n, 3) are in voxels of the grid."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.is_little_endian, data.is_implicit_VR = True, False
    data.SOPClassUID, data.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.StructureSetLabel = "RTSTRUCT", "test"
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    # Numbers are in no order and begin anywhere: only what refers to them gives them a meaning.
    for number, (name, contours) in zip(range(40, 0, -3), regions.items(), strict=False):
        region, drawn = Dataset(), Dataset()
        region.ROINumber, region.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for voxels in contours:
            points = nib.affines.apply_affine(LPS_TO_RAS @ grid.affine, voxels)
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [format_number_as_ds(float(value)) for value in points.ravel()]
            drawn.ContourSequence.append(contour)
        data.StructureSetROISequence.append(region)
        data.ROIContourSequence.insert(0, drawn)
    pydicom.dcmwrite(path, data)
    return path


def decoded(folder: Path, plane: str = "axial", **regions: Sequence[Contour]) -> NDArray[np.uint8]:
    """Mask of contours on a new series."""
    grid = some_grid(folder, plane)
    return decode_structure_set(write_regions(folder / "label.dcm", grid, regions), grid, LABELS)


@pytest.mark.parametrize("radius", [8.0, 12.5, 18.0])
@pytest.mark.parametrize("plane", PLANES)
def test_a_contour_has_the_area_that_it_encloses(plane: str, radius: float, tmp_path: Path) -> None:
    mask = decoded(tmp_path, plane, organ=[circle(radius, centre=(30.2, 24.7))])
    area = np.count_nonzero(mask) * SPACING[0] * SPACING[1]
    assert area == pytest.approx(np.pi * radius**2, rel=0.02)
    assert set(np.argwhere(mask)[:, 2]) == {2}


@quick
@given(
    corners=st.tuples(st.integers(0, 58), st.integers(0, 48), st.integers(0, 58), st.integers(0, 48)),
    level=st.integers(0, 4),
    plane=st.sampled_from(list(PLANES)),
)
def test_voxels_belong_to_a_contour_by_their_centres(
    corners: tuple[int, int, int, int], level: int, plane: str
) -> None:
    left, right = sorted((corners[0], corners[2]))
    top, bottom = sorted((corners[1], corners[3]))
    contour = rectangle((left - 0.4, top - 0.4), (right + 0.4, bottom + 0.4), level)
    expected = np.zeros(SHAPE, np.uint8)
    expected[left : right + 1, top : bottom + 1, level] = 1
    with tempfile.TemporaryDirectory() as temporary:
        np.testing.assert_array_equal(decoded(Path(temporary), plane, organ=[contour]), expected)


@pytest.mark.parametrize("plane", PLANES)
def test_a_mask_is_where_the_contour_is_in_the_patient(plane: str, tmp_path: Path) -> None:
    grid = some_grid(tmp_path, plane)
    centre = (22.0, 31.0)
    path = write_regions(tmp_path / "label.dcm", grid, {"tumour": [circle(6, 3, centre)]})
    mask = read_mask(path, grid, LABELS)
    assert mask.shape == grid.canonical_shape
    middle = nib.affines.apply_affine(grid.canonical_affine, np.argwhere(mask == 2).mean(axis=0))
    np.testing.assert_allclose(middle, nib.affines.apply_affine(grid.affine, (*centre, 3)), atol=0.1)


@pytest.mark.parametrize("reverse", [False, True], ids=["hole last", "hole first"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_contour_within_a_contour_is_a_hole_and_one_within_that_is_not(
    plane: str, reverse: bool, tmp_path: Path
) -> None:
    rings = [circle(radius) for radius in (18, 12, 6)]
    whole = decoded(tmp_path / "whole", plane, organ=[circle(18)])
    parts = decoded(tmp_path / "parts", plane, organ=rings[::-1] if reverse else rings)
    hole, island = (decoded(tmp_path / str(index), plane, organ=[rings[index]]) for index in (1, 2))
    np.testing.assert_array_equal(parts, whole - hole + island)
    area = np.count_nonzero(parts) * SPACING[0] * SPACING[1]
    assert area == pytest.approx(np.pi * (18**2 - 12**2 + 6**2), rel=0.02)


def test_a_hole_on_another_slice_is_none(tmp_path: Path) -> None:
    mask = decoded(tmp_path, organ=[circle(18, 2), circle(12, 3)])
    assert mask[30, 25].tolist() == [0, 0, 1, 1, 0]


def test_a_hole_may_be_cut_out_through_a_channel(tmp_path: Path) -> None:
    """A keyhole: one contour that runs around, inwards, around the hole and back, as the standard recommends."""
    outer, inner = circle(18, centre=(30.3, 25.4)), circle(12, centre=(30.3, 25.4))[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner[-1:], inner, outer[:1]])
    mask = decoded(tmp_path, organ=[keyhole])
    assert mask[30, 25, 2] == 0
    assert np.count_nonzero(mask) * SPACING[0] * SPACING[1] == pytest.approx(np.pi * (18**2 - 12**2), rel=0.03)


def test_separate_parts_belong_to_one_structure(tmp_path: Path) -> None:
    parts = [circle(6, level, centre) for level in (1, 3) for centre in ((15, 25), (45, 25))]
    mask = decoded(tmp_path, organ=parts)
    for x, level in ((15, 1), (45, 1), (15, 3), (45, 3)):
        assert mask[x, 25, level] == 1
    assert np.count_nonzero(mask) * SPACING[0] * SPACING[1] == pytest.approx(4 * np.pi * 36, rel=0.04)


def test_where_structures_overlap_the_highest_value_stays(tmp_path: Path) -> None:
    for names in (("organ", "tumour"), ("tumour", "organ")):
        regions = {name: [circle({"organ": 18, "tumour": 6}[name])] for name in names}
        mask = decoded(tmp_path / names[0], **regions)
        assert mask[30, 25, 2] == 2
        assert mask[15, 25, 2] == 1


def test_regions_that_are_no_structure_are_left_out(tmp_path: Path) -> None:
    grid = some_grid(tmp_path)
    # Not even looked at: the couch lies beside the image.
    regions = {"BODY": [circle(18)], "organ": [circle(6)], "couch": [circle(5, level=90)], "empty": []}
    path = write_regions(tmp_path / "label.dcm", grid, regions)
    alone = write_regions(tmp_path / "alone.dcm", grid, {"organ": [circle(6)]})
    assert sorted(region_names(pydicom.dcmread(path)).values()) == sorted(regions)
    np.testing.assert_array_equal(read_mask(path, grid, LABELS), read_mask(alone, grid, LABELS))


def test_without_a_known_structure_it_says_what_it_holds(tmp_path: Path) -> None:
    grid = some_grid(tmp_path)
    path = write_regions(tmp_path / "label.dcm", grid, {"BODY": [circle(18)], "GTV-1": [circle(5)]})
    with pytest.raises(LabelError, match="holds BODY, GTV-1; known structures: organ, tumour") as caught:
        read_mask(path, grid, LABELS)
    assert str(path) in str(caught.value)
    with pytest.raises(LabelError, match="holds nothing"):
        read_mask(write_regions(tmp_path / "none.dcm", grid, {}), grid, LABELS)


def test_a_structure_without_contours_is_empty(tmp_path: Path) -> None:
    grid = some_grid(tmp_path)
    path = write_regions(tmp_path / "label.dcm", grid, {"organ": []})
    assert not read_mask(path, grid, LABELS).any()
    edit_dicom(path, ROIContourSequence=None)
    assert not read_mask(path, grid, LABELS).any()


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_points_and_open_lines_enclose_nothing(kind: str, tmp_path: Path) -> None:
    grid = some_grid(tmp_path)
    path = write_regions(tmp_path / "label.dcm", grid, {"organ": [circle(18)]}, kind)
    assert not read_mask(path, grid, LABELS).any()


def test_contours_that_are_marked_as_nested_are_filled_too(tmp_path: Path) -> None:
    grid = some_grid(tmp_path)
    plain, marked = (
        write_regions(tmp_path / f"{kind}.dcm", grid, {"organ": [circle(18), circle(6)]}, kind)
        for kind in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
    )
    assert read_mask(plain, grid, LABELS).any()
    np.testing.assert_array_equal(read_mask(marked, grid, LABELS), read_mask(plain, grid, LABELS))


MISPLACED = {
    "before the first slice": (circle(6, level=-1), "outside the image"),
    "behind the last slice": (circle(6, level=5), "outside the image"),
    "far away": (circle(6, level=-300), "outside the image"),
    "beside the slices": (circle(6, centre=(90, 25)), "outside the image"),
    "above the slices": (circle(6, centre=(30, -20)), "outside the image"),
    "between slices": (circle(6, level=2.5), "does not lie in a slice"),
    "nearly between slices": (circle(6, level=1.55), "does not lie in a slice"),
    "across slices": (circle(6) + np.linspace(0, 1, 120)[:, None] * [0, 0, 1], "does not lie in a slice"),
}


@pytest.mark.parametrize("case", MISPLACED)
@pytest.mark.parametrize("plane", ["axial", "oblique"])
def test_a_misplaced_contour_is_refused(plane: str, case: str, tmp_path: Path) -> None:
    contour, words = MISPLACED[case]
    grid = some_grid(tmp_path, plane)
    path = write_regions(tmp_path / "label.dcm", grid, {"organ": [circle(6), contour]})
    with pytest.raises(LabelError, match=words) as caught:
        read_mask(path, grid, LABELS)
    assert str(path) in str(caught.value)


def test_contours_turned_against_the_slices_are_refused(tmp_path: Path) -> None:
    grid, oblique = some_grid(tmp_path / "straight"), some_grid(tmp_path / "oblique", "oblique")
    path = write_regions(tmp_path / "label.dcm", oblique, {"organ": [circle(18)]})
    with pytest.raises(LabelError, match="does not lie in a slice"):
        read_mask(path, grid, LABELS)


def test_a_contour_that_leaves_the_image_is_cut_at_its_border(tmp_path: Path) -> None:
    mask = decoded(tmp_path, organ=[rectangle((-20, 10.5), (5.5, 80))])
    expected = np.zeros(SHAPE, np.uint8)
    expected[:6, 11:, 2] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("off", [-0.3, 0.3])
def test_a_contour_a_little_off_its_slice_counts_there(off: float, tmp_path: Path) -> None:
    mask = decoded(tmp_path, organ=[circle(6, level=2 + off)])
    assert set(np.argwhere(mask)[:, 2]) == {2}


@pytest.mark.data
def test_the_contours_of_an_expert_are_the_mask_published_with_them() -> None:
    (contours,) = sorted(real_data("ct_dicom/lung_cancer_rtstruct/mask").iterdir())
    image = real_data("ct_dicom/lung_cancer_nifti/image/phantom.nii.gz")
    published = read_mask(real_data("ct_dicom/lung_cancer_nifti/mask/mask.nii.gz"), read_grid(image), {"GTV-1": 1})
    drawn = read_mask(contours, read_grid(real_data("ct_dicom/lung_cancer_rtstruct/image")), {"GTV-1": 1})
    both = np.count_nonzero(drawn & published)
    assert 2 * both / (np.count_nonzero(drawn) + np.count_nonzero(published)) > 0.99
