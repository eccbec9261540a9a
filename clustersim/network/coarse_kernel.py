"""The inner loop of coarse steps: flows that come, follow others and meet new capacities; all rates anew in each. No SimPy.

`kernel` keeps what an event leaves as it is, which is much less work where events are few flows apart. In a step of a hundredth
of an exchange nearly every level moves, and most followers only do what they follow does: those are led, one chunk behind it,
and need no look until it ends. Their sum is found only where a link has flows of its own, or could be full of led ones.

A step shares out rates (progressive filling), then every link by itself serves the flows it limits: as some end the others are
faster at once, and what crosses links waits for the next step. A follower ends no earlier than what it follows, plus its
last chunk. Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined, lean, spread
from clustersim.network.heaps import sift
from clustersim.types import Floats, Ints

Records = NDArray[Any]

DONE, OUT, WAITING, LED, MOVING = range(-4, 1)  # through; source not in; waiting for the first chunk; a chunk behind; by itself
CLOCK = 1e-14           # relative: no step is shorter than this
CLOSE = 1e-9            # fractions of a flow nearer than this count as equal: clock rounding
IN_TIME = 0.8           # of a step: a follower that has done all it may by then is held back by what it follows, not by a link
FIRST = 0.05            # of the quantum: the shortest step
AHEAD = 1.5             # of what a link serves at its level in a step: flows up to here are looked at first
AGREED = 4.0            # x TIE: what led flows take of a link may change by this share of it without sharing again
ROUNDS = 60             # of sharing, until what the led take and what leads them agree
(
    N_MOVING, N_BEGUN, N_LED, N_ENTERING, N_WOKEN, N_REACHED, N_FRESH, N_ENDED, N_DONE, N_CHANGES,
    STEPS, FILLS, FLOW_VISITS, LED_VISITS, LINK_VISITS, EVENTS,
) = range(16)  # fmt: skip
N_TALLY = 16
Q_ENTERING, Q_WOKEN, Q_REACHED, Q_FRESH = range(4)      # sources in, not looked at yet; flows that others waited for; followers
                                                        # that have done all they may in this step; that begin by themselves
NOW, QUANTUM, BEGAN, GROWTH, TIE = range(5)             # see State.clock


SHARE = np.dtype(                   # of a link, what most loops read
    [
        ("room", "f8"),             # while filling, and after it: capacity left to the flows without a rate,
        ("weight", "f8"),           # the sum of their weights,
        ("load", "f8"),             # of the moving flows: the sum of their weights
        ("unfilled", "i4"),         # the number of those without a rate
        ("n_moving", "i4"),         # and of all; a bundle counts as one
    ]
)  # fmt: skip
LINK = np.dtype(
    [
        ("capacity", "f8"),         # bytes/s
        ("level", "f8"),            # bytes/s of each flow that it limits; inf while it limits none
        ("began", "f8"),            # when the first of the flows began that it has had without a pause, which is when none
                                    # has begun that has not ended, and all of them could be through;
        ("done", "f8"),             # bytes of those of them that have ended,
        ("n_begun", "i4"),          # and number of those that have not
        ("n_led", "i4"),
        ("safe", "i4"),             # 1 when led flows alone cannot fill it
        ("part", "i4"),             # see PART
        ("last", "f8"),             # when it has served the last chunks that it was given in this step
        ("n_held", "i4"),           # how many of the flows that it limits follow others
        ("list_size", "i4"), ("list_start", "i4"),      # the moving flows that cross it, some not any more: in `lists`
        ("own_start", "i4"), ("own_end", "i4"),         # the flows that it limits: in `owned`
        ("drawn_start", "i4"), ("drawn_end", "i4"),     # the followers that cross it, moving or not: in `drawn`
        ("spare", "f8"),            # bytes/s that nobody had in the step before,
        ("early", "f8"),            # and for how many seconds of it flows that begin now could have had them
        ("booked", "f8"),           # bytes/s of the led flows, where that matters
        ("top", "f8"),              # the fastest of them
    ]
)  # fmt: skip
PART = np.dtype(                    # links that flows join, directly or by other links: they are shared out by themselves
    [
        ("soonest", "f8"),          # seconds until the first flow ends
        ("start", "i4"), ("end", "i4"),                 # its links: in `by_part`
        ("own_start", "i4"),        # room for the flows that its links limit: in `owned`
        ("n_limiting", "i4"),       # links that limit somebody, lowest level first: in `order`, from `start` on
        ("stale", "i4"),            # 1 when rates are to be found anew
    ]
)  # fmt: skip
MOVE = np.dtype(                    # of a flow, what most loops read: a cache line
    [
        ("left", "f8"),             # bytes; of a led flow that none follows, nothing: it is where what leads it says
        ("nbytes", "f8"),
        ("rate", "f8"),             # bytes/s in this step, on average
        ("factor", "f8"),           # its part of this step, over the step: 1 unless it begins in it
        ("wake", "f8"),             # when so many bytes are left, a flow that waits for its first chunk may begin: of this
                                    # one, or of any of the bundle that it is the head of; -1 without
        ("hop_start", "i4"), ("hop_end", "i4"),
        ("after_start", "i4"), ("after_end", "i4"),     # what it follows and has not ended
        ("head", "i4"),             # the flow of its bundle that moves for all; itself where it is alone
        ("n_mates", "i4"),          # of a head: those of the bundle that have not ended, with itself
    ]
)  # fmt: skip
FLOW = np.dtype(                    # another line
    [
        ("since", "f8"),            # when its source let it go (until then: not before this); when it began to move by itself
        ("freed", "f8"),            # when the last of those that it followed and that have ended did
        ("start", "f8"),            # when it began to move
        ("drain", "f8"),            # when its last byte left
        ("piece", "f8"),            # its chunk as a fraction of itself
        ("latency", "f8"),          # seconds from drain to finish
        ("next_start", "i4"), ("next_end", "i4"),       # what follows it
        ("inbox", "i4"), ("outbox", "i4"),              # counters of its destination and its source
    ]
)  # fmt: skip
MARK = np.dtype(
    [
        ("mine", "f8"),             # of a head: `wake` of this one flow
        ("brake", "f8"),            # when so many bytes are left, what it follows may hold it back; not before
        ("mates_start", "i4"),      # where its bundle stands in `mates`, the flow with the fewest bytes last
        ("seen", "i4"),             # of what follows it, place in `next` of the first that could not begin when last looked at
        ("n_here", "i4"),           # scratch
        ("listed", "i4"),           # 1 when its links list it
    ]
)  # fmt: skip
HOP = np.dtype([("weight", "f8"), ("link", "i8")])
CROSSING = np.dtype([("share", "f8"), ("flow", "i8")])              # a flow on a link's list, with its weight there
DRAWN = np.dtype(                   # a follower on a link's list
    [
        ("share", "f8"),            # its weight there
        ("ratio", "f8"),            # its bytes over those of the one flow that it follows; -1 where these are more
        ("flow", "i4"), ("ahead", "i4"),                # itself, and that flow
    ]
)  # fmt: skip
OWNED = np.dtype([("key", "f8"), ("share", "f8"), ("flow", "i8")])  # bytes that the link has to serve to it
EVENT = np.dtype([("key", "f8"), ("item", "i8")])
COUNTER = np.dtype([("last", "f8"), ("waiting", "i8")])             # latest finish so far; flows not yet drained
CHANGE = np.dtype([("time", "f8"), ("link", "i8"), ("capacity", "f8")])


class State(NamedTuple):
    """The flows and the links: records and lists of indices, changed in place.

    What is called at every event takes its fields as a plain tuple: numba finds out the type of a named one in Python.
    """

    links: Records
    shares: Records             # [links]
    parts: Records
    flows: Records
    moves: Records              # [flows]
    marks: Records              # [flows]
    doing: NDArray[np.int32]    # [flows] DONE ... LED; where it moves by itself the last sharing in which it got a rate
    hops: Records
    lists: Records              # [hops] the moving flows that cross each link
    drawn: Records              # the followers that cross each link
    owned: Records              # [flows] those that each link limits in this step
    heap: Records               # [flows or links] scratch
    ends: Records               # [flows] heap of those that others follow and that end in this step
    queues: Ints                # [4, flows] see Q_ENTERING ... Q_FRESH
    order: Ints                 # [links] those that limit somebody, see PART
    by_part: Ints               # [links] by their part
    after: Ints                 # what the flows follow, row by row
    next: Ints                  # what follows them, the smallest chunk as a fraction first
    mates: Ints                 # the flows of bundles
    inner: Ints                 # followers that others follow, in rising order
    counters: Records
    through: Ints               # [counters] those that reached zero
    changes: Records            # capacities to come, by time
    tally: Ints                 # see N_MOVING ... EVENTS
    clock: Floats               # NOW: where the last step ended; QUANTUM: the length of a step; BEGAN: when nothing moved;
                                # GROWTH: soon after that a step is this share of the time gone by; TIE: levels, and sums of
                                # what is led, that are this near count as equal (relative)


# ---- heaps ---------------------------------------------------------------------------------------------------------------


@spread
def _push(heap, n, key, item):
    """One more for a heap of n."""
    at = n
    while at > 0 and heap[(at - 1) >> 1].key > key:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at].key = key
    heap[at].item = item


@spread
def _drop(heap, n):
    """Take the first away from a heap; n are left."""
    heap[0] = heap[n]
    sift(heap, n, 0, False)


# ---- who moves how -------------------------------------------------------------------------------------------------------


@inlined
def _left(s, p):
    """Bytes that flow p, which is not led, has left: those of a bundle have had as many."""
    head = s.moves[p].head
    return s.moves[head].left - (s.moves[head].nbytes - s.moves[p].nbytes)


@inlined
def _rate(s, p):
    return s.moves[s.moves[p].head].rate


@inlined
def _left_to_next(s, f):
    """Bytes that flow f, which moves for its bundle, has to go until the next of it ends."""
    left = s.moves[f].left
    if s.moves[f].n_mates > 1:
        left -= s.moves[f].nbytes - s.moves[_next_to_end(s, f)].nbytes
    return left


@inlined
def _next_to_end(s, f):
    """Of a bundle with head f, the flow that ends next; f itself where it is alone."""
    return s.mates[s.marks[f].mates_start + s.moves[f].n_mates - 1] if s.moves[f].n_mates > 1 else f


@spread
def _join(s, f):
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
def _begin(s, f, at):
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
def _join_at(s, f, at, horizon):
    """Flow f moves by itself from `at` on, which may have been a while ago; from the next step on where not before `horizon`."""
    s.flows[f].since = at
    _begin(s, f, at)
    if at >= horizon:
        s.doing[f] = OUT
        s.queues[Q_ENTERING, s.tally[N_ENTERING]] = f
        s.tally[N_ENTERING] += 1
        return
    _join(s, f)
    s.queues[Q_FRESH, s.tally[N_FRESH]] = f
    s.tally[N_FRESH] += 1


@spread
def _part(s, f):
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
def _lead(s, f):
    """Flow f, which does not move by itself, is a chunk behind what it follows from now on."""
    s.doing[f] = LED
    s.tally[N_LED] += 1
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        s.links[s.hops[h].link].n_led += 1


@spread
def _let_go(s, f):
    """Flow f is not led any more."""
    s.tally[N_LED] -= 1
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        s.links[s.hops[h].link].n_led -= 1


@spread
def _reach(s, f, seconds):
    """How far what it follows lets flow f be in `seconds` from now, as a fraction of it; 1 when all of that will have ended."""
    least = 1.0
    for i in range(s.moves[f].after_start, s.moves[f].after_end):
        p = s.after[i]
        x = 1.0 - (_left(s, p) - _rate(s, p) * seconds) / s.moves[p].nbytes
        if x < 1.0 or seconds == 0.0:
            least = min(least, x - s.flows[f].piece)
    return least


@spread
def _led_rate(s, f, seconds):
    """Bytes/s that what leads flow f gives it; with its last chunk where all of that ends in this step, and without."""
    now = 1.0
    then = 1.0
    last = 1.0
    for i in range(s.moves[f].after_start, s.moves[f].after_end):
        p = s.after[i]
        x = 1.0 - _left(s, p) / s.moves[p].nbytes
        now = min(now, x)
        x += _rate(s, p) * seconds / s.moves[p].nbytes
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
        return s.drawn[i].ratio * max(0.0, min(_rate(s, p), _left(s, p) / seconds))
    _, pace = _led_rate(s, s.drawn[i].flow, seconds)
    return pace


@inlined
def _follows(s, f):
    """Some flow that f follows has not ended."""
    return s.moves[f].after_end > s.moves[f].after_start


@spread
def _last_ahead(s, f):
    """Of what flow f follows the one that lets it least far, and how far that is, as a fraction of it: below 0 it has to wait."""
    worst = -1
    least = 2.0
    for i in range(s.moves[f].after_start, s.moves[f].after_end):
        p = s.after[i]
        ahead = 1.0 - _left(s, p) / s.moves[p].nbytes - s.flows[f].piece
        if ahead < least:
            worst = p
            least = ahead
    return worst, least


@spread
def _wait(s, f, worst):
    """Flow f waits for its first chunk: `worst`, which it misses most of, wakes it. What ends sees to it anyway."""
    if s.flows[f].piece < 1.0:
        left = s.moves[worst].nbytes * (1.0 - s.flows[f].piece + 0.5 * CLOSE)
        head = s.moves[worst].head
        if head == worst:
            s.marks[worst].mine = max(s.marks[worst].mine, left)
        else:
            s.moves[worst].wake = max(s.moves[worst].wake, left)
        s.moves[head].wake = max(s.moves[head].wake, left + (s.moves[head].nbytes - s.moves[worst].nbytes))


# ---- rates ---------------------------------------------------------------------------------------------------------------


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
        key = _left_to_next(s, f) / factor
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
        _drop(heap, n)
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
                s.moves[f].left = s.moves[f].nbytes * (1.0 - _reach(s, f, 0.0))
                _let_go(s, f)
                _join(s, f)


@lean
def _share(s, seconds):
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


# ---- ends ----------------------------------------------------------------------------------------------------------------


@inlined
def _count_down(s, counter, finish):
    s.counters[counter].waiting -= 1
    s.counters[counter].last = max(s.counters[counter].last, finish)
    if s.counters[counter].waiting == 0:
        s.through[s.tally[N_DONE]] = counter
        s.tally[N_DONE] += 1


@spread
def _finish(s, f, at):
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
        _part(s, f)
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
            frees = frees or not _follows(s, c)
        if frees:
            _push(s.ends, s.tally[N_ENDED], at, f)
            s.tally[N_ENDED] += 1
    _count_down(s, s.flows[f].inbox, at + s.flows[f].latency)
    _count_down(s, s.flows[f].outbox, at)


@spread
def _hold_back(s, link, seconds):
    """Of the flows that a link limits, those that follow others get no further in this step than these let them."""
    for i in range(s.links[link].own_start, s.links[link].own_end):
        f = s.owned[i].flow
        if not _follows(s, f):
            continue
        may = s.moves[f].left - s.marks[f].brake
        if may <= 2.0 * seconds * s.moves[f].rate:
            s.tally[FLOW_VISITS] += s.moves[f].after_end - s.moves[f].after_start
            s.marks[f].brake = s.moves[f].nbytes * (1.0 - _reach(s, f, 0.0))
            reach = _reach(s, f, seconds)
            if reach == 1.0:
                continue
            may = s.moves[f].left - s.moves[f].nbytes * (1.0 - reach)
        s.owned[i].key = min(s.owned[i].key, max(0.0, may) / s.moves[f].factor)


@spread
def _wake(s, f):
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
        if _left(s, p) <= mine:
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
    p = _next_to_end(s, f)
    s.moves[f].n_mates -= 1
    s.flows[p].start = s.flows[f].start
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        s.shares[s.hops[h].link].load -= s.hops[h].weight * s.moves[f].factor
    _finish(s, p, at)
    return s.moves[_next_to_end(s, f)].nbytes - s.moves[p].nbytes


@spread
def _through(s, f, now, seconds, gone):
    """A link has served flow f all that it may have in this step, `gone` seconds after its begin."""
    at = _when(s, f, now, seconds, gone)
    if _follows(s, f) or s.flows[f].freed > now:
        s.flows[f].drain = at                       # for now
        s.flows[f].since = gone / seconds           # and where in the step
        s.queues[Q_REACHED, s.tally[N_REACHED]] = f
        s.tally[N_REACHED] += 1
    else:
        _finish(s, f, at)


@spread
def _play(s, link, now, seconds):
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
                    _drop(heap, n)
            else:
                n -= 1
                _drop(heap, n)
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
                _wake(s, f)


# ---- what follows what ---------------------------------------------------------------------------------------------------


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
        _finish(s, f, end)
    else:
        _join_at(s, f, at, horizon)


@lean
def _see_to_reached(s, now, horizon):
    """Followers that have done what they might: through, led from now on, or freed meanwhile."""
    n = s.tally[N_REACHED]
    s.tally[N_REACHED] = 0
    for i in range(n):
        f = s.queues[Q_REACHED, i]
        at = s.flows[f].drain
        s.flows[f].drain = np.inf
        end = s.flows[f].freed
        if _follows(s, f):
            if s.flows[f].since < IN_TIME:          # else it is the link that holds it back as much as what it follows
                _part(s, f)
                _lead(s, f)
            continue
        if s.moves[f].left > 1e-12 * s.moves[f].nbytes:
            _part(s, f)
            _join_at(s, f, max(at, end), horizon)
            continue
        if end > now:                               # within this step
            at = max(at, end + s.flows[f].piece * s.moves[f].nbytes / s.moves[f].rate)
        _finish(s, f, at)


@lean
def _see_to_followers(s, horizon):
    """What waited for flows that ended in this step, in the order of their ends, begins or has its last chunk to send."""
    while s.tally[N_ENDED] > 0:
        p = s.ends[0].item
        s.tally[N_ENDED] -= 1
        _drop(s.ends, s.tally[N_ENDED])
        for i in range(s.flows[p].next_start, s.flows[p].next_end):
            f = s.next[i]
            if (s.doing[f] != LED and s.doing[f] != WAITING) or _follows(s, f):
                continue
            end = s.flows[f].freed
            if s.doing[f] == LED:
                _let_go(s, f)
                s.moves[f].left = s.flows[f].piece * s.moves[f].nbytes
                _last_chunk(s, f, end, horizon)
            else:
                _join_at(s, f, max(s.flows[f].since, end), horizon)


@spread
def _has_room(s, f):
    """No link of flow f's way is full, nor could be full of what is led."""
    for h in range(s.moves[f].hop_start, s.moves[f].hop_end):
        link = s.hops[h].link
        if s.links[link].level < np.inf or not s.links[link].safe:
            return False
    return True


