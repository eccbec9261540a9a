"""Virtual links beside the wires: how fast SMs copy, how fast messages are issued, so that one solver prices both. No traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from clustersim.cluster import Cluster
from clustersim.types import Floats, Ints, Lanes, Routes, Transfers
from clustersim.wiring import Link


def equip(cluster: Cluster, lanes: Mapping[str, float], *, nvlink: float = 1.0, nic: float = 1.0) -> Cluster:
    """The machine with one more link per GPU for every kind of lane, and with ports as fast as a kernel drives them.

    Args:
        lanes: kind -> capacity of each GPU's, in bytes/s (or what the weights of `Lanes` count, per second).
        nvlink, nic: the share of its data-sheet rate that a kernel gets out of a port; a port already slower stays.
    """
    n, first = cluster.n_gpus, len(cluster.links)
    capacity = cluster.capacity.copy()
    for share, kind in ((nvlink, "nvlink"), (nic, "nic")):
        of = np.array([link.kind.startswith(f"{kind}_") for link in cluster.links])
        if share < 1 and cluster.nominal[kind] > 0:
            each = np.minimum(capacity, share * cluster.nominal[kind] * _ports(cluster, of, kind))
            capacity = np.where(of, each, capacity)
    added = tuple(
        Link(id=first + i * n + g, kind=kind, name=f"{kind} {g}", capacity=rate, latency=0.0)
        for i, (kind, rate) in enumerate(lanes.items()) for g in range(n)
    )  # fmt: skip
    wires = tuple(replace(link, capacity=float(capacity[link.id])) for link in cluster.links)
    return replace(
        cluster, links=wires + added, capacity=np.concatenate((capacity, [link.capacity for link in added])),
        latency=np.concatenate((cluster.latency, np.zeros(len(added)))),
    )  # fmt: skip


def _ports(cluster: Cluster, of: np.ndarray[tuple[int], np.dtype[np.bool_]], kind: str) -> float:
    """Ports that act as one: NICs of one GPU, or 1."""
    rates = cluster.capacity[of]
    return max(1.0, round(float(rates.max()) / cluster.nominal[kind])) if rates.size else 1.0


def routes_of(cluster: Cluster, transfers: Transfers) -> Routes:
    """The links of transfers: wires as the machine routes them, then their lanes."""
    routes, lanes = cluster.routes(transfers.src, transfers.dst, transfers.by_nic), transfers.lanes
    if lanes is None:
        return routes
    wired, more = np.diff(routes.start), np.diff(lanes.start)
    start = np.concatenate(([0], np.cumsum(wired + more))).astype(np.int64)
    links, weights = np.empty(start[-1], np.int64), np.empty(start[-1])
    at = _rows(start[:-1], wired)
    links[at], weights[at] = routes.links, routes.weights
    at = _rows(start[:-1] + wired, more)
    links[at], weights[at] = cluster.n_wires + lanes.lanes, lanes.weights
    assert not links.size or links.max() < len(cluster.links), "a transfer takes a lane that the machine was not given"
    return Routes(start=start, links=links, weights=weights, latency=routes.latency)


def _rows(begin: Ints, length: Ints) -> Ints:
    """begin[i], begin[i] + 1, ... for each row, one after the other."""
    ends = np.cumsum(length)
    return np.arange(ends[-1] if ends.size else 0) + np.repeat(begin - ends + length, length)


def lanes_from(*uses: tuple[int, Ints, Floats], n_gpus: int) -> Lanes:
    """Lanes of transfers from columns (kind of lane, GPU [transfers] or -1 for none, weight [transfers])."""
    kinds = np.array([kind for kind, _, _ in uses])
    gpus, weights = np.stack([gpu for _, gpu, _ in uses], axis=1), np.stack([weight for _, _, weight in uses], axis=1)
    used = (gpus >= 0) & (weights > 0)
    start = np.concatenate(([0], np.cumsum(used.sum(axis=1)))).astype(np.int64)
    return Lanes(start=start, lanes=(kinds * n_gpus + gpus)[used], weights=weights[used])
