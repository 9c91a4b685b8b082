"""Image and mask stay where they are in the patient, and a cache entry is never stale."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import blob_pair, make_affine, make_volume, tiny_config, write_nifti, write_studies
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from vqseg.config import Data
from vqseg.data.preparation import prepare_label, prepare_study, prepare_volume, resize_classes, working_shape
from vqseg.data.studies import Study
from vqseg.errors import ImageError, LabelError, VQSegError

quick = settings(max_examples=20, deadline=None)
spacings = st.tuples(*[st.floats(0.6, 4)] * 3)
DATA = tiny_config().data


def with_spacing(*spacing: float) -> Data:
    return tiny_config({"data.spacing": spacing}).data


def centre_mm(weight: NDArray, extent: NDArray) -> NDArray[np.float64]:
    """Centre of mass in millimetres from the corner of a volume that is `extent` long."""
    points = (np.moveaxis(np.indices(weight.shape), 0, -1) + 0.5) / weight.shape * extent
    return (points * weight[..., None]).sum((0, 1, 2)) / weight.sum()


@quick
@given(spacings, spacings)
def test_image_and_mask_stay_aligned(own: tuple[float, ...], wanted: tuple[float, ...]) -> None:
    shape = tuple(round(30 / step) for step in own)
    extent = np.array(shape) * own
    image, mask = blob_pair(shape, make_affine(shape, own), np.random.default_rng(0))
    for value in (1, 2):
        weight = (mask == value).astype(np.float32)
        data = with_spacing(*wanted)
        small_image = prepare_volume(make_volume(weight, np.diag([*own, 1])), data)
        small_mask = prepare_label(mask, own, data) == value
        assert small_image.shape == small_mask.shape == working_shape(shape, own, data)
        centres = [centre_mm(array, extent) for array in (weight, small_image - small_image.min(), small_mask)]
        np.testing.assert_allclose(centres[1], centres[0], atol=0.35 * max(*wanted, *own))
        # A mask of few voxels can only be right to half a voxel.
        np.testing.assert_allclose(centres[2], centres[0], atol=0.5 * max(*wanted, *own))
    assert image.shape == mask.shape


def test_equal_spacing_is_the_identity() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    image = np.random.default_rng(1).normal(size=(5, 6, 7)).clip(-1, 1)
    np.testing.assert_array_equal(prepare_label(mask, (2.0, 2.0, 2.0), DATA), mask)
    prepared = prepare_volume(make_volume(image, np.diag([2.0, 2, 2, 1])), tiny_config({"data.window": (-1, 1)}).data)
    np.testing.assert_allclose(prepared, image, atol=1e-6)


def test_spacing_of_zero_keeps_an_axis() -> None:
    assert working_shape((10, 10, 10), (1.0, 1.0, 6.0), with_spacing(2, 0.5, 0)) == (5, 20, 10)
    assert working_shape((1, 3, 10), (0.1, 1.0, 1.0), with_spacing(2, 4, 0)) == (1, 1, 10)


@pytest.mark.parametrize("shape", [(5, 6, 7), (10, 12, 14), (15, 6, 21)])
def test_resized_classes_come_back(shape: tuple[int, int, int]) -> None:
    mask = np.zeros((5, 6, 7), np.uint8)
    mask[1:3, 1:5, 2:6], mask[3:, 2:4, 1:4] = 1, 2
    scores = functional.one_hot(torch.from_numpy(mask).long(), 3).movedim(-1, 0).float()
    larger = resize_classes(scores, shape)
    assert larger.dtype == np.uint8
    again = functional.one_hot(torch.from_numpy(larger).long(), 3).movedim(-1, 0).float()
    np.testing.assert_array_equal(resize_classes(again, (5, 6, 7)), mask)


def test_resizing_classes_is_the_argmax_of_resized_scores() -> None:
    scores = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    resized = functional.interpolate(scores[None], (9, 4, 7), mode="trilinear", align_corners=False)[0]
    np.testing.assert_array_equal(resize_classes(scores, (9, 4, 7)), resized.argmax(0).numpy())
    np.testing.assert_array_equal(resize_classes(scores, (5, 6, 7)), scores.argmax(0).numpy())


def test_window_maps_to_minus_one_and_one() -> None:
    image = np.linspace(-2000, 2000, 64, dtype=np.float32).reshape(4, 4, 4)
    prepared = prepare_volume(
        make_volume(image),
        tiny_config({"data.window": (-1000, 200), "data.spacing": "native"}).data.model_copy(
            update={"spacing": (0, 0, 0)}
        ),
    )
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, ((image.clip(-1000, 200) + 400) / 600), atol=1e-5)


@quick
@given(st.floats(0.01, 1000), st.floats(-1000, 1000))
def test_without_a_window_scale_and_offset_of_the_intensities_do_not_matter(scale: float, offset: float) -> None:
    image = np.random.default_rng(0).normal(size=(8, 8, 8))
    one, other = (
        prepare_volume(make_volume(array), with_spacing(1, 1, 1)) for array in (image, image * scale + offset)
    )
    np.testing.assert_allclose(other, one, atol=1e-4 + 2e-7 * abs(offset) / scale * 10)
    assert one.std() == pytest.approx(1, abs=1e-4)
    assert one.mean() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, -1024.0, 1e30])
def test_nothing_is_made_of_a_constant_image(value: float) -> None:
    assert not prepare_volume(make_volume(np.full((4, 4, 4), value)), DATA).any()


def test_image_that_would_not_fit_into_memory_is_named(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "metres.nii.gz", np.ones((8, 8, 8), np.float32), np.diag([1e6, 1e6, 1e6, 1]))
    with pytest.raises(VQSegError, match="metres"):
        prepare_study(Study("metres", path), with_spacing(1, 1, 1), tmp_path / "cache")


def test_prepared_study_is_what_the_functions_give(tmp_path: Path) -> None:
    study = write_studies(tmp_path, 1)[0]
    prepared = prepare_study(study, with_spacing(1.5, 2, 3), tmp_path / "cache")
    assert prepared.label is not None
    assert prepared.foreground is not None
    image, label, foreground = (np.load(path) for path in (prepared.image, prepared.label, prepared.foreground))
    assert (image.dtype, label.dtype) == (np.float16, np.uint8)
    assert image.shape == label.shape
    assert set(foreground[:, 0]) == {1, 2}
    np.testing.assert_array_equal(label[tuple(foreground[:, 1:].T)], foreground[:, 0])


def test_unlabelled_study_has_no_label(tmp_path: Path) -> None:
    prepared = prepare_study(write_studies(tmp_path, 1, labelled=0)[0], DATA, tmp_path / "cache")
    assert prepared.label is None
    assert prepared.foreground is None


def test_cache_is_used_again_until_file_or_settings_change(tmp_path: Path) -> None:
    study = write_studies(tmp_path, 1)[0]
    assert study.label is not None
    first = prepare_study(study, DATA, tmp_path / "cache")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert prepare_study(study, DATA, tmp_path / "cache") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == stamps
    # Another setting that shapes the image: all is new.
    spaced = prepare_study(study, with_spacing(3, 3, 3), tmp_path / "cache")
    assert {spaced.image, spaced.label, spaced.foreground}.isdisjoint({first.image, first.label, first.foreground})
    # A mask that was corrected: the image stays.
    write_nifti(study.label, np.ones((12, 8, 8), np.uint8), make_affine((12, 8, 8), (2, 2, 2)))
    corrected = prepare_study(study, DATA, tmp_path / "cache")
    assert corrected.image == first.image
    assert corrected.label is not None
    assert np.load(corrected.label).all()
    # An image that was replaced by one of the same size at the same place.
    content = study.image.read_bytes()
    study.image.write_bytes(content)
    os.utime(study.image, ns=(1, 1))
    assert prepare_study(study, DATA, tmp_path / "cache").image != first.image


def test_a_label_that_cannot_be_used_leaves_nothing_half_written(tmp_path: Path) -> None:
    study = write_studies(tmp_path, 1)[0]
    bad = write_nifti(tmp_path / "bad.nii.gz", np.full((12, 8, 8), 7, np.uint8), make_affine((12, 8, 8), (2, 2, 2)))
    with pytest.raises(LabelError, match="bad"):
        prepare_study(replace(study, label=bad), DATA, tmp_path / "cache")
    assert [path.name.split(".")[1] for path in (tmp_path / "cache").iterdir()] == ["image"]


def test_files_that_are_gone_are_named(tmp_path: Path) -> None:
    study = write_studies(tmp_path, 1)[0]
    assert study.label is not None
    study.label.unlink()
    with pytest.raises(LabelError, match="labels"):
        prepare_study(study, DATA, tmp_path / "cache")
    study.image.unlink()
    with pytest.raises(ImageError, match="images"):
        prepare_study(study, DATA, tmp_path / "cache")
