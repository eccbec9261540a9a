"""Placements that do not look at the load. Which replica a token picks is not decided here but in `replicas`."""

from __future__ import annotations

import numpy as np

from clustersim.placement.past import Past, Room, need_slots
from clustersim.types import Placement


def contiguous(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """Neighbouring slots share a GPU: slots are numbered GPU after GPU, and slot s holds expert s mod experts.

    Without replicas this is the linear placement of Megatron-LM and vLLM; replicas are appended in expert order,
    as vLLM and SGLang do before they have measured a load. GPUs may differ in slots. Nothing is drawn.

    Raises:
        InputError: fewer slots than experts.
    """
    need_slots(past, room)
    return Placement(gpu_of=room.gpu_of, expert_of=np.arange(room.n_slots) % past.n_experts)


def round_robin(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """Neighbouring slots live on neighbouring GPUs: slots are dealt to the GPUs in turn, and slot s holds expert s mod experts.

    vLLM's `expert_placement_strategy` round_robin. GPUs may differ in slots: a full one is passed over. Nothing is drawn.

    Raises:
        InputError: fewer slots than experts.
    """
    need_slots(past, room)
    turn = np.arange(room.n_slots) - np.repeat(np.cumsum(room.slots_of) - room.slots_of, room.slots_of)
    order = np.argsort(turn, kind="stable")         # the first slot of every GPU, then the second of every GPU, ...
    return Placement(gpu_of=room.gpu_of[order], expert_of=np.arange(room.n_slots) % past.n_experts)


def random(rng: np.random.Generator, past: Past, room: Room) -> Placement:
    """A random permutation: every expert once, the first ones again until the slots are used up. GPUs may differ in slots.

    Raises:
        InputError: fewer slots than experts.
    """
    need_slots(past, room)
    return Placement(gpu_of=room.gpu_of, expert_of=rng.permutation(np.arange(room.n_slots) % past.n_experts))
