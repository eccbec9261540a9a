"""Flows as packets: what the fabric on the event loop asks of the packet network, and flows over any links without a cluster.

Store and forward; per-flow queues served round robin under credits, or one queue per link. The loop over events is in
`packet_kernel`; nothing here is called per packet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from clustersim.cluster import Cluster
from clustersim.lanes import routes_of
from clustersim.network.changes import Changes
from clustersim.network.sharing import inverse
from clustersim.pick import did_you_mean
from clustersim.types import Floats, InputError, Ints, Routes, Transfers
from clustersim.units import parse_bytes

if TYPE_CHECKING:
    from clustersim.network.packet_records import Records, State

CHUNK = "64KiB"         # see docs/DESIGN.md, "The packet network"
CREDITS = 4             # packets per flow and link, beside those that are on the way there and back
QUEUES = ("round_robin", "fifo")
MOST_HOPS = 10**9       # packets times links of one run: minutes


def empty(
    capacity: Floats, latency: Floats, chunk: str | float = CHUNK, queue: str = "round_robin", n_wires: int | None = None,
    changes: Changes | None = None,
) -> State:  # fmt: skip
    """A state without flows.

    Args:
        capacity, latency: bytes/s and seconds [links].
        chunk: bytes of a packet, as text (`64KiB`) or as a number.
        queue: "round_robin", a queue per flow and link, or "fifo", one per link.
        n_wires: how many of the links are wires, the others are lanes; None: all.
        changes: capacities to come. A packet that is on a link then goes on at the new one.

    Raises:
        InputError: a chunk that is not above 0, another queue, a link that stays down.
    """
    from clustersim.network import packet_records as records

    if queue not in QUEUES:
        raise InputError(f"network.queue={queue}: must be {' or '.join(QUEUES)}{did_you_mean(str(queue), QUEUES)}")
    size, n = chunk_bytes(chunk), capacity.size
    links = np.zeros(n, records.LINK)
    links["capacity"], links["latency"] = capacity, latency
    for name in ("serving", "now_head", "now_tail", "later_head", "later_tail"):
        links[name] = -1
    links["fastest"] = capacity
    to_come = _changes_by_link(links, changes)
    coming = links["fastest"].copy()
    coming[n if n_wires is None else n_wires :] = coming[:n_wires].max(initial=0.0)         # bytes/s that may come to a lane
    links["places"] = CREDITS + np.ceil(2 * latency.max(initial=0.0) * coming / size)
    links["place_start"] = np.cumsum(links["places"]) - links["places"]
    links["free"] = links["places"]
    tally = np.zeros(records.N_TALLY, np.int64)
    tally[records.IS_FIFO] = queue == "fifo"
    none = np.zeros(0, np.int64)
    return records.State(
        links=links, flows=np.zeros(0, records.FLOW), hops=np.zeros(0, records.HOP), served=none,
        pipes=np.zeros(0, records.MESSAGE), queues=np.zeros(links["places"].sum(), np.int64), heap=np.zeros(2 * n, records.EVENT),
        counters=np.zeros(0, records.COUNTER), changes=to_come, after=none, next=none, pending=np.zeros(n, np.int64), ended=none,
        tally=tally, chunk=size,
    )  # fmt: skip


def _changes_by_link(links: Records, changes: Changes | None) -> Records:
    """The changes link by link; `links` is told where, and of the fastest."""
    from clustersim.network import packet_records as records

    if changes is None:
        return np.zeros(0, records.CHANGE)
    order = np.argsort(changes.link, kind="stable")
    to_come = np.zeros(order.size, records.CHANGE)
    to_come["time"], to_come["capacity"] = changes.time[order], changes.capacity[order]
    links["change_end"] = np.cumsum(np.bincount(changes.link, minlength=links.size))
    links["change_at"] = np.append(0, links["change_end"][:-1])
    np.maximum.at(links["fastest"], changes.link, changes.capacity)
    last = links["change_end"][np.unique(changes.link)] - 1
    if (down := np.flatnonzero(to_come["capacity"][last] == 0)).size:
        raise InputError(f"changes: link {np.unique(changes.link)[down[0]]} stays down, so nothing would get through")
    return to_come


def chunk_bytes(chunk: str | float) -> float:
    """Bytes of a packet, from text with a unit or a number.

    Raises:
        InputError: not a size above 0.
    """
    size = parse_bytes(chunk, "network.chunk") if isinstance(chunk, str) else float(chunk)
    if not 0 < size < np.inf:
        raise InputError(f"network.chunk={chunk}: must be above 0 bytes, for example {CHUNK}")
    return size


def extend(
    state: State, routes: Routes, transfers: Transfers, *, inbox: Ints, outbox: Ints, n_counters: int
) -> State:
    """The state with more flows, none of them released; they stand behind the old ones.

    Args:
        routes: of the new flows: the links of a row are walked in order, and a packet of b bytes takes b x weight of each. Lanes
            (weights of any size) stand behind the wires. Where a row is spread over parallel links (weights below 1), the
            shares of a packet cross them one after the other, and the latency of such a link, times the share, passes at
            the end; that of others after the link.
        inbox, outbox: int [transfers], the counters that count down when a flow's last packet has landed, and has left its
            first link.
        n_counters: their number, the old ones included.

    Raises:
        InputError: more packets than can be played.
    """
    from clustersim.network import packet_records as records

    n_hops = np.diff(routes.start)
    packets = packets_of(transfers.nbytes, state.chunk)
    planned = float(state.tally[records.HOPS_PLANNED]) + float(packets @ n_hops)
    _refuse_many(planned, state.chunk)
    flows = np.zeros(transfers.n, records.FLOW)
    flows["nbytes"], flows["packets"] = transfers.nbytes, packets
    flows["tail"] = transfers.nbytes - (packets - 1) * state.chunk
    flows["piece"] = transfers.chunk
    flows["start"], flows["drain"] = np.nan, np.inf
    flows["inbox"], flows["outbox"] = inbox, outbox
    last = routes.start[1:] - 1
    whole = routes.weights == 1
    hops = np.zeros(routes.links.size, records.HOP)
    hops["link"], hops["next"], hops["weight"] = routes.links, -1, routes.weights
    hops["latency"] = np.where(whole, state.links["latency"][routes.links], 0.0)
    hops["window"] = np.where(whole, _credits(state)[routes.links], CREDITS)
    hops["window"][last] = records.UNLIMITED
    flows["latency"] = hops["latency"][last]
    shares = np.where(whole, 0.0, routes.weights * state.links["latency"][routes.links])
    if shares.any():
        flows["latency"] += np.bincount(np.repeat(np.arange(transfers.n), n_hops), shares, transfers.n)
    hops["credit"] = hops["window"]
    counters = np.zeros(n_counters, records.COUNTER)
    counters["last"] = -np.inf
    counters["waiting"] = np.bincount(np.concatenate((inbox, outbox)), minlength=n_counters)
    counters[: state.counters.size] = state.counters
    links, tally = state.links.copy(), state.tally.copy()
    links["asked"] += np.bincount(routes.links, np.repeat(transfers.nbytes, n_hops) * routes.weights, links.size)
    tally[records.HOPS_PLANNED] = planned
    return _assemble(
        state._replace(links=links, tally=tally),
        np.concatenate((state.flows, flows)),
        np.concatenate((state.hops, hops)),
        np.concatenate((_lengths(state.flows, "hop"), n_hops)),
        np.concatenate((state.after, transfers.after + state.flows.size)),
        np.concatenate((_lengths(state.flows, "after"), np.diff(transfers.after_start))),
        counters,
        np.arange(state.flows.size),
        np.arange(state.hops.size),
    )


def keep(state: State, flows: Ints, counters: Ints) -> State:
    """The state with only these flows and counters, both in rising order; of what is left out, every packet has landed."""
    position = np.full(state.flows.size, -1)
    position[flows] = np.arange(flows.size)
    renumber = np.full(state.counters.size, -1)
    renumber[counters] = np.arange(counters.size)
    records = state.flows[flows]
    records["inbox"], records["outbox"] = renumber[records["inbox"]], renumber[records["outbox"]]
    stays = np.repeat(position, _lengths(state.flows, "hop")) >= 0
    child = np.repeat(position, _lengths(state.flows, "after"))
    edges = (child >= 0) & (position[state.after] >= 0)         # what has landed holds nothing back
    n_after = np.bincount(child[edges], minlength=flows.size)
    return _assemble(
        state, records, state.hops[stays], _lengths(records, "hop"), position[state.after[edges]], n_after,
        state.counters[counters], position, np.where(stays, np.cumsum(stays) - 1, -1),
    )  # fmt: skip


def packets_of(nbytes: Floats, chunk: float) -> Floats:
    """How many packets of `chunk` bytes each transfer is cut into, in whole numbers; the last one may be smaller."""
    packets: Floats = np.maximum(1.0, np.ceil(nbytes / chunk - 1e-9))
    return packets


def packet_hops(cluster: Cluster, exchanges: Iterable[Transfers], chunk: str | float = CHUNK) -> float:
    """How many packets these exchanges send over links, all links counted: what a run of them costs."""
    size, total = chunk_bytes(chunk), 0.0
    for transfers in exchanges:
        hops = np.diff(routes_of(cluster, transfers).start)
        total += float(packets_of(transfers.nbytes, size) @ hops)
    return total


def need_few(cluster: Cluster, exchanges: Iterable[Transfers], repeats: int, chunk: str | float) -> None:
    """Refuse a run of `repeats` times these exchanges before it begins.

    Raises:
        InputError: more than MOST_HOPS packets over links.
    """
    _refuse_many(repeats * packet_hops(cluster, exchanges, chunk), chunk_bytes(chunk))


def _refuse_many(hops: float, chunk: float) -> None:
    if hops > MOST_HOPS:
        raise InputError(
            f"network.chunk={chunk:.15g}B: the run sends {hops:.1e} packets over links, and may send {MOST_HOPS:.0e}: "
            "give a larger network.chunk, fewer tokens or network=fluid"
        )


def _credits(state: State) -> Ints:
    """Packets that a flow may have beyond each link: CREDITS, and what the link sends until a credit of its first is back."""
    links = state.links
    credits: Ints = (CREDITS + np.ceil(2 * links["latency"] * links["fastest"] / state.chunk)).astype(np.int64)
    return credits


def _lengths(flows: Records, what: str) -> Ints:
    return np.asarray(flows[f"{what}_end"] - flows[f"{what}_start"], np.int64)


def _assemble(
    state: State, flows: Records, hops: Records, n_hops: Ints, after: Ints, n_after: Ints, counters: Records,
    flow_now: Ints, hop_now: Ints,
) -> State:  # fmt: skip
    """A state of these flows over the same links; `flow_now` and `hop_now` say what the old ones are called now, -1 gone."""
    from clustersim.network import packet_records as records

    n = flows.size
    for what, length in (("hop", n_hops), ("after", n_after)):
        flows[f"{what}_end"] = np.cumsum(length)
        flows[f"{what}_start"] = flows[f"{what}_end"] - length
    back, following = inverse(after, n_after, n)
    flows["next_start"], flows["next_end"] = back[:-1], back[1:]
    hops["flow"] = np.repeat(np.arange(n), n_hops)
    now = np.append(hop_now, -1)                                # no hop stays no hop
    hops["next"] = now[hops["next"]]
    links = state.links.copy()
    for name in ("serving", "now_head", "now_tail", "later_head", "later_tail"):
        links[name] = now[links[name]]
    old_input, kept = state.hops["input"], np.flatnonzero(hop_now >= 0)
    hops["input"] = _inputs(flows, hops, bool(state.tally[records.IS_FIFO]))
    served = np.full(hops.size, -1)
    served[hops["input"][hop_now[kept]]] = state.served[old_input[kept]]
    pipes = _pipes(state, links, flows, hops, now)
    tally = state.tally.copy()
    return records.State(
        links=links, flows=flows, hops=hops, served=served, pipes=pipes, queues=now[state.queues],
        heap=_events(state, links, pipes, flow_now, n, tally), counters=counters, changes=state.changes, after=after,
        next=following, pending=state.pending, ended=np.zeros(counters.size, np.int64), tally=tally, chunk=state.chunk,
    )  # fmt: skip


def _inputs(flows: Records, hops: Records, fifo: bool) -> Ints:
    """What takes turns: every hop by itself; fifo: every source's flow by itself, all packets that come over a link together."""
    own = np.arange(hops.size)
    if not fifo:
        return own
    first = np.zeros(hops.size, bool)
    first[flows["hop_start"]] = True
    n_links = int(hops["link"].max(initial=0)) + 1
    pair = np.append(0, hops["link"][:-1]) * n_links + hops["link"]
    return np.unique(np.where(first, -1 - own, pair), return_inverse=True)[1].astype(np.int64)


