"""The inner loop of the fluid network: exact weighted max-min sharing, event by event, over flat arrays. No SimPy here.

Max-min rates by progressive filling (Bertsekas & Gallager, Data Networks, 2nd ed., 6.5.2): links freeze in increasing
order of fair share. A change at rate r leaves every link that froze below r, and every flow slower than r, as it was,
so only what is reachable from the changed links through flows at or above r is filled again (prefix reuse).

A flow that follows others keeps at least one chunk behind each of them. While it has caught up, the pace of the
slowest one it has caught up with caps its rate; meeting one of them is an event like a completion. Caps follow from
rates and rates from caps: filling is repeated until they agree, and where flows hold back what they themselves follow,
so that plain repetition swings for ever, the caps move only part of the way.

All of it is one file because numba's cache on disk looks only at the file of the function that is called.
Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined, njit
from clustersim.types import Floats, Ints

Records = NDArray[Any]

IDLE, READY, LIVE, DONE = 0, 1, 2, 3        # source not in; waiting for the first chunk; moving; last byte has left
CLOSE = 1e-9                                # fractions of a flow nearer than this count as equal: clock rounding
SAME = 1e-14                                # relative: events this near in time happen together
AGREED = 1e-13                              # relative: a cap this near to its pace is left alone; laxer after many rounds
PLAIN = 8                                   # rounds in which caps take over a new pace at once; later they approach it
OUTSIDE = -2.0                              # in `before`: the solve did not touch the flow
N_HEAP, N_DIRTY, N_SEEDS, N_DONE, SOLVES, FLOW_VISITS, LINK_VISITS, EVENTS, FAULT, ROUND, SETTLES, N_MOVED = range(12)
N_TALLY = 12
FAULT_OVERLOAD, FAULT_UNSETTLED = 1, 2

LINK = np.dtype(
    [
        ("capacity", "f8"),         # bytes/s
        ("load", "f8"),             # bytes/s now
        ("share", "f8"),            # sum of the weights of its live flows
        ("room", "f8"),             # while filling: capacity left to the flows not yet filled,
        ("weight", "f8"),           # the sum of their weights,
        ("unfilled", "i8"),         # and their number
        ("saturated", "i8"),        # 1 when it limits a flow
        ("is_seed", "i8"),
        ("link_in", "i8"),          # 1 while in the region
        ("list_start", "i8"),       # its live flows stand in lists[list_start : list_start + list_size]
        ("list_size", "i8"),
    ]
)
FLOW = np.dtype(
    [
        ("left", "f8"),             # bytes at time `since`
        ("rate", "f8"),             # bytes/s
        ("since", "f8"),
        ("nbytes", "f8"),
        ("cap", "f8"),              # bytes/s that the flows it follows leave it; inf without
        ("drain", "f8"),            # when its last byte left; while live, when it would at this rate
        ("start", "f8"),            # when it began to move
        ("before", "f8"),           # its rate before the solve
        ("piece", "f8"),            # its chunk as a fraction of itself
        ("latency", "f8"),          # seconds from drain to finish
        ("trust", "f8"),            # how far its cap goes towards the pace at hand, once that swings,
        ("miss", "f8"),             # how far they were apart before,
        ("trusted_in", "i8"),       # and the settlement (number SETTLES) in which they were
        ("status", "i8"),
        ("limit", "i8"),            # the link that limits it, -1 when its cap does
        ("heap_at", "i8"),          # -1 when it has no next event
        ("in_region", "i8"),        # 0 no, 1 to be filled, 2 filled
        ("is_dirty", "i8"),
        ("hop_start", "i8"), ("hop_end", "i8"),
        ("after_start", "i8"), ("after_end", "i8"),     # what it follows
        ("next_start", "i8"), ("next_end", "i8"),       # what follows it
        ("inbox", "i8"), ("outbox", "i8"),              # counters of its destination and its source
    ]
)  # fmt: skip
HOP = np.dtype([("weight", "f8"), ("link", "i8"), ("at", "i8")])    # share of the flow's bytes; link; place in its list
ENTRY = np.dtype([("flow", "i8"), ("hop", "i8")])                   # a live flow of a link, and the hop it is there by
EVENT = np.dtype([("key", "f8"), ("flow", "i8")])
COUNTER = np.dtype([("last", "f8"), ("waiting", "i8")])             # latest finish so far; flows not yet drained


class State(NamedTuple):
    """All there is to know about the flows: records and lists of indices that the functions below change in place."""

    links: Records
    flows: Records
    hops: Records
    lists: Records              # [hops] live flows, link by link
    heap: Records               # [flows] the next event of each
    counters: Records
    after: Ints                 # what the flows follow, row by row
    next: Ints                  # what follows them
    dirty: Ints                 # [flows] those whose cap changed, to be settled
    seeds: Ints                 # [links] those whose sharing changed
    moved: Ints                 # [flows] those whose pace changed, of which followers are to be told
    region_flow: Ints           # [flows]
    region_link: Ints           # [links]
    ended: Ints                 # [counters] those that reached zero
    tally: Ints                 # see N_HEAP ... FAULT
    level: Floats               # [1] lowest rate that the pending changes touch


@inlined
def _sift(flows, heap, tally, at):
    """Restore the heap around place `at`."""
    key = heap[at].key
    f = heap[at].flow
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent].key <= key:
            break
        heap[at] = heap[parent]
        flows[heap[at].flow].heap_at = at
        at = parent
    n = tally[N_HEAP]
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and heap[child + 1].key < heap[child].key:
            child += 1
        if heap[child].key >= key:
            break
        heap[at] = heap[child]
        flows[heap[at].flow].heap_at = at
        at = child
    heap[at].key = key
    heap[at].flow = f
    flows[f].heap_at = at


@inlined
def schedule(flows, heap, tally, f, key):
    """The next event of flow f is at `key`; inf takes it out of the heap."""
    if key < np.inf or flows[f].heap_at >= 0:
        _reheap(flows, heap, tally, f, key)


@njit
def _reheap(flows, heap, tally, f, key):
    at = flows[f].heap_at
    if key < np.inf:
        if at < 0:
            at = tally[N_HEAP]
            tally[N_HEAP] = at + 1
            heap[at].flow = f
        heap[at].key = key
        _sift(flows, heap, tally, at)
    elif at >= 0:
        tally[N_HEAP] -= 1
        n = tally[N_HEAP]
        flows[f].heap_at = -1
        if at < n:
            heap[at] = heap[n]
            flows[heap[at].flow].heap_at = at
            _sift(flows, heap, tally, at)


@njit
def release(s, moving, at):
    """Each of `moving` may move from its time in `at` on, once what it follows lets it."""
    tally, flows, heap = s.tally, s.flows, s.heap
    for i in range(moving.size):
        schedule(flows, heap, tally, moving[i], at[i])


@inlined
def _fraction(flows, f, t):
    """How much of flow f has drained at t, 0 to 1."""
    if flows[f].status == DONE:
        return 1.0
    if flows[f].status != LIVE:
        return 0.0
    return 1.0 - (flows[f].left - flows[f].rate * (t - flows[f].since)) / flows[f].nbytes


@inlined
def _progress(flows, f, t):
    flows[f].left = max(0.0, flows[f].left - flows[f].rate * (t - flows[f].since))
    flows[f].since = t


@inlined
def _close(flows, f, t):
    """Fractions of flow f nearer than this cannot be told apart at time t."""
    return max(CLOSE, 1e-15 * t * flows[f].rate / flows[f].nbytes)


@njit
def _first_chunk_at(flows, after, f, t):
    """When every flow that f follows has drained the first chunk; inf when that cannot be said yet."""
    at = t
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status == DONE:
            continue
        if flows[p].status != LIVE or flows[p].rate <= 0.0 or flows[f].piece >= 1.0:
            return np.inf
        missing = flows[f].piece - _fraction(flows, p, t)
        if missing > _close(flows, p, t):
            at = max(at, t + missing * flows[p].nbytes / flows[p].rate)
    return at


@inlined
def _is_held(flows, f):
    """Whether live flow f moves at the pace of what it follows; it stays so until that changes its rate."""
    return flows[f].limit < 0 and 0.0 < flows[f].cap < np.inf


@njit
def _slowest_met(flows, after, f, t):
    """The lowest rate that the flows which f has caught up with leave it; inf when there is none."""
    cap = np.inf
    x = _fraction(flows, f, t)
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status != DONE and _fraction(flows, p, t) - flows[f].piece <= x + _close(flows, p, t):
            cap = min(cap, flows[p].rate / flows[p].nbytes * flows[f].nbytes)
    return cap


@inlined
def _pace_cap(flows, after, f, t):
    """The rate that what f follows leaves it; inf when it follows nothing, or has caught up with nothing."""
    first, n = flows[f].after_start, flows[f].after_end - flows[f].after_start
    if n == 0:
        cap = np.inf
    elif n == 1 and _is_held(flows, f):
        p = after[first]
        cap = np.inf if flows[p].status == DONE else flows[p].rate / flows[p].nbytes * flows[f].nbytes
    else:
        cap = _slowest_met(flows, after, f, t)
    return cap


@inlined
def _cap_is_off(flows, after, tally, f, t):
    """Whether the pace at hand asks for another cap; one that binds neither before nor after is taken over on the spot."""
    cap = _pace_cap(flows, after, f, t)
    old = flows[f].cap
    off = cap != old
    if off and flows[f].limit >= 0 and flows[f].rate > 0.0 and cap >= flows[f].rate and old >= flows[f].rate:
        flows[f].cap = cap
        off = False
    return off and not abs(cap - old) <= AGREED * (1.0 + (tally[ROUND] / 20.0) ** 2) * old


@njit
def _approach(flows, tally, f, cap):
    """The cap on the way to `cap`: less of the way each time that the difference changes its sign, else more."""
    old = flows[f].cap
    if not 0.0 < old < np.inf or cap == np.inf:
        return cap
    miss = cap - old
    if flows[f].trusted_in != tally[SETTLES]:
        flows[f].trusted_in = tally[SETTLES]
        flows[f].trust = 0.5
    elif miss * flows[f].miss < 0.0:
        flows[f].trust *= 0.5
    else:
        flows[f].trust = min(1.0, 1.25 * flows[f].trust)
    flows[f].miss = miss
    return old + flows[f].trust * miss


@njit
def _next_meeting(flows, after, f, t):
    """When f will have caught up with one more of the flows that it follows; inf when it will not at these rates."""
    at = np.inf
    pace = flows[f].rate / flows[f].nbytes
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        closing = pace - flows[p].rate / flows[p].nbytes
        if flows[p].status != DONE and closing > 0.0:
            gap = _fraction(flows, p, t) - flows[f].piece - _fraction(flows, f, t)
            if gap > _close(flows, p, t):
                at = min(at, t + gap / closing)
    return at


@inlined
def _reschedule(flows, after, heap, tally, f, t):
    """Set the next event of live flow f: its end, or its meeting one of the flows that it follows."""
    rate = flows[f].rate
    drain = t + (flows[f].left - rate * (t - flows[f].since)) / rate if rate > 0.0 else np.inf
    flows[f].drain = drain
    n = flows[f].after_end - flows[f].after_start
    if n > 0:
        held = _is_held(flows, f)
        if held:
            drain = np.inf                          # what holds it ends first
        if n > 1 or not held:
            drain = min(drain, _next_meeting(flows, after, f, t))
    schedule(flows, heap, tally, f, drain)


@inlined
def _mark(flows, dirty, tally, f):
    if flows[f].is_dirty == 0:
        flows[f].is_dirty = 1
        dirty[tally[N_DIRTY]] = f
        tally[N_DIRTY] += 1


@inlined
def _seed(links, seeds, tally, lowest, link, level):
    if links[link].is_seed == 0:
        links[link].is_seed = 1
        seeds[tally[N_SEEDS]] = link
        tally[N_SEEDS] += 1
    lowest[0] = min(lowest[0], level)


@njit
def _begin(s, f, t):
    tally, dirty, flows, heap, hops, links, lists = s.tally, s.dirty, s.flows, s.heap, s.hops, s.links, s.lists
    flows[f].status = LIVE
    flows[f].start = t
    flows[f].since = t
    flows[f].rate = 0.0
    flows[f].limit = -1
    flows[f].cap = 0.0
    for h in range(flows[f].hop_start, flows[f].hop_end):
        link = hops[h].link
        at = links[link].list_start + links[link].list_size
        lists[at].flow = f
        lists[at].hop = h
        hops[h].at = at
        links[link].list_size += 1
        links[link].share += hops[h].weight
    schedule(flows, heap, tally, f, np.inf)
    _mark(flows, dirty, tally, f)


@njit
def _count_down(counters, ended, tally, counter, finish):
    counters[counter].waiting -= 1
    counters[counter].last = max(counters[counter].last, finish)
    if counters[counter].waiting == 0:
        ended[tally[N_DONE]] = counter
        tally[N_DONE] += 1


@njit
def _end(s, f, t):
    tally, counters, ended, flows, heap = s.tally, s.counters, s.ended, s.flows, s.heap
    hops, lowest, links, lists, seeds = s.hops, s.level, s.links, s.lists, s.seeds
    flows[f].status = DONE
    flows[f].left = 0.0
    schedule(flows, heap, tally, f, np.inf)
    for h in range(flows[f].hop_start, flows[f].hop_end):
        link = hops[h].link
        at = hops[h].at
        links[link].list_size -= 1
        moved = links[link].list_start + links[link].list_size
        lists[at].flow = lists[moved].flow
        lists[at].hop = lists[moved].hop
        hops[lists[at].hop].at = at
        links[link].share -= hops[h].weight
        links[link].load -= hops[h].weight * flows[f].rate
        if links[link].list_size == 0:
            links[link].share = 0.0
            links[link].load = 0.0
            links[link].saturated = 0
        elif links[link].saturated == 1:
            _seed(links, seeds, tally, lowest, link, flows[f].rate)
    _count_down(counters, ended, tally, flows[f].inbox, flows[f].drain + flows[f].latency)
    _count_down(counters, ended, tally, flows[f].outbox, flows[f].drain)


@inlined
def _is_dragged(flows, f, c):
    """Whether c moves at the pace of live f, which alone it follows, and nothing follows c: most flows of a two-hop exchange."""
    alone = flows[c].after_end - flows[c].after_start == 1 and flows[c].next_start == flows[c].next_end
    quiet = flows[c].is_dirty == 0 and flows[c].heap_at < 0        # with an event: a link held it until now, at the same rate
    return alone and quiet and flows[f].status == LIVE and _is_held(flows, c)


@inlined
def _drag(flows, links, hops, seeds, tally, lowest, f, c, t):
    """Take over the new pace of f for a flow c that it drags, which has no event of its own while that lasts."""
    old = flows[c].rate
    cap = flows[f].rate / flows[f].nbytes * flows[c].nbytes
    _progress(flows, c, t)
    flows[c].rate = cap
    flows[c].cap = cap
    _shift_load(flows, links, hops, seeds, tally, lowest, c, old, cap)


@inlined
def _shift_load(flows, links, hops, seeds, tally, lowest, f, old, new):
    """Book flow f's new rate on its links; mark those that this overfills, or where it frees what others were short of."""
    for h in range(flows[f].hop_start, flows[f].hop_end):
        link = hops[h].link
        links[link].load += hops[h].weight * (new - old)
        if links[link].load > links[link].capacity * (1 + 1e-12) or (links[link].saturated == 1 and new < old):
            floor = links[link].capacity / links[link].share
            _seed(links, seeds, tally, lowest, link, min(new, floor))


