"""The inner loop of the fluid network: exact weighted max-min sharing, event by event, over flat records. No SimPy here.

Max-min rates (Bertsekas & Gallager, Data Networks, 2nd ed., 6.5.2): every flow has a bottleneck, a full link on which no
flow is faster; its rate is that link's level. So rates are kept per link, not per flow, and so are clocks: the flows that
a link limits drain together, and each ends when the link has served it what it had left when it joined.

A flow that follows others keeps at least one chunk behind each of them. While it has caught up with one it is held: it
moves in proportion to it, and so to the level of the link that limits the first of such a chain.

After an event only the links whose level it can move are looked at again, lowest first: a link hands flows over to a link
of theirs that has become tighter, and takes those that are faster than its own level. Where no link has anything left to
hand over or to take, the rates are the max-min rates, which are unique.

Numbers that are compiled in stand in this file: see `jit.njit`.
Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined, lean
from clustersim.network.heaps import sift
from clustersim.types import Floats, Ints

Records = NDArray[Any]

IDLE, READY, LIVE, DONE = 0, 1, 2, 3        # source not in; waiting for the first chunk; moving; last byte has left
CLOSE = 1e-9                                # fractions of a flow nearer than this count as equal: clock rounding
SAME = 1e-14                                # relative: events this near in time happen together
SAME_LEVEL = 1e-12                          # relative: levels this near to each other count as equal,
SAME_RATE = 1e-13                           # and a level that would move by less stays
FULL = 1 + 1e-12                            # of its capacity: a link that carries more limits somebody
(
    N_EVENTS, N_ORDER, N_DONE, N_STARTED, N_LIVE, N_HELD, N_MOVED, N_TOUCHED, N_CHANGES,
    SOLVES, FLOW_VISITS, LINK_VISITS, EVENTS, FILLS, FAULT,
) = range(15)  # fmt: skip
N_TALLY = 15
NOW, QUANTUM, BEGAN, GROWTH, TIE, STILL, SMALL, STEP = range(8)     # see State.clock
FAULT_OVERLOAD, FAULT_UNSETTLED = 1, 2

LINK = np.dtype(
    [
        ("level", "f8"),            # bytes/s of each flow that it limits; inf while it limits none
        ("other", "f8"),            # bytes/s of the others
        ("top", "f8"),              # no other flow is faster than this
        ("debt", "f8"),             # bytes that the others have had of this link beyond what is booked here
        ("own", "f8"),              # the sum of the weights of those that its level moves
        ("capacity", "f8"),         # bytes/s
        ("order_at", "i8"),         # place in `order`, -1 when it is not there
        ("own_size", "i8"),         # (up to here what the innermost loop reads, in one cache line)
        ("own_start", "i8"),        # those that its level moves: owned[own_start : own_start + own_size]
        ("served", "f8"),           # bytes that it has served to each of them at time `since`
        ("since", "f8"),
        ("done", "f8"),             # bytes of the flows that have ended since BEGAN
        ("drift", "f8"),            # bytes that each of those it limits has had beyond what is booked on its other links
        ("stale", "i8"),            # 1 when some have left since it was looked at, 2 when some have joined
        ("list_start", "i8"),       # the flows that cross it: lists[list_start : list_start + list_size], some of them done
        ("list_size", "i8"),
        ("paid", "f8"),             # when it last settled that
        ("room", "f8"),             # while filling: capacity left to the flows not yet filled,
        ("weight", "f8"),           # the sum of their weights,
        ("unfilled", "i8"),         # and their number
    ]
)
FLOW = np.dtype(
    [
        ("nbytes", "f8"),
        ("key", "f8"),              # live: its link has served it all when `served` gets here; else bytes left
        ("start", "f8"),            # when it began to move
        ("drain", "f8"),            # when its last byte left
        ("latency", "f8"),          # seconds from drain to finish
        ("piece", "f8"),            # its chunk as a fraction of itself
        ("limit", "i4"),            # the link whose level moves it
        ("own_at", "i4"),           # its place in `owned`
        ("hold", "i4"),             # the flow that holds it, -1 when its link limits it
        ("status", "i4"),
        ("event_at", "i4"),         # place in `events`, -1 when it is not there
        ("watch", "i4"),            # 1 when a new rate of its own matters to flows that it does not hold
        ("in_moved", "i4"), ("in_touched", "i4"),
        ("hop_start", "i4"), ("hop_end", "i4"),
        ("after_start", "i4"), ("after_end", "i4"),     # what it follows
        ("next_start", "i4"), ("next_end", "i4"),       # what follows it
        ("inbox", "i4"), ("outbox", "i4"),              # counters of its destination and its source
    ]
)  # fmt: skip
HOP = np.dtype(
    [
        ("weight", "f8"),           # share of the flow's bytes
        ("rate", "f8"),             # bytes/s of the flow as booked on its links
        ("link", "i4"), ("flow", "i4"),
        ("limit", "i4"), ("live", "i4"),                # of its flow; a link reads one record per crossing
    ]
)  # fmt: skip
OWNED = np.dtype(
    [
        ("key", "f8"),              # as in FLOW
        ("kappa", "f8"),            # its rate over the level: 1, or for a held flow its size over that of the first of its chain
        ("flow", "i4"), ("hop", "i4"),                  # and the hop by which it crosses this link, -1 when it does not
        ("hop_start", "i4"), ("hop_end", "i4"),
        ("watch", "i4"), ("held", "i4"),
    ]
)  # fmt: skip
EVENT = np.dtype([("key", "f8"), ("item", "i8")])
COUNTER = np.dtype([("last", "f8"), ("waiting", "i8")])             # latest finish so far; flows not yet drained
MOVE = np.dtype([("key", "f8"), ("flow", "i4"), ("hop", "i4")])     # a flow about to end or to change its place
CHANGE = np.dtype([("time", "f8"), ("link", "i8"), ("capacity", "f8")])


class State(NamedTuple):
    """All there is to know about the flows: records and lists of indices that the functions below change in place.

    What is called at every event takes its fields as a plain tuple: numba finds out the type of a named one in Python.
    """

    links: Records
    flows: Records
    hops: Records
    ends: Floats                # [links] when the first of the flows that each limits ends; inf without. Scanned at every event
    lists: Ints                 # [hops] the hops by which flows cross each link
    owned: Records              # those that each link's level moves
    events: Records             # [flows] heap of starts and meetings to come
    order: Records              # [links] heap of links to be looked at, lowest level first
    moves: Records              # [2 flows] scratch
    counters: Records
    changes: Records            # capacities to come, by time
    after: Ints                 # what the flows follow, row by row
    next: Ints                  # what follows them
    started: Ints               # [flows] those that start now
    moved: Ints                 # [flows] watched ones whose rate changed
    touched: Ints               # [flows] followers whose next event is to be found anew
    chain: Ints                 # [flows] scratch
    ended: Ints                 # [counters] those that reached zero
    tally: Ints                 # see N_EVENTS ... FAULT
    clock: Floats               # NOW: the last solve; QUANTUM: the least time between two, 0 when exact; BEGAN: when nothing
                                # moved; GROWTH: soon after that the quantum is this share of the time gone by, if less;
                                # TIE, STILL: levels this near count as equal, and one that moves by less stays (relative);
                                # SMALL: what a link owes for less than these seconds of its capacity can wait;
                                # STEP: the end of the step that is being played


# ---- heaps ---------------------------------------------------------------------------------------------------------------


@lean
def _sift_event(flows, events, tally, at):
    """Restore the heap of events around place `at`."""
    key = events[at].key
    item = events[at].item
    while at > 0 and events[(at - 1) >> 1].key > key:
        parent = (at - 1) >> 1
        events[at] = events[parent]
        flows[events[at].item].event_at = at
        at = parent
    n = tally[N_EVENTS]
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and events[child + 1].key < events[child].key:
            child += 1
        if events[child].key >= key:
            break
        events[at] = events[child]
        flows[events[at].item].event_at = at
        at = child
    events[at].key = key
    events[at].item = item
    flows[item].event_at = at


@lean
def _schedule(flows, events, tally, f, key):
    """The next event of flow f, besides its end, is at `key`; inf for none."""
    at = flows[f].event_at
    if key < np.inf:
        if at < 0:
            at = tally[N_EVENTS]
            tally[N_EVENTS] = at + 1
            events[at].item = f
        events[at].key = key
        _sift_event(flows, events, tally, at)
    elif at >= 0:
        tally[N_EVENTS] -= 1
        n = tally[N_EVENTS]
        flows[f].event_at = -1
        if at < n:
            events[at] = events[n]
            _sift_event(flows, events, tally, at)


@lean
def _sift_move(moves, n, at):
    """Restore the heap of the first n moves below place `at`."""
    key = moves[at].key
    flow = moves[at].flow
    hop = moves[at].hop
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and moves[child + 1].key < moves[child].key:
            child += 1
        if moves[child].key >= key:
            break
        moves[at] = moves[child]
        at = child
    moves[at].key = key
    moves[at].flow = flow
    moves[at].hop = hop


@lean
def _heap_moves(moves, n):
    """Make a heap of the first n moves, the lowest key in front."""
    for at in range(n // 2 - 1, -1, -1):
        _sift_move(moves, n, at)


@lean
def _push_link(links, order, tally, link, key):
    """Look at this link again when those of lower levels have been."""
    if links[link].order_at < 0:
        at = tally[N_ORDER]
        tally[N_ORDER] = at + 1
        while at > 0:
            parent = (at - 1) >> 1
            if order[parent].key <= key:
                break
            order[at] = order[parent]
            links[order[at].item].order_at = at
            at = parent
        order[at].key = key
        order[at].item = link
        links[link].order_at = at


@lean
def _pop_link(links, order, tally):
    link = order[0].item
    links[link].order_at = -1
    tally[N_ORDER] -= 1
    n = tally[N_ORDER]
    if n > 0:
        key = order[n].key
        item = order[n].item
        at = 0
        while True:
            child = 2 * at + 1
            if child >= n:
                break
            if child + 1 < n and order[child + 1].key < order[child].key:
                child += 1
            if order[child].key >= key:
                break
            order[at] = order[child]
            links[order[at].item].order_at = at
            at = child
        order[at].key = key
        order[at].item = item
        links[item].order_at = at
    return link


# ---- who limits whom -----------------------------------------------------------------------------------------------------


@lean
def _mark(links, order, tally, link):
    """What crosses this link changed."""
    if links[link].own > 0.0:
        _push_link(links, order, tally, link, (links[link].capacity - links[link].other) / links[link].own)
    elif links[link].own_size > 0 or links[link].other > links[link].capacity * FULL:
        _push_link(links, order, tally, link, 0.0)


@inlined
def _advance(links, link, t):
    """Bring a link's clock to t."""
    if links[link].own_size > 0:
        links[link].served += links[link].level * (t - links[link].since)
    else:
        links[link].served = 0.0
    links[link].since = t


