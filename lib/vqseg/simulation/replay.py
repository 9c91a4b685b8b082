"""One arm, one seed: train, ask what to label next, and so on."""

from __future__ import annotations

from dataclasses import dataclass

from vqseg.errors import ConfigError
from vqseg.randomness import numpy_generator, seed_for
from vqseg.simulation.arms import Arm, Choice, Knowledge
from vqseg.simulation.rounds import Learner, Round

__all__ = ["Protocol", "Step", "replay"]


@dataclass(frozen=True)
class Protocol:
    """`start` studies drawn at random are labelled first, then `rounds` times `picks` that the arm chooses.

    With a `start` of 0 the arm also chooses the first `picks`, by a network that has seen images alone. Raises
    `ConfigError` where there is nothing to choose.
    """

    start: int = 3
    rounds: int = 5
    picks: int = 3

    def __post_init__(self) -> None:
        if self.start < 0 or min(self.rounds, self.picks) < 1:
            raise ConfigError(
                f"start {self.start}, rounds {self.rounds}, picks {self.picks}: "
                "a simulation starts with 0 studies or more, and has at least one round and one pick"
            )

    @property
    def budgets(self) -> list[int]:
        """Number of labelled studies at each round."""
        return [(self.start or self.picks) + number * self.picks for number in range(self.rounds + 1)]


@dataclass(frozen=True)
class Step:
    """A round of a replay: `labelled` ids in the order in which they were chosen, their `slices` and foreground
    `voxels`, mean `scores` on the validation studies, the ids `chosen` next, the arm's `agreement` with the model's
    errors, `seconds` by part, and the effective number of `replacement_codes` of its QPM draws, if it needs any. After
    the last round nothing is chosen."""

    labelled: list[str]
    slices: int
    voxels: int
    scores: dict[str, float]
    chosen: list[str]
    agreement: float | None
    seconds: dict[str, float]
    replacement_codes: float | None


def replay(arm: Arm, seed: int, protocol: Protocol, learner: Learner) -> list[Step]:
    """Replay the annotation. The start set and the training follow from the seed alone, so arms can be paired."""
    pool, config = learner.pool, learner.config
    slices = {study: case.slices(config.data.slice_axis) for study, case in pool.items()}

    def choose(done: Round, number: int) -> Choice:
        # 0 at the first choice and 1 at the last.
        progress = max(0, number) / max(1, protocol.rounds - 1)
        candidates = done.pool(learner.structures, progress)
        known = Knowledge(slices, done.dice, protocol.picks)
        return arm.choose(candidates, config.active, known, seed_for(seed, "ranking", arm.name, number))

    labelled: list[str] = numpy_generator(seed, "start").choice(sorted(pool), protocol.start, replace=False).tolist()
    look = arm.look(config.active)
    if not labelled:
        labelled = choose(learner.round([], seed, look), -1).ids
    steps: list[Step] = []
    for number in range(protocol.rounds + 1):
        last = number == protocol.rounds
        done = learner.round(labelled, seed, None if last else look)
        choice = Choice([], None, 0.0) if last else choose(done, number)
        steps.append(
            Step(
                labelled,
                sum(slices[study] for study in labelled),
                sum(pool[study].foreground_voxels for study in labelled),
                done.scores,
                choice.ids,
                choice.agreement,
                done.seconds | {"choose": choice.seconds},
                done.replacement_codes,
            )
        )
        labelled = [*labelled, *choice.ids]
    return steps