@inlined
def _tell_followers(s, f, t):
    """The pace of f changed: what follows it may start at another time or run at another rate."""
    after, tally, dirty, flows, heap = s.after, s.tally, s.dirty, s.flows, s.heap
    hops, lowest, links, followers, seeds = s.hops, s.level, s.links, s.next, s.seeds
    for i in range(flows[f].next_start, flows[f].next_end):
        c = followers[i]
        if flows[c].status == LIVE:
            if _is_dragged(flows, f, c) and tally[ROUND] <= PLAIN:
                _drag(flows, links, hops, seeds, tally, lowest, f, c, t)
            elif _cap_is_off(flows, after, tally, c, t):
                _mark(flows, dirty, tally, c)
            elif flows[c].is_dirty == 0:
                _reschedule(flows, after, heap, tally, c, t)
        elif flows[c].status == READY:
            schedule(flows, heap, tally, c, _first_chunk_at(flows, after, c, t))


@njit
def _apply_caps(s, t):
    """Give the dirty flows their new caps; where a link is freed or overfilled by that, mark it for a solve."""
    after, tally, dirty, flows, hops = s.after, s.tally, s.dirty, s.flows, s.hops
    lowest, links, seeds = s.level, s.links, s.seeds
    n = tally[N_DIRTY]
    for i in range(n):
        f = dirty[i]
        if flows[f].status != LIVE:
            continue
        _progress(flows, f, t)
        old = flows[f].rate
        cap = _pace_cap(flows, after, f, t)
        if tally[ROUND] > PLAIN:
            cap = _approach(flows, tally, f, cap)
        flows[f].cap = cap
        flows[f].before = OUTSIDE
        if flows[f].limit >= 0 and old > 0.0 and cap >= old:
            continue                              # a link holds it anyway
        if cap == np.inf:
            level = np.inf                        # no link of its way can saturate below its even share
            for h in range(flows[f].hop_start, flows[f].hop_end):
                level = min(level, links[hops[h].link].capacity / links[hops[h].link].share)
            for h in range(flows[f].hop_start, flows[f].hop_end):
                links[hops[h].link].load -= hops[h].weight * old
                _seed(links, seeds, tally, lowest, hops[h].link, level)
            flows[f].rate = 0.0                 # whatever its rate will be, the solve has to find it
            continue
        flows[f].rate = cap
        flows[f].limit = -1
        _shift_load(flows, links, hops, seeds, tally, lowest, f, old, cap)
    return n


