"""The figures of a training in MLflow: `<run>/mlflow.db`, an SQLite file with a run for each training.

The client alone is used, no server and none of MLflow's global state.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vqseg.training.tracker import Tracker

__all__ = ["MLflow"]

_EXPERIMENT = "vqseg"
_STATES = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# MLflow's own bounds.
_METRICS_AT_A_TIME = 1000
_PARAMETERS_AT_A_TIME = 100
_LONGEST_PARAMETER = 6000
_NOT_IN_NAMES = re.compile(r"[^\w\-. :]|^\.+$")


class MLflow(Tracker):
    """A run in an SQLite file, which `mlflow ui --backend-store-uri sqlite:///<run>/mlflow.db` shows."""

    def __init__(self, run: Path, training: str, done: int, settings: Mapping[str, str]) -> None:
        # Read when it is imported: it would send what it is used for to its makers.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        # It tells of every table that it makes.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric: Callable[..., Any] = Metric
        self._client = MlflowClient(tracking_uri=f"sqlite:///{(run / 'mlflow.db').resolve()}")
        experiment = self._experiment((run / "mlflow_artefacts").resolve())
        self._waiting: list[Any] = []
        self._last_step = 0
        known = {found.info.run_name: found.info for found in self._client.search_runs([experiment])}
        for name, info in known.items():
            # The lock of the run's folder is held, so it was killed and never continued.
            if info.status == "RUNNING" and name != training:
                self._client.set_terminated(info.run_id, "KILLED")
        if training in known:
            self._run = known[training].run_id
            self._client.update_run(self._run, status="RUNNING")
            points = self._client.get_metric_history(self._run, "learning_rate")
            self._last_step = max((point.step for point in points), default=0)
            return
        self._run = self._client.create_run(experiment, run_name=training).info.run_id
        parameters = [Param(name, value[:_LONGEST_PARAMETER]) for name, value in settings.items()]
        for start in range(0, len(parameters), _PARAMETERS_AT_A_TIME):
            self._client.log_batch(self._run, params=parameters[start : start + _PARAMETERS_AT_A_TIME])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # MLflow cannot take a point back, so one that was written before a kill stays.
        if step <= self._last_step:
            return
        if len(self._waiting) + len(values) > _METRICS_AT_A_TIME:
            self.flush()
        now = int(time.time() * 1000)
        self._waiting += [self._metric(self._allowed(name), value, now, step) for name, value in values.items()]

    def flush(self) -> None:
        if self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting)
            self._waiting = []

    def end(self, state: str) -> None:
        self.flush()
        self._client.set_terminated(self._run, _STATES[state])

    def _experiment(self, artefacts: Path) -> str:
        known = self._client.get_experiment_by_name(_EXPERIMENT)
        # Named, or MLflow would take the folder in which the process was started.
        return known.experiment_id if known else self._client.create_experiment(_EXPERIMENT, artefacts.as_uri())

    def _allowed(self, name: str) -> str:
        """A name that MLflow takes: it holds a structure's, which may have any sign."""
        group, *rest = name.split("/", 2)
        return "/".join([group, *(_NOT_IN_NAMES.sub("_", part) for part in rest)])
