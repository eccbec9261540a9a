"""A recorded trace as what is played needs it: whole where it is small, else only the tokens that are played."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clustersim.types import InputError, Ints, Trace
from clustersim.workload.streams import Recorded
from clustersim.workload.trace import read_rows, read_trace
from clustersim.workload.trace_file import open_trace, read_domains
from clustersim.workload.trace_rules import SORTED_BY, take

WHOLE = 256 << 20               # bytes of a trace up to which it is read whole
MOST_TOKENS = 8_000_000         # of a trace that are looked at where nothing else is said


def recorded_tokens(path: Path, tokens: int | None = None) -> Trace | Recorded:
    """The trace at `path`, whole or to be read in part; memory is then that of the tokens played, and some 70 bytes for each that
    is looked at.

    Args:
        tokens: look at the first so many tokens; left out, at all, up to 8 million.

    Raises:
        InputError: as `read_trace`; tokens below 1.
    """
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise InputError(f"trace.tokens={tokens}: must be a whole number from 1 up (null: all)")
    file = open_trace(path)
    looked = min(file.n_tokens, tokens or MOST_TOKENS)
    if looked == file.n_tokens and file.n_tokens * file.token_bytes <= WHOLE:
        return read_trace(path)
    _, columns = read_rows(path, tokens=looked)
    order = np.lexsort([columns[key] for key in SORTED_BY[::-1]])

    def read(rows: Ints) -> Trace:
        wanted = order[rows]
        ascending = np.sort(wanted)
        part = read_trace(path, rows=ascending)
        if np.array_equal(ascending, wanted):
            return part
        return take(part, np.searchsorted(ascending, wanted))

    rank, seq, pos = (columns[key][order].astype(np.int64) for key in ("rank", "seq", "pos"))
    return Recorded(
        rank=rank, seq=seq, pos=pos, domain=read_domains(file.path), n_layers=file.shape.n_layers,
        n_experts=file.shape.n_experts, top_k=file.shape.top_k, read=read,
    )  # fmt: skip
