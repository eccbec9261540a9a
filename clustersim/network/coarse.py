"""Coarse steps as others want them: the state of `coarse_kernel` made, extended, thinned out, played and read. No SimPy.

A module of functions, as `sharing` is.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clustersim.network.changes import Changes
from clustersim.network.sharing import each_link_once, lengths, need_all, stand
from clustersim.types import Floats, Ints, Routes, Transfers

if TYPE_CHECKING:
    from clustersim.network.coarse_kernel import Records, State

GROWTH = 2.5            # x resolution: soon after the start a step is this share of the time gone by
_NOBODY = np.zeros(0, np.int64)


@cache
def _kernel() -> Any:
    """The inner loops, imported late: by what is called at every event this is asked, which costs less than an import again."""
    from clustersim.network import coarse_kernel

    return coarse_kernel


def empty(capacity: Floats, changes: Changes | None = None) -> State:
    """A state without flows over links of `capacity` bytes/s.

    Args:
        changes: capacities to come.
    """
    kernel = _kernel()
    links = np.zeros(capacity.size, kernel.LINK)
    links["capacity"] = capacity
    to_come = np.zeros(0 if changes is None else changes.time.size, kernel.CHANGE)
    if changes is not None:
        to_come["time"], to_come["link"], to_come["capacity"] = changes.time, changes.link, changes.capacity
    none, event = np.zeros(0, np.int64), np.zeros(0, kernel.EVENT)
    made: State = kernel.State(
        links=links, flows=np.zeros(0, kernel.FLOW), hops=np.zeros(0, kernel.HOP), filled=np.zeros(0, np.int32),
        lists=np.zeros(0, kernel.CROSSING),
        drawn=np.zeros(0, kernel.CROSSING), owned=np.zeros(0, kernel.OWNED), heap=event, ends=event,
        queues=np.zeros((4, 0), np.int64), order=np.zeros(capacity.size, np.int64), after=none, next=none, inner=none,
        counters=np.zeros(0, kernel.COUNTER), through=none, changes=to_come, tally=np.zeros(kernel.N_TALLY, np.int64),
        clock=np.zeros(5),
    )  # fmt: skip
    return made


def extend(state: State, routes: Routes, transfers: Transfers, *, inbox: Ints, outbox: Ints, n_counters: int) -> State:
    """The state with more flows, none of them released; they stand behind the old ones. As `sharing.extend`."""
    kernel = _kernel()
    routes = each_link_once(routes)
    flows = np.zeros(transfers.n, kernel.FLOW)
    flows["nbytes"] = flows["left"] = transfers.nbytes
    flows["piece"] = np.minimum(1.0, transfers.chunk / transfers.nbytes)
    flows["latency"] = routes.latency
    flows["start"], flows["drain"], flows["factor"] = np.nan, np.inf, 1.0
    flows["since"] = flows["freed"] = -np.inf
    flows["inbox"], flows["outbox"] = inbox, outbox
    hops = np.zeros(routes.links.size, kernel.HOP)
    hops["link"], hops["weight"] = routes.links, routes.weights
    counters = np.zeros(n_counters, kernel.COUNTER)
    counters["last"] = -np.inf
    counters["waiting"] = np.bincount(np.concatenate((inbox, outbox)), minlength=n_counters)
    counters[: state.counters.size] = state.counters
    return _assemble(
        state,
        np.concatenate((state.flows, flows)),
        np.concatenate((state.hops, hops)),
        np.concatenate((lengths(state.flows, "hop"), np.diff(routes.start))),
        np.concatenate((_after(state), transfers.after + state.flows.size)),
        np.concatenate((lengths(state.flows, "after"), np.diff(transfers.after_start))),
        counters,
        state.queues,
    )


def keep(state: State, flows: Ints, counters: Ints) -> State:
    """The state with only these flows and counters, both in rising order; what is left out must have drained."""
    kernel = _kernel()
    position = np.full(state.flows.size, -1)
    position[flows] = np.arange(flows.size)
    assert (state.flows["status"][position < 0] == kernel.DONE).all(), "a flow is left behind"
    renumber = np.full(state.counters.size, -1)
    renumber[counters] = np.arange(counters.size)
    of_hop = np.repeat(position, lengths(state.flows, "hop")) >= 0
    records = state.flows[flows]
    records["inbox"], records["outbox"] = renumber[records["inbox"]], renumber[records["outbox"]]
    queues = np.where(state.queues < state.flows.size, position[state.queues % max(1, state.flows.size)], 0)
    return _assemble(
        state, records, state.hops[of_hop], lengths(records, "hop"), position[_after(state)], lengths(records, "after"),
        state.counters[counters], queues,
    )  # fmt: skip


def _after(state: State) -> Ints:
    """What each flow follows and has not ended, row by row; what has ended follows nothing."""
    length = lengths(state.flows, "after")
    ahead = np.cumsum(length) - length
    rows: Ints = np.repeat(state.flows["after_start"] - ahead, length) + np.arange(int(length.sum()))
    return state.after[rows]


def _assemble(
    state: State, flows: Records, hops: Records, n_hops: Ints, after: Ints, n_after: Ints, counters: Records, queues: NDArray[Any]
) -> State:
    """A state of these flows over the same links, with what links know of flows made anew."""
    kernel = _kernel()
    n = flows.size
    back, following = stand(flows, n_hops, after, n_after)
    flows["wake"] = -1.0
    filled = np.full(n, kernel.STILL, np.int32)
    filled[flows["status"] == kernel.MOVING] = 0
    as_long = np.zeros((4, n), np.int64)
    as_long[:, : min(n, queues.shape[1])] = queues[:, :n]
    made = state._replace(
        flows=flows, hops=hops, filled=filled, lists=np.empty(hops.size, kernel.CROSSING),
        drawn=np.empty(int(n_hops[n_after > 0].sum()), kernel.CROSSING), owned=np.empty(n, kernel.OWNED),
        heap=np.empty(max(n, state.links.size), kernel.EVENT), ends=np.empty(n, kernel.EVENT), queues=as_long, after=after,
        next=following, inner=np.flatnonzero((n_after > 0) & (np.diff(back) > 0)), counters=counters,
        through=np.zeros(counters.size, np.int64),
    )  # fmt: skip
    kernel.list_flows(made)
    if after.size:
        kernel.wait_again(made)
    if after.size and state.changes.size == 0:
        n_links = state.links.size
        kernel.find_safe(made, *(np.zeros(n_links) for _ in range(3)), *(np.full(n_links, -1) for _ in range(2)))
    return made


def enter(state: State, flows: Ints, at: Floats) -> None:
    """The sources of `flows` are in: they may move from time `at` [flows] on, once what they follow lets them."""
    kernel = _kernel()
    kernel.release(state, flows, at)


def run(state: State, until: float) -> float:
    """Play steps up to `until` or until a counter reaches zero; the time from which there is more. See coarse_kernel.run."""
    kernel = _kernel()
    return float(kernel.run(state, until))


def take_ended(state: State) -> Ints:
    """The counters that have reached zero since the last call."""
    kernel = _kernel()
    n = state.tally[kernel.N_DONE]
    if not n:
        return _NOBODY
    ended = state.through[:n].copy()
    state.tally[kernel.N_DONE] = 0
    return ended


def drained(state: State) -> Ints:
    """The flows whose last byte has left."""
    kernel = _kernel()
    return np.flatnonzero(state.flows["status"] == kernel.DONE)


def solves(state: State) -> int:
    """How many steps have been played."""
    kernel = _kernel()
    return int(state.tally[kernel.STEPS])


def set_resolution(state: State, resolution: float, seconds: float) -> None:
    """A step takes `resolution` x `seconds`, how long the exchange takes at least."""
    kernel = _kernel()
    state.clock[kernel.QUANTUM] = resolution * seconds
    state.clock[kernel.GROWTH] = GROWTH * resolution
    state.clock[kernel.TIE] = max(1e-12, 0.5 * resolution)


def play_all(state: State, release: Floats) -> None:
    """Play flows that are released at `release` [flows] to the end. As `sharing.solve_all`."""
    enter(state, np.arange(release.size), release)
    while run(state, np.inf) < np.inf:
        take_ended(state)
    need_all(state, drained(state).size)
