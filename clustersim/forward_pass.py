"""Forward passes, prefill and decoding: from a run to its result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl

from clustersim.assembling import Parts, assemble
from clustersim.attribution import causes_in
from clustersim.causes import CAUSES
from clustersim.config import Run
from clustersim.cost import cost_from, cost_row
from clustersim.identity import identify
from clustersim.outcome import Result, keys, named, provenance_of
from clustersim.playing import Progress, part_of, play_all
from clustersim.results.footprint import memory_summary, memory_table
from clustersim.results.placements import (
    Step,
    mean_step_s,
    moe_layer_s,
    placement_summary,
    placements_table,
    rebalance_summary,
)
from clustersim.results.replicates import combined
from clustersim.results.tables import (
    CAUSE_COLUMNS,
    causes_table,
    collision,
    experts_table,
    gpus_table,
    layers_table,
    links_table,
    summary_row,
    summary_table,
)
from clustersim.results.timeline import timeline_events
from clustersim.types import InputError


def forward(run: Run, progress: Progress) -> Result:
    """A run of forward passes with one seed.

    Raises:
        InputError: what does not fit together, or a trace that is changed while it is played.
    """
    began = time.perf_counter()
    identity = identify(run)
    parts = assemble(run)
    others = len(CAUSES) + 1 if run.causes else 0
    rounds = 1 + others + parts.rule.limits + (parts.plan.rebalances > 0)       # of playing everything, at most
    steps = play_all(parts, parts.plan, parts.rule, part_of(progress, 0, rounds))
    live = dict(parts.workload.measure()) if parts.workload.measure is not None else {}
    tables, recorder = _tables(parts, steps), parts.recorder
    parts = replace(parts, recorder=None)           # what else is played is for comparison
    causes = causes_in(parts, steps, lambda i, what: progress((1 + i) / rounds, what)) if run.causes else {}
    tables["layers"] = tables["layers"].hstack(causes_table(causes, len(steps), run.model))
    numbers = _numbers(parts, steps, tables)
    numbers |= {name: float(tables["layers"][name].sum()) / len(steps) if causes else None for name in CAUSE_COLUMNS}
    numbers |= live | {f"{name}_dropless": value for name, value in live.items()}
    numbers |= _against_dropless(parts, steps, numbers, part_of(progress, 1 + others, rounds, "the same without dropping"))
    if parts.plan.rebalances:
        numbers |= _against_never_moved(parts, steps, part_of(progress, rounds - 1, rounds, "never moved"))
    notes = _notes(parts, numbers, tables["links"])
    summary = {**combined([{**_settings(parts), **numbers}]), **keys(run)}
    tables["summary"] = summary_table({"run_id": identity.run_id, **summary})
    if identify(run).run_id != identity.run_id:
        raise InputError(f"trace={run.config['trace']['name']}: its files were changed during the run; run it again")
    provenance = {**provenance_of(run, identity, notes), "wall_s": time.perf_counter() - began}
    return Result(
        run=run, run_id=identity.run_id, summary=summary, tables=tables, provenance=provenance,
        notes=(*notes, recorder.note(run.model.n_layers)) if recorder else notes,
        timeline=partial(timeline_events, recorder, steps[0].played) if recorder else None,
    )  # fmt: skip


def _numbers(parts: Parts, steps: Sequence[Step], tables: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """The measured columns of the summary, but for those that need another run beside this one."""
    held, cluster = sum(step.held_s for step in steps) / len(steps), parts.cluster
    numbers = summary_row(
        [step.played for step in steps], tables, [c for step in steps for c in step.counts], parts.workload.source.size,
        cluster.n_gpus, held, **_made(parts),
    )
    collided = collision(tables["links"], cluster)
    return {
        **numbers, "ecmp_collision": collided[0] if collided else None, "moe_layer_s": moe_layer_s(steps),
        **memory_summary(parts.memory, cluster.gpu.memory), **placement_summary([m for step in steps for m in step.measured]),
        **cost_row(numbers, cost_from(parts.run.config["cost"]), cluster, cluster.n_gpus),
    }  # fmt: skip


def _against_dropless(parts: Parts, steps: Sequence[Step], numbers: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Seconds saved by dropping; a live model's loss without it."""
    changed = any(numbers[name] > 0 for name in ("drop_rate", "rerouted_rate", "padding_computed_rows"))
    if not (parts.rule.limits and changed):
        return {"seconds_saved_by_dropping": 0.0}
    dropless = play_all(parts, parts.plan, parts.rule.without_limit(), progress)
    live = parts.workload.measure() if parts.workload.measure is not None else {}
    saved = mean_step_s(dropless) - mean_step_s(steps)
    return {"seconds_saved_by_dropping": saved, **{f"{name}_dropless": value for name, value in live.items()}}