@inlined
def _served(links, link, t):
    return links[link].served + links[link].level * (t - links[link].since)


@inlined
def _rate(flows, hops, f):
    return hops[flows[f].hop_start].rate


@lean
def _watch(flows, owned, f):
    """Note each new rate of flow f."""
    flows[f].watch = 1
    if flows[f].status == LIVE and flows[f].limit >= 0:
        owned[flows[f].own_at].watch = 1


@inlined
def _note_move(flows, moved, tally, f):
    if flows[f].in_moved == 0:
        flows[f].in_moved = 1
        moved[tally[N_MOVED]] = f
        tally[N_MOVED] += 1


@lean
def _leave(links, flows, hops, owned, ends, f):
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
    links[link].stale = max(1, links[link].stale)
    if links[link].own_size == 0:
        links[link].own = 0.0
        links[link].level = np.inf
        ends[link] = np.inf
        links[link].served = 0.0
        links[link].drift = 0.0


@lean
def _relimit(s, f, link, hop, kappa, hold, t):
    """Let flow f move with the level of this link, which it crosses by `hop` (-1: not at all). Its booked rate stays."""
    links, flows, hops, owned, order, tally = s.links, s.flows, s.hops, s.owned, s.order, s.tally
    left = flows[f].key
    rate = 0.0
    former = flows[f].limit
    if former >= 0:
        _advance(links, former, t)
        left = (flows[f].key - links[former].served) * owned[flows[f].own_at].kappa
        rate = _rate(flows, hops, f)
        _leave(links, flows, hops, owned, s.ends, f)
        _mark(links, order, tally, former)
    _advance(links, link, t)
    at = links[link].own_start + links[link].own_size
    if hop >= 0:
        links[link].other -= hops[hop].weight * rate
        links[link].own += hops[hop].weight * kappa
    if links[link].own_size == 0:
        links[link].level = max(0.0, (links[link].capacity - links[link].other) / links[link].own)
    links[link].own_size += 1
    links[link].stale = 2
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
    _mark(links, order, tally, link)


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
def _limit_by(s, f, hop, t):
    """Let the link of this hop of flow f limit it."""
    flows = s.flows
    if flows[f].hold >= 0:
        _watch(flows, s.owned, flows[f].hold)
        _note_move(flows, s.moved, s.tally, f)
    _relimit(s, f, s.hops[hop].link, hop, 1.0, -1, t)
    if flows[f].next_end > flows[f].next_start:
        _carry_along(s, f, t)


