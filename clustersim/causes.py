"""What each of five causes makes a layer longer by: pieces of a run without one of them. Plays nothing itself.

Popularity: experts are chosen evenly. Source: every GPU begins with as many tokens. Placement: the rows to compute are even
over the slots. Exchange: a copy per node, then per GPU, of the token alone, without software cost. Topology: nothing limits
but the GPUs' own ports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from clustersim.cluster import Cluster
from clustersim.engine.gpu import ATTENDED, COMBINED, Played
from clustersim.exchange import node_dedup
from clustersim.exchange.copies import Gpus, TokenBytes
from clustersim.types import Choices, Floats, Ints, Placement, Routing, Transfers, Workload

CAUSES = ("popularity", "source", "placement", "exchange", "topology")


def moe_seconds(steps: Sequence[Played]) -> Floats:
    """Dispatch, experts and combine of every layer, mean over the GPUs, float [steps * layers]."""
    return np.concatenate([(step.marks[:, COMBINED] - step.marks[:, ATTENDED]).mean(axis=1) for step in steps])


def causes_of(actual: Floats, without: Mapping[str, Floats], ideal: Floats) -> dict[str, Floats]:
    """The columns of the layers: `moe_s` = `ideal_s` + the five causes + `joint_s`, each float [layers].

    Args:
        actual: [layers] seconds as they are.
        without: [layers] seconds without each cause alone. A cause is what it saves to be without it; negative: it helps.
        ideal: [layers] seconds without any. What causes have in common, or save only together, is in `joint_s`.
    """
    alone = {f"{cause}_s": actual - without[cause] for cause in CAUSES}
    joint = actual - ideal - np.sum(list(alone.values()), axis=0)
    return {"moe_s": actual, "ideal_s": ideal, **alone, "joint_s": joint}


def evened(rng: np.random.Generator, places: Ints, n: int) -> Ints:
    """Choices that fill places 0 to n - 1 evenly, as few as possible of them changed: int, the shape of `places`; -1 stays.

    What a place has too much, picked at random, goes to random ones of those that have too little. So what choices have to do
    with each other, and with where tokens are, stays as far as it can; a token may have a place twice.
    """
    chosen = np.flatnonzero(places.ravel() >= 0)
    order = rng.permutation(chosen)
    place = places.ravel()[order]
    load = np.bincount(place, minlength=n)
    share = np.full(n, chosen.size // n)
    share[np.argsort(-load, kind="stable")[: chosen.size % n]] += 1
    by_place = np.argsort(place, kind="stable")
    rank = np.arange(chosen.size) - np.repeat(np.cumsum(load) - load, load)
    excess = order[by_place[rank >= share[place[by_place]]]]
    free = np.repeat(np.arange(n), np.maximum(0, share - load))
    assert free.size == excess.size, "as much is too much as is too little"
    even = places.ravel().copy()
    even[excess] = rng.permutation(free)
    return even.reshape(places.shape)


def even_popularity(workload: Workload, seed: int, n_experts: int) -> Workload:
    """The tokens with as many choices as they have, of experts that are all as popular."""

    def choose(layer: int) -> Choices:
        chosen = workload.choose(layer)
        return replace(chosen, ids=evened(np.random.default_rng([seed, 71, layer]), chosen.ids, n_experts))

    return replace(workload, choose=choose, period=None)


def even_sources(workload: Workload, n_gpus: int) -> Workload:
    """The tokens in the same order, dealt to the GPUs evenly."""
    n = workload.source.size
    source = np.arange(n) * n_gpus // n
    return replace(workload, source=source, index=np.arange(n) - np.searchsorted(source, source))


def even_placement(
    workload: Workload, slots: Callable[[int], Ints], seed: int, placements: Sequence[Placement]
) -> tuple[Workload, tuple[Placement, ...]]:
    """What is computed (`slots(layer)` int [tokens, k], -1 not), even over the slots; each becomes an expert of its own."""
    n = placements[0].n_slots

    def choose(layer: int) -> Choices:
        return Choices(ids=evened(np.random.default_rng([seed, 72, layer]), slots(layer), n), weights=None)

    return replace(workload, choose=choose, period=None), tuple(replace(one, expert_of=np.arange(n)) for one in placements)


def least_exchange(phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes) -> Transfers:
    """One copy per token and node, then per GPU, forwarded token by token, and nothing but the token in it."""
    return node_dedup(phase, replace(routing, padding=None), placement, cluster, model, chunk_tokens=1, metadata_bytes=0)


def ports_alone(cluster: Cluster) -> Cluster:
    """The machine with only the links that begin or end at a GPU as wide as they are; the others carry anything at once."""
    capacity = np.full_like(cluster.capacity, np.inf)
    for a, b, link in cluster.graph.edges(data="link"):
        if "gpu" in (a[0], b[0]):
            capacity[link] = cluster.capacity[link]
    return replace(cluster, capacity=capacity)
