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
from clustersim.deciding import Plan
from clustersim.engine import compute, timing
from clustersim.engine.gpu import LayerWork, Played, play, time_alone
from clustersim.exchange.software import beyond, equipped
from clustersim.identity import Identity, identify
from clustersim.inputs import plan_from, setting_of, stream_from
from clustersim.network import packets
from clustersim.pick import bind, find, pick
from clustersim.placement.measures import Measured, measure
from clustersim.placement.past import Room
from clustersim.placement.replicas import chosen_slots
from clustersim.results.counting import LayerCounts, count_layer, counted_layer
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
from clustersim.results.timeline import Recorder, Watch, write_timeline
from clustersim.types import Choices, Floats, InputError, Ints, Placement, Routing, Transfers, Workload
from clustersim.workload import capacity as capacities
from clustersim.workload.capacity_padding import padding_rows, rows_by_source
from clustersim.workload.routing import Router, router_from
from clustersim.workload.streams import Stream

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
    stream: Stream
    plan: Plan
    room: Room
    workload: Workload                      # of the step in hand
    placements: tuple[Placement, ...]       # of its MoE layers
    exchange: Callable[..., Any]
    network: Callable[..., Any]
    timing: timing.Timing
    rule: capacities.Rule
    top_k: int                              # choices of a token, as a capacity formula counts them
    protected: Any                          # bool [tokens] that no capacity drops, or None
    recorder: Recorder | None               # of the first step, when a time line is asked for
    beyond: tuple[str, ...]                 # what is used outside the range that it was calibrated in


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
        results.append(_simulate_once(replace(run, seed=run.seed + i, replicates=1, config=alone), _part(progress, i, n)))
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


def _simulate_once(run: Run, progress: Progress) -> Result:
    """The run with one seed."""
    began = time.perf_counter()
    identity = identify(run)
    parts = _assemble(run)
    others = len(CAUSES) + 1 if run.causes else 0
    rounds = 1 + others + parts.rule.limits + (parts.plan.rebalances > 0)       # of playing everything, at most
    steps = _play_all(parts, parts.plan, parts.rule, _part(progress, 0, rounds))
    live = parts.workload.measure
    measured = dict(live()) if live is not None else {}
    tables, recorder = _tables(parts, steps), parts.recorder
    parts = replace(parts, recorder=None)           # what else is played is for comparison
    causes = _causes(parts, steps, lambda i, what: progress((1 + i) / rounds, what)) if run.causes else {}
    tables["layers"] = tables["layers"].hstack(causes_table(causes, len(steps), run.model))
    held = sum(step.held_s for step in steps) / len(steps)
    numbers = summary_row(
        [step.played for step in steps], tables, [c for step in steps for c in step.counts], parts.workload.source.size,
        parts.cluster.n_gpus, held,
    )
    collided = collision(tables["links"], parts.cluster)
    numbers["ecmp_collision"] = collided[0] if collided else None
    numbers |= measured | {f"{name}_dropless": value for name, value in measured.items()}
    numbers |= {name: float(tables["layers"][name].sum()) / len(steps) if causes else None for name in CAUSE_COLUMNS}
    saved = 0.0
    if parts.rule.limits and any(numbers[name] > 0 for name in ("drop_rate", "rerouted_rate", "padding_computed_rows")):
        again = _part(progress, 1 + others, rounds, "the same without dropping")
        dropless = _play_all(parts, parts.plan, parts.rule.without_limit(), again)
        saved = mean_step_s(dropless) - mean_step_s(steps)
        if live is not None:
            numbers |= {f"{name}_dropless": value for name, value in live().items()}
    numbers |= {"seconds_saved_by_dropping": saved, "moe_layer_s": moe_layer_s(steps)}
    numbers |= placement_summary([m for step in steps for m in step.measured])
    if parts.plan.rebalances:
        kept = _play_all(parts, parts.plan.never_again(), parts.rule, _part(progress, rounds - 1, rounds, "never moved"))
        numbers |= rebalance_summary(
            steps, kept, rebalances=parts.plan.rebalances, buffer_bytes=parts.plan.buffer_bytes,
            expert_bytes=run.model.expert_params * run.model.expert_weight_bytes,
        )
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
        timeline=(recorder, steps[0].played) if recorder else None,
    )  # fmt: skip


