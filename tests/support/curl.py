"""The few options of curl that the documentation uses, sent with requests: curl itself need not be installed."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import requests


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"curl: {message}")


@dataclass(frozen=True)
class CurlLine:
    """A request as a line of curl asks for it; `out` is the file for the answer, if there is one."""

    method: str
    url: str
    headers: dict[str, str]
    body: str | None
    form: dict[str, str]
    out: Path | None

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    def send(self, address: Callable[[str], str]) -> requests.Response:
        """Send it to what `address` makes of its own; a `@file` of the form is read from the working directory."""
        with contextlib.ExitStack() as opened:
            form = {
                name: opened.enter_context(Path(text[1:]).open("rb")) if text.startswith("@") else (None, text)
                for name, text in self.form.items()
            }
            answer = requests.request(
                self.method,
                address(self.url),
                headers=self.headers,
                data=self.body,
                files=form or None,
                timeout=120,
            )
        if self.out is not None:
            self.out.write_bytes(answer.content)
        return answer


def read_curl(words: Sequence[str]) -> CurlLine:
    """The request of a line without its `curl`. Raises `ValueError` for an option that is not known here."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-F", dest="form", action="append", default=[])
    parser.add_argument("-d", dest="body")
    parser.add_argument("-o", dest="out", type=Path)
    parser.add_argument("-f", action="store_true")  # nothing is written of a refusal, at which a test fails anyway
    parser.add_argument("url")
    read = parser.parse_args(words)
    headers = dict(header.split(": ", 1) for header in read.headers)
    form = dict(field.split("=", 1) for field in read.form)
    method = read.method or ("POST" if read.body or form else "GET")
    return CurlLine(method, read.url, headers, read.body, form, read.out)
