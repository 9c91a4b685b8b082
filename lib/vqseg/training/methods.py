"""The training methods by the names of the command line."""

from __future__ import annotations

from vqseg.training.baselines import CutMix, MeanTeacher
from vqseg.training.copy_paste import BidirectionalCopyPaste, VQSegWithCopyPaste
from vqseg.training.step import Method, Supervised, VQSegMethod

__all__ = ["METHODS"]

METHODS: dict[str, type[Method]] = {
    "vqseg": VQSegMethod,
    "vqseg+bcp": VQSegWithCopyPaste,
    "supervised": Supervised,
    "mean-teacher": MeanTeacher,
    "cutmix": CutMix,
    "bcp": BidirectionalCopyPaste,
}