def _recorder(run: Run, cluster: Cluster) -> Recorder | None:
    """What keeps exchanges for a time line, when one is asked for."""
    export = run.config["export"]
    first = whole("export.first_layer", export["first_layer"], least=0)
    most = whole("export.events", export["events"], least=1000)
    if export["arrows"] not in ("all", "last"):
        raise InputError(f"export.arrows={export['arrows']}: must be all or last")
    if not isinstance(export["timeline"], bool):
        raise InputError(f"export.timeline={export['timeline']}: must be true or false")
    return Recorder(cluster, first=first, most=most, arrows=export["arrows"]) if export["timeline"] else None


def _assemble(run: Run) -> _Parts:
    config, model = run.config, run.model
    cluster = _cluster(run.topology, json.dumps(config["topology"]))
    exchange_name, exchange_options = run.options("exchange")
    exchange = pick(exchanges, exchange_name, **exchange_options)
    cluster = equipped(exchange_name, exchange_options, cluster)
    if config["network"]["name"] == "packet" and len(cluster.links) > cluster.n_wires:
        raise InputError(f"network=packet: exchange={exchange_name} copies by SMs, no queues; use network=fluid or bound")
    name, options = run.options("compute")
    timed = bind("compute", name, find(timing, name, "compute"), options)(model, cluster.gpu)
    setting, place = setting_of(run, cluster, exchange, timed)
    name, options = run.options("router")
    router = router_from(name, options, run.model, phase=run.config["workload"]["phase"])
    rule = capacities.rule_from(config["capacity"])
    if config["trace"].get("counts"):
        _check_counts(router, rule, exchange_name, setting.room.n_slots, model.n_experts, run.causes)
    stream = stream_from(run, setting, place, router)
    plan, stream = plan_from(run, setting, place, stream)
    network_name, network_options = run.options("network")
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
        stream=stream,
        plan=plan,
        room=setting.room,
        workload=stream.steps[0],
        placements=plan.placements[0],
        exchange=exchange,
        beyond=beyond(
            exchange_name, exchange_options, cluster, tokens_per_gpu=stream.steps[0].source.size / cluster.n_gpus
        ),
        network=pick(networks, network_name, **network_options),
        rule=rule,
        top_k=router.options.get("k") or run.model.top_k,
        protected=capacities.protected_tokens(capacities.stream(run.seed), rule, stream.steps[0].context),
        recorder=_recorder(run, cluster),
        timing=timed,
    )


@lru_cache(maxsize=4)
def _cluster(name: str, fields: str) -> Cluster:
    """The machine that this JSON describes; the jobs of a sweep share it."""
    return build_cluster(name, json.loads(fields))


def _check_counts(
    router: Router, rule: capacities.Rule, exchange: str, n_slots: int, n_experts: int, causes: bool
) -> None:
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
    if n_slots > n_experts:
        raise InputError(
            f"placement.slots={n_slots}: choosing among replicas of {n_experts} experts needs {need}; "
            f"use placement.slots={n_experts} or trace.counts=false"
        )


def _play_all(parts: _Parts, plan: Plan, rule: capacities.Rule, progress: Progress) -> list[Step]:
    """All steps, one after the other, each under its placements and after what has to move before it, or beside it."""
    n = len(parts.stream.steps)
    steps: list[Step] = []
    overlapped = parts.run.config["decide"].get("migration") == "overlapped"
    for i, (tokens, placed, moves) in enumerate(zip(parts.stream.steps, plan.placements, plan.moves, strict=True)):
        protected = capacities.protected_tokens(capacities.stream(parts.run.seed), rule, tokens.context)
        now = replace(parts, workload=tokens, placements=placed, protected=protected)
        watch = Watch(parts.cluster.n_gpus, parts.recorder if i == 0 else None)
        played, counts, measured = _play(now, rule, _part(progress, i, n), watch, moves if overlapped else None)
        if overlapped:
            held = max(0.0, played.background_s - played.step_s)        # the next step waits for what has not come yet
        else:
            held = 0.0 if moves is None else time_alone(parts.cluster, parts.network, moves)
        brought = [replace(m, moved_slots=int(k)) for m, k in zip(measured, plan.moved[i], strict=False)]
        steps.append(Step(played=played, counts=counts, measured=brought, pairs=watch.pairs, held_s=held))
    return steps


def _part(progress: Progress, i: int, n: int, what: str | None = None) -> Progress:
    """Progress of the i-th of n equal parts."""
    return lambda fraction, said: progress((i + fraction) / n, what or said)


