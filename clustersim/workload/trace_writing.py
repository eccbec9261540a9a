"""Writes `moetrace/1`: a whole trace at once, or part after part for what does not fit into memory. Reads nothing."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import InputError, Ints, Trace
from clustersim.workload.trace_file import BLOBS, CHECK_KEY, FOOTER_KEY, SCHEMA, checksums
from clustersim.workload.trace_rules import EXTRA, PHASE_CODES, SCALARS, SORTED_BY, check_trace, in_order
from clustersim.writing import replacing

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_TOKENS = 65_536
ROW_GROUP_BYTES = 64 << 20              # of expert ids, weights and scores: with scores a row group has fewer tokens


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write `trace` into the folder `path`, made when it is missing; what was there under the same names is replaced.

    Gate weights and scores are kept as float16. The metadata is `trace.meta` plus what the arrays themselves say
    (shape, dtypes, counts), which wins. Each file gets its name only when it is complete and on the disk,
    `tokens.parquet` last. Row groups hold at most 65,536 tokens and end where a step ends, unless one step is longer.

    Raises:
        InputError: the trace breaks a rule of the format (see `read_trace`); then nothing is written.
    """
    check_trace(trace, path)
    with TraceWriter(path) as writer:
        writer.add(in_order(trace))


class TraceWriter:
    """Writes a trace part by part, as `write_trace` does at once: `with TraceWriter(folder) as w: w.add(part)`.

    Parts come by step, rank, sequence, position, each in that order and after the one before. All have the layers, the top_k,
    the experts and the optional columns of the first. The metadata is that of the last part: what is only known at the end
    goes there. Memory is that of two row groups. After an error nothing is left in the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(path)
        self.n_tokens = 0
        self._stack = ExitStack()
        self._waiting: list[Trace] = []
        self._last: Trace | None = None
        self._sequences: dict[int, int] = {}
        self._domain: dict[int, str] = {}
        self._steps = self._missing = 0

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._finish()

    def add(self, part: Trace) -> None:
        """Take the next tokens.

        Raises:
            InputError: the part breaks a rule of the format, is another shape than the first, or comes out of order.
        """
        if not part.n_tokens:
            return
        check_trace(part, self.folder)
        self._check_follows(part)
        if self._last is None:
            self._open(part)
        steps = np.unique(part.step)
        self._steps += steps.size - bool(self._last is not None and self._last.step[-1] == steps[0])
        self._last = part
        self._missing += int((part.expert_ids < 0).sum())
        for seq, tokens in zip(*(column.tolist() for column in np.unique(part.seq, return_counts=True)), strict=True):
            self._sequences[seq] = self._sequences.get(seq, 0) + tokens
        self._domain.update(part.domain)
        self.n_tokens += part.n_tokens
        self._waiting.append(part)
        if sum(waiting.n_tokens for waiting in self._waiting) > 2 * self._group_tokens:
            self._flush(self._group_tokens)

    def _check_follows(self, part: Trace) -> None:
        if in_order(part) is not part:
            raise InputError(f"{self.folder}: a part of a trace must be in order of step, rank, sequence, position")
        if (last := self._last) is None:
            return
        for name in ("n_layers", "top_k", "n_experts"):
            if (now := getattr(part, name)) != (before := getattr(last, name)):
                raise InputError(f"{self.folder}: a part with {name} {now} follows one with {before}; a trace has one shape")
        for name in (*EXTRA, *BLOBS):
            if (getattr(part, name) is None) != (getattr(last, name) is None):
                raise InputError(f"{self.folder}: some parts have {name} and some have not; a trace has it throughout")
        before, now = ([int(getattr(one, name)[at]) for name in SORTED_BY] for one, at in ((last, -1), (part, 0)))
        if now < before:
            raise InputError(f"{self.folder}: step, rank, sequence, position {now} come after {before}; parts come in order")

    def _open(self, first: Trace) -> None:
        import pyarrow.parquet as pq

        self.folder.mkdir(parents=True, exist_ok=True)
        self._id_dtype = np.dtype("u1") if first.n_experts <= 255 else np.dtype("<u2")
        schema = self._table(_part(first, 0, 0)).schema
        width = sum(schema.field(name).type.byte_width for name in BLOBS if name in schema.names)
        self._group_tokens = max(1, min(ROW_GROUP_TOKENS, ROW_GROUP_BYTES // width))
        file = self._stack.enter_context(replacing(self.folder / "tokens.parquet"))         # the first to be opened is the last
        self._sequences_file = self._stack.enter_context(replacing(self.folder / "sequences.parquet"))
        self._sink = Summed(self._stack.enter_context(file.open("wb")))
        options = {"compression": "zstd", "compression_level": 9, "use_dictionary": [*SCALARS, *EXTRA]}
        self._parquet = self._stack.enter_context(pq.ParquetWriter(self._sink, schema, **options))

    def _table(self, part: Trace) -> pa.Table:
        """A part as Arrow, over the same memory where the types allow."""
        import pyarrow as pa

        columns = {
            name: pa.array(values.astype(dtype)) for name, dtype in {**SCALARS, **EXTRA}.items()
            if (values := getattr(part, name)) is not None
        }  # fmt: skip
        for name in BLOBS:
            if (values := getattr(part, name)) is not None:
                dtype = self._id_dtype if name == "expert_ids" else np.dtype("<f2")
                with np.errstate(over="ignore"):                             # a score beyond float16 is infinite
                    columns[name] = _binary_array(values.astype(dtype))      # -1 wraps to all ones
        fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
        return pa.table(list(columns.values()), schema=pa.schema(fields))

    def _flush(self, keep: int) -> None:
        """Write row groups until at most `keep` tokens wait."""
        from clustersim.workload.trace import joined

        waiting = joined(self._waiting, {})
        written = 0
        for begin, end in _row_groups(waiting.step, self._group_tokens):
            if waiting.n_tokens - begin <= keep:
                break
            self._parquet.write_table(self._table(_part(waiting, begin, end)), row_group_size=end - begin)
            written = end
        self._waiting = [_part(waiting, written, waiting.n_tokens)] if written < waiting.n_tokens else []

    def _finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._last is None:
            raise InputError(f"{self.folder}: holds no tokens; a trace needs at least one")
        self._flush(0)
        text = json.dumps({**self._last.meta, **self._described(self._last)}, sort_keys=True)
        self._parquet.add_key_value_metadata({FOOTER_KEY: text, CHECK_KEY: checksums(self._sink.crc32, text)})
        seq = sorted(self._sequences)
        table = pa.table({
            "seq": pa.array(seq, pa.uint32()), "domain": pa.array([self._domain.get(one, "") for one in seq], pa.string()),
            "tokens": pa.array([self._sequences[one] for one in seq], pa.uint32()),
        })  # fmt: skip
        pq.write_table(table, self._sequences_file, compression="zstd")

    def _described(self, trace: Trace) -> Mapping[str, Any]:
        """The part of the metadata that the arrays themselves decide."""
        return {
            "schema": SCHEMA, "kind": "tokens", "num_experts": trace.n_experts, "num_layers": trace.n_layers,
            "top_k": trace.top_k, "moe_layers": trace.meta.get("moe_layers", list(range(trace.n_layers))),
            "ids_dtype": self._id_dtype.name, "ids_shape": [trace.n_layers, trace.top_k], "ids_kind": "logical",
            "missing_ids": self._missing, "weights_dtype": None if trace.gate_weights is None else "float16",
            "phase_codes": PHASE_CODES, "sorted_by": list(SORTED_BY), "num_tokens": self.n_tokens, "num_steps": self._steps,
            "num_seqs": len(self._sequences),
        }  # fmt: skip


class Summed:
    """A file that adds up the CRC-32 of what is written to it."""

    def __init__(self, file: Any) -> None:
        self._file, self.crc32, self.closed = file, 0, False

    def write(self, data: Any) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        return int(self._file.write(data))

    def tell(self) -> int:
        return int(self._file.tell())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _part(trace: Trace, begin: int, end: int) -> Trace:
    """Rows `begin` to `end - 1`, over the same memory."""
    columns: dict[str, Any] = {
        name: None if (values := getattr(trace, name)) is None else values[begin:end] for name in (*SCALARS, *EXTRA, *BLOBS)
    }
    return Trace(n_experts=trace.n_experts, meta=trace.meta, **columns)


def _binary_array(values: NDArray[Any]) -> pa.Array:
    """One fixed-size binary per row of [tokens, ...], over the same memory."""
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    width = values.itemsize * int(np.prod(values.shape[1:]))
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])


def _row_groups(step: Ints, most: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of row groups: as many whole steps as fit, or a full group out of a step that does not."""
    ends = np.append(np.flatnonzero(np.diff(step)) + 1, len(step))
    begin = 0
    while begin < len(step):
        end = min(begin + most, len(step))
        last = int(ends[np.searchsorted(ends, end, side="right") - 1]) if ends[0] <= end else 0
        end = last if last > begin else end
        yield begin, end
        begin = end
