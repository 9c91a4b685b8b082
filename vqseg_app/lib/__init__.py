"""Adaptors between MONAI Label and the library `vqseg`: one concept a file, no tensor arithmetic.

MONAI Label imports this package under the name `lib`, by putting the app folder on the path while `main.py` runs.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# `monailabel start_server` runs without the repository being installed; its library then lies beside the app.
if importlib.util.find_spec("vqseg") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

from vqseg.torchvision_schemas import define_missing_schemas

define_missing_schemas()
