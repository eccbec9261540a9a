"""What the packet network knows of links, flows and their hops, as flat records: heap, lists, rings. Plays nothing.

Numbers that are compiled in stand here or in the file that uses them: see `jit.njit`. Import it late: it imports numba.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined
from clustersim.network.heaps import sift
from clustersim.types import Ints

Records = NDArray[Any]

OUT, IN, DONE = 0, 1, 2                     # of a flow: source not in; in; last packet has landed
UNLIMITED = 1 << 62                         # credits of a flow's last link: what has landed holds no place
N_HEAP, N_PENDING, PENDING_HEAD, N_DONE, HOPS_SENT, HOPS_PLANNED, IS_FIFO, FAULT = range(8)
N_TALLY = 8
FAULT_BUSY, FAULT_QUEUE, FAULT_LANDED, FAULT_PIPE = 1, 2, 3, 4

LINK = np.dtype(
    [
        ("capacity", "f8"),         # bytes/s; where it changes, when the packet on it, or the last one, left or will have left
        ("latency", "f8"),          # seconds from a packet's last byte to its arrival, and of a credit on its way back
        ("free_at", "f8"),          # when the packet on it, or the last one, has left
        ("busy", "f8"),             # seconds of sending so far
        ("carried", "f8"),          # bytes x weight so far
        ("asked", "f8"),            # the same of all flows that were ever to cross it
        ("serving", "i8"),          # the hop whose packet is on it; -1 idle
        ("round", "i8"),            # who waits for a turn: those that have had none in this round, then those that have
        ("now_head", "i8"), ("now_tail", "i8"), ("later_head", "i8"), ("later_tail", "i8"),
        ("is_pending", "i8"),
        ("pipe_start", "i8"), ("pipe_size", "i8"), ("pipe_head", "i8"), ("in_pipe", "i8"),      # its ring in `pipes`
        ("place_start", "i8"), ("places", "i8"), ("place_head", "i8"),                          # fifo: its ring in `queues`
        ("queued", "i8"),           # fifo: packets in it
        ("free", "i8"),             # fifo: places that are neither taken nor promised
        ("is_blocked", "i8"),       # fifo: its first packet waits for a place in the next queue
        ("fastest", "f8"),          # bytes/s: the most that it will ever have
        ("change_at", "i8"), ("change_end", "i8"),                                              # those to come, in `changes`
    ]
)  # fmt: skip
FLOW = np.dtype(
    [
        ("nbytes", "f8"),
        ("tail", "f8"),             # bytes of its last packet
        ("piece", "f8"),            # bytes that leave together where it follows others
        ("behind", "f8"),           # the fraction of what it follows that had landed when last looked
        ("start", "f8"),            # when its first packet began to move
        ("drain", "f8"),            # when its last byte left its last link
        ("latency", "f8"),          # from then on
        ("packets", "i8"),
        ("allowed", "i8"),          # those that may leave the source
        ("landed", "i8"),
        ("status", "i8"),
        ("hop_start", "i8"), ("hop_end", "i8"),
        ("after_start", "i8"), ("after_end", "i8"),     # what it follows
        ("next_start", "i8"), ("next_end", "i8"),       # what follows it
        ("inbox", "i8"), ("outbox", "i8"),              # counters of its destination and its source
    ]
)  # fmt: skip
HOP = np.dtype(
    [
        ("link", "i8"), ("flow", "i8"),
        ("weight", "f8"),           # what a byte of a packet takes of the link
        ("latency", "f8"),          # of the link; 0 where a share of every packet takes it: see packets.extend
        ("queued", "i8"),           # packets that wait for this link, those on it apart; fifo: at the source only
        ("credit", "i8"),           # packets that it may still send beyond this link
        ("window", "i8"),           # its credits when nothing is on the way
        ("sent", "i8"),             # packets that have begun to cross this link
        ("is_listed", "i8"), ("next", "i8"),            # in a list of its link, and who is next there
        ("input", "i8"),            # what takes turns, in `served`; round robin: itself; fifo: the link it comes from
    ]
)  # fmt: skip
MESSAGE = np.dtype([("time", "f8"), ("hop", "i8")])     # a packet that arrives over a link; -1 - hop: a credit that comes back
CHANGE = np.dtype([("time", "f8"), ("capacity", "f8")])
EVENT = np.dtype([("key", "f8"), ("item", "i8")])        # link: a packet has left; L + link: pipe; 2 L + flow: its source is in
COUNTER = np.dtype([("last", "f8"), ("waiting", "i8")])         # latest finish so far; flows not yet through


class State(NamedTuple):
    """All there is to know about the packets: records and lists of indices that the inner loops change in place."""

    links: Records
    flows: Records
    hops: Records
    served: Ints                # [inputs] the last round of its link in which each had its turn
    pipes: Records              # what is on the way over each link, link by link
    queues: Ints                # fifo: hops of the packets in the queue of each link, link by link
    heap: Records               # [2 links + flows] the next event of each
    counters: Records
    changes: Records            # capacities to come, link by link, by time
    after: Ints                 # what the flows follow, row by row
    next: Ints                  # what follows them
    pending: Ints               # [links] those to look at when all events of an instant are known
    ended: Ints                 # [counters] those that reached zero
    tally: Ints                 # see N_HEAP ... FAULT
    chunk: float                # bytes of a packet


@inlined
def push(heap, tally, key, who):
    """A new event; of those of one time the lowest `who` comes first."""
    at = tally[N_HEAP]
    tally[N_HEAP] = at + 1
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent].key < key or (heap[parent].key == key and heap[parent].item < who):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at].key = key
    heap[at].item = who


@inlined
def drop_first(heap, tally):
    tally[N_HEAP] -= 1
    heap[0] = heap[tally[N_HEAP]]
    sift(heap, tally[N_HEAP], 0, True)


@inlined
def wrapped(at, size):
    """A place in a ring, from one that may be behind its end."""
    return at - size if at >= size else at


@inlined
def look_at(links, pending, tally, link):
    """Look at a link once all events of this instant are known."""
    if links[link].is_pending == 0:
        links[link].is_pending = 1
        pending[wrapped(tally[PENDING_HEAD] + tally[N_PENDING], links.size)] = link
        tally[N_PENDING] += 1


@inlined
def into_queue(links, queues, link, h):
    """fifo: a packet of hop h takes the place in a link's queue that was promised to it."""
    queues[links[link].place_start + wrapped(links[link].place_head + links[link].queued, links[link].places)] = h
    links[link].queued += 1


