"""The training methods by the names of the command line."""

from __future__ import annotations

from vqseg.config import Config
from vqseg.errors import ConfigError
from vqseg.training.baselines import CutMix, MeanTeacher, UniMatch
from vqseg.training.copy_paste import BidirectionalCopyPaste, VQSegWithCopyPaste
from vqseg.training.step import Method, Reconstruction, Supervised, VQSegMethod

__all__ = ["METHODS", "SELF_SUPERVISED", "check_method"]

METHODS: dict[str, type[Method]] = {
    "vqseg": VQSegMethod,
    "vqseg+bcp": VQSegWithCopyPaste,
    "supervised": Supervised,
    "mean-teacher": MeanTeacher,
    "cutmix": CutMix,
    "unimatch": UniMatch,
    "bcp": BidirectionalCopyPaste,
}
# These learn from images alone and segment nothing.
SELF_SUPERVISED: dict[str, type[Method]] = {"reconstruction": Reconstruction}


def check_method(name: str, config: Config) -> None:
    """Raises `ConfigError` when there is no such method, or when it cannot do what the settings ask for."""
    if name not in METHODS:
        raise ConfigError(f"unknown training method {name!r}; known methods: {', '.join(METHODS)}")
    if config.foundation.in_use and not METHODS[name].can_be_guided:
        raise ConfigError(f"method {name} sees no whole image to be guided by a model; set foundation.name to none")