@njit
def _collect_region(s, t):
    """All that the pending changes can reach: links, and their flows at or above the level. Returns (flows, links)."""
    after, tally, flows, hops, lowest = s.after, s.tally, s.flows, s.hops, s.level
    links, lists, region_flow, region_link, seeds = s.links, s.lists, s.region_flow, s.region_link, s.seeds
    level = lowest[0] * (1 - 1e-12)
    n_flows = 0
    n_links = tally[N_SEEDS]
    for i in range(n_links):
        region_link[i] = seeds[i]
        links[seeds[i]].link_in = 1
    i = 0
    while i < n_links:
        link = region_link[i]
        i += 1
        room = links[link].capacity
        weight = 0.0
        unfilled = 0
        for at in range(links[link].list_start, links[link].list_start + links[link].list_size):
            f = lists[at].flow
            w = hops[lists[at].hop].weight
            if 0.0 < flows[f].rate < level:           # also when its cap has just moved it there: that is settled
                room -= w * flows[f].rate
                continue
            weight += w
            unfilled += 1
            if flows[f].in_region == 0:
                flows[f].in_region = 1
                region_flow[n_flows] = f
                n_flows += 1
                _progress(flows, f, t)
                flows[f].before = flows[f].rate
                if flows[f].after_end > flows[f].after_start and (flows[f].is_dirty == 0 or tally[ROUND] <= PLAIN):
                    flows[f].cap = _pace_cap(flows, after, f, t)
                for h in range(flows[f].hop_start, flows[f].hop_end):
                    if links[hops[h].link].link_in == 0:
                        links[hops[h].link].link_in = 1
                        region_link[n_links] = hops[h].link
                        n_links += 1
        tally[FLOW_VISITS] += links[link].list_size
        links[link].room = room
        links[link].weight = weight
        links[link].unfilled = unfilled
    return n_flows, n_links


