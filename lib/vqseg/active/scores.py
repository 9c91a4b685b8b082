"""Scores of studies by their code usage: pure functions on sparse counts (S, K), one row a study.

A pool of ten thousand studies with large codebooks does not fit into memory densely, so nothing here makes a dense
(S, K) array; every function costs a pass over the stored counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = [
    "code_density",
    "coverage",
    "coverage_gains",
    "density_ratio",
    "plug_in_entropy",
    "power_noised",
    "surprise",
    "usage_shares",
]

Floats = NDArray[np.float64]


def usage_shares(counts: sparse.csr_array) -> sparse.csr_array:
    """p_s = c_s / n_s: each row of `counts` (S, K) divided by its sum; a row without a token stays 0."""
    totals = np.maximum(counts.sum(1, dtype=np.float64), 1e-300)
    return _with_data(counts, counts.data / np.repeat(totals, np.diff(counts.indptr)))


def plug_in_entropy(counts: sparse.csr_array) -> Floats:
    """H(p_s) in nats (S,), of the counts as they are.

    A control and no signal: it grows with the number of tokens, so it ranks studies by their length; see
    `rarefied_entropies`.
    """
    shares = usage_shares(counts)
    shares.data = -_x_log_x(shares.data)
    return shares.sum(1)


def code_density(totals: Floats, in_use: NDArray[np.bool_], smoothing: float) -> Floats:
    """f_A(k) = (c_A(k) + a) / (n_A + a K') over the K' codes `in_use` (K,) in the pool, 0 for the others (K,).

    `totals` (K,) counts c_A of a set of studies, `smoothing` a (Lidstone's rule; 0.5 is that of Jeffreys).
    """
    smoothed = np.where(in_use, totals + smoothing, 0.0)
    return smoothed / max(smoothed.sum(), 1e-300)


def density_ratio(counts: sparse.csr_array, pool: Floats, labelled: Floats) -> sparse.csr_array:
    """p_s(k) ln(f_P(k) / f_L(k)) in nats (S, K): codes typical of the pool and missing from the labels.

    Their sum over the codes is the score D(s).

    `pool` f_P and `labelled` f_L (K,), as `code_density` gives them, both positive on every code in use. The mean of D
    over the pool is KL(f_P || f_L) (Kullback and Leibler, Annals of Mathematical Statistics 22, 1951) as long as the
    studies are of one length and the smoothing is small. As a score of studies the formula is this project's own.
    """
    shares = usage_shares(counts)
    shares.data *= _log_ratio(pool, labelled)[shares.indices]
    return shares


def surprise(counts: sparse.csr_array, labelled: Floats) -> Floats:
    """R(s) = - sum_k p_s(k) ln f_L(k) in nats (S,): a control, for it hunts outliers of the pool."""
    return usage_shares(counts) @ -_log_ratio(labelled, np.ones_like(labelled))


def coverage(covered: Floats, weights: Floats, enough: float) -> float:
    """F(S) = sum_k w(k) min(1, c(k) / m) for the counts c (K,) `covered` by a set, `weights` w (K,) and `enough` m.

    Capped at m, for one token of a code is not a lesson. Monotone and submodular in the set of studies (a concave
    function of a sum: Lin and Bilmes, ACL 2011), so that greedy choice reaches 1 - 1/e of the best set.
    """
    return float(weights @ np.minimum(1.0, covered / enough))


def coverage_gains(counts: sparse.csr_array, covered: Floats, weights: Floats, enough: float) -> sparse.csr_array:
    """What each code adds (S, K) to F(S + s) - F(S) for every study s; arguments as in `coverage`."""
    gains = np.maximum(enough - covered, 0.0)[counts.indices]
    np.minimum(gains, counts.data, out=gains)
    gains *= (weights / enough)[counts.indices]
    return _with_data(counts, gains)


def power_noised(scores: Floats, beta: float, generator: np.random.Generator) -> Floats:
    """ln(score) + Gumbel noise of scale 1 / beta (S,): its k largest are k draws without replacement with probability
    proportional to score^beta (Kirsch et al., arXiv 2106.12059). Scores of 0 or below come last, as -inf."""
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(scores, 0.0)) + generator.gumbel(size=len(scores)) / beta


def _with_data(counts: sparse.csr_array, data: Floats) -> sparse.csr_array:
    """Other values at the same places, which are not copied: those of ten thousand studies take 40 MB."""
    return sparse.csr_array((data, counts.indices, counts.indptr), shape=counts.shape)


def _log_ratio(numerator: Floats, denominator: Floats) -> Floats:
    """ln(a / b) where a is positive, else 0."""
    ratio = np.ones_like(numerator)
    np.divide(numerator, denominator, out=ratio, where=numerator > 0)
    return np.log(ratio)


def _x_log_x(values: Floats) -> Floats:
    return values * np.log(np.where(values > 0, values, 1.0))
