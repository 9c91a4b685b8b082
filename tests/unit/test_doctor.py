"""The report says in words what is missing, and why."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

import pytest

import vqseg
from vqseg import doctor


def test_report_of_a_whole_installation_is_fine() -> None:
    findings = doctor.report()
    assert vqseg.__version__ in findings[0].words
    words = "\n".join(finding.words for finding in findings)
    assert all(name in words for name in ("torch", "monai", "CPU", "GPU", "monailabel"))
    assert [finding.words for finding in findings if not finding.fine] == []


def test_package_that_is_missing_or_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find, load = metadata.version, importlib.import_module

    def version(name: str) -> str:
        if name == "monailabel":
            raise metadata.PackageNotFoundError(name)
        return find(name)

    def import_module(name: str) -> ModuleType:
        if name == "SimpleITK":
            raise OSError("libGL is not there")
        return load(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    bad = [finding.words for finding in doctor.report() if not finding.fine]
    assert len(bad) == 2
    assert any("monailabel is not installed" in words and "requirements.txt" in words for words in bad)
    assert any("SimpleITK" in words and "libGL is not there" in words for words in bad)
