"""Megatron-Core: router traces, a JSONL per rank. Read after megatron/core/transformer/moe/router_trace.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.importers.building import TRAIN, Imported, files_in, tokens_from, whole_numbers
from clustersim.importers.containers import read_lines
from clustersim.importers.torch_file import from_bfloat16
from clustersim.types import InputError

NEEDED = ("step", "layer", "rank", "num_tokens", "top_indices")


def megatron(
    path: Path, *, experts: int | None = None, micro_batch: int = 1, phase: int = TRAIN, model: str | None = None
) -> Imported:
    """router_trace_rank*.jsonl (a folder, or one file): a record per step, layer and micro-batch; the source rank is kept.

    Logits in logits_rank*.bin beside it become scores. Megatron's tokens stand position after position, the sequences of a
    micro-batch taking turns: `micro_batch` of them are told apart when it is given. Multi-token prediction is left out.

    Args:
        micro_batch: sequences in a micro-batch.
        phase: 0 prefill, 1 decode, 2 train.

    Raises:
        InputError: a record without its fields, layers with different tokens, logits that are not whole.
    """
    if micro_batch < 1:
        raise InputError(f"micro_batch={micro_batch}: must be a whole number from 1 up")
    if phase not in (0, 1, 2, 3):
        raise InputError(f"phase={phase}: must be 0 prefill, 1 decode, 2 train or 3 encode")
    parts: list[dict[str, NDArray[Any]]] = []
    layers: list[int] | None = None
    skipped, next_seq = 0, 0
    for file in files_in(path, "router_trace_rank*.jsonl", "*.jsonl"):
        passes, left_out = _passes(file)
        skipped += left_out
        for (rank, step), by_layer in sorted(passes.items()):
            found = sorted(by_layer)
            if layers is not None and found != layers:
                raise InputError(f"{file}: step {step} has layers {found}; others have {layers}")
            layers = found
            pieces = len(by_layer[found[0]])
            if any(len(records) != pieces for records in by_layer.values()):
                raise InputError(f"{file}: step {step}: layers were recorded {pieces} and more times; none may be missing")
            for piece in range(pieces):
                part = _tokens(file, [by_layer[layer][piece] for layer in found], micro_batch)
                n = len(part["ids"])
                part["seq"] = part["seq"] + next_seq
                next_seq = int(part["seq"].max()) + 1
                parts.append(part | {"rank": np.full(n, rank), "step": np.full(n, step)})
    if layers is None:
        raise InputError(f"{path}: holds no records of decoder layers")
    if len({part["ids"].shape[1:] for part in parts}) > 1:
        raise InputError(f"{path}: records differ in topk")
    scored = all("scores" in part for part in parts)
    joined: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in ("ids", "rank", "step", "seq", "pos")}
    scores = np.concatenate([part["scores"] for part in parts]) if scored else None
    notes = [] if micro_batch > 1 else ["a micro-batch stands as one sequence; several in one take turns: micro_batch=N"]
    if skipped:
        notes.append(f"{skipped:,} records of multi-token prediction are left out")
    return tokens_from(
        path, joined.pop("ids"), experts=scores.shape[2] if scores is not None else experts, scores=scores, phase=phase,
        meta={"model": model or "model not named", "source": "Megatron-Core router trace", "moe_layers": layers}, notes=notes,
        **joined,
    )  # fmt: skip


def _passes(file: Path) -> tuple[dict[tuple[int, int], dict[int, list[dict[str, Any]]]], int]:
    """(rank, step) -> layer -> its records in order; and how many are of multi-token prediction."""
    passes: dict[tuple[int, int], dict[int, list[dict[str, Any]]]] = {}
    skipped = 0
    for record in read_lines(file):
        if not isinstance(record, dict) or (missing := [key for key in NEEDED if key not in record]):
            raise InputError(f"{file}: a record has no {missing[0] if isinstance(record, dict) else 'fields'!r}")
        for key in ("step", "layer", "rank", "num_tokens"):
            if not isinstance(record[key], int) or record[key] < 0:
                raise InputError(f"{file}: a record has {key} {record[key]!r}; it must be a whole number from 0")
        if record.get("block", "decoder") != "decoder":
            skipped += 1
        elif record["num_tokens"]:
            passes.setdefault((record["rank"], record["step"]), {}).setdefault(record["layer"], []).append(record)
    return passes, skipped


def _tokens(file: Path, records: list[dict[str, Any]], micro_batch: int) -> dict[str, NDArray[Any]]:
    """One micro-batch: ids [tokens, layers, k], sequence and position of every token, scores where logits were recorded."""
    ids = [whole_numbers(file, "top_indices", record["top_indices"], 2) for record in records]
    if len({one.shape for one in ids}) > 1 or len(ids[0]) != records[0]["num_tokens"]:
        shapes = sorted({one.shape for one in ids})
        raise InputError(f"{file}: step {records[0]['step']}: layers have indices of {shapes} tokens and k")
    n = len(ids[0])
    if n % micro_batch:
        raise InputError(f"micro_batch={micro_batch}: {file} has a micro-batch of {n} tokens, which it does not divide")
    part: dict[str, NDArray[Any]] = {
        "ids": np.stack(ids, 1), "seq": np.arange(n) % micro_batch, "pos": np.arange(n) // micro_batch,
    }
    if all("logit_offset" in record for record in records):
        part["scores"] = np.stack([_logits(file, record) for record in records], 1)
    return part


def _logits(file: Path, record: dict[str, Any]) -> NDArray[np.float32]:
    sidecar = file.with_name(f"logits_rank{record['rank']}.bin")
    shape, offset, size = (record.get(key) for key in ("logit_shape", "logit_offset", "logit_bytes"))
    if not isinstance(shape, list) or len(shape) != 2 or not isinstance(offset, int) or shape[0] * shape[1] * 2 != size:
        raise InputError(f"{file}: step {record['step']}: logit_shape {shape} does not take logit_bytes {size} of bfloat16")
    try:
        with sidecar.open("rb") as stream:
            stream.seek(offset)
            raw = stream.read(size)
    except (OSError, ValueError) as error:
        raise InputError(f"{sidecar}: cannot be read ({error})") from error
    if len(raw) != size or shape[0] != record["num_tokens"]:
        raise InputError(f"{sidecar}: ends before the logits of step {record['step']}, layer {record['layer']}")
    return from_bfloat16(np.frombuffer(raw, "<u2")).reshape(shape)
