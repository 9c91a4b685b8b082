"""A mask goes into a DICOM SEG and comes back voxel for voxel, by the names of its structures."""

from __future__ import annotations

import tempfile
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pydicom_seg
import pytest
import SimpleITK as sitk
from builders import PLANES, edit_dicom, move_slice, real_data, rotation, slice_file, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from vqseg.data.dicom_seg import Origin, decode_segmentation, segment_names, write_segmentation
from vqseg.data.dicom_series import read_series_header, series_files
from vqseg.data.grid import LPS_TO_RAS, Grid
from vqseg.data.reading import read_grid, read_image, read_mask
from vqseg.errors import ImageError, LabelError

SHAPE, SPACING, ORIGIN = (6, 5, 4), (0.8, 1.1, 3.5), (12.5, -40.25, 7.0)
WRITTEN, READ = {"zebra": 1, "ant": 2}, {"ant": 5, "zebra": 9}
RENAMED = np.array([0, 9, 5], np.uint8)
ANATOMICAL, ABNORMAL = "123037004", "49755003"
quick = settings(max_examples=15, deadline=None)


def some_series(
    folder: Path,
    plane: str = "axial",
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
) -> tuple[Path, Grid]:
    write_dicom(folder / "series", np.zeros(shape, np.int16), *PLANES[plane], spacing, ORIGIN)
    return folder / "series", read_grid(folder / "series")


def some_mask(grid: Grid, seed: int = 0) -> NDArray[np.uint8]:
    """A mask in RAS+ axis order with both structures."""
    mask = np.random.default_rng(seed).integers(0, 3, grid.canonical_shape).astype(np.uint8)
    mask.flat[:2] = 1, 2
    return mask


def write(
    folder: Path, labels: dict[str, int] | None = None, origin: Origin | None = None, name: str = "label.dcm"
) -> tuple[Path, Grid, NDArray[np.uint8]]:
    """An axial series and a SEG of it."""
    series = folder / "series"
    grid = read_grid(series) if series.exists() else some_series(folder)[1]
    mask = some_mask(grid)
    write_segmentation(mask, grid, series, labels or WRITTEN, origin or Origin("someone"), folder / name)
    return folder / name, grid, mask


def referenced(dataset: Dataset) -> set[str]:
    """The images that a SEG belongs to."""
    (series,) = dataset.ReferencedSeriesSequence
    return {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}


def segments(path: Path) -> list[Dataset]:
    return list(pydicom.dcmread(path).SegmentSequence)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (3.0, 0.5, 1.2)])
@pytest.mark.parametrize("plane", PLANES)
def test_a_mask_comes_back_by_the_names_of_its_structures(
    plane: str, spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    series, grid = some_series(tmp_path, plane, spacing=spacing)
    mask = some_mask(grid)
    path = tmp_path / "new folder" / "label.dcm"
    write_segmentation(mask, grid, series, WRITTEN, Origin("someone"), path)
    again = read_mask(path, grid, READ)
    np.testing.assert_array_equal(again, RENAMED[mask])
    np.testing.assert_array_equal(grid.to_ras(decode_segmentation(path, grid, WRITTEN)), mask)
    assert again.dtype == np.uint8
    assert [file.name for file in path.parent.iterdir()] == ["label.dcm"]


@quick
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(2, 6), st.integers(1, 6)),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    seed=st.integers(0, 100),
)
def test_any_mask_of_any_series_comes_back(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], degrees: tuple[float, float, float], seed: int
) -> None:
    turn = rotation(degrees)
    with tempfile.TemporaryDirectory() as temporary:
        series, path = Path(temporary) / "series", Path(temporary) / "label.dcm"
        write_dicom(series, np.zeros(shape, np.int16), turn[:, 0], turn[:, 1], spacing, ORIGIN)
        grid = read_grid(series)
        mask = some_mask(grid, seed)
        write_segmentation(mask, grid, series, WRITTEN, Origin("someone"), path)
        np.testing.assert_array_equal(read_mask(path, grid, READ), RENAMED[mask])


