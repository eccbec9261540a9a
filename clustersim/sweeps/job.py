"""One job of a sweep: reuse what is there, or simulate and write. It never raises what a job can do wrong; it tells it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from clustersim.config import Run, compose
from clustersim.identity import identify
from clustersim.results.store import is_done, read_status, write_failure
from clustersim.types import InputError

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job."""

    state: Literal["done", "reused", "failed"]
    folder: Path | None                 # where its results are; None where it never got as far as that
    reason: str | None = None           # one line; only of a failed one
    fault: Literal["input", "disk", "crash"] | None = None      # what was wrong: what was asked, the disk, or we


def run_job(overrides: Sequence[str], progress: Progress = lambda fraction, what: None) -> Outcome:
    """Run the job with these overrides, unless its results are there; one that fails says so in its folder."""
    return run_judged(partial(compose, overrides), overrides, progress)


def run_judged(
    run: Callable[[], Run], overrides: Sequence[str], progress: Progress = lambda fraction, what: None
) -> Outcome:
    """As `run_job`, of what `run` gives; the overrides are only told."""
    folder = None
    try:
        asked = run()
        folder = _folder(asked)
        if is_done(folder):
            return Outcome(state="reused", folder=folder)
        from clustersim.simulation import simulate

        simulate(asked, progress=progress).save()
        return Outcome(state="done", folder=folder)
    except InputError as error:
        fault: Literal["disk", "input"] = "disk" if isinstance(error.__cause__, OSError) and folder is not None else "input"
        return _failed(overrides, folder, str(error), fault)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return _failed(overrides, folder, f"{type(error).__name__}: {first}".rstrip(": "), "crash", traceback.format_exc())


def died(overrides: Sequence[str], how: str) -> Outcome:
    """The outcome of a job whose process ended under it."""
    try:
        folder = _folder(compose(overrides))
    except InputError:
        folder = None
    return _failed(overrides, folder, how, "crash")


def seen(overrides: Sequence[str]) -> Outcome:
    """The outcome of a job that somebody else ran, by what is in its folder."""
    try:
        folder = _folder(compose(overrides))
    except InputError as error:
        return Outcome(state="failed", folder=None, reason=str(error), fault="input")
    if is_done(folder):
        return Outcome(state="done", folder=folder)
    status = {"reason": "it left nothing; see the log of the launcher", **read_status(folder / "status.json")}
    return Outcome(
        state="failed", folder=folder, reason=str(status["reason"]), fault="input" if status.get("fault") == "input" else "crash"
    )


def _folder(run: Run) -> Path:
    return run.output / run.study / identify(run).run_id


def _failed(
    overrides: Sequence[str], folder: Path | None, reason: str, fault: Literal["input", "disk", "crash"],
    details: str | None = None,
) -> Outcome:  # fmt: skip
    if folder is not None:
        write_failure(folder, reason, fault, overrides, details)
    return Outcome(state="failed", folder=folder, reason=reason, fault=fault)
