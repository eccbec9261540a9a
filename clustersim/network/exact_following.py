"""What follows what: a flow that has caught up is held, until then its next meeting is an event. Levels are not found here.

Import it late: it imports numba.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import lean
from clustersim.network.exact_limits import hold_by, limit_by, rate_of, roomiest, served_by, watch
from clustersim.network.exact_records import DONE, LIVE, N_TOUCHED, READY, SAME_LEVEL, schedule

CLOSE = 1e-9            # fractions of a flow nearer than this count as equal: clock rounding


@lean
def _fraction(s, f, t):
    """How much of flow f has drained at t, 0 to 1."""
    links, flows, owned = s.links, s.flows, s.owned
    drained = 0.0
    if flows[f].status == DONE:
        drained = 1.0
    elif flows[f].status == LIVE and flows[f].limit >= 0:
        left = (flows[f].key - served_by(links, flows[f].limit, t)) * owned[flows[f].own_at].kappa
        drained = 1.0 - left / flows[f].nbytes
    return drained


@lean
def first_chunk_at(s, f, t):
    """When every flow that f follows has drained the first chunk; inf when that cannot be said yet."""
    flows, hops, after = s.flows, s.hops, s.after
    at = t
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status == DONE:
            continue
        if flows[p].status != LIVE or flows[p].limit < 0 or flows[f].piece >= 1.0:
            return np.inf
        rate = rate_of(flows, hops, p)
        missing = flows[f].piece - _fraction(s, p, t)
        if missing > max(CLOSE, 1e-15 * t * rate / flows[p].nbytes):
            if rate <= 0.0:
                return np.inf
            at = max(at, t + missing * flows[p].nbytes / rate)
    return at


@lean
def slowest_met(s, f, t):
    """Of the flows that f follows and has caught up with, the one that leaves it least; (-1, inf) when there is none."""
    flows, hops, after = s.flows, s.hops, s.after
    cap = np.inf
    who = -1
    x = _fraction(s, f, t)
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status == LIVE and flows[p].limit >= 0:
            pace = rate_of(flows, hops, p) / flows[p].nbytes
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
    pace = rate_of(flows, hops, f) / flows[f].nbytes
    x = _fraction(s, f, t)
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status == LIVE and flows[p].limit >= 0 and p != flows[f].hold:
            theirs = rate_of(flows, hops, p) / flows[p].nbytes
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
def check(s, f, t):
    """Hold live follower f where it has caught up with a slower flow. Note which flows' rates matter to it."""
    flows, hops, owned, after, tally, touched = s.flows, s.hops, s.owned, s.after, s.tally, s.touched
    who, cap = slowest_met(s, f, t)
    if who >= 0 and who != flows[f].hold:
        now = rate_of(flows, hops, f)
        if flows[f].hold >= 0:
            now = min(now, rate_of(flows, hops, flows[f].hold) / flows[flows[f].hold].nbytes * flows[f].nbytes)
        if cap < now * (1 - SAME_LEVEL):
            hold_by(s, f, who, t)
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status != DONE and p != flows[f].hold:
            watch(flows, owned, p)
            watch(flows, owned, f)
    _touch(flows, touched, tally, f)


@lean
def tell_followers(s, f, t):
    """The rate of flow f changed: see to those that follow it, and to those that it follows. Still watched only if need be."""
    flows, owned, followers, after, tally, touched = s.flows, s.owned, s.next, s.after, s.tally, s.touched
    flows[f].watch = 0
    if flows[f].status == LIVE:
        owned[flows[f].own_at].watch = 0
    for i in range(flows[f].next_start, flows[f].next_end):
        c = followers[i]
        if flows[c].status == READY:
            watch(flows, owned, f)
            _touch(flows, touched, tally, c)
        elif flows[c].status == LIVE and flows[c].hold != f:
            check(s, c, t)
    if flows[f].status == LIVE:
        for i in range(flows[f].after_start, flows[f].after_end):
            if flows[after[i]].status == LIVE and after[i] != flows[f].hold:
                check(s, f, t)
                break


@lean
def find_next_events(s, t):
    """Schedule the followers that were touched."""
    flows, events, tally, touched = s.flows, s.events, s.tally, s.touched
    for i in range(tally[N_TOUCHED]):
        f = touched[i]
        flows[f].in_touched = 0
        if flows[f].status == READY:
            schedule(flows, events, tally, f, first_chunk_at(s, f, t))
        elif flows[f].status == LIVE:
            schedule(flows, events, tally, f, _next_meeting(s, f, t))
    tally[N_TOUCHED] = 0


@lean
def free_followers(s, f, t):
    """Flow f has ended: what it held goes on by itself, and what waited for it may start."""
    flows, followers, tally, touched = s.flows, s.next, s.tally, s.touched
    for i in range(flows[f].next_start, flows[f].next_end):
        c = followers[i]
        if flows[c].status == LIVE:
            if flows[c].hold == f:
                hop, _ = roomiest(s, c)
                limit_by(s, c, hop, t)
            check(s, c, t)
        elif flows[c].status == READY:
            _touch(flows, touched, tally, c)
