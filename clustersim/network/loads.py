"""What flows put on the links of their routes, summed in one pass. Inner loops only: it imports numba."""

from __future__ import annotations

import numpy as np

from clustersim.jit import lean


@lean
def add_up(start, links, weights, nbytes, load):
    """Add the bytes of each flow to the links of its route."""
    for f in range(nbytes.size):
        for h in range(start[f], start[f + 1]):
            load[links[h]] += nbytes[f] * weights[h]


@lean
def work_off(begin, end, release, width, start, links, weights, nbytes, per_byte, ends):
    """When each link is through with its flows, taken in order of their release; `ends` starts at -inf.

    Args:
        begin, end: flows begin[i] to end[i] - 1 have the same release; these runs stand in rising order of it.
        width, start, links, weights: as in `bounds.Narrow`.
        per_byte: seconds [links].
    """
    for i in range(begin.size):
        at = release[begin[i]]
        for f in range(begin[i], end[i]):
            h = width * f if width > 0 else start[f]
            last = h + width if width > 0 else start[f + 1]
            while h < last:
                link = links[h]
                much = nbytes[f] * weights[h] if weights.size > 0 else nbytes[f]
                ends[link] = max(ends[link], at) + much * per_byte[link]
                h += 1


@lean
def number_values(values, table, place, distinct, number):
    """Number values in order of their appearance: `number` [values], `distinct`. How many; 0 when `distinct` is too short.

    Args:
        values: as unsigned integers; table, place: scratch of the same length, a power of 2 and more than that of `distinct`.
    """
    place[:] = -1
    mask = np.uint64(table.size - 1)
    n = 0
    for i in range(values.size):
        if i > 0 and values[i] == values[i - 1]:
            number[i] = number[i - 1]
            continue
        at = ((values[i] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & mask
        while place[at] >= 0 and table[at] != values[i]:
            at = (at + np.uint64(1)) & mask
        if place[at] < 0:
            if n == distinct.size:
                return 0
            table[at] = values[i]
            distinct[n] = values[i]
            place[at] = n
            n += 1
        number[i] = place[at]
    return n


@lean
def work_off_backwards(behind, order, release, width, start, links, weights, nbytes, per_byte, left, same, rank, ends):
    """As `work_off`, latest release first: from each release on, a link has to do what is released then and later.

    Args:
        behind: [releases] where in `order` the flows of each release end; `release` is rising.
        left, same, rank: [links] scratch that starts at 0, 0, -1: seconds of what is released after `rank`, and at it.
    """
    for r in range(release.size - 1, -1, -1):
        for i in range(behind[r - 1] if r > 0 else 0, behind[r]):
            f = order[i]
            h = width * f if width > 0 else start[f]
            last = h + width if width > 0 else start[f + 1]
            while h < last:
                link = links[h]
                much = nbytes[f] * weights[h] if weights.size > 0 else nbytes[f]
                if rank[link] == r:
                    same[link] += much * per_byte[link]
                else:
                    left[link] += same[link]
                    if rank[link] >= 0:
                        ends[link] = max(ends[link], release[rank[link]] + left[link])
                    same[link] = much * per_byte[link]
                    rank[link] = r
                h += 1
    for link in range(ends.size):
        if rank[link] >= 0:
            ends[link] = max(ends[link], release[rank[link]] + (left[link] + same[link]))


@lean
def latest(seconds, start, links, release, latency):
    """The latest release + latency + sum of the `seconds` of the links along the route, of all flows."""
    last = -np.inf
    for f in range(release.size):
        along = release[f] + latency[f]
        for h in range(start[f], start[f + 1]):
            along += seconds[links[h]]
        last = max(last, along)
    return last


@lean
def least_whole(start, links, latency, least):
    """The least latency of the flows over each link; `least` starts at inf."""
    for f in range(latency.size):
        for h in range(start[f], start[f + 1]):
            least[links[h]] = min(least[links[h]], latency[f])


@lean
def least_by_hop(start, links, weights, latency, of_link, before, onward):
    """The least that a flow over each link has had of its latency before it, and has from it on; both start at inf.

    That of a link that a share of its bytes takes passes at the end: see `packets.extend`.
    """
    for f in range(latency.size):
        own = 0.0
        for h in range(start[f], start[f + 1]):
            own += of_link[links[h]] * weights[h]
        gone = 0.0
        for h in range(start[f], start[f + 1]):
            onward[links[h]] = min(onward[links[h]], own - gone)
            before[links[h]] = min(before[links[h]], latency[f] - own + gone)
            if weights[h] == 1.0:
                gone += of_link[links[h]]


@lean
def inherit(after_start, after, latency, earliest):
    """Flows that follow others take the longest latency of those in addition to their own, and are let go no earlier."""
    for f in range(latency.size):
        most = 0.0
        for i in range(after_start[f], after_start[f + 1]):
            most = max(most, latency[after[i]])
            earliest[f] = max(earliest[f], earliest[after[i]])
        latency[f] += most


@lean
def count_pairs(nbytes):
    """Pairs of a matrix with something to send to another; -1 where an entry is negative or not finite."""
    n = 0
    for i in range(nbytes.shape[0]):
        for j in range(nbytes.shape[1]):
            if not 0.0 <= nbytes[i, j] < np.inf:
                return -1
            n += nbytes[i, j] > 0.0 and i != j
    return n


@lean
def list_pairs(nbytes, starts, src, dst, sizes, release):
    """Those pairs, row by row, with the time at which their source starts."""
    n = 0
    for i in range(nbytes.shape[0]):
        for j in range(nbytes.shape[1]):
            if nbytes[i, j] > 0.0 and i != j:
                src[n] = i
                dst[n] = j
                sizes[n] = nbytes[i, j]
                release[n] = starts[i]
                n += 1


@lean
def write_pairs(src, dst, drain, latency, finish):
    """Write drain + latency of each pair into the matrix `finish`."""
    for i in range(src.size):
        finish[src[i], dst[i]] = drain[i] + latency[i]


@lean
def group_by(of_flow, first, order):
    """Sort flows by a link, order [flows]; `first` [links + 1] starts at 0 and ends as where those of the next link begin."""
    for f in range(of_flow.size):
        first[of_flow[f] + 1] += 1
    for link in range(1, first.size):
        first[link] += first[link - 1]
    for f in range(of_flow.size):
        order[first[of_flow[f]]] = f
        first[of_flow[f]] += 1


@lean
def most_fed(start, links, weights, port, weight_there, order, capacity, seen, share, fed):
    """What the ports that flows pass can give each link at most, bytes/s; `fed` starts at 0.

    Args:
        port, weight_there: [flows] a link of each one's route, and its weight there.
        order: the flows sorted by port.
        seen, share: [links] scratch; `seen` starts at -1.
    """
    for i in range(order.size):
        f = order[i]
        for h in range(start[f], start[f + 1]):
            link = links[h]
            if seen[link] != port[f]:
                seen[link] = port[f]
                share[link] = 0.0
            more = weights[h] / weight_there[f] - share[link]
            if more > 0.0:
                share[link] += more
                fed[link] += more * capacity[port[f]]


@lean
def drop_hops(start, links, weights, dropped, new_start, new_links, new_weights):
    """Routes without the links that are `dropped`; the number of hops left."""
    n = 0
    for f in range(start.size - 1):
        new_start[f] = n
        for h in range(start[f], start[f + 1]):
            if not dropped[links[h]]:
                new_links[n] = links[h]
                new_weights[n] = weights[h]
                n += 1
    new_start[start.size - 1] = n
    return n


@lean
def names_twice(start, links):
    """Whether a route names a link twice."""
    for i in range(start.size - 1):
        for a in range(start[i], start[i + 1]):
            for b in range(a + 1, start[i + 1]):
                if links[a] == links[b]:
                    return True
    return False
