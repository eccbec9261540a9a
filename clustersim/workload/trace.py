"""The trace format `moetrace/1`: what a router decided, token by token. Reads, checks and writes; does not interpret.

A trace is a folder. `tokens.parquet` has one row per token and forward pass, `sequences.parquet` one per sequence
(seq, domain, tokens). Reading goes through polars alone: pyarrow would add its import to every start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clustersim.types import InputError, Ints, Trace
from clustersim.workload.trace_rules import (
    SCALARS,
    SORTED_BY,
    check_distinct,
    check_finite,
    check_range,
    check_trace,
    in_order,
    typed,
)
from clustersim.writing import replacing

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "moetrace/1"
FOOTER_KEY = "moetrace"
ROW_GROUP_TOKENS = 65_536
PHASE_CODES = {"prefill": 0, "decode": 1, "train": 2, "encode": 3}

_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """How to read the blobs of one file."""

    n_layers: int
    n_experts: int
    top_k: int
    id_dtype: np.dtype[Any]                     # uint8 or uint16, little endian
    no_expert: int                              # id that means "no expert"; -1 when the file holds none


def read_trace(path: str | Path) -> Trace:
    """The trace at `path`: its folder, or the `tokens.parquet` inside. Checked as it is read, row group by row group.

    Expert ids are one byte for up to 255 experts, else two; all ones means no expert and becomes -1. One byte is
    also taken for 256 experts when the metadata says `missing_ids: 0`, i.e. that no slot is without an expert.
    Rows come back by step, rank, sequence, position, whatever their order in the file.

    Raises:
        InputError: no such folder, counts without tokens, not Parquet, truncated, another schema, a column missing or
            of the wrong width, an expert id outside the model, an expert twice in one token, a weight that is not
            finite, no tokens.
    """
    file = _tokens_file(Path(path))
    meta = _metadata(file)
    shape = _shape(meta, file)
    n_tokens, columns = _columns(file)
    slots = shape.n_layers * shape.top_k
    ids = np.empty((n_tokens, shape.n_layers, shape.top_k), np.int16)
    weights = np.empty(ids.shape, np.float32) if "gate_weights" in columns else None
    scores = np.empty((n_tokens, shape.n_layers, shape.n_experts), np.float32) if "scores" in columns else None
    scalars = {name: np.empty(n_tokens, np.int64) for name in SCALARS}
    wanted = [*SCALARS, *(name for name in ("expert_ids", "gate_weights", "scores") if name in columns)]
    for begin, frame in _chunks(file, n_tokens, wanted):
        rows = slice(begin, begin + frame.height)
        for name, values in scalars.items():
            values[rows] = frame[name].to_numpy()
        raw = _blob(frame["expert_ids"], shape.id_dtype, slots, file).reshape(-1, shape.n_layers, shape.top_k)
        check_range(raw, shape.n_experts, shape.no_expert, file, begin)
        ids[rows] = np.where(raw == shape.no_expert, np.int16(-1), raw.astype(np.int16))
        check_distinct(ids[rows], file, begin)
        if weights is not None:
            weights[rows] = _blob(frame["gate_weights"], np.dtype("<f2"), slots, file).reshape(-1, *ids.shape[1:])
            check_finite(weights[rows], file, begin)
        if scores is not None:
            width = shape.n_layers * shape.n_experts
            scores[rows] = _blob(frame["scores"], np.dtype("<f2"), width, file).reshape(-1, *scores.shape[1:])
    trace = Trace(
        expert_ids=ids, gate_weights=weights, scores=scores, n_experts=shape.n_experts, meta=meta,
        domain=_read_domains(file.with_name("sequences.parquet")), **typed(scalars),
    )
    return in_order(trace)


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write `trace` into the folder `path`, made when it is missing; what was there under the same names is replaced.

    Gate weights and scores are kept as float16. The metadata is `trace.meta` plus what the arrays themselves say
    (shape, dtypes, counts), which wins. Each file gets its name only when it is complete and on the disk,
    `tokens.parquet` last. Row groups hold at most 65,536 tokens and end where a step ends, unless one step is longer.

    Raises:
        InputError: the trace breaks a rule of the format (see `read_trace`); then nothing is written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(path)
    check_trace(trace, folder)
    trace = in_order(trace)
    id_dtype = np.dtype("u1") if trace.n_experts <= 255 else np.dtype("<u2")
    blobs = {"expert_ids": trace.expert_ids.astype(id_dtype)}               # -1 wraps to all ones
    if trace.gate_weights is not None:
        blobs["gate_weights"] = trace.gate_weights.astype("<f2")
    if trace.scores is not None:
        blobs["scores"] = trace.scores.astype("<f2")
    meta = json.dumps({**trace.meta, **_described(trace, id_dtype)}, sort_keys=True)
    columns = {name: pa.array(getattr(trace, name).astype(dtype)) for name, dtype in SCALARS.items()}
    columns |= {name: _binary_array(values) for name, values in blobs.items()}
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    table = pa.table(list(columns.values()), schema=pa.schema(fields, metadata={FOOTER_KEY: meta}))

    folder.mkdir(parents=True, exist_ok=True)
    options = {"compression": "zstd", "compression_level": 9, "use_dictionary": list(SCALARS)}
    seq, tokens = np.unique(trace.seq, return_counts=True)
    domain = pa.array([trace.domain.get(int(s), "") for s in seq], pa.string())
    sequences = pa.table({"seq": seq.astype(np.uint32), "domain": domain, "tokens": tokens.astype(np.uint32)})
    with replacing(folder / "sequences.parquet") as partial:
        pq.write_table(sequences, partial, compression="zstd")
    with replacing(folder / "tokens.parquet") as partial, pq.ParquetWriter(partial, table.schema, **options) as writer:
        for begin, end in _row_groups(trace.step):
            writer.write_table(table.slice(begin, end - begin), row_group_size=end - begin)


# ---- reading


def _tokens_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(f"{path}: no such trace; give a moetrace/1 folder (tokens.parquet and sequences.parquet)")
    if (file := path / "tokens.parquet").is_file():
        return file
    if (path / "counts.parquet").is_file():
        raise InputError(f"{path}: holds counts.parquet only; replaying a trace needs tokens.parquet, one row per token")
    raise InputError(f"{path}: holds no tokens.parquet; a moetrace/1 folder has one")


def _check_parquet(file: Path) -> None:
    """Parquet begins and ends with the magic PAR1, and holds more than that; a file cut short has lost the second."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4)
            size = file.stat().st_size
            stream.seek(-min(4, size), os.SEEK_END)
            tail = stream.read(4)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    if head != b"PAR1":
        raise InputError(f"{file}: not a Parquet file: begins with {head!r}, not b'PAR1'")
    if tail != b"PAR1" or size < 12:
        raise InputError(f"{file}: truncated Parquet: {size} bytes that end with {tail!r}, without the footer and b'PAR1'")


