"""README.md and docs/: their code blocks, the commands in them and in the prose, and their headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from servers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"[A-Z_]+=\S*")
_INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its `page`, the `line` it begins at, its `language` and its `text`."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The words of each command; comments, and settings of the environment in front, are left out."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and _VARIABLE.fullmatch(words[0]):
                words = words[1:]
            if words:
                yield words


def blocks(*languages: str) -> list[Block]:
    """Every block in one of the languages, page by page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            if match[1] in languages:
                found.append(Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2]))
    return found


def unfenced(page: Path) -> str:
    """A page with a line in place of each fenced block."""
    return _FENCE.sub("```", page.read_text(encoding="utf-8"))


def prose(page: Path) -> str:
    """A page without what is code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))


def inline_code(beginning: str) -> list[tuple[Path, str]]:
    """Every piece of code in the prose, with its page, that begins as the pattern says."""
    # By paragraphs, so that a sign too many is not paired with one of another.
    paragraphs = [(page, text) for page in PAGES for text in unfenced(page).replace("```", "").split("\n\n")]
    found = [(page, " ".join(code.split())) for page, text in paragraphs for code in _INLINE.findall(text)]
    return [(page, code) for page, code in found if re.match(beginning, code)]


def anchors(page: Path) -> set[str]:
    """What `#...` may follow the address of a page: GitHub's names of its headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
