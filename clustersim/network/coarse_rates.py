"""Rates of all that moves in a step: progressive filling part by part, with what led flows take found beside it.

Import it late: it imports numba.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import lean, spread
from clustersim.network.coarse_moves import join_links, left_to_next, let_go, reach_of
from clustersim.network.coarse_records import (
    AGREED,
    DONE,
    FILLS,
    FLOW_VISITS,
    LED,
    LED_VISITS,
    LINK_VISITS,
    MOVING,
    N_LED,
    ROUNDS,
    TIE,
    drop_first,
    left_of,
    rate_of,
)
from clustersim.network.heaps import sift


@spread
def _led_rate(s, f, seconds):
    """Bytes/s that what leads flow f gives it; with its last chunk where all of that ends in this step, and without."""
    now = 1.0
    then = 1.0
    last = 1.0
    for i in range(s.moves[f].after_start, s.moves[f].after_end):
        p = s.after[i]
        x = 1.0 - left_of(s, p) / s.moves[p].nbytes
        now = min(now, x)
        x += rate_of(s, p) * seconds / s.moves[p].nbytes
        then = min(then, x)
        if x < 1.0:
            last = min(last, x - s.flows[f].piece)
    per_step = s.moves[f].nbytes / seconds
    return max(0.0, last - now + s.flows[f].piece) * per_step, max(0.0, then - now) * per_step


@spread
def _pace(s, i, seconds):
    """Bytes/s that what leads the flow of drawn[i] gives it, without its last chunk."""
    if s.drawn[i].ratio >= 0.0:
        p = s.drawn[i].ahead
        return s.drawn[i].ratio * max(0.0, min(rate_of(s, p), left_of(s, p) / seconds))
    _, pace = _led_rate(s, s.drawn[i].flow, seconds)
    return pace


@spread
def _freeze(s, link, level, at):
    """This link limits its flows without a rate, which go to owned[at:]. Returns their end, and the least that one has left."""
    links, shares, moves, hops, lists, owned, doing = s.links, s.shares, s.moves, s.hops, s.lists, s.owned, s.doing
    fill = s.tally[FILLS]
    held = 0
    links[link].own_start = at
    keep = links[link].list_start
    least = np.inf
    s.tally[FLOW_VISITS] += links[link].list_size
    for i in range(keep, keep + links[link].list_size):
        f = lists[i].flow
        had = doing[f]
        if had == DONE:
            continue
        if i != keep:
            lists[keep] = lists[i]
        keep += 1
        if had == fill or had < MOVING:
            continue
        doing[f] = fill
        factor = moves[f].factor
        key = left_to_next(s, f) / factor
        owned[at].flow = f
        owned[at].key = key
        use = factor * moves[f].n_mates
        owned[at].share = lists[i].share * use
        moves[f].rate = level * factor
        held += moves[f].after_end > moves[f].after_start
        least = min(least, key)
        at += 1
        for h in range(moves[f].hop_start, moves[f].hop_end):
            m = hops[h].link
            part = hops[h].weight * use
            shares[m].room -= part * level
            shares[m].weight -= part
            shares[m].unfilled -= 1
    links[link].list_size = keep - links[link].list_start
    links[link].own_end = at
    links[link].n_held = held
    links[link].level = level
    return at, least


@lean
def _fill(s, part, seconds):
    """The rates of a part from nothing (progressive filling)."""
    links, shares, heap, tally = s.links, s.shares, s.heap, s.tally
    start, end = s.parts[part].start, s.parts[part].end
    s.parts[part].stale = 0
    tally[FILLS] += 1
    tally[LINK_VISITS] += end - start
    n = 0
    for i in range(start, end):
        link = s.by_part[i]
        if links[link].n_led == 0:
            links[link].booked = links[link].top = 0.0
        links[link].level = np.inf
        shares[link].room = links[link].capacity - links[link].booked + links[link].spare * links[link].early / seconds
        shares[link].weight = shares[link].load
        shares[link].unfilled = shares[link].n_moving
        if shares[link].n_moving > 0:
            heap[n].key = max(0.0, shares[link].room) / shares[link].load
            heap[n].item = link
            n += 1
    for at in range(n // 2 - 1, -1, -1):
        sift(heap, n, at, False)
    tie = 1.0 + max(1e-15, 0.1 * s.clock[TIE])
    at = s.parts[part].own_start
    n_limiting = 0
    soonest = np.inf
    while n > 0:
        link = heap[0].item
        tally[LINK_VISITS] += 1
        if shares[link].unfilled > 0:
            level = max(0.0, shares[link].room / shares[link].weight)
            if level > heap[0].key * tie:
                heap[0].key = level                 # others have filled meanwhile, which leaves it more
                sift(heap, n, 0, False)
                continue
            before = at
            at, least = _freeze(s, link, level, at)
            if at > before:
                s.order[start + n_limiting] = link
                n_limiting += 1
                if level > 0.0:
                    soonest = min(soonest, least / level)
        n -= 1
        drop_first(heap, n)
    s.parts[part].n_limiting = n_limiting
    s.parts[part].soonest = soonest


@lean
def _book(s, seconds, trust):
    """Find what led flows take of the links where that matters; the most by which it changed, as a share of the capacity.

    `trust` is how much of that change is believed at once. Parts where it is much are stale.
    """
    for i in range(s.inner.size):
        if s.doing[s.inner[i]] == LED:
            s.moves[s.inner[i]].rate, _ = _led_rate(s, s.inner[i], seconds)
    most = 0.0
    for link in range(s.links.size):
        total = 0.0
        top = 0.0
        if s.links[link].n_led > 0 and (s.shares[link].n_moving > 0 or s.links[link].safe == 0):
            s.tally[LED_VISITS] += s.links[link].drawn_end - s.links[link].drawn_start
            for i in range(s.links[link].drawn_start, s.links[link].drawn_end):
                if s.doing[s.drawn[i].flow] == LED:
                    pace = _pace(s, i, seconds)
                    total += s.drawn[i].share * pace
                    top = max(top, pace)
        change = total - s.links[link].booked
        s.links[link].booked += change if total == 0.0 else trust * change
        s.shares[link].room -= change
        s.links[link].top = top
        if abs(change) > most * s.links[link].capacity:
            most = abs(change) / s.links[link].capacity if s.links[link].capacity > 0.0 else np.inf
        if abs(change) > AGREED * s.clock[TIE] * s.links[link].capacity:
            s.parts[s.links[link].part].stale = 1
    return most


@lean
def _free_fastest(s, seconds):
    """Have led flows move by themselves that a link cannot give what they would take."""
    for link in range(s.links.size):
        if s.links[link].top <= 0.0:
            continue
        fair = s.links[link].level
        begin, end = s.links[link].drawn_start, s.links[link].drawn_end
        if s.shares[link].room < -1e-9 * s.links[link].capacity and fair == np.inf:      # nobody is limited, yet it is too much
            led = 0.0
            weight = 0.0
            for i in range(begin, end):
                if s.doing[s.drawn[i].flow] == LED:
                    led += s.drawn[i].share * _pace(s, i, seconds)
                    weight += s.drawn[i].share
            fair = max(0.0, led + s.shares[link].room) / weight
        if s.links[link].top * (1 - s.clock[TIE]) <= fair:
            continue
        for i in range(begin, end):
            f = s.drawn[i].flow
            if s.doing[f] == LED and _pace(s, i, seconds) * (1 - s.clock[TIE]) > fair:
                s.moves[f].left = s.moves[f].nbytes * (1.0 - reach_of(s, f, 0.0))
                let_go(s, f)
                join_links(s, f)


@lean
def share_out(s, seconds):
    """Rates of all that moves. Seconds until the first flow ends that does not follow."""
    for part in range(s.parts.size):
        s.parts[part].stale = 1
    trust = 1.0
    last = np.inf
    for _ in range(ROUNDS):
        agreed = True
        for part in range(s.parts.size):
            if s.parts[part].stale:
                agreed = False
                _fill(s, part, seconds)
        if agreed or s.tally[N_LED] == 0:
            break
        change = _book(s, seconds, trust)
        _free_fastest(s, seconds)
        if change > 0.9 * last:                     # what is led holds back what leads it
            trust *= 0.5
        last = change
    soonest = np.inf
    for part in range(s.parts.size):
        soonest = min(soonest, s.parts[part].soonest)
    return soonest
