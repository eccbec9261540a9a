"""Who stays when an expert is full: plain functions, found by name. No clock; how many places there are is not decided here.

A policy is `name(rng, contest, *, options) -> assigned`, int [tokens, top_k]: the expert that each choice gets, -1 none.
A policy of one's own is `capacity.drop=package.module:function`.

Ties fall to the earlier token. Gate weights, where a policy ranks by them, are those of the choice itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clustersim.pick import find
from clustersim.types import Float32s, Floats, InputError, Ints

__all__ = ["bpr", "choice_major", "deepspeed", "no_token_left_behind", "position", "prob", "random", "reroute"]

PIECE = 16_384          # tokens whose scores are in memory at a time
ELSEWHERE = ("no_token_left_behind", "reroute")         # policies that may give a choice to an expert it did not ask for


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Contest:
    """The choices of one layer and the places they compete for. A queue is what one pool of tokens asks of one unit."""

    asked: Ints                                 # [tokens, top_k] logical expert; -1 no expert
    weights: Floats | None                      # [tokens, top_k] gate weights, or None when unknown
    scores: Callable[[int, int], Float32s] | None       # as of Choices; columns beyond the experts are no experts of the model
    pool: Ints                                  # [tokens] tokens of one pool compete with each other and with nobody else
    unit: Ints                                  # [tokens, top_k] whose places the choice wants: its expert's, or a GPU's; -1 none
    room: Ints                                  # [pools, units] places
    protected: NDArray[np.bool_] | None = None  # [tokens] come first and are never dropped; they take places all the same


def position(rng: np.random.Generator, contest: Contest) -> Ints:
    """First come, first served: the earliest tokens stay.

    Source: DeepSpeed edaa7221, deepspeed/moe/sharded_moe.py (`topkgating`, policy "position": a running count over
    tokens). Megatron-LM's policy of this name is a top-k over ties, in no defined order.
    """
    return _first_come(contest, by_choice=False)


def choice_major(rng: np.random.Generator, contest: Contest) -> Ints:
    """First all first choices in order of the tokens, then all second ones, and so on.

    GShard, DeepSpeed's top-2 gate, Tutel, flaxformer and V-MoE. Whether second choices are counted on behind all first
    ones (DeepSpeed edaa7221) or behind those that were kept (Mesh TensorFlow) does not matter to who stays: the two
    differ only where the expert is full.
    """
    return _first_come(contest, by_choice=True)


def bpr(rng: np.random.Generator, contest: Contest) -> Ints:
    """Batch-prioritised routing: `choice_major` over the tokens sorted by the router's confidence, surest first.

    Confidence is the largest probability that the softmax over all experts gives, where scores are known (V-MoE,
    arXiv 2106.05974; Tutel ac0e51b9, tutel/impls/fast_dispatch.py); else the token's largest gate weight, which is the
    same unless weights were normalised over the chosen experts.

    Raises:
        InputError: neither scores nor gate weights are known.
    """
    return _first_come(contest, np.argsort(-_confidence(contest), kind="stable"), by_choice=True)


def prob(rng: np.random.Generator, contest: Contest) -> Ints:
    """The largest gate weights stay; of equal ones the earlier token.

    Source: Megatron-LM d98e8a64, megatron/core/transformer/moe/moe_utils.py (drop policy "probs").

    Raises:
        InputError: gate weights are not known.
    """
    if contest.weights is None:
        raise InputError(
            "capacity.drop=prob: the trace has no gate weights to rank tokens by; "
            "use capacity.drop=position, or a trace recorded with gate_weights"
        )
    return _largest(contest, contest.weights)


def random(rng: np.random.Generator, contest: Contest) -> Ints:
    """Whoever draws the larger number stays: DeepSpeed's random token selection (edaa7221, `top1gating`, use_rts)."""
    return _largest(contest, rng.random(contest.asked.shape))


def deepspeed(rng: np.random.Generator, contest: Contest) -> Ints:
    """What DeepSpeed's gates do unless told otherwise: top-1 `random`, top-2 `choice_major`, more `prob`.

    Source: DeepSpeed edaa7221, deepspeed/moe/sharded_moe.py (`top1gating`, `top2gating`, `topkgating`).
    """
    return {1: random, 2: choice_major}.get(contest.asked.shape[1], prob)(rng, contest)


