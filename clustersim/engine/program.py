"""What every GPU does, as a list of operations on two streams, and how they are played on the event loop. Makes no work itself.

A GPU has a compute stream and a communication stream. Each takes its operations in the order of the list; an operation begins
when the one before it on its stream is over and those that it names in `after` are. An exchange is a rendezvous: a GPU enters it,
what waits for it goes on when its last inbound byte has arrived, and the communication stream is free when its last outbound
byte has left too. There is no barrier: who waits for whom follows from the transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import simpy

from clustersim.cluster import Cluster
from clustersim.engine.exchanged import Exchanged, account
from clustersim.network.fabric import Bound, Exchange, Fluid
from clustersim.types import Floats, Transfers

COMPUTE, COMMUNICATE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation, the same on every GPU; how long it takes or what it sends is in the work of its layer and micro-batch."""

    stream: int                         # COMPUTE | COMMUNICATE
    part: str                           # key of `Work.seconds` or `Work.transfers`
    layer: int
    batch: int = 0                      # micro-batch
    after: tuple[int, ...] = ()         # places in the list of what must be over before, earlier in it


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Work:
    """What there is to do in one layer of one micro-batch."""

    seconds: Mapping[str, Floats]                                   # [gpus] of what computes
    transfers: Mapping[str, Transfers]                              # of what exchanges
    beside: Mapping[str, Floats] = field(default_factory=dict)      # [gpus] where it differs while an exchange holds SMs
    sent: Mapping[str, Floats] = field(default_factory=dict)        # [gpus] of `seconds` what collectives take


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Ran:
    """A program as it happened, in seconds from its start; rows are operations, columns GPUs."""

    start: Floats                       # [ops, gpus] computing began; the exchange was entered
    end: Floats                         # [ops, gpus] computing ended; the last inbound byte arrived
    free: Floats                        # [ops, gpus] the stream was free for the next operation
    exchanges: Mapping[int, Exchanged]  # of every operation that exchanges
    step_s: float                       # when the last GPU was through
    solves: int                         # rate computations of the network
    events: int                         # events of the loop
    beside: tuple[float, ...] = ()      # when each of what was on its way beside it had arrived


def play_program(
    cluster: Cluster,
    network: Callable[..., Fluid | Bound],
    ops: Sequence[Op],
    work_of: Callable[[int, int], Work],
    progress: Callable[[int], None] = lambda done: None,
    watch: Callable[[int, Exchange], None] = lambda op, exchange: None,
    beside: Sequence[Sequence[Transfers]] = (),
) -> Ran:
    """Play a program on all GPUs.

    Args:
        network: `network(env, cluster)` gives the network.
        ops: in the order in which every GPU takes them, each stream its own.
        work_of: the work of a layer and micro-batch; asked once, when the first GPU gets there, and kept until the last leaves.
        progress: told how many operations the last GPU has left.
        watch: shown an exchange, by its place in `ops`, before it is forgotten.
        beside: lists of what is on its way over the same links from the start on, one after the other; no stream waits for it.
    """
    env = simpy.Environment()
    player = _Player(env, cluster, network(env, cluster), ops, work_of, progress, watch)
    over = [0.0] * len(beside)
    for place, each in enumerate(beside):
        env.process(_in_turn(player.network, each, cluster.n_gpus, over, place))
    for me in range(cluster.n_gpus):
        env.process(player.computing(me))
        env.process(player.communicating(me))
    events = 0
    while env.peek() < np.inf:
        env.step()
        events += 1
    assert not np.isnan(player.free).any(), "a GPU never came to the end: it waits for bytes that nobody sends"
    assert (player.end >= player.start).all(), "time ran backwards"
    return Ran(
        start=player.start, end=player.end, free=player.free, exchanges=player.accounts, solves=player.network.solves,
        step_s=float(player.free.max(initial=0.0)), events=events,
        beside=tuple(over),
    )  # fmt: skip


def _in_turn(
    network: Fluid | Bound, beside: Sequence[Transfers], n_gpus: int, over: list[float], place: int
) -> Generator[simpy.Event, Any, None]:
    """Exchanges that all GPUs enter together, each when the one before is over; when the last one is stands in over[place]."""
    for transfers in beside:
        exchange = network.exchange(transfers)
        for me in range(n_gpus):
            exchange.enter(me)
        for me in range(n_gpus):
            if not exchange.done[me].processed:
                yield exchange.done[me]
        over[place] = float(exchange.finish.max(initial=over[place]))


def exposed(ops: Sequence[Op], ran: Ran) -> Floats:
    """float [ops, gpus]: how long the compute stream stood still for each operation; what it computes itself is 0.

    A gap before an operation is put down to that of `after` which ended last; on the last operation of all follows what the
    communication stream still has to do.
    """
    waits = np.zeros_like(ran.start)
    gpus = np.arange(ran.start.shape[1])
    through = np.zeros(gpus.size)
    for i, op in enumerate(ops):
        if op.stream == COMPUTE:
            gap = ran.start[i] - through
            through = ran.end[i]
            if op.after and gap.any():
                last = np.array(op.after)[np.argmax(ran.end[list(op.after)], axis=0)]
                waits[last, gpus] += gap
    last = np.argmax(ran.end, axis=0)
    waits[last, gpus] += np.maximum(0.0, ran.end.max(axis=0) - through)
    return waits


