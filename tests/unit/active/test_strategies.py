"""Rankings: best first, ties by id, the same whatever the order of the pool."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqseg.active.strategies import STRATEGIES, Candidate, make_strategy
from vqseg.active.usage import rarefied_entropy
from vqseg.config import Active
from vqseg.errors import ConfigError

quick = settings(max_examples=25, deadline=None)
usages = st.none() | st.lists(st.integers(0, 30), min_size=6, max_size=6).map(np.array)
pools = st.dictionaries(st.text("abc1", min_size=1, max_size=3), usages, max_size=8).map(
    lambda pool: [Candidate(name, usage) for name, usage in pool.items()]
)
names = st.sampled_from(sorted(STRATEGIES))


@quick
@given(pools, names, st.randoms(use_true_random=False))
def test_order_of_the_pool_does_not_matter(pool: list[Candidate], name: str, random: object) -> None:
    strategy = make_strategy(name)
    shuffled = list(pool)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ranked = strategy.rank(pool, np.random.default_rng(3))
    assert strategy.rank(shuffled, np.random.default_rng(3)) == ranked
    assert ranked == sorted(ranked, key=lambda one: (-one.score, one.id))
    usable = {c.id for c in pool if c.usage is not None or not strategy.needs_usage}
    assert sorted(one.id for one in ranked) == sorted(usable)
    assert all(one.reason for one in ranked)


@quick
@given(pools, st.integers(2, 50))
def test_codebook_entropy_is_the_rarefied_one(pool: list[Candidate], tokens: int) -> None:
    usage = {candidate.id: candidate.usage for candidate in pool}
    for one in make_strategy("codebook_entropy", Active(tokens=tokens)).rank(pool, np.random.default_rng(0)):
        counts = usage[one.id]
        assert counts is not None
        assert one.score == rarefied_entropy(counts, tokens)
        assert f"{one.score:.3f}" in one.reason


def test_ties_are_broken_by_id() -> None:
    pool = [Candidate(name, np.array([4, 4])) for name in ("b", "a", "c")]
    pool.append(Candidate("z", np.array([2, 2, 2, 2])))
    ranked = make_strategy("codebook_entropy").rank(pool, np.random.default_rng(0))
    assert [one.id for one in ranked] == ["z", "a", "b", "c"]


def test_plain_random_is_fair_and_follows_its_generator() -> None:
    pool = [Candidate(name) for name in "abcde"]
    first = Counter(make_strategy("uniform").rank(pool, np.random.default_rng(seed))[0].id for seed in range(1000))
    assert all(140 < first[name] < 260 for name in "abcde")
    assert not make_strategy("uniform").needs_usage


def test_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'best'") as caught:
        make_strategy("best")
    assert all(name in str(caught.value) for name in STRATEGIES)
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())
    assert Active().strategy in STRATEGIES
