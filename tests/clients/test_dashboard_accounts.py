"""The dashboard of a server with accounts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from builders import write_nifti
from dashboard_page import WIDE, Dashboard
from playwright.sync_api import Error, Page, expect
from servers import APP, TINY, Server, python_module, serve
from watched_servers import QUICK, publish

from vqseg.tokens import ROLES, AccountFile

pytestmark = pytest.mark.slow
REFUSED = "reviewer is reviewer; this needs admin"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("guarded")
    accounts = AccountFile(folder / "accounts.json")
    tokens = {role: accounts.add(role, role) for role in ROLES}
    for seed in (0, 1):
        publish(folder / "run", {"lung": 1, "tumour": 2}, QUICK, seed)
    random = np.random.default_rng(0)
    for name in ("case", "labelled"):
        write_nifti(folder / "studies" / f"{name}.nii.gz", random.normal(size=(24, 24, 24)).astype(np.float32))
    write_nifti(folder / "mask.nii.gz", random.integers(0, 3, (24, 24, 24)).astype(np.uint8))
    # A training lasts until it is stopped, and publishes nothing.
    endless = {"train.steps": "1000000", "train.validate_every": "1000000"}
    conf = {**TINY, **endless, "labels": "lung,tumour", "accounts": str(accounts.path)}
    with serve(python_module(), str(APP), folder / "studies", folder, folder, conf, token=tokens["admin"]) as running:
        assert running.put_label("labelled", folder / "mask.nii.gz").ok
        yield running, tokens


@contextmanager
def as_role(role: str, guarded: tuple[Server, dict[str, str]], chromium: Any) -> Iterator[Page]:
    """The dashboard as an account of this role sees it."""
    server, tokens = guarded
    context = chromium.new_context(viewport=WIDE, http_credentials={"username": role, "password": tokens[role]})
    try:
        yield Dashboard(context.new_page(), server).page
    finally:
        context.close()


def test_with_accounts_the_browser_asks_for_a_token_and_the_page_says_what_a_role_may_not(
    guarded: tuple[Server, dict[str, str]], chromium: Any
) -> None:
    server, _ = guarded
    with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):  # a person would be asked now
        chromium.new_page().goto(f"{server.url}/vqseg/")
    with as_role("reviewer", guarded, chromium) as page:
        picture = page.locator("#ranking li img")
        expect(picture).to_have_count(1, timeout=600_000)  # once it is scored
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("one => one.naturalWidth") > 0
        before = server.stats()["state"]
        page.get_by_role("button", name="Start training").click()
        expect(page.locator("#training-refusal")).to_have_text(REFUSED)
        assert server.stats()["state"] == before


def test_only_an_admin_starts_and_stops_a_training(guarded: tuple[Server, dict[str, str]], chromium: Any) -> None:
    server, _ = guarded
    with as_role("admin", guarded, chromium) as admin, as_role("reviewer", guarded, chromium) as reviewer:
        admin.get_by_role("button", name="Start training").click()
        server.wait(lambda stats: stats["state"] == "running" and stats["step"] > 0)
        # Who may not stop it follows it all the same.
        stop = reviewer.locator("#stop")
        expect(stop).to_have_attribute("aria-disabled", "false", timeout=300_000)
        stop.click()
        expect(reviewer.locator("#training-refusal")).to_have_text(REFUSED)
        assert server.stats()["state"] == "running"
        admin.locator("#stop").click()
        server.wait(lambda stats: stats["state"] != "running")
        expect(reviewer.locator("#start")).to_have_attribute("aria-disabled", "false", timeout=300_000)


def test_only_an_admin_changes_which_version_is_live(guarded: tuple[Server, dict[str, str]], chromium: Any) -> None:
    server, _ = guarded
    live = server.get("/vqseg/models").json()["live"]
    for role in ("reviewer", "admin"):
        with as_role(role, guarded, chromium) as page:
            rollback, refusal = page.get_by_role("button", name="Roll back"), page.locator("#models-refusal")
            for press in (rollback, page.get_by_role("button", name="Make")):
                with page.expect_response(lambda answer: answer.request.method == "POST") as answered:
                    press.click()
                assert answered.value.status == (200 if role == "admin" else 403)
                if role == "reviewer":
                    expect(refusal).to_have_text(REFUSED)
                    assert server.get("/vqseg/models").json()["live"] == live
                elif press is rollback:
                    expect(page.locator(f'#models tr.live:not([data-version="{live}"])')).to_have_count(1)
                else:
                    expect(page.locator(f'#models tr.live[data-version="{live}"]')).to_have_count(1)