@lean
def _hold(s, f, p, t):
    """Let flow p, with which f has caught up, hold it."""
    flows, owned = s.flows, s.owned
    link = flows[p].limit
    kappa = owned[flows[p].own_at].kappa * flows[f].nbytes / flows[p].nbytes
    _relimit(s, f, link, _hop_over(flows, s.hops, f, link), kappa, p, t)
    if flows[f].next_end > flows[f].next_start:
        _carry_along(s, f, t)


@lean
def _roomiest(s, f):
    """The hop of flow f whose link would leave it least, and how much, had it no rate now."""
    links, flows, hops = s.links, s.flows, s.hops
    rate = _rate(flows, hops, f) if flows[f].limit >= 0 else 0.0
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


# ---- what follows what ---------------------------------------------------------------------------------------------------


@lean
def _fraction(s, f, t):
    """How much of flow f has drained at t, 0 to 1."""
    links, flows, owned = s.links, s.flows, s.owned
    drained = 0.0
    if flows[f].status == DONE:
        drained = 1.0
    elif flows[f].status == LIVE and flows[f].limit >= 0:
        left = (flows[f].key - _served(links, flows[f].limit, t)) * owned[flows[f].own_at].kappa
        drained = 1.0 - left / flows[f].nbytes
    return drained


@lean
def _first_chunk_at(s, f, t):
    """When every flow that f follows has drained the first chunk; inf when that cannot be said yet."""
    flows, hops, after = s.flows, s.hops, s.after
    at = t
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status == DONE:
            continue
        if flows[p].status != LIVE or flows[p].limit < 0 or flows[f].piece >= 1.0:
            return np.inf
        rate = _rate(flows, hops, p)
        missing = flows[f].piece - _fraction(s, p, t)
        if missing > max(CLOSE, 1e-15 * t * rate / flows[p].nbytes):
            if rate <= 0.0:
                return np.inf
            at = max(at, t + missing * flows[p].nbytes / rate)
    return at


