"""A server with a model of random weights, and what its process takes: memory, file handles, temporary files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from servers import APP, Server, python_module, serve

from vqseg.config import load_config
from vqseg.networks.build import build_network
from vqseg.store import ModelStore

# The image of 330 x 264 x 240 mm in its own voxels.
QUICK = {"data.spacing": [12, 12, 15]}
# The same in some thousand windows: many seconds, each window milliseconds.
SLOW = {"data.spacing": [2, 2, 2]}
_MODEL = {
    "data.patch_size": [16, 16, 16],
    "model.channels": [4, 8],
    "model.first_quantized_level": 1,
    "model.codebook_size": 32,
    "model.code_dim": 4,
}


@dataclass
class WatchedServer(Server):
    """`temporary` is the folder of the server's temporary files, `running` its process."""

    @property
    def temporary(self) -> Path:
        return self.run.parent / "tmp"

    @property
    def running(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def memory(self) -> int:
        """Bytes that are resident."""
        return int(self.running.memory_info().rss)

    def handles(self) -> list[str]:
        """What every open handle leads to: a path, or a kind and a number such as `socket:[4711]`.

        Not fonts: matplotlib keeps those that the last reports were drawn with, at most 64.
        """
        held = []
        for handle in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                held.append(os.readlink(handle))
        return [name for name in held if not name.endswith(".ttf")]

    def files(self) -> set[str]:
        """Temporary files, those without a name among them, which only the process that holds them open can see.

        Not the folder for compiled code that torch makes in whichever process is the first to look for it.
        """
        found = {str(path) for path in self.temporary.rglob("*")} | set(self.handles())
        own, torchs = str(self.temporary), str(self.temporary / "torchinductor_")
        return {name for name in found if name.startswith(own) and not name.startswith(torchs)}

    @contextmanager
    def leaving_nothing(self, seconds: float = 60) -> Iterator[None]:
        """Soon after the block has ended there are no more temporary files than before."""
        before = self.files()
        yield
        self.wait_for_no_more_than(before, seconds)

    def wait_for_no_more_than(self, before: set[str], seconds: float) -> None:
        """Fails unless soon there are no more temporary files than `before`: that of an answer goes after it."""
        end = time.monotonic() + seconds
        while (left := self.files() - before) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, f"temporary files are left: {sorted(left)}"


def publish(run: Path, labels: Mapping[str, int], settings: Mapping[str, Any], seed: int = 0, **manifest: Any) -> None:
    """A model that segments at random, in its own way for each `seed`; what else its `manifest` says."""
    config = load_config(overrides={**_MODEL, "data.labels": dict(labels), **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(config)
        network.calibrate()
    ModelStore(run / "models").publish(network, {"config": config.model_dump(mode="json"), **manifest})


@contextmanager
def serve_watched(
    studies: Path, folder: Path, conf: Mapping[str, str], command: list[str] | None = None
) -> Iterator[WatchedServer]:
    """Start a server as `serve` does, in a process that is the server itself."""
    with serve(command or python_module(), str(APP), studies, folder, folder, conf) as server:
        yield WatchedServer(**vars(server))
