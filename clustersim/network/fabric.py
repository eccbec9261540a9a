"""The network on the event loop: exchanges as rendezvous, one pending wake-up for all flows together.

A GPU enters an exchange when it is ready, and its transfers may start then. It hears of two things: its last inbound
byte has arrived, and its last outbound byte has left too.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import simpy

from clustersim.cluster import Cluster
from clustersim.network import coarse, packets, sharing
from clustersim.network.bounds import busiest_link_end, chained, link_bytes
from clustersim.network.changes import Changes, read_changes
from clustersim.network.known_routes import KnownRoutes, Laid
from clustersim.network.pruning import never_full_between_any, without
from clustersim.network.sharing import check_resolution
from clustersim.types import Floats, Ints, Routes, Transfers


class Solver(Protocol):
    """What moves flows over links, as a module of functions: `sharing` in shares of a rate, `packets` packet by packet.

    Its state is its own business, but for `counters` (fields waiting, last) and `flows` (start, drain, latency).
    """

    def extend(self, state: Any, routes: Routes, transfers: Transfers, *, inbox: Ints, outbox: Ints, n_counters: int) -> Any: ...
    def keep(self, state: Any, flows: Ints, counters: Ints) -> Any: ...
    def enter(self, state: Any, flows: Ints, at: Floats) -> None: ...
    def run(self, state: Any, until: float) -> float: ...
    def take_ended(self, state: Any) -> Ints: ...
    def drained(self, state: Any) -> Ints: ...
    def solves(self, state: Any) -> int: ...


class Notice(simpy.Event):
    """An event that others can wait for before its time is known: `Event.succeed` with the delay of a `Timeout`."""

    def succeed_after(self, delay: float) -> None:
        self._ok, self._value = True, None
        self.env.schedule(self, delay=delay)

    def call_last(self, callback: Callable[[simpy.Event], None]) -> None:
        """Call this behind all who wait for the event, those included that come until it fires."""
        self._last = callback, self.callbacks
        self.callbacks.append(_append_last)


def _append_last(event: Notice) -> None:
    """A function of its own: a closure in the list of callbacks that holds the list is garbage that only the collector finds."""
    callback, callbacks = event._last
    callbacks.append(callback)


@dataclass(eq=False)
class Exchange:
    """One exchange: what travels, and what became of it. Times in seconds of the event loop; NaN before they are known."""

    transfers: Transfers
    routes: Routes                  # latency counted from the first transfer of a chain
    laid: Laid                      # the same ways
    fabric: Fluid | Bound
    entered: Floats                 # [gpus]
    arrived: list[Notice]           # [gpus] last inbound byte is in
    done: list[Notice]              # [gpus] and the last outbound byte has left; of a bound the same event for all
    start: Floats                   # [transfers]
    finish: Floats                  # [transfers]
    base: int = -1                  # its first counter in the solver: inbound [gpus], then outbound [gpus]; -1 not in it
    open_counters: int = 0          # those that have not reached zero
    flows: Ints = field(init=False) # [transfers] their flows in the solver, of those that it has not let go of
    told: list[int] = field(init=False)     # [gpus] 0 nothing, 1 inbound complete, 2 outbound too
    n_entered: int = field(init=False, default=0)
    known_bound: tuple[float, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.told = [0] * self.entered.size

    def enter(self, me: int) -> simpy.Event:
        """GPU `me` is ready. The event fires when its last inbound byte has arrived."""
        before = self.entered.item(me)
        assert before != before, f"GPU {me} enters an exchange twice"       # NaN until then
        self.entered[me] = self.fabric.env.now
        self.n_entered += 1
        self.fabric.arrive(self, me)
        return self.arrived[me]

    def go_on(self, me: int) -> float:
        """The earliest time at which GPU `me`, which is in, goes on whatever has arrived."""
        least = self.transfers.least
        return self.entered.item(me) + (0.0 if least is None else least.item(me))

    def rows_of(self, gpus: list[int]) -> Ints:
        """The transfers that these GPUs send, in rising order."""
        rows = [self.laid.sent_by(me) for me in gpus]
        return rows[0] if len(rows) == 1 else np.sort(np.concatenate(rows))

    def bound(self, released: Floats | None = None) -> tuple[float, int]:
        """When the busiest link could have been through at the earliest, given who entered when; and that link.

        Args:
            released: `released()`, where that is known.
        """
        if self.known_bound is not None:
            return self.known_bound
        released = self.released() if released is None else released
        _, earliest = chained(self.transfers, self.routes.latency, released)
        found = busiest_link_end(
            self.fabric.capacity, self.routes, self.transfers.nbytes, earliest, self.fabric.hop_latency, self.fabric.changes,
            slim=self.laid.narrow,
        )  # fmt: skip
        if self.n_entered == self.entered.size:         # nothing about it will change
            self.known_bound = found
        return found

    def released(self) -> Floats:
        """When the source of each transfer lets it go, [transfers]."""
        at = self.entered[self.transfers.src]
        at += self.transfers.release
        return at

    @cached_property
    def least(self) -> float:
        """Seconds that it takes at least, were all GPUs in at once."""
        _, earliest = chained(self.transfers, self.routes.latency, self.transfers.release)
        return busiest_link_end(self.fabric.capacity, self.routes, self.transfers.nbytes, earliest)[0]

    def link_bytes(self) -> Floats:
        """Bytes on each link, [links]."""
        return link_bytes(self.routes, self.transfers.nbytes, self.fabric.capacity.size)


def _open(fabric: Fluid | Bound, transfers: Transfers, arrived: list[Notice], done: list[Notice]) -> Exchange:
    n, laid = fabric.cluster.n_gpus, fabric.known.of(transfers)
    routes = laid.routes
    if transfers.after.size and routes.latency.any():
        latency, _ = chained(transfers, routes.latency, transfers.release)
        routes = Routes(start=routes.start, links=routes.links, weights=routes.weights, latency=latency)
    return Exchange(
        transfers=transfers,
        routes=routes,
        laid=laid,
        fabric=fabric,
        entered=np.full(n, np.nan),
        arrived=arrived,
        done=done,
        start=(unknown := np.broadcast_to(np.nan, transfers.n)),        # not written to
        finish=unknown,
    )


class Bound:
    """All GPUs leave together, when the busiest link could be through. Exchanges in progress do not contend."""

    hop_latency: Floats | None = None
    resolution = 0.0

    def __init__(self, env: simpy.Environment, cluster: Cluster, changes: Changes | None = None) -> None:
        self.env, self.cluster, self.capacity, self.solves, self.changes = env, cluster, cluster.capacity, 0, changes
        self.known, self._n_gpus = KnownRoutes(cluster), cluster.n_gpus

    def exchange(self, transfers: Transfers) -> Exchange:
        leave = [Notice(self.env)] * self.cluster.n_gpus        # one event for all
        return _open(self, transfers, leave, leave)

    def arrive(self, exchange: Exchange, me: int) -> None:
        if exchange.n_entered < self._n_gpus:
            return
        exchange.start = exchange.released()
        end = max(exchange.bound(exchange.start)[0], float(self.env.now))
        if exchange.transfers.least is not None:
            end = max(end, float((exchange.entered + exchange.transfers.least).max()))
        exchange.finish = np.full(exchange.transfers.n, end)
        self.solves += 1
        exchange.arrived[me].succeed_after(end - self.env.now)


class Fluid:
    """All exchanges in progress share all links, with per-GPU finish times; how, says the solver (`sharing`: max-min, exact).

    Flow completions are walked inside the solver; the event loop sees arrivals and ranks that are through. The solver
    never runs past the next event of the loop, because that event may bring new flows.
    """

    hop_latency: Floats | None = None       # [links] where a hop's latency passes at the hop, and not all of them at the end

    def __init__(
        self, env: simpy.Environment, cluster: Cluster, solver: Solver = sharing, state: Any = None, resolution: float = 0.0,
        changes: Changes | None = None,
    ) -> None:
        self.env, self.cluster, self.capacity, self.solves = env, cluster, cluster.capacity, 0
        self.resolution, self.changes, self.known = resolution, changes, KnownRoutes(cluster)
        self._solver = solver
        self._state: Any = sharing.empty(self.capacity, changes) if state is None else state
        self._idle = never_full_between_any(cluster) if solver in (sharing, coarse) and changes is None else None
        self._exchanges: list[Exchange] = []            # those in the solver, in the order of their counters
        self._of = np.zeros(0, np.int64)                # [flows] place in that list of each flow of the solver
        self._row = np.zeros(0, np.int64)               # [flows] its row in that exchange
        self._following = np.inf                        # when the solver goes on, unless flows come before
        self._read_counters()
        self._arrivals: list[tuple[Exchange, int]] = []
        self._pending: list[float] = []                 # heap: when the events of the loop fire after which `_wake` is called

    def exchange(self, transfers: Transfers) -> Exchange:
        arrived, done = ([Notice(self.env) for _ in range(self.cluster.n_gpus)] for _ in range(2))
        opened = _open(self, transfers, arrived, done)
        opened.start, opened.finish = (np.full(transfers.n, np.nan) for _ in range(2))
        return opened

    def arrive(self, exchange: Exchange, me: int) -> None:
        if not self._arrivals:
            self._fire(Notice(self.env), self.env.now)
        self._arrivals.append((exchange, me))

    def _fire(self, event: Notice, time: float) -> None:
        """Let `event` happen at `time`, and look at the network once all that waits for it has had its turn."""
        now = self.env.now
        delay = max(0.0, time - now)
        heapq.heappush(self._pending, now + delay)
        event.call_last(self._wake)
        event.succeed_after(delay)

    def _wake(self, _: simpy.Event) -> None:
        heapq.heappop(self._pending)
        if self._pending and self._pending[0] <= self.env.now:          # another look follows at this instant
            return
        flows_come = bool(self._arrivals)
        if flows_come:
            self._admit()
        if flows_come or self._following <= self.env.peek():            # else the solver has nothing to play before that
            self._run_ahead()
        if self._following < (self._pending[0] if self._pending else np.inf):
            self._fire(Notice(self.env), self._following)

    def _admit(self) -> None:
        """Put the flows of the GPUs that have arrived into the solver; one look at the whole crowd of an instant."""
        arrivals, self._arrivals = self._arrivals, []
        for exchange in dict.fromkeys(exchange for exchange, _ in arrivals):
            if exchange.base < 0:
                self._add(exchange)
            crowd = [me for other, me in arrivals if other is exchange]
            rows = exchange.rows_of(crowd)
            self._solver.enter(self._state, exchange.flows[rows], self.env.now + exchange.transfers.release[rows])
            for me in crowd:
                self._tell(exchange, me)

    def _run_ahead(self) -> None:
        """Play the solver up to the next event of the loop."""
        n = self.cluster.n_gpus
        while True:
            self._following = self._solver.run(self._state, self.env.peek())
            ended = self._solver.take_ended(self._state)
            if not ended.size:
                return
            for counter in ended.tolist():
                exchange = self._exchanges[counter // (2 * n)]
                exchange.open_counters -= 1
                if exchange.open_counters == 0:
                    self._harvest(exchange)
                    self._set_resolution()
                self._tell(exchange, counter % n)

    def _read_counters(self) -> None:
        """One field of one record at a time is slow to read; these are the same numbers, and the solver's state has new ones."""
        self._waiting, self._last = self._state.counters["waiting"], self._state.counters["last"]

    def _tell(self, exchange: Exchange, me: int) -> None:
        """Have fired, in time, what GPU `me` waits for in an exchange: inbound complete, and outbound too."""
        inbox, outbox = exchange.base + me, exchange.base + self.cluster.n_gpus + me
        if self._waiting.item(inbox):
            return
        may = exchange.go_on(me)
        if may != may:                                          # NaN: not in yet
            return
        earliest = max(self.env.now, may, self._last.item(inbox))
        if exchange.told[me] == 0:
            exchange.told[me] = 1
            self._fire(exchange.arrived[me], earliest)
        if exchange.told[me] == 1 and not self._waiting.item(outbox):
            exchange.told[me] = 2
            self._fire(exchange.done[me], max(earliest, self._last.item(outbox)))

    def _add(self, exchange: Exchange) -> None:
        """Bring an exchange into the solver, and let go of what is through."""
        n, transfers = self.cluster.n_gpus, exchange.transfers
        for other in self._exchanges:
            self._harvest(other)
        stay = [i for i, other in enumerate(self._exchanges) if other.open_counters or min(other.told) < 2]
        there = np.ones(self._of.size, bool)
        there[self._solver.drained(self._state)] = False
        flows = np.flatnonzero(there)
        counters = (np.array(stay, np.int64)[:, None] * 2 * n + np.arange(2 * n)).ravel()
        self._state = self._solver.keep(self._state, flows, counters)
        self._of, self._row = np.searchsorted(stay, self._of[flows]), self._row[flows]
        self._exchanges = [self._exchanges[i] for i in stay]
        for i, other in enumerate(self._exchanges):
            first, end = np.searchsorted(self._of, (i, i + 1))
            other.flows[self._row[first:end]] = np.arange(first, end)
        self._exchanges.append(exchange)
        for i, other in enumerate(self._exchanges):
            other.base = 2 * n * i
        ways = exchange.routes if self._idle is None else without(exchange.routes, self._idle)
        self._state = self._solver.extend(
            self._state, ways, transfers, inbox=exchange.base + transfers.dst,
            outbox=exchange.base + n + transfers.src, n_counters=exchange.base + 2 * n,
        )  # fmt: skip
        ends = transfers.dst, transfers.src
        exchange.open_counters = sum(int(np.count_nonzero(np.bincount(gpus, minlength=n))) for gpus in ends)
        self._read_counters()
        exchange.flows = np.arange(flows.size, flows.size + transfers.n)
        self._of = np.concatenate((self._of, np.full(transfers.n, len(self._exchanges) - 1)))
        self._row = np.concatenate((self._row, np.arange(transfers.n)))
        self._set_resolution()

    def _set_resolution(self) -> None:
        """Steps are a share of the shortest exchange that goes on."""
        lasting = [exchange.least for exchange in self._exchanges if exchange.open_counters]
        if self.resolution > 0 and lasting:
            coarse.set_resolution(self._state, self.resolution, min(lasting))

    def _harvest(self, exchange: Exchange) -> None:
        """Write down when the flows of an exchange that have drained began and ended."""
        through = self._solver.drained(self._state)
        through = through[self._of[through] == self._exchanges.index(exchange)]
        flows, rows = self._state.flows, self._row[through]
        exchange.start[rows] = flows["start"][through]
        exchange.finish[rows] = flows["drain"][through] + flows["latency"][through]
        self.solves = self._solver.solves(self._state)