@lean
def _see_to_woken(s, horizon):
    """Flows whose first chunk has come begin."""
    n = s.tally[N_WOKEN]
    s.tally[N_WOKEN] = 0
    for i in range(n):
        woken = s.queues[Q_WOKEN, i]
        gone = 1.0 - _left(s, woken) / s.moves[woken].nbytes if s.doing[woken] > DONE else 1.0
        began = s.flows[s.moves[woken].head].start
        begin, end = s.marks[woken].seen, s.flows[woken].next_end
        after = s.flows[s.next[begin]].piece if begin < end else 0.0
        for j in range(begin, end):
            f = s.next[j]
            piece = after
            after = s.flows[s.next[j + 1]].piece if j + 1 < end else 0.0        # read early: it is on its way meanwhile
            if piece > gone + CLOSE:                    # those behind it have to wait for more
                _wait(s, f, woken)
                break
            s.marks[woken].seen = j + 1
            if s.doing[f] != WAITING or not _follows(s, f):
                continue
            start = max(s.flows[f].since, min(horizon, s.flows[f].freed))
            if s.moves[f].after_end == s.moves[f].after_start + 1 and s.after[s.moves[f].after_start] == woken:
                if gone - piece < -CLOSE:
                    _wait(s, f, woken)
                    continue
                start = max(start, began)
                if _rate(s, woken) > 0.0:
                    start = max(start, horizon - (gone - piece) * s.moves[woken].nbytes / _rate(s, woken))
            else:
                worst, reach = _last_ahead(s, f)
                if reach < -CLOSE:
                    _wait(s, f, worst)
                    continue
                for k in range(s.moves[f].after_start, s.moves[f].after_end):
                    p = s.after[k]
                    start = max(start, s.flows[s.moves[p].head].start)
                    if _rate(s, p) > 0.0:
                        over = 1.0 - _left(s, p) / s.moves[p].nbytes - s.flows[f].piece
                        start = max(start, horizon - over * s.moves[p].nbytes / _rate(s, p))
            _begin(s, f, start)
            if _has_room(s, f):
                _lead(s, f)
            else:
                _join_at(s, f, start, horizon)


