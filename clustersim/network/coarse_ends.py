"""What links serve in a step to the flows that they limit, and who ends.

Import it late: it imports numba.
"""

from __future__ import annotations

from clustersim.jit import inlined, spread
from clustersim.network.coarse_moves import next_to_end, reach_of, stop_moving
from clustersim.network.coarse_records import (
    AHEAD,
    DONE,
    EVENTS,
    FLOW_VISITS,
    MOVING,
    N_BEGUN,
    N_DONE,
    N_ENDED,
    N_REACHED,
    N_WOKEN,
    Q_REACHED,
    Q_WOKEN,
    drop_first,
    follows_any,
    left_of,
    push_event,
)
from clustersim.network.heaps import sift


@inlined
def _count_down(s, counter, finish):
    s.counters[counter].waiting -= 1
    s.counters[counter].last = max(s.counters[counter].last, finish)
    if s.counters[counter].waiting == 0:
        s.through[s.tally[N_DONE]] = counter
        s.tally[N_DONE] += 1


@spread
def finish_flow(s, f, at):
    """Flow f ends at `at`; later where a link of its way would else have carried more than it can, or faster than it can."""
    head = s.moves[f].head
    for h in range(s.moves[head].hop_start, s.moves[head].hop_end):
        link = s.hops[h].link
        s.links[link].n_begun -= 1
        if s.changes.size == 0:
            sent = s.hops[h].weight * s.moves[f].nbytes
            s.links[link].done += sent
            if (at - s.links[link].began) * s.links[link].capacity < s.links[link].done:        # it is part of what is done
                at = s.links[link].began + s.links[link].done / s.links[link].capacity
            if (at - s.flows[f].start) * s.links[link].capacity < sent:
                at = s.flows[f].start + sent / s.links[link].capacity
    if s.doing[f] >= MOVING:
        stop_moving(s, f)
    s.doing[f] = DONE
    s.moves[f].left = 0.0
    s.flows[f].drain = at
    s.tally[N_BEGUN] -= 1
    s.tally[EVENTS] += 1
    if s.flows[f].next_end > s.flows[f].next_start:
        if s.moves[f].wake >= 0.0:                  # who waits for a chunk of it may wait for another's now
            s.moves[f].wake = -1.0
            s.queues[Q_WOKEN, s.tally[N_WOKEN]] = f
            s.tally[N_WOKEN] += 1
        frees = False
        for i in range(s.flows[f].next_start, s.flows[f].next_end):
            c = s.next[i]
            s.flows[c].freed = max(s.flows[c].freed, at)
            for j in range(s.moves[c].after_start, s.moves[c].after_end):
                if s.after[j] == f:
                    s.moves[c].after_end -= 1
                    s.after[j] = s.after[s.moves[c].after_end]
                    break
            frees = frees or not follows_any(s, c)
        if frees:
            push_event(s.ends, s.tally[N_ENDED], at, f)
            s.tally[N_ENDED] += 1
    _count_down(s, s.flows[f].inbox, at + s.flows[f].latency)
    _count_down(s, s.flows[f].outbox, at)


@spread
def hold_back(s, link, seconds):
    """Of the flows that a link limits, those that follow others get no further in this step than these let them."""
    for i in range(s.links[link].own_start, s.links[link].own_end):
        f = s.owned[i].flow
        if not follows_any(s, f):
            continue
        may = s.moves[f].left - s.marks[f].brake
        if may <= 2.0 * seconds * s.moves[f].rate:
            s.tally[FLOW_VISITS] += s.moves[f].after_end - s.moves[f].after_start
            s.marks[f].brake = s.moves[f].nbytes * (1.0 - reach_of(s, f, 0.0))
            reach = reach_of(s, f, seconds)
            if reach == 1.0:
                continue
            may = s.moves[f].left - s.moves[f].nbytes * (1.0 - reach)
        s.owned[i].key = min(s.owned[i].key, max(0.0, may) / s.moves[f].factor)


