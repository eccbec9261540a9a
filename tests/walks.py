"""What every route has to be, checked on a machine's own graph: bytes leave the source, pass every switch, reach the goal."""

from __future__ import annotations

import numpy as np

from clustersim.cluster import Cluster
from clustersim.types import Ints, Routes


def pairs_of(cluster: Cluster, most: int = 6000) -> tuple[Ints, Ints]:
    """All pairs of GPUs, or every so many of them."""
    n = cluster.n_gpus
    key = np.arange(n * n)[:: max(1, n * n // most | 1)]        # an odd step visits all sources and destinations
    src, dst = key // n, key % n
    return src[src != dst], dst[src != dst]


def ends_of(cluster: Cluster) -> tuple[Ints, Ints]:
    """Where each link begins and ends: a GPU's number, or one beyond the GPUs for a switch, int [links]."""
    switches = {v: cluster.n_gpus + i for i, v in enumerate(v for v in cluster.graph if isinstance(v, str))}
    tail, head = np.full(len(cluster.links), -1), np.full(len(cluster.links), -1)
    for a, b, data in cluster.graph.edges(data=True):
        tail[data["link"]], head[data["link"]] = (switches[v] if isinstance(v, str) else v[1] for v in (a, b))
    assert (tail >= 0).all()
    assert (head >= 0).all()
    return tail, head


def check_routes(cluster: Cluster, src: Ints, dst: Ints, routes: Routes) -> None:
    """Assert that each route carries exactly 1 from its source to its destination, over links that exist, each once."""
    tail, head = ends_of(cluster)
    row = np.repeat(np.arange(src.size), np.diff(routes.start))
    assert routes.start[0] == 0
    assert row.size == routes.links.size == routes.weights.size
    assert (np.diff(routes.start) >= 1).all()
    assert (routes.weights > 0).all()
    assert (routes.weights <= 1 + 1e-12).all()
    once = row * len(cluster.links) + routes.links
    assert np.unique(once).size == once.size, "a route crosses a link twice"
    size = tail.max() + head.max() + 2
    key = np.concatenate((row * size + tail[routes.links], row * size + head[routes.links]))
    nodes, which = np.unique(key, return_inverse=True)
    net = np.bincount(which, np.concatenate((routes.weights, -routes.weights)))
    expected = np.zeros(net.size)
    expected[np.searchsorted(nodes, np.arange(src.size) * size + src)] = 1.0
    expected[np.searchsorted(nodes, np.arange(src.size) * size + dst)] = -1.0
    np.testing.assert_allclose(net, expected, atol=1e-9)
    whole = (routes.weights == 1.0) & (np.roll(row, -1) == row) & (np.roll(routes.weights, -1) == 1.0)
    assert (head[routes.links] == np.roll(tail[routes.links], -1))[whole].all(), "a link does not begin where the last one ended"
    latency = np.bincount(row, cluster.latency[routes.links] * routes.weights, src.size)
    np.testing.assert_allclose(routes.latency, latency, rtol=1e-12)
