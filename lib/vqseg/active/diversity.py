"""Choice by the features of studies: what is far from the labelled ones, and what is typical of the pool.

Features are one vector a study. None of these looks at what the model is unsure of.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

__all__ = ["distance_to_nearest", "typicality"]

Floats = NDArray[np.float64]
# For so many or fewer a search is longer in the making than what it saves, and there may be hundreds of clusters.
_FEW = 200


def distance_to_nearest(features: Floats, chosen: Floats) -> Floats:
    """Euclidean distance (S,) of `features` (S, F) to the nearest of `chosen` (C, F); inf when nothing is chosen.

    Taking the farthest again and again is the greedy k-centre of coreset selection (Sener and Savarese, arXiv
    1708.00489): its radius is at most twice the best one.
    """
    return cdist(features, chosen).min(1) if len(chosen) else np.full(len(features), np.inf)


def typicality(features: Floats, neighbours: int = 20) -> Floats:
    """1 / mean distance to the nearest `neighbours` others (S,), half of them all at most, of `features` (S, F) of one
    cluster.

    TypiClust (Hacohen et al., arXiv 2202.02794; the half is in its code). A study without any other is as typical as
    can be: inf.
    """
    near = min(neighbours, len(features) // 2)
    if near < 1:
        return np.full(len(features), np.inf)
    if len(features) > _FEW:
        distances, _ = NearestNeighbors(n_neighbors=near).fit(features).kneighbors()
    else:
        to_others = cdist(features, features)
        np.fill_diagonal(to_others, np.inf)
        distances = np.partition(to_others, near - 1)[:, :near]
    with np.errstate(divide="ignore"):
        return 1 / distances.mean(1)
