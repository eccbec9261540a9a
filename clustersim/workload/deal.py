"""Which recorded tokens start on which GPU: whole sequences, dealt like cards. Draws no random number."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clustersim.types import InputError, Ints


class Tokens(Protocol):
    """What a deal may know of recorded tokens; a `Trace` is one."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def rank(self) -> Ints: ...
    @property
    def seq(self) -> Ints: ...
    @property
    def pos(self) -> Ints: ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Columns:
    """The tokens of a trace without their experts."""

    rank: Ints
    seq: Ints
    pos: Ints

    @property
    def n_tokens(self) -> int:
        return int(self.seq.size)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Deal:
    """The tokens of every GPU, `tokens_per_gpu` each, ordered by GPU."""

    rows: Ints                  # [gpus * tokens_per_gpu] row of the trace
    source: Ints                # [gpus * tokens_per_gpu] GPU
    index: Ints                 # [gpus * tokens_per_gpu] place in its GPU's batch
    context: Ints               # [gpus * tokens_per_gpu] place in its sequence, from 1: tokens its attention looks at
    distinct: int               # recorded tokens that are used at all
    most_used: int              # how often the most used one is

    @property
    def reuse(self) -> float:
        """How often a recorded token is used, on average over those that are."""
        return self.rows.size / self.distinct


def deal_sequences(trace: Tokens, n_gpus: int, tokens_per_gpu: int) -> Deal:
    """Whole sequences, one at a time to each GPU in turn, in trace order, until each has its tokens; the last is cut.

    A full GPU is passed over. When the trace is used up it is dealt again, but a GPU never gets a sequence twice: where
    that would happen in a turn, it takes the next one that it has not had, and the deal goes on from there.

    Raises:
        InputError: less than one token per GPU, or more than the whole trace.
    """
    if tokens_per_gpu < 1:
        raise InputError(f"workload.tokens_per_gpu={tokens_per_gpu}: each GPU needs at least one token")
    if tokens_per_gpu > trace.n_tokens:
        raise InputError(
            f"workload.tokens_per_gpu={tokens_per_gpu}: the trace has {trace.n_tokens} tokens, "
            "and a GPU gets no recorded sequence twice"
        )
    by_sequence, length = sequences_in_order(trace)
    gpu, sequence, taken = _hands(length, n_gpus, tokens_per_gpu)
    order = np.argsort(gpu, kind="stable")
    sequence, taken = sequence[order], taken[order]

    begin = np.repeat(np.cumsum(taken) - taken, taken)
    context = np.arange(n_gpus * tokens_per_gpu) - begin
    first = np.cumsum(length) - length
    rows = by_sequence[np.repeat(first[sequence], taken) + context]
    used = np.bincount(rows, minlength=trace.n_tokens)
    return Deal(
        rows=rows, source=np.repeat(np.arange(n_gpus), tokens_per_gpu), index=np.tile(np.arange(tokens_per_gpu), n_gpus),
        context=context + 1, distinct=int(np.count_nonzero(used)), most_used=int(used.max()),
    )


def dealt(trace: Tokens, rows: Ints) -> Deal:
    """The deal of rows [gpus, tokens_per_gpu], each token attending to all positions up to its own."""
    n_gpus, tokens_per_gpu = rows.shape
    used = np.bincount(rows.ravel(), minlength=trace.n_tokens)
    return Deal(
        rows=rows.ravel(), source=np.repeat(np.arange(n_gpus), tokens_per_gpu), index=np.tile(np.arange(tokens_per_gpu), n_gpus),
        context=trace.pos[rows.ravel()].astype(np.int64) + 1, distinct=int(np.count_nonzero(used)), most_used=int(used.max()),
    )


def continuous_schedule(seq: Ints, pos: Ints, batch: int) -> tuple[Ints, Ints]:
    """(rows, step of each) of continuous batching: `batch` sequences run, one token of each per step; one that ends makes room
    for the next, in order of first appearance. Every row once, by step and slot.

    Raises:
        InputError: batch below 1.
    """
    if batch < 1:
        raise InputError(f"batch={batch}: must be a whole number from 1 up")
    order, length = sequences_in_order(Columns(rank=seq, seq=seq, pos=pos))
    start, slot_of = np.empty_like(length), np.empty_like(length)
    free = [(0, slot) for slot in range(batch)]
    for sequence, tokens in enumerate(length.tolist()):
        start[sequence], slot = free[0]
        slot_of[sequence] = slot
        heapq.heapreplace(free, (int(start[sequence]) + tokens, slot))
    first = np.cumsum(length) - length
    step = np.repeat(start - first, length) + np.arange(order.size)
    by_step = np.lexsort((np.repeat(slot_of, length), step))
    return order[by_step], step[by_step]


def sequence_numbers(context: Ints) -> Ints:
    """The sequence of every token of a batch, int [tokens], from 0: one goes on as long as each token looks at one token more.

    Args:
        context: int [tokens], tokens that each looks at, itself included; a batch may begin in the middle of a sequence.
    """
    return np.cumsum(np.diff(context, prepend=-1) != 1) - 1


def sequences_in_order(trace: Tokens) -> tuple[Ints, Ints]:
    """Rows of the trace sequence after sequence, in order of first appearance, each by position; and their lengths."""
    _, first, which = np.unique(trace.seq, return_index=True, return_inverse=True)
    place = np.empty_like(first)
    place[np.argsort(first)] = np.arange(first.size)
    which = place[which]
    return np.lexsort((trace.pos, which)), np.bincount(which)


def _hands(length: Ints, n_gpus: int, tokens_per_gpu: int) -> tuple[Ints, Ints, Ints]:
    """GPU, sequence and tokens taken of every card, in the order they are dealt."""
    n_sequences = length.size
    had = np.zeros((n_gpus, n_sequences), dtype=bool)
    missing = np.full(n_gpus, tokens_per_gpu)
    dealt, card = [], 0
    while (hungry := np.flatnonzero(missing)).size:
        ahead = card + np.arange(hungry.size)
        while (again := had[hungry, ahead % n_sequences]).any():
            ahead[again] += 1
        card = int(ahead[-1]) + 1
        sequence = ahead % n_sequences
        had[hungry, sequence] = True
        taken = np.minimum(length[sequence], missing[hungry])
        missing[hungry] -= taken
        dealt.append((hungry, sequence, taken))
    gpu, sequence, taken = (np.concatenate(column) for column in zip(*dealt, strict=True))
    return gpu, sequence, taken
