"""GPUs as SimPy processes: what one does in a forward pass, and what is written down of it. Draws no random number.

A GPU has a compute stream and a communication stream. It enters an exchange when its compute is ready and its
communication stream is free; compute goes on when its last inbound byte has arrived, the communication stream is free
when its last outbound byte has left too. There is no barrier: who waits for whom follows from the transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from clustersim.cluster import Cluster
from clustersim.engine.exchanged import Exchanged, account
from clustersim.network.fabric import Bound, Exchange, Fluid
from clustersim.types import Floats, Transfers

BEGUN, ATTENDED, DISPATCHED, COMPUTED, COMBINED, ENDED = range(6)       # the marks of a GPU in a layer
PARTS = (                   # of a GPU's time; they sum to the step
    "attention_s", "dispatch_s", "expert_s", "combine_s", "other_s", "tensor_s", "idle_s",
)  # fmt: skip
SLICES = ("attention", "stalled by dispatch", "experts", "stalled by combine", "shared experts")    # between the marks


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LayerWork:
    """What the GPUs have to do in one layer. A dense layer has no exchanges: its FFN is `other_s`."""

    attention_s: Floats                 # [gpus] attention and router
    expert_s: Floats                    # [gpus] routed experts
    other_s: Floats                     # [gpus] shared experts or the dense FFN, after the routed experts
    dispatch: Transfers | None
    combine: Transfers | None
    sent: Mapping[str, Floats] = field(default_factory=dict)    # of `attention_s` and `other_s` what collectives take


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Slice:
    """One thing that the compute streams did, or stood still for. Seconds [gpus]."""

    layer: int
    name: str
    begin: Floats
    end: Floats


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Played:
    """A forward pass as it happened, in seconds from its start."""

    marks: Floats                       # [layers, 6, gpus] when each GPU passed BEGUN ... ENDED
    exchanges: list[tuple[Exchanged, Exchanged] | None]         # per layer dispatch and combine; None dense
    step_s: float                       # when the last GPU ended
    solves: int                         # rate computations of the network
    events: int                         # events of the loop
    background_s: float = 0.0           # when the last byte of what travelled beside the pass was there
    own_parts: Mapping[str, Floats] | None = None       # `parts` where the marks do not say it: things overlapped
    own_slices: tuple[Slice, ...] | None = None         # `slices`, the same
    sent: Mapping[str, Floats] | None = None            # of some parts what collectives of tensor groups take, [layers, gpus]

    def parts(self) -> Mapping[str, Floats]:
        """The compute stream's time by `PARTS`, [layers, gpus] each; they sum to the step for every GPU."""
        if self.own_parts is not None:
            return self._without_sent(self.own_parts)
        parts = dict(zip(PARTS, (self.marks[:, at + 1] - self.marks[:, at] for at in range(5)), strict=False))
        idle, none = (np.zeros((self.marks.shape[0], self.marks.shape[2])) for _ in range(2))
        idle[-1] = self.step_s - self.marks[-1, ENDED]          # at the end of the step, for the last GPU
        return self._without_sent(parts | {"tensor_s": none, "idle_s": idle})

    def _without_sent(self, parts: Mapping[str, Floats]) -> Mapping[str, Floats]:
        """Collectives as a part of their own; what is left of the others is not below 0 by rounding."""
        if not self.sent:
            return parts
        taken = {name: np.minimum(seconds, parts[name]) for name, seconds in self.sent.items()}
        apart = {name: parts[name] - seconds for name, seconds in taken.items()}
        return {**parts, **apart, "tensor_s": np.sum(list(taken.values()), axis=0)}

    def slices(self) -> tuple[Slice, ...]:
        """What the compute streams did one after the other."""
        if self.own_slices is not None:
            return self.own_slices
        return tuple(
            Slice(layer=layer, name=name, begin=mark[at], end=mark[at + 1])
            for layer, mark in enumerate(self.marks) for at, name in enumerate(SLICES)
        )  # fmt: skip


def play(
    cluster: Cluster,
    network: Callable[..., Fluid | Bound],
    n_layers: int,
    work_of: Callable[[int], LayerWork],
    progress: Callable[[int], None] = lambda layer: None,
    background: Transfers | None = None,
    watch: Callable[[int, Exchange, Exchange], None] = lambda layer, dispatch, combine: None,
) -> Played:
    """Run one forward pass on all GPUs.

    Args:
        network: `network(env, cluster)` gives the network.
        work_of: the work of a layer; asked once per layer, when the first GPU gets there.
        progress: told the number of each layer that the last GPU has left.
        background: what travels beside it from the beginning on; nobody waits for it, and it takes its share of the links.
        watch: shown the layer's exchanges before they are forgotten, with all times in them.
    """
    env = simpy.Environment()
    stage = _Stage(env, cluster, network(env, cluster), n_layers, work_of, progress, watch)
    beside = _set_off(cluster, stage.network, background)
    for me in range(cluster.n_gpus):
        env.process(_forward(env, stage, me))
    events = 0
    while env.peek() < np.inf:
        env.step()
        events += 1
    marks = np.array(stage.marks, np.float64)
    assert stage.left == [cluster.n_gpus] * n_layers, "a GPU never came to the end: it waits for bytes that nobody sends"
    assert (np.diff(marks, axis=1) >= 0).all(), "time ran backwards"
    return Played(
        marks=marks,
        exchanges=[stage.account_of.get(layer) for layer in range(n_layers)],
        step_s=float(marks[-1, ENDED].max()),
        solves=stage.network.solves,
        events=events,
        background_s=_last_finish(beside),
        sent={name: np.array(by_layer) for name, by_layer in stage.sent.items()},
    )


