"""How a study uses the codebook."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

__all__ = ["rarefied_entropy"]


def rarefied_entropy(counts: NDArray[np.int64], tokens: int) -> float:
    """Expected entropy, in nats, of the codes of `tokens` tokens drawn without replacement from a study.

    `counts` (K,): how often the study uses each code, n in all. With m = `tokens` and J_k hypergeometric,

        E[H] = - sum_k E[(J_k / m) ln(J_k / m)],   J_k ~ Hypergeometric(n, counts_k, m).

    The entropy of the counts themselves grows with the number of tokens, so it ranks studies by their length; after
    rarefaction (Hurlbert, Ecology 52, 1971) all are compared at one number of tokens. A study with fewer than `tokens`
    tokens is taken as it is.
    """
    counts = np.asarray(counts)
    counts = counts[counts > 0]
    total = int(counts.sum())
    if total == 0:
        return 0.0
    drawn = min(tokens, total)
    entropy = 0.0
    # Codes used equally often contribute equally, so each count is worked out once.
    for count, codes in zip(*np.unique(counts, return_counts=True), strict=True):
        outcomes = np.arange(max(1, drawn - (total - count)), min(count, drawn) + 1)
        log_probability = (
            _log_choose(count, outcomes)
            + _log_choose(total - count, drawn - outcomes)
            - _log_choose(total, np.array(drawn))
        )
        share = outcomes / drawn
        entropy -= codes * float(np.exp(log_probability) @ (share * np.log(share)))
    return max(entropy, 0.0)


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    """ln of the binomial coefficient; scipy's hypergeometric law computes the same a thousand times slower."""
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