@inlined
def _freeze(s, f, rate, limit):
    flows, hops, links = s.flows, s.hops, s.links
    flows[f].in_region = 2
    flows[f].rate = rate
    flows[f].limit = limit
    for h in range(flows[f].hop_start, flows[f].hop_end):
        link = hops[h].link
        links[link].room -= hops[h].weight * rate
        links[link].weight -= hops[h].weight
        links[link].unfilled -= 1


@njit
def _freeze_capped(s, n, level):
    """Freeze those of the first n flows of the region whose cap is no higher than `level`; (how many, how many stay).

    All at once: when slower flows leave, the levels of links only rise.
    """
    flows, region_flow = s.flows, s.region_flow
    frozen = 0
    i = 0
    while i < n:
        f = region_flow[i]
        if flows[f].in_region == 1 and flows[f].cap <= level:
            _freeze(s, f, flows[f].cap, -1)
            frozen += 1
        if flows[f].in_region == 1:
            i += 1
        else:                                       # out of those that are looked at
            n -= 1
            region_flow[i] = region_flow[n]
            region_flow[n] = f
    return frozen, n


@njit
def _fill(s, n_flows, n_links):
    """Progressive filling of the region: freeze the flows whose caps are lowest, or the tightest link, until none is left."""
    tally, flows, links, lists, region_flow = s.tally, s.flows, s.links, s.lists, s.region_flow
    region_link = s.region_link
    n_capped = 0
    for i in range(n_flows):                        # those with a cap to the front
        f = region_flow[i]
        if flows[f].cap < np.inf:
            region_flow[i] = region_flow[n_capped]
            region_flow[n_capped] = f
            n_capped += 1
    for i in range(n_links):
        links[region_link[i]].saturated = 0
    left = n_flows
    while left > 0:
        tightest = -1
        level = np.inf
        i = 0
        while i < n_links:
            link = region_link[i]
            if links[link].unfilled == 0:           # filled: out of those that are looked at
                n_links -= 1
                region_link[i] = region_link[n_links]
                region_link[n_links] = link
                continue
            fair = links[link].room / links[link].weight
            if fair < level:
                level = fair
                tightest = link
            i += 1
        tally[LINK_VISITS] += n_links
        level = max(level, 0.0)
        frozen = 0
        if n_capped > 0:
            frozen, n_capped = _freeze_capped(s, n_capped, level)
            left -= frozen
        if frozen == 0:
            links[tightest].saturated = 1
            for at in range(links[tightest].list_start, links[tightest].list_start + links[tightest].list_size):
                f = lists[at].flow
                if flows[f].in_region == 1:
                    _freeze(s, f, level, tightest)
                    left -= 1
            tally[FLOW_VISITS] += links[tightest].list_size


