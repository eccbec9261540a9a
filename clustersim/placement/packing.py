"""Packing by load with any number of slots per GPU: longest processing time first, and the same node by node."""

from __future__ import annotations

import numpy as np

from clustersim.placement.deepseek import replicated
from clustersim.placement.past import Past, Room, need_slots
from clustersim.types import Floats, Ints, Placement


def lpt(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """EPLB's replicas, the heaviest first to the lightest GPU with room that does not hold the expert yet.

    Unlike EPLB's packing GPUs may differ in slots, and two replicas share a GPU only where no other has room.

    Source: Graham, SIAM J. Appl. Math. 17 (1969): longest processing time first.

    Raises:
        InputError: fewer slots than experts.
    """
    need_slots(past, room)
    expert, _, count = replicated(past.total, room.n_slots)
    return placed(expert, spread(expert, (past.total / count)[expert], room.slots_of))


def topology_greedy(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """As `lpt`, nodes first: a replica goes to the lightest node that does not hold the expert yet, there to the lightest GPU.

    So replicas of an expert stand on different nodes, where `nearest` finds them, and nodes are equally loaded. Inspired
    by the node level of EPLB and of GRACE (arXiv 2509.25041); no table of theirs is reproduced.

    Raises:
        InputError: fewer slots than experts.
    """
    need_slots(past, room)
    expert, _, count = replicated(past.total, room.n_slots)
    weight = (past.total / count)[expert]
    return placed(expert, spread_in_nodes(expert, weight, spread(expert, weight, per_node(room)), room))


def per_node(room: Room) -> Ints:
    """Slots of each node, int [nodes]."""
    return np.bincount(room.node_of, room.slots_of).astype(np.int64)


def spread_in_nodes(expert: Ints, weight: Floats, node: Ints, room: Room) -> Ints:
    """The GPU of every item whose node is known, as by `spread` inside each node; all int or float [items]."""
    gpu = np.empty(expert.size, np.int64)
    for i in range(room.n_nodes):
        own, gpus = np.flatnonzero(node == i), np.flatnonzero(room.node_of == i)
        if own.size:
            gpu[own] = gpus[spread(expert[own], weight[own], room.slots_of[gpus])]
    return gpu


def spread(expert: Ints, weight: Floats, room_of: Ints) -> Ints:
    """The bin of every item: by falling weight, each to the lightest bin with room and without its expert, else with room.

    Of equals the first comes first.

    Args:
        expert, weight: [items].
        room_of: items each bin takes, int [bins].
    """
    left, load = room_of.copy(), np.zeros(room_of.size)
    held = np.zeros((room_of.size, int(expert.max()) + 1), bool)
    bin_of = np.empty(expert.size, np.int64)
    for item in np.argsort(-weight, kind="stable"):
        e = expert[item]
        open_to = (left > 0) & ~held[:, e]
        if not open_to.any():
            open_to = left > 0
        best = int(np.where(open_to, load, np.inf).argmin())
        bin_of[item] = best
        left[best] -= 1
        load[best] += weight[item]
        held[best, e] = True
    return bin_of


def placed(expert: Ints, gpu: Ints) -> Placement:
    """The placement of slots given as expert and GPU of each, in the order of the GPUs."""
    order = np.argsort(gpu, kind="stable")
    return Placement(gpu_of=gpu[order], expert_of=expert[order])
