"""Routers that do not look at the scores: by token id, at random, in turn. The scores only say how many tokens and experts."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from clustersim.pick import did_you_mean
from clustersim.types import Floats, InputError, Ints
from clustersim.workload.routers.activation import Scores, best, check_k

TABLES = ("modulo", "knuth", "mixed", "balanced")


def hash_table(scores: Scores, *, k: int, table: str = "mixed", token_ids: Ints) -> tuple[Ints, Floats]:
    """Experts by the token's id alone, all weights equal: the same word always goes the same way.

    Args:
        table: of the first choice: "modulo" id % experts; "knuth" (id · 2654435769 mod 2^32) % experts; "mixed" a hash
            that scatters (SplitMix64); "balanced" ids dealt to the least loaded expert by falling frequency, the id
            being the rank under Zipf's law. Further choices are hashed among the experts that the token has not got.
        token_ids: int [tokens], 0 or more.

    Raises:
        InputError: no such table, k does not fit.

    Source: Hash Layers (arXiv 2106.04426); SplitMix64 after Steele et al., OOPSLA 2014.
    """
    n_experts = scores.shape[1]
    check_k(k, scores.shape[1])
    if table not in TABLES:
        raise InputError(f"router.table={table}: must be one of {', '.join(TABLES)}{did_you_mean(str(table), TABLES)}")
    number = np.asarray(token_ids).astype(np.uint64)
    ids = np.empty((number.size, k), np.int64)
    if table == "modulo":
        ids[:, 0] = number % np.uint64(n_experts)
    elif table == "knuth":
        ids[:, 0] = (number * np.uint64(2_654_435_769) & np.uint64(0xFFFFFFFF)) % np.uint64(n_experts)
    elif table == "mixed":
        ids[:, 0] = _mixed(number) % np.uint64(n_experts)
    elif number.size:
        ids[:, 0] = balanced_table(int(number.max()) + 1, n_experts)[number]
    for j in range(1, k):
        pick = (_mixed(number + np.uint64(j * int(_STEP) & 0xFFFF_FFFF_FFFF_FFFF)) % np.uint64(n_experts - j)).astype(np.int64)
        for before in np.sort(ids[:, :j], axis=1).T:        # count past the experts that the token has
            pick += pick >= before
        ids[:, j] = pick
    return ids, np.full(ids.shape, 1.0 / k)


def balanced_table(n_ids: int, n_experts: int) -> Ints:
    """Expert of every token id, int [ids]: by falling frequency 1 / (id + 1), each to the expert with the least so far."""
    table = np.empty(n_ids, np.int64)
    heap = [(0.0, expert) for expert in range(n_experts)]
    for number in range(n_ids):
        load, expert = heap[0]
        table[number] = expert
        heapq.heapreplace(heap, (load + 1 / (number + 1), expert))
    return table


def random(scores: Scores, *, k: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """k distinct experts, every set as likely as any other; all weights equal.

    Raises:
        InputError: k does not fit.
    """
    check_k(k, scores.shape[1])
    ids = best(rng.random(scores.shape, dtype=np.float32), k)
    return ids, np.full(ids.shape, 1.0 / k)


def round_robin(scores: Scores, *, k: int) -> tuple[Ints, Floats]:
    """Choice j of token t is expert (t k + j) mod experts, all weights equal: the balance that benchmarks force.

    A token's experts are neighbours: where neighbours share a GPU or a node, it visits fewer of these than a real one.

    Raises:
        InputError: k does not fit.

    Source: databricks/megablocks (`uniform_expert_assignment`).
    """
    check_k(k, scores.shape[1])
    n_tokens, n_experts = scores.shape
    ids = (np.arange(n_tokens)[:, None] * k + np.arange(k)) % n_experts
    return ids, np.full(ids.shape, 1.0 / k)


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: neighbouring numbers come out far apart."""
    with np.errstate(over="ignore"):
        z = number + _STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