def _tables(parts: _Parts, steps: Sequence[Step]) -> dict[str, pl.DataFrame]:
    """The tables of all steps, one step under the other."""
    made: dict[str, list[pl.DataFrame]] = {name: [] for name in ("layers", "gpus", "links", "experts", "pairs", "placements")}
    for i, step in enumerate(steps):
        gpus = gpus_table(step.played, step.counts, i)
        made["layers"].append(layers_table(step.played, gpus, parts.cluster, step.counts))
        made["gpus"].append(gpus)
        made["links"].append(links_table(step.played, parts.cluster, i))
        made["experts"].append(experts_table(step.counts, i))
        made["pairs"].append(step.pairs.table(i))
        made["placements"].append(placements_table(step.measured, parts.run.model.n_dense_layers, i))
    return {name: pl.concat(each) for name, each in made.items()}


def _play(
    parts: _Parts, rule: capacities.Rule, progress: Progress, watch: Watch, background: Transfers | None = None
) -> tuple[Played, list[LayerCounts | None], list[Measured]]:
    """One forward pass under a capacity rule, what the router did in each layer, and how the placement served."""
    model = parts.run.model
    counts: list[LayerCounts | None] = [None] * model.n_layers
    measured: list[Measured] = []
    same = _same_layers(parts, rule)
    made: dict[int, tuple[LayerWork, LayerCounts | None, Measured | None]] = {}      # of the layers that stand for others

    def work_of(layer: int) -> LayerWork:
        if same[layer] in made:
            work, counts[layer], served = made[same[layer]]
            work = replace(work, attention_s=_attention_s(parts, layer))
        else:
            work, counts[layer], served = _layer(parts, layer, rule)
            if same[layer] != layer or same.count(layer) > 1:
                made[layer] = work, counts[layer], served
        measured.extend([] if served is None else [served])
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
        lambda layer: progress((layer + 1) / model.n_layers, f"layer {layer + 1} of {model.n_layers}"), background, watch,
    )  # fmt: skip
    return played, counts, measured


def _same_layers(parts: _Parts, rule: capacities.Rule) -> list[int]:
    """For every layer the first that has the same choices under the same placement: a trace with few layers repeats."""
    model, period = parts.run.model, parts.workload.period
    same = list(range(model.n_layers))
    if period is None or rule.limits:           # what is dropped may be drawn for each layer
        return same
    for moe_layer in range(period, model.n_moe_layers):
        one, other = parts.placements[moe_layer % period], parts.placements[moe_layer]
        if np.array_equal(one.gpu_of, other.gpu_of) and np.array_equal(one.expert_of, other.expert_of):
            same[model.n_dense_layers + moe_layer] = model.n_dense_layers + moe_layer % period
    return same


def _attention_s(parts: _Parts, layer: int) -> Floats:
    """Seconds of attention and router on every GPU, [gpus]."""
    tokens, n = parts.workload, parts.cluster.n_gpus
    context = compute.context_sums(parts.run.model, layer, tokens.context, tokens.source, n)
    return parts.timing.attention(layer, np.bincount(tokens.source, minlength=n), context)


def _causes(parts: _Parts, steps: Sequence[Step], progress: Callable[[int, str], None]) -> dict[str, Floats]:
    """The columns of `CAUSE_COLUMNS`: the run played again without each cause, and without all."""
    seed, n, model, rule = parts.run.seed, parts.cluster.n_gpus, parts.run.model, parts.rule
    tokens, plan = parts.stream.steps, parts.plan

    def computed(step: int, layer: int) -> Ints:
        placed = plan.placements[step]
        protected = capacities.protected_tokens(capacities.stream(seed), rule, tokens[step].context)
        now = replace(parts, workload=tokens[step], placements=placed, protected=protected)
        kept = _routings(now, rule, model.n_dense_layers + layer, tokens[step].choose(layer))[2]
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
        return moe_seconds([step.played for step in _play_all(
            changed, replace(plan, placements=placements), limit, lambda fraction, what: None
        )])  # fmt: skip

    actual, times = moe_seconds([step.played for step in steps]), {}
    even = all(np.ptp(np.bincount(one.source, minlength=n)) == 0 for one in tokens)
    for i, cause in enumerate(CAUSES):
        progress(i, f"the same without {cause}")
        times[cause] = actual if cause == "source" and even else without([cause])
    return causes_of(actual, times, without(CAUSES))


