"""Switches of MONAI Label 0.8.5 that this app needs otherwise than they are delivered."""

from __future__ import annotations

import json
import os
from typing import Any

from monailabel.config import settings

_SWITCHES: dict[str, Any] = {
    # Queues a scoring process after every request for a next study, without bound; the app queues at most one.
    "MONAI_LABEL_AUTO_UPDATE_SCORING": False,
    # mlflow >= 3.17 has no file store, so tracking fails; it would also write outside the app's folder.
    "MONAI_LABEL_TRACKING_ENABLED": False,
    # Delivered with photographs, slides and XML files, which are no volumes.
    "MONAI_LABEL_DATASTORE_FILE_EXT": ["*.nii.gz", "*.nii"],
}


def set_switches() -> None:
    """Set them in this process and, through the environment, in the children it starts."""
    for name, value in _SWITCHES.items():
        setattr(settings, name, value)
        os.environ[name] = json.dumps(value)
