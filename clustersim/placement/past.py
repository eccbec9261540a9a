"""What a placement is decided on: the load of steps that are over, and the slots there are. Plain arrays, no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from clustersim.types import Floats, InputError, Ints, Placement

if TYPE_CHECKING:
    from clustersim.placement.objective import Price


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Room:
    """The slots of a cluster, numbered GPU after GPU, and which GPUs share a node."""

    slots_of: Ints                              # [gpus] slots of each GPU
    node_of: Ints                               # [gpus] node of each GPU, from 0, not falling

    @property
    def n_gpus(self) -> int:
        return int(self.slots_of.size)

    @property
    def n_nodes(self) -> int:
        return int(self.node_of[-1]) + 1

    @property
    def n_slots(self) -> int:
        return int(self.slots_of.sum())

    @property
    def gpu_of(self) -> Ints:
        """GPU of each slot, int [slots]."""
        return np.repeat(np.arange(self.n_gpus), self.slots_of)


@dataclass(frozen=True, eq=False, kw_only=True)
class Past:
    """What the router of one layer did in the steps that a placement is decided on.

    Only the load is always known. A load file has no tokens; without tokens there is no price either.
    """

    load: Floats                                # [steps, experts] tokens
    asked: Ints | None = None                   # [tokens, top_k] logical expert; -1 no expert
    source: Ints | None = None                  # [tokens] GPU that held the token
    index: Ints | None = None                   # [tokens] place in its GPU's batch
    step: Ints | None = None                    # [tokens] step, from 0
    before: tuple[Ints, Placement] | None = None        # choices [tokens, top_k] and new placement of the MoE layer before
    now: Placement | None = None                # the placement in force; None when there is none yet
    price: Callable[[], Price] | None = None    # what a copy and a token cost, so that one move can be priced by itself
    cost: Callable[[Placement], Floats] | None = None   # seconds of each step under a placement, by the simulator itself

    @property
    def n_experts(self) -> int:
        return int(self.load.shape[1])

    @cached_property
    def total(self) -> Floats:
        """Tokens of each expert over all steps, float [experts]."""
        return np.asarray(self.load.sum(axis=0), np.float64)

    def by_source(self, who: str, n_gpus: int) -> Floats:
        """Tokens of each expert by the GPU that held them, float [gpus, experts]; `who` asks.

        Raises:
            InputError: tokens are not known.
        """
        if self.asked is None or self.source is None:
            self.lacks_tokens(who)
        key = (self.source[:, None] * (self.n_experts + 1) + self.asked + 1).ravel()
        counts = np.bincount(key, minlength=n_gpus * (self.n_experts + 1)).reshape(n_gpus, -1)
        return counts[:, 1:].astype(np.float64)

    def together(self, who: str) -> Floats:
        """Tokens that chose both of two experts, float [experts, experts], zero diagonal; `who` asks.

        Raises:
            InputError: tokens are not known.
        """
        if self.asked is None:
            self.lacks_tokens(who)
        uses = used(self.asked, self.n_experts)
        pairs = uses.T @ uses
        np.fill_diagonal(pairs, 0.0)
        return pairs

    def lacks_tokens(self, who: str) -> NoReturn:
        raise InputError(f"placement={who}: looks at tokens, and the load that it is to be decided on has counts only")


def used(asked: Ints, n_experts: int) -> Floats:
    """1 where a token chose an expert, float [tokens, experts]."""
    uses = np.zeros((asked.shape[0], n_experts + 1), np.float32)        # the last column takes the -1; float32 for BLAS
    np.put_along_axis(uses, asked % (n_experts + 1), 1.0, axis=1)
    return uses[:, :n_experts].astype(np.float64)


def no_room(node_of: Ints) -> Room:
    """No slot at all, for a model without routed experts."""
    return Room(slots_of=np.zeros(node_of.size, np.int64), node_of=node_of)


def room_for(slots: int | Sequence[int] | None, spare: int, n_experts: int, node_of: Ints) -> Room:
    """The room that `placement.slots` and `placement.spare` ask for.

    Args:
        slots: in all, the same on every GPU; or of each GPU; None: the fewest that hold every expert, the same on every GPU.
        spare: slots per GPU beyond that; only with None.
        node_of: int [gpus].

    Raises:
        InputError: fewer slots than experts, slots that GPUs cannot share evenly, both keys at once, no list of GPUs.
    """
    n_gpus = int(node_of.size)
    least = -(-n_experts // n_gpus) * n_gpus
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise InputError(f"placement.spare={spare}: must be a whole number from 0 up")
    if slots is not None and spare:
        raise InputError(f"placement.spare={spare}: counts from the fewest slots, and placement.slots={slots} is set; set one")
    if slots is None:
        slots = least + spare * n_gpus
    if not isinstance(slots, int) or isinstance(slots, bool):
        per_gpu = _slots_of_each(slots, n_gpus)
        if sum(per_gpu) < n_experts:
            _too_few(f"[{','.join(map(str, per_gpu))}] in all {sum(per_gpu)}", n_experts, least, n_gpus)
        return Room(slots_of=np.array(per_gpu, np.int64), node_of=node_of)
    if slots < n_experts:
        _too_few(str(slots), n_experts, least, n_gpus)
    if slots % n_gpus:
        near = _near(slots, n_experts, n_gpus)
        raise InputError(f"placement.slots={slots}: the {n_gpus} GPUs cannot share them evenly; {near}")
    return Room(slots_of=np.full(n_gpus, slots // n_gpus, np.int64), node_of=node_of)


def _slots_of_each(slots: object, n_gpus: int) -> list[int]:
    if not isinstance(slots, Sequence) or isinstance(slots, str):
        raise InputError(f"placement.slots={slots}: must be a whole number, a list with one for every GPU, or null")
    if len(slots) != n_gpus:
        raise InputError(f"placement.slots: a list of {len(slots)} numbers for {n_gpus} GPUs; it needs one for each")
    if wrong := [s for s in slots if isinstance(s, bool) or not isinstance(s, int) or s < 0]:
        raise InputError(f"placement.slots: {wrong[0]} in the list; each must be a whole number from 0 up")
    return list(slots)


def _too_few(said: str, n_experts: int, least: int, n_gpus: int) -> NoReturn:
    raise InputError(
        f"placement.slots={said}: fewer slots than the {n_experts} experts; every expert needs one, "
        f"at least {least} on {n_gpus} GPUs"
    )


def _near(slots: int, n_experts: int, n_gpus: int) -> str:
    below = slots // n_gpus * n_gpus
    return f"{below} or {below + n_gpus} would do" if below >= n_experts else f"{below + n_gpus} would do"


def need_even(who: str, room: Room, n_experts: int) -> int:
    """Slots of every GPU, for an algorithm that deals all the same number.

    Raises:
        InputError: GPUs differ in slots.
    """
    each = int(room.slots_of[0])
    if (room.slots_of != each).any():
        near = f"{room.n_slots} would do" if room.n_slots % room.n_gpus == 0 else _near(room.n_slots, n_experts, room.n_gpus)
        raise InputError(f"placement.slots: {who} deals every GPU the same number, and the list has unequal ones; in all {near}")
    return each


def need_slots(past: Past, room: Room) -> None:
    """Every expert can have a slot.

    Raises:
        InputError: fewer slots than experts.
    """
    if room.n_slots < past.n_experts:
        least = -(-past.n_experts // room.n_gpus) * room.n_gpus
        _too_few(str(room.n_slots), past.n_experts, least, room.n_gpus)
