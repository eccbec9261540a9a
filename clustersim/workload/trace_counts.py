"""Traces that hold counts alone: how many choices each expert got (`counts.parquet` of `moetrace/1`). Reads, writes, adds up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from clustersim.types import InputError, Ints
from clustersim.workload.trace_file import CHECK_KEY, FOOTER_KEY, SCHEMA, UNREADABLE, check_parquet, checksums, footer
from clustersim.workload.trace_rules import PHASE_CODES, check_placement
from clustersim.workload.trace_writing import Summed
from clustersim.writing import replacing

NEEDED = ("layer", "counts")
NUMBERS: Mapping[str, type[np.unsignedinteger[Any]]] = {
    "step": np.uint32, "step_end": np.uint32, "rank": np.uint16, "phase": np.uint8, "layer": np.uint16, "tokens": np.uint32,
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CountRows:
    """Choices of every expert, one row per step, rank, layer and domain."""

    counts: Ints                    # [rows, experts]
    layer: Ints                     # [rows] of the model, dense ones counted
    step: Ints                      # [rows] forward pass, or the first of a window
    step_end: Ints                  # [rows] the pass behind the last one of the window
    rank: Ints                      # [rows] that counted; 0 where ranks were added up
    phase: Ints                     # [rows] as in `Trace`
    tokens: Ints                    # [rows] tokens that were counted; 0 unknown
    domain: tuple[str, ...]         # of each row; "" not named
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_experts(self) -> int:
        return int(self.counts.shape[1])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Counts:
    """Choices of every expert, added up over steps and ranks."""

    model: str
    layers: tuple[int, ...]         # of the model, as recorded
    choices: dict[str, Ints]        # domain -> [layers, experts]


def read_counts(path: str | Path) -> Counts:
    """The counts at `path`, added up: the folder, or the `counts.parquet` inside.

    Raises:
        InputError: as `read_count_rows`, and where a domain has no choices in a layer.
    """
    rows = read_count_rows(path)
    layers = tuple(int(one) for one in np.unique(rows.layer))
    choices: dict[str, Ints] = {}
    domain = np.array(rows.domain)
    for name in sorted(set(rows.domain)):
        choices[name] = np.array([rows.counts[(domain == name) & (rows.layer == one)].sum(0) for one in layers])
        if not choices[name].sum(1).all():
            raise InputError(f"{path}: domain {name!r} has no choices in layer {layers[int(choices[name].sum(1).argmin())]}")
    return Counts(model=str(rows.meta.get("model", "model not named")), layers=layers, choices=choices)


def read_count_rows(path: str | Path) -> CountRows:
    """The counts at `path`, row by row: the folder, or the `counts.parquet` inside. Columns that are not there are 0.

    Raises:
        InputError: no such file, not Parquet, damaged, another schema, a column missing or of another type, a negative count.
    """
    file = Path(path)
    file = file / "counts.parquet" if file.is_dir() else file
    check_parquet(file)
    meta = footer(file)
    try:
        frame = pl.read_parquet(file, glob=False, hive_partitioning=False)
    except UNREADABLE as error:
        raise InputError(f"{file}: cannot be read as Parquet ({' '.join(str(error).split())[:120]})") from error
    if missing := [name for name in NEEDED if name not in frame.columns]:
        raise InputError(f"{file}: has no column {missing[0]!r}; it needs {' and '.join(NEEDED)}")
    form = frame["counts"].dtype
    if not isinstance(form, pl.Array) or not form.inner.is_integer() or not frame.height or frame["counts"].null_count():
        raise InputError(f"{file}: counts is {form}; it must hold one list of a fixed size, of whole numbers, in every row")
    for name in (name for name in NUMBERS if name in frame.columns):
        if not frame[name].dtype.is_integer() or frame[name].null_count():
            raise InputError(f"{file}: column {name!r} is {frame[name].dtype}; it must hold whole numbers, none missing")
    counts = frame["counts"].to_numpy().astype(np.int64)
    if counts.ndim != 2 or counts.min() < 0:
        raise InputError(f"{file}: a count is negative or missing; counts are whole numbers from 0")
    numbers = {
        name: frame[name].to_numpy().astype(np.int64) if name in frame.columns else np.zeros(frame.height, np.int64)
        for name in NUMBERS
    }
    if "step_end" not in frame.columns:
        numbers["step_end"] = numbers["step"] + 1
    if "domain" in frame.columns and frame["domain"].dtype not in (pl.String, pl.Categorical):
        raise InputError(f"{file}: column 'domain' is {frame['domain'].dtype}; it must hold text")
    domain = frame["domain"].cast(pl.String).to_list() if "domain" in frame.columns else [""] * frame.height
    check_placement(meta, np.unique(numbers["layer"]).size, counts.shape[1], file)
    return CountRows(counts=counts, domain=tuple(one or "" for one in domain), meta=meta, **numbers)


def write_counts(rows: CountRows, path: str | Path) -> None:
    """Write `counts.parquet` into the folder `path`, made when it is missing.

    Raises:
        InputError: no rows, a number that does not fit its column; then nothing is written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(path)
    if not rows.counts.size:
        raise InputError(f"{folder}: holds no counts; a trace of counts needs at least one row")
    _check_fits(folder, "counts", rows.counts, np.uint32)
    for name, dtype in NUMBERS.items():
        _check_fits(folder, name, getattr(rows, name), dtype)
    layers = np.unique(rows.layer)
    check_placement(rows.meta, layers.size, rows.n_experts, folder)
    text = json.dumps({
        "num_layers": int(layers.size), "moe_layers": layers.tolist(), **rows.meta, "schema": SCHEMA, "kind": "counts",
        "num_experts": rows.n_experts, "phase_codes": PHASE_CODES, "num_rows": len(rows.counts),
    }, sort_keys=True)  # fmt: skip
    columns = {name: pa.array(getattr(rows, name).astype(dtype)) for name, dtype in NUMBERS.items()}
    columns["domain"] = pa.array(list(rows.domain), pa.string()).dictionary_encode()
    values = pa.array(np.ascontiguousarray(rows.counts, dtype=np.uint32).ravel())
    columns["counts"] = pa.FixedSizeListArray.from_arrays(values, rows.n_experts)
    table = pa.table(columns)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "counts.parquet") as partial, partial.open("wb") as file:
        sink = Summed(file)
        with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({FOOTER_KEY: text, CHECK_KEY: checksums(sink.crc32, text)})


def _check_fits(folder: Path, name: str, values: Ints, dtype: type[np.unsignedinteger[Any]]) -> None:
    if values.min() < 0 or values.max() > (most := np.iinfo(dtype).max):
        raise InputError(f"{folder}: {name} runs from {values.min()} to {values.max()}; it must stay in 0..{most}")
