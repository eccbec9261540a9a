"""What a figure consists of: a few shapes in pixels, coloured by role. Knows no file format and no data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MISSING = 255  # value of a raster's cell that holds nothing

# Roles and their colours, on white and on dark. Hues after Okabe and Ito (2008): the colour-blind tell them apart.
LIGHT = {
    "ink": "#1b1f24", "muted": "#5c6670", "grid": "#e3e6ea", "axis": "#9aa3ad", "surface": "#ffffff",
    "compute": "#a9b4c0", "dispatch": "#0072b2", "combine": "#56b4e9", "wait": "#d55e00", "idle": "#f0b27a",
    "best": "#009e73", "plain": "#0072b2", "second": "#d55e00", "faint": "#b9d3e6",
    "forward": "#0072b2", "backward": "#00875f", "input": "#b0588b", "weight": "#c05500", "bubble": "#e3e6ea",
    "gradients": "#e0b400", "optimiser": "#7d6b5d",
}  # fmt: skip
DARK = {
    "ink": "#e8eaed", "muted": "#a2abb5", "grid": "#2c333b", "axis": "#69737e", "surface": "#15191e",
    "compute": "#6c7885", "dispatch": "#3d9fdc", "combine": "#9ad4f7", "wait": "#ff8a3d", "idle": "#a8622a",
    "best": "#2bc79a", "plain": "#4aa8e0", "second": "#ff8a3d", "faint": "#2c5674",
    "forward": "#4aa8e0", "backward": "#2bc79a", "input": "#e39bc3", "weight": "#ff8a3d", "bubble": "#2c333b",
    "gradients": "#f0d04a", "optimiser": "#ab9789",
}  # fmt: skip

# The colours of rasters: viridis (Smith and van der Walt, 2015, CC0) at nine places, interpolated between them.
_VIRIDIS = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99), (170, 220, 50),
    (253, 231, 37),
)  # fmt: skip
LEVELS = 64  # colours of a ramp: more are not told apart, and fewer compress better


def ramp() -> NDArray[np.uint8]:
    """The colours of a raster, uint8 [LEVELS, 3], from low to high."""
    at = np.linspace(0, len(_VIRIDIS) - 1, LEVELS)
    anchors = np.array(_VIRIDIS, float)
    places = np.arange(len(_VIRIDIS))
    return np.stack([np.interp(at, places, anchors[:, channel]) for channel in range(3)], axis=1).round().astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; `note` appears when the pointer rests on it."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points [(x, y), ...]; a point that is not finite breaks it."""

    points: Sequence[tuple[float, float]]
    stroke: str
    width: float = 1.0
    dash: bool = False


@dataclass(frozen=True, slots=True)
class Area:
    """A filled polygon."""

    points: Sequence[tuple[float, float]]
    fill: str


@dataclass(frozen=True, slots=True)
class Dots:
    """Discs of one size at points."""

    points: Sequence[tuple[float, float]]
    radius: float
    fill: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A line of text; `anchor` start, middle or end; `y` is its base line. `turn` puts it upright, read from below."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    size: float = 12.0
    ink: str = "muted"
    bold: bool = False
    turn: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Many bars of one height and colour; `spans` [(left, top, width), ...]."""

    spans: Sequence[tuple[float, float, float]]
    height: float
    fill: str


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Many short texts of one size, each about the middle of a place [(x, base line, text), ...]."""

    places: Sequence[tuple[float, float, str]]
    size: float
    ink: str


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """A grid of cells stretched over a rectangle; `cells` uint8 [rows, columns] are levels of the ramp, or MISSING."""

    x: float
    y: float
    width: float
    height: float
    cells: NDArray[np.uint8]


Shape = Box | Line | Area | Dots | Label | Bars | Words | Raster


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Picture:
    """Shapes on a canvas, the later ones on top. `says` is the picture in words, for those who do not see it."""

    width: float
    height: float
    shapes: Sequence[Shape]
    says: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Figure:
    """A figure of a report: drawn anew for every width, so that text keeps its size on a phone."""

    name: str  # of its file
    title: str
    caption: str
    draw: Callable[[float], Picture]  # of a width in pixels
