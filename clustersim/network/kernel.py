"""The inner loop of the fluid network: exact weighted max-min sharing, event by event, over flat records. No SimPy here.

Max-min rates (Bertsekas & Gallager, Data Networks, 2nd ed., 6.5.2): every flow has a bottleneck, a full link on which no
flow is faster; its rate is that link's level. So rates are kept per link, not per flow, and so are clocks: the flows that
a link limits drain together, and each ends when the link has served it what it had left when it joined.

A flow that follows others keeps at least one chunk behind each of them. While it has caught up with one it is held: it
moves in proportion to it, and so to the level of the link that limits the first of such a chain.

After an event only the links whose level it can move are looked at again, lowest first: a link hands flows over to a link
of theirs that has become tighter, and takes those that are faster than its own level. Where no link has anything left to
hand over or to take, the rates are the max-min rates, which are unique.

Its parts are in `exact_records`, `exact_limits`, `exact_following`, `exact_levels` and `exact_filling`.
Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import math

import numpy as np

from clustersim.jit import inlined, lean
from clustersim.network.exact_filling import fill
from clustersim.network.exact_following import (
    check,
    find_next_events,
    first_chunk_at,
    free_followers,
    slowest_met,
    tell_followers,
)
from clustersim.network.exact_levels import look_at
from clustersim.network.exact_limits import hold_by, leave, limit_by, mark, rate_of, roomiest, watch
from clustersim.network.exact_records import (
    DONE,
    EVENTS,
    FAULT,
    FAULT_UNSETTLED,
    FLOW_VISITS,
    LINK_VISITS,
    LIVE,
    N_CHANGES,
    N_DONE,
    N_EVENTS,
    N_HELD,
    N_LIVE,
    N_MOVED,
    N_ORDER,
    N_STARTED,
    READY,
    SOLVES,
    State,
    pop_link,
    schedule,
)

SAME = 1e-14            # relative: events this near in time happen together
RESCUES = 12            # with each of them patience doubles: more is a fault, which without a limit would be a run without an end


@lean
def _begin(s, t):
    """Put the flows that start now on their links, and let in those for which filling anew would be too much."""
    links, flows, hops, tally, lists, started = s.links, s.flows, s.hops, s.tally, s.lists, s.started
    n = tally[N_STARTED]
    tally[N_STARTED] = 0
    tally[N_LIVE] += n
    for i in range(n):
        f = started[i]
        flows[f].status = LIVE
        flows[f].limit = flows[f].hold = -1
        for h in range(flows[f].hop_start, flows[f].hop_end):
            link = hops[h].link
            hops[h].rate = 0.0
            hops[h].limit = -1
            hops[h].live = 1
            lists[links[link].list_start + links[link].list_size] = h
            links[link].list_size += 1
    if n > 0 and 8 * n >= tally[N_LIVE] and tally[N_HELD] == 0:
        fill(s, t)
        return
    for i in range(n):
        f = started[i]
        hop, least = roomiest(s, f)
        follows = flows[f].after_end > flows[f].after_start
        who = -1
        cap = np.inf
        if follows:
            who, cap = slowest_met(s, f, t)
        if who >= 0 and cap <= least:
            hold_by(s, f, who, t)
        else:
            limit_by(s, f, hop, t)
        if follows:
            check(s, f, t)


@lean
def _settle(s, t):
    """Bring all rates up to date after the events of time t."""
    links, order, tally, moved, flows = s.links, s.order, s.tally, s.moved, s.flows
    if tally[N_STARTED] > 0 or tally[N_ORDER] > 0:
        tally[SOLVES] += 1
    _begin(s, t)
    looks = 0
    patience = 64 + (2 if tally[N_HELD] == 0 else 20) * links.size      # what is held would all have to be found again
    rescues = 0
    while True:
        while tally[N_ORDER] > 0:
            link = pop_link(links, order, tally)
            looks += 1
            look_at(s, link, t)
            if looks > patience:                    # levels that hardly differ can pass flows to and fro for long
                rescues += 1
                patience += patience
                if rescues > RESCUES:
                    tally[FAULT] = FAULT_UNSETTLED
                    break
                fill(s, t)
        n = tally[N_MOVED]
        if n == 0 or tally[FAULT] != 0:
            break
        looks += 1
        tally[N_MOVED] = 0
        for i in range(n):                          # what this adds to `moved` stands in places that were read
            f = moved[i]
            flows[f].in_moved = 0
            tell_followers(s, f, t)
    tally[LINK_VISITS] += looks
    find_next_events(s, t)


@inlined
def _count_down(counters, ended, tally, counter, finish):
    counters[counter].waiting -= 1
    counters[counter].last = max(counters[counter].last, finish)
    if counters[counter].waiting == 0:
        ended[tally[N_DONE]] = counter
        tally[N_DONE] += 1


@lean
def _end(s, f, drain):
    """The last byte of flow f has left."""
    links, flows, hops, owned, tally, order = s.links, s.flows, s.hops, s.owned, s.tally, s.order
    rate = rate_of(flows, hops, f)
    leave(links, flows, hops, owned, s.ends, f)
    for h in range(flows[f].hop_start, flows[f].hop_end):
        links[hops[h].link].other -= hops[h].weight * rate
        hops[h].live = 0
        mark(links, order, tally, hops[h].link)
    flows[f].status = DONE
    flows[f].drain = drain
    flows[f].key = 0.0
    tally[N_LIVE] -= 1
    tally[EVENTS] += 1
    if flows[f].event_at >= 0:
        schedule(flows, s.events, tally, f, np.inf)
    _count_down(s.counters, s.ended, tally, flows[f].inbox, drain + flows[f].latency)
    _count_down(s.counters, s.ended, tally, flows[f].outbox, drain)


@inlined
def _due(s, link, horizon):
    """Those of a link's flows that it has served all they had by `horizon`: they stand first in `moves`; their number."""
    links, owned, tally, moves = s.links, s.owned, s.tally, s.moves
    served = links[link].served + links[link].level * (horizon - links[link].since)
    n = 0
    first = -1
    tally[FLOW_VISITS] += links[link].own_size
    for at in range(links[link].own_start, links[link].own_start + links[link].own_size):
        if owned[at].held:
            continue
        if first < 0 or owned[at].key < owned[first].key:
            first = at
        if owned[at].key <= served:
            moves[n].flow = owned[at].flow
            n += 1
    if n == 0 and first >= 0:                       # the clock cannot tell the first from the horizon
        moves[0].flow = owned[first].flow
        n = 1
    return n


