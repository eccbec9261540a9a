"""Recordings that are tables of tokens: plain CSV or Parquet, FLAME-MoE's scores and indices, moe-balance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clustersim.importers.building import DECODE, PREFILL, Imported, files_in, natural, tokens_from, whole_numbers
from clustersim.importers.containers import read_lines, read_npz
from clustersim.importers.torch_file import read_pt
from clustersim.types import InputError

UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, MemoryError)
KEYS = ("step", "rank", "seq", "pos", "phase", "token_id")


def table(path: Path, *, experts: int | None = None, model: str | None = None) -> Imported:
    """A CSV or Parquet with the columns token, layer, expert, one row for each choice; slots in the order of the rows.

    More columns are read where they are there: weight, and one number per token of step, rank, seq, pos, phase, token_id.
    Tokens that chose fewer experts than others have empty slots.

    Raises:
        InputError: a column missing, or not of numbers.
    """
    frame = _frame(path)
    for name in ("token", "layer", "expert"):
        if name not in frame.columns:
            has = ", ".join(frame.columns)[:100]
            raise InputError(f"{path}: has no column {name!r}; token, layer and expert are needed, not {has}")
    for name in ("token", "layer", "expert", *KEYS):
        if name in frame.columns and (not frame[name].dtype.is_integer() or frame[name].null_count()):
            raise InputError(f"{path}: column {name!r} is {frame[name].dtype}; it must hold whole numbers, none missing")
    if not frame.height:
        raise InputError(f"{path}: holds no rows")
    tokens, token = np.unique(frame["token"].to_numpy(), return_inverse=True)
    layers, layer = np.unique(frame["layer"].to_numpy(), return_inverse=True)
    expert = frame["expert"].to_numpy()
    place = token * layers.size + layer
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], np.arange(tokens.size * layers.size))
    slot = np.empty_like(place)
    slot[order] = np.arange(place.size) - first[place[order]]
    ids = np.full((tokens.size, layers.size, int(slot.max()) + 1), -1, np.int64)
    ids[token, layer, slot] = expert
    weights = None
    if "weight" in frame.columns:
        if not frame["weight"].dtype.is_numeric() or frame["weight"].null_count():
            raise InputError(f"{path}: column 'weight' is {frame['weight'].dtype}; it must hold numbers, none missing")
        weights = np.zeros(ids.shape)
        weights[token, layer, slot] = frame["weight"].to_numpy()
    columns: dict[str, Any] = {}
    for name in KEYS:
        if name in frame.columns:
            values = np.empty(tokens.size, np.int64)
            values[token] = frame[name].to_numpy()
            if not np.array_equal(values[token], frame[name].to_numpy()):
                raise InputError(f"{path}: a token has two values of {name}; it needs one")
            columns[name] = values
    return tokens_from(
        path, ids, experts=experts, weights=weights, **columns,
        meta={"model": model or "model not named", "source": "table of tokens", "moe_layers": layers.tolist()},
    )  # fmt: skip


def flame_moe(path: Path, *, top_k: int | None = None, model: str | None = None, micro_batch: int = 1) -> Imported:
    """FLAME-MoE's routing, scores [tokens, experts] and indices [tokens, k] of each layer: Parquet, or its own <layer>/*.pt.

    Parquet has a row per token and layer and lists in the columns scores and indices; without a column layer it is one layer.
    Scores of all experts become scores, scores of the chosen ones gate weights. Megatron's tokens stand position after position:
    `micro_batch` sequences take turns when it is given.

    Args:
        top_k: keep only the first so many indices (files of FLAME-MoE hold more).

    Raises:
        InputError: other columns, ragged lists, layers of different length.
    """
    found = _flame_parquet(path) if path.suffix.lower() == ".parquet" else _flame_files(path)
    layers = sorted(found, key=natural)
    if len({(found[name][0].shape, found[name][1].shape) for name in layers}) > 1:
        raise InputError(f"{path}: layers have different numbers of tokens, scores or indices")
    ids = np.stack([found[name][1] for name in layers], 1)[:, :, :top_k]
    scores = np.stack([found[name][0] for name in layers], 1)
    if not 1 <= micro_batch <= len(ids) or len(ids) % micro_batch:
        raise InputError(f"micro_batch={micro_batch}: must divide the {len(ids)} tokens")
    whole = scores.shape[2] > ids.shape[2]
    return tokens_from(
        path, ids, experts=scores.shape[2] if whole else None, scores=scores if whole else None,
        weights=np.take_along_axis(scores, ids, 2) if whole else scores[:, :, :top_k],
        seq=np.arange(len(ids)) % micro_batch, pos=np.arange(len(ids)) // micro_batch,
        meta={"model": model or "FLAME-MoE", "source": "FLAME-MoE routing"}
        | ({"moe_layers": [int(name) for name in layers]} if all(str(name).isdigit() for name in layers) else {}),
        notes=("where several sequences were routed together they take turns here: micro_batch=N",) if micro_batch == 1 else (),
    )


def _flame_parquet(path: Path) -> dict[Any, tuple[NDArray[Any], NDArray[Any]]]:
    frame = _frame(path)
    for name in ("scores", "indices"):
        if name not in frame.columns or not isinstance(frame[name].dtype, pl.List | pl.Array) or frame[name].null_count():
            raise InputError(f"{path}: has no column {name!r} of lists, none missing; scores and indices are needed")
    by_layer = frame.partition_by("layer", as_dict=True, maintain_order=True) if "layer" in frame.columns else {(0,): frame}
    found = {}
    for (layer, *_), own in by_layer.items():
        lists = [own[name].to_list() for name in ("scores", "indices")]
        if any(len({len(one) for one in column}) > 1 for column in lists):
            raise InputError(f"{path}: lists in scores or indices are of different lengths")
        try:
            scores = np.asarray(lists[0], np.float32)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: scores are not numbers") from error
        found[layer] = scores, whole_numbers(path, "indices", lists[1], 2)
    return found


def _flame_files(path: Path) -> dict[Any, tuple[NDArray[Any], NDArray[Any]]]:
    """<layer>/<name>.pt, each the tuple (scores, indices); the files of a layer one after the other."""
    parts: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    for file in files_in(path, "*/*.pt", "*.pt"):
        pair = read_pt(file)
        if not isinstance(pair, tuple | list) or [getattr(one, "ndim", 0) for one in pair] != [2, 2]:
            raise InputError(f"{file}: holds no pair of scores [tokens, experts] and indices [tokens, k]")
        layer = file.parent.name if file.parent != path and path.is_dir() else file.stem
        parts.setdefault(layer, []).append((pair[0].astype(np.float32), whole_numbers(file, "indices", pair[1], 2)))
    try:
        return {layer: (np.concatenate([a for a, _ in own]), np.concatenate([b for _, b in own])) for layer, own in parts.items()}
    except ValueError as error:
        raise InputError(f"{path}: files of one layer differ in experts or k") from error


def moe_balance(path: Path, *, experts: int | None = None, model: str | None = None) -> Imported:
    """moe-balance's trace, a JSON line per batch and layer, or its .npz (one, or a folder of them) of a request each.

    Lines have layer, batch_id, topk_experts and perhaps origin_rows, topk_weights; an .npz routed_experts [tokens, layers, k].

    Raises:
        InputError: a line without its fields, batches that lack a layer.
    """
    if path.is_dir() or path.suffix.lower() == ".npz":
        return _balance_npz(path, experts, model)
    batches: dict[str, dict[int, dict[str, Any]]] = {}
    for record in read_lines(path):
        needed = ("layer", "batch_id", "topk_experts")
        if not isinstance(record, dict) or any(key not in record for key in needed) or not isinstance(record["layer"], int):
            raise InputError(f"{path}: a line has no layer, batch_id or topk_experts")
        own = batches.setdefault(str(record["batch_id"]), {})
        if record["layer"] in own:
            raise InputError(f"{path}: batch {record['batch_id']} has layer {record['layer']} twice")
        own[record["layer"]] = record
    if not batches:
        raise InputError(f"{path}: holds no lines")
    layers = sorted(next(iter(batches.values())))
    parts, ranks, weights = [], [], []
    for name, own in batches.items():
        if sorted(own) != layers:
            raise InputError(f"{path}: batch {name} has layers {sorted(own)}; others have {layers}")
        ids = [whole_numbers(path, "topk_experts", own[layer]["topk_experts"], 2) for layer in layers]
        if len({one.shape for one in ids}) > 1:
            raise InputError(f"{path}: batch {name}: layers have different numbers of tokens or experts")
        parts.append(np.stack(ids, 1))
        rows = whole_numbers(path, "origin_rows", own[layers[0]].get("origin_rows", [0] * len(ids[0])), 1)
        if rows.size != len(ids[0]):
            raise InputError(f"{path}: batch {name} has {rows.size} origin_rows for {len(ids[0])} tokens")
        ranks.append(rows)
        if all("topk_weights" in own[layer] for layer in layers):
            try:
                weights.append(np.stack([np.asarray(own[layer]["topk_weights"], np.float32) for layer in layers], 1))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}: batch {name}: topk_weights are no table of numbers") from error
    if len({part.shape[1:] for part in parts}) > 1 or any(a.shape != b.shape for a, b in zip(weights, parts, strict=False)):
        raise InputError(f"{path}: batches differ in experts per token, or weights in shape")
    batch = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return tokens_from(
        path, np.concatenate(parts), experts=experts, rank=np.concatenate(ranks), step=batch, seq=batch,
        pos=np.concatenate([np.arange(len(part)) for part in parts]),
        weights=np.concatenate(weights) if len(weights) == len(parts) else None,
        meta={"model": model or "model not named", "source": "moe-balance trace", "moe_layers": layers},
        notes=("origin_rows are kept as ranks; its own converter makes them up round robin where they are unknown",),
    )


def _balance_npz(path: Path, experts: int | None, model: str | None) -> Imported:
    parts, phases, words = [], [], []
    for file in files_in(path, "*.npz"):
        arrays = read_npz(file)
        if (ids := arrays.get("routed_experts")) is None or ids.ndim != 3:
            raise InputError(f"{file}: has no array routed_experts [tokens, layers, k]; it holds {', '.join(arrays)[:100]}")
        prompt, answer = (arrays.get(name, np.zeros(0, np.int64)).ravel() for name in ("prompt_token_ids", "output_token_ids"))
        both = np.concatenate([prompt, answer])[: len(ids)].astype(np.int64)
        words.append(np.concatenate([both, np.full(len(ids) - both.size, -1)]))
        phases.append(np.where(np.arange(len(ids)) < (prompt.size or len(ids)), PREFILL, DECODE))
        parts.append(ids)
    if len({part.shape[1:] for part in parts}) > 1:
        raise InputError(f"{path}: files differ in layers or k")
    seq = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return tokens_from(
        path, np.concatenate(parts), experts=experts, seq=seq, step=seq,
        pos=np.concatenate([np.arange(len(part)) for part in parts]),
        phase=np.concatenate(phases), token_id=np.concatenate(words),
        meta={"model": model or "model not named", "source": "moe-balance npz"},
        notes=("passes were not recorded: each request stands as one step, its generated tokens too",),
    )


def _frame(path: Path) -> pl.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            from clustersim.workload.trace_file import check_parquet

            check_parquet(path)
            return pl.read_parquet(path, glob=False, hive_partitioning=False)
        return pl.read_csv(path, glob=False, separator="\t" if path.suffix.lower() == ".tsv" else ",", infer_schema_length=None)
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as a table ({' '.join(str(error).split())[:120]})") from error
