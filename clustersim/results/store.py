"""Results as files: one folder per run, Parquet tables with their schema and config in the footer, nothing ever half-written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from clustersim.types import InputError
from clustersim.writing import replacing

TABLES = ("summary", "layers", "gpus", "links", "experts", "pairs", "placements")
SCHEMA_VERSION = 1


def write_run(folder: Path, tables: Mapping[str, pl.DataFrame], run: Mapping[str, Any]) -> None:
    """Write the tables, `run.json` and, last, `status.json` into `folder`; what stood there is replaced file by file.

    Each file is written under a temporary name, fsynced and renamed. While files are being replaced `status.json` is
    absent, so that a folder with state `done` is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").unlink(missing_ok=True)
    common = {"clustersim.version": run["version"], "clustersim.config": json.dumps(run["config"], sort_keys=True)}
    for name, table in tables.items():
        footer = {"clustersim.schema": f"{name}/{SCHEMA_VERSION}", **common}
        with replacing(folder / f"{name}.parquet") as temporary:
            table.write_parquet(temporary, compression="zstd", metadata=footer)
    _write_json(folder / "run.json", run)
    _write_json(folder / "status.json", {"state": "done"})


def scan(folder: str | Path, table: str = "summary") -> pl.LazyFrame:
    """One table of every finished run under `folder`, as one frame; column `run_id` says which run a row is of.

    Runs may differ in columns: what a run does not have is null.

    Raises:
        InputError: no such table, or no finished run.
    """
    if table not in TABLES:
        raise InputError(f"table={table}: there is no such table (known: {', '.join(TABLES)})")
    runs = [path.parent for path in sorted(Path(folder).rglob("status.json")) if _state(path) == "done"]
    if not runs:
        raise InputError(f"{folder}: holds no finished run")
    files = [pl.scan_parquet(run / f"{table}.parquet", glob=False, hive_partitioning=False) for run in runs]
    frames = [file.with_columns(run_id=pl.lit(run.name)) for file, run in zip(files, runs, strict=True)]
    return pl.concat(frames, how="diagonal_relaxed")


def _state(path: Path) -> str | None:
    """What a status.json says; None when it is not one of ours."""
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status.get("state") if isinstance(status, dict) else None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
