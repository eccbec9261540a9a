"""Results as files: one folder per run, Parquet tables with their schema and config in the footer, nothing ever half-written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from clustersim.pick import did_you_mean
from clustersim.types import InputError
from clustersim.writing import replacing, sweep_up

TABLES = ("summary", "layers", "gpus", "links", "experts", "pairs", "placements", "memory")
TRAINING = ("summary", "stages", "tasks", "memory")     # of a training step
MORE = ("replicates", "stages", "tasks")                # tables that only some runs have
SCHEMA_VERSION = 3


def write_run(folder: Path, tables: Mapping[str, pl.DataFrame], run: Mapping[str, Any]) -> None:
    """Write the tables, `run.json` and, last, `status.json` into `folder`; what stood there is replaced file by file.

    Each file is written under a temporary name, fsynced and renamed. While files are being replaced `status.json` is
    absent, so that a folder with state `done` is whole. Two processes may write the same run at once: what they write is
    the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").unlink(missing_ok=True)
    sweep_up(folder)
    common = {"clustersim.version": run["version"], "clustersim.config": json.dumps(run["config"], sort_keys=True)}
    for name, table in tables.items():
        footer = {"clustersim.schema": f"{name}/{SCHEMA_VERSION}", **common}
        with replacing(folder / f"{name}.parquet") as temporary:
            packed = BytesIO()          # polars says of a full disk that Parquet is out of specification
            table.write_parquet(packed, compression="zstd", metadata=footer)
            temporary.write_bytes(packed.getbuffer())
    _write_json(folder / "run.json", run)
    more = {"phase": "training"} if "stages" in tables else {}
    _write_json(folder / "status.json", {"state": "done", "schema": SCHEMA_VERSION, **more})
    (folder / "error.txt").unlink(missing_ok=True)


def write_failure(folder: Path, reason: str, fault: str, overrides: Sequence[str], details: str | None = None) -> None:
    """Say in `folder` that the run failed, in one line; `details` goes into `error.txt`. A run that is done stays done.

    Nothing is written where nothing can be.
    """
    if is_done(folder):
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        sweep_up(folder)
        if details is not None:
            with replacing(folder / "error.txt") as temporary:
                temporary.write_text(details, encoding="utf-8")
        _write_json(folder / "status.json", {"state": "failed", "reason": reason, "fault": fault, "overrides": list(overrides)})


def is_done(folder: Path) -> bool:
    """Whether `folder` holds a finished run with all its tables, as this version writes them."""
    status = read_status(folder / "status.json")
    whole = status.get("state") == "done" and status.get("schema") == SCHEMA_VERSION
    tables = TRAINING if status.get("phase") == "training" else TABLES
    return whole and all((folder / f"{table}.parquet").is_file() for table in tables)


def run_folder(name: str, root: Path = Path("results")) -> Path:
    """The folder that a name means: itself, or of the one run below `root` whose run_id begins so.

    Raises:
        InputError: several runs begin so.
    """
    if Path(name).exists() or len(name) < 4 or set(name) - set("0123456789abcdef"):
        return Path(name)
    found = sorted(path for path in root.glob(f"*/{name}*") if (path / "status.json").is_file())
    if len({path.name for path in found}) > 1:
        raise InputError(f"{name}: begins the run_id of {len(found)} runs: {', '.join(map(str, found[:3]))}, ...")
    return found[0] if found else Path(name)


def scan(folder: str | Path, table: str = "summary") -> pl.LazyFrame:
    """One table of every finished run under `folder`, as one frame; column `run_id` says which run a row is of.

    Runs may differ in columns, and be of any version: what a run does not have is null, and where types differ the wider
    one is taken.

    Raises:
        InputError: no such table, or no finished run.
    """
    known = (*TABLES, *MORE)
    if table not in known:
        raise InputError(f"table={table}: there is no such table{did_you_mean(table, known)} (known: {', '.join(known)})")
    runs = [path.parent for path in sorted(Path(folder).rglob("status.json")) if read_status(path).get("state") == "done"]
    if not runs:
        raise InputError(f"{folder}: holds no finished run")
    runs = [run for run in runs if (run / f"{table}.parquet").is_file()]        # an older version wrote fewer tables
    if not runs:
        raise InputError(f"{folder}: no run there has a table {table}")
    alike: dict[tuple[Any, ...], list[Path]] = {}               # runs whose tables have the same columns and types
    for run in runs:
        schema = pl.scan_parquet(run / f"{table}.parquet", glob=False, hive_partitioning=False).collect_schema()
        alike.setdefault(tuple(schema.items()), []).append(run)
    return pl.concat([_scan_alike(some, table) for some in alike.values()], how="diagonal_relaxed")


def _scan_alike(runs: Sequence[Path], table: str) -> pl.LazyFrame:
    """One table of runs that have the same columns."""
    files = [run / f"{table}.parquet" for run in runs]
    frame = pl.scan_parquet(files, glob=False, hive_partitioning=False, include_file_paths=_FILE)
    names = pl.Series([run.name for run in runs])
    found = pl.col(_FILE).replace_strict(pl.Series([str(file) for file in files]), names, return_dtype=pl.String)
    return frame.with_columns(run_id=found).drop(_FILE)


_FILE = "__file__"          # the column in which polars tells the file of a row


def read_status(path: Path) -> dict[str, Any]:
    """What a status.json says; nothing when it is not one of ours."""
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
