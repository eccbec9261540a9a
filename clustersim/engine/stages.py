"""Which layers a pipeline stage holds, and how much it keeps of them at once. Plays nothing: orders are those of `pipelines`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from clustersim.engine import pipelines
from clustersim.engine.pipelines import Pipeline
from clustersim.pick import find
from clustersim.types import InputError


def chunks_of(n_layers: int, stages: int, virtual: int = 1) -> tuple[range, ...]:
    """The layers of every chunk, in order; chunk c is on stage c mod `stages`.

    Chunks are equally long; what is missing is taken off the last one, then off the first, then off those before the last:
    the ends have the tables beside. So the 126 layers of Llama 3.1 405B are 8 to a stage and 7 at both ends (arXiv 2407.21783).

    Raises:
        InputError: more chunks than layers and two ends without any.
    """
    chunks = stages * virtual
    if chunks > n_layers + (2 if n_layers > 1 and chunks > 2 else 0):
        most = max(1, (n_layers + 2) // virtual)
        raise InputError(
            f"parallel.pipeline={stages} x virtual={virtual}: {chunks} chunks are more than the {n_layers} layers; "
            f"at most pipeline={most}" + (f" with virtual={virtual}" if virtual > 1 else "")
        )
    length = -(-n_layers // chunks)
    sizes = [length] * chunks
    order = [chunks - 1, 0, *range(chunks - 2, 0, -1)]
    for i in range(length * chunks - n_layers):
        sizes[order[i % chunks]] -= 1
    starts = [sum(sizes[:c]) for c in range(chunks)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


@lru_cache(maxsize=16)
def ordered(order: str, devices: int, micro_batches: int, virtual: int) -> Pipeline:
    """The pipeline that an order of `pipelines` makes.

    Raises:
        InputError: no such order, or sizes that it cannot take.
    """
    made = find(pipelines, order, "parallel.order")(devices, micro_batches, virtual)
    assert isinstance(made, Pipeline)
    return made


def most_kept(pipeline: Pipeline, device: int, kept: Sequence[float]) -> float:
    """The most that a device keeps at once, where a micro-batch in stage s keeps `kept[s]` from its F to its B or W.

    A pass that overlaps another has begun before the other has ended.
    """
    now = most = 0.0
    for tasks in pipeline.tasks[device]:
        now += sum(kept[task.stage] for task in tasks if task.kind == "F")
        most = max(most, now)
        now -= sum(kept[task.stage] for task in tasks if task.kind in "BW")
    return most
