"""How a router's biases are moved from step to step until the experts' loads are even. Pure NumPy, no clock.

A rule is `name(bias, seen, *, rate) -> bias`: float [experts] before and after a step, never changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clustersim.types import Floats, InputError, Ints
from clustersim.workload.routers.activation import Scores
from clustersim.workload.routers.variable import dual_beta, expert_thresholds

if TYPE_CHECKING:
    import polars as pl

__all__ = ["order_statistic", "proportional", "quantile", "sign"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Seen:
    """What a rule learns from one step, over all GPUs."""

    counts: Ints                        # [experts] choices of every real expert
    tokens: int
    k: int                              # experts a token asks for
    number: int                         # of the step, from 0
    values: Callable[[], Scores]        # -> [tokens, experts], activated scores without bias; made when asked for


Rule = Callable[[Floats, Seen], Floats]


def sign(bias: Floats, seen: Seen, *, rate: float = 1e-3) -> Floats:
    """Up by `rate` where an expert has less than the mean, down where more, unchanged at the mean.

    Source: auxiliary-loss-free balancing (arXiv 2408.15664); DeepSeek-V3 (arXiv 2412.19437) with rate 0.001.
    """
    return _moved(bias, rate * np.sign(seen.counts.mean() - seen.counts))


def proportional(bias: Floats, seen: Seen, *, rate: float = 1e-3, active: float | None = None) -> Floats:
    """By `rate` times how far an expert's share of all choices is below its due, active / k / experts.

    Args:
        active: of a token's k choices, how many should be real experts; None: all.

    Raises:
        InputError: active is not in (0, k].

    Source: LongCat-Flash (arXiv 2509.01322), whose zero-computation experts keep their bias.
    """
    active = seen.k if active is None else active
    if not 0 < active <= seen.k:
        raise InputError(f"router.bias.active={active}: must be above 0 and at most k={seen.k}")
    due = active / seen.k / seen.counts.size
    return _moved(bias, rate * (due - seen.counts / (seen.k * seen.tokens)))


def quantile(bias: Floats, seen: Seen, *, rate: float = 1.0) -> Floats:
    """A fraction `rate` of the way to minus the beta of quantile balancing on this step's scores (`dual_beta`).

    Raises:
        InputError: tokens times k is no multiple of the experts.
    """
    return _approached(bias, -dual_beta(seen.values(), seen.k, -bias), seen, rate)


def order_statistic(bias: Floats, seen: Seen, *, rate: float = 0.1) -> Floats:
    """A fraction `rate` of the way to minus the score that T k / E of the tokens exceed, for each expert; at first all of it."""
    return _approached(bias, -expert_thresholds(seen.values(), seen.k), seen, rate)


def _moved(bias: Floats, step: Floats) -> Floats:
    """Zero-computation experts, which stand at the end and have no count, keep their bias."""
    moved = bias.copy()
    moved[: step.size] += step
    return moved


def _approached(bias: Floats, aim: Floats, seen: Seen, rate: float) -> Floats:
    return aim if seen.number == 0 else np.asarray((1 - rate) * bias + rate * aim)


def steps(
    scores: Callable[[int, int], Scores], route: Callable[[Scores, Floats], Ints], rule: Rule,
    *, n_experts: int, k: int, tokens: int, updates: int, activate: Callable[[Scores], Scores],
) -> Iterator[tuple[Floats, Ints, Ints]]:
    """The closed loop: every step routes the next `tokens` tokens under the bias so far, then moves the bias.

    Args:
        scores: (first, last) -> [tokens, columns], without end; step i sees tokens i · tokens on.
        route: (scores, bias) -> ids.
        n_experts: real experts, the first of the columns.

    Yields:
        updates + 1 times (bias, counts int [experts], ids) of a step; the first bias is 0.
    """
    bias = np.zeros(scores(0, 1).shape[1])
    for number in range(updates + 1):
        part = scores(number * tokens, (number + 1) * tokens)
        ids = route(part, bias)
        counts = np.bincount(ids[ids >= 0], minlength=n_experts)
        yield bias, counts, ids
        if number < updates:
            values = _once(activate, part)
            bias = rule(bias, Seen(counts=counts, tokens=tokens, k=k, number=number, values=values))


def settle(
    scores: Callable[[int, int], Scores], route: Callable[[Scores, Floats], Ints], rule: Rule,
    *, n_experts: int, k: int, tokens: int, updates: int, activate: Callable[[Scores], Scores],
    seconds: Callable[[Ints], float] | None = None,
) -> pl.DataFrame:
    """How balance comes about: one row per step of `steps`.

    Args:
        seconds: time of a step from its ids, for a column `step_s`; None: no such column.

    Returns:
        step, max_vio ((most - mean) / mean of the experts' loads), load_cv, least and most (loads over the mean),
        bias_low and bias_high.
    """
    import polars as pl

    rows = []
    loop = steps(scores, route, rule, n_experts=n_experts, k=k, tokens=tokens, updates=updates, activate=activate)
    for number, (bias, counts, ids) in enumerate(loop):
        mean = counts.mean()
        rows.append({
            "step": number, "max_vio": max_violation(counts), "load_cv": float(counts.std() / mean),
            "least": float(counts.min() / mean), "most": float(counts.max() / mean),
            "bias_low": float(bias.min()), "bias_high": float(bias.max()),
        } | ({} if seconds is None else {"step_s": seconds(ids)}))
    return pl.DataFrame(rows)


def max_violation(counts: Ints) -> float:
    """MaxVio: by how much the busiest expert is above the mean, as a fraction of it (arXiv 2408.15664)."""
    return float(counts.max() / counts.mean() - 1)


def _once(activate: Callable[[Scores], Scores], part: Scores) -> Callable[[], Scores]:
    return lambda: activate(part)
