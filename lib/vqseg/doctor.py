"""What is installed here and what is missing, in words."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from importlib import metadata

import vqseg

__all__ = ["Finding", "report"]

_NEEDED = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "nibabel",
    "SimpleITK",
    "safetensors",
    "transformers",
    "pydantic",
    "filelock",
    "psutil",
)
_SERVER = ("monailabel", "pydicom", "fastapi")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fine` is false where something that is needed is missing."""

    fine: bool
    words: str


def report() -> list[Finding]:
    """Versions and devices, in the order a reader asks for them."""
    findings = [Finding(True, f"vqseg {vqseg.__version__} on Python {platform.python_version()}")]
    findings += [_package(name, "`pip install -r requirements.txt`") for name in _NEEDED]
    findings += [_package(name, "the server needs it: `pip install -r requirements.txt`") for name in _SERVER]
    if not all(finding.fine for finding in findings):
        return findings
    return findings + _devices()


def _devices() -> list[Finding]:
    # Only here, so that a missing torch is a finding and no stack trace.
    import torch

    from vqseg.devices import has_fast_bfloat16

    cpu = torch.device("cpu")
    precision = "bfloat16" if has_fast_bfloat16(cpu) else "float32"
    findings = [Finding(True, f"CPU: {torch.get_num_threads()} threads, trains in {precision}")]
    if not torch.cuda.is_available():
        findings.append(Finding(True, "no GPU that this torch can use: everything runs on the CPU"))
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        findings.append(Finding(True, f"cuda:{index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB"))
    return findings


def _package(name: str, remedy: str) -> Finding:
    try:
        version = metadata.version(name)
        importlib.import_module(name)
    except metadata.PackageNotFoundError:
        return Finding(False, f"{name} is not installed; {remedy}")
    except Exception as error:  # whatever a broken package raises, its name is the finding
        return Finding(False, f"{name} {version} cannot be imported ({error}); {remedy}")
    return Finding(True, f"{name} {version}")
