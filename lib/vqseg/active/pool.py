"""The studies a strategy chooses among, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vqseg.inference.signals import StudySignals

__all__ = ["Pool", "sparse_counts"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """`ids` of S candidates, sorted; row s of every array belongs to ids[s]. What is not known is none.

    `usage` (S, K) sparse counts of codes; `code_weights` (S, K) the same weighted by predicted foreground, and
    `labelled_weights` (K,) their sum over the labelled studies; `entropy` and `disagreement` (S, L) by structure, in
    nats, nan where a study may hold none of it; `foreground` (S, L) voxels; `features` (S, F), and those of the
    labelled studies (N, F). `structures` names the L columns; `progress` is the share 0..1 of the labelling that is
    done. Draws follow the order of the ids, and the first of equal scores has the lowest id.
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

    def __post_init__(self) -> None:
        assert list(self.ids) == sorted(set(self.ids)), "ids must be sorted and differ"
        for by_structure in (self.entropy, self.disagreement, self.foreground):
            assert by_structure is None or by_structure.shape == (len(self.ids), len(self.structures))

    @classmethod
    def of(
        cls,
        candidates: Mapping[str, StudySignals],
        labelled: Iterable[StudySignals] = (),
        *,
        structures: Sequence[str],
        progress: float = 0.0,
    ) -> Pool:
        """The pool of `candidates` by id, with the signals of the `labelled` studies under the same model."""
        ids = sorted(candidates)
        if not ids:
            return cls(ids, structures=structures, progress=progress)
        signals, known = [candidates[study] for study in ids], list(labelled)
        codes, width = len(signals[0].usage), len(signals[0].features)
        return cls(
            ids,
            sparse_counts([s.usage for s in signals]),
            sparse_counts([s.foreground_usage for s in signals]),
            sum((s.foreground_usage for s in known), np.zeros(codes)),
            np.stack([s.entropy for s in signals]),
            np.stack([s.disagreement for s in signals]),
            np.stack([s.foreground for s in signals]),
            np.stack([s.features for s in signals]),
            np.stack([s.features for s in known]) if known else np.zeros((0, width)),
            structures,
            progress,
        )

    @classmethod
    def of_usage(cls, candidates: Mapping[str, NDArray], labelled: Iterable[NDArray] = ()) -> Pool:
        """The pool of `candidates` of which nothing but the code counts (K,) is known; `labelled` studies' alike."""
        ids = sorted(candidates)
        if not ids:
            return cls(ids)
        rows = [candidates[study] for study in ids]
        return cls(ids, sparse_counts(rows), labelled_weights=sum(labelled, np.zeros(len(rows[0]))))


def sparse_counts(rows: Sequence[NDArray]) -> sparse.csr_array:
    """Dense counts (K,) of several studies as one sparse array (S, K)."""
    found = [np.flatnonzero(row) for row in rows]
    starts = np.cumsum([0, *map(len, found)])
    data = np.concatenate([np.asarray(row, np.float64)[index] for row, index in zip(rows, found, strict=True)])
    return sparse.csr_array((data, np.concatenate(found), starts), shape=(len(rows), len(rows[0])))
