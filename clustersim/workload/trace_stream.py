"""Reads a `moetrace/1` of any size, a row group's part at a time, through pyarrow. Keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import InputError, Trace
from clustersim.workload.trace_file import BLOBS, UNREADABLE, TraceFile, check_width, decoded, open_trace, unreadable
from clustersim.workload.trace_rules import EXTRA, SCALARS

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_BYTES = 128 << 20             # of decoded tokens at a time
CHUNK_TOKENS = 65_536


def stream(path: str | Path | TraceFile, *, groups: slice | None = None) -> Iterator[Trace]:
    """The tokens of the trace at `path` in the order of the file, some 65,536 at a time, checked; without domains.

    Parts hold at most 128 MiB of decoded tokens, whatever the size of the file and its row groups.

    Args:
        groups: only these row groups.

    Raises:
        InputError: as `read_trace`.
    """
    file = path if isinstance(path, TraceFile) else open_trace(path)
    for begin, columns in stream_columns(file, file.wanted, groups=groups):
        yield decoded(file, columns, begin)


def stream_columns(
    file: TraceFile, names: list[str], *, groups: slice | None = None
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """(number of the first row, columns as they are in the file) part by part; blobs as octets [rows, bytes]. Not checked but for
    their widths.

    Raises:
        InputError: a part that cannot be read, a null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = max(1, min(CHUNK_TOKENS, CHUNK_BYTES // file.token_bytes))
    try:
        with pq.ParquetFile(file.path, pre_buffer=False) as parquet:
            every = range(parquet.num_row_groups)
            chosen = list(every if groups is None else every[groups])
            begin = sum(parquet.metadata.row_group(i).num_rows for i in every[: chosen[0] if chosen else 0])
            for batch in parquet.iter_batches(rows, row_groups=chosen, columns=names, use_threads=False):
                columns = {name: _column(batch.column(name), name, file, begin) for name in names}
                yield begin, columns
                begin += batch.num_rows
    except (pa.ArrowException, *UNREADABLE) as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(file.path, error) from error


def n_groups(file: TraceFile) -> int:
    """How many row groups a trace has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file.path).num_row_groups)
    except (pa.ArrowException, *UNREADABLE) as error:
        raise unreadable(file.path, error) from error


def _column(column: pa.Array, name: str, file: TraceFile, begin: int) -> NDArray[Any]:
    if column.null_count:
        row = begin + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{file.path}: row {row}: {name} is null; no column may be")
    if name in BLOBS:
        return _octets(column, name, file)
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    assert name in SCALARS or name in EXTRA
    return values


def _octets(column: pa.Array, name: str, file: TraceFile) -> NDArray[np.uint8]:
    """[rows, bytes], over Arrow's memory where the column is of one width."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_binary(column.type):
        values = column.to_pylist()
        for value in values:
            check_width(file.shape, name, len(value), file.path)
        return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
    width = column.type.byte_width
    check_width(file.shape, name, width, file.path)
    octets = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return octets.reshape(-1, width)
