"""A map of codes shows the codes that the network chooses, on the slice in the middle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_2D, make_affine, make_volume, tiny_config, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

from vqseg.data.preparation import prepare_volume
from vqseg.data.slices import as_seen, reading_axis
from vqseg.errors import ModelError
from vqseg.inference.code_map import map_codes
from vqseg.inference.predictor import Predictor
from vqseg.networks.build import build_network

CPU = torch.device("cpu")
KINDS: list[dict[str, Any]] = [{}, TINY_2D]


def predictor_of(overrides: dict[str, Any]) -> Predictor:
    config = tiny_config(overrides)
    return Predictor(tiny_network(config), config, CPU)


PREDICTORS = [predictor_of(overrides) for overrides in KINDS]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(PREDICTORS), st.tuples(*[st.integers(1, 20)] * 3), st.tuples(*[st.floats(0.7, 5)] * 3))
def test_any_volume_has_codes_of_the_codebook_at_every_voxel_of_its_slice(
    predictor: Predictor, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    found = map_codes(predictor, make_volume(array, make_affine(shape, spacing)))
    assert found.codes.shape == found.image.shape
    assert found.codes.min() >= 0
    assert found.codes.max() < predictor.config.model.codebook_size


@pytest.mark.parametrize("predictor", PREDICTORS, ids=["3D", "2D"])
def test_a_study_of_one_patch_shows_what_the_network_chose(predictor: Predictor) -> None:
    volume = make_volume(np.random.default_rng(1).normal(size=(8, 8, 8)), make_affine((8, 8, 8), (2, 2, 2)))
    found = map_codes(predictor, volume)
    assert found.axis == 2
    image = torch.from_numpy(found.image)
    seen = (
        image
        if predictor.config.data.spatial_dims == 2
        else torch.from_numpy(prepare_volume(volume, predictor.config.data))
    )
    encoded = predictor.network.encode(seen[None, None])  # type: ignore[operator]
    size = encoded.sizes[0]
    chosen = encoded.nearest.indices[0, : size.numel()].reshape(size).numpy()
    middle = chosen if chosen.ndim == 2 else chosen[:, :, size[2] // 2]
    width = 8 // size[0]
    np.testing.assert_array_equal(found.codes, np.kron(middle, np.ones((width, width), np.int64)))


def test_a_network_without_a_codebook_says_so() -> None:
    config = tiny_config({"model.quantized": False})
    predictor = Predictor(build_network(config), config, CPU, "0007")
    with pytest.raises(ModelError, match="0007 has no codebook"):
        map_codes(predictor, make_volume(np.zeros((8, 8, 8))))


def test_slices_lie_as_radiologists_look_at_them() -> None:
    assert [reading_axis(spacing) for spacing in ((1, 1, 1), (1, 1, 3), (4, 1, 1), (1, 2, 1))] == [2, 2, 0, 1]
    plane = np.zeros((3, 5))
    plane[2, 4] = 1  # right and in front, in RAS+
    assert as_seen(plane).shape == (5, 3)
    assert as_seen(plane)[0, 0] == 1
