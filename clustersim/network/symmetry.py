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
ONE = np.float64(1.0).view(np.uint64)

Kinds = NDArray[np.int16]


@inlined
def _mixed(x):
    """A 64-bit finaliser: every bit of the result depends on every bit of x (splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def _number(value, hashes, place, values, first, n, i):
    """The number of a hash, the next one where it is new; MOST when there is none left. `first` is i for a new one."""
    mask = np.uint64(hashes.size - 1)
    at = value & mask
    while place[at] >= 0 and hashes[at] != value:
        at = (at + np.uint64(1)) & mask
    if place[at] < 0 and n < MOST:
        hashes[at] = value
        place[at] = n
        values[n] = value
        first[n] = i
    return place[at] if place[at] >= 0 else MOST


@lean
def _sort(nbytes, release, hashes, place, values, first, kind):
    """Number flows by bytes and release, in order of appearance; 0 when there are more than MOST kinds, else how many."""
    place[:] = -1
    n = 0
    for i in range(nbytes.size):
        k = _number(nbytes[i] + np.uint64(31) * release[i], hashes, place, values, first, n, i)
        if k == MOST:
            return 0
        n = max(n, k + 1)
        kind[i] = k
    return n


@lean
def _count(start, links, bits, kind, n, values, once, sums):
    """What the links learn of their flows; `once` is scratch: what kinds count where the weight is 1, which it mostly is."""
    for k in range(n):
        once[k] = _mixed(values[k] + ONE)
    for f in range(kind.size):
        for h in range(start[f], start[f + 1]):
            sums[links[h]] += once[kind[f]] if bits[h] == ONE else _mixed(values[kind[f]] + bits[h])


@lean
def _refine(start, links, bits, kind, values, link, once, sums, hashes, place, new_values, new_once, first):
    """One round: links learn of their flows, then flows of their links. The number of kinds; 0 when there are too many.

    Args:
        sums: what `_count` found; then what it would find of the new kinds.
        once: scratch, what links count where the weight is 1.
    """
    for i in range(link.size):
        link[i] = _mixed(link[i] + sums[i])
        once[i] = _mixed(link[i] + ONE)
        sums[i] = np.uint64(0)
    place[:] = -1
    n = 0
    for f in range(kind.size):
        total = values[kind[f]]
        for h in range(start[f], start[f + 1]):
            total += once[links[h]] if bits[h] == ONE else _mixed(link[links[h]] + bits[h])
        k = _number(_mixed(total), hashes, place, new_values, first, n, f)
        if k == MOST:
            return 0
        if k == n:
            new_once[n] = _mixed(new_values[n] + ONE)
            n += 1
        kind[f] = k
        for h in range(start[f], start[f + 1]):
            sums[links[h]] += new_once[k] if bits[h] == ONE else _mixed(new_values[k] + bits[h])
    return n


@lean
def spread(of_kind, kind, each):
    """each[f] = of_kind[kind[f]]."""
    for f in range(kind.size):
        each[f] = of_kind[kind[f]]


@lean
def _weights(start, links, weights, flow_class, chosen, link_class, total):
    """total [link classes, flow classes]: the weights that the flows of each class have on the link that stands for a class."""
    for f in range(flow_class.size):
        for h in range(start[f], start[f + 1]):
            if chosen[links[h]]:
                total[link_class[links[h]], flow_class[f]] += weights[h]


def one_of_each(
    capacity: Floats, routes: Routes, nbytes: Floats, release: Floats
) -> tuple[Kinds, Ints, Floats, Routes] | None:
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
    hashes, place = np.zeros(8 * MOST, np.uint64), np.zeros(8 * MOST, np.int64)
    values, new_values, once = (np.zeros(MOST, np.uint64) for _ in range(3))
    example, kind = np.zeros(MOST, np.int64), np.zeros(n, np.int16)
    found = _sort(nbytes.view(np.uint64), release.view(np.uint64), hashes, place, values, example, kind)
    if found == 0 or 8 * found > n:
        return None
    bits = np.ascontiguousarray(routes.weights, np.float64).view(np.uint64)
    link, link_once, sums = (np.zeros(capacity.size, np.uint64) for _ in range(3))
    link[:] = capacity.view(np.uint64)
    _count(routes.start, routes.links, bits, kind, found, values, once, sums)
    n_links = 0
    while True:
        before = found, n_links
        found = _refine(
            routes.start, routes.links, bits, kind, values, link, link_once, sums, hashes, place, new_values, once, example
        )
        values, new_values, n_links = new_values, values, np.unique(link).size
        if found == 0 or 8 * found > n:
            return None
        if (found, n_links) == before:
            break
    example = example[:found]
    _, first, link_kind = np.unique(link, return_index=True, return_inverse=True)
    chosen = np.zeros(capacity.size, np.bool_)
    chosen[first] = True
    total = np.zeros((first.size, found))
    _weights(routes.start, routes.links, routes.weights, kind, chosen, link_kind, total)
    per_kind, of_kind = np.nonzero(total.T)             # links stand in the order of their kinds, not of their way
    start = np.concatenate(([0], np.cumsum(np.bincount(per_kind, minlength=found)))).astype(np.int64)
    small = Routes(start=start, links=of_kind, weights=total.T[per_kind, of_kind], latency=routes.latency[example])
    return kind, example, capacity[first], small
