"""The foundation model's features lie where the patch lies, and are computed once a study."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    TINY_2D,
    cut_off_from_the_hub,
    foundation_folder,
    make_affine,
    tiny_config,
    write_studies,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from vqseg.config import Config, Data, Foundation, load_config
from vqseg.data.grid import Grid
from vqseg.data.guidance import Guidance, guide_study, plan_guidance, sample_guide
from vqseg.data.patches import PatchDataset
from vqseg.data.plan import plan
from vqseg.data.preparation import PreparedStudy, prepare_study
from vqseg.data.studies import Study
from vqseg.errors import ConfigError
from vqseg.networks.foundation import FoundationModel
from vqseg.training.views import Geometry, apply_geometry

CPU = torch.device("cpu")
quick = settings(max_examples=60, deadline=None)
axes = st.sampled_from([0, 1, 2])


def three(values: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(values, values, values)


def in_plane(axis: int) -> list[int]:
    return [other for other in range(3) if other != axis]


def ramp(shape: Sequence[int], cells: Sequence[int], axis: int) -> NDArray[np.float32]:
    """Features of an image of `shape`: the voxel position of each cell's centre, on the image's three axes."""
    rows, columns = in_plane(axis)
    position = np.zeros((shape[axis], 3, *cells), np.float32)
    position[:, axis] = np.arange(shape[axis])[:, None, None] + 0.5
    position[:, rows] = ((np.arange(cells[0]) + 0.5) * shape[rows] / cells[0])[:, None]
    position[:, columns] = (np.arange(cells[1]) + 0.5) * shape[columns] / cells[1]
    return position


def cell_centres(start: Sequence[int], size: Sequence[int], grid: Sequence[int], axis: int) -> list[NDArray]:
    """Voxel positions of the cells' centres on one axis after another; on the slices', of the slice they lie in."""
    centres = [a + (np.arange(cells) + 0.5) * n / cells for a, n, cells in zip(start, size, grid, strict=True)]
    centres[axis] = np.floor(centres[axis]) + 0.5
    return centres


@quick
@given(
    shape=three(st.integers(1, 20)),
    cells=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    start=three(st.integers(-15, 25)),
    size=three(st.integers(1, 16)),
    grid=three(st.integers(1, 6)),
    axis=axes,
)
def test_ramp_of_features_is_a_ramp_over_the_patch(
    shape: tuple[int, ...],
    cells: tuple[int, int],
    start: tuple[int, ...],
    size: tuple[int, ...],
    grid: tuple[int, ...],
    axis: int,
) -> None:
    """Outside the image, and within half a cell of its border, the nearest feature."""
    found = sample_guide(ramp(shape, cells, axis), shape, start, size, grid, axis)  # type: ignore[arg-type]
    half = [0.5] * 3
    for index, count in zip(in_plane(axis), cells, strict=True):
        half[index] = shape[index] / count / 2
    centres = cell_centres(start, size, grid, axis)
    clipped = [np.clip(one, edge, n - edge) for one, edge, n in zip(centres, half, shape, strict=True)]
    expected = np.stack(np.meshgrid(*clipped, indexing="ij"))
    assert found.shape == (3, *grid)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


@quick
@given(axis=axes, start=three(st.integers(-4, 8)), grid=three(st.integers(1, 4)), voxels=three(st.integers(1, 3)))
def test_a_cropped_patch_has_the_features_of_its_cells(
    axis: int, start: tuple[int, ...], grid: tuple[int, ...], voxels: tuple[int, ...]
) -> None:
    """A patch of twice the size and as many cells more holds the smaller one's features."""
    features = np.random.default_rng(0).normal(size=(10, 5, 4, 6)).astype(np.float16)
    shape = np.array([11, 12, 13])
    shape[axis] = 10
    size = np.array(grid) * voxels
    small = sample_guide(features, shape, start, size, grid, axis)
    large = sample_guide(features, shape, np.array(start) - size, 2 * size, 2 * np.array(grid), axis)
    second_half = (slice(None), *[slice(count, None) for count in grid])
    torch.testing.assert_close(large[second_half], small, atol=1e-4, rtol=1e-4)


