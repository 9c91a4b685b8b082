"""`GET /vqseg/studies/{image}/picture`: the middle slice of a study; `/codes` the same with its codes in colours, and
a key to these."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from matplotlib.colors import hsv_to_rgb
from monailabel.interfaces.utils.app import app_instance
from numpy.typing import NDArray
from PIL import Image

from vqseg.config import Config
from vqseg.data.reading import Volume, read_image
from vqseg.data.slices import as_seen, reading_axis

from .request_rules import AsUser
from .work_queue import stop_if_abandoned

router = APIRouter(prefix="/vqseg/studies", tags=["App"])
_LONGEST_SIDE = 256
_CODE_SHARE = 0.55
# Neighbouring numbers get colours that lie far apart.
_GOLDEN = (5**0.5 - 1) / 2


@router.get(
    "/{image}/picture",
    summary="The middle slice of a study as PNG",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def show_study(request: Request, image: str, user: AsUser) -> Response:
    app = app_instance()
    content = await app.pictures.run(request, lambda: _picture(app, image))
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=300"})


@router.get("/{image}/codes", summary="Which codes of the live model the middle slice of a study is made of")
async def show_codes(request: Request, image: str, user: AsUser) -> dict[str, Any]:
    """`picture` is the slice as PNG in a data URL, where the colour of a voxel is that of the code which stands for its
    patch; `codes` are those in it, each with its `share` of the slice and its `colour`, the largest share first."""
    app = app_instance()
    return await app.pictures.run(request, lambda: _codes(app, image))


def _picture(app: Any, image: str) -> bytes:
    volume = _read(app, image)
    axis = reading_axis(volume.spacing)
    grey = _grey(np.take(volume.array, volume.array.shape[axis] // 2, axis))
    return _png(as_seen(grey), _size(volume, axis), Image.Resampling.BILINEAR)


def _codes(app: Any, image: str) -> dict[str, Any]:
    volume = _read(app, image, app.live.predictor().config)
    found = app.live.map_codes(volume)
    coloured = (1 - _CODE_SHARE) * _grey(found.image)[..., None] + _CODE_SHARE * _colours(found.codes)
    pixels = np.stack([as_seen(coloured[..., channel]) for channel in range(3)], -1)
    picture = _png(pixels, _size(volume, found.axis), Image.Resampling.NEAREST)
    shares = found.shares()
    colours = _colours(np.array([code for code, _ in shares])).round().astype(int)
    return {
        "model_version": found.version,
        "picture": f"data:image/png;base64,{base64.b64encode(picture).decode()}",
        "codes": [
            {"code": code, "share": round(share, 6), "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
            for (code, share), colour in zip(shares, colours, strict=True)
        ],
    }


def _read(app: Any, image: str, config: Config | None = None) -> Volume:
    file = Path(app.datastore().get_image_uri(app.check_image(image)))
    app.memory.check_file(file, config)
    volume = read_image(file)
    stop_if_abandoned()
    return volume


def _size(volume: Volume, axis: int) -> tuple[int, int]:
    """Width and height of a picture in which a millimetre is as long in both directions."""
    width, height = (
        n * mm for at, (n, mm) in enumerate(zip(volume.array.shape, volume.spacing, strict=True)) if at != axis
    )
    longest = max(width, height)
    return max(1, round(_LONGEST_SIDE * width / longest)), max(1, round(_LONGEST_SIDE * height / longest))


def _grey(plane: NDArray) -> NDArray[np.float64]:
    """0 to 255, without the brightest and darkest hundredth."""
    low, high = np.percentile(plane, (1, 99))
    return 255 * ((plane.astype(np.float64) - low) / max(float(high - low), 1e-6)).clip(0, 1)


def _colours(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    hue = (codes * _GOLDEN) % 1
    return 255 * hsv_to_rgb(np.stack([hue, np.full(hue.shape, 0.75), np.ones(hue.shape)], -1))


def _png(pixels: NDArray[np.float64], size: tuple[int, int], way: Image.Resampling) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).resize(size, way).save(buffer, "PNG")
    return buffer.getvalue()
