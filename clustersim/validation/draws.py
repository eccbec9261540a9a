"""The tokens behind the words of a case: "uniform", "balanced", "uniform scores, best g of n nodes by maximum". Times nothing."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np

from clustersim.types import InputError, Ints, Placement, Routing

LIMITED = re.compile(r"uniform scores, best (\d+) of (\d+) (?:nodes|groups) by maximum")


MOST = 1 << 27              # choices: a gigabyte


def routing_of(rng: np.random.Generator, words: str, *, gpus: int, tokens: int, experts: int, top_k: int) -> Routing:
    """Choices of `tokens` tokens on each of `gpus` GPUs.

    Args:
        words: "uniform", "balanced", or "uniform scores, best g of n nodes by maximum" (experts in n equal groups).

    Raises:
        InputError: other words, or numbers that do not fit.
    """
    if not 1 <= top_k <= experts:
        raise InputError(f"case.top_k={top_k}: must be from 1 to the {experts} experts")
    n = gpus * tokens
    if n * top_k > MOST:
        raise InputError(f"case.tokens_per_gpu={tokens}: {n * top_k} choices on {gpus} GPUs; at most {MOST} are drawn")
    if words == "balanced":
        ids = _balanced(gpus, tokens, experts, top_k)
    elif words == "uniform":
        ids = uniform(rng, n, experts, top_k)
    elif found := LIMITED.fullmatch(words):
        best, groups = int(found[1]), int(found[2])
        if experts % groups or not 1 <= best <= groups or best * (experts // groups) < top_k:
            raise InputError(f"case.routing={words}: {top_k} of {experts} experts cannot be chosen so")
        ids = uniform(rng, n, experts, top_k) if best == groups else _limited(rng, n, experts, top_k, groups, best)
    else:
        raise InputError(f"case.routing={words}: must be uniform, balanced, or 'uniform scores, best g of n nodes by maximum'")
    return Routing(
        asked=ids, assigned=ids, weights=None, source=np.repeat(np.arange(gpus), tokens),
        index=np.tile(np.arange(tokens), gpus), capacity=None,
    )  # fmt: skip


def in_order(experts: int, gpus: int) -> Placement:
    """Expert after expert, as many on each GPU."""
    return Placement(gpu_of=np.arange(experts) // (experts // gpus), expert_of=np.arange(experts))


def uniform(rng: np.random.Generator, tokens: int, experts: int, top_k: int) -> Ints:
    """top_k distinct experts for each token, every set as likely as any other, int [tokens, top_k]."""
    ids = _loops()[0](rng.integers(0, 2**63 - 1), tokens, experts, top_k, 1, 1)
    assert ids.shape == (tokens, top_k)
    return np.asarray(ids, np.int64)


def _limited(rng: np.random.Generator, tokens: int, experts: int, top_k: int, groups: int, best: int) -> Ints:
    return np.asarray(_loops()[0](rng.integers(0, 2**63 - 1), tokens, experts, top_k, groups, best), np.int64)


def _balanced(gpus: int, tokens: int, experts: int, top_k: int) -> Ints:
    """Choice j of a GPU's token i goes to GPU (i top_k + j) mod gpus, and there to its experts in turn."""
    if experts % gpus:
        raise InputError(f"case.experts={experts}: cannot be spread evenly over {gpus} GPUs")
    each = experts // gpus
    number = np.arange(tokens)[:, None] * top_k + np.arange(top_k)
    ids = number % gpus * each + number // gpus % each
    if top_k > gpus:                                # then a token has several experts of a GPU: distinct ones
        ids = number % gpus * each + (number // gpus + np.arange(top_k) // gpus) % each
    return np.tile(ids, (gpus, 1))


@cache
def _loops() -> tuple[Any]:
    from clustersim.jit import njit

    def draw(seed, tokens, experts, top_k, groups, best):  # type: ignore[no-untyped-def]
        """The first top_k experts of a random order, taking only those of the `best` groups that come first in it."""
        ids = np.empty((tokens, top_k), np.int64)
        order = np.arange(experts)
        taken = np.zeros(groups, np.int64)
        size = experts // groups
        state = np.uint64(seed)
        for t in range(tokens):
            n_taken, found, i = 0, 0, 0
            taken[:] = 0
            while found < top_k:
                state += np.uint64(0x9E3779B97F4A7C15)          # splitmix64
                x = state
                x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                x = x ^ (x >> np.uint64(31))
                j = i + np.int64((x >> np.uint64(11)) % np.uint64(experts - i))
                order[i], order[j] = order[j], order[i]
                expert = order[i]
                i += 1
                group = expert // size
                if taken[group] == 0 and n_taken < best:
                    taken[group] = 1
                    n_taken += 1
                if taken[group]:
                    ids[t, found] = expert
                    found += 1
        return ids

    return (njit(draw),)
