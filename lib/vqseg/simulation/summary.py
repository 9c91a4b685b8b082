"""What a simulation says of its arms: areas, costs and comparisons, as values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

from vqseg.simulation.statistics import (
    Comparison,
    area,
    bootstrap_interval,
    bootstrap_ranks,
    compare,
    foreground_efficiency,
    smallest_difference,
)

__all__ = ["REFERENCE", "areas_by_arm", "differences", "summarize"]

# What every arm is compared with.
REFERENCE = "uniform"
_LEVEL = 0.95

Steps = list[dict[str, Any]]
Areas = Mapping[str, Sequence[float]]


def areas_by_arm(result: Mapping[str, Any], metric: str = "dice", rounds: int | None = None) -> dict[str, list[float]]:
    """Area of every seed under a metric over the number of labelled studies, up to a number of rounds, by arm."""
    last = None if rounds is None else rounds + 1
    return {
        arm: [
            area([len(step["labelled"]) for step in steps[:last]], [step["scores"][metric] for step in steps[:last]])
            for steps in seeds
        ]
        for arm, seeds in _by_arm(result).items()
    }


def differences(areas: Areas, arm: str, other: str) -> list[float]:
    """What the arm has more than the other, seed by seed."""
    return [own - its for own, its in zip(areas[arm], areas[other], strict=True)]


def summarize(result: Mapping[str, Any]) -> dict[str, Any]:
    """By arm: what it reached, what that cost, and how it compares with `uniform` and with every other arm."""
    by_arm, areas, hd95 = _by_arm(result), areas_by_arm(result), areas_by_arm(result, "hd95")
    ranks = bootstrap_ranks(areas)
    others = [arm for arm in areas if arm != REFERENCE] if REFERENCE in areas else []
    from_reference = {arm: differences(areas, arm, REFERENCE) for arm in others}
    against = compare(from_reference)
    full = mean(one["scores"]["dice"] for one in result["all_masks"])
    arms: dict[str, dict[str, Any]] = {}
    for arm, seeds in by_arm.items():
        rounds = list(zip(*seeds, strict=True))
        curve = [[step["scores"]["dice"] for step in steps] for steps in rounds]
        slices = [mean(step["slices"] for step in steps) for steps in rounds]
        shares = [mean(step["voxels"] / result["pool_voxels"] for step in steps) for steps in rounds]
        beaten = compare({other: differences(areas, arm, other) for other in areas if other != arm})
        arms[arm] = {
            "area": _spread(areas[arm]),
            "rank": ranks[arm],
            "curve": [_spread(values) | _interval(values) for values in curve],
            "hd95_area": _spread(hd95[arm]),
            f"against_{REFERENCE}": _with_verdict(against[arm]) if arm in against else None,
            "beats": [other for other, comparison in beaten.items() if comparison.better],
            "slices": slices,
            "foreground_shares": shares,
            "foreground_efficiency": foreground_efficiency(shares, list(map(mean, curve)), full),
            "agreement_at_start": _mean_of_known(steps[0]["agreement"] for steps in seeds),
            "agreement": _mean_of_known(step["agreement"] for steps in seeds for step in steps),
            "replacement_codes": _mean_of_known(step["replacement_codes"] for steps in seeds for step in steps),
            "seconds": _seconds(seeds),
        }
    some = next(iter(by_arm.values()))
    return {
        "seeds": len(some),
        "budgets": [len(step["labelled"]) for step in some[0]],
        "left_out": result["left_out"],
        "smallest_difference": smallest_difference(from_reference) if from_reference else None,
        "all_masks": _spread([one["scores"]["dice"] for one in result["all_masks"]]),
        "arms": dict(sorted(arms.items(), key=lambda item: -item[1]["area"]["mean"])),
    }


def _by_arm(result: Mapping[str, Any]) -> dict[str, list[Steps]]:
    """The steps of each seed, in the order of the seeds, by arm."""
    by_arm: dict[str, list[Steps]] = {}
    for replay in sorted(result["replays"], key=lambda replay: replay["seed"]):
        by_arm.setdefault(replay["arm"], []).append(replay["steps"])
    return by_arm


def _seconds(seeds: Sequence[Steps]) -> dict[str, float]:
    """Mean seconds of each part of a round; at the last one nothing is looked at or chosen any more."""
    rounds = [step["seconds"] for steps in seeds for step in steps]
    choices = [step["seconds"] for steps in seeds for step in steps[:-1]]
    return {part: mean(one[part] for one in rounds) for part in ("train", "score")} | {
        part: mean(one[part] for one in choices) for part in ("look", "choose")
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


def _interval(values: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap_interval(values, _LEVEL)
    return {"low": low, "high": high}


def _with_verdict(comparison: Comparison) -> dict[str, float | bool]:
    return asdict(comparison) | {"better": comparison.better}


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
