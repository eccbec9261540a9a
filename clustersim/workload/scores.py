"""Router scores drawn without a trace, in blocks that can be made alone. Draws; does not choose experts by any router's rule."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from clustersim.types import Float32s, Floats, InputError, Ints, ScoreProcess
from clustersim.workload.routers import top_k

BLOCK = 256             # tokens drawn together; part of what a seed means
PIECE = 16_384          # tokens asked for at a time where many are looked at: what it takes of memory, not what comes out


def independent_scores(seed: int, *, n_experts: int, alpha: float) -> ScoreProcess:
    """Scores of independent tokens over experts of unequal popularity: log popularity plus Gumbel noise.

    Popularity is one draw per layer from a symmetric Dirichlet(alpha): the smaller alpha, the fewer experts share the
    load (its coefficient of variation is sqrt((E - 1) / (E alpha + 1))). The top k of such scores are k experts drawn
    without replacement with probabilities proportional to popularity (Plackett-Luce). Every block of tokens has a
    random stream of its own, so that scores do not depend on what else is asked.

    Returns:
        (layer, first, last) -> float32 [last - first, experts].

    Raises:
        InputError: alpha is not a number above 0.
    """
    if not 0 < alpha < math.inf:
        raise InputError(f"trace.alpha={alpha}: must be a number above 0 (1 is moderate; the smaller, the more uneven)")
    popularity: dict[int, Float32s] = {}

    def scores(layer: int, first: int, last: int) -> Float32s:
        if layer not in popularity:
            popularity[layer] = log_popularity(_stream(seed, layer, 0), n_experts, alpha).astype(np.float32)
        out = np.empty((last - first, n_experts), np.float32)
        for block in range(first // BLOCK, -(-last // BLOCK)):
            noise = _log_exponential(_stream(seed, layer, 1 + block), (BLOCK, n_experts))
            begin, end = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
            part = noise[begin - block * BLOCK : end - block * BLOCK]
            np.subtract(popularity[layer], part, out=out[begin - first : end - first])
        return out

    return scores


def log_popularity(rng: np.random.Generator, n_experts: int, alpha: float) -> Floats:
    """Logarithms, up to a constant, of a draw from a symmetric Dirichlet(alpha); the largest is 0."""
    # log of a Gamma(alpha) draw as log Gamma(alpha + 1) + log(U) / alpha, which does not underflow where alpha is small
    log_p = np.log(rng.standard_gamma(alpha + 1, n_experts)) + np.log1p(-rng.random(n_experts)) / alpha
    return np.asarray(log_p - log_p.max(), np.float64)


def best_of(scores: Callable[[int, int], Float32s], n_tokens: int, k: int) -> tuple[Ints, Floats]:
    """Experts of the k largest scores of every token, largest first, and the softmax over these k: both [tokens, k]."""
    ids, weights = np.empty((n_tokens, k), np.int64), np.empty((n_tokens, k), np.float64)
    for first in range(0, n_tokens, PIECE):
        part = slice(first, min(first + PIECE, n_tokens))
        ids[part], weights[part] = top_k(scores(part.start, part.stop), k=k)
    return ids, weights


def experts_alone(process: ScoreProcess, layer: int, n_experts: int, first: int, last: int) -> Float32s:
    """Scores of a layer in the columns of the experts, which are the first ones."""
    return process(layer, first, last)[:, :n_experts]


def zipf_token_ids(seed: int, n_tokens: int, vocab: int) -> Ints:
    """Words of a text, int [tokens]: word i with probability proportional to 1 / (i + 1), independently (Zipf 1949)."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(0, 0, 2))))
    below = np.cumsum(1 / np.arange(1, vocab + 1))
    return np.asarray(np.searchsorted(below, rng.random(n_tokens) * below[-1], side="right"), np.int64)


def _stream(seed: int, layer: int, block: int) -> np.random.Generator:
    """A random stream for (seed, layer, block), independent of all others."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(layer, block))))


def _log_exponential(rng: np.random.Generator, shape: tuple[int, int]) -> Float32s:
    """Logarithms of standard exponential draws: minus Gumbel noise, in single precision for speed."""
    draw = rng.standard_exponential(shape, dtype=np.float32)
    np.maximum(draw, np.float32(1e-30), out=draw)       # a draw of exactly 0 has no logarithm
    return np.log(draw, out=draw)
