"""What a placement is worth: seconds of the busiest links and GPU, load, copies between nodes, moves. No search, no network.

Prices are plain arrays that somebody who knows the exchange and the links has made (`Price`); the load alone needs none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clustersim.placement.past import Past, Room
from clustersim.types import Floats, InputError, Ints, Placement

if TYPE_CHECKING:
    from clustersim.placement.kernel import Loads, Tokens

UNITS = ("choice", "gpu", "node")               # of what a token is sent one copy
RULES = ("token_hash", "nearest")               # the replica rules under which a move changes only the tokens of its experts
AT = ("mean", "p95", "p99", "max")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Price:
    """What a layer costs in seconds, copy by copy: the `bound` of dispatch and combine without latencies, and the roofline.

    With `unit` "choice" a copy goes out for every choice, with "gpu" one to every GPU that holds one of a token's experts,
    with "node" one to every node, to `forwarder`, and from there one to every such GPU.
    """

    unit: str                                   # one of UNITS
    route_start: Ints                           # [gpus * gpus + 1] the way from a to b is row a * gpus + b of the lists below
    route_links: Ints
    route_weights: Floats
    forwarder: Ints                             # [gpus, nodes] GPU that passes on what comes from each GPU to each node
    dispatch_s: Floats                          # [links] seconds that one copy takes the link, on its way to an expert
    combine_s: Floats                           # [links] and on its way home
    token_s: float                              # arithmetic of one token at one expert
    token_memory_s: float                       # memory traffic of its activations
    slot_memory_s: float                        # memory traffic of the weights of one slot that has tokens
    gpu_s: float = 0.0                          # what a GPU that has any takes besides


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a search makes small: a weighted sum of parts that are 1 or so where it starts.

    seconds: of a step, in those of the start. load: of the busiest GPU over the mean, all steps together. crossing: copies
    between nodes per token. migration: share of the slots whose expert has to come from another GPU.
    """

    seconds: float = 1.0
    load: float = 0.0
    crossing: float = 0.0
    migration: float = 0.0
    at: str = "mean"                            # of the steps' seconds: one of AT

    def __post_init__(self) -> None:
        for name in ("seconds", "load", "crossing", "migration"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"placement.{name}={getattr(self, name)}: must be a weight from 0 up")
        if not self.seconds + self.load + self.crossing + self.migration > 0:
            raise InputError("placement.seconds=0: all weights of the search are 0; one of seconds, load, crossing must be above")
        if self.at not in AT:
            raise InputError(f"placement.at={self.at}: must be one of {', '.join(AT)}")

    @property
    def quantile(self) -> float:
        """Of the steps; -1 stands for the mean."""
        return {"mean": -1.0, "p95": 0.95, "p99": 0.99, "max": 1.0}[self.at]

    def of(self, seconds: Floats) -> float:
        """One number for the seconds of the steps."""
        return float(seconds.mean() if self.quantile < 0 else np.quantile(seconds, self.quantile))