def _pipes(state: State, links: Records, flows: Records, hops: Records, now: Ints) -> Records:
    """Room for all that can be on the way over each link, with what is on the way now; `links` is told where."""
    from clustersim.network import packet_records as records

    most = np.minimum(_credits(state)[hops["link"]], flows["packets"][hops["flow"]])
    size = np.bincount(hops["link"], most, links.size).astype(np.int64) * (links["latency"] > 0)
    old = state.links
    link = np.repeat(np.arange(old.size), old["in_pipe"])
    nth = np.arange(link.size) - np.repeat(np.cumsum(old["in_pipe"]) - old["in_pipe"], old["in_pipe"])
    messages = state.pipes[old["pipe_start"][link] + (old["pipe_head"][link] + nth) % np.maximum(1, old["pipe_size"][link])]
    is_credit = messages["hop"] < 0
    hop = now[np.where(is_credit, -1 - messages["hop"], messages["hop"])]
    messages["hop"] = np.where(is_credit, -1 - hop, hop)
    stays = hop >= 0                                            # else a credit of a flow that is through
    messages, link = messages[stays], link[stays]
    links["in_pipe"] = np.bincount(link, minlength=links.size)
    assert (links["in_pipe"] <= size).all(), "more is on the way over a link than its flows may have there"
    links["pipe_size"], links["pipe_start"], links["pipe_head"] = size, np.cumsum(size) - size, 0
    pipes = np.zeros(int(size.sum()), records.MESSAGE)
    first = np.cumsum(links["in_pipe"]) - links["in_pipe"]
    pipes[links["pipe_start"][link] + np.arange(link.size) - first[link]] = messages
    return pipes


