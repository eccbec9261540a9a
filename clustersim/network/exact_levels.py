"""A link's level found anew, and who should be limited by it handed over or taken. One link at a time.

Import it late: it imports numba.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import inlined, lean
from clustersim.network.exact_limits import FULL, advance, limit_by, mark, note_move
from clustersim.network.exact_records import FAULT, FAULT_OVERLOAD, FLOW_VISITS, SAME_LEVEL, heap_moves, sift_move

SAME_RATE = 1e-13       # relative: a level that would move by less stays


@inlined
def _take_faster(s, link, new, t):
    """Limit by this link the flows of others that are faster than its level, the fastest first. Returns the level then."""
    links, flows, hops, lists, moves = s.links, s.flows, s.hops, s.lists, s.moves
    start = links[link].list_start
    other = 0.0
    top = 0.0
    n = 0
    alive = 0
    s.tally[FLOW_VISITS] += links[link].list_size
    for at in range(start, start + links[link].list_size):
        hop = lists[at]
        if hops[hop].live == 0:
            continue
        lists[start + alive] = hop
        alive += 1
        if hops[hop].limit == link:
            continue
        rate = hops[hop].rate
        other += hops[hop].weight * rate
        if rate > new:
            moves[n].key = -rate
            moves[n].flow = hops[hop].flow
            moves[n].hop = hop
            n += 1
        else:
            top = max(top, rate)
    if links[link].capacity > 0.0 and abs(other - links[link].other) > 1e-9 * links[link].capacity:
        s.tally[FAULT] = FAULT_OVERLOAD             # the books are wrong
    links[link].list_size = alive
    links[link].other = other
    if links[link].own > 0.0:
        new = (links[link].capacity - other) / links[link].own
    heap_moves(moves, n)
    while n > 0 and (links[link].own <= 0.0 or -moves[0].key > new * (1 + SAME_LEVEL)):
        f = moves[0].flow
        hop = moves[0].hop
        n -= 1
        moves[0] = moves[n]
        sift_move(moves, n, 0)
        if flows[f].limit != link:                  # else it was carried along
            limit_by(s, f, hop, t)
            new = (links[link].capacity - links[link].other) / links[link].own
    links[link].top = max(top, -moves[0].key) if n > 0 else top
    return new


@inlined
def _push_rates(s, link, new):
    """Book the rates at a link's new level on the other links that its flows cross.

    Returns how many of them a lower link of their way should limit now: they stand in `moves`.
    """
    links, flows, hops, owned, moves = s.links, s.flows, s.hops, s.owned, s.moves
    order, tally, moved = s.order, s.tally, s.moved
    start = links[link].own_start
    size = links[link].own_size
    tally[FLOW_VISITS] += size
    first = np.inf
    tie = 1.0 - SAME_LEVEL
    n = 0
    for at in range(start, start + size):
        rate = owned[at].kappa * new
        change = rate - hops[owned[at].hop_start].rate
        first = min(first, owned[at].key)
        lowest = np.inf
        for h in range(owned[at].hop_start, owned[at].hop_end):
            m = hops[h].link
            hops[h].rate = rate
            if m != link:
                links[m].other += hops[h].weight * change
                if rate > links[m].top:
                    links[m].top = rate
                lowest = min(lowest, links[m].level)
                if links[m].order_at < 0:
                    mark(links, order, tally, m)
        if owned[at].held and owned[at].hop >= 0:
            lowest = min(lowest, new)
        if lowest < rate * tie:
            moves[n].flow = owned[at].flow
            n += 1
        if owned[at].watch and change != 0.0:
            note_move(flows, moved, tally, owned[at].flow)
    s.ends[link] = links[link].since + (first - links[link].served) / new if new > 0.0 else np.inf
    links[link].stale = 0
    return n


@lean
def _lowest_hop(links, flows, hops, f):
    """The hop of flow f over the link of the lowest level."""
    at = flows[f].hop_start
    for h in range(flows[f].hop_start, flows[f].hop_end):
        if links[hops[h].link].level < links[hops[at].link].level:
            at = h
    return at


@inlined
def look_at(s, link, t):
    """Find a link's level anew, and have the flows that it limits, and those it should, follow."""
    links, flows, hops, moves = s.links, s.flows, s.hops, s.moves
    advance(links, link, t)
    new = -1.0
    if links[link].own > 0.0:
        new = (links[link].capacity - links[link].other) / links[link].own
    elif links[link].other <= links[link].capacity * FULL:
        new = np.inf
    if new < links[link].top * (1 - SAME_LEVEL):
        new = _take_faster(s, link, new, t)
    while links[link].own_size > 0:
        if links[link].stale == 0 and abs(new - links[link].level) <= SAME_RATE * links[link].level:
            break
        links[link].level = new
        n = _push_rates(s, link, new)
        for i in range(n):                          # each that goes leaves the rest more: all of them have to
            f = moves[i].flow
            if flows[f].limit == link:              # else it was carried along
                limit_by(s, f, _lowest_hop(links, flows, hops, f), t)
        if n == 0 or links[link].own <= 0.0:
            break
        new = (links[link].capacity - links[link].other) / links[link].own