@njit
def _solve(s, t):
    """Recompute the rates around the seeds. Returns how many flows were looked at; they stand first in region_flow."""
    tally, flows, lowest, links, region_flow = s.tally, s.flows, s.level, s.links, s.region_flow
    region_link, seeds = s.region_link, s.seeds
    n_flows, n_links = _collect_region(s, t)
    tally[SOLVES] += 1
    _fill(s, n_flows, n_links)
    for i in range(n_links):
        link = region_link[i]
        links[link].link_in = 0
        links[link].load = links[link].capacity - links[link].room
        if links[link].room < -1e-9 * links[link].capacity:
            tally[FAULT] = FAULT_OVERLOAD
    for i in range(tally[N_SEEDS]):
        links[seeds[i]].is_seed = 0
    tally[N_SEEDS] = 0
    lowest[0] = np.inf
    for i in range(n_flows):
        flows[region_flow[i]].in_region = 0
    return n_flows


@inlined
def _note_move(flows, moved, tally, f):
    """The pace of f changed; whoever follows it is told before the next solve."""
    if flows[f].next_end > flows[f].next_start:
        moved[tally[N_MOVED]] = f
        tally[N_MOVED] += 1


@njit
def _settle(s, t):
    """Bring caps and rates into agreement after the events of time t."""
    after, tally, dirty, moved = s.after, s.tally, s.dirty, s.moved
    flows, heap, region_flow = s.flows, s.heap, s.region_flow
    tally[SETTLES] += 1
    while True:
        for i in range(tally[N_MOVED]):
            _tell_followers(s, moved[i], t)
        tally[N_MOVED] = 0
        if tally[N_DIRTY] == 0 and tally[N_SEEDS] == 0:
            break
        tally[ROUND] += 1
        if tally[ROUND] > 10_000:
            tally[FAULT] = FAULT_UNSETTLED
            break
        n_dirty = _apply_caps(s, t)
        n_flows = _solve(s, t) if tally[N_SEEDS] > 0 else 0
        for i in range(n_dirty):                    # those that no solve has touched join those that one has
            f = dirty[i]
            if flows[f].status == LIVE and flows[f].before == OUTSIDE:
                region_flow[n_flows] = f
                n_flows += 1
        tally[N_DIRTY] = 0
        for i in range(n_flows):
            f = region_flow[i]
            if flows[f].rate != flows[f].before or flows[f].is_dirty == 1:
                _reschedule(flows, after, heap, tally, f, t)
                _note_move(flows, moved, tally, f)
        for i in range(n_dirty):
            flows[dirty[i]].is_dirty = 0
        for i in range(n_dirty if tally[ROUND] > PLAIN else 0):     # those that went only part of the way
            f = dirty[i]                                            # marking overwrites no place that is still to be read
            if flows[f].status == LIVE and _cap_is_off(flows, after, tally, f, t):
                _mark(flows, dirty, tally, f)
    tally[ROUND] = 0


