"""Results for a script: what `--json` prints, as values that JSON has. Prints nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl


def run_document(tables: Mapping[str, pl.DataFrame], notes: Sequence[str], folder: Path) -> dict[str, Any]:
    """A run: the row of its summary, its layers (of training, its pipeline devices), the notes, and where the rest is."""
    summary = plain(tables["summary"].row(0, named=True))
    name = "layers" if "layers" in tables else "stages"
    rows = [plain(row) for row in tables[name].iter_rows(named=True)]
    return {"run_id": folder.name, "folder": str(folder), "summary": summary, name: rows, "notes": list(notes)}


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table; a number that JSON does not have is null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
