"""A mask has its image's own voxels, whatever the grid, and predicting changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import (
    ORIENTATIONS,
    TINY_2D,
    blob_pair,
    make_affine,
    make_volume,
    state_of,
    stored,
    tiny_config,
    tiny_network,
    write_nifti,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vqseg.data.reading import read_image, write_mask
from vqseg.errors import ModelError
from vqseg.inference.predictor import Predictor
from vqseg.store import ModelStore

CPU = torch.device("cpu")
BOTH: list[dict[str, Any]] = [{}, TINY_2D]
both = pytest.mark.parametrize("overrides", BOTH, ids=["3D", "2D"])


def predictor_of(overrides: dict[str, Any], seed: int = 0) -> Predictor:
    """An untrained network whose masks hold every class, so that a moved voxel shows."""
    config = tiny_config(overrides)
    network = tiny_network(config, seed)
    with torch.no_grad():
        network.segmentation.head.weight.mul_(20)
        network.segmentation.head.bias.zero_()
    return Predictor(network, config, CPU)


PREDICTORS = [predictor_of(overrides) for overrides in BOTH]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(PREDICTORS),
    st.tuples(*[st.integers(1, 24)] * 3),
    st.tuples(*[st.floats(0.7, 5)] * 3),
    st.sampled_from(ORIENTATIONS),
)
def test_mask_has_the_shape_of_any_image(
    predictor: Predictor, shape: tuple[int, ...], spacing: tuple[float, ...], orientation: str
) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    volume = make_volume(array, make_affine(shape, spacing, orientation))
    prediction = predictor.predict(volume)
    assert prediction.mask.shape == volume.array.shape
    assert prediction.mask.dtype == np.uint8
    assert prediction.mask.max() <= 2
    assert volume.grid.restore(prediction.mask).shape == shape
    assert prediction.usage.sum() > 0


@both
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (20, 20, 1), (3, 3, 3), (40, 8, 8), (30, 30, 30)])
def test_smaller_and_larger_than_the_patch(overrides: dict[str, Any], shape: tuple[int, ...]) -> None:
    volume = make_volume(np.random.default_rng(0).normal(size=shape), np.diag([2.0, 2, 2, 1]))
    assert predictor_of(overrides).predict(volume).mask.shape == shape


@both
def test_one_patient_has_one_mask_however_the_file_is_stored(overrides: dict[str, Any], tmp_path: Path) -> None:
    predictor = predictor_of(overrides)
    affine = make_affine((14, 12, 10), (2.0, 1.5, 3.0), "RAS", (5, -4, 3))
    image = nib.Nifti1Image(blob_pair((14, 12, 10), affine, np.random.default_rng(0))[0], affine)
    masks = []
    for number, orientation in enumerate(ORIENTATIONS[::5]):
        transform = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(orientation))
        )
        path = tmp_path / f"{number}.nii.gz"
        nib.save(image.as_reoriented(transform), path)
        volume = read_image(path)
        write_mask(predictor.predict(volume).mask, volume.grid, tmp_path / f"m{number}.nii.gz")
        written = nib.load(tmp_path / f"m{number}.nii.gz")
        assert written.shape == stored(path)[0].shape
        np.testing.assert_allclose(written.affine, stored(path)[1], atol=1e-5)
        masks.append(np.asarray(nib.as_closest_canonical(written).dataobj))
    assert len(np.unique(masks[0])) > 1
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


@both
def test_predicting_changes_nothing(overrides: dict[str, Any]) -> None:
    predictor = predictor_of(overrides)
    volume = make_volume(np.random.default_rng(0).normal(size=(20, 20, 20)), np.diag([2.0, 2, 2, 1]))
    before, array, random = state_of(predictor.network), volume.array.copy(), torch.get_rng_state()
    one, other = predictor.predict(volume), predictor.predict(volume)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.usage, other.usage)
    np.testing.assert_array_equal(predictor.usage(volume), one.usage)
    np.testing.assert_array_equal(volume.array, array)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in state_of(predictor.network).items():
        np.testing.assert_array_equal(value, before[name])
    assert not predictor.network.training
    assert set(one.seconds) == {"prepare", "infer", "restore"}


def test_one_piece_equals_the_network_itself() -> None:
    predictor = predictor_of({})
    array = np.random.default_rng(0).normal(size=(8, 12, 8)).astype(np.float32)
    volume = make_volume(array, np.diag([2.0, 2, 2, 1]))
    low, high = np.percentile(array, (0.5, 99.5))
    clipped = array.clip(low, high)
    tensor = torch.from_numpy((clipped - clipped.mean()) / clipped.std())[None, None].float()
    with torch.no_grad():
        output = predictor.network(tensor)
    prediction = predictor.predict(volume)
    agreement = (prediction.mask == output.logits.argmax(1)[0].numpy()).mean()
    assert agreement > 0.99
    assert prediction.usage.sum() == output.indices.numel()


def test_2d_slices_do_not_influence_each_other() -> None:
    predictor = predictor_of(TINY_2D | {"data.window": (-3, 3)})
    array = np.random.default_rng(0).normal(size=(8, 8, 20))
    affine = np.diag([2.0, 2, 7, 1])
    predictor.config = tiny_config(TINY_2D | {"data.window": (-3, 3), "data.spacing": (2, 2, 0)})
    whole = predictor.predict(make_volume(array, affine)).mask
    part = predictor.predict(make_volume(array[:, :, 11:14], affine)).mask
    np.testing.assert_array_equal(part, whole[:, :, 11:14])


def test_loading_gives_the_published_network(tmp_path: Path) -> None:
    published = predictor_of({})
    manifest = {"config": published.config.model_dump(mode="json")}
    ModelStore(tmp_path / "models").publish(published.network, manifest)
    volume = make_volume(np.random.default_rng(0).normal(size=(12, 10, 9)), np.diag([2.0, 2, 2, 1]))
    for folder in (tmp_path, tmp_path / "models", tmp_path / "models" / "0001"):
        loaded = Predictor.load(folder, "cpu")
        assert (loaded.version, loaded.labels) == ("0001", {"left": 1, "right": 2})
        np.testing.assert_array_equal(loaded.predict(volume).mask, published.predict(volume).mask)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        Predictor.load(tmp_path / "empty", "cpu")
    np.testing.assert_array_equal(write_and_read(tmp_path, published, volume.array), published.predict(volume).mask)


def write_and_read(folder: Path, predictor: Predictor, array: np.ndarray) -> np.ndarray:
    path = write_nifti(folder / "i.nii.gz", array, np.diag([2.0, 2, 2, 1]))
    return predictor.predict(read_image(path)).mask