class _Player:
    """What the GPUs share: the network, the work in progress, and when what was over."""

    def __init__(
        self, env: simpy.Environment, cluster: Cluster, network: Fluid | Bound, ops: Sequence[Op],
        work_of: Callable[[int, int], Work], progress: Callable[[int], None], watch: Callable[[int, Exchange], None],
    ) -> None:  # fmt: skip
        self.env, self.network, self.ops, self.n_gpus = env, network, ops, cluster.n_gpus
        self.start, self.end, self.free = (np.full((len(ops), cluster.n_gpus), np.nan) for _ in range(3))
        self.accounts: dict[int, Exchanged] = {}
        self._work_of, self._progress, self._watch = work_of, progress, watch
        self._streams = [[i for i, op in enumerate(ops) if op.stream == stream] for stream in (COMPUTE, COMMUNICATE)]
        self._work: dict[tuple[int, int], Work] = {}
        self._open: dict[int, Exchange] = {}
        self._left = [cluster.n_gpus] * len(ops)                        # GPUs that have still to leave an operation
        self._done = 0
        self._uses: dict[tuple[int, int], int] = {}
        for op in ops:
            self._uses[op.layer, op.batch] = self._uses.get((op.layer, op.batch), 0) + 1
        self._waiting: dict[tuple[int, int], simpy.Event] = {}          # somebody waits for this operation on this GPU
        self._holding = [False] * cluster.n_gpus                        # an exchange holds SMs of this GPU
        self._flips: list[simpy.Event | None] = [None] * cluster.n_gpus

    def computing(self, me: int) -> Generator[simpy.Event, Any, None]:
        """The compute stream of GPU `me`."""
        for i in self._streams[COMPUTE]:
            op = self.ops[i]
            yield from self._wait(op, me)
            work = self._work_for(op)
            self.start[i, me] = self.env.now
            beside = work.beside.get(op.part)
            if beside is None:
                yield self.env.timeout(work.seconds[op.part][me])
            else:
                yield from self._shared(work.seconds[op.part][me], beside[me], me)
            self.free[i, me] = self.env.now
            self._over(i, me)
            self._leave(i)

    def communicating(self, me: int) -> Generator[simpy.Event, Any, None]:
        """The communication stream of GPU `me`."""
        for i in self._streams[COMMUNICATE]:
            op = self.ops[i]
            yield from self._wait(op, me)
            if i not in self._open:
                self._open[i] = self.network.exchange(self._work_for(op).transfers[op.part])
            exchange = self._open[i]
            self.start[i, me] = self.env.now
            self._hold(me, True)
            arrived = exchange.enter(me)
            assert arrived.callbacks is not None
            arrived.callbacks.append(partial(self._arrived, i, me))
            yield exchange.done[me]
            self._hold(me, False)
            self.free[i, me] = self.env.now
            self._leave(i)

    def _wait(self, op: Op, me: int) -> Generator[simpy.Event, Any, None]:
        for other in op.after:
            if np.isnan(self.end[other, me]):
                event = self._waiting.get((other, me))
                if event is None:
                    event = self._waiting[other, me] = self.env.event()
                yield event

    def _arrived(self, i: int, me: int, _: simpy.Event) -> None:
        self._over(i, me)

    def _over(self, i: int, me: int) -> None:
        self.end[i, me] = self.env.now
        event = self._waiting.pop((i, me), None)
        if event is not None:
            event.succeed()

    def _shared(self, alone: float, beside: float, me: int) -> Generator[simpy.Event, Any, None]:
        """Compute at one speed while the communication stream is idle and at another while an exchange holds SMs."""
        share = 1.0                                 # still to do
        while share > 0:
            whole, begun = (beside if self._holding[me] else alone), self.env.now
            self._flips[me] = flip = self.env.event()
            yield self.env.timeout(share * whole) | flip
            if not flip.triggered:
                return
            share -= (self.env.now - begun) / whole if whole > 0 else 1.0

    def _hold(self, me: int, holding: bool) -> None:
        self._holding[me] = holding
        flip, self._flips[me] = self._flips[me], None
        if flip is not None:
            flip.succeed()

    def _work_for(self, op: Op) -> Work:
        key = op.layer, op.batch
        if key not in self._work:
            self._work[key] = self._work_of(*key)
        return self._work[key]

    def _leave(self, i: int) -> None:
        """The last GPU to leave puts out the light: an exchange is summed up, work that nobody needs is forgotten."""
        self._left[i] -= 1
        if self._left[i]:
            return
        op, exchange = self.ops[i], self._open.pop(i, None)
        if exchange is not None:
            self._watch(i, exchange)
            self.accounts[i] = account(exchange, self.end[i])
        key = op.layer, op.batch
        self._uses[key] -= 1
        if not self._uses[key]:
            self._work.pop(key, None)
        self._done += 1
        self._progress(self._done)
