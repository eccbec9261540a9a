"""What a run says about its placements: a row per step and layer, balance in the summary, and what moving experts brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from clustersim.engine.gpu import ATTENDED, COMBINED, Played
from clustersim.placement.measures import Measured, balancedness, utilisation
from clustersim.results.tables import LayerCounts


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Step:
    """One step as it was played."""

    played: Played
    counts: list[LayerCounts | None]        # of every layer
    measured: list[Measured]                # of every MoE layer
    held_s: float                           # what the steps wait for experts on their way, because of this one


def placements_table(measured: Sequence[Measured], n_dense_layers: int, step: int = 0) -> pl.DataFrame:
    """Per MoE layer: how evenly the placement loads the GPUs, and how far tokens go."""
    return pl.DataFrame(
        {
            "step": np.full(len(measured), step, np.uint32),
            "layer": np.arange(n_dense_layers, n_dense_layers + len(measured), dtype=np.uint16),
            "mean_load": [m.mean_load for m in measured],
            "max_load": [m.max_load for m in measured],
            "imbalance": [m.imbalance for m in measured],
            "least_max_load": [m.least_max_load for m in measured],
            "gap_to_least": [m.max_load / m.least_max_load - 1 if m.least_max_load else 0.0 for m in measured],
            "cross_node_copies": [m.cross_copies for m in measured],
            "distinct_nodes": [m.distinct_nodes for m in measured],
            "distinct_gpus": [m.distinct_gpus for m in measured],
            "moved_experts": [m.moved_slots for m in measured],
        }
    )


def placement_summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """The placements of a run in a few numbers."""
    least = sum(m.least_max_load for m in measured)
    return {
        "balancedness": balancedness(measured),
        "utilisation": utilisation(measured),
        "gap_to_least": sum(m.max_load for m in measured) / least - 1 if least else 0.0,
        "cross_node_copies": sum(m.cross_copies for m in measured) / len(measured),
        "distinct_nodes": sum(m.distinct_nodes for m in measured) / len(measured),
    }


def moe_layer_s(steps: Sequence[Step]) -> float:
    """Seconds from entering a dispatch to the end of the combine: mean over GPUs, MoE layers and steps."""
    spans = [
        (step.played.marks[layer, COMBINED] - step.played.marks[layer, ATTENDED]).mean()
        for step in steps
        for layer, pair in enumerate(step.played.exchanges)
        if pair is not None
    ]
    return float(np.mean(spans))


def rebalance_summary(
    steps: Sequence[Step], kept: Sequence[Step], *, rebalances: int, expert_bytes: float, buffer_bytes: float
) -> dict[str, Any]:
    """What it brought to move experts, against the first placements kept throughout.

    Args:
        steps: as they were played.
        kept: the same steps under the first placements.
        rebalances: times that placements were decided anew.
        expert_bytes: weights of one expert.
        buffer_bytes: memory of the fullest GPU for weights on their way.
    """
    moving = sum(step.played.step_s for step in steps)
    held = sum(step.held_s for step in steps)
    still = sum(step.played.step_s for step in kept)
    moved = sum(m.moved_slots for step in steps for m in step.measured)
    gain, each = (still - moving) / len(steps), held / rebalances
    return {
        "rebalances": rebalances,
        "moved_experts": moved,
        "migration_bytes": moved * expert_bytes,
        "buffer_bytes": buffer_bytes,
        "migration_s": held / len(steps),
        "never_moved_step_s": still / len(steps),
        "gross_gain": 1 - moving / still if still else 0.0,
        "net_gain": 1 - (moving + held) / still if still else 0.0,
        "break_even_steps": each / gain if gain > 0 else None,
    }
