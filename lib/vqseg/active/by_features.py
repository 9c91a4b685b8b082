"""Strategies by the features of whole studies, whatever the model makes of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, MiniBatchKMeans

from vqseg.active.diversity import distance_to_nearest, typicality
from vqseg.active.pool import Pool
from vqseg.active.strategy import Part, Scorer, Strategy, largest_parts

__all__ = ["Coreset", "MaxHerding", "Typical"]

Floats = NDArray[np.float64]
# A kernel between all pairs of ten thousand studies would take a gigabyte.
_LANDMARKS = 1000
# A cluster of so many studies or fewer is taken for outliers, as in the code of TypiClust's authors.
_FEW = 5
# More clusters than that are learnt by batches, as in that code: for 10 000 studies in a third of the time.
_MANY_CLUSTERS = 50
_NEEDS = frozenset({"features", "labelled_features"})


class Coreset(Strategy):
    """The study that is farthest from every labelled one: greedy k-centre (Sener and Savarese, arXiv 1708.00489)."""

    name = "coreset"
    needs = _NEEDS

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.features is not None
        assert pool.labelled_features is not None
        return _FarthestScorer(pool.features, pool.labelled_features)


class _FarthestScorer(Scorer):
    def __init__(self, features: Floats, labelled: Floats) -> None:
        self._features = features
        # Before anything is labelled, the study in the middle comes first.
        self._distance = (
            distance_to_nearest(features, labelled)
            if len(labelled)
            else -distance_to_nearest(features, features.mean(0, keepdims=True))
        )
        self._nothing_labelled = not len(labelled)

    def scores(self) -> Floats:
        return self._distance

    def take(self, index: int) -> None:
        distance = distance_to_nearest(self._features, self._features[[index]])
        self._distance = distance if self._nothing_labelled else np.minimum(self._distance, distance)
        self._nothing_labelled = False

    def reason(self, index: int, score: float) -> str:
        if self._nothing_labelled:
            return "it is in the middle of all studies"
        return f"it is at a distance of {score:.3g} from every labelled study"


class MaxHerding(Strategy):
    """The study that adds most to how close every study is to a labelled one (MaxHerding: Bae et al., 2407.12212).

        G(L) = mean over x of max over l in L of k(x, l),   k(x, l) = exp(-|x - l|^2 / (2 h^2))

    Coverage without a sharp radius. The bandwidth h is the median distance between studies. Of a large pool the mean is
    taken over studies drawn at random.
    """

    name = "max_herding"
    needs = _NEEDS

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.features is not None
        assert pool.labelled_features is not None
        count = min(len(pool.features), _LANDMARKS)
        landmarks = np.sort(generator.choice(len(pool.features), count, replace=False))
        return _HerdingScorer(pool.features, pool.labelled_features, pool.features[landmarks])


class _HerdingScorer(Scorer):
    def __init__(self, features: Floats, labelled: Floats, landmarks: Floats) -> None:
        distances = cdist(features, landmarks)
        others = distances[distances > 0]
        bandwidth = float(np.median(others)) if len(others) else 1.0
        self._similarity = _gaussian(distances, bandwidth)
        near = _gaussian(cdist(labelled, landmarks), bandwidth)
        self._covered = near.max(0, initial=0.0)

    def scores(self) -> Floats:
        return np.maximum(self._similarity - self._covered, 0).mean(1)

    def take(self, index: int) -> None:
        self._covered = np.maximum(self._covered, self._similarity[index])

    def reason(self, index: int, score: float) -> str:
        return f"with it every study is closer to a labelled one, by {score:.3f} of 1 on average"


def _gaussian(distances: Floats, bandwidth: float) -> Floats:
    return np.exp(-np.square(distances / bandwidth) / 2)


class Typical(Strategy):
    """The most typical study of the largest cluster without a labelled one (TypiClust: Hacohen et al., 2202.02794).

        score(s) = 1 - 1 / (1 + t(s)) - place of its cluster,   t that of `vqseg.active.diversity.typicality`

    Places count from 0: clusters with the fewest labels first, of these the largest.
    The paper clusters once a batch, into as many clusters as there will be labels; here the studies are clustered anew
    for every pick, so that a ranking has no batches. Clusters of 5 studies or fewer come last.
    """

    name = "typical"
    needs = _NEEDS

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.features is not None
        assert pool.labelled_features is not None
        return _TypicalScorer(
            pool.features, pool.labelled_features, self.settings.most_clusters, int(generator.integers(2**31))
        )


class _TypicalScorer(Scorer):
    """Minus the place of a study's cluster, plus its typicality within it, squeezed into 0..1."""

    def __init__(self, features: Floats, labelled: Floats, most_clusters: int, seed: int) -> None:
        self._features, self._labelled = features, labelled
        self._most_clusters, self._seed = most_clusters, seed
        self._open = np.ones(len(features), bool)
        self._place, self._typical = np.full((2, len(features)), np.nan)
        self._size, self._known = np.zeros((2, len(features)), int)

    def take(self, index: int) -> None:
        self._labelled = np.concatenate([self._labelled, self._features[[index]]])
        self._open[index] = False

    def scores(self) -> Floats:
        self._place[:] = self._typical[:] = np.nan
        if self._open.any():
            self._cluster()
        return self._typical - self._place

    def _cluster(self) -> None:
        features = self._features[self._open]
        every = np.concatenate([self._labelled, features])
        known = len(self._labelled)
        # One cluster more than there are labels, so that at least one has none.
        count = min(known + 1, self._most_clusters, len(np.unique(every, axis=0)))
        if count > _MANY_CLUSTERS:
            means = MiniBatchKMeans(count, n_init=1, random_state=self._seed, init_size=3 * count)
        else:
            means = KMeans(count, n_init=1, random_state=self._seed)
        cluster = means.fit_predict(every)
        labelled, size = (np.bincount(part, minlength=count) for part in (cluster[:known], cluster[known:]))
        place = np.empty(count)
        # Those without an open study come last, so that the places of all others are their places among these.
        place[np.lexsort((-size, labelled, labelled + size <= _FEW, size == 0))] = np.arange(count)
        cluster = cluster[known:]
        typical = np.empty(len(cluster))
        for number in np.unique(cluster):
            typical[cluster == number] = typicality(features[cluster == number])
        self._place[self._open], self._typical[self._open] = place[cluster], 1 - 1 / (1 + typical)
        self._size[self._open], self._known[self._open] = (labelled + size)[cluster], labelled[cluster]

    def reason(self, index: int, score: float) -> str:
        if self._size[index] == 1:
            return "it is alone in a group of its own"
        known = self._known[index] or "none"
        return f"it is typical of a group of {self._size[index]} studies, {known} of them labelled or reserved"

    def parts(self, index: int) -> tuple[Part, ...]:
        return largest_parts(
            ("typicality in its group", "groups before its own"),
            np.array([self._typical[index], 0 - self._place[index]]),
        )
