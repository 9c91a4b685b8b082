"""docs/reference says what the code says: options, commands, routes and metrics."""

from __future__ import annotations

import subprocess
import sys
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
    made = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
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