@inlined
def into_pipe(links, pipes, heap, tally, link, time, hop):
    """Something is on the way over a link until `time`."""
    at = links[link].pipe_start + wrapped(links[link].pipe_head + links[link].in_pipe, links[link].pipe_size)
    pipes[at].time = time
    pipes[at].hop = hop
    links[link].in_pipe += 1
    if links[link].in_pipe == 1:
        push(heap, tally, time, links.size + link)
    elif links[link].in_pipe > links[link].pipe_size:
        tally[FAULT] = FAULT_PIPE


@inlined
def out_of_pipe(links, pipes, heap, tally, link):
    """The first that has come over a link: the hop of a packet, or -1 - hop of a credit."""
    hop = pipes[links[link].pipe_start + links[link].pipe_head].hop
    links[link].pipe_head = wrapped(links[link].pipe_head + 1, links[link].pipe_size)
    links[link].in_pipe -= 1
    if links[link].in_pipe > 0:
        push(heap, tally, pipes[links[link].pipe_start + links[link].pipe_head].time, links.size + link)
    return hop


@inlined
def line_up(links, hops, served, link, h):
    """Hop h waits for a turn at a link: in this round, or in the next one when it has had its turn."""
    hops[h].is_listed = 1
    hops[h].next = -1
    if served[hops[h].input] == links[link].round:
        if links[link].later_head < 0:
            links[link].later_head = h
        else:
            hops[links[link].later_tail].next = h
        links[link].later_tail = h
    else:
        if links[link].now_head < 0:
            links[link].now_head = h
        else:
            hops[links[link].now_tail].next = h
        links[link].now_tail = h


@inlined
def take_turn(links, hops, served, link):
    """The hop whose turn it is at a link, taken out of its list; -1 when none waits."""
    if links[link].now_head < 0:
        links[link].now_head = links[link].later_head
        links[link].now_tail = links[link].later_tail
        links[link].later_head = -1
        links[link].round += 1
    h = links[link].now_head
    if h >= 0:
        links[link].now_head = hops[h].next
        hops[h].is_listed = 0
        served[hops[h].input] = links[link].round
    return h
