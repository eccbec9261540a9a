"""Placements by who chooses what together, who follows whom, and where tokens come from. Heuristics; links are not known here."""

from __future__ import annotations

import numpy as np

from clustersim.placement.deepseek import replicated
from clustersim.placement.packing import per_node, placed, spread, spread_in_nodes
from clustersim.placement.past import Past, Room, need_slots
from clustersim.placement.serving import ways
from clustersim.types import Floats, InputError, Ints, Placement


def coactivation(
    rng: np.random.Generator, past: Past, room: Room, *, level: str = "node", slack: float = 0.05
) -> Placement:
    """Experts that tokens choose together share a node (or a GPU), so that one copy of the token serves both.

    Every node begins with one of the busiest experts. Then the pair of expert and node with the most tokens in common is
    joined, as long as the node has room and its load stays below (1 + slack) of the mean; where no node is below, the
    lightest takes the busiest expert left. Inside a node GPUs are filled as by `lpt`. Replicas are EPLB's.

    Inspired by Occult (arXiv 2505.13345) and GRACE (arXiv 2509.25041), whose exact tables are not reproduced: no pruning
    of pairs, no routing by predicted load.

    Args:
        level: node or gpu.
        slack: of the load over its mean.

    Raises:
        InputError: fewer slots than experts, tokens are not known, no such level, a negative slack.
    """
    need_slots(past, room)
    if level not in ("node", "gpu"):
        raise InputError(f"placement.level={level}: must be node or gpu")
    if not slack >= 0:
        raise InputError(f"placement.slack={slack}: must be a number from 0 up")
    expert, _, count = replicated(past.total, room.n_slots)
    weight = (past.total / count)[expert]
    pairs = past.together("coactivation") / np.outer(count, count)      # a replica sees its share of the tokens
    if level == "gpu":
        return placed(expert, clustered(expert, weight, pairs, room.slots_of, slack))
    node = clustered(expert, weight, pairs, per_node(room), slack)
    return placed(expert, spread_in_nodes(expert, weight, node, room))


