"""Routes in front of those of MONAI Label 0.8.5, which they call after checking the request.

Reasons: the stock ones are `async def` around synchronous code, so that nothing else is answered while one runs;
unknown names and broken JSON end in a 500 or in a task that fails later; `params` can set what the address says.
A route declared with `def` runs in a thread.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Body, FastAPI, File, Form, Request, UploadFile
from fastapi.middleware import Middleware
from monailabel.config import settings
from monailabel.endpoints import batch_infer, datastore, train
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import tasks

from vqseg.errors import ConfigError, VQSegError
from vqseg.training.status import training_process

from . import (
    codebook_routes,
    dashboard,
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
from .errors_over_rest import UnknownError, add_handlers
from .labels import names_of
from .request_rules import AsAdmin, AsAnnotator, AsUser, ClientAddress, check_body, json_object
from .upload_limits import BodyLimit

logger = logging.getLogger(__name__)
router = APIRouter()

JSONBody = Annotated[dict[str, Any] | None, Body()]
FormText = Annotated[str, Form()]


def install(application: FastAPI, upload_gib: float) -> None:
    """Put the routes in front of the running application's own, with our answers to errors and a limit on bodies."""
    routes = application.router.routes
    # Inside the others, so that a browser of another origin can read the answer.
    application.user_middleware.append(Middleware(BodyLimit, upload_gib))
    modules = (
        inference_routes,
        ranking,
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


@router.post("/train/", tags=["Train"], include_in_schema=False)
def run_all_trainings(user: AsAdmin, params: JSONBody = None, run_sync: bool = False) -> Any:
    """The body holds options for all trainers, and by name of a trainer options for it alone."""
    params = dict(params or {})
    trainers = list(app_instance().info()["trainers"])
    common = {key: value for key, value in params.items() if key not in trainers}
    result = {}
    for model in trainers:
        own = params.get(model) or {}
        if not isinstance(own, dict):
            raise ConfigError(f"{model}: expected the options of this trainer as a JSON object")
        result[model] = {"result": run_training(model, user, {**common, **own}, run_sync), "detail": None}
    return result


@router.post("/train/{model}", tags=["Train"], summary="Train on the labelled and on all unlabelled studies")
def run_training(
    model: str, user: AsAdmin, params: JSONBody = None, run_sync: bool = False, enqueue: bool = False
) -> Any:
    params = check_body(params)
    app_instance().check_training(model, params)
    return train.run_model(model, params, run_sync, enqueue)


@router.get("/train/", tags=["Train"], summary="The training that runs, or the last one")
def training_task(user: AsUser, all: bool = False, check_if_running: bool = False) -> Any:
    if orphan := app_instance().orphan.task():
        return [*tasks("train"), orphan] if all else orphan
    return train.status(all, check_if_running)


@router.delete("/train/", tags=["Train"], summary="Stop the training; the next one goes on where it stood")
def stop_training(user: AsAdmin, afterwards: BackgroundTasks) -> Any:
    app = app_instance()
    # It is killed, so it cannot write its report itself.
    if training_process(app.run):
        afterwards.add_task(report_routes.report_when_ended, app.run)
    return app.orphan.stop() or train.stop()


@router.post("/scoring/", tags=["Scoring"], include_in_schema=False)
def run_all_scorings(user: AsAnnotator) -> Any:
    return {method: {"result": task} for method, task in app_instance().async_scoring(None).items()}


@router.post("/scoring/{method}", tags=["Scoring"], summary="Work out what a strategy chooses by, of all studies")
def run_scoring(method: str, user: AsAnnotator, run_sync: bool = False, strategy: str = "random") -> Any:
    app = app_instance()
    app.check_scoring(method)
    wanted = {"strategy": app.strategy(strategy).name}
    return app.scoring({"method": method, **wanted}) if run_sync else app.async_scoring(method, wanted)


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Segment many images and keep the masks")
def run_batch(
    model: str,
    user: AsAdmin,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: JSONBody = None,
    run_sync: bool = False,
) -> Any:
    app_instance().check_model(model)
    params = {key: value for key, value in check_body(params).items() if key in ("label_tag", "max_batch_size")}
    return batch_infer.run(model, images, params, run_sync)


@router.get("/info/", tags=["App"], summary="What the server has, and how its training stands")
def describe_server(user: AsUser) -> Any:
    return app_instance().info()


@router.get("/datastore/image", tags=["Datastore"], summary="Download an image")
def download_image(user: AsUser, image: str) -> Any:
    return datastore.download_image(image)


@router.head("/datastore/image", include_in_schema=False)
def look_for_image(user: AsUser, image: str, check_sum: str | None = None) -> Any:
    return datastore.download_image(image, check_only=True, check_sum=check_sum)


@router.get("/datastore/label", tags=["Datastore"], summary="Download a label")
def download_label(user: AsUser, label: str, tag: str) -> Any:
    return datastore.download_label(label, tag)


@router.head("/datastore/label", include_in_schema=False)
def look_for_label(user: AsUser, image: str, tag: str) -> Any:
    return datastore.download_label(image, tag, check_only=True)


@router.put("/datastore/", tags=["Datastore"], include_in_schema=False)
@router.put("/datastore/image", tags=["Datastore"], summary="Add an image")
def add_image(
    user: AsAnnotator,
    file: Annotated[UploadFile, File()],
    image: str | None = None,
    params: FormText = "{}",
) -> Any:
    info = {**json_object(params), "user": user.username}
    app = app_instance()
    name = image or Path(file.filename or "").name.partition(".")[0]
    with app.uploads.received(file, name) as received:
        return {"image": app.datastore().add_image(name, str(received), info)}


@router.put("/datastore/label", tags=["Datastore"], summary="Submit a label")
def save_label(
    user: AsAnnotator,
    address: ClientAddress,
    image: str,
    label: Annotated[UploadFile, File()],
    params: FormText = "{}",
    tag: str = DefaultLabelTag.FINAL.value,
) -> Any:
    given, app = json_object(params), app_instance()
    proposed = app.proposals.version(image, given.get("client_id"), address)
    info = given | {"model_version": given.get("model_version") or proposed} | signature(user)
    with app.uploads.received(label, image, is_mask=True) as received:
        kept = app.datastore().save_label(image, str(received), tag or DefaultLabelTag.FINAL.value, info)
    return {**(app.on_save_label(image, kept) or {}), "image": image, "label": kept}


@router.get("/datastore/image/info", tags=["Datastore"], summary="What is kept with an image")
def image_info(user: AsUser, image: str) -> Any:
    return app_instance().datastore().get_image_info(app_instance().check_image(image))


@router.put("/datastore/image/info", tags=["Datastore"], summary="Add to what is kept with an image")
def update_image_info(user: AsAnnotator, image: str, info: FormText = "{}") -> Any:
    json_object(info, "info")
    app_instance().check_image(image)
    return datastore.update_image_info(image, info, user.username)


@router.get("/datastore/label/info", tags=["Datastore"], summary="What is kept with a label")
def label_info(user: AsUser, label: str, tag: str) -> Any:
    studies = app_instance().datastore()
    if tag not in studies.get_labels_by_image_id(app_instance().check_image(label)):
        raise UnknownError(f"label ({tag})", label, studies.get_labeled_images(tag))
    return studies.get_label_info(label, tag)


@router.put("/datastore/label/info", tags=["Datastore"], summary="Add to what is kept with a label")
def update_label_info(user: AsAnnotator, label: str, tag: str, info: FormText = "{}") -> Any:
    names_of(json_object(info, "info").get("label_info"))
    return datastore.update_label_info(label, tag, info, user.username)


@router.put("/datastore/updatelabelinfo", tags=["Datastore"], include_in_schema=False)
def update_label_info_as_before(user: AsAnnotator, label: str, tag: str, params: FormText = "{}") -> Any:
    return update_label_info(user, label, tag, params)