def reroute(rng: np.random.Generator, contest: Contest, *, first: str = "position") -> Ints:
    """A choice that finds its expert full goes to the token's best-scored expert that has room, if any.

    Token by token, after the places are given to those who asked for them. A token never holds an expert twice.

    Args:
        first: the policy that says who of those who asked for an expert gets its places.

    Raises:
        InputError: scores are not known.
    """
    if first in ELSEWHERE:
        raise InputError(f"capacity.first={first}: must be a policy that only drops, such as position or prob")
    assigned: Ints = find(sys.modules[__name__], first, "capacity.first")(rng, contest)
    lost = np.asarray(((contest.asked >= 0) & (assigned < 0)).any(axis=1))
    left = _left(contest, assigned)
    from clustersim.workload import capacity_kernel

    for begin, end in _pieces(lost.size):
        if lost[begin:end].any():
            scores = _scores("reroute", contest, begin, end)[:, : left.shape[1]]        # the model's own experts
            capacity_kernel.take_next(contest.asked, assigned, begin, scores, contest.pool, left)
    return assigned


def no_token_left_behind(rng: np.random.Generator, contest: Contest, *, tries: int | None = None) -> Ints:
    """`choice_major`; then a token that has got no expert at all tries its other ones, best score first, in rounds.

    In a round all such tokens, in their order, try their next best expert; who gets a place is out. With top-1 routing
    that is Mesh TensorFlow's no-token-left-behind (mesh_tensorflow/transformer/moe.py, `_ntlb_gating`).

    Args:
        tries: experts that a token may try in all, its own choices included; None: as many as there are.

    Raises:
        InputError: scores are not known, or tries is below 1.
    """
    if tries is not None and tries < 1:
        raise InputError(f"capacity.tries={tries}: a token tries at least one expert (null: all)")
    assigned = choice_major(rng, contest)
    lost = np.flatnonzero((contest.asked >= 0).any(axis=1) & (assigned < 0).all(axis=1))
    left = _left(contest, assigned)
    n_experts = contest.room.shape[1]
    ranked = _others(contest, lost, n_experts if tries is None else min(tries, n_experts))
    slot = (contest.asked[lost] >= 0).argmax(axis=1)            # the choice whose place in the token the new expert takes
    for turn in range(ranked.shape[1]):
        if not lost.size:
            break
        wanted = ranked[:, turn : turn + 1].astype(np.int64)
        place = _places(wanted, contest.pool[lost], n_experts)
        won = np.flatnonzero((wanted[:, 0] >= 0) & (place[:, 0] < left[contest.pool[lost], wanted[:, 0]]))
        assigned[lost[won], slot[won]] = wanted[won, 0]
        np.subtract.at(left, (contest.pool[lost[won]], wanted[won, 0]), 1)
        out = np.ones(lost.size, bool)
        out[won] = False
        lost, slot, ranked = lost[out], slot[out], ranked[out]
    return assigned


def places(contest: Contest, tokens: Ints | None = None, *, by_choice: bool = False) -> Ints:
    """Each choice's place in its queue, from 0, int [tokens, top_k]; -1 where it asks for nothing.

    Those of `tokens`, in that order (None: all, as they come); token by token, or first all first choices (`by_choice`).
    """
    return _places(contest.unit, contest.pool, contest.room.shape[1], tokens, by_choice=by_choice)


def _places(unit: Ints, pool: Ints, n_units: int, *queues: Ints | None, by_choice: bool = False) -> Ints:
    """Places of the choices of one list of tokens after the other; None: all tokens."""
    from clustersim.workload import capacity_kernel

    place = np.full(unit.shape, -1, np.int64)
    count = np.zeros((int(pool.max(initial=0)) + 1) * n_units, np.int64)
    for tokens in queues or (None,):
        every = np.arange(unit.shape[0]) if tokens is None else tokens
        capacity_kernel.line_up(unit, pool, n_units, every, by_choice, count, place)
    return place


def _first_come(contest: Contest, tokens: Ints | None = None, *, by_choice: bool) -> Ints:
    """`asked` where a choice's place in its queue is below the room, else -1; protected tokens line up first."""
    queues: tuple[Ints | None, ...] = (tokens,)
    if contest.protected is not None:
        every = np.arange(contest.protected.size) if tokens is None else tokens
        queues = (every[contest.protected[every]], every[~contest.protected[every]])
    place = _places(contest.unit, contest.pool, contest.room.shape[1], *queues, by_choice=by_choice)
    kept = place < contest.room[contest.pool[:, None], contest.unit]            # unit -1 asks for nothing, and is -1 in `asked`
    return _kept(contest, kept)


