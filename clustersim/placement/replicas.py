"""Which of an expert's replicas a token goes to: plain functions, found by name. Draws no random number.

A rule is `name(asked, index, source, placement, node_of) -> slot`:

    asked: int [tokens, top_k], logical expert; -1 no expert.
    index: int [tokens], the token's place in its own GPU's batch.
    source: int [tokens], GPU that holds the token.
    node_of: int [gpus], node of each GPU.
    slot: int [tokens, top_k], slot of `placement`; -1 where `asked` is -1.

An expert's replicas are numbered in slot order. A rule raises InputError when a token asks for an expert without a slot.
"""

from __future__ import annotations

import sys
from typing import Protocol

import numpy as np

from clustersim.pick import pick
from clustersim.types import Floats, InputError, Ints, Placement, Routing

__all__ = ["by_source", "least_load", "lp_split", "nearest", "token_hash"]

_KNUTH = np.uint64(2654435769)          # vLLM fused_moe/router/base_router.py; 2^32 over the golden ratio


class _Nodes(Protocol):
    """What choosing a replica has to know of a cluster."""

    @property
    def node_of(self) -> Ints: ...


def chosen_slots(routing: Routing, placement: Placement, cluster: _Nodes) -> Ints:
    """Slot of every kept choice, int [tokens, top_k], by the placement's own rule; -1 no expert or dropped."""
    rule = pick(sys.modules[__name__], placement.replica)
    slots: Ints = rule(routing.assigned, routing.index, routing.source, placement, cluster.node_of)
    return slots


def token_hash(asked: Ints, index: Ints, source: Ints, placement: Placement, node_of: Ints) -> Ints:
    """Replica ((index * 2654435769) mod 2^32) mod replicas: all choices of one token use the same hash.

    Source: vLLM, fused_moe/router/base_router.py (Knuth's multiplicative hash of the token
    index). The multiplier is odd, so with two replicas the parity of the index decides.
    """
    start, count, order = _listed(placement.expert_of, int(placement.expert_of.max()) + 1)
    _check_held(asked, count)
    return _hashed(asked, asked, _hash(index), start, count, order)


def nearest(asked: Ints, index: Ints, source: Ints, placement: Placement, node_of: Ints) -> Ints:
    """A replica on the token's own GPU, else one on its own node, else any; `token_hash` decides among equals."""
    n_experts = int(placement.expert_of.max()) + 1
    n_gpus, n_nodes, n_slots = node_of.size, int(node_of.max()) + 1, placement.n_slots
    here = _listed(placement.gpu_of * n_experts + placement.expert_of, n_gpus * n_experts)
    near = _listed(node_of[placement.gpu_of] * n_experts + placement.expert_of, n_nodes * n_experts)
    far = _listed(placement.expert_of, n_experts)
    _check_held(asked, far[1])

    # One table [gpus, experts] over the three lists laid end to end: the nearest list that is not empty.
    start, count = (a.reshape(n_gpus, n_experts) for a in here[:2])
    near_start, near_count = (a.reshape(n_nodes, n_experts)[node_of] for a in near[:2])
    far_start, far_count = (a[None, :] for a in far[:2])
    start = np.where(count > 0, start, np.where(near_count > 0, near_start + n_slots, far_start + 2 * n_slots))
    count = np.where(count > 0, count, np.where(near_count > 0, near_count, far_count))
    order = np.concatenate([here[2], near[2], far[2]])
    where = source[:, None] * n_experts + asked
    return _hashed(asked, where, _hash(index), start.ravel(), count.ravel(), order)


def by_source(asked: Ints, index: Ints, source: Ints, placement: Placement, node_of: Ints) -> Ints:
    """All tokens of a GPU go to one replica: its own (the first), else the GPUs without one take the replicas in turn.

    SGLang's static dispatch, which deals the GPUs out at random; here in their order, expert e beginning with replica e mod
    replicas. Source: SGLang, python/sglang/srt/eplb/expert_location.py (`compute_logical_to_rank_dispatch_physical_map`).
    """
    start, count, order = _listed(placement.expert_of, int(placement.expert_of.max()) + 1)
    _check_held(asked, count)
    n_gpus = node_of.size
    table = np.full((n_gpus, count.size), -1, np.int64)
    backwards = np.arange(placement.n_slots)[::-1]          # of several on one GPU the first slot is written last
    table[placement.gpu_of[backwards], placement.expert_of[backwards]] = backwards
    without = table < 0
    turn = np.cumsum(without, axis=0) - 1 + np.arange(count.size)
    table = np.where(without, order[start + turn % np.maximum(count, 1)], table) if placement.n_slots else table
    return np.where(asked < 0, -1, table[source[:, None], asked])


