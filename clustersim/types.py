"""The values that pass from room to room. Data only: what acts on them lives in the rooms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
ScoreProcess = Callable[[int, int, int], Float32s]      # (layer, first, last) -> scores of tokens first to last - 1


class InputError(ValueError):
    """Something the user gave is wrong. The message is the one line they see: key or file, value, rule."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trace:
    """Router decisions of a model, one row per token; the in-memory form of `moetrace/1`.

    Rows stand in the order of the file: by step, rank, sequence, position.
    """

    expert_ids: NDArray[np.int16]               # [tokens, layers, top_k] logical expert; -1 no expert
    gate_weights: NDArray[np.float32] | None    # [tokens, layers, top_k], in slot order; None when not recorded
    step: Ints                                  # [tokens] forward pass
    rank: Ints                                  # [tokens] rank that owned the token when it was recorded
    seq: Ints                                   # [tokens] sequence
    pos: Ints                                   # [tokens] position in its sequence
    phase: NDArray[np.uint8]                    # [tokens] 0 prefill, 1 decode, 2 train, 3 encode
    n_experts: int                              # routed experts per layer
    domain: Mapping[int, str] = field(default_factory=dict)      # sequence -> domain
    scores: NDArray[np.float32] | None = None                    # [tokens, layers, experts], when recorded
    token_id: Ints | None = None                # [tokens] word of the vocabulary, when recorded
    flags: NDArray[np.uint8] | None = None      # [tokens] sum of 1 padding, 2 dropped, 4 cached prefix, 8 draft; when recorded
    meta: Mapping[str, Any] = field(default_factory=dict)        # the JSON under the footer key `moetrace`

    @property
    def n_tokens(self) -> int:
        return int(self.expert_ids.shape[0])

    @property
    def n_layers(self) -> int:
        return int(self.expert_ids.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.expert_ids.shape[2])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Choices:
    """What the router says of the tokens of one MoE layer.

    `scores(first, last)` makes the router's scores (before softmax or sigmoid) of tokens first to last - 1, the same
    whatever was asked before and in whatever pieces. Tokens beyond the pass are those of later passes.
    """

    ids: Ints                                   # [tokens, top_k] logical expert; -1 no expert
    weights: Floats | None                      # [tokens, top_k] gate weights; None when unknown
    scores: Callable[[int, int], Float32s] | None = None     # -> [tokens, experts]; None when only ids are known


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Workload:
    """The tokens of one forward pass, the GPU each starts on, and what the router says of them in every MoE layer.

    Tokens are ordered by source GPU. `choose(i)` gives the choices of the i-th MoE layer.
    """

    source: Ints                                # [tokens] GPU that holds the token before dispatch
    index: Ints                                 # [tokens] the token's place in its GPU's batch: 0, 1, 2, ...
    context: Ints                               # [tokens] tokens its attention looks at, itself included
    choose: Callable[[int], Choices]
    scores: ScoreProcess | None = None          # [tokens, experts and more columns] to choose anew from; None: ids only
    token_ids: Callable[[], Ints] | None = None     # -> [tokens] the word that each token is; None when unknown
    kept: Callable[[int, Ints], None] | None = None         # is told what of a layer [tokens, top_k] a capacity left
    measure: Callable[[], Mapping[str, float]] | None = None        # what a pass that was played to the end says of itself
    count: Callable[[int], Ints] | None = None  # in place of `choose`: [gpus, experts] choices of each expert by a GPU's tokens
    notes: tuple[str, ...] = ()                 # what a reader of the result has to know about the input
    period: int | None = None                   # choose(i + period) is choose(i); None: no two layers are the same


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Routing:
    """Who goes where in one layer, before and after the capacity rule. Dropped = asked >= 0 and assigned < 0."""

    asked: Ints                                 # [tokens, top_k] logical expert; -1 no expert (variable k)
    assigned: Ints                              # [tokens, top_k] `asked` where kept, another expert where rerouted, else -1
    weights: Floats | None                      # [tokens, top_k] gate weights as the combine applies them
    source: Ints                                # [tokens] GPU that holds the token
    index: Ints                                 # [tokens] place in its GPU's batch
    capacity: Ints | None                       # [pools, units] places that tokens of a pool (a source GPU, a group, all) have at
                                                # a unit (an expert, a GPU); None dropless
    padding: Ints | None = None                 # [gpus, slots] rows that a source GPU sends to a slot beside its tokens


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Placement:
    """Where the experts of one layer live. A slot holds one copy of one expert; a replica is one more slot."""

    gpu_of: Ints                                # [slots] GPU that holds the slot
    expert_of: Ints                             # [slots] logical expert in the slot
    replica: str = "token_hash"                 # the rule that picks one of an expert's slots: placement.replicas
    notes: tuple[str, ...] = ()                 # what a reader of the result has to know about how it was found

    @property
    def n_slots(self) -> int:
        return int(self.gpu_of.size)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Lanes:
    """What transfers take of virtual links beside wires: the copying of SMs, the issuing of messages. Rows as in `Routes`."""

    start: Ints                                 # [transfers + 1]
    lanes: Ints                                 # kind of lane * n_gpus + GPU; kinds in the order in which `equip` adds them
    weights: Floats                             # what a byte of the transfer takes of the lane


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Transfers:
    """What travels between GPUs in one exchange, one row per transfer; no clock and no routes yet.

    A transfer starts once its source has entered the exchange, `release` seconds later at the earliest. Where it
    follows others (`after`), it moves in pieces of `chunk` bytes, and a piece leaves only when the same fraction
    of every transfer it follows has landed: its first `chunk` bytes wait for the first chunk/nbytes of each,
    it then keeps at least one chunk behind, and it ends no earlier than the last of them plus its own last chunk.
    `chunk >= nbytes` is a barrier: all of them must have ended.
    """

    src: Ints                                   # [transfers] GPU
    dst: Ints                                   # [transfers] GPU, never the source itself
    nbytes: Floats                              # [transfers] bytes on the wire, > 0
    release: Floats                             # [transfers] seconds after the source entered
    chunk: Floats                               # [transfers] bytes of its own; only read where it follows others
    after_start: Ints                           # [transfers + 1] transfer i follows after[after_start[i]:after_start[i + 1]]
    after: Ints                                 # transfers, each with a smaller index than its follower
    by_nic: NDArray[np.bool_] | None = None     # [transfers] over NICs even inside a node; None: none
    lanes: Lanes | None = None                  # None: wires alone
    least: Floats | None = None                 # [gpus] seconds after entering before which a GPU does not go on; None: 0
    messages: Floats | None = None              # [transfers] messages it is sent in; None: nothing is known
    logical_bytes: float | None = None          # as benchmarks count: payload of every copy, those that stay at home included
    ways: Routes | None = None                  # in place of those of the machine; a source may be its own destination then

    @property
    def n(self) -> int:
        return int(self.src.size)


