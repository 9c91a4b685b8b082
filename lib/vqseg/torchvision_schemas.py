"""Let modules that import torchvision load where its compiled part does not fit the installed torch.

Reason (torchvision 0.28.0, torch 2.13.0, monailabel 0.8.5): the wheel of torchvision is built for CUDA; beside a CPU
build of torch its operators are missing, and it dies on registering their fake kernels with "operator
torchvision::nms does not exist". monailabel and transformers import it for functions that nothing here calls.
Declaring the operators without an implementation is enough; where torchvision loads, nothing is done.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import torch

__all__ = ["define_missing_schemas", "import_transformers"]

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_kept: list[torch.library.Library] = []


def define_missing_schemas() -> bool:
    """Declare the operators if torchvision cannot load; returns whether that was needed."""
    if _kept or importlib.util.find_spec("torchvision") is None or _loads():
        return False
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    # A Library takes its declarations back when it is garbage collected.
    _kept.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            _kept[0].define(schema)
    return True


def import_transformers() -> ModuleType:
    """The package transformers. It takes seconds to import, so only what needs it asks for it."""
    define_missing_schemas()
    import transformers

    # Its bars for weights that load in a second would stand between the lines of a log.
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _loads() -> bool:
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError, OSError):
        return False
    return True
