"""The viewer's way to the PACS, `/proxy/dicom/...`, in front of MONAI Label's own.

Reasons (monailabel 0.8.5): it drops the query string, so that the viewer shows other patients' studies as priors; it
passes every path on, with the service's password, so that the whole REST interface of the PACS lies open; and it waits
in the event loop, so that nothing else is answered meanwhile.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from urllib.parse import unquote

import requests
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from monailabel.config import settings

from vqseg.errors import ConfigError

from .bulkhead import AsksForPACS
from .errors_over_rest import UnknownError
from .pacs import UID_PATTERN, PACSError, answering, session
from .request_rules import AsUser

router = APIRouter(dependencies=[AsksForPACS])
# One for all requests: the viewer asks for every slice, and a connection that is open is used again.
_session = functools.cache(session)
_INSTANCE = rf"/instances(/{UID_PATTERN}(/frames/[0-9,]+|/bulk/[\w./-]+)?)?"
# QIDO-RS and WADO-RS (DICOM PS3.18, 10.4 and 10.6): reading, nothing else.
_DICOMWEB = re.compile(
    rf"(studies|series|instances)|studies/{UID_PATTERN}(/series(/{UID_PATTERN}({_INSTANCE})?)?|/instances)?(/metadata|/rendered|/thumbnail)?"
)
_PASSED_ON = ("accept", "range")
_PASSED_BACK = ("content-type", "content-length", "content-range")


@router.get("/proxy/dicom/{path:path}", include_in_schema=False)
def read_pacs(request: Request, path: str, user: AsUser) -> StreamingResponse:
    """One DICOMweb request, with its query, answered as the PACS sends it."""
    service, _, path = fully_decoded(path).partition("/")
    prefixes = {"qido": settings.MONAI_LABEL_QIDO_PREFIX, "wado": settings.MONAI_LABEL_WADO_PREFIX}
    if service not in prefixes or ".." in path or not _DICOMWEB.fullmatch(path):
        raise UnknownError("DICOMweb route", f"{service}/{path}", ["qido/studies/...", "wado/studies/..."])
    if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise PACSError("this server's studies are a folder: there is no PACS to look into")
    # The viewer asks for metadata as a query; it is a retrieval.
    prefix = prefixes["wado" if path.endswith("metadata") else service]
    address = "/".join(filter(None, (settings.MONAI_LABEL_STUDIES.rstrip("/"), prefix, path)))
    headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    headers["accept-encoding"] = "identity"  # what comes is passed on byte by byte
    with answering(settings.MONAI_LABEL_STUDIES, "send what the viewer asked for"):
        # The query as it came, not decoded and encoded anew.
        reply = _session().get(address, params=request.url.query, headers=headers, stream=True)
    passed = {name: reply.headers[name] for name in _PASSED_BACK if name in reply.headers}
    return StreamingResponse(_body(reply), reply.status_code, passed)


@router.post("/proxy/dicom/{path:path}", include_in_schema=False)
def write_pacs(path: str, user: AsUser) -> None:
    raise ConfigError("the viewer only reads the PACS: labels are submitted (PUT /datastore/label), images sent to it")


def fully_decoded(path: str) -> str:
    """Decoded until nothing changes: what the PACS would decode once more must not become another path."""
    while (decoded := unquote(path)) != path:
        path = decoded
    return path


def _body(reply: requests.Response) -> Iterator[bytes]:
    with reply:
        yield from reply.raw.stream(2**16, decode_content=False)
