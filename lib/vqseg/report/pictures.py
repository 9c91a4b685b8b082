"""A case as a picture: the image beside itself with the contours of reference and prediction."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from vqseg.data.slices import as_seen
from vqseg.report.cases import Case
from vqseg.report.colours import colour_of

__all__ = ["plane_name", "png_of", "shown_part"]

_PLANES = ("sagittal", "coronal", "axial")
# Around the structures this much is shown, and not less than half of their own extent.
_MARGIN_MM = 25.0
_LONGEST_INCHES, _GAP_INCHES, _DPI = 3.2, 0.04, 120


def plane_name(case: Case) -> str:
    """How radiologists call the direction of the slice."""
    return _PLANES[case.axis]


def shown_part(case: Case) -> tuple[slice, slice]:
    """The part of the slice around everything that is segmented; all of it where nothing is."""
    found = (case.reference > 0) | (case.prediction > 0)
    first, second = (_with_margin(found.any(axis=1 - axis), spacing) for axis, spacing in enumerate(case.spacing))
    return first, second


def png_of(case: Case, labels: Mapping[str, int]) -> str:
    """The picture as an address that holds it; a millimetre is as long in both directions."""
    part = shown_part(case)
    image, reference, prediction = (as_seen(plane[part]) for plane in (case.image, case.reference, case.prediction))
    # Columns are the first axis of the plane.
    width, height = image.shape[1] * case.spacing[0], image.shape[0] * case.spacing[1]
    inches = _LONGEST_INCHES / max(width, height)
    across = 2 * width * inches + _GAP_INCHES
    figure = Figure(figsize=(across, height * inches), dpi=_DPI, facecolor="black")
    panels = [figure.add_axes((left, 0, width * inches / across, 1)) for left in (0, 1 - width * inches / across)]
    for axes in panels:
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="bilinear")
        axes.set_axis_off()
    for number, value in enumerate(labels.values()):
        for mask, dashes in ((reference, "solid"), (prediction, "dashed")):
            _outline(panels[1], mask == value, case.spacing, colour_of(number), dashes)
    for axes in panels:
        axes.set(xlim=(0, width), ylim=(height, 0))
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _outline(axes: Axes, inside: NDArray[np.bool_], spacing: tuple[float, float], colour: str, dashes: str) -> None:
    if not inside.any():
        return
    # A structure at the border of the picture is closed there.
    padded = np.pad(inside, 1).astype(float)
    x = (np.arange(padded.shape[1]) - 0.5) * spacing[0]
    y = (np.arange(padded.shape[0]) - 0.5) * spacing[1]
    lines = axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.4, linestyles=dashes)
    lines.set_path_effects([withStroke(linewidth=2.2, foreground="black", alpha=0.55)])


def _with_margin(found: NDArray[np.bool_], spacing: float) -> slice:
    places = np.flatnonzero(found)
    if not len(places):
        return slice(0, len(found))
    margin = max(round(_MARGIN_MM / spacing), (places[-1] - places[0] + 1) // 2)
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin)
