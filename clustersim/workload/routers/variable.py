"""Routers by which a token takes as many experts as its scores call for. Rows are filled up with -1, the weight there is 0."""

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


def top_p(
    scores: Scores, *, p: float = 0.7, most: int | None = None, renormalise: bool = False
) -> tuple[Ints, Floats]:
    """The fewest experts whose softmax sums to p or more; of many tokens some take one, some several.

    Args:
        most: a token takes no more than this; None: no limit.

    Raises:
        InputError: p is not in (0, 1], most is below 1 or above the experts, a score is NaN.

    Source: Huang et al. 2024, "Harder Tasks Need More Experts" (arXiv 2403.07652).
    """
    if not 0 < p <= 1:
        raise InputError(f"router.p={p}: must be above 0 and at most 1")
    most = scores.shape[1] if most is None else most
    if not 1 <= most <= scores.shape[1]:
        raise InputError(f"router.most={most}: must be from 1 to {scores.shape[1]}, the experts that are scored")
    values = activated(checked(scores), "softmax")
    ids = falling(values, floor=0.0, target=p * (1 - 1e-6), most=most)      # so that a sum of p in decimals counts as p
    return ids, weights_of(values, ids, renormalise=renormalise)


def remoe(scores: Scores, *, k: int, shift: float | None = None) -> tuple[Ints, Floats]:
    """Every expert whose score is above `shift`; the weight is what it is above.

    Args:
        shift: None: such that k experts per token are active on average over these tokens, which is where the L1
            coefficient of the training loss steers the scores (`losses.relu_coefficient`).

    Raises:
        InputError: k does not fit, a score is NaN.

    Source: ReMoE (arXiv 2412.14711); thu-ml/ReMoE, router.py.
    """
    checked(scores, k)
    if shift is None:
        if not len(scores):
            return np.zeros((0, 0), np.int64), np.zeros((0, 0))
        shift = _order_statistic(scores.ravel(), len(scores) * k)
    values = np.maximum(scores - scores.dtype.type(shift), 0)
    ids = falling(values, floor=0.0)
    return ids, weights_of(values, ids, renormalise=False)


def threshold(
    scores: Scores, *, k: int, score: str = "sigmoid", renormalise: bool = False, bias: Floats | None = None
) -> tuple[Ints, Floats]:
    """Every expert takes the tokens whose activated score is above its own threshold, whatever other tokens there are.

    Args:
        k: experts per token on average, which the thresholds aim at.
        bias: float [experts], minus the thresholds, from earlier tokens (rule `order_statistic`); None: from these very
            tokens, so that the loads are equal, as under expert choice.

    Raises:
        InputError: k does not fit, a score is NaN.

    Source: Expert Threshold routing (arXiv 2603.11535).
    """
    values = activated(checked(scores, k), score)
    if bias is None:
        bias = -expert_thresholds(values, k)
    over = values + np.asarray(bias, values.dtype)
    ids = falling(np.where(over > 0, values, -np.inf), floor=-math.inf)
    return ids, weights_of(values, ids, renormalise=renormalise)


def expert_thresholds(values: Scores, k: int) -> Floats:
    """float [experts]: the score that T k / E of the tokens exceed, for every expert."""
    n_tokens, n_experts = values.shape
    share = n_tokens * k // n_experts
    if share >= n_tokens:
        return np.full(n_experts, -np.inf)
    return np.asarray(column_statistic(values, n_tokens - share - 1), np.float64)


def quantile_balanced(
    scores: Scores, *, k: int, score: str = "sigmoid", rounds: int = 1, renormalise: bool = True, scale: float = 1.0,
    bias: Floats | None = None,
) -> tuple[Ints, Floats]:
    """The k largest of activated score less beta; beta evens the load out and is no part of the weights.

    Args:
        rounds: of `dual_beta` over these very tokens, from 0, where no bias is given.
        bias: float [experts], minus beta, from earlier tokens (rule `quantile`).

    Raises:
        InputError: tokens times k is no multiple of the experts, k does not fit, a score is NaN.

    Source: quantile balancing as in Megatron-LM d98e8a6, moe_utils.py (`qb_dual_update`).
    """
    values = activated(checked(scores, k), score)
    if bias is None:
        beta = np.zeros(scores.shape[1])
        for _ in range(rounds):
            beta = dual_beta(values, k, beta)
        bias = -beta
    ids = best(values, k, bias)
    if score == "none":
        return ids, softmax_of(values, ids)
    return ids, weights_of(values, ids, renormalise=renormalise, scale=scale)


def dual_beta(values: Scores, k: int, beta: Floats) -> Floats:
    """One round of the balanced assignment's dual problem: beta float [experts] for scores and the beta before it.

    alpha of a token is its (k + 1)-th largest score less beta; beta of an expert its (T k / E + 1)-th largest score less alpha.

    Raises:
        InputError: tokens times k is no multiple of the experts.
    """
    n_tokens, n_experts = values.shape
    share, rest = divmod(n_tokens * k, n_experts)
    if rest:
        raise InputError(
            f"router=quantile: {n_tokens} tokens of a GPU times top-{k} must be a multiple of the {n_experts} experts; "
            "choose workload.tokens_per_gpu so"
        )
    if k == n_experts or share == n_tokens:
        return np.zeros(n_experts)
    less = values - np.asarray(beta, values.dtype)
    alpha = -np.partition(-less, k, axis=1)[:, k]
    return np.asarray(-column_statistic(alpha[:, None] - values, share), np.float64)


def _order_statistic(values: Scores, share: int) -> float:
    """A number that `share` of the values exceed (fewer where values are equal)."""
    if share >= values.size:
        return -math.inf
    return float(np.partition(values, values.size - share - 1)[values.size - share - 1])
