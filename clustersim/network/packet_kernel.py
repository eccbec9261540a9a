"""The inner loop of the packet network: store and forward, packet by packet, over flat arrays. No SimPy here, no rates.

A flow is cut into packets that walk its links in order; of each a packet takes its bytes x the weight of the hop. Packets of a
flow never overtake each other and differ only in the last one's size, so a queue is a count, and memory does not grow with
the number of packets.

`round_robin`: every flow has a queue of its own before each of its links, and may have only so many packets (credits)
beyond a link that have not left the next queue yet. A link gives each flow that has a packet and a credit one turn per
round (Hahne, IEEE JSAC 9(7), 1991: with enough credits the rates are max-min fair).
`fifo`: every link has one queue of so many places for all flows; its first packet leaves when the next queue has a place,
and those behind wait with it. Free places are given to what feeds the queue, in turn.

Its records, and what puts things in order, are in `packet_records`.
Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import math

import numpy as np

from clustersim.jit import inlined, lean
from clustersim.network.packet_records import (
    DONE,
    FAULT,
    FAULT_BUSY,
    FAULT_LANDED,
    FAULT_QUEUE,
    HOPS_SENT,
    IN,
    IS_FIFO,
    N_DONE,
    N_HEAP,
    N_PENDING,
    PENDING_HEAD,
    drop_first,
    into_pipe,
    into_queue,
    line_up,
    look_at,
    out_of_pipe,
    push,
    take_turn,
    wrapped,
)

CLOSE = 1e-9            # fractions and packet counts nearer than this are equal
SAME = 1e-13            # relative: events this near in time happen together


@lean
def release(s, moving, at):
    """The sources of the flows `moving` are in from the times `at` on."""
    for i in range(moving.size):
        push(s.heap, s.tally, at[i], 2 * s.links.size + moving[i])


@inlined
def _offer(links, hops, served, pending, tally, h):
    """Something has come to the queue of hop h, or a credit: it may be able to send now."""
    if hops[h].is_listed == 0 and hops[h].queued > 0 and (tally[IS_FIFO] == 1 or hops[h].credit > 0):
        link = hops[h].link
        line_up(links, hops, served, link, h)
        look_at(links, pending, tally, link)


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
    push(heap, tally, begin + seconds, link)


@inlined
def _send_first(s, link, t):
    """fifo: the first packet of a link's queue begins to cross it; its place is free when it has left."""
    links = s.links
    h = s.queues[links[link].place_start + links[link].place_head]
    links[link].place_head = wrapped(links[link].place_head + 1, links[link].places)
    links[link].queued -= 1
    links[link].is_blocked = 0
    _send(links, s.flows, s.hops, s.changes, s.heap, s.tally, s.chunk, link, h, t)


@inlined
def _serve_first(s, link, t):
    """fifo: give away the free places of a link's queue in turn; send its first packet if there is a place for it beyond."""
    links, flows, hops, served = s.links, s.flows, s.hops, s.served
    while links[link].free > 0:
        h = take_turn(links, hops, served, link)
        if h < 0:
            break
        links[link].free -= 1
        if h == flows[hops[h].flow].hop_start:
            hops[h].queued -= 1
            into_queue(links, s.queues, link, h)
            if hops[h].queued > 0:
                line_up(links, hops, served, link, h)
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
            line_up(links, hops, served, hops[h + 1].link, h + 1)
            look_at(links, s.pending, s.tally, hops[h + 1].link)


@inlined
def _leave(links, flows, hops, pipes, heap, pending, counters, ended, tally, link):
    """The packet on a link has left it. Returns the hops of a packet that arrives, and of a credit that is back, at once."""
    h = links[link].serving
    f = hops[h].flow
    t = links[link].free_at
    links[link].serving = -1
    look_at(links, pending, tally, link)
    if hops[h].sent == flows[f].packets:
        _last_has_left(flows, counters, ended, tally, f, h, t)
    credited = -1
    if tally[IS_FIFO] == 1:
        links[link].free += 1
    elif h > flows[f].hop_start:
        credited = h - 1
        if hops[credited].latency > 0.0:
            into_pipe(links, pipes, heap, tally, hops[credited].link, t + hops[credited].latency, -1 - credited)
            credited = -1
    arrived = h
    if hops[h].latency > 0.0:
        into_pipe(links, pipes, heap, tally, link, t + hops[h].latency, h)
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
        into_queue(links, queues, hops[h + 1].link, h + 1)
        look_at(links, pending, tally, hops[h + 1].link)
    else:
        hops[h + 1].queued += 1
        if hops[h + 1].queued > hops[h].window:
            tally[FAULT] = FAULT_QUEUE
        _offer(links, hops, served, pending, tally, h + 1)
    return told


@inlined
def _serve_in_turn(links, flows, hops, served, changes, heap, tally, chunk, link, t):
    """round_robin: an idle link sends a packet of the flow whose turn it is."""
    h = take_turn(links, hops, served, link)
    if h >= 0:
        hops[h].queued -= 1
        hops[h].credit -= 1
        _send(links, flows, hops, changes, heap, tally, chunk, link, h, t)
        if hops[h].queued > 0 and hops[h].credit > 0:
            line_up(links, hops, served, link, h)


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
            drop_first(heap, tally)
            arrived, credited = -1, -1
            if who < links.size:
                arrived, credited = _leave(links, flows, hops, pipes, heap, pending, counters, ended, tally, who)
            elif who < 2 * links.size:
                message = out_of_pipe(links, pipes, heap, tally, who - links.size)
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
            tally[PENDING_HEAD] = wrapped(tally[PENDING_HEAD] + 1, links.size)
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