def _against_never_moved(parts: Parts, steps: Sequence[Step], progress: Progress) -> dict[str, Any]:
    """What moving experts brought."""
    model = parts.run.model
    return rebalance_summary(
        steps, play_all(parts, parts.plan.never_again(), parts.rule, progress), rebalances=parts.plan.rebalances,
        buffer_bytes=parts.plan.buffer_bytes, expert_bytes=model.expert_params * model.expert_weight_bytes,
    )


def _made(parts: Parts) -> dict[str, Any]:
    """What a step of decoding makes, for `summary_row`; nothing in prefill."""
    decoding = parts.run.decoding
    if decoding is None:
        return {}
    sequences = parts.workload.source.size // decoding.per_sequence
    return {"made": sequences * decoding.accepted, "sequences": sequences}


def _tables(parts: Parts, steps: Sequence[Step]) -> dict[str, pl.DataFrame]:
    """The tables of all steps, one step under the other."""
    made: dict[str, list[pl.DataFrame]] = {name: [] for name in ("layers", "gpus", "links", "experts", "pairs", "placements")}
    for i, step in enumerate(steps):
        gpus = gpus_table(step.played, step.counts, i)
        made["layers"].append(layers_table(step.played, gpus, parts.cluster, step.counts))
        made["gpus"].append(gpus)
        made["links"].append(links_table(step.played, parts.cluster, i))
        made["experts"].append(experts_table(step.counts, i))
        made["pairs"].append(step.pairs.table(i))
        made["placements"].append(placements_table(step.measured, parts.run.model.moe_layers, i))
    return {name: pl.concat(each) for name, each in made.items()} | {"memory": memory_table(parts.memory)}


def _settings(parts: Parts) -> dict[str, Any]:
    """The columns that say in short what was run."""
    return {
        **named(parts.run), "nodes": parts.cluster.n_nodes, "gpus": parts.cluster.n_gpus, "slots": parts.room.n_slots,
        "steps": len(parts.stream.steps),
    }  # fmt: skip


def _notes(parts: Parts, numbers: Mapping[str, Any], links: pl.DataFrame) -> tuple[str, ...]:
    """What a reader of the result has to know about how it came about."""
    notes = [*parts.stream.notes, *parts.plan.notes, *parts.beyond]
    trace = parts.run.config["trace"]
    if (trace["name"] in ("tiny", "file") or trace.get("loop") == "open") and numbers["drop_rate"] + numbers["rerouted_rate"] > 0:
        notes.append("the trace is open loop: a dropped token would have changed the choices of later layers")
    if parts.run.config["network"]["name"] == "bound":
        notes.append("network=bound: exchanges in progress do not contend, and all GPUs leave one together")
    if parts.run.config["network"]["name"] == "packet":
        chunk, queue = parts.run.config["network"]["chunk"], parts.run.config["network"]["queue"]
        queues = "a queue per flow and link, served in turn" if queue == "round_robin" else "one queue per link"
        notes.append(f"network=packet: store and forward of {chunk} packets, {queues}; full buffers hold back what feeds them")
    collided = collision(links, parts.cluster)
    if collided and collided[0] > 1.01:
        notes.append(
            f"routes pile up: the busiest {collided[1]} takes {collided[0]:.2f} times what an even spread would leave it"
        )
    return tuple(notes)
