"""Links and anchors of README.md and docs/, how their lines begin, and which pages there are."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from documentation import PAGES, anchors, prose, unfenced
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


def misplaced(text: str) -> list[str]:
    """Lines that look like what was cut and put elsewhere: after one space, or a heading right below something else."""
    lines = text.splitlines()
    return [
        line
        for before, line in itertools.pairwise(["", *lines])
        if re.match(r" \S", line) or (re.match(r"#+ ", line) and before.strip())
    ]


@by_page
def test_no_line_is_where_it_does_not_belong(page: Path) -> None:
    assert misplaced(unfenced(page)) == []


def test_a_misplaced_line_is_found() -> None:
    good = "# a\n\n- b\n  c\n    d\n\n## e\nf\n"
    assert misplaced(good) == []
    assert misplaced(f"{good} g\n```\n# h\n") == [" g", "# h"]


def test_every_page_of_a_room_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {link.partition("#")[0] for link in LINK.findall(prose(index))}
    pages = {f"{room}/{page.name}" for room in ROOMS for page in (ROOT / "docs" / room).glob("*.md")}
    assert pages - listed == set()


def test_the_readme_is_of_two_pages() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    # At some 600 words a page; where a link leads is not read.
    assert len(re.sub(r"\]\([^)]*\)", "]", text).split()) <= 1200