def least_load(asked: Ints, index: Ints, source: Ints, placement: Placement, node_of: Ints) -> Ints:
    """Token after token, by place in the batch, then by GPU: the replica whose GPU has been given the fewest choices so far.

    Choices of experts with one slot are counted first: they are known once the router has spoken. Of equals the first slot.
    A GPU cannot know what the others send, so this is a limit to measure other rules by.
    """
    from clustersim.placement.kernel import to_least_loaded

    start, count, order = _listed(placement.expert_of, int(placement.expert_of.max()) + 1)
    _check_held(asked, count)
    only = (count == 1)[asked] & (asked >= 0)
    slot = np.where(only, order[start[asked]], -1)
    load = np.bincount(placement.gpu_of[slot[only]], minlength=node_of.size)
    turns = np.lexsort((source, index))
    to_least_loaded(turns, asked, slot, start, count, order, placement.gpu_of, load)
    return slot


def lp_split(asked: Ints, index: Ints, source: Ints, placement: Placement, node_of: Ints) -> Ints:
    """Replicas share an expert's tokens so that the busiest GPU has the least: a linear program per layer and step.

    Its shares are the probabilities with which a token takes each replica; the token's hash (with its GPU's number) stands
    for the draw. Source: DeepSeek LPLB and SGLang's `lp` dispatch; the program there is the same, solved by an interior
    point method. All GPUs must know all counts first: the all-reduce and the solver take no time here.
    """
    start, count, order = _listed(placement.expert_of, int(placement.expert_of.max()) + 1)
    _check_held(asked, count)
    load = np.bincount(asked[asked >= 0], minlength=count.size).astype(np.float64)
    tokens, _ = split_evenly(load, placement, node_of.size)
    share = (tokens / np.maximum(load, 1.0)[placement.expert_of])[order]
    upto = np.cumsum(share)
    before = np.append(0.0, upto)[start]                    # [experts]
    draw = (_hash(index + 40_503 * source) / 2.0**32)[:, None]
    place = np.searchsorted(upto, before[asked] + draw, side="right")
    place = np.clip(place, start[asked], start[asked] + count[asked] - 1)       # shares sum to 1 but for rounding
    return np.where(asked < 0, -1, order[place])


def split_evenly(load: Floats, placement: Placement, n_gpus: int) -> tuple[Floats, float]:
    """Tokens of each slot, float [slots], so that the busiest GPU has the least, and what it has.

    min M such that the slots of every expert take its load, those of every GPU at most M, none less than nothing.

    Args:
        load: float [experts].
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    n_slots, scale = placement.n_slots, max(float(load.max()), 1.0)
    at = np.arange(n_slots)
    experts = coo_array((np.ones(n_slots), (placement.expert_of, at)), shape=(load.size, n_slots + 1))
    value = np.append(np.ones(n_slots), np.full(n_gpus, -1.0))
    rows, columns = np.append(placement.gpu_of, np.arange(n_gpus)), np.append(at, np.full(n_gpus, n_slots))
    gpus = coo_array((value, (rows, columns)), shape=(n_gpus, n_slots + 1))
    found = linprog(
        np.append(np.zeros(n_slots), 1.0), A_ub=gpus.tocsr(), b_ub=np.zeros(n_gpus), A_eq=experts.tocsr(), b_eq=load / scale,
        bounds=(0, None), method="highs",
    )  # fmt: skip
    assert found.x is not None, "every expert has a slot, so that a split exists"
    return np.maximum(0.0, found.x[:n_slots]) * scale, float(found.x[n_slots] * scale)


def _hash(index: Ints) -> Ints:
    return ((index.astype(np.uint64) * _KNUTH) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _listed(key: Ints, n_keys: int) -> tuple[Ints, Ints, Ints]:
    """Slots listed by key: those of key i are order[start[i]:start[i] + count[i]], in slot order."""
    count = np.bincount(key, minlength=n_keys)
    return np.cumsum(count) - count, count, np.argsort(key, kind="stable")


def _hashed(asked: Ints, where: Ints, hashed: Ints, start: Ints, count: Ints, order: Ints) -> Ints:
    """Slot number (hash mod count) of the list that `where` names; -1 where nothing is asked."""
    from clustersim.placement.counting_kernel import slots_by_hash

    slots = np.empty(asked.shape, np.int64)
    even = int(count[0]) if (count == count[0]).all() else 0
    slots_by_hash(
        np.ascontiguousarray(asked), np.ascontiguousarray(where), hashed, even, start, count, order, slots
    )
    return slots


def _check_held(asked: Ints, count: Ints) -> None:
    """Every expert that is asked for has a slot; `count` int [experts] is how many."""
    missing = int(asked.max(initial=-1)) if asked.max(initial=-1) >= count.size else -1
    if missing < 0 and not count.all():
        absent = np.flatnonzero((count == 0) & (np.bincount(asked[asked >= 0], minlength=count.size) > 0))
        missing = int(absent[0]) if absent.size else -1
    if missing >= 0:
        raise InputError(f"placement: no slot holds expert {missing}, and tokens ask for it; every expert needs a slot")
