"""Trainer `vqseg`: the labelled studies and every unlabelled image of the datastore go into one training."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from vqseg.config import Config, option_names
from vqseg.data.studies import Study
from vqseg.devices import choose_device
from vqseg.errors import ConfigError, DataError, VQSegError
from vqseg.files import read_json, write_json
from vqseg.training.methods import check_method
from vqseg.training.run import learnt_with, train
from vqseg.training.status import read_status
from vqseg.training.tracking import check_trackers

from .errors_over_rest import ConflictError
from .gathering import UNUSABLE
from .labels import FINAL, check_stored_names
from .options import Options
from .pacs_datastore import PACSStudies
from .process import give_way

# Requests go first on a machine whose processors are busy.
_NICENESS = 10
_SHORT = {"steps": "train.steps", "seed": "train.seed"}
_OWN = ("method", "device")
# What a request says must not reach the file system or the internet.
_ON_START_ONLY = {
    "foundation.name": "names files on the server",
    "model.pretrained": "names files on the server",
    "train.compile": "starts a compiler on the server",
}
# Other trainers make it the name of a folder (monailabel 0.8.5); this one only lets it pass.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")
# Added by the clients and by MONAI Label 0.8.5 itself on the way to the child process.
_OF_MONAI_LABEL = ("model", "name", "client_id", "gpus", "multi_gpu", "local_rank", "run_sync", "enqueue")
_BEGUN_FILE = "begun.json"
_STOPPED = ("stopped", "interrupted")


class VQSegTraining(TrainTask):
    """Runs in a child process that may be killed at any time; the next training continues where it stood."""

    def __init__(self, run: Path, options: Options, labels: Callable[[], dict[str, int]]) -> None:
        super().__init__("VQ-Seg: trains on the labelled and on all unlabelled studies")
        self._run = run
        self._options = options
        self._labels = labels

    def config(self) -> dict[str, Any]:
        return {"steps": self._options.config().train.steps}

    def stats(self) -> dict[str, Any]:
        """The training's own status, with the four names that OHIF and Slicer read in front."""
        status = read_status(self._run) or {"state": "none", "message": "nothing was trained yet"}
        running = status.get("state") == "running"
        total = status.get("total_epochs") or 1
        return {
            **status,
            # The last epoch is cut short when the steps run out.
            "epoch": total if status.get("state") == "done" else status.get("epoch") or 0,
            "total_epochs": total,
            "best_metric": status.get("best_metric") or 0.0,
            # Slicer takes a training with a total time for finished.
            "total_time": "" if running else _clock(status.get("elapsed_seconds") or 0),
            "continue_with": self._continue_with(status) if status.get("state") in _STOPPED else None,
        }

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> tuple[Config, str, str]:
        """Settings, method and device of a request. Raises `ConfigError` or `DataError` in words."""
        known = _known_options()
        for key, value in request.items():
            if key in _ON_START_ONLY and value != "none":
                raise ConfigError(f"{key} {_ON_START_ONLY[key]}; it can be given on start only, with --conf")
            if key not in known and key not in _OF_MONAI_LABEL:
                raise ConfigError(f"unknown training option {key!r}; known options: {', '.join(known)}")
        if request.get("name") and not _NAME.fullmatch(str(request["name"])):
            raise ConfigError("name: expected up to 64 letters, digits, spaces, - and _")
        labelled = datastore.get_labeled_images()
        if not labelled:
            raise DataError("no study is labelled yet: submit the label of at least one study, then train")
        labels = self._labels()
        if not labels and "data.labels" not in request:
            raise DataError(
                "the names of the structures are not known: start the server with --labels a,b, or put a labels.json "
                'like {"a": 1, "b": 2} into the studies folder'
            )
        config, method = self._settings(request, labels)
        device = str(request.get("device") or self._options.device)
        choose_device(device)
        check_method(method, config)
        check_trackers(config.tracking.to)
        check_stored_names(datastore, config.data.labels)
        return config, method, device

    def _settings(self, request: Mapping[str, Any], labels: Mapping[str, int]) -> tuple[Config, str]:
        overrides = {_SHORT.get(key, key): value for key, value in request.items() if key in (*_SHORT, *option_names())}
        config = self._options.config({"data.labels": labels, **overrides})
        return config, str(request.get("method", self._options.method))

    def keep_request(self, request: Mapping[str, Any]) -> None:
        """Keep the options of the training that this process begins, for whoever continues it after a stop."""
        options = {key: value for key, value in request.items() if key in _known_options()}
        begun = {"pid": os.getpid(), "options": options, "settings": self._learnt_with(options)}
        # Without it a stop is followed by a new training, which is no reason not to train.
        with contextlib.suppress(OSError):
            write_json(self._run / _BEGUN_FILE, begun)

    def _continue_with(self, status: Mapping[str, Any]) -> dict[str, Any] | None:
        """The options with which the stopped training goes on where it stood; none where it would begin anew."""
        begun = read_json(self._run / _BEGUN_FILE)
        # A training of the command line in the same folder keeps no options.
        if not isinstance(begun, dict) or begun.get("pid") != status.get("pid"):
            return None
        try:
            # Since then the server may have been started with others, or a label may have brought a new structure.
            same = self._learnt_with(begun["options"]) == begun["settings"]
        except (VQSegError, LookupError, TypeError, AttributeError):
            return None
        return begun["options"] if same else None

    def _learnt_with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return learnt_with(*self._settings(options, self._labels()))

    def check_free(self) -> None:
        """Raises `ConflictError` when a training runs in this folder, be it one that outlived its server."""
        status = read_status(self._run) or {}
        if status.get("state") == "running":
            raise ConflictError(
                f"a training of this folder is running already, in process {status.get('pid')}: wait for its end, or "
                "stop it (DELETE /train/), then train again"
            )

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        config, method, device = self.check(request, datastore)
        pool = pool_of(datastore)
        give_way(_NICENESS)
        self.keep_request(request)
        train(pool.studies, self._run, config, method=method, device=device, resume=True, left_out=pool.left_out)
        return self.stats()


def _known_options() -> list[str]:
    return [*_SHORT, *_OWN, *option_names()]


@dataclass(frozen=True)
class Pool:
    """What a training can use of a datastore, and what it cannot: id -> reason."""

    studies: list[Study]
    left_out: dict[str, str]


def pool_of(datastore: Datastore) -> Pool:
    """Every study of the datastore, with its final label where there is one."""
    labelled = set(datastore.get_labeled_images())
    studies, left_out = [], {}
    images = datastore.images_for_training() if isinstance(datastore, PACSStudies) else sorted(datastore.list_images())
    for image in images:
        try:
            label = datastore.get_label_by_image_id(image, FINAL) if image in labelled else ""
            uri = datastore.get_label_uri(label, FINAL) if label else ""
            studies.append(Study(image, Path(datastore.get_image_uri(image)), Path(uri) if uri else None))
        except UNUSABLE as error:
            left_out[image] = str(error)
    for image in set(datastore.list_images()) - {study.id for study in studies} - set(left_out):
        left_out[image] = "it does not fit into the cache of the PACS any more (--conf pacs_cache_gb)"
    return Pool(studies, left_out)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
