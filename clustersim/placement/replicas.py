"""Which of an expert's replicas a token goes to: plain functions, found by name. Pure NumPy; draws no random number.

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
from clustersim.types import InputError, Ints, Placement, Routing

__all__ = ["nearest", "token_hash"]

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


def _hash(index: Ints) -> Ints:
    return ((index.astype(np.uint64) * _KNUTH) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _listed(key: Ints, n_keys: int) -> tuple[Ints, Ints, Ints]:
    """Slots listed by key: those of key i are order[start[i]:start[i] + count[i]], in slot order."""
    count = np.bincount(key, minlength=n_keys)
    return np.cumsum(count) - count, count, np.argsort(key, kind="stable")


def _hashed(asked: Ints, where: Ints, hashed: Ints, start: Ints, count: Ints, order: Ints) -> Ints:
    """Slot number (hash mod count) of the list that `where` names; -1 where nothing is asked."""
    even = (count == count[0]).all()    # then one division per token does for all its choices
    replica = (hashed % count[0])[:, None] if even else hashed[:, None] % count[where]
    return np.where(asked < 0, -1, order[start[where] + replica])


def _check_held(asked: Ints, count: Ints) -> None:
    """Every expert that is asked for has a slot; `count` int [experts] is how many."""
    missing = int(asked.max(initial=-1)) if asked.max(initial=-1) >= count.size else -1
    if missing < 0 and not count.all():
        absent = np.flatnonzero((count == 0) & (np.bincount(asked[asked >= 0], minlength=count.size) > 0))
        missing = int(absent[0]) if absent.size else -1
    if missing >= 0:
        raise InputError(f"placement: no slot holds expert {missing}, and tokens ask for it; every expert needs a slot")
