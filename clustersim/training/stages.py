"""Which layers every stage of a pipeline has. Times nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clustersim.types import InputError


def stage_layers(n_layers: int, stages: int, given: Sequence[Any] | None = None) -> tuple[range, ...]:
    """The layers of each stage, in order.

    As even as can be; where layers do not divide, stages in the middle have one more, since the first also has the embedding and
    the last the unembedding (as Llama 3 was split, arXiv 2407.21783 §3.3.2).

    Args:
        given: layers of each stage instead.

    Raises:
        InputError: more stages than layers and both tables, or counts that do not add up.
    """
    if given is not None:
        if len(given) != stages or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in given):
            raise InputError(f"parallel.stage_layers={list(given)}: must have a number of layers for each of {stages} stages")
        if sum(given) != n_layers:
            raise InputError(f"parallel.stage_layers={list(given)}: add up to {sum(given)}, and the model has {n_layers} layers")
        counts = list(given)
    else:
        if stages > n_layers + 2:
            raise InputError(
                f"parallel.pipeline x virtual = {stages} stages: more than the model's {n_layers} layers and its two tables; "
                f"nearest that works: {_nearest(n_layers + 2, stages)}"
            )
        each, more = divmod(n_layers, stages)
        first = (stages - more + 1) // 2
        counts = [each + (first <= stage < first + more) for stage in range(stages)]
    begins = [sum(counts[:stage]) for stage in range(stages)]
    return tuple(range(begin, begin + count) for begin, count in zip(begins, counts, strict=True))


def _nearest(most: int, stages: int) -> int:
    """The largest number of stages up to `most` that divides or halves what was asked."""
    return next((n for n in range(most, 0, -1) if stages % n == 0), most)
