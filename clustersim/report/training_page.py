"""The page of a training step."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from clustersim.report import html
from clustersim.report.reading import RunData
from clustersim.report.run_page import footer, settings
from clustersim.report.shapes import Figure
from clustersim.report.training_findings import findings_of_training
from clustersim.report.wording import number, percent, seconds

TIMES = ("computed_s", "sent_s", "exchanged_s", "waited_s", "launched_s")
SIZES = ("tensor", "context", "pipeline", "virtual", "expert", "expert_tensor", "zero")


def page_of_training(run: RunData, figures: Sequence[Figure]) -> str:
    """The whole page, from what `figures_of_training` made of the same run."""
    row, by_name = run.summary, {figure.name: figure for figure in figures}
    parts = [html.head(_kind(run), findings_of_training(run), run.told.get("notes", ()))]
    parts += [html.figure(by_name[name]) for name in ("pipeline", "pipeline_begin", "devices") if name in by_name]
    parts.append(html.row([by_name[name] for name in ("split", "memory") if name in by_name]))
    parts += [_passes(run), _devices(run), settings(run), footer(run)]
    return html.page(f"training {row['model']} on {row['gpus']} × {row['topology']}: {seconds(row['step_s'])}", parts)


def _kind(run: RunData) -> str:
    """What was run, in a line."""
    row = run.summary
    sizes = [f"{name} {row[f'parallel.{name}']}" for name in SIZES if row[f"parallel.{name}"] not in (None, 0, 1)]
    if row["parallel.zero"] == 1:
        sizes.append("zero 1")
    gpus = "1 GPU" if row["gpus"] == 1 else f"{number(row['gpus'])} GPUs"
    routed = f" · trace {row['trace']} · exchange {row['exchange']} · network {row['network']}" if row["moe_layers"] else ""
    return (
        f"training {row['model']} on {gpus} of {row['topology']} · {', '.join(sizes) or 'data parallel alone'}"
        f"{', ' + str(row['parallel.order']) if row['parallel.pipeline'] != 1 else ''} · sequences of "
        f"{number(row['workload.sequence'])} tokens, {number(row['workload.global_batch'])} a step{routed}"
    )


def _passes(run: RunData) -> str:
    """The mean pass of every kind through every stage."""
    kinds = run.tables["tasks"].with_columns(took=pl.col("end_s") - pl.col("begin_s")).group_by(
        "kind", "stage", "stage_back", maintain_order=True
    ).agg(pl.len(), pl.mean("took", *TIMES)).sort("kind", "stage", "stage_back")  # fmt: skip
    rows: list[list[html.Cell]] = []
    for one in kinds.iter_rows(named=True):
        where = str(one["stage"]) if one["stage_back"] is None else f"{one['stage']} and {one['stage_back']}"
        spent: list[html.Cell] = [(seconds(one[key]), float(one[key])) for key in ("took", *TIMES)]
        rows.append([one["kind"], where, (number(one["len"]), float(one["len"])), *spent])
    headings = ("pass", "stage", "times", "takes", "computes", "sent", "exchanged", "waits", "host")
    body = html.card("", "F forward, B backward, I and W its halves; F+B two that overlap. Means.", html.table(headings, rows))
    return f"<details><summary>All passes as a table</summary>{body}</details>"


def _devices(run: RunData) -> str:
    """The step of every pipeline device."""
    step = run.summary["step_s"] or 0.0
    names = (*TIMES, "reduce_s", "optimiser_s", "gather_s", "bubble_s")
    rows: list[list[html.Cell]] = []
    for one in run.tables["stages"].iter_rows(named=True):
        times: list[html.Cell] = [(seconds(one[key]), float(one[key])) for key in names]
        idle = percent(one["bubble_s"] / step if step else 0.0)
        rows.append([str(one["device"]), one["stages"], str(one["layers"]), *times, idle])
    spent = ("computes", "sent", "exchanged", "waits", "reduce", "optimiser", "gather", "bubble")
    headings = ("device", "stages", "layers", *spent, "of the step")
    return f"<details><summary>All devices as a table</summary>{html.card('', '', html.table(headings, rows))}</details>"
