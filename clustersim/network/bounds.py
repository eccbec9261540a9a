"""What no schedule can beat: every link, by itself, working through its bytes as they become available. Pure NumPy."""

from __future__ import annotations

import numpy as np

from clustersim.network.changes import Changes, earliest_end
from clustersim.types import Floats, Routes, Transfers


def busiest_link_end(
    capacity: Floats, routes: Routes, nbytes: Floats, release: Floats, hop_latency: Floats | None = None,
    changes: Changes | None = None,
) -> tuple[float, int]:  # fmt: skip
    """The latest time at which some link has, at best, carried its bytes; and that link.

    Each link alone is a single machine with release dates: flow i of `nbytes[i]` bytes may start at `release[i]`, so
    the link ends no earlier than max over i of release_i + (bytes of all flows not released before i) / capacity.
    The last flow then still needs the latency of its way. Where latency passes hop by hop, what a link's first flow has
    before it and its last flow has behind it may belong to different ways: the least of each counts.

    Args:
        capacity: bytes/s [links].
        routes: of the flows.
        nbytes, release: bytes and seconds [flows].
        hop_latency: seconds [links] where latency passes hop by hop; None where all of it passes at the end.
        changes: capacities to come; of a link that has some, what it can carry is the integral over them.

    Returns:
        Seconds and a link id; (0, -1) without flows.
    """
    if not nbytes.size:
        return 0.0, -1
    if (release == release[0]).all():                       # nothing to sort: what counts is the sum
        load = link_bytes(routes, nbytes, capacity.size)
        load = np.divide(load, capacity, out=np.zeros(capacity.size), where=load > 0)
        ends = np.where(load > 0, release[0] + load, -np.inf)
    else:
        ends = _ends_of_staggered(capacity, routes, nbytes, release)
    if changes is not None:
        flow = np.repeat(np.arange(nbytes.size), np.diff(routes.start))
        for link in np.unique(changes.link):
            if (crossing := np.flatnonzero(routes.links == link)).size:
                of, sizes = flow[crossing], nbytes[flow[crossing]] * routes.weights[crossing]
                ends[link] = earliest_end(float(capacity[link]), changes, link, release[of], sizes)
    used = ends > -np.inf
    ends[used] += _least_latency(routes, hop_latency, capacity.size)[used]
    busiest = int(ends.argmax())
    return float(ends[busiest]), busiest


def _ends_of_staggered(capacity: Floats, routes: Routes, nbytes: Floats, release: Floats) -> Floats:
    """When each link could be through without latency, [links]; -inf where nothing crosses."""
    flow = np.repeat(np.arange(nbytes.size), np.diff(routes.start))
    order = np.lexsort((release[flow], routes.links))
    link, flow = routes.links[order], flow[order]
    seconds = nbytes[flow] * routes.weights[order] / capacity[link]
    last = np.flatnonzero(np.append(link[1:] != link[:-1], True))       # of each link
    first = np.concatenate(([0], last[:-1] + 1))
    from_here = np.cumsum(seconds[::-1])[::-1]
    beyond = np.append(from_here, 0.0)[np.repeat(last + 1, last - first + 1)]
    ends: Floats = np.full(capacity.size, -np.inf)
    ends[link[first]] = np.maximum.reduceat(release[flow] + from_here - beyond, first)
    return ends


def latest_end(capacity: Floats, routes: Routes, load: Floats, release: Floats) -> float:
    """The time by which max-min sharing has surely ended all flows, none of which follows another.

    While a flow lives, some link of its way is full, and a link is full for no longer than its bytes take; so a flow ends no
    later than its release, the loads of all links on its way, and its latency, one after the other.

    Args:
        load: bytes that each link carries, [links].
    """
    if not release.size:
        return 0.0
    along = np.add.reduceat((load / capacity)[routes.links], routes.start[:-1])
    return float((release + along + routes.latency).max())


def _least_latency(routes: Routes, hop_latency: Floats | None, n_links: int) -> Floats:
    """Of the ways over each link, [links]: the least latency; hop by hop, the least before it and the least from it on."""
    if not routes.latency.any():
        return np.zeros(n_links)
    hops = np.diff(routes.start)
    whole = np.repeat(routes.latency, hops)
    least: Floats = np.full(n_links, np.inf)
    if hop_latency is None:
        np.minimum.at(least, routes.links, whole)
        return least
    sums = np.concatenate(([0.0], np.cumsum(hop_latency[routes.links])))
    onward = np.repeat(sums[routes.start[1:]], hops) - sums[:-1]
    before: Floats = np.full(n_links, np.inf)
    np.minimum.at(before, routes.links, whole - onward)
    np.minimum.at(least, routes.links, onward)
    return before + least


def link_bytes(routes: Routes, nbytes: Floats, n_links: int) -> Floats:
    """Bytes each link carries, [links]."""
    per_hop = np.repeat(nbytes, np.diff(routes.start)) * routes.weights
    return np.bincount(routes.links, per_hop, n_links).astype(np.float64)


def chained(transfers: Transfers, own: Floats, release: Floats) -> tuple[Floats, Floats]:
    """Latency from the first hop on, and earliest start, of transfers that may follow others.

    Args:
        own: seconds of latency of each transfer's own way.
        release: seconds at which each transfer's source lets it go.

    Returns:
        (latency, release): a follower's latency adds the longest of those it follows, and it is released no earlier.
    """
    latency, earliest = own.copy(), release.copy()
    children = np.flatnonzero(np.diff(transfers.after_start))
    parents_of = np.repeat(np.arange(transfers.n), np.diff(transfers.after_start))
    while children.size:                # one round per hop of the longest chain
        before = latency.copy(), earliest.copy()
        inherited = np.zeros(transfers.n)
        np.maximum.at(inherited, parents_of, latency[transfers.after])
        latency[children] = own[children] + inherited[children]
        np.maximum.at(earliest, parents_of, earliest[transfers.after])
        if (before[0] == latency).all() and (before[1] == earliest).all():
            break
    return latency, earliest
