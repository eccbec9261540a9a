"""Batches that differ between GPUs, prompts that differ in length: tokens are taken off the ends. Makes no choices, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from clustersim.types import Choices, Float32s, InputError, Ints, Workload
from clustersim.workload.serving import around_one

BATCH_STREAM, PROMPT_STREAM = 7_000_003, 7_000_004      # of the random numbers of sizes and of lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Uneven:
    """The keys of `workload` that say how batches differ, judged."""

    batch_spread: float = 0.0
    batches: tuple[int, ...] | None = None      # of every GPU, or of the GPUs that share attention
    padded: bool = False                        # every GPU computes as many rows as the one with most
    prompt_spread: float = 0.0

    @property
    def even(self) -> bool:
        return self.batches is None and not self.batch_spread

    @property
    def mean(self) -> int:
        """Of the batches that are given, rounded up."""
        assert self.batches is not None
        return -(-sum(self.batches) // len(self.batches))


def uneven_from(config: Mapping[str, Any]) -> Uneven:
    """What the config group `workload` says of it; training has none of these keys.

    Raises:
        InputError: a value that cannot be.
    """
    given = {key: config.get(key, 0.0) for key in ("batch_spread", "prompt_spread")}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"workload.{key}={value}: must be a number from 0 up")
    batches, padded = config.get("batches"), config.get("padded", False)
    if batches is not None:
        if isinstance(batches, str) or not isinstance(batches, Sequence) or not batches:
            raise InputError(f"workload.batches={batches}: must be a list of numbers, one for every GPU")
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in batches) or not any(batches):
            raise InputError(f"workload.batches={list(batches)}: must be whole numbers from 0 up, not all of them 0")
        if given["batch_spread"]:
            raise InputError(f"workload.batch_spread={given['batch_spread']}: draws what workload.batches gives; use one of them")
    if not isinstance(padded, bool):
        raise InputError(f"workload.padded={padded}: must be true or false")
    return Uneven(batches=None if batches is None else tuple(batches), padded=padded, **given)


def sizes_of(uneven: Uneven, mean: int, n_gpus: int, seed: int) -> Ints:
    """int [gpus], the batch of each: as given, or lognormal of this mean, as many in all as if all were the same.

    Raises:
        InputError: not as many batches are given as there are GPUs.
    """
    if uneven.batches is not None:
        if len(uneven.batches) != n_gpus:
            each = "GPU, or group of GPUs that share attention"
            raise InputError(f"workload.batches: {len(uneven.batches)} are given, and there are {n_gpus}, one for each {each}")
        return np.array(uneven.batches, np.int64)
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(BATCH_STREAM,))))
    wanted = around_one(rng, uneven.batch_spread, n_gpus)
    exact = wanted * (mean * n_gpus / wanted.sum())
    sizes: Ints = np.floor(exact).astype(np.int64)
    short = mean * n_gpus - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    return sizes


def trimmed(workload: Workload, tokens: Ints) -> Workload:
    """The first `tokens` int [gpus] of each GPU's batch: they, and what is chosen for them, are as they were.

    Raises:
        InputError: only counts are known, or a network makes the choices as it runs.
    """
    if workload.count is not None:
        raise InputError("trace.counts=true: has no single tokens to leave out of a batch; use trace.counts=false")
    if workload.measure is not None or workload.kept is not None:
        raise InputError("trace=live: a network runs whole batches; use batches of one size")
    rows = np.flatnonzero(workload.index < tokens[workload.source])
    words, process = workload.token_ids, workload.scores

    def choose(layer: int) -> Choices:
        whole = workload.choose(layer)
        return Choices(
            ids=whole.ids[rows], weights=None if whole.weights is None else whole.weights[rows],
            scores=None if whole.scores is None else partial(_picked, whole.scores, rows),
        )  # fmt: skip

    return replace(
        workload, source=workload.source[rows], index=workload.index[rows], context=workload.context[rows], choose=choose,
        scores=None if process is None else lambda layer, first, last: _picked(partial(process, layer), rows, first, last),
        token_ids=None if words is None else lambda: words()[rows],
    )  # fmt: skip


def with_prompts(workload: Workload, mean: int, spread: float, seed: int) -> Workload:
    """The workload with made-up prompts of lognormal lengths, one after the other on every GPU, the last one cut."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(PROMPT_STREAM,))))
    context = np.empty_like(workload.context)
    for tokens in np.split(np.arange(context.size), np.flatnonzero(np.diff(workload.source)) + 1):
        lengths: list[int] = []
        while sum(lengths) < tokens.size:
            lengths.append(max(1, round(mean * float(around_one(rng, spread, 1)[0]))))
        context[tokens] = np.concatenate([np.arange(1, length + 1) for length in lengths])[: tokens.size]
    return replace(workload, context=context)


def _picked(scores: Callable[[int, int], Float32s], rows: Ints, first: int, last: int) -> Float32s:
    """Scores of tokens that are left; those beyond the pass have the numbers they had."""
    if first >= rows.size:
        return scores(first, last)
    begin = int(rows[first])
    return scores(begin, int(rows[last - 1]) + 1)[rows[first:last] - begin]
