"""Columns of scores, and words for sampled tokens. The scores themselves are made by the sampler or read from a trace."""

from __future__ import annotations

import numpy as np

from clustersim.types import Float32s, Ints, ScoreProcess


def experts_alone(process: ScoreProcess, layer: int, n_experts: int, first: int, last: int) -> Float32s:
    """Scores of a layer in the columns of the experts, which are the first ones."""
    return process(layer, first, last)[:, :n_experts]


def zipf_token_ids(seed: int, n_tokens: int, vocab: int) -> Ints:
    """Words of a text, int [tokens]: word i with probability proportional to 1 / (i + 1), independently (Zipf 1949)."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(0, 0, 2))))
    below = np.cumsum(1 / np.arange(1, vocab + 1))
    return np.asarray(np.searchsorted(below, rng.random(n_tokens) * below[-1], side="right"), np.int64)