@quick
@given(seed=st.integers(0, 10_000), most=st.sampled_from([0.2, 0.4, 0.7]), plane=st.sampled_from(list(PLANES)))
def test_what_is_taken_for_a_volume_can_hold_a_mask(seed: int, most: float, plane: str) -> None:
    """However far off a regular grid the slices may lie to be accepted, their frames are found again."""
    with tempfile.TemporaryDirectory() as temporary:
        series, _ = some_series(Path(temporary), plane)
        shifts = np.random.default_rng(seed).uniform(-most, most, (SHAPE[2], 2)) * 0.8
        for index, (aside, along) in enumerate(shifts):
            row, column = (np.array(direction) for direction in PLANES[plane])
            move_slice(series, index, row * aside / 2 + np.cross(row, column) * along / 4)
        try:
            grid = read_grid(series)
        except ImageError:
            return
        mask = some_mask(grid)
        write_segmentation(mask, grid, series, WRITTEN, Origin("someone"), Path(temporary) / "label.dcm")
        np.testing.assert_array_equal(read_mask(Path(temporary) / "label.dcm", grid, READ), RENAMED[mask])


@pytest.mark.parametrize("thickness", [3.5, 5.0, 1.0], ids=["touching", "overlapping", "gaps"])
@pytest.mark.parametrize("plane", PLANES)
def test_the_reader_of_monai_label_sees_the_same_voxels(plane: str, thickness: float, tmp_path: Path) -> None:
    series, grid = some_series(tmp_path, plane, (6, 5, 7))
    for file in series_files(series):
        edit_dicom(file, SliceThickness=thickness)
    in_file = np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    in_file[:, :, [0, 3, 4]] = 0
    mask = grid.to_ras(in_file)
    write_segmentation(mask, grid, series, WRITTEN, Origin("someone", "v7"), tmp_path / "label.dcm")
    image = pydicom_seg.MultiClassReader().read(pydicom.dcmread(tmp_path / "label.dcm")).image
    np.testing.assert_array_equal(on_grid(image, grid), in_file)


