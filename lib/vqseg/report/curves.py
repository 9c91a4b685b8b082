"""Curves and the histogram of the codes as drawings for an HTML page, whose text colour they take on."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vqseg.report.colours import colour_of, dash_of

__all__ = ["Curve", "draw_curves", "draw_usage"]

Curve = tuple[Sequence[float], Sequence[float]]
_SIZE = (4.6, 2.5)
_MOST_POINTS = 300
# Stands for the colour of the page's text, which is another in the dark.
_TEXT = "#010203"
_SETTINGS: Any = {  # the type that matplotlib asks for names each setting there is
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.size": 9,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_curves(curves: Mapping[str, Curve], y: str, *, most: float | None = None) -> str:
    """SVG of curves over the steps, in the order of `colour_of`; `most` is the upper end of the axis `y`.

    Of many points each one shown is the mean of neighbours. No name of a curve is in it: the page has the legend.
    """
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": y}):  # ids of a page differ
        figure, axes = _axes("step", y)
        for number, (steps, values) in enumerate(curves.values()):
            mark = "o" if len(steps) <= 30 else ""
            style: dict[str, Any] = {"color": colour_of(number), "linestyle": dash_of(number), "marker": mark}
            axes.plot(_thinned(steps), _thinned(values), markersize=3, linewidth=1.5, **style)
        if most is not None:
            axes.set_ylim(0, most)
        elif all(isinstance(value, int) for _, values in curves.values() for value in values):
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure)


def draw_usage(usage: NDArray[np.int64]) -> str:
    """SVG of the share of each code (in which one was chosen at all), the most used one first."""
    shares = np.sort(usage)[::-1] / usage.sum()
    least = shares[shares > 0].min() / 2
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": "usage"}):
        figure, axes = _axes("code, the most used first", "share (%), logarithmic")
        # Shares lie orders of magnitude apart; a code that was never chosen stands on the ground.
        tops = 100 * np.maximum([*shares, 0], least)
        axes.fill_between(np.arange(len(tops)), 100 * least, tops, step="post", color=colour_of(0), linewidth=0)
        axes.set_yscale("log")
        axes.set(xlim=(0, len(shares)), ylim=(100 * least, 200 * shares[0]))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.grid(alpha=0.2, color=_TEXT)
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _thinned(values: Sequence[float]) -> NDArray[np.float64]:
    together = -(-len(values) // _MOST_POINTS)
    if together <= 1:
        return np.asarray(values, float)
    return np.array([np.mean(values[start : start + together]) for start in range(0, len(values), together)])


def _svg(figure: Figure) -> str:
    """The drawing alone, to stand in a page: no header, no addresses, no ids but those of clips, and no own size."""
    content = io.StringIO()
    FigureCanvasSVG(figure).print_svg(content, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = content.getvalue()
    text = text[text.index("<svg") :]
    # Its rules would be those of the whole page.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", text)
    text = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r"<svg \1", text)
    text = text.replace("xlink:href", "href").replace(_TEXT, "currentColor")
    return re.sub(r' id="[\w.]+_\d+"', "", text)