@lean
def _place_inner(s):
    """Say where led flows are that others follow."""
    for i in range(s.inner.size):
        f = s.inner[i]
        if s.doing[f] == LED:
            s.moves[f].left = s.moves[f].nbytes * (1.0 - _reach(s, f, 0.0))
            if s.moves[f].left <= s.moves[f].wake:
                _wake(s, f)


@lean
def _next_meeting(s, seconds):
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
            x = _reach(s, f, 0.0)
            pace = np.inf
            for i in range(begin, end):
                p = s.after[i]
                if 1.0 - _left(s, p) / s.moves[p].nbytes - s.flows[f].piece <= x + CLOSE:
                    pace = min(pace, _rate(s, p) / s.moves[p].nbytes)
        for i in range(begin, end):
            p = s.after[i]
            theirs = _rate(s, p) / s.moves[p].nbytes
            ahead = 1.0 - _left(s, p) / s.moves[p].nbytes - s.flows[f].piece
            if s.doing[f] == WAITING:
                if ahead < -CLOSE and theirs > 0.0:
                    soonest = min(soonest, -ahead / theirs)
            elif ahead - x > CLOSE and pace > theirs:
                soonest = min(soonest, (ahead - x) / (pace - theirs))
        if soonest <= seconds:
            break
    return soonest


