"""OHIF where there are accounts: the browser asks for name and token, and the viewer needs no login of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from ohif import WINDOW, Viewer
from playwright.sync_api import Error
from running_pacs import RunningPACS
from servers import APP, TINY, Server, python_module, serve

from vqseg.tokens import AccountFile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> AccountFile:
    return AccountFile(tmp_path_factory.mktemp("accounts") / "accounts.json")


@pytest.fixture(scope="module")
def token(accounts: AccountFile) -> str:
    return accounts.add("anna", "annotator")


@pytest.fixture(scope="module")
def server(
    pacs: RunningPACS, accounts: AccountFile, token: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder, conf = tmp_path_factory.mktemp("ohif"), {**TINY, "labels": "lung,tumour", "accounts": str(accounts.path)}
    pacs.delete("SEG")
    with serve(python_module(), str(APP), pacs.dicomweb, folder, folder, conf, token=token) as running:
        yield running
    pacs.delete("SEG")


@pytest.mark.long
def test_an_annotator_draws_and_submits_with_what_the_browser_asked_for(
    server: Server, pacs: RunningPACS, token: str, chromium: Any
) -> None:
    with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):  # a person would be asked now
        chromium.new_context(viewport=WINDOW).new_page().goto(f"{server.url}/ohif/")

    series = pacs.series["phantom_0"]
    address = f"{pacs.dicomweb}/series"
    found = requests.get(address, params={"SeriesInstanceUID": series, "includefield": "0020000D"}, timeout=30).json()
    credentials = {"username": "anna", "password": token}
    viewer = Viewer(chromium.new_context(viewport=WINDOW, http_credentials=credentials).new_page(), server.url)
    viewer.open(found[0]["0020000D"]["Value"][0])
    viewer.hide_first_notice()
    assert viewer.brush("lung").of("lung").any()
    viewer.panel.get_by_label("Your name").fill("somebody else")
    viewer.press("Submit Label")
    viewer.expect_message("The label is saved.")
    assert {str(stored.ContentCreatorName) for stored in pacs.instances("SEG")} == {"anna"}
    viewer.press("Train")
    viewer.expect_message("anna is annotator; this needs admin")
    assert viewer.failures == []
