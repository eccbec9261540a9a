"""Flows that cannot be told apart, and links: they have the same rates, so one of each stands for all. Inner loops only.

Links and flows are sorted into classes until nothing new can be said: links by their capacity and by how many flows of
each class cross them, flows by their bytes, their release and by the classes of the links that they cross (colour
refinement; such classes are an equitable partition). Max-min rates are unique, hence the same within a class.

Classes are told apart by 64-bit hashes. Import this module late: it imports numba.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined, lean
from clustersim.types import Floats, Ints, Routes

MOST = 1024             # with more classes of flows than this the system is solved as it is

Hashes = NDArray[np.uint64]


@inlined
def _mixed(x):
    """A 64-bit finaliser: every bit of the result depends on every bit of x (splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lean
def _classes(of, table, place, number):
    """Number the distinct values of `of` in order of appearance; 0 when there are more than MOST, else how many."""
    mask = np.uint64(table.size - 1)
    place[:] = -1
    n = 0
    for i in range(of.size):
        at = of[i] & mask
        while place[at] >= 0 and table[at] != of[i]:
            at = (at + np.uint64(1)) & mask
        if place[at] < 0:
            if n == MOST:
                return 0
            table[at] = of[i]
            place[at] = n
            n += 1
        number[i] = place[at]
    return n


@lean
def _refine(start, links, weight_bits, flow, link, sums):
    """One round: links learn of their flows, then flows of their links."""
    sums[:] = np.uint64(0)
    for f in range(flow.size):
        for h in range(start[f], start[f + 1]):
            sums[links[h]] += _mixed(flow[f] + weight_bits[h])
    for i in range(link.size):
        link[i] = _mixed(link[i] + sums[i])
    for f in range(flow.size):
        total = np.uint64(0)
        for h in range(start[f], start[f + 1]):
            total += _mixed(link[links[h]] + weight_bits[h])
        flow[f] = _mixed(flow[f] + total)


@lean
def _weights(start, links, weights, flow_class, chosen, link_class, total):
    """total [link classes, flow classes]: the weights that the flows of each class have on the link that stands for a class."""
    for f in range(flow_class.size):
        for h in range(start[f], start[f + 1]):
            if chosen[links[h]]:
                total[link_class[links[h]], flow_class[f]] += weights[h]


def one_of_each(
    capacity: Floats, routes: Routes, nbytes: Floats, release: Floats
) -> tuple[Ints, Ints, Floats, Routes] | None:
    """A small system with the same rates, or None when there are too many kinds of flows to gain anything.

    Args:
        capacity: bytes/s [links].
        routes: of the flows.
        nbytes, release: bytes and seconds [flows].

    Returns:
        (kind of each flow [flows], a flow of each kind [kinds], capacity of each kind of link, routes of each kind of flow).
    """
    n = nbytes.size
    if n < 64:
        return None
    flow = nbytes.view(np.uint64) + np.uint64(31) * release.view(np.uint64)
    table, place = np.zeros(8 * MOST, np.uint64), np.zeros(8 * MOST, np.int64)
    kind = np.zeros(n, np.int64)
    found = _classes(flow, table, place, kind)
    if found == 0 or 8 * found > n:
        return None
    bits = np.ascontiguousarray(routes.weights, np.float64).view(np.uint64)
    link, sums = capacity.view(np.uint64).copy(), np.zeros(capacity.size, np.uint64)
    n_links = 0
    while True:
        _refine(routes.start, routes.links, bits, flow, link, sums)
        before, n_links = (found, n_links), np.unique(link).size
        found = _classes(flow, table, place, kind)
        if found == 0 or 8 * found > n:
            return None
        if (found, n_links) == before:
            break
    _, first, link_kind = np.unique(link, return_index=True, return_inverse=True)
    chosen = np.zeros(capacity.size, np.bool_)
    chosen[first] = True
    total = np.zeros((first.size, found))
    _weights(routes.start, routes.links, routes.weights, kind, chosen, link_kind, total)
    per_kind, of_kind = np.nonzero(total.T)             # links stand in the order of their kinds, not of their way
    example = np.zeros(found, np.int64)
    example[kind[::-1]] = np.arange(n - 1, -1, -1)
    start = np.concatenate(([0], np.cumsum(np.bincount(per_kind, minlength=found)))).astype(np.int64)
    small = Routes(start=start, links=of_kind, weights=total.T[per_kind, of_kind], latency=routes.latency[example])
    return kind, example, capacity[first], small