@njit
def run(s, until):
    """Play all events up to and including time `until`, but stop after an instant in which a counter reached zero.

    Returns the time of the next event, inf when there is none. The counters that reached zero stand in
    s.ended[: s.tally[N_DONE]]; the caller empties the list.
    """
    after, tally, dirty, moved, flows, heap = s.after, s.tally, s.dirty, s.moved, s.flows, s.heap
    while tally[N_HEAP] > 0:
        t = heap[0].key
        if t > until:
            return t
        horizon = t + SAME * abs(t)
        while tally[N_HEAP] > 0 and heap[0].key <= horizon:
            f = heap[0].flow
            tally[EVENTS] += 1
            if flows[f].status == LIVE:
                if flows[f].drain <= horizon:
                    _end(s, f, t)
                    _note_move(flows, moved, tally, f)
                else:                               # caught up with a flow that it follows
                    schedule(flows, heap, tally, f, np.inf)
                    _mark(flows, dirty, tally, f)
            else:
                flows[f].status = READY
                first = _first_chunk_at(flows, after, f, t)
                if first <= horizon:
                    _begin(s, f, t)
                else:
                    schedule(flows, heap, tally, f, first)
        _settle(s, t)
        if tally[FAULT] != 0:
            return math.nan
        if tally[N_DONE] > 0:
            break
    return heap[0].key if tally[N_HEAP] > 0 else np.inf
