"""Traces that hold counts alone: how many choices each expert got (`counts.parquet` of `moetrace/1`). Reads and adds up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from clustersim.types import InputError, Ints
from clustersim.workload.trace import FOOTER_KEY, SCHEMA

NEEDED = ("layer", "counts")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Counts:
    """Choices of every expert, added up over steps and ranks."""

    model: str
    layers: tuple[int, ...]         # of the model, as recorded
    choices: dict[str, Ints]        # domain -> [layers, experts]


def read_counts(path: str | Path) -> Counts:
    """The counts at `path`: the folder, or the `counts.parquet` inside.

    Raises:
        InputError: no such file, not Parquet, another schema, a column missing or of another type, a domain without a layer.
    """
    file = Path(path)
    file = file / "counts.parquet" if file.is_dir() else file
    try:
        meta = json.loads(pl.read_parquet_metadata(file).get(FOOTER_KEY) or "null")
        frame = pl.read_parquet(file, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as Parquet ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise InputError(f"{file}: its footer does not say schema {SCHEMA!r} under the key {FOOTER_KEY!r}")
    if missing := [name for name in NEEDED if name not in frame.columns]:
        raise InputError(f"{file}: has no column {missing[0]!r}; it needs {' and '.join(NEEDED)}")
    if not isinstance(frame["counts"].dtype, pl.Array) or not frame.height or frame["counts"].null_count():
        raise InputError(f"{file}: counts is {frame['counts'].dtype}; it must hold one list of a fixed size in every row")
    domain = frame["domain"].cast(pl.String).to_list() if "domain" in frame.columns else [""] * frame.height
    layer, counts = frame["layer"].to_numpy(), frame["counts"].to_numpy().astype(np.int64)
    layers = tuple(int(one) for one in np.unique(layer))
    choices: dict[str, Ints] = {}
    for name in sorted({one or "" for one in domain}):
        rows = np.array([(one or "") == name for one in domain])
        choices[name] = np.array([counts[rows & (layer == one)].sum(0) for one in layers])
        if not choices[name].sum(1).all():
            raise InputError(f"{file}: domain {name!r} has no choices in layer {layers[int(choices[name].sum(1).argmin())]}")
    return Counts(model=str(meta.get("model", "model not named")), layers=layers, choices=choices)
