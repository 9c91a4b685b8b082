"""Views: label and image move together, draws follow from the generator, and a neutral draw changes nothing."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqseg.config import Views
from vqseg.training.views import (
    CutMix,
    Geometry,
    apply_cutmix,
    apply_geometry,
    apply_intensity,
    draw_cutmix,
    draw_geometry,
    draw_intensity,
)

quick = settings(max_examples=20, deadline=None)
STILL = Views(rotation=0, scale=0, shift=0, elastic=0, flip_axes=(), intensity_share=0, cutmix=0)
SPATIAL = {2: (20, 24), 3: (16, 20, 12)}
dims_and_seed = given(st.sampled_from([2, 3]), st.integers(0, 10_000))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(dims: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, *SPATIAL[dims], generator=generator(seed))


def extent(dims: int) -> tuple[float, ...]:
    return tuple(size * step for size, step in zip(SPATIAL[dims], (1.0, 0.5, 3.0)[:dims], strict=True))


def blob(dims: int, centre: tuple[float, ...], radius: float = 3) -> Tensor:
    points = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in SPATIAL[dims]], indexing="ij"), -1)
    return ((points - torch.tensor(centre)).norm(dim=-1) < radius).long()[None]


def centre_of(weight: Tensor) -> Tensor:
    points = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in weight.shape], indexing="ij"), -1)
    return (points * weight[..., None]).flatten(0, -2).sum(0) / weight.sum()


@quick
@dims_and_seed
def test_still_geometry_is_the_identity(dims: int, seed: int) -> None:
    image = images(dims, seed=seed)
    draw = draw_geometry(2, extent(dims), STILL, generator(seed))
    torch.testing.assert_close(apply_geometry(image, draw), image, rtol=0, atol=1e-4)
    label = (image[:, 0] > 0).long() + (image[:, 0] > 1).long()
    assert torch.equal(apply_geometry(label, draw, classes=3), label)


@quick
@dims_and_seed
def test_label_and_image_move_together(dims: int, seed: int) -> None:
    label = blob(dims, tuple(n / 2 + 1 for n in SPATIAL[dims]))
    draw = draw_geometry(1, extent(dims), Views(elastic=0.3), generator(seed))
    moved_label = apply_geometry(label, draw, classes=2)[0].float()
    moved_image = apply_geometry(label[:, None].float(), draw)[0, 0]
    assert moved_label.sum() > 0
    assert (centre_of(moved_label) - centre_of(moved_image)).norm() < 0.6
    undecided = (moved_image - 0.5).abs() < 1e-4
    assert torch.equal((moved_label > 0)[~undecided], (moved_image > 0.5)[~undecided])


@pytest.mark.parametrize("dims", [2, 3])
def test_blob_goes_where_the_affine_says(dims: int) -> None:
    """The draw maps places of the result to places of the source, in millimetres from the centre."""
    size = torch.tensor(extent(dims))
    spacing = size / torch.tensor(SPATIAL[dims])
    draw = draw_geometry(1, extent(dims), Views(elastic=0, rotation=20), generator(5))
    source = torch.tensor([n / 2 + 1.5 for n in SPATIAL[dims]])
    moved = apply_geometry(blob(dims, tuple(source.tolist()), 4), draw, classes=2)[0].float()
    voxel_centre = (torch.tensor(SPATIAL[dims]) - 1) / 2
    place = draw.affine[0] @ ((centre_of(moved) - voxel_centre) * spacing) + draw.shift[0]
    expected = centre_of(blob(dims, tuple(source.tolist()), 4)[0].float())
    torch.testing.assert_close(place / spacing + voxel_centre, expected, atol=0.3, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_shift_of_whole_voxels_is_exact(dims: int) -> None:
    image = images(dims)
    draw = draw_geometry(2, extent(dims), STILL, generator())
    step = extent(dims)[1] / SPATIAL[dims][1]
    moved = apply_geometry(image, replace(draw, shift=torch.tensor([0, 2 * step, 0][:dims]).repeat(2, 1)))
    torch.testing.assert_close(moved[:, :, :, :-2], image[:, :, :, 2:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flips_mirror_their_axis_half_of_the_time_and_no_other(axis: int) -> None:
    image = images(3, count=40)
    flipped = apply_geometry(image, draw_geometry(40, extent(3), replace_views(flip_axes=(axis,)), generator()))
    mirrored = [torch.allclose(f, i.flip(axis + 1), atol=1e-4) for f, i in zip(flipped, image, strict=True)]
    same = [torch.allclose(f, i, atol=1e-4) for f, i in zip(flipped, image, strict=True)]
    assert sum(mirrored) + sum(same) == 40
    assert 8 <= sum(mirrored) <= 32


def replace_views(**changes: object) -> Views:
    return STILL.model_copy(update=changes)


@quick
@dims_and_seed
def test_rotations_keep_lengths_and_stay_within_their_bound(dims: int, seed: int) -> None:
    draw = draw_geometry(4, extent(dims), replace_views(rotation=15), generator(seed))
    torch.testing.assert_close(draw.affine @ draw.affine.mT, torch.eye(dims).expand(4, -1, -1), atol=1e-5, rtol=0)
    trace = draw.affine.diagonal(dim1=1, dim2=2).sum(1)
    angle = torch.rad2deg(torch.arccos(((trace - dims + 2) / 2).clamp(-1, 1)))
    assert angle.max() <= 15 * (1 if dims == 2 else 3) + 0.1
    scaled = draw_geometry(64, extent(dims), replace_views(scale=0.2), generator(seed)).affine
    assert scaled.diagonal(dim1=1, dim2=2).min() >= 1 / (1.2 * 1.1)
    assert scaled.diagonal(dim1=1, dim2=2).max() <= 1.2 * 1.1


def test_rotation_is_one_in_millimetres_not_in_voxels() -> None:
    """With voxels of 1 x 4 mm a quarter turn maps 8 voxels of the first axis onto 2 of the second."""
    quarter = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    size = torch.tensor([32.0, 32.0])
    draw = Geometry(quarter, torch.zeros(1, 2), torch.zeros(1, 2, 5, 5), size)
    image = torch.zeros(1, 1, 32, 8)
    image[..., 12:20, :] = 1  # 8 mm wide
    turned = apply_geometry(image, draw)[0, 0]
    assert turned.sum(1).min() == pytest.approx(2, abs=1e-3)
    assert turned.sum(1).max() == pytest.approx(2, abs=1e-3)


@quick
@dims_and_seed
def test_same_generator_same_draws(dims: int, seed: int) -> None:
    image = images(dims)
    draws = [
        (
            draw_geometry(2, extent(dims), Views(), generator(s)),
            draw_intensity(2, Views(), generator(s)),
            draw_cutmix(image, 0.5, generator(s)),
        )
        for s in (seed, seed, seed + 1)
    ]
    tensors = [[v for draw in three for v in astuple(draw) if isinstance(v, Tensor)] for three in draws]
    assert all(torch.equal(one, other) for one, other in zip(tensors[0], tensors[1], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(tensors[0], tensors[2], strict=True))
    before = torch.get_rng_state()
    first, second = (apply_intensity(image, draw[1]) for draw in draws[:2])
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@quick
@dims_and_seed
def test_neutral_intensity_is_the_identity(dims: int, seed: int) -> None:
    image = images(dims, seed=seed)
    torch.testing.assert_close(
        apply_intensity(image, draw_intensity(2, STILL, generator(seed))), image, atol=1e-4, rtol=0
    )


@quick
@dims_and_seed
def test_any_intensity_change_stays_finite_and_leaves_its_input_alone(dims: int, seed: int) -> None:
    image = images(dims, seed=seed)
    image[1] = 0.3  # a constant patch, as in the air around a patient
    before = image.clone()
    changed = apply_intensity(image, draw_intensity(2, replace_views(intensity_share=1.0), generator(seed)))
    assert changed.isfinite().all()
    assert changed.shape == image.shape
    assert torch.equal(image, before)


def test_each_change_of_intensity_does_what_its_name_says() -> None:
    image = images(3)
    neutral = draw_intensity(2, STILL, generator())
    two = torch.ones(2)

    def changed(**draw: Tensor) -> Tensor:
        return apply_intensity(image, replace(neutral, **draw))

    torch.testing.assert_close(changed(brightness=two), image + 1, atol=1e-4, rtol=0)
    torch.testing.assert_close(changed(contrast=two * 2).std(), 2 * image.std(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(changed(contrast=two * 2).mean(), image.mean(), atol=1e-3, rtol=0)
    assert (changed(noise=two * 0.5) - image).std().item() == pytest.approx(0.5, rel=0.05)
    assert changed(blur=two).std() < 0.5 * image.std()
    gamma = changed(gamma=two * 2)
    torch.testing.assert_close((gamma.amin(), gamma.amax()), (image.amin(), image.amax()), atol=1e-4, rtol=0)
    assert gamma.mean() < image.mean()


@quick
@dims_and_seed
def test_cutmix_mixes_labels_with_images_alike(dims: int, seed: int) -> None:
    image = torch.arange(3.0).view(-1, *[1] * (dims + 1)).expand(3, 1, *SPATIAL[dims])
    draw = draw_cutmix(image, 0.7, generator(seed))
    mixed, label = apply_cutmix(image, draw), apply_cutmix(image[:, 0].long(), draw)
    assert torch.equal(mixed[:, 0].long(), label)
    for index in range(3):
        assert set(label[index].unique().tolist()) <= {index, int(draw.partner[index])}
        share = (label[index] != index).float().mean().item()
        assert share == 0 or 0.15 < share < 0.6
    assert int((draw.partner == torch.arange(3)).sum()) == 0


def test_cutmix_happens_as_often_as_stated_and_never_alone() -> None:
    image = torch.zeros(300, 1, 6, 6)
    fired = draw_cutmix(image, 0.3, generator()).box.flatten(1).any(1)
    assert 60 < int(fired.sum()) < 120
    assert not draw_cutmix(image, 0, generator()).box.any()
    assert draw_cutmix(image, 1, generator()).box.flatten(1).any(1).all()
    assert not draw_cutmix(image[:1], 1, generator()).box.any()


def test_cutmix_by_hand() -> None:
    box = torch.zeros(2, 2, 2, dtype=torch.bool)
    box[0, 0] = True
    mixed = apply_cutmix(torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), CutMix(box, torch.tensor([1, 0])))
    assert mixed.tolist() == [[[5, 6], [3, 4]], [[5, 6], [7, 8]]]
