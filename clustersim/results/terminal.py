"""What a person reads at the end of a run or a sweep: tables that fit 80 columns. Builds them, does not print."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
from rich.console import RenderableType
from rich.table import Table

from clustersim.results import training_screen
from clustersim.results.comparing import gpu_seconds, limit_of, same_work
from clustersim.results.facts import cost_line, summary_page
from clustersim.results.footprint import memory_line
from clustersim.results.swept import SweptTable
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
        "compute": f"{format_seconds(row['compute_s'])} per GPU{_spent(row, COMPUTED)}",
        "exposed communication": f"{format_seconds(row['exposed_comm_s'])} per GPU, {share}{_spent(row, EXCHANGED)}",
        "of it waiting for others": f"{format_seconds(row['wait_s'])} per GPU",
        "of it tensor groups": f"{format_seconds(row['tensor_s'])} per GPU" if row["tensor_s"] else "",
        "why MoE layers take": _causes(row),
        **(_of_experts(row) if row["moe_layers"] else {}),
        "cost": cost_line(row),
        "memory of a GPU": "" if memory is None else memory_line(row, memory),
        "steps": f"{row['steps']} played; times and bytes are means over them" if row["steps"] > 1 else "",
        **(_of_moves(row) if row.get("rebalances") else {}),
    }  # fmt: skip
    return summary_page(lines, notes)


COMPUTED = {"attention_s": "attention", "expert_s": "experts", "other_s": "the rest"}
EXCHANGED = {"dispatch_s": "dispatch", "combine_s": "combine"}
CAUSES = {
    "popularity_s": "uneven popularity", "source_s": "uneven sources", "placement_s": "placement", "exchange_s": "exchange",
    "topology_s": "contention",
}  # fmt: skip


def _spent(row: Mapping[str, Any], parts: Mapping[str, str]) -> str:
    """What a time consists of."""
    told = [f"{name} {format_seconds(row[column])}" for column, name in parts.items() if row.get(column)]
    return f": {', '.join(told)}" if len(told) > 1 else ""


def _causes(row: Mapping[str, Any]) -> str:
    """What the layers' time would be less by without each cause, where that was played."""
    if row.get("moe_s") is None:
        return ""
    told = [
        f"{name} ({format_seconds(row[column])})" for column, name in CAUSES.items() if abs(row[column]) > 0.005 * row["moe_s"]
    ]
    joint = row["joint_s"]
    both = f"; these overlap by {format_seconds(-joint)}" if joint < 0 else f"; {format_seconds(joint)} more only together"
    return (
        f"{format_seconds(row['moe_s'])}, and less without {', '.join(told) or 'none of the causes'}{both if joint else ''}; "
        f"{format_seconds(row['ideal_s'])} without all"
    )