def _events(state: State, links: Records, pipes: Records, flow_now: Ints, n_flows: int, tally: Ints) -> Records:
    """The heap with flows called by their new names, and with what comes next over each link."""
    from clustersim.network import packet_records as records

    n = links.size
    due = state.heap[: state.tally[records.N_HEAP]].copy()
    of_flow = due["item"] >= 2 * n
    due["item"][of_flow] = 2 * n + flow_now[due["item"][of_flow] - 2 * n]
    due = due[(due["item"] < n) | of_flow]
    used = np.flatnonzero(links["in_pipe"])
    coming = np.zeros(used.size, records.EVENT)
    coming["key"], coming["item"] = pipes["time"][links["pipe_start"][used]], n + used
    due = np.concatenate((due, coming))
    heap = np.zeros(2 * n + n_flows, records.EVENT)
    heap[: due.size] = due[np.lexsort((due["item"], due["key"]))]        # what is sorted is a heap
    tally[records.N_HEAP] = due.size
    return heap


def enter(state: State, flows: Ints, at: Floats) -> None:
    """The sources of `flows` are in: their packets may leave from time `at` [flows] on, once what they follow lets them."""
    from clustersim.network import packet_kernel as kernel

    kernel.release(state, flows, at)


def run(state: State, until: float) -> float:
    """Play events up to `until` or until a counter reaches zero; the time of the next event. See packet_kernel.run.

    Raises:
        InputError: fifo queues that wait for each other in a circle.
    """
    from clustersim.network import packet_kernel as kernel
    from clustersim.network import packet_records as records

    following = float(kernel.run(state, until))
    fault, links = int(state.tally[records.FAULT]), state.links
    assert fault != records.FAULT_BUSY, "a link sends two packets at once"
    assert fault != records.FAULT_QUEUE, "a queue holds more packets than its credits allow"
    assert fault != records.FAULT_LANDED, "more packets have landed than were sent"
    assert fault != records.FAULT_PIPE, "more packets are on the way over a link than its flows may have there"
    if following == np.inf:
        if links["queued"].any():
            raise InputError(
                f"network.queue=fifo: the routes go round in a circle, in which the full queue of link "
                f"{int(links['queued'].argmax())} waits for itself; round_robin has no such deadlock"
            )
        _audit(state)
    return following


