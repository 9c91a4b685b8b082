"""The windows in which a volume goes through a network, and how much of it each of them stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn import functional

__all__ = ["slide"]

# Of (image, weight), both (B, 1, *spatial), maps (B, C, *spatial).
Look = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
_OVERLAP = 0.5


def slide(
    image: Tensor,
    size: Sequence[int],
    look: Look,
    *,
    at_a_time: int,
    outside: float,
    device: torch.device,
    go_on: Callable[[], None] = lambda: None,
) -> tuple[Tensor, ...]:
    """What `look` says of overlapping windows of `image` (B, 1, *spatial), blended, on the CPU.

    `go_on` is called before each batch of windows; what it raises ends the work there.

    An image that is smaller than a window of `size` is padded with the value `outside`. `look` is also given a weight
    (B, 1, *spatial) of every voxel: 0 in the padding, otherwise one over the number of windows that see it; so a sum
    over windows with these weights is a sum over the image, and each voxel counts once.
    """
    spatial = image.shape[2:]
    lacking = [max(wanted - length, 0) for wanted, length in zip(size, spatial, strict=True)]
    before = [missing // 2 for missing in lacking]
    # functional.pad wants the last axis first.
    margins = [side for first, missing in zip(before, lacking, strict=True) for side in (missing - first, first)][::-1]
    padded = functional.pad(image, margins, value=outside)
    weight = functional.pad(torch.ones_like(image[:1]), margins) / _times_seen(padded.shape[2:], size)

    def look_on(window: Tensor) -> tuple[Tensor, ...]:
        go_on()
        return look(window[:, :1], window[:, 1:])

    found = sliding_window_inference(
        torch.cat([padded, weight.expand_as(padded)], 1),
        size,
        at_a_time,
        look_on,
        overlap=_OVERLAP,
        mode="gaussian",
        sw_device=device,
        device=torch.device("cpu"),
    )
    within = [slice(None)] * 2 + [slice(first, first + length) for first, length in zip(before, spatial, strict=True)]
    # MONAI unwraps a tuple of one.
    return tuple(part[tuple(within)] for part in (found if isinstance(found, tuple) else (found,)))


def _times_seen(spatial: Sequence[int], size: Sequence[int]) -> Tensor:
    """Number (*spatial) of windows that see each voxel: MONAI tells where it looks, along one axis after the other."""
    times = torch.ones(())
    for length, window in zip(spatial, size, strict=True):
        seen = torch.zeros(1, 1, length)

        def count(windows: Tensor, places: Sequence[Sequence[slice]], seen: Tensor = seen) -> Tensor:
            for place in places:
                seen[tuple(place)] += 1
            return windows

        sliding_window_inference(torch.zeros_like(seen), (window,), 1, count, overlap=_OVERLAP, with_coord=True)
        times = times[..., None] * seen[0, 0]
    return times
