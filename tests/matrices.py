"""Byte matrices of direct all-to-all exchanges, [gpus, gpus], for the oracle, the benchmark and the tests."""

from __future__ import annotations

import numpy as np

from clustersim.types import Floats


def skewed(n_gpus: int, seed: int = 0, zipf: float = 0.8, tokens: int = 4096) -> Floats:
    """A direct dispatch: 8 experts per GPU of Zipf popularity, `tokens` per GPU, top-8 with replacement, 7,168 bytes a token."""
    rng = np.random.default_rng([seed, n_gpus])
    popularity = rng.permutation(np.arange(1, 8 * n_gpus + 1) ** -zipf)
    choices = rng.multinomial(tokens * 8, popularity / popularity.sum(), size=n_gpus)
    nbytes: Floats = choices.reshape(n_gpus, n_gpus, 8).sum(axis=2) * 7168.0 * ~np.eye(n_gpus, dtype=bool)
    return nbytes


def uniform(n_gpus: int, nbytes: float = 2.0**20) -> Floats:
    """The same, 1 MiB, from every GPU to every other one."""
    return nbytes * ~np.eye(n_gpus, dtype=bool)
