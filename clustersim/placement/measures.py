"""How good a placement is: balance, copies between nodes, nodes per token, and what none could beat. Counts, no seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clustersim.types import Floats, Ints, Placement


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Measured:
    """One layer of one step under a placement. Tokens at an expert are choices: a token has top_k."""

    mean_load: float            # of a GPU
    max_load: float             # of the busiest GPU
    least_max_load: float       # no placement on these slots has less (`least_max_load`)
    cross_copies: int           # copies that leave their node when each token goes once to every other node that it needs
    distinct_nodes: float       # nodes that hold one of a token's experts, the own one included, mean over tokens
    distinct_gpus: float        # likewise GPUs
    moved_slots: int            # experts that had to be brought to a GPU for this step

    @property
    def imbalance(self) -> float:
        return self.max_load / self.mean_load if self.mean_load else 1.0


def measure(slots: Ints, source: Ints, placement: Placement, slots_of: Ints, node_of: Ints, moved: int = 0) -> Measured:
    """The measures of one layer.

    Args:
        slots: int [tokens, top_k], slot of every kept choice; -1 none.
        source: int [tokens], GPU that holds the token.
        slots_of: int [gpus], slots of each GPU.
        node_of: int [gpus].
        moved: experts that had to be brought for this step.
    """
    from clustersim.placement.counting_kernel import count_tokens

    n_gpus, n_nodes, tokens = node_of.size, int(node_of.max()) + 1, max(1, source.size)
    load, kept, reached = (np.zeros(n, np.int64) for n in (n_gpus, placement.n_slots, 3))
    count_tokens(
        np.ascontiguousarray(slots), np.ascontiguousarray(source), np.ascontiguousarray(placement.gpu_of),
        np.ascontiguousarray(node_of), np.full(n_gpus, -1), np.full(n_nodes, -1), load, kept, reached,
    )  # fmt: skip
    expert_load = np.bincount(placement.expert_of, kept).astype(np.float64)
    return Measured(
        mean_load=float(load.mean()), max_load=float(load.max()), least_max_load=least_max_load(expert_load, slots_of),
        cross_copies=int(reached[2]), distinct_nodes=float(reached[1] / tokens), distinct_gpus=float(reached[0] / tokens),
        moved_slots=moved,
    )


def least_max_load(load: Floats, slots_of: Ints) -> float:
    """The busiest GPU has at least this much, wherever the experts are and however replicas share their tokens.

    The larger of the mean over GPUs and of the largest load per replica when the busiest expert gets the next one each time:
    some replica of an expert has at least its mean, and no other way of giving out the slots makes the largest mean smaller.

    Args:
        load: float [experts].
        slots_of: int [gpus].
    """
    from clustersim.placement.deepseek import replicated

    mean = float(load.sum()) / slots_of.size
    _, _, count = replicated(load, int(slots_of.sum()))
    return max(mean, float((load / count).max()))


def balancedness(layers: Sequence[Measured]) -> float:
    """vLLM's: sum over layers of the mean GPU load over the sum of the largest; 1 is perfect, also for no load."""
    most = sum(m.max_load for m in layers)
    return sum(m.mean_load for m in layers) / most if most else 1.0


def utilisation(layers: Sequence[Measured]) -> float:
    """SGLang's: mean over layers of (mean GPU load + 1e-5) / (largest + 1e-5)."""
    return float(np.mean([(m.mean_load + 1e-5) / (m.max_load + 1e-5) for m in layers]))
