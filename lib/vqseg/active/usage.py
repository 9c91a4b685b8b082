"""How diversely studies use the codebook."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import gammaln

__all__ = ["rarefied_entropies", "rarefied_parts"]

# Outcomes worked out at a time: bounds memory at some 30 MiB.
_OUTCOMES_AT_A_TIME = 2**18
# Looking logarithms of factorials up is several times as fast as computing them, while the table is small.
_LARGEST_TABLE = 2**22


def rarefied_entropies(counts: sparse.csr_array, tokens: int) -> NDArray[np.float64]:
    """Expected entropy (S,), in nats, of the codes of `tokens` tokens drawn without replacement from each study.

    `counts` (S, K): how often a study uses each code, n in all. With m = `tokens` and J_k hypergeometric,

        E[H] = - sum_k E[(J_k / m) ln(J_k / m)],   J_k ~ Hypergeometric(n, counts_k, m).

    The entropy of the counts themselves grows with the number of tokens, so it ranks studies by their length; after
    rarefaction (Hurlbert, Ecology 52, 1971) all are compared at one number of tokens. A study with fewer than `tokens`
    tokens is taken as it is. Exact but for outcomes of a probability below 1e-10.
    """
    return np.maximum(rarefied_parts(counts, tokens).sum(1), 0.0)


def rarefied_parts(counts: sparse.csr_array, tokens: int) -> sparse.csr_array:
    """What each code adds (S, K) to the entropy that `rarefied_entropies` gives, in nats."""
    parts = counts.astype(np.float64)
    parts.eliminate_zeros()
    used = parts.data.astype(np.int64)
    assert (used == parts.data).all(), "counts must be whole numbers"
    if not len(used):
        return parts
    totals = np.asarray(parts.sum(1)).astype(np.int64)
    # Codes used equally often in studies of one length contribute equally, so each such case is worked out once.
    length = np.repeat(totals, np.diff(parts.indptr))
    _, first, case = np.unique(length * (used.max() + 1) + used, return_index=True, return_inverse=True)
    parts.data = _expected_terms(length[first], used[first], np.minimum(tokens, length[first]))[case]
    return parts


def _expected_terms(n: NDArray, c: NDArray, m: NDArray) -> NDArray[np.float64]:
    """-E[(J / m) ln(J / m)] for J ~ Hypergeometric(n, c, m), elementwise."""
    log_factorial = _log_factorial(n.max())
    mean = m * c / n
    deviation = np.sqrt(np.maximum(mean * (1 - c / n) * (n - m) / np.maximum(n - 1, 1), 0))
    lowest = np.maximum(np.maximum(1, m - (n - c)), np.floor(mean - 7 * deviation - 12)).astype(np.int64)
    highest = np.minimum(np.minimum(c, m), np.ceil(mean + 7 * deviation + 12)).astype(np.int64)
    outcomes = np.maximum(highest - lowest + 1, 0)
    ways = log_factorial(c) + log_factorial(n - c) - log_factorial(n) + log_factorial(m) + log_factorial(n - m)
    ends, terms, start = np.cumsum(outcomes), np.zeros(len(c)), 0
    while start < len(c):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _OUTCOMES_AT_A_TIME, "right")))
        some = slice(start, stop)
        case = np.repeat(np.arange(start, stop), outcomes[some])
        j = np.arange(len(case)) - np.repeat(ends[some] - outcomes[some] - done, outcomes[some]) + lowest[case]
        others = log_factorial(m[case] - j) + log_factorial((n - c - m)[case] + j)
        probability = np.exp(ways[case] - log_factorial(j) - log_factorial(c[case] - j) - others)
        share = j / m[case]
        terms[some] = -np.bincount(case - start, probability * share * np.log(share), minlength=stop - start)
        start = stop
    return terms


def _log_factorial(largest: int) -> Callable[[NDArray], NDArray[np.float64]]:
    """ln x! for whole numbers x of 0..largest."""
    if largest > _LARGEST_TABLE:
        return lambda x: gammaln(x + 1.0)
    table = gammaln(np.arange(largest + 1) + 1.0)
    return lambda x: table[x]
