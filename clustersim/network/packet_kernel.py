"""The inner loop of the packet network: store and forward, packet by packet, over flat arrays. No SimPy here, no rates.

A flow is cut into packets that walk its links in order; of each a packet takes its bytes x the weight of the hop. Packets of a
flow never overtake each other and differ only in the last one's size, so a queue is a count, and memory does not grow with
the number of packets.

`round_robin`: every flow has a queue of its own before each of its links, and may have only so many packets (credits)
beyond a link that have not left the next queue yet. A link gives each flow that has a packet and a credit one turn per
round (Hahne, IEEE JSAC 9(7), 1991: with enough credits the rates are max-min fair).
`fifo`: every link has one queue of so many places for all flows; its first packet leaves when the next queue has a place,
and those behind wait with it. Free places are given to what feeds the queue, in turn.

Numbers that are compiled in stand in this file: see `jit.njit`.
Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined, lean
from clustersim.network.heaps import sift
from clustersim.types import Ints

Records = NDArray[Any]

OUT, IN, DONE = 0, 1, 2                     # of a flow: source not in; in; last packet has landed
CLOSE = 1e-9                                # fractions and packet counts nearer than this are equal
SAME = 1e-13                                # relative: events this near in time happen together
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
    """All there is to know about the packets: records and lists of indices that the functions below change in place."""

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
def _push(heap, tally, key, who):
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
def _drop_first(heap, tally):
    tally[N_HEAP] -= 1
    heap[0] = heap[tally[N_HEAP]]
    sift(heap, tally[N_HEAP], 0, True)


@lean
def release(s, moving, at):
    """The sources of the flows `moving` are in from the times `at` on."""
    for i in range(moving.size):
        _push(s.heap, s.tally, at[i], 2 * s.links.size + moving[i])


@inlined
def _wrapped(at, size):
    """A place in a ring, from one that may be behind its end."""
    return at - size if at >= size else at


@inlined
def _look_at(links, pending, tally, link):
    """Look at a link once all events of this instant are known."""
    if links[link].is_pending == 0:
        links[link].is_pending = 1
        pending[_wrapped(tally[PENDING_HEAD] + tally[N_PENDING], links.size)] = link
        tally[N_PENDING] += 1


@inlined
def _line_up(links, hops, served, link, h):
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
def _take_turn(links, hops, served, link):
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


@inlined
def _offer(links, hops, served, pending, tally, h):
    """Something has come to the queue of hop h, or a credit: it may be able to send now."""
    if hops[h].is_listed == 0 and hops[h].queued > 0 and (tally[IS_FIFO] == 1 or hops[h].credit > 0):
        link = hops[h].link
        _line_up(links, hops, served, link, h)
        _look_at(links, pending, tally, link)


@lean
def _allow(s, f):
    """Let go as many packets of flow f, whose source is in, as what it follows allows: see types.Transfers."""
    flows, after, hops = s.flows, s.after, s.hops
    fraction = 1.0
    for i in range(flows[f].after_start, flows[f].after_end):
        p = after[i]
        if flows[p].status != DONE:
            fraction = min(fraction, flows[p].landed * s.chunk / flows[p].nbytes)
    flows[f].behind = fraction
    allowed = flows[f].packets
    if fraction < 1.0:
        pieces = math.floor(fraction * flows[f].nbytes / flows[f].piece + CLOSE)
        allowed = min(allowed - 1, math.floor(pieces * flows[f].piece / s.chunk + CLOSE))
    if allowed > flows[f].allowed:
        h = flows[f].hop_start
        hops[h].queued += allowed - flows[f].allowed
        flows[f].allowed = allowed
        _offer(s.links, hops, s.served, s.pending, s.tally, h)


@lean
def _count_down(counters, ended, tally, counter, finish):
    counters[counter].waiting -= 1
    counters[counter].last = max(counters[counter].last, finish)
    if counters[counter].waiting == 0:
        ended[tally[N_DONE]] = counter
        tally[N_DONE] += 1


@lean
def _tell_followers(s, f):
    """One more packet of flow f has landed: what no other flow holds back may send more."""
    flows = s.flows
    before = (flows[f].landed - 1) * s.chunk / flows[f].nbytes
    for i in range(flows[f].next_start, flows[f].next_end):
        c = s.next[i]
        if flows[c].status == IN and flows[c].behind >= before:
            _allow(s, c)


@lean
def _last_has_left(flows, counters, ended, tally, f, h, t):
    """The last packet of flow f has left the link of hop h."""
    if h == flows[f].hop_start:
        _count_down(counters, ended, tally, flows[f].outbox, t)
    if h + 1 == flows[f].hop_end:
        flows[f].drain = t


@lean
def _last_has_landed(flows, counters, ended, tally, f):
    """All of flow f is at its destination."""
    flows[f].status = DONE
    _count_down(counters, ended, tally, flows[f].inbox, flows[f].drain + flows[f].latency)
    if flows[f].landed > flows[f].packets:
        tally[FAULT] = FAULT_LANDED


@inlined
def _into_queue(links, queues, link, h):
    """fifo: a packet of hop h takes the place in a link's queue that was promised to it."""
    queues[links[link].place_start + _wrapped(links[link].place_head + links[link].queued, links[link].places)] = h
    links[link].queued += 1


