"""monai without what it imports for parts that no command uses.

Reason (monai 1.6.1): it imports ignite, mlflow and transformers wherever they are installed, which is three of the
seven seconds that a command takes to start. They are hidden while it is imported; who asks for them later gets them.
"""

from __future__ import annotations

import sys

__all__ = ["import_monai"]

_HIDDEN = ("ignite", "mlflow", "transformers")


def import_monai() -> None:
    """Import monai before anything else does. Its own engines and handlers do not work afterwards, so this is for a
    program of ours and not for the library, whose users may want them."""
    if "monai" in sys.modules:
        return
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