def time_alone(cluster: Cluster, network: Callable[..., Fluid | Bound], transfers: Transfers) -> float:
    """Seconds that transfers take when nothing else is on the links and all GPUs are in from the beginning."""
    env = simpy.Environment()
    exchange = _set_off(cluster, network(env, cluster), transfers)
    env.run()
    return _last_finish(exchange)


def _set_off(cluster: Cluster, network: Fluid | Bound, transfers: Transfers | None) -> Exchange | None:
    """All GPUs send what they have of these transfers, now."""
    if transfers is None or not transfers.n:
        return None
    exchange = network.exchange(transfers)
    for me in range(cluster.n_gpus):
        exchange.enter(me)
    return exchange


def _last_finish(exchange: Exchange | None) -> float:
    if exchange is None:
        return 0.0
    assert np.isfinite(exchange.finish).all(), "something that was sent never arrived"
    return float(exchange.finish.max())


def _forward(env: simpy.Environment, stage: _Stage, me: int) -> Generator[simpy.Event, Any, None]:
    """One forward pass on GPU `me`."""
    sending = env.event().succeed()                 # fires when the communication stream is free
    for layer in range(stage.n_layers):
        (attention_s, expert_s, other_s), mark = stage.seconds(layer, me), stage.marks[layer]
        mark[BEGUN][me] = env.now
        yield env.timeout(attention_s)
        mark[ATTENDED][me] = mark[DISPATCHED][me] = mark[COMPUTED][me] = mark[COMBINED][me] = env.now
        if (exchanges := stage.exchanges(layer)) is not None:
            dispatch, combine = exchanges
            if sending.callbacks is not None:           # what has happened needs no waiting for
                yield sending
            yield dispatch.enter(me)
            mark[DISPATCHED][me] = env.now
            yield env.timeout(expert_s)
            mark[COMPUTED][me] = env.now
            if dispatch.done[me].callbacks is not None:
                yield dispatch.done[me]
            yield combine.enter(me)
            mark[COMBINED][me] = env.now
            sending = combine.done[me]
        elif expert_s > 0:                              # experts that nothing is sent to: all GPUs have a part of each
            yield env.timeout(expert_s)
            mark[COMPUTED][me] = mark[COMBINED][me] = env.now
        if other_s > 0:
            yield env.timeout(other_s)
        mark[ENDED][me] = env.now
        stage.leave(layer)


class _Stage:
    """What the GPUs share: the network, the work of the layers in progress, and the marks."""

    def __init__(
        self, env: simpy.Environment, cluster: Cluster, network: Fluid | Bound, n_layers: int,
        work_of: Callable[[int], LayerWork], progress: Callable[[int], None], watch: Callable[[int, Exchange, Exchange], None],
    ) -> None:  # fmt: skip
        self.env, self.cluster, self.network, self.n_layers = env, cluster, network, n_layers
        # lists of plain numbers while the loop runs, which reads and writes them one by one
        self.marks = [[[np.nan] * cluster.n_gpus for _ in range(6)] for _ in range(n_layers)]
        self.account_of: dict[int, tuple[Exchanged, Exchanged]] = {}
        self._work_of, self._progress, self._watch = work_of, progress, watch
        self._seconds: dict[int, list[tuple[float, float, float]]] = {}
        self.sent: dict[str, list[Floats]] = {}         # what collectives take of a part, by layer
        self._open: dict[int, tuple[Exchange, Exchange] | None] = {}
        self.left = [0] * n_layers      # GPUs that are through with a layer

    def seconds(self, layer: int, me: int) -> tuple[float, float, float]:
        """How long a GPU computes attention, routed experts and the rest of a layer."""
        if layer not in self._seconds:
            work = self._work_of(layer)
            self._seconds[layer] = list(zip(*(s.tolist() for s in (work.attention_s, work.expert_s, work.other_s)), strict=True))
            self._open[layer] = None
            for name, seconds in work.sent.items():     # layers are begun in order, and of all the same parts are told
                self.sent.setdefault(name, []).append(seconds)
            if work.dispatch is not None:
                assert work.combine is not None
                self._open[layer] = self.network.exchange(work.dispatch), self.network.exchange(work.combine)
        return self._seconds[layer][me]

    def exchanges(self, layer: int) -> tuple[Exchange, Exchange] | None:
        """Dispatch and combine of a layer that has been begun; None where there are none."""
        return self._open[layer]

    def leave(self, layer: int) -> None:
        """The last GPU to leave a layer puts out the light: the exchanges are summed up and their flows forgotten."""
        self.left[layer] += 1
        if self.left[layer] < self.cluster.n_gpus:
            return
        del self._seconds[layer]
        if (exchanges := self._open.pop(layer)) is not None:
            dispatch, combine = exchanges
            self._watch(layer, dispatch, combine)
            resumed = (np.array(self.marks[layer][mark]) for mark in (DISPATCHED, COMBINED))
            self.account_of[layer] = account(dispatch, next(resumed)), account(combine, next(resumed))
        self._progress(layer)
