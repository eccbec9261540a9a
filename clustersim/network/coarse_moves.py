"""Flows that begin, move by themselves, are led by what they follow, and stop. One flow at a time.

Import it late: it imports numba.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import inlined, spread
from clustersim.network.coarse_records import (
    CLOSE,
    LED,
    MOVING,
    N_BEGUN,
    N_ENTERING,
    N_FRESH,
    N_LED,
    N_MOVING,
    OUT,
    Q_ENTERING,
    Q_FRESH,
    left_of,
    rate_of,
)


@inlined
def next_to_end(s, f):
    """Of a bundle with head f, the flow that ends next; f itself where it is alone."""
    return s.mates[s.marks[f].mates_start + s.moves[f].n_mates - 1] if s.moves[f].n_mates > 1 else f


@inlined
def left_to_next(s, f):
    """Bytes that flow f, which moves for its bundle, has to go until the next of it ends."""
    left = s.moves[f].left
    if s.moves[f].n_mates > 1:
        left -= s.moves[f].nbytes - s.moves[next_to_end(s, f)].nbytes
    return left


@spread
def join_links(s, f):
    """Flow f moves by itself from now on."""
    s.marks[f].brake = np.inf
    s.doing[f] = MOVING
    s.tally[N_MOVING] += 1
    s.parts[s.links[s.hops[s.moves[f].hop_start].link].part].stale = 1
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        link = s.hops[h].link
        s.shares[link].load += s.hops[h].weight * s.moves[f].n_mates
        s.shares[link].n_moving += 1
        if s.marks[f].listed == 0:
            at = s.links[link].list_start + s.links[link].list_size
            s.lists[at].flow = f
            s.lists[at].share = s.hops[h].weight
            s.links[link].list_size += 1
    s.marks[f].listed = 1


@spread
def begin_moving(s, f, at):
    """Flow f begins to move at `at`, if it has not yet."""
    if s.flows[f].start == s.flows[f].start:
        return
    s.flows[f].start = at
    s.tally[N_BEGUN] += s.moves[f].n_mates
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        link = s.hops[h].link
        if s.links[link].n_begun == 0 and at >= s.links[link].began + s.links[link].done / s.links[link].capacity:
            s.links[link].began = at
            s.links[link].done = 0.0
        s.links[link].began = min(s.links[link].began, at)
        s.links[link].n_begun += s.moves[f].n_mates


@spread
def join_at(s, f, at, horizon):
    """Flow f moves by itself from `at` on, which may have been a while ago; from the next step on where not before `horizon`."""
    s.flows[f].since = at
    begin_moving(s, f, at)
    if at >= horizon:
        s.doing[f] = OUT
        s.queues[Q_ENTERING, s.tally[N_ENTERING]] = f
        s.tally[N_ENTERING] += 1
        return
    join_links(s, f)
    s.queues[Q_FRESH, s.tally[N_FRESH]] = f
    s.tally[N_FRESH] += 1


@spread
def stop_moving(s, f):
    """Flow f does not move by itself any more."""
    s.doing[f] = OUT
    s.tally[N_MOVING] -= 1
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        link = s.hops[h].link
        s.shares[link].load -= s.hops[h].weight * s.moves[f].factor
        s.shares[link].n_moving -= 1
        if s.shares[link].n_moving == 0:
            s.shares[link].load = 0.0
    s.moves[f].factor = 1.0


@spread
def lead_on(s, f):
    """Flow f, which does not move by itself, is a chunk behind what it follows from now on."""
    s.doing[f] = LED
    s.tally[N_LED] += 1
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        s.links[s.hops[h].link].n_led += 1


@spread
def let_go(s, f):
    """Flow f is not led any more."""
    s.tally[N_LED] -= 1
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        s.links[s.hops[h].link].n_led -= 1


@spread
def reach_of(s, f, seconds):
    """How far what it follows lets flow f be in `seconds` from now, as a fraction of it; 1 when all of that will have ended."""
    least = 1.0
    for i in range(s.moves[f].after_start, s.moves[f].after_end):
        p = s.after[i]
        x = 1.0 - (left_of(s, p) - rate_of(s, p) * seconds) / s.moves[p].nbytes
        if x < 1.0 or seconds == 0.0:
            least = min(least, x - s.flows[f].piece)
    return least


@spread
def last_ahead(s, f):
    """Of what flow f follows the one that lets it least far, and how far that is, as a fraction of it: below 0 it has to wait."""
    worst = -1
    least = 2.0
    for i in range(s.moves[f].after_start, s.moves[f].after_end):
        p = s.after[i]
        ahead = 1.0 - left_of(s, p) / s.moves[p].nbytes - s.flows[f].piece
        if ahead < least:
            worst = p
            least = ahead
    return worst, least


@spread
def wait_for(s, f, worst):
    """Flow f waits for its first chunk: `worst`, which it misses most of, wakes it. What ends sees to it anyway."""
    if s.flows[f].piece < 1.0:
        left = s.moves[worst].nbytes * (1.0 - s.flows[f].piece + 0.5 * CLOSE)
        head = s.moves[worst].head
        if head == worst:
            s.marks[worst].mine = max(s.marks[worst].mine, left)
        else:
            s.moves[worst].wake = max(s.moves[worst].wake, left)
        s.moves[head].wake = max(s.moves[head].wake, left + (s.moves[head].nbytes - s.moves[worst].nbytes))
