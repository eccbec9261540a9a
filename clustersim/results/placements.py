"""What a run says about its placements: a row per step and layer, balance in the summary, and what moving experts brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from clustersim.engine.gpu import Played
from clustersim.placement.measures import Measured, balancedness, utilisation
from clustersim.results.counting import LayerCounts
from clustersim.results.pairs import PairBytes


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Step:
    """One step as it was played."""

    played: Played
    counts: list[LayerCounts | None]        # of every layer
    measured: list[Measured]                # of every MoE layer
    pairs: PairBytes
    held_s: float                           # what the steps wait for experts on their way, because of this one


def placements_table(measured: Sequence[Measured], moe_layers: Sequence[int], step: int = 0) -> pl.DataFrame:
    """Per MoE layer: how evenly the placement loads the GPUs, and how far tokens go."""
    return pl.DataFrame(
        {
            "step": np.full(len(measured), step, np.uint32),
            "layer": np.array(moe_layers[: len(measured)], np.uint16),
            "mean_load": [m.mean_load for m in measured],
            "max_load": [m.max_load for m in measured],
            "imbalance": [m.imbalance for m in measured],
            "least_max_load": [m.least_max_load for m in measured],
            "gap_to_least": [m.max_load / m.least_max_load - 1 if m.least_max_load else 0.0 for m in measured],
            "cross_node_copies": [m.cross_copies for m in measured],
            "distinct_nodes": [m.distinct_nodes for m in measured],
            "distinct_gpus": [m.distinct_gpus for m in measured],
            "moved_experts": [m.moved_slots for m in measured],
        },
        schema_overrides=_COLUMNS if not measured else None,
    )


_COLUMNS = dict.fromkeys(
    ("mean_load", "max_load", "imbalance", "least_max_load", "gap_to_least", "distinct_nodes", "distinct_gpus"), pl.Float64
) | {"cross_node_copies": pl.Int64, "moved_experts": pl.Int64}


def placement_summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """The placements of a run in a few numbers; null where only counts were routed, which do not say where tokens went."""
    if not measured:
        return dict.fromkeys(("balancedness", "utilisation", "gap_to_least", "cross_node_copies", "distinct_nodes"))
    least = sum(m.least_max_load for m in measured)
    return {
        "balancedness": balancedness(measured),
        "utilisation": utilisation(measured),
        "gap_to_least": sum(m.max_load for m in measured) / least - 1 if least else 0.0,
        "cross_node_copies": sum(m.cross_copies for m in measured) / len(measured),
        "distinct_nodes": sum(m.distinct_nodes for m in measured) / len(measured),
    }


def mean_step_s(steps: Sequence[Step]) -> float:
    """Seconds of a step, mean, without what they wait for experts on their way."""
    return sum(step.played.step_s for step in steps) / len(steps)


def moe_layer_s(steps: Sequence[Step]) -> float | None:
    """Seconds of experts and of standing still for dispatch and combine, mean over GPUs, MoE layers and steps; None: no MoE."""
    spans = [
        sum(parts[name][layer] for name in ("dispatch_s", "expert_s", "combine_s")).mean()
        for step, parts in ((step, step.played.parts()) for step in steps)
        for layer, pair in enumerate(step.played.exchanges)
        if pair is not None
    ]
    return float(np.mean(spans)) if spans else None


def rebalance_summary(
    steps: Sequence[Step], kept: Sequence[Step], *, rebalances: int, expert_bytes: float, buffer_bytes: float
) -> dict[str, Any]:
    """What it brought to move experts, against the first placements kept throughout.

    The gross gain is that of steps that no move disturbs: all of them where steps wait for the moves, those without any
    beside them where moves overlap; null where there are none. A rebalancing costs what its moves add to the steps; it
    breaks even after so many steps of that gain.

    Args:
        steps: as they were played.
        kept: the same steps under the first placements.
        rebalances: times that placements were decided anew.
        expert_bytes: weights of one expert.
        buffer_bytes: memory of the fullest GPU for weights on their way.
    """
    took, still = (np.array([step.played.step_s for step in those]) for those in (steps, kept))
    held = np.array([step.held_s for step in steps])
    beside = np.array([step.played.background_s > 0 for step in steps])
    moved = sum(m.moved_slots for step in steps for m in step.measured)
    gain = float((still - took)[~beside].mean()) if not beside.all() else None
    cost = None if gain is None else (held.sum() + (took - still + gain)[beside].sum()) / rebalances
    return {
        "rebalances": rebalances,
        "moved_experts": moved,
        "migration_bytes": moved * expert_bytes,
        "buffer_bytes": buffer_bytes,
        "migration_s": float(held.mean()),
        "never_moved_step_s": float(still.mean()),
        "gross_gain": None if gain is None else gain / float(still.mean()),
        "net_gain": 1 - float((took + held).sum() / still.sum()),
        "break_even_steps": None if gain is None or cost is None or gain <= 0 else float(cost) / gain,
    }
