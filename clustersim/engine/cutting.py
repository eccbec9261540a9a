"""The tokens of a batch in pieces: micro-batches that overlap, chunks of an exchange. Pure NumPy, no clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Choices, Ints, Routing, Workload


def cut_of(workload: Workload, n_gpus: int, cuts: int, per_sequence: int = 1) -> Ints:
    """int [tokens], the piece that each token is in: every GPU's batch in `cuts` runs, as even as can be.

    Groups of `per_sequence` tokens stay together. Where pieces are few in number for a GPU, some have none of its tokens.
    """
    groups = np.bincount(workload.source, minlength=n_gpus) // per_sequence
    result: Ints = workload.index // per_sequence * cuts // np.maximum(1, groups[workload.source])
    return result


def routing_of(routing: Routing, mine: NDArray[np.bool_]) -> Routing:
    """The choices of these tokens, numbered anew on every GPU."""
    return replace(
        routing, asked=routing.asked[mine], assigned=routing.assigned[mine], source=routing.source[mine],
        weights=None if routing.weights is None else routing.weights[mine], index=_numbered(routing.source[mine]), padding=None,
    )  # fmt: skip


def workload_of(workload: Workload, mine: NDArray[np.bool_]) -> Workload:
    """These tokens alone, for what a GPU does with its own; nobody asks for their experts."""
    source = workload.source[mine]
    return replace(workload, source=source, index=_numbered(source), context=workload.context[mine], choose=_not_here)


def _numbered(source: Ints) -> Ints:
    """0, 1, 2, ... on every GPU; tokens are ordered by GPU."""
    begins = np.searchsorted(source, source)
    return np.arange(source.size) - begins


def _not_here(layer: int) -> Choices:
    raise AssertionError("a piece of a batch has no choices of its own")
