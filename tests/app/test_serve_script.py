"""`scripts/serve` is started, and the four curl lines that it prints are sent as they stand."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Set
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from curl import CurlLine
from serve_script import needs_its_environment, served
from servers import ROOT, TINY, Server

pytestmark = needs_its_environment


def go_round(server: Server, lines: list[CurlLine], image: str, unlabelled: Set[str]) -> Path:
    """Train, segment, submit and choose; returns the mask of `image`, which stands in for the `ID` of a line."""
    train, infer, submit, choose = lines
    assert {line.url.split("/")[2] for line in lines} == {server.url.removeprefix("http://")}
    assert train.send(str).ok
    done = server.wait(lambda stats: stats["state"] in ("done", "failed"), 240)
    assert done["state"] == "done", done
    for line in (infer, submit):
        answer = line.send(lambda url: url.replace("image=ID", f"image={image}"))
        assert answer.ok, answer.text
    chosen = choose.send(str)
    assert chosen.ok, chosen.text
    submitted = submit.url.partition("image=")[2].replace("ID", image)
    assert chosen.json()["id"] in unlabelled - {submitted}
    assert infer.out is not None
    return infer.out


def lies_on(mask: Path, image: Path) -> bool:
    found, expected = nib.load(mask), nib.load(image)
    values = np.unique(np.asarray(found.dataobj))
    return found.shape == expected.shape and np.allclose(found.affine, expected.affine) and set(values) <= {0, 1, 2}


@pytest.mark.slow
def test_studies_of_ones_own(tiny_studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tiny_studies / "labels.json").unlink()  # else `--labels` would have nothing to say
    arguments = ["--studies", tiny_studies.name, "--labels", "lung,tumour"]
    with served(ROOT, tmp_path, arguments, {**TINY, "model_dir": str(tmp_path / "run")}) as (server, lines):
        assert server.get("/info/").json()["labels"] == ["lung", "tumour"]
        mask = go_round(server, lines, "case_04", {f"case_{number:02d}" for number in range(3, 8)})
        assert lies_on(mask, tiny_studies / "case_04.nii.gz")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the script needs, so that the demonstration leaves nothing in the repository. The environment is
    the one here, which counts as set up for the copy: a real set-up asks the package index and takes minutes."""
    root = tmp_path / "tree"
    for name in ("scripts", "vqseg_app", "apps", "lib"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "model", "logs", "bin"))
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, root)
    (root / ".venv").mkdir()
    for entry in (ROOT / ".venv").iterdir():
        if not entry.name.startswith("."):
            (root / ".venv" / entry.name).symlink_to(entry)
    # The script's own function says what an installation depends on.
    line = 'root=$PWD; eval "$(grep "^wanted()" scripts/setup_environment)"; wanted requirements.txt'
    marker = subprocess.run(["bash", "-c", line], cwd=root, capture_output=True, encoding="utf-8", check=True)
    (root / ".venv" / ".installed-run").write_text(marker.stdout, encoding="utf-8")
    return root


@pytest.mark.long
def test_demonstration_studies(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with served(tree, tmp_path, [], TINY, seconds=240) as (server, lines):
        assert "image=phantom_04&" in lines[1].url
        mask = go_round(server, lines, "", {f"phantom_{number:02d}" for number in range(4, 13)})
        assert lies_on(mask, tree / "demo" / "studies" / "phantom_04.nii.gz")
    assert len(os.listdir(tree / "demo" / "reference")) == 12


@pytest.mark.long
def test_demonstration_studies_in_a_pacs(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None:
        pytest.skip("Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)")
    monkeypatch.chdir(tmp_path)
    with served(tree, tmp_path, ["--pacs"], TINY, seconds=240) as (server, lines):
        images = server.get("/datastore/", output="all").json()["objects"]
        unlabelled = {name for name, entry in images.items() if not entry["labels"]}
        assert (len(images), len(unlabelled)) == (12, 9)
        go_round(server, lines, min(unlabelled), unlabelled)
    assert (tree / "pacs" / "run" / "models" / "live.json").exists()
