"""The inner loop of coarse steps: flows that come, follow others and meet new capacities; all rates anew in each. No SimPy.

`kernel` keeps what an event leaves as it is, which is much less work where events are few flows apart. In a step of a hundredth
of an exchange nearly every level moves, and most followers only do what they follow does: those are led, one chunk behind it,
and need no look until it ends. Their sum is found only where a link has flows of its own, or could be full of led ones.

A step shares out rates (progressive filling), then every link by itself serves the flows it limits: as some end the others are
faster at once, and what crosses links waits for the next step. A follower ends no earlier than what it follows, plus its
last chunk. Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import lean, spread
from clustersim.network.coarse_ends import hold_back, play_link
from clustersim.network.coarse_following import next_meeting, place_inner, see_to_followers, see_to_reached, see_to_woken
from clustersim.network.coarse_moves import begin_moving, join_at, last_ahead, lead_on, wait_for
from clustersim.network.coarse_rates import share_out
from clustersim.network.coarse_records import (
    BEGAN,
    CLOCK,
    CLOSE,
    EVENTS,
    FIRST,
    GROWTH,
    MOVING,
    N_BEGUN,
    N_CHANGES,
    N_DONE,
    N_ENTERING,
    N_FRESH,
    N_MOVING,
    NOW,
    Q_ENTERING,
    Q_FRESH,
    QUANTUM,
    STEPS,
    WAITING,
    State,
    follows_any,
)


@spread
def _unbind(s, head):
    """A bundle is none: not all of its flows are let go at once."""
    for i in range(s.marks[head].mates_start, s.marks[head].mates_start + s.moves[head].n_mates):
        s.moves[s.mates[i]].head = s.mates[i]
    s.moves[head].n_mates = 1
    s.marks[head].n_here = 0


@lean
def release(fields, moving, at):
    """Each of `moving` may move from its time in `at` on, once what it follows lets it."""
    s = State(*fields)
    n_bound = 0
    for i in range(moving.size):
        f = moving[i]
        s.flows[f].since = max(s.flows[f].since, at[i])
        head = s.moves[f].head
        if s.moves[head].n_mates > 1:
            s.marks[head].n_here += 1
            n_bound += 1
    if n_bound > 0:
        for i in range(moving.size):
            head = s.moves[moving[i]].head
            together = s.marks[head].n_here == s.moves[head].n_mates and s.flows[head].since == s.flows[moving[i]].since
            if s.moves[head].n_mates > 1 and not together:
                _unbind(s, head)
    for i in range(moving.size):
        f = moving[i]
        if n_bound > 0:
            s.marks[f].n_here = 0
        if s.moves[f].head == f:
            s.queues[Q_ENTERING, s.tally[N_ENTERING]] = f
            s.tally[N_ENTERING] += 1


@lean
def _admit(s, horizon):
    """See to the flows whose sources are in before `horizon`."""
    keep = 0
    for i in range(s.tally[N_ENTERING]):
        f = s.queues[Q_ENTERING, i]
        if s.flows[f].since >= horizon:
            s.queues[Q_ENTERING, keep] = f
            keep += 1
            continue
        s.tally[EVENTS] += 1
        worst, reach = last_ahead(s, f)
        if reach < -CLOSE:
            s.doing[f] = WAITING
            wait_for(s, f, worst)
            continue
        start = max(s.flows[f].since, s.flows[f].freed)
        if start >= horizon:
            s.flows[f].since = start
            s.queues[Q_ENTERING, keep] = f
            keep += 1
            continue
        if follows_any(s, f) and reach <= CLOSE:
            begin_moving(s, f, start)
            lead_on(s, f)
        else:
            join_at(s, f, start, horizon)
    s.tally[N_ENTERING] = keep


@lean
def _first_entering(s):
    first = np.inf
    for i in range(s.tally[N_ENTERING]):
        first = min(first, s.flows[s.queues[Q_ENTERING, i]].since)
    return first


@lean
def _change_capacities(s, now):
    """Give links the capacities that they have from now on."""
    tally = s.tally
    while tally[N_CHANGES] < s.changes.size and s.changes[tally[N_CHANGES]].time <= now:
        s.links[s.changes[tally[N_CHANGES]].link].capacity = s.changes[tally[N_CHANGES]].capacity
        tally[N_CHANGES] += 1


@lean
def _next_change(s):
    at = s.tally[N_CHANGES]
    return s.changes[at].time if at < s.changes.size else np.inf


@lean
def _weigh_fresh(s, now, seconds, back):
    """Flows that begin within this step, or before it, have that much of it; `back` when it is over."""
    for i in range(s.tally[N_FRESH]):
        f = s.queues[Q_FRESH, i]
        if s.doing[f] < MOVING:
            continue
        factor = (now + seconds - s.flows[f].since) / seconds
        if back:
            factor = 1.0
            s.moves[f].rate /= s.moves[f].factor
        for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
            link = s.hops[h].link
            s.shares[link].load += (factor - s.moves[f].factor) * s.hops[h].weight * s.moves[f].n_mates
            s.links[link].early = 0.0 if back else max(s.links[link].early, now - s.flows[f].since)
        s.moves[f].factor = factor


@lean
def _step(s, now, until):
    """Play one step from `now` on; returns its end. It is longer than need be only up to `until`."""
    tally = s.tally
    tally[STEPS] += 1
    least = CLOCK * abs(now)
    _change_capacities(s, now + least)
    quantum = s.clock[QUANTUM]
    seconds = min(quantum, max(FIRST * quantum, s.clock[GROWTH] * (now - s.clock[BEGAN])))
    change = _next_change(s)
    seconds = max(least, min(seconds, change - now))
    _admit(s, now + seconds)
    _weigh_fresh(s, now, seconds, False)
    soonest = share_out(s, seconds)
    if soonest > seconds and tally[N_FRESH] == 0:
        soonest = min(soonest * (1 + 1e-12), min(min(change, until), _first_entering(s)) - now)
        if s.after.size > 0 and soonest > seconds:
            soonest = min(soonest, next_meeting(s, seconds))
        seconds = max(seconds, soonest)
        if seconds == np.inf:
            return seconds                          # what is left stands still for good
    for link in range(s.links.size):
        s.links[link].last = now
        s.links[link].spare = 0.0
        if s.links[link].level == np.inf:
            s.links[link].spare = max(0.0, min(s.links[link].capacity, s.shares[link].room))
    for part in range(s.parts.size):
        for i in range(s.parts[part].start, s.parts[part].start + s.parts[part].n_limiting):
            if s.links[s.order[i]].n_held > 0:
                hold_back(s, s.order[i], seconds)
    for part in range(s.parts.size):
        for i in range(s.parts[part].start, s.parts[part].start + s.parts[part].n_limiting):
            play_link(s, s.order[i], now, seconds)
    _weigh_fresh(s, now, seconds, True)
    tally[N_FRESH] = 0
    horizon = now + seconds
    if s.after.size > 0:
        see_to_reached(s, now, horizon)
        see_to_followers(s, horizon)
        for link in range(s.links.size):            # what last chunks had is not spare
            used = min(seconds, max(0.0, s.links[link].last - now))
            s.links[link].spare *= 1.0 - used / seconds
        place_inner(s)
        see_to_woken(s, horizon)
    return horizon


@lean
def run(fields, until):
    """Play steps up to time `until`, but stop after one in which a counter reached zero. The state may then be a step ahead.

    Returns the time from which there is more to play, inf when there is nothing. The counters that reached zero stand in
    s.through[: s.tally[N_DONE]]; the caller empties the list.
    """
    s = State(*fields)
    tally = s.tally
    while tally[N_DONE] == 0:
        now = s.clock[NOW]
        if tally[N_MOVING] == 0:
            first = _first_entering(s)
            now = first if s.changes.size == 0 and tally[N_BEGUN] == 0 else max(now, first)
        if now > until or now == np.inf:
            return now
        if tally[N_BEGUN] == 0:
            s.clock[BEGAN] = now
        s.clock[NOW] = _step(s, now, until)
    return s.clock[NOW]
