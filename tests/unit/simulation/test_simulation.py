"""Whole simulations on small real studies, and what is kept of them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from builders import LABELS, tiny_config, write_studies
from click.testing import CliRunner
from servers import LEAN

from vqseg.active.at_random import Uniform
from vqseg.active.pool import Pool
from vqseg.active.strategies import make_strategy
from vqseg.active.strategy import Scorer
from vqseg.cli import main
from vqseg.data.studies import Study
from vqseg.errors import ConfigError, DataError, ImageError, TrainingError
from vqseg.simulation.arms import Arm
from vqseg.simulation.cases import Case
from vqseg.simulation.replay import Protocol, replay
from vqseg.simulation.report import CURVES_FILE, TABLE_FILE
from vqseg.simulation.rounds import Learner, Look, _read
from vqseg.simulation.simulation import RESULT_FILE, SUMMARY_FILE, Simulation, simulate

PROTOCOL = Protocol(start=1, rounds=2, picks=1)
SETTINGS = [
    "--set=data.patch_size=[8,8,8]",
    "--set=data.spacing=[2,2,2]",
    "--set=model.channels=[4,8]",
    "--set=model.first_quantized_level=1",
    "--set=model.codebook_size=16",
    "--set=model.code_dim=4",
    "--set=train.steps=2",
    "--set=active.draws=2",
]
ARMS = ["uniform", "codebook_rarity", "perturbation", "k_means:codebook_rarity", "oracle"]


@pytest.fixture(autouse=True)
def _processes_start_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(LEAN))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return write_studies(tmp_path_factory.mktemp("studies"), 7)


def simulation(studies: list[Study], out: Path, **overrides: Any) -> Simulation:
    config = tiny_config({"train.steps": 3, "active.draws": 2} | overrides)
    return Simulation(studies[:5], studies[5:], config, "vqseg", PROTOCOL, out, "cpu")


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    for one in result["replays"]:
        for step in one["steps"]:
            del step["seconds"]
    return result


def result_of(out: Path) -> dict[str, Any]:
    return without_seconds(json.loads((out / RESULT_FILE).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def done(studies: list[Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulation")
    simulate(simulation(studies, out), ARMS, range(2))
    return out


def test_every_arm_starts_from_the_same_studies_and_model(done: Path) -> None:
    replays = result_of(done)["replays"]
    assert [(one["arm"], one["seed"]) for one in replays] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    for seed in (0, 1):
        starts = [one["steps"][0] for one in replays if one["seed"] == seed]
        assert all(step["labelled"] == starts[0]["labelled"] for step in starts)
        assert all(step["scores"] == starts[0]["scores"] for step in starts)


def test_what_is_chosen_is_labelled_next_and_never_twice(done: Path, studies: list[Study]) -> None:
    pool = {study.id for study in studies[:5]}
    for one in result_of(done)["replays"]:
        steps = one["steps"]
        assert [len(step["labelled"]) for step in steps] == PROTOCOL.budgets
        for step, following in itertools.pairwise(steps):
            assert following["labelled"] == step["labelled"] + step["chosen"]
            assert following["voxels"] > step["voxels"]
            assert following["slices"] > step["slices"]
        assert len(set(steps[-1]["labelled"])) == PROTOCOL.budgets[-1]
        assert set(steps[-1]["labelled"]) <= pool
        assert steps[-1]["chosen"] == []


def test_a_step_tells_what_was_painted_and_how_long_the_choice_took(done: Path, studies: list[Study]) -> None:
    learner = simulation(studies, done).learner()
    axis = learner.config.data.slice_axis
    for one in json.loads((done / RESULT_FILE).read_text(encoding="utf-8"))["replays"]:
        for step in one["steps"]:
            painted = [learner.pool[study] for study in step["labelled"]]
            assert step["voxels"] == sum(np.count_nonzero(case.mask) for case in painted)
            assert step["slices"] == sum(case.slices(axis) for case in painted)
            assert (step["seconds"]["choose"] > 0) == bool(step["chosen"])
            assert step["seconds"]["train"] > 0


def test_progress_goes_from_the_first_choice_to_the_last(studies: list[Study], tmp_path: Path) -> None:
    seen: list[float] = []

    class Watching(Uniform):
        def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
            seen.append(pool.progress)
            return super().scorer(pool, generator)

    arm = Arm("watching", lambda settings, known: Watching(settings), lambda settings: Watching.needs)
    replay(arm, 0, Protocol(start=1, rounds=3, picks=1), simulation(studies, tmp_path).learner())
    assert list(dict.fromkeys(seen)) == [0.0, 0.5, 1.0]


def test_the_oracle_takes_the_study_that_the_model_is_worst_at(done: Path, studies: list[Study]) -> None:
    learner = simulation(studies, done).learner()
    steps = next(one["steps"] for one in result_of(done)["replays"] if one["arm"] == "oracle")
    dice = learner.round(steps[0]["labelled"], 0, Look()).dice
    left = [study for study in dice if study not in steps[0]["labelled"]]
    assert steps[0]["chosen"] == [min(left, key=lambda study: (dice[study], study))]


def test_summary_table_and_figure_are_of_the_result(done: Path) -> None:
    summary = json.loads((done / SUMMARY_FILE).read_text(encoding="utf-8"))
    assert set(summary["arms"]) == set(ARMS)
    areas = [arm["area"]["mean"] for arm in summary["arms"].values()]
    assert areas == sorted(areas, reverse=True)
    lines = (done / TABLE_FILE).read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2 : 2 + len(ARMS)]] == list(summary["arms"])
    assert (done / CURVES_FILE).read_bytes().startswith(b"\x89PNG")
    assert summary["budgets"] == PROTOCOL.budgets


def test_a_stopped_simulation_goes_on_where_it_was(
    studies: list[Study], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had done is not done again, and the end is the same as if it had never stopped."""
    made: list[list[str]] = []
    make = Learner._make

    def counted(self: Learner, ids: list[str], seed: int, look: Look | None) -> Any:
        made.append(ids)
        if len(made) == 4:
            raise KeyboardInterrupt
        return make(self, ids, seed, look)

    monkeypatch.setattr(Learner, "_make", counted)
    with pytest.raises(KeyboardInterrupt):
        simulate(simulation(studies, tmp_path), ARMS, range(2))
    assert not (tmp_path / RESULT_FILE).exists()
    kept = len(list((tmp_path / "rounds").glob("*.npz")))
    assert kept == 3
    simulate(simulation(studies, tmp_path), ARMS, range(2))
    assert len(made) == 1 + len(list((tmp_path / "rounds").glob("*.npz")))
    assert result_of(tmp_path) == result_of(done)


