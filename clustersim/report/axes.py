"""Scales, ticks and frames that the figures share. Turns numbers into shapes; knows nothing of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clustersim.report.shapes import LEVELS, MISSING, Box, Label, Line, Raster, Shape

SMALL = 11.0  # text beside axes, pixels
WIDE = 0.7  # of a letter, in text sizes: that of a bold digit in DejaVu Sans, which is wide


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A rectangle of the canvas, in pixels, and the numbers that its edges stand for."""

    left: float
    right: float
    top: float
    bottom: float
    x_low: float = 0.0
    x_high: float = 1.0
    y_low: float = 0.0
    y_high: float = 1.0

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        return self.left + (value - self.x_low) / (span or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        span = self.y_high - self.y_low
        return self.bottom - (value - self.y_low) / (span or 1.0) * (self.bottom - self.top)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`, with steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else [0.0]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def seconds_unit(largest: float) -> tuple[float, str]:
    """The unit for an axis of seconds up to `largest`: what one of it is, and its name."""
    return next(((size, name) for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if largest >= size), (1e-9, "ns"))


def plain(value: float) -> str:
    """A tick's number, without a needless zero."""
    return f"{value:,.10g}"


def y_grid(frame: Frame, unit: float = 1.0, *, count: int = 5, suffix: str = "") -> list[Shape]:
    """Faint lines across, with their numbers on the left in `unit`."""
    shapes: list[Shape] = []
    for tick in nice_ticks(frame.y_low / unit, frame.y_high / unit, count):
        y = frame.y(tick * unit)
        shapes += [
            Line([(frame.left, y), (frame.right, y)], "grid"),
            Label(frame.left - 6, y + 4, plain(tick) + suffix, "end", SMALL),
        ]  # fmt: skip
    return shapes


def x_ticks(frame: Frame, ticks: Sequence[tuple[float, str]], *, grid: bool = False) -> list[Shape]:
    """Numbers under the frame, leaving out those that would touch the one before."""
    shapes: list[Shape] = []
    free = -math.inf
    for value, text in ticks:
        x, half = frame.x(value), len(text) * SMALL * WIDE / 2
        if x - half < free:
            continue
        free = x + half + 6
        if grid:
            shapes.append(Line([(x, frame.top), (x, frame.bottom)], "grid"))
        shapes.append(Label(x, frame.bottom + 15, text, "middle", SMALL))
    return shapes


def count_ticks(n: int, room: float) -> list[tuple[float, str]]:
    """Ticks 0, step, 2 step, ... for n things in `room` pixels, each at the middle of its place."""
    step = max(1, math.ceil(n / max(1.0, room / 34)))
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 256, 512, 1024, 10**9) if s >= step)
    return [(i + 0.5, str(i)) for i in range(0, n, step)]


def legend(x: float, y: float, room: float, entries: Sequence[tuple[str, str]]) -> tuple[list[Shape], float]:
    """Squares of colour with their names in rows of at most `room` pixels, and the height that they take."""
    shapes: list[Shape] = []
    at, row = x, 0
    for fill, text in entries:
        wide = 16 + len(text) * SMALL * WIDE + 14
        if at > x and at + wide > x + room:
            at, row = x, row + 1
        shapes += [Box(at, y + 18 * row, 10, 10, fill), Label(at + 15, y + 18 * row + 9.5, text, size=SMALL + 0.5)]
        at += wide
    return shapes, 18.0 * (row + 1)


def levels(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Values as levels of the ramp between `low` and `high`; what is not finite is MISSING."""
    span = high - low if high > low else 1.0
    with np.errstate(invalid="ignore"):
        scaled = np.clip((values - low) / span, 0.0, 1.0) * (LEVELS - 1)
    return np.where(np.isfinite(values), np.nan_to_num(scaled).round(), MISSING).astype(np.uint8)


def colour_bar(x: float, y: float, width: float, low: str, high: str, title: str) -> list[Shape]:
    """The ramp with its two ends named, and what it stands for."""
    cells = np.arange(LEVELS, dtype=np.uint8)[None, :]
    before = len(low) * SMALL * WIDE + 6
    return [
        Label(x, y - 8, title, size=SMALL),
        Label(x, y + 9, low, size=SMALL),
        Raster(x + before, y, width, 10, cells),
        Label(x + before + width + 6, y + 9, high, size=SMALL),
    ]


def squeezed(values: NDArray[np.float64], most: int, axis: int = 0) -> tuple[NDArray[np.float64], int]:
    """The largest of every `group` neighbours along an axis, so that at most `most` remain; and the group."""
    n = values.shape[axis]
    group = max(1, math.ceil(n / most))
    if group == 1:
        return values, 1
    with np.errstate(all="ignore"):
        return np.fmax.reduceat(values, np.arange(0, n, group), axis=axis), group


def heat_map(
    width: float, values: NDArray[np.float64], *, low: float, high: float, shown: Callable[[float], str], title: str,
    x_name: str, y_name: str, height: float = 300.0, most: int = 256, lines: int = 0,
) -> list[Shape]:  # fmt: skip
    """Cells [rows, columns] as colours, first row on top, with a colour bar above.

    Args:
        lines: draw a thin line after so many rows and columns (nodes); 0: none.
    """
    rows, columns = values.shape
    cells, _ = squeezed(squeezed(values, most, 0)[0], most, 1)
    frame = Frame(left=46, right=width - 4, top=50, bottom=height - 38, x_high=columns, y_low=rows, y_high=0)
    shapes = colour_bar(frame.left, 22, 110, shown(low), shown(high), title)
    shapes.append(Raster(frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top, levels(cells, low, high)))
    if lines and rows // lines <= 16:
        for at in range(lines, rows, lines):
            shapes.append(Line([(frame.left, frame.y(at)), (frame.right, frame.y(at))], "surface", 0.5))
            shapes.append(Line([(frame.x(at), frame.top), (frame.x(at), frame.bottom)], "surface", 0.5))
    shapes += x_ticks(frame, count_ticks(columns, frame.right - frame.left))
    for place, text in count_ticks(rows, (frame.bottom - frame.top) * 1.4):
        shapes.append(Label(frame.left - 6, frame.y(place) + 4, text, "end", SMALL))
    shapes.append(Label((frame.left + frame.right) / 2, height - 6, x_name, "middle", SMALL))
    shapes.append(Label(12, (frame.top + frame.bottom) / 2, y_name, "middle", SMALL, turn=True))
    return shapes