def flip_only(extent: Sequence[float], axis: int) -> Geometry:
    affine = torch.eye(len(extent))[None].clone()
    affine[0, axis, axis] = -1
    still = torch.zeros(1, len(extent), *[5] * len(extent))
    return Geometry(affine, torch.zeros(1, len(extent)), still, torch.tensor(extent))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_flipped_patch_has_flipped_features(dims: int) -> None:
    """The geometry of the image's voxels moves the features' coarser grid alike."""
    generator = torch.Generator().manual_seed(0)
    image, guide = (torch.randn(1, 3, *[n, n + 2, n + 1][:dims], generator=generator) for n in (8, 3))
    for axis in range(dims):
        flip = flip_only([16.0, 20.0, 9.0][:dims], axis)
        torch.testing.assert_close(apply_geometry(image, flip), image.flip(axis + 2), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(apply_geometry(guide, flip), guide.flip(axis + 2), atol=1e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off_from_the_hub(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foundation_folder(tmp_path_factory.mktemp("foundation"))


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedStudy:
    study = write_studies(tmp_path / "studies", 1, shape=(12, 9, 11))[0]
    return prepare_study(study, tiny_config().data, tmp_path / "cache")


def guided_config(folder: Path, **foundation: Any) -> Config:
    settings = {"size": 56, "slice_axis": 2, "name": str(folder)} | foundation
    return tiny_config({f"foundation.{key}": value for key, value in settings.items()})


def counted(model: FoundationModel) -> list[int]:
    """How many slices the model saw in each of its calls from now on."""
    calls: list[int] = []
    model.network.register_forward_hook(
        lambda module, inputs, named, output: calls.append(len(named["pixel_values"])), with_kwargs=True
    )
    return calls


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_study_has_the_features_of_its_slices(
    axis: int, folder: Path, prepared: PreparedStudy, tmp_path: Path
) -> None:
    model = FoundationModel.load(str(folder), CPU)
    guided = guide_study(prepared, model, guided_config(folder, slice_axis=axis), tmp_path / "cache")
    image = np.load(prepared.image).astype(np.float32)
    scaled = torch.from_numpy((image - image.min()) / (image.max() - image.min()))
    assert guided == replace(prepared, guide=guided.guide)
    assert guided.guide is not None
    features = np.load(guided.guide)
    assert features.dtype == np.float16
    assert len(features) == image.shape[axis]
    for number in (0, image.shape[axis] - 1):
        expected = model.features(scaled.select(axis, number)[None], 56)[0]
        np.testing.assert_allclose(features[number], expected.numpy(), atol=5e-3, rtol=5e-3)


def test_the_model_sees_a_study_once(folder: Path, prepared: PreparedStudy, tmp_path: Path) -> None:
    model, config = FoundationModel.load(str(folder), CPU), guided_config(folder)
    calls = counted(model)
    first = guide_study(prepared, model, config, tmp_path / "cache")
    slices = sum(calls)
    assert slices == np.load(prepared.image).shape[2]
    assert guide_study(prepared, model, config, tmp_path / "cache") == first
    # What is trained with it changes nothing of the features.
    other = config.model_copy(update={"foundation": config.foundation.model_copy(update={"temperature": 0.5})})
    assert guide_study(prepared, model, other, tmp_path / "cache") == first
    assert sum(calls) == slices


def test_every_setting_that_changes_the_features_makes_another_file(
    folder: Path, prepared: PreparedStudy, tmp_path: Path
) -> None:
    model = FoundationModel.load(str(folder), CPU)
    another = foundation_folder(tmp_path / "another", seed=1)
    study = write_studies(tmp_path / "others", 1, shape=(12, 9, 11), seed=1)[0]
    cases = [
        (prepared, model, guided_config(folder)),
        (prepared, model, guided_config(folder, size=28)),
        (prepared, model, guided_config(folder, slice_axis=0)),
        (prepared, FoundationModel.load(str(another), CPU), guided_config(another)),
        (prepare_study(study, tiny_config().data, tmp_path / "cache"), model, guided_config(folder)),
    ]
    files = [guide_study(one, by, config, tmp_path / "cache").guide for one, by, config in cases]
    assert len(set(files)) == len(cases)
    shapes = [np.load(file).shape for file in files if file]
    assert shapes[1][2:] != shapes[0][2:]
    assert shapes[2][0] != shapes[0][0]


def test_another_model_in_the_same_folder_makes_another_file(prepared: PreparedStudy, tmp_path: Path) -> None:
    """Nothing goes stale in the cache."""
    folder, files = tmp_path / "model", []
    for seed in (0, 1):
        shutil.rmtree(folder, ignore_errors=True)
        foundation_folder(folder, seed=seed)
        model = FoundationModel.load(str(folder), CPU)
        guided = guide_study(prepared, model, guided_config(folder), tmp_path / "cache")
        assert guided.guide is not None
        files.append(np.load(guided.guide))
    assert not np.array_equal(files[0], files[1])


def test_an_image_of_one_value_has_features(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.full((5, 6, 3), 7, np.float16))
    flat = PreparedStudy(Study("flat", tmp_path / "flat.nii"), tmp_path / "flat.npy", None, None)
    guided = guide_study(flat, FoundationModel.load(str(folder), CPU), guided_config(folder), tmp_path / "cache")
    assert guided.guide is not None
    assert np.isfinite(np.load(guided.guide)).all()


PLANS: list[tuple[dict[str, Any], int, tuple[int, ...]]] = [
    # As many cells as the finest quantised level: half of the patch on each axis.
    ({"data.patch_size": (8, 8, 8), "foundation.size": 56}, 2, (4, 4, 4)),
    # Within a slice the model tells no more than size / patch positions apart; across the slices it is no bound.
    ({"data.patch_size": (32, 16, 8), "foundation.size": 56}, 2, (4, 4, 4)),
    ({"data.patch_size": (32, 16, 24), "foundation.size": 84}, 2, (6, 6, 12)),
    ({"data.patch_size": (32, 16, 24), "foundation.size": 84}, 0, (16, 6, 6)),
    ({"data.patch_size": (32, 16, 24), "foundation.size": 84}, 1, (6, 8, 6)),
    ({"data.patch_size": (2, 4, 2), "foundation.size": 84}, 2, (1, 2, 1)),
    ({"data.patch_size": (8, 8, 4), "model.first_quantized_level": 0, "foundation.size": 224}, 2, (8, 8, 4)),
    ({"data.patch_size": (32, 16, 8), "model.channels": (4, 8, 8), "model.first_quantized_level": 2}, 2, (8, 4, 2)),
    (TINY_2D | {"data.patch_size": (8, 4), "foundation.size": 56}, 2, (4, 2)),
    # A 2D patch has no axis across the slices.
    (TINY_2D | {"data.patch_size": (32, 16), "data.slice_axis": 0, "foundation.size": 56}, 0, (4, 4)),
    (TINY_2D | {"data.patch_size": (32, 16), "data.slice_axis": 1, "foundation.size": 84}, 1, (6, 6)),
]


@pytest.mark.parametrize(("overrides", "axis", "grid"), PLANS, ids=str)
def test_guidance_is_as_fine_as_level_and_model_allow(
    overrides: dict[str, Any], axis: int, grid: tuple[int, ...], folder: Path
) -> None:
    model = FoundationModel.load(str(folder), CPU)
    config = tiny_config(overrides | {"foundation.name": str(folder), "foundation.slice_axis": axis})
    assert plan_guidance(config, model) == Guidance(grid, axis, 16)


@pytest.mark.parametrize("dims", [2, 3])
def test_guidance_has_a_cell_however_small_the_slices(dims: int, tmp_path: Path) -> None:
    """Slices smaller than a patch of the foundation model are one position."""
    folder = foundation_folder(tmp_path, patch_size=32, image_size=64)
    model = FoundationModel.load(str(folder), CPU)
    chosen = {"foundation.name": str(folder), "foundation.size": 16, "foundation.slice_axis": 2}
    config = tiny_config((TINY_2D if dims == 2 else {}) | chosen)
    assert min(plan_guidance(config, model).grid) >= 1


def place_and_guide(data: Data, axis: int, folder: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Voxel positions (3, *patch) of a patch, and those that its features (3, *patch) are of: one cell a voxel."""
    shape = (12, 10, 9)
    assert data.patch_size is not None
    np.save(folder / "guide.npy", ramp(shape, [shape[other] for other in in_plane(axis)], axis))
    places, guides = [], []
    for channel, position in enumerate(np.meshgrid(*[np.arange(n) + 0.5 for n in shape], indexing="ij")):
        image = folder / f"{channel}.npy"
        np.save(image, position.astype(np.float16))
        study = PreparedStudy(Study("ramp", image), image, None, None, folder / "guide.npy")
        patch = PatchDataset([study], data, Guidance(data.patch_size, axis, 3), labelled=False)[0, seed]
        assert patch.guide is not None
        places.append(patch.image[0])
        guides.append(patch.guide[channel])
    return torch.stack(places), torch.stack(guides)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_patches_carry_the_features_of_their_own_place(dims: int, axis: int, tmp_path: Path) -> None:
    overrides = TINY_2D | {"data.slice_axis": axis} if dims == 2 else {"data.patch_size": (8, 8, 4)}
    corners = set()
    for seed in range(6):
        place, guide = place_and_guide(tiny_config(overrides).data, axis, tmp_path, seed)
        torch.testing.assert_close(guide, place, atol=1e-2, rtol=0)
        corners.add(tuple(place.flatten(1)[:, 0].tolist()))
    assert len(corners) > 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_a_2d_network_are_those_the_foundation_model_sees(axis: int, tmp_path: Path) -> None:
    """Another axis is refused, or the features are still those of the patch's place."""
    settings = TINY_2D | {"data.slice_axis": 2, "foundation.name": "some/model", "foundation.slice_axis": axis}
    try:
        config = plan(tiny_config(settings), [Grid((12, 10, 9), make_affine((12, 10, 9)))])
    except ConfigError:
        return
    place, guide = place_and_guide(config.data, axis, tmp_path, 0)
    torch.testing.assert_close(guide, place, atol=1e-2, rtol=0)


spacings = st.tuples(*[st.sampled_from([0.7, 1.0, 1.5, 3.0])] * 3)


def planned_axis(spacing: Sequence[float], degrees: Sequence[float] = (0, 0, 0), **settings: Any) -> int | None:
    config = load_config(overrides={"foundation.name": "some/model"} | settings)
    return plan(config, [Grid((20, 21, 22), make_affine((20, 21, 22), spacing, degrees=degrees))]).foundation.slice_axis


def last_coarsest(spacing: Sequence[float]) -> int:
    return max(axis for axis in range(3) if spacing[axis] == max(spacing))


@quick
@given(spacings)
def test_the_foundation_model_sees_slices_across_the_last_of_the_coarsest_axes(spacing: tuple[float, ...]) -> None:
    assert planned_axis(spacing) == last_coarsest(spacing)


@quick
@given(st.sampled_from([(1.0, 1.0, 1.0), (3.0, 3.0, 0.7), (0.7, 1.5, 1.5)]), st.tuples(*[st.floats(-9, 9)] * 3))
@pytest.mark.parametrize("spacing", ["median", "native"])
def test_rounding_of_an_oblique_grid_decides_nothing(
    spacing: str, own: tuple[float, ...], degrees: tuple[float, ...]
) -> None:
    assert planned_axis(own, degrees, **{"data.spacing": spacing}) == last_coarsest(own)


@quick
@given(spacings, spacings)
def test_the_working_spacing_says_which_axis_is_coarsest(own: tuple[float, ...], working: tuple[float, ...]) -> None:
    assert planned_axis(own, **{"data.spacing": working}) == last_coarsest(working)


def test_an_axis_that_keeps_the_images_spacing_counts_with_it() -> None:
    assert planned_axis((1.0, 1.0, 5.0), **{"data.spacing": (2.0, 2.0, 0.0)}) == 2
    assert planned_axis((1.0, 1.0, 1.5), **{"data.spacing": (2.0, 3.0, 0.0)}) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_that_is_known_is_kept(axis: int) -> None:
    assert planned_axis((1.0, 1.0, 5.0), **{"foundation.slice_axis": axis}) == axis
    in_2d = {"data.spatial_dims": 2, "data.slice_axis": axis}
    assert planned_axis((1.0, 1.0, 5.0), **in_2d) == axis


def test_without_a_foundation_model_no_axis_is_planned() -> None:
    assert planned_axis((1.0, 1.0, 5.0), **{"foundation.name": "none"}) is None
    assert not Foundation().in_use
