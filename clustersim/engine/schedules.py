"""Orders of a forward pass on two streams: plain functions from a model's layers to a program. They time and play nothing.

`order(moe, *, shared, options) -> Schedule`; `moe` says of every layer whether it has routed experts. `shared`: what every token
passes beside the routed experts runs `after` the combine, or `hidden` behind the dispatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clustersim.engine.program import COMMUNICATE, COMPUTE, Op
from clustersim.pick import did_you_mean
from clustersim.types import InputError

__all__ = ["chunked", "in_order", "staggered", "two_batch"]

SHARED = ("after", "hidden")
STAGES, BEHIND = 5, 2       # of a layer, and how many the second half is behind


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Schedule:
    """A program, and into what the tokens of a GPU are cut for it.

    An operation's `batch` is a cut. What a GPU does with its own tokens belongs to the first cut of its batch.
    """

    ops: tuple[Op, ...]
    batches: int = 1                    # of which each passes the whole model
    chunks: int = 1                     # of a batch, in dispatch, experts and combine alone
    shared: str = "after"
    kernels: bool = False               # what kernels of an exchange compute is an operation of its own
    enters: bool = False                # what stands before scores, states or scans is an operation of its own
    spares: bool = False                # GEMMs leave the SMs of an exchange alone from the beginning to the end

    @property
    def cuts(self) -> int:
        return self.batches * self.chunks

    @property
    def plain(self) -> bool:
        """Whether nothing runs beside anything."""
        return self.cuts == 1 and self.shared == "after"


def in_order(moe: Sequence[bool], *, shared: str = "after") -> Schedule:
    """One thing after the other, layer by layer; computing stands still for every exchange."""
    return _schedule(moe, 1, 1, shared)


def two_batch(moe: Sequence[bool], *, shared: str = "after") -> Schedule:
    """Two halves of the batch, each computing while the other exchanges: attention 0, 1, experts 0, 1, of layer after layer.

    As DeepSeek-V3 prefills and decodes (arXiv 2412.19437 §3.4), SGLang's two-batch overlap and vLLM's dual batch overlap.
    """
    return replace(_schedule(moe, 2, 1, shared), spares=True)


def chunked(moe: Sequence[bool], *, chunks: int = 4, shared: str = "after") -> Schedule:
    """The tokens of a layer's exchanges in pieces: all dispatches one after the other, experts as they arrive, then combines.

    As Tutel (arXiv 2206.03382 §4.2, degree of overlap).
    """
    if isinstance(chunks, bool) or chunks < 1:
        raise InputError(f"schedule.chunks={chunks}: must be a whole number from 1 up")
    return _schedule(moe, 1, chunks, shared)


def staggered(moe: Sequence[bool], *, shared: str = "hidden") -> Schedule:
    """Two halves of the batch, one of them two stages behind: a dispatch has the other's way into attention beside it (and shared
    experts), a combine the other's attention itself.

    Stages of a layer: into attention (`enter`); attention and router; dispatch, with shared experts; experts and combine; what is
    left. A half waits for its exchange where the stage after it begins, and meanwhile nobody computes. As SGLang and DeepSeek
    decode (sgl-project/sglang, srt/batch_overlap/operations_strategy.py, `tbo_delta_stages=2`).
    """
    _check_shared(shared)
    ops: list[Op] = []
    last: dict[tuple[int, int, str], int] = {}

    def add(stream: int, part: str, layer: int, batch: int, *after: str) -> None:
        places = {last[layer, batch, one] for one in after}
        if stream == COMMUNICATE:           # sent off in its turn: not before what stands before it is computed
            places.add(max(i for i, op in enumerate(ops) if op.stream == COMPUTE))
        last[layer, batch, part] = len(ops)
        ops.append(Op(stream=stream, part=part, layer=layer, batch=batch, after=tuple(sorted(places))))

    def stage(layer: int, number: int, batch: int) -> None:
        exchanged = moe[layer]
        if number == 0:
            add(COMPUTE, "enter", layer, batch)
        elif number == 1:
            add(COMPUTE, "attention", layer, batch)
        elif number == 2 and exchanged:
            add(COMMUNICATE, "dispatch", layer, batch, "attention")
            if shared == "hidden":
                add(COMPUTE, "shared", layer, batch)
        elif number == 3 and exchanged:
            add(COMPUTE, "expert", layer, batch, "dispatch")
            add(COMMUNICATE, "combine", layer, batch, "expert")
        elif number == 4:
            add(COMPUTE, "other", layer, batch, *(["combine"] if exchanged else []))

    stages = [(layer, number) for layer in range(len(moe)) for number in range(STAGES)]
    for at in range(len(stages) + BEHIND):
        for batch, place in enumerate((at, at - BEHIND)):
            if 0 <= place < len(stages):
                stage(*stages[place], batch)
    return Schedule(ops=tuple(ops), batches=2, shared=shared, enters=True)


def with_kernels(schedule: Schedule) -> Schedule:
    """The schedule with what an exchange's kernels keep all SMs busy for, as computing of its own: `send` and `back` beside the
    exchange from its beginning on, `take` and `home` when its last byte has come, before what waits for it."""
    beside, behind = {"dispatch": "send", "combine": "back"}, {"dispatch": "take", "combine": "home"}
    sends: dict[int, list[int]] = {}                    # place of what an exchange follows -> exchanges
    for i, op in enumerate(schedule.ops):
        if op.stream == COMMUNICATE:
            sends.setdefault(max(op.after), []).append(i)
    ops: list[Op] = []
    place: dict[int, int] = {}

    def put(op: Op, after: Sequence[int]) -> None:
        ops.append(replace(op, after=tuple(sorted(after))))

    for i, op in enumerate(schedule.ops):
        after = [place[one] for one in op.after]
        if op.stream == COMPUTE:
            for one in op.after:
                if schedule.ops[one].stream == COMMUNICATE:
                    taken = schedule.ops[one]
                    put(replace(taken, stream=COMPUTE, part=behind[taken.part]), [place[one]])
        place[i] = len(ops)
        put(op, after)
        for one in sends.get(i, ()):
            sent = schedule.ops[one]
            put(replace(sent, stream=COMPUTE, part=beside[sent.part]), [place[other] for other in sent.after])
    return replace(schedule, ops=tuple(ops), kernels=True)


def _check_shared(shared: str) -> None:
    if shared not in SHARED:
        raise InputError(f"schedule.shared={shared}: must be after or hidden{did_you_mean(str(shared), SHARED)}")


def _schedule(moe: Sequence[bool], batches: int, chunks: int, shared: str) -> Schedule:
    _check_shared(shared)
    ops: list[Op] = []
    left: list[tuple[int, ...]] = [()] * batches                # places of what a layer leaves for after its combine

    def add(stream: int, part: str, layer: int, cut: int, *after: int) -> int:
        ops.append(Op(stream=stream, part=part, layer=layer, batch=cut, after=after))
        return len(ops) - 1

    def finish(batch: int, layer: int) -> None:
        if left[batch]:
            add(COMPUTE, "other", layer, batch * chunks, *left[batch])
            left[batch] = ()

    for layer, exchanged in enumerate(moe):
        mixed = []
        for batch in range(batches):
            finish(batch, layer - 1)
            mixed.append(add(COMPUTE, "attention", layer, batch * chunks))
            if not exchanged:
                add(COMPUTE, "other", layer, batch * chunks)
            elif shared == "hidden":
                add(COMPUTE, "shared", layer, batch * chunks)
        if exchanged:
            cuts = range(batches * chunks)
            sent = [add(COMMUNICATE, "dispatch", layer, cut, mixed[cut // chunks]) for cut in cuts]
            done = [add(COMPUTE, "expert", layer, cut, sent[cut]) for cut in cuts]
            home = [add(COMMUNICATE, "combine", layer, cut, done[cut]) for cut in cuts]
            left = [tuple(home[batch * chunks : (batch + 1) * chunks]) for batch in range(batches)]
    for batch in range(batches):
        finish(batch, len(moe) - 1)
    return Schedule(ops=tuple(ops), batches=batches, chunks=chunks, shared=shared)
