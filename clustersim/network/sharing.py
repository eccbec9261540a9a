"""Flows over links as the kernel wants them, and the two questions asked without a cluster clock: when does each flow end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clustersim.types import Floats, InputError, Ints, Routes, Transfers, independent

if TYPE_CHECKING:
    from clustersim.network.kernel import Records, State


def inverse(members: Ints, length: Ints, n: int) -> tuple[Ints, Ints]:
    """Turn rows of `members` (`length[i]` of them in row i) around: start [n + 1] and rows, for each member the rows it is in."""
    rows = np.repeat(np.arange(length.size), length)
    order = np.argsort(members, kind="stable")
    back = np.concatenate(([0], np.cumsum(np.bincount(members, minlength=n)))).astype(np.int64)
    return back, rows[order].astype(np.int64)


def empty(capacity: Floats) -> State:
    """A state without flows over links of `capacity` bytes/s."""
    from clustersim.network import kernel

    links = np.zeros(capacity.size, kernel.LINK)
    links["capacity"] = capacity
    none = np.zeros(0, np.int64)
    return kernel.State(
        links=links, flows=np.zeros(0, kernel.FLOW), hops=np.zeros(0, kernel.HOP), lists=np.zeros(0, kernel.ENTRY),
        heap=np.zeros(0, kernel.EVENT), counters=np.zeros(0, kernel.COUNTER), after=none, next=none, dirty=none, moved=none,
        seeds=np.zeros(capacity.size, np.int64), region_flow=none, region_link=np.zeros(capacity.size, np.int64),
        ended=none, tally=np.zeros(kernel.N_TALLY, np.int64), level=np.full(1, np.inf),
    )  # fmt: skip


def extend(
    state: State, routes: Routes, transfers: Transfers, *, inbox: Ints, outbox: Ints, n_counters: int
) -> State:
    """The state with more flows, none of them released; they stand behind the old ones.

    Args:
        routes: of the new flows; latency is what passes between a flow's drain and its finish.
        inbox, outbox: int [transfers], the counters that count down as each drains.
        n_counters: their number, the old ones included.
    """
    from clustersim.network import kernel

    flows = np.zeros(transfers.n, kernel.FLOW)
    flows["nbytes"] = flows["left"] = transfers.nbytes
    flows["piece"] = np.minimum(1.0, transfers.chunk / transfers.nbytes)
    flows["latency"] = routes.latency
    flows["start"], flows["drain"] = np.nan, np.inf
    flows["limit"] = flows["heap_at"] = -1
    flows["inbox"], flows["outbox"] = inbox, outbox
    hops = np.zeros(routes.links.size, kernel.HOP)
    hops["link"], hops["weight"] = routes.links, routes.weights
    counters = np.zeros(n_counters, kernel.COUNTER)
    counters["last"] = -np.inf
    counters["waiting"] = np.bincount(np.concatenate((inbox, outbox)), minlength=n_counters)
    counters[: state.counters.size] = state.counters
    old = state.flows.size
    return _assemble(
        state,
        np.concatenate((state.flows, flows)),
        np.concatenate((state.hops, hops)),
        np.concatenate((_lengths(state.flows, "hop"), np.diff(routes.start))),
        np.concatenate((state.after, transfers.after + old)),
        np.concatenate((_lengths(state.flows, "after"), np.diff(transfers.after_start))),
        counters,
    )


def keep(state: State, flows: Ints, counters: Ints) -> State:
    """The state with only these flows and counters, both in rising order; what is left out must have drained."""
    position = np.full(state.flows.size, -1)
    position[flows] = np.arange(flows.size)
    renumber = np.full(state.counters.size, -1)
    renumber[counters] = np.arange(counters.size)
    records = state.flows[flows]
    records["inbox"], records["outbox"] = renumber[records["inbox"]], renumber[records["outbox"]]
    of_hop = np.repeat(position, _lengths(state.flows, "hop")) >= 0
    child = np.repeat(position, _lengths(state.flows, "after"))
    edges = (child >= 0) & (position[state.after] >= 0)         # a flow that has drained holds nothing back
    n_after = np.bincount(child[edges], minlength=flows.size)
    return _assemble(
        state, records, state.hops[of_hop], _lengths(records, "hop"), position[state.after[edges]], n_after,
        state.counters[counters],
    )  # fmt: skip


def _lengths(flows: Records, what: str) -> Ints:
    return np.asarray(flows[f"{what}_end"] - flows[f"{what}_start"], np.int64)


def _assemble(
    state: State, flows: Records, hops: Records, n_hops: Ints, after: Ints, n_after: Ints, counters: Records
) -> State:
    """A state of these flows over the same links, with the lists, the heap and the reverse edges made anew."""
    from clustersim.network import kernel

    n = flows.size
    for what, length in (("hop", n_hops), ("after", n_after)):
        flows[f"{what}_end"] = np.cumsum(length)
        flows[f"{what}_start"] = flows[f"{what}_end"] - length
    back, following = inverse(after, n_after, n)
    flows["next_start"], flows["next_end"] = back[:-1], back[1:]
    links = state.links.copy()
    per_link = np.bincount(hops["link"], minlength=links.size)
    links["list_start"] = np.cumsum(per_link) - per_link
    lists = np.zeros(hops.size, kernel.ENTRY)
    flow_of = np.repeat(np.arange(n), n_hops)
    live = np.flatnonzero(flows["status"][flow_of] == kernel.LIVE)
    live = live[np.argsort(hops["link"][live], kind="stable")]
    sizes = np.bincount(hops["link"][live], minlength=links.size)
    assert (sizes == links["list_size"]).all(), "a live flow was left behind"
    at = np.repeat(links["list_start"] - (np.cumsum(sizes) - sizes), sizes) + np.arange(live.size)
    lists["flow"][at], lists["hop"][at] = flow_of[live], live
    hops["at"][live] = at
    due = np.flatnonzero(flows["heap_at"] >= 0)
    heap = np.zeros(n, kernel.EVENT)
    keys = state.heap["key"][flows["heap_at"][due]]
    due = due[np.argsort(keys, kind="stable")]                  # what is sorted is a heap
    heap["key"][: due.size], heap["flow"][: due.size] = np.sort(keys), due
    flows["heap_at"][due] = np.arange(due.size)
    assert state.tally[kernel.N_HEAP] == due.size, "an event was left behind"
    return kernel.State(
        links=links, flows=flows, hops=hops, lists=lists, heap=heap, counters=counters,
        after=after, next=following, dirty=np.zeros(n, np.int64), moved=np.zeros(n, np.int64), seeds=state.seeds,
        region_flow=np.zeros(n, np.int64), region_link=state.region_link, ended=np.zeros(counters.size, np.int64),
        tally=state.tally, level=state.level,
    )  # fmt: skip


def enter(state: State, flows: Ints, at: Floats) -> None:
    """The sources of `flows` are in: they may move from time `at` [flows] on, once what they follow lets them."""
    from clustersim.network import kernel

    kernel.release(state, flows, at)


def run(state: State, until: float) -> float:
    """Play events up to `until` or until a counter reaches zero; the time of the next event. See kernel.run."""
    from clustersim.network import kernel

    following = float(kernel.run(state, until))
    fault = int(state.tally[kernel.FAULT])
    assert fault != kernel.FAULT_OVERLOAD, "a link carries more than its capacity"
    assert fault != kernel.FAULT_UNSETTLED, "flows that follow each other over one link did not settle"
    return following


def take_ended(state: State) -> Ints:
    """The counters that have reached zero since the last call."""
    from clustersim.network import kernel

    ended = state.ended[: state.tally[kernel.N_DONE]].copy()
    state.tally[kernel.N_DONE] = 0
    return ended


def drained(state: State) -> Ints:
    """The flows whose last byte has left."""
    from clustersim.network import kernel

    return np.flatnonzero(state.flows["status"] == kernel.DONE)


def solves(state: State) -> int:
    """How many times rates have been recomputed."""
    from clustersim.network import kernel

    return int(state.tally[kernel.SOLVES])


def solve_all(state: State, release: Floats) -> None:
    """Play flows that are released at `release` [flows] to the end."""
    enter(state, np.arange(release.size), release)
    while run(state, np.inf) < np.inf:
        take_ended(state)
    assert drained(state).size == release.size, "flows are left that nothing will release"


def need_exact(resolution: float) -> None:
    """Only the exact solution is built.

    Raises:
        InputError: any other resolution.
    """
    if resolution != 0:
        raise InputError(f"network.resolution={resolution}: only 0 (exact) is built so far")


def flow_times(
    capacity: Sequence[float] | Floats,
    routes: Sequence[Sequence[int]],
    nbytes: Sequence[float] | Floats,
    release: float | Sequence[float] | Floats,
    resolution: float = 0.0,
) -> Floats:
    """When each of any flows over any links has drained, under max-min fair sharing.

    Args:
        capacity: bytes/s [links].
        routes: for each flow the links it crosses; an empty route takes no time.
        nbytes: bytes [flows].
        release: seconds, one for all or [flows].
        resolution: 0, the exact solution.

    Returns:
        Seconds [flows]; a flow of zero bytes ends when it is released.

    Raises:
        InputError: a negative or non-finite number, an unknown link, a link without capacity in use, sizes that differ.
    """
    need_exact(resolution)
    caps, sizes = np.asarray(capacity, np.float64), np.asarray(nbytes, np.float64)
    released = np.asarray(release, np.float64)
    if sizes.shape != (len(routes),):
        raise InputError(f"flow_times: {len(routes)} routes for nbytes of shape {sizes.shape}")
    if released.shape not in ((), sizes.shape):
        raise InputError(f"flow_times: release of shape {released.shape} for {sizes.size} flows")
    released = np.broadcast_to(released, sizes.shape).copy()
    for name, values in (("nbytes", sizes), ("release", released)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise InputError(f"flow_times: {name} must be finite and not negative")
    links = np.fromiter((link for route in routes for link in route), np.int64)
    length = np.fromiter((len(route) for route in routes), np.int64, len(routes))
    if (unknown := links[(links < 0) | (links >= caps.size)]).size:
        raise InputError(f"flow_times: a route names link {unknown[0]}; there are {caps.size}, from 0 on")
    if (unfit := links[~((caps[links] > 0) & np.isfinite(caps[links]))]).size:
        raise InputError(f"flow_times: a route crosses link {unfit[0]}, whose capacity is {caps[unfit[0]]}; it must be positive")
    moving = np.flatnonzero((sizes > 0) & (length > 0))
    of_moving = np.repeat((sizes > 0) & (length > 0), length)
    start = np.concatenate(([0], np.cumsum(length[moving]))).astype(np.int64)
    state = extend(
        empty(caps),
        Routes(start=start, links=links[of_moving], weights=np.ones(int(start[-1])), latency=np.zeros(moving.size)),
        independent(np.zeros(moving.size, np.int64), np.zeros(moving.size, np.int64), sizes[moving]),
        inbox=np.zeros(moving.size, np.int64),
        outbox=np.zeros(moving.size, np.int64),
        n_counters=1,
    )
    solve_all(state, released[moving])
    ends = released
    ends[moving] = state.flows["drain"]
    return ends
