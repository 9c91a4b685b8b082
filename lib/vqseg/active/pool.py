"""The studies a strategy chooses among, and what is known of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vqseg.active.sparse_signals import SparseSignals
from vqseg.inference.signals import StudySignals

__all__ = ["KNOWN_FROM_IMAGES", "Pool", "Signals"]

# Fields that say something of a study before any structure is known.
KNOWN_FROM_IMAGES = frozenset({"usage", "code_weights", "labelled_weights", "features", "labelled_features"})

Floats = NDArray[np.float64]
Signals = StudySignals | SparseSignals
_LARGE = ("usage", "code_weights")


@dataclass(frozen=True)
class Pool:
    """`ids` of S candidates, sorted; row s of every array belongs to ids[s]. What is not known is none.

    `usage` (S, K) sparse counts of codes; `code_weights` (S, K) the same weighted by predicted foreground, and
    `labelled_weights` (K,) their sum over the labelled studies; `entropy` and `disagreement` (S, L) by structure, in
    nats, nan where a study may hold none of it; `class_entropy` (S, L + 1) what each class has of the mean entropy,
    background first; `foreground` (S, L) voxels; `features` (S, F) weighted by predicted foreground, and those of the
    labelled studies (N, F). `structures` names the L columns; `progress` is the share 0..1 of the labelling that is
    done, and `taken` the number of studies that were taken before. `rarefied_entropy` (S,) is that at `rarefied_tokens`
    tokens, 0 where it is not worked out yet. `label_dice` (S, L) compares the masks of labelled studies with the
    model's, nan where neither holds a structure.
    `replacement_codes` is the effective number of codes that replaced one when `disagreement` was drawn.
    Draws follow the order of the ids, and the first of equal scores has the lowest id.
    """

    ids: Sequence[str]
    usage: sparse.csr_array | None = None
    code_weights: sparse.csr_array | None = None
    labelled_weights: Floats | None = None
    entropy: Floats | None = None
    disagreement: Floats | None = None
    foreground: Floats | None = None
    features: Floats | None = None
    labelled_features: Floats | None = None
    structures: Sequence[str] = field(default_factory=tuple)
    progress: float = 0.0
    rarefied_entropy: Floats | None = None
    rarefied_tokens: int = 0
    label_dice: Floats | None = None
    replacement_codes: float = float("nan")
    class_entropy: Floats | None = None
    taken: int = 0

    def __post_init__(self) -> None:
        assert list(self.ids) == sorted(set(self.ids)), "ids must be sorted and differ"
        for by_structure in (self.entropy, self.disagreement, self.foreground, self.label_dice):
            assert by_structure is None or by_structure.shape == (len(self.ids), len(self.structures))
        assert self.class_entropy is None or self.class_entropy.shape == (len(self.ids), len(self.structures) + 1)

    @classmethod
    def of(
        cls,
        candidates: Mapping[str, Signals],
        labelled: Iterable[Signals] = (),
        *,
        structures: Sequence[str],
        progress: float = 0.0,
        taken: int = 0,
        needs: Collection[str] = _LARGE,
        replacement_codes: float = float("nan"),
    ) -> Pool:
        """The pool of `candidates` by id, with the signals of the `labelled` studies under the same model.

        Of the fields that take much memory only those that a strategy `needs` are made.
        """
        ids = sorted(candidates)
        if not ids:
            return cls(ids, structures=structures, progress=progress)
        signals, known = [_sparse(candidates[study]) for study in ids], [_sparse(one) for one in labelled]
        width, codes = len(signals[0].features), [s.codes for s in signals]
        tokens = {s.tokens for s in signals}
        return cls(
            ids,
            _rows(codes, [s.counts for s in signals], signals[0].codebook_size) if "usage" in needs else None,
            _rows(codes, [s.foreground_counts for s in signals], signals[0].codebook_size)
            if "code_weights" in needs
            else None,
            _labelled_weights(known, signals[0].codebook_size),
            np.stack([s.entropy for s in signals]),
            np.stack([s.disagreement for s in signals]),
            np.stack([s.foreground for s in signals]),
            np.stack([s.features for s in signals]),
            np.stack([s.features for s in known]) if known else np.zeros((0, width)),
            structures,
            progress,
            np.array([s.rarefied_entropy for s in signals]),
            tokens.pop() if len(tokens) == 1 else 0,
            replacement_codes=replacement_codes,
            class_entropy=np.stack([s.class_entropy for s in signals]),
            taken=taken,
        )


def _sparse(signals: Signals) -> SparseSignals:
    return signals if isinstance(signals, SparseSignals) else SparseSignals.of(signals)


def _rows(codes: Sequence[NDArray], values: Sequence[NDArray], codebook_size: int) -> sparse.csr_array:
    """`values` of the `codes` of several studies as one array (S, K), which is never made densely."""
    starts = np.cumsum([0, *map(len, codes)])
    # Exact up to 16 million tokens of a code.
    data, indices = np.concatenate(values, dtype=np.float32), np.concatenate(codes, dtype=np.int32)
    rows = sparse.csr_array((data, indices, starts), shape=(len(codes), codebook_size))
    rows.eliminate_zeros()
    return rows


def _labelled_weights(labelled: Sequence[SparseSignals], codebook_size: int) -> Floats:
    total = np.zeros(codebook_size)
    for study in labelled:
        total[study.codes] += study.foreground_counts
    return total
