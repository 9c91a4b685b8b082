"""What a published model says of the training it comes from."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai
import torch

import vqseg
from vqseg.config import Config
from vqseg.data.preparation import PreparedStudy
from vqseg.files import sha256
from vqseg.training.methods import METHODS, SELF_SUPERVISED

__all__ = ["flat_settings", "training_manifest"]


def training_manifest(
    config: Config, method: str, labelled: Sequence[PreparedStudy], unlabelled: Sequence[PreparedStudy]
) -> dict[str, Any]:
    """Settings, data and software of a training, as plain values."""
    digest = hashlib.sha256()
    for prepared in [*labelled, *unlabelled]:
        digest.update(f"{prepared.study.id} {prepared.study.image.stat().st_size}".encode())
        if prepared.study.label and prepared.label:
            digest.update(sha256(prepared.study.label).encode())
    return {
        "config": config.model_dump(mode="json"),
        "method": method,
        "data": {
            "labelled": [prepared.study.id for prepared in labelled],
            "unlabelled": len(unlabelled) if (METHODS | SELF_SUPERVISED)[method].uses_unlabelled else 0,
            "sha256": digest.hexdigest(),
        },
        "software": {
            "vqseg": vqseg.__version__,
            "torch": torch.__version__,
            "monai": monai.__version__,
            "python": platform.python_version(),
            "commit": _commit(),
        },
    }


def flat_settings(manifest: dict[str, Any]) -> dict[str, str]:
    """The same on one level, as names and words: `train.steps`, `studies.sha256`, `software.torch`..."""
    data = manifest["data"]
    studies = {"labelled": len(data["labelled"]), "unlabelled": data["unlabelled"], "sha256": data["sha256"]}
    sections = {**manifest["config"], "studies": studies, "software": manifest["software"]}
    flat = {f"{section}.{key}": str(value) for section, values in sections.items() for key, value in values.items()}
    return {"method": manifest["method"], **flat}


def _commit() -> str | None:
    """The git commit of this source tree, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
