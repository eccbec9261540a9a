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
from clustersim.config import Run, compose, whole
from clustersim.engine import compute
from clustersim.engine.gpu import LayerWork, Played, play
from clustersim.network import packets
from clustersim.network.fabric import Exchange
from clustersim.pick import bind, did_you_mean, find, pick
from clustersim.placement.replicas import chosen_slots
from clustersim.placement.static import default_slots
from clustersim.places import PACKAGE
from clustersim.results.counting import LayerCounts, count_layer, counted_layer
from clustersim.results.pairs import PairBytes
from clustersim.results.store import write_run
from clustersim.results.tables import (
    collision,
    experts_table,
    gpus_table,
    layers_table,
    links_table,
    summary_row,
)
from clustersim.results.timeline import Recorder, write_timeline
from clustersim.types import Choices, Floats, InputError, Ints, Placement, Routing, Workload
from clustersim.workload import capacity as capacities
from clustersim.workload import source
from clustersim.workload.capacity_padding import padding_rows, rows_by_source
from clustersim.workload.routing import Router, rerouted, router_from
from clustersim.workload.sampler_parameters import parameters_file
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
    tables: dict[str, pl.DataFrame]         # summary, layers, gpus, links, experts, pairs
    notes: tuple[str, ...]                  # what a reader has to know
    timeline: tuple[Recorder, Played] | None        # what `export.timeline` asked for
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
                write_timeline(self.folder / "timeline.json.gz", *self.timeline, {"run_id": self.run_id})
            write_run(self.folder, self.tables, self.provenance)
        except OSError as error:
            raise InputError(f"output={self.run.output}: {self.folder} cannot be written ({error.strerror})") from error
        return self.folder


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Parts:
    """The parts of a run, made from its config and found to fit."""

    run: Run
    cluster: Cluster
    workload: Workload
    placement: Placement
    exchange: Callable[..., Any]
    network: Callable[..., Any]
    rule: capacities.Rule
    top_k: int                              # choices of a token, as a capacity formula counts them
    protected: Any                          # bool [tokens] that no capacity drops, or None
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
    share = 0.5 if parts.rule.limits else 1.0       # of the way; the other half is the same without a capacity
    pairs, recorder = PairBytes(parts.cluster.n_gpus), _recorder(parts)

    def watch(layer: int, dispatch: Exchange, combine: Exchange) -> None:
        pairs.watch(layer, dispatch, combine)
        if recorder:
            recorder.watch(layer, dispatch, combine)

    played, counts = _play(parts, parts.rule, lambda fraction, what: progress(share * fraction, what), watch)
    gpus = gpus_table(played, counts)
    layers = layers_table(played, gpus, parts.cluster, counts)
    tables = {"layers": layers, "gpus": gpus, "links": links_table(played, parts.cluster), "experts": experts_table(counts)}
    tables["pairs"] = pairs.table()
    numbers = summary_row(played, tables, counts, parts.workload.source.size, parts.cluster.n_gpus)
    collided = collision(tables["links"], parts.cluster)
    numbers["ecmp_collision"] = collided[0] if collided else None
    saved = 0.0
    if parts.rule.limits and any(numbers[name] > 0 for name in ("drop_rate", "rerouted_rate", "padding_computed_rows")):
        dropless, _ = _play(
            parts, parts.rule.without_limit(), lambda fraction, _: progress(0.5 + 0.5 * fraction, "the same without dropping"),
            lambda layer, dispatch, combine: None,
        )  # fmt: skip
        saved = dropless.step_s - played.step_s
    notes = _notes(parts, numbers)
    if collided and collided[0] > 1.01:
        notes += (f"routes pile up: the busiest {collided[1]} takes {collided[0]:.2f} times what an even spread would leave it",)
    run_id, provenance = _provenance(parts, notes)
    summary = {**_settings(parts), **numbers, "seconds_saved_by_dropping": saved}
    tables["summary"] = pl.DataFrame([{"run_id": run_id, **summary}])
    provenance["wall_s"] = time.perf_counter() - began
    return Result(
        run=run, run_id=run_id, summary=summary, tables=tables, provenance=provenance,
        notes=(*notes, recorder.note(run.model.n_layers)) if recorder else notes,
        timeline=(recorder, played) if recorder else None,
    )  # fmt: skip


