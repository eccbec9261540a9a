"""What has to travel when one placement follows another: expert weights between GPUs, and in which order. No clock, no links."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from clustersim.types import Ints, Placement, Transfers


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Move:
    """The moves of one layer: row i brings `expert[i]` from GPU `src[i]` to `dst[i]`, over `replaced[i]`, which leaves there."""

    expert: Ints
    src: Ints
    dst: Ints
    replaced: Ints                              # -1 where the slot held a copy that stays elsewhere on the GPU


def moves_between(old: Placement, new: Placement, node_of: Ints) -> Move:
    """The experts that a GPU holds under `new` and did not hold under `old`, and where it gets each from.

    A GPU gets one copy of an expert, even for two slots. It comes from a GPU that held it: of the own node where there is
    one, of these from the one that has sent the fewest experts so far, of equals the first.
    """
    holders: dict[int, list[int]] = defaultdict(list)
    for slot in range(old.n_slots):
        if old.gpu_of[slot] not in holders[int(old.expert_of[slot])]:
            holders[int(old.expert_of[slot])].append(int(old.gpu_of[slot]))
    had = {(int(g), int(e)) for g, e in zip(old.gpu_of, old.expert_of, strict=True)}
    has = {(int(g), int(e)) for g, e in zip(new.gpu_of, new.expert_of, strict=True)}
    leaves: dict[int, list[int]] = defaultdict(list)
    for gpu, expert in sorted(had - has):
        leaves[gpu].append(expert)
    sent: dict[int, int] = defaultdict(int)
    rows = []
    for gpu, expert in sorted(has - had):
        src = min(holders[expert], key=lambda g: (node_of[g] != node_of[gpu], sent[g], g))
        sent[src] += 1
        rows.append((expert, src, gpu, leaves[gpu].pop(0) if leaves[gpu] else -1))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return Move(expert=columns[0], src=columns[1], dst=columns[2], replaced=columns[3])


def transfers_of(layers: list[Move], expert_bytes: float, *, double_buffer: bool) -> tuple[Transfers, int]:
    """The moves of all layers as transfers, and how many had to be put aside on their way.

    With a double buffer all go at once. Without, weights are overwritten in place: a move waits until what it overwrites has
    left for everyone who gets it from there. Where moves wait for each other in a ring, one of them lands in a staging
    buffer instead, and waits for nobody.

    Args:
        expert_bytes: weights of one expert.

    Returns:
        Transfers, each after those it waits for, wholly (`chunk` is all of it); and the moves that were staged.
    """
    src, dst = (np.concatenate([getattr(m, end) for m in layers] or [np.zeros(0, np.int64)]) for end in ("src", "dst"))
    n = src.size
    waits: list[list[int]] = [[] for _ in range(n)]
    if not double_buffer:
        first = 0
        for move in layers:
            readers: dict[tuple[int, int], list[int]] = defaultdict(list)         # who takes an expert from a GPU
            for i in range(move.src.size):
                readers[int(move.src[i]), int(move.expert[i])].append(first + i)
            for i in range(move.src.size):
                waits[first + i] = readers[int(move.dst[i]), int(move.replaced[i])]
            first += move.src.size
    order, staged = _in_order(waits)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    after = [sorted(int(place[j]) for j in waits[i]) if i not in staged else [] for i in order]
    nbytes = np.full(n, expert_bytes)
    transfers = Transfers(
        src=src[order], dst=dst[order], nbytes=nbytes, release=np.zeros(n), chunk=nbytes,
        after_start=np.concatenate(([0], np.cumsum([len(a) for a in after]))).astype(np.int64),
        after=np.array([j for a in after for j in a], np.int64),
    )
    return transfers, len(staged)


def _in_order(waits: list[list[int]]) -> tuple[list[int], set[int]]:
    """Rows so that each stands behind those it waits for, and the rows that wait no more because they stood in a ring."""
    followers: dict[int, list[int]] = defaultdict(list)
    missing = [len(w) for w in waits]
    for i, those in enumerate(waits):
        for j in those:
            followers[j].append(i)
    order: list[int] = []
    staged: set[int] = set()
    ready = [i for i, n in enumerate(missing) if n == 0]
    placed = [n == 0 for n in missing]
    following = 0
    while len(order) < len(waits):
        if not ready:
            while placed[following]:
                following += 1
            staged.add(following)
            placed[following] = True
            ready.append(following)
        i = ready.pop()
        order.append(i)
        for j in followers[i]:
            missing[j] -= 1
            if missing[j] == 0 and not placed[j]:
                placed[j] = True
                ready.append(j)
    return order, staged
