"""What the router and the capacity rule did in one MoE layer, counted: both sides of dropping. No clock, no tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Choices, Ints, Placement, Routing


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LayerCounts:
    """One MoE layer. Choices, unless said otherwise: a token has top_k of them."""

    asked: Ints                     # [experts] before the capacity rule
    kept: Ints                      # [experts] that it computes: asked - dropped - rerouted_away + rerouted_here
    dropped: Ints                   # [experts] asked of it and computed nowhere
    rerouted_away: Ints             # [experts] asked of it and computed by another
    rerouted_here: Ints             # [experts] asked of another and computed by it
    replicas: Ints                  # [experts] slots that hold the expert
    gpu_tokens: Ints                # [gpus] that its experts compute, padding apart
    padding_rows: Ints              # [experts] rows of padding that its slots compute
    padding_sent_bytes: float       # of padding between GPUs, dispatch and combine
    partly_dropped: int             # tokens that lost some of their choices
    fully_dropped: int              # tokens that lost all of them
    room: int | None                # choices that the capacity allows in all; None dropless
    gate_mass: float | None         # sum of the gate weights asked; None where they are not known
    gate_mass_dropped: float        # of them, what sat on dropped choices
    gate_mass_lost: float           # of them, what renormalising the kept weights does not make up for


def count_layer(
    chosen: Choices, kept: Routing, placement: Placement, in_slot: Ints, padding_sent: Ints | None, padding_computed: Ints,
    *, n_experts: int, n_gpus: int, row_bytes: float, renormalised: bool,
) -> LayerCounts:  # fmt: skip
    """Count a layer.

    Args:
        kept: its `assigned` is what is computed.
        in_slot: int [slots], choices that each slot computes.
        padding_sent: int [gpus, slots] rows that travel, own GPU included; None: none.
        padding_computed: int [slots].
        row_bytes: of a row there and back.
        renormalised: the kept gate weights of a token sum to what they were to sum to, if it kept any.
    """
    asked, assigned = kept.asked, kept.assigned
    computed = np.bincount(placement.expert_of, in_slot, n_experts).astype(np.int64)
    assert (computed == _by_expert(assigned, n_experts)).all(), "a kept choice has no slot"
    away = np.arange(n_gpus)[:, None] != placement.gpu_of
    sent_bytes = 0.0 if padding_sent is None else float(padding_sent[away].sum() * row_bytes)
    padding_rows = np.bincount(placement.expert_of, padding_computed, n_experts).astype(np.int64)
    room = None if kept.capacity is None else int(kept.capacity.sum())
    if assigned is asked or np.array_equal(assigned, asked):
        weights = chosen.weights if chosen.weights is None or asked.min(initial=0) >= 0 else chosen.weights[asked >= 0]
        return replace(
            counted_layer(in_slot, placement, n_experts=n_experts, n_gpus=n_gpus),
            padding_rows=padding_rows, padding_sent_bytes=sent_bytes, room=room,
            gate_mass=None if weights is None else float(weights.ravel().sum()),
        )  # fmt: skip
    dropped: NDArray[np.bool_] = (asked >= 0) & (assigned < 0)
    moved = (assigned >= 0) & (assigned != asked)
    some, left = dropped.any(axis=1), np.asarray((assigned >= 0).any(axis=1))
    counts = LayerCounts(
        asked=_by_expert(asked, n_experts),
        kept=computed,
        dropped=_by_expert(asked[dropped], n_experts),
        rerouted_away=_by_expert(asked[moved], n_experts),
        rerouted_here=_by_expert(assigned[moved], n_experts),
        replicas=np.bincount(placement.expert_of, minlength=n_experts),
        gpu_tokens=np.bincount(placement.gpu_of, in_slot, n_gpus).astype(np.int64),
        padding_rows=padding_rows,
        padding_sent_bytes=sent_bytes,
        partly_dropped=int((some & left).sum()),
        fully_dropped=int((some & ~left).sum()),
        room=room,
        gate_mass=None if chosen.weights is None else float(chosen.weights[asked >= 0].sum()),
        gate_mass_dropped=0.0 if chosen.weights is None else float(chosen.weights[dropped].sum()),
        gate_mass_lost=0.0 if chosen.weights is None else float(
            chosen.weights[dropped & ~left[:, None] if renormalised else dropped].sum()
        ),
    )  # fmt: skip
    balance = counts.asked - counts.dropped - counts.rerouted_away + counts.rerouted_here
    assert (balance == counts.kept).all(), "a choice is neither kept, nor dropped, nor rerouted"
    return counts


def counted_layer(in_slot: Ints, placement: Placement, *, n_experts: int, n_gpus: int) -> LayerCounts:
    """A layer of which only the choices of each slot are known, int [slots]: nothing was dropped, weights are not known."""
    asked = np.bincount(placement.expert_of, in_slot, n_experts).astype(np.int64)
    none = np.zeros(n_experts, np.int64)
    return LayerCounts(
        asked=asked, kept=asked, dropped=none, rerouted_away=none, rerouted_here=none,
        replicas=np.bincount(placement.expert_of, minlength=n_experts),
        gpu_tokens=np.bincount(placement.gpu_of, in_slot, n_gpus).astype(np.int64), padding_rows=none, padding_sent_bytes=0.0,
        partly_dropped=0, fully_dropped=0, room=None, gate_mass=None, gate_mass_dropped=0.0, gate_mass_lost=0.0,
    )  # fmt: skip


def _by_expert(ids: Ints, n_experts: int) -> Ints:
    if ids.min(initial=0) < 0:
        ids = ids[ids >= 0]
    return np.bincount(ids.ravel(), minlength=n_experts)
