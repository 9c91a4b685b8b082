"""The commands of README.md and docs/: each is checked, run, or stands in `UNCHECKED` with the reason.

Here `vqseg ...` is parsed by the real command line, with its settings, method and strategy, in the prose as well. What
is run: `vqseg` and Python in test_documented_runs.py, `curl` in test_documented_requests.py, `scripts/serve` in
test_serve_script.py, and whatever stands in `docs/how-to/back_up.md` in test_back_up.py.
"""

from __future__ import annotations

import argparse
import itertools
import runpy
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from documentation import Block, blocks, inline_code
from servers import ROOT

from vqseg.active.strategies import make_strategy
from vqseg.cli import main
from vqseg.config import load_config
from vqseg.errors import VQSegError
from vqseg.training.methods import check_method

UNCHECKED = {
    "apt-get": "changes the machine that runs the tests",
    "export": "the settings of an identity provider, which tests/app/test_oidc.py sets",
    "monailabel": "how most tests of tests/app start their server",
    ".": "activates an environment",
    "tensorboard": "a page of another program, which tests/unit/training/test_tracking.py reads the files for",
    "mlflow": "a page of another program, as tensorboard",
    "scripts/setup_environment": "makes the environment in which the tests run",
}
BACK_UP = ROOT / "docs" / "how-to" / "back_up.md"


def of_language(language: str, found: Any = lambda block: True) -> Any:
    return pytest.mark.parametrize("block", [one for one in blocks(language) if found(one)], ids=str)


def has(*programs: str) -> Any:
    return lambda block: any(words[0] in programs for words in block.commands())


# --- every block ---


@of_language("bash")
def test_every_command_is_of_a_kind_that_is_checked(block: Block) -> None:
    for words in block.commands():
        script = words[1] if words[0] == ".venv/bin/python" else words[0]
        known = script in ("vqseg", "curl", *UNCHECKED) or script.startswith("scripts/")
        assert known or block.page == BACK_UP, f"{block}: {' '.join(words)}: check it, or say in UNCHECKED why not"


def test_no_reason_stands_for_nothing() -> None:
    used = {words[0] for block in blocks("bash") for words in block.commands()}
    assert set(UNCHECKED) - used == set()


# --- scripts ---


@of_language("bash", has("scripts/serve", "scripts/test", ".venv/bin/python", "monailabel"))
def test_scripts_have_the_options_that_are_shown(block: Block, app_module: Any) -> None:
    for words in block.commands():
        words = words[1:] if words[0] == ".venv/bin/python" else words
        if words[0] in ("scripts/serve", "monailabel"):
            app_module("options").read_options(conf_of(words))
        if not words[0].startswith("scripts/") or words[0] in UNCHECKED:
            continue
        source = (ROOT / words[0]).read_text(encoding="utf-8")
        if "python" in source.partition("\n")[0]:
            read_arguments(block, words)
            continue
        if words[0] == "scripts/test":  # its arguments are pytest's
            source += "-m"
        missing = [word for word in words if word.startswith("-") and word.split("=")[0] not in source]
        assert missing == [], f"{block}: {words[0]} has no {missing}"


class ParsedError(Exception):
    """The arguments of a script were taken."""


def read_arguments(block: Block | str, words: list[str]) -> None:
    """Run a script as far as its own parser."""
    parse = argparse.ArgumentParser.parse_args

    def and_no_further(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", and_no_further)
        patch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
        patch.setattr(sys, "path", [*sys.path])  # scripts add to it
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except ParsedError:
            return
        except SystemExit:
            pass
    pytest.fail(f"{block}: {' '.join(words)} is not what the script takes")


@pytest.mark.parametrize("line", ["scripts/benchmark_load --minute", "scripts/benchmark_step --rounds many"])
def test_a_line_that_a_script_does_not_take_is_found(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(pytest.fail.Exception):
        read_arguments("here", line.split())


def conf_of(words: list[str]) -> dict[str, str]:
    found = {words[at + 1]: words[at + 2] for at, word in enumerate(words) if word == "--conf"}
    if "--labels" in words:
        found["labels"] = words[words.index("--labels") + 1]
    return found


# --- vqseg ---


@of_language("bash", has("vqseg"))
def test_the_command_line_takes_what_is_shown(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in block.commands():
        if words[0] == "vqseg":
            try:
                check(words[1:])
            except (click.ClickException, VQSegError) as error:
                pytest.fail(f"{block}: {' '.join(words)}: {error}")


@pytest.mark.parametrize(
    "line",
    [
        "train --images DIR --out RUN",
        "train --images DIR --labels DIR --out RUN --step 3",
        "train --images DIR --labels DIR --out RUN --set train.step=3",
        "train --images DIR --labels DIR --out RUN --config nowhere",
        "train --images DIR --labels DIR --out RUN --method unet",
        "rank --model RUN --images DIR --strategy best --out ranking.json",
        "models --store RUN remove",
        "tokens list",
    ],
)
def test_a_wrong_command_is_found(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((click.ClickException, VQSegError)):
        check(line.split())


def check(words: list[str]) -> None:
    """Parse without running. A folder that must be there is made first, whatever its name."""
    context, command = click.Context(main, info_name="vqseg"), main
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, context, info_name=name)
    flags = {flag: one for one in command.params if isinstance(one, click.Option) for flag in one.opts}
    for word, text in itertools.pairwise(words):
        if word in flags and getattr(flags[word].type, "exists", False):
            Path(text).mkdir(parents=True, exist_ok=True)
    given = command.make_context(context.info_name, list(words), context.parent).params
    settings = dict(pair.split("=", 1) for pair in given.get("overrides", ()))
    config = load_config(given.get("source"), settings)
    if given.get("method"):
        check_method(given["method"], config)
    if "strategy" in given:
        make_strategy(given["strategy"])


# --- vqseg in the prose ---


def check_mention(code: str) -> None:
    """A name of a command or an option may stand without what else is needed; what is to be done may not."""
    words, command = code.split()[1:], main
    while isinstance(command, click.Group) and words:
        _, command, words = command.resolve_command(click.Context(command), words)
    options = {flag: one for one in command.params if isinstance(one, click.Option) for flag in one.opts}
    if unknown := [word for word in words if word.startswith("-") and word not in options]:
        raise click.UsageError(f"no such option: {unknown}")
    with_one_before = itertools.pairwise(["", *words])
    values = {word for before, word in with_one_before if before in options and not options[before].is_flag}
    if [word for word in words if not word.startswith("-") and word not in values]:
        check(code.split()[1:])


@pytest.mark.parametrize(("page", "code"), inline_code("vqseg [a-z]"), ids=lambda part: getattr(part, "name", part))
def test_the_command_line_takes_what_the_prose_names(
    page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        check_mention(code)
    except (click.ClickException, VQSegError) as error:
        pytest.fail(f"{page}: `{code}`: {error}")


@pytest.mark.parametrize(
    "code",
    ["vqseg models rollback", "vqseg retrain", "vqseg train --step", "vqseg token change", "vqseg token add anna"],
)
def test_a_wrong_mention_is_found(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((click.ClickException, VQSegError)):
        check_mention(code)


@pytest.mark.parametrize("code", ["vqseg token add", "vqseg train --out", "vqseg simulate --jobs N", "vqseg doctor"])
def test_a_mention_may_leave_out_what_is_not_its_point(code: str) -> None:
    check_mention(code)
