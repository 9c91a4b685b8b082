"""Files that break."""

from __future__ import annotations

from pathlib import Path


def flip_bit(file: Path, bit: int) -> bytes:
    """Change one bit of a file; returns its bytes as they were."""
    whole = file.read_bytes()
    content = bytearray(whole)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return whole
