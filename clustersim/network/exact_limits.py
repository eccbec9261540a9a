"""Who limits whom: a flow moves with the level of one link, its limit, or with what holds it. Rates are not found here.

Booked rates stay as they are when a flow gets another limit; `mark` notes the links that have to be looked at for it.
Import it late: it imports numba.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import inlined, lean
from clustersim.network.exact_records import LIVE, N_HELD, N_MOVED, push_link

FULL = 1 + 1e-12       # of its capacity: a link that carries more limits somebody


@lean
def mark(links, order, tally, link):
    """What crosses this link changed."""
    if links[link].own > 0.0:
        push_link(links, order, tally, link, (links[link].capacity - links[link].other) / links[link].own)
    elif links[link].own_size > 0 or links[link].other > links[link].capacity * FULL:
        push_link(links, order, tally, link, 0.0)


@inlined
def advance(links, link, t):
    """Bring a link's clock to t."""
    if links[link].own_size > 0:
        links[link].served += links[link].level * (t - links[link].since)
    else:
        links[link].served = 0.0
    links[link].since = t


@inlined
def served_by(links, link, t):
    return links[link].served + links[link].level * (t - links[link].since)


@inlined
def rate_of(flows, hops, f):
    return hops[flows[f].hop_start].rate


@lean
def watch(flows, owned, f):
    """Note each new rate of flow f."""
    flows[f].watch = 1
    if flows[f].status == LIVE and flows[f].limit >= 0:
        owned[flows[f].own_at].watch = 1


@inlined
def note_move(flows, moved, tally, f):
    if flows[f].in_moved == 0:
        flows[f].in_moved = 1
        moved[tally[N_MOVED]] = f
        tally[N_MOVED] += 1


@lean
def leave(links, flows, hops, owned, ends, f):
    """Take flow f from among those that its link's level moves; what is booked on the links stays."""
    link = flows[f].limit
    at = flows[f].own_at
    hop = owned[at].hop
    if hop >= 0:
        links[link].own -= owned[at].kappa * hops[hop].weight
        links[link].other += hops[hop].rate * hops[hop].weight
        links[link].top = max(links[link].top, hops[hop].rate)
    links[link].own_size -= 1
    last = links[link].own_start + links[link].own_size
    if at != last:
        owned[at] = owned[last]
        flows[owned[at].flow].own_at = at
    links[link].stale = 1
    if links[link].own_size == 0:
        links[link].own = 0.0
        links[link].level = np.inf
        ends[link] = np.inf
        links[link].served = 0.0


@lean
def _relimit(s, f, link, hop, kappa, hold, t):
    """Let flow f move with the level of this link, which it crosses by `hop` (-1: not at all). Its booked rate stays."""
    links, flows, hops, owned, order, tally = s.links, s.flows, s.hops, s.owned, s.order, s.tally
    left = flows[f].key
    rate = 0.0
    former = flows[f].limit
    if former >= 0:
        advance(links, former, t)
        left = (flows[f].key - links[former].served) * owned[flows[f].own_at].kappa
        rate = rate_of(flows, hops, f)
        leave(links, flows, hops, owned, s.ends, f)
        mark(links, order, tally, former)
    advance(links, link, t)
    at = links[link].own_start + links[link].own_size
    if hop >= 0:
        links[link].other -= hops[hop].weight * rate
        links[link].own += hops[hop].weight * kappa
    if links[link].own_size == 0:
        links[link].level = max(0.0, (links[link].capacity - links[link].other) / links[link].own)
    links[link].own_size += 1
    links[link].stale = 1
    owned[at].key = flows[f].key = links[link].served + left / kappa
    owned[at].kappa = kappa
    owned[at].flow = f
    owned[at].hop = hop
    owned[at].hop_start = flows[f].hop_start
    owned[at].hop_end = flows[f].hop_end
    owned[at].watch = flows[f].watch
    owned[at].held = hold >= 0
    flows[f].limit = link
    for h in range(flows[f].hop_start, flows[f].hop_end):
        hops[h].limit = link
    flows[f].own_at = at
    tally[N_HELD] += (hold >= 0) - (flows[f].hold >= 0)
    flows[f].hold = hold
    mark(links, order, tally, link)


@lean
def _hop_over(flows, hops, f, link):
    """The hop by which flow f crosses a link, -1 when it does not."""
    hop = -1
    for h in range(flows[f].hop_start, flows[f].hop_end):
        if hops[h].link == link:
            hop = h
    return hop


@lean
def _carry_along(s, f, t):
    """The flows that f holds, and those that they hold, move with the link that now moves f."""
    flows, hops, owned, followers, chain = s.flows, s.hops, s.owned, s.next, s.chain
    n = 1
    chain[0] = f
    while n > 0:
        n -= 1
        p = chain[n]
        for i in range(flows[p].next_start, flows[p].next_end):
            c = followers[i]
            if flows[c].status == LIVE and flows[c].hold == p:
                kappa = owned[flows[p].own_at].kappa * flows[c].nbytes / flows[p].nbytes
                _relimit(s, c, flows[f].limit, _hop_over(flows, hops, c, flows[f].limit), kappa, p, t)
                chain[n] = c
                n += 1


@lean
def limit_by(s, f, hop, t):
    """Let the link of this hop of flow f limit it."""
    flows = s.flows
    if flows[f].hold >= 0:
        watch(flows, s.owned, flows[f].hold)
        note_move(flows, s.moved, s.tally, f)
    _relimit(s, f, s.hops[hop].link, hop, 1.0, -1, t)
    if flows[f].next_end > flows[f].next_start:
        _carry_along(s, f, t)


@lean
def hold_by(s, f, p, t):
    """Let flow p, with which f has caught up, hold it."""
    flows, owned = s.flows, s.owned
    link = flows[p].limit
    kappa = owned[flows[p].own_at].kappa * flows[f].nbytes / flows[p].nbytes
    _relimit(s, f, link, _hop_over(flows, s.hops, f, link), kappa, p, t)
    if flows[f].next_end > flows[f].next_start:
        _carry_along(s, f, t)


@lean
def roomiest(s, f):
    """The hop of flow f whose link would leave it least, and how much, had it no rate now."""
    links, flows, hops = s.links, s.flows, s.hops
    rate = rate_of(flows, hops, f) if flows[f].limit >= 0 else 0.0
    least = np.inf
    at = flows[f].hop_start
    for h in range(flows[f].hop_start, flows[f].hop_end):
        link = hops[h].link
        use = 0.0 if link == flows[f].limit else rate * hops[h].weight
        fair = (links[link].capacity - links[link].other + use) / (links[link].own + hops[h].weight)
        if fair < least:
            least = fair
            at = h
    return at, least
