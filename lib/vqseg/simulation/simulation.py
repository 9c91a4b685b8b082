"""A whole simulation: every arm with every seed, several at a time, and what came out as values for JSON."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vqseg.config import Config
from vqseg.data.plan import plan
from vqseg.data.reading import read_grid
from vqseg.data.studies import Study
from vqseg.devices import choose_device
from vqseg.errors import ConfigError, TrainingError
from vqseg.files import write_json
from vqseg.simulation.arms import make_arm
from vqseg.simulation.cases import load_cases
from vqseg.simulation.replay import Protocol, replay
from vqseg.simulation.report import write_report
from vqseg.simulation.rounds import Learner
from vqseg.simulation.summary import summarize
from vqseg.training.methods import check_method

__all__ = ["RESULT_FILE", "SUMMARY_FILE", "Simulation", "simulate"]

RESULT_FILE = "simulation.json"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Simulation:
    """`pool` studies whose masks are revealed when they are chosen, and `validation` studies that are never chosen; all
    have masks. `out` is the folder for what is kept between runs."""

    pool: Sequence[Study]
    validation: Sequence[Study]
    config: Config
    method: str
    protocol: Protocol
    out: Path
    device: str = "auto"

    def __post_init__(self) -> None:
        largest = self.protocol.budgets[-1]
        if largest > len(self.pool):
            raise ConfigError(
                f"the pool holds {len(self.pool)} studies, and {largest} would be labelled in the end; "
                "choose a smaller start set, fewer rounds or fewer studies a round"
            )
        if not self.validation:
            raise ConfigError("there is no validation study to score the models on")
        check_method(self.method, self.config)

    def learner(self) -> Learner:
        """Everything read into memory."""
        config = plan(self.config, [read_grid(study.image) for study in self.pool])
        if not config.model.has_codebook:
            raise ConfigError("a simulation needs a network with a codebook; set model.quantized to true")
        cache = self.out / "cache"
        pool, validation = (load_cases(part, config.data, cache) for part in (self.pool, self.validation))
        return Learner(config, self.method, pool, validation, choose_device(self.device), self.out / "rounds")


def simulate(
    simulation: Simulation,
    arms: Sequence[str],
    seeds: Sequence[int],
    jobs: int = 1,
    on_progress: Callable[[dict[str, Any]], None] = lambda status: None,
) -> dict[str, Any]:
    """Replay every arm with every seed, `jobs` at a time; return the summary.

    With every seed a model is also trained on all masks of the pool. What was done before is read from disk. A seed in
    which a training diverged is left out for all arms, which are compared seed by seed, and named. Writes
    `simulation.json` (every step), `summary.json`, `table.md` and `curves.png` to `out`. Raises `ConfigError`,
    `DataError`, `ImageError` or `LabelError`, and `TrainingError` when no seed is left.
    """
    for name in arms:
        make_arm(name)
    # What cannot be read is found here, with its own message, and prepared once for all processes.
    learner = simulation.learner()
    tasks = [_Task(seed, arm) for seed in seeds for arm in (*arms, None)]
    done: dict[_Task, Any] = {}
    for task, outcome in _outcomes(simulation, learner, tasks, jobs):
        done[task] = outcome
        message = f"{task.arm or 'all masks'}, seed {task.seed}"
        on_progress({"step": len(done), "total_steps": len(tasks), "message": message})
    failed = {task: outcome for task, outcome in done.items() if isinstance(outcome, _Diverged)}
    left_out = {str(task.seed): f"{task.arm or 'all masks'}: {outcome.reason}" for task, outcome in failed.items()}
    tasks = [task for task in tasks if str(task.seed) not in left_out]
    if not tasks:
        raise TrainingError(f"with every seed a training diverged, such as {next(iter(left_out.values()))}")
    result = {
        "method": simulation.method,
        "protocol": asdict(simulation.protocol),
        "settings": simulation.config.model_dump(mode="json"),
        "pool": sorted(study.id for study in simulation.pool),
        "validation": sorted(study.id for study in simulation.validation),
        "replays": [{"arm": task.arm, "seed": task.seed, "steps": done[task]} for task in tasks if task.arm],
        "all_masks": [{"seed": task.seed, "scores": done[task]} for task in tasks if not task.arm],
        "left_out": left_out,
        "pool_voxels": sum(case.foreground_voxels for case in learner.pool.values()),
    }
    write_json(simulation.out / RESULT_FILE, result)
    summary = summarize(result)
    write_json(simulation.out / SUMMARY_FILE, summary)
    write_report(summary, simulation.out)
    return summary


@dataclass(frozen=True)
class _Diverged:
    """What comes of a task in which a training diverged."""

    reason: str


@dataclass(frozen=True)
class _Task:
    """A replay, or without an `arm` the training on all masks."""

    seed: int
    arm: str | None

    def do(self, learner: Learner, protocol: Protocol) -> Any:
        """Values for JSON, the steps of the replay or the scores; or why there are none."""
        try:
            if self.arm is None:
                return learner.round(learner.pool, self.seed).scores
            return [asdict(step) for step in replay(make_arm(self.arm), self.seed, protocol, learner)]
        except TrainingError as error:
            return _Diverged(str(error))


def _outcomes(
    simulation: Simulation, learner: Learner, tasks: Sequence[_Task], jobs: int
) -> Iterator[tuple[_Task, Any]]:
    """What comes of every task, as it is done."""
    if jobs == 1:
        yield from ((task, task.do(learner, simulation.protocol)) for task in tasks)
        return
    # A forked process would inherit locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _load, (simulation, jobs)) as executor:
        waiting = {executor.submit(_do, task): task for task in tasks}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            # A task is hours of work that nobody waits for any more.
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


_loaded: tuple[Simulation, Learner] | None = None


def _load(simulation: Simulation, jobs: int) -> None:
    """Once in every process."""
    global _loaded
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    _loaded = (simulation, simulation.learner())


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes, which would train on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(task: _Task) -> Any:
    assert _loaded is not None
    simulation, learner = _loaded
    return task.do(learner, simulation.protocol)
