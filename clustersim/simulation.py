"""The only place where everything meets: a run in, a result out."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import clustersim
from clustersim import network as networks
from clustersim.architecture import describe
from clustersim.assembling import Parts, assemble, timeline_window
from clustersim.causes import (
    CAUSES,
    causes_of,
    even_placement,
    even_popularity,
    even_sources,
    least_exchange,
    moe_seconds,
    ports_alone,
)
from clustersim.cluster import build_cluster
from clustersim.config import Run, compose, what_is_run
from clustersim.cost import cost_from, cost_row
from clustersim.identity import Identity, identify
from clustersim.placement.replicas import chosen_slots
from clustersim.playing import Progress, part_of, play_all
from clustersim.results.comparing import leaves
from clustersim.results.footprint import memory_summary, memory_table
from clustersim.results.placements import (
    Step,
    mean_step_s,
    moe_layer_s,
    placement_summary,
    placements_table,
    rebalance_summary,
)
from clustersim.results.replicates import INTERVALS, combined
from clustersim.results.store import write_run
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
from clustersim.results.timeline import timeline_events, write_timeline
from clustersim.results.training_timeline import Window
from clustersim.sending import routings
from clustersim.training.checks import first_built
from clustersim.training.step import train
from clustersim.training.tables import stages_table, tasks_table, training_row
from clustersim.types import Floats, InputError, Ints
from clustersim.workload import capacity as capacities

EXTRA = ("replicates", *(f"{name}_ci95" for name in INTERVALS))         # columns that several seeds together have
REPLICATE_COLUMNS = (
    "seed", "step_s", "compute_s", "exposed_comm_s", "wait_s", "tokens_per_s", "drop_rate", "fully_dropped", "imbalance",
    "over_bound", "bottleneck", "nvlink_bytes", "nic_bytes", "seconds_saved_by_dropping",
)  # fmt: skip
VERSIONS = ("numpy", "numba", "polars", "simpy")        # packages whose versions run.json tells


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Result:
    """What a run gave."""

    run: Run
    run_id: str                             # first 12 hex digits of the sha256 of everything the run depends on
    summary: dict[str, Any]                 # the row of summary.parquet
    tables: dict[str, pl.DataFrame]         # summary, layers, gpus, links, experts, pairs
    notes: tuple[str, ...]                  # what a reader has to know
    timeline: Callable[[], Iterator[str]] | None    # the events that `export.timeline` asked for
    provenance: dict[str, Any]              # what run.json says

    @property
    def folder(self) -> Path:
        """Where `save` writes."""
        return self.run.output / self.run.study / self.run_id

    def save(self) -> Path:
        """Write the results folder; a run of the same run_id is replaced.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            if self.timeline:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_timeline(self.folder / "timeline.json.gz", self.timeline(), {"run_id": self.run_id})
            write_run(self.folder, self.tables, self.provenance)
        except OSError as error:
            raise InputError(f"output={self.run.output}: {self.folder} cannot be written ({error.strerror})") from error
        return self.folder


def simulate(overrides: Sequence[str] | Run = (), *, progress: Progress = lambda fraction, what: None) -> Result:
    """One experiment, from overrides as on the command line (`["model=deepseek_v3", "topology.nodes=8"]`).

    Args:
        progress: told now and then the fraction done, 0 to 1, and what is being done.

    Raises:
        InputError: an override that is wrong, a trace that does not fit, a cluster that cannot be.
    """
    run = overrides if isinstance(overrides, Run) else compose(overrides)
    return _once(run, progress) if run.replicates == 1 else _simulate_seeds(run, progress)


def _once(run: Run, progress: Progress) -> Result:
    """The run with one seed."""
    return _train_once(run, progress) if run.config["workload"]["phase"] == "training" else _simulate_once(run, progress)


