"""Whether a model that was just validated takes the place of the live one, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Decision", "decide"]


@dataclass(frozen=True)
class Decision:
    """Whether to `publish`, and the `reason` in words."""

    publish: bool
    reason: str


def decide(dice: float, best: float | None, champion: float | None, *, locked: bool) -> Decision:
    """Publish the best model of a training if it is at least as good as the one that was live before.

    All are mean Dice on the same studies: `best` of the training's earlier validations, `champion` of the model that
    was live when it began. Without `locked` studies these are studies that are trained on; they cannot tell which of
    two models is better, so there the later one wins.
    """
    if not locked:
        return Decision(True, "no studies are locked for validation, so the newer model is taken")
    if best is not None and dice <= best:
        return Decision(False, f"Dice {dice:.4f} is not above {best:.4f}, the best of this training so far")
    if champion is None:
        return Decision(True, "the best of this training so far; no other model can be compared with it")
    if dice < champion:
        return Decision(False, f"Dice {dice:.4f} is below {champion:.4f}, that of the model that was live before")
    return Decision(True, f"the best of this training so far, and not below {champion:.4f} of the model before")
