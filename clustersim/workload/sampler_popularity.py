"""How unevenly experts are used: shares of a layer's load, drawn from families of distributions. Draws no tokens.

A family is `name(rng, n_experts, spread) -> float [experts]`, shares that sum to 1; `spread` is its one parameter.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from clustersim.types import Floats, InputError

__all__ = ["dirichlet", "lognormal", "power_law", "zipf"]

MOST = 0.98             # of the tokens: no expert is asked for by more
LEAST = 1e-6


def dirichlet(rng: np.random.Generator, n_experts: int, spread: float) -> Floats:
    """A symmetric Dirichlet(spread): the larger, the more even. Squared coefficient of variation (E - 1) / (E spread + 1)."""
    # log of a Gamma(a) draw as log Gamma(a + 1) + log(U) / a, which does not underflow where a is small
    log_p = np.log(rng.standard_gamma(spread + 1, n_experts)) + np.log1p(-rng.random(n_experts)) / spread
    return _shares(log_p)


def lognormal(rng: np.random.Generator, n_experts: int, spread: float) -> Floats:
    """Logarithms of the loads are normal with standard deviation `spread`. Squared coefficient of variation exp(spread^2) - 1."""
    return _shares(spread * rng.standard_normal(n_experts))


def zipf(rng: np.random.Generator, n_experts: int, spread: float) -> Floats:
    """The expert of rank r gets r^-spread, ranks in random order. Too heavy a head and no cold tail for real routers."""
    return _shares(-spread * np.log(rng.permutation(n_experts) + 1.0))


def power_law(rng: np.random.Generator, n_experts: int, spread: float) -> Floats:
    """Loads drawn from a density falling as load^-spread, from 1 to 0.8 of 8,192 tokens.

    Source: NVIDIA aiconfigurator, collector (`sample_power_law`, `power_law_logits_v3`; exponent 1.01), which takes the
    tokens of the batch for the upper end. Harsher than any language model's router that we have seen.
    """
    power, top = 1.0 - spread, math.log(0.8 * 8192)
    u = rng.random(n_experts)
    if abs(power) < 1e-9:
        return _shares(u * top)
    return _shares(np.log1p(u * math.expm1(power * top)) / power)


def _shares(log_p: Floats) -> Floats:
    p = np.exp(log_p - log_p.max())
    return np.asarray(p / p.sum(), np.float64)


def inclusion(shares: Floats, top_k: int) -> Floats:
    """Fraction of the tokens that use each expert, float [experts], sum top_k; what would exceed 0.98 goes to the others."""
    n = shares.size
    if top_k >= n:
        return np.ones(n)
    used = np.maximum(shares, LEAST / n) * top_k
    used *= top_k / used.sum()
    for _ in range(n):
        full = used >= MOST
        rest = top_k - MOST * full.sum()
        if not (used > MOST).any() or rest <= 0:
            break
        used = np.where(full, MOST, used * rest / used[~full].sum())
    return used if used.max() <= 1 else np.full(n, top_k / n)


def plackett_luce_weights(used: Floats, top_k: int) -> Floats:
    """Weights with which drawing top_k without replacement includes each expert about as often as `used` says.

    1 - (1 - used)^(1/m): where the race of exponentials, which this is, ends after a Gamma(m) time. Exact for top_k = 1 with
    m = 1, and for many (-log(1 - used), Rosén 1997, Asymptotic theory for order sampling). In between m = 2 top_k - 1 does
    best: within 2 % for 3 of 8 experts, 1 % in the root mean square for 4 of 32.
    """
    return np.asarray(-np.expm1(np.log1p(-np.minimum(used, 1 - 1e-9)) / (2 * top_k - 1)), np.float64)


def probits(used: Floats) -> tuple[Floats, Floats]:
    """Standard normal quantile of each probability, and the density there: where a bias starts, and how fast it acts."""
    normal = NormalDist()
    at = np.array([normal.inv_cdf(p) for p in np.clip(used, LEAST, 1 - LEAST)])
    return at, np.exp(-0.5 * at * at) / math.sqrt(2 * math.pi)


def concentration(cv: float, n_experts: int) -> float:
    """The Dirichlet parameter whose shares have this coefficient of variation; at most 1000, which is as good as even."""
    if cv <= 0:
        return 1000.0
    return min(1000.0, max(1e-3, ((n_experts - 1) / cv**2 - 1) / n_experts))


def check_spread(spread: float, key: str) -> float:
    """`spread` as a finite number above 0; InputError naming `key` otherwise."""
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 < spread < math.inf:
        raise InputError(f"{key}={spread}: must be a number above 0")
    return float(spread)