def _recorder(parts: _Parts) -> Recorder | None:
    """What keeps exchanges for a time line, when one is asked for."""
    export = parts.run.config["export"]
    first = whole("export.first_layer", export["first_layer"], least=0)
    most = whole("export.events", export["events"], least=1000)
    if export["arrows"] not in ("all", "last"):
        raise InputError(f"export.arrows={export['arrows']}: must be all or last")
    if not isinstance(export["timeline"], bool):
        raise InputError(f"export.timeline={export['timeline']}: must be true or false")
    return Recorder(parts.cluster, first=first, most=most, arrows=export["arrows"]) if export["timeline"] else None


def _assemble(run: Run) -> _Parts:
    config, model = run.config, run.model
    cluster = build_cluster(run.topology, config["topology"])
    n = cluster.n_gpus
    name, options = run.options("placement")
    replica, slots = options.pop("replica"), options.pop("slots")
    slots = default_slots(model.n_experts, n) if slots is None else whole("placement.slots", slots, least=1)
    placement = replace(pick(placements, name, **options)(model.n_experts, slots, n), replica=replica)
    find(placements.replicas, replica, "placement.replica")        # a misspelt rule is found now, not in the first layer
    if config["compute"]["name"] not in ("roofline", "none"):
        raise InputError(f"compute={config['compute']['name']}: must be roofline or none")
    name, options = run.options("router")
    router = router_from(name, options, run.model, phase=run.config["workload"]["phase"])
    workload, digest = _workload(run, n, router.extra)
    if workload.count is not None:
        _check_counts(router, capacities.rule_from(config["capacity"]), config["exchange"]["name"], placement, model.n_experts)
    workload = rerouted(
        workload, router, run.model, run.seed, name=f"trace={config['trace']['name']}",
        near=lambda gpu: _held_near(placement, cluster, run.model.n_experts, gpu),
    )  # fmt: skip
    exchange_name, exchange_options = run.options("exchange")
    network_name, network_options = run.options("network")
    rule = capacities.rule_from(config["capacity"])
    if rule.sends_padding and ":" not in exchange_name and exchange_name not in exchanges.PADDING:
        key = "pad=true" if rule.pad else f"pad_multiple={rule.pad_multiple}"
        can = " or ".join(sorted(exchanges.PADDING))
        raise InputError(
            f"capacity.{key}: exchange={exchange_name} cannot send padding; use exchange={can}, "
            "or capacity.where=expert, which pads on arrival"
        )
    return _Parts(
        run=run,
        cluster=cluster,
        workload=workload,
        placement=placement,
        exchange=pick(exchanges, exchange_name, **exchange_options),
        network=pick(networks, network_name, **network_options),
        rule=rule,
        top_k=router.options.get("k") or run.model.top_k,
        protected=capacities.protected_tokens(capacities.stream(run.seed), rule, workload.context),
        trace_sha256=digest,
    )


def _check_counts(router: Router, rule: capacities.Rule, exchange: str, placement: Placement, n_experts: int) -> None:
    """InputError where something asks for single tokens, which counts do not have."""
    need = "single tokens, and trace.counts=true has only how many of a GPU choose each expert"
    if router.name != "recorded":
        raise InputError(f"router={router.name}: needs {need}; use trace.counts=false")
    if rule.limits or rule.pad_multiple > 1:
        raise InputError(f"capacity: a limit or padding needs {need}; use trace.counts=false")
    if exchange not in exchanges.PADDING:
        can = " or ".join(sorted(exchanges.PADDING))
        raise InputError(f"exchange={exchange}: needs {need}; use exchange={can} or trace.counts=false")
    if placement.n_slots > n_experts:
        raise InputError(
            f"placement.slots={placement.n_slots}: choosing among replicas of {n_experts} experts needs {need}; "
            f"use placement.slots={n_experts} or trace.counts=false"
        )


