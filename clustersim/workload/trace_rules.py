"""The rules a trace keeps, whoever made it: shapes, ids within the model, no expert twice, finite weights, rows in order."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import InputError, Ints, Trace

SORTED_BY = ("step", "rank", "seq", "pos")
SCALARS: Mapping[str, type[np.unsignedinteger[Any]]] = {
    "step": np.uint32, "rank": np.uint16, "seq": np.uint32, "pos": np.uint32, "phase": np.uint8,
}
EXTRA: Mapping[str, type[np.integer[Any]]] = {"token_id": np.int32, "flags": np.uint8}         # one value per token, optional
PHASE_CODES = {"prefill": 0, "decode": 1, "train": 2, "encode": 3}
PADDING, DROPPED, CACHED, DRAFT = 1, 2, 4, 8                                                   # flags


def check_trace(trace: Trace, where: str | Path = "trace") -> None:
    """Raise InputError, its line beginning with `where`, when a trace in memory breaks a rule of the format."""
    tokens = trace.n_tokens
    if not tokens:
        raise InputError(f"{where}: holds no tokens; a trace needs at least one")
    for name, dtype in {**SCALARS, **EXTRA}.items():
        if (values := getattr(trace, name)) is None and name in EXTRA:
            continue
        if values.shape != (tokens,):
            raise InputError(f"{where}: {name} has shape {values.shape}; expert_ids has {tokens} tokens")
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        if values.min() < least or values.max() > most:
            raise InputError(f"{where}: {name} runs from {values.min()} to {values.max()}; it must stay in {least}..{most}")
    check_phase(trace.phase, where, 0)
    if not 1 <= trace.top_k <= trace.n_experts <= np.iinfo(np.int16).max:
        raise InputError(f"{where}: top_k {trace.top_k} and {trace.n_experts} experts; needs 1 <= top_k <= experts <= 32767")
    check_range(trace.expert_ids, trace.n_experts, -1, where, 0)
    check_distinct(trace.expert_ids, where, 0)
    if trace.gate_weights is not None:
        if trace.gate_weights.shape != trace.expert_ids.shape:
            raise InputError(f"{where}: gate_weights {trace.gate_weights.shape} do not fit expert_ids {trace.expert_ids.shape}")
        with np.errstate(over="ignore"):
            check_finite(trace.gate_weights.astype(np.float16), where, 0)
    if trace.scores is not None and trace.scores.shape != (expected := (tokens, trace.n_layers, trace.n_experts)):
        raise InputError(f"{where}: scores {trace.scores.shape} must be {expected}: tokens, layers, experts")
    if trace.scores is not None:
        check_scores(trace.scores, where, 0)
    check_placement(trace.meta, trace.n_layers, trace.n_experts, where)


def check_phase(phase: NDArray[np.integer[Any]], where: str | Path, first_row: int) -> None:
    """Every phase is one that the format knows; `first_row` is the number of row 0."""
    if phase.size and phase.max() >= len(PHASE_CODES):
        row = int(np.argmax(phase >= len(PHASE_CODES)))
        known = ", ".join(f"{code} {name}" for name, code in PHASE_CODES.items())
        raise InputError(f"{where}: row {first_row + row}: phase {phase[row]} is none of {known}")


def check_placement(meta: Mapping[str, Any], n_layers: int, n_experts: int, where: str | Path) -> None:
    """A recorded placement, `physical_to_logical` in the metadata: per layer the expert in every physical slot, none left out."""
    if (placement := meta.get("physical_to_logical")) is None:
        return
    try:
        slots = np.array(placement)
    except ValueError:
        slots = np.zeros(0)
    if slots.ndim != 2 or slots.dtype.kind != "i" or len(slots) != n_layers:
        raise InputError(f"{where}: physical_to_logical must be {n_layers} lists, one per layer, of the expert in every slot")
    for layer, row in enumerate(slots):
        if row.size and (row.min() < 0 or row.max() >= n_experts):
            raise InputError(f"{where}: physical_to_logical: layer {layer} names an expert out of 0..{n_experts - 1}")
        if (held := np.unique(row).size) < n_experts:
            raise InputError(f"{where}: physical_to_logical: layer {layer} holds {held} of {n_experts} experts")


def check_range(ids: NDArray[Any], n_experts: int, no_expert: int, where: str | Path, first_row: int) -> None:
    """Every id of [rows, layers, top_k] names one of the experts, or is `no_expert`; `first_row` is the number of row 0."""
    bad = (ids >= n_experts) | (ids < 0)
    if bad.any() and (bad := bad & (ids != no_expert)).any():
        row, layer, slot = np.argwhere(bad)[0]
        raise InputError(
            f"{where}: layer {layer}, row {first_row + row}: expert id {ids[row, layer, slot]} is out of range; "
            f"{n_experts} experts are 0..{n_experts - 1}"
        )


def check_distinct(ids: NDArray[np.int16], where: str | Path, first_row: int) -> None:
    """No token picks an expert twice in one layer; empty slots (-1) do not count."""
    slots = np.ascontiguousarray(np.moveaxis(ids, 2, 0))
    for a, b in combinations(range(len(slots)), 2):
        if (same := slots[a] == slots[b]).any() and (same := same & (slots[a] >= 0)).any():
            row, layer = np.argwhere(same)[0]
            raise InputError(
                f"{where}: layer {layer}, row {first_row + row}: expert {slots[a][row, layer]} is picked twice "
                f"(slots {a} and {b}); a token picks distinct experts"
            )


def check_finite(weights: NDArray[Any], where: str | Path, first_row: int) -> None:
    """Gate weights [rows, layers, top_k] are numbers."""
    if not (finite := np.isfinite(weights)).all():
        row, layer, slot = np.argwhere(~finite)[0]
        raise InputError(
            f"{where}: layer {layer}, row {first_row + row}: gate weight {weights[row, layer, slot]} in slot {slot}; "
            "weights must be finite in float16"
        )


def check_scores(scores: NDArray[Any], where: str | Path, first_row: int) -> None:
    """Scores [rows, layers, experts] are numbers; minus infinity is one: a router may rule an expert out."""
    if (bad := np.isnan(scores)).any():
        row, layer, expert = np.argwhere(bad)[0]
        raise InputError(f"{where}: layer {layer}, row {first_row + row}: the score of expert {expert} is not a number")


def in_order(trace: Trace) -> Trace:
    """The same trace by step, rank, sequence, position; itself when it already is."""
    keys = [getattr(trace, name) for name in SORTED_BY]
    later = np.zeros(max(trace.n_tokens - 1, 0), bool)          # row i + 1 comes before row i
    equal = ~later
    for key in keys:
        later |= equal & (key[1:] < key[:-1])
        equal &= key[1:] == key[:-1]
    if not later.any():
        return trace
    return take(trace, np.lexsort(keys[::-1]))


def take(trace: Trace, rows: Ints) -> Trace:
    """The trace with these rows, in this order."""
    return Trace(
        expert_ids=trace.expert_ids[rows],
        gate_weights=None if trace.gate_weights is None else trace.gate_weights[rows],
        scores=None if trace.scores is None else trace.scores[rows],
        n_experts=trace.n_experts, domain=trace.domain, meta=trace.meta,
        token_id=None if trace.token_id is None else trace.token_id[rows],
        flags=None if trace.flags is None else trace.flags[rows],
        **typed({name: getattr(trace, name)[rows] for name in SCALARS}),
    )


def typed(scalars: Mapping[str, Ints]) -> dict[str, Any]:
    """The columns of one value per token, in the types that `Trace` asks for."""
    return {name: values.astype(np.uint8) if name == "phase" else values for name, values in scalars.items()}
