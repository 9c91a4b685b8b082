"""The scripts behind the table of methods, on rows made by hand."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from builders import write_studies

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def row(name: str, labelled: str, patients: int, dice: float, seed: int = 0) -> dict[str, Any]:
    return {
        "table": "methods",
        "name": name,
        "data": "acdc",
        "labelled": labelled,
        "patients": patients,
        "seed": seed,
        "dice": dice,
        "hd95": 3.0,
        "assd": 1.0,
        "curve": {"10": dice / 2, "20": dice},
        "steps": 20,
        "training_minutes": 1.0,
        "commit": "abc",
        "folder": f"{name}-{seed}",
    }


def run(name: str, *arguments: object) -> None:
    """As a command, in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def report(rows: list[dict[str, Any]], folder: Path, *more: object) -> str:
    path = folder / "segmentation_cpu.json"
    path.write_text(json.dumps({str(number): one for number, one in enumerate(rows)}), encoding="utf-8")
    run("report_segmentation", path, *more)
    plt.close("all")
    return path.with_suffix(".md").read_text(encoding="utf-8")


def test_gap_is_closed_towards_the_same_network_on_all_masks(tmp_path: Path) -> None:
    rows = [row("supervised", "few", 3, 0.5), row("vqseg", "few", 3, 0.6), row("supervised", "train", 70, 0.9)]
    rows += [row("vqseg", "more", 7, 0.99)]
    text = report(rows, tmp_path)
    assert "| acdc | 3 | vqseg | 1 | 0.6000 | 25% |" in text
    assert "(segmentation_cpu_methods.png)" in text
    assert (tmp_path / "segmentation_cpu_methods.png").stat().st_size > 1000


def test_rates_are_drawn_beside_their_table(tmp_path: Path) -> None:
    ways = (("QPM 0.1", 0.6), ("QPM 0.9", 0.5), ("dropout 0.1", 0.6), ("dropout 0.9", 0.3))
    rows = [row(name, "few", 3, dice, seed) | {"table": "rates"} for name, dice in ways for seed in (0, 1)]
    text = report(rows, tmp_path)
    assert "| acdc | 3 | dropout 0.9 | 2 | 0.3000 ± 0.0000 |" in text
    assert "(segmentation_cpu_rates.png)" in text
    assert (tmp_path / "segmentation_cpu_rates.png").stat().st_size > 1000


def test_the_table_says_that_there_was_no_gpu_until_there_is_one(tmp_path: Path) -> None:
    rows = [row("supervised", "few", 3, 0.5)]
    assert "--budget gpu" in report(rows, tmp_path)
    (tmp_path / "segmentation_gpu.json").write_text("{}", encoding="utf-8")
    assert "--budget gpu" not in report(rows, tmp_path)


def test_no_gap_is_claimed_before_all_masks_were_trained_on(tmp_path: Path) -> None:
    rows = [row("supervised", "few", 3, 0.5), row("vqseg", "few", 3, 0.6), row("vqseg", "more", 7, 0.7)]
    text = report([*rows, row("vqseg", "few", 3, 0.8, seed=1)], tmp_path)
    assert "%" not in text
    assert "| acdc | 3 | vqseg | 2 | 0.7000 \u00b1 0.1414 |" in text


def test_a_method_that_lacks_seeds_stands_below_the_table(tmp_path: Path) -> None:
    rows = [row("cutmix", "few", 3, dice, seed=seed) for seed, dice in enumerate((0.6, 0.8))]
    table, _, below = report([*rows, row("vqseg", "few", 3, 0.9, seed=1)], tmp_path).partition("Not whole yet")
    assert "| cutmix | 2 | 0.7000 ± 0.1414 |" in table
    assert "vqseg" not in table
    assert "| acdc | 3 | vqseg | 1 | 0.9000 | cutmix 0.8000 |" in below


def test_one_row_alone_is_reported(tmp_path: Path) -> None:
    assert "| acdc | 3 | supervised | 1 | 0.5000 |" in report([row("supervised", "few", 3, 0.5)], tmp_path)


def test_rows_that_were_made_elsewhere_have_no_examples(tmp_path: Path) -> None:
    rows = [row("supervised", "few", 3, 0.5), row("vqseg", "few", 3, 0.6)]
    assert "0.6000" in report(rows, tmp_path, "--work", tmp_path / "work")


def test_examples_show_the_masks_that_were_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made elsewhere is left out; real images are not ours to publish and stay in the folder of the runs."""
    data, work = tmp_path / "data" / "acdc", tmp_path / "work"
    study = write_studies(data, 1)[0]
    assert study.label is not None
    monkeypatch.setenv("VQSEG_DATA", str(data.parent))
    rows = [
        row(name, "few", 3, 0.5) | {"per_class": {"left": 0.5, "right": 0.5}} for name in ("vqseg", "bcp", "cutmix")
    ]
    for made in rows[:2]:
        masks = work / made["folder"] / "masks"
        masks.mkdir(parents=True)
        shutil.copy(study.label, masks)
    report(rows, tmp_path, "--work", work)
    assert (work / "examples.png").stat().st_size > 1000
    assert not list(tmp_path.glob("*examples*"))


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_every_row_has_settings_that_are_valid_and_its_own(budget: str) -> None:
    """A row is known by what it trains: two rows never share an identity, and every row can be planned."""
    script = runpy.run_path(str(SCRIPTS / "benchmark_segmentation"), run_name="script")
    rows = [made for seed in (0, 1) for table in script["TABLES"].values() for made in table(seed)]
    rows += script["guided"](0, "folder/of a model")
    identities = [script["identity"](made, budget) for made in rows if made.name not in SAME_AS_VQSEG]
    assert len(set(identities)) == len(identities)
    assert len({made.key for made in rows}) == len(rows)


def test_a_row_stays_the_same_however_it_is_tracked_and_whichever_study_is_chosen_next() -> None:
    script = runpy.run_path(str(SCRIPTS / "benchmark_segmentation"), run_name="script")
    made = script["methods"](0)[0]
    watched = replace(made, settings={**made.settings, "tracking.to": ["mlflow"], "active.tokens": 16})
    assert script["identity"](watched, "cpu") == script["identity"](made, "cpu")
    assert script["identity"](replace(made, seed=1), "cpu") != script["identity"](made, "cpu")


SAME_AS_VQSEG = {"base + QPM + dual branch"}


def test_the_development_split_scores_training_patients_that_no_method_sees() -> None:
    split = {"labels": {"a": 1}, "train": ["p1", "p2", "p3", "p4"], "labelled_3": ["p1", "p3"], "val": ["p9"]}
    found = runpy.run_path(str(SCRIPTS / "benchmark_segmentation"))["development_split"](split, 2)
    assert found == {"labels": {"a": 1}, "train": ["p1", "p2"], "labelled_3": ["p1"], "val": ["p3", "p4"]}


def test_settings_are_tried_while_developing_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tried, words in (("perturbation.rate=0.5", "with --develop"), ("perturbation.rate", "expected KEY=VALUE")):
        with pytest.raises(SystemExit) as ended:
            run("benchmark_segmentation", "--budget", "cpu", "--work", tmp_path, "--set", tried)
        assert ended.value.code == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
