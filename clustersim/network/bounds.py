"""What no schedule can beat: every link, by itself, working through its bytes as they become available."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.network.changes import Changes, earliest_end
from clustersim.types import Floats, Ints, Routes, Transfers

MOST = 4096             # with more different releases than this, flows are sorted by them


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Narrow:
    """Routes in fewer bytes: taken in the order of releases, every line of memory that is read holds little that is wanted."""

    width: int                                  # hops of every route; 0 where they differ
    start: NDArray[np.int32]                    # [transfers + 1]; empty where they do not
    links: NDArray[np.int32]
    weights: Floats                             # empty where all are 1


def narrow(routes: Routes) -> Narrow:
    """The same ways."""
    n, hops = routes.latency.size, routes.links.size
    width = hops // n if n and hops % n == 0 else 0
    if width and (np.diff(routes.start) != width).any():
        width = 0
    return Narrow(
        width=width,
        start=np.zeros(0, np.int32) if width else routes.start.astype(np.int32),
        links=routes.links.astype(np.int32),
        weights=np.zeros(0) if (routes.weights == 1).all() else routes.weights,
    )


def busiest_link_end(
    capacity: Floats, routes: Routes, nbytes: Floats, release: Floats, hop_latency: Floats | None = None,
    changes: Changes | None = None, load: Floats | None = None, slim: Narrow | None = None,
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
        load: bytes that each link carries [links], where that is known already.
        slim: `narrow(routes)`, where that is known already.

    Returns:
        Seconds and a link id; (0, -1) without flows.
    """
    if not nbytes.size:
        return 0.0, -1
    if (release == release[0]).all():                       # nothing to sort: what counts is the sum
        load = link_bytes(routes, nbytes, capacity.size) if load is None else load
        load = np.divide(load, capacity, out=np.zeros(capacity.size), where=load > 0)
        ends = np.where(load > 0, release[0] + load, -np.inf)
    else:
        ends = _ends_of_staggered(capacity, narrow(routes) if slim is None else slim, nbytes, release)
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


def _ends_of_staggered(capacity: Floats, ways: Narrow, nbytes: Floats, release: Floats) -> Floats:
    """When each link could be through without latency, [links]; -inf where nothing crosses."""
    from clustersim.network import loads

    ends: Floats = np.full(capacity.size, -np.inf)
    per_byte = np.divide(1.0, capacity, out=np.full(capacity.size, np.inf), where=capacity > 0)
    way = (ways.width, ways.start, ways.links, ways.weights, nbytes, per_byte)
    new = release[1:] != release[:-1]                       # flows of one source may stand together
    if 4 * (1 + np.count_nonzero(new)) > release.size:
        order, behind, releases = _sorted(release)
        if releases.size:
            left, same, rank = np.zeros(capacity.size), np.zeros(capacity.size), np.full(capacity.size, -1, np.int32)
            loads.work_off_backwards(behind, order, releases, *way, left, same, rank, ends)
            return ends
    begin = np.concatenate(([0], np.flatnonzero(new) + 1))
    end = np.append(begin[1:], nbytes.size)
    order, _, _ = _sorted(release[begin])
    loads.work_off(begin[order], end[order], release, *way, ends)
    return ends


def _sorted(values: Floats) -> tuple[NDArray[np.integer[Any]], Ints, Floats]:
    """The order that sorts values, those that are equal as they stand; where in it each of the distinct values ends; those.

    Where more than MOST are distinct, the order alone.
    """
    from clustersim.network import loads

    table, place = np.empty(4 * MOST, np.uint64), np.empty(4 * MOST, np.int32)
    distinct, number = np.empty(MOST, np.uint64), np.empty(values.size, np.int32)
    n = loads.number_values(values.view(np.uint64), table, place, distinct, number)
    if not n:
        return np.argsort(values, kind="stable"), np.zeros(0, np.int64), np.zeros(0)
    rising = np.argsort(found := distinct[:n].view(np.float64))
    rank = np.empty(n, np.int32)
    rank[rising] = np.arange(n)
    behind, order = np.zeros(n + 1, np.int64), np.empty(values.size, np.int32)
    loads.group_by(rank[number], behind, order)
    return order, behind, found[rising]


def latest_end(capacity: Floats, routes: Routes, load: Floats, release: Floats) -> float:
    """The time by which max-min sharing has surely ended all flows, none of which follows another.

    While a flow lives, some link of its way is full, and a link is full for no longer than its bytes take; so a flow ends no
    later than its release, the loads of all links on its way, and its latency, one after the other.

    Args:
        load: bytes that each link carries, [links].
    """
    if not release.size:
        return 0.0
    from clustersim.network import loads

    return float(loads.latest(load / capacity, routes.start, routes.links, release, routes.latency))


def _least_latency(routes: Routes, hop_latency: Floats | None, n_links: int) -> Floats:
    """Of the ways over each link, [links]: the least latency; hop by hop, the least before it and the least from it on."""
    if not routes.latency.any():
        return np.zeros(n_links)
    from clustersim.network import loads

    least: Floats = np.full(n_links, np.inf)
    if hop_latency is None:
        loads.least_whole(routes.start, routes.links, routes.latency, least)
        return least
    before: Floats = np.full(n_links, np.inf)
    loads.least_by_hop(routes.start, routes.links, routes.weights, routes.latency, hop_latency, before, least)
    return before + least


def link_bytes(routes: Routes, nbytes: Floats, n_links: int) -> Floats:
    """Bytes each link carries, [links]."""
    from clustersim.network import loads

    load: Floats = np.zeros(n_links)
    loads.add_up(routes.start, routes.links, routes.weights, np.ascontiguousarray(nbytes, np.float64), load)
    return load


def chained(transfers: Transfers, own: Floats, release: Floats) -> tuple[Floats, Floats]:
    """Latency from the first hop on, and earliest start, of transfers that may follow others.

    Args:
        own: seconds of latency of each transfer's own way.
        release: seconds at which each transfer's source lets it go.

    Returns:
        (latency, release): a follower's latency adds the longest of those it follows, and it is released no earlier.
    """
    latency, earliest = own.copy(), release.copy()
    if transfers.after.size:
        from clustersim.network import loads

        loads.inherit(transfers.after_start, transfers.after, latency, earliest)
    return latency, earliest