def test_several_processes_come_to_the_same_result(studies: list[Study], done: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    simulate(simulation(studies, tmp_path), ARMS, range(2), jobs=2, on_progress=seen.append)
    assert [status["step"] for status in seen] == list(range(1, 2 * (len(ARMS) + 1) + 1))
    assert result_of(tmp_path) == result_of(done)


def test_a_cold_start_is_chosen_by_the_arm(studies: list[Study], tmp_path: Path) -> None:
    cold = replace(simulation(studies, tmp_path), protocol=Protocol(start=0, rounds=1, picks=2))
    simulate(cold, ["uniform", "codebook_coverage", "predictive_entropy", "oracle"], range(6))
    replays = result_of(tmp_path)["replays"]
    assert [[len(step["labelled"]) for step in one["steps"]] for one in replays] == [[2, 4]] * 24
    # Who needs a model that knows structures draws the first studies.
    for arm in ("predictive_entropy", "oracle"):
        assert len({tuple(one["steps"][0]["labelled"]) for one in replays if one["arm"] == arm}) > 1
    untaught = cold.learner().round([], 0, Look())
    assert not untaught.scores
    assert not untaught.dice
    pool = untaught.pool(("left", "right"), 0.0)
    expected = make_strategy("codebook_coverage", cold.config.active).rank(pool, np.random.default_rng(0), 2).ids[:2]
    starts = {one["arm"]: one["steps"][0]["labelled"] for one in replays if one["seed"] == 0}
    assert starts["codebook_coverage"] == expected


def test_a_round_comes_back_from_disk_as_it_was(studies: list[Study], tmp_path: Path) -> None:
    first, second = (simulation(studies, tmp_path).learner() for _ in range(2))
    made, kept = (learner.round(["s02", "s01"], 0, Look(draws=2)) for learner in (first, second))
    assert made.labelled == kept.labelled == ["s01", "s02"]
    assert (made.scores, made.dice, made.seconds) == (kept.scores, kept.dice, kept.seconds)
    codes = min(first.config.perturbation.replacement_codes, first.config.model.codebook_size - 1)
    assert made.replacement_codes == kept.replacement_codes == pytest.approx(codes, rel=0.2)
    assert first.round(["s02", "s01"], 0, Look()).replacement_codes is None
    for study, signals in made.signals.items():
        for name, value in vars(signals).items():
            np.testing.assert_array_equal(value, getattr(kept.signals[study], name))


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_round_is_made_again(seed: int, studies: list[Study], tmp_path: Path) -> None:
    """Whatever bit is wrong: it is found, or it changes nothing."""
    learner = simulation(studies, tmp_path).learner()
    made = learner.round(["s01"], 0, Look())
    (file,) = (tmp_path / "rounds").glob("*.npz")
    whole, draw = file.read_bytes(), np.random.default_rng(seed)
    for position in [*draw.integers(len(whole), size=40), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.integers(8)
        file.write_bytes(damaged)
        kept = _read(file)
        assert kept is None or kept.scores == made.scores
    file.write_bytes(whole[:200])
    assert learner.round(["s01"], 0, Look()).scores == made.scores


def test_a_round_depends_on_seed_studies_settings_and_labels(studies: list[Study], tmp_path: Path) -> None:
    """Nothing that was made of something else is taken for it."""
    plain = simulation(studies, tmp_path)
    plain.learner().round(["s01"], 0)

    def files() -> int:
        return len(list((tmp_path / "rounds").glob("*.npz")))

    others = [
        lambda: plain.learner().round(["s01"], 1),
        lambda: plain.learner().round(["s02"], 0),
        lambda: plain.learner().round(["s01"], 0, Look()),
        lambda: plain.learner().round(["s01"], 0, Look(codebook="untrained")),
        lambda: simulation(studies, tmp_path, **{"train.steps": 2}).learner().round(["s01"], 0),
        lambda: replace(plain, pool=studies[:4]).learner().round(["s01"], 0),
        lambda: replace(plain, pool=studies[:4], validation=studies[4:]).learner().round(["s01"], 0),
        lambda: replace(plain, method="supervised").learner().round(["s01"], 0),
    ]
    for number, make in enumerate(others, 2):
        make()
        assert files() == number
    same = {"active.smoothing": 2, "tracking.to": ["mlflow"]}
    simulation(studies, tmp_path, **same).learner().round(["s01"], 0)
    assert files() == 1 + len(others)


def test_another_codebook_changes_the_counts_and_nothing_else(studies: list[Study], tmp_path: Path) -> None:
    learner = simulation(studies, tmp_path).learner()
    looks = {
        name: learner.round(["s01", "s02"], 0, Look(codebook=name)) for name in ("trained", "untrained", "k_means")
    }
    own = looks["trained"].signals["s03"]
    for name in ("untrained", "k_means"):
        other = looks[name].signals["s03"]
        assert other.usage.sum() == own.usage.sum()
        assert not np.array_equal(other.usage, own.usage)
        np.testing.assert_array_equal(other.entropy, own.entropy)
        assert looks[name].scores == looks["trained"].scores
    assert (looks["k_means"].signals["s03"].usage > 0).sum() > 1


def test_draws_by_dropout_change_the_disagreement_and_nothing_else(studies: list[Study], tmp_path: Path) -> None:
    learner = simulation(studies, tmp_path).learner()
    looks = [Look(draws=2, kind=kind) for kind in (None, "qpm", "dropout")]
    own, by_qpm, other = (learner.round(["s01", "s02"], 0, look) for look in looks)
    for study, signals in own.signals.items():
        np.testing.assert_array_equal(by_qpm.signals[study].disagreement, signals.disagreement)
        dropped = other.signals[study]
        assert not np.array_equal(dropped.disagreement, signals.disagreement, equal_nan=True)
        for name in {field.name for field in fields(signals)} - {"disagreement"}:
            np.testing.assert_array_equal(getattr(dropped, name), getattr(signals, name))
    assert (other.scores, other.dice, other.replacement_codes) == (own.scores, own.dice, None)


def test_cases_know_what_they_cost(studies: list[Study], tmp_path: Path) -> None:
    learner = simulation(studies, tmp_path).learner()
    case = learner.pool["s01"]
    assert isinstance(case, Case)
    assert case.foreground_voxels == np.count_nonzero(case.mask)
    assert [case.slices(axis) for axis in (0, 1, 2, None)] == [*case.mask.shape, case.mask.shape[2]]
    assert case.without_label.label is None
    assert set(learner.structures) == set(LABELS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": Protocol(start=3, rounds=2, picks=2)}, "holds 5 studies, and 7 would be labelled"),
        ({"validation": []}, "no validation study"),
        ({"method": "nothing"}, "unknown training method"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    studies: list[Study], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(simulation(studies, tmp_path), **change)


@pytest.mark.parametrize("plan", [{"start": -1}, {"rounds": 0}, {"picks": 0}])
def test_a_plan_by_which_nothing_is_chosen_is_refused(plan: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one round and one pick"):
        Protocol(**plan)


def test_a_network_without_codebook_is_refused(studies: list[Study], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.quantized"):
        simulation(studies, tmp_path, **{"model.quantized": False}).learner()


def test_every_study_needs_a_mask(studies: list[Study], tmp_path: Path) -> None:
    bare = replace(simulation(studies, tmp_path), pool=[*studies[:4], replace(studies[4], label=None)])
    with pytest.raises(DataError, match="s05: has no mask"):
        bare.learner()


def test_a_study_that_cannot_be_read_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    """Left out silently it would make the pool another one."""
    studies = write_studies(tmp_path / "data", 7)
    studies[2].image.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"s03\.nii\.gz: it cannot be read"):
        simulate(simulation(studies, tmp_path / "out"), ["uniform"], [0])
    assert not list((tmp_path / "out").glob("rounds/*"))


def test_the_error_of_a_process_is_told_in_its_own_words(studies: list[Study], tmp_path: Path) -> None:
    broken = simulation(studies, tmp_path, **{"train.learning_rate": 1e30, "train.clip_gradient": 1e30})
    with pytest.raises(TrainingError, match="not finite"):
        simulate(broken, ["uniform"], [0], jobs=2)


def test_a_seed_in_which_a_training_diverges_is_left_out_for_all_arms(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other seeds are as if it had not been tried; one arm without it would be compared with other seeds."""
    arms = ["uniform", "codebook_rarity"]
    simulate(simulation(studies, tmp_path / "without"), arms, [0])
    make = Learner._make

    def diverging(self: Learner, ids: list[str], seed: int, look: Look | None) -> Any:
        if seed == 1 and len(ids) == PROTOCOL.budgets[-1]:
            raise TrainingError("the loss is not finite")
        return make(self, ids, seed, look)

    monkeypatch.setattr(Learner, "_make", diverging)
    summary = simulate(simulation(studies, tmp_path / "with"), arms, [0, 1])
    assert summary["seeds"] == 1
    assert summary["left_out"] == {"1": "codebook_rarity: the loss is not finite"}
    assert "Seed 1 is left out" in (tmp_path / "with" / TABLE_FILE).read_text(encoding="utf-8")
    found, expected = result_of(tmp_path / "with"), result_of(tmp_path / "without")
    assert found.pop("left_out") != expected.pop("left_out")
    assert found == expected


def test_processes_end_with_a_parent_that_is_killed(studies: list[Study], tmp_path: Path) -> None:
    images = studies[0].image.parent
    command = [sys.executable, "-m", "vqseg", "simulate", "--images", images, "--labels", images.parent / "labels"]
    command += ["--out", tmp_path / "out", "--jobs", "2", "--start", "1", "--rounds", "1", "--picks", "1", *SETTINGS]
    command += ["--set=train.steps=1000000", "--arms", "uniform"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        workers: list[psutil.Process] = []
        end = time.monotonic() + 300
        while time.monotonic() < end and len(workers) < 2:
            children = psutil.Process(parent.pid).children()
            workers = [one for one in children if "spawn_main" in " ".join(one.cmdline())]
            time.sleep(0.2)
        assert len(workers) == 2
        # They have begun once a round is locked.
        while time.monotonic() < end and not list((tmp_path / "out" / "rounds").glob("*.lock")):
            time.sleep(0.2)
        parent.kill()
        psutil.wait_procs(workers, timeout=120)
    # One that has ended may be a zombie for long, where nobody takes up the orphans of a container.
    alive = [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for one in alive:
        one.kill()
    assert alive == []


def run(*arguments: object) -> Any:
    torch.manual_seed(0)
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)])


def test_the_command_line_splits_the_studies_itself(studies: list[Study], tmp_path: Path) -> None:
    folder = studies[0].image.parent.parent
    where = ["--images", folder / "images", "--labels", folder / "labels", "--out", tmp_path / "out"]
    plan = ["--start", 1, "--rounds", 1, "--picks", 1, "--seeds", 1]
    outcome = run(*where, *plan, "--arms", "uniform,length", *SETTINGS)
    assert outcome.exit_code == 0, outcome.output
    assert "uniform" in outcome.output
    result = json.loads((tmp_path / "out" / RESULT_FILE).read_text(encoding="utf-8"))
    assert len(result["pool"]) + len(result["validation"]) == len(studies)
    assert not set(result["pool"]) & set(result["validation"])


def test_the_command_line_says_what_is_wrong(studies: list[Study], tmp_path: Path) -> None:
    folder = studies[0].image.parent.parent
    where = ["--images", folder / "images", "--labels", folder / "labels", "--out", tmp_path / "out", *SETTINGS]
    outcome = run(*where, "--arms", "uniform,nothing", "--start", 1, "--rounds", 1, "--picks", 1)
    assert outcome.exit_code == 2
    assert "unknown arm 'nothing'" in outcome.output
    outcome = run(*where, "--start", 50)
    assert outcome.exit_code == 2
    assert "would be labelled in the end" in outcome.output
    assert not (tmp_path / "out" / RESULT_FILE).exists()
