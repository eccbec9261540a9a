"""Least squares for a few positive constants, with intervals: damped Gauss-Newton on logarithms. Knows no physics, no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from clustersim.types import Floats, InputError

STEP = 0.02             # relative step of the numerical derivative: simulated times have kinks, so it is not small


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fit:
    """Constants that fit, and how well."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]       # 95 %; (0, inf) for what the measurements say nothing of
    residuals: Floats                               # [rows] what `residuals` gave at the end
    rounds: int


def least_squares(
    start: Mapping[str, float], residuals: Callable[[Mapping[str, float]], Floats], *, rounds: int = 8, most: float = 8.0,
) -> Fit:
    """The constants for which the sum of squared residuals is least; Levenberg-Marquardt (Marquardt 1963) in their logarithms.

    Args:
        start: names and first guesses, above 0.
        residuals: from values to [rows], best relative errors or logarithms of ratios.
        most: a constant stays within `start` divided and multiplied by this.

    Raises:
        InputError: fewer rows than constants.
    """
    names = list(start)
    first = np.log([start[name] for name in names])
    at, now = first.copy(), residuals(start)
    if now.size < len(names):
        raise InputError(f"a fit of {len(names)} constants ({', '.join(names)}) needs as many measurements; there are {now.size}")
    damping, taken = 1e-3, 0
    slope = _slope(names, at, now, residuals)
    for _ in range(rounds):
        taken += 1
        normal, pull = slope.T @ slope, slope.T @ now
        improved = False
        for _attempt in range(6):
            scale = np.diag(np.maximum(np.diag(normal), 1e-12))
            step = np.clip(-np.linalg.solve(normal + damping * scale, pull), -0.5, 0.5)
            trial = np.clip(at + step, first - np.log(most), first + np.log(most))
            then = residuals(dict(zip(names, np.exp(trial).tolist(), strict=True)))
            if then @ then < now @ now:
                improved = bool(now @ now - then @ then > 1e-6 * (now @ now))
                at, now, damping = trial, then, damping / 5
                break
            damping *= 4
        if not improved:
            break
        slope = _slope(names, at, now, residuals)
    values = dict(zip(names, np.exp(at).tolist(), strict=True))
    intervals = _intervals(names, at, slope, now)
    for name in names:
        if intervals[name][1] == np.inf:                # what nothing was measured of stays as it was
            values[name] = start[name]
    return Fit(values=values, intervals=intervals, residuals=now, rounds=taken)


def _slope(
    names: list[str], at: Floats, now: Floats, residuals: Callable[[Mapping[str, float]], Floats]
) -> Floats:
    columns = []
    for i in range(len(names)):
        moved = at.copy()
        moved[i] += STEP
        columns.append((residuals(dict(zip(names, np.exp(moved).tolist(), strict=True))) - now) / STEP)
    return np.stack(columns, axis=1)


def _intervals(names: list[str], at: Floats, slope: Floats, now: Floats) -> dict[str, tuple[float, float]]:
    freedom = max(1, now.size - len(names))
    spread = np.full(len(names), np.inf)
    known = np.abs(slope).max(axis=0) > 1e-9
    if known.any():
        part = slope[:, known]
        spread[known] = np.sqrt(np.abs(np.diag(np.linalg.pinv(part.T @ part))) * float(now @ now) / freedom)
    low, high = np.exp(at - 1.96 * spread), np.exp(np.minimum(at + 1.96 * spread, 700.0))
    return {
        name: (float(a), float(b)) if ok else (0.0, float("inf"))
        for name, a, b, ok in zip(names, low, high, known, strict=True)
    }