@lean
def _slowest_met(s, f, t):
    """Of the flows that f follows and has caught up with, the one that leaves it least; (-1, inf) when there is none."""
    flows, hops, after = s.flows, s.hops, s.after
    cap = np.inf
    who = -1
    x = _fraction(s, f, t)
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status == LIVE and flows[p].limit >= 0:
            pace = _rate(flows, hops, p) / flows[p].nbytes
            met = p == flows[f].hold
            if not met:
                met = _fraction(s, p, t) - flows[f].piece <= x + max(CLOSE, 1e-15 * t * pace)
            if met and pace * flows[f].nbytes < cap:
                cap = pace * flows[f].nbytes
                who = p
    return who, cap


@lean
def _next_meeting(s, f, t):
    """When f will have caught up with one more of the flows that it follows; inf when it will not at these rates."""
    flows, hops, after = s.flows, s.hops, s.after
    at = np.inf
    pace = _rate(flows, hops, f) / flows[f].nbytes
    x = _fraction(s, f, t)
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status == LIVE and flows[p].limit >= 0 and p != flows[f].hold:
            theirs = _rate(flows, hops, p) / flows[p].nbytes
            closing = pace - theirs
            if closing > SAME_LEVEL * pace:
                gap = _fraction(s, p, t) - flows[f].piece - x
                if gap > max(CLOSE, 1e-15 * t * theirs):
                    at = min(at, t + gap / closing)
    return at


@lean
def _touch(flows, touched, tally, f):
    """Find the next event of follower f anew, once the rates are known."""
    if flows[f].in_touched == 0:
        flows[f].in_touched = 1
        touched[tally[N_TOUCHED]] = f
        tally[N_TOUCHED] += 1


