"""Several runs that differ in the seed alone, as one: means, and how far they may be from the truth. Simulates nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

INTERVALS = ("step_s", "exposed_comm_s", "tokens_per_s", "drop_rate", "imbalance", "over_bound")      # those that get one
WHOLE = ("seed", "nodes", "gpus", "slots", "tokens_per_gpu", "tokens", "moe_layers")        # the same in all, or not a result


def combined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of many: means of numbers, the most frequent of words; of a number that one does not have, null.

    Beside them `replicates`, and for `INTERVALS` the half width of the 95 % confidence interval of the mean, `NAME_ci95`; null
    for a single row.
    """
    first = rows[0]
    together = {name: first[name] if name in WHOLE else _mean([row[name] for row in rows]) for name in first}
    widths = {f"{name}_ci95": half_width([row[name] for row in rows]) for name in INTERVALS}
    return {**together, "replicates": len(rows), **widths}


def _mean(values: Sequence[Any]) -> Any:
    if any(isinstance(value, str | bool) for value in values):
        return Counter(values).most_common(1)[0][0]
    if any(value is None for value in values):
        return None
    mean = float(np.mean(values))
    return round(mean) if all(isinstance(value, int) for value in values) else mean


def half_width(values: Sequence[float | None]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean, by Student's t; None for fewer than two values."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or len(known) < len(values):
        return None
    return student_quantile(0.975, len(known) - 1) * float(np.std(known, ddof=1)) / math.sqrt(len(known))


def student_quantile(share: float, freedom: int) -> float:
    """Where Student's t distribution of so many degrees of freedom reaches `share`, above 0.5. By bisection.

    Source of the distribution: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * share - 1:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * share - 1 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """The chance that |T| <= t."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = total = (cosine if odd else 1.0) if freedom > 1 else 0.0
    for i in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
