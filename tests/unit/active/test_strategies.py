"""Rankings: laws that hold for every strategy, draws, and batches."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_signals import CODES, STRUCTURES, order, pools, quick, rank, signals, some_signals

from vqseg.active.pool import Pool
from vqseg.active.strategies import STRATEGIES, make_strategy
from vqseg.config import Active
from vqseg.errors import ConfigError

every_strategy = pytest.mark.parametrize("name", sorted(STRATEGIES))


@every_strategy
@quick
@given(pools, st.integers(0, 8))
def test_every_study_has_one_place_and_a_reason(name: str, pool: Pool, picks: int) -> None:
    ranked = rank(name, pool, picks)
    assert sorted(one.id for one in ranked) == list(pool.ids)
    assert rank(name, pool, picks) == ranked
    for one in ranked:
        assert one.reason
        assert not math.isnan(one.score)
        assert [part.value for part in one.parts] == sorted((part.value for part in one.parts), reverse=True)
        assert len(one.parts) <= 3
    unscored = [one.id for one in ranked if one.score == -np.inf]
    if name != "stochastic_batches":
        assert unscored == [one.id for one in ranked][len(ranked) - len(unscored) :]
    assert all("cannot be scored" in one.reason for one in ranked if one.id in unscored)


@every_strategy
def test_a_pool_of_none_and_of_one(name: str) -> None:
    assert rank(name, Pool.of({}, structures=STRUCTURES)) == []
    assert order(name, Pool.of({"only": signals()}, structures=STRUCTURES), picks=3) == ["only"]


@every_strategy
def test_equal_studies_are_taken_by_id_or_at_random(name: str) -> None:
    pool = Pool.of({study: signals() for study in "cabd"}, [signals()], structures=STRUCTURES)
    found = [rank(name, pool, seed=seed)[0].id for seed in range(20)]
    draws = {
        "uniform",
        "foreground_random",
        "power_entropy",
        "clasp_pe",
        "stochastic_batches",
        "codebook_balanced",
    }
    assert (len(set(found)) > 1) == (name in draws)
    if name not in draws:
        assert set(found) == {"a"}


def test_the_order_in_which_studies_are_given_does_not_matter() -> None:
    names = list("dacb")
    studies = {study: some_signals(ord(study)) for study in names}
    backwards = {study: studies[study] for study in reversed(names)}
    for name in STRATEGIES:
        one, other = (
            rank(name, Pool.of(given, [signals()], structures=STRUCTURES), 2) for given in (studies, backwards)
        )
        assert one == other


def test_unsorted_ids_are_refused() -> None:
    with pytest.raises(AssertionError, match="sorted"):
        Pool(["b", "a"])


def test_uniform_is_fair() -> None:
    pool = Pool(list("abcde"))
    first = Counter(rank("uniform", pool, seed=seed)[0].id for seed in range(1000))
    assert all(140 < first[name] < 260 for name in "abcde")
    assert not STRATEGIES["uniform"].needs


def test_foreground_random_draws_a_structure_and_one_of_its_studies() -> None:
    """However large it is there; and a third of the draws is plain random."""
    studies = {
        "large": signals(foreground=(900, 0)),
        "rare": signals(foreground=(100, 1)),
        "void": signals(foreground=(0, 0)),
    }
    pool = Pool.of(studies, structures=STRUCTURES)
    first = Counter(rank("foreground_random", pool, seed=seed)[0].id for seed in range(3000))
    assert first["large"] / 3000 == pytest.approx(2 / 3 * 0.25 + 1 / 9, abs=0.04)
    assert first["rare"] / 3000 == pytest.approx(2 / 3 * 0.75 + 1 / 9, abs=0.04)
    assert first["void"] / 3000 == pytest.approx(1 / 9, abs=0.03)


def test_foreground_random_is_plain_random_where_nothing_is_predicted() -> None:
    pool = Pool.of({study: signals(foreground=(0, 0)) for study in "abc"}, structures=STRUCTURES)
    first = Counter(rank("foreground_random", pool, seed=seed)[0].id for seed in range(300))
    assert all(60 < first[study] < 140 for study in "abc")


def test_the_best_of_many_batches_is_better_than_a_random_one() -> None:
    studies = {f"s{n:02}": signals(entropy=(n / 20, n / 20)) for n in range(20)}
    pool = Pool.of(studies, structures=STRUCTURES)

    def worth(batches: int) -> float:
        chosen = [rank("stochastic_batches", pool, 3, seed, batches=batches)[:3] for seed in range(50)]
        return float(np.mean([one.score for batch in chosen for one in batch]))

    assert worth(1) == pytest.approx(0.475, abs=0.05)
    assert worth(50) > worth(1) + 0.2


def test_one_study_at_a_time_is_the_best_of_a_batch_all_the_same() -> None:
    studies = {f"s{n:02}": signals(entropy=(n / 40, n / 40)) for n in range(40)}
    pool = Pool.of(studies, structures=STRUCTURES)
    for seed in range(5):
        one, three = ([study.id for study in rank("stochastic_batches", pool, picks, seed)] for picks in (1, 3))
        assert (set(one[:3]), one[3:]) == (set(three[:3]), three[3:])
        assert three[:3] == sorted(three[:3], reverse=True)

    def firsts(batch: int) -> set[str]:
        return {rank("stochastic_batches", pool, seed=seed, batch=batch)[0].id for seed in range(30)}

    # The best of a hundred single ones is among the best six of forty in all but one case of ten million.
    assert firsts(1) <= {f"s{n}" for n in range(34, 40)} < firsts(3) | {f"s{n}" for n in range(34, 40)}


@pytest.mark.parametrize("base", ["codebook_rarity", "codebook_balanced", "perturbation", "coreset"])
def test_the_best_batch_of_one_is_the_best_study_of_its_base(base: str) -> None:
    pool = Pool.of({f"s{n}": some_signals(n) for n in range(6)}, [some_signals(9)], structures=STRUCTURES)
    given = {"batch": 1, "batches_of": base, "batches": 300, "balanced_power": 1e9}
    assert rank("stochastic_batches", pool, **given)[0].id == rank(base, pool, **given)[0].id
    active = Active(**given)
    assert make_strategy("stochastic_batches", active).needs == make_strategy(base, active).needs


def test_what_cannot_be_scored_is_never_in_the_best_batch() -> None:
    """The codes of one study are rarer in the pool than in the labels: its score is negative."""
    void = signals(foreground_usage=np.zeros(CODES))
    studies = {"a": void, "b": signals((9, 0, 0, 0, 0, 0)), "c": signals((0, 9, 0, 0, 0, 0))}
    pool = Pool.of(studies, [signals((90, 9, 0, 0, 0, 0))], structures=STRUCTURES)
    ranked = rank("stochastic_batches", pool, picks=2, batch=2, batches_of="codebook_rarity")
    assert [one.id for one in ranked] == ["c", "b", "a"]
    assert ranked[1].score < 0


@pytest.mark.parametrize("base", ["stochastic_batches", "disagreement", "magic"])
def test_batches_of_no_score_are_refused(base: str) -> None:
    with pytest.raises(ConfigError, match=r"active\.batches_of") as caught:
        make_strategy("stochastic_batches", Active(batches_of=base))
    assert all(name in str(caught.value) for name in STRATEGIES if name != "stochastic_batches")


def test_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'best'") as caught:
        make_strategy("best")
    assert all(name in str(caught.value) for name in STRATEGIES)
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())
    assert Active().strategy in STRATEGIES
