"""Experts cut over expert-tensor groups: who sends whom what, and what a group gathers and scatters. Plays nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from clustersim.engine.collectives import Wires
from clustersim.engine.tensor_groups import TensorGroups
from clustersim.exchange.copies import Gpus, TokenBytes
from clustersim.model import Model
from clustersim.parallel import Group
from clustersim.placement.replicas import chosen_slots
from clustersim.types import Floats, InputError, Ints, Placement, Routing, Transfers

Exchange = Callable[[str, Routing, Placement, Gpus, TokenBytes], Transfers]


def leaders(slots: Any, expert: int, tensor: int, n_experts: int) -> list[int]:
    """Slots of each GPU of an expert group, so that placements know only the first GPU of every expert-tensor group.

    Args:
        slots: `placement.slots`, of the whole group; None: the fewest that hold every expert.

    Raises:
        InputError: not a whole number that the groups can share.
    """
    if slots is None:
        slots = -(-n_experts // expert) * expert
    if isinstance(slots, bool) or not isinstance(slots, int) or slots % expert:
        near = f"; nearest that does: {max(1, round(slots / expert)) * expert}" if isinstance(slots, int) else ""
        raise InputError(f"placement.slots={slots}: must be a whole number that {expert} groups of {tensor} GPUs share{near}")
    return [slots // expert if gpu % tensor == 0 else 0 for gpu in range(expert * tensor)]


def folded(exchange: Exchange, tensor: int) -> Exchange:
    """The exchange between GPUs of the same place in their expert-tensor group, whatever it is.

    A GPU sends a copy to the one of its own place in the expert's group, as Megatron-LM's all-to-all over expert groups does
    (core/transformer/moe/token_dispatcher.py); the group gathers the rest (`gathered_s`). Slots of `placement` are on the first
    GPU of each group.
    """

    def between(phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes) -> Transfers:
        place = routing.source % tensor
        slots = chosen_slots(routing, placement, cluster)
        ids = np.where(slots < 0, -1, slots * tensor + place[:, None])
        padding = None
        if routing.padding is not None:
            gpus = np.arange(routing.padding.shape[0])
            by_place = np.zeros((gpus.size, placement.n_slots, tensor), np.int64)
            by_place[gpus, :, gpus % tensor] = routing.padding
            padding = by_place.reshape(gpus.size, -1)
        spread = Placement(
            gpu_of=spread_over(placement.gpu_of, tensor), expert_of=np.arange(placement.n_slots * tensor),
        )  # fmt: skip
        return exchange(phase, replace(routing, asked=ids, assigned=ids, padding=padding), spread, cluster, model)

    return between


def spread_over(gpu_of: Ints, tensor: int) -> Ints:
    """int [slots * tensor], the GPUs that share each slot, one after the other."""
    result: Ints = (gpu_of[:, None] + np.arange(tensor)).ravel()
    return result


def shared_rows(rows: Ints, gpu_of: Ints, tensor: int) -> tuple[Ints, Ints]:
    """Rows and GPU of every part of a slot: each GPU of a group works on all of its rows."""
    return np.repeat(rows, tensor), spread_over(gpu_of, tensor)


def gathered_s(rows: Ints, gpu_of: Ints, n_gpus: int, tensor: int, model: Model, wires: Wires) -> Mapping[str, Floats]:
    """Seconds [gpus] of the gather before the experts and of the scatter behind them: rings over the rows of the group.

    NCCL's closed form, as for the tensor groups of attention; nothing computes meanwhile.
    """
    groups = TensorGroups(group=Group(tensor=tensor), wires=wires, n_gpus=n_gpus)
    arrived = groups.together(np.bincount(gpu_of, rows, n_gpus))        # on the first GPU of each
    return {
        "gather": groups.gathered_s(arrived * model.dispatch_token_bytes),
        "scatter": groups.gathered_s(arrived * model.combine_token_bytes),
    }


def check_split(model: Model, tensor: int) -> None:
    """InputError where experts have no columns that `tensor` GPUs can share."""
    size = model.expert_ffn
    if size % tensor:
        near = min((d for d in range(1, 4 * tensor) if size % d == 0), key=lambda d: max(d / tensor, tensor / d))
        raise InputError(
            f"parallel.expert_tensor={tensor}: does not divide the {size} columns of an expert; nearest that does: {near}"
        )
