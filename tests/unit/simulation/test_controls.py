"""Controls do what their names say, and still obey the laws of a strategy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vqseg.active.pool import Pool
from vqseg.active.scores import plug_in_entropy
from vqseg.active.strategies import STRATEGIES, make_strategy
from vqseg.active.strategy import Strategy
from vqseg.config import Active
from vqseg.errors import ConfigError
from vqseg.inference.signals import StudySignals
from vqseg.simulation.arms import ORACLE, Knowledge, arm_names, control_names, make_arm
from vqseg.simulation.codebooks import CODEBOOKS
from vqseg.simulation.controls import RandomByLength, Reversed, Shuffled

IDS = [f"s{number:02d}" for number in range(12)]
KNOWN = Knowledge(
    slices={study: 10 + number for number, study in enumerate(IDS)},
    dice={study: ((number * 5) % 12) / 12 for number, study in enumerate(IDS)},
    picks=3,
)


def pool() -> Pool:
    draw = np.random.default_rng(0)

    def signals() -> StudySignals:
        usage = draw.integers(0, 30, 8)
        return StudySignals(usage, usage * draw.random(8), draw.random(3), *draw.random((3, 2)), draw.random(3))

    return Pool.of({study: signals() for study in IDS}, [signals()], structures=("a", "b"))


def ids(strategy: Strategy, picks: int = 0, seed: int = 0) -> list[str]:
    return strategy.rank(pool(), np.random.default_rng(seed), picks).ids


@pytest.mark.parametrize("name", arm_names("codebook_rarity"))
def test_every_arm_picks_different_studies_and_the_same_ones_again(name: str) -> None:
    arm = make_arm(name)
    choice = arm.choose(pool(), Active(), KNOWN, 3)
    assert len(set(choice.ids)) == KNOWN.picks
    assert set(choice.ids) <= set(IDS)
    assert choice.ids == arm.choose(pool(), Active(), KNOWN, 3).ids
    assert choice.agreement is None or -1 <= choice.agreement <= 1
    assert arm.look(Active()).codebook in CODEBOOKS


@pytest.mark.parametrize("default", STRATEGIES)
def test_whatever_strategy_is_the_default_has_controls_that_can_be_made(default: str) -> None:
    names = arm_names(default)
    assert [make_arm(name).name for name in names] == names
    assert set(control_names(default)) | {ORACLE} <= set(names)
    assert not [name for name in arm_names(None) if ":" in name]


def test_the_controls_that_must_not_win_are_those_of_the_protocol() -> None:
    alone, own = ["length", "plug_in_entropy"], ["shuffled", "reversed"]
    assert control_names("typical") == alone + [f"{name}:typical" for name in own]
    assert control_names("codebook_rarity") == alone + [f"{name}:codebook_rarity" for name in (*own, "untrained")]


def test_the_pool_is_looked_at_with_draws_for_whoever_needs_them() -> None:
    settings = Active(draws=5)
    assert make_arm("perturbation").look(settings).draws == make_arm("reversed:perturbation").look(settings).draws == 5
    assert make_arm("stochastic_batches").look(settings).draws == 0
    assert make_arm("stochastic_batches").look(Active(draws=5, batches_of="perturbation")).draws == 5
    assert make_arm(ORACLE).look(settings).draws == 0
    by_dropout = make_arm("dropout:perturbation").look(settings)
    assert by_dropout == replace(make_arm("perturbation").look(settings), kind="dropout")


def test_all_strategies_and_controls_are_arms() -> None:
    names = arm_names("codebook_entropy")
    assert set(STRATEGIES) < set(names)
    assert {"length", "plug_in_entropy", "random_by_length", ORACLE} < set(names)
    assert {f"{control}:codebook_entropy" for control in ("shuffled", "reversed", "untrained", "k_means")} < set(names)


UNKNOWN = ["", "nothing", "shuffled", "shuffled:nothing", "oracle:uniform", ":uniform:"]
# These count no codes, or draw nothing, so nothing would change.
MEANINGLESS = ["untrained:coreset", "k_means:perturbation", "dropout:codebook_entropy"]


@pytest.mark.parametrize("name", UNKNOWN + MEANINGLESS)
def test_an_unknown_arm_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"known: codebook_entropy.*shuffled:STRATEGY"):
        make_arm(name)


def test_the_oracle_knows_the_worst_and_agrees_with_itself() -> None:
    choice = make_arm(ORACLE).choose(pool(), Active(), KNOWN, 0)
    assert choice.ids == sorted(IDS, key=lambda study: KNOWN.dice[study])[:3]
    assert choice.agreement == pytest.approx(1)


NOISY = ["power_entropy", "clasp_pe", "codebook_balanced", "foreground_random"]


@pytest.mark.parametrize("name", [*NOISY, "shuffled:codebook_rarity", "predictive_entropy"])
def test_what_a_score_says_of_failures_does_not_hang_on_its_noise(name: str) -> None:
    one, other = (make_arm(name).choose(pool(), Active(), KNOWN, seed) for seed in (1, 2))
    assert (one.agreement == other.agreement) != name.startswith("shuffled")
    if name in NOISY:
        assert len({tuple(make_arm(name).choose(pool(), Active(), KNOWN, seed).ids) for seed in range(5)}) > 1


@pytest.mark.parametrize("name", ["uniform", "random_by_length"])
def test_what_is_drawn_says_nothing_of_failures(name: str) -> None:
    assert make_arm(name).choose(pool(), Active(), KNOWN, 0).agreement is None


def test_largest_foreground_takes_the_largest_once_a_model_knows_it() -> None:
    given, arm = pool(), make_arm("largest_foreground")
    assert given.foreground is not None
    assert arm.choose(given, Active(), KNOWN, 0).ids[0] == IDS[int(given.foreground.sum(1).argmax())]
    before = Knowledge(KNOWN.slices, {}, KNOWN.picks)
    assert len({tuple(arm.choose(given, Active(), before, seed).ids) for seed in range(9)}) > 1


def test_length_takes_the_longest() -> None:
    assert make_arm("length").choose(pool(), Active(), KNOWN, 0).ids == IDS[:-4:-1]


def test_plug_in_entropy_takes_the_largest() -> None:
    given = pool()
    assert given.usage is not None
    entropy = plug_in_entropy(given.usage)
    assert make_arm("plug_in_entropy").choose(given, Active(), KNOWN, 0).ids[0] == IDS[int(entropy.argmax())]


def test_random_by_length_takes_one_of_each_stratum() -> None:
    """Short, middle and long studies, whatever the draw, and every study now and then."""
    strategy, taken = RandomByLength(Active(), KNOWN.slices, 3), Counter[str]()
    for seed in range(100):
        chosen = ids(strategy, 3, seed)[:3]
        assert {IDS.index(study) // 4 for study in chosen} == {0, 1, 2}
        taken.update(chosen)
    assert set(taken) == set(IDS)


def test_reversed_is_the_other_way_round() -> None:
    strategy = make_strategy("codebook_rarity")
    assert ids(Reversed(strategy)) == ids(strategy)[::-1]


def test_shuffled_keeps_the_scores_and_loses_what_they_say() -> None:
    strategy = make_strategy("codebook_rarity")
    own, shuffled = (one.rank(pool(), np.random.default_rng(1), 0) for one in (strategy, Shuffled(strategy)))
    assert [one.score for one in own] == [one.score for one in shuffled]
    first = Counter(ids(Shuffled(strategy), 0, seed)[0] for seed in range(300))
    assert len(first) == len(IDS)
    assert max(first.values()) < 300 / len(IDS) * 2
