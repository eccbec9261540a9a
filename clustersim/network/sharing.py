"""Flows over links as the kernel wants them: its state made, extended, thinned out, played and read. No cluster, no SimPy."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from clustersim.network.changes import Changes
from clustersim.types import Floats, InputError, Ints, Routes, Transfers

if TYPE_CHECKING:
    from clustersim.network.exact_records import Records, State

_NOBODY = np.zeros(0, np.int64)


@cache
def _inner() -> tuple[Any, Any]:
    """The inner loops and their records, imported late: by what is called at every event this is asked, an import costs more."""
    from clustersim.network import exact_records, kernel

    return kernel, exact_records


def inverse(members: Ints, length: Ints, n: int) -> tuple[Ints, Ints]:
    """Turn rows of `members` (`length[i]` of them in row i) around: start [n + 1] and rows, for each member the rows it is in."""
    rows = np.repeat(np.arange(length.size), length)
    order = np.argsort(members, kind="stable")
    back = np.concatenate(([0], np.cumsum(np.bincount(members, minlength=n)))).astype(np.int64)
    return back, rows[order].astype(np.int64)


def joined(first: Records, second: Records) -> Records:
    """Records one behind the other, copied whole: np.concatenate copies field by field, which takes 15 times as long.

    So does an index; `take` copies them whole.
    """
    assert first.dtype == second.dtype
    whole = np.dtype((np.void, first.dtype.itemsize))
    both: Records = np.concatenate((first.view(whole), second.view(whole))).view(first.dtype)
    return both


def empty(capacity: Floats, changes: Changes | None = None) -> State:
    """A state without flows over links of `capacity` bytes/s.

    Args:
        changes: capacities to come.
    """
    from clustersim.network import exact_records as records

    links = np.zeros(capacity.size, records.LINK)
    links["capacity"] = capacity
    links["level"] = np.inf
    links["order_at"] = -1
    to_come = np.zeros(0 if changes is None else changes.time.size, records.CHANGE)
    if changes is not None:
        to_come["time"], to_come["link"], to_come["capacity"] = changes.time, changes.link, changes.capacity
    none = np.zeros(0, np.int64)
    return records.State(
        links=links, flows=np.zeros(0, records.FLOW), hops=np.zeros(0, records.HOP),
        ends=np.full(capacity.size, np.inf), lists=none,
        owned=np.zeros(0, records.OWNED), events=np.zeros(0, records.EVENT), order=np.zeros(capacity.size + 1, records.EVENT),
        moves=np.zeros(0, records.MOVE), counters=np.zeros(0, records.COUNTER), changes=to_come, after=none, next=none,
        started=none, moved=none, touched=none, chain=none, ended=none, tally=np.zeros(records.N_TALLY, np.int64),
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
    from clustersim.network import exact_records as records

    routes = each_link_once(routes)
    flows = np.zeros(transfers.n, records.FLOW)
    flows["nbytes"] = flows["key"] = transfers.nbytes
    flows["piece"] = np.minimum(1.0, transfers.chunk / transfers.nbytes)
    flows["latency"] = routes.latency
    flows["start"], flows["drain"] = np.nan, np.inf
    flows["limit"] = flows["hold"] = flows["event_at"] = -1
    flows["inbox"], flows["outbox"] = inbox, outbox
    hops = np.zeros(routes.links.size, records.HOP)
    hops["link"], hops["weight"] = routes.links, routes.weights
    counters = np.zeros(n_counters, records.COUNTER)
    counters["last"] = -np.inf
    counters["waiting"] = np.bincount(np.concatenate((inbox, outbox)), minlength=n_counters)
    counters[: state.counters.size] = state.counters
    old = state.flows.size
    return _assemble(
        state,
        joined(state.flows, flows),
        joined(state.hops, hops),
        np.concatenate((lengths(state.flows, "hop"), np.diff(routes.start))),
        np.concatenate((state.after, transfers.after + old)),
        np.concatenate((lengths(state.flows, "after"), np.diff(transfers.after_start))),
        counters,
    )


def keep(state: State, flows: Ints, counters: Ints) -> State:
    """The state with only these flows and counters, both in rising order; what is left out must have drained."""
    from clustersim.network import exact_records as records

    position = np.full(state.flows.size + 1, -1)            # the last entry is for -1, no flow
    position[flows] = np.arange(flows.size)
    renumber = np.full(state.counters.size, -1)
    renumber[counters] = np.arange(counters.size)
    assert (state.flows["status"][position[:-1] < 0] == records.DONE).all(), "a flow is left behind"
    kept = state.flows.take(flows)
    kept["inbox"], kept["outbox"] = renumber[kept["inbox"]], renumber[kept["outbox"]]
    kept["hold"] = position[kept["hold"]]
    of_hop = np.repeat(position[:-1], lengths(state.flows, "hop")) >= 0
    child = np.repeat(position[:-1], lengths(state.flows, "after"))
    edges = (child >= 0) & (position[state.after] >= 0)         # a flow that has drained holds nothing back
    n_after = np.bincount(child[edges], minlength=flows.size)
    return _assemble(
        state, kept, state.hops.take(np.flatnonzero(of_hop)), lengths(kept, "hop"), position[state.after[edges]], n_after,
        state.counters.take(counters),
    )  # fmt: skip


def each_link_once(routes: Routes) -> Routes:
    """Each link once per flow, with the sum of its weights there."""
    from clustersim.network import loads

    if not loads.names_twice(routes.start, routes.links):
        return routes
    row = np.repeat(np.arange(routes.start.size - 1), np.diff(routes.start))
    pairs, which = np.unique(np.stack((row, routes.links)), axis=1, return_inverse=True)
    start = np.concatenate(([0], np.cumsum(np.bincount(pairs[0], minlength=routes.start.size - 1)))).astype(np.int64)
    weights = np.bincount(which.ravel(), routes.weights).astype(np.float64)
    return Routes(start=start, links=pairs[1], weights=weights, latency=routes.latency)


def lengths(flows: Records, what: str) -> Ints:
    return np.asarray(flows[f"{what}_end"] - flows[f"{what}_start"], np.int64)


def stand(flows: Records, n_hops: Ints, after: Ints, n_after: Ints) -> tuple[Ints, Ints]:
    """Tell each flow where its hops, what it follows and what follows it stand; `inverse` of `after`."""
    for what, length in (("hop", n_hops), ("after", n_after)):
        flows[f"{what}_end"] = np.cumsum(length)
        flows[f"{what}_start"] = flows[f"{what}_end"] - length
    back, following = inverse(after, n_after, flows.size)
    flows["next_start"], flows["next_end"] = back[:-1], back[1:]
    return back, following


def _assemble(
    state: State, flows: Records, hops: Records, n_hops: Ints, after: Ints, n_after: Ints, counters: Records
) -> State:
    """A state of these flows over the same links, with the lists, the heap and the reverse edges made anew."""
    from clustersim.network import exact_records as records

    n = flows.size
    _, following = stand(flows, n_hops, after, n_after)
    hops["flow"] = np.repeat(np.arange(n), n_hops)
    links = state.links.copy()
    held = np.minimum(_descendants(after, n_after), n)          # flows that may move with a link because one of its flows does
    per_link = np.bincount(hops["link"], minlength=links.size)
    may_own = np.bincount(hops["link"], 1 + held[hops["flow"]], minlength=links.size).astype(np.int64)
    links["list_start"] = np.cumsum(per_link) - per_link
    links["own_start"] = np.cumsum(may_own) - may_own
    lists = np.zeros(hops.size, np.int64)
    owned = np.zeros(int(may_own.sum()) + 1, records.OWNED)
    live = np.flatnonzero(flows["status"] == records.LIVE)
    assert live.size == state.tally[records.N_LIVE], "a live flow was left behind"
    if live.size:
        crossing = np.flatnonzero(flows["status"][hops["flow"]] == records.LIVE)
        crossing = crossing[np.argsort(hops["link"][crossing], kind="stable")]
        links["list_size"] = np.bincount(hops["link"][crossing], minlength=links.size)
        ahead = np.cumsum(links["list_size"]) - links["list_size"]
        lists[np.repeat(links["list_start"] - ahead, links["list_size"]) + np.arange(crossing.size)] = crossing
        entries = state.owned[flows["own_at"][live]]
        step = flows["hop_start"][live] - entries["hop_start"]
        entries["hop"] = np.where(entries["hop"] >= 0, entries["hop"] + step, -1)
        entries["hop_start"], entries["hop_end"], entries["flow"] = flows["hop_start"][live], flows["hop_end"][live], live
        order = np.argsort(flows["limit"][live], kind="stable")
        ahead = np.cumsum(links["own_size"]) - links["own_size"]
        at = np.repeat(links["own_start"] - ahead, links["own_size"]) + np.arange(live.size)
        owned[at] = entries[order]
        flows["own_at"][live[order]] = at
    else:
        links["list_size"] = 0
    due = np.flatnonzero(flows["event_at"] >= 0)
    events = np.zeros(n, records.EVENT)
    keys = state.events["key"][flows["event_at"][due]]
    due = due[np.argsort(keys, kind="stable")]                  # what is sorted is a heap
    events["key"][: due.size], events["item"][: due.size] = np.sort(keys), due
    flows["event_at"][due] = np.arange(due.size)
    assert state.tally[records.N_EVENTS] == due.size, "an event was left behind"
    started, moved, touched, chain = (np.zeros(n, np.int64) for _ in range(4))
    return records.State(
        links=links, flows=flows, hops=hops, ends=state.ends.copy(), lists=lists, owned=owned, events=events, order=state.order,
        moves=np.zeros(2 * n, records.MOVE), counters=counters, changes=state.changes, after=after, next=following,
        started=started, moved=moved, touched=touched, chain=chain, ended=np.zeros(counters.size, np.int64),
        tally=state.tally,
    )  # fmt: skip


def _descendants(after: Ints, n_after: Ints) -> Ints:
    """How many flows follow each one, or follow one that does; those that follow by several ways count several times."""
    count = np.zeros(n_after.size, np.int64)
    if after.size:
        child = np.repeat(np.arange(n_after.size), n_after)
        while True:                         # one round per hop of the longest chain
            new = np.minimum(np.bincount(after, 1 + count[child], minlength=n_after.size).astype(np.int64), n_after.size)
            if (new == count).all():
                break
            count = new
    return count


def enter(state: State, flows: Ints, at: Floats) -> None:
    """The sources of `flows` are in: they may move from time `at` [flows] on, once what they follow lets them."""
    kernel, _ = _inner()
    kernel.release(tuple(state), flows, at)


def run(state: State, until: float) -> float:
    """Play events up to `until` or until a counter reaches zero; the time of the next event. See kernel.run."""
    kernel, records = _inner()
    following = float(kernel.run(tuple(state), until))
    fault = int(state.tally[records.FAULT])
    assert fault != records.FAULT_OVERLOAD, "what is booked on a link is not what its flows have"
    assert fault != records.FAULT_UNSETTLED, "flows that follow each other over one link did not settle"
    return following


def take_ended(state: State) -> Ints:
    """The counters that have reached zero since the last call."""
    _, records = _inner()
    n = state.tally[records.N_DONE]
    if not n:
        return _NOBODY
    ended = state.ended[:n].copy()
    state.tally[records.N_DONE] = 0
    return ended


def drained(state: State) -> Ints:
    """The flows whose last byte has left."""
    from clustersim.network import exact_records as records

    return np.flatnonzero(state.flows["status"] == records.DONE)


def rates(state: State) -> Floats:
    """Bytes/s of each flow now; 0 for those that do not move."""
    from clustersim.network import exact_records as records

    live = state.flows["status"] == records.LIVE
    return np.where(live, state.hops["rate"][np.where(live, state.flows["hop_start"], 0)], 0.0)


def sent(state: State, now: float) -> Floats:
    """Bytes of each flow that have left at time `now`, the last one played."""
    from clustersim.network import exact_records as records

    flows, links = state.flows, state.links[state.flows["limit"]]
    live = flows["status"] == records.LIVE
    with np.errstate(invalid="ignore"):                         # a link that limits nobody has no level
        served = links["served"] + links["level"] * (now - links["since"])
        left = (flows["key"] - served) * state.owned["kappa"][np.where(live, flows["own_at"], 0)]
    return np.where(live, flows["nbytes"] - left, np.where(flows["status"] == records.DONE, flows["nbytes"], 0.0))


def solves(state: State) -> int:
    """How many times rates have been recomputed."""
    from clustersim.network import exact_records as records

    return int(state.tally[records.SOLVES])


def solve_all(state: State, release: Floats) -> None:
    """Play flows that are released at `release` [flows] to the end."""
    enter(state, np.arange(release.size), release)
    while run(state, np.inf) < np.inf:
        take_ended(state)
    need_all(state, drained(state).size)


def need_all(state: Any, n_drained: int) -> None:
    """Raises InputError where flows are left when nothing more happens: a link of theirs stays down."""
    if (left := state.flows.size - n_drained) > 0:
        assert state.changes.size, "flows are left that nothing will release"
        on_way = state.hops["link"][np.repeat(state.flows["drain"] == np.inf, lengths(state.flows, "hop"))]
        down = on_way[state.links["capacity"][on_way] == 0]
        raise InputError(f"changes: {left} flows never end: link {down[0]} stays down")


def check_resolution(resolution: float) -> None:
    """Raises InputError where it is not from 0 to 1."""
    if isinstance(resolution, bool) or not isinstance(resolution, int | float) or not 0 <= resolution <= 1:
        raise InputError(f"network.resolution={resolution}: must be a number from 0 (exact) to 1 (the exchange's least time)")
