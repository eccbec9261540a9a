"""Writes what an importer made, and says what is suspicious about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clustersim.importers.building import Imported
from clustersim.types import InputError
from clustersim.workload.trace_counts import write_counts
from clustersim.workload.trace_faults import Watch
from clustersim.workload.trace_writing import write_trace


def store(made: Imported, folder: Path, origin: str) -> tuple[str, tuple[str, ...], list[str]]:
    """Write the tokens or counts into `folder`; (what they are, notes, faults). `origin` goes into the metadata.

    Raises:
        InputError: a rule of the format is broken, or the folder is a file or holds another trace.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; a trace is a folder")
    other = "counts.parquet" if made.tokens is not None else "tokens.parquet"
    if (folder / other).exists():
        raise InputError(f"{folder}: holds {other} of another trace; give another folder")
    if made.tokens is not None:
        trace = made.tokens
        about = {"converted": origin, "notes": list(made.notes)}
        write_trace(replace(trace, meta={**trace.meta, **about}), folder)
        watch = Watch()
        watch.see(trace)
        shape = f"{trace.n_layers} layers, {trace.n_experts} experts, top-{trace.top_k}"
        return f"{trace.n_tokens:,} tokens ({shape})", made.notes, watch.faults()
    assert made.counts is not None
    rows = made.counts
    write_counts(replace(rows, meta={**rows.meta, "converted": origin, "notes": list(made.notes)}), folder)
    return f"{len(rows.counts):,} rows of counts ({rows.n_experts} experts)", made.notes, []
