"""Routes in front of those of MONAI Label 0.8.5, which they call after checking the request.

Reasons: the stock ones are `async def` around synchronous code, so that nothing else is answered while one runs;
unknown names and broken JSON end in a 500 or in a task that fails later; `params` can set what the address says.
A route declared with `def` runs in a thread.
"""

from __future__ import annotations

import logging
import time
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Body, FastAPI, Request
from fastapi.middleware import Middleware
from monailabel.config import settings
from monailabel.endpoints import batch_infer, train
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import tasks

from vqseg.errors import ConfigError, VQSegError
from vqseg.training.status import training_process

from . import (
    codebook_routes,
    dashboard,
    dataset_archive,
    datastore_routes,
    health,
    inference_routes,
    label_routes,
    live_events,
    metrics,
    model_routes,
    pacs_proxy,
    ranking,
    report_routes,
    session_routes,
    study_pictures,
    training_routes,
    viewer,
)
from .accounts import signature
from .bulkhead import AsksForStudies
from .datastore import check_tag
from .errors_over_rest import add_handlers
from .request_rules import AsAdmin, AsAnnotator, AsUser, ClientAddress, InBackground, check_body, without_reserved
from .upload_limits import BodyLimit

logger = logging.getLogger(__name__)
router = APIRouter()

JSONBody = Annotated[dict[str, Any] | None, Body()]


def install(application: FastAPI, upload_gib: float) -> None:
    """Put the routes in front of the running application's own, with our answers to errors and a limit on bodies."""
    routes = application.router.routes
    # Inside the others, so that a browser of another origin can read the answer.
    application.user_middleware.append(Middleware(BodyLimit, upload_gib))
    modules = (
        inference_routes,
        ranking,
        datastore_routes,
        dataset_archive,
        label_routes,
        model_routes,
        session_routes,
        health,
        metrics,
        training_routes,
        report_routes,
        codebook_routes,
        study_pictures,
        live_events,
        dashboard,
        pacs_proxy,
        viewer,
    )
    for own in (router, *(module.router for module in modules)):
        application.include_router(own, prefix=settings.MONAI_LABEL_API_STR)
        routes.insert(0, routes.pop())
    add_handlers(application)


@router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="The study to label next")
async def next_study(
    request: Request, strategy: str, user: AsUser, address: ClientAddress, params: JSONBody = None
) -> Any:
    params = check_body(params)
    # OHIF sends none; without one all its users would share one reservation.
    client = params.get("client_id") or signature(user).get("client_id", address or user.username)
    offered = await app_instance().selections.run(request, lambda: _offer(strategy, client, params))
    request.state.image = offered.get("id")  # for the audit log
    return offered


def _offer(strategy: str, client: str, params: dict[str, Any]) -> dict[str, Any]:
    app = app_instance()
    chosen = app.next_sample({**params, "client_id": client, "strategy": strategy})
    if not chosen:
        return {}
    studies = app.datastore()
    info = studies.get_image_info(chosen["id"])
    offered = info.get("strategy") if isinstance(info.get("strategy"), dict) else {}
    offered = {**offered, strategy: {"ts": int(time.time()), "client_id": client}}
    try:
        studies.update_image_info(chosen["id"], {"strategy": offered})
    except (OSError, VQSegError) as error:
        logger.warning("%s: not noted as offered (%s)", chosen["id"], error)
    # monailabel 0.8.5 merges it the other way round, so that whoever writes an image's info writes the reply.
    return {**info, **chosen, "strategy": offered}


@router.post("/train/", tags=["Train"], include_in_schema=False, dependencies=[AsksForStudies, InBackground])
def run_all_trainings(user: AsAdmin, params: JSONBody = None) -> Any:
    """The body holds options for all trainers, and by name of a trainer options for it alone."""
    params = dict(params or {})
    trainers = list(app_instance().info()["trainers"])
    common = {key: value for key, value in params.items() if key not in trainers}
    result = {}
    for model in trainers:
        own = params.get(model) or {}
        if not isinstance(own, dict):
            raise ConfigError(f"{model}: expected the options of this trainer as a JSON object")
        result[model] = {"result": _start_training(model, {**common, **own}), "detail": None}
    return result


@router.post(
    "/train/{model}",
    tags=["Train"],
    summary="Train on the labelled and on all unlabelled studies",
    dependencies=[AsksForStudies, InBackground],
)
def run_training(model: str, user: AsAdmin, params: JSONBody = None, enqueue: bool = False) -> Any:
    return _start_training(model, params, enqueue)


def _start_training(model: str, params: dict[str, Any] | None, enqueue: bool = False) -> Any:
    params = check_body(params)
    app_instance().check_training(model, params)
    return train.run_model(model, without_reserved(params), run_sync=False, enqueue=enqueue)


@router.get("/train/", tags=["Train"], summary="The training that runs, or the last one")
def training_task(user: AsUser, all: bool = False, check_if_running: bool = False) -> Any:
    if orphan := app_instance().orphan.task():
        return [*tasks("train"), orphan] if all else orphan
    return train.status(all, check_if_running)


@router.delete("/train/", tags=["Train"], summary="Stop the training; with the same options it can go on")
def stop_training(user: AsAdmin, afterwards: BackgroundTasks) -> Any:
    app = app_instance()
    # It is killed, so it cannot write its report itself.
    if training_process(app.run):
        afterwards.add_task(report_routes.report_when_ended, app.run)
    return app.orphan.stop() or train.stop()


@router.post("/scoring/", tags=["Scoring"], include_in_schema=False, dependencies=[InBackground])
def run_all_scorings(user: AsAnnotator) -> Any:
    return {method: {"result": task} for method, task in app_instance().async_scoring(None).items()}


@router.post(
    "/scoring/{method}",
    tags=["Scoring"],
    summary="Work out what a strategy chooses by, of all studies",
    dependencies=[InBackground],
)
def run_scoring(method: str, user: AsAnnotator, strategy: str = "random") -> Any:
    app = app_instance()
    app.check_scoring(method)
    return app.async_scoring(method, {"strategy": app.strategy(strategy).name})


@router.post(
    "/batch/infer/{model}",
    tags=["Infer"],
    summary="Segment many images and keep the masks",
    dependencies=[InBackground],
)
def run_batch(
    model: str,
    user: AsAdmin,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: JSONBody = None,
) -> Any:
    app_instance().check_model(model)
    params = {key: value for key, value in check_body(params).items() if key in ("label_tag", "max_batch_size")}
    check_tag(str(params.get("label_tag") or DefaultLabelTag.ORIGINAL.value))
    if not isinstance(params.get("max_batch_size") or 0, int):
        raise ConfigError(f"max_batch_size={params['max_batch_size']!r}: expected a number of images")
    return batch_infer.run(model, images, params, run_sync=False)


@router.get("/info/", tags=["App"], summary="What the server has, and how its training stands")
def describe_server(user: AsUser) -> Any:
    return app_instance().info()
