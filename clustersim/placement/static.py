"""Placements that do not look at the load. Which replica a token picks is not decided here but in `replicas`."""

from __future__ import annotations

import numpy as np

from clustersim.types import InputError, Placement


def default_slots(n_experts: int, n_gpus: int) -> int:
    """The fewest slots that hold every expert and give every GPU the same number."""
    return -(-n_experts // n_gpus) * n_gpus


def contiguous(n_experts: int, n_slots: int, n_gpus: int) -> Placement:
    """Neighbouring slots share a GPU: slot s lives on GPU s // (slots per GPU) and holds expert s mod experts.

    Without replicas this is the linear placement of Megatron-LM and vLLM; replicas are appended in expert order,
    as vLLM and SGLang do before they have measured a load.

    Raises:
        InputError: fewer slots than experts, or a number of slots that the GPUs cannot share evenly.
    """
    _check_slots(n_experts, n_slots, n_gpus)
    slots = np.arange(n_slots, dtype=np.int64)
    return Placement(gpu_of=slots // (n_slots // n_gpus), expert_of=slots % n_experts)


def round_robin(n_experts: int, n_slots: int, n_gpus: int) -> Placement:
    """Neighbouring slots live on neighbouring GPUs: slot s on GPU s mod GPUs, holding expert s mod experts.

    Raises:
        InputError: fewer slots than experts, or a number of slots that the GPUs cannot share evenly.
    """
    _check_slots(n_experts, n_slots, n_gpus)
    slots = np.arange(n_slots, dtype=np.int64)
    return Placement(gpu_of=slots % n_gpus, expert_of=slots % n_experts)


def _check_slots(n_experts: int, n_slots: int, n_gpus: int) -> None:
    if n_slots < n_experts:
        raise InputError(
            f"placement.slots={n_slots}: fewer slots than the {n_experts} experts; every expert needs one, "
            f"at least {default_slots(n_experts, n_gpus)} on {n_gpus} GPUs"
        )
    if n_slots % n_gpus:
        below = n_slots // n_gpus * n_gpus
        would_do = f"{below} or {below + n_gpus}" if below >= n_experts else str(below + n_gpus)
        raise InputError(f"placement.slots={n_slots}: the {n_gpus} GPUs cannot share them evenly; {would_do} would do")
