"""Hides what monai imports where it is there and no server needs, which is three of the seven seconds of a start.

Python runs this file at the start of every process whose PYTHONPATH names this folder; `servers.environment` does so.
"""

import sys

for name in ("ignite", "mlflow", "transformers"):
    sys.modules[name] = None  # type: ignore[assignment]
