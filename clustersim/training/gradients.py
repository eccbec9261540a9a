"""What a step does after its passes: gradients reduced, weights updated and gathered. Bytes and closed forms; plays nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clustersim.engine.collectives import Wires, ring_s
from clustersim.engine.machines import Machine
from clustersim.matrices import split
from clustersim.model import Model
from clustersim.parallel import Parallel
from clustersim.parts import Moe, Part
from clustersim.training.layers import moe_of
from clustersim.types import Ints

WEIGHT = 2.0            # bytes of a weight as it is used: BF16
ADAM = 26.0             # bytes of a weight's optimiser that are moved: FP32 weight, two moments in and out; the weight out


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Weights on one GPU of a pipeline device."""

    dense: float            # that data parallel GPUs share
    experts: float          # that expert data parallel GPUs share


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Seconds of one pipeline device."""

    reduce_s: float         # gradients over data parallel groups
    gather_s: float         # weights, where the optimiser is split
    optimiser_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """Seconds by which a device's collectives come later than alone."""

    reduce_s: float = 0.0           # all of a step
    gather_s: float = 0.0
    last_reduce_s: float = 0.0      # that beside the last backward pass
    first_gather_s: float = 0.0     # that beside the first forward pass


NOT_LATE = Late()


def held(model: Model, stages: Iterable[int], layers: Sequence[range], parallel: Parallel) -> Held:
    """Weights of these stages on each GPU; the embedding is with the first stage, the unembedding with the last."""
    dense = experts = 0.0
    for stage in stages:
        for layer in layers[stage]:
            dense += sum(_dense(part, model.hidden, parallel.tensor) for part in model.layers[layer])
            if layer in model.moe_layers:
                moe = moe_of(model)
                experts += moe.experts * moe.expert(model.hidden) / (parallel.expert * parallel.expert_tensor)
        dense += sum(model.embedding_params / parallel.tensor for end in (0, len(layers) - 1) if stage == end)
    return Held(dense=dense, experts=experts)


def update(
    held: Held, parallel: Parallel, wires: Wires, machine: Machine, *, gradient_bytes: float, twin: int | None = None
) -> Update:
    """Gradients are scattered and weights gathered from `zero` 1 on; before, gradients are reduced to all.

    Groups are over data and context, and over expert data; Adam keeps weights and moments in FP32.

    Args:
        twin: how many pipeline devices away the one is that holds the same stages (DualPipe); None: nobody does.
    """
    groups = [each[0] for each in sharers(parallel, twin)]
    both = ((held.dense, groups[0]), (held.experts, groups[1]))
    passes = 1 if parallel.zero else 2
    owned = sum(weights / (group.size if parallel.zero else 1) for weights, group in both)
    return Update(
        reduce_s=sum(ring_s(weights * gradient_bytes, group, wires, passes) for weights, group in both),
        gather_s=sum(ring_s(weights * WEIGHT, group, wires) for weights, group in both) if parallel.zero else 0.0,
        optimiser_s=float(machine.move(1, np.array([owned * (ADAM + gradient_bytes)]))[0]),
    )


def sharers(parallel: Parallel, twin: int | None = None) -> tuple[Ints, Ints]:
    """Ranks [groups, members] that hold the same weights in the first stage: of all but experts, and of experts.

    Args:
        twin: as of `update`; its ranks are the second half of the members.
    """
    inside = parallel.expert * parallel.expert_tensor
    dense = np.arange(parallel.tensor)[:, None] + np.arange(parallel.data * parallel.context) * parallel.tensor
    experts = np.arange(inside)[:, None] + np.arange(parallel.expert_data) * inside
    if twin is None:
        return dense, experts
    away = abs(twin) * parallel.stage_gpus
    return np.concatenate((dense, dense + away), axis=1), np.concatenate((experts, experts + away), axis=1)


def often(zero: int, rounds: int) -> tuple[int, int]:
    """How many times a step reduces gradients and gathers weights; see `exposed_update`."""
    return rounds if zero >= 2 else 1, 2 * rounds if zero == 3 else 1


def exposed_update(
    update: Update, zero: int, rounds: int, ahead: Sequence[float], back: Sequence[float], *, hide: bool,
    late: Late = NOT_LATE,
) -> tuple[float, float]:
    """Seconds of gradients and of weights that no pass of the device hides.

    Up to `zero` 1 gradients are reduced once, beside the last backward pass, and weights gathered once, beside the first forward
    pass. Gradients that are kept split (2) are reduced in every round, weights that are (3) gathered twice in each: what is
    longer than all passes together stands out.

    Args:
        rounds: times that a chunk of layers is gone through without another in between.
        ahead, back: seconds of the device's forward and backward passes, in order.
        late: what they take longer because they share links with those passes.
    """
    reduces, gathers = often(zero, rounds)
    if not hide:
        return reduces * update.reduce_s, gathers * update.gather_s
    reduce_s = max(update.reduce_s + late.last_reduce_s - back[-1], reduces * update.reduce_s + late.reduce_s - sum(back))
    hidden = sum(ahead) + (sum(back) if zero == 3 else 0.0)
    gather_s = max(update.gather_s + late.first_gather_s - ahead[0], gathers * update.gather_s + late.gather_s - hidden)
    return max(0.0, reduce_s), max(0.0, gather_s)


def _dense(part: Part, hidden: int, tensor: int) -> float:
    """Weights of a part on one GPU of a tensor group, without routed experts."""
    mine = split(part, tensor)
    if isinstance(mine, Moe):
        return mine.params(hidden) - mine.experts * mine.expert(hidden)
    return mine.params(hidden)
