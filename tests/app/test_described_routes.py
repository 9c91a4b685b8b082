"""Every route of the running application, asked with whatever its own description allows: no server error, no hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLES, SECONDS = 3, 20
# A probe answers 503 on purpose, and the events of the dashboard have no end.
LEFT_OUT = ("/vqseg/health/ready", "/vqseg/events")


def test_no_server_error_whatever_is_asked(fresh: Any, tmp_path: Path) -> None:
    described = json.loads(fresh.get("/openapi.json").text)["paths"]
    command = [Path(sys.executable).with_name("st"), "run", f"{fresh.url}/openapi.json", "--no-color", "--seed", "1"]
    command += ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES)]
    command += ["--request-timeout", str(SECONDS), *(part for path in LEFT_OUT for part in ("--exclude-path", path))]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout
    assert f"Tested: {sum(len(methods) for methods in described.values()) - len(LEFT_OUT)}" in made.stdout
    assert fresh.get("/info/").ok