def _held_near(placement: Placement, cluster: Cluster, n_experts: int, gpu: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [experts]: whether the node of a GPU holds a copy of the expert."""
    held = np.zeros(n_experts, bool)
    held[placement.expert_of[cluster.node_of[placement.gpu_of] == cluster.node_of[gpu]]] = True
    return held


def _workload(run: Run, n_gpus: int, extra: int) -> tuple[Workload, str | None]:
    """The tokens and what is recorded or drawn of them, and the hash of the trace they come from. `extra` columns of scores."""
    name, options = run.options("trace")
    if name in ("tiny", "file"):
        path = PACKAGE / "workload" / "data" / "tiny" if name == "tiny" else Path(str(options["path"]))
        label = "trace=tiny" if name == "tiny" else f"trace.path={path}"
        return source.from_trace(read_trace(path), run.model, n_gpus, run.tokens_per_gpu, name=label), _contents(path)
    if name == "sampled":
        sampled = bind("trace", name, source.from_sampler, options)(run.model, n_gpus, run.tokens_per_gpu, run.seed, extra)
        return sampled, _contents(parameters_file(options["preset"], options["parameters"]))
    if name == "balanced":
        return bind("trace", name, source.from_balanced, options)(run.model, n_gpus, run.tokens_per_gpu), None
    known = ("tiny", "file", "sampled", "balanced")
    raise InputError(f"trace.name={name}: there is no such trace{did_you_mean(str(name), known)} (known: {', '.join(known)})")


def _contents(path: Path) -> str:
    """sha256 of the files of a trace."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _play(
    parts: _Parts, rule: capacities.Rule, progress: Progress, watch: Callable[[int, Exchange, Exchange], None]
) -> tuple[Played, list[LayerCounts | None]]:
    """One forward pass under a capacity rule, and what the router did in each layer."""
    model = parts.run.model
    counts: list[LayerCounts | None] = [None] * model.n_layers

    def work_of(layer: int) -> LayerWork:
        work, counts[layer] = _layer(parts, layer, rule)
        if layer == model.n_dense_layers and parts.run.config["network"]["name"] == "packet":
            both = [transfers for transfers in (work.dispatch, work.combine) if transfers is not None]
            packets.need_few(parts.cluster, both, model.n_layers - layer, parts.run.config["network"]["chunk"])
        if layer == 0:                          # what can be wrong has been found by now
            networks.when_compiling(
                lambda: progress(0.0, "compiling the network solver, once for this installation"),
                parts.run.config["network"]["name"],
            )
        return work

    played = play(
        parts.cluster, parts.network, model.n_layers, work_of,
        lambda layer: progress((layer + 1) / model.n_layers, f"layer {layer + 1} of {model.n_layers}"), watch,
    )  # fmt: skip
    return played, counts


def _layer(parts: _Parts, layer: int, rule: capacities.Rule) -> tuple[LayerWork, LayerCounts | None]:
    """What the GPUs have to do in one layer, and what its router did."""
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
        return LayerWork(attention_s=attention, expert_s=idle, other_s=dense, dispatch=None, combine=None), None
    if tokens.count is not None:
        return _counted_layer(parts, layer, tokens.count(moe_layer), attention, per_gpu)
    chosen = tokens.choose(moe_layer)
    limited, sent, kept = _routings(parts, rule, layer, chosen)
    slots = chosen_slots(kept, parts.placement, cluster)
    rows = rows_by_source(slots, kept.source, n, parts.placement.n_slots)
    travelling, computed = padding_rows(rule, limited, rows, per_gpu, parts.placement.expert_of)
    dispatch, combine = (
        parts.exchange(phase, replace(routing, padding=travelling), parts.placement, cluster, model)
        for phase, routing in (("dispatch", sent), ("combine", kept))
    )
    in_slot = rows.sum(axis=0)
    work = LayerWork(
        attention_s=attention,
        expert_s=compute.expert_seconds(model, gpu, in_slot + computed, parts.placement.gpu_of, n) if timed else idle,
        other_s=compute.shared_seconds(model, gpu, per_gpu) if timed else idle,
        dispatch=dispatch,
        combine=combine,
    )
    return work, count_layer(
        chosen, kept, parts.placement, in_slot, travelling, computed, n_experts=model.n_experts, n_gpus=n,
        row_bytes=model.dispatch_token_bytes + model.combine_token_bytes,
        renormalised=rule.renormalise and chosen.ids.shape[1] > 1,
    )  # fmt: skip


