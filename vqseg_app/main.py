"""VQ-Seg as a MONAI Label app: `monailabel start_server --app vqseg_app --studies DIR`.

MONAI Label 0.8.5 loads the one class here whose direct base is called `MONAILabelApp`, in the server and again in the
child process of every training. Everything else lives in `lib/`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from lib.accounts import Accounts, accounts_of
from lib.audit import AuditLog
from lib.background_tasks import end_failed_tasks
from lib.batch import OneByOne
from lib.checksums import Checksums
from lib.cold_start import ColdStart, cold_strategy
from lib.datastore import StudiesFolder
from lib.environment import set_switches
from lib.errors_over_rest import UnknownError
from lib.gate import guard
from lib.inference import VQSegInference
from lib.labels import LabelSet
from lib.live_events import Changes
from lib.live_model import LiveModel
from lib.memory_guard import MemoryGuard
from lib.metrics import Metrics, ServerState
from lib.model_versions import ModelVersions
from lib.options import read_options
from lib.orphan import OrphanedTraining
from lib.pacs import PACS, PACSError
from lib.pacs_datastore import PACSStudies
from lib.process import is_child, show_errors_in_words, stop_in_words, tell_children
from lib.proposals import Proposals
from lib.ranking import ranking_page
from lib.request_rules import image_is_file
from lib.reservations import Reservations
from lib.routes import install
from lib.score_cache import ScoreCache
from lib.scoring import VQSegScoring
from lib.scoring_progress import read_progress
from lib.scoring_queue import queue_scoring, score_every_change
from lib.selection import Selector
from lib.sessions import NamedSessions
from lib.sources import image_file
from lib.strategies import SERVED, NextStudy, default_strategy
from lib.temporary_files import own_folder
from lib.training import VQSegTraining
from lib.upload_limits import UploadLimits, limit_forms
from lib.watching import watch_requests
from lib.work_queue import WorkQueue
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import processes

import vqseg
from vqseg.active.batches import StochasticBatches
from vqseg.active.strategies import REVIEWS, make_strategy
from vqseg.config import Config
from vqseg.devices import choose_device
from vqseg.errors import DataError, VQSegError

logger = logging.getLogger(__name__)
NAME = "vqseg"


class VQSegApp(MONAILabelApp):
    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        show_errors_in_words()
        set_switches()
        tell_children()
        try:
            if not is_child():
                own_folder()  # at once, not when the first file comes: it removes what killed processes left
            self._prepare(app_dir, studies, conf)
            super().__init__(
                app_dir,
                studies,
                dict(conf),
                name="VQ-Seg",
                description="Segmentation from few labelled and all unlabelled studies (VQ-Seg)",
                version=vqseg.__version__,
            )
        except VQSegError as error:
            stop_in_words(error)
        except OSError as error:
            place = error.filename or "a file"
            stop_in_words(DataError(f"{place}: {error.strerror}; the server reads and writes there: mend that first"))

    def _prepare(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.options = read_options(conf)
        config = self.options.config()
        if not is_child():
            # A child sees the GPUs alone that its request names (monailabel 0.8.5).
            choose_device(self.options.device)
        # Nobody calls a child.
        self.accounts = Accounts(None, None) if is_child() else accounts_of(self.options.accounts)
        local = None if studies.startswith(("http://", "https://")) else Path(studies)
        self.run = self.options.run_folder(app_dir, studies)
        self.orphan = OrphanedTraining(self.run, NAME)
        self.label_set = LabelSet(config.data.labels, local)
        self.live = LiveModel(self.run, self.options.device)
        self.scoring_folder = self.run / "scoring"
        self.cache = ScoreCache(self.scoring_folder, config.active.tokens)
        self.cold_start = ColdStart(self.live, self.run / "cold_start", config, self.options.device)
        self.memory = MemoryGuard(self.options.infer_memory_gib)
        self.selector = Selector(config.active, self.live, self.cold_start, self.cache, self.memory)
        self.reservations = Reservations(60 * config.active.reserve_minutes)
        # Of their own, so that a look at a label gives up no study that is being labelled.
        self.reviews = Reservations(60 * config.active.reserve_minutes)
        self.proposals = Proposals(None if is_child() else self.run / "proposals.jsonl")
        self.model_versions = ModelVersions(self.live, Checksums(self.scoring_folder / "checksums"))
        self.metrics = Metrics(ServerState(self.run, self.live, self.datastore))
        self.audit = AuditLog(self.run)
        self.inferences = WorkQueue("inference", self.options.infer_waiting, self.options.infer_seconds)
        # In a line of their own, for one that a slow PACS keeps must keep no inference from its turn; and no shorter
        # than that one, so that nobody is refused here who would have a place there.
        self.checks = WorkQueue("check", self.options.infer_waiting, self.options.infer_seconds, running=4)
        self.metrics.inferences_waiting.set_function(self.inferences.length)
        self.selections = WorkQueue("selection", self.options.infer_waiting, self.options.infer_seconds)
        self.pictures = WorkQueue("picture", self.options.infer_waiting, self.options.infer_seconds)
        self.changes = Changes()
        self.uploads = UploadLimits(self.options.upload_unpacked_gib, self.options.upload_megavoxels, self.memory)
        self.active = config.active
        default_strategy(self.active.strategy)
        cold_strategy(self.active.cold_strategy)
        make_strategy(StochasticBatches.name, self.active)  # which checks active.batches_of

    def current_labels(self) -> dict[str, int]:
        """Empty while nothing is known, and while a PACS that would know does not answer."""
        try:
            return self.label_set.resolve(self.datastore())
        except PACSError as error:
            logger.warning("labels: %s", error)
            return {}

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            pacs = PACS(self.studies, self.options.infer_seconds)
            largest = self.options.pacs_cache_gb * 1e9
            return PACSStudies(pacs, self.run / "pacs", largest, self.label_set, self.memory)
        return StudiesFolder(self.studies, self.label_set)

    def init_infers(self) -> dict[str, InferTask]:
        return {NAME: VQSegInference(self.live, self.cache, self.memory, self.current_labels)}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {NAME: VQSegTraining(self.run, self.options, self.current_labels)}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {NAME: VQSegScoring(self.cold_start, self.cache, self.memory, self.active, self.scoring_folder)}

    def init_strategies(self) -> dict[str, Strategy]:
        # OHIF always asks for `random`, whatever its user chose.
        names = {"random": self.active.strategy, **{name: name for name in SERVED}}
        parts, seconds = (self.selector, self.live, self.memory), self.options.score_seconds
        return {
            shown: NextStudy(name, *parts, self.reviews if name in REVIEWS else self.reservations, seconds)
            for shown, name in names.items()
        }

    def init_batch_infer(self) -> BatchInferTask:
        return OneByOne()

    def _load_sessions(self, load: bool = False) -> NamedSessions | None:
        if not load:
            return None
        return NamedSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY)

    def info(self) -> dict[str, Any]:
        # OHIF's panel crashes when the labels are no list.
        return {**super().info(), "labels": list(self.live.labels() or self.current_labels())}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Unlike the base class, an id is never taken for a path of the server."""
        self.check_model(request["model"], request.get("model_version"))
        datastore = datastore or self.datastore()
        image, upload = request["image"], image_is_file.get()
        path = image if upload else str(image_file(datastore, self.check_image(image), self.cache))
        with self.metrics.inference():
            file, params = self._infers[request["model"]]({**request, "image": path, "keep_signals": not upload})
        if not upload:
            self.proposals.note(image, params["model_version"], request.get("client_id"), request.get("client_address"))
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
        kept = bool(request.get("save_label")) and not upload
        names = [{"name": name, "idx": value} for name, value in params["label_names"].items()]
        info = {"model": NAME, "params": params, "label_info": names}
        label = datastore.save_label(image, file, tag, info) if kept else file
        return {"label": label, "tag": tag, "file": file, "params": params}

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        strategy = self.strategy(request.get("strategy") or "random")
        chosen = strategy(request, self.datastore())
        if chosen.get("missing"):
            self.async_scoring(NAME, {"strategy": strategy.name})
        return {**chosen, "path": self.datastore().get_image_uri(chosen["id"])} if chosen else {}

    def ranking(self, strategy: str, page: int, per_page: int) -> dict[str, Any]:
        """A page of what `strategy` would offer, which changes nothing."""
        name, scoring = self.strategy(strategy).name, read_progress(self.scoring_folder)
        return ranking_page(self.selector, name, self.datastore(), page, per_page, scoring)

    def strategy(self, name: str) -> NextStudy:
        if name not in self._strategies:
            raise UnknownError("strategy", name, self._strategies)
        return self._strategies[name]

    def async_scoring(self, method: str | None, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        task = queue_scoring(NAME, (params or {}).get("strategy"), self._read_scores)
        return task if method else {NAME: task}

    def _read_scores(self, task: Mapping[str, Any]) -> None:
        """Take what was scored into memory: the next client need not wait until thousands of files are read."""
        try:
            self.ranking("random", page=1, per_page=1)
        except VQSegError as error:
            logger.warning("scores are not read yet: %s", error)

    def _to_be_scored(self) -> Hashable | None:
        """Changes with the model that compares studies and with the studies. None without a model: one that is to be
        learnt from the images alone should see more than the first that comes."""
        model = self.cold_start.comparing().state()
        return None if model is None else (model, self.datastore().images_state())

    def check_model(self, model: str, version: str | None = None) -> Config:
        """Settings of the model that would answer. Another version than the live one is not loaded for it."""
        if model not in self._infers:
            raise UnknownError("model", model, self._infers)
        return self.live.find(version).config if version else self.live.predictor().config

    def check_image(self, image: str) -> str:
        known = self.datastore().list_images()
        if image not in known:
            raise UnknownError("image", image, known)
        return image

    def check_scoring(self, method: str) -> None:
        if method not in self._scoring_methods:
            raise UnknownError("scoring method", method, self._scoring_methods)

    def check_training(self, model: str, request: Mapping[str, Any]) -> None:
        if model not in self._trainers:
            raise UnknownError("trainer", model, self._trainers)
        self._trainers[model].check(request, self.datastore())
        # A training of this server is answered by MONAI Label itself: 429, or it is queued.
        if not processes("train"):
            self._trainers[model].check_free()

    def on_init_complete(self) -> None:
        end_failed_tasks()
        super().on_init_complete()
        if server := sys.modules.get("monailabel.app"):
            limit_forms(server.app)
            install(server.app, self.options.upload_gib)
            guard(server.app, self.accounts, self.options)
            # Last, so that it stands in front of the gate and sees whom that refuses.
            watch_requests(server.app, self.metrics, self.audit)
            # A child that trains or scores has no queue of its own.
            watch = (self._to_be_scored, lambda: self.async_scoring(NAME))
            threading.Thread(target=score_every_change, args=watch, name="scoring", daemon=True).start()
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        """Load the model and look at the labels, so that the first client does not wait."""
        try:
            self.current_labels()
            if self.live.version() is not None:
                self.live.predictor()
            elif "monailabel.app" in sys.modules and self.cold_start.is_missing() and self.datastore().list_images():
                self.async_scoring(NAME)
        except VQSegError as error:
            logger.warning("warm-up: %s", error)
