"""From one `moetrace/1` to another: cleaned of what no model computed, and batched as a server would have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from clustersim.importers.building import Imported
from clustersim.types import InputError, Trace
from clustersim.workload.deal import continuous_schedule
from clustersim.workload.trace import read_trace
from clustersim.workload.trace_faults import RUN
from clustersim.workload.trace_rules import PADDING, in_order, take


def moetrace(
    path: Path, *, batch: int | None = None, clean: bool = False, micro_batch: int = 1, layers: int | None = None
) -> Imported:
    """A trace of ours, changed: batched, cleaned, taken apart.

    Args:
        batch: continuous batching of so many sequences: step t has the next token of each that is running, and a sequence that
            ends makes room for the next. For decoding that was recorded one request at a time.
        clean: leave out padding and runs of 32 and more tokens that all choose alike (dummy passes).
        micro_batch: so many sequences took turns in the order of the file; tell them apart.
        layers: keep only the first so many layers (where the others are copies).

    Raises:
        InputError: no such trace, or a number that does not fit it.
    """
    trace = read_trace(path)
    notes = []
    if clean:
        kept = np.flatnonzero(~_worthless(trace))
        if not kept.size:
            raise InputError(f"{path}: nothing is left when padding and dummy passes are taken out")
        notes.append(f"{trace.n_tokens - kept.size:,} of {trace.n_tokens:,} tokens are left out as padding or dummy passes")
        trace = take(trace, kept)
    if layers is not None:
        if not 1 <= layers <= trace.n_layers:
            raise InputError(f"layers={layers}: {path} has {trace.n_layers}")
        trace = _first_layers(trace, layers)
    if micro_batch != 1:
        if micro_batch < 1 or trace.n_tokens % micro_batch:
            raise InputError(f"micro_batch={micro_batch}: must divide the {trace.n_tokens} tokens")
        row = np.arange(trace.n_tokens)
        trace = replace(trace, seq=row % micro_batch, pos=row // micro_batch, domain={})
        notes.append(f"{micro_batch} sequences that took turns are told apart")
    if batch is not None:
        rows, step = continuous_schedule(trace.seq, trace.pos, batch)
        trace = replace(take(trace, rows), step=step)
        notes.append(f"continuous batching of {batch} sequences: {int(step.max()) + 1:,} steps")
    return Imported(tokens=in_order(trace), notes=tuple(notes))


def _worthless(trace: Trace) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Tokens that are flagged as padding, have no expert, or stand in a long run of equal ones."""
    flat = trace.expert_ids.reshape(trace.n_tokens, -1)
    equal = np.r_[False, (flat[1:] == flat[:-1]).all(1)]
    run = np.cumsum(~equal) - 1
    out = np.bincount(run)[run] >= RUN
    out |= (flat < 0).all(1)
    if trace.flags is not None:
        out |= trace.flags & PADDING != 0
    return np.asarray(out)


def _first_layers(trace: Trace, layers: int) -> Trace:
    meta = dict(trace.meta)
    for key in ("moe_layers", "physical_to_logical"):
        if isinstance(meta.get(key), list):
            meta[key] = meta[key][:layers]
    return replace(
        trace, expert_ids=trace.expert_ids[:, :layers], meta=meta,
        gate_weights=None if trace.gate_weights is None else trace.gate_weights[:, :layers],
        scores=None if trace.scores is None else trace.scores[:, :layers],
    )