def on_grid(image: sitk.Image, grid: Grid) -> NDArray[np.uint8]:
    """Voxels of an image that covers a part of a grid, in the grid's shape."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    to_grid = np.linalg.inv(grid.affine) @ LPS_TO_RAS @ affine
    places = np.argwhere(array) @ to_grid[:3, :3].T + to_grid[:3, 3]
    np.testing.assert_allclose(places, np.rint(places), atol=0.01)
    whole = np.zeros(grid.shape, np.uint8)
    whole[tuple(np.rint(places).astype(int).T)] = array[array > 0]
    return whole


def test_a_single_slice_holds_a_mask(tmp_path: Path) -> None:
    series, grid = some_series(tmp_path, shape=(6, 5, 1))
    mask = some_mask(grid)
    for source in (series, slice_file(series, 0)):
        write_segmentation(mask, grid, source, WRITTEN, Origin("someone"), tmp_path / "label.dcm")
        np.testing.assert_array_equal(read_mask(tmp_path / "label.dcm", grid, READ), RENAMED[mask])


def test_only_structures_that_are_there_become_segments(tmp_path: Path) -> None:
    series, grid = some_series(tmp_path)
    labels = {"organ": 1, "vessel": 2, "bone": 3, "skin": 255}
    for present in (["bone"], ["skin", "organ"]):
        mask = np.zeros(grid.canonical_shape, np.uint8)
        for index, name in enumerate(present):
            mask[index] = labels[name]
        write_segmentation(mask, grid, series, labels, Origin("someone"), tmp_path / "label.dcm")
        names = segment_names(pydicom.dcmread(tmp_path / "label.dcm"))
        # Numbered from 1 without gaps, as DICOM demands, so a number alone would name another structure.
        assert names == dict(enumerate(sorted(present, key=labels.__getitem__), 1))
        np.testing.assert_array_equal(read_mask(tmp_path / "label.dcm", grid, labels), mask)


@pytest.mark.parametrize("value", [0, 3], ids=["nothing", "values that are no structure"])
def test_an_empty_mask_is_refused_and_nothing_written(value: int, tmp_path: Path) -> None:
    series, grid = some_series(tmp_path)
    mask = np.full(grid.canonical_shape, value, np.uint8)
    with pytest.raises(LabelError, match="empty"):
        write_segmentation(mask, grid, series, WRITTEN, Origin("someone"), tmp_path / "label.dcm")
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_an_unknown_structure_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path, grid, _ = write(tmp_path)
    with pytest.raises(LabelError, match="unknown structure 'ant'; known: zebra, liver") as caught:
        read_mask(path, grid, {"zebra": 1, "liver": 2})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("shift", "plane"),
    [((0.4, 0, 0), "axial"), ((0, 0, 1.7), "axial"), ((100, 0, 0), "axial"), ((0, 0, 0), "oblique")],
    ids=["half a column", "half a slice", "far away", "turned"],
)
def test_a_segmentation_elsewhere_in_space_is_refused(
    shift: tuple[float, float, float], plane: str, tmp_path: Path
) -> None:
    path, _, _ = write(tmp_path)
    origin = np.array(ORIGIN) + shift
    write_dicom(tmp_path / "other", np.zeros(SHAPE, np.int16), *PLANES[plane], SPACING, origin)
    with pytest.raises(LabelError, match="elsewhere in space") as caught:
        read_mask(path, read_grid(tmp_path / "other"), WRITTEN)
    assert str(path) in str(caught.value)


def test_a_segmentation_of_a_part_of_the_image_finds_its_place(tmp_path: Path) -> None:
    series, grid = some_series(tmp_path)
    whole = np.zeros((8, 8, 6), np.int16)
    origin = np.array(ORIGIN) - SPACING
    write_dicom(tmp_path / "whole", whole, *PLANES["axial"], SPACING, origin)
    mask = some_mask(grid)
    write_segmentation(mask, grid, series, WRITTEN, Origin("someone"), tmp_path / "label.dcm")
    decoded = decode_segmentation(tmp_path / "label.dcm", read_grid(tmp_path / "whole"), WRITTEN)
    np.testing.assert_array_equal(decoded[1:7, 1:6, 1:5], grid.restore(mask))
    assert np.count_nonzero(decoded) == np.count_nonzero(mask)


def test_what_is_no_label_is_named_with_its_kind(tmp_path: Path) -> None:
    series, grid = some_series(tmp_path)
    with pytest.raises(LabelError, match="modality CT"):
        read_mask(slice_file(series, 0), grid, WRITTEN)
    (tmp_path / "no.dcm").write_bytes(b"no DICOM")
    with pytest.raises(LabelError, match="SEG or RTSTRUCT"):
        read_mask(tmp_path / "no.dcm", grid, WRITTEN)


@pytest.mark.parametrize("model_version", [None, "2024-05 v7"])
def test_it_says_who_made_it_and_from_what(model_version: str | None, tmp_path: Path) -> None:
    path, _, _ = write(tmp_path, origin=Origin("Dr. Ada Lovelace", model_version))
    dataset, source = pydicom.dcmread(path), read_series_header(slice_file(tmp_path / "series", 0))
    assert (dataset.Modality, dataset.SegmentationType, dataset.BitsAllocated) == ("SEG", "BINARY", 1)
    assert dataset.ContentCreatorName == "Dr. Ada Lovelace"
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate"):
        assert dataset[keyword].value == source[keyword].value
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    instances = {read_series_header(file).SOPInstanceUID for file in series_files(tmp_path / "series")}
    assert referenced(dataset) == instances
    for segment in dataset.SegmentSequence:
        if model_version is None:
            assert segment.SegmentAlgorithmType == "MANUAL"
            assert "SegmentAlgorithmName" not in segment
        else:
            assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("SEMIAUTOMATIC", "VQ-Seg")
            algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
            assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("VQ-Seg", model_version)


def test_two_segmentations_are_two_objects(tmp_path: Path) -> None:
    first, second = (pydicom.dcmread(write(tmp_path, name=name)[0]) for name in ("one.dcm", "two.dcm"))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword].value != second[keyword].value


@pytest.mark.parametrize(
    ("name", "category", "kind"),
    [
        ("tumour", ABNORMAL, codes.SCT.Neoplasm.value),
        ("Tumor", ABNORMAL, codes.SCT.Neoplasm.value),
        ("lesion", ABNORMAL, codes.SCT.Lesion.value),
        ("liver", ANATOMICAL, codes.SCT.Liver.value),
        ("Spinal_cord", ANATOMICAL, codes.SCT.SpinalCord.value),
        ("structure 7", ANATOMICAL, ANATOMICAL),
        ("GTV-1", ANATOMICAL, ANATOMICAL),
        ("Übergangszone", ANATOMICAL, ANATOMICAL),
        ("肝臓", ANATOMICAL, ANATOMICAL),
        ("__class__", ANATOMICAL, ANATOMICAL),
        ("x" * 64, ANATOMICAL, ANATOMICAL),
    ],
)
def test_a_structure_is_coded_as_what_it_is_and_keeps_its_name(
    name: str, category: str, kind: str, tmp_path: Path
) -> None:
    path, grid, mask = write(tmp_path, {name: 1})
    (segment,) = segments(path)
    assert segment.SegmentLabel == name
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == category
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == kind
    np.testing.assert_array_equal(read_mask(path, grid, {name: 1}), mask == 1)


@pytest.mark.parametrize(
    ("creator", "stored"),
    [
        ("a\\b", "a b"),
        ("Doe^Jane", "Doe Jane"),
        ("a^b^c^d^e^f^g=h=i=j=k", "a b c d e f g h i j k"),
        ("x" * 200, "x" * 64),
        ("", "unknown"),
        (" \n\t", "unknown"),
        ("^\\=", "unknown"),
        ("a\0b\nc", "a b c"),
        ("Øyvind Žižek 李小龍", "Øyvind Žižek 李小龍"),
    ],
)
def test_any_creator_can_be_written(creator: str, stored: str, tmp_path: Path) -> None:
    path, grid, mask = write(tmp_path, origin=Origin(creator, "v1"))
    assert str(pydicom.dcmread(path).ContentCreatorName) == stored
    np.testing.assert_array_equal(read_mask(path, grid, READ), RENAMED[mask])


@settings(max_examples=10, deadline=None)
@given(creator=st.text())
def test_no_creator_breaks_a_segmentation(creator: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path, grid, mask = write(Path(temporary), origin=Origin(creator))
        np.testing.assert_array_equal(read_mask(path, grid, READ), RENAMED[mask])


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192"])
def test_the_patient_keeps_a_name_in_any_script(charset: str, tmp_path: Path) -> None:
    series, grid = some_series(tmp_path)
    for file in series_files(series):
        edit_dicom(file, SpecificCharacterSet=charset, PatientName="Müller^Jörg")
    write_segmentation(some_mask(grid), grid, series, WRITTEN, Origin("李"), tmp_path / "label.dcm")
    assert str(pydicom.dcmread(tmp_path / "label.dcm").PatientName) == "Müller^Jörg"


TYPE_2 = ("AccessionNumber", "PatientBirthDate", "PatientID", "PatientName", "PatientSex", "StudyDate", "StudyID")
IDENTITIES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


@pytest.mark.parametrize("gone", [None, ""], ids=["left out", "empty"])
def test_an_anonymised_series_can_be_segmented(gone: str | None, tmp_path: Path) -> None:
    series, grid = some_series(tmp_path)
    for file in series_files(series):
        edit_dicom(file, **dict.fromkeys((*TYPE_2, *IDENTITIES, "SliceThickness"), gone))
    grid = read_grid(series)
    mask = some_mask(grid)
    written = []
    for name in ("one.dcm", "two.dcm"):
        write_segmentation(mask, grid, series, WRITTEN, Origin("someone"), tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name, grid, READ), RENAMED[mask])
        written.append(pydicom.dcmread(tmp_path / name))
    first, second = written
    # What is made up is the same each time, so that both still belong to one study.
    assert first.StudyInstanceUID == second.StudyInstanceUID != ""
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID != ""
    assert len(referenced(first)) == SHAPE[2]


def foreign_segmentation(
    folder: Path, pixels: NDArray, kind: str = "BINARY", names: tuple[str, ...] = ("organ", "tumour")
) -> Path:
    """A SEG as another program would write it: `pixels` (slices, rows, columns, segments)."""
    sources = [pydicom.dcmread(file) for file in series_files(folder / "series")]
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=codes.SCT.Tissue,
                segmented_property_type=codes.SCT.Organ,
                algorithm_type="MANUAL",
            )
            for number, name in enumerate(names, 1)
        ],
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="another",
        manufacturer_model_name="another",
        software_versions="1",
        device_serial_number="1",
    )
    segmentation.save_as(folder / "foreign.dcm")
    return folder / "foreign.dcm"


@pytest.mark.parametrize(
    "labels", [{"organ": 1, "tumour": 2}, {"organ": 2, "tumour": 1}], ids=["last on top", "first on top"]
)
def test_where_segments_overlap_the_highest_value_stays(labels: dict[str, int], tmp_path: Path) -> None:
    _, grid = some_series(tmp_path)
    pixels = np.zeros((4, 5, 6, 2), np.uint8)
    pixels[:, 1:4, 1:5, 0] = 1
    pixels[1:3, 2:, 2:, 1] = 1
    decoded = decode_segmentation(foreign_segmentation(tmp_path, pixels), grid, labels)
    expected = (pixels * [labels["organ"], labels["tumour"]]).max(axis=-1).transpose(2, 1, 0)
    np.testing.assert_array_equal(decoded, expected)


def test_a_fraction_of_one_half_counts(tmp_path: Path) -> None:
    _, grid = some_series(tmp_path)
    pixels = np.random.default_rng(0).choice([0, 0.2, 0.45, 0.55, 1.0], (4, 5, 6, 1))
    path = foreign_segmentation(tmp_path, pixels, "FRACTIONAL", ("organ",))
    np.testing.assert_array_equal(
        decode_segmentation(path, grid, {"organ": 3}), 3 * (pixels[..., 0] > 0.5).transpose(2, 1, 0)
    )


def test_a_map_of_labels_is_refused_by_its_name(tmp_path: Path) -> None:
    path, grid, _ = write(tmp_path)
    edit_dicom(path, SegmentationType="LABELMAP")
    with pytest.raises(LabelError, match="LABELMAP"):
        read_mask(path, grid, WRITTEN)


@pytest.mark.data
@pytest.mark.parametrize("name", ["lung_cancer_rtstruct/image", "abdomen", "abdomen_jpeg2000"])
def test_a_real_series_holds_a_mask(name: str, tmp_path: Path) -> None:
    series = real_data(f"ct_dicom/{name}")
    image = read_image(series)
    mask = (image.array > 0).astype(np.uint8) + (image.array > 200)
    write_segmentation(mask, image.grid, series, WRITTEN, Origin("someone", "v1"), tmp_path / "label.dcm")
    np.testing.assert_array_equal(read_mask(tmp_path / "label.dcm", image.grid, READ), RENAMED[mask])
    dataset = pydicom.dcmread(tmp_path / "label.dcm")
    instances = [
        item.ReferencedSOPInstanceUID for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    ]
    assert dataset.StudyInstanceUID
    assert len(set(instances)) == len(series_files(series))
    theirs = pydicom_seg.MultiClassReader().read(dataset).image
    np.testing.assert_array_equal(on_grid(theirs, image.grid), image.grid.restore(mask))
