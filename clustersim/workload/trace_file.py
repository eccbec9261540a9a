"""What a `moetrace/1` file is: where it lies, its metadata, its columns, how its blobs are read. Holds no tokens itself."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clustersim.types import InputError, Trace
from clustersim.workload.trace_rules import (
    EXTRA,
    SCALARS,
    check_distinct,
    check_finite,
    check_phase,
    check_placement,
    check_range,
    check_scores,
    typed,
)

SCHEMA = "moetrace/1"
FOOTER_KEY = "moetrace"
CHECK_KEY = "moetrace_crc32"            # of the bytes before the footer, and of the metadata, in hexadecimal
COMPILED_FROM = 8_000_000           # ids that are checked by compiled code: from here on it pays to load a compiler
BLOBS = ("expert_ids", "gate_weights", "scores")
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, MemoryError, OverflowError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How to read the blobs of one file."""

    n_layers: int
    n_experts: int
    top_k: int
    id_dtype: np.dtype[Any]                     # uint8 or uint16, little endian
    no_expert: int                              # id that means "no expert"; -1 when the file holds none

    def blob(self, name: str) -> tuple[np.dtype[Any], tuple[int, int]]:
        """Type and shape of one token's values in a binary column."""
        if name == "expert_ids":
            return self.id_dtype, (self.n_layers, self.top_k)
        return np.dtype("<f2"), (self.n_layers, self.top_k if name == "gate_weights" else self.n_experts)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TraceFile:
    """A `tokens.parquet` that was found whole and of this schema. Its tokens are read by `read_trace` or `stream`."""

    path: Path
    meta: Mapping[str, Any]
    shape: Shape
    n_tokens: int
    columns: frozenset[str]

    @property
    def wanted(self) -> list[str]:
        """The columns of the format that the file has, in the format's order."""
        return [name for name in (*SCALARS, *EXTRA, *BLOBS) if name in self.columns]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token once read."""
        slots = self.shape.n_layers * self.shape.top_k
        scores = 4 * self.shape.n_layers * self.shape.n_experts if "scores" in self.columns else 0
        return 48 + slots * (2 + (4 if "gate_weights" in self.columns else 0)) + scores


def open_trace(path: str | Path) -> TraceFile:
    """The trace at `path`, its folder or the `tokens.parquet` inside: described, and compared with its checksum, but not read.

    Files of other writers may have no checksum.

    Raises:
        InputError: no such folder, counts without tokens, not Parquet, truncated, damaged, another schema, a column missing
            or of the wrong type, no tokens.
    """
    file = _tokens_file(Path(path))
    check_parquet(file)
    meta = footer(file)
    if (kind := meta.get("kind", "tokens")) != "tokens":
        raise InputError(f"{file}: kind is {kind!r}; replaying a trace needs kind 'tokens', one row per token")
    shape = _shape(meta, file)
    check_placement(meta, shape.n_layers, shape.n_experts, file)
    n_tokens, columns = _columns(file)
    return TraceFile(path=file, meta=meta, shape=shape, n_tokens=n_tokens, columns=columns)


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


def check_parquet(file: Path) -> None:
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


def footer(file: Path) -> dict[str, Any]:
    """The metadata of a `moetrace/1` file, after its bytes were compared with their checksum.

    Raises:
        InputError: no metadata, another schema, bytes that are not those that were written.
    """
    try:
        found = pl.read_parquet_metadata(file)
    except UNREADABLE as error:
        raise unreadable(file, error) from error
    text = found.get(FOOTER_KEY)
    if text is None:
        raise InputError(f"{file}: its footer has no key {FOOTER_KEY!r}; a {SCHEMA} file describes itself there in JSON")
    _check_sums(file, text, found.get(CHECK_KEY))
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: footer key {FOOTER_KEY!r} is not JSON: {error}") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        schema = meta.get("schema") if isinstance(meta, dict) else meta
        raise InputError(f"{file}: schema is {schema!r}; only {SCHEMA!r} can be read")
    return meta


def checksums(data: int, text: str) -> str:
    """What stands under `moetrace_crc32`: CRC-32 of the bytes before the footer, and of the metadata."""
    return f"{data:08x} {zlib.crc32(text.encode()):08x}"


def _check_sums(file: Path, text: str, expected: str | None) -> None:
    if expected is None:
        return
    data = 0
    with file.open("rb") as stream:
        stream.seek(-8, os.SEEK_END)
        left = file.stat().st_size - 8 - int.from_bytes(stream.read(4), "little")
        stream.seek(0)
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            data = zlib.crc32(block, data)
            left -= len(block)
    if checksums(data, text) != expected:
        raise InputError(f"{file}: damaged Parquet: its bytes are not those that were written (checksum under {CHECK_KEY!r})")


def unreadable(file: Path, error: BaseException) -> InputError:
    """What to say of a file that a reader gave up on."""
    return InputError(f"{file}: damaged Parquet: {' '.join(str(error).split())[:160]}")


def _shape(meta: Mapping[str, Any], file: Path) -> Shape:
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
    if not isinstance(id_name, str) or id_name not in known:
        raise InputError(f"{file}: metadata ids_dtype is {id_name!r}; it must be uint8 or uint16")
    if (kind := meta.get("ids_kind", "logical")) != "logical":
        raise InputError(f"{file}: metadata ids_kind is {kind!r}; {SCHEMA} holds logical expert ids")
    complete = meta.get("missing_ids") == 0
    if id_name == "uint8" and n_experts > (256 if complete else 255):
        rule = "uint8 holds at most 255 and the mark for no expert (256 when missing_ids is 0)"
        raise InputError(f"{file}: metadata ids_dtype is uint8 with {n_experts} experts; {rule}")
    dtype = np.dtype(known[id_name])
    all_ones = int(np.iinfo(dtype).max)
    return Shape(
        n_layers=sizes["num_layers"], n_experts=n_experts, top_k=top_k, id_dtype=dtype,
        no_expert=-1 if n_experts > all_ones else all_ones,
    )


def lazy(file: Path) -> pl.LazyFrame:
    """The file as polars scans it; the path is a name, whatever letters it has."""
    return pl.scan_parquet(file, glob=False, hive_partitioning=False)


def _columns(file: Path) -> tuple[int, frozenset[str]]:
    """Rows and column names, after checking that what must be there is, with a usable type."""
    try:
        schema = lazy(file).collect_schema()
        n_tokens = int(lazy(file).select(pl.len()).collect().item())
    except UNREADABLE as error:
        raise unreadable(file, error) from error
    for name in (*SCALARS, "expert_ids"):
        if name not in schema:
            raise InputError(f"{file}: has no column {name!r}; {SCHEMA} needs {', '.join((*SCALARS, 'expert_ids'))}")
    for name in (*SCALARS, *EXTRA):
        if name in schema and not schema[name].is_integer():
            raise InputError(f"{file}: column {name!r} is {schema[name]}; it must hold whole numbers")
    for name in BLOBS:
        if name in schema and schema[name] != pl.Binary:
            raise InputError(f"{file}: column {name!r} is {schema[name]}; it must be fixed-size binary")
    if not n_tokens:
        raise InputError(f"{file}: holds no tokens; a trace needs at least one")
    return n_tokens, frozenset(schema.names())


def check_width(shape: Shape, name: str, nbytes: int, file: Path) -> None:
    """A token's blob has as many bytes as the metadata says."""
    dtype, (layers, width) = shape.blob(name)
    if nbytes != layers * width * dtype.itemsize:
        raise InputError(
            f"{file}: {name} holds {nbytes} bytes per token; {layers * width} values of {dtype.name} "
            f"take {layers * width * dtype.itemsize}"
        )