def _simulate_seeds(run: Run, progress: Progress) -> Result:
    """The run with `replicates` seeds from its own on: the summary is their mean, the other tables are of the first."""
    n, results = run.replicates, []
    for i in range(n):
        alone = {**run.config, "seed": run.seed + i, "replicates": 1}
        results.append(_once(replace(run, seed=run.seed + i, replicates=1, config=alone), part_of(progress, i, n)))
    identity = identify(run)
    rows = [{k: v for k, v in result.summary.items() if "." not in k and k not in EXTRA} for result in results]
    summary = {**combined(rows), **_keys(run)}
    notes = tuple(dict.fromkeys(note for result in results for note in result.notes))
    tables = {
        **results[0].tables,
        "summary": summary_table({"run_id": identity.run_id, **summary}),
        "replicates": pl.concat([result.tables["summary"].select(REPLICATE_COLUMNS) for result in results]),
    }
    wall = sum(result.provenance["wall_s"] for result in results)
    provenance = {**_provenance(run, identity, notes), "wall_s": wall}
    return Result(
        run=run, run_id=identity.run_id, summary=summary, tables=tables, notes=notes, provenance=provenance,
        timeline=results[0].timeline,
    )  # fmt: skip


def _train_once(run: Run, progress: Progress) -> Result:
    """A training step with one seed."""
    first, most, arrows = timeline_window(run)
    if first:
        raise InputError(f"export.first_layer={first}: the time line of a training step shows its first tasks; use 0")
    began = time.perf_counter()
    identity = identify(run)
    rounds, arch = 1 + run.causes, describe(run.config["model"])
    trained = train(run, part_of(progress, 0, rounds))
    numbers = training_row(trained, arch) | memory_summary(trained.memory, trained.gpu_memory)
    if run.causes:
        again = training_row(train(_without_memory_limits(run), part_of(progress, 1, rounds)), arch)
        numbers["memory_bandwidth_s"] = numbers["compute_s"] - again["compute_s"]
    else:
        numbers["memory_bandwidth_s"] = None
    topology = run.config["topology"]
    some = first_built(
        lambda n: build_cluster(run.topology, {**topology, "nodes": n}), min(2, topology["nodes"]), topology["nodes"]
    )
    numbers |= cost_row(numbers, cost_from(run.config["cost"]), some, trained.parallel.gpus)
    summary = {**combined([{**_named(run), "gpus": trained.parallel.gpus, **numbers}]), **_keys(run)}
    tables = {
        "summary": summary_table({"run_id": identity.run_id, **summary}), "stages": stages_table(trained),
        "tasks": tasks_table(trained), "memory": memory_table(trained.memory),
    }  # fmt: skip
    provenance = {**_provenance(run, identity, trained.notes), "wall_s": time.perf_counter() - began}
    shown = Window(tables["tasks"], tables["stages"], most=most, arrows=arrows) if run.config["export"]["timeline"] else None
    return Result(
        run=run, run_id=identity.run_id, summary=summary, tables=tables, provenance=provenance,
        notes=(*trained.notes, shown.note()) if shown else trained.notes, timeline=shown.events if shown else None,
    )  # fmt: skip


def _without_memory_limits(run: Run) -> Run:
    """The same with GPUs whose memory is never waited for; the L2 is as it was."""
    topology = run.config["topology"]
    endless = {key: "1 EB/s" for key in ("memory_bandwidth", "memory_achieved") if topology["gpu"].get(key) is not None}
    return replace(run, config={**run.config, "topology": {**topology, "gpu": {**topology["gpu"], **endless}}})


