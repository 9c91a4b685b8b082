"""A server that is watched: health, metrics and the audit log, of a real process; no patient's name in any of them."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from workplaces import Workplace

CANARY = "Zwitschermann"


def samples(server: Any) -> dict[tuple[str, ...], float]:
    """Name and label values in alphabetical order of the labels -> value."""
    reply = server.get("/vqseg/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def wait_for(reached: Callable[[], bool]) -> None:
    """A request is counted when its answer was sent, which the client may have read before."""
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def audited(server: Any) -> list[dict[str, Any]]:
    log = server.run / "audit.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def test_a_server_without_a_model_is_ready_for_the_first_labels(fresh: Any) -> None:
    assert fresh.get("/vqseg/health/live").json() == {"live": True}
    ready = fresh.get("/vqseg/health/ready")
    assert ready.status_code == 200, ready.text
    assert ready.json() == {"ready": True, "checks": {"datastore": "ok", "model": "ok", "disk": "ok"}}
    assert fresh.get("/vqseg/health").json() == {"live": True, **ready.json()}


def test_a_model_is_loaded_before_anybody_is_sent_here(tmp_path: Path, app_module: Any) -> None:
    health, place = app_module("health"), Workplace(tmp_path, app_module)
    assert health.model_fault(place.live) is None
    place.publish()
    assert health.model_fault(place.live) is None
    assert place.live.labels()
    place.publish(1)
    (place.run / "models" / "0002" / "model.safetensors").write_bytes(b"damaged")
    assert health.model_fault(place.live) is None  # the version before it serves
    (place.run / "models" / "0001" / "model.safetensors").write_bytes(b"damaged, too")
    fresh = app_module("live_model").LiveModel(place.run, "cpu")
    assert "every published model is damaged" in health.model_fault(fresh)


def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path, app_module: Any) -> None:
    fault = app_module("health").disk_fault
    assert fault([tmp_path / "not" / "yet" / "there"], least=0) is None
    assert "MB are free" in fault([tmp_path], least=1e18)


def test_requests_are_counted_by_route_and_never_by_id(trained: Any) -> None:
    def seen(*labels: str) -> float:
        return samples(trained).get(("vqseg_request_seconds_count", *labels), 0.0)

    before = [seen("POST", "/infer/{model}", status) for status in ("2xx", "4xx")]
    inferences = samples(trained).get(("vqseg_inference_seconds_count", "done"), 0.0)
    for image in ("case_05", "case_06"):
        assert trained.infer(image).ok
    assert trained.infer(CANARY).status_code == 404
    assert trained.get(f"/{CANARY}").status_code == 404
    requests.request(CANARY.upper(), f"{trained.url}/info/", timeout=60)
    wait_for(lambda: seen("POST", "/infer/{model}", "2xx") == before[0] + 2)
    wait_for(lambda: seen("POST", "/infer/{model}", "4xx") == before[1] + 1)
    assert samples(trained)["vqseg_inference_seconds_count", "done"] == inferences + 2
    text = trained.get("/vqseg/metrics").text
    assert "case_0" not in text
    assert CANARY.lower() not in text.lower()


def test_metrics_say_how_the_server_stands(trained: Any) -> None:
    found, stats, counts = samples(trained), trained.stats(), trained.get("/datastore/").json()
    assert found["vqseg_images",] == counts["total"]
    assert found["vqseg_labels", "final"] == counts["completed"]
    assert found["vqseg_training_state", "done"] == 1.0
    assert sum(value for (name, *_), value in found.items() if name == "vqseg_training_state") == 1.0
    assert found["vqseg_training_step",] == stats["step"] == found["vqseg_training_steps_total",]
    assert found["vqseg_training_validation_dice",] == pytest.approx(stats["validation"]["dice"])
    assert found["vqseg_model_info", trained.get("/vqseg/ranking").json()["model_version"]] == 1.0
    assert (found["vqseg_inferences_running",], found["vqseg_inferences_waiting",]) == (0.0, 0.0)
    assert found["process_resident_memory_bytes",] > 1e8
    assert found["process_open_fds",] > 3


def test_the_audit_log_says_who_did_what_to_which_study(trained: Any) -> None:
    before = len(audited(trained))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: trained.infer(f"case_0{number}"), (5, 6, 7, 8)))
    trained.get("/info/")
    trained.get("/datastore/image", image="case_05")
    trained.get("/datastore/label", label="case_00", tag="final")
    form = {"info": (None, '{"note": "Zwitschermann"}')}
    requests.put(f"{trained.url}/datastore/image/info", params={"image": "case_05"}, files=form, timeout=60)
    offered = trained.post("/activelearning/random").json()["id"]
    trained.get("/vqseg/labels/case_00/9999")
    requests.delete(f"{trained.url}/datastore/label", params={"id": "case_05", "tag": "none"}, timeout=60)
    lines = audited(trained)[before:]
    assert sorted(line["image"] for line in lines[:4]) == ["case_05", "case_06", "case_07", "case_08"]
    assert {(line["method"], line["route"], line["status"]) for line in lines[:4]} == {("POST", "/infer/{model}", 200)}
    told = [(line["method"], line["route"], line["image"], line["status"] // 100) for line in lines[4:]]
    assert told[:5] == [
        ("GET", "/datastore/image", "case_05", 2),
        ("GET", "/datastore/label", "case_00", 2),
        ("PUT", "/datastore/image/info", "case_05", 2),
        ("POST", "/activelearning/{strategy}", offered, 2),
        ("GET", "/vqseg/labels/{image}/{version}", "case_00", 4),
    ]
    assert told[5][:3] == ("DELETE", "/datastore/label", "case_05")
    assert {(line["user"], line["client"], line["time"][-1]) for line in lines} == {(None, "127.0.0.1", "Z")}
    assert CANARY not in json.dumps(lines)


@settings(max_examples=15, deadline=None)
@given(names=st.lists(st.text(max_size=40), min_size=1, max_size=12))
def test_lines_of_threads_stay_whole_whatever_is_in_them(
    tmp_path_factory: Any, app_module: Any, names: list[str]
) -> None:
    run = tmp_path_factory.mktemp("audit")
    log = app_module("audit").AuditLog(run, largest_bytes=1500)

    def note(name: str) -> None:
        scope = {"method": "POST", "path_params": {"image": name}, "client": ("::1", 1), "query_string": b""}
        log.note(scope, "/x/{image}", 200)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(note, names))
    log.close()
    files = sorted(run.glob("audit.jsonl*"))
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert sorted(line["image"] or "" for line in lines) == sorted(names)
    assert all(file.stat().st_size <= 1500 for file in files)


def test_a_series_read_slice_by_slice_is_one_access(tmp_path: Path, app_module: Any) -> None:
    log = app_module("audit").AuditLog(tmp_path)
    for number in range(50):
        path = f"/proxy/dicom/wado/studies/1.2/series/1.2.3/instances/1.2.3.{number}"
        log.note({"method": "GET", "path": path}, "/proxy/dicom/{path:path}", 200)
    log.note({"method": "GET", "path": "/proxy/dicom/qido/studies"}, "/proxy/dicom/{path:path}", 200)
    log.close()
    (line,) = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert line["image"] == "1.2.3"


@pytest.mark.parametrize("path", ["%73tudies/1.2/series/1.2.3", "studies%2F1.2%2Fseries%2F1.2.3", "%2573tudies/1.2.3"])
def test_a_series_is_noted_however_its_address_is_encoded(tmp_path: Path, app_module: Any, path: str) -> None:
    """The server decodes an address once, and the proxy as often as there is something to decode."""
    log = app_module("audit").AuditLog(tmp_path)
    log.note({"method": "GET", "path": f"/proxy/dicom/wado/{path}"}, "/proxy/dicom/{path:path}", 200)
    log.close()
    (line,) = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert line["image"] == "1.2.3"


def test_an_audit_log_that_cannot_be_written_stops_no_request(
    tmp_path: Path, app_module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be", encoding="utf-8")
    log = app_module("audit").AuditLog(tmp_path / "run")
    log.note({"method": "PUT"}, "/x", 200)
    assert "the audit log cannot be written" in caplog.text


@pytest.fixture(scope="module")
def named(serve_app: Any, app_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server whose studies carry a patient's name in every field of their headers that holds text."""
    folder = tmp_path_factory.mktemp("named")
    studies = folder / "studies"
    Workplace(folder, app_module).publish()
    for number in range(2):
        image = nib.Nifti1Image(np.random.default_rng(number).normal(size=(8, 8, 8)).astype(np.float32), np.eye(4))
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[field] = CANARY.encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY.encode()))
        nib.save(image, studies / f"case_{number}.nii.gz")
    whole = (studies / "case_0.nii.gz").read_bytes()
    (studies / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    with serve_app(studies, folder, {"labels": "lung,tumour"}) as server:
        yield server


def test_a_server_without_its_studies_is_not_ready_but_lives(named: Any, tmp_path: Path) -> None:
    elsewhere = named.studies.with_name("elsewhere")
    named.studies.rename(elsewhere)
    try:
        ready = named.get("/vqseg/health/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert ready.json()["checks"]["datastore"] == "failing"
        health = named.get("/vqseg/health")
        assert health.status_code == 200
        assert "studies" in health.json()["checks"]["datastore"]
        assert named.get("/vqseg/health/live").ok
    finally:
        elsewhere.rename(named.studies)
    assert named.get("/vqseg/health/ready").ok


def test_a_damaged_pointer_is_told_and_a_whole_version_serves(named: Any) -> None:
    pointer = named.run / "models" / "live.json"
    whole = pointer.read_bytes()
    assert named.infer("case_0").ok
    pointer.write_bytes(whole[: len(whole) // 2])
    try:
        assert named.infer("case_0").ok
        health = named.get("/vqseg/health").json()
        assert "live.json is damaged, so version 0001" in health["warnings"]["model"]
        assert named.get("/vqseg/health/ready").ok
        assert named.post("/vqseg/models/0001/live").ok
        assert "warnings" not in named.get("/vqseg/health").json()
    finally:
        pointer.write_bytes(whole)


DECOY = "decoy"


def noted(server: Any, method: str, path: str, *query: tuple[str, str], **files: tuple[str, bytes]) -> Any:
    """The one line that a request adds to the audit log: its route, image and status."""
    before = len(audited(server))
    requests.request(method, f"{server.url}{path}", params=list(query), files=files or None, timeout=60)
    (line,) = audited(server)[before:]
    return line["route"], line["image"], line["status"]


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("DELETE", "/datastore/", "id"),
        ("PUT", "/datastore/", "image"),
        ("DELETE", "/datastore/image", "id"),
        ("GET", "/datastore/image", "image"),
        ("PUT", "/datastore/image", "image"),
        ("PUT", "/datastore/image/info", "image"),
        ("DELETE", "/datastore/label", "id"),
        ("GET", "/datastore/label", "label"),
        ("PUT", "/datastore/label", "image"),
        ("PUT", "/datastore/label/info", "label"),
        ("PUT", "/datastore/updatelabelinfo", "label"),
        ("POST", "/infer/vqseg", "image"),
    ],
)
def test_no_other_parameter_hides_which_study_a_request_is_about(named: Any, method: str, path: str, name: str) -> None:
    """The study does not exist, so that nothing changes."""
    decoys = [(one, DECOY) for one in ("image", "label", "id", "session")]
    before = noted(named, method, path, *decoys, (name, "gone"), ("tag", "final"))
    after = noted(named, method, path, (name, DECOY), (name, "gone"), ("tag", "final"), ("source", DECOY))
    assert (before[1], after[1]) == ("gone", "gone")
    assert before[2] // 100 == after[2] // 100 == 4


def test_what_was_done_is_noted_of_the_study_it_was_done_to(named: Any, tmp_path: Path) -> None:
    sent = (named.studies / "case_1.nii.gz").read_bytes()
    image = nib.load(named.studies / "case_1.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), image.affine), tmp_path / "label.nii.gz")
    mask, decoy = ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes()), ("image", DECOY)
    put, final = ("image", "case_1"), ("tag", "final")
    assert noted(named, "PUT", "/datastore/label", decoy, put, label=mask) == ("/datastore/label", "case_1", 200)
    got = noted(named, "GET", "/datastore/label", ("label", "case_1"), final, decoy)
    assert got == ("/datastore/label", "case_1", 200)
    removed = noted(named, "DELETE", "/datastore/label", ("id", "case_1"), final, decoy)
    assert removed == ("/datastore/label", "case_1", 200)
    added = noted(named, "PUT", "/datastore/image", ("id", DECOY), file=("named_by_its_file.nii.gz", sent))
    assert added == ("/datastore/image", "named_by_its_file", 200)
    removed = noted(named, "DELETE", "/datastore/image", decoy, ("id", "named_by_its_file"))
    assert removed == ("/datastore/image", "named_by_its_file", 200)
    # No study of the datastore is segmented, whatever else is said.
    assert noted(named, "POST", "/infer/vqseg", decoy, file=("a.nii.gz", sent)) == ("/infer/{model}", None, 200)


@pytest.mark.parametrize("kind", ["picture", "codes"])
def test_a_picture_of_a_study_is_an_access_to_it(named: Any, kind: str) -> None:
    route = f"/vqseg/studies/{{image}}/{kind}"
    assert noted(named, "GET", f"/vqseg/studies/case_1/{kind}", ("image", DECOY)) == (route, "case_1", 200)
    before = len(audited(named))
    assert named.get(f"/vqseg/studies/case_1/{kind}").ok
    assert len(audited(named)) == before  # the dashboard shows it again and again
    assert noted(named, "GET", f"/vqseg/studies/case_0/{kind}") == (route, "case_0", 200)


def test_the_image_of_a_session_is_named_by_the_session(target: Any) -> None:
    image = ("image.nii.gz", (target.studies / "case_04.nii.gz").read_bytes())
    before, decoy = len(audited(target)), {"image": "case_00"}
    kept = requests.put(f"{target.url}/session/", params=decoy, files=[("files", image)], timeout=60)
    session = kept.json()["session_id"]
    assert target.get(f"/session/{session}").ok
    for shown in ("true", "1"):
        assert target.get(f"/session/{session}", image=shown).content == image[1]
    with target.leaving_nothing():  # whoever has this server next may list its files
        assert target.infer("case_00", session_id=session).ok
    assert target.delete(f"/session/{session}").ok
    assert [(line["method"], line["route"], line["image"], line["status"]) for line in audited(target)[before:]] == [
        ("PUT", "/session/", session, 200),
        ("GET", "/session/{session_id}", session, 200),
        ("GET", "/session/{session_id}", session, 200),
        ("POST", "/infer/{model}", session, 200),
        ("DELETE", "/session/{session_id}", session, 200),
    ]


def test_a_report_which_shows_slices_of_many_studies_is_one_access(app_module: Any, tmp_path: Path) -> None:
    log = app_module("audit").AuditLog(tmp_path)
    scope = {"method": "GET", "path_params": {"name": "report.html"}, "client": ("::1", 1), "query_string": b"image=x"}
    log.note(scope, "/vqseg/reports/{name}", 200)
    log.close()
    (line,) = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (line["route"], line["image"]) == ("/vqseg/reports/{name}", None)


def test_the_name_of_a_patient_is_nowhere(named: Any, tmp_path: Path) -> None:
    image = nib.load(named.studies / "case_0.nii.gz")
    mask = nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), image.affine, image.header)
    mask.header.set_data_dtype(np.uint8)
    nib.save(mask, tmp_path / "label.nii.gz")
    wrong = nib.Nifti1Image(np.full((8, 8, 8), 9, np.uint8), image.affine, mask.header)
    nib.save(wrong, tmp_path / "wrong.nii.gz")
    sent = (named.studies / "case_1.nii.gz").read_bytes()

    def add(name: str, content: bytes) -> requests.Response:
        form = {"file": ("sent.nii.gz", content)}
        return requests.put(f"{named.url}/datastore/image", params={"image": name}, files=form, timeout=60)

    prediction = named.infer("case_0", output="image")
    assert prediction.ok, prediction.text
    assert CANARY.encode() not in gzip.decompress(prediction.content)
    replies = [
        named.put_label("case_0", tmp_path / "label.nii.gz"),
        named.put_label("case_0", tmp_path / "wrong.nii.gz"),
        named.put_label("broken", tmp_path / "label.nii.gz"),
        named.infer("broken"),
        add("added", sent),
        add("cut", sent[:99]),
        named.post("/activelearning/random"),
        named.get("/vqseg/labels/case_0"),
        named.get("/vqseg/metrics"),
        named.get("/info/"),
        named.get("/datastore/", output="all"),
    ]
    assert not [reply.url for reply in replies if CANARY in reply.text]
    folder = named.run.parent
    assert not [place for place, _, files in os.walk(folder) if CANARY in place or CANARY in "".join(files)]
    texts = [folder / "server.log", *named.run.rglob("*.json*"), named.studies / "datastore_v2.json"]
    assert not [text for text in texts if CANARY in text.read_text(encoding="utf-8")]
