"""Pseudo-labels: what the teacher says of a patch moves as the patch does."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from vqseg.config import Views
from vqseg.networks.vqseg import Output, VQSeg
from vqseg.training.step import Unlabelled, pseudo_label
from vqseg.training.views import Geometry, apply_geometry, draw_geometry

SPATIAL = {2: (24, 32), 3: (16, 20, 24)}


class BrightIsForeground(nn.Module):
    """A teacher that is sure of every voxel and looks at nothing but its brightness."""

    def forward(self, image: Tensor) -> Output:
        none = torch.zeros(len(image), 1, dtype=torch.int64)
        return Output(torch.cat([-40 * image, 40 * image], 1), None, indices=none)


class LeftIsForeground(BrightIsForeground):
    """A teacher that goes by the place on the first axis alone, as no image can tell it to."""

    def forward(self, image: Tensor) -> Output:
        place = torch.linspace(1, -1, image.shape[2]).view(1, 1, -1, *[1] * (image.ndim - 3))
        return super().forward(place.expand_as(image))


def patches(dims: int) -> Tensor:
    smooth = torch.rand(2, 1, *[4] * dims, generator=torch.Generator().manual_seed(1)) - 0.5
    return nn.functional.interpolate(smooth, SPATIAL[dims], mode="bilinear" if dims == 2 else "trilinear")


def geometry(dims: int, views: Views) -> Geometry:
    return draw_geometry(2, SPATIAL[dims], views, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dims", [2, 3])
def test_pseudo_label_lies_where_the_student_sees_the_structure(dims: int) -> None:
    moved = geometry(dims, Views(rotation=40, scale=0.3, shift=0.2, flip_axes=(0,)))
    teacher = cast(VQSeg, BrightIsForeground())
    pseudo = pseudo_label(teacher, Unlabelled(patches(dims), moved), [], 0.9)
    seen = apply_geometry(patches(dims), moved)[:, 0]
    decided = seen.abs() > 0.05
    assert decided.float().mean() > 0.5
    assert torch.equal(pseudo.target[decided], (seen > 0).long()[decided])
    assert pseudo.valid[decided].float().mean() > 0.95
    unmoved = (patches(dims)[:, 0] > 0).long()
    assert (pseudo.target != unmoved)[decided].float().mean() > 0.1  # the deformation is not a small one


@pytest.mark.parametrize("dims", [2, 3])
def test_teacher_is_asked_about_mirror_images_too(dims: int) -> None:
    """What it says of one side only is not sure, for the mirror image contradicts it."""
    still = geometry(dims, Views(rotation=0, scale=0, shift=0, elastic=0))
    teacher = cast(VQSeg, LeftIsForeground())
    alone = pseudo_label(teacher, Unlabelled(patches(dims), still), [], 0.9)
    both = pseudo_label(teacher, Unlabelled(patches(dims), still), [0], 0.9)
    assert alone.valid.float().mean() > 0.9
    assert not both.valid.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_unsure_voxels_do_not_count(dims: int) -> None:
    class Unsure(BrightIsForeground):
        def forward(self, image: Tensor) -> Output:
            output = super().forward(image)
            return Output(output.logits / 1000, None, indices=output.indices)

    still = geometry(dims, Views(rotation=0, scale=0, shift=0, elastic=0))
    unlabelled = Unlabelled(patches(dims), still)
    assert not pseudo_label(cast(VQSeg, Unsure()), unlabelled, [], 0.9).valid.any()
    assert pseudo_label(cast(VQSeg, Unsure()), unlabelled, [], 0.5).valid.all()