def _unreadable(file: Path, error: BaseException) -> InputError:
    return InputError(f"{file}: damaged Parquet: {' '.join(str(error).split())[:160]}")


def _metadata(file: Path) -> dict[str, Any]:
    _check_parquet(file)
    try:
        text = pl.read_parquet_metadata(file).get(FOOTER_KEY)
    except _UNREADABLE as error:
        raise _unreadable(file, error) from error
    if text is None:
        raise InputError(f"{file}: its footer has no key {FOOTER_KEY!r}; a {SCHEMA} file describes itself there in JSON")
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file}: footer key {FOOTER_KEY!r} is not JSON: {error}") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else meta
        raise InputError(f"{file}: schema is {found!r}; only {SCHEMA!r} can be read")
    if (kind := meta.get("kind", "tokens")) != "tokens":
        raise InputError(f"{file}: kind is {kind!r}; replaying a trace needs kind 'tokens', one row per token")
    return meta


def _shape(meta: Mapping[str, Any], file: Path) -> _Shape:
    sizes = {}
    for key in ("num_layers", "num_experts", "top_k"):
        value = meta.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= np.iinfo(np.int16).max:
            raise InputError(f"{file}: metadata {key} is {value!r}; it must be a whole number from 1 to 32767")
        sizes[key] = value
    n_experts, top_k = sizes["num_experts"], sizes["top_k"]
    if top_k > n_experts:
        raise InputError(f"{file}: metadata top_k is {top_k}, of {n_experts} experts; a token picks distinct experts")
    known = {"uint8": "u1", "uint16": "<u2"}
    id_name = meta.get("ids_dtype", "uint8" if n_experts <= 255 else "uint16")
    if id_name not in known:
        raise InputError(f"{file}: metadata ids_dtype is {id_name!r}; it must be uint8 or uint16")
    complete = meta.get("missing_ids") == 0
    if id_name == "uint8" and n_experts > (256 if complete else 255):
        rule = "uint8 holds at most 255 and the mark for no expert (256 when missing_ids is 0)"
        raise InputError(f"{file}: metadata ids_dtype is uint8 with {n_experts} experts; {rule}")
    dtype = np.dtype(known[id_name])
    all_ones = int(np.iinfo(dtype).max)
    return _Shape(
        n_layers=sizes["num_layers"], n_experts=n_experts, top_k=top_k, id_dtype=dtype,
        no_expert=-1 if n_experts > all_ones else all_ones,
    )


def _scan(file: Path) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False, hive_partitioning=False)     # the path is a name, whatever letters it has