def decoded(file: TraceFile, columns: Mapping[str, NDArray[Any]], begin: int) -> Trace:
    """The tokens in `columns` (whole numbers [rows], blobs as octets [rows, bytes]), checked; `begin` is the number of row 0.

    Sequences have no domain: those are in another file.

    Raises:
        InputError: an expert id outside the model, an expert twice in one token, a weight that is not finite, a score that is
            not a number, an unknown phase.
    """
    shape, path = file.shape, file.path
    values = {}
    for name in BLOBS:
        if name in columns:
            dtype, form = shape.blob(name)
            values[name] = columns[name].view(dtype).reshape(-1, *form)
    ids = checked_ids(values["expert_ids"], shape, path, begin)
    weights = scores = None
    if "gate_weights" in values:
        weights = values["gate_weights"].astype(np.float32)
        check_finite(weights, path, begin)
    if "scores" in values:
        scores = values["scores"].astype(np.float32)
        check_scores(scores, path, begin)
    scalars = {name: columns[name].astype(np.int64) for name in SCALARS}
    check_phase(scalars["phase"], path, begin)
    extra: dict[str, Any] = {}
    if "token_id" in columns:
        extra["token_id"] = columns["token_id"].astype(np.int64)
    if "flags" in columns:
        extra["flags"] = columns["flags"].astype(np.uint8)
    return Trace(
        expert_ids=ids, gate_weights=weights, scores=scores, n_experts=shape.n_experts, meta=file.meta, **extra, **typed(scalars)
    )


def checked_ids(raw: NDArray[Any], shape: Shape, path: Path, begin: int) -> NDArray[np.int16]:
    """Expert ids as `Trace` has them, of the ids of a file [rows, layers, top_k], which are within the model and distinct."""
    doubtful, first = raw, begin
    if raw.size > COMPILED_FROM:
        from clustersim.workload.trace_kernel import first_wrong_row

        row = int(first_wrong_row(raw, shape.n_experts, shape.no_expert))
        doubtful, first = raw[max(row, 0) : row + 1], begin + row
    check_range(doubtful, shape.n_experts, shape.no_expert, path, first)
    check_distinct(np.where(doubtful == shape.no_expert, np.int16(-1), doubtful.astype(np.int16)), path, first)
    ids = raw.astype(np.int16)
    ids[raw == shape.no_expert] = -1
    return ids


def read_domains(file: Path) -> dict[int, str]:
    """sequence -> domain, from the `sequences.parquet` beside a trace; empty when there is none. Without a name: left out."""
    file = file.with_name("sequences.parquet")
    if not file.exists():
        return {}
    check_parquet(file)
    try:
        frame = pl.read_parquet(file, glob=False, hive_partitioning=False)
    except UNREADABLE as error:
        raise unreadable(file, error) from error
    for name, dtype in (("seq", "whole numbers"), ("domain", "text")):
        if name not in frame.columns:
            raise InputError(f"{file}: has no column {name!r}; it needs seq and domain")
        column = frame[name].dtype
        if not (column.is_integer() if name == "seq" else column in (pl.String, pl.Categorical)):
            raise InputError(f"{file}: column {name!r} is {column}; it must hold {dtype}")
    return {int(seq): str(name) for seq, name in frame.select("seq", "domain").iter_rows() if seq is not None and name}
