"""Plain tables that pages for a person are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def facts_table(facts: dict[str, str]) -> Table:
    """A name and a text per row."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in facts.items():
        table.add_row(name, text)
    return table


def numbers_table(*headings: str) -> Table:
    """The first column to the left, the others, numbers, to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def cost_line(row: Mapping[str, Any]) -> str:
    """What tokens cost, where a price is given."""
    dollars, joules = row.get("dollars_per_million_tokens"), row.get("joules_per_token")
    if dollars is None:
        return ""
    power = "" if joules is None else f", {joules:.3g} J a token"
    return f"${dollars:.3g} and {row['gpu_hours_per_million_tokens']:.3g} GPU-hours a million tokens{power}"


def summary_page(lines: Mapping[str, str], notes: Sequence[str]) -> RenderableType:
    """What a run ends with: a name and a text per line, those without a text left out, then the notes."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="bold")
    table.add_column()
    for name, text in lines.items():
        if text:
            table.add_row(name, text)
    return Group(Text(), table, *(Text(f" note: {note}", style="dim") for note in notes))