# ---- steps ---------------------------------------------------------------------------------------------------------------


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
        worst, reach = _last_ahead(s, f)
        if reach < -CLOSE:
            s.doing[f] = WAITING
            _wait(s, f, worst)
            continue
        start = max(s.flows[f].since, s.flows[f].freed)
        if start >= horizon:
            s.flows[f].since = start
            s.queues[Q_ENTERING, keep] = f
            keep += 1
            continue
        if _follows(s, f) and reach <= CLOSE:
            _begin(s, f, start)
            _lead(s, f)
        else:
            _join_at(s, f, start, horizon)
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
    soonest = _share(s, seconds)
    if soonest > seconds and tally[N_FRESH] == 0:
        soonest = min(soonest * (1 + 1e-12), min(min(change, until), _first_entering(s)) - now)
        if s.after.size > 0 and soonest > seconds:
            soonest = min(soonest, _next_meeting(s, seconds))
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
                _hold_back(s, s.order[i], seconds)
    for part in range(s.parts.size):
        for i in range(s.parts[part].start, s.parts[part].start + s.parts[part].n_limiting):
            _play(s, s.order[i], now, seconds)
    _weigh_fresh(s, now, seconds, True)
    tally[N_FRESH] = 0
    horizon = now + seconds
    if s.after.size > 0:
        _see_to_reached(s, now, horizon)
        _see_to_followers(s, horizon)
        for link in range(s.links.size):            # what last chunks had is not spare
            used = min(seconds, max(0.0, s.links[link].last - now))
            s.links[link].spare *= 1.0 - used / seconds
        _place_inner(s)
        _see_to_woken(s, horizon)
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


