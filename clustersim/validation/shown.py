"""Scores for a person: tables, built and not printed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from clustersim.kernels import load_kernel
from clustersim.types import InputError
from clustersim.units import format_seconds
from clustersim.validation.calibration import Calibrated
from clustersim.validation.fitting import Fit
from clustersim.validation.leaving import Left
from clustersim.validation.rows import Row
from clustersim.validation.scoring import Scored, Verdict
from clustersim.writing import not_drawn

SECONDS = ("ns", "us", "ms", "s", "min", "h", "ms/layer", "s/token")


def groups_table(groups: Iterable[Verdict], *, identities: bool) -> Table:
    """One line per group: the measurements, or the identities."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("group", "what", "rows", "median", "worst", "bar", "", "verdict"):
        table.add_column(heading, justify="left" if heading in ("group", "what", "verdict") else "right", no_wrap=True)
    for v in groups:
        if v.identity != identities:
            continue
        table.add_row(
            v.group, v.title, f"{v.modelled}/{v.rows}" if v.modelled < v.rows else str(v.rows),
            *(_size(size, v.group) for size in (v.median, v.worst, v.bar_median, v.bar_worst)), verdict(v),
        )  # fmt: skip
    return table


def verdict(v: Verdict) -> str:
    """`ok`, `outside`, or what else there is to say."""
    if v.modelled == 0:
        return "not modelled"
    if v.ok is None:
        return ""
    return "ok" if v.ok else "outside" if v.modelled == v.rows else "not all modelled"


def refit_table(found: Iterable[tuple[tuple[str, ...], Fit]]) -> Table:
    """Fitted constants as they are, and as the rows that set them say when they are fitted again."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("constant", "is", "fitted", "95 % of it from", "to", "set by"):
        table.add_column(heading, justify="left" if heading in ("constant", "set by") else "right")
    for groups, fit in found:
        for key, one in fit.values.items():
            kernel, _, leaf = key.rpartition(".")
            low, high = fit.intervals[key]
            table.add_row(key, f"{load_kernel(kernel)[leaf]:.4g}", f"{one:.4g}", f"{low:.4g}", f"{high:.4g}", ", ".join(groups))
    return table


def left_table(left: Iterable[Left]) -> Table:
    """Every group without the constants that its own rows set."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("group", "median", "worst", "1.5 x bar", "", "verdict", "constants that its own rows had set"):
        right = heading in ("median", "worst", "1.5 x bar", "")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for one in left:
        sizes = (f"{100 * size:.3g} %" for size in (one.median, one.worst, one.bar_median, one.bar_worst))
        table.add_row(one.group, *sizes, "ok" if one.ok else "outside", one.came_from)
    return table


def calibrated_tables(found: Calibrated) -> list[Table]:
    """Each measurement against what the constants found say of it, and the constants."""
    rows = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("row", "measured", "simulated", "error"):
        rows.add_column(heading, justify="left" if heading == "row" else "right")
    for row, simulated in zip(found.rows, found.simulated, strict=True):
        rows.add_row(row.id, value(row.value, row), value(simulated, row), f"{100 * (simulated / row.value - 1):+.1f} %")
    held = [100 * error for error in found.held_out]
    rows.caption = (
        f"held out: {len(held)} rows, off by {statistics.median(held):.1f} % in the median and {max(held):.1f} % at worst with "
        "constants that the others set" if held else "too few rows to keep some aside for a check"
    )
    rows.caption_justify = "left"
    constants = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("constant", "before", "found", "95 % of it from", "to"):
        constants.add_column(heading, justify="left" if heading == "constant" else "right")
    for key, one in found.fit.values.items():
        kernel, _, leaf = key.rpartition(".")
        low, high = found.fit.intervals[key]
        ends = ("says nothing", "") if high == float("inf") else (f"{low:.4g}", f"{high:.4g}")
        constants.add_row(key, f"{load_kernel(kernel)[leaf]:.4g}", f"{one:.4g}", *ends)
    return [rows, constants]


def rows_table(scored: Iterable[Scored]) -> Table:
    """One line per row."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("row", "measured", "simulated", "error", ""):
        table.add_column(heading, justify="right" if heading in ("measured", "simulated", "error") else "left")
    for s in scored:
        error = "" if s.error is None else f"{100 * s.error:+.1f} %" if s.row.group != "I2" else f"{s.error:+.2f} sigma"
        over = "outside" if s.error is not None and s.bar is not None and abs(s.error) > s.bar else ""
        said = s.reason or "; ".join(filter(None, (over, *s.notes)))
        table.add_row(s.row.id, value(s.row.value, s.row), value(s.simulated, s.row), error, said)
    return table


def value(number: Any, row: Row) -> str:
    """A measured or simulated value in words."""
    if number is None:
        return ""
    if isinstance(number, list):
        return "[" + ", ".join(f"{part:.4g}" if isinstance(part, int | float) else "..." for part in number) + "]"
    return format_seconds(number) if row.unit in SECONDS else f"{number / row.scale:.4g} {row.unit}"


def _size(size: float | None, group: str) -> str:
    if size is None:
        return ""
    if group == "I2":
        return f"{size:.2g} sigma"
    return f"{100 * size:.3g} %" if size >= 5e-6 else "0 %"


def plot(scored: Iterable[Scored], path: Path) -> Path:
    """Simulated against measured, one point per timed row, drawn in a file; needs matplotlib.

    Raises:
        InputError: matplotlib is not there, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("validate --plot: needs matplotlib: pip install 'clustersim[plot]'") from error
    figure = Figure(figsize=(7, 7))
    axes = figure.subplots()
    points: dict[str, list[tuple[float, float]]] = {}
    for s in scored:
        if s.modelled and s.row.unit in SECONDS and not isinstance(s.simulated, list):
            points.setdefault(s.row.group, []).append((1e6 * s.row.value, 1e6 * s.simulated))
    if not points:
        raise InputError("validate --plot: no row with a time is modelled")
    for group, pairs in points.items():
        axes.plot(*zip(*pairs, strict=True), ".", label=group)
    ends = [min(p[0] for pairs in points.values() for p in pairs), max(p[0] for pairs in points.values() for p in pairs)]
    axes.plot(ends, ends, "k-", linewidth=0.8)
    for off in (0.8, 1.25):
        axes.plot(ends, [off * end for end in ends], "k:", linewidth=0.6)
    axes.set(xscale="log", yscale="log", xlabel="measured (us)", ylabel="simulated (us)", title="dotted: 25 % off")
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"validate -o {path}: {not_drawn(error)}") from error
    return path
