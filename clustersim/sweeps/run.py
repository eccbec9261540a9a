"""A sweep from its overrides to what became of every job. Prints nothing: the command line does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from clustersim.composition import composed, shown
from clustersim.config import sweep, whole
from clustersim.sweeps import pool
from clustersim.sweeps.job import Outcome
from clustersim.types import InputError


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Swept:
    """What became of a sweep, in the order of its jobs; jobs that were never begun are left out."""

    jobs: list[list[str]]               # overrides
    outcomes: list[Outcome]
    left: int                           # jobs never begun, because the disk could not be written

    def failed(self) -> list[tuple[list[str], Outcome]]:
        return [(job, outcome) for job, outcome in zip(self.jobs, self.outcomes, strict=True) if outcome.state == "failed"]

    def rows(self) -> list[tuple[list[str], dict[str, Any]]]:
        """Overrides and summary of every job whose results are there."""
        return [
            (job, pl.read_parquet(outcome.folder / "summary.parquet", glob=False).row(0, named=True))
            for job, outcome in zip(self.jobs, self.outcomes, strict=True)
            if outcome.state != "failed" and outcome.folder is not None
        ]

    def folder(self) -> Path | None:
        """The folder of the study."""
        return next((outcome.folder.parent for outcome in self.outcomes if outcome.folder is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a sweep is."""

    jobs: int
    done: int                           # simulated or reused
    failed: int
    fraction: float                     # of all jobs, parts of those in hand included


def run_sweep(overrides: Sequence[str], progress: Callable[[Standing, str], None] = lambda standing, what: None) -> Swept:
    """Run every job of a sweep that is not there yet, on `workers` processes; with `shard=i/n` every n-th, from the i-th.

    Args:
        progress: told whenever a job ends, and now and then what one does.

    Raises:
        InputError: something in the overrides is wrong that no single job can be blamed for.
    """
    jobs = list(sweep(overrides))
    said = composed(jobs[0])
    jobs = shard_of(jobs, said.get("shard"))
    workers = said.get("workers")
    workers = pool.cores() if workers is None else whole("workers", workers, least=0)
    outcomes: dict[int, Outcome] = {}
    parts: dict[int, float] = {}

    def standing() -> Standing:
        failed = sum(outcome.state == "failed" for outcome in outcomes.values())
        fraction = (len(outcomes) + sum(parts.values())) / max(1, len(jobs))
        return Standing(jobs=len(jobs), done=len(outcomes) - failed, failed=failed, fraction=fraction)

    def ended(number: int, outcome: Outcome) -> bool:
        outcomes[number] = outcome
        parts.pop(number, None)
        progress(standing(), "")
        return outcome.fault != "disk"

    def told(number: int, fraction: float, what: str) -> None:
        parts[number] = fraction
        progress(standing(), what)

    if workers == 0:
        pool.run_here(jobs, ended, told)
    elif jobs:
        pool.run_pool(jobs, min(workers, len(jobs)), ended, told)
    begun = sorted(outcomes)
    return Swept(jobs=[jobs[i] for i in begun], outcomes=[outcomes[i] for i in begun], left=len(jobs) - len(begun))


def shard_of(jobs: list[list[str]], shard: Any) -> list[list[str]]:
    """The jobs of shard `i/n`, i from 1: every n-th, so that all shards together are the sweep. None: all jobs.

    Raises:
        InputError: not i/n with 1 <= i <= n.
    """
    if shard is None:
        return jobs
    first, slash, many = str(shard).partition("/")
    if not (slash and first.isdecimal() and many.isdecimal() and 1 <= int(first) <= int(many)):
        raise InputError(f"shard={shown(shard)}: must be i/n with i from 1 to n, for example shard=1/4")
    return jobs[int(first) - 1 :: int(many)]