def _of_experts(row: Mapping[str, Any]) -> dict[str, str]:
    """The lines that a model without routed experts has nothing for."""
    gap = f"T/bound {_number(row['over_bound'], 3)} (1 = as fast as the busiest link of each allows)"
    return {
        "limit of exchanges": f"{limit_of(row)}; {gap}",
        "busiest link": f"{row['bottleneck'] or 'none'}, {format_seconds(row['bottleneck_busy_s'])} of the step",
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


def comparison(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> SweptTable:
    """One line per job of a sweep: the keys that differ, and what came of them; the best is 1.00, by GPU time per token."""
    keys, swept = _swept(jobs)
    rows = [row for _, row in jobs]
    if all(row.get("bubble_s") is not None for row in rows):
        return training_screen.comparison(keys, swept, rows)
    own = [gpu_seconds(row) for row in rows]
    best, per_gpu = min(own), len({row["gpus"] for row in rows}) > 1
    rate = "tokens/s/GPU" if per_gpu else "tokens/s"
    usual: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "exposed": lambda row: format_seconds(row["exposed_comm_s"]), "dropped": lambda row: _percent(row["drop_rate"]),
        rate: lambda row: _number(row["tokens_per_s_per_gpu" if per_gpu else "tokens_per_s"], 0),
    }  # fmt: skip
    paid = all(row.get("dollars_per_million_tokens") is not None for row in rows)
    columns = {
        "step": lambda row: format_seconds(row["step_s"]), **(_about_placements(swept, rows) or usual),
        **({"$/M tokens": lambda row: _number(row.get("dollars_per_million_tokens"), 3)} if paid else {}),
        "bottleneck": limit_of,
    }  # fmt: skip
    shown = {name: tuple(map(show, rows)) for name, show in columns.items()}
    shown["to best"] = tuple(f"{cost / best:.2f}" if cost < math.inf else "" for cost in own)
    if not any(row["drop_rate"] for row in rows):
        shown.pop("dropped", None)
    return SweptTable(
        keys=tuple(swept), jobs=_values(keys, swept), results=shown, caption=_caption(swept, rows),
        spare=("dropped", "balanced", "exposed", rate, "gap", "bottleneck"), best=tuple(cost == best for cost in own),
    )  # fmt: skip


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


def trade(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> SweptTable | None:
    """Both sides of a capacity, one line per job of a sweep; None when no job drops, reroutes or pads."""
    costs = {
        "dropped": "drop_rate", "wholly": "fully_dropped", "gate lost": "gate_mass_lost", "rerouted": "rerouted_rate",
        "used": "capacity_used", "padding": "padding_share",
    }  # fmt: skip
    rows = [row for _, row in jobs]
    if not any(row["drop_rate"] or row["rerouted_rate"] or row["padding_share"] for row in rows):
        return None
    keys, swept = _swept(jobs)
    shown = [name for name, column in costs.items() if name in ("dropped", "gate lost") or any(row[column] for row in rows)]
    saved = [row["seconds_saved_by_dropping"] for row in rows]
    return SweptTable(
        keys=tuple(swept), jobs=_values(keys, swept),
        results={
            "step": tuple(format_seconds(row["step_s"]) for row in rows),
            "saved": tuple("-" if value is None else format_seconds(value) for value in saved),
            **{name: tuple(_percent(row[costs[name]]) for row in rows) for name in shown},
        },
        caption="saved: against dropless; gate lost: of the gate weights" + "; padding: of all rows" * ("padding" in shown),
        spare=("step", "wholly", "used"),
    )  # fmt: skip


def choosing(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> SweptTable | None:
    """What the routers of a sweep ask of experts and links, one line per job; None when no key of a router is swept."""
    keys, swept = _swept(jobs)
    rows = [row for _, row in jobs]
    if not any(key.partition(".")[0] == "router" for key in swept) or any(row.get("nic_bytes") is None for row in rows):
        return None

    def sent(wire: str) -> tuple[str, ...]:
        return tuple(format_bytes(row[f"{wire}_bytes"] / row["tokens"] / row["moe_layers"]) for row in rows)

    return SweptTable(
        keys=tuple(swept), jobs=_values(keys, swept),
        results={
            "experts": tuple(_number(row["experts_per_token"], 2) for row in rows),
            "load": tuple(_number(row["imbalance"], 2) for row in rows),
            "over NIC": sent("nic"), "over NVLink": sent("nvlink"),
            "step": tuple(format_seconds(row["step_s"]) for row in rows),
        },
        caption="experts: that compute a token; load: tokens of the busiest GPU / mean; bytes: per token and layer",
        spare=("step", "over NVLink"),
    )  # fmt: skip


def _values(keys: Sequence[Mapping[str, str]], swept: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(job.get(key, "") for key in swept) for job in keys)


def _swept(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> tuple[list[dict[str, str]], list[str]]:
    """The overrides of every job by key, and the keys in which jobs differ."""
    plain = {"True": "true", "False": "false"}          # as they are written in an override
    keys = [{key: plain.get(value, value) for key, value in (text.split("=", 1) for text in job)} for job, _ in jobs]
    return keys, [key for key in keys[0] if len({job.get(key) for job in keys}) > 1]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
