"""How good a fit is: parameters from 70 % of a trace's sequences, tokens sampled for the other 30 %, and what they miss.

Beside every distance stands that of the two parts of the trace itself. Fits nothing by itself, prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clustersim.types import InputError, Ints, Trace
from clustersim.workload import statistics
from clustersim.workload.fit import fit_tokens, sample_like, sequences_of
from clustersim.workload.trace_rules import take

HELD_OUT = 0.3
SEEDS = 4
LIMITS = {                          # statistic -> the mean over layers of the absolute difference must not exceed this
    "load CV": 0.10,
    "overlap, lag 1": 0.05,
    "overlap, lag 16": 0.05,
    "next-layer recall": 0.08,
    "co-activation lift p99": 0.20,         # relative
    "spread between sequences": 0.05,
}

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One statistic: distances, means over the seeds."""

    statistic: str
    limit: float
    value: float                    # of the held-out part, mean over layers and seeds
    sampled: float                  # distance between sampled tokens and the held-out part
    worst: float                    # the same, of the worst seed
    real: float                     # distance between the part that was fitted and the held-out part

    @property
    def verdict(self) -> str:
        """Whether the sampler is within the limit; "untold" where the trace is too small or too short to say."""
        if math.isnan(self.sampled):
            return "untold"
        return "holds" if self.sampled <= self.limit else "missed"


def score_fit(trace: Trace, *, seeds: int = SEEDS, progress: Progress = lambda fraction, what: None) -> list[Score]:
    """Fit and score `seeds` times; a seed decides the split by sequence (30 % of every domain) and all that is drawn.

    Raises:
        InputError: a trace with fewer than four sequences cannot be split.
    """
    rows: list[dict[str, tuple[float, float, float]]] = []
    for seed in range(seeds):
        fitted, held = split(trace, seed)
        part = lambda fraction, what, seed=seed: progress((seed + fraction) / seeds, f"seed {seed + 1} of {seeds}: {what}")  # noqa: E731
        parameters, _ = fit_tokens(fitted, seed=seed, progress=part)
        names = tuple(domain.name for domain in parameters.domains)
        sampled = sample_like(parameters, held, sequences_of(held, names), seed=1_000_000 + seed)
        own, real = distances(sampled, held), distances(fitted, held)
        rows.append({name: (own[name][0], own[name][1], real[name][1]) for name in LIMITS})
    return [_score(name, np.array([row[name] for row in rows])) for name in LIMITS]


def _score(name: str, found: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Score:
    return Score(
        statistic=name, limit=LIMITS[name], value=float(found[:, 0].mean()), sampled=float(found[:, 1].mean()),
        worst=float(found[:, 1].max()), real=float(found[:, 2].mean()),
    )


def split(trace: Trace, seed: int) -> tuple[Trace, Trace]:
    """The trace in two, by sequence: 70 % and 30 % of the sequences of every domain.

    Raises:
        InputError: too few sequences for that.
    """
    sequences = sequences_of(trace)
    rng = np.random.default_rng(seed)
    held: list[Ints] = []
    for domain in range(len(sequences.names)):
        own = rng.permutation(sequences.number[sequences.domain == domain])
        held.append(own[: round(HELD_OUT * own.size)])
    out = np.isin(trace.seq, np.concatenate(held))
    if np.unique(trace.seq[out]).size < 2 or np.unique(trace.seq[~out]).size < 2:
        raise InputError(f"fit --score: the trace has {sequences.number.size} sequences; too few to hold 30 % of them out")
    return take(trace, np.flatnonzero(~out)), take(trace, np.flatnonzero(out))


def distances(one: Trace, other: Trace) -> dict[str, tuple[float, float]]:
    """Statistic -> (its value in `other`, how far `one` is from it), both means over the layers; of the lift the relative
    distance, over pairs of experts expected 50 times in both."""
    pairs = {
        "load CV": [statistics.load_cv(trace.expert_ids, trace.n_experts) for trace in (one, other)],
        "overlap, lag 1": [statistics.overlap(trace, 1) for trace in (one, other)],
        "overlap, lag 16": [statistics.overlap(trace, 16) for trace in (one, other)],
        "next-layer recall": [statistics.next_layer_recall(trace)[0] for trace in (one, other)],
        "spread between sequences": [statistics.sequence_spread(trace) for trace in (one, other)],
    }
    (lift, expected), (lift_other, expected_other) = (
        statistics.pair_lift(trace.expert_ids, trace.n_experts) for trace in (one, other)
    )
    p99, p99_other = (statistics.lift_p99(part, expected, expected_other) for part in (lift, lift_other))
    found = {name: (float(b.mean()), float(np.abs(a - b).mean())) for name, (a, b) in pairs.items()}
    told = ~np.isnan(p99)               # layers in which some pair of experts is expected so often
    relative = np.abs(p99 - p99_other)[told] / p99_other[told]
    found["co-activation lift p99"] = (math.nan, math.nan)
    if told.any():
        found["co-activation lift p99"] = float(p99_other[told].mean()), float(relative.mean())
    return found
