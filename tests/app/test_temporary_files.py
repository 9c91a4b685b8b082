"""What a killed server leaves among the temporary files the next one removes, and nothing that belongs to others."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from servers import APP, TINY, python_module, serve
from watched_servers import QUICK, SLOW, WatchedServer, publish


def uploads(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("upload.nii.gz") if path.stat().st_size]


def upload(server: WatchedServer) -> Path:
    """The temporary file of an image that is being segmented, and will be for long."""

    def ask() -> None:
        image = (server.studies / "case_04.nii.gz").read_bytes()
        with contextlib.suppress(requests.ConnectionError):  # it is killed meanwhile
            requests.post(f"{server.url}/infer/vqseg", files={"file": ("image.nii.gz", image)}, timeout=120)

    threading.Thread(target=ask, daemon=True).start()
    end = time.monotonic() + 120
    while not (found := uploads(server.temporary)) and time.monotonic() < end:
        time.sleep(0.05)
    (file,) = found
    return file


@pytest.mark.slow
def test_the_next_server_removes_what_a_killed_one_left(
    watch: Callable[..., Any], tiny_studies: Path, tmp_path: Path
) -> None:
    with watch(QUICK, {}) as server:
        publish(server.run, {"lung": 1, "tumour": 2}, SLOW)
        file = upload(server)
        server.running.suspend()  # so that it has the file for as long as is needed
        try:
            # Another server with the same folder for temporary files, on its own studies.
            shared = {"TMPDIR": str(server.temporary)}
            with serve(python_module(), str(APP), tiny_studies, tmp_path, tmp_path, TINY, variables=shared):
                assert file.is_file(), "a server that started took the file of one that runs"
        finally:
            server.process.kill()
            server.process.wait()
        assert file.is_file(), "the server that was killed had removed it: nothing was tried"
        others = server.temporary / "vqseg-of-somebody-else"
        others.mkdir()
        (others / "file").touch()
        linked = server.temporary / "vqseg-process-linked"
        linked.symlink_to(others)
        folder = server.run.parent
        with serve(python_module(), str(APP), server.studies, folder, folder, TINY):
            assert uploads(server.temporary) == []
            assert (others / "file").is_file()
            assert linked.is_symlink()
            (own,) = (path for path in server.temporary.glob("vqseg-process-*") if not path.is_symlink())
            assert (own.stat().st_mode & 0o777, own.stat().st_uid) == (0o700, os.geteuid())
            assert list(own.iterdir()) == []


def test_a_folder_that_somebody_removed_is_made_anew(app_module: Callable[..., Any]) -> None:
    files = app_module("temporary_files")
    own = files.own_folder()
    own.rmdir()
    with files.temporary_folder() as folder:
        assert Path(folder).is_dir()
        assert Path(folder).parent == files.own_folder()
