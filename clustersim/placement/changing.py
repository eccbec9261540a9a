"""Loads that have moved on since a placement was decided: expected loads in, loads that differ by so much out. No tokens."""

from __future__ import annotations

import numpy as np

from clustersim.types import Floats

STEPS = 40                      # of a bisection


def included(weight: Floats, top_k: int) -> Floats:
    """How often a token takes each expert, float [experts]: proportional to the weights, 1 at most, top_k in sum."""
    p = top_k * weight / weight.sum()
    while (p > 1).any():
        certain = p >= 1
        p = np.where(certain, 1.0, (top_k - certain.sum()) * weight / weight[~certain].sum())
    result: Floats = p
    return result


def drifted(rng: np.random.Generator, p: Floats, drift: float, top_k: int) -> Floats:
    """Loads whose difference from p is `drift` of it, the root of sum (p' - p)^2 over sum p^2; changes are lognormal.

    Args:
        p: float [experts], how often a token takes each, top_k in sum.
    """
    normal, low, high, later = rng.normal(size=p.size), 0.0, 5.0, p
    for _ in range(STEPS):
        middle = (low + high) / 2
        later = included(p * np.exp(middle * normal), top_k)
        low, high = (middle, high) if ((later - p) ** 2).sum() < drift**2 * (p**2).sum() else (low, middle)
    return later
