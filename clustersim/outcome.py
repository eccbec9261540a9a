"""What a run gives, and the columns that say what was run. Plays nothing.

The summary's first columns are the choices in short, `named`; its last are the whole config, `keys`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

import clustersim
from clustersim.config import Run, what_is_run
from clustersim.identity import Identity
from clustersim.results.comparing import leaves
from clustersim.results.store import write_run
from clustersim.results.timeline import write_timeline
from clustersim.types import InputError

VERSIONS = ("numpy", "numba", "polars", "simpy")        # packages whose versions run.json tells


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Result:
    """What a run gave."""

    run: Run
    run_id: str                             # first 12 hex digits of the sha256 of everything the run depends on
    summary: dict[str, Any]                 # the row of summary.parquet
    tables: dict[str, pl.DataFrame]         # summary, layers, gpus, links, experts, pairs
    notes: tuple[str, ...]                  # what a reader has to know
    timeline: Callable[[], Iterator[str]] | None    # the events that `export.timeline` asked for
    provenance: dict[str, Any]              # what run.json says

    def __repr__(self) -> str:
        row = self.summary
        what = f"{row['model']} on {row['gpus']} GPUs of {row['topology']}, a step of {row['step_s']:.6g} s"
        return f"Result({self.run_id}: {what}; summary, notes, tables {', '.join(self.tables)})"

    @property
    def folder(self) -> Path:
        """Where `save` writes."""
        return self.run.output / self.run.study / self.run_id

    def save(self) -> Path:
        """Write the results folder; a run of the same run_id is replaced.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            if self.timeline:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_timeline(self.folder / "timeline.json.gz", self.timeline(), {"run_id": self.run_id})
            write_run(self.folder, self.tables, self.provenance)
        except OSError as error:
            raise InputError(f"output={self.run.output}: {self.folder} cannot be written ({error.strerror})") from error
        return self.folder


def named(run: Run) -> dict[str, Any]:
    """Those that the config says by itself."""
    config = run.config
    return {
        "model": run.model.name,
        "topology": run.topology,
        "nodes": config["topology"].get("nodes"),
        "gpus": None,
        "trace": config["trace"]["name"],
        "router": config["router"]["name"],
        "tokens_per_gpu": run.tokens_per_gpu,
        "capacity_factor": run.capacity_factor,
        "capacity_rule": config["capacity"]["rule"],
        "drop": config["capacity"]["drop"],
        "steps": config["workload"]["steps"],
        "placement": config["placement"]["name"],
        "slots": None,
        "replica": config["placement"]["replica"],
        "exchange": config["exchange"]["name"],
        "network": config["network"]["name"],
        "compute": config["compute"]["name"],
        "seed": run.seed,
    }


def keys(run: Run) -> dict[str, Any]:
    """Every key of the config under its dotted name, so that what a sweep varies is a column, however it was asked for."""
    values = {key: value for key, value in leaves(run.config) if "." in key and not key.startswith("export.")}
    return {
        key: value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)
        for key, value in values.items()
    }


@cache
def _version(package: str) -> str:
    """Looked up once: it takes a file of the package each time."""
    return version(package)


def provenance_of(run: Run, identity: Identity, notes: Sequence[str]) -> dict[str, Any]:
    """What run.json says: everything the run depends on, and how it was asked for."""
    return {
        **identity.depends,
        "config": identity.config,
        "run_id": identity.run_id,
        "study": run.study,
        "overrides": what_is_run(run.overrides),
        "seed": run.seed,
        "version": clustersim.__version__,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in VERSIONS},
        "notes": list(notes),
    }
