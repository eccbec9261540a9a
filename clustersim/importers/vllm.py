"""vLLM: the routed experts that come back with answers, in the three forms they have had, and windows of its load balancer.

Read after vLLM pull request 28284 (arrays), the answers of 0.21 (lists), and /inference/v1/generate since 0.22 (base64 of .npy).
"""

from __future__ import annotations

import base64
import binascii
import io
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
    tokens_from,
    whole_numbers,
)
from clustersim.importers.containers import npy_from, read_arrays, read_json, read_lines
from clustersim.types import InputError


def vllm_routed_experts(
    path: Path, *, prompt: int | None = None, experts: int | None = None, model: str | None = None
) -> Imported:
    """vLLM routed experts [tokens, MoE layers, k]: .npy or .npz (a folder of them), answers with lists, or with base64 of .npy.

    Shape and type come from the file: they have changed three times. An answer's last token was never routed.

    Args:
        prompt: tokens of the prompt, where the file does not say: of an array, or of the base64 form without usage.

    Raises:
        InputError: no routes, or ragged ones.
    """
    parts: list[NDArray[Any]] = []
    prompts: list[int] = []
    for file in files_in(path, "*.npy", "*.npz", "*.json", "*.jsonl"):
        for ids, size in _routes(file):
            parts.append(ids)
            prompts.append(len(ids) if size is None and prompt is None else size if size is not None else int(prompt or 0))
    if not parts:
        raise InputError(f"{path}: holds no routes")
    if len({part.shape[1:] for part in parts}) > 1:
        raise InputError(f"{path}: routes of shapes {sorted({part.shape[1:] for part in parts})} do not belong together")
    seq = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    pos = np.concatenate([np.arange(len(part)) for part in parts])
    phase = np.concatenate([np.where(np.arange(len(ids)) < n, PREFILL, DECODE) for ids, n in zip(parts, prompts, strict=True)])
    return tokens_from(
        path, np.concatenate(parts), experts=experts, seq=seq, step=seq, pos=pos, phase=phase,
        meta={"model": model or "model not named", "source": "vLLM enable-return-routed-experts"},
        notes=("passes were not recorded: each answer stands as one step, its generated tokens too",),
    )


def _routes(file: Path) -> list[tuple[NDArray[Any], int | None]]:
    """(ids [tokens, layers, k], tokens of the prompt or None) of every answer in a file."""
    if file.suffix.lower() in (".npy", ".npz"):
        arrays = read_arrays(file)
        name = "" if "" in arrays else "routed_experts"
        if name not in arrays:
            raise InputError(f"{file}: has no array routed_experts; it holds {', '.join(arrays)[:100]}")
        ids = arrays[name]
        if ids.ndim != 3:
            raise InputError(f"{file}: routed_experts has shape {ids.shape}; [tokens, layers, k] is needed")
        return [(ids, arrays["prompt_token_ids"].size if "prompt_token_ids" in arrays else None)]
    found = read_json(file)
    routes = []
    for answer in found if isinstance(found, list) else [found]:
        if not isinstance(answer, dict):
            raise InputError(f"{file}: an answer is a {type(answer).__name__}, not an object")
        choices = answer.get("choices")
        usage = answer.get("usage")
        told = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        before = _decoded(file, answer.get("prompt_routed_experts"))
        for choice in choices if isinstance(choices, list) else [answer]:
            own = _decoded(file, choice.get("routed_experts") if isinstance(choice, dict) else None)
            both = [ids for ids in (before, own) if ids is not None and len(ids)]
            if not both:
                raise InputError(f"{file}: an answer has no routed_experts; start vLLM with --enable-return-routed-experts")
            if len({ids.shape[1:] for ids in both}) > 1:
                raise InputError(f"{file}: routes of the prompt and of the answer have other layers or another k")
            size = len(before) if before is not None else told if isinstance(told, int) else None
            routes.append((np.concatenate(both), size))
    return routes


