"""What a person reads at the end of a run or a sweep: tables that fit 80 columns. Builds them, does not print."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
from rich.console import RenderableType
from rich.table import Table

from clustersim.results import training_screen
from clustersim.results.comparing import gpu_seconds, same_work
from clustersim.results.facts import cost_line, summary_page
from clustersim.results.footprint import memory_line
from clustersim.units import format_bytes, format_seconds


def layer_table(layers: pl.DataFrame) -> Table:
    """One line per layer. Times are means over the GPUs; the busiest link is the one that takes longest by itself."""
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left", caption_style="dim",
        caption="times: mean over the GPUs; load: tokens of the busiest GPU / mean; T/bound: time / busiest link's",
    )  # fmt: skip
    for heading in ("layer", "dispatch", "compute", "combine", "wait", "load", "dropped", "T/bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("busiest link", no_wrap=True)
    for row in layers.iter_rows(named=True):
        times = [format_seconds(row[key]) for key in ("dispatch_s", "compute_s", "combine_s", "wait_s")]
        if row["dropped"] is None:
            table.add_row(str(row["layer"]), "", times[1], "", "", "", "", "", "dense")
            continue
        table.add_row(
            str(row["layer"]), *times, _number(row["imbalance"], 2), f"{row['dropped']:,}", _number(row["over_bound"], 3),
            row["bottleneck"] or "none",
        )  # fmt: skip
    return table


def summary(row: Mapping[str, Any], notes: Sequence[str], memory: pl.DataFrame | None = None) -> RenderableType:
    """The run in a dozen lines; `memory` is that table, where it is at hand."""
    step = row["step_s"]
    share = f"{100 * row['exposed_comm_s'] / step:.0f} % of the step" if step else "no time passed"
    capacity = "dropless"
    if row["capacity_factor"] is not None:
        capacity = f"factor {row['capacity_factor']:g} ({row['capacity_rule']}, {row['drop']})"
    lines = {
        "run": f"{row['model']} on {row['gpus']} GPUs of {row['topology']}, trace {row['trace']}, "
        f"{row['tokens_per_gpu']:,} tokens per GPU",
        "choices": f"placement {row['placement']} ({row['slots']} slots, {row['replica']}), exchange {row['exchange']}, "
        f"network {row['network']}, capacity {capacity}" if row["moe_layers"] else "",
        "step": f"{format_seconds(step)}: {_number(row['tokens_per_s'], 0)} tokens/s, "
        f"{_number(row['tokens_per_s_per_gpu'], 0)} per GPU",
        "user": "" if row["time_per_output_token_s"] is None else f"{format_seconds(row['time_per_output_token_s'])} per token: "
        f"{_number(row['tokens_per_s_per_user'], 1)} tokens/s for each sequence in flight",
        "seeds": "" if row["replicates"] == 1 else _seeds(row),
        "compute": f"{format_seconds(row['compute_s'])} per GPU",
        "exposed communication": f"{format_seconds(row['exposed_comm_s'])} per GPU, {share}",
        "of it waiting for others": f"{format_seconds(row['wait_s'])} per GPU",
        "of it tensor groups": f"{format_seconds(row['tensor_s'])} per GPU" if row["tensor_s"] else "",
        **(_of_experts(row) if row["moe_layers"] else {}),
        "cost": cost_line(row),
        "memory of a GPU": "" if memory is None else memory_line(row, memory),
        "steps": f"{row['steps']} played; times and bytes are means over them" if row["steps"] > 1 else "",
        **(_of_moves(row) if row.get("rebalances") else {}),
    }  # fmt: skip
    return summary_page(lines, notes)


def _of_experts(row: Mapping[str, Any]) -> dict[str, str]:
    """The lines that a model without routed experts has nothing for."""
    gap = f"T/bound {_number(row['over_bound'], 3)} (1 = as fast as the busiest link allows)"
    return {
        "bottleneck": f"{row['bottleneck'] or 'none'}, busy {format_seconds(row['bottleneck_busy_s'])} of the step; {gap}",
        "on the wires": f"NVLink {format_bytes(row['nvlink_bytes'])}, NIC {format_bytes(row['nic_bytes'])}",
        "expert load of a GPU": f"max/mean {_number(row['imbalance'], 2)}, mean over the layers",
        "dropped": f"{_percent(row['drop_rate'])} of the choices, {_percent(row['fully_dropped'])} of the tokens wholly, "
        f"{_percent(row['gate_mass_lost'])} of the gate weights; saves {format_seconds(row['seconds_saved_by_dropping'])}"
        if row["drop_rate"] else "nothing",
        "rerouted": f"{_percent(row['rerouted_rate'])} of the choices, to the next expert with room"
        if row["rerouted_rate"] else "",
        "padding": f"{_percent(row['padding_share'])} of the rows that experts compute; "
        f"{format_bytes(row['padding_sent_bytes'])} sent" if row["padding_share"] else "",
    }  # fmt: skip


def _of_moves(row: Mapping[str, Any]) -> dict[str, str]:
    """What experts on the move cost and bring."""
    even = row["break_even_steps"]
    return {
        "placements moved": f"{row['rebalances']} times, {row['moved_experts']:,} experts, "
        f"{format_bytes(row['migration_bytes'])}; steps wait {format_seconds(row['migration_s'])} each",
        "moving gains": f"{_percent(row['net_gain'])} of the time, {_percent(row['gross_gain'])} in steps that no move disturbs; "
        + ("no break-even" if even is None else f"a move pays after {even:,.1f} steps"),
    }


def _seeds(row: Mapping[str, Any]) -> str:
    """How sure the mean over the seeds is."""
    width = row["step_s_ci95"]
    sure = "" if width is None else f"; the mean step is sure to {format_seconds(width)} (95 % confidence)"
    return f"mean of {row['replicates']} seeds from {row['seed']} on{sure}"


def comparison(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> Table:
    """One line per job of a sweep: the keys that differ, and what came of them; the best is 1.00, by GPU time per token."""
    keys, swept = _swept(jobs)
    rows = [row for _, row in jobs]
    if all(row.get("bubble_s") is not None for row in rows):
        return training_screen.comparison(keys, swept, rows)
    best, per_gpu = min(map(gpu_seconds, rows)), len({row["gpus"] for row in rows}) > 1
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left", caption_style="dim",
        caption=_caption(swept, rows),
    )  # fmt: skip
    for heading in swept:
        table.add_column(heading, justify="right", overflow="fold")
    more = _about_placements(swept, rows)
    rate = "tokens/s/GPU" if per_gpu else "tokens/s"
    paid = all(row.get("dollars_per_million_tokens") is not None for row in rows)
    for heading in (*(("step", "exposed", "dropped", rate) if not more else ("step", *more)), *["$/M tokens"] * paid):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("bottleneck", no_wrap=True)
    table.add_column("to best", justify="right", no_wrap=True)
    for job, row in zip(keys, rows, strict=True):
        own = gpu_seconds(row)
        speed = _number(row["tokens_per_s_per_gpu" if per_gpu else "tokens_per_s"], 0)
        usual = (format_seconds(row["exposed_comm_s"]), _percent(row["drop_rate"]), speed)
        table.add_row(
            *(job.get(key, "") for key in swept), format_seconds(row["step_s"]),
            *([show(row) for show in more.values()] or usual), *[_number(row.get("dollars_per_million_tokens"), 3)] * paid,
            row["bottleneck"] or "none",
            f"{own / best:.2f}" if own < math.inf else "", style="bold" if own == best else None,
        )  # fmt: skip
    return table


def _about_placements(swept: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """The columns that tell placements apart, or what moving experts brings, where that is what a sweep is about."""
    if any(row.get("bubble_s") is not None for row in rows):
        return {}
    if any(row.get("rebalances") for row in rows):
        return {
            "moved": lambda row: f"{row.get('moved_experts', 0):,}",
            "migration": lambda row: format_seconds(row.get("migration_s", 0.0)),
            "gain": lambda row: _percent(row.get("gross_gain")),
            "net": lambda row: _percent(row.get("net_gain")),
            "pays after": lambda row: "never" if row.get("break_even_steps") is None else f"{row['break_even_steps']:,.1f}",
        }
    if "placement" in swept:
        return {
            "MoE layer": lambda row: format_seconds(row["moe_layer_s"]),
            "max/mean": lambda row: _number(row["imbalance"], 2),
            "balanced": lambda row: _number(row["balancedness"], 3),
            "gap": lambda row: _percent(row["gap_to_least"]),
            "nodes": lambda row: _number(row["distinct_nodes"], 2),
        }
    return {}


def _caption(swept: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    headings = _about_placements(swept, rows)
    if "gain" in headings:
        return "gain: step time saved against the first placements kept, without the moves; net: with them; pays after: steps"
    if headings:
        return "balanced: mean / busiest GPU's load (vLLM); gap: busiest GPU over the least there can be; nodes: per token"
    same = "" if same_work(rows) else "; to best: GPU time per token"
    return f"exposed: communication a GPU waits for{same}"


def trade(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> Table | None:
    """Both sides of a capacity, one line per job of a sweep; None when no job drops, reroutes or pads."""
    costs = {
        "dropped": "drop_rate", "wholly": "fully_dropped", "gate lost": "gate_mass_lost", "rerouted": "rerouted_rate",
        "used": "capacity_used", "padding": "padding_share",
    }  # fmt: skip
    if not any(row["drop_rate"] or row["rerouted_rate"] or row["padding_share"] for _, row in jobs):
        return None
    keys, swept = _swept(jobs)
    shown = [name for name, column in costs.items() if name in ("dropped", "gate lost") or any(row[column] for _, row in jobs)]
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left", caption_style="dim",
        caption="saved: against dropless; gate lost: of the gate weights" + "; padding: of all rows" * ("padding" in shown),
    )  # fmt: skip
    for heading in (*swept, "step", "saved", *shown):
        table.add_column(heading, justify="right", overflow="fold", no_wrap=heading not in swept)
    for job, (_, row) in zip(keys, jobs, strict=True):
        saved = row["seconds_saved_by_dropping"]
        times = [format_seconds(row["step_s"]), "-" if saved is None else format_seconds(saved)]
        table.add_row(*(job.get(key, "") for key in swept), *times, *(_percent(row[costs[name]]) for name in shown))
    return table


def choosing(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> Table | None:
    """What the routers of a sweep ask of experts and links, one line per job; None when no key of a router is swept."""
    keys, swept = _swept(jobs)
    if not any(key.partition(".")[0] == "router" for key in swept) or any(row.get("nic_bytes") is None for _, row in jobs):
        return None
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left", caption_style="dim",
        caption="experts: that compute a token; load: tokens of the busiest GPU / mean; bytes: per token and layer",
    )  # fmt: skip
    for heading in (*swept, "experts", "load", "over NIC", "over NVLink", "step"):
        table.add_column(heading, justify="right", no_wrap=heading not in swept)
    for job, (_, row) in zip(keys, jobs, strict=True):
        sent = [format_bytes(row[f"{wire}_bytes"] / row["tokens"] / row["moe_layers"]) for wire in ("nic", "nvlink")]
        table.add_row(
            *(job.get(key, "") for key in swept), _number(row["experts_per_token"], 2), _number(row["imbalance"], 2), *sent,
            format_seconds(row["step_s"]),
        )  # fmt: skip
    return table


def _swept(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> tuple[list[dict[str, str]], list[str]]:
    """The overrides of every job by key, and the keys in which jobs differ."""
    plain = {"True": "true", "False": "false"}          # as they are written in an override
    keys = [{key: plain.get(value, value) for key, value in (text.split("=", 1) for text in job)} for job, _ in jobs]
    return keys, [key for key in keys[0] if len({job.get(key) for job in keys}) > 1]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
