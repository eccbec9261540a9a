"""SGLang: the files of its expert distribution recorder, and the routed experts that come back with answers.

Read after SGLang 0.5.23, srt/eplb/expert_distribution.py and srt/layers/moe/routed_experts_capturer.py.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.importers.building import (
    DECODE,
    PREFILL,
    Imported,
    counts_from,
    files_in,
    logical_counts,
    logical_ids,
    need,
    together,
    tokens_from,
    whole_numbers,
)
from clustersim.importers.containers import read_json
from clustersim.importers.torch_file import read_pt
from clustersim.types import InputError

MAP = "last_physical_to_logical_map"


def sglang_stat(path: Path, *, model: str | None = None) -> Imported:
    """SGLang recorder, modes stat and stat_approx: one .pt with logical_count [steps, layers, experts], added up over ranks.

    Raises:
        InputError: another file.
    """
    found = _dict(path, "logical_count")
    counts = found["logical_count"]
    rate = found.get("average_utilization_rate_over_window")
    meta: dict[str, Any] = {"model": model or "model not named", "source": "SGLang expert distribution recorder, stat"}
    if isinstance(rate, float):
        meta["average_utilization_rate_over_window"] = rate
    return counts_from(path, np.asarray(counts), meta=meta)


def sglang_per_pass(path: Path, *, model: str | None = None) -> Imported:
    """SGLang recorder, mode per_pass: a .pt for each rank (a folder, or one of them), counts of physical slots in every pass.

    Raises:
        InputError: another file, or one without the map of physical ids.
    """
    parts = []
    for file in files_in(path, "*.pt"):
        found = _dict(file, "records")
        slots = _map(file, found)
        meta = {"model": model or "model not named", "source": "SGLang expert distribution recorder, per_pass",
                "physical_to_logical": slots.tolist()}
        records = [_record(file, record, "global_physical_count") for record in _list(file, found["records"])]
        if not records:
            continue
        counts = np.stack([whole_numbers(file, "global_physical_count", one["global_physical_count"], 2) for one in records])
        steps = np.array([int(one["forward_pass_id"]) for one in records])
        parts.append(counts_from(
            file, logical_counts(file, counts, slots), step=steps, rank=int(records[0]["rank"]), meta=meta,
            notes=("the map of physical ids is that of the end of the recording; it may have changed before",),
        ))
    return together(path, parts)


def sglang_per_token(path: Path, *, experts: int | None = None, model: str | None = None) -> Imported:
    """SGLang recorder, mode per_token: a .pt for each rank (a folder, or one of them), physical ids of every token and layer.

    Requests are not named: a pass of prompts has one sequence per prompt; a decode pass goes on with the sequences of the pass
    before where as many tokens are each one position further, and begins new ones otherwise.

    Raises:
        InputError: another file, or one without the map of physical ids.
    """
    columns: dict[str, list[NDArray[Any]]] = {key: [] for key in ("ids", "step", "rank", "seq", "pos", "phase", "token_id")}
    slots, next_seq = None, 0
    for file in files_in(path, "*.pt"):
        found = _dict(file, "records")
        slots = _map(file, found)
        before: NDArray[np.int64] | None = None
        running: NDArray[np.int64] = np.zeros(0, np.int64)
        for record in _list(file, found["records"]):
            record = _record(file, record, "topk_ids_of_layer")
            pos = whole_numbers(file, "positions", record["positions"], 1)
            if not pos.size:
                continue
            ids = whole_numbers(file, "topk_ids_of_layer", record["topk_ids_of_layer"], 3).transpose(1, 0, 2)[: pos.size]
            if len(ids) != pos.size:
                raise InputError(f"{file}: a pass of {pos.size} positions has expert ids of {len(ids)} tokens")
            lengths = record.get("extend_seq_lens")
            seq, next_seq = _sequences(file, pos, lengths, before, running, next_seq)
            ends = np.flatnonzero(np.r_[np.diff(seq) != 0, True])
            running, before = seq[ends], pos[ends]
            token_id = whole_numbers(file, "input_ids", record.get("input_ids", []), 1)
            n = pos.size
            for key, values in (
                ("ids", logical_ids(file, ids, slots)), ("step", np.full(n, int(record["forward_pass_id"]))),
                ("rank", np.full(n, int(record["rank"]))), ("seq", seq), ("pos", pos),
                ("phase", np.full(n, DECODE if lengths is None else PREFILL)),
                ("token_id", token_id if token_id.size == n else np.full(n, -1)),
            ):
                columns[key].append(values)
    if slots is None or not columns["ids"]:
        raise InputError(f"{path}: holds no pass with tokens")
    joined: dict[str, Any] = {key: np.concatenate(values) for key, values in columns.items()}
    ids = joined.pop("ids")
    moe = (ids >= 0).any((0, 2))
    width = (ids >= 0).any((0, 1))
    notes = ["requests are not named in this recording: sequences are guessed from positions",
             "the map of physical ids is that of the end of the recording; it may have changed before"]
    if not moe.all():
        notes.append(f"{int((~moe).sum())} of {moe.size} layers have no experts (dense ones) and are left out")
    if not width.all():
        notes.append(f"{int((~width).sum())} of {width.size} slots are never used: top-{int(width.sum())}")
    meta = {"model": model or "model not named", "source": "SGLang expert distribution recorder, per_token",
            "moe_layers": np.flatnonzero(moe).tolist(), "physical_to_logical": slots[moe].tolist()}
    return tokens_from(
        path, ids[:, moe][:, :, width], experts=experts or int(slots.max()) + 1, meta=meta, notes=notes, **joined
    )  # fmt: skip


def sglang_routed_experts(
    path: Path, *, layers: int | None = None, top_k: int | None = None, experts: int | None = None, dense: int = 0,
    start: int = 0, model: str | None = None,
) -> Imported:
    """SGLang answers with meta_info.routed_experts, JSON or one per line: base64 of int32 [tokens - 1 - start, layers, k].

    Args:
        layers: hidden layers of the model, dense ones too.
        top_k: experts per token.
        dense: how many layers at the beginning are dense; their rows mean nothing.
        start: routed_experts_start_len of the requests.

    Raises:
        InputError: no such field, or bytes that are not of that shape.
    """
    layers = need(path, "layers", layers, "the number of hidden layers is not in the answers")
    top_k = need(path, "top_k", top_k, "top_k is not in the answers")
    if not 0 <= dense < layers:
        raise InputError(f"dense={dense}: must be from 0 to {layers - 1}")
    answers = read_json(path)
    parts, phases, positions = [], [], []
    for answer in answers if isinstance(answers, list) else [answers]:
        about = answer.get("meta_info") if isinstance(answer, dict) else None
        text = about.get("routed_experts") if isinstance(about, dict) else None
        if not isinstance(about, dict) or not isinstance(text, str):
            raise InputError(f"{path}: an answer has no meta_info.routed_experts; ask with return_routed_experts")
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{path}: routed_experts is not base64 ({error})") from error
        if not raw or len(raw) % (4 * layers * top_k):
            each = 4 * layers * top_k
            raise InputError(f"{path}: routed_experts has {len(raw)} bytes; a token of int32 [{layers}, {top_k}] takes {each}")
        ids = np.frombuffer(raw, "<i4").reshape(-1, layers, top_k)
        prompt, answered = about.get("prompt_tokens"), about.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(answered, int) and len(ids) != prompt + answered - 1 - start:
            raise InputError(
                f"{path}: an answer of {prompt} + {answered} tokens has routes of {len(ids)}; all but the last "
                f"and the first {start} are expected (layers, top_k or start is another one)"
            )
        pos = np.arange(start, start + len(ids))
        parts.append(ids[:, dense:])
        positions.append(pos)
        phases.append(np.where(pos < (prompt if isinstance(prompt, int) else len(ids) + start), PREFILL, DECODE))
    if not parts:
        raise InputError(f"{path}: holds no answers")
    seq = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    meta = {"model": model or "model not named", "source": "SGLang return_routed_experts",
            "moe_layers": list(range(dense, layers))}
    return tokens_from(
        path, np.concatenate(parts), experts=experts, seq=seq, step=seq, pos=np.concatenate(positions),
        phase=np.concatenate(phases), meta=meta,
        notes=("passes were not recorded: each answer stands as one step, its generated tokens too",),
    )  # fmt: skip


def _dict(path: Path, key: str) -> dict[str, Any]:
    found = read_pt(path)
    if not isinstance(found, dict) or key not in found:
        has = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{path}: has no {key!r}; it holds {has[:120]}")
    return found


def _list(path: Path, values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise InputError(f"{path}: records is a {type(values).__name__}, not a list")
    return values


def _record(path: Path, record: Any, key: str) -> dict[str, Any]:
    needed = ("forward_pass_id", "rank", key) + (("positions",) if key == "topk_ids_of_layer" else ())
    if not isinstance(record, dict) or (missing := [name for name in needed if name not in record]):
        raise InputError(f"{path}: a record has no {missing[0] if isinstance(record, dict) else key!r}")
    for name in ("forward_pass_id", "rank"):
        if not isinstance(record[name], int) or record[name] < 0:
            raise InputError(f"{path}: a record has {name} {record[name]!r}; it must be a whole number from 0")
    return record


def _map(path: Path, found: dict[str, Any]) -> NDArray[np.int64]:
    if found.get(MAP) is None:
        raise InputError(f"{path}: expert ids are physical and {MAP} is missing; without it they cannot be told apart")
    return whole_numbers(path, MAP, found[MAP], 2)


def _sequences(
    path: Path, pos: NDArray[np.int64], lengths: Any, before: NDArray[np.int64] | None, running: NDArray[np.int64], first: int
) -> tuple[NDArray[np.int64], int]:
    """Sequence of every token of a pass, and the next number that is free."""
    if lengths is not None:
        sizes = whole_numbers(path, "extend_seq_lens", lengths, 1)
        if sizes.sum() != pos.size or (sizes < 0).any():
            raise InputError(f"{path}: extend_seq_lens sum to {sizes.sum()}; the pass has {pos.size} tokens")
        return first + np.repeat(np.arange(sizes.size), sizes), first + sizes.size
    if before is not None and before.size == pos.size and (pos == before + 1).all():
        return running, first
    return first + np.arange(pos.size), first + pos.size
