"""A run's steps, played: forward passes over its parts, one after the other. Makes no tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim import network as networks
from clustersim.assembling import Parts
from clustersim.config import whole
from clustersim.deciding import Plan
from clustersim.engine.cutting import workload_of
from clustersim.engine.gpu import LayerWork, Played, play, time_alone
from clustersim.engine.overlapped import play_overlapped
from clustersim.engine.own_times import OwnTimes, last_of_sequence
from clustersim.engine.program import Work
from clustersim.engine.timing import Timing
from clustersim.network import packets
from clustersim.placement.measures import Measured
from clustersim.results.counting import LayerCounts
from clustersim.results.placements import (
    Step,
)
from clustersim.results.timeline import Watch
from clustersim.sending import Piece, piece_of, same_layers, traffic
from clustersim.types import Floats, Ints, Transfers
from clustersim.workload import capacity as capacities

Progress = Callable[[float, str], None]
MASKED = ("deepep_low_latency", "deepep_low_latency_rdma")      # exchanges that deliver rows to a buffer per expert


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
    dispatch: Transfers | None          # None: nothing is sent to them
    combine: Transfers | None
    kernels: Mapping[str, Floats] = field(default_factory=dict)     # [gpus] of what sends off and takes in


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
            all_of_them = [transfers for one in work for transfers in (one.dispatch, one.combine) if transfers is not None]
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
        work, sent = experts_of(layer), _sent(parts, own, layer)
        if not work:
            idle = np.zeros_like(attention)
            return LayerWork(attention_s=attention, expert_s=idle, other_s=other, dispatch=None, combine=None, sent=sent)
        whole_batch = work[0]
        return LayerWork(
            attention_s=attention, expert_s=whole_batch.seconds, other_s=other, dispatch=whole_batch.dispatch,
            combine=whole_batch.combine, sent=sent,
        )  # fmt: skip

    played = play(parts.cluster, parts.network, model.n_layers, in_order, passed, background, watch)
    return played, counts, measured


def _sent(parts: Parts, own: OwnTimes, layer: int) -> dict[str, Floats]:
    """What collectives of tensor groups take of a layer, by part; nothing where every GPU is by itself."""
    if parts.run.group.tensor == 1:
        return {}
    before, shared, after = own.sent(layer)
    return {"attention_s": before, "other_s": shared + after}


def _overlapped_work(parts: Parts, experts_of: Callable[[int], tuple[ExpertWork, ...]]) -> Callable[[int, int], Work]:
    """The work of a layer and piece for a schedule that overlaps."""
    schedule = parts.schedule
    batch_of = piece_of(parts) // schedule.chunks
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
        begun: dict[str, Floats] = {}
        if schedule.enters:
            begun = {"enter": own[batch][which].entry(layer)}
            attention = attention - begun["enter"]
        if schedule.shared == "hidden":
            return {**begun, "attention": attention, "shared": shared, "other": after}
        return {**begun, "attention": attention, "other": shared + after}

    def work_of(layer: int, cut: int) -> Work:
        alone, beside = seconds(layer, cut, 0), seconds(layer, cut, 1) if len(timings) > 1 else {}
        routed, batch = of_experts(layer, cut), cut // schedule.chunks
        sent = {} if cut % schedule.chunks else _sent(parts, own[batch][0], layer)
        handed = {name.removesuffix("_s"): took for name, took in sent.items()}
        if routed is None:
            return Work(seconds=alone, transfers={}, beside=beside, sent=handed)
        assert routed.dispatch is not None, "a schedule has exchanges to hide"
        assert routed.combine is not None
        if routed.beside is not None:
            beside["expert"] = routed.beside
        return Work(
            seconds={**alone, **routed.kernels, "expert": routed.seconds},
            transfers={"dispatch": routed.dispatch, "combine": routed.combine},
            beside=beside, sent=handed,
        )  # fmt: skip

    return work_of


def _own_times(parts: Parts, timed: Timing, mine: NDArray[np.bool_] | None = None) -> OwnTimes:
    """Seconds of what GPUs do with their own tokens in the step in hand, or with these of them."""
    cluster, decoding, tokens = parts.cluster, parts.run.decoding, parts.workload
    ends = None
    if mine is not None and decoding is None:
        ends = np.bincount(tokens.source[last_of_sequence(tokens, parts.run.group.tensor) & mine], minlength=cluster.n_gpus)
    nics = [link.id for link in cluster.links if link.kind == "nic_down"]
    return OwnTimes(
        timed, parts.run.model, tokens if mine is None else workload_of(tokens, mine), cluster.n_gpus,
        groups=parts.groups, per_sequence=None if decoding is None else decoding.per_sequence, ends=ends,
        padded=parts.run.uneven.padded,
        inputs=whole("workload.encoder_inputs", parts.run.config["workload"].get("encoder_inputs", 0), least=0),
        inbound=float(cluster.capacity[nics].min()) if nics else np.inf,
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
    n, group = parts.cluster.n_gpus, parts.run.group
    if group.inside:                            # every GPU has its part of each expert, for the tokens of its whole group
        each = piece.rows.reshape(n // group.tensor, group.tensor, -1).sum(axis=1)
        rows: Ints = np.repeat(each, group.tensor, axis=0).ravel()
        seconds = parts.timing.experts(rows, gpu_of, n, tensor=group.tensor)
        return ExpertWork(seconds=seconds, beside=None, dispatch=None, combine=None)
    layout: dict[str, Any] = {}
    if parts.run.decoding is not None and parts.run.config["exchange"]["name"] in MASKED:
        most = np.bincount(parts.workload.source).max(initial=parts.run.tokens_per_gpu)
        buffered: Floats = np.bincount(gpu_of, minlength=n) * np.float64(n * most)
        layout = {"layout": "masked", "buffered": buffered}
    return ExpertWork(
        seconds=parts.timing.experts(piece.rows, gpu_of, n, **layout),
        beside=None if parts.beside is None else parts.beside.experts(piece.rows, gpu_of, n, **layout),
        dispatch=piece.dispatch, combine=piece.combine, kernels=_kernels(parts, piece),
    )  # fmt: skip


def _kernels(parts: Parts, piece: Piece) -> dict[str, Floats]:
    """Seconds of an exchange's own kernels, where the schedule has them as operations."""
    if parts.sm_seconds is None:
        return {}
    send, take = parts.sm_seconds(piece.dispatch, added=False)
    back, home = parts.sm_seconds(piece.combine, added=True)
    return {"send": send, "take": take, "back": back, "home": home}