def independent(src: Ints, dst: Ints, nbytes: Floats) -> Transfers:
    """Transfers that follow no other one and may start at once."""
    return Transfers(
        src=src, dst=dst, nbytes=nbytes, release=np.zeros(src.size), chunk=nbytes,
        after_start=np.zeros(src.size + 1, dtype=np.int64), after=np.zeros(0, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Routes:
    """The links of many transfers, row i in links[start[i]:start[i + 1]]; weight is the share of its bytes on each."""

    start: Ints                                 # [transfers + 1]
    links: Ints
    weights: Floats
    latency: Floats                             # [transfers] seconds, summed over the hops


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TransferResult:
    """How long an exchange took. Times in seconds from 0."""

    finish: Floats                              # [gpus, gpus]; NaN where nothing was sent; a GPU to itself: its release
    makespan: float                             # 0 when nothing was sent
    link_bytes: Floats                          # [links], in the order of cluster.links
    solves: int                                 # how many times rates were recomputed; of `packet`: packets sent over links
    bound: float                                # release-date makespan of the busiest link: no schedule is faster
    upper_bound: float                          # max-min sharing is not slower: the most that the loads along one route add up to

    def __repr__(self) -> str:
        return f"TransferResult(makespan={self.makespan:.6g}, bound={self.bound:.6g}, solves={self.solves}, finish " \
            f"{list(self.finish.shape)}, link_bytes {list(self.link_bytes.shape)})"  # fmt: skip