@inlined
def _into_pipe(links, pipes, heap, tally, link, time, hop):
    """Something is on the way over a link until `time`."""
    at = links[link].pipe_start + _wrapped(links[link].pipe_head + links[link].in_pipe, links[link].pipe_size)
    pipes[at].time = time
    pipes[at].hop = hop
    links[link].in_pipe += 1
    if links[link].in_pipe == 1:
        _push(heap, tally, time, links.size + link)
    elif links[link].in_pipe > links[link].pipe_size:
        tally[FAULT] = FAULT_PIPE


@inlined
def _out_of_pipe(links, pipes, heap, tally, link):
    """The first that has come over a link: the hop of a packet, or -1 - hop of a credit."""
    hop = pipes[links[link].pipe_start + links[link].pipe_head].hop
    links[link].pipe_head = _wrapped(links[link].pipe_head + 1, links[link].pipe_size)
    links[link].in_pipe -= 1
    if links[link].in_pipe > 0:
        _push(heap, tally, pipes[links[link].pipe_start + links[link].pipe_head].time, links.size + link)
    return hop


@lean
def _carry(links, changes, link, begin, nbytes):
    """When a link whose capacity changes will have carried so many bytes, from `begin` on; it has the capacity of then."""
    at, capacity = links[link].change_at, links[link].capacity
    while at < links[link].change_end and changes[at].time <= begin:
        capacity = changes[at].capacity
        at += 1
    end = begin + nbytes / capacity
    while at < links[link].change_end and end > changes[at].time:
        nbytes -= capacity * (changes[at].time - begin)
        begin, capacity = changes[at].time, changes[at].capacity
        at += 1
        end = begin + nbytes / capacity if nbytes > 0.0 else begin
    links[link].change_at = at
    links[link].capacity = capacity
    return end


@inlined
def _send(links, flows, hops, changes, heap, tally, chunk, link, h, t):
    """The next packet of hop h begins to cross its link, no sooner than the one before has left."""
    f = hops[h].flow
    if links[link].serving >= 0 or links[link].free_at > t * (1 + 2 * SAME):
        tally[FAULT] = FAULT_BUSY
    begin = max(t, links[link].free_at)
    if h == flows[f].hop_start and hops[h].sent == 0:
        flows[f].start = begin
    hops[h].sent += 1
    size = (chunk if hops[h].sent < flows[f].packets else flows[f].tail) * hops[h].weight
    seconds = size / links[link].capacity
    if links[link].change_at < links[link].change_end:
        seconds = _carry(links, changes, link, begin, size) - begin
    links[link].serving = h
    links[link].free_at = begin + seconds
    links[link].busy += seconds
    links[link].carried += size
    tally[HOPS_SENT] += 1
    _push(heap, tally, begin + seconds, link)


@lean
def _send_first(s, link, t):
    """fifo: the first packet of a link's queue begins to cross it; its place is free when it has left."""
    links = s.links
    h = s.queues[links[link].place_start + links[link].place_head]
    links[link].place_head = _wrapped(links[link].place_head + 1, links[link].places)
    links[link].queued -= 1
    links[link].is_blocked = 0
    _send(links, s.flows, s.hops, s.changes, s.heap, s.tally, s.chunk, link, h, t)


@lean
def _serve_first(s, link, t):
    """fifo: give away the free places of a link's queue in turn; send its first packet if there is a place for it beyond."""
    links, flows, hops, served = s.links, s.flows, s.hops, s.served
    while links[link].free > 0:
        h = _take_turn(links, hops, served, link)
        if h < 0:
            break
        links[link].free -= 1
        if h == flows[hops[h].flow].hop_start:
            hops[h].queued -= 1
            _into_queue(links, s.queues, link, h)
            if hops[h].queued > 0:
                _line_up(links, hops, served, link, h)
        else:
            _send_first(s, hops[h - 1].link, t)
    if links[link].queued > links[link].places or links[link].free < 0:
        s.tally[FAULT] = FAULT_QUEUE
    if links[link].serving < 0 and links[link].queued > 0 and links[link].is_blocked == 0:
        h = s.queues[links[link].place_start + links[link].place_head]
        if h + 1 == flows[hops[h].flow].hop_end:
            _send_first(s, link, t)
        else:
            links[link].is_blocked = 1
            _line_up(links, hops, served, hops[h + 1].link, h + 1)
            _look_at(links, s.pending, s.tally, hops[h + 1].link)


