"""docs/how-to/back_up.md: its commands make a copy that another server takes for its own, and it names every file."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from documentation import blocks
from serve_script import needs_its_environment, served
from servers import APP, ROOT, TINY, Server, python_module, serve

from vqseg.cli import main
from vqseg.tokens import AccountFile

PAGE = ROOT / "docs" / "how-to" / "back_up.md"
PACK, UNPACK, START = (list(block.commands()) for block in blocks("bash") if block.page == PAGE)
IMAGE = "case_04"
NAMES = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]


def in_table() -> dict[str, bool]:
    """What the page says a training's folder holds, and whether it is to be kept."""
    rows = re.findall(r"^\| (`.*?) \| .* \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.rstrip("/"): kept != "no" for names, kept in rows for name in re.findall(r"`([^`]+)`", names)}


def test_the_table_names_whatever_a_training_and_a_server_leave(trained: Server) -> None:
    trained.wait(lambda stats: "report" in stats)
    assert trained.infer(IMAGE).ok
    assert {path.name for path in trained.run.iterdir()} - set(in_table()) == set()


def test_what_is_left_out_of_a_copy_is_what_need_not_be_kept() -> None:
    left_out = {word.removeprefix("--exclude=./") for words in PACK for word in words if word.startswith("--exclude")}
    assert left_out == {name for name, kept in in_table().items() if not kept} - {"lock"}  # which is empty


def run(lines: Iterable[list[str]], folder: Path) -> None:
    for words in lines:
        subprocess.run(words, cwd=folder, check=True)


def told(server: Server) -> dict[str, Any]:
    """What the copy must say as the original did."""
    training = server.get("/vqseg/training").json()
    mask = server.infer(IMAGE, output="image")
    assert mask.ok, mask.text
    return {
        "models": server.get("/vqseg/models").json(),
        "labels": {image: server.get(f"/vqseg/labels/{image}").json() for image in ("case_00", IMAGE)},
        "trainings": training["trainings"],
        "reports": training["reports"],
        "label": server.get("/datastore/label", label=IMAGE, tag="final").content,
        "mask": mask.content,
    }


@pytest.mark.slow
@needs_its_environment
def test_a_server_that_was_backed_up_goes_on_elsewhere(
    tiny_studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    tiny_studies.rename(old / "DIR")
    token = AccountFile(old / "accounts.json").add("anna", "admin")
    conf = {**TINY, "accounts": str(old / "accounts.json")}
    with serve(python_module(), str(APP), old / "DIR", old, old, conf, token=token) as server:
        assert server.post("/train/vqseg").ok
        done = server.wait(lambda stats: stats["state"] in ("done", "failed") and "report" in stats, 240)
        assert done["state"] == "done", done
        (old / "mask.nii.gz").write_bytes(server.infer(IMAGE, output="image").content)
        for _ in range(2):
            assert server.put_label(IMAGE, old / "mask.nii.gz", NAMES).ok
        before = told(server)
    assert before["models"]["live"]
    assert len(before["labels"][IMAGE]) == 2

    (old / "RUN").symlink_to(server.run)
    run(PACK, old)
    for name in ("studies.tar.gz", "training.tar.gz", "accounts.json"):
        shutil.copy(old / name, new)
    old.rename(tmp_path / "gone")
    run(UNPACK, new)
    ((script, *arguments),) = START
    assert script == "scripts/serve"
    with served(ROOT, new, arguments, {}, token=token) as (moved, _):
        assert told(moved) == before
        health = moved.get("/vqseg/health").json()
        assert health["ready"], health
        assert moved.used_with("").get("/info/").status_code == 401
    kept = tmp_path / "gone" / "run" / "split.json"
    assert (new / "RUN" / "split.json").read_bytes() == kept.read_bytes()
    monkeypatch.chdir(new)
    listed = CliRunner().invoke(main, ["models", "--store", "RUN", "list"]).output.splitlines()
    assert [line.split()[0] for line in listed if line.endswith("live")] == [before["models"]["live"]]
