"""A run's steps, played: its parts made from the config, and forward passes over them. Makes no tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim import exchange as exchanges
from clustersim import network as networks
from clustersim.cluster import Cluster, build_cluster
from clustersim.config import Run, whole
from clustersim.deciding import Plan
from clustersim.engine import schedules, timing
from clustersim.engine.cutting import cut_of, routing_of, workload_of
from clustersim.engine.gpu import LayerWork, Played, play, time_alone
from clustersim.engine.memory import Memory
from clustersim.engine.overlapped import play_overlapped
from clustersim.engine.own_times import OwnTimes, last_of_sequence
from clustersim.engine.program import Work
from clustersim.engine.schedules import Schedule
from clustersim.engine.timing import Timing
from clustersim.exchange.software import beyond, equipped, sms_held, wait_beside
from clustersim.fitting import check_memory, memory_of
from clustersim.inputs import plan_from, setting_of, stream_from
from clustersim.network import packets
from clustersim.pick import bind, find, pick
from clustersim.placement.measures import Measured, measure
from clustersim.placement.past import Room
from clustersim.placement.replicas import chosen_slots
from clustersim.results.counting import LayerCounts, count_layer, counted_layer
from clustersim.results.placements import (
    Step,
)
from clustersim.results.timeline import Recorder, Watch
from clustersim.types import Choices, Floats, InputError, Ints, Placement, Routing, Transfers, Workload
from clustersim.units import format_seconds
from clustersim.workload import capacity as capacities
from clustersim.workload.capacity_padding import padding_rows, rows_by_source
from clustersim.workload.routing import Router, router_from
from clustersim.workload.streams import Stream

Progress = Callable[[float, str], None]
MEASURED_BATCH = 4096           # tokens of a micro-batch beside which waiting was measured (deepseek-ai/profile-data, train.json)
MASKED = ("deepep_low_latency", "deepep_low_latency_rdma")      # exchanges that deliver rows to a buffer per expert


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Parts:
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
    timing: Timing
    beside: Timing | None            # the same while an exchange holds SMs; None: it holds none, or nothing overlaps
    schedule: Schedule
    rule: capacities.Rule
    top_k: int                              # choices of a token, as a capacity formula counts them
    protected: Any                          # bool [tokens] that no capacity drops, or None
    memory: Memory                          # what the GPUs hold
    recorder: Recorder | None               # of the first step, when a time line is asked for
    beyond: tuple[str, ...]                 # what is used outside the range that it was calibrated in


def assemble(run: Run) -> Parts:
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
    schedule = _schedule(run)
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
    memory = memory_of(run, cluster, stream.steps[-1], setting.room.slots_of)
    check_memory(run, cluster, memory)
    return Parts(
        run=run,
        cluster=cluster,
        stream=stream,
        plan=plan,
        room=setting.room,
        memory=memory,
        workload=stream.steps[0],
        placements=plan.placements[0],
        exchange=exchange,
        beyond=_beyond(run, cluster, schedule),
        network=pick(networks, network_name, **network_options),
        rule=rule,
        top_k=router.options.get("k") or run.model.top_k,
        protected=capacities.protected_tokens(capacities.stream(run.seed), rule, stream.steps[0].context),
        recorder=_recorder(run, cluster),
        timing=timed,
        beside=None if schedule.plain else _beside(run, cluster),
        schedule=schedule,
    )


def _beyond(run: Run, cluster: Cluster, schedule: Schedule) -> tuple[str, ...]:
    """What to say of an exchange beyond the range of its constants, and of what stands for a measurement that is not there."""
    if not run.model.n_experts:
        return ()
    name, options = run.options("exchange")
    said = beyond(name, options, cluster, tokens_per_gpu=run.tokens_per_gpu)
    if schedule.batches > 1 and (late := wait_beside(name, options)):
        said += (
            f"exchange={name} beside another micro-batch begins up to {format_seconds(late)} late: measured in training, with "
            f"{MEASURED_BATCH:,} tokens a micro-batch, and taken as less in proportion below that",
        )
    return said


def _schedule(run: Run) -> Schedule:
    """The order of a pass, with what it cannot do beside refused."""
    name, options = run.options("schedule")
    order = bind("schedule", name, find(schedules, name, "schedule"), options)
    made: Schedule = order([layer in run.model.moe_layers for layer in range(run.model.n_layers)])
    if made.plain:
        return made
    if name != "in_order" and not run.model.n_experts:
        raise InputError(f"schedule={name}: model={run.model.name} exchanges nothing; use schedule=in_order")
    if made.cuts > run.tokens_per_gpu // (run.decoding.per_sequence if run.decoding else 1):
        asked = f"workload.tokens_per_gpu={run.config['workload']['tokens_per_gpu']}"
        raise InputError(f"schedule={name}: {asked} is below the {made.cuts} pieces that it is cut in; least: {made.cuts}")
    refused = {
        "causes=true": run.causes, "decide.migration=overlapped": run.config["decide"].get("migration") == "overlapped",
        "trace.counts=true": made.cuts > 1 and bool(run.config["trace"].get("counts")),
        "capacity.pad=true": made.cuts > 1 and bool(run.config["capacity"].get("pad")),
        f"capacity.pad_multiple={run.config['capacity'].get('pad_multiple')}":
            made.cuts > 1 and (run.config["capacity"].get("pad_multiple") or 1) > 1,
        "router=soft_moe": made.cuts > 1 and run.config["router"]["name"] == "soft_moe",
    }  # fmt: skip
    for key, given in refused.items():
        if given:
            raise InputError(f"{key}: is built for schedule=in_order schedule.shared=after, not for schedule={name}")
    return made


def _beside(run: Run, cluster: Cluster) -> Timing | None:
    """How long things compute while an exchange holds SMs; None where it holds none, or computing takes no time."""
    exchange, options = run.options("exchange")
    held = sms_held(exchange, options, cluster)
    name, options = run.options("compute")
    if not held or name == "none" or ":" in name:
        return None
    options, gpu = timing.fewer_sms(name, options, cluster.gpu, held)
    made: Timing = bind("compute", name, find(timing, name, "compute"), options)(run.model, gpu)
    return made


def _recorder(run: Run, cluster: Cluster) -> Recorder | None:
    """What keeps exchanges for a time line, when one is asked for."""
    first, most, arrows = timeline_window(run)
    return Recorder(cluster, first=first, most=most, arrows=arrows) if run.config["export"]["timeline"] else None


def timeline_window(run: Run) -> tuple[int, int, str]:
    """What a time line shows: the layers from the first on, how many events, which arrows.

    Raises:
        InputError: a key of `export` has another value than it may.
    """
    export = run.config["export"]
    first = whole("export.first_layer", export["first_layer"], least=0)
    most = whole("export.events", export["events"], least=1000)
    if export["arrows"] not in ("all", "last"):
        raise InputError(f"export.arrows={export['arrows']}: must be all or last")
    if not isinstance(export["timeline"], bool):
        raise InputError(f"export.timeline={export['timeline']}: must be true or false")
    return first, most, export["arrows"]


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


def play_all(parts: Parts, plan: Plan, rule: capacities.Rule, progress: Progress) -> list[Step]:
    """All steps, one after the other, each under its placements and after what has to move before it, or beside it."""
    n = len(parts.stream.steps)
    steps: list[Step] = []
    overlapped = parts.run.config["decide"].get("migration") == "overlapped"
    for i, (tokens, placed, moves) in enumerate(zip(parts.stream.steps, plan.placements, plan.moves, strict=True)):
        protected = capacities.protected_tokens(capacities.stream(parts.run.seed), rule, tokens.context)
        now = replace(parts, workload=tokens, placements=placed, protected=protected)
        watch = Watch(parts.cluster.n_gpus, parts.recorder if i == 0 else None)
        played, counts, measured = _forward_pass(now, rule, part_of(progress, i, n), watch, moves if overlapped else None)
        if overlapped:
            held = max(0.0, played.background_s - played.step_s)        # the next step waits for what has not come yet
        else:
            held = 0.0 if moves is None else time_alone(parts.cluster, parts.network, moves)
        brought = [replace(m, moved_slots=int(k)) for m, k in zip(measured, plan.moved[i], strict=False)]
        steps.append(Step(played=played, counts=counts, measured=brought, pairs=watch.pairs, held_s=held))
    return steps


def part_of(progress: Progress, i: int, n: int, what: str | None = None) -> Progress:
    """Progress of the i-th of n equal parts."""
    return lambda fraction, said: progress((i + fraction) / n, what or said)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ExpertWork:
    """What the routed experts of a layer, or of a piece of its tokens, have to do."""

    seconds: Floats                     # [gpus]
    beside: Floats | None               # [gpus] while an exchange holds SMs; None: no difference
    dispatch: Transfers
    combine: Transfers


def _forward_pass(
    parts: Parts, rule: capacities.Rule, progress: Progress, watch: Watch, background: Transfers | None = None
) -> tuple[Played, list[LayerCounts | None], list[Measured]]:
    """One forward pass under a capacity rule, what the router did in each layer, and how the placement served."""
    model = parts.run.model
    counts: list[LayerCounts | None] = [None] * model.n_layers
    measured: list[Measured] = []
    same = same_layers(parts, rule)
    made: dict[int, tuple[tuple[ExpertWork, ...], LayerCounts | None, Measured | None]] = {}    # layers that stand for others

    def experts_of(layer: int) -> tuple[ExpertWork, ...]:
        if same[layer] in made:
            work, counts[layer], served = made[same[layer]]
        else:
            work, counts[layer], served = _layer(parts, layer, rule)
            if same[layer] != layer or same.count(layer) > 1:
                made[layer] = work, counts[layer], served
        measured.extend([] if served is None else [served])
        if work and layer == model.moe_layers[0] and parts.run.config["network"]["name"] == "packet":
            all_of_them = [transfers for one in work for transfers in (one.dispatch, one.combine)]
            packets.need_few(parts.cluster, all_of_them, model.n_moe_layers, parts.run.config["network"]["chunk"])
        if layer == 0:                          # what can be wrong has been found by now
            networks.when_compiling(
                lambda: progress(0.0, "compiling the network solver, once for this installation"),
                parts.run.config["network"]["name"],
            )
        return work

    def passed(layer: int) -> None:
        progress((layer + 1) / model.n_layers, f"layer {layer + 1} of {model.n_layers}")

    if not parts.schedule.plain:
        work_of = _overlapped_work(parts, experts_of)
        played = play_overlapped(parts.cluster, parts.network, model.n_layers, parts.schedule, work_of, passed, watch)
        return played, counts, measured
    own = _own_times(parts, parts.timing)

    def in_order(layer: int) -> LayerWork:
        attention, other = own.layer(layer)
        work = experts_of(layer)
        if not work:
            idle = np.zeros_like(attention)
            return LayerWork(attention_s=attention, expert_s=idle, other_s=other, dispatch=None, combine=None)
        whole_batch = work[0]
        return LayerWork(
            attention_s=attention, expert_s=whole_batch.seconds, other_s=other, dispatch=whole_batch.dispatch,
            combine=whole_batch.combine,
        )  # fmt: skip

    played = play(parts.cluster, parts.network, model.n_layers, in_order, passed, background, watch)
    return played, counts, measured


def _overlapped_work(parts: Parts, experts_of: Callable[[int], tuple[ExpertWork, ...]]) -> Callable[[int, int], Work]:
    """The work of a layer and piece for a schedule that overlaps."""
    schedule = parts.schedule
    batch_of = _cut_of(parts) // schedule.chunks
    timings = [parts.timing] if parts.beside is None else [parts.timing, parts.beside]
    own = [[_own_times(parts, timed, batch_of == batch) for timed in timings] for batch in range(schedule.batches)]
    experts: dict[int, list[ExpertWork | None]] = {}        # of layers in progress; None: handed out

    def of_experts(layer: int, cut: int) -> ExpertWork | None:
        if layer not in parts.run.model.moe_layers:
            return None
        if layer not in experts:
            experts[layer] = list(experts_of(layer))
        work, experts[layer][cut] = experts[layer][cut], None
        if not any(experts[layer]):
            del experts[layer]
        return work

    def seconds(layer: int, cut: int, which: int) -> dict[str, Floats]:
        batch, chunk = divmod(cut, schedule.chunks)
        if chunk:
            return {}
        attention, shared, after = own[batch][which].pieces(layer)
        if schedule.shared == "hidden":
            return {"attention": attention, "shared": shared, "other": after}
        return {"attention": attention, "other": shared + after}

    def work_of(layer: int, cut: int) -> Work:
        alone, beside = seconds(layer, cut, 0), seconds(layer, cut, 1) if len(timings) > 1 else {}
        routed = of_experts(layer, cut)
        if routed is None:
            return Work(seconds=alone, transfers={}, beside=beside)
        if routed.beside is not None:
            beside["expert"] = routed.beside
        return Work(
            seconds={**alone, "expert": routed.seconds}, transfers={"dispatch": routed.dispatch, "combine": routed.combine},
            beside=beside,
        )  # fmt: skip

    return work_of


def _cut_of(parts: Parts) -> Ints:
    """int [tokens], the piece of the schedule that each token of the step in hand is in."""
    per_sequence = 1 if parts.run.decoding is None else parts.run.decoding.per_sequence
    return cut_of(parts.workload, parts.cluster.n_gpus, parts.schedule.cuts, per_sequence)


def _own_times(parts: Parts, timed: Timing, mine: NDArray[np.bool_] | None = None) -> OwnTimes:
    """Seconds of what GPUs do with their own tokens in the step in hand, or with these of them."""
    cluster, decoding, tokens = parts.cluster, parts.run.decoding, parts.workload
    ends = None
    if mine is not None and decoding is None:
        ends = np.bincount(tokens.source[last_of_sequence(tokens) & mine], minlength=cluster.n_gpus)
    nics = [link.id for link in cluster.links if link.kind == "nic_down"]
    return OwnTimes(
        timed, parts.run.model, tokens if mine is None else workload_of(tokens, mine), cluster.n_gpus,
        per_sequence=None if decoding is None else decoding.per_sequence, ends=ends,
        inputs=whole("workload.encoder_inputs", parts.run.config["workload"].get("encoder_inputs", 0), least=0),
        inbound=float(cluster.capacity[nics].min()) if nics else np.inf,
    )  # fmt: skip


def same_layers(parts: Parts, rule: capacities.Rule) -> list[int]:
    """For every layer the first that has the same choices under the same placement: a trace with few layers repeats."""
    model, period = parts.run.model, parts.workload.period
    same = list(range(model.n_layers))
    if period is None or rule.limits:           # what is dropped may be drawn for each layer
        return same
    for number, layer in enumerate(model.moe_layers[period:], period):
        one, other = parts.placements[number % period], parts.placements[number]
        if np.array_equal(one.gpu_of, other.gpu_of) and np.array_equal(one.expert_of, other.expert_of):
            same[layer] = model.moe_layers[number % period]
    return same


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Piece:
    """What the routed experts of a layer are sent of one piece of its tokens."""

    dispatch: Transfers
    combine: Transfers
    rows: Ints                      # [slots] tokens each expert works on, padding included


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Traffic:
    """What the routed experts of one layer are sent, and what its router did."""

    pieces: tuple[Piece, ...]       # of the schedule; one unless it cuts the batch
    gpu_of: Ints                    # [slots]
    counts: LayerCounts
    served: Measured | None         # how the placement served it; None: no token is known

    @property
    def dispatch(self) -> Transfers:
        return self.pieces[0].dispatch

    @property
    def combine(self) -> Transfers:
        return self.pieces[0].combine

    @property
    def rows(self) -> Ints:
        return self.pieces[0].rows


def traffic(parts: Parts, layer: int, rule: capacities.Rule) -> Traffic:
    """The exchanges of a layer with routed experts under a capacity rule."""
    model, cluster, tokens = parts.run.model, parts.cluster, parts.workload
    n, moe_layer = cluster.n_gpus, model.moe_layers.index(layer)
    if tokens.count is not None:
        return _counted_traffic(parts, moe_layer, tokens.count(moe_layer))
    per_gpu = np.bincount(tokens.source, minlength=n)
    chosen, placement = tokens.choose(moe_layer), parts.placements[moe_layer]
    limited, sent, kept = routings(parts, rule, moe_layer, chosen)
    if tokens.kept is not None:
        tokens.kept(moe_layer, kept.assigned)
    cuts = [(sent, kept)]
    if parts.schedule.cuts > 1:
        cut = _cut_of(parts)
        cuts = [(routing_of(sent, cut == i), routing_of(kept, cut == i)) for i in range(parts.schedule.cuts)]
    pieces, in_slot, slots = [], np.zeros(placement.n_slots, np.int64), []
    travelling: Ints | None = None
    computed = np.zeros(placement.n_slots, np.int64)
    for sent_now, kept_now in cuts:
        slots.append(chosen_slots(kept_now, placement, cluster))
        rows = rows_by_source(slots[-1], kept_now.source, n, placement.n_slots)
        if len(cuts) == 1:
            travelling, computed = padding_rows(rule, limited, rows, per_gpu, placement.expert_of)
        dispatch, combine = (
            parts.exchange(phase, replace(routing, padding=travelling), placement, cluster, model)
            for phase, routing in (("dispatch", sent_now), ("combine", kept_now))
        )
        if late := _late(parts):
            dispatch, combine = (replace(one, release=one.release + late) for one in (dispatch, combine))
        pieces.append(Piece(dispatch=dispatch, combine=combine, rows=rows.sum(axis=0) + computed))
        in_slot += rows.sum(axis=0)
    counts = count_layer(
        chosen, kept, placement, in_slot, travelling, computed, n_experts=model.n_experts, n_gpus=n,
        row_bytes=model.dispatch_token_bytes + model.combine_token_bytes,
        renormalised=rule.renormalise and chosen.ids.shape[1] > 1,
    )  # fmt: skip
    where = np.concatenate([one.source for _, one in cuts])
    return Traffic(
        pieces=tuple(pieces), gpu_of=placement.gpu_of, counts=counts,
        served=measure(np.concatenate(slots), where, placement, parts.room.slots_of, cluster.node_of),
    )  # fmt: skip


def _late(parts: Parts) -> float:
    """Seconds by which an exchange begins late beside another micro-batch: as measured, less where the micro-batch is smaller."""
    if parts.schedule.batches == 1:
        return 0.0
    tokens = parts.run.tokens_per_gpu / parts.schedule.batches
    return wait_beside(*parts.run.options("exchange")) * min(1.0, tokens / MEASURED_BATCH)


def _counted_traffic(parts: Parts, moe_layer: int, counts: Ints) -> Traffic:
    """As `traffic`, where only counts [gpus, experts] are known: their rows travel as padding does, without any token."""
    model, cluster, placement = parts.run.model, parts.cluster, parts.placements[moe_layer]
    rows = counts[:, placement.expert_of]                   # [gpus, slots]: every expert has one
    nobody = np.zeros((0, model.top_k), np.int64)
    routing = Routing(
        asked=nobody, assigned=nobody, weights=None, source=nobody[:, 0], index=nobody[:, 0], capacity=None, padding=rows
    )
    dispatch, combine = (parts.exchange(phase, routing, placement, cluster, model) for phase in ("dispatch", "combine"))
    in_slot = rows.sum(axis=0)
    return Traffic(
        pieces=(Piece(dispatch=dispatch, combine=combine, rows=in_slot),), gpu_of=placement.gpu_of, served=None,
        counts=counted_layer(in_slot, placement, n_experts=model.n_experts, n_gpus=cluster.n_gpus),
    )  # fmt: skip


def _layer(
    parts: Parts, layer: int, rule: capacities.Rule
) -> tuple[tuple[ExpertWork, ...], LayerCounts | None, Measured | None]:
    """What the routed experts of one layer have to do, piece by piece of the schedule, what its router did, and how the placement
    served it (None: no token is known); nothing in a layer without any."""
    if layer not in parts.run.model.moe_layers:
        return (), None, None
    sent = traffic(parts, layer, rule)
    return tuple(_expert_work(parts, piece, sent.gpu_of) for piece in sent.pieces), sent.counts, sent.served


def _expert_work(parts: Parts, piece: Piece, gpu_of: Ints) -> ExpertWork:
    """The routed experts over the rows of a piece.

    What low latency exchanges leave in a buffer per expert when decoding stays there: room for every GPU's tokens.
    """
    n = parts.cluster.n_gpus
    layout: dict[str, Any] = {}
    if parts.run.decoding is not None and parts.run.config["exchange"]["name"] in MASKED:
        buffered: Floats = np.bincount(gpu_of, minlength=n) * np.float64(n * parts.run.tokens_per_gpu)
        layout = {"layout": "masked", "buffered": buffered}
    return ExpertWork(
        seconds=parts.timing.experts(piece.rows, gpu_of, n, **layout),
        beside=None if parts.beside is None else parts.beside.experts(piece.rows, gpu_of, n, **layout),
        dispatch=piece.dispatch, combine=piece.combine,
    )  # fmt: skip


def routings(parts: Parts, rule: capacities.Rule, moe_layer: int, chosen: Choices) -> tuple[capacities.Limited, Routing, Routing]:
    """What the capacity rule makes of a MoE layer's choices: those that are dispatched, those that are computed and come home."""
    tokens, model, n = parts.workload, parts.run.model, parts.cluster.n_gpus
    asked = Routing(
        asked=chosen.ids, assigned=chosen.ids, weights=chosen.weights, source=tokens.source, index=tokens.index, capacity=None
    )
    computing = None
    if rule.per == "gpu" and rule.factor is not None:
        placement = parts.placements[moe_layer]
        slots = chosen_slots(asked, placement, parts.cluster)
        computing = np.where(slots < 0, -1, placement.gpu_of[slots])
    limited = capacities.limit(
        capacities.stream(parts.run.seed, model.moe_layers[moe_layer]), rule, chosen, source=tokens.source,
        index=tokens.index, n_gpus=n, n_experts=model.n_experts, top_k=min(parts.top_k, chosen.ids.shape[1]),
        gpu_of_choice=computing, protected=parts.protected,
    )  # fmt: skip
    weights = None
    if chosen.weights is not None:
        weights = capacities.applied_weights(chosen.weights, chosen.ids, limited.assigned, renormalise=rule.renormalise)
    kept = replace(asked, assigned=limited.assigned, weights=weights, capacity=limited.room)
    return limited, replace(kept, assigned=chosen.ids) if rule.where == "expert" else kept, kept
