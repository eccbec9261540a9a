"""What a machine's wires amount to: bisection, diameter, oversubscription, how evenly routes load them. Sets no clock."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import networkx as nx
import numpy as np

from clustersim.cluster import Cluster
from clustersim.network.bounds import link_bytes
from clustersim.types import Floats, Ints
from clustersim.wiring import Link

CHUNK = 1 << 18         # pairs whose routes are held at once


def bisection_bandwidth(cluster: Cluster) -> float:
    """Bytes/s that the first half of the nodes can send to the rest (of the GPUs, on one node); 0 for one GPU.

    The largest flow over the links by which such GPUs reach each other: NVLink where it joins them, else everything beyond.
    It is a property of the wires; how routes use them is `all_to_all`'s matter.
    """
    nodes, per_node = cluster.n_nodes, cluster.gpus_per_node
    half = nodes // 2 * per_node if nodes > 1 else per_node // 2
    if half == 0:
        return 0.0
    inside = cluster.wires.nvlink.reaches(np.arange(half)[:, None], np.arange(half, cluster.n_gpus)[None, :])
    used = {link for ways, any_ in ((cluster.wires.nvlink, inside.any()), (cluster.wires.network, not inside.all())) if any_
            for link in ways.links.tolist()}  # fmt: skip
    rates: dict[tuple[str, str], float] = defaultdict(float)        # GPUs of a half are one
    for tail, head, data in cluster.graph.edges(data=True):
        a, b = (_side(node, half) for node in (tail, head))
        if data["link"] in used and a != "second half" and b != "first half":
            rates[a, b] += data["capacity"]
    graph = nx.DiGraph()
    graph.add_nodes_from(("first half", "second half"))
    graph.add_edges_from((a, b, {"capacity": rate}) for (a, b), rate in rates.items())
    return float(nx.maximum_flow_value(graph, "first half", "second half"))


def _side(node: tuple[str, int, str] | str, half: int) -> str:
    return node if isinstance(node, str) else "first half" if node[1] < half else "second half"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AllToAll:
    """What the machine's routes make of one byte from every GPU to every other one."""

    link_bytes: Floats          # [links]
    hops: int                   # links on the longest route; a spread over several ways counts the links of one
    latency_s: float            # of the slowest route
    gpu_bytes_per_s: float      # that every GPU can send when all send alike; 0 for one GPU
    busiest: str | None         # the link that limits it


