"""Facts of a recording that make it something else than it seems: padding, dummy passes, copied layers, mixed-up order.

Each was found in a trace that somebody published. Finds and says them; changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, Ints, Trace
from clustersim.workload.trace_rules import CACHED, DRAFT, DROPPED, PADDING, SORTED_BY

RUN = 32                        # tokens in a row that choose exactly alike: so many are no text
LAGS = 64                       # neighbours that are compared
DECODE = 1


@dataclass(slots=True, eq=False, kw_only=True)
class Watch:
    """What is remembered of the tokens that went by; `see` takes the next ones, `faults` says what was found."""

    tokens: int = 0
    flagged: Ints = field(default_factory=lambda: np.zeros(8, np.int64))
    nowhere: int = 0                                    # tokens without any expert that are not flagged
    runs: list[tuple[int, int]] = field(default_factory=list)       # [first row, end) of tokens that choose alike
    decoding: int = 0
    unsorted: int = 0                                   # layers of tokens whose weights do not descend
    weighed: int = 0
    off: int = 0                                        # layers of tokens with a negative weight or none at all
    doubled: int = 0
    disorder: int = 0
    steps: int = 0
    same: NDArray[np.bool_] | None = None               # [layers, layers] whether they have been equal so far
    last: Trace | None = None
    open_run: int = 0                                   # first row of the run that is still going on
    shared: Floats = field(default_factory=lambda: np.zeros(LAGS + 1))      # experts shared with the row so many before
    asked: Floats = field(default_factory=lambda: np.zeros(LAGS + 1))

    def see(self, part: Trace) -> None:
        """The next tokens, in the order of the file."""
        ids = part.expert_ids
        self._runs(part)
        none = (ids < 0).all((1, 2))
        if part.flags is not None:
            for bit in range(8):
                self.flagged[bit] += int((part.flags >> bit & 1).sum())
            none = none & (part.flags & (PADDING | DROPPED | CACHED) == 0)
        self.nowhere += int(none.sum())
        self.decoding += int((part.phase == DECODE).sum())
        if part.gate_weights is not None and part.top_k > 1:
            there = (ids[:, :, 1:] >= 0) & (ids[:, :, :-1] >= 0)
            self.unsorted += int(((np.diff(part.gate_weights, axis=2) > 1e-3) & there).any(2).sum())
        if part.gate_weights is not None:
            used = ids >= 0
            sums = np.where(used, part.gate_weights, 0).sum(2)
            self.off += int((((part.gate_weights < 0) & used).any(2) | ((sums <= 0) & used.any(2))).sum())
            self.weighed += part.n_tokens * part.n_layers
        self._order(part)
        if self.same is None:
            self.same = ~np.eye(part.n_layers, dtype=bool)
        for a, b in zip(*np.nonzero(np.triu(self.same)), strict=True):
            if not np.array_equal(ids[:256, a], ids[:256, b]) or not np.array_equal(ids[:, a], ids[:, b]):
                self.same[a, b] = self.same[b, a] = False
        self._neighbours(part)
        self.tokens += part.n_tokens
        self.last = part

    def _runs(self, part: Trace) -> None:
        """Continue the run of equal tokens that the last part ended in, and note those that are over."""
        flat = part.expert_ids.reshape(part.n_tokens, -1)
        equal = np.zeros(part.n_tokens, bool)           # to the row before
        equal[1:] = (flat[1:, 0] == flat[:-1, 0]) & (flat[1:, -1] == flat[:-1, -1])
        some = np.flatnonzero(equal)
        equal[some] = (flat[some] == flat[some - 1]).all(1)
        if self.last is not None:
            equal[0] = bool((flat[0] == self.last.expert_ids[-1].ravel()).all())
        equal &= (part.expert_ids >= 0).any((1, 2))
        starts = np.r_[self.open_run, np.flatnonzero(~equal) + self.tokens]
        self._close(starts)
        self.open_run = int(starts[-1])

    def _close(self, starts: Ints) -> None:
        """Note the runs between these rows that are long enough."""
        for at in np.flatnonzero(np.diff(starts) >= RUN):
            self.runs.append((int(starts[at]), int(starts[at + 1])))

    def _order(self, part: Trace) -> None:
        keys = [getattr(part, name).astype(np.int64) for name in SORTED_BY]
        if self.last is not None:
            keys = [np.r_[getattr(self.last, name)[-1:].astype(np.int64), key] for name, key in zip(SORTED_BY, keys, strict=True)]
        later, equal = np.zeros(keys[0].size - 1, bool), np.ones(keys[0].size - 1, bool)
        for key in keys:
            later |= equal & (key[1:] < key[:-1])
            equal &= key[1:] == key[:-1]
        self.disorder += int(later.sum())
        self.doubled += int(equal.sum())
        self.steps += int((np.diff(keys[0]) != 0).sum()) + (self.last is None)

    def _neighbours(self, part: Trace) -> None:
        """How many experts tokens share with those so many rows before in the same sequence; a few thousand tokens tell."""
        if self.asked[1] > 500_000:
            return
        ids = part.expert_ids[:16_384]
        for lag in range(1, min(LAGS, len(ids) - 1) + 1):
            near = part.seq[lag : len(ids)] == part.seq[: len(ids) - lag]
            rows = np.flatnonzero(near)[:4096]
            now, before = ids[rows + lag], ids[rows]
            self.shared[lag] += float(((now[:, :, :, None] == before[:, :, None, :]) & (now >= 0)[:, :, :, None]).sum())
            self.asked[lag] += float((now >= 0).sum())

    def faults(self) -> list[str]:
        """What was found, a line each."""
        if self.last is None:
            return []
        self._close(np.array([self.open_run, self.tokens]))
        self.open_run = self.tokens
        layers, top_k = self.last.n_layers, self.last.top_k
        said = []
        for bit, what in ((PADDING, "padding"), (DROPPED, "dropped"), (CACHED, "a cached prefix"), (DRAFT, "draft tokens")):
            if number := int(self.flagged[bit.bit_length() - 1]):
                said.append(f"{number:,} of {self.tokens:,} tokens are flagged as {what}")
        if self.nowhere:
            said.append(f"{self.nowhere:,} tokens have no expert in any layer and no flag that says why")
        if self.runs and layers * top_k > 2:
            first, end = self.runs[0]
            more = f", and {len(self.runs) - 1} more such runs" if len(self.runs) > 1 else ""
            where = "a dummy profiling pass" if first == 0 else "padding or a dummy pass"
            said.append(f"rows {first:,} to {end - 1:,} all choose the same experts: {where}, not text{more}")
        said += self._copies(layers)
        said += self._interleaved()
        if self.disorder:
            said.append(f"{self.disorder:,} rows come before the one above them: not in order of step, rank, sequence, position")
        if self.doubled:
            said.append(f"{self.doubled:,} rows repeat the step, rank, sequence and position of the row above")
        if self.decoding == self.tokens:
            said.append("only decoding was recorded: prompts are missing")
        if self.tokens > 1 and self.steps == self.tokens:
            said.append("every step is one token: recorded at batch size 1; workload.deal=continuous makes batches of it")
        if self.unsorted:
            share = self.unsorted / max(self.weighed, 1)
            said.append(f"slots do not stand by descending gate weight in {share:.0%} of tokens and layers")
        if self.off:
            said.append(f"gate weights are negative or all 0 in {self.off:,} layers of tokens")
        return said

    def _copies(self, layers: int) -> list[str]:
        assert self.same is not None
        for period in range(1, layers):
            if layers > period and all(self.same[a, a + period] for a in range(layers - period)):
                return [f"layers repeat: layer l + {period} is a copy of layer l, so only {period} of {layers} are recorded"]
        if (pairs := np.argwhere(np.triu(self.same))).size:
            a, b = pairs[0]
            more = f", and {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
            return [f"layers {a} and {b} are copies of each other{more}"]
        return []

    def _interleaved(self) -> list[str]:
        """Neighbours are more alike than tokens far apart; where tokens b apart are the most alike, b sequences take turns."""
        told = self.asked > 1000
        if not told[1:9].all():
            return []
        overlap = np.divide(self.shared, self.asked, out=np.zeros(LAGS + 1), where=told)
        best = int(overlap[2:].argmax()) + 2
        noise = 4 * np.sqrt(overlap[1] / self.asked[1]) + 4 * np.sqrt(overlap[best] / self.asked[best])
        if overlap[best] > 1.2 * overlap[1] + noise:
            return [
                f"tokens {best} rows apart share more experts ({overlap[best]:.3f}) than neighbours ({overlap[1]:.3f}): "
                f"{best} sequences seem to be interleaved (or the text repeats)"
            ]
        return []
