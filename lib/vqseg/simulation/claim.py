"""When it may be said that a strategy beats others: the rule, fixed before the pools are looked at.

On every pool, at two of three budgets, the areas are larger than those of each rival beyond the noise (paired over
seeds, after Holm); the foreground is used no less efficiently than by foreground-aware random; and no control beats
`uniform`. Otherwise the tie is what is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqseg.simulation.statistics import compare
from vqseg.simulation.summary import REFERENCE, areas_by_arm, differences, summarize

__all__ = ["RIVALS", "Verdict", "judge"]

RIVALS = (REFERENCE, "foreground_random", "clasp_pe")
_FOREGROUND_RANDOM = "foreground_random"
_BUDGETS = 3
_BUDGETS_WON = 2


@dataclass(frozen=True)
class Verdict:
    """`won` of three budgets by rival, each of which holds the one before; whether the arm is as `efficient` with
    foreground as foreground-aware random; the `winning_controls`, which beat `uniform` and must not. `level` with the
    arm are its own controls that it does not beat: what they leave out adds nothing that can be told from noise."""

    won: dict[str, int]
    efficient: bool
    winning_controls: list[str]
    level: list[str]

    @property
    def holds(self) -> bool:
        """Whether the claim may be made on this pool."""
        return self.efficient and not self.winning_controls and min(self.won.values()) >= _BUDGETS_WON


def judge(result: Mapping[str, Any], arm: str, controls: list[str]) -> Verdict:
    """The verdict on an arm by what `simulate` wrote of one pool, which must hold the rivals and the controls."""
    rounds, won = result["protocol"]["rounds"], dict.fromkeys(RIVALS, 0)
    for third in range(1, _BUDGETS + 1):
        areas = areas_by_arm(result, rounds=math.ceil(rounds * third / _BUDGETS))
        for rival, comparison in compare({rival: differences(areas, arm, rival) for rival in RIVALS}).items():
            won[rival] += comparison.better
    areas = areas_by_arm(result)
    # Each by itself: a correction for their number would let a control that wins pass.
    winning = [c for c in controls if compare({c: differences(areas, c, REFERENCE)})[c].better]
    own_controls = [name for name in areas if name.endswith(f":{arm}")]
    level = [c for c in own_controls if not compare({c: differences(areas, arm, c)})[c].better]
    arms = summarize(result)["arms"]
    own, random = (arms[name]["foreground_efficiency"] for name in (arm, _FOREGROUND_RANDOM))
    return Verdict(won, None not in (own, random) and own >= random, winning, level)