def _largest(contest: Contest, value: Floats) -> Ints:
    """`asked` where the value is among the largest that the room allows in its queue, else -1."""
    from clustersim.workload import capacity_kernel

    if contest.protected is not None:
        value = np.where(contest.protected[:, None], np.inf, value)
    kept = np.zeros(contest.asked.shape, np.bool_)
    capacity_kernel.keep_largest(
        contest.unit, contest.pool, contest.room.shape[1], np.asarray(value, np.float64), contest.room.ravel(), kept
    )
    return _kept(contest, kept)


def _kept(contest: Contest, kept: NDArray[np.bool_]) -> Ints:
    if contest.protected is not None:
        kept = kept | contest.protected[:, None]
    return np.where(kept, contest.asked, -1)


def _left(contest: Contest, assigned: Ints) -> Ints:
    """Places that are still free, int [pools, experts]."""
    taken = contest.pool[:, None] * contest.room.shape[1] + assigned
    count = np.bincount(taken[assigned >= 0], minlength=contest.room.size)
    left: Ints = np.maximum(contest.room - count.reshape(contest.room.shape), 0)
    return left


def _others(contest: Contest, tokens: Ints, tries: int) -> NDArray[np.int32]:
    """The best-scored experts that each of `tokens` did not ask for, best first, int [tokens, some]; -1 none left.

    With those that it did ask for they are at most `tries`.
    """
    more = tries - (contest.asked[tokens] >= 0).sum(axis=1)
    n = max(0, int(more.max(initial=0)))
    ranked = np.full((tokens.size, n), -1, np.int32)
    for begin, end in _pieces(contest.asked.shape[0]):
        rows = slice(*np.searchsorted(tokens, (begin, end)))
        if rows.start < rows.stop and n:
            scores = _scores("no_token_left_behind", contest, begin, end)[tokens[rows] - begin, : contest.room.shape[1]]
            own = contest.asked[tokens[rows]]
            row, choice = np.nonzero(own >= 0)
            scores[row, own[row, choice]] = -np.inf
            order = np.argsort(-scores, axis=1, kind="stable")[:, :n]
            none = np.isneginf(np.take_along_axis(scores, order, axis=1)) | (np.arange(n) >= more[rows, None])
            ranked[rows] = np.where(none, -1, order)
    return ranked


def _confidence(contest: Contest) -> Floats:
    """How sure the router is of each token, float [tokens]."""
    if contest.scores is None:
        if contest.weights is None:
            raise InputError(
                "capacity.drop=bpr: the trace has neither gate weights nor scores to rank tokens by; "
                "use capacity.drop=choice_major, or a trace recorded with gate_weights"
            )
        largest: Floats = np.where(contest.asked < 0, -np.inf, contest.weights).max(axis=1)
        return largest
    sure = np.empty(contest.asked.shape[0])
    for begin, end in _pieces(sure.size):
        scores = _scores("bpr", contest, begin, end)
        sure[begin:end] = 1 / np.exp(scores - scores.max(axis=1, keepdims=True), dtype=np.float64).sum(axis=1)
    return sure


def _pieces(n_tokens: int) -> Iterator[tuple[int, int]]:
    """(first, last) of consecutive pieces of at most PIECE tokens."""
    for begin in range(0, n_tokens, PIECE):
        yield begin, min(begin + PIECE, n_tokens)


def _scores(policy: str, contest: Contest, begin: int, end: int) -> Float32s:
    """Scores of tokens begin to end - 1, float32 [end - begin, experts and what else is routed to]; a copy."""
    if contest.scores is None:
        raise InputError(
            f"capacity.drop={policy}: the trace has no router scores to rank other experts by; "
            "use trace=sampled, a trace recorded with scores, or capacity.drop=position"
        )
    scores = np.array(contest.scores(begin, end), np.float32)
    if np.isnan(scores).any():
        token = begin + int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])
        raise InputError(f"capacity.drop={policy}: the router score of token {token} is nan; scores must be numbers")
    return scores
