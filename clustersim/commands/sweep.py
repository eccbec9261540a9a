"""`clustersim -m`: every job of a sweep, and what came of them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from clustersim.commands.screen import stdout_console, sweep_progress
from clustersim.types import InputError

if TYPE_CHECKING:
    from clustersim.sweeps.run import Swept


def command(overrides: list[str], *, as_json: bool = False) -> int:
    """Every job that is not there yet. One that fails is told of at the end; the others go on."""
    from clustersim.sweeps.plugins import is_hydras, run_by_hydra
    from clustersim.sweeps.run import run_sweep

    if any(is_hydras(text) for text in overrides):
        swept = run_by_hydra(overrides)
    else:
        with sweep_progress() as progress:
            swept = run_sweep(overrides, progress)
    if as_json:
        print(json.dumps(swept.document(), indent=2, allow_nan=False))
    else:
        _print_tables(swept)
    return _tell_failures(swept)


def _print_tables(swept: Swept) -> None:
    from clustersim.results import frontier, terminal

    rows = swept.rows()
    steps = [row for _, row in rows]
    costs = frontier.frontier_tables(steps) if len({row["model"] for row in steps}) > 1 else []
    console = stdout_console(edge=False)
    if rows:
        for table in costs or (terminal.comparison(rows), terminal.choosing(rows), terminal.trade(rows)):
            if table is not None:
                console.print(table)
        for note in frontier.frontier_notes(steps) if costs else []:
            console.print(note, style="dim", soft_wrap=True)
        reused = sum(outcome.state == "reused" for outcome in swept.outcomes)
        note = f" ({reused} of them were there already)" if reused else ""
        console.print(f"{len(rows)} runs in {swept.folder()}{note}", soft_wrap=True)


def _tell_failures(swept: Swept) -> int:
    """The jobs that failed, on stderr; the exit code: 0, 1 when a job broke, 2 when one was given bad input."""
    failed = swept.failed()
    if len(failed) == len(swept.jobs) and not swept.left and len({outcome.reason for _, outcome in failed}) == 1:
        raise InputError(failed[0][1].reason)           # what is wrong is in what the jobs share
    shared = set.intersection(*map(set, swept.jobs)) if len(swept.jobs) > 1 else set()
    for job, outcome in failed:
        own = " ".join(text for text in job if text not in shared)
        print(f"clustersim: failed: {own}: {outcome.reason}", file=sys.stderr)
    if swept.left:
        print(f"clustersim: stopped: {swept.left} jobs not begun; the same command goes on with them", file=sys.stderr)
    if not failed:
        return 0
    return 1 if any(outcome.fault == "crash" for _, outcome in failed) else 2
