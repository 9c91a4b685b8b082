"""A block computes the same in bfloat16 as in float32, forth and back, however small the image."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from vqseg.networks.convolution import conv_block

SIZES = [*itertools.product((1, 2, 3, 4), repeat=3), *itertools.permutations((2, 5, 16)), (5, 6, 7), (8, 8, 8)]


def results(block: nn.Module, image: Tensor, *, bfloat16: bool) -> list[Tensor]:
    image = image.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = block(image).float()
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    parameters = [image, *block.parameters()]
    return [output, *torch.autograd.grad((output * weights).sum(), parameters)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("dims", "size"), [*((3, size) for size in SIZES), (2, (2, 2)), (2, (2, 8)), (2, (8, 2))])
def test_bfloat16_computes_what_float32_does(dims: int, size: tuple[int, ...], stride: int) -> None:
    torch.manual_seed(0)
    # Instance norm would amplify what little the two differ by.
    convolution = conv_block(dims, 16, 16, stride=stride)[0]
    image = torch.randn(2, 16, *size)
    for ours, exact in zip(*(results(convolution, image, bfloat16=half) for half in (True, False)), strict=True):
        assert (ours - exact).norm() <= 0.02 * exact.norm()
