"""The inner loop of the fluid network: exact weighted max-min sharing, event by event, over flat arrays. No SimPy here.

Max-min rates by progressive filling (Bertsekas & Gallager, Data Networks, 2nd ed., 6.5.2): links freeze in increasing
order of fair share. A change at rate r leaves every link that froze below r, and every flow slower than r, as it was,
so only what is reachable from the changed links through flows at or above r is filled again (prefix reuse).

A flow that follows others keeps at least one chunk behind each of them. While it has caught up, the pace of the
slowest one it has caught up with caps its rate; meeting one of them is an event like a completion. Caps follow from
rates and rates from caps: filling is repeated until they agree, and where flows hold back what they themselves follow,
so that plain repetition swings for ever, the caps move only part of the way.

Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.network.jit import njit
from clustersim.types import Floats, Ints

Records = NDArray[Any]

IDLE, READY, LIVE, DONE = 0, 1, 2, 3        # source not in; waiting for the first chunk; moving; last byte has left
CLOSE = 1e-9                                # fractions of a flow nearer than this count as equal: clock rounding
SAME = 1e-14                                # relative: events this near in time happen together
AGREED = 1e-13                              # relative: a cap this near to the pace it stands for is left alone
PLAIN = 8                                   # rounds in which caps take over a new pace at once; later they approach it
OUTSIDE = -2.0                              # in `before`: the solve did not touch the flow
N_HEAP, N_DIRTY, N_SEEDS, N_DONE, SOLVES, FLOW_VISITS, LINK_VISITS, EVENTS, FAULT, ROUND, SETTLES = range(11)
N_COUNT = 11
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
    region_flow: Ints           # [flows]
    region_link: Ints           # [links]
    ended: Ints                 # [counters] those that reached zero
    count: Ints                 # see N_HEAP ... FAULT
    level: Floats               # [1] lowest rate that the pending changes touch


@njit
def _sift(flows, heap, count, at):
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
    n = count[N_HEAP]
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


@njit
def schedule(flows, heap, count, f, key):
    """The next event of flow f is at `key`; inf takes it out of the heap."""
    at = flows[f].heap_at
    if key < np.inf:
        if at < 0:
            at = count[N_HEAP]
            count[N_HEAP] = at + 1
            heap[at].flow = f
        heap[at].key = key
        _sift(flows, heap, count, at)
    elif at >= 0:
        count[N_HEAP] -= 1
        n = count[N_HEAP]
        flows[f].heap_at = -1
        if at < n:
            heap[at] = heap[n]
            flows[heap[at].flow].heap_at = at
            _sift(flows, heap, count, at)


@njit
def release(s, flows, at):
    """Each of `flows` may move from its time in `at` on, once what it follows lets it."""
    for i in range(flows.size):
        schedule(s.flows, s.heap, s.count, flows[i], at[i])


@njit
def _fraction(flows, f, t):
    """How much of flow f has drained at t, 0 to 1."""
    if flows[f].status == DONE:
        return 1.0
    if flows[f].status != LIVE:
        return 0.0
    return 1.0 - (flows[f].left - flows[f].rate * (t - flows[f].since)) / flows[f].nbytes


@njit
def _progress(flows, f, t):
    flows[f].left = max(0.0, flows[f].left - flows[f].rate * (t - flows[f].since))
    flows[f].since = t


@njit
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


@njit
def _is_held(flows, f):
    """Whether live flow f moves at the pace of what it follows; it stays so until that changes its rate."""
    return flows[f].limit < 0 and 0.0 < flows[f].cap < np.inf


@njit
def _pace_cap(flows, after, f, t):
    """The rate that the flows which f has caught up with leave it; inf when there is none."""
    first, end = flows[f].after_start, flows[f].after_end
    if end - first == 1 and _is_held(flows, f):
        p = after[first]
        return np.inf if flows[p].status == DONE else flows[p].rate / flows[p].nbytes * flows[f].nbytes
    cap = np.inf
    x = -1.0
    for i in range(first, end):
        p = after[i]
        if flows[p].status == DONE:
            continue
        if x < 0.0:
            x = _fraction(flows, f, t)
        if _fraction(flows, p, t) - flows[f].piece <= x + _close(flows, p, t):
            cap = min(cap, flows[p].rate / flows[p].nbytes * flows[f].nbytes)
    return cap


@njit
def _cap_is_off(s, f, t):
    """Whether the pace at hand asks for another cap; one that binds neither before nor after is taken over on the spot."""
    cap = _pace_cap(s.flows, s.after, f, t)
    old = s.flows[f].cap
    if cap == old:
        return False
    if s.flows[f].limit >= 0 and s.flows[f].rate > 0.0 and cap >= s.flows[f].rate and old >= s.flows[f].rate:
        s.flows[f].cap = cap
        return False
    return not abs(cap - old) <= AGREED * old


@njit
def _approach(s, f, cap):
    """The cap on the way to `cap`: less of the way each time that the difference changes its sign, else more."""
    old = s.flows[f].cap
    if not 0.0 < old < np.inf or cap == np.inf:
        return cap
    miss = cap - old
    if s.flows[f].trusted_in != s.count[SETTLES]:
        s.flows[f].trusted_in = s.count[SETTLES]
        s.flows[f].trust = 0.5
    elif miss * s.flows[f].miss < 0.0:
        s.flows[f].trust *= 0.5
    else:
        s.flows[f].trust = min(1.0, 1.25 * s.flows[f].trust)
    s.flows[f].miss = miss
    return old + s.flows[f].trust * miss


@njit
def _reschedule(flows, after, heap, count, f, t):
    """Set the next event of live flow f: its end, or its meeting one of the flows that it follows."""
    rate = flows[f].rate
    flows[f].drain = t + (flows[f].left - rate * (t - flows[f].since)) / rate if rate > 0.0 else np.inf
    first, end = flows[f].after_start, flows[f].after_end
    held = end > first and _is_held(flows, f)
    key = np.inf if held else flows[f].drain      # what holds it ends first
    if not held or end - first > 1:
        pace = rate / flows[f].nbytes
        for i in range(first, end):
            p = after[i]
            if flows[p].status == DONE:
                continue
            closing = pace - flows[p].rate / flows[p].nbytes
            if closing > 0.0:
                gap = _fraction(flows, p, t) - flows[f].piece - _fraction(flows, f, t)
                if gap > _close(flows, p, t):
                    key = min(key, t + gap / closing)
    schedule(flows, heap, count, f, key)


@njit
def _mark(flows, dirty, count, f):
    if flows[f].is_dirty == 0:
        flows[f].is_dirty = 1
        dirty[count[N_DIRTY]] = f
        count[N_DIRTY] += 1


@njit
def _seed(links, seeds, count, lowest, link, level):
    if links[link].is_seed == 0:
        links[link].is_seed = 1
        seeds[count[N_SEEDS]] = link
        count[N_SEEDS] += 1
    lowest[0] = min(lowest[0], level)


@njit
def _begin(s, f, t):
    s.flows[f].status = LIVE
    s.flows[f].start = t
    s.flows[f].since = t
    s.flows[f].rate = 0.0
    s.flows[f].limit = -1
    s.flows[f].cap = 0.0
    for h in range(s.flows[f].hop_start, s.flows[f].hop_end):
        link = s.hops[h].link
        at = s.links[link].list_start + s.links[link].list_size
        s.lists[at].flow = f
        s.lists[at].hop = h
        s.hops[h].at = at
        s.links[link].list_size += 1
        s.links[link].share += s.hops[h].weight
    schedule(s.flows, s.heap, s.count, f, np.inf)
    _mark(s.flows, s.dirty, s.count, f)


@njit
def _count_down(counters, ended, count, counter, finish):
    counters[counter].waiting -= 1
    counters[counter].last = max(counters[counter].last, finish)
    if counters[counter].waiting == 0:
        ended[count[N_DONE]] = counter
        count[N_DONE] += 1


@njit
def _end(s, f, t):
    s.flows[f].status = DONE
    s.flows[f].left = 0.0
    schedule(s.flows, s.heap, s.count, f, np.inf)
    for h in range(s.flows[f].hop_start, s.flows[f].hop_end):
        link = s.hops[h].link
        at = s.hops[h].at
        s.links[link].list_size -= 1
        moved = s.links[link].list_start + s.links[link].list_size
        s.lists[at].flow = s.lists[moved].flow
        s.lists[at].hop = s.lists[moved].hop
        s.hops[s.lists[at].hop].at = at
        s.links[link].share -= s.hops[h].weight
        s.links[link].load -= s.hops[h].weight * s.flows[f].rate
        if s.links[link].list_size == 0:
            s.links[link].share = 0.0
            s.links[link].load = 0.0
            s.links[link].saturated = 0
        elif s.links[link].saturated == 1:
            _seed(s.links, s.seeds, s.count, s.level, link, s.flows[f].rate)
    _count_down(s.counters, s.ended, s.count, s.flows[f].inbox, s.flows[f].drain + s.flows[f].latency)
    _count_down(s.counters, s.ended, s.count, s.flows[f].outbox, s.flows[f].drain)


@njit
def _tell_followers(s, f, t):
    """The pace of f changed: what follows it may start at another time or run at another rate."""
    for i in range(s.flows[f].next_start, s.flows[f].next_end):
        c = s.next[i]
        if s.flows[c].status == LIVE:
            if _cap_is_off(s, c, t):
                _mark(s.flows, s.dirty, s.count, c)
            elif s.flows[c].is_dirty == 0:
                _reschedule(s.flows, s.after, s.heap, s.count, c, t)
        elif s.flows[c].status == READY:
            schedule(s.flows, s.heap, s.count, c, _first_chunk_at(s.flows, s.after, c, t))


@njit
def _apply_caps(s, t):
    """Give the dirty flows their new caps; where a link is freed or overfilled by that, mark it for a solve."""
    n = s.count[N_DIRTY]
    for i in range(n):
        f = s.dirty[i]
        if s.flows[f].status != LIVE:
            continue
        _progress(s.flows, f, t)
        old = s.flows[f].rate
        cap = _pace_cap(s.flows, s.after, f, t)
        if s.count[ROUND] > PLAIN:
            cap = _approach(s, f, cap)
        s.flows[f].cap = cap
        s.flows[f].before = OUTSIDE
        if s.flows[f].limit >= 0 and old > 0.0 and cap >= old:
            continue                              # a link holds it anyway
        if cap == np.inf:
            level = old if old > 0.0 else np.inf
            for h in range(s.flows[f].hop_start, s.flows[f].hop_end):
                level = min(level, s.links[s.hops[h].link].capacity / s.links[s.hops[h].link].share)
            for h in range(s.flows[f].hop_start, s.flows[f].hop_end):
                _seed(s.links, s.seeds, s.count, s.level, s.hops[h].link, level)
            continue
        s.flows[f].rate = cap
        s.flows[f].limit = -1
        for h in range(s.flows[f].hop_start, s.flows[f].hop_end):
            link = s.hops[h].link
            s.links[link].load += s.hops[h].weight * (cap - old)
            if s.links[link].load > s.links[link].capacity * (1 + 1e-12) or (s.links[link].saturated == 1 and cap < old):
                floor = s.links[link].capacity / s.links[link].share
                _seed(s.links, s.seeds, s.count, s.level, link, min(min(cap, floor), old if old > 0.0 else cap))
    return n


@njit
def _collect_region(s, t):
    """All that the pending changes can reach: links, and their flows at or above the level. Returns (flows, links)."""
    level = s.level[0] * (1 - 1e-12)
    n_flows = 0
    n_links = s.count[N_SEEDS]
    for i in range(n_links):
        s.region_link[i] = s.seeds[i]
        s.links[s.seeds[i]].link_in = 1
    i = 0
    while i < n_links:
        link = s.region_link[i]
        i += 1
        room = s.links[link].capacity
        weight = 0.0
        unfilled = 0
        for at in range(s.links[link].list_start, s.links[link].list_start + s.links[link].list_size):
            f = s.lists[at].flow
            w = s.hops[s.lists[at].hop].weight
            if s.flows[f].rate < level and not (s.flows[f].rate == 0.0 or s.flows[f].is_dirty == 1):
                room -= w * s.flows[f].rate
                continue
            weight += w
            unfilled += 1
            if s.flows[f].in_region == 0:
                s.flows[f].in_region = 1
                s.region_flow[n_flows] = f
                n_flows += 1
                _progress(s.flows, f, t)
                s.flows[f].before = s.flows[f].rate
                if s.flows[f].after_end > s.flows[f].after_start and (s.flows[f].is_dirty == 0 or s.count[ROUND] <= PLAIN):
                    s.flows[f].cap = _pace_cap(s.flows, s.after, f, t)
                for h in range(s.flows[f].hop_start, s.flows[f].hop_end):
                    if s.links[s.hops[h].link].link_in == 0:
                        s.links[s.hops[h].link].link_in = 1
                        s.region_link[n_links] = s.hops[h].link
                        n_links += 1
        s.count[FLOW_VISITS] += s.links[link].list_size
        s.links[link].room = room
        s.links[link].weight = weight
        s.links[link].unfilled = unfilled
    return n_flows, n_links


@njit
def _freeze(s, f, rate, limit):
    s.flows[f].in_region = 2
    s.flows[f].rate = rate
    s.flows[f].limit = limit
    for h in range(s.flows[f].hop_start, s.flows[f].hop_end):
        link = s.hops[h].link
        s.links[link].room -= s.hops[h].weight * rate
        s.links[link].weight -= s.hops[h].weight
        s.links[link].unfilled -= 1


@njit
def _fill(s, n_flows, n_links):
    """Progressive filling of the region: freeze the tightest link, or the flow with the lowest cap, until none is left."""
    n_caps = 0
    for i in range(n_flows):
        if s.flows[s.region_flow[i]].cap < np.inf:
            n_caps += 1
    capped = np.empty(n_caps, np.int64)
    caps = np.empty(n_caps, np.float64)
    n_caps = 0
    for i in range(n_flows):
        f = s.region_flow[i]
        if s.flows[f].cap < np.inf:
            capped[n_caps] = f
            caps[n_caps] = s.flows[f].cap
            n_caps += 1
    order = np.argsort(caps)
    next_cap = 0
    for i in range(n_links):
        s.links[s.region_link[i]].saturated = 0
    left = n_flows
    while left > 0:
        tightest = -1
        level = np.inf
        i = 0
        while i < n_links:
            link = s.region_link[i]
            if s.links[link].unfilled == 0:              # filled: out of the list, its bookkeeping flag stays
                n_links -= 1
                s.region_link[i] = s.region_link[n_links]
                s.region_link[n_links] = link
                continue
            fair = s.links[link].room / s.links[link].weight
            if fair < level:
                level = fair
                tightest = link
            i += 1
        s.count[LINK_VISITS] += n_links
        while next_cap < n_caps and s.flows[capped[order[next_cap]]].in_region == 2:
            next_cap += 1
        if next_cap < n_caps and caps[order[next_cap]] <= level:
            f = capped[order[next_cap]]
            _freeze(s, f, caps[order[next_cap]], -1)
            left -= 1
            while next_cap < n_caps and caps[order[next_cap]] <= level:     # the levels only rise when slower flows leave
                f = capped[order[next_cap]]
                if s.flows[f].in_region == 1:
                    _freeze(s, f, caps[order[next_cap]], -1)
                    left -= 1
                next_cap += 1
            continue
        level = max(level, 0.0)
        s.links[tightest].saturated = 1
        for at in range(s.links[tightest].list_start, s.links[tightest].list_start + s.links[tightest].list_size):
            f = s.lists[at].flow
            if s.flows[f].in_region == 1:
                _freeze(s, f, level, -1 if s.flows[f].cap <= level * (1 + 1e-12) else tightest)      # a tie: the cap, which can go
                left -= 1
        s.count[FLOW_VISITS] += s.links[tightest].list_size


@njit
def _solve(s, t):
    """Recompute the rates around the seeds; tell the followers of every flow whose rate changed."""
    n_flows, n_links = _collect_region(s, t)
    s.count[SOLVES] += 1
    _fill(s, n_flows, n_links)
    for i in range(n_links):
        link = s.region_link[i]
        s.links[link].link_in = 0
        s.links[link].load = s.links[link].capacity - s.links[link].room
        if s.links[link].room < -1e-9 * s.links[link].capacity:
            s.count[FAULT] = FAULT_OVERLOAD
    for i in range(s.count[N_SEEDS]):
        s.links[s.seeds[i]].is_seed = 0
    s.count[N_SEEDS] = 0
    s.level[0] = np.inf
    for i in range(n_flows):
        s.flows[s.region_flow[i]].in_region = 0
    return n_flows


@njit
def _settle(s, t):
    """Bring caps and rates into agreement after the events of time t."""
    s.count[ROUND] = 0
    s.count[SETTLES] += 1
    while s.count[N_DIRTY] > 0 or s.count[N_SEEDS] > 0:
        s.count[ROUND] += 1
        if s.count[ROUND] > 10_000:
            s.count[FAULT] = FAULT_UNSETTLED
            return
        n_dirty = _apply_caps(s, t)
        n_flows = _solve(s, t) if s.count[N_SEEDS] > 0 else 0
        settled = s.dirty[:n_dirty].copy()
        s.count[N_DIRTY] = 0
        for i in range(n_flows):                    # before their flags go: a follower may be marked anew
            f = s.region_flow[i]
            if s.flows[f].rate == s.flows[f].before and s.flows[f].is_dirty == 0:
                s.flows[f].before = -1.0
        for f in settled:
            s.flows[f].is_dirty = 0
        for i in range(n_flows):
            f = s.region_flow[i]
            if s.flows[f].before >= 0.0:
                _reschedule(s.flows, s.after, s.heap, s.count, f, t)
                _tell_followers(s, f, t)
        for f in settled:
            if s.flows[f].status == LIVE and s.flows[f].before == OUTSIDE:
                _reschedule(s.flows, s.after, s.heap, s.count, f, t)
                _tell_followers(s, f, t)
        if s.count[ROUND] > PLAIN:                  # those that went only part of the way
            for f in settled:
                if s.flows[f].status == LIVE and _cap_is_off(s, f, t):
                    _mark(s.flows, s.dirty, s.count, f)


@njit
def run(s, until):
    """Play all events up to and including time `until`, but stop after an instant in which a counter reached zero.

    Returns the time of the next event, inf when there is none. The counters that reached zero stand in
    s.ended[: s.count[N_DONE]]; the caller empties the list.
    """
    ends = np.empty(0, np.int64)
    while s.count[N_HEAP] > 0:
        t = s.heap[0].key
        if t > until:
            return t
        horizon = t + SAME * abs(t)
        n_ends = 0
        while s.count[N_HEAP] > 0 and s.heap[0].key <= horizon:
            f = s.heap[0].flow
            s.count[EVENTS] += 1
            if s.flows[f].status == LIVE:
                if s.flows[f].drain <= horizon:
                    _end(s, f, t)
                    if n_ends == ends.size:
                        ends = np.append(ends, np.empty(max(64, n_ends), np.int64))
                    ends[n_ends] = f
                    n_ends += 1
                else:                               # caught up with a flow that it follows
                    schedule(s.flows, s.heap, s.count, f, np.inf)
                    _mark(s.flows, s.dirty, s.count, f)
            else:
                s.flows[f].status = READY
                first = _first_chunk_at(s.flows, s.after, f, t)
                if first <= horizon:
                    _begin(s, f, t)
                else:
                    schedule(s.flows, s.heap, s.count, f, first)
        for i in range(n_ends):
            _tell_followers(s, ends[i], t)
        _settle(s, t)
        if s.count[FAULT] != 0:
            return math.nan
        if s.count[N_DONE] > 0:
            break
    return s.heap[0].key if s.count[N_HEAP] > 0 else np.inf