def _layer(
    parts: _Parts, layer: int, rule: capacities.Rule
) -> tuple[LayerWork, LayerCounts | None, Measured | None]:
    """What the GPUs have to do in one layer, what its router did, and how the placement served it (None: no token is known)."""
    model, cluster, tokens = parts.run.model, parts.cluster, parts.workload
    n, idle = cluster.n_gpus, np.zeros(cluster.n_gpus)
    per_gpu = np.bincount(tokens.source, minlength=n)
    attention = _attention_s(parts, layer)
    moe_layer = layer - model.n_dense_layers
    if moe_layer < 0:
        dense = parts.timing.dense(per_gpu)
        return LayerWork(attention_s=attention, expert_s=idle, other_s=dense, dispatch=None, combine=None), None, None
    if tokens.count is not None:
        return *_counted_layer(parts, layer, tokens.count(moe_layer), attention, per_gpu), None
    chosen, placement = tokens.choose(moe_layer), parts.placements[moe_layer]
    limited, sent, kept = _routings(parts, rule, layer, chosen)
    if tokens.kept is not None:
        tokens.kept(moe_layer, kept.assigned)
    slots = chosen_slots(kept, placement, cluster)
    rows = rows_by_source(slots, kept.source, n, placement.n_slots)
    travelling, computed = padding_rows(rule, limited, rows, per_gpu, placement.expert_of)
    dispatch, combine = (
        parts.exchange(phase, replace(routing, padding=travelling), placement, cluster, model)
        for phase, routing in (("dispatch", sent), ("combine", kept))
    )
    in_slot = rows.sum(axis=0)
    work = LayerWork(
        attention_s=attention,
        expert_s=parts.timing.experts(in_slot + computed, placement.gpu_of, n),
        other_s=parts.timing.shared(per_gpu),
        dispatch=dispatch,
        combine=combine,
    )
    served = measure(slots, kept.source, placement, parts.room.slots_of, cluster.node_of)
    counts = count_layer(
        chosen, kept, placement, in_slot, travelling, computed, n_experts=model.n_experts, n_gpus=n,
        row_bytes=model.dispatch_token_bytes + model.combine_token_bytes,
        renormalised=rule.renormalise and chosen.ids.shape[1] > 1,
    )  # fmt: skip
    return work, counts, served


def _counted_layer(
    parts: _Parts, layer: int, counts: Ints, attention: Floats, per_gpu: Ints
) -> tuple[LayerWork, LayerCounts]:
    """As `_layer`, where only counts [gpus, experts] are known: their rows travel as padding does, without any token."""
    model, cluster, placement = parts.run.model, parts.cluster, parts.placements[layer - parts.run.model.n_dense_layers]
    n = cluster.n_gpus
    rows = counts[:, placement.expert_of]                   # [gpus, slots]: every expert has one
    nobody = np.zeros((0, model.top_k), np.int64)
    routing = Routing(
        asked=nobody, assigned=nobody, weights=None, source=nobody[:, 0], index=nobody[:, 0], capacity=None, padding=rows
    )
    dispatch, combine = (parts.exchange(phase, routing, placement, cluster, model) for phase in ("dispatch", "combine"))
    in_slot = rows.sum(axis=0)
    work = LayerWork(
        attention_s=attention,
        expert_s=parts.timing.experts(in_slot, placement.gpu_of, n),
        other_s=parts.timing.shared(per_gpu),
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
        placement = parts.placements[layer - model.n_dense_layers]
        slots = chosen_slots(asked, placement, parts.cluster)
        computing = np.where(slots < 0, -1, placement.gpu_of[slots])
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
        "steps": len(parts.stream.steps),
        "placement": config["placement"]["name"],
        "slots": parts.room.n_slots,
        "replica": config["placement"]["replica"],
        "exchange": config["exchange"]["name"],
        "network": config["network"]["name"],
        "compute": config["compute"]["name"],
        "seed": run.seed,
    }


def _keys(run: Run) -> dict[str, Any]:
    """Every key of the config under its dotted name, so that what a sweep varies is a column, however it was asked for."""
    return {key: value for key, value in _leaves(run.config) if "." in key and not key.startswith("export.")}


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            if key != "sources":
                yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)


def _notes(parts: _Parts, numbers: Mapping[str, Any]) -> tuple[str, ...]:
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


def _provenance(run: Run, identity: Identity, notes: Sequence[str]) -> dict[str, Any]:
    """What run.json says: everything the run depends on, and how it was asked for."""
    return {
        **identity.depends,
        "config": identity.config,
        "run_id": identity.run_id,
        "study": run.study,
        "overrides": [text for text in run.overrides if text.lstrip("+").partition("=")[0].partition(".")[0] not in HOW],
        "seed": run.seed,
        "version": clustersim.__version__,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "notes": list(notes),
    }
