"""One job of a sweep: reuse what is there, or simulate and write. It never raises what a job can do wrong; it tells it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clustersim.config import compose
from clustersim.identity import identify
from clustersim.results.store import is_done, write_failure
from clustersim.types import InputError

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job."""

    state: Literal["done", "reused", "failed"]
    folder: Path | None                 # where its results are; None where it never got as far as that
    reason: str | None = None           # one line; only of a failed one
    fault: Literal["input", "disk", "crash"] | None = None      # what was wrong: what was asked, the disk, or we
    step_s: float | None = None         # only where it was simulated just now


def run_job(overrides: Sequence[str], progress: Progress = lambda fraction, what: None) -> Outcome:
    """Run the job with these overrides, unless its results are there; one that fails says so in its folder."""
    folder = None
    try:
        run = compose(overrides)
        folder = run.output / run.study / identify(run).run_id
        if is_done(folder):
            return Outcome(state="reused", folder=folder)
        from clustersim.simulation import simulate

        result = simulate(run, progress=progress)
        result.save()
        return Outcome(state="done", folder=folder, step_s=result.summary["step_s"])
    except InputError as error:
        disk = isinstance(error.__cause__, OSError) and "cannot be written" in str(error)
        return _failed(overrides, folder, str(error), "disk" if disk else "input")
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return _failed(overrides, folder, f"{type(error).__name__}: {first}".rstrip(": "), "crash", traceback.format_exc())


def died(overrides: Sequence[str], how: str) -> Outcome:
    """The outcome of a job whose process ended under it."""
    try:
        run = compose(overrides)
        folder = run.output / run.study / identify(run).run_id
    except InputError:
        folder = None
    return _failed(overrides, folder, how, "crash")


def _failed(
    overrides: Sequence[str], folder: Path | None, reason: str, fault: Literal["input", "disk", "crash"],
    details: str | None = None,
) -> Outcome:  # fmt: skip
    if folder is not None:
        write_failure(folder, reason, overrides, details)
    return Outcome(state="failed", folder=folder, reason=reason, fault=fault)
