"""What a step sends beside its exchanges, as flows over the links of one expert group: rings and sends. Plays nothing.

All groups are alike and do the same at the same time, so what GPU g of a group sends to GPU g of another arrives at GPU g of
this one: the flow goes up as on the way to the next node of the group, and down as on the way from the one before. Max-min
shares of the whole cluster are then those of the one group. A ring is flows over the ports of each of its GPUs, and through when
the slowest is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from clustersim.cluster import Cluster
from clustersim.engine.collectives import Ring, Wires, ring_of
from clustersim.exchange.software import equipped
from clustersim.network.sharing import each_link_once
from clustersim.parallel import Parallel
from clustersim.training.gradients import WEIGHT, Held, sharers
from clustersim.types import Floats, Ints, Routes, Transfers, independent


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What is on its way while a pass of a device is made, from its start on."""

    sends: tuple[bool, ...] = ()    # what the pass before leaves to other stages; each over NICs, or inside a node
    reduce: float = 0.0             # of the device's gradients, this share
    gather: float = 0.0             # of its weights
    held: Held | None = None        # the weights; with `reduce` or `gather`
    twin: int | None = None         # as of `gradients.update`

    def __bool__(self) -> bool:
        return bool(self.sends or self.reduce or self.gather)


NONE = Beside()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Aside:
    """Flows of one kind, and how long they take when nothing else is on their links."""

    what: str                           # sends | reduce | gather
    in_turn: tuple[Transfers, ...]      # one after the other
    alone_s: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Ways:
    """Links of each GPU's way out to, and in from, the GPU of its own place in another group: what a byte takes of them."""

    n_gpus: int
    per_node: int
    nvlink: tuple[tuple[Ints, Floats], ...]     # [gpus] links and weights; empty where there is no such way
    nic: tuple[tuple[Ints, Floats], ...]


def ways_of(cluster: Cluster, raw: Cluster) -> Ways:
    """The ways of an expert group's machine.

    Args:
        cluster: as its exchange drives it. A byte of NCCL's takes as much of a link's time as NCCL needs for it there.
        raw: the same machine as it is wired.
    """
    slower = cluster.capacity[: cluster.n_wires] / equipped("nccl_alltoall", {"kernel": "nccl"}, raw).capacity[: raw.n_wires]
    n, inside = cluster.n_gpus, cluster.gpus_per_node
    gpus = np.arange(n)
    nothing = tuple((np.zeros(0, np.int64), np.zeros(0)) for _ in range(n))
    around = gpus // inside * inside + (gpus + 1) % inside              # the next of the same node
    downwards = np.array([link.kind.endswith("_down") for link in cluster.links])
    on = (gpus + inside) % n if cluster.n_nodes > 1 else around         # the same of the next node

    def loops(to: Ints, kind: str) -> tuple[tuple[Ints, Floats], ...]:
        if n == 1 or (to == gpus).any() or not any(link.kind.startswith(kind) for link in cluster.links):
            return nothing
        routes = cluster.routes(gpus, to, np.full(n, kind == "nic"))
        back = np.argsort(to)                                           # whose way leads to GPU g
        found = []
        for g in range(n):
            out, into = (slice(routes.start[i], routes.start[i + 1]) for i in (g, back[g]))
            up, down = ~downwards[routes.links[out]], downwards[routes.links[into]]
            links = np.concatenate((routes.links[out][up], routes.links[into][down]))
            weights = np.concatenate((routes.weights[out][up], routes.weights[into][down]))
            found.append((links, weights * slower[links]))
        return tuple(found)

    return Ways(n_gpus=n, per_node=inside, nvlink=loops(around, "nvlink"), nic=loops(on, "nic"))


