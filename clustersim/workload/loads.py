"""Load files: how many tokens each expert had, layer by layer, without the tokens. Reads and checks; decides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from clustersim.model import Model
from clustersim.types import Floats, InputError
from clustersim.workload.trace import FOOTER_KEY, SCHEMA

_COLUMNS = ("step", "layer", "counts")


def read_loads(path: str | Path, model: Model) -> list[Floats]:
    """The counts of a `counts.parquet` (moetrace/1), [recorded layers] of float [steps, experts], layers in rising order.

    Rows of one step and domain are one step here, summed over ranks and phases.

    Raises:
        InputError: no such file, not Parquet, another schema, a column missing, counts of another number of experts or
            another top_k than the model's, a step that lacks a layer, no load at all.
    """
    file = Path(path) / "counts.parquet" if Path(path).is_dir() else Path(path)
    name = f"decide.path={path}"
    if not file.is_file():
        raise InputError(f"{name}: there is no {file}; a load file is the counts.parquet of a moetrace/1 folder")
    try:
        meta = json.loads(pl.read_parquet_metadata(file).get(FOOTER_KEY, "{}"))
        frame = pl.read_parquet(file, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA or meta.get("kind") != "counts":
        raise InputError(f"{name}: its footer key {FOOTER_KEY!r} does not say schema {SCHEMA!r} and kind 'counts'")
    if missing := [column for column in _COLUMNS if column not in frame.columns]:
        raise InputError(f"{name}: has no column {missing[0]!r}; it needs {', '.join(_COLUMNS)}")
    n_experts, top_k = meta.get("num_experts"), meta.get("top_k")
    if (n_experts, top_k) != (model.n_experts, model.top_k):
        raise InputError(
            f"{name}: the load of {n_experts} experts, top-{top_k}; model {model.name} has {model.n_experts} experts, top-{model.top_k}"
        )
    kind = frame["counts"].dtype
    if not isinstance(kind, pl.Array | pl.List) or not kind.inner.is_integer() or not frame.height:
        raise InputError(f"{name}: column 'counts' is {kind} in {frame.height} rows; it must hold whole numbers, one per expert")
    if (frame["counts"].cast(pl.List(pl.Int64)).list.len() != model.n_experts).any():
        raise InputError(f"{name}: column 'counts' does not hold {model.n_experts} numbers in every row")
    counts = np.array(frame["counts"].to_list(), np.float64)
    if not (counts >= 0).all() or not counts.sum() > 0:
        raise InputError(f"{name}: counts must not be negative, and not all 0")
    step = frame.select(pl.struct([c for c in ("step", "domain") if c in frame.columns])).to_series().rank("dense").to_numpy()
    layer, steps = frame["layer"].to_numpy(), np.unique(step)
    loads = [np.zeros((steps.size, model.n_experts)) for _ in np.unique(layer)]
    for number, one in enumerate(np.unique(layer)):
        own = layer == one
        if np.unique(step[own]).size != steps.size:
            raise InputError(f"{name}: layer {one} is not in every step; each step needs all layers")
        np.add.at(loads[number], np.searchsorted(steps, step[own]), counts[own])
    return loads
