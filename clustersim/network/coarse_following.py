"""What a step means for flows that follow others: last chunks, first chunks, who catches up when.

Import it late: it imports numba.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import lean, spread
from clustersim.network.coarse_ends import finish_flow, wake_waiting
from clustersim.network.coarse_moves import begin_moving, join_at, last_ahead, lead_on, let_go, reach_of, stop_moving, wait_for
from clustersim.network.coarse_records import (
    CLOSE,
    DONE,
    IN_TIME,
    LED,
    MOVING,
    N_ENDED,
    N_REACHED,
    N_WOKEN,
    OUT,
    Q_REACHED,
    Q_WOKEN,
    WAITING,
    drop_first,
    follows_any,
    left_of,
    rate_of,
)


@spread
def _last_chunk(s, f, at, horizon):
    """Flow f has its last chunk to send, alone from `at` on: end it, or have it move by itself where a link is full."""
    end = at
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        link = s.hops[h].link
        if s.links[link].level < np.inf or s.shares[link].room <= 0.0:
            end = np.inf
        else:
            end = max(end, max(at, s.links[link].last) + s.moves[f].left * s.hops[h].weight / s.shares[link].room)
    if end <= horizon:
        for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
            link = s.hops[h].link
            s.links[link].last = max(at, s.links[link].last) + s.moves[f].left * s.hops[h].weight / s.shares[link].room
        finish_flow(s, f, end)
    else:
        join_at(s, f, at, horizon)


@lean
def see_to_reached(s, now, horizon):
    """Followers that have done what they might: through, led from now on, or freed meanwhile."""
    n = s.tally[N_REACHED]
    s.tally[N_REACHED] = 0
    for i in range(n):
        f = s.queues[Q_REACHED, i]
        at = s.flows[f].drain
        s.flows[f].drain = np.inf
        end = s.flows[f].freed
        if follows_any(s, f):
            if s.flows[f].since < IN_TIME:          # else it is the link that holds it back as much as what it follows
                stop_moving(s, f)
                lead_on(s, f)
            continue
        if s.moves[f].left > 1e-12 * s.moves[f].nbytes:
            stop_moving(s, f)
            join_at(s, f, max(at, end), horizon)
            continue
        if end > now:                               # within this step
            at = max(at, end + s.flows[f].piece * s.moves[f].nbytes / s.moves[f].rate)
        finish_flow(s, f, at)


@lean
def see_to_followers(s, horizon):
    """What waited for flows that ended in this step, in the order of their ends, begins or has its last chunk to send."""
    while s.tally[N_ENDED] > 0:
        p = s.ends[0].item
        s.tally[N_ENDED] -= 1
        drop_first(s.ends, s.tally[N_ENDED])
        for i in range(s.flows[p].next_start, s.flows[p].next_end):
            f = s.next[i]
            if (s.doing[f] != LED and s.doing[f] != WAITING) or follows_any(s, f):
                continue
            end = s.flows[f].freed
            if s.doing[f] == LED:
                let_go(s, f)
                s.moves[f].left = s.flows[f].piece * s.moves[f].nbytes
                _last_chunk(s, f, end, horizon)
            else:
                join_at(s, f, max(s.flows[f].since, end), horizon)


@spread
def _has_room(s, f):
    """No link of flow f's way is full, nor could be full of what is led."""
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        link = s.hops[h].link
        if s.links[link].level < np.inf or not s.links[link].safe:
            return False
    return True


@lean
def see_to_woken(s, horizon):
    """Flows whose first chunk has come begin."""
    n = s.tally[N_WOKEN]
    s.tally[N_WOKEN] = 0
    for i in range(n):
        woken = s.queues[Q_WOKEN, i]
        gone = 1.0 - left_of(s, woken) / s.moves[woken].nbytes if s.doing[woken] > DONE else 1.0
        began = s.flows[s.moves[woken].head].start
        begin, end = s.marks[woken].seen, s.flows[woken].next_end
        after = s.flows[s.next[begin]].piece if begin < end else 0.0
        for j in range(begin, end):
            f = s.next[j]
            piece = after
            after = s.flows[s.next[j + 1]].piece if j + 1 < end else 0.0        # read early: it is on its way meanwhile
            if piece > gone + CLOSE:                    # those behind it have to wait for more
                wait_for(s, f, woken)
                break
            s.marks[woken].seen = j + 1
            if s.doing[f] != WAITING or not follows_any(s, f):
                continue
            start = max(s.flows[f].since, min(horizon, s.flows[f].freed))
            if s.moves[f].after_end == s.moves[f].after_start + 1 and s.after[s.moves[f].after_start] == woken:
                if gone - piece < -CLOSE:
                    wait_for(s, f, woken)
                    continue
                start = max(start, began)
                if rate_of(s, woken) > 0.0:
                    start = max(start, horizon - (gone - piece) * s.moves[woken].nbytes / rate_of(s, woken))
            else:
                worst, reach = last_ahead(s, f)
                if reach < -CLOSE:
                    wait_for(s, f, worst)
                    continue
                for k in range(s.moves[f].after_start, s.moves[f].after_end):
                    p = s.after[k]
                    start = max(start, s.flows[s.moves[p].head].start)
                    if rate_of(s, p) > 0.0:
                        over = 1.0 - left_of(s, p) / s.moves[p].nbytes - s.flows[f].piece
                        start = max(start, horizon - over * s.moves[p].nbytes / rate_of(s, p))
            begin_moving(s, f, start)
            if _has_room(s, f):
                lead_on(s, f)
            else:
                join_at(s, f, start, horizon)


@lean
def place_inner(s):
    """Say where led flows are that others follow."""
    for i in range(s.inner.size):
        f = s.inner[i]
        if s.doing[f] == LED:
            s.moves[f].left = s.moves[f].nbytes * (1.0 - reach_of(s, f, 0.0))
            if s.moves[f].left <= s.moves[f].wake:
                wake_waiting(s, f)


@lean
def next_meeting(s, seconds):
    """Seconds until a follower begins or catches up, or is led by another; no need to find it where that is before `seconds`."""
    soonest = np.inf
    for f in range(s.flows.size):
        begin, end = s.moves[f].after_start, s.moves[f].after_end
        if begin == end or s.doing[f] == OUT or s.doing[f] == DONE:
            continue
        pace = 0.0
        x = -s.flows[f].piece                             # where it is, as seen from those that it follows
        if s.doing[f] >= MOVING:
            pace = s.moves[f].rate / s.moves[f].nbytes
            x = 1.0 - s.moves[f].left / s.moves[f].nbytes
        elif s.doing[f] == LED:
            x = reach_of(s, f, 0.0)
            pace = np.inf
            for i in range(begin, end):
                p = s.after[i]
                if 1.0 - left_of(s, p) / s.moves[p].nbytes - s.flows[f].piece <= x + CLOSE:
                    pace = min(pace, rate_of(s, p) / s.moves[p].nbytes)
        for i in range(begin, end):
            p = s.after[i]
            theirs = rate_of(s, p) / s.moves[p].nbytes
            ahead = 1.0 - left_of(s, p) / s.moves[p].nbytes - s.flows[f].piece
            if s.doing[f] == WAITING:
                if ahead < -CLOSE and theirs > 0.0:
                    soonest = min(soonest, -ahead / theirs)
            elif ahead - x > CLOSE and pace > theirs:
                soonest = min(soonest, (ahead - x) / (pace - theirs))
        if soonest <= seconds:
            break
    return soonest
