"""`clustersim compare`: two runs side by side, several in one table, or the jobs of a sweep once more."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustersim.commands.screen import stdout_console
from clustersim.types import InputError

if TYPE_CHECKING:
    from clustersim.report.reading import Job


def command(arguments: list[str]) -> int:
    named = [text for text in arguments if not text.startswith("-")]
    if unknown := [text for text in arguments if text.startswith("-") and text != "--json"]:
        raise InputError(f"compare {unknown[0]}: there is no such flag (--json prints values for a script)")
    from clustersim.results.store import run_folder

    folders, as_json = [run_folder(text) for text in named], "--json" in arguments
    if len(folders) == 2:
        from clustersim.results.comparing import compare, comparison_table

        compared = compare(*folders)
        if as_json:
            print(json.dumps(compared.plain(), indent=2))
        else:
            stdout_console().print(comparison_table(compared))
        return 0
    from clustersim.report.reading import read_jobs

    if len(folders) > 2:
        jobs, swept = read_jobs(folders)
        return _show(jobs, swept, as_json, f"{len(jobs)} runs")
    return _sweep(folders[0] if folders else None, as_json)


def _sweep(folder: Path | None, as_json: bool) -> int:
    """The last sweep of a folder; the last of all in `results` without one."""
    from clustersim.report.reading import RunData, read_results
    from clustersim.results.manifests import newest_manifest

    if folder is None:
        last = max(filter(None, map(newest_manifest, Path("results").glob("*/"))), key=lambda one: one.changed, default=None)
        if last is None:
            raise InputError("compare: there is no sweep in results; name two runs or more, or the folder of a sweep")
        folder = last.file
    if not folder.exists():
        raise InputError(f"compare {folder}: there is no such folder, and no run in results whose run_id begins so")
    sweep = read_results(folder)
    if isinstance(sweep, RunData):
        raise InputError(f"compare {folder}: is one run; name two or more, or the folder of a sweep")
    for asked, reason in sweep.failed:
        print(f"clustersim: failed: {asked}: {reason}", file=sys.stderr)
    return _show(sweep.jobs, sweep.swept, as_json, f"{len(sweep.jobs)} runs of the last sweep in {sweep.folder}")


def _show(jobs: Sequence[Job], swept: Sequence[str], as_json: bool, told: str) -> int:
    from clustersim.report.reading import value_of
    from clustersim.results import documents, terminal

    keys = [{key: value_of(job, key) for key in swept} for job in jobs]
    if as_json:
        rows = [
            {"folder": str(job.folder), "keys": own, "summary": documents.plain(job.summary)}
            for job, own in zip(jobs, keys, strict=True)
        ]
        print(json.dumps({"jobs": rows}, indent=2, allow_nan=False))
        return 0
    if not jobs:
        raise InputError("compare: no job of the sweep came to an end")
    rows_of = [([f"{key}={value}" for key, value in own.items()], job.summary) for own, job in zip(keys, jobs, strict=True)]
    console = stdout_console(edge=False)
    for table in (terminal.comparison(rows_of), terminal.choosing(rows_of), terminal.trade(rows_of)):
        if table is not None:
            console.print(table)
    console.print(told, soft_wrap=True)
    return 0
