"""What the tests of the app and of its clients share."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
from servers import APP


@pytest.fixture(scope="session")
def app_module() -> Callable[[str], ModuleType]:
    """A module of `vqseg_app/lib`, imported under the name that MONAI Label gives it."""

    def load(name: str) -> ModuleType:
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            # monailabel and what it imports are full of deprecated calls while they are imported; they are not ours.
            warnings.simplefilter("ignore")
            patch.syspath_prepend(str(APP))
            return importlib.import_module(f"lib.{name}")

    return load