def asides_of(
    parallel: Parallel, wires: Wires, ways: Ways, *, send_bytes: float, gradient_bytes: float
) -> Callable[[Beside], tuple[Aside, ...]]:
    """What lays out the flows of what is beside a pass.

    Args:
        send_bytes: that a GPU leaves to another stage.
        gradient_bytes: of a weight's gradient.
    """

    @cache
    def asides(beside: Beside) -> tuple[Aside, ...]:
        found = [send_aside(send_bytes, beside.sends, ways, wires)] if beside.sends else []
        for what, share, each in (("reduce", beside.reduce, gradient_bytes), ("gather", beside.gather, WEIGHT)):
            if share:
                found.append(update_aside(what, share * each, beside, parallel, ways, wires))
        return tuple(each for each in found if each is not None)

    return asides


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Flow:
    """One flow before it is laid out."""

    gpu: int
    nbytes: float
    way: tuple[Ints, Floats]        # links and weights
    times: float                    # what a byte takes of them: this often its weight
    latency: float


def ring_flows(ring: Ring, groups: Ints, ways: Ways, wires: Wires) -> list[Flow]:
    """The flows of a ring in every group, where the groups are alike.

    A node's members have a NIC's share of the bytes each, so there is a ring for each of them, and all go through all ports to
    NVLink: two flows for every GPU, of which the slower one is the ring's, as in the closed form.

    Args:
        groups: [groups, members] ranks of those with a GPU in the first expert group.
    """
    flows, rings = [], ring.rings if ring.nodes > 1 else 1
    late = ring.seconds - ring.moving_s
    for gpu in sorted({gpu for group in groups for gpu in (group % ways.n_gpus).tolist()}):
        if ring.nodes > 1:
            share, slower = ring.through / rings, wires.nic / ring.by.nic
            flows.append(Flow(gpu=gpu, nbytes=share, way=ways.nic[gpu], times=slower, latency=late))
        if ring.nodes == 1 or rings > 1:
            slower = wires.nvlink / ring.by.nvlink
            flows.append(Flow(gpu=gpu, nbytes=ring.through, way=ways.nvlink[gpu], times=slower, latency=late))
    return [flow for flow in flows if flow.way[0].size]


def update_aside(what: str, each: float, beside: Beside, parallel: Parallel, ways: Ways, wires: Wires) -> Aside | None:
    """The collectives of gradients (`what` "reduce") or weights ("gather"): those of all but experts, then those of experts.

    Args:
        each: bytes of a weight.
    """
    assert beside.held is not None
    passes = 1 if what == "gather" or parallel.zero else 2
    in_turn, alone, group = [], 0.0, np.arange(ways.n_gpus)
    for weights, groups in zip((beside.held.dense, beside.held.experts), sharers(parallel, beside.twin), strict=True):
        mine = groups[(np.isin(groups, group)).any(axis=1)]
        ring = ring_of(weights * each, mine[0], wires, passes)
        if ring is not None:
            in_turn.append(_laid(ring_flows(ring, mine, ways, wires)))
            alone += ring.seconds
    return Aside(what=what, in_turn=tuple(in_turn), alone_s=alone) if in_turn else None


def send_aside(nbytes: float, sends: Sequence[bool], ways: Ways, wires: Wires) -> Aside | None:
    """What every GPU leaves to the one of its place in other stages; each of `sends` over NICs, or inside a node."""
    flows = []
    alone = 0.0
    for far in sends:
        rate, hop = (wires.nic, wires.nic_hop_s) if far else (wires.nvlink, wires.nvlink_hop_s)
        alone = max(alone, nbytes / rate + hop)
        every = enumerate(ways.nic if far else ways.nvlink)
        flows += [Flow(gpu=gpu, nbytes=nbytes, way=way, times=1.0, latency=hop) for gpu, way in every if way[0].size]
    return Aside(what="sends", in_turn=(_laid(flows),), alone_s=alone) if flows else None


def _laid(flows: Sequence[Flow]) -> Transfers:
    gpus = np.array([flow.gpu for flow in flows], np.int64)
    nbytes = np.array([flow.nbytes for flow in flows])
    ways = each_link_once(Routes(
        start=np.concatenate(([0], np.cumsum([flow.way[0].size for flow in flows]))).astype(np.int64),
        links=np.concatenate([flow.way[0] for flow in flows]),
        weights=np.concatenate([flow.way[1] * flow.times for flow in flows]),
        latency=np.array([flow.latency for flow in flows]),
    ))  # fmt: skip
    return replace(independent(gpus, gpus, nbytes), ways=ways)