def _audit(state: State) -> None:
    """When nothing moves any more: no link was busy for more than all of the time, and carried what it was asked to."""
    from clustersim.network import packet_records as records

    links = state.links
    assert (links["busy"] <= links["free_at"] * (1 + 1e-9)).all(), "a link was busy for more than all of the time"
    if (state.flows["status"] == records.DONE).all():
        assert np.allclose(links["carried"], links["asked"], rtol=1e-9, atol=1e-3), "bytes over a link are not the bytes asked"


def take_ended(state: State) -> Ints:
    """The counters that have reached zero since the last call."""
    from clustersim.network import packet_records as records

    ended = state.ended[: state.tally[records.N_DONE]].copy()
    state.tally[records.N_DONE] = 0
    return ended


def drained(state: State) -> Ints:
    """The flows whose last packet has landed."""
    from clustersim.network import packet_records as records

    return np.flatnonzero(state.flows["status"] == records.DONE)


def finish(state: State) -> Floats:
    """When the last packet of each flow has landed, seconds [flows]; inf where it has not."""
    ends: Floats = state.flows["drain"] + state.flows["latency"]
    return ends


def solves(state: State) -> int:
    """How many packets have been sent over a link so far: the work of this network, as rate computations are of the fluid one."""
    from clustersim.network import packet_records as records

    return int(state.tally[records.HOPS_SENT])


def play_all(state: State, release: Floats) -> None:
    """Play flows that are released at `release` [flows] to the end."""
    enter(state, np.arange(release.size), release)
    while run(state, np.inf) < np.inf:
        take_ended(state)
    assert drained(state).size == release.size, "flows are left that nothing will release"
