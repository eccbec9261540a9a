"""What training costs, dense against sparse, beside what was published. Tables for a person, from summaries of training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from clustersim.architecture import Architecture, describe
from clustersim.results.facts import numbers_table
from clustersim.results.model_card import model_file
from clustersim.units import parse_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the makers of a model say; None: they do not."""

    total: float                        # parameters
    active: float
    gpus: int | None = None             # that it was trained on
    tokens: float | None = None
    gpu_hours: float | None = None
    source: str
    missing: str = ""                   # what was not published, and what stands in


PUBLISHED = {
    "llama_3_1_405b": Published(
        total=405e9, active=405e9, gpus=16384, tokens=15.6e12, gpu_hours=30.84e6,
        source="arXiv 2407.21783 table 4, section 3.4; hours: its model card, interruptions and all stages of training included",
    ),
    "deepseek_v3": Published(
        total=671e9, active=37e9, gpus=2048, tokens=14.8e12, gpu_hours=2.664e6, source="arXiv 2412.19437 table 1: pre-training",
    ),
    "mixtral_8x22b": Published(
        total=141e9, active=39e9, source="https://mistral.ai/news/mixtral-8x22b",
        missing="cluster, tokens and hours were not published; 128 H100 stand in",
    ),
    "qwen3_235b_a22b": Published(
        total=235e9, active=22e9, tokens=36e12, source="arXiv 2505.09388",
        missing="cluster and hours were not published; 1,024 H100 stand in",
    ),
}  # fmt: skip


def frontier_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Parameters, costs and where the time goes, a line per training step; none where models have no published figures.

    GEMMs are the model's arithmetic at the rate of large GEMMs; memory is what computing would be shorter without limits of
    memory bandwidth.
    """
    known = [row for row in rows if row["model"] in PUBLISHED and row.get("gpu_hours_per_trillion_tokens")]
    return [_sizes(known), _costs(known), _totals(known), _times(known)] if known else []


def frontier_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the published figures come from, and what was not published."""
    models = dict.fromkeys(row["model"] for row in rows if row["model"] in PUBLISHED)
    return [f"{name}: {'; '.join(filter(None, (PUBLISHED[name].missing, PUBLISHED[name].source)))}" for name in models]


def _sizes(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("published: parameters and active ones as their makers say; TFLOP/s: the model's, per GPU")
    for heading in ("parameters", "active", "published", "share", "GPUs", "TFLOP/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        said, arch = PUBLISHED[row["model"]], _architecture(row["model"])
        table.add_row(
            row["model"], f"{arch.total_params / 1e9:.0f} B", f"{arch.active_params / 1e9:.0f} B",
            f"{said.total / 1e9:.0f}, {said.active / 1e9:.0f} B", f"{100 * arch.active_params / arch.total_params:.1f} %",
            f"{row['gpus']:,} {row['topology'].partition('_')[0]}", f"{row['model_flops_per_s_per_gpu'] / 1e12:.0f}",
        )  # fmt: skip
    return table


def _costs(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("of a trillion tokens; published: hours of the whole run over its tokens")
    for heading in ("GPU-hours", "published", "ratio", "dollars", "MWh"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        said, hours = PUBLISHED[row["model"]], row["gpu_hours_per_trillion_tokens"]
        theirs = None if said.gpu_hours is None or said.tokens is None else said.gpu_hours / said.tokens * 1e12
        dollars, joules = row["dollars_per_million_tokens"], row["joules_per_token"]
        table.add_row(
            row["model"], f"{hours:,.0f}", "-" if theirs is None else f"{theirs:,.0f}",
            "-" if theirs is None else f"{hours / theirs:.2f}", "-" if dollars is None else f"{dollars * 1e6:,.0f}",
            "-" if joules is None else f"{joules * 1e12 / 3.6e9:,.0f}",
        )  # fmt: skip
    return table


def _totals(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("of the whole run; price: dollars per GPU-hour; published: hours, and those at the same price")
    for heading in ("tokens", "GPU-hours", "published", "price", "dollars", "published", "GWh"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        said, tokens, price = PUBLISHED[row["model"]], row["cost.tokens"], row["cost.price"]
        theirs = None if said.gpu_hours is None else said.gpu_hours
        table.add_row(
            row["model"], "-" if tokens is None else f"{tokens / 1e12:g} T", _millions(row["run_gpu_hours"]),
            "-" if theirs is None else _millions(theirs), "-" if price is None else f"{price:g}",
            _millions(row["run_dollars"]), "-" if theirs is None or price is None else _millions(theirs * price),
            "-" if row["run_joules"] is None else f"{row['run_joules'] / 3.6e12:.3g}",
        )  # fmt: skip
    return table


def _times(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "of the step; GEMMs: at the rate of large ones; rest: small GEMMs, attention, what is computed again; "
        "wires: the interconnect"
    )
    for heading in ("step", "GEMMs", "memory", "rest", "wires", "imbalance", "bubble"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        step = row["step_s"]
        rate, format_of = None, str(row.get("model.gemm") or "bf16")
        for key in (f"topology.gpu.{format_of}_achieved", "topology.gpu.bf16_achieved"):
            rate = rate or (row.get(key) and parse_flops(row[key], key))
        memory = row["memory_bandwidth_s"]
        left = row["compute_s"] - (memory or 0.0)
        gemms = None if rate is None else min(left, row["model_flops_per_s_per_gpu"] * step / rate)
        wires = row["tensor_comm_s"] + row["exchange_comm_s"] + row["gradient_comm_s"]
        shares = (gemms, memory, None if gemms is None else left - gemms, wires, row["wait_s"], row["bubble_s"])
        table.add_row(row["model"], f"{step:.3g} s", *("-" if s is None else f"{100 * s / step:.1f} %" for s in shares))
    return table


def _table(caption: str) -> Table:
    table = numbers_table("model")
    table.caption, table.caption_justify, table.caption_style = caption, "left", "dim"
    return table


def _architecture(name: str) -> Architecture:
    config = model_file(name)
    assert config is not None, "it is one of ours"
    return describe(config)


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.4g} M"
