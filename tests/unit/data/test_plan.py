"""What is chosen from the images follows from their grids; what was set stays as it was set."""

from __future__ import annotations

import numpy as np
from builders import LABELS, ORIENTATIONS, make_affine
from hypothesis import given, settings
from hypothesis import strategies as st

from vqseg.config import Config, load_config
from vqseg.data.grid import Grid
from vqseg.data.plan import plan
from vqseg.data.preparation import working_shape

quick = settings(max_examples=40, deadline=None)
grids = st.builds(
    lambda shape, spacing, orientation: Grid(shape, make_affine(shape, spacing, orientation)),
    st.tuples(*[st.integers(1, 300)] * 3),
    st.tuples(*[st.floats(0.3, 8)] * 3),
    st.sampled_from(ORIENTATIONS),
)


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], orientation: str = "RAS") -> Grid:
    return Grid(shape, make_affine(shape, spacing, orientation))


@quick
@given(st.lists(grids, min_size=1, max_size=6), st.sampled_from([2, 3]), st.integers(512, 50_000))
def test_patch_fits_the_network_and_its_bound(images: list[Grid], dims: int, bound: int) -> None:
    config = load_config(overrides={"data.labels": LABELS, "data.spatial_dims": dims, "data.patch_voxels": bound})
    data = plan(config, images).data
    multiple = 2 ** (len(config.model.channels) - 1)
    assert data.patch_size is not None
    assert len(data.patch_size) == dims
    assert all(size >= multiple and size % multiple == 0 for size in data.patch_size)
    # One element of the coarsest level has no norm, so two of them are the least.
    assert np.prod(data.patch_size) <= bound or sorted(data.patch_size) == [multiple] * (dims - 1) + [2 * multiple]
    # It can be kept in a manifest and read again.
    planned = plan(config, images)
    assert Config.model_validate(planned.model_dump(mode="json")) == planned


@quick
@given(grids)
def test_patch_of_one_small_image_covers_it(image: Grid) -> None:
    data = plan(load_config(overrides={"data.patch_voxels": 10**9}), [image]).data
    shape = working_shape(image.canonical_shape, image.spacing, data)
    assert data.patch_size is not None
    least = (16, 8, 8) if max(shape) <= 8 else (8, 8, 8)
    covering = [size + -size % 8 for size in shape]
    assert data.patch_size == tuple(map(max, covering, least))


def test_median_spacing_is_that_of_the_patients_axes() -> None:
    images = [grid((10, 20, 30), (1, 2, 4), "RAS"), grid((30, 10, 20), (5, 1, 3), "SRA"), grid((10, 10, 10), (9, 9, 9))]
    assert plan(Config(), images).data.spacing == (1, 3, 5)


def test_planning_twice_changes_nothing() -> None:
    images = [grid((50, 40, 30), (1, 1, 3)), grid((60, 44, 20), (0.9, 1.1, 5))]
    for dims in (2, 3):
        planned = plan(load_config(overrides={"data.spatial_dims": dims}), images)
        assert plan(planned, [grid((10, 10, 10), (7, 7, 7))]) == planned


def test_slices_are_cut_across_the_coarsest_axis_and_keep_their_distance() -> None:
    data = plan(load_config(overrides={"data.spatial_dims": 2}), [grid((64, 12, 64), (1, 6, 1.5))]).data
    assert data.slice_axis == 1
    assert data.spacing == (1, 0, 1.5)
    assert data.patch_size == (64, 64)


def test_what_was_set_stays() -> None:
    settings = {"data.spatial_dims": 2, "data.slice_axis": 0, "data.patch_size": (32, 24), "data.spacing": (2, 2, 2)}
    data = plan(load_config(overrides=settings), [grid((64, 64, 12), (1, 1, 6))]).data
    assert (data.slice_axis, data.patch_size, data.spacing) == (0, (32, 24), (2, 2, 2))


def test_native_spacing_resamples_nothing() -> None:
    data = plan(load_config(overrides={"data.spacing": "native"}), [grid((20, 20, 20), (1, 1, 3))]).data
    assert working_shape((7, 8, 9), (0.3, 4, 5), data) == (7, 8, 9)