def _simulate_once(run: Run, progress: Progress) -> Result:
    """A run of forward passes with one seed."""
    began = time.perf_counter()
    identity = identify(run)
    parts = assemble(run)
    others = len(CAUSES) + 1 if run.causes else 0
    rounds = 1 + others + parts.rule.limits + (parts.plan.rebalances > 0)       # of playing everything, at most
    steps = play_all(parts, parts.plan, parts.rule, part_of(progress, 0, rounds))
    live = parts.workload.measure
    measured = dict(live()) if live is not None else {}
    tables, recorder = _tables(parts, steps), parts.recorder
    tables["memory"] = memory_table(parts.memory)
    parts = replace(parts, recorder=None)           # what else is played is for comparison
    causes = _causes(parts, steps, lambda i, what: progress((1 + i) / rounds, what)) if run.causes else {}
    tables["layers"] = tables["layers"].hstack(causes_table(causes, len(steps), run.model))
    held = sum(step.held_s for step in steps) / len(steps)
    numbers = summary_row(
        [step.played for step in steps], tables, [c for step in steps for c in step.counts], parts.workload.source.size,
        parts.cluster.n_gpus, held, **_made(parts),
    )
    collided = collision(tables["links"], parts.cluster)
    numbers["ecmp_collision"] = collided[0] if collided else None
    numbers |= measured | {f"{name}_dropless": value for name, value in measured.items()}
    numbers |= {name: float(tables["layers"][name].sum()) / len(steps) if causes else None for name in CAUSE_COLUMNS}
    saved = 0.0
    if parts.rule.limits and any(numbers[name] > 0 for name in ("drop_rate", "rerouted_rate", "padding_computed_rows")):
        again = part_of(progress, 1 + others, rounds, "the same without dropping")
        dropless = play_all(parts, parts.plan, parts.rule.without_limit(), again)
        saved = mean_step_s(dropless) - mean_step_s(steps)
        if live is not None:
            numbers |= {f"{name}_dropless": value for name, value in live().items()}
    numbers |= {"seconds_saved_by_dropping": saved, "moe_layer_s": moe_layer_s(steps)}
    numbers |= memory_summary(parts.memory, parts.cluster.gpu.memory)
    numbers |= placement_summary([m for step in steps for m in step.measured])
    if parts.plan.rebalances:
        kept = play_all(parts, parts.plan.never_again(), parts.rule, part_of(progress, rounds - 1, rounds, "never moved"))
        numbers |= rebalance_summary(
            steps, kept, rebalances=parts.plan.rebalances, buffer_bytes=parts.plan.buffer_bytes,
            expert_bytes=run.model.expert_params * run.model.expert_weight_bytes,
        )
    numbers |= cost_row(numbers, cost_from(run.config["cost"]), parts.cluster, parts.cluster.n_gpus)
    notes = _notes(parts, numbers)
    if collided and collided[0] > 1.01:
        notes += (f"routes pile up: the busiest {collided[1]} takes {collided[0]:.2f} times what an even spread would leave it",)
    summary = {**combined([{**_settings(parts), **numbers}]), **_keys(run)}
    tables["summary"] = summary_table({"run_id": identity.run_id, **summary})
    if identify(run).run_id != identity.run_id:
        raise InputError(f"trace={run.config['trace']['name']}: its files were changed during the run; run it again")
    provenance = {**_provenance(run, identity, notes), "wall_s": time.perf_counter() - began}
    return Result(
        run=run, run_id=identity.run_id, summary=summary, tables=tables, provenance=provenance,
        notes=(*notes, recorder.note(run.model.n_layers)) if recorder else notes,
        timeline=partial(timeline_events, recorder, steps[0].played) if recorder else None,
    )  # fmt: skip


