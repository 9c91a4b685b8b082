"""A mask as the file a client asked for, on the grid of its image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np

from vqseg.data.grid import Grid
from vqseg.errors import ConfigError

from .temporary_files import temporary_file

_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
_DTYPES = ("uint8", "uint16", "int16", "int32", "uint32", "float32")


def check_format(request: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Extension, type and compression out of a request. Raises `ConfigError`."""
    extension = str(request.get("result_extension") or ".nii.gz")
    extension = extension if extension.startswith(".") else f".{extension}"
    dtype = str(request.get("result_dtype") or "uint8")
    for name, value, known in (("result_extension", extension, _EXTENSIONS), ("result_dtype", dtype, _DTYPES)):
        if value not in known:
            raise ConfigError(f"{name}={value!r}: expected one of {', '.join(known)}")
    return extension, dtype, bool(request.get("result_compress", False))


def write_result(mask: np.ndarray, grid: Grid, extension: str, dtype: str, compress: bool) -> Path:
    """Write a mask of RAS+ axis order into a new temporary file, in the axis order of the image's file."""
    array = grid.restore(mask).astype(dtype)
    with result_file(extension) as path:
        if extension == ".nrrd":
            _write_nrrd(array, grid.affine, path, compress)
        else:
            image = nib.Nifti1Image(array, grid.affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, path)
    return path


@contextmanager
def result_file(extension: str) -> Iterator[Path]:
    """A new temporary file to write to, which stays when the block ends without an error."""
    file = temporary_file(extension)
    try:
        yield file
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _write_nrrd(array: np.ndarray, affine: np.ndarray, path: Path, compress: bool) -> None:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip" if compress else "raw",
    }
    nrrd.write(str(path), np.asfortranarray(array), header, index_order="F")
