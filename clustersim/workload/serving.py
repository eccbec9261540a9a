"""What sequences in flight hold, for a step of decoding: lengths drawn once, growing from step to step. No experts, no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clustersim.pick import did_you_mean
from clustersim.types import InputError, Ints, Workload

LENGTHS_STREAM = 7_000_001      # of the random numbers of lengths, apart from every layer's and the deal's


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """The keys of `workload=decode`, judged."""

    sequences: int                  # on a GPU
    context: float | None           # mean; None: as recorded
    context_spread: float
    rank_spread: float
    draft: int
    accepted: float
    drafter: str | None = None

    @property
    def drafting(self) -> int:
        """Layers that make drafts, after those of the model."""
        return self.draft if self.drafter == "mtp" else 0

    @property
    def per_sequence(self) -> int:
        """Tokens of a sequence that go through the model in a step."""
        return 1 + self.draft


def decoding_from(config: Mapping[str, Any]) -> Decoding | None:
    """What the config group `workload` says of decoding; None in prefill.

    Raises:
        InputError: a value that cannot be.
    """
    if config["phase"] != "decode":
        return None
    given = {key: config[key] for key in ("context", "context_spread", "rank_spread", "draft", "accepted")}
    for key, value in given.items():
        least = {"context": 1.0, "accepted": 1.0}.get(key, 0.0)
        if value is None and key == "context":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise InputError(f"workload.{key}={value}: must be a number from {least:g} up")
    if not isinstance(given["draft"], int):
        raise InputError(f"workload.draft={given['draft']}: must be a whole number of tokens")
    if given["accepted"] > 1 + given["draft"]:
        raise InputError(
            f"workload.accepted={given['accepted']}: no more tokens can be kept than are verified; "
            f"workload.draft={given['draft']} allows {1 + given['draft']}"
        )
    drafter = config["drafter"]
    if drafter not in (None, "mtp"):
        raise InputError(f"workload.drafter={drafter}: must be mtp or null{did_you_mean(str(drafter), ('mtp',))}")
    return Decoding(sequences=config["tokens_per_gpu"], drafter=drafter, **given)


def with_lengths(steps: tuple[Workload, ...], decoding: Decoding, n_gpus: int, seed: int) -> tuple[Workload, ...]:
    """The steps with what each token looks at: `decoding.context` on average, drawn for every sequence, one token further for
    every token of a step and `accepted` further from step to step. Tokens of a sequence stand side by side.

    Args:
        decoding: as many sequences as the GPU with most has.
    """
    if decoding.context is None:
        return steps
    lengths = _lengths(decoding, n_gpus, seed)
    begins = (lengths[:, None] + np.arange(decoding.per_sequence)).reshape(n_gpus, -1)
    return tuple(
        replace(step, context=begins[step.source, step.index] + round(i * decoding.accepted)) for i, step in enumerate(steps)
    )


def _lengths(decoding: Decoding, n_gpus: int, seed: int) -> Ints:
    """int [gpus * sequences], at least 1."""
    assert decoding.context is not None
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(LENGTHS_STREAM,))))
    of_rank = around_one(rng, decoding.rank_spread, n_gpus)
    of_sequence = around_one(rng, decoding.context_spread, n_gpus * decoding.sequences)
    drawn = decoding.context * np.repeat(of_rank, decoding.sequences) * of_sequence
    result: Ints = np.maximum(1, np.rint(drawn)).astype(np.int64)
    return result


def around_one(rng: np.random.Generator, spread: float, n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Lognormal numbers of mean 1 and standard deviation `spread`."""
    sigma = math.sqrt(math.log1p(spread**2))
    return np.exp(sigma * rng.standard_normal(n) - sigma**2 / 2)
