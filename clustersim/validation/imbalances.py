"""The kind `imbalance`: how uneven GPUs' tokens are, without and with redundant experts, for a known skew. Times nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from clustersim.placement.changing import STEPS, drifted, included
from clustersim.placement.deepseek import rebalance
from clustersim.types import Floats, InputError
from clustersim.validation.notes import needed, only

LAYERS = 16                     # drawn
DRIFT = 0.105                   # root of the summed squares: GPT-OSS-20B, decode steps 64-127 and 192-255 (docs/placement.md)
MOST = 1 << 26                  # tokens x experts of a layer


def imbalance(case: Mapping[str, Any]) -> float:
    """(max - mean) / mean of the GPUs' tokens, mean over layers.

    Keys: `gpus`, `experts`, `top_k`, `tokens_per_gpu`; `uneven`, the same figure of expected loads without redundant experts,
    which the skew of lognormal loads is solved for; `slots` (as many as experts: none is redundant); `drift` (0.105), how
    much the loads change between EPLB's decision and what is served. Tokens are independent.
    """
    only(case, "gpus", "experts", "top_k", "tokens_per_gpu", "uneven", "slots", "drift")
    gpus, experts, top_k, tokens, slots = needed(case, "gpus", "experts", "top_k", "tokens_per_gpu", "slots")
    uneven, drift = (_number(case, key, default) for key, default in (("uneven", None), ("drift", DRIFT)))
    if experts % gpus or slots % gpus or slots < experts:
        raise InputError(f"case.slots={slots}: {experts} experts in {slots} slots do not fill {gpus} GPUs evenly")
    if not 0 < uneven < min(gpus, experts / top_k) - 1:
        raise InputError(f"case.uneven={uneven}: {top_k} of {experts} experts cannot be chosen as unevenly on {gpus} GPUs")
    if tokens * gpus * experts > MOST:
        raise InputError(f"case.tokens_per_gpu={tokens}: at most {MOST // gpus // experts} are drawn on {gpus} GPUs")
    loads = _loads(gpus, experts, top_k, uneven)
    rng, left = np.random.default_rng(2), []
    if slots == experts:
        expert_of, count = np.tile(np.arange(experts), (LAYERS, 1)), np.ones((LAYERS, experts))
    else:
        expert_of, _, count = rebalance(loads, n_slots=slots, n_groups=1, n_nodes=1, n_gpus=gpus)
    for layer, load in enumerate(loads):
        served = drifted(rng, load, drift, top_k) if drift else load
        each = _batch(rng, served, tokens * gpus) / count[layer]
        left.append(_excess(each[expert_of[layer]].reshape(gpus, -1).sum(axis=1)))
    return float(np.mean(left))


def _number(case: Mapping[str, Any], key: str, default: float | None) -> float:
    value = case.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
        raise InputError(f"case.{key}={value}: must be a number from 0 up")
    return float(value)


def _excess(load: Floats) -> Floats:
    result: Floats = load.max(axis=-1) / load.mean(axis=-1) - 1
    return result


@lru_cache(maxsize=8)
def _loads(gpus: int, experts: int, top_k: int, uneven: float) -> Floats:
    """Probabilities with which a token takes each expert [layers, experts], lognormal; neighbours share a GPU."""
    normal, low, high = np.random.default_rng(0).normal(size=(LAYERS, experts)), 1e-3, 1e2
    p = np.zeros_like(normal)
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        weight = np.exp(np.minimum(middle * normal, 600.0))
        p = np.array([included(row, top_k) for row in weight])
        got = _excess(p.reshape(LAYERS, gpus, -1).sum(axis=2)).mean()
        low, high = (middle, high) if got < uneven else (low, middle)
    return p


def _batch(rng: np.random.Generator, p: Floats, tokens: int) -> Floats:
    """How many of independent tokens take each expert: systematic sampling in random order (Madow 1949)."""
    order = np.argsort(rng.random((tokens, p.size)), axis=1)
    points = rng.random((tokens, 1))
    passed = np.floor(np.concatenate((np.zeros((tokens, 1)), np.cumsum(p[order], axis=1)), axis=1) - points + 1e-12)
    return np.bincount(order.ravel(), np.diff(passed, axis=1).ravel(), p.size).astype(np.float64)