def _made(parts: Parts) -> dict[str, Any]:
    """What a step of decoding makes, for `summary_row`; nothing in prefill."""
    decoding = parts.run.decoding
    if decoding is None:
        return {}
    sequences = decoding.sequences * (parts.cluster.n_gpus // parts.run.group.tensor)
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
    return {name: pl.concat(each) for name, each in made.items()}


def _causes(parts: Parts, steps: Sequence[Step], progress: Callable[[int, str], None]) -> dict[str, Floats]:
    """The columns of `CAUSE_COLUMNS`: the run played again without each cause, and without all."""
    seed, n, model, rule = parts.run.seed, parts.cluster.n_gpus, parts.run.model, parts.rule
    tokens, plan = parts.stream.steps, parts.plan

    def computed(step: int, layer: int) -> Ints:
        placed = plan.placements[step]
        protected = capacities.protected_tokens(capacities.stream(seed), rule, tokens[step].context)
        now = replace(parts, workload=tokens[step], placements=placed, protected=protected)
        kept = routings(now, rule, layer, tokens[step].choose(layer))[2]
        return chosen_slots(kept, placed[layer], parts.cluster)

    def without(names: Sequence[str]) -> Floats:
        changed, chosen, placements, limit = parts, tokens, plan.placements, rule
        if "popularity" in names:
            chosen = tuple(even_popularity(one, seed + 1000 * i, model.n_experts) for i, one in enumerate(chosen))
        if "placement" in names:                # what is computed is known by then: nothing more is dropped
            run = replace(parts.run, model=replace(model, n_experts=parts.room.n_slots))
            both = [even_placement(one, partial(computed, i), seed, plan.placements[i]) for i, one in enumerate(tokens)]
            chosen, placements = tuple(one for one, _ in both), tuple(placed for _, placed in both)
            changed, limit = replace(changed, run=run), rule.without_limit()
        if "source" in names:
            chosen = tuple(even_sources(one, n) for one in chosen)
        if "exchange" in names:
            changed = replace(changed, exchange=least_exchange)
        if "topology" in names:
            changed = replace(changed, cluster=ports_alone(parts.cluster), network=networks.bound)
        changed = replace(changed, stream=replace(parts.stream, steps=chosen))
        return moe_seconds([step.played for step in play_all(
            changed, replace(plan, placements=placements), limit, lambda fraction, what: None
        )])  # fmt: skip

    actual, times = moe_seconds([step.played for step in steps]), {}
    even = all(np.ptp(np.bincount(one.source, minlength=n)) == 0 for one in tokens)
    for i, cause in enumerate(CAUSES):
        progress(i, f"the same without {cause}")
        times[cause] = actual if cause == "source" and even else without([cause])
    return causes_of(actual, times, without(CAUSES))


def _settings(parts: Parts) -> dict[str, Any]:
    """The columns that say in short what was run."""
    return {
        **_named(parts.run), "nodes": parts.cluster.n_nodes, "gpus": parts.cluster.n_gpus, "slots": parts.room.n_slots,
        "steps": len(parts.stream.steps),
    }  # fmt: skip


def _named(run: Run) -> dict[str, Any]:
    """Those that the config says by itself."""
    config = run.config
    return {
        "model": run.model.name,
        "topology": run.topology,
        "nodes": config["topology"].get("nodes"),
        "gpus": None,
        "trace": config["trace"]["name"],
        "router": config["router"]["name"],
        "tokens_per_gpu": run.tokens_per_gpu,
        "capacity_factor": run.capacity_factor,
        "capacity_rule": config["capacity"]["rule"],
        "drop": config["capacity"]["drop"],
        "steps": config["workload"]["steps"],
        "placement": config["placement"]["name"],
        "slots": None,
        "replica": config["placement"]["replica"],
        "exchange": config["exchange"]["name"],
        "network": config["network"]["name"],
        "compute": config["compute"]["name"],
        "seed": run.seed,
    }


def _keys(run: Run) -> dict[str, Any]:
    """Every key of the config under its dotted name, so that what a sweep varies is a column, however it was asked for."""
    values = {key: value for key, value in leaves(run.config) if "." in key and not key.startswith("export.")}
    return {
        key: value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)
        for key, value in values.items()
    }


def _notes(parts: Parts, numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader of the result has to know about how it came about."""
    notes = [*parts.stream.notes, *parts.plan.notes, *parts.beyond]
    trace = parts.run.config["trace"]
    if (trace["name"] in ("tiny", "file") or trace.get("loop") == "open") and numbers["drop_rate"] + numbers["rerouted_rate"] > 0:
        notes.append("the trace is open loop: a dropped token would have changed the choices of later layers")
    replicated = parts.room.n_slots > parts.run.model.n_experts and parts.run.config["placement"]["replica"] == "token_hash"
    if parts.run.config["trace"]["name"] == "balanced" and replicated:
        notes.append("balanced choices and token_hash both repeat with the token's index: replicas are not used evenly")
    if parts.run.config["network"]["name"] == "bound":
        notes.append("network=bound: exchanges in progress do not contend, and all GPUs leave one together")
    if parts.run.config["network"]["name"] == "packet":
        chunk, queue = parts.run.config["network"]["chunk"], parts.run.config["network"]["queue"]
        queues = "a queue per flow and link, served in turn" if queue == "round_robin" else "one queue per link"
        notes.append(f"network=packet: store and forward of {chunk} packets, {queues}; full buffers hold back what feeds them")
    return tuple(notes)


@cache
def _version(package: str) -> str:
    """Looked up once: it takes a file of the package each time."""
    return version(package)


def _provenance(run: Run, identity: Identity, notes: Sequence[str]) -> dict[str, Any]:
    """What run.json says: everything the run depends on, and how it was asked for."""
    return {
        **identity.depends,
        "config": identity.config,
        "run_id": identity.run_id,
        "study": run.study,
        "overrides": what_is_run(run.overrides),
        "seed": run.seed,
        "version": clustersim.__version__,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in VERSIONS},
        "notes": list(notes),
    }