@lean
def _check(s, f, t):
    """Hold live follower f where it has caught up with a slower flow. Note which flows' rates matter to it."""
    flows, hops, owned, after, tally, touched = s.flows, s.hops, s.owned, s.after, s.tally, s.touched
    who, cap = _slowest_met(s, f, t)
    if who >= 0 and who != flows[f].hold:
        now = _rate(flows, hops, f)
        if flows[f].hold >= 0:
            now = min(now, _rate(flows, hops, flows[f].hold) / flows[flows[f].hold].nbytes * flows[f].nbytes)
        if cap < now * (1 - SAME_LEVEL):
            _hold(s, f, who, t)
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status != DONE and p != flows[f].hold:
            _watch(flows, owned, p)
            _watch(flows, owned, f)
    _touch(flows, touched, tally, f)


@lean
def _tell_followers(s, f, t):
    """The rate of flow f changed: see to those that follow it, and to those that it follows. Still watched only if need be."""
    flows, owned, followers, after, tally, touched = s.flows, s.owned, s.next, s.after, s.tally, s.touched
    flows[f].watch = 0
    if flows[f].status == LIVE:
        owned[flows[f].own_at].watch = 0
    for i in range(flows[f].next_start, flows[f].next_end):
        c = followers[i]
        if flows[c].status == READY:
            _watch(flows, owned, f)
            _touch(flows, touched, tally, c)
        elif flows[c].status == LIVE and flows[c].hold != f:
            _check(s, c, t)
    if flows[f].status == LIVE:
        for i in range(flows[f].after_start, flows[f].after_end):
            if flows[after[i]].status == LIVE and after[i] != flows[f].hold:
                _check(s, f, t)
                break


@lean
def _find_next_events(s, t):
    """Schedule the followers that were touched."""
    flows, events, tally, touched = s.flows, s.events, s.tally, s.touched
    for i in range(tally[N_TOUCHED]):
        f = touched[i]
        flows[f].in_touched = 0
        if flows[f].status == READY:
            _schedule(flows, events, tally, f, _first_chunk_at(s, f, t))
        elif flows[f].status == LIVE:
            _schedule(flows, events, tally, f, _next_meeting(s, f, t))
    tally[N_TOUCHED] = 0


# ---- levels --------------------------------------------------------------------------------------------------------------


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
    _heap_moves(moves, n)
    while n > 0 and (links[link].own <= 0.0 or -moves[0].key > new * (1 + s.clock[TIE])):
        f = moves[0].flow
        hop = moves[0].hop
        n -= 1
        moves[0] = moves[n]
        _sift_move(moves, n, 0)
        if flows[f].limit != link:                  # else it was carried along
            _limit_by(s, f, hop, t)
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
    drift = links[link].drift
    links[link].drift = 0.0
    tie = 1.0 - s.clock[TIE]
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
                links[m].debt += hops[h].weight * owned[at].kappa * drift
                lowest = min(lowest, links[m].level)
                if links[m].order_at < 0:
                    _mark(links, order, tally, m)
        if owned[at].held and owned[at].hop >= 0:
            lowest = min(lowest, new)
        if lowest < rate * tie:
            moves[n].flow = owned[at].flow
            n += 1
        if owned[at].watch and change != 0.0:
            _note_move(flows, moved, tally, owned[at].flow)
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
def _pay(links, ends, link, most):
    """What the others had beyond the books is missing to those that this link limits; no more than `most` bytes at a time."""
    missing = min(most, max(-most, links[link].debt / links[link].own))
    links[link].debt -= missing * links[link].own
    links[link].served -= missing
    links[link].drift -= missing
    ends[link] += missing / links[link].level
    links[link].stale = max(1, links[link].stale)


@inlined
def _look_at(s, link, t):
    """Find a link's level anew, and have the flows that it limits, and those it should, follow."""
    links, flows, hops, moves = s.links, s.flows, s.hops, s.moves
    _advance(links, link, t)
    new = -1.0
    if links[link].own > 0.0:
        new = (links[link].capacity - links[link].other) / links[link].own
    elif links[link].other <= links[link].capacity * FULL:
        new = np.inf
    if new < links[link].top * (1 - s.clock[TIE]):
        new = _take_faster(s, link, new, t)
    owes = abs(links[link].debt) > s.clock[SMALL] * links[link].capacity
    if owes and links[link].own > 0.0 and links[link].level < np.inf and links[link].paid != t:
        links[link].paid = t                        # once per step, or what one pays back is another's debt at once
        _pay(links, s.ends, link, 0.2 * links[link].level * s.clock[QUANTUM])
    forgiven = 1 if s.clock[QUANTUM] > 0.0 else 0   # in steps, those that are left may keep a level that hardly moves
    while links[link].own_size > 0:
        if links[link].stale <= forgiven and abs(new - links[link].level) <= s.clock[STILL] * links[link].level:
            break
        links[link].level = new
        n = _push_rates(s, link, new)
        for i in range(n):                          # each that goes leaves the rest more: all of them have to
            f = moves[i].flow
            if flows[f].limit == link:              # else it was carried along
                _limit_by(s, f, _lowest_hop(links, flows, hops, f), t)
        if n == 0 or links[link].own <= 0.0:
            break
        new = (links[link].capacity - links[link].other) / links[link].own


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
            _note_move(flows, moved, tally, f)
    links[link].level = level
    links[link].own_size = size
    links[link].own = own
    links[link].unfilled = 0
    s.ends[link] = t + first / level if level > 0.0 else np.inf


