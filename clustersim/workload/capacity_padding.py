"""How many rows of padding fill buffers up: to the capacity, or to a multiple. Counts rows, neither bytes nor seconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Ints
from clustersim.workload.capacity import Limited, Rule


def rows_by_source(slots: Ints, source: Ints, n_gpus: int, n_slots: int) -> Ints:
    """Choices of each source GPU for each slot, int [gpus, slots], from the slots [tokens, top_k] of its tokens; -1 none."""
    from clustersim.workload.capacity_kernel import count_rows

    rows = np.zeros((n_gpus, n_slots), np.int64)
    count_rows(np.ascontiguousarray(slots), np.ascontiguousarray(source), rows)
    return rows


def padding_rows(rule: Rule, limited: Limited, rows: Ints, tokens: Ints, expert_of: Ints) -> tuple[Ints | None, Ints]:
    """Rows of padding that travel, int [gpus, slots] or None, and those that experts compute, int [slots].

    A slot's buffer has, for every source GPU, the places that this GPU's tokens have at the expert; without a limit as
    many as the fullest buffer there is (DeepSpeed edaa7221 with drop_tokens=False: a maximum over all GPUs). Each of an
    expert's replicas has a buffer of its own. Where the rule works on arrival only what arrived is filled up, and
    nothing of it travels.

    Args:
        rows: int [gpus, slots], kept choices of each source GPU for each slot.
        tokens: int [gpus].
        expert_of: int [slots].
    """
    if rule.where == "expert":
        arrived = rows.sum(axis=0)
        places = arrived
        if rule.pad and limited.room is None:
            places = np.full_like(arrived, arrived.max(initial=0))
        elif rule.pad and limited.room is not None:
            places = limited.room.sum(axis=0)[expert_of]
        return None, _filled(np.maximum(places, arrived), rule.pad_multiple) - arrived
    if not rule.sends_padding:
        return None, np.zeros(expert_of.size, np.int64)
    if rule.pad:
        filled = _filled(np.maximum(_buffers(limited, rows, expert_of), rows), rule.pad_multiple)
    else:       # as pad_routing_map: a row of padding is a token that the expert did not have, and there are only so many
        filled = np.minimum(_filled(rows, rule.pad_multiple), np.maximum(tokens[:, None], rows))
    return filled - rows, (filled - rows).sum(axis=0)


def pad_routing_map(chosen: NDArray[np.bool_], multiple: int) -> NDArray[np.bool_]:
    """`chosen` [tokens, experts] with the first tokens that an expert did not have added until its count is a multiple.

    Source: Megatron-LM d98e8a64, megatron/core/transformer/moe/moe_utils.py (`pad_routing_map`). `padding_rows` counts
    what this adds for each source GPU.
    """
    wanted = -chosen.sum(axis=0) % multiple
    added = ~chosen & ((~chosen).cumsum(axis=0) <= wanted)
    padded: NDArray[np.bool_] = chosen | added
    return padded


def _buffers(limited: Limited, rows: Ints, expert_of: Ints) -> Ints:
    """Places of each source GPU's tokens in each slot's buffer, int [gpus, slots]."""
    if limited.room is None:
        return np.full_like(rows, rows.max(initial=0))
    assert limited.gpu_of_pool is not None
    of_gpu = np.zeros((rows.shape[0], limited.room.shape[1]), np.int64)
    np.add.at(of_gpu, limited.gpu_of_pool, limited.room)
    return of_gpu[:, expert_of]


def _filled(rows: Ints, multiple: int) -> Ints:
    return -(-rows // multiple) * multiple
