"""The commands of README.md and docs/: each is checked, run, or stands in `UNCHECKED` with the reason.

`vqseg ...` is parsed by the real command line, with its settings, method and strategy; what getting-started shows of it
is run. `curl ...` is sent to a running server where a reader is meant to type it along. Python is executed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from curl import read_curl
from documentation import Block, blocks
from servers import ROOT, TINY, Server
from watched_servers import publish

from vqseg.active.strategies import make_strategy
from vqseg.cli import main
from vqseg.config import load_config
from vqseg.data.phantom import Grid, draw_anatomy, render
from vqseg.errors import VQSegError
from vqseg.training.methods import check_method

UNCHECKED = {
    "apt-get": "changes the machine that runs the tests",
    "export": "the settings of an identity provider, which tests/app/test_oidc.py sets",
    "monailabel": "how most tests of tests/app start their server",
    ".": "activates an environment",
    "tar": "no command of this project",
    "tensorboard": "a page of another program, which tests/unit/training/test_tracking.py reads the files for",
    "mlflow": "a page of another program, as tensorboard",
    "scripts/setup_environment": "makes the environment in which the tests run",
}
GRID = Grid((30, 24, 16), (11.0, 11.0, 15.0))
LABELS = {"lung": 1, "tumour": 2}
# What makes a training one of seconds.
SETTINGS = {key: value for key, value in TINY.items() if "." in key and key != "train.steps"}
STEPS = "4"
README, STARTED = ROOT / "README.md", ROOT / "docs" / "getting-started"
WALK = STARTED / "command_line.md"
OF_THE_WALK = [block for block in blocks("bash", "python") if block.page == WALK]


def typed_along(block: Block) -> bool:
    return block.page == README or block.page.parent == STARTED


def of_language(language: str, found: Any = lambda block: True) -> Any:
    return pytest.mark.parametrize("block", [one for one in blocks(language) if found(one)], ids=str)


def has(*programs: str) -> Any:
    return lambda block: any(words[0] in programs for words in block.commands())


def write_phantom(path: Path, seed: int, mask: Path | None = None) -> None:
    rng = np.random.default_rng(seed)
    image, true = render(draw_anatomy(rng), GRID, rng)
    for place, voxels in ((path, image), (mask, true)):
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, GRID.affine), place)


# --- every block ---


@of_language("bash")
def test_every_command_is_of_a_kind_that_is_checked(block: Block) -> None:
    for words in block.commands():
        script = words[1] if words[0] == ".venv/bin/python" else words[0]
        known = script in ("vqseg", "curl", *UNCHECKED) or script.startswith("scripts/")
        assert known, f"{block}: {' '.join(words)}: check it, or say in UNCHECKED why not"


def test_no_reason_stands_for_nothing() -> None:
    used = {words[0] for block in blocks("bash") for words in block.commands()}
    assert set(UNCHECKED) - used == set()


# --- scripts ---


@of_language("bash", has("scripts/serve", "scripts/test", ".venv/bin/python"))
def test_scripts_have_the_options_that_are_shown(block: Block, app_module: Any) -> None:
    for words in block.commands():
        words = words[1:] if words[0] == ".venv/bin/python" else words
        if not words[0].startswith("scripts/") or words[0] in UNCHECKED:
            continue
        source = (ROOT / words[0]).read_text(encoding="utf-8")
        if words[0] == "scripts/serve":
            app_module("options").read_options(conf_of(words))
        if words[0] == "scripts/test":  # its arguments are pytest's
            source += "-m"
        missing = [word for word in words if word.startswith("-") and word.split("=")[0] not in source]
        assert missing == [], f"{block}: {words[0]} has no {missing}"


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
    if "method" in given:
        check_method(given["method"], config)
    if "strategy" in given:
        make_strategy(given["strategy"])


# --- what is typed along ---


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs the page of the command line from start to end: what went wrong, by block."""
    folder = tmp_path_factory.mktemp("walk")
    studies, reference = folder / "demo" / "studies", folder / "demo" / "reference"
    for number in range(1, 13):  # the page's own, but small: what is there is not drawn again
        name = f"phantom_{number:02d}.nii.gz"
        write_phantom(studies / name, number, reference / name)
        if number <= 3:
            (studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
            (studies / "labels" / "final" / name).write_bytes((reference / name).read_bytes())
    wrong = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in OF_THE_WALK:
            try:
                if block.language == "python":
                    run_python(block)
                for words in block.commands() if block.language == "bash" else ():
                    if words[0] == "vqseg":
                        run(words[1:])
            except Exception as error:
                wrong[str(block)] = repr(error)
    return wrong


def run(words: list[str]) -> None:
    more: list[str] = []
    if words[0] in ("train", "pretrain"):
        more = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
        more += ["--steps", STEPS]
    result = CliRunner().invoke(main, [*words, *more])
    if result.exit_code:
        raise RuntimeError(f"vqseg {' '.join(words)}: {result.output or result.exception!r}")


@pytest.mark.parametrize("block", OF_THE_WALK, ids=str)
def test_the_page_of_the_command_line_runs_from_start_to_end(block: Block, walked: dict[str, str]) -> None:
    assert str(block) not in walked, walked[str(block)]


@of_language("python", lambda block: block.page != WALK)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_phantom(tmp_path / "image.nii.gz", 0)
    publish(tmp_path / "RUN", LABELS, {"data.spacing": [12, 12, 15]})
    run_python(block)
    mask, image = (nib.load(tmp_path / name) for name in ("mask.nii.gz", "image.nii.gz"))
    assert mask.shape == image.shape
    assert np.allclose(mask.affine, image.affine)


def run_python(block: Block) -> None:
    # Lines of the page, so that a failure names them.
    exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), {"__name__": "documentation"})


# --- curl ---


@pytest.fixture(scope="module")
def running(watch: Any) -> Iterator[Server]:
    with watch({"data.spacing": [12, 12, 15]}, TINY) as server:
        yield server


@pytest.fixture
def answering(running: Server) -> Iterator[Server]:
    """A server with a model, on which nothing is trained: a block begins a training of its own."""
    yield running
    running.delete("/train/")
    running.wait(lambda _: running.get("/train/", check_if_running=True).status_code == 404)


@of_language("bash", lambda block: has("curl")(block) and typed_along(block))
def test_curl_lines_are_answered(
    block: Block, answering: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def address(url: str) -> str:
        path = re.sub(r"\bphantom_04\b|(?<=image=)ID\b", "case_04", url.partition(urlsplit(url).netloc)[2])
        return f"{answering.url}{path}"

    for words in block.commands():
        if words[0] == "curl":
            answer = read_curl(words[1:]).send(address)
            assert answer.ok, f"{block}: {' '.join(words)}: {answer.status_code} {answer.text[:500]}"


@of_language("bash", lambda block: has("curl")(block) and not typed_along(block))
def test_other_curl_lines_are_about_a_route(block: Block, app_module: Any) -> None:
    for words in block.commands():
        if words[0] == "curl":
            line = read_curl(words[1:])
            scope = {"type": "http", "method": line.method, "path": line.path, "query_string": b"", "headers": []}
            assert app_module("access").rule_for(scope) is not None, f"{block}: {' '.join(words)}"
