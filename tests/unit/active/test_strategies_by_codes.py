"""Strategies by the use of the codebook: what each of them is for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_signals import CODES, STRUCTURES, order, pools, quick, rank, signals, some_signals

from vqseg.active.pool import Pool
from vqseg.active.sparse_signals import SparseSignals
from vqseg.active.strategies import STRATEGIES, make_strategy
from vqseg.active.usage import rarefied_entropies
from vqseg.inference.signals import StudySignals


@quick
@given(pools, st.integers(2, 50))
def test_codebook_entropy_is_the_rarefied_one(pool: Pool, tokens: int) -> None:
    for one in rank("codebook_entropy", pool, tokens=tokens):
        assert pool.usage is not None
        row = pool.usage[[list(pool.ids).index(one.id)]]
        assert one.score == pytest.approx(rarefied_entropies(row, tokens)[0])
        assert f"{one.score:.3f}" in one.reason


def sites() -> dict[str, StudySignals]:
    """Three studies a site; a site uses a code of its own."""
    usage = np.eye(4, CODES, dtype=np.int64) * 100 + 1
    return {f"{'abcd'[site]}{number}": signals(usage[site]) for site in range(4) for number in range(3)}


@pytest.mark.parametrize("name", ["codebook_rarity", "codebook_coverage"])
def test_codes_are_learnt_from_every_pick(name: str) -> None:
    """With a study of one site labelled, the next three come from the three others; ranked once they would not."""
    pool = Pool.of(sites(), [signals(np.eye(4, CODES, dtype=np.int64)[0] * 100 + 1)], structures=STRUCTURES)
    assert {study[0] for study in order(name, pool, picks=3)[:3]} == {"b", "c", "d"}
    first = rank(name, pool, picks=0)[0]
    assert first.parts[0].name == "code 1"
    assert first.parts[0].value > 0


@pytest.mark.parametrize("times", [7, 1000])
def test_coverage_asks_for_no_more_of_finer_images(times: int) -> None:
    """With so many times as many tokens, of finer voxels or more codes a position, the same studies are chosen."""

    def pool(times: int) -> Pool:
        studies = {f"s{number}": some_signals(number) for number in range(10)}
        finer = {name: replace(one, foreground_usage=one.foreground_usage * times) for name, one in studies.items()}
        return Pool.of(finer, [finer.pop("s0")], structures=STRUCTURES)

    one, other = (rank("codebook_coverage", pool(number), picks=4) for number in (1, times))
    assert [ranked.id for ranked in one] == [ranked.id for ranked in other]
    assert len({round(ranked.score, 6) for ranked in one}) > 4


def test_rarity_says_how_much_rarer_the_codes_are_among_the_labels() -> None:
    best = rank(
        "codebook_rarity",
        Pool.of(sites(), [signals(np.eye(4, CODES, dtype=np.int64)[0] * 100 + 1)], structures=STRUCTURES),
    )[0]
    assert f"{math.exp(best.score):.2f} times" in best.reason
    assert best.score > 1


def test_only_strategies_by_codes_need_a_codebook() -> None:
    needing = {name for name in STRATEGIES if make_strategy(name).needs_codebook()}
    assert needing == {name for name in STRATEGIES if name.startswith("codebook_")} | {"perturbation"}


def test_the_stored_entropy_is_taken_where_it_is_that_of_the_settings() -> None:
    stored = {name: SparseSignals.of(one, tokens=20) for name, one in sites().items()}
    pool = Pool.of(stored, structures=STRUCTURES)
    assert pool.rarefied_entropy is not None
    wrong = replace(pool, rarefied_entropy=pool.rarefied_entropy + 1)
    found, other = (rank("codebook_entropy", one, tokens=20)[0].score for one in (pool, wrong))
    assert other == pytest.approx(found + 1)
    expected = rank("codebook_entropy", Pool.of(sites(), structures=STRUCTURES), tokens=30)
    assert rank("codebook_entropy", wrong, tokens=30) == expected


def test_the_codes_that_make_the_entropy_are_named() -> None:
    best = rank("codebook_entropy", Pool.of({"a": signals((100, 50, 25, 0, 1, 0))}, structures=STRUCTURES))[0]
    assert [part.name for part in best.parts] == ["code 1", "code 0", "code 2"]
    assert sum(part.value for part in best.parts) < best.score


def test_a_study_without_foreground_says_nothing_about_its_codes() -> None:
    void = signals(foreground_usage=np.zeros(CODES))
    ranked = rank("codebook_rarity", Pool.of(sites() | {"void": void}, [sites()["b0"]], structures=STRUCTURES))
    assert (ranked[-1].id, ranked[-1].score) == ("void", -np.inf)


def test_balanced_is_the_mean_of_ranks_drawn_with_noise() -> None:
    studies = {f"s{number:02}": some_signals(number) for number in range(12)}
    pool = Pool.of(studies, [some_signals(99)], structures=STRUCTURES)
    places = {}
    for name in ("codebook_rarity", "codebook_coverage", "perturbation"):
        known = {one.id: one.score for one in rank(name, pool, 0) if np.isfinite(one.score)}
        places[name] = {study: sum(other <= known[study] for other in known.values()) / 12 for study in known}
    expected = {study: float(np.mean([part.get(study, 0) for part in places.values()])) for study in studies}
    quiet = rank("codebook_balanced", pool, 0, balanced_power=1e9)
    assert {one.id: math.exp(one.score) for one in quiet} == pytest.approx(expected, abs=1e-6)
    first = Counter(rank("codebook_balanced", pool, 1, seed, balanced_power=3)[0].id for seed in range(2000))
    total = sum(mean**3 for mean in expected.values())
    for study, mean in expected.items():
        assert first[study] / 2000 == pytest.approx(mean**3 / total, abs=0.04)
    one_part = rank("codebook_balanced", pool, 0, balanced_power=1e9, balanced_parts=("coverage",))
    assert [one.id for one in one_part] == [one.id for one in rank("codebook_coverage", pool, 0)]


def test_balanced_ranks_all_anew_after_every_pick() -> None:
    pool = Pool.of({f"s{n:02}": some_signals(n) for n in range(12)}, [some_signals(99)], structures=STRUCTURES)
    draw = np.random.default_rng(0)
    parts = {"rarity": "codebook_rarity", "coverage": "codebook_coverage", "disagreement": "perturbation"}
    scorers = {part: make_strategy(name).scorer(pool, draw) for part, name in parts.items()}
    expected: list[str] = []
    shares: list[dict[str, float]] = []
    for _ in range(4):
        scores = {part: scorer.scores() for part, scorer in scorers.items()}
        ranks = {part: [np.sum(known <= one) / len(known) for one in known] for part, known in scores.items()}
        mean = np.mean(list(ranks.values()), axis=0)
        best = max((n for n, study in enumerate(pool.ids) if study not in expected), key=lambda n: mean[n])
        expected.append(pool.ids[best])
        shares.append({part: float(known[best]) for part, known in ranks.items()})
        for scorer in scorers.values():
            scorer.take(best)
    picked = rank("codebook_balanced", pool, picks=4, balanced_power=1e9)[:4]
    assert [one.id for one in picked] == expected
    assert [{part.name: part.value for part in one.parts} for one in picked] == shares
    # Ranked once, others would be picked.
    assert order("codebook_balanced", pool, picks=1, balanced_power=1e9)[:4] != expected
