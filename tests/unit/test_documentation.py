"""Links and anchors of README.md and docs/, and which pages there are."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from documentation import PAGES, anchors, prose
from servers import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
ROOMS = ("getting-started", "how-to", "reference", "explanation")
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def broken(page: Path, text: str) -> list[str]:
    found = []
    for link in LINK.findall(text):
        target, _, anchor = unquote(link).partition("#")
        if "://" in target:
            continue
        place = (page.parent / target).resolve() if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            found.append(link)
    return found


@by_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken(page, prose(page)) == []


def test_a_broken_link_is_found() -> None:
    page = ROOT / "docs" / "README.md"
    text = "[a](nowhere.md) [b](README.md#nothing) [c](#how-to) [d](https://example.org/nowhere) [e](../README.md)"
    assert broken(page, text) == ["nowhere.md", "README.md#nothing"]


def test_every_page_of_a_room_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {link.partition("#")[0] for link in LINK.findall(prose(index))}
    pages = {f"{room}/{page.name}" for room in ROOMS for page in (ROOT / "docs" / room).glob("*.md")}
    assert pages - listed == set()


def test_the_readme_is_of_two_pages() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110