@inlined
def _leave(links, flows, hops, pipes, heap, pending, counters, ended, tally, link):
    """The packet on a link has left it. Returns the hops of a packet that arrives, and of a credit that is back, at once."""
    h = links[link].serving
    f = hops[h].flow
    t = links[link].free_at
    links[link].serving = -1
    _look_at(links, pending, tally, link)
    if hops[h].sent == flows[f].packets:
        _last_has_left(flows, counters, ended, tally, f, h, t)
    credited = -1
    if tally[IS_FIFO] == 1:
        links[link].free += 1
    elif h > flows[f].hop_start:
        credited = h - 1
        if hops[credited].latency > 0.0:
            _into_pipe(links, pipes, heap, tally, hops[credited].link, t + hops[credited].latency, -1 - credited)
            credited = -1
    arrived = h
    if hops[h].latency > 0.0:
        _into_pipe(links, pipes, heap, tally, link, t + hops[h].latency, h)
        arrived = -1
    return arrived, credited


@inlined
def _arrive(links, flows, hops, served, queues, pending, counters, ended, tally, h):
    """A packet has come over the link of hop h: to the queue before the next link, or to its destination.

    Returns its flow where there are others that follow it and have to be told, else -1.
    """
    f = hops[h].flow
    told = -1
    if h + 1 == flows[f].hop_end:
        flows[f].landed += 1
        if flows[f].landed >= flows[f].packets:
            _last_has_landed(flows, counters, ended, tally, f)
        if flows[f].next_end > flows[f].next_start:
            told = f
    elif tally[IS_FIFO] == 1:
        _into_queue(links, queues, hops[h + 1].link, h + 1)
        _look_at(links, pending, tally, hops[h + 1].link)
    else:
        hops[h + 1].queued += 1
        if hops[h + 1].queued > hops[h].window:
            tally[FAULT] = FAULT_QUEUE
        _offer(links, hops, served, pending, tally, h + 1)
    return told


@inlined
def _serve_in_turn(links, flows, hops, served, changes, heap, tally, chunk, link, t):
    """round_robin: an idle link sends a packet of the flow whose turn it is."""
    h = _take_turn(links, hops, served, link)
    if h >= 0:
        hops[h].queued -= 1
        hops[h].credit -= 1
        _send(links, flows, hops, changes, heap, tally, chunk, link, h, t)
        if hops[h].queued > 0 and hops[h].credit > 0:
            _line_up(links, hops, served, link, h)


@lean
def run(s, until):
    """Play all events up to and including time `until`, but stop after an instant in which a counter reached zero.

    First all that happens at an instant happens, then links that are idle choose: who comes first within an instant does
    not decide whose turn it is. Returns the time of the next event, inf when there is none. The counters that reached
    zero stand in s.ended[: s.tally[N_DONE]]; the caller empties the list.
    """
    links, flows, hops, served, pipes, queues = s.links, s.flows, s.hops, s.served, s.pipes, s.queues
    heap, pending, counters, ended, tally = s.heap, s.pending, s.counters, s.ended, s.tally
    while tally[N_HEAP] > 0:
        t = heap[0].key
        if t > until:
            return t
        horizon = t + SAME * abs(t)
        while tally[N_HEAP] > 0 and heap[0].key <= horizon:
            who = heap[0].item
            _drop_first(heap, tally)
            arrived, credited = -1, -1
            if who < links.size:
                arrived, credited = _leave(links, flows, hops, pipes, heap, pending, counters, ended, tally, who)
            elif who < 2 * links.size:
                message = _out_of_pipe(links, pipes, heap, tally, who - links.size)
                arrived, credited = message, -1 - message           # the one that is not meant is below 0
            else:
                flows[who - 2 * links.size].status = IN
                _allow(s, who - 2 * links.size)
            if credited >= 0:
                hops[credited].credit += 1
                if hops[credited].credit > hops[credited].window:
                    tally[FAULT] = FAULT_QUEUE
                _offer(links, hops, served, pending, tally, credited)
            if arrived >= 0:
                told = _arrive(links, flows, hops, served, queues, pending, counters, ended, tally, arrived)
                if told >= 0:
                    _tell_followers(s, told)
        while tally[N_PENDING] > 0:
            link = pending[tally[PENDING_HEAD]]
            tally[PENDING_HEAD] = _wrapped(tally[PENDING_HEAD] + 1, links.size)
            tally[N_PENDING] -= 1
            links[link].is_pending = 0
            if tally[IS_FIFO] == 1:
                _serve_first(s, link, t)
            elif links[link].serving < 0:
                _serve_in_turn(links, flows, hops, served, s.changes, heap, tally, s.chunk, link, t)
        if tally[FAULT] != 0:
            return math.nan
        if tally[N_DONE] > 0:
            break
    return heap[0].key if tally[N_HEAP] > 0 else np.inf
