"""Files that break."""

from __future__ import annotations

import random
from pathlib import Path

WAYS = ("flip", "bytes", "cut", "zeros", "double", "extreme")


def flip_bit(file: Path, bit: int) -> bytes:
    """Change one bit of a file; returns its bytes as they were."""
    whole = file.read_bytes()
    content = bytearray(whole)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return whole


def mutated(whole: bytes, draw: random.Random, header: int) -> bytes:
    """One of the ways in which files break; most of them in the first `header` bytes, where they do the most harm."""
    content, reach = bytearray(whole), header if draw.random() < 0.8 else len(whole)
    place, way = draw.randrange(min(reach, len(whole))), draw.choice(WAYS)
    if way == "flip":
        content[place] ^= 1 << draw.randrange(8)
    elif way == "bytes":
        content[place : place + 8] = draw.randbytes(8)
    elif way == "cut":
        del content[place:]
    elif way == "zeros":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif way == "double":
        content[place:place] = content[place : place + 100]
    else:
        content[place : place + 4] = draw.choice((b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f"))
    return bytes(content)
