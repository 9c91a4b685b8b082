"""Colours of curves and contours that can be told from a white and from a black ground, and from each other."""

from __future__ import annotations

__all__ = ["colour_of", "dash_of"]

_COLOURS = ("#2f81d6", "#d2650f", "#2b9a62", "#c4479a", "#8f6fe0", "#9a7d14", "#1597a8", "#d94a4a")
# For more curves than colours, and for whoever cannot tell the colours.
_DASHES = ("solid", "dashed", "dotted", "dashdot")


def colour_of(number: int) -> str:
    """The same for every eighth."""
    return _COLOURS[number % len(_COLOURS)]


def dash_of(number: int) -> str:
    """Of a line, by the names of matplotlib and of CSS (in which the last one is dashed)."""
    return _DASHES[number // len(_COLOURS) % len(_DASHES)]
