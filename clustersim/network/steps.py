"""Very many flows that start together, in coarse steps: all rates from nothing in each, over compact arrays.

`kernel` keeps what an event leaves as it is, which is much less work where events are few flows apart. In a coarse step of
hundreds of thousands of flows nearly every level moves, and reading a flow's records costs more than sharing anew does.
Flows that join later, follow others or meet other capacities are the kernel's. Import this module late: it imports numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import lean
from clustersim.types import Floats, Ints, Routes

FIRST = 0.05            # of the quantum: the shortest step
AHEAD = 1.5             # of what a link serves at its level in a step: flows up to here are looked at first
Int32s = NDArray[np.int32]


class Sharing(NamedTuple):
    """The flows and the links, changed in place."""

    start: Int32s               # [flows + 1] routes, as in `Routes`
    links: Int32s
    weights: Floats
    left: Floats                # [flows] bytes
    filled: Int32s              # [flows] the last step in which it got a rate; -1 when it has ended
    list_start: Ints            # [links] the flows that cross each: listed[list_start : list_start + list_size], some ended
    list_size: Ints
    listed: Int32s
    shares: Floats              # and their weights there
    capacity: Floats            # [links] bytes/s
    load: Floats                # the sum of the weights of the flows that have not ended,
    n_live: Ints                # and their number
    done: Floats                # bytes of those that have
    room: Floats                # while filling: capacity left to the flows without a rate,
    weight: Floats              # the sum of their weights,
    unfilled: Ints              # and their number
    level: Floats               # bytes/s of each flow that the link limits
    own_start: Ints             # those: owned[own_start : own_end]
    own_end: Ints
    owned: Int32s
    own_shares: Floats
    own_left: Floats            # what each of these has left: what a link reads over and over stands side by side
    even: bool                  # every weight is 1: no need to read them
    order: Ints                 # the links that limit somebody, lowest level first
    keys: Floats                # heap
    items: Ints


@lean
def _sift(keys, items, n, at):
    """Restore the heap of the first n items below place `at`."""
    key = keys[at]
    item = items[at]
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[at] = keys[child]
        items[at] = items[child]
        at = child
    keys[at] = key
    items[at] = item


@lean
def _list_flows(s):
    """Put every flow on the links of its route."""
    for h in range(s.links.size):
        s.n_live[s.links[h]] += 1
    begin = 0
    for link in range(s.capacity.size):
        s.list_start[link] = begin
        begin += s.n_live[link]
    for f in range(s.left.size):
        for h in range(s.start[f], s.start[f + 1]):
            link = s.links[h]
            at = s.list_start[link] + s.list_size[link]
            s.listed[at] = f
            s.shares[at] = s.weights[h]
            s.list_size[link] += 1
            s.load[link] += s.weights[h]


@lean
def _freeze(s, link, level, step, at):
    """This link limits its flows without a rate, which go to owned[at:]. Returns their end, and the least that one has left."""
    start, links, weights, listed, shares, filled = s.start, s.links, s.weights, s.listed, s.shares, s.filled
    room, weight, unfilled, owned, left, own_left = s.room, s.weight, s.unfilled, s.owned, s.left, s.own_left
    s.own_start[link] = at
    keep = s.list_start[link]
    least = np.inf
    for i in range(keep, keep + s.list_size[link]):
        f = listed[i]
        if filled[f] < 0:
            continue
        listed[keep] = f
        if not s.even:
            shares[keep] = shares[i]
        keep += 1
        if filled[f] == step:
            continue
        filled[f] = step
        owned[at] = f
        own_left[at] = left[f]
        least = min(least, left[f])
        if not s.even:
            s.own_shares[at] = shares[i]
        at += 1
        for h in range(start[f], start[f + 1]):
            share = 1.0 if s.even else weights[h]
            room[links[h]] -= share * level
            weight[links[h]] -= share
            unfilled[links[h]] -= 1
    s.list_size[link] = keep - s.list_start[link]
    s.own_end[link] = at
    s.level[link] = level
    return at, least


@lean
def _fill(s, step, n_live):
    """All rates from nothing (progressive filling): how many links limit somebody, and the seconds until the first flow ends."""
    keys, items = s.keys, s.items
    n = 0
    for link in range(s.capacity.size):
        s.room[link] = s.capacity[link]
        s.weight[link] = s.load[link]
        s.unfilled[link] = s.n_live[link]
        if s.n_live[link] > 0:
            keys[n] = s.capacity[link] / s.load[link]
            items[n] = link
            n += 1
    for at in range(n // 2 - 1, -1, -1):
        _sift(keys, items, n, at)
    at = 0
    n_limiting = 0
    soonest = np.inf
    while at < n_live:
        link = items[0]
        if s.unfilled[link] > 0:
            level = max(0.0, s.room[link] / s.weight[link])
            if level > keys[0] * (1 + 1e-15):
                keys[0] = level                     # others have filled meanwhile, which leaves it more
                _sift(keys, items, n, 0)
                continue
            before = at
            at, least = _freeze(s, link, level, step, at)
            if at > before:
                s.order[n_limiting] = link
                n_limiting += 1
                soonest = min(soonest, least / level)
        n -= 1
        keys[0] = keys[n]
        items[0] = items[n]
        _sift(keys, items, n, 0)
    return n_limiting, soonest


@lean
def _end(s, f, drain, nbytes):
    """Flow f ends at `drain`; later where a link of its way would else have carried more than it can, or faster than it can."""
    for h in range(s.start[f], s.start[f + 1]):
        link = s.links[h]
        s.done[link] += s.weights[h] * nbytes[f]
        drain = max(drain, s.done[link] / s.capacity[link])     # it is part of what is done
        s.load[link] -= s.weights[h]
        s.n_live[link] -= 1
        if s.n_live[link] == 0:
            s.load[link] = 0.0
    return drain


@lean
def _play(s, link, now, seconds, nbytes, drain, keys, items):
    """Let a link serve the flows it limits for so long; its level rises with each that ends, what the others have stays."""
    owned, own_shares, own_left, left = s.owned, s.own_shares, s.own_left, s.left
    level = s.level[link]
    begin, end = s.own_start[link], s.own_end[link]
    own = float(end - begin)
    if not s.even:
        own = 0.0
        for i in range(begin, end):
            own += own_shares[i]
    free = level * own
    n_left = end - begin
    served = 0.0
    gone = 0.0
    last = -1.0
    going = True
    while going and n_left > 0:
        reach = served + AHEAD * level * (seconds - gone)
        if reach <= last:
            break
        n = 0
        for i in range(begin, end):
            if last < own_left[i] <= reach:
                keys[n] = own_left[i]
                items[n] = i
                n += 1
        for at in range(n // 2 - 1, -1, -1):
            _sift(keys, items, n, at)
        last = reach
        while n > 0:
            after = max(0.0, keys[0] - served) / level
            if gone + after > seconds:
                going = False
                break
            i = items[0]
            gone += after
            served = max(served, keys[0])
            n -= 1
            keys[0] = keys[n]
            items[0] = items[n]
            _sift(keys, items, n, 0)
            s.filled[owned[i]] = -1
            drain[owned[i]] = _end(s, owned[i], now + gone, nbytes)
            n_left -= 1
            own -= 1.0 if s.even else own_shares[i]
            if n_left > 0:
                level = free / own
        if served + level * (seconds - gone) <= reach:
            going = False
    served += level * (seconds - gone)
    for i in range(begin, end):
        left[owned[i]] = own_left[i] - served
    return end - begin - n_left


@lean
def _play_all(s, nbytes, quantum, growth, drain, keys, items):
    """Step by step until all flows have ended; the number of steps."""
    _list_flows(s)
    n_live = nbytes.size
    now = 0.0
    step = 0
    while n_live > 0:
        step += 1
        n_limiting, soonest = _fill(s, step, n_live)
        seconds = max(soonest * (1 + 1e-12), min(quantum, max(FIRST * quantum, growth * now)))
        for i in range(n_limiting):
            n_live -= _play(s, s.order[i], now, seconds, nbytes, drain, keys, items)
        now += seconds
    return step


def drain_times(capacity: Floats, routes: Routes, nbytes: Floats, quantum: float, growth: float) -> tuple[Floats, int]:
    """When each flow has drained, [flows] seconds from their common start, and the number of steps.

    A step takes `quantum` seconds, less (`growth` x the time gone by) soon after the start, and more where no flow ends
    so soon. In between each link works by itself: what its flows gain from each other's ends is theirs at once, and what
    crosses links waits for the next step. No flow ends before its links could have carried it and all that ended before.

    Args:
        capacity: bytes/s [links], above 0 where a route leads.
        routes, nbytes: of the flows; bytes above 0.
    """
    n, n_hops, n_links = nbytes.size, routes.links.size, capacity.size
    per_link = [np.zeros(n_links) for _ in range(5)]
    whole = [np.zeros(n_links, np.int64) for _ in range(7)]
    sharing = Sharing(
        start=routes.start.astype(np.int32), links=routes.links.astype(np.int32), weights=routes.weights, left=nbytes.copy(),
        filled=np.zeros(n, np.int32), list_start=whole[0], list_size=whole[1], listed=np.empty(n_hops, np.int32),
        shares=np.empty(n_hops), capacity=capacity, load=per_link[0], n_live=whole[2], done=per_link[1], room=per_link[2],
        weight=per_link[3], unfilled=whole[3], level=per_link[4], own_start=whole[4], own_end=whole[5],
        owned=np.empty(n, np.int32), own_shares=np.empty(n),
        own_left=np.empty(n), even=bool((routes.weights == 1.0).all()), order=whole[6], keys=np.empty(n_links),
        items=np.empty(n_links, np.int64),
    )  # fmt: skip
    drain: Floats = np.empty(n)
    steps = int(_play_all(sharing, nbytes, quantum, growth, drain, np.empty(n), np.empty(n, np.int64)))
    return drain, steps
