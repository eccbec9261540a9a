"""The only place where everything meets: a run in, a result out."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import clustersim
from clustersim import exchange as exchanges
from clustersim import network as networks
from clustersim import placement as placements
from clustersim.cluster import Cluster, build_cluster
from clustersim.config import Run, compose
from clustersim.deciding import (
    Place,
    Plan,
    Setting,
    decided,
    loads_seen,
    looks_at_load,
    nothing_seen,
    periodic_keys,
    plan_once,
    plan_periodic,
    steps_seen,
    with_replica,
)
from clustersim.engine import compute
from clustersim.engine.gpu import LayerWork, Played, play, time_alone
from clustersim.pick import bind, did_you_mean, find, pick
from clustersim.placement.measures import Measured, measure
from clustersim.placement.past import Room, room_for
from clustersim.placement.replicas import chosen_slots
from clustersim.places import PACKAGE
from clustersim.results.placements import Step, moe_layer_s, placement_summary, placements_table, rebalance_summary
from clustersim.results.store import write_run
from clustersim.results.tables import (
    LayerCounts,
    experts_table,
    gpus_table,
    layers_table,
    links_table,
    summary_row,
)
from clustersim.types import InputError, Placement, Routing, Transfers, Workload
from clustersim.units import format_bytes
from clustersim.workload import capacity as capacities
from clustersim.workload import source
from clustersim.workload.loads import read_loads
from clustersim.workload.routing import rerouted, router_from
from clustersim.workload.stream import Stream, passes_of, rerouted_stream, stream_of
from clustersim.workload.trace import read_trace

PHYSICS = 2             # raised whenever the same config gives other numbers; part of every run_id

VERSIONS = ("numpy", "numba", "polars", "simpy")        # packages whose versions run.json tells

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Result:
    """What a run gave."""

    run: Run
    run_id: str                             # first 12 hex digits of the sha256 of everything the run depends on
    summary: dict[str, Any]                 # the row of summary.parquet
    tables: dict[str, pl.DataFrame]         # summary, layers, gpus, links, experts
    notes: tuple[str, ...]                  # what a reader has to know
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
            write_run(self.folder, self.tables, self.provenance)
        except OSError as error:
            raise InputError(f"output={self.run.output}: {self.folder} cannot be written ({error.strerror})") from error
        return self.folder


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Parts:
    """The parts of a run, made from its config and found to fit."""

    run: Run
    cluster: Cluster
    stream: Stream
    plan: Plan
    workload: Workload                      # of the step in hand
    placements: tuple[Placement, ...]       # of its MoE layers
    room: Room
    exchange: Callable[..., Any]
    network: Callable[..., Any]
    drop: Callable[..., Any]
    trace_sha256: str | None


def simulate(overrides: Sequence[str] | Run = (), *, progress: Progress = lambda fraction, what: None) -> Result:
    """One experiment, from overrides as on the command line (`["model=deepseek_v3", "topology.nodes=8"]`).

    Args:
        progress: told now and then the fraction done, 0 to 1, and what is being done.

    Raises:
        InputError: an override that is wrong, a trace that does not fit, a cluster that cannot be.
    """
    began = time.perf_counter()
    run = overrides if isinstance(overrides, Run) else compose(overrides)
    parts = _assemble(run)
    rounds = 1 + (run.capacity_factor is not None) + (parts.plan.rebalances > 0)      # of playing everything, at most
    steps = _play_all(parts, parts.plan, run.capacity_factor, _part(progress, 0, rounds))
    tables = _tables(parts, steps)
    played, counts = [step.played for step in steps], [c for step in steps for c in step.counts]
    held = sum(step.held_s for step in steps) / len(steps)
    numbers = summary_row(played, tables, counts, parts.workload.source.size, parts.cluster.n_gpus, held)
    saved = 0.0
    if numbers["drop_rate"] > 0:
        dropless = _play_all(parts, parts.plan, None, _part(progress, 1, rounds, "the same without dropping"))
        saved = sum(step.played.step_s for step in dropless) / len(dropless) - sum(p.step_s for p in played) / len(played)
    numbers["seconds_saved_by_dropping"] = saved
    numbers["moe_layer_s"] = moe_layer_s(steps)
    numbers |= placement_summary([m for step in steps for m in step.measured])
    if parts.plan.rebalances:
        kept = _play_all(parts, parts.plan.never_again(), run.capacity_factor, _part(progress, rounds - 1, rounds, "never moved"))
        numbers |= rebalance_summary(
            steps, kept, rebalances=parts.plan.rebalances, buffer_bytes=parts.plan.buffer_bytes,
            expert_bytes=run.model.expert_params * run.model.expert_weight_bytes,
        )
    notes = _notes(parts, numbers)
    run_id, provenance = _provenance(parts, notes)
    summary = {**_settings(parts), **numbers}
    tables["summary"] = pl.DataFrame([{"run_id": run_id, **summary}])
    provenance["wall_s"] = time.perf_counter() - began
    return Result(run=run, run_id=run_id, summary=summary, tables=tables, notes=notes, provenance=provenance)


def _assemble(run: Run) -> _Parts:
    config, model = run.config, run.model
    cluster = build_cluster(run.topology, config["topology"])
    n = cluster.n_gpus
    if config["compute"]["name"] not in ("roofline", "none"):
        raise InputError(f"compute={config['compute']['name']}: must be roofline or none")
    name, options = run.options("placement")
    replica, slots, spare = (options.pop(key) for key in ("replica", "slots", "spare"))
    find(placements.replicas, replica, "placement.replica")        # a misspelt rule is found now, not in the first layer
    place = with_replica(pick(placements, name, **options), replica)
    exchange_name, exchange_options = run.options("exchange")
    exchange = pick(exchanges, exchange_name, **exchange_options)
    room = room_for(slots, spare, model.n_experts, cluster.node_of)
    if (weights := model.expert_params * model.expert_weight_bytes) > cluster.gpu.memory:
        raise InputError(
            f"model={model.name}: no GPU of {run.topology} can hold an expert: its weights are {format_bytes(weights)}, "
            f"the memory of a GPU is {format_bytes(cluster.gpu.memory)}"
        )
    setting = Setting(
        model=model, cluster=cluster, room=room, exchange=exchange, timed=config["compute"]["name"] == "roofline",
        replica=replica, seed=run.seed,
    )
    name, options = run.options("router")
    router = router_from(name, options, model, phase=config["workload"]["phase"])
    stream, digest = _stream(run, n, router.extra, looks_at_load(place))
    near = _near(setting, place) if "near" in router.wants else _nobody_near
    label = f"trace={config['trace']['name']}"
    stream = rerouted_stream(stream, lambda i, tokens: rerouted(tokens, router, model, run.seed + i, name=label, near=near))
    plan, played = _plan(run, setting, place, stream)
    network_name, network_options = run.options("network")
    return _Parts(
        run=run,
        cluster=cluster,
        stream=replace(stream, steps=played),
        plan=plan,
        workload=played[0],
        placements=plan.placements[0],
        room=room,
        exchange=exchange,
        network=pick(networks, network_name, **network_options),
        drop=find(capacities, config["capacity"]["drop"], "capacity.drop"),
        trace_sha256=digest,
    )


def _near(setting: Setting, place: Place) -> Callable[[int], np.ndarray[Any, np.dtype[np.bool_]]]:
    """GPU -> bool [experts], those of which its node holds a copy, for a router that minds it."""
    name, n = setting.model.name, setting.model.n_experts
    if looks_at_load(place):
        raise InputError(
            f"placement: is decided on where tokens of {name} go, and the router decides that by where experts are; "
            "take placement=contiguous or round_robin"
        )
    placed = decided(setting, place, nothing_seen(setting), None)
    if any((one.expert_of != placed[0].expert_of).any() for one in placed):
        raise InputError("placement: differs between layers, and the router minds one; take placement=contiguous or round_robin")

    def near(gpu: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        held = np.zeros(n, bool)
        held[placed[0].expert_of[setting.cluster.node_of[placed[0].gpu_of] == setting.cluster.node_of[gpu]]] = True
        return held

    return near


def _nobody_near(gpu: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    raise AssertionError("asked for by a router that does not mind where experts are")


def _stream(run: Run, n_gpus: int, extra: int, looks_back: bool) -> tuple[Stream, str | None]:
    """The steps and what is recorded or drawn of them, and the hash of the trace they come from.

    Args:
        extra: columns of scores beside those of the experts.
        looks_back: the placement is decided on a past.
    """
    name, options = run.options("trace")
    decide, workload = run.config["decide"], run.config["workload"]
    apart = decide["name"] == "once" and (looks_back or decide["apart"])
    keys = {key: workload[key] for key in ("steps", "deal", "domain_steps")}
    if name in ("tiny", "file"):
        path = PACKAGE / "workload" / "data" / "tiny" if name == "tiny" else Path(str(options["path"]))
        label = "trace=tiny" if name == "tiny" else f"trace.path={path}"
        stream = stream_of(read_trace(path), run.model, n_gpus, run.tokens_per_gpu, apart=apart, name=label, **keys)
        return stream, _contents(path)
    if name == "sampled":
        draw = bind("trace", name, source.from_sampler, options)

        def make(seed: int) -> Workload:
            made: Workload = draw(run.model, n_gpus, run.tokens_per_gpu, seed, extra)
            return made

        return passes_of(make, run.model, run.seed, apart=apart, **keys), None
    if name == "balanced":
        even = bind("trace", name, source.from_balanced, options)(run.model, n_gpus, run.tokens_per_gpu)
        return passes_of(lambda seed: even, run.model, run.seed, apart=apart, **keys), None
    known = ("tiny", "file", "sampled", "balanced")
    raise InputError(f"trace.name={name}: there is no such trace{did_you_mean(str(name), known)} (known: {', '.join(known)})")


def _plan(run: Run, setting: Setting, place: Place, stream: Stream) -> tuple[Plan, tuple[Workload, ...]]:
    """The placements of the steps that are played, and these steps."""
    name, options = run.options("decide")
    if name == "periodic":
        keys = periodic_keys(options, len(stream.steps))
        first = find(placements, str(keys["first"]), "decide.first")
        if looks_at_load(first):
            raise InputError(f"decide.first={keys['first']}: there is no past yet; contiguous, round_robin or random would do")
        return plan_periodic(setting, place, stream.steps, **{**keys, "first": first}), stream.steps[keys["warmup"] :]
    if not looks_at_load(place):
        seen = nothing_seen(setting)
    elif name == "load_file":
        seen = loads_seen(read_loads(str(options["path"]), run.model))
    else:
        seen = steps_seen(setting, stream.past)
    return plan_once(setting, place, seen, len(stream.steps)), stream.steps


def _contents(path: Path) -> str:
    """sha256 of the files of a trace."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _play_all(parts: _Parts, plan: Plan, factor: float | None, progress: Progress) -> list[Step]:
    """All steps, one after the other, each under its placements and after what has to move before it, or beside it."""
    n = len(parts.stream.steps)
    steps: list[Step] = []
    overlapped = parts.run.config["decide"].get("migration") == "overlapped"
    for i, (tokens, placed, moves) in enumerate(zip(parts.stream.steps, plan.placements, plan.moves, strict=True)):
        now = replace(parts, workload=tokens, placements=placed)
        played, counts, measured = _play(now, factor, _part(progress, i, n), moves if overlapped else None)
        if overlapped:
            held = max(0.0, played.background_s - played.step_s)        # the next step waits for what has not come yet
        else:
            held = 0.0 if moves is None else time_alone(parts.cluster, parts.network, moves)
        moved = plan.moved[i]
        steps.append(
            Step(
                played=played, counts=counts, held_s=held,
                measured=[replace(m, moved_slots=int(n)) for m, n in zip(measured, moved, strict=True)],
            )
        )
    return steps


