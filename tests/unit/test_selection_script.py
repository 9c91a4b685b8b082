"""scripts/benchmark_selection: the pool that it makes harder, and seeds that are made one after another."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import stored, tiny_config, write_studies

from vqseg.active.strategies import STRATEGIES
from vqseg.config import Active
from vqseg.errors import TrainingError
from vqseg.files import read_json
from vqseg.simulation.arms import arm_names
from vqseg.simulation.claim import RIVALS
from vqseg.simulation.replay import Protocol
from vqseg.simulation.simulation import RESULT_FILE, Simulation, simulate
from vqseg.simulation.summary import summarize

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark_selection"


def test_a_share_of_the_pool_is_degraded_and_nothing_else(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "degraded"
    studies = write_studies(source, 14)
    split = {
        "labels": {"left": 1, "right": 2},
        "train": [s.id for s in studies[:10]],
        "val": [s.id for s in studies[10:]],
    }
    (source / "splits.json").write_text(json.dumps(split), encoding="utf-8")
    script = runpy.run_path(str(SCRIPT))
    script["degrade"](source, folder)
    changed = []
    for study in studies:
        (before, affine), (after, kept) = stored(study.image), stored(folder / "images" / study.image.name)
        np.testing.assert_array_equal(affine, kept)
        if not np.array_equal(before, after):
            changed.append(study.id)
            assert after.shape == before.shape
            assert np.isfinite(after).all()
            assert np.abs(after - before).mean() > 0.02 * before.std()
        assert study.label is not None
        assert (folder / "labels" / study.label.name).read_bytes() == study.label.read_bytes()
    assert len(changed) == round(script["DEGRADED_SHARE"] * 10)
    assert set(changed) <= set(split["train"])


def test_every_way_to_degrade_changes_an_image_and_keeps_its_shape() -> None:
    image = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    ways = runpy.run_path(str(SCRIPT))["DEGRADATIONS"]
    results = [way(image, np.random.default_rng(1)) for way in ways]
    for result in results:
        assert result.shape == image.shape
        assert np.corrcoef(result.ravel(), image.ravel())[0, 1] < 0.99
    inverted = results[0]
    assert np.corrcoef(inverted.ravel(), image.ravel())[0, 1] < -0.99


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    for arm in summary["arms"].values():
        del arm["seconds"]
    return summary


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    """All that stands in values for JSON, by its path."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if inner is None:
        return {path: values}
    return {place: value for key, one in inner for place, value in leaves(one, f"{path}/{key}").items()}


def test_seeds_made_one_by_one_say_what_they_say_together_and_are_not_made_again(tmp_path: Path) -> None:
    studies = write_studies(tmp_path / "data", 5)
    config = tiny_config({"train.steps": 1, "active.draws": 2})

    def simulation(folder: Path) -> Simulation:
        return Simulation(studies[:4], studies[4:], config, "vqseg", Protocol(1, 2, 1), folder, "cpu")

    script = runpy.run_path(str(SCRIPT))
    kept, arms = tmp_path / "kept.json", arm_names(script["SHOWN"])
    for seed in (0, 1):
        script["make_seed"](simulation(tmp_path / "rounds"), kept, seed, arms, 1)
    both = simulation(tmp_path / "rounds")
    simulate(both, arms, (0, 1))
    stored = read_json(kept) or {}
    result = read_json(both.out / RESULT_FILE) or {}
    assert set(stored["seeds"]) == {"0", "1"}
    assert all(seed["device"] == "cpu" and seed["round_seconds"] > 0 for seed in stored["seeds"].values())
    assert without_seconds(stored["summary"]) == without_seconds(summarize(result))
    assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    # Elsewhere, where no round is at hand, nothing is trained.
    before = kept.read_bytes()
    script["make_seed"](simulation(tmp_path / "elsewhere"), kept, 0, arms, 1)
    assert kept.read_bytes() == before
    assert not (tmp_path / "elsewhere" / "rounds").exists()
    assert "The rule is" in stored["claim"]


