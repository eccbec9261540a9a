"""A sweep from its overrides to what became of every job. Prints nothing: the command line does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from clustersim.composition import composed, shown
from clustersim.config import sweep, what_is_run, whole
from clustersim.results.documents import plain
from clustersim.results.manifests import Planned, manifest_file, question_of, read_one, write_manifest
from clustersim.sweeps import pool
from clustersim.sweeps.job import Outcome
from clustersim.types import InputError

LIST_S = 1.0            # between two writings of the list of jobs


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

    def document(self) -> dict[str, Any]:
        """All of it for a script, as JSON has it."""
        rows = iter(self.rows())
        jobs = [
            {
                "overrides": job, "state": outcome.state, "run_id": outcome.folder and outcome.folder.name,
                "folder": outcome.folder and str(outcome.folder), "reason": outcome.reason, "fault": outcome.fault,
                "summary": None if outcome.state == "failed" else plain(next(rows)[1]),
            }
            for job, outcome in zip(self.jobs, self.outcomes, strict=True)
        ]  # fmt: skip
        return {"folder": self.folder() and str(self.folder()), "jobs": jobs, "left": self.left}


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
    every = list(sweep(overrides))
    said = composed(every[0])
    positions = shard_of(list(range(len(every))), said.get("shard"))
    jobs = [every[i] for i in positions]
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
        note(positions[number], outcome)
        progress(standing(), "")
        return outcome.fault != "disk"

    def told(number: int, fraction: float, what: str) -> None:
        parts[number] = fraction
        progress(standing(), what)

    with listing(overrides, every, said.get("shard")) as note:
        if workers == 0:
            pool.run_here(jobs, ended, told)
        elif jobs:
            pool.run_pool(jobs, min(workers, len(jobs)), ended, told)
    begun = sorted(outcomes)
    return Swept(jobs=[jobs[i] for i in begun], outcomes=[outcomes[i] for i in begun], left=len(jobs) - len(begun))


@contextmanager
def listing(
    overrides: Sequence[str], jobs: Sequence[Sequence[str]], shard: str | None = None
) -> Iterator[Callable[[int, Outcome], None]]:
    """Keep the sweep's manifest while its jobs run: to be told the number of a job and its outcome.

    What a killed sweep had written stays until its job has ended again. Where nothing can be written nothing is.
    """
    asked, question = what_is_run(overrides), question_of(overrides)
    planned = [Planned(overrides=tuple(what_is_run(job))) for job in jobs]
    file: Path | None = None
    last = -math.inf

    def write() -> None:
        nonlocal last
        if file is not None:
            last = time.monotonic()
            with suppress(OSError):
                write_manifest(file, asked, question, planned)

    def note(number: int, outcome: Outcome) -> None:
        nonlocal file, planned
        if file is None and outcome.folder is not None:
            file = manifest_file(outcome.folder.parent, asked, shard)
            planned = _as_before(file, planned)
        run_id = None if outcome.folder is None else outcome.folder.name
        reason = outcome.reason if run_id is None else None
        planned[number] = Planned(overrides=planned[number].overrides, run_id=run_id, reason=reason)
        if time.monotonic() - last > LIST_S:
            write()

    try:
        yield note
    finally:
        write()


def _as_before(file: Path, planned: list[Planned]) -> list[Planned]:
    """The jobs as an earlier run of the same sweep has left them, but for those that are known already."""
    try:
        before = read_one(file).jobs
    except InputError:
        return planned                  # there was none
    same = [job.overrides for job in before] == [job.overrides for job in planned]
    return [new if new.reason else old for new, old in zip(planned, before, strict=True)] if same else planned


def shard_of(jobs: list[int], shard: Any) -> list[int]:
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
