"""What a machine's wires amount to: bisection, diameter, oversubscription. From the graph alone, no traffic."""

from __future__ import annotations

from collections import defaultdict

import networkx as nx
import numpy as np

from clustersim.cluster import Cluster, Link


def bisection_bandwidth(cluster: Cluster) -> float:
    """Bytes/s that the first half of the nodes can send to the rest (of the GPUs, on one node); 0 for one GPU.

    The largest flow over the links that routes between the halves use. Nodes are alike, so any halves would do.
    """
    nodes, per_node = cluster.n_nodes, cluster.gpus_per_node
    half = nodes // 2 * per_node if nodes > 1 else per_node // 2
    if half == 0:
        return 0.0
    src, dst = (side.ravel() for side in np.meshgrid(np.arange(half), np.arange(half, cluster.n_gpus)))
    used = set(cluster.routes(src, dst).links.tolist())
    graph = nx.DiGraph()
    for tail, head, data in cluster.graph.edges(data=True):
        if data["link"] in used:
            graph.add_edge(tail, head, capacity=data["capacity"])
    for g in range(cluster.n_gpus):         # an edge without a capacity has room for everything
        graph.add_edge(*(("from", ("gpu", g, "out")) if g < half else (("gpu", g, "in"), "to")))
    return float(nx.maximum_flow_value(graph, "from", "to"))


def diameter(cluster: Cluster) -> int:
    """Links on the longest route between two GPUs; 0 for one GPU."""
    ends = np.unique(cluster.port_switch, axis=0, return_index=True)[1] if cluster.port_switch.size else np.zeros(0, np.int64)
    reps = np.unique(np.concatenate([ends, ends + 1])) % cluster.n_gpus         # GPUs on the same switches are alike
    pairs = np.array([(a, b) for a in reps for b in reps if a != b], np.int64).reshape(-1, 2)
    return int(np.diff(cluster.routes(pairs[:, 0], pairs[:, 1]).start).max()) if pairs.size else 0


def oversubscription(cluster: Cluster) -> dict[str, float]:
    """For each tier of switches, bytes/s from below over bytes/s to above (1 = non-blocking); the top is left out."""
    below: dict[tuple[str, int], float] = defaultdict(float)
    above: dict[tuple[str, int], float] = defaultdict(float)
    for tail, head, data in cluster.graph.edges(data=True):
        if tail[0] == "gpu":
            below[head] += data["capacity"]
        elif data["kind"].endswith("_up"):
            above[tail] += data["capacity"]
    tiers: dict[str, float] = {}
    for switch, up in above.items():
        tiers[switch[0]] = max(tiers.get(switch[0], 0.0), below[switch] / up)
    return tiers


def by_kind(cluster: Cluster) -> dict[str, list[Link]]:
    """The links of each kind, in the order of their ids."""
    kinds: dict[str, list[Link]] = {}
    for link in cluster.links:
        kinds.setdefault(link.kind, []).append(link)
    return kinds
