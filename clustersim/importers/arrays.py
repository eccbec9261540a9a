"""Recordings that are arrays: Hugging Face router logits, DeepSeek EPLB weights, MoE-Infinity's matrices, llama.cpp's imatrix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.importers.building import Imported, counts_from, natural, need, tokens_from
from clustersim.importers.containers import read_arrays, read_gguf, read_json
from clustersim.types import InputError

LOGITS = re.compile(r"(?:.*[._])?(?:router_)?logits?[._]?(\d+)|(?:arr_)?(\d+)|.*\.(\d+)\..*(?:gate|router).*")
EXPERTS = re.compile(r"blk\.(\d+)\.ffn_\w*exps\.weight\.counts")


def hf_router_logits(
    path: Path, *, top_k: int | None = None, model: str | None = None
) -> Imported:
    """Transformers router logits saved as .safetensors or .npz: an array [batch x tokens, experts] per MoE layer, or one
    [layers, batch x tokens, experts].

    Beside them: `attention_mask` [batch, tokens] takes padding out and tells sequences apart, `input_ids` likewise;
    `router_indices.<layer>` [batch x tokens, k] are the model's own choice. Without these, ids are the top_k of the logits, which
    is not what routers with a bias, groups or a softmax after the choice of a subset do.

    Args:
        top_k: experts per token; not needed with router_indices.

    Raises:
        InputError: no logits, layers of different shapes, a mask of another shape.
    """
    arrays = read_arrays(path)
    logits = _layers(path, arrays)
    tokens, n_experts = logits.shape[1:]
    notes = []
    if (own := sorted((name for name in arrays if "router_indices" in name or "selected_experts" in name), key=natural)):
        ids = np.stack([arrays[name].reshape(tokens, -1) if arrays[name].size % tokens == 0 else arrays[name] for name in own], 1)
        if ids.shape[:2] != (tokens, len(logits)):
            raise InputError(f"{path}: router_indices are {ids.shape[:2]} tokens and layers; logits {(tokens, len(logits))}")
    else:
        k = need(path, "top_k", top_k, "logits alone do not say how many experts a token takes")
        if k > n_experts:
            raise InputError(f"top_k={k}: {path} has {n_experts} experts")
        ids = np.argsort(-logits, axis=2, kind="stable")[:, :, :k].transpose(1, 0, 2)
        notes.append(f"ids are the top {k} of the logits; routers with a bias or groups choose otherwise")
    columns: dict[str, Any] = {"seq": np.zeros(tokens, np.int64), "pos": np.arange(tokens)}
    keep = np.ones(tokens, bool)
    if (mask := arrays.get("attention_mask", arrays.get("input_ids"))) is not None:
        if mask.ndim != 2 or mask.size != tokens:
            raise InputError(f"{path}: attention_mask has shape {mask.shape}; logits have {tokens} tokens, batch after batch")
        real = arrays["attention_mask"] != 0 if "attention_mask" in arrays else np.ones(mask.shape, bool)
        keep = real.ravel()
        columns = {"seq": np.repeat(np.arange(len(mask)), mask.shape[1]), "pos": (np.cumsum(real, 1) - 1).ravel()}
        if not keep.all():
            notes.append(f"{int((~keep).sum()):,} of {tokens:,} rows are padding by the attention mask and are left out")
    else:
        notes.append("there is no attention_mask: all tokens stand as one sequence, and padding cannot be told")
    if "input_ids" in arrays and arrays["input_ids"].size == tokens:
        columns["token_id"] = arrays["input_ids"].ravel()
    meta = {"model": model or "model not named", "source": "transformers output_router_logits", "scores": "router logits"}
    columns = {name: np.asarray(values)[keep] for name, values in columns.items()}
    return tokens_from(
        path, ids[keep], experts=n_experts, scores=logits.transpose(1, 0, 2)[keep], meta=meta, notes=notes, **columns
    )


def _layers(path: Path, arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Logits [layers, tokens, experts]."""
    floats = {name: values for name, values in arrays.items() if values.dtype.kind == "f"}
    whole = [values for values in floats.values() if values.ndim == 3]
    if len(whole) == 1 and len(floats) == 1:
        return whole[0].astype(np.float32)
    named = sorted((name for name in floats if LOGITS.fullmatch(name) and floats[name].ndim == 2), key=natural)
    if not named:
        has = ", ".join(arrays)[:80]
        raise InputError(f"{path}: holds no router logits; router_logits.<layer> [tokens, experts] are expected, not {has}")
    if len({floats[name].shape for name in named}) > 1:
        shapes = sorted({floats[name].shape for name in named})
        raise InputError(f"{path}: layers have logits of shapes {shapes}; they must be alike")
    return np.stack([floats[name].astype(np.float32) for name in named])


