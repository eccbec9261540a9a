"""Results folders as a report needs them: one run whole, or the summaries of many. Reads files, and judges nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from clustersim.pick import did_you_mean
from clustersim.results.manifests import Manifest, newest_manifest, question_of, read_manifest
from clustersim.types import InputError

TABLES = ("layers", "gpus", "links", "experts", "pairs", "stages", "tasks", "memory")
WHOLE = ("layers.parquet", "stages.parquet")     # one of them, beside its summary, makes a run's page
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunData:
    """One run. Numbers that are not finite are None."""

    folder: Path
    told: Row  # run.json
    summary: Row
    tables: Mapping[str, pl.DataFrame]  # of the first step, by name; a table that an older version did not write is empty
    steps: int

    @property
    def trained(self) -> bool:
        """Whether it is a training step."""
        return bool(self.tables["stages"].height) if "stages" in self.tables else False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """One job of a sweep."""

    folder: Path
    keys: Mapping[str, str]  # what was asked of it, override by override, as text
    config: Mapping[str, str]  # its whole config as dotted keys and text
    summary: Row


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SweepData:
    """The runs of a folder that were finished, and those that failed."""

    folder: Path
    study: str
    about: str  # the study's own line; empty where it tells none
    jobs: Sequence[Job]
    swept: Sequence[str]  # the keys in which jobs differ
    failed: Sequence[tuple[str, str]]  # what was asked, and why it failed
    unreadable: Sequence[tuple[str, str]]
    left: int  # jobs of the sweep that have not been run
    others: int  # finished runs beside it that are none of its jobs


def newest_results(output: Path) -> Path:
    """What a report without a folder is of: the study whose sweep ran last, or the last single run.

    Raises:
        InputError: nothing has run yet.
    """
    stamps = [(path.stat().st_mtime_ns, path.parent) for path in output.glob("*/*/status.json") if _json(path).get("state")]
    if not stamps:
        raise InputError(f"report: {output} holds no results yet; run clustersim first, or name a folder")
    changed, last = max(stamps)
    sweep = max(filter(None, map(newest_manifest, output.glob("*/"))), key=lambda one: one.changed, default=None)
    if sweep is not None and (sweep.changed >= changed or _goes_on(sweep, last)):
        return sweep.file.parent
    return last if last.parent.name == "runs" or newest_manifest(last.parent) else last.parent


def _goes_on(sweep: Manifest, run: Path) -> bool:
    """Whether a run is a job that ended after a sweep had told of its jobs for the last time, for it was killed."""
    told = _json(run / "run.json").get("overrides")
    return run.parent == sweep.file.parent and not sweep.whole and told in [list(job.overrides) for job in sweep.jobs]


def read_results(folder: Path, *, everything: bool = False) -> RunData | SweepData:
    """What a folder of results holds: a run; of a study the sweep that ran last; else, or with `everything`, all runs below it.

    `folder` may be the `sweep-ID.json` of an earlier sweep of a study.

    Raises:
        InputError: no such folder, or no results in it.
    """
    if folder.name.startswith("sweep-") and folder.is_file():
        return _sweep(folder.parent, read_manifest(folder))
    if not folder.is_dir():
        known = [str(path) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise InputError(f"report {folder}: there is no such folder{did_you_mean(str(folder), known)}")
    if (folder / "summary.parquet").is_file():
        return _run(folder)
    manifest = None if everything else newest_manifest(folder)
    found = _sweep(folder, manifest)
    alone = found.jobs[0].folder if len(found.jobs) == 1 and not (found.failed or found.unreadable) else None
    if manifest is None and not everything and alone and any((alone / name).is_file() for name in WHOLE):
        return _run(alone)                          # a study that is one run, and no sweep
    return found


def _run(folder: Path) -> RunData:
    def table(name: str) -> pl.DataFrame:
        path = folder / f"{name}.parquet"
        return pl.read_parquet(path, glob=False) if path.is_file() else pl.DataFrame()

    try:
        summary = table("summary").row(0, named=True)
        tables = {name: table(name) for name in TABLES}
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise InputError(f"report {folder}: cannot be read as a run ({str(error).splitlines()[0]})") from error
    steps = tables["layers"]["step"].n_unique() if "step" in tables["layers"].columns else 1
    first = {name: _first_step(each) for name, each in tables.items()}
    return RunData(folder=folder, told=told, summary=finite(summary), tables=first, steps=steps)


def _first_step(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of the first step, of a run of several."""
    return table.filter(pl.col("step") == pl.col("step").min()) if "step" in table.columns else table


