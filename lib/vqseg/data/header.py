"""What an image file says of its voxels, before any of them is read: a few kilobytes may declare many gigabytes.

The readers (nibabel 5.4, pydicom 2.4) believe a file. One of 200 bytes may have a NIfTI extension, or a deflated DICOM
header, unpacked to gigabytes before anybody can ask for its shape. Here a header takes no more than `_LARGEST_HEADER`.
"""

from __future__ import annotations

import gzip
import io
import math
from dataclasses import dataclass
from typing import BinaryIO

import nibabel as nib
import numpy as np
import pydicom
from pydicom.filereader import _read_file_meta_info, read_preamble

from vqseg.errors import ImageError

__all__ = ["DeclaredVoxels", "read_declared"]

# Extensions hold a DICOM header or a protocol in XML: kilobytes.
_LARGEST_HEADER = 16 * 2**20
_GZIP, _DICOM, _DICOM_AT = b"\x1f\x8b", b"DICM", 128
_BITS = 8


@dataclass(frozen=True)
class DeclaredVoxels:
    """`shape` as stored, `bits` of one voxel, `scaled` where a factor makes other numbers of what is stored."""

    shape: tuple[int, ...]
    bits: int
    scaled: bool = False

    @property
    def voxels(self) -> int:
        """Number of voxels; one that is declared as negative counts as none."""
        return math.prod(max(0, size) for size in self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the voxels as they are stored, unpacked."""
        return self.voxels * self.bits // _BITS

    @property
    def reading_bytes(self) -> int:
        """Most bytes that reading takes, the float32 array that comes out of it among them."""
        # As stored and twice in float64 where they are scaled, otherwise twice in float32, once along RAS+.
        return self.stored_bytes + self.voxels * (16 if self.scaled else 8)


def read_declared(file: BinaryIO, name: str) -> DeclaredVoxels:
    """Read the header of a NIfTI-1, NIfTI-2 (either may be gzipped) or DICOM file, from its beginning.

    `name` stands in messages. Raises `ImageError` when it is none of them, or damaged.
    """
    begin = file.read(_DICOM_AT + len(_DICOM))
    file.seek(0)
    try:
        if begin.startswith(_GZIP):
            # The mode is said, for gzip would take that of the file: a temporary one is open for writing, too.
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                return _of_nifti(unpacked, name)
        if begin[_DICOM_AT:] == _DICOM:
            return _of_dicom(file, name)
        return _of_nifti(file, name)
    except (ImageError, MemoryError):
        raise
    except Exception as cause:  # there is no end to what nibabel, pydicom and zlib raise for a damaged file
        raise ImageError(name, f"it cannot be read ({cause})") from None


def _of_nifti(file: BinaryIO | gzip.GzipFile, name: str) -> DeclaredVoxels:
    begin = file.read(nib.Nifti2Header.sizeof_hdr + 4)
    kind = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(begin)), None)
    if kind is None:
        raise ImageError(name, "it cannot be read (it is neither NIfTI, .nii or .nii.gz, nor DICOM)")
    smallest = kind.sizeof_hdr + 4
    header = kind(begin[: kind.sizeof_hdr])
    offset = int(header["vox_offset"])
    if begin[kind.sizeof_hdr : kind.sizeof_hdr + 1] not in (b"", b"\0") and offset < smallest:
        raise ImageError(name, f"it has header extensions, but its voxels begin at byte {offset}")
    if offset > _LARGEST_HEADER:
        raise ImageError(name, f"its header is {offset} bytes long; expected at most {_LARGEST_HEADER}")
    # As nibabel will read it, and no byte further: an extension may claim to be longer than the header that holds it.
    kind.from_fileobj(io.BytesIO(begin + file.read(max(0, offset - len(begin)))))
    slope, intercept = header.get_slope_inter()
    dtype = header.get_data_dtype()
    scaled = not np.isclose([1.0 if slope is None else slope, intercept or 0.0], [1.0, 0.0]).all()
    return DeclaredVoxels(tuple(int(size) for size in header.get_data_shape()), _BITS * dtype.itemsize, scaled)


def _of_dicom(file: BinaryIO, name: str) -> DeclaredVoxels:
    read_preamble(file, False)
    # pydicom 2.4 has a public way for names of files alone.
    syntax = _read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax is not None and syntax.is_deflated:
        raise ImageError(name, "deflated DICOM is not read, for its size is not known; store it in another syntax")
    file.seek(0)
    # Deferred: what is long is passed over, not read.
    header = pydicom.dcmread(file, defer_size=_LARGEST_HEADER, stop_before_pixels=True)
    shape = (header.get("Columns"), header.get("Rows"), header.get("NumberOfFrames"), header.get("SamplesPerPixel"))
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    scaled = not (slope in (None, 1) and intercept in (None, 0))
    sizes = tuple(int(size) if size is not None else 1 for size in shape)
    return DeclaredVoxels(sizes, int(header.get("BitsAllocated") or _BITS), scaled)