@lean
def _release_event(s, t, horizon):
    """The earliest event of the heap: a flow whose source is in, whose first chunk has come, or that has caught up."""
    flows, events, tally, started = s.flows, s.events, s.tally, s.started
    f = events[0].item
    at = events[0].key
    tally[EVENTS] += 1
    schedule(flows, events, tally, f, np.inf)
    if flows[f].status == LIVE:
        check(s, f, t)
        return
    flows[f].status = READY
    first = first_chunk_at(s, f, t)
    if first <= horizon:
        flows[f].key = flows[f].nbytes
        flows[f].start = at if flows[f].after_end == flows[f].after_start else t
        started[tally[N_STARTED]] = f
        tally[N_STARTED] += 1
    else:
        for i in range(flows[f].after_start, flows[f].after_end):
            watch(flows, s.owned, s.after[i])
        schedule(flows, events, tally, f, first)


@lean
def release(fields, moving, at):
    """Each of `moving` may move from its time in `at` on, once what it follows lets it. See exact_records.State for the tuple."""
    s = State(*fields)
    for i in range(moving.size):
        schedule(s.flows, s.events, s.tally, moving[i], at[i])


@lean
def _change_capacities(s, horizon):
    """Give links the capacities that they have from now on."""
    links, changes, tally = s.links, s.changes, s.tally
    while tally[N_CHANGES] < changes.size and changes[tally[N_CHANGES]].time <= horizon:
        link = changes[tally[N_CHANGES]].link
        links[link].capacity = changes[tally[N_CHANGES]].capacity
        tally[N_CHANGES] += 1
        mark(links, s.order, tally, link)


@lean
def run(fields, until):
    """Play all events up to and including time `until`, but stop after an instant in which a counter reached zero.

    Returns the time of the next event, inf when there is none. The counters that reached zero stand in
    s.ended[: s.tally[N_DONE]]; the caller empties the list.
    """
    s = State(*fields)
    links, flows, events, tally, moves, started, changes = s.links, s.flows, s.events, s.tally, s.moves, s.started, s.changes
    ends = s.ends
    while True:
        t = np.inf
        for link in range(links.size):
            if ends[link] < t:
                t = ends[link]
        tally[LINK_VISITS] += links.size
        if tally[N_EVENTS] > 0:
            t = min(t, events[0].key)
        if (t < np.inf or tally[N_LIVE] > 0) and tally[N_CHANGES] < changes.size:
            t = min(t, changes[tally[N_CHANGES]].time)
        if t > until or t == np.inf or tally[N_DONE] > 0:
            return t
        n_ended = 0                                 # those that others follow; nothing starts before they have been seen to
        horizon = t + SAME * abs(t)
        for link in range(links.size):
            if ends[link] > horizon:
                continue
            n = _due(s, link, horizon)
            for i in range(n):
                f = moves[i].flow
                _end(s, f, t)
                if flows[f].next_end > flows[f].next_start:
                    started[n_ended] = f
                    n_ended += 1
        _change_capacities(s, horizon)
        for i in range(n_ended):
            free_followers(s, started[i], t)
        while tally[N_EVENTS] > 0 and events[0].key <= horizon:
            _release_event(s, t, horizon)
        _settle(s, t)
        if tally[FAULT] != 0:
            return math.nan
