"""docs/reference says what the code says: options, commands, routes and metrics."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from servers import ROOT, environment

from vqseg.cli import main

PAGES = ("options", "command_line", "routes", "metrics")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, ROOT / "scripts" / "make_reference", "--out", folder]
    made = subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_what_the_code_says(written: Path, page: str) -> None:
    kept = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    made = (written / f"{page}.md").read_text(encoding="utf-8")
    assert made == kept, f"docs/reference/{page}.md is out of date: run .venv/bin/python scripts/make_reference"


def test_every_option_of_the_command_line_says_what_it_means() -> None:
    def silent(command: click.Command) -> list[str]:
        if isinstance(command, click.Group):
            return [name for inner in command.commands.values() for name in silent(inner)]
        options = [one for one in command.params if isinstance(one, click.Option)]
        return [f"{command.name} {one.opts[0]}" for one in options if not one.help]

    assert silent(main) == []


def test_scripts_serve_says_what_it_takes() -> None:
    script = ROOT / "scripts" / "serve"
    taken = re.findall(r"^ +(--[a-z]+)\) ", script.read_text(encoding="utf-8"), re.MULTILINE)
    shown = subprocess.run([script, "--help"], capture_output=True, encoding="utf-8", check=True).stdout
    assert {"--pacs", "--load", "--conf"} <= set(taken)
    assert set(re.findall(r"^  (--[a-z]+)", shown, re.MULTILINE)) == set(taken)


def metrics_in(source: str) -> Iterator[str]:
    """Names of the metrics that a source makes; of one that is put together in a loop, the name of each turn."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and re.fullmatch(r"vqseg_\w*[a-z]", str(node.value)):
            yield node.value
    for loop in (node for node in ast.walk(tree) if isinstance(node, ast.For)):
        for name in (node for node in ast.walk(loop) if isinstance(node, ast.JoinedStr)):
            assert isinstance(loop.iter, ast.Tuple), "a test reads the names where the loop begins: list them there"
            for turn in loop.iter.elts:
                words = [part if isinstance(part, ast.Constant) else turn.elts[0] for part in name.values]
                yield "".join(word.value for word in words)


def test_every_metric_that_can_be_made_is_on_its_page() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(vqseg_\w+)`", page, re.MULTILINE))
    made = set(metrics_in((ROOT / "vqseg_app" / "lib" / "metrics.py").read_text(encoding="utf-8")))
    assert {"vqseg_request_seconds", "vqseg_model", "vqseg_training_epoch"} <= made
    assert {name for name in made if not {name, f"{name}_info", f"{name}_total"} & listed} == set()
