"""The command line as a user meets it: what it writes, its words and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import cut_off_from_the_hub, foundation_folder, make_affine, stored, write_nifti, write_studies
from click.testing import CliRunner, Result

import vqseg
from vqseg.active.strategies import STRATEGIES
from vqseg.cli import main
from vqseg.config import option_names

SMALL = {
    "data.patch_size": "[8, 8, 8]",
    "data.spacing": "[2, 2, 2]",
    "model.channels": "[4, 8]",
    "model.first_quantized_level": "1",
    "model.codebook_size": "32",
    "model.code_dim": "4",
    "train.labelled_batch": "1",
    "train.unlabelled_batch": "1",
    "train.validate_every": "2",
    "train.checkpoint_every": "1",
    "train.mixed_precision": "false",
}
IN_2D = "data.spatial_dims=2"
COMMANDS = ("train", "predict", "rank", "evaluate", "models", "doctor", "fetch-foundation")


def run(*arguments: object) -> Result:
    """Call the command line; what is no exit but an error of ours is shown."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result


def train(folder: Path, *more: object, steps: int = 2) -> Result:
    options = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    source = ("--images", folder / "images", "--labels", folder / "labels", "--out", folder / "run")
    return run("train", *source, "--steps", steps, "--seed", 1, "--device", "cpu", *options, *more)


