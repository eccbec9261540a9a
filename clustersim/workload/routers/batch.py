"""Routers that look at all tokens of a GPU's batch at once. None of them can route one token alone, as decoding does."""

from __future__ import annotations

import math

import numpy as np

from clustersim.types import Floats, InputError, Ints
from clustersim.workload.routers.activation import (
    Scores,
    activated,
    best,
    checked,
    column_statistic,
    falling,
    softmax_of,
    weights_of,
)


def expert_choice(scores: Scores, *, k: int, factor: float = 1.0) -> tuple[Ints, Floats]:
    """Every expert takes the tokens with its largest softmax, max(1, round(T k factor / E)) of them; a token has any number.

    Args:
        k: experts per token on average at factor 1.

    Returns:
        ids int [tokens, widest] in falling softmax (-1: no more), weights the softmax over all experts.

    Raises:
        InputError: factor is not above 0, k does not fit, a score is NaN.

    Source: Expert Choice (arXiv 2202.09368); google/flaxformer, routing.py (`ExpertsChooseMaskedRouter`).
    """
    if not 0 < factor < math.inf:
        raise InputError(f"router.factor={factor}: must be a number above 0")
    n_tokens, n_experts = checked(scores, k).shape
    if not n_tokens:
        return np.zeros((0, 0), np.int64), np.zeros((0, 0))
    take = min(max(1, round(n_tokens * k * factor / n_experts)), n_tokens)
    values = activated(scores, "softmax")
    last = column_statistic(values, n_tokens - take)        # of those an expert takes, the smallest
    taken = values >= last
    for expert in np.flatnonzero(np.count_nonzero(taken, axis=0) > take):
        level = np.flatnonzero(values[:, expert] == last[expert])       # of equal ones the earlier tokens
        spare = np.count_nonzero(taken[:, expert]) - take
        taken[level[level.size - spare :], expert] = False
    ids = falling(np.where(taken, values, -1), floor=-0.5)
    return ids, weights_of(values, ids, renormalise=False)


def sinkhorn(scores: Scores, *, k: int, tolerance: float = 1e-4, balance: bool = True) -> tuple[Ints, Floats]:
    """The k largest of exp(scores), rows and columns rescaled in turn until tokens and experts have equal sums.

    Loads become even, not equal. Weights do not follow the rescaling: sigmoid of the score for k = 1, else the softmax
    over all experts.

    Args:
        tolerance: ends where the experts' factors move less than this on average.
        balance: False: the plain top k, as in evaluation.

    Raises:
        InputError: tolerance is not above 0, k does not fit, a score is NaN.

    Source: S-BASE (arXiv 2202.01169); Megatron-LM d98e8a6, moe_utils.py (`sinkhorn`), router.py (`sinkhorn_load_balancing`).
    """
    checked(scores, k)
    ids = best(sinkhorn_scaled(scores, tolerance) if balance else scores, k)
    return ids, weights_of(activated(scores, "sigmoid" if k == 1 else "softmax"), ids, renormalise=False)


def sinkhorn_scaled(scores: Scores, tolerance: float = 1e-4) -> Floats:
    """exp(scores) with rows that sum to about 1 / tokens and columns that sum to 1 / experts: float [tokens, experts].

    Raises:
        InputError: tolerance is not above 0.
    """
    if not tolerance > 0:
        raise InputError(f"router.tolerance={tolerance}: must be above 0")
    n_tokens, n_experts = scores.shape
    if not n_tokens:
        return np.zeros(scores.shape)
    matrix = np.exp(np.asarray(scores, np.float64) - scores.max(axis=1, keepdims=True))     # a row's factor cancels
    of_expert, moved = np.ones(n_experts), math.inf
    while moved > tolerance:
        of_token = 1 / (n_tokens * np.maximum(matrix @ of_expert, 1e-300))
        now = 1 / (n_experts * np.maximum(of_token @ matrix, 1e-300))       # 0 where every exp underflows
        moved, of_expert = float(np.abs(now - of_expert).mean()), now
    return np.asarray(of_expert * matrix * of_token[:, None])


