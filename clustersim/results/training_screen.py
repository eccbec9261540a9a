"""What a person reads at the end of a training step: tables that fit 80 columns. Builds them, does not print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from rich.console import RenderableType
from rich.table import Table

from clustersim.results.comparing import gpu_seconds
from clustersim.results.facts import cost_line, summary_page
from clustersim.results.footprint import memory_line
from clustersim.results.swept import SweptTable
from clustersim.units import format_bytes, format_seconds


def device_table(stages: pl.DataFrame) -> Table:
    """One line per pipeline device; alike neighbours are one line."""
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left", caption_style="dim",
        caption="sent: by tensor, context groups; exchanged: for experts; waits: also for the host; after: gradients, optimiser",
    )  # fmt: skip
    for heading in ("device", "layers", "computes", "sent", "exchanged", "waits", "bubble", "after"):
        table.add_column(heading, justify="right", no_wrap=True)
    lines: list[tuple[list[int], tuple[str, ...]]] = []
    for row in stages.iter_rows(named=True):
        times = [row["computed_s"], row["sent_s"], row["exchanged_s"], row["waited_s"] + row["launched_s"], row["bubble_s"]]
        after = row["reduce_s"] + row["optimiser_s"] + row["gather_s"]
        shown = (str(row["layers"]), *(format_seconds(value) for value in (*times, after)))
        if lines and lines[-1][1] == shown:
            lines[-1][0].append(row["device"])
        else:
            lines.append(([row["device"]], shown))
    for devices, shown in lines:
        table.add_row(str(devices[0]) if len(devices) == 1 else f"{devices[0]}-{devices[-1]}", *shown)
    return table


def comparison(keys: Sequence[Mapping[str, str]], swept: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> SweptTable:
    """One line per training step of a sweep; `to best` is by GPU time per token, since steps may be of different sizes.

    Args:
        keys: the overrides of every job, by key.
        swept: those in which jobs differ.
    """
    costs = [gpu_seconds(row) for row in rows]
    best = min(costs)
    return SweptTable(
        keys=tuple(swept), jobs=tuple(tuple(job.get(key, "") for key in swept) for job in keys),
        results={
            **{
                heading: tuple(format_seconds(row[column]) for row in rows)
                for heading, column in (("step", "step_s"), ("computes", "compute_s"), ("exposed", "exposed_comm_s"))
            },
            "bubble": tuple(f"{100 * row['bubble_rate']:.1f} %" if row["step_s"] else "-" for row in rows),
            "TFLOP/s": tuple(_teraflops(row["model_flops_per_s_per_gpu"]) for row in rows),
            "memory": tuple(format_bytes(row["memory_bytes"]) for row in rows),
            "to best": tuple(f"{cost / best:.2f}" if best else "" for cost in costs),
        },
        caption="exposed: communication that nothing hides; TFLOP/s: of the model, per GPU; to best: GPU time per token",
        spare=("computes", "exposed", "memory", "TFLOP/s"), best=tuple(cost == best for cost in costs),
    )  # fmt: skip


def _teraflops(flops: float | None) -> str:
    return "-" if flops is None else f"{flops / 1e12:,.1f}"


def summary(row: Mapping[str, Any], notes: Sequence[str], memory: pl.DataFrame | None = None) -> RenderableType:
    """The step in a dozen lines; `memory` is that table, where it is at hand."""
    step = row["step_s"]

    def share(key: str) -> str:
        return f"{format_seconds(row[key])}, {100 * row[key] / step:.1f} %" if step else format_seconds(row[key])

    split = ", ".join(
        f"{name} {row[f'parallel.{name}']}"
        for name in ("tensor", "context", "pipeline", "virtual", "expert", "zero")
        if row[f"parallel.{name}"] not in ((None, 0) if name == "zero" else (None, 1))
    )  # fmt: skip
    return summary_page({
        "run": f"{row['model']} on {row['gpus']:,} GPUs of {row['topology']}",
        "split": f"{split or 'data parallel alone'}, {row['parallel.order']}",
        "step": f"{format_seconds(step)}: {row['tokens']:,} tokens in {row['micro_batches']} micro-batches",
        "throughput": "no time passed" if not step else f"{row['tokens_per_s_per_gpu']:,.0f} tokens/s and "
        f"{row['model_flops_per_s_per_gpu'] / 1e12:,.1f} model TFLOP/s per GPU",
        "a trillion tokens": f"{row['gpu_hours_per_trillion_tokens']:,.0f} GPU-hours",
        "computes": share("compute_s"),
        "tensor and context groups": share("tensor_comm_s"),
        "exchanges, exposed": share("exchange_comm_s"),
        "waits for others": share("wait_s"),
        "pipeline bubble": share("bubble_s"),
        "gradients and weights": share("gradient_comm_s"),
        "cost": cost_line(row),
        "memory of a GPU": "" if memory is None else memory_line(row, memory),
        "expert load of a GPU": "" if row["imbalance"] is None else f"max/mean {row['imbalance']:.2f}, mean over the layers",
        "dropped": f"{100 * row['drop_rate']:.2f} % of the choices" if row["drop_rate"] else "",
    }, notes)  # fmt: skip
