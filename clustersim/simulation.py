"""The only place where everything meets: a run in, a result out."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import clustersim
from clustersim import exchange as exchanges
from clustersim import network as networks
from clustersim import placement as placements
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
from clustersim.cluster import Cluster, build_cluster
from clustersim.config import HOW, Run, compose, whole
from clustersim.engine import compute
from clustersim.engine.gpu import LayerWork, Played, play
from clustersim.identity import Identity, identify, trace_digest, trace_path
from clustersim.network import packets
from clustersim.pick import bind, did_you_mean, find, pick
from clustersim.placement.replicas import chosen_slots
from clustersim.placement.static import default_slots
from clustersim.results.counting import LayerCounts, count_layer, counted_layer
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
from clustersim.types import Choices, Floats, InputError, Ints, Placement, Routing, Trace, Workload
from clustersim.workload import capacity as capacities
from clustersim.workload import source
from clustersim.workload.capacity_padding import padding_rows, rows_by_source
from clustersim.workload.routing import Router, rerouted, router_from
from clustersim.workload.trace import read_trace

EXTRA = ("replicates", *(f"{name}_ci95" for name in INTERVALS))         # columns that several seeds together have
REPLICATE_COLUMNS = (
    "seed", "step_s", "compute_s", "exposed_comm_s", "wait_s", "tokens_per_s", "drop_rate", "fully_dropped", "imbalance",
    "over_bound", "bottleneck", "nvlink_bytes", "nic_bytes", "seconds_saved_by_dropping",
)  # fmt: skip
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
    rule: capacities.Rule
    top_k: int                              # choices of a token, as a capacity formula counts them
    protected: Any                          # bool [tokens] that no capacity drops, or None


def simulate(overrides: Sequence[str] | Run = (), *, progress: Progress = lambda fraction, what: None) -> Result:
    """One experiment, from overrides as on the command line (`["model=deepseek_v3", "topology.nodes=8"]`).

    Args:
        progress: told now and then the fraction done, 0 to 1, and what is being done.

    Raises:
        InputError: an override that is wrong, a trace that does not fit, a cluster that cannot be.
    """
    run = overrides if isinstance(overrides, Run) else compose(overrides)
    return _simulate_once(run, progress) if run.replicates == 1 else _simulate_seeds(run, progress)


def _simulate_seeds(run: Run, progress: Progress) -> Result:
    """The run with `replicates` seeds from its own on: the summary is their mean, the other tables are of the first."""
    n, results = run.replicates, []
    for i in range(n):
        alone = {**run.config, "seed": run.seed + i, "replicates": 1}
        results.append(_simulate_once(
            replace(run, seed=run.seed + i, replicates=1, config=alone), partial(_tell_part, progress, i, n)
        ))  # fmt: skip
    identity = identify(run)
    rows = [result.summary for result in results]
    summary = {**combined([{k: v for k, v in row.items() if "." not in k and k not in EXTRA} for row in rows]), **_keys(run)}
    notes = tuple(dict.fromkeys(note for result in results for note in result.notes))
    tables = {
        **results[0].tables,
        "summary": summary_table({"run_id": identity.run_id, **summary}),
        "replicates": pl.concat([result.tables["summary"].select(REPLICATE_COLUMNS) for result in results]),
    }
    wall = sum(result.provenance["wall_s"] for result in results)
    provenance = {**_provenance(run, identity, notes), "wall_s": wall}
    return Result(run=run, run_id=identity.run_id, summary=summary, tables=tables, notes=notes, provenance=provenance)


def _tell_part(progress: Progress, part: int, parts: int, fraction: float, what: str) -> None:
    progress((part + fraction) / parts, what)


def _simulate_once(run: Run, progress: Progress) -> Result:
    began = time.perf_counter()
    identity = identify(run)
    parts = _assemble(run)
    rounds = 1 + (1 if parts.rule.limits else 0) + (len(CAUSES) + 1 if run.causes else 0)      # forward passes to play, at most
    played, counts = _play(parts, parts.rule, lambda fraction, what: progress(fraction / rounds, what))
    gpus = gpus_table(played, counts)
    layers = layers_table(played, gpus, parts.cluster, counts)
    causes = _causes(parts, played, lambda done, what: progress((done + 1) / rounds, what)) if run.causes else {}
    layers = layers.hstack(causes_table(causes, run.model))
    tables = {"layers": layers, "gpus": gpus, "links": links_table(played, parts.cluster), "experts": experts_table(counts)}
    numbers = summary_row(played, tables, counts, parts.workload.source.size, parts.cluster.n_gpus)
    collided = collision(tables["links"], parts.cluster)
    numbers["ecmp_collision"] = collided[0] if collided else None
    numbers |= {name: float(layers[name].sum()) if run.causes else None for name in CAUSE_COLUMNS}
    saved = 0.0
    if parts.rule.limits and any(numbers[name] > 0 for name in ("drop_rate", "rerouted_rate", "padding_computed_rows")):
        dropless, _ = _play(
            parts, parts.rule.without_limit(),
            lambda fraction, _: progress(1 + (fraction - 1) / rounds, "the same without dropping"),
        )
        saved = dropless.step_s - played.step_s
    notes = _notes(parts, numbers)
    if collided and collided[0] > 1.01:
        notes += (f"routes pile up: the busiest {collided[1]} takes {collided[0]:.2f} times what an even spread would leave it",)
    summary = {**combined([{**_settings(parts), **numbers, "seconds_saved_by_dropping": saved}]), **_keys(run)}
    tables["summary"] = summary_table({"run_id": identity.run_id, **summary})
    if identify(run).run_id != identity.run_id:
        raise InputError(f"trace={run.config['trace']['name']}: its files were changed during the run; run it again")
    provenance = {**_provenance(run, identity, notes), "wall_s": time.perf_counter() - began}
    return Result(run=run, run_id=identity.run_id, summary=summary, tables=tables, notes=notes, provenance=provenance)


def _assemble(run: Run) -> _Parts:
    config, model = run.config, run.model
    cluster = _cluster(run.topology, json.dumps(config["topology"]))
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
    workload = _workload(run, n, router.extra)
    if workload.count is not None:
        limit = capacities.rule_from(config["capacity"])
        _check_counts(router, limit, config["exchange"]["name"], placement, model.n_experts, run.causes)
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
    )


@lru_cache(maxsize=4)
def _cluster(name: str, fields: str) -> Cluster:
    """The machine that this JSON describes; the jobs of a sweep share it."""
    return build_cluster(name, json.loads(fields))


@lru_cache(maxsize=2)
def _trace(path: Path, digest: str | None) -> Trace:
    """The trace at `path`, read once for as long as it holds the same."""
    return read_trace(path)


def _check_counts(
    router: Router, rule: capacities.Rule, exchange: str, placement: Placement, n_experts: int, causes: bool
) -> None:  # fmt: skip
    """InputError where something asks for single tokens, which counts do not have."""
    need = "single tokens, and trace.counts=true has only how many of a GPU choose each expert"
    if causes:
        raise InputError(f"causes=true: needs {need}; use trace.counts=false")
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


def _workload(run: Run, n_gpus: int, extra: int) -> Workload:
    """The tokens and what is recorded or drawn of them. `extra` columns of scores."""
    name, options = run.options("trace")
    if name in ("tiny", "file"):
        path = trace_path(run.config["trace"])
        assert path is not None
        label = "trace=tiny" if name == "tiny" else f"trace.path={path}"
        recorded = _trace(path, trace_digest(run.config["trace"]))
        return source.from_trace(recorded, run.model, n_gpus, run.tokens_per_gpu, name=label)
    if name == "sampled":
        sampled: Workload = bind("trace", name, source.from_sampler, options)(
            run.model, n_gpus, run.tokens_per_gpu, run.seed, extra
        )
        return sampled
    if name == "balanced":
        balanced: Workload = bind("trace", name, source.from_balanced, options)(run.model, n_gpus, run.tokens_per_gpu)
        return balanced
    known = ("tiny", "file", "sampled", "balanced")
    raise InputError(f"trace.name={name}: there is no such trace{did_you_mean(str(name), known)} (known: {', '.join(known)})")


def _play(parts: _Parts, rule: capacities.Rule, progress: Progress) -> tuple[Played, list[LayerCounts | None]]:
    """One forward pass under a capacity rule, and what the router did in each layer."""
    model = parts.run.model
    counts: list[LayerCounts | None] = [None] * model.n_layers
    period = None if rule.limits else parts.workload.period         # what is dropped may be drawn for each layer
    made: dict[int, tuple[LayerWork, LayerCounts | None]] = {}      # layers of a trace that repeats, once each

    def work_of(layer: int) -> LayerWork:
        recorded = (layer - model.n_dense_layers) % period if period and layer >= model.n_dense_layers else None
        if recorded in made:
            same, counts[layer] = made[recorded]
            return replace(same, attention_s=_attention_s(parts, layer))
        work, counts[layer] = _layer(parts, layer, rule)
        if recorded is not None and model.n_moe_layers > (period or 0):
            made[recorded] = work, counts[layer]
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
        lambda layer: progress((layer + 1) / model.n_layers, f"layer {layer + 1} of {model.n_layers}"),
    )  # fmt: skip
    return played, counts


def _causes(parts: _Parts, played: Played, progress: Callable[[int, str], None]) -> dict[str, Floats]:
    """The columns of `CAUSE_COLUMNS`: the run played again without each cause, and without all."""
    seed, n, model, rule = parts.run.seed, parts.cluster.n_gpus, parts.run.model, parts.rule

    def computed(layer: int) -> Ints:
        kept = _routings(parts, rule, model.n_dense_layers + layer, parts.workload.choose(layer))[2]
        return chosen_slots(kept, parts.placement, parts.cluster)

    def without(names: Sequence[str]) -> Floats:
        changed, limit = parts, rule
        if "popularity" in names:
            changed = replace(changed, workload=even_popularity(changed.workload, seed, model.n_experts))
        if "placement" in names:                # what is computed is known by then: nothing more is dropped
            workload, placement = even_placement(parts.workload, computed, seed, parts.placement)
            run = replace(parts.run, model=replace(model, n_experts=placement.n_slots))
            changed, limit = replace(changed, run=run, workload=workload, placement=placement), rule.without_limit()
        if "source" in names:
            changed = replace(changed, workload=even_sources(changed.workload, n))
        if "exchange" in names:
            changed = replace(changed, exchange=least_exchange)
        if "topology" in names:
            changed = replace(changed, cluster=ports_alone(parts.cluster), network=networks.bound)
        return moe_seconds(_play(changed, limit, lambda fraction, what: None)[0])

    actual, times = moe_seconds(played), {}
    even = np.ptp(np.bincount(parts.workload.source, minlength=n)) == 0
    for i, cause in enumerate(CAUSES):
        progress(i, f"the same without {cause}")
        times[cause] = actual if cause == "source" and even else without([cause])
    return causes_of(actual, times, without(CAUSES))


def _attention_s(parts: _Parts, layer: int) -> Floats:
    """Seconds of attention and router on every GPU, [gpus]."""
    model, tokens, n = parts.run.model, parts.workload, parts.cluster.n_gpus
    if parts.run.config["compute"]["name"] != "roofline":
        return np.zeros(n)
    context = compute.context_sums(model, layer, tokens.context, tokens.source, n)
    return compute.attention_seconds(model, parts.cluster.gpu, layer, np.bincount(tokens.source, minlength=n), context)


def _layer(parts: _Parts, layer: int, rule: capacities.Rule) -> tuple[LayerWork, LayerCounts | None]:
    """What the GPUs have to do in one layer, and what its router did."""
    model, cluster, tokens = parts.run.model, parts.cluster, parts.workload
    n, gpu = cluster.n_gpus, cluster.gpu
    per_gpu = np.bincount(tokens.source, minlength=n)
    timed = parts.run.config["compute"]["name"] == "roofline"
    idle = np.zeros(n)
    attention = _attention_s(parts, layer)
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
    """The columns that say in short what was run."""
    run, config = parts.run, parts.run.config
    return {
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


def _keys(run: Run) -> dict[str, Any]:
    """Every key of the config under its dotted name, so that what a sweep varies is a column, however it was asked for."""
    return {key: value for key, value in _leaves(run.config) if "." in key}


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            if key != "sources":
                yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)


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


def _provenance(run: Run, identity: Identity, notes: Sequence[str]) -> dict[str, Any]:
    """What run.json says: everything the run depends on, and how it was asked for."""
    return {
        **identity.depends,
        "config": identity.config,
        "run_id": identity.run_id,
        "study": run.study,
        "overrides": [text for text in run.overrides if text.lstrip("+").partition("=")[0] not in HOW],
        "seed": run.seed,
        "version": clustersim.__version__,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "notes": list(notes),
    }
