"""Routers that know that some experts are nearer than others, or fuller. They choose; what it costs is for the network to say."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, InputError, Ints
from clustersim.workload.routers.activation import Scores, activated, best, checked, softmax_of


def hierarchical(scores: Scores, *, n_groups: int = 8) -> tuple[Ints, Floats]:
    """Two groups first, then experts inside: two in the better group, one in the other, as a second choice counts half.

    A group's probability is that of all its experts together (the original has a gate of its own for groups). Weights
    are the group's share of the two, times the expert's of those taken in the group.

    Returns:
        ids and weights [tokens, 3]: best group's best, its second, the other group's best.

    Raises:
        InputError: groups do not divide the experts, fewer than two groups or than two experts in one, a score is NaN.

    Source: tensorflow/mesh, transformer/moe.py (`transformer_moe_layer_v2`).
    """
    n_tokens, n_experts = checked(scores).shape
    if n_groups < 2 or n_experts % n_groups or n_experts // n_groups < 2:
        raise InputError(f"router.n_groups={n_groups}: must divide the {n_experts} experts into 2 groups or more, of 2 or more")
    size = n_experts // n_groups
    values = activated(scores, "softmax").reshape(n_tokens, n_groups, size)
    group_value = values.sum(axis=2)
    groups = best(group_value, 2)
    share = np.take_along_axis(group_value, groups, axis=1).astype(np.float64)
    share /= share.sum(axis=1, keepdims=True)
    rows = np.arange(n_tokens)
    inside = np.ascontiguousarray(scores.reshape(n_tokens, n_groups, size)[rows, groups[:, 0]])
    pair = best(inside, 2)
    other = best(np.ascontiguousarray(scores.reshape(n_tokens, n_groups, size)[rows, groups[:, 1]]), 1)
    ids = np.concatenate([groups[:, :1] * size + pair, groups[:, 1:] * size + other], axis=1)
    return ids, np.concatenate([share[:, :1] * softmax_of(inside, pair), share[:, 1:]], axis=1)


def topology_aware(
    scores: Scores, *, fraction: float = 0.14, near: NDArray[np.bool_]
) -> tuple[Ints, Floats]:
    """Top 2, with a limit on tokens whose best expert is far: those with the largest scores, the others stay near.

    Where no more than fraction · tokens have a far best expert, this is top 2. Otherwise everybody takes the two best near
    experts, and the tokens that may go far have their far best expert in place of the second. Weights are the softmax over
    the two.

    Args:
        near: bool [experts], those that the tokens' own node holds.

    Raises:
        InputError: fraction is not in [0, 1], fewer than two experts are near, a score is NaN.

    Source: FasterMoE (PPoPP 2022); laekov/fastmoe, gates/faster_gate.py.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"router.fraction={fraction}: must be from 0 to 1")
    if int(np.count_nonzero(near)) < 2:
        raise InputError(
            f"router=topology_aware: takes two experts of the token's own node, which holds {int(np.count_nonzero(near))}; "
            "use fewer nodes or a placement with more slots"
        )
    ids = best(scores, 2)
    far = ~near[ids[:, 0]]
    allowed = int(len(scores) * fraction)
    if np.count_nonzero(far) < allowed or not far.any():
        return ids, softmax_of(scores, ids)
    rows = np.flatnonzero(far)
    top = np.take_along_axis(scores, ids[:, :1], axis=1)[rows, 0]
    going = rows[np.argsort(-top, kind="stable")[:allowed]]
    outward = ids[going, 0]
    ids = best(np.where(near, scores, -np.inf).astype(scores.dtype), 2)
    ids[going, 1] = outward
    return ids, softmax_of(scores, ids)


def swipe(scores: Scores, *, k: int, factor: float = 1.0, balance: bool = True) -> tuple[Ints, Floats]:
    """Top k, but a full expert passes a token on to the next expert by number that has room: no load above the mean.

    First choices before second ones, tokens in order. Weights are the softmax over the scores of those taken in the end.

    Args:
        factor: room of an expert, ceil(T k factor / E).
        balance: False: the plain top k, as in evaluation.

    Raises:
        InputError: factor is below 1, k does not fit, a score is NaN.

    Source: the idea of laekov/fastmoe, gates/swipe_gate.py; the room there is shared between workers.
    """
    from clustersim.workload.routers import assignment_kernel

    if not 1 <= factor < math.inf:
        raise InputError(f"router.factor={factor}: must be a number from 1 up")
    n_tokens, n_experts = scores.shape
    ranked = best(scores, k)
    if not balance:
        return ranked, softmax_of(scores, ranked)
    ids = np.full_like(ranked, -1)
    assignment_kernel.next_with_room(ranked, n_experts, math.ceil(n_tokens * k * factor / n_experts), ids)
    return ids, softmax_of(scores, ids)
