"""The pieces that pages are put together from: figures, tables, tiles. Text in, text out; all of it escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from clustersim.report.findings import Findings
from clustersim.report.shapes import Figure
from clustersim.report.style import SCRIPT, STYLE
from clustersim.report.svg import inline_svg

WIDE, HALF, NARROW = 880, 440, 330  # pixels that a figure is drawn for: across the page, half of it, a phone
FAR = 60  # rows of a table that are printed on paper
Cell = str | tuple[str, float | None]  # what a cell shows, and the number it sorts by


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page that needs nothing besides itself."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
    )
    return head + "\n".join(parts) + f"\n</main><script>{SCRIPT}</script></body></html>\n"


def head(kind: str, findings: Findings, notes: Sequence[str] = ()) -> str:
    """Headline first, then what stands behind it, then the main numbers."""
    lead = "".join(f'<p class="lead">{escape(text)}</p>' for text in _paragraphs(findings.sentences))
    tiles = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="v">{escape(value)}</dd><dd class="r">{escape(remark)}</dd></div>'
        for name, value, remark in findings.tiles
    )
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f'<header><p class="kind">{escape(kind)}</p><h1>{escape(findings.headline)}</h1>{lead}</header>'
        + f'<dl class="tiles" style="--all:{len(findings.tiles)};--some:{-(-len(findings.tiles) // 2)}">{tiles}</dl>'
        + (f'<ul class="notes">{listed}</ul>' if listed else "")
    )


def _paragraphs(sentences: Sequence[str]) -> list[str]:
    """The first sentence alone, the others as one paragraph."""
    rest = " ".join(text for text in sentences[1:] if text)
    return [text for text in (sentences[0] if sentences else "", rest) if text]


def figure(drawn: Figure, *, half: bool = False) -> str:
    """A figure with its caption, drawn for a page (the width of it, or half) and a second time for phones."""
    pictures = inline_svg(drawn.draw(HALF if half else WIDE), "half" if half else "wide") + inline_svg(
        drawn.draw(NARROW), "narrow"
    )
    caption = f"<figcaption><h3>{escape(drawn.title)}</h3><p>{escape(drawn.caption)}</p></figcaption>"
    return f'<figure id="{escape(drawn.name)}">{caption}{pictures}</figure>'


def pair(*parts: str) -> str:
    """Two parts side by side where there is room."""
    return f'<section class="pair">{"".join(parts)}</section>'


def row(figures: Sequence[Figure]) -> str:
    """Two figures side by side; one alone has the whole width."""
    return pair(*(figure(one, half=True) for one in figures)) if len(figures) > 1 else "".join(figure(one) for one in figures)


def card(title: str, caption: str, body: str) -> str:
    """A part of the page in a frame, as figures have."""
    said = f"<p>{escape(caption)}</p>" if caption else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{said}{body}</div>'


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    best: Sequence[int] = (),
    text: bool = False,
    sortable: bool = True,
) -> str:
    """A table that scrolls within its frame; `best` are rows that are marked, `text` sets it to the left.

    Row and cell end tags are left out, as HTML allows: a thousand rows are a third smaller so.
    """
    mark = ' class="s"' if sortable else ""
    top = "".join(f"<th{mark}>{escape(name)}" for name in headings)
    marked = set(best)
    lines = []
    for i, row in enumerate(rows):
        names = " ".join(["best"] * (i in marked) + ["far"] * (i >= FAR))
        lines.append(f"<tr{f' class={chr(34)}{names}{chr(34)}' if names else ''}>" + "".join(_cell(cell) for cell in row))
    kind = ' class="text"' if text else ""
    return f'<div class="scroll" tabindex="0"><table{kind}><thead><tr>{top}<tbody>{"".join(lines)}</table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}"
    shown, value = cell
    return f"<td>{escape(shown)}" if value is None else f"<td data-v={value:.5g}>{escape(shown)}"
