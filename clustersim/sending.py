"""What the routed experts of a layer are sent: choices, capacity, placement and exchange put together. Times nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from clustersim.assembling import MEASURED_BATCH, Parts
from clustersim.engine.cutting import cut_of, routing_of
from clustersim.exchange.software import wait_beside
from clustersim.placement.measures import Measured, measure
from clustersim.placement.replicas import chosen_slots
from clustersim.results.counting import LayerCounts, count_layer, counted_layer
from clustersim.types import Choices, Ints, Routing, Transfers
from clustersim.workload import capacity as capacities
from clustersim.workload.capacity_padding import padding_rows, rows_by_source


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


def piece_of(parts: Parts) -> Ints:
    """int [tokens], the piece of the schedule that each token of the step in hand is in."""
    per_sequence = 1 if parts.run.decoding is None else parts.run.decoding.per_sequence
    return cut_of(parts.workload, parts.cluster.n_gpus, parts.schedule.cuts, per_sequence)


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
        cut = piece_of(parts)
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
