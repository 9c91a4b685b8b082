"""The block that encoders and decoders are built of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["conv_block"]


def conv_block(dims: int, inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, instance norm and leaky ReLU, in 2 or 3 `dims`."""
    conv = (nn.Conv2d, _Conv3d)[dims - 2](inputs, outputs, 3, stride=stride, padding=1, bias=False)
    # On a processor oneDNN's gradient is several times as fast with weights that lie so, where there are few channels.
    layout = (torch.channels_last, torch.channels_last_3d)[dims - 2]
    conv.weight = nn.Parameter(conv.weight.detach().contiguous(memory_format=layout))
    norm: type[nn.Module] = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2]
    return nn.Sequential(conv, norm(outputs, affine=True), nn.LeakyReLU(0.01, inplace=True))


class _Conv3d(nn.Conv3d):
    """Computes in float32 where the processor's bfloat16 gradient is wrong.

    torch 2.13 with oneDNN: the gradient of the weights of a 3 x 3 x 3 convolution is garbage, often NaN, for some
    inputs of which an axis is 1 or 2 long; when the first one is 2 long, always. The deepest level of a small patch is.
    """

    def forward(self, input: Tensor) -> Tensor:
        small = min(input.shape[2:]) <= _MISCOMPUTED_LENGTH
        if small and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


_MISCOMPUTED_LENGTH = 2