def test_seeds_of_other_settings_arms_or_protocol_are_not_taken_for_these(tmp_path: Path) -> None:
    studies = write_studies(tmp_path / "data", 5)
    identity_of = runpy.run_path(str(SCRIPT))["identity_of"]

    def identity(arms: list[str], rounds: int = 2, **settings: Any) -> str:
        config = tiny_config({"train.steps": 1} | settings)
        run = Simulation(studies[:4], studies[4:], config, "vqseg", Protocol(1, rounds, 1), tmp_path / "out", "cpu")
        return str(identity_of(run, arms))

    same = identity(["uniform"])
    assert identity(["uniform"]) == same
    others = [identity(["uniform", "length"]), identity(["uniform"], rounds=1)]
    others += [identity(["uniform"], **sets) for sets in ({"active.balanced_power": 9.0}, {"train.steps": 2})]
    assert same not in others
    # What a server asks by default does not undo what it follows from.
    assert identity(["uniform"], **{"active.strategy": "uniform", "active.reserve_minutes": 1.0}) == same


def test_what_chooses_a_strategy_and_what_shows_it_have_no_seed_and_no_validation_study_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(SCRIPT))
    studies = [study.id for study in write_studies(tmp_path / "hippocampus", 25)]
    split = {"labels": {"left": 1, "right": 2}, "train": studies[:20], "val": studies[20:]}
    (tmp_path / "hippocampus" / "splits.json").write_text(json.dumps(split), encoding="utf-8")
    monkeypatch.setitem(script["simulation"].__globals__, "DATA", tmp_path)
    for trained in script["TRAINED"]:
        chosen = set(script["seeds_of"](script["DEVELOPMENT"], trained))
        assert all(chosen.isdisjoint(script["seeds_of"](pool, trained)) for pool in script["HELD_OUT"])
        pools = ("hippocampus", "hippocampus_degraded")
        parts = [[s.id for s in script["simulation"](p, trained, tmp_path / "work", "cpu").validation] for p in pools]
        assert sorted(parts[0] + parts[1]) == studies[20:]


def test_nothing_is_claimed_before_all_seeds_are_made_with_the_strategy_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(script["held_out_verdict"].__globals__, "REFERENCE", tmp_path)
    trained = "semi-supervised"

    def verdict(shown: str, left_out: int = 0, more: int = 0, *, fails: str = "", alike: bool = True) -> str:
        for pool in script["POOLS"]:
            made = script["seeds_of"](pool, trained)
            seeds = {str(seed): {} for seed in range(made.start + left_out, made.stop + more)}
            kept = {"seeds": seeds, "shown": shown, "holds": pool != fails, "rules": "" if alike else pool}
            (tmp_path / f"selection_{pool}_{trained}.json").write_text(json.dumps(kept), encoding="utf-8")
        return str(script["held_out_verdict"]())

    assert "nothing is claimed" in script["held_out_verdict"]()
    assert "nothing is claimed" in verdict(script["SHOWN"], 1)
    assert "nothing is claimed" in verdict(script["SHOWN"], more=1)
    assert "nothing is claimed" in verdict(script["SHOWN"], alike=False)
    assert "nothing is claimed" in verdict("another")
    assert verdict(script["SHOWN"]).endswith(": met.")
    for pool in script["HELD_OUT"]:
        assert verdict(script["SHOWN"], fails=pool).endswith(": not met.")


def without_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's `main`, which would find no image and overwrite no result if it did what it is to refuse."""
    main = runpy.run_path(str(SCRIPT))["main"]
    for name in ("DATA", "REFERENCE"):
        monkeypatch.setitem(main.__globals__, name, folder / "none")
    return main