# ---- what is made anew when flows are added ------------------------------------------------------------------------------


@lean
def lay(flows, moves, marks, first, nbytes, chunk, latency, inbox, outbox):
    """Say what new flows are, from `first` on: alone so far, and none of them released."""
    for i in range(nbytes.size):
        f = first + i
        moves[f].left = moves[f].nbytes = nbytes[i]
        moves[f].rate = 0.0
        moves[f].factor = 1.0
        moves[f].head = f
        moves[f].n_mates = 1
        flows[f].since = flows[f].freed = -np.inf
        flows[f].start = np.nan
        flows[f].drain = np.inf
        flows[f].piece = min(1.0, chunk[i] / nbytes[i])
        flows[f].latency = latency[i]
        flows[f].inbox = inbox[i]
        flows[f].outbox = outbox[i]
        marks[f].brake = 0.0
        marks[f].mates_start = marks[f].n_here = marks[f].listed = 0


@lean
def place(flows, moves, marks, n_hops, n_after, back):
    """Tell each flow where its hops, what it follows and what follows it stand; nobody waits for any yet."""
    hop = 0
    after = 0
    for f in range(flows.size):
        moves[f].hop_start = hop
        moves[f].after_start = after
        hop += n_hops[f]
        after += n_after[f]
        moves[f].hop_end = hop
        moves[f].after_end = after
        moves[f].wake = -1.0
        flows[f].next_start = back[f]
        flows[f].next_end = back[f + 1]
        marks[f].mine = -1.0
        marks[f].seen = back[f]


