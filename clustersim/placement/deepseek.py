"""DeepSeek's EPLB: replicate the busiest experts, then pack the replicas so that GPUs are equally loaded. Sees loads, not links.

Source: github deepseek-ai/EPLB, eplb.py (`balanced_packing`, `replicate_experts`, `rebalance_experts`). Where torch's sort
leaves the order of equal items open, the lower index comes first here.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from clustersim.placement.past import Past, Room, need_even, need_slots
from clustersim.types import Floats, InputError, Ints, Placement


def packed(weights: Floats, room_of: Sequence[int]) -> tuple[Ints, Ints]:
    """The pack of every item and its rank there: items by falling weight, each to the lightest pack that still has room.

    Of equal items and of equally light packs the first comes first. With one item per pack, item i is in pack i.

    Args:
        weights: float [items].
        room_of: items that each pack takes.
    """
    if len(room_of) == weights.size and all(room == 1 for room in room_of):
        return np.arange(weights.size), np.zeros(weights.size, np.int64)
    pack, rank = np.empty(weights.size, np.int64), np.empty(weights.size, np.int64)
    left = list(room_of)
    lightest = [(0.0, i) for i, room in enumerate(room_of) if room]
    for item in np.argsort(-weights, kind="stable").tolist():
        load, i = lightest[0]
        pack[item], rank[item] = i, room_of[i] - left[i]
        left[i] -= 1
        if left[i]:
            heapq.heapreplace(lightest, (load + float(weights[item]), i))
        else:
            heapq.heappop(lightest)
    return pack, rank


def replicated(load: Floats, n_slots: int) -> tuple[Ints, Ints, Ints]:
    """Every expert once, then one more replica at a time to the expert with the largest load per replica (the first of equals).

    Returns:
        (expert, rank among that expert's replicas), both [slots], and replicas [experts].
    """
    n = load.size
    expert, rank = np.arange(n_slots), np.zeros(n_slots, np.int64)
    count = [1] * n
    busiest = [(-weight, e) for e, weight in enumerate(load.tolist())]
    heapq.heapify(busiest)
    for slot in range(n, n_slots):
        _, e = busiest[0]
        expert[slot], rank[slot] = e, count[e]
        count[e] += 1
        heapq.heapreplace(busiest, (-float(load[e]) / count[e], e))
    return expert, rank, np.array(count)


def rebalance(
    loads: Floats, *, n_slots: int, n_groups: int, n_nodes: int, n_gpus: int
) -> tuple[Ints, Ints, Ints]:
    """EPLB of many layers: hierarchical where the groups can be dealt to the nodes evenly, else global.

    Hierarchical: groups of neighbouring experts are packed onto nodes, experts replicated inside each node, replicas
    packed onto its GPUs. Global is the same with one group and one node. Slots are numbered GPU after GPU.

    Args:
        loads: float [layers, experts].

    Returns:
        expert of every slot [layers, slots]; slots of every expert by the rank of its replicas, padded with -1
        [layers, experts, most replicas]; replicas [layers, experts].

    Raises:
        InputError: numbers that do not divide each other as this needs.
    """
    _check_divisible(loads.shape[1], n_slots, n_groups, n_nodes, n_gpus)
    if n_groups % n_nodes:
        n_groups = n_nodes = 1
    expert_of = np.empty((loads.shape[0], n_slots), np.int64)
    rank_of = np.empty_like(expert_of)
    count = np.empty(loads.shape, np.int64)
    for layer, load in enumerate(np.asarray(loads, np.float64)):
        expert_of[layer], rank_of[layer], count[layer] = _one_layer(load, n_slots, n_groups, n_nodes, n_gpus)
    slots_of = np.full((*loads.shape, int(count.max())), -1, np.int64)
    slots_of[np.arange(loads.shape[0])[:, None], expert_of, rank_of] = np.arange(n_slots)
    return expert_of, slots_of, count


def _one_layer(load: Floats, n_slots: int, n_groups: int, n_nodes: int, n_gpus: int) -> tuple[Ints, Ints, Ints]:
    """Expert and replica rank of every slot, and replicas of every expert."""
    group_size = load.size // n_groups
    node, place = packed(load.reshape(n_groups, group_size).sum(axis=1), [n_groups // n_nodes] * n_nodes)
    first = (node * (n_groups // n_nodes) + place) * group_size
    node_major = np.empty(load.size, np.int64)              # experts in the order of their nodes
    node_major[first[:, None] + np.arange(group_size)] = np.arange(load.size).reshape(n_groups, group_size)

    per_node, slots, gpus = load.size // n_nodes, n_slots // n_nodes, n_gpus // n_nodes
    each = slots // gpus
    expert_of, rank_of, count = np.empty(n_slots, np.int64), np.empty(n_slots, np.int64), np.empty(load.size, np.int64)
    for i in range(n_nodes):
        own = node_major[i * per_node : (i + 1) * per_node]
        expert, rank, copies = replicated(load[own], slots)
        gpu, at = packed((load[own] / copies)[expert], [each] * gpus)
        slot = i * slots + gpu * each + at
        expert_of[slot], rank_of[slot] = own[expert], rank
        count[own] = copies
    return expert_of, rank_of, count


def _check_divisible(n_experts: int, n_slots: int, n_groups: int, n_nodes: int, n_gpus: int) -> None:
    if n_slots < n_experts or n_slots % n_gpus:
        raise InputError(f"placement.slots={n_slots}: must be a multiple of the {n_gpus} GPUs and hold {n_experts} experts")
    if n_groups < 1 or n_experts % n_groups:
        near = ", ".join(str(g) for g in range(1, n_experts + 1) if n_experts % g == 0)
        raise InputError(f"placement.groups={n_groups}: {n_experts} experts do not fall into equal groups so; {near} would do")
    if n_gpus % n_nodes:
        raise InputError(f"topology.nodes={n_nodes}: {n_gpus} GPUs cannot be shared by {n_nodes} nodes evenly")


def eplb(rng: np.random.Generator, past: Past, room: Room, *, groups: int = 1) -> Placement:
    """EPLB as DeepSeek ships it: hierarchical where the nodes can share the groups evenly, else global.

    Args:
        groups: groups of neighbouring experts that the router chooses among (DeepSeek-V3: 8).

    Raises:
        InputError: fewer slots than experts, GPUs that differ in slots, experts that do not fall into equal groups.
    """
    return rebalanced("eplb", past, room, groups, room.n_nodes)


def eplb_global(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """EPLB's global policy: replicas go anywhere.

    Raises:
        InputError: fewer slots than experts, or GPUs that differ in slots.
    """
    return rebalanced("eplb_global", past, room, 1, 1)


def eplb_hierarchical(rng: np.random.Generator, past: Past, room: Room, *, groups: int = 8) -> Placement:
    """EPLB's hierarchical policy: a group stays in one node, and so do the replicas of its experts.

    Raises:
        InputError: as `eplb`, or groups that the nodes cannot share evenly.
    """
    if groups % room.n_nodes:
        near = [g for g in range(1, past.n_experts + 1) if past.n_experts % g == 0 and g % room.n_nodes == 0]
        would_do = f"; {', '.join(map(str, near))} would do" if near else "; no number of groups would do"
        raise InputError(f"placement.groups={groups}: {room.n_nodes} nodes cannot share them evenly{would_do}")
    return rebalanced("eplb_hierarchical", past, room, groups, room.n_nodes)


def rebalanced(who: str, past: Past, room: Room, groups: int, nodes: int) -> Placement:
    """EPLB of one layer by its total load, for the placement `who`; see `rebalance`."""
    need_slots(past, room)
    need_even(who, room, past.n_experts)
    expert_of, _, _ = rebalance(
        past.total[None], n_slots=room.n_slots, n_groups=groups, n_nodes=nodes, n_gpus=room.n_gpus
    )
    return Placement(gpu_of=room.gpu_of, expert_of=expert_of[0])