def deepseek_eplb(path: Path, *, model: str | None = None) -> Imported:
    """The `weight` of DeepSeek's rebalance_experts: load [layers, experts], in .pt, .npy, .npz, .safetensors or .json.

    Raises:
        InputError: another shape.
    """
    if path.suffix.lower() == ".json":
        found = read_json(path)
        try:
            weight = np.asarray(found["weight"] if isinstance(found, dict) and "weight" in found else found)
        except ValueError as error:
            raise InputError(f"{path}: weight is not a table of numbers") from error
    else:
        arrays = read_arrays(path)
        weight = arrays["weight"] if "weight" in arrays else next(iter(arrays.values()))
    if weight.ndim != 2 or weight.dtype.kind not in "iuf":
        raise InputError(f"{path}: weight is {weight.dtype} of shape {weight.shape}; numbers [layers, experts] are needed")
    return counts_from(path, weight[None], meta={"model": model or "model not named", "source": "DeepSeek EPLB weight"})


def moe_infinity(path: Path, *, model: str | None = None) -> Imported:
    """MoE-Infinity's trace collection: .npy [requests, layers, experts], how often a request used each expert; unused rows 0.

    Raises:
        InputError: another shape.
    """
    found = next(iter(read_arrays(path).values()))
    if found.ndim != 3:
        raise InputError(f"{path}: has shape {found.shape}; [requests, layers, experts] is needed")
    return counts_from(
        path, found, meta={"model": model or "model not named", "source": "MoE-Infinity expert activation matrices"},
        notes=("a step is a request",),
    )


def llama_imatrix(path: Path, *, model: str | None = None) -> Imported:
    """llama.cpp's importance matrix as GGUF: `blk.N.ffn_*_exps.weight.counts`, tokens that each expert of a layer has seen.

    Raises:
        InputError: not such a file, or one of a model without experts.
    """
    meta, arrays = read_gguf(path)
    if meta.get("general.type") != "imatrix":
        raise InputError(f"{path}: general.type is {meta.get('general.type')!r}; an importance matrix says 'imatrix'")
    by_layer: dict[int, NDArray[Any]] = {}
    notes = []
    for name in sorted(arrays, key=natural):
        if (found := EXPERTS.fullmatch(name)) is None:
            continue
        layer, counts = int(found[1]), arrays[name].ravel()
        if layer in by_layer and not np.array_equal(by_layer[layer], counts):
            notes.append(f"layer {layer}: its tensors were counted differently ({name}); the first one is taken")
        by_layer.setdefault(layer, counts)
    if not by_layer:
        raise InputError(f"{path}: has no blk.N.ffn_*_exps.weight.counts: an importance matrix of a model without experts")
    if len({counts.size for counts in by_layer.values()}) > 1:
        sizes = sorted({counts.size for counts in by_layer.values()})
        raise InputError(f"{path}: layers have {sizes} experts; they must be alike")
    layers = sorted(by_layer)
    about: dict[str, Any] = {"model": model or "model not named", "source": "llama.cpp imatrix"}
    if isinstance(sets := meta.get("imatrix.datasets"), list):
        about["datasets"] = [str(one) for one in sets]
    return counts_from(path, np.stack([by_layer[layer] for layer in layers])[None], layers=layers, meta=about, notes=notes)
