"""Pictures as PDF for papers, by matplotlib, with embedded fonts. The same shapes as in the page, on white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clustersim.report.shapes import LIGHT, MISSING, Area, Bars, Box, Dots, Label, Line, Picture, Raster, Shape, Words, ramp
from clustersim.types import InputError

PER_INCH = 96.0  # pixels of a picture
POINTS = 72.0 / PER_INCH


def write_pdf(picture: Picture, path: Path) -> None:
    """Draw the picture into a PDF. The same picture gives the same bytes.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("report --pdf: needs matplotlib; pip install 'clustersim[plot]'") from error
    with matplotlib.rc_context({"pdf.fonttype": 42, "font.family": "sans-serif", "path.simplify": False}):
        figure = Figure(figsize=(picture.width / PER_INCH, picture.height / PER_INCH))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_xlim(0, picture.width)
        axes.set_ylim(picture.height, 0)
        axes.set_axis_off()
        for order, shape in enumerate(picture.shapes):
            _paint(axes, shape, order + 1)
        figure.savefig(path, format="pdf", metadata={"CreationDate": None, "Title": picture.says})


def _paint(axes: Any, shape: Shape, order: int) -> None:
    from matplotlib.patches import Polygon, Rectangle

    if isinstance(shape, Box):
        box = Rectangle((shape.x, shape.y), shape.width, shape.height, facecolor=LIGHT[shape.fill], linewidth=0, zorder=order)
        axes.add_patch(box)
    elif isinstance(shape, Area):
        axes.add_patch(Polygon(shape.points, closed=True, facecolor=LIGHT[shape.fill], linewidth=0, zorder=order))
    elif isinstance(shape, Line):
        x, y = np.array(shape.points, float).reshape(-1, 2).T
        style: Any = (0, (4, 3)) if shape.dash else "-"
        axes.plot(x, y, color=LIGHT[shape.stroke], linewidth=shape.width * POINTS, linestyle=style, zorder=order)
    elif isinstance(shape, Dots):
        x, y = np.array(shape.points, float).reshape(-1, 2).T
        axes.scatter(x, y, s=(2 * shape.radius * POINTS) ** 2, color=LIGHT[shape.fill], linewidths=0, zorder=order)
    elif isinstance(shape, Label):
        across = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
        axes.text(
            shape.x, shape.y, shape.text.replace("$", r"\$"), fontsize=shape.size * POINTS, color=LIGHT[shape.ink], ha=across,
            va="baseline", weight="bold" if shape.bold else "normal", rotation=90 if shape.turn else 0, rotation_mode="anchor",
            zorder=order,
        )  # fmt: skip
    elif isinstance(shape, Bars):
        for left, top, wide in shape.spans:
            axes.add_patch(Rectangle((left, top), wide, shape.height, facecolor=LIGHT[shape.fill], linewidth=0, zorder=order))
    elif isinstance(shape, Words):
        for left, base, text in shape.places:
            axes.text(left, base, text, fontsize=shape.size * POINTS, color=LIGHT[shape.ink], ha="center", zorder=order)
    elif isinstance(shape, Raster):
        colours = np.zeros((256, 4), np.uint8)
        table = ramp()
        colours[: len(table), :3], colours[: len(table), 3] = table, 255
        colours[MISSING] = 0
        extent = (shape.x, shape.x + shape.width, shape.y + shape.height, shape.y)
        axes.imshow(colours[shape.cells], extent=extent, aspect="auto", interpolation="nearest", zorder=order)
