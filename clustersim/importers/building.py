"""What importers share: from what a recorder wrote to the tokens or the counts of a `moetrace/1`. Opens no files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import InputError, Ints, Trace
from clustersim.workload.trace_counts import CountRows
from clustersim.workload.trace_rules import PADDING, PHASE_CODES, in_order

PREFILL, DECODE, TRAIN = PHASE_CODES["prefill"], PHASE_CODES["decode"], PHASE_CODES["train"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Imported:
    """What an importer made of a file: tokens in order, or counts, and what a reader has to know of them."""

    tokens: Trace | None = None
    counts: CountRows | None = None
    notes: tuple[str, ...] = ()


def tokens_from(
    path: Path, ids: NDArray[Any], *, experts: int | None, meta: Mapping[str, Any], phase: Ints | int = PREFILL,
    weights: NDArray[Any] | None = None, scores: NDArray[Any] | None = None, step: Ints | int = 0, rank: Ints | int = 0,
    seq: Ints | int = 0, pos: Ints | None = None, token_id: Ints | None = None, domain: Mapping[int, str] | None = None,
    notes: Iterable[str] = (),
) -> Imported:
    """Tokens from ids [tokens, layers, top_k] and what is known beside them; numbers in place of columns hold for all tokens.

    Any negative id becomes -1. Rows of zeros in every layer are padding that recorders leave behind (no router picks one expert
    twice): they lose their experts and are flagged, and so are rows without any expert.

    Raises:
        InputError: ids that are no whole numbers, no tokens, an expert outside `experts`.
    """
    said = list(notes)
    if ids.ndim != 3 or 0 in ids.shape or ids.dtype.kind not in "iuf":
        raise InputError(f"{path}: expert ids are {ids.dtype} of shape {ids.shape}; numbers [tokens, layers, top_k] are needed")
    if ids.dtype.kind == "f" and (not np.isfinite(ids).all() or (ids != np.floor(ids)).any()):
        raise InputError(f"{path}: expert ids must be whole numbers")
    if (most := float(ids.max())) >= (limit := experts or 32767):
        raise InputError(f"{path}: expert id {most:.0f} is out of range; {limit} experts are 0..{limit - 1}")
    ids = np.where(ids < 0, -1, ids).astype(np.int16)
    zeros = (ids == 0).all((1, 2)) if ids.shape[2] > 1 else np.zeros(len(ids), bool)
    ids[zeros] = -1
    empty = (ids < 0).all((1, 2))
    if zeros.any():
        said.append(f"{int(zeros.sum()):,} of {len(ids):,} rows are zeros in every layer: padding, flagged as such")
    if (more := int(empty.sum() - zeros.sum())) > 0:
        said.append(f"{more:,} of {len(ids):,} rows have no expert in any layer: padding, flagged as such")
    if empty.all():
        raise InputError(f"{path}: holds no tokens but padding")
    if experts is None:
        experts = int(ids.max()) + 1
        said.append(f"the number of experts is not recorded: taken as {experts}, the largest id and one (experts=N sets it)")
    n = len(ids)
    place = np.arange(n) if pos is None else np.asarray(pos, np.int64)

    def column(values: Ints | int) -> Ints:
        return np.full(n, values, np.int64) if np.isscalar(values) else np.asarray(values, np.int64)

    trace = Trace(
        expert_ids=ids, gate_weights=None if weights is None else np.where(ids < 0, 0, weights).astype(np.float32),
        scores=None if scores is None else scores.astype(np.float32), step=column(step), rank=column(rank), seq=column(seq),
        pos=place, phase=column(phase).astype(np.uint8), n_experts=max(experts, ids.shape[2]), domain=dict(domain or {}),
        meta=dict(meta), token_id=None if token_id is None else np.asarray(token_id, np.int64),
        flags=np.where(empty, PADDING, 0).astype(np.uint8) if empty.any() else None,
    )
    return Imported(tokens=in_order(trace), notes=tuple(said))


def counts_from(
    path: Path, counts: NDArray[Any], *, layers: Sequence[int] | None = None, step: Ints | None = None,
    step_end: Ints | None = None, rank: int = 0, phase: int = PREFILL, tokens: Ints | None = None, meta: Mapping[str, Any],
    notes: Iterable[str] = (),
) -> Imported:
    """Counts from an array [steps, layers, experts]; steps and layers without any count are left out, and that is noted.

    Loads that are not whole numbers are kept in units of their largest / 2^31, which the metadata says (`counts_unit`).

    Raises:
        InputError: another shape, a negative or infinite count, nothing counted.
    """
    said, meta = list(notes), dict(meta)
    if counts.ndim != 3 or 0 in counts.shape or counts.dtype.kind not in "iuf":
        raise InputError(f"{path}: counts have shape {counts.shape} and type {counts.dtype}; [steps, layers, experts] are needed")
    if not np.isfinite(counts).all() or counts.min() < 0:
        raise InputError(f"{path}: a count is negative or not a number")
    if counts.dtype.kind == "f":
        counts = counts.astype(np.float64)
        if (counts != np.floor(counts)).any():
            meta["counts_unit"] = float(counts.max()) / 2**31
            counts = np.round(counts / meta["counts_unit"])
            said.append(f"loads are no whole numbers: kept in units of {meta['counts_unit']:.3g}")
    counts = counts.astype(np.int64)
    names = np.arange(counts.shape[1]) if layers is None else np.asarray(layers, np.int64)
    step = np.arange(len(counts)) if step is None else np.asarray(step, np.int64)
    step_end = step + 1 if step_end is None else np.asarray(step_end, np.int64)
    used, filled = np.asarray(counts.any((1, 2))), np.asarray(counts.any((0, 2)))
    if not used.any():
        raise InputError(f"{path}: every count is 0")
    if not used.all():
        said.append(f"{int((~used).sum()):,} of {used.size:,} steps count nothing (a buffer that was not full) and are left out")
    if not filled.all():
        said.append(f"{int((~filled).sum())} of {filled.size} layers count nothing (dense ones) and are left out")
    counts, step, step_end, names = counts[used][:, filled], step[used], step_end[used], names[filled]
    if meta.get("physical_to_logical") is not None:
        meta["physical_to_logical"] = [row for row, keep in zip(meta["physical_to_logical"], filled, strict=True) if keep]
    steps, n_layers, n_experts = counts.shape
    rows = CountRows(
        counts=counts.reshape(-1, n_experts), layer=np.tile(names, steps), step=np.repeat(step, n_layers),
        step_end=np.repeat(step_end, n_layers), rank=np.full(steps * n_layers, rank), phase=np.full(steps * n_layers, phase),
        tokens=np.zeros(steps * n_layers, np.int64) if tokens is None else np.repeat(np.asarray(tokens)[used], n_layers),
        domain=("",) * (steps * n_layers), meta=meta,
    )  # fmt: skip
    return Imported(counts=rows, notes=tuple(said))


def together(path: Path, parts: Sequence[Imported]) -> Imported:
    """Counts of several files (ranks) as one; each note once.

    Raises:
        InputError: nothing, or files of different numbers of experts.
    """
    rows = [part.counts for part in parts if part.counts is not None]
    if not rows:
        raise InputError(f"{path}: holds nothing that was counted")
    if len({one.n_experts for one in rows}) > 1:
        raise InputError(f"{path}: files of {sorted({one.n_experts for one in rows})} experts do not belong together")
    names = ("counts", "layer", "step", "step_end", "rank", "phase", "tokens")
    joined = {name: np.concatenate([getattr(one, name) for one in rows]) for name in names}
    order = np.lexsort((joined["layer"], joined["rank"], joined["step"]))
    domain = [name for one in rows for name in one.domain]
    return Imported(
        counts=CountRows(**{name: values[order] for name, values in joined.items()}, domain=tuple(domain[i] for i in order),
                         meta=rows[0].meta),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def logical_ids(path: Path, ids: NDArray[Any], slots: NDArray[Any]) -> NDArray[Any]:
    """Logical experts of physical ids [tokens, layers, top_k], by the map [layers, physical slots]; -1 stays.

    Raises:
        InputError: a map for another number of layers, an id beyond it.
    """
    if slots.ndim != 2 or len(slots) != ids.shape[1]:
        raise InputError(f"{path}: the map of physical ids has shape {slots.shape}; {ids.shape[1]} layers are needed")
    if ids.max() >= slots.shape[1]:
        raise InputError(f"{path}: physical id {ids.max()} is out of range; the map has {slots.shape[1]} slots")
    found = slots[np.arange(len(slots))[None, :, None], np.maximum(ids, 0)]
    return np.where(ids < 0, -1, found)


def logical_counts(path: Path, counts: NDArray[Any], slots: NDArray[Any], n_experts: int | None = None) -> NDArray[Any]:
    """Counts [..., layers, experts] of counts of physical slots [..., layers, slots], by the map [layers, slots].

    Raises:
        InputError: a map of another shape.
    """
    if slots.shape != counts.shape[-2:] or slots.min() < 0:
        raise InputError(f"{path}: the map of physical ids has shape {slots.shape}; counts have {counts.shape[-2:]}")
    n_experts = max(n_experts or 0, int(slots.max()) + 1)
    found = np.zeros((*counts.shape[:-1], n_experts), counts.dtype)
    for layer, row in enumerate(slots):
        np.add.at(found[..., layer, :].reshape(-1, n_experts).T, row, counts[..., layer, :].reshape(-1, row.size).T)
    return found


def files_in(path: Path, *patterns: str) -> list[Path]:
    """The file itself, or those of a folder that match, in order of the numbers in their names.

    Raises:
        InputError: nothing there.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    found = sorted({file for pattern in patterns for file in path.glob(pattern)}, key=natural)
    if not found:
        raise InputError(f"{path}: holds no {' or '.join(patterns)}")
    return found


def natural(name: Any) -> list[Any]:
    """Sorts "layer 10" behind "layer 9"."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", str(name)) if part]


def whole_numbers(path: Path, what: str, values: Any, ndim: int) -> NDArray[np.int64]:
    """`values` (nested lists or an array) as whole numbers of so many dimensions.

    Raises:
        InputError: ragged lists, text, fractions.
    """
    try:
        found = np.asarray(values)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: {what} is not a table of whole numbers ({str(error)[:80]})") from error
    if found.size == 0 and found.ndim <= ndim:
        return np.zeros((0,) * ndim, np.int64)
    if found.ndim != ndim or found.dtype.kind not in "iu":
        raise InputError(f"{path}: {what} must be whole numbers in {ndim} dimensions, not {found.dtype} in {found.ndim}")
    return found.astype(np.int64)


def need(path: Path, key: str, value: int | None, why: str) -> int:
    """An option that cannot be left out here.

    Raises:
        InputError: it is, or is below 1.
    """
    if value is None:
        raise InputError(f"{path}: {why}; give {key}=N")
    if value < 1:
        raise InputError(f"{key}={value}: must be a whole number from 1 up")
    return value