def write_split(folder: Path) -> Path:
    """Trains on s01..s04, of which s01 has its mask used; s05 and s06 validate."""
    content = {
        "labels": {"left": 1, "right": 2},
        "train": ["s01", "s02", "s03", "s04"],
        "val": ["s05", "s06"],
        "one": ["s01"],
    }
    (folder / "split.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "split.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by a split whose unlabelled images have no mask files at all."""
    folder = tmp_path_factory.mktemp("with spaces in its name")
    write_studies(folder, 6)
    for name in ("s02", "s03", "s04"):
        (folder / "labels" / f"{name}.nii.gz").unlink()
    result = train(folder, "--split", write_split(folder), "--labelled", "one", steps=4)
    assert result.exit_code == 0, result.output
    assert "4 steps; best Dice" in result.output
    return folder


def test_images_outside_the_labelled_subset_are_used_without_masks(trained: Path) -> None:
    status = json.loads((trained / "run" / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["labelled"], status["unlabelled"], status["left_out"]) == ("done", 1, 3, [])
    manifest = json.loads(run("models", "--store", trained / "run", "show").output)
    assert manifest["data"]["labelled"] == ["s01"]
    assert sorted(manifest["validation"]["per_study"]) == ["s05", "s06"]
    assert manifest["config"]["train"]["seed"] == 1


def test_predict_and_evaluate(trained: Path, tmp_path: Path) -> None:
    predicted = run(
        "predict", "--model", trained / "run", "--images", trained / "images", "--out", tmp_path, "--device", "cpu"
    )
    assert predicted.exit_code == 0, predicted.output
    assert "6 masks" in predicted.output
    for path in sorted((trained / "images").iterdir()):
        (image, affine), (mask, own) = stored(path), stored(tmp_path / path.name)
        assert image.shape == mask.shape
        np.testing.assert_array_equal(affine, own)
    for name in ("s02", "s03", "s04"):
        (tmp_path / f"{name}.nii.gz").unlink()
    scored = run(
        "evaluate", "--predictions", tmp_path, "--labels", trained / "labels", "--out", tmp_path / "scores.json"
    )
    assert scored.exit_code == 0, scored.output
    assert "3 cases" in scored.output
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert set(scores) == {"mean", "per_class", "per_case"}
    assert set(scores["mean"]) == {"dice", "hd95", "assd"}
    assert set(scores["per_class"]) == {"left", "right"}
    # The manifest's score is that of these very masks.
    manifest = json.loads(run("models", "--store", trained / "run", "show").output)
    cases = {case["id"]: [score["dice"] for score in case["classes"].values()] for case in scores["per_case"]}
    for name in ("s05", "s06"):
        assert np.mean(cases[name]) == pytest.approx(manifest["validation"]["per_study"][name])


def test_models(trained: Path, tmp_path: Path) -> None:
    listed = run("models", "--store", trained / "run", "list")
    assert listed.exit_code == 0
    assert sum(line.endswith("live") for line in listed.output.splitlines()) == 1
    assert run("models", "--store", trained / "run" / "models", "list").output == listed.output
    unknown = run("models", "--store", trained / "run", "rollback", "0099")
    assert unknown.exit_code == 1
    assert "0099" in unknown.output
    assert run("models", "--store", trained / "run", "show", "0099").exit_code == 1
    empty = run("models", "--store", tmp_path, "list")
    assert empty.exit_code == 0
    assert "no trained model yet" in empty.output
    assert run("models", "--store", tmp_path, "rollback").exit_code == 1
    assert run("models", "--store", tmp_path, "show").exit_code == 1


def test_resume_of_a_finished_training_and_of_none(tmp_path: Path) -> None:
    write_studies(tmp_path, 3, labelled=2)
    for _ in range(2):
        result = train(tmp_path, "--resume")
        assert result.exit_code == 0, result.output
        assert "2 steps" in result.output


def test_without_a_split_every_mask_is_used(tmp_path: Path) -> None:
    write_studies(tmp_path, 5, labelled=4)
    result = train(tmp_path)
    assert result.exit_code == 0, result.output
    status = json.loads((tmp_path / "run" / "status.json").read_text(encoding="utf-8"))
    assert (status["labelled"], status["unlabelled"]) == (3, 1)  # one of four is locked
    for line in result.stderr.splitlines():
        assert json.loads(line)["state"] == "running"


def test_one_bad_mask_does_not_fail_a_training(tmp_path: Path) -> None:
    write_studies(tmp_path, 4)
    (tmp_path / "labels" / "s02.nii.gz").write_bytes(b"no mask")
    write_nifti(tmp_path / "labels" / "s03.nii.gz", np.ones((3, 3, 3), np.uint8))
    result = train(tmp_path, "--method", "supervised")
    assert result.exit_code == 0, result.output
    assert "left out" in result.stderr
    assert "s02.nii.gz" in result.stderr
    assert "s03.nii.gz" in result.stderr


def test_a_bad_mask_of_the_validation_is_found_before_training(tmp_path: Path) -> None:
    write_studies(tmp_path, 6)
    (tmp_path / "labels" / "s06.nii.gz").write_bytes(b"no mask")
    result = train(tmp_path, "--split", write_split(tmp_path), "--labelled", "one")
    assert result.exit_code == 1
    assert "s06" in result.output
    assert not list((tmp_path / "run").glob("checkpoints/0*"))


def test_missing_masks_that_the_split_needs_are_named(tmp_path: Path) -> None:
    write_studies(tmp_path, 6)
    (tmp_path / "labels" / "s05.nii.gz").unlink()
    result = train(tmp_path, "--split", write_split(tmp_path), "--labelled", "one")
    assert result.exit_code == 1
    assert "s05" in result.output
    assert not (tmp_path / "run").exists()


def test_a_patient_that_validates_is_never_trained_on(tmp_path: Path) -> None:
    write_studies(tmp_path, 4)
    content = {"labels": {"left": 1, "right": 2}, "train": ["s01", "s02", "s03"], "val": ["s03", "s04"]}
    (tmp_path / "split.json").write_text(json.dumps(content), encoding="utf-8")
    result = train(tmp_path, "--split", tmp_path / "split.json")
    if result.exit_code == 0:
        manifest = json.loads(run("models", "--store", tmp_path / "run", "show").output)
        assert manifest["data"]["labelled"] == ["s01", "s02"]
    else:
        assert "s03" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "train.nonsense=1"), option_names()),
        (("--set", "train.steps"), ["KEY=VALUE"]),
        (("--set", "train.learning_rate=fast"), ["train.learning_rate"]),
        (("--config", "no_such_preset"), ["no_such_preset", "hippocampus_mr"]),
        (("--method", "magic"), ["magic", "vqseg", "supervised"]),
        (("--device", "abacus"), ["abacus"]),
        (("--labelled", "one"), ["--split"]),
        (("--steps", "0"), ["--steps"]),
        (("--seed", str(2**40)), ["seed"]),
        (("--nonsense",), ["--nonsense"]),
        (("--split", "nowhere.json", "--images", "no such folder"), ["no such folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_use_is_exit_code_2_and_says_what_is_known(
    arguments: tuple[str, ...], words: list[str], tmp_path: Path
) -> None:
    write_studies(tmp_path, 2, labelled=1)
    result = train(tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_missing_options(command: str) -> None:
    assert run(command, "--help").exit_code == 0
    assert command in run("--help").output
    if command != "doctor":
        assert run(command).exit_code == 2
    assert run(command, "unexpected", "arguments", "here").exit_code == 2


def test_bad_images_are_named_and_the_others_are_segmented(trained: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_nifti(
        images / "good.nii.gz", np.random.default_rng(0).normal(size=(8, 8, 8)), make_affine((8, 8, 8), (2, 2, 2))
    )
    write_nifti(images / "flat.nii.gz", np.ones((8, 8), np.float32))
    (images / "broken.nii.gz").write_bytes(b"broken")
    result = run("predict", "--model", trained / "run", "--images", images, "--out", out, "--device", "cpu")
    assert result.exit_code == 1
    assert all(words in result.output for words in ("2 of 3", "flat.nii.gz", "2 dimensions", "broken.nii.gz"))
    assert sorted(path.name for path in out.iterdir()) == ["good.nii.gz", "predictions.json"]


def rank(trained: Path, images: Path, out: Path, *more: object, strategy: str = "codebook_rarity") -> Result:
    source = ("--model", trained / "run", "--images", images, "--out", out, "--device", "cpu")
    return run("rank", *source, "--strategy", strategy, *more)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranking_says_why_and_is_the_same_again(strategy: str, trained: Path, tmp_path: Path) -> None:
    """s01, s05 and s06 have masks, so three studies are left to choose from."""
    written = []
    for out in (tmp_path / "one.json", tmp_path / "other.json"):
        result = rank(trained, trained / "images", out, "--labelled", trained / "labels", strategy=strategy)
        assert result.exit_code == 0, result.output
        written.append(json.loads(out.read_text(encoding="utf-8")))
    assert written[0] == written[1]
    ranking = written[0]
    assert (ranking["strategy"], ranking["scored"], ranking["labelled"]) == (strategy, 3, 3)
    assert [study["rank"] for study in ranking["studies"]] == [1, 2, 3]
    assert {study["id"] for study in ranking["studies"]} == {"s02", "s03", "s04"}
    assert all(study["reason"] in result.output for study in ranking["studies"])


def test_labels_that_differ_most_from_the_model_are_reviewed_first(trained: Path, tmp_path: Path) -> None:
    out, labels = tmp_path / "ranking.json", tmp_path / "labels"
    shutil.copytree(trained / "labels", labels)
    (labels / "s06.nii.gz").write_bytes(b"no mask")
    source = ("--model", trained / "run", "--images", trained / "images", "--labelled", labels, "--out", out)
    result = run("rank", *source, "--strategy", "disagreement")
    assert result.exit_code == 0, result.output
    ranking = json.loads(out.read_text(encoding="utf-8"))
    assert {study["id"] for study in ranking["studies"]} == {"s01", "s05"}
    assert list(ranking["left_out"]) == ["s06"]
    assert all("differ most at" in study["reason"] for study in ranking["studies"])


@pytest.mark.parametrize(("strategy", "parts"), [("codebook_entropy", {1, 2, 3}), ("uniform", {0})])
def test_the_first_of_a_ranking_and_what_cannot_be_read(
    strategy: str, parts: set[int], trained: Path, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "ranking.json"
    shutil.copytree(trained / "images", images)
    (images / "broken.nii.gz").write_bytes(b"broken")
    result = rank(trained, images, out, "--top", 2, strategy=strategy)
    assert result.exit_code == 0, result.output
    assert "left out" in result.output
    ranking = json.loads(out.read_text(encoding="utf-8"))
    assert (len(ranking["studies"]), ranking["scored"], list(ranking["left_out"])) == (2, 6, ["broken"])
    assert {len(study["parts"]) for study in ranking["studies"]} <= parts


@pytest.mark.parametrize("strategy", ["codebook_rarity", "typical", "uniform"])
def test_where_all_are_labelled_nothing_is_left_to_rank(strategy: str, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranking.json"
    result = rank(trained, trained / "images", out, "--labelled", trained / "images", strategy=strategy)
    assert result.exit_code == 0, result.output
    ranking = json.loads(out.read_text(encoding="utf-8"))
    assert (ranking["studies"], ranking["scored"], ranking["labelled"]) == ([], 0, 6)


def test_a_wrong_strategy_is_refused_before_any_work_with_those_there_are(trained: Path, tmp_path: Path) -> None:
    result = rank(trained, trained / "images", tmp_path / "ranking.json", strategy="best")
    assert result.exit_code == 2
    assert all(name in result.output for name in STRATEGIES)
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_codebook_ranks_by_what_it_has(tmp_path: Path) -> None:
    write_studies(tmp_path, 3, labelled=2)
    assert train(tmp_path, "--method", "supervised").exit_code == 0
    by_entropy = rank(tmp_path, tmp_path / "images", tmp_path / "o.json", strategy="predictive_entropy")
    assert by_entropy.exit_code == 0, by_entropy.output
    by_codes = rank(tmp_path, tmp_path / "images", tmp_path / "codes.json")
    assert by_codes.exit_code == 2
    assert "codebook" in by_codes.output
    assert not (tmp_path / "codes.json").exists()


def test_masks_never_replace_the_images(trained: Path, tmp_path: Path) -> None:
    write_studies(tmp_path, 1)
    before = (tmp_path / "images" / "s01.nii.gz").read_bytes()
    result = run("predict", "--model", trained / "run", "--images", tmp_path / "images", "--out", tmp_path / "images")
    assert (tmp_path / "images" / "s01.nii.gz").read_bytes() == before
    assert result.exit_code == 2


@pytest.mark.parametrize("command", ["train", "predict", "rank", "evaluate"])
def test_empty_folders_fail_in_words(command: str, trained: Path, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    result = {
        "train": lambda: train(tmp_path),
        "predict": lambda: run(
            "predict", "--model", trained / "run", "--images", tmp_path / "images", "--out", tmp_path / "o"
        ),
        "rank": lambda: rank(trained, tmp_path / "images", tmp_path / "o.json"),
        "evaluate": lambda: run(
            "evaluate",
            "--predictions",
            tmp_path / "images",
            "--labels",
            tmp_path / "labels",
            "--out",
            tmp_path / "o.json",
        ),
    }[command]()
    assert result.exit_code == 1
    assert "holds no image" in result.output


def test_training_without_any_mask_says_so(tmp_path: Path) -> None:
    write_studies(tmp_path, 2, labelled=0)
    result = train(tmp_path)
    assert result.exit_code in (1, 2)
    assert "label" in result.output


def test_model_that_is_none_is_named(tmp_path: Path) -> None:
    write_studies(tmp_path, 1)
    result = run("predict", "--model", tmp_path, "--images", tmp_path / "images", "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert "no trained model yet" in result.output
    assert not (tmp_path / "o").exists()


def environment() -> dict[str, str]:
    """For a process that runs this code, wherever else it is installed from."""
    return {**os.environ, "PYTHONPATH": str(Path(vqseg.__file__).parents[1])}


def test_program_prints_no_stack_trace_and_its_version(tmp_path: Path) -> None:
    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vqseg", *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", env=environment(), cwd=tmp_path, check=False
        )

    assert vqseg.__version__ in program("--version").stdout
    failed = program("evaluate", "--predictions", ".", "--labels", ".", "--out", "x.json")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: ")
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "x.json").exists()


def test_commands_start_without_what_monai_alone_would_import() -> None:
    code = """
import sys
from vqseg.monai_import import import_monai
import_monai()
from vqseg import metrics
from vqseg.training import run
assert not {"ignite", "mlflow", "transformers"} & set(sys.modules), "imported, or hidden from who asks later"
import ignite
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["nobody/has-this-model", "no such model", "a/b/c"])
@pytest.mark.parametrize("beforehand", ["nothing", "an empty folder", "another model", "a file of somebody"])
def test_a_foundation_model_that_cannot_be_fetched_leaves_the_folder_as_it_was(
    beforehand: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off_from_the_hub(monkeypatch)
    folder = tmp_path / "parent" / "model"
    if beforehand != "nothing":
        folder.mkdir(parents=True)
    if beforehand == "another model":
        foundation_folder(folder)
    elif beforehand == "a file of somebody":
        (folder / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    result = run("fetch-foundation", name, folder)
    assert contents(tmp_path) == before
    assert folder.exists() == (beforehand != "nothing")
    assert result.exit_code == 2, result.output
    assert name in result.output
    assert "cannot be fetched" in result.output
    assert f"{name} is in" not in result.output


def test_a_foundation_model_does_not_take_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert run("fetch-foundation", "nobody/has-this-model", tmp_path / "file").exit_code == 2
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_training_with_a_foundation_model_that_is_not_there_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off_from_the_hub(monkeypatch)
    write_studies(tmp_path, 3, labelled=2)
    for setting in (
        ("--set", "foundation.name=nobody/has-this-model"),
        ("--set", "model.backbone=dinov2", "--set", "model.pretrained=nobody/has-this-model", "--set", IN_2D),
    ):
        result = train(tmp_path, *setting, "--set", "data.patch_size=null")
        assert result.exit_code == 2, result.output
        assert "nobody/has-this-model" in result.output
        assert "vqseg fetch-foundation" in result.output