@pytest.mark.parametrize("change", [["--set", "active.balanced_power=9"], ["--start", "0"], ["--rounds", "1"]])
@pytest.mark.parametrize("others", [["--arms", "uniform", "--pools", "acdc"], ["--pools", "hippocampus"]])
def test_nothing_is_tuned_on_a_held_out_pool_and_the_study_keeps_its_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    others: list[str],
    change: list[str],
) -> None:
    main = without_data(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--work", str(tmp_path / "work"), *others, *change])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert change[0] in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "work").exists()


def test_held_out_pools_are_not_looked_at_before_all_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = without_data(tmp_path, monkeypatch)
    monkeypatch.setitem(main.__globals__, "commit", lambda: "0123456-dirty")
    for pool in main.__globals__["HELD_OUT"]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--work", str(tmp_path / "work"), "--pools", pool])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert "commit first" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_seed_that_diverges_is_named_and_counts_for_no_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = write_studies(tmp_path / "data", 5)
    run = Simulation(studies[:4], studies[4:], tiny_config({}), "vqseg", Protocol(1, 2, 1), tmp_path / "rounds", "cpu")
    script = runpy.run_path(str(SCRIPT))

    def diverges(*ignored: object) -> None:
        raise TrainingError("the loss is not finite")

    monkeypatch.setitem(script["make_seed"].__globals__, "simulate", diverges)
    script["make_seed"](run, tmp_path / "kept.json", 3, ["uniform"], 1)
    stored = read_json(tmp_path / "kept.json") or {}
    assert stored["seeds"]["3"]["left_out"] == {"3": "the loss is not finite"}
    assert "summary" not in stored


def test_the_tables_that_are_kept_are_those_of_the_results_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(SCRIPT))
    kept = script["REFERENCE"]
    for path in kept.glob("selection_*.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert leaves(stored["summary"]) == pytest.approx(leaves(summarize(script["together"](stored))), nan_ok=True)
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_tables = script["write_tables"]
    monkeypatch.setitem(write_tables.__globals__, "REFERENCE", tmp_path)
    pages = [(kept / page).read_text(encoding="utf-8") for page in ("selection_tables.md", "selection.md")]
    row = next(line for line in pages[1].splitlines() if line.startswith("| **typical**"))
    assert f"{script['TABLE_BEGINS']}\n| arm |" in pages[1]
    (tmp_path / "selection.md").write_text(pages[1].replace(row, "| another row |"), encoding="utf-8")
    write_tables()
    assert [(tmp_path / page).read_text(encoding="utf-8") for page in ("selection_tables.md", "selection.md")] == pages


def test_the_strategy_that_the_rule_chooses_is_shown() -> None:
    """The largest mean area on the development pool, of those that are not the rivals of the claim."""
    script = runpy.run_path(str(SCRIPT))
    name = f"selection_{script['DEVELOPMENT']}_{next(iter(script['TRAINED']))}.json"
    arms = json.loads((script["REFERENCE"] / name).read_text(encoding="utf-8"))["summary"]["arms"]
    areas = {name: arms[name]["area"]["mean"] for name in STRATEGIES if name not in RIVALS}
    assert script["SHOWN"] == max(areas, key=areas.__getitem__)


def test_a_server_asks_by_default_for_what_came_out_best_over_all_pools() -> None:
    """By the mean over the pools of what its area has beyond that of `uniform`: a choice, which claims nothing."""
    script = runpy.run_path(str(SCRIPT))
    beyond = dict.fromkeys(STRATEGIES, 0.0)
    for pool in script["POOLS"]:
        path = script["REFERENCE"] / f"selection_{pool}_{next(iter(script['TRAINED']))}.json"
        arms = json.loads(path.read_text(encoding="utf-8"))["summary"]["arms"]
        for name in STRATEGIES:
            beyond[name] += arms[name]["area"]["mean"] - arms["uniform"]["area"]["mean"]
    assert Active().strategy == max(beyond, key=beyond.__getitem__)