def _part(progress: Progress, i: int, n: int, what: str | None = None) -> Progress:
    """Progress of the i-th of n equal parts."""
    return lambda fraction, said: progress((i + fraction) / n, what or said)


def _tables(parts: _Parts, steps: Sequence[Step]) -> dict[str, pl.DataFrame]:
    """The tables of all steps, one step under the other."""
    made: dict[str, list[pl.DataFrame]] = {name: [] for name in ("layers", "gpus", "links", "experts", "placements")}
    for i, step in enumerate(steps):
        gpus = gpus_table(step.played, step.counts, i)
        made["layers"].append(layers_table(step.played, gpus, parts.cluster, step.counts))
        made["gpus"].append(gpus)
        made["links"].append(links_table(step.played, parts.cluster, i))
        made["experts"].append(experts_table(step.counts, i))
        made["placements"].append(placements_table(step.measured, parts.run.model.n_dense_layers, i))
    return {name: pl.concat(each) for name, each in made.items()}


def _play(
    parts: _Parts, factor: float | None, progress: Progress, background: Transfers | None = None
) -> tuple[Played, list[LayerCounts | None], list[Measured]]:
    """One forward pass under a capacity factor, what the router did in each layer, and how the placement served."""
    model = parts.run.model
    counts: list[LayerCounts | None] = [None] * model.n_layers
    measured: list[Measured] = []

    def work_of(layer: int) -> LayerWork:
        work, counts[layer], seen = _layer(parts, layer, factor)
        measured.extend([] if seen is None else [seen])
        if layer == 0 and parts.run.config["network"]["name"] == "fluid":       # what can be wrong has been found by now
            networks.when_compiling(lambda: progress(0.0, "compiling the network solver, once for this installation"))
        return work

    played = play(
        parts.cluster, parts.network, model.n_layers, work_of,
        lambda layer: progress((layer + 1) / model.n_layers, f"layer {layer + 1} of {model.n_layers}"), background,
    )  # fmt: skip
    return played, counts, measured


