"""What is made anew when flows are added or left out: bundles, parts, lists of links, which links led flows cannot fill.

Import it late: it imports numba.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import inlined, lean
from clustersim.network.coarse_moves import last_ahead, wait_for
from clustersim.network.coarse_records import MOVING, WAITING


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
    """Make the lists of the links: the flows that move, and all followers."""
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
        for i in range(start + 1, end):
            f = s.next[i]
            place = i
            while place > start and s.flows[s.next[place - 1]].piece > s.flows[f].piece:
                s.next[place] = s.next[place - 1]
                place -= 1
            s.next[place] = f
    for f in range(s.flows.size):
        if s.doing[f] == WAITING and s.moves[f].after_end > s.moves[f].after_start:
            wait_for(s, f, last_ahead(s, f)[0])
