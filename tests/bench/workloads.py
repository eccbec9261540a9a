"""What the benchmark sends: routings of 256 experts, direct matrices with replicas. Seeded; no clock."""

from __future__ import annotations

from functools import cache

import numpy as np

from clustersim import exchange as exchanges
from clustersim.cluster import load_cluster
from clustersim.config import compose
from clustersim.types import Floats, Ints, Placement, Routing, Transfers

EXPERTS, TOP_K, TOKENS, ZIPF, TOKEN_BYTES = 256, 8, 4096, 0.8, 7168.0


def popularity(rng: np.random.Generator) -> Floats:
    """Of every expert: Zipf's law, in random order."""
    weights = rng.permutation(np.arange(1, EXPERTS + 1) ** -ZIPF)
    return weights / weights.sum()


def replicated(n_gpus: int, *, hashed: bool, seed: int = 0) -> Floats:
    """Bytes of a direct dispatch [gpus, gpus] where expert e is on the GPUs e + 256 j.

    A GPU takes the same replica of all experts: that of its own 256 GPUs, or (`hashed`) that of the top bits of a
    multiplicative hash of its number.
    """
    rng = np.random.default_rng([seed, n_gpus])
    counts = rng.multinomial(TOKENS * TOP_K, popularity(rng), size=n_gpus)
    gpu = np.arange(n_gpus)
    replica = (gpu * 2654435769 % 2**32 * (n_gpus // EXPERTS)) >> 32 if hashed else gpu // EXPERTS
    nbytes = np.zeros((n_gpus, n_gpus))
    nbytes[gpu[:, None], np.arange(EXPERTS) + EXPERTS * replica[:, None]] = counts * TOKEN_BYTES
    np.fill_diagonal(nbytes, 0)
    return nbytes


def routing(n_gpus: int, seed: int = 0) -> Routing:
    """Choices of every token: eight experts drawn by popularity, drawn again as long as one is there twice."""
    rng = np.random.default_rng([seed, n_gpus])
    steps = np.cumsum(popularity(rng))
    ids = np.empty((n_gpus * TOKENS, TOP_K), np.int64)
    again = np.arange(ids.shape[0])
    while again.size:
        ids[again] = np.minimum(np.searchsorted(steps, rng.random((again.size, TOP_K)), side="right"), EXPERTS - 1)
        in_order = np.sort(ids[again], axis=1)
        again = again[(in_order[:, 1:] == in_order[:, :-1]).any(axis=1)]
    source, index = np.repeat(np.arange(n_gpus), TOKENS), np.tile(np.arange(TOKENS), n_gpus)
    return Routing(asked=ids, assigned=ids, weights=None, source=source, index=index, capacity=None)


@cache
def layer(exchange: str, n_gpus: int) -> tuple[Transfers, Transfers]:
    """Dispatch and combine of one layer of DeepSeek-V3: up to 256 GPUs share its experts, more are groups of 256 that each do."""
    group = min(n_gpus, EXPERTS)
    cluster, model = load_cluster("ideal_rail", nodes=group // 8), compose(["model=deepseek_v3"]).model
    placement = Placement(gpu_of=np.arange(EXPERTS) * group // EXPERTS, expert_of=np.arange(EXPERTS))
    send = getattr(exchanges, exchange)
    choices = routing(group)
    dispatch, combine = (send(phase, choices, placement, cluster, model) for phase in ("dispatch", "combine"))
    return _side_by_side(dispatch, n_gpus, group), _side_by_side(combine, n_gpus, group)


def _side_by_side(one: Transfers, n_gpus: int, group: int) -> Transfers:
    """The same transfers in every group of GPUs."""
    m = n_gpus // group

    def tiled(values: Ints, step: int) -> Ints:
        return np.tile(values, m) + np.repeat(np.arange(m) * step, values.size)

    return Transfers(
        src=tiled(one.src, group), dst=tiled(one.dst, group), nbytes=np.tile(one.nbytes, m), release=np.tile(one.release, m),
        chunk=np.tile(one.chunk, m), after=tiled(one.after, one.n),
        after_start=np.concatenate(([0], np.cumsum(np.tile(np.diff(one.after_start), m)))),
    )  # fmt: skip