@spread
def wake_waiting(s, f):
    """Those that wait for their first chunk of flow f, or of one of its bundle, are to be looked at."""
    s.moves[f].wake = -1.0
    if s.moves[f].n_mates == 1:
        s.marks[f].mine = -1.0
        s.queues[Q_WOKEN, s.tally[N_WOKEN]] = f
        s.tally[N_WOKEN] += 1
        return
    for i in range(s.marks[f].mates_start, s.marks[f].mates_start + s.moves[f].n_mates):
        p = s.mates[i]
        mine = s.marks[p].mine if p == f else s.moves[p].wake
        if left_of(s, p) <= mine:
            if p == f:
                s.marks[p].mine = -1.0
            else:
                s.moves[p].wake = -1.0
            s.queues[Q_WOKEN, s.tally[N_WOKEN]] = p
            s.tally[N_WOKEN] += 1
        elif mine >= 0.0:
            s.moves[f].wake = max(s.moves[f].wake, mine + (s.moves[f].nbytes - s.moves[p].nbytes))


@spread
def _when(s, f, now, seconds, gone):
    """The time of flow f at which `gone` seconds of a step are over."""
    if s.moves[f].factor != 1.0:                    # it has another part of the step
        return s.flows[f].since + gone / seconds * (now + seconds - s.flows[f].since)
    return now + gone


@spread
def _one_less(s, f, at):
    """The next flow of the bundle of f ends at `at`; bytes until the one after it does."""
    p = next_to_end(s, f)
    s.moves[f].n_mates -= 1
    s.flows[p].start = s.flows[f].start
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        s.shares[s.hops[h].link].load -= s.hops[h].weight * s.moves[f].factor
    finish_flow(s, p, at)
    return s.moves[next_to_end(s, f)].nbytes - s.moves[p].nbytes


@spread
def _through(s, f, now, seconds, gone):
    """A link has served flow f all that it may have in this step, `gone` seconds after its begin."""
    at = _when(s, f, now, seconds, gone)
    if follows_any(s, f) or s.flows[f].freed > now:
        s.flows[f].drain = at                       # for now
        s.flows[f].since = gone / seconds           # and where in the step
        s.queues[Q_REACHED, s.tally[N_REACHED]] = f
        s.tally[N_REACHED] += 1
    else:
        finish_flow(s, f, at)


@spread
def play_link(s, link, now, seconds):
    """Let a link serve the flows it limits for so long; its level rises with each that ends, what the others have stays."""
    links, moves, doing, owned, heap = s.links, s.moves, s.doing, s.owned, s.heap
    level = links[link].level
    begin, end = links[link].own_start, links[link].own_end
    own = 0.0
    for i in range(begin, end):
        own += owned[i].share
    free = level * own
    n_left = end - begin
    served = 0.0
    gone = 0.0
    last = -1.0
    going = level > 0.0
    while going and n_left > 0:
        reach = served + AHEAD * level * (seconds - gone)
        if reach <= last:
            break
        n = 0
        s.tally[FLOW_VISITS] += end - begin
        for i in range(begin, end):
            if last < owned[i].key <= reach:
                heap[n].key = owned[i].key
                heap[n].item = i
                n += 1
        for at in range(n // 2 - 1, -1, -1):
            sift(heap, n, at, False)
        last = reach
        while n > 0:
            after = max(0.0, heap[0].key - served) / level
            if gone + after > seconds:
                going = False
                break
            i = heap[0].item
            gone += after
            served = max(served, heap[0].key)
            f = owned[i].flow
            if moves[f].n_mates > 1:                # one of a bundle, of which the next has its turn
                share = owned[i].share / moves[f].n_mates
                own -= share
                owned[i].share -= share
                owned[i].key += _one_less(s, f, _when(s, f, now, seconds, gone)) / moves[f].factor
                heap[0].key = owned[i].key
                if owned[i].key <= reach:
                    sift(heap, n, 0, False)
                else:
                    n -= 1
                    drop_first(heap, n)
            else:
                n -= 1
                drop_first(heap, n)
                n_left -= 1
                own -= owned[i].share
                _through(s, f, now, seconds, gone)
            if n_left > 0:
                level = free / own
        if served + level * (seconds - gone) <= reach:
            going = False
    served += level * (seconds - gone)
    for i in range(begin, end):                     # those that have reached what they may among them
        f = owned[i].flow
        if doing[f] >= MOVING:
            moves[f].left = max(0.0, moves[f].left - min(served, owned[i].key) * moves[f].factor)
            if moves[f].left <= moves[f].wake:
                wake_waiting(s, f)
