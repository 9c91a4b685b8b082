"""Rankings: laws that hold for every strategy, and what each of them is for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqseg.active.pool import Pool
from vqseg.active.sparse_signals import SparseSignals
from vqseg.active.strategies import STRATEGIES, make_strategy
from vqseg.active.strategy import Ranked
from vqseg.active.usage import rarefied_entropies
from vqseg.config import Active
from vqseg.errors import ConfigError
from vqseg.inference.signals import StudySignals

quick = settings(max_examples=15, deadline=None)
every_strategy = pytest.mark.parametrize("name", sorted(STRATEGIES))
STRUCTURES = ("left", "right")
CODES, WIDTH = 6, 3


def signals(
    usage: Any = (4, 4, 0, 0, 0, 0), entropy: Any = (0.1, 0.1), foreground: Any = (0.2, 0.2), **others: Any
) -> StudySignals:
    counts = np.array(usage, np.int64)
    given = {
        "foreground_usage": counts.astype(float),
        "features": np.zeros(WIDTH),
        "disagreement": np.array(entropy, float),
        "class_entropy": np.append(0.0, np.nan_to_num(np.array(entropy, float))),
    }
    given |= {name: np.array(value, float) for name, value in others.items()}
    return StudySignals(counts, entropy=np.array(entropy, float), foreground=np.array(foreground, float), **given)


def some_signals(seed: int) -> StudySignals:
    """Anything a model may say of a study, such as that it holds nothing at all."""
    draw = np.random.default_rng(seed)
    missing = draw.random(2) < 0.2
    nats = np.where(missing, np.nan, draw.random((2, 2)))
    return signals(
        draw.integers(0, 30, CODES) * (draw.random(CODES) < 0.7),
        nats[0],
        np.where(missing, 0, draw.random(2)),
        foreground_usage=draw.random(CODES),
        features=draw.integers(0, 3, WIDTH),
        disagreement=nats[1],
    )


pools = st.builds(
    lambda studies, labelled, progress: Pool.of(
        {name: some_signals(seed) for name, seed in studies.items()},
        map(some_signals, labelled),
        structures=STRUCTURES,
        progress=progress,
    ),
    st.dictionaries(st.text("abc1", min_size=1, max_size=3), st.integers(0, 10**6), max_size=7),
    st.lists(st.integers(0, 10**6), max_size=3),
    st.floats(0, 1),
)


def rank(name: str, pool: Pool, picks: int = 1, seed: int = 0, **options: Any) -> list[Ranked]:
    ranking = make_strategy(name, Active(**options)).rank(pool, np.random.default_rng(seed), picks)
    assert ranking.ids == [one.id for one in ranking]
    assert ranking[len(ranking) :] == []
    return list(ranking)


def order(name: str, pool: Pool, picks: int = 1, **options: Any) -> list[str]:
    return [one.id for one in rank(name, pool, picks, **options)]


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


@pytest.mark.parametrize("name", ["predictive_entropy", "perturbation"])
def test_each_structure_weighs_the_same_and_a_missing_one_nothing(name: str) -> None:
    studies = {
        "half": signals(entropy=(0.3, 0.1)),
        "one": signals(entropy=(0.5, np.nan)),
        "none": signals(entropy=(np.nan, np.nan)),
        "sure": signals(entropy=(0.0, 0.1)),
    }
    ranked = rank(name, Pool.of(studies, structures=STRUCTURES))
    assert [one.id for one in ranked] == ["one", "half", "sure", "none"]
    assert [one.score for one in ranked] == pytest.approx([0.5, 0.2, 0.05, -np.inf])
    assert [(part.name, part.value) for part in ranked[1].parts] == [("left", 0.3), ("right", 0.1)]
    assert "left is 0.300 nats" in ranked[1].reason


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


def test_a_study_without_foreground_says_nothing_about_its_codes() -> None:
    void = signals(foreground_usage=np.zeros(CODES))
    ranked = rank("codebook_rarity", Pool.of(sites() | {"void": void}, [sites()["b0"]], structures=STRUCTURES))
    assert (ranked[-1].id, ranked[-1].score) == ("void", -np.inf)


def test_clasp_pe_takes_the_structures_in_turn_and_follows_its_schedule() -> None:
    studies = {f"l{n}": signals(entropy=(1 + n / 10, 0.01)) for n in range(5)}
    studies |= {f"r{n}": signals(entropy=(0.01, 0.1 + n / 100)) for n in range(5)}
    late, early = (Pool.of(studies, structures=STRUCTURES, progress=progress) for progress in (1.0, 0.0))
    for seed in range(10):
        first, second, third, fourth, fifth = (one.id for one in rank("clasp_pe", late, picks=5, seed=seed)[:5])
        assert {first[0], second[0]} == {fourth[0], fifth[0]} == {"l", "r"}
        # Every third pick is made for the mean, which is the larger on this side.
        assert third[0] == "l"
    turns = [one.reason for one in rank("clasp_pe", late, picks=3)[:3]]
    assert sorted(("left" in reason, "right" in reason) for reason in turns[:2]) == [(False, True), (True, False)]
    assert "all structures together" in turns[2]
    best = {f"{side}{n}" for side in "lr" for n in (3, 4)}

    def exploited(pool: Pool) -> int:
        return sum(rank("clasp_pe", pool, seed=seed)[0].id in best for seed in range(100))

    assert exploited(late) > exploited(early) + 15
    # Predictive entropy alone never looks at the structure of which the model is surer.
    assert {study[0] for study in order("predictive_entropy", late, picks=4)[:4]} == {"l"}


def test_the_turns_of_clasp_pe_go_on_where_studies_are_asked_for_one_by_one() -> None:
    studies = {f"s{n}": signals(entropy=(n / 10, n / 10)) for n in range(4)}

    def reasons(taken: int) -> set[str]:
        pool = Pool.of(studies, structures=STRUCTURES, taken=taken)
        return {rank("clasp_pe", pool, seed=seed)[0].reason.split(";")[0].split(",")[0] for seed in range(20)}

    for taken in range(9):
        assert reasons(taken) == (
            {"it is the turn of all structures together"}
            if taken % 3 == 2
            else {f"it is the turn of {structure}" for structure in STRUCTURES}
        )


def test_power_entropy_is_the_entropy_when_there_is_no_noise() -> None:
    """That of all voxels, of which the background is one part."""
    studies = {f"s{n}": signals(class_entropy=(n / 10, 0.3, 0.1)) for n in range(6)}
    pool = Pool.of(studies, structures=STRUCTURES)
    assert order("power_entropy", pool, power=1e6) == ["s5", "s4", "s3", "s2", "s1", "s0"]
    best = rank("power_entropy", pool, power=1e6)[0]
    assert "0.9 nats" in best.reason
    assert [(part.name, part.value) for part in best.parts] == [("background", 0.5), ("left", 0.3), ("right", 0.1)]
    assert len({rank("power_entropy", pool, seed=seed)[0].id for seed in range(30)}) > 1


def grid() -> dict[str, StudySignals]:
    """Two tight groups, a large one at 0 and a small one at 10, and a lonely study at 100."""
    places = {"a0": 0.0, "a1": 0.1, "a2": 0.2, "a3": 0.3, "b0": 10.0, "b1": 10.1, "z": 100.0}
    return {name: signals(features=[place, 0, 0]) for name, place in places.items()}


def test_coreset_takes_the_farthest_and_typical_the_middle_of_the_largest_group() -> None:
    labelled = [signals(features=[10.05, 0, 0])]
    pool = Pool.of(grid(), labelled, structures=STRUCTURES)
    assert order("coreset", pool, picks=2)[:2] == ["z", "a0"]
    assert (
        order(
            "typical",
            Pool.of({name: one for name, one in grid().items() if name != "z"}, labelled, structures=STRUCTURES),
        )[0][0]
        == "a"
    )
    # A lonely study is no group to learn from, as long as one of many is missing.
    pool = Pool.of(grid(), [*labelled, signals(features=[100.0, 0, 0])], structures=STRUCTURES)
    assert order("typical", pool)[0] in {"a1", "a2"}
    # A few outliers come behind a group that is labelled already.
    many = {f"m{n}": signals(features=[n / 10, 0, 0]) for n in range(6)}
    few = {f"few{n}": signals(features=[50 + n / 10, 0, 0]) for n in range(5)}
    pool = Pool.of(many | few, [signals(features=[0.25, 0, 0])], structures=STRUCTURES)
    assert order("typical", pool)[0] in many
    # Once one of the group is taken, the next is not its neighbour.
    places = {"a": 0, "b": 50, "c": 90}
    apart = {f"{group}{n}": signals(features=[at + n / 10, 0, 0]) for group, at in places.items() for n in range(4)}
    assert {study[0] for study in order("typical", Pool.of(apart, structures=STRUCTURES), picks=3)[:3]} == {
        "a",
        "b",
        "c",
    }


def test_typical_tells_the_group_and_what_its_score_is_made_of() -> None:
    labelled = [signals(features=[place, 0, 0]) for place in (10.05, 100)]
    ranking = rank("typical", Pool.of(grid(), labelled, structures=STRUCTURES), picks=2)
    assert ranking[0].reason == "it is typical of a group of 4 studies, 0 of them labelled"
    assert next(one for one in ranking if one.id == "z").reason.endswith("of 2 studies, 1 of them labelled")
    for one in ranking:
        assert one.score == pytest.approx(sum(part.value for part in one.parts))


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


def closeness(features: NDArray, labelled: list[NDArray]) -> float:
    """G of MaxHerding as its paper has it, with the bandwidth of the strategy."""
    distances = np.linalg.norm(features[:, None] - features, axis=-1)
    bandwidth = np.median(distances[distances > 0])
    near = [np.exp(-(np.linalg.norm(features - one, axis=-1) ** 2) / (2 * bandwidth**2)) for one in labelled]
    return float(np.mean(np.max(near, axis=0))) if near else 0.0


def test_max_herding_adds_most_to_how_close_every_study_is() -> None:
    """Each score is what labelling the study would add, after every pick; and it is greedy."""
    draw = np.random.default_rng(0)
    features, known = draw.normal(size=(12, WIDTH)), draw.normal(size=(2, WIDTH))
    studies = {f"s{number:02}": signals(features=row) for number, row in enumerate(features)}
    pool = Pool.of(studies, [signals(features=row) for row in known], structures=STRUCTURES)
    labelled = list(known)
    for one in rank("max_herding", pool, picks=4)[:4]:
        gains = [closeness(features, [*labelled, row]) - closeness(features, labelled) for row in features]
        assert one.score == pytest.approx(max(gains))
        assert one.id == f"s{int(np.argmax(gains)):02}"
        labelled.append(features[int(np.argmax(gains))])


def test_coreset_begins_in_the_middle() -> None:
    places = {"a": 0.0, "b": 5.0, "c": 10.0}
    pool = Pool.of({name: signals(features=[place, 0, 0]) for name, place in places.items()}, structures=STRUCTURES)
    assert order("coreset", pool, picks=2) == ["b", "a", "c"]
    only = Pool.of({"a": signals()}, structures=STRUCTURES)
    assert "middle" in rank("coreset", only)[0].reason


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


def test_disagreement_is_told_with_the_number_of_codes_it_was_drawn_from() -> None:
    told = Pool.of({"a": signals()}, structures=STRUCTURES, replacement_codes=15.94)
    assert "(effective number of replacement codes: 15.9)" in rank("perturbation", told)[0].reason
    assert "replacement" not in rank("predictive_entropy", told)[0].reason


def test_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'best'") as caught:
        make_strategy("best")
    assert all(name in str(caught.value) for name in STRATEGIES)
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())
    assert Active().strategy in STRATEGIES
