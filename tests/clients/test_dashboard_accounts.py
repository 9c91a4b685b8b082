"""The dashboard of a server with accounts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from builders import write_nifti
from dashboard_page import WIDE, Dashboard
from playwright.sync_api import Error, expect
from servers import APP, TINY, Server, python_module, serve
from watched_servers import QUICK, publish

from vqseg.tokens import ROLES, AccountFile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("guarded")
    accounts = AccountFile(folder / "accounts.json")
    tokens = {role: accounts.add(role, role) for role in ROLES}
    for seed in (0, 1):
        publish(folder / "run", {"lung": 1, "tumour": 2}, QUICK, seed)
    voxels = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    write_nifti(folder / "studies" / "case.nii.gz", voxels)
    conf = {**TINY, "labels": "lung,tumour", "accounts": str(accounts.path)}
    with serve(python_module(), str(APP), folder / "studies", folder, folder, conf, token=tokens["admin"]) as running:
        yield running, tokens


def test_with_accounts_the_browser_asks_for_a_token_and_the_page_says_what_a_role_may_not(
    guarded: tuple[Server, dict[str, str]], chromium: Any
) -> None:
    server, tokens = guarded
    with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):  # a person would be asked now
        chromium.new_page().goto(f"{server.url}/vqseg/")
    credentials = {"username": "reviewer", "password": tokens["reviewer"]}
    context = chromium.new_context(viewport=WIDE, http_credentials=credentials)
    dashboard = Dashboard(context.new_page(), server)
    picture = dashboard.page.locator("#ranking li img")
    expect(picture).to_have_count(1)
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("one => one.naturalWidth") > 0
    dashboard.page.get_by_role("button", name="Start training").click()
    expect(dashboard.page.locator("#training-refusal")).to_have_text("reviewer is reviewer; this needs admin")
    assert server.stats()["state"] == "none"
    context.close()


def test_only_an_admin_changes_which_version_is_live(guarded: tuple[Server, dict[str, str]], chromium: Any) -> None:
    server, tokens = guarded
    live = server.get("/vqseg/models").json()["live"]
    for role in ("reviewer", "admin"):
        context = chromium.new_context(viewport=WIDE, http_credentials={"username": role, "password": tokens[role]})
        page = Dashboard(context.new_page(), server).page
        rollback, refusal = page.get_by_role("button", name="Roll back"), page.locator("#models-refusal")
        for press in (rollback, page.get_by_role("button", name="Make")):
            with page.expect_response(lambda answer: answer.request.method == "POST") as answered:
                press.click()
            assert answered.value.status == (200 if role == "admin" else 403)
            if role == "reviewer":
                expect(refusal).to_have_text("reviewer is reviewer; this needs admin")
                assert server.get("/vqseg/models").json()["live"] == live
            elif press is rollback:
                expect(page.locator(f'#models tr.live:not([data-version="{live}"])')).to_have_count(1)
            else:
                expect(page.locator(f'#models tr.live[data-version="{live}"]')).to_have_count(1)
        context.close()