def _layer(parts: _Parts, layer: int, factor: float | None) -> tuple[LayerWork, LayerCounts | None, Measured | None]:
    """What the GPUs have to do in one layer, what its router did, and how the placement served it."""
    model, cluster, tokens = parts.run.model, parts.cluster, parts.workload
    n, gpu = cluster.n_gpus, cluster.gpu
    per_gpu = np.bincount(tokens.source, minlength=n)
    timed = parts.run.config["compute"]["name"] == "roofline"
    idle = np.zeros(n)
    context = compute.context_sums(model, layer, tokens.context, tokens.source, n)
    attention = compute.attention_seconds(model, gpu, layer, per_gpu, context) if timed else idle
    moe_layer = layer - model.n_dense_layers
    if moe_layer < 0:
        dense = compute.dense_seconds(model, gpu, per_gpu) if timed else idle
        return LayerWork(attention_s=attention, expert_s=idle, other_s=dense, dispatch=None, combine=None), None, None
    chosen = tokens.choose(moe_layer)
    assigned, capacity = capacities.limit(
        parts.drop, chosen.ids, chosen.weights, tokens.source, n_gpus=n, n_experts=model.n_experts, factor=factor
    )
    routing = Routing(
        asked=chosen.ids, assigned=assigned, weights=chosen.weights, source=tokens.source, index=tokens.index, capacity=capacity
    )
    placement = parts.placements[moe_layer]
    slots = chosen_slots(routing, placement, cluster)
    in_slot = np.bincount(slots.ravel() + 1, minlength=placement.n_slots + 1)[1:]
    dispatch, combine = (parts.exchange(phase, routing, placement, cluster, model) for phase in ("dispatch", "combine"))
    work = LayerWork(
        attention_s=attention,
        expert_s=compute.expert_seconds(model, gpu, in_slot, placement.gpu_of, n) if timed else idle,
        other_s=compute.shared_seconds(model, gpu, per_gpu) if timed else idle,
        dispatch=dispatch,
        combine=combine,
    )
    served = measure(slots, tokens.source, placement, parts.room.slots_of, cluster.node_of)
    return work, _count(routing, placement, in_slot, model.n_experts, n), served


