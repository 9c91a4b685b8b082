"""Which device computes, and in which precision."""

from __future__ import annotations

import torch

from vqseg.errors import ConfigError

__all__ = ["choose_device", "has_fast_bfloat16"]

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one. Raises `ConfigError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in _DEVICES:
            raise RuntimeError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device {name!r} cannot be used here; try auto or cpu (`vqseg doctor` lists all)") from None
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are known to be faster than float32 ones on the device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # There is no public question for this; a torch without the private one computes in float32.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