@lean
def _fill(s, t):
    """All rates from nothing: links fill up in rising order of what they have for each flow (progressive filling).

    Flows that were held are not any more; followers are to be checked after it.
    """
    links, flows, hops, lists, owned = s.links, s.flows, s.hops, s.lists, s.owned
    order, tally = s.order, s.tally
    tally[FILLS] += 1
    n = 0
    for link in range(links.size):
        _advance(links, link, t)
        if links[link].drift != 0.0:
            for at in range(links[link].own_start, links[link].own_start + links[link].own_size):
                for h in range(owned[at].hop_start, owned[at].hop_end):
                    if hops[h].link != link:
                        links[hops[h].link].debt += hops[h].weight * owned[at].kappa * links[link].drift
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
        links[link].own = links[link].other = links[link].top = links[link].served = links[link].drift = 0.0
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


# ---- events --------------------------------------------------------------------------------------------------------------


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
        _fill(s, t)
        return
    for i in range(n):
        f = started[i]
        hop, least = _roomiest(s, f)
        follows = flows[f].after_end > flows[f].after_start
        who = -1
        cap = np.inf
        if follows:
            who, cap = _slowest_met(s, f, t)
        if who >= 0 and cap <= least:
            _hold(s, f, who, t)
        else:
            _limit_by(s, f, hop, t)
        if follows:
            _check(s, f, t)


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
            link = _pop_link(links, order, tally)
            looks += 1
            _look_at(s, link, t)
            if looks > patience:                    # levels that hardly differ can pass flows to and fro for long
                rescues += 1
                patience += patience
                _fill(s, t)
        n = tally[N_MOVED]
        if n == 0 or tally[FAULT] != 0:
            break
        if rescues > 20:
            tally[FAULT] = FAULT_UNSETTLED
            break
        looks += 1
        tally[N_MOVED] = 0
        for i in range(n):                          # what this adds to `moved` stands in places that were read
            f = moved[i]
            flows[f].in_moved = 0
            _tell_followers(s, f, t)
    tally[LINK_VISITS] += looks
    _find_next_events(s, t)
    s.clock[NOW] = t


@inlined
def _count_down(counters, ended, tally, counter, finish):
    counters[counter].waiting -= 1
    counters[counter].last = max(counters[counter].last, finish)
    if counters[counter].waiting == 0:
        ended[tally[N_DONE]] = counter
        tally[N_DONE] += 1


@inlined
def _settle_end(s, f, limit, rate, drain):
    """Within a step: a flow that ends at `drain` is off its other links from then on, not from the step's begin or end.

    Returns the end, later where a link of its way would else have carried more than it can, or faster than it can.
    """
    links, flows, hops, step = s.links, s.flows, s.hops, s.clock[STEP]
    end = drain
    for h in range(flows[f].hop_start, flows[f].hop_end):
        m = hops[h].link
        if m != limit:
            if s.ends[m] <= step * (1 + SAME) and links[m].since < step:    # has still to be played, without this flow
                _advance(links, m, max(links[m].since, min(drain, s.ends[m])))
                links[m].debt += hops[h].weight * rate * (drain - links[m].since)
            else:
                links[m].debt -= hops[h].weight * rate * (step - drain)
        if s.changes.size == 0:
            links[m].done += hops[h].weight * flows[f].nbytes
            end = max(end, s.clock[BEGAN] + links[m].done / links[m].capacity)
            end = max(end, flows[f].start + hops[h].weight * flows[f].nbytes / links[m].capacity)
    return end


