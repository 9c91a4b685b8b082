"""Every random draw follows from one seed and the name of what is drawn, never from what was drawn before.

A step's draws are therefore the same whether the training ran through or was stopped and continued.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

__all__ = ["numpy_generator", "seed_for", "torch_generator"]


def seed_for(*key: int | str) -> int:
    """A 63-bit seed for a key such as (seed, "views", step)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(*key: int | str) -> torch.Generator:
    """torch's generator for a key; it lives on the CPU, so that draws do not depend on the device."""
    return torch.Generator().manual_seed(seed_for(*key))


def numpy_generator(*key: int | str) -> np.random.Generator:
    """numpy's generator for a key."""
    return np.random.default_rng(seed_for(*key))
