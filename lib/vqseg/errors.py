"""Errors for the person who reads them: each message names the file or option, the reason and what to do.

Everything that bad input can cause is a `VQSegError`, so that a border (command line, REST) catches one class
and never shows a stack trace.
"""

from __future__ import annotations

from os import PathLike


class VQSegError(Exception):
    """Something the user can mend."""


class ConfigError(VQSegError):
    """An option is unknown or has an impossible value."""


class ImageError(VQSegError):
    """An image cannot be used."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class LabelError(ImageError):
    """A mask cannot be used."""


class DataError(VQSegError):
    """A folder or split file does not hold what is needed."""


class ModelError(VQSegError):
    """A model is missing, damaged or does not fit."""


class TrainingError(VQSegError):
    """A training cannot start or had to stop."""
