"""What the strategies choose by, of every study and model: on disk for all processes, and in memory for this one."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from vqseg.active.sparse_signals import SparseSignals
from vqseg.inference.signals import StudySignals

from .checksums import Checksums
from .model_files import ModelFiles


class ScoreCache:
    """Signals belong to the `content` of an image, its checksum, and the identity of a model; the Dice of a label to
    the label's content too. Args: `folder`; `tokens`, to which the use of codes is rarefied.

    In memory are the signals of one model at a time: reading ten thousand files takes longer than ranking them.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        self._tokens = tokens
        self.checksums = Checksums(folder / "checksums")
        self._files = ModelFiles(folder / "models")
        self._in_memory: tuple[str, dict[str, SparseSignals]] = ("", {})

    def signals(self, model: str, content: str, draws: int = 0) -> SparseSignals | None:
        """Signals of an image, with those of so many QPM `draws`; none when they are not there or damaged."""
        found = self._of(model).get(content)
        if _has(found, draws):
            return found
        stored = self._files.read(model, f"{content}.npz", SparseSignals.read)
        return self._remember(model, content, stored) if stored and _has(stored, draws) else None

    def keep_signals(self, model: str, content: str, signals: StudySignals, draws: int = 0) -> SparseSignals:
        """Keep the signals of an image, whose content must be what it was when the model began to look at it."""
        kept = self._remember(model, content, SparseSignals.of(signals, draws=draws))
        self._files.write(model, f"{content}.npz", kept.write)
        return kept

    def label_dice(self, model: str, content: str, label: str) -> np.ndarray | None:
        """Dice (L,) of a model's mask and a label of this content; none when it is not there or damaged."""
        return self._files.read(model, _of_label(content, label), _read_dice)

    def keep_label_dice(self, model: str, content: str, label: str, dice: np.ndarray) -> None:
        """Keep the Dice (L,) of a model's mask and a label."""
        self._files.write(model, _of_label(content, label), lambda file: np.save(file, dice, allow_pickle=False))

    def forget_all_but(self, model: str) -> None:
        """Drop what belongs to other models, on disk."""
        self._files.forget_all_but(model)

    def _of(self, model: str) -> dict[str, SparseSignals]:
        if self._in_memory[0] != model:
            self._in_memory = (model, {})
        return self._in_memory[1]

    def _remember(self, model: str, content: str, signals: SparseSignals) -> SparseSignals:
        # The setting may be another than when a file was written.
        remembered = self._of(model)[content] = signals.rarefied(self._tokens)
        return remembered


def _of_label(content: str, label: str) -> str:
    return f"{content[:32]}-{label[:32]}.npy"


def _has(signals: SparseSignals | None, draws: int) -> bool:
    return signals is not None and (not draws or signals.draws == draws)


def _read_dice(file: BinaryIO) -> np.ndarray:
    try:
        dice = np.load(file, allow_pickle=False)
    except EOFError:
        raise ValueError("empty") from None
    if dice.ndim != 1 or dice.dtype != np.float64:
        raise ValueError("no Dice of structures")
    return dice
