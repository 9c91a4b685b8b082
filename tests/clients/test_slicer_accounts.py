"""3D Slicer's own client, unmodified, where there are accounts: with the name and the token of one it works."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from builders import write_nifti
from servers import APP, TINY, Server, python_module, serve

from vqseg.tokens import AccountFile

# Slicer's client leaves its sockets, and the images it sends, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed (<socket|file <_io):ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <(socket|_io.FileIO):pytest.PytestUnraisableExceptionWarning"
    ),
]
VOXELS = np.arange(16**3).reshape(16, 16, 16)


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> AccountFile:
    return AccountFile(tmp_path_factory.mktemp("accounts") / "accounts.json")


@pytest.fixture(scope="module")
def tokens(accounts: AccountFile) -> dict[str, str]:
    return {"anna": accounts.add("anna", "annotator"), "ada": accounts.add("ada", "admin")}


@pytest.fixture(scope="module")
def server(accounts: AccountFile, tokens: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("slicer")
    write_nifti(folder / "studies" / "case.nii.gz", VOXELS.astype(np.float32))
    conf = {**TINY, "labels": "lung,tumour", "accounts": str(accounts.path)}
    with serve(python_module(), str(APP), folder / "studies", folder, folder, conf, token=tokens["ada"]) as running:
        yield running


@pytest.fixture
def client_of(client_module: ModuleType, server: Server, tmp_path: Path) -> Callable[[str, str], Any]:
    """A client as the module makes one for each thing it does, after its user has filled in the login."""

    def make(username: str, password: str) -> Any:
        client = client_module.MONAILabelClient(server.url, str(tmp_path), "slicer-user")
        assert client.auth_enabled()
        client.update_auth(client.auth_token(username, password))
        assert client.auth_valid_token()
        return client

    return make


def test_without_a_login_the_client_is_refused(client_module: ModuleType, server: Server, tmp_path: Path) -> None:
    client = client_module.MONAILabelClient(server.url, str(tmp_path), "slicer-user")
    assert client.auth_enabled()
    assert not client.auth_valid_token()
    with pytest.raises(client_module.MONAILabelClientException, match=r"401.*needs an account"):
        client.info()
    for password in ("", "wrong", "vqseg_wrong"):
        with pytest.raises(client_module.MONAILabelClientException):
            client.auth_token("anna", password)


def test_an_annotator_does_the_work_of_one(
    client_of: Callable[[str, str], Any],
    client_module: ModuleType,
    server: Server,
    tokens: dict[str, str],
    tmp_path: Path,
) -> None:
    def anna() -> Any:
        return client_of("anna", tokens["anna"])

    assert anna().info()["labels"] == ["lung", "tumour"]
    assert anna().next_sample("uniform", {})["id"] == "case"
    image = write_nifti(tmp_path / "own.nii.gz", VOXELS.astype(np.float32))
    session = anna().create_session(str(image))["session_id"]
    assert anna().get_session(session)
    anna().remove_session(session)
    anna().upload_image(str(image), "own")

    mask = write_nifti(tmp_path / "mask.nii.gz", (VOXELS % 3).astype(np.uint8))
    names = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
    anna().save_label("case", str(mask), params={"label_info": names})
    label = anna().datastore()["objects"]["case"]["labels"]["final"]["info"]
    assert label["user"] == label["client_id"] == "anna"
    assert Path(anna().download_label("case", "final")).stat().st_size > 0

    with pytest.raises(client_module.MONAILabelClientException, match="no trained model"):
        anna().infer("vqseg", "case", {})
    assert not anna().train_status(check_if_running=True)
    with pytest.raises(client_module.MONAILabelClientException, match="anna is annotator; this needs admin"):
        anna().train_start("vqseg", {})
    assert server.get("/train/", check_if_running="true").status_code == 404


def test_an_admin_trains(client_of: Callable[[str, str], Any], server: Server, tokens: dict[str, str]) -> None:
    started = client_of("ada", tokens["ada"]).train_start("vqseg", {"steps": 100000})
    assert "vqseg" in json.dumps(started)
    client_of("ada", tokens["ada"]).train_stop()
