"""The links of very many pairs, laid out row by row from the ways of a few kinds of pairs. Inner loops only: imports numba.

GPUs on the same switches have the same way but for their own ports, so a way is found once for each kind of pair.
"""

from __future__ import annotations

from clustersim.jit import lean


@lean
def sort_by_kind(src, dst, near, far, place, first, kind):
    """Number the kinds of pairs in order of appearance; `near` goes before `far`.

    Args:
        near, far: (start_of, end_of, hops, FAR) of the ways over NVLink, and of those over the network.
        place: int [nodes x ends of near, then of far], -1 everywhere; scratch.
        first: int, set to a pair of each kind; as long as `place` or the pairs, whichever is less.
        kind: int32 [pairs], set.

    Returns:
        Their number; -1 - i where pair i has no way.
    """
    start, end, hops, beyond = near
    start_far, end_far, hops_far, _ = far
    behind = hops.size
    n = 0
    for i in range(src.size):
        a, b = start[src[i]], end[dst[i]]
        if a >= 0 and b >= 0 and hops[a, b] < beyond:
            at = a * hops.shape[1] + b
        else:
            a, b = start_far[src[i]], end_far[dst[i]]
            if a < 0 or b < 0 or hops_far[a, b] >= beyond:
                return -1 - i
            at = behind + a * hops_far.shape[1] + b
        if place[at] < 0:
            place[at] = n
            first[n] = i
            n += 1
        kind[i] = place[at]
    return n


@lean
def total(kind, of_kind):
    """How many links all rows have, if a row of kind k has of_kind[k]."""
    n = 0
    for i in range(kind.size):
        n += of_kind[kind[i]]
    return n


@lean
def lay_out(src, dst, kind, begin, way, ports, of_source, link_latency, start, links, weights, latency):
    """Write the links of each pair into links[start[i] : start[i + 1]], each with weight 1, and the sum of their latencies.

    Args:
        way: int, the links of kind k from begin[k] up to begin[k + 1]; -1 - p for port p of a GPU, of the one that sends where
            p < of_source.
        ports: int [gpus, ports] their links.
    """
    h = 0
    for i in range(src.size):
        start[i] = h
        seconds = 0.0
        for at in range(begin[kind[i]], begin[kind[i] + 1]):
            link = way[at]
            if link < 0:
                port = -1 - link
                link = ports[src[i] if port < of_source else dst[i], port]
            links[h] = link
            weights[h] = 1.0
            h += 1
            seconds += link_latency[link]
        latency[i] = seconds
    start[src.size] = h
