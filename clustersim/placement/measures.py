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
    n_gpus, n_nodes = node_of.size, int(node_of.max()) + 1
    gpu = np.append(placement.gpu_of, -1)[slots]
    node = np.append(node_of, -1)[gpu]
    tokens = source.size
    on_gpu, on_node = _touched(gpu, n_gpus), _touched(node, n_nodes)
    load = np.bincount(gpu.ravel() + 1, minlength=n_gpus + 1)[1:]
    kept = np.bincount(slots.ravel() + 1, minlength=placement.n_slots + 1)[1:]
    expert_load = np.bincount(placement.expert_of, kept).astype(np.float64)
    return Measured(
        mean_load=float(load.mean()), max_load=float(load.max()), least_max_load=least_max_load(expert_load, slots_of),
        cross_copies=int(on_node.sum() - on_node[np.arange(tokens), node_of[source]].sum()),
        distinct_nodes=float(on_node.sum() / max(1, tokens)), distinct_gpus=float(on_gpu.sum() / max(1, tokens)),
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


def _touched(places: Ints, n: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Whether a token goes to a place, bool [tokens, places]; -1 is nowhere."""
    touched = np.zeros((places.shape[0], n + 1), bool)
    np.put_along_axis(touched, places % (n + 1), True, axis=1)
    return touched[:, :n]