def _columns(file: Path) -> tuple[int, set[str]]:
    """Rows and column names, after checking that what must be there is, with a usable type."""
    try:
        schema = _scan(file).collect_schema()
        n_tokens = int(_scan(file).select(pl.len()).collect().item())
    except _UNREADABLE as error:
        raise _unreadable(file, error) from error
    for name in (*SCALARS, "expert_ids"):
        if name not in schema:
            raise InputError(f"{file}: has no column {name!r}; {SCHEMA} needs {', '.join((*SCALARS, 'expert_ids'))}")
    for name in SCALARS:
        if not schema[name].is_integer():
            raise InputError(f"{file}: column {name!r} is {schema[name]}; it must hold whole numbers")
    for name in ("expert_ids", "gate_weights", "scores"):
        if name in schema and schema[name] != pl.Binary:
            raise InputError(f"{file}: column {name!r} is {schema[name]}; it must be fixed-size binary")
    if not n_tokens:
        raise InputError(f"{file}: holds no tokens; a trace needs at least one")
    return n_tokens, set(schema.names())


def _chunks(file: Path, n_tokens: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """(first row, frame) of at most one full row group at a time, so that memory holds the result and one chunk."""
    for begin in range(0, n_tokens, ROW_GROUP_TOKENS):
        try:
            frame = _scan(file).select(columns).slice(begin, ROW_GROUP_TOKENS).collect()
        except _UNREADABLE as error:
            raise _unreadable(file, error) from error
        for name in columns:
            if frame[name].null_count():
                row = begin + int(frame[name].is_null().arg_max() or 0)
                raise InputError(f"{file}: row {row}: {name} is null; no column may be")
        yield begin, frame


def _blob(column: pl.Series, dtype: np.dtype[Any], width: int, file: Path) -> NDArray[Any]:
    """[rows, width] values of `dtype` out of a binary column."""
    nbytes = width * dtype.itemsize
    lengths = column.bin.size()
    if (wrong := lengths != nbytes).any():
        length = lengths.filter(wrong)[0]
        raise InputError(f"{file}: {column.name} holds {length} bytes per token; {width} values of {dtype.name} take {nbytes}")
    octets = column.bin.reinterpret(dtype=pl.Array(pl.UInt8, nbytes), endianness="little").to_numpy()
    return np.ascontiguousarray(octets).view(dtype)


def _read_domains(file: Path) -> dict[int, str]:
    """sequence -> domain; empty when the file is not there. A sequence without a name is left out."""
    if not file.exists():
        return {}
    _check_parquet(file)
    try:
        frame = pl.read_parquet(file, glob=False, hive_partitioning=False)
    except _UNREADABLE as error:
        raise _unreadable(file, error) from error
    for name, dtype in (("seq", "whole numbers"), ("domain", "text")):
        if name not in frame.columns:
            raise InputError(f"{file}: has no column {name!r}; it needs seq and domain")
        column = frame[name].dtype
        if not (column.is_integer() if name == "seq" else column in (pl.String, pl.Categorical)):
            raise InputError(f"{file}: column {name!r} is {column}; it must hold {dtype}")
    return {int(seq): str(name) for seq, name in frame.select("seq", "domain").iter_rows() if seq is not None and name}


# ---- writing


def _described(trace: Trace, id_dtype: np.dtype[Any]) -> dict[str, Any]:
    """The part of the metadata that the arrays themselves decide."""
    return {
        "schema": SCHEMA, "kind": "tokens", "num_experts": trace.n_experts, "num_layers": trace.n_layers, "top_k": trace.top_k,
        "moe_layers": trace.meta.get("moe_layers", list(range(trace.n_layers))),
        "ids_dtype": id_dtype.name, "ids_shape": [trace.n_layers, trace.top_k], "ids_kind": "logical",
        "missing_ids": int((trace.expert_ids < 0).sum()),
        "weights_dtype": None if trace.gate_weights is None else "float16",
        "phase_codes": PHASE_CODES, "sorted_by": list(SORTED_BY), "num_tokens": trace.n_tokens,
        "num_steps": int(np.unique(trace.step).size), "num_seqs": int(np.unique(trace.seq).size),
    }


def _binary_array(values: NDArray[Any]) -> pa.Array:
    """One fixed-size binary per row of [tokens, ...], over the same memory."""
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    width = values.itemsize * int(np.prod(values.shape[1:]))
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])


def _row_groups(step: Ints) -> Iterator[tuple[int, int]]:
    """[begin, end) of row groups: as many whole steps as fit, or a full group out of a step that does not."""
    ends = np.append(np.flatnonzero(np.diff(step)) + 1, len(step))
    begin = 0
    while begin < len(step):
        end = min(begin + ROW_GROUP_TOKENS, len(step))
        last = int(ends[np.searchsorted(ends, end, side="right") - 1]) if ends[0] <= end else 0
        end = last if last > begin else end
        yield begin, end
        begin = end