@lean
def bind(moves, marks, pair, order, start, links, weights, release, mates):
    """Bundles among the flows in `order`; returns how many of `mates` have been filled with them.

    Args:
        moves, marks: of flows that are alone so far.
        pair: for each in `order` where it comes from and goes to; rising, and those of one pair nearly by falling bytes.
        start, links, weights: the ways of all flows.
        release: of all flows.
    """
    n = 0
    at = 0
    while at < order.size:
        end = at + 1
        while end < order.size and pair[end] == pair[at]:
            f = order[end]
            place = end
            while place > at and moves[order[place - 1]].nbytes < moves[f].nbytes:
                order[place] = order[place - 1]
                place -= 1
            order[place] = f
            end += 1
        head = order[at]
        marks[head].mates_start = n
        mates[n] = head
        size = 1
        for i in range(at + 1, end):
            f = order[i]
            alike = release[f] == release[head] and start[f + 1] - start[f] == start[head + 1] - start[head]
            for h in range(start[f], start[f + 1]):
                own = h - start[f] + start[head]
                if not alike or links[h] != links[own] or weights[h] != weights[own]:
                    alike = False
                    break
            if alike:
                moves[f].head = moves[head].head
                mates[n + size] = f
                size += 1
        moves[head].n_mates = size
        if size > 1:
            n += size
        at = end
    return n


