"""What Prometheus reads at `/vqseg/metrics`. Labels are routes, methods, tags and versions, never ids of studies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.utils.app import app_instance
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from vqseg.errors import VQSegError
from vqseg.training.status import read_status

from .live_model import LiveModel
from .request_rules import AsUser

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/vqseg", tags=["App"])

_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_INFERENCE_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_TRAINING_STATES = ("none", "running", "interrupted", "stopped", "failed", "done")


@router.get("/metrics", summary="Latencies, inferences, memory, training and labels, for Prometheus")
def show_metrics(user: AsUser) -> Response:
    return Response(generate_latest(app_instance().metrics.registry), media_type=CONTENT_TYPE_LATEST)


class Metrics:
    """What this process counts; `state` tells what is looked up only when somebody asks.

    `inferences_waiting` is for whoever queues them: `inferences_waiting.set_function(queue.length)`.
    """

    def __init__(self, state: Collector) -> None:
        # Of its own: the library's global one is shared with whatever else is imported.
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(state)
        self._requests = Histogram(
            "vqseg_request_seconds",
            "Time from a request's arrival to the end of its answer",
            ("method", "route", "status"),
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self._inferences = Histogram(
            "vqseg_inference_seconds",
            "Time of an inference, from reading the image to the written mask",
            ("outcome",),
            buckets=_INFERENCE_SECONDS,
            registry=self.registry,
        )
        self.inferences_running = Gauge("vqseg_inferences_running", "Inferences at work", registry=self.registry)
        self.inferences_waiting = Gauge("vqseg_inferences_waiting", "Inferences in the queue", registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method, route, f"{status // 100}xx").observe(seconds)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """The block is one inference."""
        started, outcome = time.perf_counter(), "failed"
        try:
            with self.inferences_running.track_inprogress():
                yield
            outcome = "done"
        finally:
            self._inferences.labels(outcome).observe(time.perf_counter() - started)


class ServerState(Collector):
    """Args: the `run` folder of the training; `live` model; `datastore` gives the studies."""

    def __init__(self, run: Path, live: LiveModel, datastore: Callable[[], Datastore]) -> None:
        self._run, self._live, self._datastore = run, live, datastore

    def describe(self) -> Iterator[Metric]:
        # Else the registry looks everything up to learn the names.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield from self._studies()
        yield from self._training()
        version = self._live.version()
        yield InfoMetricFamily("vqseg_model", "The live model", {"version": version.name if version else ""})

    def _studies(self) -> Iterator[Metric]:
        try:
            status = self._datastore().status()
        except (VQSegError, OSError) as error:
            logger.warning("metrics: the studies cannot be counted: %s", error)
            return
        if "error" in status:  # counts of a PACS that does not answer would look like lost studies
            return
        yield GaugeMetricFamily("vqseg_images", "Images of the datastore", status["total"])
        labels = GaugeMetricFamily("vqseg_labels", "Images with a label of this tag", labels=["tag"])
        for tag, count in {"final": status["completed"], **status["label_tags"]}.items():
            labels.add_metric([str(tag)], count)
        yield labels

    def _training(self) -> Iterator[Metric]:
        status = read_status(self._run) or {"state": "none"}
        states = GaugeMetricFamily("vqseg_training_state", "1 for the state the training is in", labels=["state"])
        for state in _TRAINING_STATES:
            states.add_metric([state], float(status.get("state") == state))
        yield states
        validation = status.get("validation") or {}
        for name, meaning, value in (
            ("step", "Steps done", status.get("step")),
            ("steps_total", "Steps of the whole training", status.get("total_steps")),
            ("epoch", "Epochs done", status.get("epoch")),
            ("validation_dice", "Mean Dice of the last validation", validation.get("dice")),
        ):
            if _is_number(value):
                yield GaugeMetricFamily(f"vqseg_training_{name}", meaning, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
