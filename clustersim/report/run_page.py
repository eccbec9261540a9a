"""The page of one run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import polars as pl

from clustersim.report import html
from clustersim.report.findings import findings_of_run
from clustersim.report.reading import RunData, leaves
from clustersim.report.run_figures import by_link
from clustersim.report.shapes import Figure
from clustersim.report.wording import NONE, known, nbytes, number, percent, seconds
from clustersim.results.footprint import memory_line

HOTTEST = 10


def page_of_run(run: RunData, figures: Sequence[Figure]) -> str:
    """The whole page, from what `figures_of_run` made of the same run."""
    row, by_name = run.summary, {figure.name: figure for figure in figures}
    gpus = "1 GPU" if row["gpus"] == 1 else f"{number(row['gpus'])} GPUs"
    kind = (
        f"{row['model']} on {gpus} of {row['topology']} · trace {row['trace']}, {number(row['tokens_per_gpu'])} "
        f"tokens per GPU · placement {row['placement']} · exchange {row['exchange']} · "
        f"network {row['network']} · {_capacity(run)}"
    )
    parts = [html.head(kind, findings_of_run(run), _notes(run)), html.figure(by_name["layers"])]
    if "causes" in by_name:
        parts.append(html.figure(by_name["causes"]))
    if run.tables["links"].height and "links" in by_name:
        parts += [html.pair(html.figure(by_name["links"], half=True), _hottest(run))]
    for names in (("finish", "bytes"), ("loads",), ("load_experts", "load_gpus")):
        parts.append(html.row([by_name[name] for name in names if name in by_name]))
    parts += [_layers(run), settings(run), footer(run)]
    return html.page(f"{row['model']} on {row['gpus']} × {row['topology']}: {seconds(row['step_s'])}", parts)


def _notes(run: RunData) -> list[str]:
    several = [f"numbers are means over {run.steps} steps, pictures and tables show the first"] if run.steps > 1 else []
    table = run.tables.get("memory", pl.DataFrame())
    held = [f"memory of the fullest GPU: {memory_line(run.summary, table)}"] if table.height else []
    return [*several, *run.told.get("notes", ()), *held]


def _capacity(run: RunData) -> str:
    row = run.summary
    return f"capacity {row['capacity_factor']:g}, {row['drop']}" if known(row["capacity_factor"]) else "dropless"


def _hottest(run: RunData) -> str:
    links = by_link(run).filter(pl.col("busy_s") > 0).head(HOTTEST)
    rows = [
        (
            link["name"],
            (percent(link["used"]), link["used"]),
            (seconds(link["busy_s"]), link["busy_s"]),
            (nbytes(link["bytes"]), link["bytes"]),
        )
        for link in links.iter_rows(named=True)
    ]
    caption = "Busy: the time its bytes take on the link alone, and what share of the step that is."
    return html.card(f"The {len(rows)} hottest links" if len(rows) > 1 else "The hottest link", caption, html.table(
        ("link", "busy", "time", "bytes"), rows
    ))  # fmt: skip


def _layers(run: RunData) -> str:
    def line(row: dict[str, object]) -> list[html.Cell]:
        times: list[html.Cell] = [(seconds(row[key]), _value(row[key])) for key in _TIMES]
        if row["dropped"] is None:
            return [str(row["layer"]), *times[:4], NONE, NONE, NONE, "dense"]
        others: list[html.Cell] = [
            number(row["imbalance"], 2), (number(row["dropped"]), _value(row["dropped"])), number(row["over_bound"], 3)
        ]  # fmt: skip
        return [str(row["layer"]), *times, *others, str(row["bottleneck"] or NONE)]

    headings = ("layer", "dispatch", "compute", "combine", "wait", "load", "dropped", "T/bound", "busiest link")
    rows = [line(row) for row in run.tables["layers"].iter_rows(named=True)]
    return f"<details><summary>All layers as a table</summary>{html.card('', '', html.table(headings, rows))}</details>"


_TIMES = ("dispatch_s", "compute_s", "combine_s", "wait_s")


def _value(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and known(value) else None


def settings(run: RunData) -> str:
    """The config as a table, folded away."""
    rows = [(key, value) for key, value in leaves(run.told.get("config", {}))]
    body = html.table(("key", "value"), rows, text=True, sortable=False)
    return f"<details><summary>The whole config</summary>{html.card('', '', body)}</details>"


def footer(run: RunData) -> str:
    """Which run it is, and how it was asked for."""
    told = run.told
    wall = f", simulated in {seconds(told['wall_s'])}" if known(told.get("wall_s")) else ""
    asked = " ".join(told.get("overrides", ())) or "(the default run)"
    made = escape(f"run {told.get('run_id')} · clustersim {told.get('version')}{wall}")
    return f"<footer>{made}<br>{escape(asked)}</footer>"
