"""What the GPUs of a run hold: as a table, as columns of the summary, and in a line for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from clustersim.engine.memory import Memory
from clustersim.units import format_bytes


def memory_table(memory: Memory) -> pl.DataFrame:
    """Per pipeline stage and part: bytes on one of its GPUs."""
    rows = [(stage, part, nbytes) for stage, parts in enumerate(memory.stages) for part, nbytes in parts.items()]
    return pl.DataFrame(rows, schema={"stage": pl.UInt16, "part": pl.String, "held_bytes": pl.Float64}, orient="row")


def memory_summary(memory: Memory, gpu_memory: float) -> dict[str, Any]:
    """Columns of the summary: what the fullest GPU needs, and what it has."""
    return {"memory_bytes": memory.nbytes, "gpu_memory_bytes": gpu_memory}


def memory_line(row: Mapping[str, Any], table: pl.DataFrame) -> str:
    """`61.2 GB of 80.0 GB: weights 40.1 GB, cache 21.1 GB`, of the fullest stage."""
    stages = table.group_by("stage").agg(pl.sum("held_bytes")).sort("held_bytes", "stage", descending=[True, False])
    held = table.filter(pl.col("stage") == stages["stage"][0], pl.col("held_bytes") > 0).sort("held_bytes", descending=True)
    of = f" (stage {stages['stage'][0]})" if stages.height > 1 else ""
    parts = ", ".join(f"{part} {format_bytes(nbytes)}" for part, nbytes in zip(held["part"], held["held_bytes"], strict=True))
    over = "" if row["memory_bytes"] <= row["gpu_memory_bytes"] else ", which does not fit"
    return f"{format_bytes(row['memory_bytes'])} of {format_bytes(row['gpu_memory_bytes'])}{over}{of}: {parts}"