def soft_moe(scores: Scores, *, slots: int | None = None) -> tuple[Ints, Floats]:
    """Slots, each a mixture of all the batch's tokens, go to the experts: what travels does not depend on the scores.

    Row t stands for slot t of the batch, made on the GPU that holds it, and not for token t; there are slots · experts of
    them, and rows beyond have no expert. Weights are 1: the mixing is done before and after (`soft_moe_mixing`).

    Args:
        slots: per expert; None: as many as the batch's tokens give, tokens // experts.

    Raises:
        InputError: fewer tokens than slots.

    Source: Soft MoE (arXiv 2308.00951).
    """
    n_tokens, n_experts = scores.shape
    each = n_tokens // n_experts if slots is None else slots
    if n_tokens < n_experts:
        raise InputError(
            f"router=soft_moe: each of {n_experts} experts needs a slot, and the {n_tokens} tokens of a GPU carry one each; "
            "raise workload.tokens_per_gpu"
        )
    if each < 1 or each * n_experts > n_tokens:
        raise InputError(
            f"router.slots={slots}: must be from 1 to {n_tokens // n_experts} for each of {n_experts} experts, as the "
            f"{n_tokens} tokens of a GPU carry one slot each; raise workload.tokens_per_gpu"
        )
    ids = np.full((n_tokens, 1), -1, np.int64)
    ids[: each * n_experts, 0] = np.repeat(np.arange(n_experts), each)
    return ids, (ids >= 0).astype(np.float64)


def soft_moe_mixing(scores: Scores) -> tuple[Floats, Floats]:
    """How Soft MoE mixes tokens to slots (softmax over the tokens) and slots to tokens (softmax over the slots).

    Args:
        scores: float [tokens, slots].

    Returns:
        (dispatch, combine), both float [tokens, slots].
    """
    logits = np.asarray(scores, np.float64)
    return np.asarray(activated(logits.T, "softmax").T, np.float64), np.asarray(activated(logits, "softmax"), np.float64)


def mixture_of_depths(
    scores: Scores, *, k: int, capacity: float = 0.125, every: int = 2, sequence: Ints, layer: int
) -> tuple[Ints, Floats]:
    """In every n-th layer only the tokens of a sequence with the largest depth score take experts; others pass by.

    The last column of the scores is the depth score; the rest are experts, of which a token takes the top k with the
    softmax over them. What a token that passes by saves beside its experts (its attention) is not counted.

    Args:
        capacity: fraction of a sequence's tokens that are taken, at least one.
        every: 2: layers 0, 2, 4, ... of the MoE layers let tokens pass by.
        sequence: int [tokens], which sequence a token belongs to.
        layer: number of the MoE layer.

    Raises:
        InputError: capacity is not in (0, 1], every is below 1, k does not fit, a score is NaN.

    Source: Mixture-of-Depths (arXiv 2404.02258), staged with experts.
    """
    if not 0 < capacity <= 1:
        raise InputError(f"router.capacity={capacity}: must be above 0 and at most 1")
    if every < 1:
        raise InputError(f"router.every={every}: must be a whole number from 1 up")
    checked(scores[:, :-1], k)
    experts = np.ascontiguousarray(scores[:, :-1])
    ids = best(experts, k)
    weights = softmax_of(experts, ids)
    if layer % every == 0:
        passing = ~taken_deep(checked(scores)[:, -1], sequence, capacity)
        ids[passing] = -1
        weights[passing] = 0.0
    return ids, weights


def taken_deep(depth: Scores, sequence: Ints, capacity: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """bool [tokens]: the largest depth scores of every sequence, int(capacity · tokens) but at least one of it."""
    order = np.lexsort((np.arange(depth.size), -depth, sequence))
    count = np.bincount(sequence)
    start = np.cumsum(count) - count
    place = np.arange(depth.size) - start[sequence[order]]
    taken = np.zeros(depth.size, bool)
    room = np.maximum(1, np.floor(capacity * count * (1 + 1e-12)).astype(np.int64))
    taken[order[place < room[sequence[order]]]] = True
    return taken
