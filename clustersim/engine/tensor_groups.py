"""What GPUs that share attention hold together, and how long they take to hand it to each other. Computes no part of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.engine.collectives import Wires, all_reduce_s, ring_s
from clustersim.parallel import Group
from clustersim.types import Floats, Ints

WIDE = 2.0              # bytes of a value on its way: BF16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TensorGroups:
    """All groups of a forward pass: neighbours, `group.tensor` each."""

    group: Group
    wires: Wires | None             # None: a GPU each
    n_gpus: int

    @property
    def size(self) -> int:
        return self.group.tensor

    def together(self, values: Ints) -> Ints:
        """Of every GPU [gpus] what its group has."""
        if self.size == 1:
            return values
        return np.repeat(values.reshape(-1, self.size).sum(axis=1), self.size)

    def members(self, owner: Ints) -> tuple[Ints, int]:
        """For things by the GPU that holds them: the group of each, and how many groups there are."""
        return owner // self.size, self.n_gpus // self.size

    def spread(self, values: Floats) -> Floats:
        """Of every group [groups] what each of its GPUs has, [gpus]."""
        return np.repeat(values, self.size)

    def gathered_s(self, nbytes: NDArray[Any]) -> Floats:
        """Seconds of an all-gather, or a reduce-scatter, of so many bytes in all of each GPU's group, float [gpus]."""
        return self._seconds(nbytes, ring_s)

    def reduced_s(self, nbytes: NDArray[Any]) -> Floats:
        """Seconds of an all-reduce of so many bytes on each GPU of a group, float [gpus]."""
        return self._seconds(nbytes, all_reduce_s)

    def around_s(self, nbytes: NDArray[Any]) -> Floats:
        """Seconds of what a shared part needs, float [gpus]: a gather before and a scatter behind, or a reduction."""
        return 2.0 * self.gathered_s(nbytes) if self.group.scattered else self.reduced_s(nbytes)

    def _seconds(self, nbytes: NDArray[Any], how: Callable[[float, Ints, Wires], float]) -> Floats:
        if self.size == 1:
            return np.zeros(self.n_gpus)
        assert self.wires is not None
        found: dict[tuple[float, ...], float] = {}
        each = np.zeros(self.n_gpus // self.size)
        for i, size in enumerate(nbytes[:: self.size].tolist()):
            ranks = np.arange(i * self.size, (i + 1) * self.size)
            key = (size, *np.diff(ranks // self.wires.gpus_per_node).tolist())
            if key not in found:
                found[key] = how(size, ranks, self.wires)
            each[i] = found[key]
        return np.repeat(each, self.size)


def alone(n_gpus: int) -> TensorGroups:
    """Every GPU by itself."""
    return TensorGroups(group=Group(), wires=None, n_gpus=n_gpus)
