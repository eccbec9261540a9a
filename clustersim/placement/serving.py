"""How vLLM and SGLang vary EPLB, and SGLang's greedy by source. They see loads and distances between GPUs, not links."""

from __future__ import annotations

import numpy as np

from clustersim.placement.deepseek import rebalanced
from clustersim.placement.past import Past, Room, need_even, need_slots
from clustersim.types import Floats, InputError, Ints, Placement

OWN, NODE, FAR = 0.0, 1.0, 4.0          # what a token's way costs: own GPU, own node, another node


def eplb_vllm(rng: np.random.Generator, past: Past, room: Room, *, groups: int = 1) -> Placement:
    """EPLB, except that an expert that stays on its GPU stays in its slot, so that it need not be copied.

    Source: vLLM, vllm/distributed/eplb/policy/default.py (`preserve_intragpu_slots`).

    Raises:
        InputError: as `eplb`.
    """
    new = rebalanced("eplb_vllm", past, room, groups, room.n_nodes)
    old = past.now
    if old is None or old.n_slots != new.n_slots or (old.gpu_of != new.gpu_of).any():
        return new
    expert_of = new.expert_of.copy()
    for gpu in range(room.n_gpus):
        own = np.flatnonzero(new.gpu_of == gpu)
        expert_of[own] = kept_in_place(old.expert_of[own], new.expert_of[own])
    return Placement(gpu_of=new.gpu_of, expert_of=expert_of)


def kept_in_place(old: Ints, new: Ints) -> Ints:
    """The experts `new` of one GPU in an order that keeps those already there, `old`, in their slots; both [slots of the GPU].

    Slot after slot, an old expert that is wanted stays; what is new takes the slots that are left, in its own order.
    """
    wanted = new.tolist()
    result = np.full(new.size, -1, np.int64)
    for slot, expert in enumerate(old.tolist()):
        if expert in wanted:
            wanted.remove(expert)
            result[slot] = expert
    result[result < 0] = wanted
    return result


def sglang_vec(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """SGLang's `deepseek_vec`: replicas are given where they lower the largest replica load most, summed over the steps.

    The load of expert e counts 0.0001 e more than it is, which decides between equals. Then slots are dealt in order of
    falling load, the GPUs in turn, every other round backwards.

    Source: SGLang, python/sglang/srt/eplb/eplb_algorithms/deepseek_vec.py.

    Raises:
        InputError: fewer slots than experts, or GPUs that differ in slots.
    """
    need_slots(past, room)
    each = need_even("sglang_vec", room, past.n_experts)
    load = past.load + 1e-4 * np.arange(past.n_experts)
    count = np.ones(past.n_experts)
    extra = []
    rows = np.arange(load.shape[0])
    for _ in range(room.n_slots - past.n_experts):
        now = load / count
        top = now.argmax(axis=1)
        relieved = now.copy()
        relieved[rows, top] = (load / (count + 1))[rows, top]
        largest = np.repeat(now[rows, top][:, None], past.n_experts, axis=1)
        largest[rows, top] = relieved.max(axis=1)
        extra.append(int(largest.sum(axis=0).argmin()))
        count[extra[-1]] += 1
    expert = np.concatenate((np.arange(past.n_experts), np.array(extra, np.int64)))
    weight = (past.total / count)[expert]
    rounds = np.argsort(-weight, kind="stable").reshape(each, room.n_gpus)
    rounds[1::2] = rounds[1::2, ::-1]
    return Placement(gpu_of=room.gpu_of, expert_of=expert[rounds.T.ravel()])


def sglang_topology(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """SGLang's `topology_aware`: busiest expert first, each to the GPU with room that its tokens have the shortest way to.

    The way of a token costs 0 on its own GPU, 1 on its own node, 4 to another node; of equals the first GPU. Loads are
    not balanced, and there are no replicas.

    Source: SGLang, python/sglang/srt/eplb/eplb_algorithms/topology_aware.py; its distances come from the user there.

    Raises:
        InputError: tokens are not known, or the slots are not as many as the experts.
    """
    if room.n_slots != past.n_experts:
        raise InputError(f"placement.slots={room.n_slots}: sglang_topology has no replicas, so {past.n_experts} slots would do")
    gpu = nearest_with_room(past.by_source("sglang_topology", room.n_gpus), ways(room), room.slots_of)
    order = np.argsort(gpu, kind="stable")
    return Placement(gpu_of=gpu[order], expert_of=order)


def ways(room: Room) -> Floats:
    """What the way of a token costs between two GPUs, float [gpus, gpus]."""
    cost = np.where(room.node_of[:, None] == room.node_of[None, :], NODE, FAR)
    np.fill_diagonal(cost, OWN)
    return cost


def nearest_with_room(tokens: Floats, cost: Floats, slots_of: Ints) -> Ints:
    """GPU of every expert: by falling load, each to the GPU with room and the least cost of all its tokens' ways.

    Args:
        tokens: float [gpus, experts], by the GPU that held them.
        cost: float [gpus, gpus], of one token from row to column.
    """
    left = slots_of.copy()
    total = cost.T @ tokens                         # [gpus, experts]
    gpu = np.empty(tokens.shape[1], np.int64)
    for expert in np.argsort(-tokens.sum(axis=0), kind="stable"):
        gpu[expert] = np.where(left > 0, total[:, expert], np.inf).argmin()
        left[gpu[expert]] -= 1
    return gpu
