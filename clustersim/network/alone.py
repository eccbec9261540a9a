"""One exchange by itself, all GPUs in at once, outside the event loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from clustersim.cluster import Cluster
from clustersim.lanes import routes_of
from clustersim.network import coarse, sharing
from clustersim.network.bounds import busiest_link_end, chained
from clustersim.network.pruning import pruned
from clustersim.types import Floats, Routes, Transfers


def exchange_times(cluster: Cluster, transfers: Transfers, *, resolution: float = 0.0) -> Floats:
    """Seconds from the common start until each GPU can go on: its last inbound byte, `Transfers.least` at the earliest, [gpus].

    Args:
        resolution: 0 is exact; else rates are agreed on at most once in `resolution` x the bound of the busiest link.
    """
    ends = np.zeros(cluster.n_gpus) if transfers.least is None else transfers.least.copy()
    if not transfers.n:
        return ends
    routes = routes_of(cluster, transfers)
    latency, earliest = chained(transfers, routes.latency, transfers.release)
    zero, ways = np.zeros(transfers.n, np.int64), pruned(cluster.capacity, routes)
    ways = Routes(start=ways.start, links=ways.links, weights=ways.weights, latency=latency)
    state: Any
    if resolution > 0:
        state = coarse.extend(coarse.empty(cluster.capacity), ways, transfers, inbox=zero, outbox=zero, n_counters=1)
        least, _ = busiest_link_end(cluster.capacity, routes, transfers.nbytes, earliest)
        coarse.set_resolution(state, resolution, least - float(earliest.min()))
        coarse.play_all(state, transfers.release)
    else:
        state = sharing.extend(sharing.empty(cluster.capacity), ways, transfers, inbox=zero, outbox=zero, n_counters=1)
        sharing.solve_all(state, transfers.release)
    np.maximum.at(ends, transfers.dst, state.flows["drain"] + latency)
    return ends