def _count(routing: Routing, placement: Placement, in_slot: Any, n_experts: int, n_gpus: int) -> LayerCounts:
    asked = np.bincount(routing.asked.ravel() + 1, minlength=n_experts + 1)[1:]
    kept = np.bincount(placement.expert_of, in_slot, n_experts).astype(np.int64)
    assert (kept == np.bincount(routing.assigned.ravel() + 1, minlength=n_experts + 1)[1:]).all(), "a kept choice has no slot"
    lost = (routing.assigned < 0).all(axis=1) & (routing.asked >= 0).any(axis=1)
    return LayerCounts(
        asked=asked,
        kept=kept,
        replicas=np.bincount(placement.expert_of, minlength=n_experts),
        gpu_tokens=np.bincount(placement.gpu_of, in_slot, n_gpus).astype(np.int64),
        fully_dropped=int(lost.sum()),
        room=None if routing.capacity is None else int(routing.capacity.sum()) * n_experts,
    )


def _settings(parts: _Parts) -> dict[str, Any]:
    """The columns that say what was run: the choices, and every key that was set."""
    run, config = parts.run, parts.run.config
    settings = {
        "model": run.model.name,
        "topology": run.topology,
        "nodes": parts.cluster.n_nodes,
        "gpus": parts.cluster.n_gpus,
        "trace": config["trace"]["name"],
        "router": config["router"]["name"],
        "tokens_per_gpu": run.tokens_per_gpu,
        "capacity_factor": run.capacity_factor,
        "steps": len(parts.stream.steps),
        "placement": config["placement"]["name"],
        "slots": parts.room.n_slots,
        "replica": parts.run.config["placement"]["replica"],
        "exchange": config["exchange"]["name"],
        "network": config["network"]["name"],
        "compute": config["compute"]["name"],
        "seed": run.seed,
    }
    for override in run.overrides:
        key = override.partition("=")[0].lstrip("+~")
        if "." in key:
            settings[key] = _leaf(config, key)
    return settings


