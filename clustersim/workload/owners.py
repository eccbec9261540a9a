"""Which GPU owns which recorded token, beyond whole sequences and blocks: plain functions from tokens to a deal. No clock.

A rule is `name(rng, tokens, n_gpus, tokens_per_gpu, steps) -> Deal`, of tokens_per_gpu x steps tokens per GPU, step after step;
found by name (`workload.deal`).
"""

from __future__ import annotations

import heapq

import numpy as np

from clustersim.types import InputError
from clustersim.workload.deal import Deal, Tokens, dealt, sequences_in_order

__all__ = ["continuous", "recorded", "shuffled"]


def recorded(rng: np.random.Generator, tokens: Tokens, n_gpus: int, tokens_per_gpu: int, steps: int) -> Deal:
    """The rank that owned a token when it was recorded, its tokens in the order of the trace. Draws nothing.

    With as many GPUs as ranks, rank i is GPU i. With fewer GPUs, neighbouring ranks go together; with more, the sequences of a
    rank are dealt in turn to the GPUs that stand for it. A GPU that has too few tokens gets its own again.

    Raises:
        InputError: one rank for several GPUs, a GPU without any token.
    """
    ranks, rank = np.unique(tokens.rank, return_inverse=True)
    if ranks.size == 1 and n_gpus > 1:
        raise InputError(f"workload.deal=recorded: the trace names one rank for {n_gpus} GPUs; use workload.deal=sequences")
    gpu = rank * n_gpus // ranks.size
    if ranks.size < n_gpus:
        first = -(-np.arange(ranks.size + 1) * n_gpus // ranks.size)     # GPUs first[r] to first[r + 1] - 1 are rank r
        for r in range(ranks.size):
            own = np.flatnonzero(rank == r)
            _, which = np.unique(tokens.seq[own], return_inverse=True)
            gpu[own] = first[r] + which % (first[r + 1] - first[r])
    rows = np.empty((n_gpus, tokens_per_gpu * steps), np.int64)
    for g in range(n_gpus):
        own = np.flatnonzero(gpu == g)
        if not own.size:
            raise InputError(f"workload.deal=recorded: GPU {g} of {n_gpus} gets no token of the trace's {ranks.size} ranks")
        rows[g] = own[np.arange(tokens_per_gpu * steps) % own.size]
    return dealt(tokens, rows)


def shuffled(rng: np.random.Generator, tokens: Tokens, n_gpus: int, tokens_per_gpu: int, steps: int) -> Deal:
    """Tokens in random order, whatever their sequence; every token comes once before any comes twice."""
    wanted = n_gpus * tokens_per_gpu * steps
    turns = [rng.permutation(tokens.n_tokens) for _ in range(-(-wanted // tokens.n_tokens))]
    return dealt(tokens, np.concatenate(turns)[:wanted].reshape(n_gpus, steps * tokens_per_gpu))


def continuous(rng: np.random.Generator, tokens: Tokens, n_gpus: int, tokens_per_gpu: int, steps: int) -> Deal:
    """Continuous batching: each GPU runs `tokens_per_gpu` sequences side by side, a token of each per step, and a sequence that
    ends makes room for the next in the order of the trace. Draws nothing.

    Sequences are dealt to GPUs in turn; after the last one comes the first again. The first step finds every seat part of the
    way through its first sequence, evenly from beginning to end, so that positions are mixed as in a server that has run for a
    while.
    """
    order, length = sequences_in_order(tokens)
    first = np.cumsum(length) - length
    seats = n_gpus * tokens_per_gpu                             # seat s is on GPU s % n_gpus
    free = [(-(s * int(length[s % length.size]) // seats), s) for s in range(seats)]        # (step from which it is free, seat)
    heapq.heapify(free)
    rows = np.empty((n_gpus, steps, tokens_per_gpu), np.int64)
    begun, card = np.zeros(seats, bool), seats
    while free[0][0] < steps:
        start, seat = heapq.heappop(free)
        sequence, card = (card % length.size, card + 1) if begun[seat] else (seat % length.size, card)
        begun[seat] = True
        stop = start + int(length[sequence])
        for step in range(max(start, 0), min(stop, steps)):
            rows[seat % n_gpus, step, seat // n_gpus] = order[first[sequence] + step - start]
        heapq.heappush(free, (stop, seat))
    return dealt(tokens, rows.reshape(n_gpus, steps * tokens_per_gpu))