@inlined
def _root(of, link):
    while of[link] != link:
        of[link] = of[of[link]]
        link = of[link]
    return link


@lean
def find_parts(s, of, n_flows):
    """Which links flows join; the number of parts, which s.parts[: n] describe.

    Args:
        of, n_flows: scratch [links].
    """
    links, moves, hops, parts = s.links, s.moves, s.hops, s.parts
    for link in range(links.size):
        of[link] = link
        n_flows[link] = 0
    for f in range(moves.size):
        first = _root(of, hops[moves[f].hop_start].link)
        for h in range(moves[f].hop_start + 1, moves[f].hop_end):
            of[_root(of, hops[h].link)] = first
    for f in range(moves.size):
        n_flows[_root(of, hops[moves[f].hop_start].link)] += 1
    n = 0
    own = 0
    for link in range(links.size):                      # what no flow crosses is part of none, and needs no look
        if n_flows[link] > 0:
            links[link].part = n
            parts[n].start = 0
            parts[n].end = 0
            parts[n].n_limiting = 0
            parts[n].stale = 1
            parts[n].own_start = own
            own += n_flows[link]
            n += 1
    for link in range(links.size):
        root = _root(of, link)
        if n_flows[root] > 0:
            links[link].part = links[root].part
            parts[links[link].part].end += 1
    at = 0
    for part in range(n):
        parts[part].start = at
        at += parts[part].end
        parts[part].end = parts[part].start
    for link in range(links.size):
        if n_flows[_root(of, link)] > 0:
            s.by_part[parts[links[link].part].end] = link
            parts[links[link].part].end += 1
    return n


