"""What is said of a simulation, on curves made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vqseg.simulation.claim import RIVALS, judge
from vqseg.simulation.report import table, wins_table
from vqseg.simulation.statistics import compare
from vqseg.simulation.summary import areas_by_arm, summarize

SEEDS, ROUNDS = 6, 5
CONTROL = "length"


def result(gains: dict[str, float], share: dict[str, float] | None = None) -> dict[str, Any]:
    """Curves that rise by `gains` of Dice a round, by arm; `share`: foreground an arm has painted, relative to others.

    The noise of a seed is the same for all arms, as it is where they are paired, but for a little.
    """
    shared = np.random.default_rng(0).normal(0, 0.05, SEEDS)
    replays = []
    for number, (arm, gain) in enumerate(gains.items()):
        little = np.random.default_rng(number + 1).normal(0, 0.002, (SEEDS, ROUNDS + 1))
        for seed in range(SEEDS):
            steps = [
                {
                    "labelled": [f"s{study}" for study in range(3 + 3 * step)],
                    "slices": 30 * (step + 1),
                    "voxels": 100 * (3 + 3 * step) * (share or {}).get(arm, 1.0),
                    "scores": {"dice": 0.5 + shared[seed] + gain * step + little[seed, step], "hd95": 5.0 - step / 2},
                    "replacement_codes": None if arm == CONTROL else 16.0,
                    "agreement": None if step == ROUNDS else 0.5,
                    "seconds": {"train": 2.0, "score": 1.0, "look": 3.0, "choose": 0.0 if step == ROUNDS else 0.25},
                }
                for step in range(ROUNDS + 1)
            ]
            replays.append({"arm": arm, "seed": seed, "steps": steps})
    return {
        "protocol": {"start": 3, "rounds": ROUNDS, "picks": 3},
        "replays": replays[::-1],
        "pool_voxels": 20_000,
        "left_out": {},
        "all_masks": [{"seed": seed, "scores": {"dice": 0.85 + shared[seed]}} for seed in range(SEEDS)],
    }


GOOD = {"new": 0.05, **dict.fromkeys(RIVALS, 0.03), CONTROL: 0.02}


def test_the_best_arm_stands_first_and_the_noise_of_the_seed_is_shared() -> None:
    summary = summarize(result(GOOD))
    assert next(iter(summary["arms"])) == "new"
    assert list(summary["arms"])[-1] == CONTROL
    new = summary["arms"]["new"]
    assert new["against_uniform"]["better"]
    assert new["against_uniform"]["difference"] == pytest.approx(0.05, abs=0.005)
    assert set(new["beats"]) == {*RIVALS, CONTROL}
    crosses = [line for line in wins_table(summary) if line[2:3].isdigit()]
    wins = {line.split(" | ")[0].split()[-1]: line.count(" x ") for line in crosses}
    assert wins == {arm: len(told["beats"]) for arm, told in summary["arms"].items()}
    assert summary["arms"]["uniform"]["against_uniform"] is None
    assert CONTROL in summary["arms"]["uniform"]["beats"]
    # Between arms that do not differ nothing is told.
    assert not {*RIVALS} & {*summary["arms"]["uniform"]["beats"]}
    assert (summary["seeds"], summary["budgets"]) == (SEEDS, [3, 6, 9, 12, 15, 18])


def test_costs_are_those_of_every_round_and_times_are_means() -> None:
    arm = summarize(result(GOOD))["arms"]["new"]
    assert arm["slices"] == [30, 60, 90, 120, 150, 180]
    assert arm["foreground_shares"] == pytest.approx([share / 20_000 for share in (300, 600, 900, 1200, 1500, 1800)])
    assert arm["seconds"] == {"train": 2.0, "score": 1.0, "look": 3.0, "choose": 0.25}
    assert arm["agreement"] == arm["agreement_at_start"] == 0.5


def test_the_area_of_fewer_rounds_leaves_the_others_out() -> None:
    whole, two = areas_by_arm(result(GOOD)), areas_by_arm(result(GOOD), rounds=2)
    assert np.mean(whole["new"]) - np.mean(two["new"]) == pytest.approx(0.05 * 1.5, abs=0.003)


def test_the_table_names_every_arm_once() -> None:
    lines = table(summarize(result(GOOD)))
    assert [line.split("|")[1].strip() for line in lines[2:-3]] == list(summarize(result(GOOD))["arms"])
    assert len({line.count("|") for line in lines[:-3]}) == 1
    assert "**+0.05" in lines[2]


def test_the_strength_of_the_draws_is_told_of_those_arms_that_draw() -> None:
    told = table(summarize(result(GOOD)))[-1]
    assert "new 16.0" in told
    assert CONTROL not in told


def test_one_arm_alone_has_a_table_too() -> None:
    assert len(table(summarize(result({"new": 0.05})))) == 6


def test_a_claim_needs_every_part_of_the_rule() -> None:
    assert judge(result(GOOD), "new", [CONTROL]).holds
    for rival in RIVALS:
        tied = judge(result(GOOD | {rival: 0.05}), "new", [CONTROL])
        assert not tied.holds
        assert tied.won[rival] < 2
    wasteful = judge(result(GOOD, {"new": 3.0}), "new", [CONTROL])
    assert not wasteful.efficient
    assert not wasteful.holds
    fooled = judge(result(GOOD | {CONTROL: 0.04}), "new", [CONTROL])
    assert fooled.winning_controls == [CONTROL]
    assert not fooled.holds


@pytest.mark.parametrize(("last", "won"), [(2, 1), (4, 2), (5, 3)])
def test_two_of_three_budgets_must_be_won(last: int, won: int) -> None:
    """The arm is ahead until the round `last`, and far behind after it."""
    made = result(GOOD)
    for replay in made["replays"]:
        if replay["arm"] == "new":
            for step in replay["steps"][last + 1 :]:
                step["scores"]["dice"] = 0.1
    verdict = judge(made, "new", [CONTROL])
    assert verdict.won == dict.fromkeys(RIVALS, won)
    assert replace(verdict, efficient=True).holds == (won >= 2)


def test_a_difference_that_the_number_of_rivals_can_explain_wins_nothing() -> None:
    """p is 0.03 against each rival alone, and 0.09 after Holm."""
    made = result({arm: 0.03 for arm in GOOD})
    ahead = np.array([1.0, 2.0, 3.0, -0.3, 4.0, 1.5])
    for replay in made["replays"]:
        for step in replay["steps"]:
            step["scores"]["dice"] = 0.5 + (0.01 * ahead[replay["seed"]] if replay["arm"] == "new" else 0.0)
    alone = compare({"uniform": list(0.01 * ahead)})["uniform"]
    assert alone.better
    assert 0.05 / 3 < alone.p < 0.05
    assert judge(made, "new", [CONTROL]).won == dict.fromkeys(RIVALS, 0)
