"""Pictures as SVG: inside a page with the page's colours, or as a file of its own. No dependency, nothing fetched."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from clustersim.report.raster_png import encode_png
from clustersim.report.shapes import LIGHT, Area, Bars, Box, Dots, Label, Line, Picture, Raster, Shape, Words

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def inline_svg(picture: Picture, style: str = "") -> str:
    """The picture as an `<svg>` element whose colours are the variables `--ROLE` of the page."""
    return _svg(picture, {role: f"var(--{role})" for role in LIGHT}, f' class="{style}"' if style else "")


def svg_file(picture: Picture) -> str:
    """The picture as an SVG file of its own, on white."""
    size = f' xmlns="http://www.w3.org/2000/svg" width="{_n(picture.width)}" height="{_n(picture.height)}" font-family="{FONT}"'
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + _svg(picture, LIGHT, size, ground=True) + "\n"


def _svg(picture: Picture, colours: Mapping[str, str], attributes: str, *, ground: bool = False) -> str:
    shapes = [_shape(shape, colours) for shape in picture.shapes]
    if ground:
        shapes.insert(0, f'<path d="M0 0h{_n(picture.width)}v{_n(picture.height)}H0z" fill="{colours["surface"]}"/>')
    box = f"0 0 {_n(picture.width)} {_n(picture.height)}"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(picture.says)}"{attributes}>' + "".join(shapes) + "</svg>"


def _shape(shape: Shape, colours: Mapping[str, str]) -> str:
    if isinstance(shape, Box):
        at = f'x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}"'
        return _noted(f'rect {at} fill="{colours[shape.fill]}"', "rect", shape.note)
    if isinstance(shape, Line):
        dash = ' stroke-dasharray="4 3"' if shape.dash else ""
        stroke = f'stroke="{colours[shape.stroke]}" stroke-width="{_n(shape.width)}"'
        return f'<path d="{_way(shape.points)}" fill="none" {stroke}{dash} stroke-linejoin="round" stroke-linecap="round"/>'
    if isinstance(shape, Area):
        return f'<path d="{_way(shape.points)}z" fill="{colours[shape.fill]}"/>'
    if isinstance(shape, Dots):
        discs = "".join(f"M{_n(x)} {_n(y)}h0" for x, y in shape.points if math.isfinite(x + y))
        stroke = f'stroke="{colours[shape.fill]}" stroke-width="{_n(2 * shape.radius)}" stroke-linecap="round"'
        return _noted(f'path d="{discs}" {stroke}', "path", shape.note) if discs else ""
    if isinstance(shape, Label):
        return _label(shape, colours)
    if isinstance(shape, Bars):
        half = shape.height / 2
        way = "".join(f"M{_n(x)} {_n(y + half)}h{_n(wide)}" for x, y, wide in shape.spans)
        return f'<path d="{way}" stroke="{colours[shape.fill]}" stroke-width="{_n(shape.height)}"/>' if way else ""
    if isinstance(shape, Words):
        size = f'font-size="{_n(shape.size)}"'
        said = "".join(f'<text x="{_n(x)}" y="{_n(y)}" {size}>{escape(text)}</text>' for x, y, text in shape.places)
        return f'<g fill="{colours[shape.ink]}" text-anchor="middle">{said}</g>' if said else ""
    return _raster(shape)


def _label(label: Label, colours: Mapping[str, str]) -> str:
    at = f'x="{_n(label.x)}" y="{_n(label.y)}"'
    if label.turn:
        at = f'transform="translate({_n(label.x)} {_n(label.y)}) rotate(-90)"'
    anchor = "" if label.anchor == "start" else f' text-anchor="{label.anchor}"'
    weight = ' font-weight="600"' if label.bold else ""
    return f'<text {at} font-size="{_n(label.size)}" fill="{colours[label.ink]}"{anchor}{weight}>{escape(label.text)}</text>'


def _raster(raster: Raster) -> str:
    at = f'x="{_n(raster.x)}" y="{_n(raster.y)}" width="{_n(raster.width)}" height="{_n(raster.height)}"'
    data = b64encode(encode_png(raster.cells)).decode()
    return f'<image {at} preserveAspectRatio="none" style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'


def _noted(opening: str, tag: str, note: str) -> str:
    return f"<{opening}><title>{escape(note)}</title></{tag}>" if note else f"<{opening}/>"


def _way(points: Sequence[tuple[float, float]]) -> str:
    text, pen = "", "M"
    for x, y in points:
        if not math.isfinite(x + y):
            pen = "M"
            continue
        text += f"{pen}{_n(x)} {_n(y)}"
        pen = "L"
    return text


def _n(value: float) -> str:
    """A coordinate to a tenth of a pixel, without a needless zero."""
    return f"{value:.1f}".removesuffix(".0")
