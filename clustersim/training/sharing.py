"""Which passes of a step share links with what is sent beside them, and what comes of it. Plays no pass itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from clustersim.engine.pipelines import Pipeline, Task
from clustersim.parallel import Parallel
from clustersim.training.beside import NONE, Beside
from clustersim.training.blocks import Block, Blocks
from clustersim.training.gradients import Held, Late, often


class Shared:
    """The passes of every device beside gradients, weights and what the pass before leaves to other stages.

    Gradients go beside the last backward pass, weights beside the first forward pass; what ZeRO 2 and 3 send in every round
    goes in equal parts beside all of them. Each begins with its pass. A pass that begins when part of what the one before left
    has arrived lies between the pass beside none of it and the pass beside all, by that part.

    Args:
        held: weights of every device.
        twins: as `gradients.update` has it, of every device.
        rounds: as of `exposed_update`.
        send_s: seconds from a stage to another, alone.
        hide: gradients and weights are sent beside passes at all.
    """

    def __init__(
        self, pipeline: Pipeline, blocks: Blocks, parallel: Parallel, per_node: int, *, held: Sequence[Held],
        twins: Sequence[int | None], rounds: int, send_s: Callable[[int, int], float], hide: bool,
    ) -> None:  # fmt: skip
        self._pipeline, self._blocks, self._parallel, self._per_node, self._send_s = pipeline, blocks, parallel, per_node, send_s
        self._beside = [
            collectives(tasks, parallel.zero, rounds, mine, twin) if hide else [NONE] * len(tasks)
            for tasks, mine, twin in zip(pipeline.tasks, held, twins, strict=True)
        ]  # fmt: skip
        self.blocks: list[dict[int, Block]] = [{} for _ in pipeline.tasks]

    def beside(self, device: int, i: int, ago: float) -> tuple[float, float]:
        """As `play_pipeline` asks for it; `blocks` has the block from then on."""
        tasks, others = self._pipeline.tasks[device][i], self._beside[device][i]
        block = self._blocks.of(tasks, others)
        alone = i and len(tasks) == 1       # two that overlap send what was left themselves
        left = self._left(self._pipeline.tasks[device][i - 1]) if alone else {}
        takes = max(left.values(), default=0.0)
        if ago < takes:
            sends = tuple(sorted(self._far(*ends) for ends in left))
            if (other := self._blocks.of(tasks, replace(others, sends=sends))) is not block:
                block = block.between(other, 1 - ago / takes)
        self.blocks[device][i] = block
        return block.seconds, block.sends_late_s

    def late(self, device: int) -> Late:
        """By how much the collectives of a device come later than alone, once all of its passes are known."""
        tasks = self._pipeline.tasks[device]
        blocks = [self.blocks[device][i] for i in range(len(tasks))]
        last = max(i for i, each in enumerate(tasks) if is_back(each))
        first = min(i for i, each in enumerate(tasks) if is_ahead(each))
        return Late(
            reduce_s=sum(block.reduce_late_s for block in blocks), gather_s=sum(block.gather_late_s for block in blocks),
            last_reduce_s=blocks[last].reduce_late_s, first_gather_s=blocks[first].gather_late_s,
        )  # fmt: skip

    def _left(self, tasks: tuple[Task, ...]) -> dict[tuple[int, int], float]:
        """What a pass sends, as stages from and to -> seconds alone."""
        steps = {"F": 1, "B": -1, "I": -1}
        ends = [(task.stage, task.stage + steps[task.kind]) for task in tasks if task.kind in steps]
        found = {(a, b): self._send_s(a, b) for a, b in ends if 0 <= b < self._pipeline.stages}
        return {ends: seconds for ends, seconds in found.items() if seconds > 0}

    def _far(self, a: int, b: int) -> bool:
        nodes = [stage % self._parallel.pipeline * self._parallel.stage_gpus // self._per_node for stage in (a, b)]
        return nodes[0] != nodes[1]


def is_back(tasks: tuple[Task, ...]) -> bool:
    return any(task.kind in "BIW" for task in tasks)


def is_ahead(tasks: tuple[Task, ...]) -> bool:
    return any(task.kind == "F" for task in tasks)


def collectives(
    device: Sequence[tuple[Task, ...]], zero: int, rounds: int, held: Held, twin: int | None
) -> list[Beside]:
    """What of a device's gradients and weights is sent beside each of its passes; in all as often as a step sends them."""
    reduces, gathers = often(zero, rounds)
    back, ahead = ([i for i, tasks in enumerate(device) if which(tasks)] for which in (is_back, is_ahead))
    reduce, gather = dict.fromkeys(back[-1:], 1.0), dict.fromkeys(ahead[:1] if zero else (), 1.0)
    if zero >= 2:
        reduce = dict.fromkeys(back, reduces / len(back))
    if zero == 3:
        each = gathers / (len(ahead) + len(back))
        gather = {i: each * (is_ahead(tasks) + is_back(tasks)) for i, tasks in enumerate(device)}
    twin = None if twin is None else abs(twin)
    return [
        Beside(reduce=reduce.get(i, 0.0), gather=gather.get(i, 0.0), held=held, twin=twin) if i in reduce or i in gather else NONE
        for i in range(len(device))
    ]
