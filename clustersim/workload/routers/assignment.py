"""Balanced assignment: every expert gets the same number of tokens, and the scores sum as high as they can."""

from __future__ import annotations

import numpy as np

from clustersim.types import Floats, InputError, Ints
from clustersim.workload.routers.activation import Scores, activated, best, checked, weights_of

EXACT_ROUNDS = 100          # after that a bidder no longer keeps what it won, and the auction ends fast


def base(scores: Scores, *, method: str = "exact") -> tuple[Ints, Floats]:
    """One expert per token, tokens / experts to each; the weight is the sigmoid of its score.

    Args:
        method: "exact": the largest sum there is; "auction": within tokens times a 50th of the scores' range of it, as
            fairseq does (it also shuffles tokens between workers first, which is one more exchange and not counted);
            "greedy": the best expert, unbalanced, as fairseq evaluates.

    Raises:
        InputError: tokens are no multiple of the experts, no such method, a score is NaN.

    Source: BASE layers (arXiv 2103.16716); fairseq, modules/base_layer.py and libbase/balanced_assignment.cpp.
    """
    n_tokens, n_experts = checked(scores).shape
    if method not in ("exact", "auction", "greedy"):
        raise InputError(f"router.method={method}: must be exact, auction or greedy")
    if method == "greedy":
        ids = best(scores, 1)
        return ids, weights_of(activated(scores, "sigmoid"), ids, renormalise=False)
    if n_tokens % n_experts:
        raise InputError(
            f"router=base: the {n_tokens} tokens of a GPU must be a multiple of the {n_experts} experts; "
            "choose workload.tokens_per_gpu so"
        )
    expert = (assigned_exactly if method == "exact" else assigned_by_auction)(scores)
    ids = expert[:, None]
    return ids, weights_of(activated(scores, "sigmoid"), ids, renormalise=False)


def assigned_exactly(scores: Scores) -> Ints:
    """int [tokens]: the expert of each, tokens / experts to each expert, with the largest sum of scores."""
    from clustersim.workload.routers import assignment_kernel

    assigned: Ints = assignment_kernel.assign_rows(-np.asarray(scores, np.float64), len(scores) // scores.shape[1])
    return assigned


def assigned_by_auction(scores: Scores) -> Ints:
    """int [tokens], as `assigned_exactly` up to tokens times epsilon, a 50th of the scores' range and at least 1e-4.

    Experts bid for tokens. An auction that is not over after its exact rounds, as with many ties, ends further off.
    """
    n_tokens, n_experts = scores.shape
    share = n_tokens // n_experts
    if n_experts == 1 or not n_tokens:
        return np.zeros(n_tokens, np.int64)
    worth = np.ascontiguousarray(np.asarray(scores, np.float64).T)
    epsilon = max((worth.max() - worth.min()) / 50, 1e-4)
    value, price = worth.copy(), np.zeros(n_tokens)
    kept: tuple[Ints, Ints] | None = None               # (experts, tokens) of the round before
    rounds = 0
    while True:
        wanted = best(value, share + 1)
        offered = np.take_along_axis(value, wanted, axis=1)
        bids = np.zeros(worth.shape)
        np.put_along_axis(bids, wanted[:, :-1], offered[:, :-1] - offered[:, -1:] + epsilon, axis=1)
        if kept is not None and rounds < EXACT_ROUNDS:
            bids[kept] = epsilon
        winner, bid = bids.argmax(axis=0), bids.max(axis=0)
        if (bid > 0).all():                             # as many bids as tokens, so that each token has one
            expert = np.empty(n_tokens, np.int64)
            expert[wanted[:, :-1]] = np.arange(n_experts)[:, None]
            return expert
        price += bid
        value = worth - price
        tokens = np.flatnonzero(bid > 0)
        kept = (winner[tokens], tokens)
        value[kept] = worth.max() if rounds < EXACT_ROUNDS else worth[kept]
        rounds += 1