@lean
def _end(s, f, drain):
    """The last byte of flow f has left."""
    links, flows, hops, owned, tally, order = s.links, s.flows, s.hops, s.owned, s.tally, s.order
    rate = _rate(flows, hops, f)
    link = flows[f].limit
    _leave(links, flows, hops, owned, s.ends, f)
    for h in range(flows[f].hop_start, flows[f].hop_end):
        links[hops[h].link].other -= hops[h].weight * rate
        hops[h].live = 0
        _mark(links, order, tally, hops[h].link)
    if s.clock[QUANTUM] > 0.0:
        drain = _settle_end(s, f, link, rate, drain)
    flows[f].status = DONE
    flows[f].drain = drain
    flows[f].key = 0.0
    tally[N_LIVE] -= 1
    tally[EVENTS] += 1
    if flows[f].event_at >= 0:
        _schedule(flows, s.events, tally, f, np.inf)
    _count_down(s.counters, s.ended, tally, flows[f].inbox, drain + flows[f].latency)
    _count_down(s.counters, s.ended, tally, flows[f].outbox, drain)


@lean
def _free_followers(s, f, t):
    """Flow f has ended: what it held goes on by itself, and what waited for it may start."""
    flows, followers, tally, touched = s.flows, s.next, s.tally, s.touched
    for i in range(flows[f].next_start, flows[f].next_end):
        c = followers[i]
        if flows[c].status == LIVE:
            if flows[c].hold == f:
                hop, _ = _roomiest(s, c)
                _limit_by(s, c, hop, t)
            _check(s, c, t)
        elif flows[c].status == READY:
            _touch(flows, touched, tally, c)


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
def _play_alone(s, link, until, n_ended):
    """Let a link work by itself up to `until`: its level rises with each flow that ends, what the others have stays.

    What its flows have had beyond the books is settled with their other links when it is looked at.
    """
    links, flows, owned, tally, moves, started = s.links, s.flows, s.owned, s.tally, s.moves, s.started
    t = links[link].since
    served = links[link].served
    booked = served + links[link].level * (until - t)
    free = links[link].capacity - links[link].other
    level = links[link].level
    reach = -np.inf                                 # flows up to here have been in the heap
    beyond = np.inf                                 # the first that has not
    n = 0
    going = True
    while going:
        if n == 0:
            last = reach
            reach = served + 2.0 * level * (until - t)
            if reach <= last or links[link].own <= 0.0:
                break
            beyond = np.inf
            tally[FLOW_VISITS] += links[link].own_size
            for at in range(links[link].own_start, links[link].own_start + links[link].own_size):
                if owned[at].key > last and not owned[at].held:
                    if owned[at].key <= reach:
                        moves[n].key = owned[at].key
                        moves[n].flow = owned[at].flow
                        n += 1
                    else:
                        beyond = min(beyond, owned[at].key)
            _heap_moves(moves, n)
        while n > 0:
            level = free / links[link].own
            end = t + max(0.0, moves[0].key - served) / level
            if end > until:
                going = False
                break
            f = moves[0].flow
            t = end
            served = max(served, moves[0].key)
            n -= 1
            moves[0] = moves[n]
            _sift_move(moves, n, 0)
            _end(s, f, t)
            if flows[f].next_end > flows[f].next_start:
                started[n_ended] = f
                n_ended += 1
    if links[link].own_size > 0:
        level = links[link].level                   # what is left may be flows that are held and do not cross it
        if links[link].own > 0.0:
            level = free / links[link].own
        served += level * (until - t)
        links[link].drift += served - booked
        links[link].served = served
        links[link].since = until
        first = moves[0].key if n > 0 else beyond
        s.ends[link] = until + (first - served) / links[link].level if links[link].level > 0.0 else np.inf
        _push_link(links, s.order, tally, link, level)
    return n_ended


@lean
def _release_event(s, t, horizon):
    """The earliest event of the heap: a flow whose source is in, whose first chunk has come, or that has caught up."""
    flows, events, tally, started = s.flows, s.events, s.tally, s.started
    f = events[0].item
    at = events[0].key
    tally[EVENTS] += 1
    _schedule(flows, events, tally, f, np.inf)
    if flows[f].status == LIVE:
        _check(s, f, t)
        return
    flows[f].status = READY
    first = _first_chunk_at(s, f, t)
    if first <= horizon:
        flows[f].key = flows[f].nbytes
        flows[f].start = at if flows[f].after_end == flows[f].after_start else t
        started[tally[N_STARTED]] = f
        tally[N_STARTED] += 1
    else:
        for i in range(flows[f].after_start, flows[f].after_end):
            _watch(flows, s.owned, s.after[i])
        _schedule(flows, events, tally, f, first)


