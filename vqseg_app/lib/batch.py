"""Batch inference on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask


class OneByOne(BatchInferTask):
    """monailabel 0.8.5 spreads images over its list of GPUs, which is empty without one (ZeroDivisionError)."""

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> Any:
        fixed = {"multi_gpu": False, "max_workers": 1, "save_label": True}
        return super().__call__({**request, **fixed}, datastore, infer)
