"""From scores to what routers compare: softmax, sigmoid, their checks, and the best few of a row. Chooses by no router's rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.pick import did_you_mean
from clustersim.types import Floats, InputError, Ints

Scores = NDArray[np.floating[Any]]          # [tokens, experts], float32 or float64: what the router's matrix gives

PIECE = 1024                                # tokens worked on at a time: 1 MiB of 256 scores stays in the cache
ACTIVATIONS = ("softmax", "sigmoid", "sqrtsoftplus", "none")


def check_k(k: int, n_experts: int) -> None:
    """
    Raises:
        InputError: k is not a whole number from 1 to the number of experts.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= n_experts:
        raise InputError(f"router.k={k}: must be a whole number from 1 to {n_experts}, the experts that are scored")


def checked(scores: Scores, k: int = 1) -> Scores:
    """`scores`, once they are numbers and there are k experts.

    Raises:
        InputError: k is not from 1 to the number of experts; a score is NaN.
    """
    check_k(k, scores.shape[1])
    for part in pieces(len(scores)):
        check_numbers(scores[part], part.start)
    return scores


def check_numbers(scores: Scores, first: int = 0) -> None:
    """
    Args:
        first: number of the first of these tokens.

    Raises:
        InputError: a score is NaN.
    """
    if scores.size and np.isnan(scores.max()):
        token, expert = np.argwhere(np.isnan(scores))[0]
        raise InputError(f"router scores: token {first + token}, expert {expert} is NaN; every score must be a number")


def pieces(n_tokens: int) -> Iterator[slice]:
    """Consecutive runs of at most PIECE tokens."""
    for first in range(0, n_tokens, PIECE):
        yield slice(first, min(first + PIECE, n_tokens))


def activated(scores: Scores, kind: str) -> Scores:
    """softmax over the experts, sigmoid, sqrt(log(1 + exp)) or the scores themselves; in the precision of `scores`.

    Raises:
        InputError: no such activation.
    """
    if kind == "none":
        return scores
    if kind == "softmax":
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        return np.asarray(odds)
    if kind == "sigmoid":
        out = np.negative(scores)
        with np.errstate(over="ignore"):        # exp of a large number is inf, and 1 / (1 + inf) is 0
            np.exp(out, out=out)
        out += 1
        return np.reciprocal(out, out=out)
    if kind == "sqrtsoftplus":
        out = np.logaddexp(scores, scores.dtype.type(0))
        return np.sqrt(out, out=out)
    raise InputError(f"router.score={kind}: must be one of {', '.join(ACTIVATIONS)}{did_you_mean(str(kind), ACTIVATIONS)}")


def column_statistic(values: Scores, place: int) -> Scores:
    """The value at `place` of every column in rising order: [experts]."""
    return np.asarray(np.partition(np.ascontiguousarray(values.T), place, axis=1)[:, place])


def best(scores: Scores, k: int, bias: Floats | None = None) -> Ints:
    """Experts of the k largest scores + bias of every token, largest first; of equal ones the lower. int [tokens, k].

    Raises:
        InputError: k is not from 1 to the number of experts; a score is NaN.
    """
    from clustersim.workload.routers import kernels

    check_k(k, scores.shape[1])
    ids = np.empty((len(scores), k), np.int64)
    added = np.zeros(scores.shape[1], scores.dtype) if bias is None else np.asarray(bias, scores.dtype)
    for part in pieces(len(scores)):
        check_numbers(scores[part], part.start)
        kernels.top_rows(np.ascontiguousarray(scores[part]), added, k, ids[part])
    return ids


def softmax_of(scores: Scores, ids: Ints) -> Floats:
    """The softmax over the scores of the chosen alone, float [tokens, k]; none is missing."""
    from clustersim.workload.routers import kernels

    weights = np.empty(ids.shape)
    kernels.softmax_rows(np.ascontiguousarray(scores), ids, weights)
    return weights


def weights_of(values: Scores, ids: Ints, *, renormalise: bool, scale: float = 1.0) -> Floats:
    """values of the chosen, over their sum where renormalised, times scale; 0 where none is chosen. float [tokens, k]."""
    from clustersim.workload.routers import kernels

    weights = np.empty(ids.shape)
    kernels.weigh_rows(np.ascontiguousarray(values), ids, renormalise, float(scale), weights)
    return weights


def falling(values: Scores, *, floor: float, target: float = np.inf, most: int | None = None) -> Ints:
    """Experts of values above `floor` in falling order, until their sum reaches `target` or there are `most`; else -1.

    Returns:
        int [tokens, widest], as many columns as the token with the most experts has.
    """
    from clustersim.workload.routers import kernels

    ids = np.full((len(values), values.shape[1] if most is None else most), -1, np.int64)
    widest = kernels.falling_rows(np.ascontiguousarray(values), floor, target, ids.shape[1], ids)
    return np.ascontiguousarray(ids[:, :widest])