def islands(rng: np.random.Generator, past: Past, room: Room, *, slack: float = 0.05) -> Placement:
    """As many groups of neighbouring nodes as can hold every expert each, so that a token need not go further than its group.

    With slots for every expert twice on four nodes, two of them hold a whole set, and a token has to leave its node at most
    once. Inside a group slots that are left are replicas of the busiest experts; experts are dealt to its nodes as by
    `coactivation` where tokens are known, else by load, and to GPUs as by `lpt`. Goes with the replica rule `nearest`;
    with `token_hash` a token's choices stay in one group as far as experts have as many replicas as there are groups.

    Args:
        slack: of a node's load over its mean.

    Raises:
        InputError: fewer slots than experts, or a negative slack.
    """
    need_slots(past, room)
    if not slack >= 0:
        raise InputError(f"placement.slack={slack}: must be a number from 0 up")
    slots, n = per_node(room), room.n_nodes
    groups = max(g for g in range(1, n + 1) if n % g == 0 and slots.reshape(g, -1).sum(axis=1).min() >= past.n_experts)
    pairs = None if past.asked is None else past.together("islands")
    experts, gpus = [], []
    for i in range(groups):
        nodes = np.arange(i * n // groups, (i + 1) * n // groups)
        inside = np.flatnonzero(np.isin(room.node_of, nodes))
        own = Room(slots_of=room.slots_of[inside], node_of=room.node_of[inside] - nodes[0])
        expert, _, count = replicated(past.total, own.n_slots)
        weight = (past.total / count)[expert]
        if pairs is None:
            node = spread(expert, weight, per_node(own))
        else:
            node = clustered(expert, weight, pairs / np.outer(count, count), per_node(own), slack)
        experts.append(expert)
        gpus.append(inside[spread_in_nodes(expert, weight, node, own)])
    return placed(np.concatenate(experts), np.concatenate(gpus))


def clustered(expert: Ints, weight: Floats, pairs: Floats, room_of: Ints, slack: float) -> Ints:
    """The bin of every item, grown from the busiest ones by the tokens that an item shares with a bin; int [items].

    Args:
        expert, weight: [items].
        pairs: float [experts, experts], tokens in common.
        room_of: int [bins].
    """
    n_bins, order = room_of.size, np.argsort(-weight, kind="stable")
    bin_of = np.full(expert.size, -1, np.int64)
    left, load = room_of.copy(), np.zeros(n_bins)
    limit = (1 + slack) * weight.sum() * room_of / room_of.sum()
    common = np.zeros((expert.size, n_bins))
    held = np.zeros((n_bins, int(expert.max()) + 1), bool)

    def join(item: int, where: int) -> None:
        bin_of[item] = where
        left[where] -= 1
        load[where] += weight[item]
        held[where, expert[item]] = True
        common[:, where] += pairs[expert, expert[item]]

    for where, item in zip(np.flatnonzero(room_of > 0), order, strict=False):
        join(int(item), int(where))
    while (free := np.flatnonzero(bin_of < 0)).size:
        fits = (left > 0) & (load + weight[free, None] <= limit) & ~held[:, expert[free]].T
        if fits.any():
            best = int(np.where(fits, common[free], -1.0).argmax())
            join(int(free[best // n_bins]), best % n_bins)
            continue
        item = int(free[weight[free].argmax()])
        open_to = (left > 0) & ~held[:, expert[item]]
        join(item, int(np.where(open_to if open_to.any() else left > 0, load, np.inf).argmin()))
    return bin_of


def next_layer(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """Experts stand where the experts stand that their tokens come from, layer after layer; the first layer as by `contiguous`.

    A layer given the one before is an assignment problem, solved exactly: every slot gets the expert whose tokens' first
    choice in the layer before stands on that GPU most often, and as good as nothing counts on the node. Loads are not
    balanced. Replicas are EPLB's.

    Inspired by ExFlow (IPDPS 2024, github YJHMITWEB/ExFlow), which solves all layers in one integer program and then leaves
    out the combine: here tokens go home after every layer, so that a short way from layer to layer saves nothing by itself.

    Raises:
        InputError: fewer slots than experts, or tokens are not known.
    """
    need_slots(past, room)
    if past.asked is None:
        past.lacks_tokens("next_layer")
    expert, _, count = replicated(past.total, room.n_slots)
    if past.before is None:
        return Placement(gpu_of=room.gpu_of, expert_of=np.sort(expert))
    asked_before, placed_before = past.before
    # where a token was: on the GPUs of all slots of its first expert, in equal parts
    homes = np.zeros((past.n_experts, room.n_gpus))
    np.add.at(homes, (placed_before.expert_of, placed_before.gpu_of), 1.0)
    homes /= np.maximum(1.0, homes.sum(axis=1, keepdims=True))
    come = _follows(asked_before[:, 0], past.asked, past.n_experts) @ homes     # [experts, gpus]
    near = np.zeros_like(come)
    for i in range(room.n_nodes):
        own = room.node_of == i
        near[:, own] = come[:, own].sum(axis=1, keepdims=True)
    gain = (come + 0.5 * near) / count[:, None]     # a move inside the node costs half of one between nodes
    return placed(expert, assigned(gain[expert], room))


def source_aware(rng: np.random.Generator, past: Past, room: Room, *, balance: float = 1.0) -> Placement:
    """Experts stand near the GPUs that their tokens start on, as far as loads stay even.

    Busiest replica first, each to the GPU with room where its tokens' ways (0 own GPU, 1 own node, 4 another node), in
    shares of the mean load, plus `balance` times the load that the GPU then has, in the same shares, are least. Replicas
    are EPLB's; a token is taken to go to the replica nearest to it.

    Raises:
        InputError: fewer slots than experts, tokens are not known, a negative balance.
    """
    need_slots(past, room)
    if not balance >= 0:
        raise InputError(f"placement.balance={balance}: must be a number from 0 up")
    tokens = past.by_source("source_aware", room.n_gpus)
    expert, _, count = replicated(past.total, room.n_slots)
    weight = (past.total / count)[expert]
    mean = max(float(past.total.sum()) / room.n_gpus, np.finfo(float).tiny)
    cost = ways(room)
    far = np.full(tokens.shape, cost.max())         # [gpus, experts] the way to the nearest replica so far
    left, load = room.slots_of.copy(), np.zeros(room.n_gpus)
    gpu = np.empty(expert.size, np.int64)
    for item in np.argsort(-weight, kind="stable"):
        e = expert[item]
        way = np.minimum(cost, far[:, e][:, None]) * tokens[:, e][:, None]      # [from, to]
        score = way.sum(axis=0) / mean + balance * (load + weight[item]) / mean
        best = int(np.where(left > 0, score, np.inf).argmin())
        gpu[item] = best
        left[best] -= 1
        load[best] += weight[item]
        far[:, e] = np.minimum(far[:, e], cost[:, best])
    return placed(expert, gpu)


def assigned(gain: Floats, room: Room) -> Ints:
    """The GPU of every item so that the gains sum to the most; float [items, gpus] to int [items], slots of a GPU respected."""
    from scipy.optimize import linear_sum_assignment

    items, slots = linear_sum_assignment(gain[:, room.gpu_of], maximize=True)
    gpu = np.empty(gain.shape[0], np.int64)
    gpu[items] = room.gpu_of[slots]
    return gpu


def _follows(first: Ints, asked: Ints, n_experts: int) -> Floats:
    """Tokens that chose expert i now and came from expert j, float [i, j]; `first` is their first choice before."""
    n = n_experts + 1
    key = (asked + 1) * n + (first + 1)[:, None]
    return np.bincount(key.ravel(), minlength=n * n).reshape(n, n)[1:, 1:].astype(np.float64)