@lean
def release(fields, moving, at):
    """Each of `moving` may move from its time in `at` on, once what it follows lets it."""
    s = State(*fields)
    for i in range(moving.size):
        _schedule(s.flows, s.events, s.tally, moving[i], at[i])


@lean
def _change_capacities(s, horizon):
    """Give links the capacities that they have from now on."""
    links, changes, tally = s.links, s.changes, s.tally
    while tally[N_CHANGES] < changes.size and changes[tally[N_CHANGES]].time <= horizon:
        link = changes[tally[N_CHANGES]].link
        links[link].capacity = changes[tally[N_CHANGES]].capacity
        tally[N_CHANGES] += 1
        _mark(links, s.order, tally, link)


@lean
def _credit(s, n, t):
    """Those that start now although they were let go before have had their rate since then."""
    links, flows, hops, owned, started = s.links, s.flows, s.hops, s.owned, s.started
    for i in range(n):
        f = started[i]
        if flows[f].hold < 0 and flows[f].start < t:
            link = flows[f].limit
            had = links[link].level * (t - flows[f].start)
            flows[f].key -= had
            owned[flows[f].own_at].key = flows[f].key
            if links[link].level > 0.0:
                s.ends[link] = min(s.ends[link], t + (flows[f].key - links[link].served) / links[link].level)
            for h in range(flows[f].hop_start, flows[f].hop_end):
                links[hops[h].link].debt += hops[h].weight * had


@lean
def run(fields, until):
    """Play all events up to and including time `until`, but stop after an instant in which a counter reached zero.

    Exact where the quantum s.clock[QUANTUM] is 0. Else rates are agreed on at most once per quantum. In between each link works
    by itself: flows end when it has served them, and their rates go to the others that it limits; flows that start
    meanwhile are let in at the next agreement, with what they would have had until then. There the links settle what
    their flows had beyond the rates agreed on. The state may then be up to a quantum ahead of `until`.

    Returns the time of the next event, inf when there is none. The counters that reached zero stand in
    s.ended[: s.tally[N_DONE]]; the caller empties the list.
    """
    s = State(*fields)
    links, flows, events, tally, moves, started, changes = s.links, s.flows, s.events, s.tally, s.moves, s.started, s.changes
    ends = s.ends
    quantum = s.clock[QUANTUM]
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
        if quantum > 0.0:
            t = max(t, s.clock[NOW])
        if t > until or t == np.inf or tally[N_DONE] > 0:
            return t
        n_ended = 0                                 # those that others follow; nothing starts before they have been seen to
        if quantum > 0.0 and tally[N_LIVE] > 0:
            gone = s.clock[NOW] - s.clock[BEGAN]
            t = max(t, s.clock[NOW] + min(quantum, max(0.05 * quantum, s.clock[GROWTH] * gone)))
            if tally[N_CHANGES] < changes.size:
                t = min(t, changes[tally[N_CHANGES]].time)
        horizon = t + SAME * abs(t)
        s.clock[STEP] = t
        for link in range(links.size):
            if ends[link] > horizon:
                continue
            if quantum > 0.0:
                n_ended = _play_alone(s, link, t, n_ended)
            else:
                n = _due(s, link, horizon)
                for i in range(n):
                    f = moves[i].flow
                    _end(s, f, t)
                    if flows[f].next_end > flows[f].next_start:
                        started[n_ended] = f
                        n_ended += 1
        _change_capacities(s, horizon)
        for i in range(n_ended):
            _free_followers(s, started[i], t)
        while tally[N_EVENTS] > 0 and events[0].key <= horizon:
            _release_event(s, t, horizon)
        n_started = tally[N_STARTED]
        if tally[N_LIVE] == 0 and quantum > 0.0:
            s.clock[BEGAN] = t
            for link in range(links.size):
                links[link].done = links[link].debt = links[link].drift = 0.0
        _settle(s, t)
        if quantum > 0.0:
            _credit(s, n_started, t)
        if tally[FAULT] != 0:
            return math.nan
