"""All rates from nothing: progressive filling, for when many flows start at once, or too much would have to be repaired.

Import it late: it imports numba.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import inlined, lean
from clustersim.network.exact_limits import advance, note_move
from clustersim.network.exact_records import FILLS, FLOW_VISITS, LINK_VISITS, N_HELD, N_ORDER
from clustersim.network.heaps import sift


@inlined
def _freeze(s, link, level, t):
    """While filling: this link limits all of its flows that nobody limits yet."""
    links, flows, hops, lists, owned, moved, tally = s.links, s.flows, s.hops, s.lists, s.owned, s.moved, s.tally
    size = 0
    own = 0.0
    first = np.inf
    tally[FLOW_VISITS] += links[link].list_size
    for i in range(links[link].list_start, links[link].list_start + links[link].list_size):
        if hops[lists[i]].limit >= 0:
            continue
        f = hops[lists[i]].flow
        at = links[link].own_start + size
        size += 1
        flows[f].limit = link
        flows[f].own_at = at
        owned[at].key = flows[f].key
        owned[at].kappa = 1.0
        owned[at].flow = f
        owned[at].hop = lists[i]
        owned[at].hop_start = flows[f].hop_start
        owned[at].hop_end = flows[f].hop_end
        owned[at].watch = flows[f].watch
        owned[at].held = 0
        first = min(first, flows[f].key)
        own += hops[lists[i]].weight
        for h in range(flows[f].hop_start, flows[f].hop_end):
            m = hops[h].link
            hops[h].rate = level
            hops[h].limit = link
            if m != link:
                use = hops[h].weight * level
                links[m].room -= use
                links[m].weight -= hops[h].weight
                links[m].unfilled -= 1
                links[m].other += use
                links[m].top = max(links[m].top, level)
        if flows[f].watch or flows[f].after_end > flows[f].after_start:
            note_move(flows, moved, tally, f)
    links[link].level = level
    links[link].own_size = size
    links[link].own = own
    links[link].unfilled = 0
    s.ends[link] = t + first / level if level > 0.0 else np.inf


@lean
def fill(s, t):
    """All rates from nothing: links fill up in rising order of what they have for each flow (progressive filling).

    Flows that were held are not any more; followers are to be checked after it.
    """
    links, flows, hops, lists, owned = s.links, s.flows, s.hops, s.lists, s.owned
    order, tally = s.order, s.tally
    tally[FILLS] += 1
    n = 0
    for link in range(links.size):
        advance(links, link, t)
    for link in range(links.size):
        start = links[link].list_start
        alive = 0
        weight = 0.0
        for at in range(start, start + links[link].list_size):
            hop = lists[at]
            if hops[hop].live:
                f = hops[hop].flow
                lists[start + alive] = hop
                alive += 1
                weight += hops[hop].weight
                hops[hop].limit = -1
                if flows[f].limit >= 0:             # bytes left, until it is limited again
                    flows[f].key = (flows[f].key - links[flows[f].limit].served) * owned[flows[f].own_at].kappa
                    flows[f].limit = -1
                    flows[f].hold = -1
        tally[FLOW_VISITS] += links[link].list_size
        links[link].list_size = alive
        links[link].room = links[link].capacity
        links[link].weight = weight
        links[link].unfilled = alive
        if alive > 0:
            order[n].key = links[link].room / weight
            order[n].item = link
            n += 1
    tally[N_HELD] = 0
    for link in range(links.size):
        links[link].order_at = -1
        links[link].own = links[link].other = links[link].top = links[link].served = 0.0
        links[link].level = s.ends[link] = np.inf
        links[link].own_size = links[link].stale = 0
    for at in range(n // 2 - 1, -1, -1):
        sift(order, n, at, False)
    while n > 0:
        link = order[0].item
        tally[LINK_VISITS] += 1
        level = max(0.0, links[link].room / links[link].weight)
        if links[link].unfilled > 0 and level > order[0].key * (1 + 1e-15):
            order[0].key = level                    # others have filled meanwhile, which leaves it more
            sift(order, n, 0, False)
            continue
        n -= 1
        order[0] = order[n]
        sift(order, n, 0, False)
        if links[link].unfilled == 0:
            continue
        _freeze(s, link, level, t)
    tally[N_ORDER] = 0
