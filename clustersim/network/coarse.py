"""Coarse steps as others want them: the state of `coarse_kernel` made, extended, thinned out, played and read. No SimPy.

A module of functions, as `sharing` is.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clustersim.network.changes import Changes
from clustersim.network.sharing import each_link_once, inverse, joined, lengths, need_all
from clustersim.types import Floats, Ints, Routes, Transfers

if TYPE_CHECKING:
    from clustersim.network.coarse_records import Records, State

GROWTH = 2.5            # x resolution: soon after the start a step is this share of the time gone by
LINE = 64               # bytes of a cache line
_NOBODY = np.zeros(0, np.int64)


@cache
def _inner() -> tuple[Any, Any, Any]:
    """The steps, what is made anew, and the records, imported late: by what is called at every event this is asked."""
    from clustersim.network import coarse_kernel, coarse_layout, coarse_records

    return coarse_kernel, coarse_layout, coarse_records


def empty(capacity: Floats, changes: Changes | None = None) -> State:
    """A state without flows over links of `capacity` bytes/s.

    Args:
        changes: capacities to come.
    """
    _, _, records = _inner()
    links = np.zeros(capacity.size, records.LINK)
    links["capacity"] = capacity
    to_come = np.zeros(0 if changes is None else changes.time.size, records.CHANGE)
    if changes is not None:
        to_come["time"], to_come["link"], to_come["capacity"] = changes.time, changes.link, changes.capacity
    none, event = np.zeros(0, np.int64), np.zeros(0, records.EVENT)
    made: State = records.State(
        links=links, shares=np.zeros(capacity.size, records.SHARE), parts=np.zeros(0, records.PART),
        flows=np.zeros(0, records.FLOW), moves=np.zeros(0, records.MOVE), marks=np.zeros(0, records.MARK),
        doing=np.zeros(0, np.int32), hops=np.zeros(0, records.HOP), lists=np.zeros(0, records.CROSSING),
        drawn=np.zeros(0, records.DRAWN), owned=np.zeros(0, records.OWNED), heap=event,
        ends=event.copy(), queues=np.zeros((4, 0), np.int64), order=np.zeros(capacity.size, np.int64),
        by_part=np.zeros(capacity.size, np.int64), after=none, next=none.copy(), mates=none.copy(), inner=none.copy(),
        counters=np.zeros(0, records.COUNTER), through=none.copy(), changes=to_come, tally=np.zeros(records.N_TALLY, np.int64),
        clock=np.zeros(5),
    )  # fmt: skip
    return made


def extend(state: State, routes: Routes, transfers: Transfers, *, inbox: Ints, outbox: Ints, n_counters: int) -> State:
    """The state with more flows, none of them released; they stand behind the old ones. As `sharing.extend`."""
    _, layout, records = _inner()
    routes = each_link_once(routes)
    first = state.flows.size
    flows, moves, marks = (_with_room(old, transfers.n) for old in (state.flows, state.moves, state.marks))
    layout.lay(flows, moves, marks, first, transfers.nbytes, transfers.chunk, routes.latency, inbox, outbox)
    mates = bundles(moves[first:], marks[first:], routes, transfers)
    bound = first + mates
    marks["mates_start"][bound] += state.mates.size
    hops = np.zeros(routes.links.size, records.HOP)
    hops["link"], hops["weight"] = routes.links, routes.weights
    counters = np.zeros(n_counters, records.COUNTER)
    counters["last"] = -np.inf
    counters["waiting"] = np.bincount(np.concatenate((inbox, outbox)), minlength=n_counters)
    counters[: state.counters.size] = state.counters
    return _assemble(
        state,
        flows,
        moves,
        marks,
        np.concatenate((state.doing, np.full(transfers.n, records.OUT, np.int32))),
        joined(state.hops, hops),
        np.concatenate((lengths(state.moves, "hop"), np.diff(routes.start))),
        np.concatenate((_after(state), transfers.after + state.flows.size)),
        np.concatenate((lengths(state.moves, "after"), np.diff(transfers.after_start))),
        np.concatenate((state.mates, bound)),
        counters,
        *_queued(state),
    )


def keep(state: State, flows: Ints, counters: Ints) -> State:
    """The state with only these flows and counters, both in rising order; what is left out must have drained."""
    _, _, records = _inner()
    position = np.full(state.flows.size, -1)
    position[flows] = np.arange(flows.size)
    assert (state.doing[position < 0] == records.DONE).all(), "a flow is left behind"
    renumber = np.full(state.counters.size, -1)
    renumber[counters] = np.arange(counters.size)
    of_hop = np.repeat(position, lengths(state.moves, "hop")) >= 0
    kept, moves, marks = state.flows.take(flows), state.moves.take(flows), state.marks.take(flows)
    kept["inbox"], kept["outbox"] = renumber[kept["inbox"]], renumber[kept["outbox"]]
    moves["head"] = position[moves["head"]]
    heads = np.flatnonzero(moves["n_mates"] > 1)
    n_mates = moves["n_mates"][heads].astype(np.int64)
    mates = position[state.mates[_rows(marks["mates_start"][heads], n_mates)]]
    marks["mates_start"][heads] = np.cumsum(n_mates) - n_mates
    return _assemble(
        state, _with_room(kept, 0), _with_room(moves, 0), marks, state.doing[flows], state.hops.take(np.flatnonzero(of_hop)),
        lengths(moves, "hop"), position[_after(state)], lengths(moves, "after"), mates, state.counters.take(counters),
        *(position[queue] for queue in _queued(state)),
    )  # fmt: skip


def _queued(state: State) -> tuple[Ints, Ints]:
    """The flows whose sources are in that have not been looked at, and those that began in the last step; no others wait."""
    _, _, records = _inner()
    assert not state.tally[[records.N_WOKEN, records.N_REACHED]].any(), "a step is not over"
    n_entering, n_fresh = state.tally[[records.N_ENTERING, records.N_FRESH]]
    return state.queues[records.Q_ENTERING, :n_entering], state.queues[records.Q_FRESH, :n_fresh]


def _after(state: State) -> Ints:
    """What each flow follows and has not ended, row by row; what has ended follows nothing."""
    return state.after[_rows(state.moves["after_start"], lengths(state.moves, "after"))]


def _rows(start: Ints, length: Ints) -> Ints:
    """The places of rows that begin at `start` and are so long, one after the other."""
    ahead = np.cumsum(length) - length
    places: Ints = np.repeat(start - ahead, length) + np.arange(int(length.sum()))
    return places


def bundles(moves: Records, marks: Records, routes: Routes, transfers: Transfers) -> Ints:
    """Bind flows that follow nothing and go from one GPU to another by the same way, let go at the same moment.

    They have one rate, whatever their sizes: on many small transfers of few GPUs that share a node this saves nearly all looks.

    Returns:
        The flows of bundles, row by row, the most bytes first; `moves` and `marks` know of their rows.
    """
    free = np.flatnonzero(np.diff(transfers.after_start) == 0)
    pair = transfers.src[free] * (1 + int(transfers.dst.max(initial=0))) + transfers.dst[free]
    if pair.size == 0:
        return _NOBODY
    if int(pair.max()) < 8 * pair.size:
        several = np.bincount(pair)[pair] > 1
    else:
        _, kind, times = np.unique(pair, return_inverse=True, return_counts=True)
        several = times[kind] > 1
    free, pair = free[several], pair[several]
    if free.size == 0:
        return _NOBODY
    bits = transfers.nbytes[free].astype(np.float32).view(np.int32).astype(np.int64)    # those of a positive number rise with it
    order = np.argsort((pair << 31) - bits)
    mates = np.empty(free.size, np.int64)
    _, layout, _ = _inner()
    n: int = layout.bind(
        moves, marks, pair[order], free[order], routes.start, routes.links, routes.weights, transfers.release, mates
    )  # fmt: skip
    return mates[:n].copy()


def _assemble(
    state: State, flows: Records, moves: Records, marks: Records, doing: NDArray[np.int32], hops: Records, n_hops: Ints,
    after: Ints, n_after: Ints, mates: Ints, counters: Records, entering: Ints, fresh: Ints,
) -> State:  # fmt: skip
    """A state of these flows over the same links, with what links know of flows made anew."""
    _, layout, records = _inner()
    n, n_links = flows.size, state.links.size
    back, following = inverse(after, n_after, n)
    layout.place(flows, moves, marks, n_hops, n_after, back)
    queues = np.empty((4, n), np.int64)
    queues[records.Q_ENTERING, : entering.size], queues[records.Q_FRESH, : fresh.size] = entering, fresh
    made = state._replace(
        flows=flows, moves=moves, marks=marks, doing=doing, hops=hops, parts=np.zeros(n_links, records.PART),
        lists=_room(state.lists, hops.size), drawn=_room(state.drawn, int(n_hops[n_after > 0].sum())),
        owned=_room(state.owned, n), heap=_room(state.heap, max(n, n_links)), ends=_room(state.ends, n), queues=queues,
        after=after, next=following, mates=mates, inner=np.flatnonzero((n_after > 0) & (np.diff(back) > 0)), counters=counters,
        through=np.zeros(counters.size, np.int64),
    )  # fmt: skip
    layout.list_flows(made)
    n_parts = layout.find_parts(made, *np.empty((2, n_links), np.int64))
    made = made._replace(parts=made.parts[:n_parts])
    if after.size:
        layout.wait_again(made)
    if after.size and state.changes.size == 0:
        layout.find_safe(made, *(np.zeros(n_links) for _ in range(3)), *(np.full(n_links, -1) for _ in range(2)))
    return made


def _with_room(records: Records, n: int) -> Records:
    """The same and n behind them that are still to be filled, each in a cache line of its own if it fits into one."""
    n_bytes = records.nbytes + n * records.itemsize
    room = np.empty(n_bytes + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    room = room[first : first + n_bytes]
    room[: records.nbytes] = records.view(np.uint8)         # as bytes: NumPy copies records field by field
    return room.view(records.dtype)


def _room(before: Records, n: int) -> Records:
    """For at least so many records, and nothing is in them: a new array costs a page fault for every 30 of them."""
    return before if before.size >= n else np.empty(n, before.dtype)


def enter(state: State, flows: Ints, at: Floats) -> None:
    """The sources of `flows` are in: they may move from time `at` [flows] on, once what they follow lets them."""
    kernel, _, _ = _inner()
    kernel.release(tuple(state), flows, at)


def run(state: State, until: float) -> float:
    """Play steps up to `until` or until a counter reaches zero; the time from which there is more. See coarse_kernel.run."""
    kernel, _, _ = _inner()
    return float(kernel.run(tuple(state), until))


def take_ended(state: State) -> Ints:
    """The counters that have reached zero since the last call."""
    _, _, records = _inner()
    n = state.tally[records.N_DONE]
    if not n:
        return _NOBODY
    ended = state.through[:n].copy()
    state.tally[records.N_DONE] = 0
    return ended


def drained(state: State) -> Ints:
    """The flows whose last byte has left."""
    _, _, records = _inner()
    return np.flatnonzero(state.doing == records.DONE)


def solves(state: State) -> int:
    """How many steps have been played."""
    _, _, records = _inner()
    return int(state.tally[records.STEPS])


def set_resolution(state: State, resolution: float, seconds: float) -> None:
    """A step takes `resolution` x `seconds`, how long the exchange takes at least."""
    _, _, records = _inner()
    state.clock[records.QUANTUM] = resolution * seconds
    state.clock[records.GROWTH] = GROWTH * resolution
    state.clock[records.TIE] = max(1e-12, 0.5 * resolution)


def play_all(state: State, release: Floats) -> None:
    """Play flows that are released at `release` [flows] to the end. As `sharing.solve_all`."""
    enter(state, np.arange(release.size), release)
    while run(state, np.inf) < np.inf:
        take_ended(state)
    need_all(state, drained(state).size)
