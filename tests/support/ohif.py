"""OHIF in a real browser: what a test reads from the page and does in it, as a user would."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Dialog, Page, expect, sync_playwright
from servers import ROOT

CHROMIUM = Path("/usr/bin/chromium")
# WebGL without a graphics card, and nothing that calls its maker.
_ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# Drawn without a graphics card, so every pixel takes its time.
WINDOW = {"width": 1200, "height": 760}
ARTEFACTS = Path(os.environ.get("VQSEG_ARTEFACTS", ROOT / "artefacts"))
SECONDS = 1000.0
_MASK = """() => {
    const volume = window.services.segmentationService.getLabelmapVolume('1');
    if (!volume) return null;
    const voxels = Uint8Array.from(volume.voxelManager.getCompleteScalarDataArray());
    let text = '';
    for (let at = 0; at < voxels.length; at += 32768) text += String.fromCharCode(...voxels.subarray(at, at + 32768));
    const segments = Object.values(window.services.segmentationService.getSegmentation('1').segments);
    return {
        voxels: btoa(text),
        shape: [...volume.dimensions],
        spacing: [...volume.spacing],
        origin: [...volume.origin],
        direction: [...volume.direction],
        names: Object.fromEntries(segments.map(({ label, segmentIndex }) => [label, segmentIndex])),
    };
}"""
SHOWN_SERIES = "async () => (await import('/ohif/vqseg/viewer.js')).shownSeries()"
PANELS = {
    "label": "@ohif/extension-monai-label.panelModule.monailabel",
    "segments": "@ohif/extension-cornerstone.panelModule.panelSegmentation",
}


@dataclass
class Mask:
    """`array` (columns, rows, slices) with the viewer's numbers, `names` -> number, `affine` voxel -> LPS mm."""

    array: NDArray[np.uint8]
    names: dict[str, int]
    affine: NDArray[np.float64]

    def of(self, name: str) -> NDArray[np.bool_]:
        return self.array == self.names[name]


class Viewer:
    """A page with the viewer of a server."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.panel = page.locator("#vqseg-panel")
        self.failures: list[str] = []
        page.on("pageerror", lambda error: self.failures.append(str(error)))

    def open(self, study: str, series: str = "") -> None:
        """Open a study and wait until the panel is connected, which it does by itself."""
        query = f"StudyInstanceUIDs={study}" + (f"&SeriesInstanceUIDs={series}" if series else "")
        self.page.goto(f"{self.url}/ohif/monai-label?{query}")
        self.wait_until_connected()

    def wait_until_connected(self) -> None:
        expect(self.panel).to_be_visible(timeout=180 * SECONDS)
        expect(self.page.locator(".monaiLabelPanel .subtitle")).to_be_visible(timeout=180 * SECONDS)
        expect(self.panel.get_by_role("radio").first).to_be_visible(timeout=90 * SECONDS)
        self.page.wait_for_function(f"() => ({_MASK})() !== null", timeout=90 * SECONDS)

    def hide_first_notice(self) -> None:
        """OHIF's own notice that it is not for diagnosis covers the lower part of a new browser."""
        self.page.get_by_role("button", name="Confirm and Hide").click()

    def press(self, name: str) -> None:
        self.panel.get_by_role("button", name=name, exact=True).click()

    def run(self) -> None:
        """Press the panel's own Run and wait for its notice."""
        self.page.mouse.move(5, 400)  # a notice stays as long as the pointer is on it, and may cover the button
        self.page.locator("button[title='Run Segmentation']").click()
        expect(self.page.get_by_text("Running Segmentation - Successful").first).to_be_visible(timeout=180 * SECONDS)

    def brush(self, structure: str, millimetres: int = 20, at: tuple[float, float] = (0.5, 0.5)) -> Mask:
        """Draw a stroke in the first viewport, at a share of its width and height; returns the mask that holds it."""
        before = self.mask().array
        self.panel.get_by_role("radio", name=structure).check()
        self.press("Brush")
        self.panel.get_by_label("Size").fill(str(millimetres))
        box = self.page.locator(".viewport-element").first.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] * at[0], box["y"] + box["height"] * at[1]
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 20, y + 10, steps=4)
        self.page.mouse.up()
        for _ in range(50):
            if not np.array_equal(self.mask().array, before):
                return self.mask()
            self.page.wait_for_timeout(100)
        raise AssertionError("the brush drew nothing")

    def show_panel(self, name: str) -> None:
        """Choose a tab on the right."""
        self.page.evaluate("id => window.services.panelService.activatePanel(id, true)", PANELS[name])

    def answer_next_question(self, accept: bool) -> list[str]:
        """Answer the next dialog; the list that is returned holds its words once it was asked."""
        asked: list[str] = []

        def answer(dialog: Dialog) -> None:
            asked.append(dialog.message)
            if accept:
                dialog.accept()
            else:
                dialog.dismiss()

        self.page.once("dialog", answer)
        return asked

    def mask(self) -> Mask:
        found: dict[str, Any] = self.page.evaluate(_MASK)
        voxels = np.frombuffer(base64.b64decode(found["voxels"]), np.uint8)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(found["direction"], (3, 3)).T * np.asarray(found["spacing"])
        affine[:3, 3] = found["origin"]
        return Mask(voxels.reshape(found["shape"], order="F"), found["names"], affine)

    def shown_series(self) -> str:
        return str(self.page.evaluate(SHOWN_SERIES))

    def expect_message(self, words: str | re.Pattern[str], seconds: float = 60) -> None:
        """Wait for words in our part of the panel."""
        expect(self.panel.locator("[role=status]")).to_contain_text(words, timeout=seconds * SECONDS)

    def screenshot(self, name: str) -> None:
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")


@contextmanager
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield running
        finally:
            running.close()


def assert_card_says_why(card: Any, reply: dict[str, Any]) -> None:
    """The card of the next study holds what the server says of its choice, each in one line, and no empty line."""
    lines = card.locator("p").all_inner_texts()
    assert reply["reason"] in lines
    assert f"{reply['strategy_used']}, rank {reply['rank']}, score {reply['score']:#.3g}" in lines
    parts = ", ".join(f"{name} {value:#.3g}" for name, value in reply["parts"].items())
    assert [line for line in lines if "Weighs" in line] == ([f"Weighs most: {parts}"] if parts else [])
    scored = f"{reply['scored']} of {reply['unlabelled']} studies scored by model {reply['model_version']}"
    assert [line for line in lines if "scored by" in line] == ([scored] if reply["scored"] else [])
    assert all(lines)
