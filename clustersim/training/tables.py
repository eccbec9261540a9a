"""The tables of a training step: its pipeline's tasks and devices, and the step in one row. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from clustersim.architecture import Architecture
from clustersim.results.counting import LayerCounts
from clustersim.results.tables import trade
from clustersim.training.step import Trained

SHARES = ("computed_s", "sent_s", "exchanged_s", "waited_s", "launched_s")        # of a task's seconds


def tasks_table(trained: Trained) -> pl.DataFrame:
    """tasks.parquet: one row per task of a pipeline device, or per two that overlap."""
    columns: dict[str, list[Any]] = {name: [] for name in (
        "device", "begin_s", "end_s", "kind", "stage", "batch", "stage_back", "batch_back", *SHARES
    )}  # fmt: skip
    rows = zip(trained.pipeline.tasks, trained.flow.begun, trained.flow.ended, trained.blocks, strict=True)
    for device, (every, begun, ended, blocks) in enumerate(rows):
        for tasks, begin, end, block in zip(every, begun, ended, blocks, strict=True):
            behind = tasks[1] if len(tasks) > 1 else None
            values = (
                device, begin, end, "+".join(task.kind for task in tasks), tasks[0].stage, tasks[0].batch,
                behind.stage if behind else None, behind.batch if behind else None, *(getattr(block, name) for name in SHARES),
            )  # fmt: skip
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return pl.DataFrame(columns, schema_overrides=dict.fromkeys(("stage_back", "batch_back"), pl.Int64))


def stages_table(trained: Trained) -> pl.DataFrame:
    """stages.parquet: one row per pipeline device; its shares, bubble, and what comes after the passes add up to the step."""
    rows = []
    for device, held in enumerate(trained.pipeline.held):
        shares = {name: sum(getattr(block, name) for block in trained.blocks[device]) for name in SHARES}
        after = {
            "reduce_s": float(trained.reduce_s[device]), "optimiser_s": trained.updates[device].optimiser_s,
            "gather_s": float(trained.gather_s[device]),
        }  # fmt: skip
        bubble = trained.step_s - sum(shares.values()) - sum(after.values())
        bubble = 0.0 if abs(bubble) < 1e-12 * trained.step_s else bubble        # rounding is no bubble
        rows.append({
            "device": device, "stages": ",".join(map(str, held)), "layers": sum(len(trained.layers[stage]) for stage in held),
            **shares, "bubble_s": bubble, **after,
        })  # fmt: skip
    return pl.DataFrame(rows)


def training_row(trained: Trained, architecture: Architecture) -> dict[str, Any]:
    """The step in one row of numbers: seconds are means over pipeline devices; computing, exposed and bubble are the step."""
    stages, gpus = stages_table(trained), trained.parallel.gpus
    mean = {name: float(stages[name].mean()) for name in stages.columns[3:]}        # type: ignore[arg-type]
    tokens, step_s = trained.tokens, trained.step_s
    flops = architecture.flops("training", (trained.batch.sequence + 1) / 2)
    slowest = int(np.argmax(trained.flow.busy_s))
    rate = tokens / step_s if step_s else None
    return {
        "step_s": step_s,
        "compute_s": mean["computed_s"] + mean["optimiser_s"],
        "launch_s": mean["launched_s"],
        "exposed_comm_s": sum(mean[name] for name in ("sent_s", "exchanged_s", "waited_s", "reduce_s", "gather_s")),
        "wait_s": mean["waited_s"],
        "bubble_s": mean["bubble_s"],
        "tensor_comm_s": mean["sent_s"],
        "exchange_comm_s": mean["exchanged_s"],
        "gradient_comm_s": mean["reduce_s"] + mean["gather_s"],
        "optimiser_s": mean["optimiser_s"],
        "bubble_rate": mean["bubble_s"] / step_s if step_s else None,
        "tokens": tokens,
        "tokens_per_s": rate,
        "tokens_per_s_per_gpu": rate and rate / gpus,
        "model_flops_per_s_per_gpu": rate and rate / gpus * flops,
        "gpu_hours_per_trillion_tokens": gpus * step_s / tokens * 1e12 / 3600,
        "micro_batches": trained.micro_batches,
        **_dropped(trained.counts, trained),
        "bottleneck": f"pipeline device {slowest}",
        "bottleneck_busy_s": float(trained.flow.busy_s[slowest]),
        "over_bound": None, "nvlink_bytes": None, "nic_bytes": None, "seconds_saved_by_dropping": None,
        "solves": trained.solves,
        "events": trained.events,
    }  # fmt: skip


def _dropped(counts: Sequence[LayerCounts], trained: Trained) -> dict[str, Any]:
    """What the routers of the layers that were played did; nothing where none has experts."""
    asked, kept = sum(int(c.asked.sum()) for c in counts), sum(int(c.kept.sum()) for c in counts)
    tokens = trained.group_gpus * trained.batch.tokens
    firsts = [c.gpu_tokens[:: trained.parallel.expert_tensor] for c in counts]          # the GPUs that slots are counted on
    means = [float(held.max() / held.mean()) for held in firsts if held.any()]
    return {
        "drop_rate": (asked - kept) / asked if asked else 0.0,
        "fully_dropped": sum(c.fully_dropped for c in counts) / (tokens * len(counts)) if counts else 0.0,
        **trade(counts, tokens),
        "moe_layers": trained.model.n_moe_layers,
        "experts_per_token": kept / (tokens * len(counts)) if counts else 0.0,
        "imbalance": float(np.mean(means)) if means else None,
    }
