"""Review of labelled studies: where the model and the submitted label disagree, one of them is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vqseg.active.pool import Pool
from vqseg.active.strategy import Part, Scorer, Strategy, largest_parts, mean_of_present

__all__ = ["Disagreement", "review_pool"]

Floats = NDArray[np.float64]


def review_pool(dice_by_study: Mapping[str, Floats], structures: Sequence[str]) -> Pool:
    """The pool of labelled studies by id, each with the Dice (L,) of its `structures`."""
    ids = sorted(dice_by_study)
    dice_of_labels = np.array([dice_by_study[study] for study in ids]) if ids else None
    return Pool(ids, structures=structures, label_dice=dice_of_labels)


class Disagreement(Strategy):
    """The labelled study where model and submitted label disagree most: 1 - mean Dice over its structures.

        d(s) = 1 - mean over l of 2 |P_l n G_l| / (|P_l| + |G_l|)

    with the prediction P, the label G and the structures l that either of them holds; a study in which there are none
    cannot be scored. Its pool is of labelled studies, unlike that of every other strategy.
    """

    name = "disagreement"
    needs = frozenset({"label_dice"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.label_dice is not None
        return _DisagreementScorer(1 - pool.label_dice, tuple(pool.structures))


class _DisagreementScorer(Scorer):
    """Scores of `distances` (S, L), 1 - Dice."""

    def __init__(self, distances: Floats, structures: tuple[str, ...]) -> None:
        self._distances, self._structures = distances, structures

    def scores(self) -> Floats:
        return mean_of_present(self._distances)

    def parts(self, index: int) -> tuple[Part, ...]:
        return largest_parts(self._structures, self._distances[index])

    def reason(self, index: int, score: float) -> str:
        most = self.parts(index)[0]
        overall = f"over all structures {1 - score:.3f}"
        return f"model and label differ most at {most.name}: Dice {1 - most.value:.3f}; {overall}"
