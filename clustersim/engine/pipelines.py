"""Orders of work in a pipeline: plain functions that say what every device does after what. They time nothing.

`order(devices, micro_batches, virtual) -> Pipeline`. A micro-batch walks over `stages` forward and back; F is its forward
pass through a stage, B its whole backward pass; where that is split, I gives the gradient of the input and W that of the weights.
Two of a tuple run at the same time, one hiding the other's exchanges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clustersim.types import InputError

__all__ = ["combined", "dualpipe", "interleaved", "one_f_one_b", "zero_bubble", "zero_bubble_2p"]


@dataclass(frozen=True, slots=True)
class Task:
    """One pass of a micro-batch through a stage."""

    kind: str               # F | B | I | W
    stage: int              # of the model, from 0
    batch: int              # micro-batch


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pipeline:
    """What every device does, in order."""

    stages: int                                     # of the model
    tasks: tuple[tuple[tuple[Task, ...], ...], ...]     # [devices][in order] one task, or two that overlap
    held: tuple[tuple[int, ...], ...]               # [devices] stages whose weights it has


def one_f_one_b(devices: int, micro_batches: int, virtual: int = 1) -> Pipeline:
    """One forward, one backward (PipeDream-Flush, Narayanan et al. 2021): bubble (p - 1)(F + B)."""
    if virtual != 1:
        raise InputError(f"parallel.virtual={virtual}: one_f_one_b has one chunk per stage; use parallel.order=interleaved")
    tasks = []
    for device in range(devices):
        ahead = min(micro_batches, devices - 1 - device)
        tasks.append(_steady(
            [("F", device, i) for i in range(micro_batches)], [("B", device, i) for i in range(micro_batches)], ahead
        ))  # fmt: skip
    return Pipeline(stages=devices, tasks=tuple(tasks), held=tuple((d,) for d in range(devices)))


def interleaved(devices: int, micro_batches: int, virtual: int = 2) -> Pipeline:
    """Each device holds `virtual` chunks of layers (arXiv 2104.04473 §2.2): bubble (p - 1)(F + B) / virtual.

    F and B are of all chunks of a device together. Micro-batches go in groups of `devices` through one chunk after the other.
    """
    if micro_batches % devices:
        near = max(1, round(micro_batches / devices)) * devices
        raise InputError(
            f"parallel.order=interleaved: {micro_batches} micro-batches are no multiple of {devices} stages; "
            f"nearest that is: {near}"
        )
    tasks = []
    for device in range(devices):
        groups = range(0, micro_batches, devices)
        turns = [(chunk, first + i) for first in groups for chunk in range(virtual) for i in range(devices)]
        forward = [("F", chunk * devices + device, i) for chunk, i in turns]
        backward = [("B", (virtual - 1 - chunk) * devices + device, i) for chunk, i in turns]
        ahead = 2 * (devices - 1 - device) + (virtual - 1) * devices if virtual > 1 else devices - 1 - device
        tasks.append(_steady(forward, backward, min(ahead, len(forward))))
    held = tuple(tuple(chunk * devices + d for chunk in range(virtual)) for d in range(devices))
    return Pipeline(stages=devices * virtual, tasks=tuple(tasks), held=held)


def combined(devices: int, micro_batches: int, virtual: int = 2) -> Pipeline:
    """interleaved with each backward pass beside the forward pass that follows it: each hides the other's exchanges.

    Bubble as interleaved. Source: Megatron-LM, core/pipeline_parallel/combined_1f1b.py.
    """
    if devices > 1 and virtual < 2:         # a pair takes as long as both: a stage would wait for each on its way there and back
        raise InputError(f"parallel.virtual={virtual}: combined needs chunks to fill the wait for a pair; use virtual=2 or more")
    return _paired(interleaved(devices, micro_batches, virtual))


def zero_bubble(devices: int, micro_batches: int, virtual: int = 1) -> Pipeline:
    """ZB-H1 (arXiv 2401.10241): device d does the gradients of weights d micro-batches later.

    Bubble (p - 1)(F + I - W) where I >= W. Every device keeps what W needs of p micro-batches, one_f_one_b's first as many.
    """
    return _zero_bubble(devices, micro_batches, virtual, lambda device: devices - device, 1)


def zero_bubble_2p(devices: int, micro_batches: int, virtual: int = 1) -> Pipeline:
    """ZB-H2 (arXiv 2401.10241): as zero_bubble with up to twice the activations: bubble (p - 1)(F + I - 2W).

    It lies between a device's first and last task (`Flow.gaps_s`): the devices end one after the other as they began, which
    needs an optimiser that does not wait for all of them.
    """
    return _zero_bubble(devices, micro_batches, virtual, lambda device: 2 * (devices - device) - 1, 2)


def dualpipe(devices: int, micro_batches: int, virtual: int = 1) -> Pipeline:
    """DualPipe (arXiv 2412.19437 §3.2.1): micro-batches from both ends, each forward beside a backward pass of the other way.

    Bubble (p / 2 - 1)(F&B + B - 3W), where F&B is a forward and a backward pass that overlap, F = I and W <= F. Every device has
    two stages.
    Micro-batches below half of them go from the first device to the last, the others the other way.
    Source: the order of deepseek-ai/DualPipe, README and dualpipe.py.
    """
    if virtual != 1:
        raise InputError(f"parallel.virtual={virtual}: dualpipe has one chunk of layers per stage and way; use virtual=1")
    if devices % 2 or micro_batches % 2 or micro_batches < 2 * devices:
        what = f"{devices} stages, {micro_batches} micro-batches"
        least = 2 * devices if devices % 2 == 0 else 2 * devices + 2
        raise InputError(
            f"parallel.order=dualpipe: {what}: needs an even number of stages and of micro-batches, at least two per stage; "
            f"nearest that does: {max(least, micro_batches + micro_batches % 2)} micro-batches on "
            f"{devices + devices % 2} stages"
        )
    half, each = devices // 2, micro_batches // 2
    tasks = tuple(_both_ways(device, devices, half, each) for device in range(devices))
    return Pipeline(stages=devices, tasks=tasks, held=tuple((d, devices - 1 - d) for d in range(devices)))


def _both_ways(device: int, devices: int, half: int, each: int) -> tuple[tuple[Task, ...], ...]:
    """What a device of DualPipe does. Way 0 is the one in which it is nearer to the beginning."""
    near = min(device, devices - 1 - device)
    second = device >= half
    stage = (near, devices - 1 - near)                          # of the model, on this device, for either way
    first = (each, 0) if second else (0, each)                  # micro-batches of way 0 and 1
    count = {(kind, way): 0 for kind in "FB" for way in (0, 1)}
    tasks: list[tuple[Task, ...]] = []
    waiting: list[tuple[int, int]] = []                         # gradients of weights put off: stage and micro-batch

    def task(kind: str, way: int) -> Task:
        batch = first[way] + count["F" if kind == "F" else "B", way]
        count["F" if kind == "F" else "B", way] += 1
        if kind == "I":
            waiting.append((stage[way], batch))
        return Task(kind, stage[way], batch)

    def weights() -> None:
        tasks.append((Task("W", *waiting.pop(0)),))

    for _ in range(2 * (half - 1 - near)):
        tasks.append((task("F", 0),))
    for _ in range(near + 1):
        tasks.append((task("F", 0),))
        tasks.append((task("F", 1),))
    for _ in range(half - 1 - near):
        tasks.append((task("I", 1),))
        weights()
        tasks.append((task("F", 1),))
    for i in range(each - devices + near + 1):
        if i == 0 and near == half - 1:                         # in the middle the two would wait for each other
            tasks.append((task("F", 0),))
            tasks.append((task("B", 1),))
        else:
            tasks.append((task("F", 0), task("B", 1)))
        tasks.append((task("F", 1), task("B", 0)))
    for _ in range(half - 1 - near):
        tasks.append((task("B", 1),))
        tasks.append((task("F", 1), task("B", 0)))
    split = False
    for i in range(near + 1):
        split = split or (i == (near + 1) // 2 and near % 2 == 1)
        tasks.append((task("I" if split else "B", 1),))
        split = split or (i == (near + 1) // 2 and near % 2 == 0)
        tasks.append((task("I" if split else "B", 0),))
    for _ in range(half - 1 - near):
        weights()
        tasks.append((task("I", 0),))
    while waiting:
        weights()
    return tuple(tasks)


def _paired(pipeline: Pipeline) -> Pipeline:
    """Every forward pass behind the first backward one is made beside the backward pass before it, not behind it."""
    rows = []
    for tasks in pipeline.tasks:
        ahead = [task for (task,) in tasks if task.kind == "F"]
        back = [task for (task,) in tasks if task.kind == "B"]
        first = next(i for i, (task,) in enumerate(tasks) if task.kind == "B")
        alone = ahead[:first] if len(back) > len(ahead) - first else ahead[: first + 1]
        rest = ahead[len(alone) :]
        pairs: list[tuple[Task, ...]] = [(one, other) for one, other in zip(rest, back, strict=False)]
        rows.append((*((one,) for one in alone), *pairs, *((one,) for one in back[len(rest) :])))
    return Pipeline(stages=pipeline.stages, tasks=tuple(rows), held=pipeline.held)


Pass = tuple[str, int, int]


def _steady(forward: list[Pass], backward: list[Pass], ahead: int) -> tuple[tuple[Task, ...], ...]:
    """`ahead` forward passes, then one of each in turn, then the backward passes that are left."""
    order = forward[:ahead]
    for i in range(len(forward) - ahead):
        order += [forward[ahead + i], backward[i]]
    order += backward[len(forward) - ahead :]
    return tuple((Task(*each),) for each in order)


def _zero_bubble(devices: int, micro_batches: int, virtual: int, ahead: Callable[[int], int], late: int) -> Pipeline:
    """`ahead(device)` forward passes, then I, W and F in turn; W of the micro-batch whose I was `late` x device turns before."""
    if virtual != 1:
        raise InputError(f"parallel.virtual={virtual}: zero bubble orders have one chunk of layers per stage; use virtual=1")
    tasks = []
    for device in range(devices):
        first = min(micro_batches, ahead(device))
        order = [("F", device, i) for i in range(first)]
        for i in range(micro_batches + late * device):
            order += [("I", device, i)] if i < micro_batches else []
            order += [("W", device, i - late * device)] if i >= late * device else []
            order += [("F", device, first + i)] if first + i < micro_batches else []
        tasks.append(tuple((Task(*each),) for each in order))
    return Pipeline(stages=devices, tasks=tuple(tasks), held=tuple((d,) for d in range(devices)))
