"""Links that can never fill up, whatever the flows do, because ports cannot bring enough: sharing does without them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, Ints, Routes

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


def pruned(capacity: Floats, routes: Routes) -> Routes:
    """The routes without the links that are never full; rates and times are the same without them."""
    from clustersim.network import loads

    idle = never_full(capacity, routes)
    if not idle[routes.links].any():
        return routes
    start, links, weights = np.empty_like(routes.start), np.empty_like(routes.links), np.empty_like(routes.weights)
    n = int(loads.drop_hops(routes.start, routes.links, routes.weights, idle, start, links, weights))
    return Routes(start=start, links=links[:n].copy(), weights=weights[:n].copy(), latency=routes.latency)
