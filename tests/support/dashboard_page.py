"""The dashboard in a real browser: what a test reads from its page, and what ought to stand there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from servers import Server

WIDE, PHONE = {"width": 1280, "height": 1400}, {"width": 390, "height": 844}
# What is wrong for somebody, not what could be nicer.
FAULTS = ("serious", "critical")


def faults_of(page: Page) -> list[str]:
    """What axe-core finds on a page as it is now."""
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in Axe().run(page).response["violations"]
        if one["impact"] in FAULTS
        for node in one["nodes"]
    ]


class Dashboard:
    """The page of a server. `asked` are the addresses it asked for, `failures` what went wrong in it."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server
        self.asked: list[str] = []
        self.failures: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.failures.append(str(error)))
        page.on("console", lambda line: self.failures.append(line.text) if line.type == "error" else None)
        page.goto(f"{server.url}/vqseg/")
        expect(page.locator("#connection")).to_have_text("live")
        expect(page.locator("#studies")).to_have_text(re.compile(r"\d+ studies"))

    def figures(self) -> dict[str, str]:
        """The figures of the training, all at one moment."""
        found: dict[str, str] = self.page.locator("#training-figures").evaluate(
            "list => Object.fromEntries([...list.children].map(one => [one.dataset.name, one.lastChild.textContent]))"
        )
        return found

    def table(self, place: str) -> list[list[str]]:
        """The cells of a table, row by row, all at one moment: that with the numbers of a chart, or one of its own."""
        rows: list[list[str]] = self.page.locator(place).evaluate(
            "one => [...one.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
        )
        return rows

    def head(self, place: str) -> list[str]:
        return self.page.locator(f"{place} thead th").all_text_contents()

    def versions(self) -> list[str]:
        return self.page.locator("#models tbody tr[data-version] th").all_text_contents()

    def live(self) -> str | None:
        return self.page.locator("#models tr.live").get_attribute("data-version")

    def focused(self, name: str) -> str | None:
        """`data-<name>` of the part of the page where the keyboard is."""
        found: str | None = self.page.evaluate(
            "name => document.activeElement.closest(`[data-${name}]`)?.dataset[name] ?? null", name
        )
        return found


def figures_of(status: Mapping[str, Any]) -> dict[str, str]:
    """What ought to stand on the page of a training with this status; its memory is not in it."""
    figures = {
        "Step": f"{status['step']} of {status['total_steps']}",
        "Epoch": f"{status['epoch']} of {status['total_epochs']}",
        "Validation Dice": decimals(status.get("validation", {}).get("dice"), 3),
        "Best Dice": decimals(status["best_metric"] or None, 3),
        "Time left": clock(status.get("remaining_seconds")) if status["state"] == "running" else "",
        "Method": status["method"],
        "Labelled": str(status["labelled"]),
        "Unlabelled": str(status["unlabelled"]),
        **{f"Loss: {name.replace('_', ' ')}": decimals(loss, 4) for name, loss in status.get("losses", {}).items()},
    }
    return {name: text for name, text in figures.items() if text}


def decimals(value: float | None, digits: int) -> str:
    """As JavaScript rounds, a half upwards."""
    return "" if value is None else str(Decimal(value).quantize(Decimal(10) ** -digits, ROUND_HALF_UP))


def clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds % 60)} s"
