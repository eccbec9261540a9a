"""Routers by which every token takes its best k experts. Each token alone: no capacity, no other token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clustersim.pick import did_you_mean
from clustersim.types import Floats, InputError, Ints
from clustersim.workload.routers.activation import (
    Scores,
    activated,
    best,
    check_k,
    check_numbers,
    pieces,
    softmax_of,
    weights_of,
)

MAXIMUM, TOP_2, SHARE = "max", "top2", "share"


def top_k(
    scores: Scores, *, k: int, softmax: str = "after", renormalise: bool = False, scale: float = 1.0
) -> tuple[Ints, Floats]:
    """The k largest scores.

    Args:
        softmax: "after": weights are the softmax over the chosen (Megatron-LM's default, Mixtral, GPT-OSS); "before":
            over all experts (DeepSeek-V2, OLMoE). Renormalised "before" is "after", as exp is (Qwen3, Mixtral in
            transformers).
        scale: of the weights.

    Raises:
        InputError: softmax is something else, k does not fit, a score is NaN.
    """
    if softmax not in ("after", "before"):
        raise InputError(f"router.softmax={softmax}: must be after (over the chosen) or before (over all experts)")
    check_k(k, scores.shape[1])
    ids, weights = np.empty((len(scores), k), np.int64), np.empty((len(scores), k))
    for part in pieces(len(scores)):
        check_numbers(scores[part], part.start)
        ids[part] = best(scores[part], k)
        if softmax == "after" or renormalise:
            weights[part] = softmax_of(scores[part], ids[part]) * scale
        else:
            weights[part] = weights_of(activated(scores[part], "softmax"), ids[part], renormalise=False, scale=scale)
    return ids, weights


def group_limited(
    scores: Scores, *, k: int, score: str = "sigmoid", n_groups: int = 8, best_groups: int = 4, group_score: str = TOP_2,
    renormalise: bool = True, scale: float = 1.0, zero_others: bool = False, bias: Floats | None = None,
) -> tuple[Ints, Floats]:
    """The k best experts of the best groups of neighbouring experts, by activated score plus bias; weights without bias.

    Args:
        score: softmax, sigmoid, sqrtsoftplus or none, over all experts.
        n_groups: 1 limits nothing.
        best_groups: groups a token may use; of equal groups the lower.
        group_score: what a group is judged by: "max" (DeepSeek-V2), "top2" the sum of its best two (DeepSeek-V3),
            "share" of its best k // best_groups (DeepSeek-V3's report; Megatron-LM). For V3's 8 of 4 groups the last two agree.
        renormalise: weights over their sum (for k > 1).
        zero_others: experts of other groups compete with score 0, as older inference code does, instead of not at all.
            With a bias below minus the score one of them can win.
        bias: float [experts].

    Raises:
        InputError: groups do not divide the experts, the best groups hold fewer than k, a score is NaN.

    Source: DeepSeek-V3 9b4e978, inference/model.py (`Gate`); Megatron-LM d98e8a6, moe_utils.py (`group_limited_topk`).
    """
    n_tokens, n_experts = scores.shape
    check_k(k, n_experts)
    members = _group_members(k, n_experts, n_groups, best_groups, group_score, zero_others)
    limit = _Limit(k=k, n_groups=n_groups, best_groups=best_groups, members=members, renormalise=renormalise and k > 1,
                   scale=float(scale))
    few = score == "sigmoid" and bias is None and 1 < n_groups <= n_experts // 2 and members <= 2 and not zero_others
    added = np.zeros(n_experts, scores.dtype) if bias is None else np.asarray(bias, scores.dtype)
    ids, weights = np.empty((n_tokens, k), np.int64), np.empty((n_tokens, k))
    for part in pieces(n_tokens):
        own = np.ascontiguousarray(scores[part])
        if few:
            again = part.start + _by_scores(own, limit, part.start, ids[part], weights[part])
            if again.size:
                rest = np.empty((again.size, k), np.int64), np.empty((again.size, k))
                _by_activations(scores[again], score, added, limit, zero_others, *rest)
                ids[again], weights[again] = rest
        else:
            check_numbers(own, part.start)
            _by_activations(own, score, added, limit, zero_others, ids[part], weights[part])
    return ids, weights


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """What `group_limited` limits."""

    k: int
    n_groups: int
    best_groups: int
    members: int                # experts of a group that are summed
    renormalise: bool
    scale: float


def _by_activations(scores: Scores, score: str, bias: Scores, limit: _Limit, zero: bool, ids: Ints, weights: Floats) -> None:
    """Experts and weights, to ids and weights, from the activations of all scores."""
    from clustersim.workload.routers import kernels

    values = np.ascontiguousarray(activated(scores, score))
    if limit.n_groups == 1:
        kernels.top_rows(values, bias, limit.k, ids)
    else:
        kernels.grouped_rows(values, bias, limit.k, limit.n_groups, limit.best_groups, limit.members, zero, ids)
    kernels.weigh_rows(values, ids, limit.renormalise, limit.scale, weights)


def _by_scores(scores: Scores, limit: _Limit, first: int, ids: Ints, weights: Floats) -> Ints:
    """The same, to ids and weights, from the sigmoids of the few scores that matter; rows too close to call are left out.

    Sigmoids cost more than comparing, and who is best needs few of them: those of the two best of each group, then of the
    scores above the lowest of these in the chosen groups.

    Returns:
        int, the rows left out.
    """
    from clustersim.workload.routers import kernels

    n = len(scores)
    two = np.empty((n, 2 * limit.n_groups), scores.dtype)
    if not kernels.two_best_rows(scores, limit.n_groups, two):
        check_numbers(scores, first)
    most = n * limit.best_groups * (scores.shape[1] // limit.n_groups) + 1
    value, name = np.empty(most, scores.dtype), np.empty(most, np.int32)
    start, again = np.empty(n + 1, np.int64), np.empty(n, np.int64)
    left = kernels.candidate_rows(
        scores, two, activated(two, "sigmoid"), limit.best_groups, limit.members, limit.k, value, name, start, again
    )
    kernels.rank_rows(
        activated(value[: start[n]], "sigmoid"), name, start, limit.k, limit.renormalise, limit.scale, 16, ids, weights
    )
    return again[:left]


def _group_members(k: int, n_experts: int, n_groups: int, best_groups: int, group_score: str, zero_others: bool) -> int:
    """How many experts of a group are summed to its score, once all fits."""
    if n_groups < 1 or n_experts % n_groups:
        raise InputError(f"router.n_groups={n_groups}: must divide the {n_experts} experts")
    if not 1 <= best_groups <= n_groups:
        raise InputError(f"router.best_groups={best_groups}: must be from 1 to n_groups={n_groups}")
    size = n_experts // n_groups
    if best_groups * size < k and not zero_others:
        raise InputError(f"router.best_groups={best_groups}: these groups hold {best_groups * size} experts, fewer than k={k}")
    kinds = {MAXIMUM: 1, TOP_2: 2, SHARE: max(1, k // best_groups)}
    if group_score not in kinds:
        raise InputError(
            f"router.group_score={group_score}: must be one of {', '.join(kinds)}{did_you_mean(str(group_score), kinds)}"
        )
    return min(kinds[group_score], size)


def switch(scores: Scores, *, jitter: float = 0.0, rng: np.random.Generator | None = None) -> tuple[Ints, Floats]:
    """The one best expert; its weight is its softmax over all experts.

    Args:
        jitter: e multiplies every score by a uniform draw from [1 - e, 1 + e]. (The original multiplies the router's
            input, which is not known here.)
        rng: for jitter above 0.

    Raises:
        InputError: jitter is not in [0, 1), a score is NaN.

    Source: Switch Transformer (arXiv 2101.03961); tensorflow/mesh, transformer/moe.py (`_switch_gating`).
    """
    if not 0 <= jitter < 1:
        raise InputError(f"router.jitter={jitter}: must be from 0 to below 1")
    if jitter:
        assert rng is not None, "jitter is drawn"
        scores = scores * rng.uniform(1 - jitter, 1 + jitter, scores.shape).astype(scores.dtype)
    return top_k(scores, k=1, softmax="before")


def gshard(
    scores: Scores, *, second: str = "proportional", threshold: float = 0.2, rng: np.random.Generator | None = None
) -> tuple[Ints, Floats]:
    """The best expert, and the second one now and then. Weights g1 + g2 = 1 before the second is left out.

    Args:
        second: "proportional": kept with probability min(1, 2 g2) (GShard; FastMoE drops it where 2 g2 < u); "threshold":
            with min(1, g2 / threshold) (Mesh-TensorFlow's policy random); "sampled": always, but drawn from the softmax of
            the others (DeepSpeed `top2_2nd_expert_sampling`); "always": the second best.
        rng: one uniform draw per token, Gumbel noise per score for "sampled".

    Raises:
        InputError: second or threshold is something else, fewer than two experts, a score is NaN.

    Source: GShard (arXiv 2006.16668); laekov/fastmoe, gates/gshard_gate.py; tensorflow/mesh, transformer/moe.py;
    DeepSpeed edaa722, sharded_moe.py (`top2gating`).
    """
    kinds = ("proportional", "threshold", "sampled", "always")
    if second not in kinds:
        raise InputError(f"router.second={second}: must be one of {', '.join(kinds)}{did_you_mean(str(second), kinds)}")
    if not threshold > 0:
        raise InputError(f"router.threshold={threshold}: must be above 0")
    ids = best(scores, 2)
    if second == "sampled":
        assert rng is not None, "the second is drawn"
        others = scores + rng.gumbel(size=scores.shape).astype(scores.dtype)
        np.put_along_axis(others, ids[:, :1], -np.inf, axis=1)
        ids[:, 1] = others.argmax(axis=1)
    weights = softmax_of(scores, ids)
    if second in ("proportional", "threshold"):
        assert rng is not None, "the second is kept at random"
        u = rng.random(len(scores))
        kept = 2 * weights[:, 1] >= u if second == "proportional" else u < weights[:, 1] / threshold
        ids[~kept, 1] = -1
        weights[~kept, 1] = 0.0
    return ids, weights


def noisy_top_k(scores: Scores, *, k: int, noise: float = 1.0, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """The k largest of scores plus normal noise; weights are the softmax over these noisy scores.

    Args:
        noise: standard deviation. (The original learns one per token and expert, softplus(x W); softplus(0) is 0.69.)

    Raises:
        InputError: noise is below 0, k does not fit, a score is NaN.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), equations 3 to 5.
    """
    if not noise >= 0:
        raise InputError(f"router.noise={noise}: must be 0 or above")
    noisy = scores + (noise * rng.standard_normal(scores.shape)).astype(scores.dtype)
    return top_k(noisy, k=k)
