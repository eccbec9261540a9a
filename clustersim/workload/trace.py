"""The trace format `moetrace/1`: what a router decided, token by token. Reads a trace whole; does not interpret it.

A trace is a folder. `tokens.parquet` has one row per token and forward pass, `sequences.parquet` one per sequence
(seq, domain, tokens); docs/traces.md has every column. Reading goes through polars alone: pyarrow would add its import
to every start. What is larger than memory is read by `trace_stream`, and written by `trace_writing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clustersim.types import InputError, Ints, Trace
from clustersim.workload.trace_file import (
    BLOBS,
    FOOTER_KEY,
    SCHEMA,
    UNREADABLE,
    TraceFile,
    check_width,
    decoded,
    lazy,
    open_trace,
    read_domains,
    unreadable,
)
from clustersim.workload.trace_rules import SCALARS, in_order, take
from clustersim.workload.trace_writing import write_trace

__all__ = ["FOOTER_KEY", "SCHEMA", "read_rows", "read_trace", "write_trace"]

CHUNK_TOKENS = 65_536


def read_trace(path: str | Path, *, rows: Ints | None = None) -> Trace:
    """The trace at `path`: its folder, or the `tokens.parquet` inside. Checked as it is read, row group by row group.

    Expert ids are one byte for up to 255 experts, else two; all ones means no expert and becomes -1. One byte is
    also taken for 256 experts when the metadata says `missing_ids: 0`, i.e. that no slot is without an expert.
    Rows come back by step, rank, sequence, position, whatever their order in the file.

    Args:
        rows: only these rows of the file, ascending, in the order of the file; what lies between is not kept.

    Raises:
        InputError: no such folder, counts without tokens, not Parquet, truncated, another schema, a column missing or
            of the wrong width, an expert id outside the model, an expert twice in one token, a weight that is not
            finite, no tokens.
    """
    file = open_trace(path)
    parts = []
    for begin, frame in _frames(file, file.wanted, rows):
        part = decoded(file, {name: _column(frame[name], file) for name in file.wanted}, begin)
        if rows is not None:
            first, last = np.searchsorted(rows, (begin, begin + frame.height))
            part = take(part, rows[first:last] - begin)
        parts.append(part)
    domain = read_domains(file.path)
    try:
        trace = joined(parts, domain)
    except MemoryError as error:
        raise InputError(f"{file.path}: {file.n_tokens:,} tokens do not fit into memory") from error
    return trace if rows is not None else in_order(trace)


def read_rows(path: str | Path, *, tokens: int | None = None) -> tuple[TraceFile, dict[str, NDArray[Any]]]:
    """(the file, its columns of one number per token): step, rank, seq, pos, phase of the first `tokens` tokens, or of all.

    Raises:
        InputError: as `read_trace`.
    """
    file = open_trace(path)
    n_tokens = min(file.n_tokens, tokens or file.n_tokens)
    columns = {name: np.empty(n_tokens, dtype) for name, dtype in SCALARS.items()}
    for begin, frame in _frames(file, list(SCALARS), np.arange(n_tokens) if n_tokens < file.n_tokens else None):
        for name, values in columns.items():
            part = frame[name].to_numpy()[: n_tokens - begin]
            values[begin : begin + part.size] = part
    return file, columns


def joined(parts: list[Trace], domain: dict[int, str]) -> Trace:
    """The tokens of all parts, one after the other."""
    first = parts[0]

    def together(name: str) -> Any:
        return None if getattr(first, name) is None else np.concatenate([getattr(part, name) for part in parts])

    names = (*SCALARS, "token_id", "flags", *BLOBS)
    return Trace(n_experts=first.n_experts, meta=first.meta, domain=domain, **{name: together(name) for name in names})


def _frames(file: TraceFile, columns: list[str], rows: Ints | None) -> Iterator[tuple[int, pl.DataFrame]]:
    """(first row, frame) of at most one full row group at a time, so that memory holds the result and one chunk."""
    for begin in range(0, file.n_tokens, CHUNK_TOKENS):
        if rows is not None and np.searchsorted(rows, begin) == np.searchsorted(rows, begin + CHUNK_TOKENS):
            continue
        try:
            frame = lazy(file.path).select(columns).slice(begin, CHUNK_TOKENS).collect()
        except UNREADABLE as error:
            raise unreadable(file.path, error) from error
        for name in columns:
            if frame[name].null_count():
                row = begin + int(frame[name].is_null().arg_max() or 0)
                raise InputError(f"{file.path}: row {row}: {name} is null; no column may be")
        yield begin, frame


def _column(column: pl.Series, file: TraceFile) -> NDArray[Any]:
    """Whole numbers [rows], or the octets [rows, bytes] of a binary column."""
    if column.name not in BLOBS:
        return column.to_numpy()
    sizes = column.bin.size()
    dtype, (layers, width) = file.shape.blob(column.name)
    nbytes = layers * width * dtype.itemsize
    if (wrong := sizes != nbytes).any():
        check_width(file.shape, column.name, int(sizes.filter(wrong)[0]), file.path)
    octets = column.bin.reinterpret(dtype=pl.Array(pl.UInt8, nbytes), endianness="little").to_numpy()
    return np.ascontiguousarray(octets)