def bound(env: simpy.Environment, cluster: Cluster, *, changes: Sequence[Mapping[str, Any]] = ()) -> Bound:
    """The release-date bound of the busiest link; every GPU leaves then, and exchanges do not contend. For wide sweeps.

    Args:
        changes: see `changes.read_changes`.
    """
    return Bound(env, cluster, read_changes(cluster, changes))


def fluid(
    env: simpy.Environment, cluster: Cluster, *, resolution: float = 0.0, changes: Sequence[Mapping[str, Any]] = ()
) -> Fluid:
    """Max-min fair sharing with per-GPU finish times.

    Args:
        resolution: 0 is exact; else rates are agreed on at most once in `resolution` x the least time of the exchange.
        changes: see `changes.read_changes`.

    Raises:
        InputError: a resolution that is not from 0 to 1, a change that cannot be.
    """
    check_resolution(resolution)
    to_come = read_changes(cluster, changes)
    if resolution > 0:
        return Fluid(env, cluster, coarse, coarse.empty(cluster.capacity, to_come), resolution, to_come)
    return Fluid(env, cluster, changes=to_come)


def packet(
    env: simpy.Environment, cluster: Cluster, *, chunk: str | float = packets.CHUNK, queue: str = "round_robin",
    changes: Sequence[Mapping[str, Any]] = (),
) -> Fluid:  # fmt: skip
    """Store and forward of packets of `chunk` bytes under credits; a queue per flow and link served in turn, or `queue` "fifo".

    For small cases, and to check the fluid network, which it approaches as chunks shrink; fifo shows head-of-line blocking.

    Args:
        changes: see `changes.read_changes`.

    Raises:
        InputError: a chunk that is not above 0, another queue, a change that cannot be; once it plays: too many packets.
    """
    to_come = read_changes(cluster, changes)
    state = packets.empty(cluster.capacity, cluster.latency, chunk, queue, cluster.n_wires, to_come)
    fabric = Fluid(env, cluster, packets, state, changes=to_come)
    fabric.hop_latency = cluster.latency
    return fabric
