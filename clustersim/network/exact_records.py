"""What the exact fluid network knows of links and flows, as flat records, and their heaps. Nothing here knows what a rate is.

Numbers that are compiled in stand here or in the file that uses them; who imports them from here imports a function as well,
by which machine code is told when this file changes: see `jit.njit`. Import it late: it imports numba.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import lean
from clustersim.types import Floats, Ints

Records = NDArray[Any]

IDLE, READY, LIVE, DONE = 0, 1, 2, 3        # source not in; waiting for the first chunk; moving; last byte has left
SAME_LEVEL = 1e-12                          # relative: levels this near to each other count as equal
(
    N_EVENTS, N_ORDER, N_DONE, N_STARTED, N_LIVE, N_HELD, N_MOVED, N_TOUCHED, N_CHANGES,
    SOLVES, FLOW_VISITS, LINK_VISITS, EVENTS, FILLS, FAULT,
) = range(15)  # fmt: skip
N_TALLY = 15
FAULT_OVERLOAD, FAULT_UNSETTLED = 1, 2

LINK = np.dtype(
    [
        ("level", "f8"),            # bytes/s of each flow that it limits; inf while it limits none
        ("other", "f8"),            # bytes/s of the others
        ("top", "f8"),              # no other flow is faster than this
        ("own", "f8"),              # the sum of the weights of those that its level moves
        ("capacity", "f8"),         # bytes/s
        ("order_at", "i8"),         # place in `order`, -1 when it is not there
        ("own_size", "i8"),
        ("own_start", "i8"),        # those that its level moves: owned[own_start : own_start + own_size]
                                    # (up to here what the innermost loop reads, in one cache line)
        ("served", "f8"),           # bytes that it has served to each of them at time `since`
        ("since", "f8"),
        ("stale", "i8"),            # 1 when some have left or joined since it was looked at
        ("list_start", "i8"),       # the flows that cross it: lists[list_start : list_start + list_size], some of them done
        ("list_size", "i8"),
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
    """All there is to know about the flows: records and lists of indices that the inner loops change in place.

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
def schedule(flows, events, tally, f, key):
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
def sift_move(moves, n, at):
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
def heap_moves(moves, n):
    """Make a heap of the first n moves, the lowest key in front."""
    for at in range(n // 2 - 1, -1, -1):
        sift_move(moves, n, at)


@lean
def push_link(links, order, tally, link, key):
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
def pop_link(links, order, tally):
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