def _sweep(folder: Path, manifest: Manifest | None) -> SweepData:
    """The runs of a sweep, or without one all below a folder."""
    jobs, failed, unreadable = [], [], []
    found = sorted(folder.rglob("status.json"))
    own, left = found, 0
    if manifest is not None:
        own = [folder / run_id / "status.json" for run_id in dict.fromkeys(job.run_id for job in manifest.jobs if job.run_id)]
        failed = [(" ".join(job.overrides), job.reason) for job in manifest.jobs if job.reason]
        left = sum(job.run_id is None and job.reason is None for job in manifest.jobs)
    for path in own:
        status, place = _json(path), str(path.parent.relative_to(folder))
        if status.get("state") == "failed":
            asked = status.get("overrides") or status.get("job") or place
            failed.append(
                (asked if isinstance(asked, str) else " ".join(map(str, asked)), str(status.get("reason", "no reason given")))
            )
        elif status.get("state") == "done":
            try:
                jobs.append(_job(path.parent))
            except (pl.exceptions.PolarsError, OSError, ValueError, KeyError, TypeError) as error:
                unreadable.append((place, (str(error) or type(error).__name__).splitlines()[0]))
        else:
            left += manifest is not None        # killed while it wrote
    if not jobs and not failed:
        raise InputError(f"report {folder}: holds no finished run")
    others = sum(_json(path).get("state") == "done" for path in set(found).difference(own))
    study = folder.name if len({job.folder.parent for job in jobs}) <= 1 else str(folder)
    return SweepData(
        folder=folder, study=study, jobs=jobs,
        about=question_of([f"experiment={folder.name}"]) if manifest is None else manifest.question,
        swept=_swept(jobs), failed=failed, unreadable=unreadable, left=left, others=others,
    )  # fmt: skip


def _job(folder: Path) -> Job:
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    summary = pl.read_parquet(folder / "summary.parquet", glob=False).row(0, named=True)
    pairs = (text.lstrip("+").partition("=") for text in told["overrides"])
    keys: dict[str, str] = {key: value for key, _, value in pairs}
    return Job(
        folder=folder, keys={key: _WRITTEN.get(value, value) for key, value in keys.items()},
        config=dict(leaves(told["config"])), summary=finite(summary),
    )  # fmt: skip


_WRITTEN = {"True": "true", "False": "false"}  # as they are written in an override


def read_jobs(folders: Sequence[Path]) -> tuple[list[Job], list[str]]:
    """Finished runs, and the keys in which they differ.

    Raises:
        InputError: one of them is not the folder of a finished run.
    """
    jobs = []
    for folder in folders:
        if _json(folder / "status.json").get("state") != "done":
            raise InputError(f"compare {folder}: is not the folder of a finished run")
        try:
            jobs.append(_job(folder))
        except (pl.exceptions.PolarsError, OSError, ValueError, KeyError, TypeError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"compare {folder}: cannot be read ({why})") from error
    return jobs, _swept(jobs)


def _swept(jobs: Sequence[Job]) -> list[str]:
    """The keys that some job sets and in which jobs differ, in the order in which they were given."""
    keys = dict.fromkeys(key for job in jobs for key in job.keys)
    return [key for key in keys if key not in ("experiment", "output") and len({value_of(job, key) for job in jobs}) > 1]


def value_of(job: Job, key: str) -> str:
    """What a job has for a key: as it was asked, else from its config (of a group, the name of its option)."""
    if key in job.keys:
        return job.keys[key]
    return job.config.get(key, job.config.get(f"{key}.name", ""))


def differences(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Every key of the config in which jobs differ, and its values in order of appearance; `(none)` where it is not there."""
    keys = dict.fromkeys(key for job in jobs for key in job.config)
    found = {key: list(dict.fromkeys(job.config.get(key, "(none)") for job in jobs)) for key in keys}
    return {key: values for key, values in found.items() if len(values) > 1}


class Known(dict[str, Any]):
    """A row of numbers that are finite; anything else, and what an older version did not write, is None."""

    def __missing__(self, key: str) -> None:
        return None


def finite(row: Row) -> Known:
    """The row as `Known`."""
    return Known((key, None if isinstance(value, float) and not math.isfinite(value) else value) for key, value in row.items())


def leaves(config: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _json(path: Path) -> dict[str, Any]:
    """What a file says; nothing when it is not one of ours."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
