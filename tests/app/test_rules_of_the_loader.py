"""What MONAI Label 0.8.5 demands of an app, and what this repository promises about its parts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vqseg import torchvision_schemas

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "vqseg_app"


def imported_by(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return names


def test_main_holds_one_class_whose_direct_base_is_the_apps() -> None:
    classes = [
        node for node in ast.parse((APP / "main.py").read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    ]
    assert [[ast.unparse(base) for base in node.bases] for node in classes] == [["MONAILabelApp"]]


def test_library_knows_nothing_of_the_server() -> None:
    for path in (ROOT / "lib" / "vqseg").rglob("*.py"):
        assert not {name for name in imported_by(path) if name.split(".")[0] in ("monailabel", "fastapi", "lib")}, path


def test_app_never_imports_what_needs_torchvision() -> None:
    forbidden = (
        "monailabel.transform",
        "monailabel.deepedit",
        "monailabel.scribbles",
        "monailabel.sam2",
        "torchvision",
    )
    for path in APP.rglob("*.py"):
        assert not {name for name in imported_by(path) if name.startswith(forbidden)}, path


def test_torchvision_can_be_imported_after_the_app() -> None:
    code = "import lib, torchvision; from torchvision.ops import nms"
    subprocess.run([sys.executable, "-c", code], cwd=APP, check=True, timeout=120, capture_output=True)


def test_nothing_is_done_where_torchvision_loads() -> None:
    """With its operators declared by somebody else, as its compiled part does where it fits torch."""
    code = """
import sys
import torch
compiled = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    compiled.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision
loaded = sys.modules["torchvision"]
import lib
from vqseg import torchvision_schemas
assert torchvision_schemas._kept == []
assert sys.modules["torchvision"] is loaded
"""
    subprocess.run([sys.executable, "-c", code], cwd=APP, check=True, timeout=120, capture_output=True)


def test_missing_operators_are_declared_once(app_module: Any) -> None:
    app_module("options")
    assert torchvision_schemas.define_missing_schemas() is False


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        (["train.stepz", "3"], "unknown option 'train.stepz'; known options: labels, preset, device"),
        # A start takes seconds; what finds these out is tested for itself.
        *(
            pytest.param([key, value], words, marks=pytest.mark.long)
            for key, value, words in (
                ("device", "cuda:99", "device 'cuda:99' cannot be used here; try auto or cpu"),
                ("active.batches_of", "magic", "active.batches_of: batches cannot be chosen by 'magic'; they can by:"),
                ("active.strategy", "magic", "active.strategy: the server has no strategy 'magic'; it has: codebook"),
            )
        ),
    ],
)
def test_wrong_option_stops_the_start_in_words(tmp_path: Path, conf: list[str], words: str) -> None:
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(tmp_path)]
    command += ["--host", "127.0.0.1", "--port", "0", "--conf", *conf]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert ended.returncode == 2
    assert f"vqseg: {words}" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
