"""Windows: every voxel counts once, however many windows see it, and padding never."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqseg.inference.windows import slide

CPU = torch.device("cpu")
shapes = st.integers(2, 3).flatmap(
    lambda dims: st.tuples(st.tuples(*[st.integers(1, 19)] * dims), st.tuples(*[st.sampled_from([2, 4, 8])] * dims))
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 3))
def test_a_weighted_sum_over_windows_is_a_sum_over_the_image(
    shape_and_window: tuple[tuple[int, ...], tuple[int, ...]], batch: int
) -> None:
    shape, window = shape_and_window
    image = torch.randn(batch, 1, *shape, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(())

    def look(seen: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal total
        assert seen.shape[2:] == weight.shape[2:] == torch.Size(window)
        total = total + (seen * weight).sum()
        return seen, 2 * seen

    same, double = slide(image, window, look, at_a_time=2, outside=99.0, device=CPU)
    assert total == pytest.approx(float(image.sum()), abs=1e-3)
    # What is blended lies where it was seen.
    torch.testing.assert_close(same, image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(double, 2 * image, atol=1e-4, rtol=1e-4)


def test_what_is_outside_is_seen_with_its_value_and_without_weight() -> None:
    windows = []

    def look(seen: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        windows.append((seen.clone(), weight.clone()))
        return (seen,)

    slide(torch.ones(1, 1, 1, 4), (4, 4), look, at_a_time=1, outside=-3.0, device=CPU)
    ((seen, weight),) = windows
    np.testing.assert_array_equal(seen[0, 0, :, 0], [-3, 1, -3, -3])
    np.testing.assert_array_equal(weight[0, 0, :, 0], [0, 1, 0, 0])