def _decoded(file: Path, value: Any) -> NDArray[Any] | None:
    """Routes in any of the forms in which JSON carries them; None where there are none."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{file}: routed_experts is not base64 ({error})") from error
        ids = npy_from(io.BytesIO(raw), f"{file}: routed_experts", len(raw))
    else:
        ids = whole_numbers(file, "routed_experts", value, 3)
    if ids.ndim != 3 or ids.dtype.kind not in "iu":
        raise InputError(f"{file}: routed_experts is {ids.dtype} {ids.shape}; whole numbers [tokens, layers, k] are needed")
    return ids


def vllm_eplb(path: Path, *, experts: int | None = None, model: str | None = None) -> Imported:
    """vLLM expert_load_window [passes, layers, physical experts], saved as .npy, .npz, .pt or .safetensors, its map beside it.

    The map is the array physical_to_logical_map [layers, physical experts]. Without it physical experts must be the logical ones
    (no redundant experts), which `experts` says.

    Raises:
        InputError: no such array, or physical experts without a map.
    """
    arrays = read_arrays(path)
    name = next((name for name in ("expert_load_window", "") if name in arrays), None)
    if name is None:
        raise InputError(f"{path}: has no array expert_load_window; it holds {', '.join(arrays)[:100]}")
    window = arrays[name]
    window = window[None] if window.ndim == 2 else window
    if window.ndim != 3:
        raise InputError(f"{path}: expert_load_window has shape {window.shape}; [passes, layers, physical experts] is needed")
    meta: dict[str, Any] = {"model": model or "model not named", "source": "vLLM EPLB load window"}
    if "physical_to_logical_map" in arrays:
        slots = whole_numbers(path, "physical_to_logical_map", arrays["physical_to_logical_map"], 2)
        window = logical_counts(path, window, slots, experts)
        meta["physical_to_logical"] = slots.tolist()
    elif experts != window.shape[2]:
        raise InputError(
            f"{path}: {window.shape[2]} physical experts and no physical_to_logical_map; save the map beside the window, "
            f"or say experts={window.shape[2]} where there are no redundant ones"
        )
    return counts_from(path, window, phase=DECODE, meta=meta)


def vllm_moe_log(path: Path, *, experts: int | None = None, model: str | None = None) -> Imported:
    """The VLLM_LOG_MOE family of patches: a JSON line per token and layer with req_id, token_idx, layer, topk_ids, topk_weights.

    Such logs begin with vLLM's profiling pass, thousands of tokens that all choose alike: reported as a fault.

    Raises:
        InputError: a line without these fields, or layers with different numbers of tokens.
    """
    by_layer: dict[int, list[tuple[Any, int, Any, Any]]] = {}
    about: dict[str, Any] = {}
    for line in read_lines(path):
        if not isinstance(line, dict):
            raise InputError(f"{path}: a line is a {type(line).__name__}, not an object")
        if line.get("type") not in (None, "route"):
            about |= {key: value for key, value in line.items() if isinstance(value, str | int | float)}
            continue
        if missing := [key for key in ("layer", "topk_ids") if key not in line]:
            raise InputError(f"{path}: a route has no {missing[0]!r}")
        row = (line.get("req_id"), line.get("token_idx", -1), line["topk_ids"], line.get("topk_weights"))
        by_layer.setdefault(int(line["layer"]) if isinstance(line["layer"], int) else -1, []).append(row)
    if not by_layer or -1 in by_layer:
        raise InputError(f"{path}: holds no routes, or one whose layer is no number")
    if len({len(rows) for rows in by_layer.values()}) > 1:
        raise InputError(f"{path}: layers {min(by_layer)} to {max(by_layer)} have different numbers of tokens")
    layers = sorted(by_layer)
    ids = np.stack([whole_numbers(path, "topk_ids", [row[2] for row in by_layer[layer]], 2) for layer in layers], 1)
    first = by_layer[layers[0]]
    weights = None
    if all(row[3] is not None for layer in layers for row in by_layer[layer]):
        try:
            weights = np.stack([np.asarray([row[3] for row in by_layer[layer]], np.float64) for layer in layers], 1)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: topk_weights are no table of numbers") from error
        if weights.shape != ids.shape:
            raise InputError(f"{path}: topk_weights have shape {weights.shape}, topk_ids {ids.shape}")
    requests: dict[Any, int] = {}
    seq = np.array([requests.setdefault(str(row[0]), len(requests)) for row in first])
    if experts is None and isinstance(about.get("num_experts"), int):
        experts = about["num_experts"]
    return tokens_from(
        path, ids, experts=experts, weights=weights, seq=seq, pos=np.arange(len(first)),
        meta={"model": model or str(about.get("model", about.get("model_id", "model not named"))), "source": "VLLM_LOG_MOE log",
              "moe_layers": layers},
    )  # fmt: skip
