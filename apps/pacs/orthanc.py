#!/usr/bin/env python3
"""A PACS for one machine: Orthanc with DICOMweb on loopback, with a storage folder of its own.

Usage: apps/pacs/orthanc.py --storage DIR [--port 8042] [--load DIR] [-- COMMAND...]

Runs until it is stopped; with a command, until that ends. `--load` sends every DICOM file below a folder to it; what is
there already stays as it is.
Orthanc comes from Debian: apt-get install orthanc orthanc-dicomweb
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def settings(storage: Path, port: int) -> dict:
    """Loopback only, no DICOM port of its own, nothing that runs scripts or writes files on request."""
    return {
        "Name": "VQ-Seg",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],  # 1.10.1 listens everywhere all the same, but answers others with 401
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "ExecuteLuaEnabled": False,
        "OverwriteInstances": False,
        # Without the port in Host, the addresses in its answers lack it.
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Host": f"127.0.0.1:{port}", "EnableWado": False},
    }


def program() -> str | None:
    """Path of Orthanc; none when it, or its DICOMweb plugin, is not installed."""
    found = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    return found if PLUGIN.exists() else None


def start(storage: Path, port: int) -> subprocess.Popen:
    """Start Orthanc and wait until it answers. Exits in words when it cannot."""
    executable = program()
    if executable is None:
        sys.exit("Orthanc with DICOMweb is not installed: apt-get install orthanc orthanc-dicomweb")
    storage.mkdir(parents=True, exist_ok=True)
    configuration = storage / "orthanc.json"
    configuration.write_text(json.dumps(settings(storage.resolve(), port), indent=1), encoding="utf-8")
    with (storage / "orthanc.log").open("w") as log:
        process = subprocess.Popen([executable, str(configuration)], stdout=log, stderr=subprocess.STDOUT)
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if requests.get(f"http://127.0.0.1:{port}/system", timeout=5).ok:
                return process
        except requests.RequestException:
            time.sleep(0.1)
    process.kill()
    sys.exit(f"Orthanc did not start on port {port}; its log: {log.name}")


def load(folder: Path, port: int) -> int:
    """Send the DICOM files below `folder`; returns how many Orthanc took. Others are named and left out."""
    taken = 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        reply = requests.post(f"http://127.0.0.1:{port}/instances", data=file.read_bytes(), timeout=60)
        taken += reply.ok
        if not reply.ok:
            print(f"{file}: not taken by Orthanc ({reply.status_code})", file=sys.stderr)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8042)
    parser.add_argument("--load", type=Path)
    parser.add_argument("command", nargs="*", help="started once the PACS answers; the PACS stops when it ends")
    options = parser.parse_args()
    if options.load is not None and not options.load.is_dir():
        parser.error(f"--load {options.load}: there is no such folder")
    pacs = start(options.storage, options.port)
    try:
        if options.load is not None:
            print(f"{load(options.load, options.port)} DICOM files in the PACS", flush=True)
        print(f"PACS: http://127.0.0.1:{options.port}/dicom-web", flush=True)
        running = subprocess.Popen(options.command) if options.command else pacs
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: running.terminate())
        status = running.wait()
    finally:
        pacs.terminate()
        pacs.wait()
    sys.exit(status)


if __name__ == "__main__":
    main()
