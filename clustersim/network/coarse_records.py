"""What coarse steps know of flows and links: records, lists of indices, and what is read of them everywhere. Import it late."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined, spread
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


@spread
def push_event(heap, n, key, item):
    """One more for a heap of n."""
    at = n
    while at > 0 and heap[(at - 1) >> 1].key > key:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at].key = key
    heap[at].item = item


@spread
def drop_first(heap, n):
    """Take the first away from a heap; n are left."""
    heap[0] = heap[n]
    sift(heap, n, 0, False)


@inlined
def left_of(s, p):
    """Bytes that flow p, which is not led, has left: those of a bundle have had as many."""
    head = s.moves[p].head
    return s.moves[head].left - (s.moves[head].nbytes - s.moves[p].nbytes)


@inlined
def rate_of(s, p):
    return s.moves[s.moves[p].head].rate


@inlined
def follows_any(s, f):
    """Some flow that f follows has not ended."""
    return s.moves[f].after_end > s.moves[f].after_start
