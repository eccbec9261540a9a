"""A pipeline on the event loop: devices that take their tasks in order and wait for what the neighbours send. Prices no task."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from clustersim.engine.pipelines import Pipeline, Task
from clustersim.types import Floats


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Flow:
    """A pipeline as it happened, in seconds from its start."""

    begun: tuple[Floats, ...]           # [devices][tasks of the device] when each began
    ended: tuple[Floats, ...]
    step_s: float                       # when the last device was through
    events: int

    @property
    def busy_s(self) -> Floats:
        """[devices] seconds with a task."""
        return np.array([float((ended - begun).sum()) for begun, ended in zip(self.begun, self.ended, strict=True)])

    @property
    def bubble_s(self) -> Floats:
        """[devices] seconds without one, from the first beginning to the last end anywhere: all wait for the optimiser."""
        return self.step_s - self.busy_s

    @property
    def gaps_s(self) -> Floats:
        """[devices] seconds without one between a device's own first and last: where the optimiser waits for nobody."""
        spans = [float(ended[-1] - begun[0]) for begun, ended in zip(self.begun, self.ended, strict=True)]
        return np.array(spans) - self.busy_s


def play_pipeline(
    pipeline: Pipeline, seconds_of: Callable[[tuple[Task, ...]], float], send_s: Callable[[int, int], float] = lambda a, b: 0.0,
    beside: Callable[[int, int, float], tuple[float, float]] | None = None,
) -> Flow:
    """Play a pipeline.

    A pass forward needs the one through the stage before, a pass back the one through the stage behind; on the last stage the
    forward pass of the same micro-batch.

    Args:
        seconds_of: how long a device needs for one task, or for two that overlap.
        send_s: `send_s(a, b)`, seconds that what stage a leaves needs to stage b; the device goes on meanwhile.
        beside: in place of `seconds_of`: `beside(d, i, ago)`, seconds of the i-th task of device d that begins `ago` after the
            one before it ended, and by how much later than `send_s` what that one left arrives, because they share links.
    """
    env = simpy.Environment()
    over: dict[tuple[str, int, int], simpy.Event] = {}
    for row in pipeline.tasks:
        for tasks in row:
            over |= {(_way(task), task.stage, task.batch): env.event() for task in tasks}
    begun = [np.full(len(tasks), np.nan) for tasks in pipeline.tasks]
    ended = [np.full(len(tasks), np.nan) for tasks in pipeline.tasks]

    later: dict[simpy.Event, float] = {}        # what a pass left is on its way for so much longer than `send_s`

    def needed(task: Task) -> tuple[simpy.Event, float] | None:
        if task.kind == "F":
            return (over["F", task.stage - 1, task.batch], send_s(task.stage - 1, task.stage)) if task.stage else None
        if task.kind == "W":
            return over["B", task.stage, task.batch], 0.0
        if task.stage == pipeline.stages - 1:
            return over["F", task.stage, task.batch], 0.0
        return over["B", task.stage + 1, task.batch], send_s(task.stage + 1, task.stage)

    def run(device: int) -> Generator[simpy.Event, Any, None]:
        left: list[simpy.Event] = []
        for i, tasks in enumerate(pipeline.tasks[device]):
            for task in tasks:
                need = needed(task)
                if need is not None:
                    at = (yield need[0]) + need[1]
                    if at > env.now:
                        yield env.timeout(at - env.now)
                    at += later.get(need[0], 0.0) if need[1] else 0.0       # known by now: it is on its way no longer, or shares
                    if at > env.now:
                        yield env.timeout(at - env.now)
            begun[device][i] = env.now
            if beside is None:
                took, late = seconds_of(tasks), 0.0
            else:
                took, late = beside(device, i, env.now - ended[device][i - 1] if i else np.inf)
            later.update(dict.fromkeys(left, late))
            yield env.timeout(took)
            ended[device][i] = env.now
            left = [over[_way(task), task.stage, task.batch] for task in tasks]
            for event in left:
                event.succeed(env.now)

    for device in range(len(pipeline.tasks)):
        env.process(run(device))
    events = 0
    while env.peek() < np.inf:
        env.step()
        events += 1
    assert not any(np.isnan(each).any() for each in ended), "a pipeline that waits for itself"
    return Flow(begun=tuple(begun), ended=tuple(ended), events=events, step_s=max(float(each[-1]) for each in ended))


def _way(task: Task) -> str:
    """The event that a task fires: both kinds of backward pass hand on the gradient of the input."""
    return "B" if task.kind == "I" else task.kind
