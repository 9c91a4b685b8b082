"""The rarefied entropy of a study's code usage."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse, stats

from vqseg.active.usage import rarefied_entropies

quick = settings(max_examples=40, deadline=None)
histograms = st.lists(st.integers(0, 50), min_size=1, max_size=12).map(np.array)


def rarefied_entropy(counts: NDArray, tokens: int) -> float:
    return float(rarefied_entropies(sparse.csr_array(np.asarray(counts)[None]), tokens)[0])


def entropy(counts: NDArray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


@pytest.mark.parametrize("counts", [[3, 2, 1], [1, 1, 1, 1], [5, 0, 1], [2, 2], [4], [1, 2, 0, 3, 1]])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_formula_equals_enumeration(counts: list[int], tokens: int) -> None:
    drawn_from = [code for code, count in enumerate(counts) for _ in range(count)]
    drawn = min(tokens, len(drawn_from))
    every = [entropy(np.array(list(Counter(s).values()))) for s in itertools.combinations(drawn_from, drawn)]
    assert rarefied_entropy(np.array(counts), tokens) == pytest.approx(np.mean(every), abs=1e-9)


@pytest.mark.parametrize("count", [1, 100, 10**6])
def test_one_code_has_no_entropy(count: int) -> None:
    assert rarefied_entropy(np.array([0, count, 0]), 2048) == pytest.approx(0, abs=1e-9)


def test_no_token_has_no_entropy() -> None:
    assert rarefied_entropy(np.zeros(5, np.int64), 2048) == 0


@pytest.mark.parametrize("codes", [2, 8, 64])
def test_uniform_use_of_k_codes_has_the_entropy_ln_k(codes: int) -> None:
    assert rarefied_entropy(np.full(codes, 10_000), 8192) == pytest.approx(math.log(codes), abs=0.01)


@quick
@given(histograms, st.integers(1, 100))
def test_bounds(counts: NDArray, tokens: int) -> None:
    found = rarefied_entropy(counts, tokens)
    assert 0 <= found <= math.log(max(1, min(tokens, (counts > 0).sum()))) + 1e-9
    # Rarefaction only takes away (entropy is concave).
    if counts.sum():
        assert found <= entropy(counts) + 1e-9
    if tokens >= counts.sum() > 0:
        assert found == pytest.approx(entropy(counts), abs=1e-9)


@quick
@given(histograms, st.integers(1, 100), st.randoms())
def test_names_of_the_codes_and_order_of_the_tokens_do_not_matter(counts: NDArray, tokens: int, random: object) -> None:
    renamed = np.random.default_rng(0).permutation(np.concatenate([counts, np.zeros(7, np.int64)]))
    assert rarefied_entropy(renamed, tokens) == pytest.approx(rarefied_entropy(counts, tokens), abs=1e-9)


@pytest.mark.parametrize("factor", [10, 100])
def test_length_of_a_study_is_no_merit(factor: int) -> None:
    counts = np.random.default_rng(0).geometric(0.1, 100)
    short, long = rarefied_entropy(counts, 256), rarefied_entropy(counts * factor, 256)
    assert abs(long - short) < 0.06
    # Studies of different length that use the codes alike, and the plain entropy as the control.
    rng, share = np.random.default_rng(1), counts / counts.sum()
    samples = [[rng.multinomial(n, share) for _ in range(20)] for n in (300, 300 * factor)]
    plain = [np.mean([entropy(sample) for sample in group]) for group in samples]
    rarefied = [np.mean([rarefied_entropy(sample, 128) for sample in group]) for group in samples]
    assert plain[1] - plain[0] > 0.08
    assert abs(rarefied[1] - rarefied[0]) < 0.03


@quick
@given(st.lists(histograms, min_size=1, max_size=5), st.integers(1, 100))
def test_studies_are_independent_of_each_other(studies: list[NDArray], tokens: int) -> None:
    rows = np.zeros((len(studies), 12), np.int64)
    for row, counts in zip(rows, studies, strict=True):
        row[: len(counts)] = counts
    together = rarefied_entropies(sparse.csr_array(rows), tokens)
    np.testing.assert_allclose(together, [rarefied_entropy(counts, tokens) for counts in studies], atol=1e-12)


@pytest.mark.parametrize("counts", [[5, 70, 3000, 60_000], [1, 10**7, 10**4], [10**6] * 3], ids=str)
@pytest.mark.parametrize("tokens", [64, 2048])
def test_large_counts_agree_with_the_hypergeometric_law(counts: list[int], tokens: int) -> None:
    """Whatever is left out of the sum, and wherever logarithms of factorials come from."""
    share, expected = np.arange(1, tokens + 1) / tokens, 0.0
    for count in counts:
        probability = stats.hypergeom(sum(counts), count, tokens).pmf(np.arange(1, tokens + 1))
        expected -= float(np.nansum(probability * share * np.log(share)))
    assert rarefied_entropy(np.array(counts), tokens) == pytest.approx(expected, abs=1e-6)


def test_blocks_of_outcomes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sparse.csr_array(np.random.default_rng(0).geometric(0.01, (5, 40)))
    expected = rarefied_entropies(rows, 500)
    monkeypatch.setattr("vqseg.active.usage._OUTCOMES_AT_A_TIME", 50)
    np.testing.assert_allclose(rarefied_entropies(rows, 500), expected, atol=1e-12)
