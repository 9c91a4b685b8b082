"""Which codes a study's middle slice is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vqseg.data.preparation import prepare_volume
from vqseg.data.reading import Volume
from vqseg.data.slices import reading_axis
from vqseg.errors import ModelError
from vqseg.inference.predictor import Predictor
from vqseg.networks.vqseg import VQSeg

__all__ = ["CodeMap", "map_codes"]


@dataclass(frozen=True)
class CodeMap:
    """The slice of the working grid in the middle of `axis`: `image` float32 and `codes` int64, both (first, second) of
    the other two axes in their order. A code stands for all the voxels of its patch. `version` of the model."""

    image: NDArray[np.float32]
    codes: NDArray[np.int64]
    axis: int
    version: str

    def shares(self) -> list[tuple[int, float]]:
        """Each code of the slice and its share of the voxels, the largest first."""
        codes, counts = np.unique(self.codes, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(codes[at]), float(counts[at] / self.codes.size)) for at in order]


@torch.inference_mode()
def map_codes(predictor: Predictor, volume: Volume) -> CodeMap:
    """The finest quantised level of the middle slice, seen in patches of the training's size side by side.

    Where a position has several codes it is the first. Raises `ModelError` for a network without a codebook.
    """
    network, data = predictor.network, predictor.config.data
    if not isinstance(network, VQSeg):
        raise ModelError(f"model version {predictor.version} has no codebook")
    assert data.patch_size is not None
    image = prepare_volume(volume, data)
    axis = reading_axis(volume.spacing) if data.slice_axis is None else data.slice_axis
    patch = list(data.patch_size)
    if data.slice_axis is not None:
        patch.insert(axis, 1)
    middle = image.shape[axis] // 2
    first = min(max(0, middle - patch[axis] // 2), max(0, image.shape[axis] - patch[axis]))
    slab = np.take(image, range(first, min(first + patch[axis], image.shape[axis])), axis)
    padding = [(0, -size % wanted) for size, wanted in zip(slab.shape, patch, strict=True)]
    padded = torch.from_numpy(np.pad(slab, padding, constant_values=float(image.min())))
    codes = torch.zeros(padded.shape, dtype=torch.int64)
    for corner in np.ndindex(*(size // wanted for size, wanted in zip(padded.shape, patch, strict=True))):
        place = tuple(slice(n * wanted, (n + 1) * wanted) for n, wanted in zip(corner, patch, strict=True))
        codes[place] = _codes_of(network, padded[place], data.slice_axis, predictor.device)
    inside = tuple(slice(size) for size in slab.shape)
    return CodeMap(
        np.take(image, middle, axis),
        np.take(codes[inside].numpy(), middle - first, axis),
        axis,
        predictor.version,
    )


def _codes_of(network: VQSeg, patch: torch.Tensor, slice_axis: int | None, device: torch.device) -> torch.Tensor:
    """Code (X, Y, Z) of each voxel of a patch (X, Y, Z)."""
    seen = patch if slice_axis is None else patch.squeeze(slice_axis)
    encoded = network.encode(seen[None, None].to(device))
    size, groups = encoded.sizes[0], network.tokens_by_level(encoded.sizes)[0] // encoded.sizes[0].numel()
    indices = encoded.nearest.indices[0, : size.numel() * groups : groups].reshape(size).cpu()
    # Numbers of codes are exact in float64, which the nearest neighbour keeps.
    spread = functional.interpolate(indices.double()[None, None], seen.shape, mode="nearest")[0, 0].long()
    return spread if slice_axis is None else spread.unsqueeze(slice_axis)