def tokens_of(past: Past, room: Room, start: Placement, goal: Goal, replica: str) -> Tokens:
    """The past under a placement as the kernel wants it, each token with its copies on the links.

    Raises:
        InputError: tokens are not known, or a replica rule under which a move changes more than its own tokens.
    """
    from clustersim.placement import kernel

    if past.asked is None or past.price is None:
        past.lacks_tokens("search")
    assert past.source is not None
    assert past.index is not None
    assert past.step is not None
    if replica not in RULES:
        raise InputError(f"placement.replica={replica}: a search for seconds knows the rules {' and '.join(RULES)} only")
    price, asked = past.price(), past.asked.astype(np.int32)
    n, k = asked.shape
    n_steps, n_links = past.load.shape[0], price.dispatch_s.size
    chosen = np.flatnonzero(asked.ravel() >= 0)
    by_expert = chosen[np.argsort(asked.ravel()[chosen], kind="stable")]
    first = np.concatenate(([0], np.cumsum(np.bincount(asked.ravel()[chosen], minlength=past.n_experts))))
    counts, members = members_of(start.expert_of, past.n_experts)
    most_moved = int(2 * np.sort(np.diff(first))[-3:].sum()) + 1
    state = kernel.Tokens(
        asked=asked, source=past.source.astype(np.int32), step=past.step.astype(np.int32),
        hashed=((past.index.astype(np.uint64) * np.uint64(2654435769)) & np.uint64(0xFFFFFFFF)).astype(np.int64),
        first=first.astype(np.int64), token_of=(by_expert // k).astype(np.int32), choice_of=(by_expert % k).astype(np.int32),
        node_of=room.node_of.astype(np.int32), route_start=price.route_start.astype(np.int64),
        route_links=price.route_links.astype(np.int32), route_weights=price.route_weights,
        forwarder=price.forwarder.astype(np.int32), dispatch_s=price.dispatch_s, combine_s=price.combine_s,
        rates=np.array([price.token_s, price.token_memory_s, price.slot_memory_s, price.gpu_s]),
        choice=np.array([UNITS.index(price.unit), RULES.index(replica)]),
        weights=np.array([goal.seconds, goal.load, goal.crossing, goal.migration, goal.quantile, 1.0]),
        held=_held(past.now, room.n_gpus, past.n_experts),
        expert_of=start.expert_of.copy(), gpu_of=start.gpu_of.copy(), replicas=counts, member=members,
        slot_at=np.full((n, k), -1, np.int32), gpu_at=np.full((n, k), -1, np.int32),
        slot_tokens=np.zeros((n_steps, start.n_slots), np.int64), gpu_tokens=np.zeros((n_steps, room.n_gpus)),
        dispatched=np.zeros((n_steps, n_links)), combined=np.zeros((n_steps, n_links)), crossing=np.zeros(1),
        log=np.zeros((most_moved, 4), np.int32), saved=np.zeros((n_steps, 2 * n_links + room.n_gpus)),
        seconds=np.zeros(n_steps), used=np.zeros(room.n_gpus), logged=np.zeros(1, np.int64),
    )  # fmt: skip
    for expert in range(past.n_experts):
        state.logged[0] = 0
        kernel.seat(state, expert)
    kernel.value_of(state)
    reference = goal.of(state.seconds)
    state.weights[5] = 1.0 / reference if reference > 0 else 1.0
    return state


def loads_of(past: Past, room: Room, start: Placement, goal: Goal) -> Loads:
    """The past's load under a placement as the kernel wants it; replicas share an expert's load equally."""
    from clustersim.placement import kernel

    counts, members = members_of(start.expert_of, past.n_experts)
    state = kernel.Loads(
        load=past.load / max(float(past.load.sum()) / (past.load.shape[0] * room.n_gpus), np.finfo(float).tiny),
        expert_of=start.expert_of.copy(), gpu_of=start.gpu_of.copy(), replicas=counts, member=members,
        gpu_load=np.zeros((past.load.shape[0], room.n_gpus)), weights=np.array([goal.migration, goal.quantile]),
        held=_held(past.now, room.n_gpus, past.n_experts), peaks=np.zeros(past.load.shape[0]),
    )  # fmt: skip
    kernel.share_all(state)
    return state


def members_of(expert_of: Ints, n_experts: int) -> tuple[Ints, Ints]:
    """Replicas int [experts] and their slots in rising order, padded with -1, int [experts, the most there can be]."""
    count = np.bincount(expert_of, minlength=n_experts)
    order = np.argsort(expert_of, kind="stable")
    member = np.full((n_experts, expert_of.size - n_experts + 1), -1, np.int64)
    place = np.arange(expert_of.size) - np.repeat(np.cumsum(count) - count, count)
    member[expert_of[order], place] = order
    return count, member


def _held(now: Placement | None, n_gpus: int, n_experts: int) -> Ints:
    """1 where a GPU has the expert's weights already, int [gpus, experts]; 1 everywhere when nothing is placed yet."""
    held = np.full((n_gpus, n_experts), 1 if now is None else 0, np.int64)
    if now is not None:
        held[now.gpu_of, now.expert_of] = 1
    return held
