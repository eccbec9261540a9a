"""A forward pass in which computing and exchanges overlap: a schedule, played, and told layer by layer as `gpu.play` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np

from clustersim.cluster import Cluster
from clustersim.engine.exchanged import Exchanged
from clustersim.engine.gpu import PARTS, Played, Slice
from clustersim.engine.program import COMPUTE, Op, Ran, Work, exposed, play_program
from clustersim.engine.schedules import Schedule
from clustersim.network.fabric import Bound, Exchange, Fluid
from clustersim.types import Floats

_COLUMN = {
    "send": "dispatch_s", "take": "dispatch_s", "back": "combine_s", "home": "combine_s", "enter": "attention_s",
    "attention": "attention_s", "expert": "expert_s", "other": "other_s", "shared": "other_s",
}  # fmt: skip
_NAMES = {
    "send": "dispatch", "take": "dispatch", "back": "combine", "home": "combine",
    "enter": "into attention", "attention": "attention", "expert": "experts", "other": "shared experts",
    "shared": "shared experts",
}  # fmt: skip


def play_overlapped(
    cluster: Cluster,
    network: Callable[..., Fluid | Bound],
    n_layers: int,
    schedule: Schedule,
    work_of: Callable[[int, int], Work],
    progress: Callable[[int], None] = lambda layer: None,
    watch: Callable[[int, Exchange, Exchange], None] = lambda layer, dispatch, combine: None,
) -> Played:
    """Run one forward pass on all GPUs.

    A layer's time is that of all its cuts; `dispatch_s` and `combine_s` are what the compute stream stood still for them, and
    `wait_s` is the communication stream's.

    Args:
        work_of: the work of a layer and cut, with the parts `enter`, `attention`, `expert`, `other`, `shared`, `dispatch`,
            `combine` that the schedule has; asked once.
        progress, watch: as in `gpu.play`; `watch` sees the exchanges of every cut by themselves.
    """
    ops, sent = schedule.ops, {}
    layer_ends = {op.layer: i for i, op in enumerate(ops)}

    def show(i: int, exchange: Exchange) -> None:
        key = ops[i].layer, ops[i].batch
        if ops[i].part == "dispatch":
            sent[key] = exchange
        else:
            watch(key[0], sent.pop(key), exchange)

    through = iter(sorted(layer_ends.values()))
    due = [next(through, None)]

    def passed(done: int) -> None:
        while due[0] is not None and done > due[0]:
            progress(ops[due[0]].layer)
            due[0] = next(through, None)

    taken: dict[str, Floats] = {}

    def noted(layer: int, cut: int) -> Work:
        work = work_of(layer, cut)
        for part, seconds in work.sent.items():
            column = _COLUMN[part]
            taken.setdefault(column, np.zeros((n_layers, cluster.n_gpus)))[layer] += seconds
        return work

    ran = play_program(cluster, network, ops, noted, passed, show)
    parts = _parts(ops, ran, n_layers)
    total = np.sum([part.sum(axis=0) for part in parts.values()], axis=0)
    parts["idle_s"][-1] = np.maximum(0.0, ran.step_s - total)
    return Played(
        marks=_marks(ops, ran, n_layers), exchanges=_by_layer(ops, ran, n_layers), step_s=ran.step_s, solves=ran.solves,
        events=ran.events, own_parts=parts, own_slices=tuple(_slices(ops, ran)), sent=taken,
    )  # fmt: skip


def _parts(ops: Sequence[Op], ran: Ran, n_layers: int) -> dict[str, Floats]:
    """The columns of a GPU's time, [layers, gpus] each: what it computes, and what it stands still for."""
    parts = {name: np.zeros((n_layers, ran.start.shape[1])) for name in PARTS}
    waits = exposed(ops, ran)
    for i, op in enumerate(ops):
        if op.stream == COMPUTE:
            parts[_COLUMN[op.part]][op.layer] += ran.end[i] - ran.start[i]
            parts["idle_s"][op.layer] += waits[i]
        else:
            parts[f"{op.part}_s"][op.layer] += waits[i]
    return parts


def _marks(ops: Sequence[Op], ran: Ran, n_layers: int) -> Floats:
    """[layers, 6, gpus] when the first cut began a layer, and when the last one was through with each part of it."""
    marks = np.full((n_layers, 6, ran.start.shape[1]), np.nan)
    order = {
        "enter": 1, "attention": 1, "send": 2, "take": 2, "dispatch": 2, "expert": 3, "combine": 4, "back": 4, "home": 4,
        "other": 5, "shared": 5,
    }  # fmt: skip
    for i, op in enumerate(ops):
        mark, at = marks[op.layer], order[op.part]
        mark[0] = np.fmin(mark[0], ran.start[i])
        mark[at] = np.fmax(mark[at], ran.end[i])
    for at in range(1, 6):                          # a part that a layer does not have ends with the one before
        marks[:, at] = np.fmax(marks[:, at], marks[:, at - 1])
    return marks


def _by_layer(ops: Sequence[Op], ran: Ran, n_layers: int) -> list[tuple[Exchanged, Exchanged] | None]:
    of: dict[tuple[int, str], list[Exchanged]] = {}
    for i, exchanged in ran.exchanges.items():
        of.setdefault((ops[i].layer, ops[i].part), []).append(exchanged)
    return [
        (_together(of[layer, "dispatch"]), _together(of[layer, "combine"])) if (layer, "dispatch") in of else None
        for layer in range(n_layers)
    ]


def _together(several: Sequence[Exchanged]) -> Exchanged:
    """The sums of several exchanges of one kind."""
    return Exchanged(**{field.name: sum(getattr(one, field.name) for one in several) for field in fields(Exchanged)})


def _slices(ops: Sequence[Op], ran: Ran) -> list[Slice]:
    """What the compute stream did, and stood still for, in order."""
    slices = []
    before = np.zeros(ran.start.shape[1])
    for i, op in enumerate(ops):
        if op.stream == COMPUTE:
            if op.after:
                slices.append(Slice(layer=op.layer, name=f"stalled by {ops[op.after[-1]].part}", begin=before, end=ran.start[i]))
            slices.append(Slice(layer=op.layer, name=_NAMES[op.part], begin=ran.start[i], end=ran.end[i]))
            before = ran.end[i]
    return slices