@lean
def list_flows(s):
    """Make the lists of the links: the flows that move, and all followers; find the parts."""
    links, shares, moves, marks, hops, doing = s.links, s.shares, s.moves, s.marks, s.hops, s.doing
    for link in range(links.size):
        shares[link].unfilled = links[link].drawn_end = links[link].list_size = 0
    for f in range(moves.size):
        for h in range(moves[f].hop_start, moves[f].hop_end):
            shares[hops[h].link].unfilled += 1
            links[hops[h].link].drawn_end += moves[f].after_end > moves[f].after_start
    at = 0
    drawn = 0
    for link in range(links.size):
        links[link].list_start = at
        links[link].drawn_start = drawn
        at += shares[link].unfilled
        drawn += links[link].drawn_end
        links[link].drawn_end = links[link].drawn_start
    for f in range(moves.size):
        marks[f].listed = doing[f] >= MOVING
        for h in range(moves[f].hop_start, moves[f].hop_end):
            link = hops[h].link
            if marks[f].listed:
                at = links[link].list_start + links[link].list_size
                s.lists[at].flow = f
                s.lists[at].share = hops[h].weight
                links[link].list_size += 1
            if moves[f].after_end > moves[f].after_start:
                s.drawn[links[link].drawn_end].flow = f
                s.drawn[links[link].drawn_end].share = hops[h].weight
                p = s.after[moves[f].after_start]
                s.drawn[links[link].drawn_end].ahead = p
                alone = moves[f].after_end == moves[f].after_start + 1
                s.drawn[links[link].drawn_end].ratio = moves[f].nbytes / moves[p].nbytes if alone else -1.0
                links[link].drawn_end += 1


@lean
def find_safe(s, sums, most, fed, of_flow, of_port):
    """Say which links led flows alone cannot fill.

    A led flow has its size over that of what leads it times the rate of that; whichever that is, all that it follows are counted.
    What these have over the last link of their ways is no more than its capacity. So what led flows bring to a link is at most,
    summed over those last links, their capacity times the most that a byte over them brings.

    Args:
        sums, most, fed, of_flow, of_port: scratch [links], zero; the last two -1.
    """
    links, shares, flows, moves, hops = s.links, s.shares, s.flows, s.moves, s.hops
    for link in range(links.size):                      # flows that others follow, sorted by the last link of their ways
        shares[link].unfilled = 0
    for p in range(flows.size):
        if flows[p].next_end > flows[p].next_start:
            shares[hops[moves[p].hop_end - 1].link].unfilled += 1
    n = 0
    for link in range(links.size):
        n += shares[link].unfilled
        shares[link].unfilled = n
    for p in range(flows.size):
        if flows[p].next_end > flows[p].next_start:
            port = hops[moves[p].hop_end - 1].link
            shares[port].unfilled -= 1
            s.owned[shares[port].unfilled].flow = p
    for at in range(n):
        p = s.owned[at].flow
        last = moves[p].hop_end - 1
        port = hops[last].link
        for turn in range(2):                           # what p brings to each link; then the most that any of the port has
            for i in range(flows[p].next_start, flows[p].next_end):
                f = s.next[i]
                for h in range(moves[f].hop_start, moves[f].hop_end):
                    link = hops[h].link
                    if turn == 0:
                        if of_flow[link] != p:
                            of_flow[link] = p
                            sums[link] = 0.0
                        sums[link] += moves[f].nbytes / moves[p].nbytes / hops[last].weight * hops[h].weight
                        continue
                    if of_port[link] != port:
                        of_port[link] = port
                        most[link] = 0.0
                    if sums[link] > most[link]:
                        fed[link] += (sums[link] - most[link]) * links[port].capacity
                        most[link] = sums[link]
    for link in range(links.size):
        links[link].safe = fed[link] <= links[link].capacity


@lean
def wait_again(s):
    """Sort what follows each flow by who may begin first, and have the flows woken that wait for their first chunk."""
    for p in range(s.flows.size):
        start, end = s.flows[p].next_start, s.flows[p].next_end
        s.marks[p].seen = start
        for i in range(start + 1, end):
            f = s.next[i]
            place = i
            while place > start and s.flows[s.next[place - 1]].piece > s.flows[f].piece:
                s.next[place] = s.next[place - 1]
                place -= 1
            s.next[place] = f
    for f in range(s.flows.size):
        if s.doing[f] == WAITING and s.moves[f].after_end > s.moves[f].after_start:
            _wait(s, f, _last_ahead(s, f)[0])