def _leaf(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)


def _notes(parts: _Parts, numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader of the result has to know about how it came about."""
    notes = [*parts.stream.notes, *parts.plan.notes]
    if parts.trace_sha256 is not None and numbers["drop_rate"] > 0:
        notes.append("the trace is open loop: a dropped token would have changed the choices of later layers")
    replicated = parts.room.n_slots > parts.run.model.n_experts and parts.run.config["placement"]["replica"] == "token_hash"
    if parts.run.config["trace"]["name"] == "balanced" and replicated:
        notes.append("balanced choices and token_hash both repeat with the token's index: replicas are not used evenly")
    if parts.run.config["network"]["name"] == "bound":
        notes.append("network=bound: exchanges in progress do not contend, and all GPUs leave one together")
    return tuple(notes)


def _provenance(parts: _Parts, notes: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The run_id, and what run.json says: everything the run depends on."""
    run = parts.run
    config = {key: value for key, value in run.config.items() if key != "output"}
    depends = {
        "config": {**config, "topology": {"name": run.topology, **config["topology"]}},
        "trace_sha256": parts.trace_sha256,
        "physics": PHYSICS,
    }
    if run.config["decide"]["name"] == "load_file":
        depends["load_sha256"] = _contents(Path(str(run.config["decide"]["path"])))
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
    return digest[:12], {
        **depends,
        "run_id": digest[:12],
        "study": run.study,
        "overrides": list(run.overrides),
        "seed": run.seed,
        "version": clustersim.__version__,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "notes": list(notes),
    }
