"""Copy-paste: every voxel and its label come from one place, and unsure pseudo-labels never count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_2D, tiny_config, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from vqseg.config import Views
from vqseg.data.patches import Batch
from vqseg.training.copy_paste import BidirectionalCopyPaste, VQSegWithCopyPaste, draw_box, largest_components
from vqseg.training.step import PseudoLabel, StepInputs, Stream, Unlabelled
from vqseg.training.teacher import make_teacher
from vqseg.training.views import draw_geometry

quick = settings(max_examples=50, deadline=None)
sizes = st.lists(st.integers(1, 12), min_size=2, max_size=3).map(tuple)
SPATIAL = {2: (8, 8), 3: (8, 8, 8)}
LABELS = 3  # background, left and right


@quick
@given(sizes, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_box_has_its_side_and_lies_inside(spatial: tuple[int, ...], side: float, seed: int) -> None:
    box = draw_box(spatial, side, torch.Generator().manual_seed(seed))
    assert box.shape == spatial
    assert box.dtype == torch.bool
    lengths = [max(1, round(size * side)) for size in spatial]
    places = box.nonzero()
    assert (places.amax(0) - places.amin(0) + 1).tolist() == lengths
    assert len(places) == np.prod(lengths)


def test_box_may_lie_anywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = {tuple(draw_box((5, 4), 0.5, generator).nonzero()[0].tolist()) for _ in range(200)}
    assert starts == {(row, column) for row in range(4) for column in range(3)}


def numbered(dims: int, count: int, first: int) -> Batch:
    """Images of which no voxel is like another of any image, and labels that follow from the voxels."""
    spatial = SPATIAL[dims]
    total = count * int(np.prod(spatial))
    image = torch.arange(first, first + total).view(count, 1, *spatial).float()
    return Batch(image, label_of(image))


def label_of(image: Tensor) -> Tensor:
    return (image[:, 0].long() * 7 // 5) % LABELS


def inputs_of(dims: int, labelled: Batch, *, ramp: float = 1.0, seed: int = 0, **overrides: Any) -> StepInputs:
    config = tiny_config((TINY_2D if dims == 2 else {}) | overrides)
    student = tiny_network(config)
    return StepInputs(student, make_teacher(student), labelled, None, ramp, torch.Generator().manual_seed(seed))


def method_of(dims: int, **overrides: Any) -> BidirectionalCopyPaste:
    return BidirectionalCopyPaste(tiny_config((TINY_2D if dims == 2 else {}) | overrides))


def need_one_source(stream: Stream, labelled: Batch, other: Batch) -> Tensor:
    """That each voxel stands where it stood in one of the two images of its row; returns which come from `other`."""
    count = max(len(labelled.image), len(other.image))
    first, second = (batch.image[torch.arange(count) % len(batch.image)] for batch in (labelled, other))
    from_first, from_second = stream.image == first, stream.image == second
    assert bool((from_first ^ from_second).all())
    for target in stream.targets:
        assert torch.equal(target.label, label_of(stream.image))
    return from_second[:, 0]


@quick
@given(st.sampled_from([2, 3]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1000))
def test_every_voxel_comes_from_one_image_and_its_label_with_it(
    dims: int, labelled_count: int, other_count: int, seed: int
) -> None:
    labelled, other = numbered(dims, labelled_count, 0), numbered(dims, other_count, 100_000)
    assert other.label is not None
    sure = torch.rand(other.label.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    streams = method_of(dims).copy_paste_streams(
        inputs_of(dims, labelled, seed=seed), other, PseudoLabel(other.label, sure)
    )
    inward, outward = (need_one_source(stream, labelled, other) for stream in streams)
    count = max(labelled_count, other_count)
    assert len(streams) == 2
    # A box of two thirds of each side, in the one image from the other and in the other from the one.
    assert inward.sum() == count * round(8 * 2 / 3) ** dims
    assert torch.equal(outward, ~inward)
    for stream, from_other in zip(streams, (inward, outward), strict=True):
        true, pseudo = stream.targets
        assert true.valid is not None
        assert pseudo.valid is not None
        assert torch.equal(true.valid, ~from_other)
        assert torch.equal(pseudo.valid, from_other & sure[torch.arange(count) % other_count])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_box_is_the_settings_share_of_the_patch(dims: int, share: float) -> None:
    labelled, other = numbered(dims, 1, 0), numbered(dims, 1, 100_000)
    method = method_of(dims, **{"views.copy_paste": share})
    inward, _ = method.copy_paste_streams(inputs_of(dims, labelled), other, None)
    assert need_one_source(inward, labelled, other).sum() == round(8 * share) ** dims


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("ramp", [0.25, 1.0])
def test_pseudo_labels_weigh_less_and_gain_weight_with_the_ramp(dims: int, ramp: float) -> None:
    labelled, other = numbered(dims, 2, 0), numbered(dims, 2, 100_000)
    assert other.label is not None
    method = method_of(dims, **{"loss.copy_paste": 0.4, "loss.unlabelled": 0.5})
    pseudo = PseudoLabel(other.label, torch.ones_like(other.label, dtype=torch.bool))
    inputs = inputs_of(dims, labelled, ramp=ramp)
    for stream in method.copy_paste_streams(inputs, other, pseudo):
        assert [target.weight for target in stream.targets] == pytest.approx([0.5, 0.5 * 0.4 * 0.5 * ramp])
    for stream in method.copy_paste_streams(inputs, other, None):
        assert [target.weight for target in stream.targets] == [0.5, 0.5]


def unlabelled_of(dims: int, views: Views, count: int = 2) -> Unlabelled:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(count, 1, *SPATIAL[dims], generator=generator)
    return Unlabelled(image, draw_geometry(count, [16.0] * dims, views, generator))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method_class", [BidirectionalCopyPaste, VQSegWithCopyPaste])
def test_a_teacher_that_is_sure_of_nothing_teaches_nothing_but_in_bcp(dims: int, method_class: type[Any]) -> None:
    """BCP as published takes every pseudo-label."""
    overrides = (TINY_2D if dims == 2 else {}) | {"loss.confidence": 0.9999}
    config = tiny_config(overrides)
    student = tiny_network(config)
    labelled = numbered(dims, 2, 0)
    labelled = Batch(labelled.image / labelled.image.max(), labelled.label)
    generator = torch.Generator().manual_seed(0)
    unlabelled = unlabelled_of(dims, config.views)
    inputs = StepInputs(student, make_teacher(student), labelled, unlabelled, 1.0, generator)
    method = method_class(config)
    pseudo = [
        target
        for stream in method.streams(inputs)
        for target in stream.targets
        if target.name.startswith(("pasted", "perturbed"))
    ]
    assert pseudo
    losses = method.losses(inputs)
    if method_class is BidirectionalCopyPaste:
        # Of the two mixed images each voxel of the unlabelled one is in one.
        counted = torch.stack([target.valid for target in pseudo if target.valid is not None])
        assert torch.equal(counted.sum(0), torch.ones_like(counted[0], dtype=torch.int64))
        assert all(losses[target.name].item() > 0 for target in pseudo)
        return
    for target in pseudo:
        assert target.valid is not None
        assert not target.valid.any()
        assert losses[target.name].item() == pytest.approx(0, abs=1e-6)
    assert losses["labelled_inward"].item() > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_labelled_images_are_pasted_into_each_other_first(dims: int) -> None:
    """While there is nothing unlabelled yet, each with the next one, and all labels count."""
    labelled = numbered(dims, 3, 0)
    assert labelled.label is not None
    streams = method_of(dims).streams(inputs_of(dims, labelled))
    other = Batch(labelled.image.roll(1, 0), labelled.label.roll(1, 0))
    for stream in streams:
        need_one_source(stream, labelled, other)
        assert sum(int(target.valid.sum()) for target in stream.targets if target.valid is not None) == (
            labelled.label.numel()
        )


def random_blobs(dims: int, seed: int) -> NDArray[np.int64]:
    """Two images of classes in smooth patches, with many components each."""
    shape = (2, 24, 20) if dims == 2 else (2, 12, 10, 8)
    noise = np.random.default_rng(seed).normal(size=(LABELS, *shape))
    return ndimage.gaussian_filter(noise, (0, 0, *[1.2] * dims)).argmax(0)


@quick
@given(st.sampled_from([2, 3]), st.integers(0, 1000))
def test_the_largest_component_of_each_class_remains(dims: int, seed: int) -> None:
    label = random_blobs(dims, seed)
    kept = largest_components(torch.from_numpy(label), LABELS).numpy()
    assert kept.dtype == label.dtype
    assert bool(((kept == label) | (kept == 0)).all())
    for before, after in zip(label, kept, strict=True):
        for value in range(1, LABELS):
            components, count = ndimage.label(before == value)
            volumes = ndimage.sum_labels(before == value, components, range(1, count + 1))
            remaining, number = ndimage.label(after == value)
            assert number == min(count, 1)
            assert (remaining > 0).sum() == volumes.max(initial=0)
    again = largest_components(torch.from_numpy(kept), LABELS).numpy()
    np.testing.assert_array_equal(again, kept)


@quick
@given(sizes, st.lists(st.integers(0, LABELS - 1), min_size=2, max_size=4), st.integers(0, 1000))
def test_one_component_a_class_is_left_as_it_is(spatial: tuple[int, ...], values: list[int], seed: int) -> None:
    """Slabs of the classes, one after another along the first axis; a class may be absent."""
    values = sorted(set(values))
    edges = np.sort(np.random.default_rng(seed).integers(0, spatial[0] + 1, len(values) - 1))
    label = np.zeros((1, *spatial), np.int64)
    for value, start, stop in zip(values, [0, *edges], [*edges, spatial[0]], strict=True):
        label[:, start:stop] = value
    kept = largest_components(torch.from_numpy(label), LABELS)
    assert torch.equal(kept, torch.from_numpy(label))


def test_components_touch_by_faces_and_images_do_not_touch() -> None:
    label = torch.zeros(2, 4, 4, dtype=torch.int64)
    label[0, 0, :2] = label[0, 1, 2] = 1  # joined by a corner alone
    label[1, 0, 0] = 1
    kept = largest_components(label, 2)
    assert kept[0].nonzero().tolist() == [[0, 0], [0, 1]]
    assert torch.equal(kept[1], label[1])


@pytest.mark.parametrize("keep", [True, False])
def test_small_components_of_a_pseudo_label_go_only_where_asked(keep: bool) -> None:
    method = method_of(2, **{"loss.largest_component": keep})
    label = torch.from_numpy(random_blobs(2, 0))
    refined = method.refined(PseudoLabel(label, torch.ones_like(label, dtype=torch.bool)))
    assert torch.equal(refined.target, largest_components(label, LABELS) if keep else label)
    assert not torch.equal(largest_components(label, LABELS), label)
    assert refined.valid.all()