def all_to_all(cluster: Cluster) -> AllToAll:
    """Follow the routes of all pairs of GPUs."""
    n = cluster.n_gpus
    total, hops, latency = np.zeros(len(cluster.links)), 0.0, 0.0
    step = max(1, CHUNK // n)
    for begin in range(0, n, step):
        src, dst = np.divmod(np.arange(begin * n, min(n, begin + step) * n), n)
        routes = cluster.routes(src[src != dst], dst[src != dst])
        if routes.links.size:
            total += link_bytes(routes, np.ones(routes.latency.size), total.size)
            hops = max(hops, float(np.add.reduceat(routes.weights, routes.start[:-1]).max()))
            latency = max(latency, float(routes.latency.max()))
    seconds = total / cluster.capacity
    if not hops:
        return AllToAll(link_bytes=total, hops=0, latency_s=0.0, gpu_bytes_per_s=0.0, busiest=None)
    busiest = int(seconds.argmax())
    return AllToAll(
        link_bytes=total, hops=round(hops), latency_s=latency, gpu_bytes_per_s=(n - 1) / float(seconds[busiest]),
        busiest=cluster.links[busiest].name,
    )  # fmt: skip


def diameter(cluster: Cluster) -> int:
    """Links on the longest route between two GPUs; 0 for one GPU."""
    return all_to_all(cluster).hops


def heights(cluster: Cluster) -> dict[str, int]:
    """How far each switch is from the nearest GPU, in links: 1 for those that have a GPU's port."""
    switches = nx.Graph()
    low: set[str] = set()
    for tail, head in cluster.graph.edges():
        if isinstance(tail, str) and isinstance(head, str):
            switches.add_edge(tail, head)
        else:
            low.update(node for node in (tail, head) if isinstance(node, str))
    switches.add_nodes_from(low)
    if not low:
        return {}
    far: dict[str, int] = nx.multi_source_dijkstra_path_length(switches, low)
    return {switch: hops + 1 for switch, hops in far.items()}


def oversubscription(cluster: Cluster) -> dict[str, float]:
    """For each tier of switches, the most that enters one from below / what leaves it upwards, in bytes/s (1 = non-blocking).

    A tier is named by the first words of its switches; those that lead nowhere further are left out. Links to switches as far
    from the GPUs count as upwards; but where switches form groups (dragonfly) the tier is `group`: what NICs bring into one /
    what leads to other groups.
    """
    far = heights(cluster)
    group_of = nx.get_node_attributes(cluster.graph, "group")
    below: dict[tuple[str, object], float] = defaultdict(float)
    above: dict[tuple[str, object], float] = defaultdict(float)
    for tail, head, data in cluster.graph.edges(data=True):
        from_, to = (far[node] if isinstance(node, str) else 0 for node in (tail, head))
        rate = data["capacity"]
        if from_ < to:
            below[tier_of(head), head] += rate
            if from_ > 0:
                above[tier_of(tail), tail] += rate
            if head in group_of:
                below["group", group_of[head]] += rate
        elif from_ == to and tail not in group_of:
            above[tier_of(tail), tail] += rate
        elif from_ == to and group_of[tail] != group_of.get(head):
            above["group", group_of[tail]] += rate
    tiers: dict[str, float] = {}
    for (tier, switch), up in above.items():
        tiers[tier] = max(tiers.get(tier, 0.0), below[tier, switch] / up)
    return tiers


def tier_of(switch: str) -> str:
    """`leaf` for `leaf 3`."""
    return switch.rpartition(" ")[0] or switch


def parallel_links(cluster: Cluster) -> Ints:
    """For every link [links] the set of links that routes may choose among beside it, by number; -1 where there is no choice.

    They are of one kind and lead up from one switch (or GPU), down to one, or from one group of switches to another.
    """
    far, group_of = heights(cluster), nx.get_node_attributes(cluster.graph, "group")
    sets: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for tail, head, data in cluster.graph.edges(data=True):
        from_, to = (far[node] if isinstance(node, str) else 0 for node in (tail, head))
        ends = (tail,) if from_ < to else (head,) if from_ > to else (group_of.get(tail, tail), group_of.get(head, head))
        if from_ != to or group_of.get(tail) != group_of.get(head):
            sets[data["kind"], *ends].append(data["link"])
    of = np.full(len(cluster.links), -1)
    for i, members in enumerate(links for links in sets.values() if len(links) > 1):
        of[members] = i
    return of


def collisions(cluster: Cluster, carried: Floats) -> dict[str, float]:
    """How much longer than need be the busiest link of each kind is busy, since routes load parallel links unevenly.

    For a kind with parallel links: the largest bytes / capacity of one, over the largest that an even spread within each set
    of parallel links would leave. 1 is even; 2 means that collisions double the time of that tier.

    Args:
        carried: bytes [links].
    """
    of = parallel_links(cluster)
    seconds, ratios = carried / cluster.capacity, {}
    for kind in dict.fromkeys(link.kind for link in cluster.links):
        rows = np.array([link.id for link in cluster.links if link.kind == kind and of[link.id] >= 0], np.int64)
        if rows.size and carried[rows].any():
            total, rate = (np.bincount(of[rows], values[rows]) for values in (carried, cluster.capacity))
            even = total[rate > 0] / rate[rate > 0]
            ratios[kind] = float(seconds[rows].max() / even.max())
    return ratios


def by_kind(cluster: Cluster) -> dict[str, list[Link]]:
    """The links of each kind, in the order of their ids."""
    kinds: dict[str, list[Link]] = {}
    for link in cluster.links:
        kinds.setdefault(link.kind, []).append(link)
    return kinds