def _counted_layer(
    parts: _Parts, layer: int, counts: Ints, attention: Floats, per_gpu: Ints
) -> tuple[LayerWork, LayerCounts]:
    """As `_layer`, where only counts [gpus, experts] are known: their rows travel as padding does, without any token."""
    model, cluster, placement = parts.run.model, parts.cluster, parts.placement
    n, gpu = cluster.n_gpus, cluster.gpu
    timed = parts.run.config["compute"]["name"] == "roofline"
    rows = counts[:, placement.expert_of]                   # [gpus, slots]: every expert has one
    nobody = np.zeros((0, model.top_k), np.int64)
    routing = Routing(
        asked=nobody, assigned=nobody, weights=None, source=nobody[:, 0], index=nobody[:, 0], capacity=None, padding=rows
    )
    dispatch, combine = (parts.exchange(phase, routing, placement, cluster, model) for phase in ("dispatch", "combine"))
    in_slot = rows.sum(axis=0)
    work = LayerWork(
        attention_s=attention,
        expert_s=compute.expert_seconds(model, gpu, in_slot, placement.gpu_of, n) if timed else np.zeros(n),
        other_s=compute.shared_seconds(model, gpu, per_gpu) if timed else np.zeros(n),
        dispatch=dispatch,
        combine=combine,
    )
    return work, counted_layer(in_slot, placement, n_experts=model.n_experts, n_gpus=n)


def _routings(parts: _Parts, rule: capacities.Rule, layer: int, chosen: Choices) -> tuple[capacities.Limited, Routing, Routing]:
    """What the capacity rule makes of a layer's choices: those that are dispatched, and those that are computed and come home."""
    tokens, model, n = parts.workload, parts.run.model, parts.cluster.n_gpus
    asked = Routing(
        asked=chosen.ids, assigned=chosen.ids, weights=chosen.weights, source=tokens.source, index=tokens.index, capacity=None
    )
    computing = None
    if rule.per == "gpu" and rule.factor is not None:
        slots = chosen_slots(asked, parts.placement, parts.cluster)
        computing = np.where(slots < 0, -1, parts.placement.gpu_of[slots])
    limited = capacities.limit(
        capacities.stream(parts.run.seed, layer), rule, chosen, source=tokens.source, index=tokens.index, n_gpus=n,
        n_experts=model.n_experts, top_k=min(parts.top_k, chosen.ids.shape[1]), gpu_of_choice=computing,
        protected=parts.protected,
    )  # fmt: skip
    weights = None
    if chosen.weights is not None:
        weights = capacities.applied_weights(chosen.weights, chosen.ids, limited.assigned, renormalise=rule.renormalise)
    kept = replace(asked, assigned=limited.assigned, weights=weights, capacity=limited.room)
    return limited, replace(kept, assigned=chosen.ids) if rule.where == "expert" else kept, kept


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
        "capacity_rule": config["capacity"]["rule"],
        "drop": config["capacity"]["drop"],
        "placement": config["placement"]["name"],
        "slots": parts.placement.n_slots,
        "replica": parts.placement.replica,
        "exchange": config["exchange"]["name"],
        "network": config["network"]["name"],
        "compute": config["compute"]["name"],
        "seed": run.seed,
    }
    for override in run.overrides:
        key = override.partition("=")[0].lstrip("+~")
        if "." in key and not key.startswith("export."):
            settings[key] = _leaf(config, key)
    return settings


def _leaf(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)


def _notes(parts: _Parts, numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader of the result has to know about how it came about."""
    notes = list(parts.workload.notes)
    if parts.run.config["trace"]["name"] in ("tiny", "file") and numbers["drop_rate"] + numbers["rerouted_rate"] > 0:
        notes.append("the trace is open loop: a dropped token would have changed the choices of later layers")
    replicated = parts.placement.n_slots > parts.run.model.n_experts and parts.placement.replica == "token_hash"
    if parts.run.config["trace"]["name"] == "balanced" and replicated:
        notes.append("balanced choices and token_hash both repeat with the token's index: replicas are not used evenly")
    if parts.run.config["network"]["name"] == "bound":
        notes.append("network=bound: exchanges in progress do not contend, and all GPUs leave one together")
    if parts.run.config["network"]["name"] == "packet":
        chunk, queue = parts.run.config["network"]["chunk"], parts.run.config["network"]["queue"]
        queues = "a queue per flow and link, served in turn" if queue == "round_robin" else "one queue per link"
        notes.append(f"network=packet: store and forward of {chunk} packets, {queues}; full buffers hold back what feeds them")
    return tuple(notes)


def _provenance(parts: _Parts, notes: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The run_id, and what run.json says: everything the run depends on."""
    run = parts.run
    config = {key: value for key, value in run.config.items() if key not in ("output", "export")}
    depends = {
        "config": {**config, "topology": {"name": run.topology, **config["topology"]}},
        "trace_sha256": parts.trace_sha256,
        "physics": PHYSICS,
    }
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
