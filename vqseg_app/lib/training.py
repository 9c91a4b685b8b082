"""Trainer `vqseg`: the labelled studies and every unlabelled image of the datastore go into one training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from vqseg.config import Config, option_names
from vqseg.data.studies import Study
from vqseg.devices import choose_device
from vqseg.errors import ConfigError, DataError, ImageError
from vqseg.training.methods import check_method
from vqseg.training.run import train
from vqseg.training.status import read_status
from vqseg.training.tracking import check_trackers

from .errors_over_rest import ConflictError, UnknownError
from .labels import FINAL, check_stored_names
from .options import Options
from .pacs import PACSError
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
# Added by the clients and by MONAI Label 0.8.5 itself on the way to the child process.
_OF_MONAI_LABEL = ("model", "name", "client_id", "gpus", "multi_gpu", "local_rank", "run_sync", "enqueue")


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
        }

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> tuple[Config, str, str]:
        """Settings, method and device of a request. Raises `ConfigError` or `DataError` in words."""
        known = [*_SHORT, *_OWN, *option_names()]
        overrides = {}
        for key, value in request.items():
            if key in _ON_START_ONLY and value != "none":
                raise ConfigError(f"{key} {_ON_START_ONLY[key]}; it can be given on start only, with --conf")
            if key in _SHORT or key in option_names():
                overrides[_SHORT.get(key, key)] = value
            elif key not in _OWN and key not in _OF_MONAI_LABEL:
                raise ConfigError(f"unknown training option {key!r}; known options: {', '.join(known)}")
        labelled = datastore.get_labeled_images()
        if not labelled:
            raise DataError("no study is labelled yet: submit the label of at least one study, then train")
        labels = self._labels()
        if not labels and "data.labels" not in overrides:
            raise DataError(
                "the names of the structures are not known: start the server with --labels a,b, or put a labels.json "
                'like {"a": 1, "b": 2} into the studies folder'
            )
        method = str(request.get("method", self._options.method))
        device = str(request.get("device") or self._options.device)
        choose_device(device)
        config = self._options.config({"data.labels": labels, **overrides})
        check_method(method, config)
        check_trackers(config.tracking.to)
        check_stored_names(datastore, config.data.labels)
        return config, method, device

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
        train(pool.studies, self._run, config, method=method, device=device, resume=True, left_out=pool.left_out)
        return self.stats()


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
        except (ImageError, PACSError, UnknownError) as error:
            left_out[image] = str(error)
    for image in set(datastore.list_images()) - {study.id for study in studies} - set(left_out):
        left_out[image] = "it does not fit into the cache of the PACS any more (--conf pacs_cache_gb)"
    return Pool(studies, left_out)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
