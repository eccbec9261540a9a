"""Goes through a trace of any size once: loads, faults, breaches of the format, and a sample for what needs tokens together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import InputError, Ints, Trace
from clustersim.workload.statistics import expert_loads
from clustersim.workload.trace import joined
from clustersim.workload.trace_faults import Watch
from clustersim.workload.trace_file import TraceFile, decoded, open_trace, read_domains
from clustersim.workload.trace_rules import take
from clustersim.workload.trace_stream import stream_columns

SAMPLE_TOKENS = 65_536
WINDOWS = 8                         # of the sample, evenly over the trace: neighbours stay neighbours
MOST_PROBLEMS = 20
NAMED = 64                          # domains whose loads are kept apart

Progress = Callable[[float, str], None]


@dataclass(slots=True, eq=False, kw_only=True)
class Survey:
    """What one pass over a trace gave."""

    file: TraceFile
    domain: dict[int, str]
    loads: Ints                                     # [layers, experts]
    by_domain: dict[str, Ints]                      # domain -> [layers, experts]
    faults: list[str]
    problems: list[str] = field(default_factory=list)          # breaches of the format
    sample: Trace | None = None                     # of a large trace, windows of it; of a small one, all
    sequences: int = 0
    steps: int = 0
    ranks: int = 0
    phases: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the sample is all of the trace."""
        return self.sample is not None and self.sample.n_tokens == self.file.n_tokens


def survey(path: str | Path, *, progress: Progress = lambda fraction, what: None, strict: bool = True) -> Survey:
    """One pass over the trace at `path`; memory is that of a part of it and of a sample of at most 65,536 tokens.

    Args:
        strict: raise the first breach of the format. False: go on, and list them in `problems`.

    Raises:
        InputError: no such trace, or, where strict, one that breaks the format.
    """
    file = open_trace(path)
    found = Survey(
        file=file, domain=read_domains(file.path), loads=np.zeros((file.shape.n_layers, file.shape.n_experts), np.int64),
        by_domain={}, faults=[],
    )  # fmt: skip
    watch, sample, sequences, ranks, phases = Watch(), _Sample(file.n_tokens), _Seen(), _Seen(), _Seen()
    for begin, columns in stream_columns(file, file.wanted):
        progress(begin / file.n_tokens, "reading the trace")
        try:
            part = decoded(file, columns, begin)
        except InputError as error:
            if strict:
                raise
            found.problems.append(str(error))
            if len(found.problems) >= MOST_PROBLEMS:
                break
            continue
        watch.see(part)
        found.loads += expert_loads(part.expert_ids, part.n_experts)
        _by_domain(found, part)
        sample.take(part, begin)
        for seen, column in ((sequences, part.seq), (ranks, part.rank), (phases, part.phase)):
            seen.add(column)
    found.faults = watch.faults()
    found.sample = sample.all(found.domain)
    found.sequences, found.ranks, found.steps = sequences.values.size, ranks.values.size, watch.steps
    found.phases = tuple(int(one) for one in phases.values)
    if not strict:
        found.problems += _disagreements(found, watch, sequences.values)
    return found


def _by_domain(found: Survey, part: Trace) -> None:
    if not found.domain:
        return
    seqs, which = np.unique(part.seq, return_inverse=True)
    names = np.array([found.domain.get(int(seq), "") for seq in seqs])
    for name in np.unique(names):
        if name and (name in found.by_domain or len(found.by_domain) < NAMED):
            own = expert_loads(part.expert_ids[(names == name)[which]], part.n_experts)
            found.by_domain[str(name)] = found.by_domain.get(str(name), 0) + own


def _disagreements(found: Survey, watch: Watch, sequences: Ints) -> list[str]:
    """Where the metadata or the table of sequences says something else than the tokens."""
    path, meta = found.file.path, found.file.meta
    said = []
    if watch.disorder:
        said.append(f"{path}: {watch.disorder:,} rows are not in order of step, rank, sequence, position")
    counted: dict[str, Any] = {"num_tokens": found.file.n_tokens, "num_steps": found.steps, "num_seqs": found.sequences}
    for key, value in counted.items():
        if not found.problems and key in meta and meta[key] != value:
            said.append(f"{path}: metadata {key} is {meta[key]!r}; the rows have {value}")
    beside = path.with_name("sequences.parquet")
    if beside.exists() and (unknown := sorted(set(found.domain) - {int(seq) for seq in sequences})):
        said.append(f"{beside}: sequence {unknown[0]} has a domain and no tokens")
    return said


class _Seen:
    """The different values of a column."""

    def __init__(self) -> None:
        self.values: Ints = np.zeros(0, np.int64)

    def add(self, column: NDArray[Any]) -> None:
        self.values = np.union1d(self.values, column)


class _Sample:
    """Windows of tokens, evenly over the trace; everything, when that is not more."""

    def __init__(self, n_tokens: int) -> None:
        length = SAMPLE_TOKENS // WINDOWS
        self._windows = [(0, n_tokens)]
        if n_tokens > SAMPLE_TOKENS:
            starts = np.linspace(0, n_tokens - length, WINDOWS).astype(np.int64)
            self._windows = [(int(start), int(start) + length) for start in starts]
        self._parts: list[Trace] = []

    def take(self, part: Trace, begin: int) -> None:
        for first, end in self._windows:
            rows = np.arange(max(first - begin, 0), min(end - begin, part.n_tokens))
            if rows.size:
                self._parts.append(take(part, rows))

    def all(self, domain: dict[int, str]) -> Trace | None:
        return joined(self._parts, domain) if self._parts else None
