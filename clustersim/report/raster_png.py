"""Grids of levels as PNG, with the standard library alone. Draws nothing else."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.report.shapes import MISSING, ramp


def encode_png(cells: NDArray[np.uint8]) -> bytes:
    """A PNG of one pixel per cell, by palette; MISSING is transparent. Format: W3C PNG specification, third edition."""
    rows, columns = cells.shape
    colours = ramp()
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    opaque = np.full(256, 255, np.uint8)
    opaque[MISSING] = 0
    lines = np.zeros((rows, columns + 1), np.uint8)  # each line begins with its filter: 0, none
    lines[:, 1:] = cells
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    chunks: dict[bytes, Any] = {
        b"IHDR": header, b"PLTE": palette.tobytes(), b"tRNS": opaque.tobytes(), b"IDAT": zlib.compress(lines.tobytes(), 9),
        b"IEND": b"",
    }  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks.items())


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
