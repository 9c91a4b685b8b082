"""What the student sees in a step, by method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import TINY_2D, tiny_config, tiny_network

from vqseg.data.patches import Batch
from vqseg.training.methods import METHODS
from vqseg.training.step import StepInputs, Stream, Unlabelled
from vqseg.training.teacher import make_teacher
from vqseg.training.views import draw_geometry

by_dims = pytest.mark.parametrize("dims", [2, 3])


def streams_of(method: str, dims: int, **overrides: Any) -> list[Stream]:
    """Those of a step with the same two labelled and three unlabelled patches, the same weights and draws."""
    config = tiny_config((TINY_2D if dims == 2 else {}) | overrides)
    student, generator = tiny_network(config), torch.Generator().manual_seed(0)
    images = torch.randn(5, 1, *[8] * dims, generator=generator)
    labels = torch.randint(3, (2, *[8] * dims), generator=generator)
    unlabelled = Unlabelled(images[2:], draw_geometry(3, [16.0] * dims, config.views, generator))
    inputs = StepInputs(student, make_teacher(student), Batch(images[:2], labels), unlabelled, 1.0, generator)
    return METHODS[method](config).streams(inputs)


def weights(streams: list[Stream], name: str) -> list[float]:
    return [target.weight for stream in streams for target in stream.targets if target.name == name]


@by_dims
@pytest.mark.parametrize("changed", [{}, {"loss.perturbed": 0.0}, {"loss.strong": 0.0}])
def test_copy_paste_comes_beside_all_that_vqseg_sees(dims: int, changed: dict[str, float]) -> None:
    alone, beside = (streams_of(method, dims, **changed) for method in ("vqseg", "vqseg+bcp"))
    assert len(beside) == len(alone) + 2
    for one, other in zip(alone, beside, strict=False):
        assert torch.equal(one.image, other.image)
        assert (one.perturbed, one.reconstructed) == (other.perturbed, other.reconstructed)
    # The labelled view and the weak one are asked back, perturbed or not.
    assert [stream.reconstructed for stream in beside][:2] == [True, True]


@by_dims
def test_unimatch_has_two_strong_views_with_the_weight_of_one(dims: int) -> None:
    one, two = (streams_of(method, dims, **{"loss.strong": 0.8}) for method in ("cutmix", "unimatch"))
    for same, also in zip(one, two, strict=False):
        assert torch.equal(same.image, also.image)
    assert len(two) == len(one) + 1
    assert not torch.equal(two[-1].image, two[-2].image)
    assert weights(one, "strong") == pytest.approx([0.8])
    assert weights(two, "strong") == pytest.approx([0.4, 0.4])
    assert weights(two, "perturbed") == weights(one, "perturbed")
