"""House rules that no linter knows."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "lib" / "vqseg").rglob("*.py"))
SCRIPTS = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
SHIPPED = [
    *LIBRARY,
    *sorted((ROOT / "vqseg_app").rglob("*.py")),
    *sorted((ROOT / "apps").rglob("*.py")),
    # Scripts have no ending: their first line says what they are. What they share is a module.
    *sorted(p for p in SCRIPTS if p.suffix == ".py" or b"python" in p.read_bytes().partition(b"\n")[0]),
]
# They run what they read, under whatever name they are imported.
UNSAFE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
UNSAFE_NAMES = {
    ("torch", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("yaml", "load_all"),
}
SKIPPED = {".git", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "__pycache__"}
SKIPPED |= {"demo", "runs", "build", "logs", "model", "node_modules"}
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".sh", ".js", ".html", ".css", ""}
# A home or scratch folder of somebody's machine; a made-up example such as /data/studies is none.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|Users|work|mnt|tmp)/\w")

by_name = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or path.is_relative_to(ROOT / "vqseg_app"), f"{path}: relative import"
            yield node.module or ""


def unsafe_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.partition(".")[0] in UNSAFE_MODULES)
            # Under another name the next rule would not know its functions.
            yield from (one.name for one in node.names if one.name in {"torch", "yaml"} and one.asname)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            is_unsafe = node.module.partition(".")[0] in UNSAFE_MODULES
            for name in (one.name for one in node.names):
                # What torch raises when it refuses such a file.
                if (is_unsafe and name != "UnpicklingError") or (node.module, name) in UNSAFE_NAMES:
                    yield f"{node.module}.{name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
            yield from (name for name in UNSAFE_MODULES if repr(name) == ast.unparse(node.args[0]))


def forbidden_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in {"eval", "exec", "os.system", "os.popen"} or name.endswith(".read_pickle"):
            yield name
        if name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}:
            yield name
        if name.endswith("torch.load") and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if keywords.get("shell", "False") != "False":
            yield "shell=True"
        if keywords.get("allow_pickle", "False") != "False":
            yield "allow_pickle=True"


def test_the_library_never_knows_the_server() -> None:
    for path in LIBRARY:
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & {"monailabel", "fastapi", "starlette", "uvicorn", "vqseg_app"}, path


@by_name
def test_nothing_runs_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [*forbidden_calls(tree), *unsafe_imports(tree)] == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "import pickle",
        "import pickle as p",
        "import os, marshal",
        "import joblib.numpy_pickle",
        "from pickle import loads",
        "from pickle import *",
        "from dill import load",
        "from cloudpickle import loads as f",
        "from torch import load",
        "import torch as t",
        "from yaml import load",
        "pandas.read_pickle(f)",
        "__import__('pickle')",
        "yaml.load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "subprocess.run('ls', shell=True)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_the_rule_itself_finds_what_it_forbids(code: str) -> None:
    tree = ast.parse(code)
    assert len([*forbidden_calls(tree), *unsafe_imports(tree)]) == 1


def test_the_error_of_a_refused_file_may_be_caught() -> None:
    assert list(unsafe_imports(ast.parse("from pickle import UnpicklingError"))) == []


def test_scripts_and_apps_are_looked_at() -> None:
    looked = {path.relative_to(ROOT).parts[0] for path in SHIPPED}
    assert looked == {"lib", "vqseg_app", "apps", "scripts"}


def test_lib_is_a_source_root_and_no_package() -> None:
    assert not (ROOT / "lib" / "__init__.py").exists()
    assert sorted(path.name for path in (ROOT / "lib").iterdir() if path.is_dir() and "." not in path.name) == ["vqseg"]
    for path in [*SHIPPED, *(ROOT / "tests").rglob("*.py")]:
        assert not [name for name in imports(path) if name == "lib.vqseg" or name.startswith("lib.vqseg.")], path


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT / "lib")))
def test_one_concept_a_file(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 400
    assert ast.get_docstring(ast.parse("\n".join(lines))), "a module says what it is about"


def test_the_median_file_is_short() -> None:
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in LIBRARY)
    assert lengths[len(lengths) // 2] < 130


def test_no_paths_of_anybodys_machine() -> None:
    found = []
    made = {"pacs", "artefacts"}  # by running the server and the tests
    for path in (path for path in ROOT.rglob("*") if path.relative_to(ROOT).parts[0] not in made):
        if SKIPPED & set(path.relative_to(ROOT).parts) or path.suffix not in TEXT or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert [line for line in found if not line.startswith(("tests/unit/test_architecture.py", "LICENSE"))] == []


def test_files_are_utf8() -> None:
    for path in SHIPPED:
        with tokenize.open(path) as file:
            assert file.encoding == "utf-8"
