"""Signals of a study as small as they are kept: of the codebook only the codes that the study uses."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vqseg.active.usage import rarefied_entropies
from vqseg.inference.signals import StudySignals

__all__ = ["SparseSignals"]


@dataclass(frozen=True)
class SparseSignals:
    """`StudySignals` with the `codes` uint32 (U,) in use, out of a codebook of `codebook_size`, rising; `counts`
    uint32 (U,) of each and `foreground_counts` float32 (U,), the same weighted by predicted foreground. The others are
    those of `StudySignals`.

    `rarefied_entropy` is that at `tokens` tokens, in nats, nan where `tokens` is 0; `disagreement` that of `draws`.
    """

    codebook_size: int
    codes: NDArray[np.uint32]
    counts: NDArray[np.uint32]
    foreground_counts: NDArray[np.float32]
    features: NDArray[np.float64]
    entropy: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    foreground: NDArray[np.float64]
    class_entropy: NDArray[np.float64]
    draws: int = 0
    tokens: int = 0
    rarefied_entropy: float = float("nan")

    def __post_init__(self) -> None:
        if not len(self.codes) == len(self.counts) == len(self.foreground_counts):
            raise ValueError("codes and their counts must be equally many")
        steps = np.diff(self.codes.astype(np.int64), prepend=-1, append=self.codebook_size)
        if (steps < 1).any():
            raise ValueError(f"codes must rise and be less than {self.codebook_size}")
        if not self.entropy.shape == self.disagreement.shape == self.foreground.shape or self.features.ndim != 1:
            raise ValueError("entropy, disagreement and foreground must be of the same structures")
        if self.class_entropy.shape != (len(self.entropy) + 1,):
            raise ValueError("class_entropy must be of the structures and the background")

    @classmethod
    def of(cls, signals: StudySignals, *, draws: int = 0, tokens: int = 0) -> SparseSignals:
        """The signals that a pass with so many `draws` gave, with the entropy at `tokens` unless these are 0."""
        codes = np.flatnonzero((signals.usage > 0) | (signals.foreground_usage > 0))
        return cls(
            len(signals.usage),
            codes.astype(np.uint32),
            signals.usage[codes].astype(np.uint32),
            signals.foreground_usage[codes].astype(np.float32),
            signals.features,
            signals.entropy,
            signals.disagreement,
            signals.foreground,
            signals.class_entropy,
            draws,
        ).rarefied(tokens)

    def rarefied(self, tokens: int) -> SparseSignals:
        """The same with the entropy at so many tokens."""
        if tokens == self.tokens:
            return self
        entropy = float(rarefied_entropies(sparse.csr_array(self.counts[None]), tokens)[0])
        return replace(self, tokens=tokens, rarefied_entropy=entropy)

    def write(self, file: BinaryIO) -> None:
        """Write an .npz file."""
        np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, file: BinaryIO) -> SparseSignals:
        """Read what `write` wrote. Raises `ValueError` for anything else."""
        try:
            with np.load(file, allow_pickle=False) as stored:
                found = {field.name: stored[field.name] for field in fields(cls)}
            numbers = {name: array.item() for name, array in found.items() if array.ndim == 0}
            # nan is what others say of a study that may hold none of a structure.
            for name in ("foreground_counts", "features", "foreground"):
                if not np.isfinite(found[name]).all():
                    raise ValueError(f"{name} is not finite")
            return cls(**(found | numbers))
        except Exception as error:  # there is no end to what numpy, zipfile and zlib raise for a damaged file
            raise ValueError(f"no signals of a study: {error}") from None
