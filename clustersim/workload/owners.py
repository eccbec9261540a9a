"""Which GPU owns which recorded token: plain functions from the tokens of a trace to a deal. No routing, no clock.

An owner rule is `name(rng, tokens, n_gpus, tokens_per_gpu, *, options) -> Deal`; found by name (`trace.owner`).
"""

from __future__ import annotations

import heapq

import numpy as np

from clustersim.types import InputError
from clustersim.workload.deal import Deal, Tokens, deal_sequences, dealt, sequences_in_order

__all__ = ["blocks", "continuous", "recorded", "sequences", "shuffled"]


def sequences(rng: np.random.Generator, tokens: Tokens, n_gpus: int, tokens_per_gpu: int) -> Deal:
    """Whole sequences, one at a time to each GPU in turn: `deal_sequences`. Draws nothing.

    Raises:
        InputError: less than one token per GPU, or more than the whole trace.
    """
    return deal_sequences(tokens, n_gpus, tokens_per_gpu)


def recorded(rng: np.random.Generator, tokens: Tokens, n_gpus: int, tokens_per_gpu: int) -> Deal:
    """The rank that owned a token when it was recorded, its tokens in the order of the trace. Draws nothing.

    With as many GPUs as ranks, rank i is GPU i. With fewer GPUs, neighbouring ranks go together; with more, the sequences of a
    rank are dealt in turn to the GPUs that stand for it. A GPU that has too few tokens gets its own again.

    Raises:
        InputError: one rank for several GPUs, less than one token per GPU, a GPU without any token.
    """
    ranks, rank = np.unique(tokens.rank, return_inverse=True)
    if ranks.size == 1 and n_gpus > 1:
        raise InputError(f"trace.owner=recorded: the trace names one rank for {n_gpus} GPUs; use trace.owner=sequences")
    gpu = rank * n_gpus // ranks.size
    if ranks.size < n_gpus:
        first = -(-np.arange(ranks.size + 1) * n_gpus // ranks.size)     # GPUs first[r] to first[r + 1] - 1 are rank r
        for r in range(ranks.size):
            own = np.flatnonzero(rank == r)
            _, which = np.unique(tokens.seq[own], return_inverse=True)
            gpu[own] = first[r] + which % (first[r + 1] - first[r])
    rows = np.empty((n_gpus, _wanted(tokens_per_gpu)), np.int64)
    for g in range(n_gpus):
        own = np.flatnonzero(gpu == g)
        if not own.size:
            raise InputError(f"trace.owner=recorded: GPU {g} of {n_gpus} gets no token of the trace's {ranks.size} ranks")
        rows[g] = own[np.arange(tokens_per_gpu) % own.size]
    return dealt(tokens, rows)


def blocks(rng: np.random.Generator, tokens: Tokens, n_gpus: int, tokens_per_gpu: int) -> Deal:
    """Contiguous blocks in the order of the trace; behind the last token comes the first again. Draws nothing.

    Raises:
        InputError: less than one token per GPU.
    """
    rows = np.arange(n_gpus * _wanted(tokens_per_gpu)) % tokens.n_tokens
    return dealt(tokens, rows.reshape(n_gpus, tokens_per_gpu))


def shuffled(rng: np.random.Generator, tokens: Tokens, n_gpus: int, tokens_per_gpu: int) -> Deal:
    """Tokens in random order, whatever their sequence; every token comes once before any comes twice.

    Raises:
        InputError: less than one token per GPU.
    """
    wanted = n_gpus * _wanted(tokens_per_gpu)
    turns = [rng.permutation(tokens.n_tokens) for _ in range(-(-wanted // tokens.n_tokens))]
    return dealt(tokens, np.concatenate(turns)[:wanted].reshape(n_gpus, tokens_per_gpu))


def continuous(
    rng: np.random.Generator, tokens: Tokens, n_gpus: int, tokens_per_gpu: int, *, batch: int | None = None, at: int | None = None
) -> Deal:
    """Continuous batching: each GPU runs `batch` sequences side by side, a token of each per step, and a sequence that ends makes
    room for the next in the order of the trace. Draws nothing.

    Sequences are dealt to GPUs in turn; after the last one comes the first again. Step 0 finds every slot part of the way through
    its first sequence, evenly from its beginning to its end, so that positions are mixed as they are in a server that has run
    for a while.

    Args:
        batch: sequences that run on a GPU; left out, tokens_per_gpu, so that one pass is one step. Otherwise a pass is
            tokens_per_gpu / batch steps, one after the other.
        at: the step that the pass begins with; left out, 0.

    Raises:
        InputError: a batch that does not divide tokens_per_gpu, a step below 0.
    """
    batch = _wanted(tokens_per_gpu) if batch is None else batch
    if batch < 1 or tokens_per_gpu % batch:
        raise InputError(f"trace.batch={batch}: must divide workload.tokens_per_gpu={tokens_per_gpu}; a pass is whole steps")
    order, length = sequences_in_order(tokens)
    if at is not None and at < 0:
        raise InputError(f"trace.at={at}: must be a step from 0 up")
    begin = at or 0
    end = begin + tokens_per_gpu // batch
    first = np.cumsum(length) - length
    slots = n_gpus * batch                                      # slot s is on GPU s % n_gpus
    free = [(-(s * int(length[s % length.size]) // slots), s) for s in range(slots)]        # (step from which it is free, slot)
    heapq.heapify(free)
    rows = np.empty((n_gpus, tokens_per_gpu // batch, batch), np.int64)
    first_cards, card = set(range(slots)), slots
    while free[0][0] < end:
        start, slot = heapq.heappop(free)
        if slot in first_cards:
            first_cards.remove(slot)
            sequence = slot % length.size
        else:
            sequence, card = card % length.size, card + 1
        stop = start + int(length[sequence])
        for step in range(max(start, begin), min(stop, end)):
            rows[slot % n_gpus, step - begin, slot // n_gpus] = order[first[sequence] + step - start]
        heapq.heappush(free, (stop, slot))
    return dealt(tokens, rows.reshape(n_gpus, tokens_per_gpu))


def _wanted(tokens_per_gpu: int) -> int:
    if tokens_per_gpu < 1:
        raise InputError(f"workload.tokens_per_gpu={tokens_per_gpu}: each GPU needs at least one token")
    return tokens_per_gpu
