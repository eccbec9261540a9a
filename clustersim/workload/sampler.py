"""Routing without a trace: plain functions to expert ids and gate weights, both [tokens, top_k]. No trace, no clock."""

from __future__ import annotations

import math

import numpy as np

from clustersim.types import Floats, InputError, Ints


def dirichlet(
    rng: np.random.Generator, tokens: int, *, n_experts: int, top_k: int, alpha: float
) -> tuple[Ints, Floats]:
    """Independent tokens over experts of unequal popularity.

    Popularity p is one draw from a symmetric Dirichlet(alpha): the smaller alpha, the fewer experts share the load
    (its coefficient of variation is sqrt((E - 1) / (E alpha + 1))). Every token takes top_k experts without replacement
    with probabilities proportional to p, as the top_k of log p + Gumbel noise (Plackett-Luce). Gate weights are the
    softmax over those top_k noisy scores, largest first.

    Raises:
        InputError: alpha is not a number above 0.
    """
    if not 0 < alpha < math.inf:
        raise InputError(f"trace.alpha={alpha}: must be a number above 0 (1 is moderate; the smaller, the more uneven)")
    # log of a Gamma(alpha) draw as log Gamma(alpha + 1) + log(U) / alpha, which does not underflow where alpha is small
    log_p = np.log(rng.standard_gamma(alpha + 1, n_experts)) + np.log1p(-rng.random(n_experts)) / alpha
    score = (log_p - log_p.max()).astype(np.float32) - _log_exponential(rng, (tokens, n_experts))
    ids = np.argpartition(score, n_experts - top_k, axis=1)[:, n_experts - top_k :]
    ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(score, ids, axis=1), axis=1, kind="stable"), axis=1)
    chosen = np.take_along_axis(score, ids, axis=1).astype(np.float64)
    odds = np.exp(chosen - chosen[:, :1])
    return ids, odds / odds.sum(axis=1, keepdims=True)


def balanced(index: Ints, *, n_experts: int, top_k: int) -> tuple[Ints, Floats]:
    """Choice j of the token at place t of its GPU's batch is expert (t · top_k + j) mod experts, all weights equal.

    Every expert gets the same number from a GPU whose tokens · top_k is a multiple of the experts.

    Args:
        index: int [tokens], place in the GPU's batch.
    """
    ids = (index[:, None] * top_k + np.arange(top_k)) % n_experts
    return ids, np.full(ids.shape, 1.0 / top_k)


def _log_exponential(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Logarithms of standard exponential draws: minus Gumbel noise, in single precision for speed."""
    draw = rng.standard_exponential(shape, dtype=np.float32)
    np.maximum(draw, np.float32(1e-30), out=draw)       # a draw of exactly 0 has no logarithm
    return np.log(draw, out=draw)
