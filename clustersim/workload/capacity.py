"""Who is left behind when an expert is full: capacity per source GPU and the policies that choose. Pure NumPy, no clock.

A policy is `name(asked, weights, source, n_experts, capacity) -> assigned`:

    asked: int [tokens, top_k], logical expert; -1 no expert.
    weights: float [tokens, top_k], gate weights, or None.
    source: int [tokens], GPU that holds the token.
    capacity: int [gpus], choices that one source GPU may send to one expert.
    assigned: int [tokens, top_k], `asked` where kept, else -1.

Gate weights are not renormalised after a drop, as in Megatron-LM; they do not change what travels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, InputError, Ints

__all__ = ["position", "prob"]

Policy = Callable[[Ints, Floats | None, Ints, int, Ints], Ints]


def limit(
    policy: Policy, asked: Ints, weights: Floats | None, source: Ints, *, n_gpus: int, n_experts: int, factor: float | None,
) -> tuple[Ints, Ints | None]:
    """Assigned int [tokens, top_k] and capacity int [gpus] under a capacity factor; (asked, None) when there is none."""
    if factor is None:
        return asked, None
    capacity = capacity_per_source(np.bincount(source, minlength=n_gpus), asked.shape[1], n_experts, factor)
    return policy(asked, weights, source, n_experts, capacity), capacity


def capacity_per_source(tokens_per_gpu: Ints, top_k: int, n_experts: int, factor: float) -> Ints:
    """int [gpus]: choices each source GPU may send to each logical expert, ceil(tokens · top_k / experts · factor).

    Source: Megatron-LM d98e8a64, megatron/core/transformer/moe/moe_utils.py (`get_capacity`, on the tokens of one rank).
    A product that is whole in decimals stays whole (10 · 1.1 is 11), where floats would round up to 12.

    Raises:
        InputError: the factor is not a number above 0.
    """
    if not 0 < factor < math.inf:
        raise InputError(f"capacity.factor={factor}: must be a number above 0, for example 1.25 (null: no limit)")
    exact = np.asarray(tokens_per_gpu, dtype=np.float64) * top_k * factor / n_experts
    return np.ceil(exact * (1 - 1e-12)).astype(np.int64)


def position(asked: Ints, weights: Floats | None, source: Ints, n_experts: int, capacity: Ints) -> Ints:
    """First come, first served: an expert keeps the earliest tokens of each source GPU.

    Source: DeepSpeed edaa7221, deepspeed/moe/sharded_moe.py (`topkgating`, policy "position": a running count over
    tokens). Megatron-LM's policy of this name is a top-k over ties, in no defined order.
    """
    return _keep_first(asked, source, n_experts, capacity, None)


def prob(asked: Ints, weights: Floats | None, source: Ints, n_experts: int, capacity: Ints) -> Ints:
    """An expert keeps the largest gate weights of each source GPU; of equal weights the earlier token.

    Source: Megatron-LM d98e8a64, megatron/core/transformer/moe/moe_utils.py (drop policy "probs").

    Raises:
        InputError: gate weights are not known.
    """
    if weights is None:
        raise InputError(
            "capacity.drop=prob: the trace has no gate weights to rank tokens by; "
            "use capacity.drop=position, or a trace recorded with gate_weights"
        )
    return _keep_first(asked, source, n_experts, capacity, weights)


def _keep_first(asked: Ints, source: Ints, n_experts: int, capacity: Ints, weights: Floats | None) -> Ints:
    """`asked` with -1 beyond the first `capacity` of each (source, expert), by falling weight, then by token."""
    n_groups = capacity.size * n_experts
    group = np.where(asked < 0, n_groups, source[:, None] * n_experts + asked).ravel()
    room = np.append(np.repeat(capacity, n_experts), asked.size)        # those that ask for nothing compete for nothing
    count = np.bincount(group, minlength=n_groups + 1)
    over = count > room
    rivals = np.flatnonzero(over[group])                                # only where somebody has to go
    order = np.arange(rivals.size)
    if weights is not None:
        order = _sorted_by(~_ascending_bits(weights.ravel()[rivals]), order)
    order = _sorted_by(group[rivals].astype(np.uint64), order)

    ranked = group[rivals[order]]
    start = np.cumsum(count * over) - count * over
    rank = np.arange(ranked.size) - start[ranked]                       # place within its own group
    assigned = asked.copy()
    assigned.flat[rivals[order][rank >= room[ranked]]] = -1
    return assigned


def _ascending_bits(values: Floats) -> NDArray[np.uint64]:
    """Unsigned integers in the same order as `values` (IEEE 754 doubles; both zeros alike)."""
    bits = (np.asarray(values, dtype=np.float64) + 0.0).view(np.uint64)
    sign = np.uint64(1) << np.uint64(63)
    return np.where(bits & sign, ~bits, bits | sign)


def _sorted_by(code: NDArray[np.uint64], order: Ints) -> Ints:
    """`order` sorted by code[order], equals left as they are: radix sort, 16 bits at a time, equal digits skipped.

    NumPy sorts 16-bit integers by counting, several times faster than it sorts doubles or pairs of keys.
    """
    for shift in (0, 16, 32, 48):
        digit = (code >> np.uint64(shift)).astype(np.uint16)
        if digit.size and (digit != digit[0]).any():
            order = order[np.argsort(digit[order], kind="stable")]
    return order
