"""Links that can never fill up, whatever the flows do, because ports cannot bring enough: sharing does without them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clustersim.cluster import Cluster
from clustersim.types import Floats, InputError, Ints, Routes

MOST_GPUS = 256         # sprayed over 32 spines, the routes of their pairs have 4 million links
ENOUGH = 1 + 1e-12      # of what ports bring at most: a link that fills up just when all of its ports do limits nobody


def never_full(capacity: Floats, routes: Routes) -> NDArray[np.bool_]:
    """Inner links, neither the first nor the last of any route, that cannot limit a flow, bool [links].

    A flow is no faster than its first link lets it be; so what crosses a link together is no more than what the first
    links of its flows carry at most, each counted once, times the greatest share of it that goes there. So with last links.
    """
    from clustersim.network import loads

    idle = np.zeros(capacity.size, bool)
    if not routes.latency.size or routes.links.size <= 2 * routes.latency.size:
        return idle                                         # hardly an inner link
    inner = np.ones(capacity.size, bool)
    for ends in (routes.start[:-1], routes.start[1:] - 1):
        inner[routes.links[ends]] = False
    for ends in (routes.start[:-1], routes.start[1:] - 1):
        port, there = routes.links[ends], routes.weights[ends]
        order: Ints = np.empty(port.size, np.int64)
        loads.group_by(port, np.zeros(capacity.size + 1, np.int64), order)
        fed, share, seen = np.zeros(capacity.size), np.zeros(capacity.size), np.full(capacity.size, -1)
        loads.most_fed(routes.start, routes.links, routes.weights, port, there, order, capacity, seen, share, fed)
        idle |= inner & (fed <= capacity * ENOUGH)
    return idle


def never_full_between_any(cluster: Cluster) -> NDArray[np.bool_] | None:
    """Wires that cannot limit a flow whatever GPUs send to each other, and by whatever exchanges at once, bool [links].

    None where that is not worth finding out (very many pairs) or cannot be: a routing policy of the user's may not see each pair
    by itself, and a machine may have pairs without a way.
    """
    from clustersim.network import loads

    n, policy = cluster.n_gpus, getattr(cluster.policy, "func", cluster.policy)
    if n > MOST_GPUS or not policy.__module__.startswith("clustersim."):
        return None
    src, dst = np.divmod(np.arange(n * n), n)
    apart = src != dst
    inside = apart & (src // cluster.gpus_per_node == dst // cluster.gpus_per_node) & cluster.wires.network.reaches(src, dst)
    try:
        every = [cluster.routes(src[apart], dst[apart])]
        if inside.any():
            every.append(cluster.routes(src[inside], dst[inside], np.ones(int(inside.sum()), bool)))
    except InputError:
        return None
    start = np.concatenate(([0], np.cumsum(np.concatenate([np.diff(routes.start) for routes in every])))).astype(np.int64)
    links, weights, latency = (np.concatenate([getattr(r, name) for r in every]) for name in ("links", "weights", "latency"))
    if loads.names_twice(start, links):                     # more of it goes there than one of its weights says
        return None
    crossed = np.zeros(cluster.capacity.size, bool)
    crossed[links] = True                                   # nothing is known of the others, and lanes are among these
    return crossed & never_full(cluster.capacity, Routes(start=start, links=links, weights=weights, latency=latency))


def pruned(capacity: Floats, routes: Routes) -> Routes:
    """The routes without the links that are never full; rates and times are the same without them."""
    return without(routes, never_full(capacity, routes))


def without(routes: Routes, idle: NDArray[np.bool_]) -> Routes:
    """The routes without the links that are `idle`, bool [links]; the same latency."""
    from clustersim.network import loads

    if not idle[routes.links].any():
        return routes
    start, links, weights = np.empty_like(routes.start), np.empty_like(routes.links), np.empty_like(routes.weights)
    n = int(loads.drop_hops(routes.start, routes.links, routes.weights, idle, start, links, weights))
    return Routes(start=start, links=links[:n].copy(), weights=weights[:n].copy(), latency=routes.latency)
