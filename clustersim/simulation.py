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
from clustersim.pick import bind, did_you_mean, find, pick
from clustersim.placement.replicas import chosen_slots
from clustersim.placement.static import default_slots
from clustersim.places import PACKAGE
from clustersim.results.store import write_run
from clustersim.results.tables import (
    LayerCounts,
    experts_table,
    gpus_table,
    layers_table,
    links_table,
    summary_row,
)
from clustersim.types import InputError, Placement, Routing, Workload
from clustersim.workload import capacity as capacities
from clustersim.workload import source
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
    workload: Workload
    placement: Placement
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
    share = 1.0 if run.capacity_factor is None else 0.5      # of the way; the other half is the same without dropping
    played, counts = _play(parts, run.capacity_factor, lambda fraction, what: progress(share * fraction, what))
    gpus = gpus_table(played, counts)
    layers = layers_table(played, gpus, parts.cluster, counts)
    tables = {"layers": layers, "gpus": gpus, "links": links_table(played, parts.cluster), "experts": experts_table(counts)}
    numbers = summary_row(played, tables, counts, parts.workload.source.size, parts.cluster.n_gpus)
    saved = 0.0
    if numbers["drop_rate"] > 0:
        dropless, _ = _play(parts, None, lambda fraction, _: progress(0.5 + 0.5 * fraction, "the same without dropping"))
        saved = dropless.step_s - played.step_s
    notes = _notes(parts, numbers)
    run_id, provenance = _provenance(parts, notes)
    summary = {**_settings(parts), **numbers, "seconds_saved_by_dropping": saved}
    tables["summary"] = pl.DataFrame([{"run_id": run_id, **summary}])
    provenance["wall_s"] = time.perf_counter() - began
    return Result(run=run, run_id=run_id, summary=summary, tables=tables, notes=notes, provenance=provenance)


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
    workload, digest = _workload(run, n)
    exchange_name, exchange_options = run.options("exchange")
    network_name, network_options = run.options("network")
    return _Parts(
        run=run,
        cluster=cluster,
        workload=workload,
        placement=placement,
        exchange=pick(exchanges, exchange_name, **exchange_options),
        network=pick(networks, network_name, **network_options),
        drop=find(capacities, config["capacity"]["drop"], "capacity.drop"),
        trace_sha256=digest,
    )


def _workload(run: Run, n_gpus: int) -> tuple[Workload, str | None]:
    """The tokens and their router, and the hash of the trace they come from."""
    name, options = run.options("trace")
    if name in ("tiny", "file"):
        path = PACKAGE / "workload" / "data" / "tiny" if name == "tiny" else Path(str(options["path"]))
        label = "trace=tiny" if name == "tiny" else f"trace.path={path}"
        return source.from_trace(read_trace(path), run.model, n_gpus, run.tokens_per_gpu, name=label), _contents(path)
    if name == "sampled":
        return bind("trace", name, source.from_sampler, options)(run.model, n_gpus, run.tokens_per_gpu, run.seed), None
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


def _play(parts: _Parts, factor: float | None, progress: Progress) -> tuple[Played, list[LayerCounts | None]]:
    """One forward pass under a capacity factor, and what the router did in each layer."""
    model = parts.run.model
    counts: list[LayerCounts | None] = [None] * model.n_layers

    def work_of(layer: int) -> LayerWork:
        work, counts[layer] = _layer(parts, layer, factor)
        if layer == 0 and parts.run.config["network"]["name"] == "fluid":       # what can be wrong has been found by now
            networks.when_compiling(lambda: progress(0.0, "compiling the network solver, once for this installation"))
        return work

    played = play(
        parts.cluster, parts.network, model.n_layers, work_of,
        lambda layer: progress((layer + 1) / model.n_layers, f"layer {layer + 1} of {model.n_layers}"),
    )  # fmt: skip
    return played, counts


def _layer(parts: _Parts, layer: int, factor: float | None) -> tuple[LayerWork, LayerCounts | None]:
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
    chosen = tokens.choose(moe_layer)
    assigned, capacity = capacities.limit(
        parts.drop, chosen.ids, chosen.weights, tokens.source, n_gpus=n, n_experts=model.n_experts, factor=factor
    )
    routing = Routing(
        asked=chosen.ids, assigned=assigned, weights=chosen.weights, source=tokens.source, index=tokens.index, capacity=capacity
    )
    slots = chosen_slots(routing, parts.placement, cluster)
    in_slot = np.bincount(slots.ravel() + 1, minlength=parts.placement.n_slots + 1)[1:]
    dispatch, combine = (
        parts.exchange(phase, routing, parts.placement, cluster, model) for phase in ("dispatch", "combine")
    )
    work = LayerWork(
        attention_s=attention,
        expert_s=compute.expert_seconds(model, gpu, in_slot, parts.placement.gpu_of, n) if timed else idle,
        other_s=compute.shared_seconds(model, gpu, per_gpu) if timed else idle,
        dispatch=dispatch,
        combine=combine,
    )
    return work, _count(routing, parts.placement, in_slot, model.n_experts, n)


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
        "tokens_per_gpu": run.tokens_per_gpu,
        "capacity_factor": run.capacity_factor,
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
    notes = list(parts.workload.notes)
    if parts.trace_sha256 is not None and numbers["drop_rate"] > 0:
        notes.append("the trace is open loop: a dropped token would have changed the choices of later layers")
    replicated = parts.placement.n_slots > parts.run.model.n_experts and parts.placement.replica == "token_hash"
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
