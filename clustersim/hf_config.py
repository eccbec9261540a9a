"""A Hugging Face `config.json` as a model of ours. Reads one file; loads no weights and asks no server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clustersim.architecture import describe
from clustersim.pick import did_you_mean
from clustersim.types import InputError

Config = Mapping[str, Any]


class _Reader:
    """A config whose missing keys are named when they are asked for."""

    def __init__(self, config: Config, where: str) -> None:
        self.config, self.where = config, where

    def __call__(self, key: str, *others: str, default: Any = ...) -> Any:
        for name in (key, *others):
            if self.config.get(name) is not None:
                return self.config[name]
        if default is ...:
            raise InputError(f"{self.where}: {key} is missing, which a {self.config.get('model_type')} has")
        return default


def converted(source: Path) -> tuple[str, str]:
    """What a checkpoint's `config.json` describes: in a few words, and as the text of a file of `conf/model`.

    Raises:
        InputError: no such file, no JSON, or what `model_from_hf_config` refuses.
    """
    import yaml

    try:
        config = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"convert {source}: there is no such file") from None
    except ValueError as error:
        raise InputError(f"convert {source}: not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise InputError(f"convert {source}: holds no configuration")
    model = model_from_hf_config(config, str(source))
    counted = describe(model)
    told = f"{counted.total_params / 1e9:.4g} billion parameters, {counted.active_params / 1e9:.4g} active"
    return told, f"# {model['name']}: {told}; converted from {source.name}\n{yaml.safe_dump(model, sort_keys=False)}"


def model_from_hf_config(config: Config, where: str = "config.json") -> dict[str, Any]:
    """The keys of a file of `conf/model`, from the configuration of a checkpoint.

    The short form, which the engine plays, for mixtures of experts after none or a few dense layers; else parts and layers.

    Args:
        config: what `config.json` says.
        where: what errors call it.

    Raises:
        InputError: another family (with those that are known), or a key that is missing.
    """
    kind = str(config.get("model_type", ""))
    if kind not in FAMILIES:
        near = did_you_mean(kind, FAMILIES)
        raise InputError(f"{where}: model_type {kind!r} is not among the families known{near} ({', '.join(FAMILIES)})")
    name = str(config.get("_name_or_path") or kind).rstrip("/").rpartition("/")[2].lower()
    made = FAMILIES[kind](_Reader(config, where))
    return {"name": "".join(c if c.isalnum() else "_" for c in name).strip("_") or kind, **made}


def _dense(c: _Reader) -> dict[str, Any]:
    """Llama, Mistral, Qwen2, Qwen3, SmolLM3: one kind of layer."""
    window = c("sliding_window", default=None) if c("use_sliding_window", default=True) else None
    attention = _attention(c) | ({"window": window} if window else {})
    parts = {"attention": attention, "dense": _ffn(c("intermediate_size"))}
    return _general(c, parts, [(c("num_hidden_layers"), ["attention dense"])])


def _gpt2(c: _Reader) -> dict[str, Any]:
    hidden, heads = c("n_embd"), c("n_head")
    parts = {
        "attention": {"kind": "attention", "heads": heads, "kv_heads": heads, "head_dim": hidden // heads},
        "dense": _ffn(c("n_inner", default=4 * hidden), 2),
    }
    made = {"hidden": hidden, "vocab": c("vocab_size"), "tied_embeddings": bool(c("tie_word_embeddings", default=True))}
    return made | {"positions": c("n_positions"), "parts": parts, "layers": [_run(c("n_layer"), ["attention dense"])]}


def _llama4(c: _Reader) -> dict[str, Any]:
    c = _Reader({**c("text_config", default=c.config), "model_type": "llama4"}, c.where)
    chunk, step, layers = c("attention_chunk_size", default=None), c("interleave_moe_layer_step"), c("num_hidden_layers")
    size = c("intermediate_size")
    parts = {
        "attention": _attention(c), "dense": _ffn(c("intermediate_size_mlp")),
        "moe": {
            "kind": "moe", "experts": c("num_local_experts"), "top_k": c("num_experts_per_tok"), "size": size, "shared_size": size
        },
    }  # fmt: skip
    if chunk:
        parts["chunked"] = parts["attention"] | {"window": chunk}
    every = c("no_rope_layer_interval", default=4)
    names = [
        f"{'chunked' if chunk and i % every else 'attention'} {'moe' if i % step == 0 else 'dense'}" for i in range(1, layers + 1)
    ]
    return _general(c, parts, _runs(names))


def _jamba(c: _Reader) -> dict[str, Any]:
    hidden = c("hidden_size")
    parts = {
        "mamba": {
            "kind": "mamba", "inner": c("mamba_expand") * hidden, "state": c("mamba_d_state"), "conv": c("mamba_d_conv"),
            "dt_rank": c("mamba_dt_rank"),
        },
        "attention": _attention(c), "dense": _ffn(c("intermediate_size")),
        "moe": {"kind": "moe", "experts": c("num_experts"), "top_k": c("num_experts_per_tok"), "size": c("intermediate_size")},
    }  # fmt: skip
    names = [
        f"{'attention' if i % c('attn_layer_period') == c('attn_layer_offset') else 'mamba'} "
        f"{'moe' if i % c('expert_layer_period') == c('expert_layer_offset') else 'dense'}"
        for i in range(c("num_hidden_layers"))
    ]
    return _general(c, parts, _runs(names))


def _mamba2(c: _Reader) -> dict[str, Any]:
    """Both spellings: transformers', and that of the state-spaces checkpoints (with the defaults of their code)."""
    hidden = c("hidden_size", "d_model")
    inner = c("expand", default=2) * hidden
    head = c("head_dim", default=64)
    multiple = c("pad_vocab_size_multiple", default=1)
    parts = {
        "mamba2": {
            "kind": "mamba2", "inner": inner, "state": c("state_size", "d_state", default=128),
            "conv": c("conv_kernel", "d_conv", default=4), "heads": c("num_heads", default=inner // head),
            "groups": c("n_groups", "ngroups", default=1),
        }
    }  # fmt: skip
    return {
        "hidden": hidden, "vocab": -(-c("vocab_size") // multiple) * multiple,
        "tied_embeddings": bool(c("tie_word_embeddings", "tie_embeddings", default=False)), "parts": parts,
        "layers": [_run(c("num_hidden_layers", "n_layer"), ["mamba2"])],
    }  # fmt: skip


def _retnet(c: _Reader) -> dict[str, Any]:
    hidden = c("hidden_size", "decoder_embed_dim")
    parts = {
        "retention": {
            "kind": "retention", "heads": c("num_heads", "decoder_retention_heads"),
            "key_dim": hidden, "value_dim": c("value_dim", "decoder_value_embed_dim", default=2 * hidden),
        },
        "dense": _ffn(c("intermediate_size", "decoder_ffn_embed_dim"), 3 if c("use_glu", default=False) else 2),
    }  # fmt: skip
    return _general(c, parts, [(c("num_hidden_layers", "decoder_layers"), ["retention dense"])])


def _moe(experts: str, size: str, *, mla: bool = False) -> Callable[[_Reader], dict[str, Any]]:
    """Families of `Model`'s kind; how they name the number of experts and the size of one."""

    def made(c: _Reader) -> dict[str, Any]:
        layers, dense = c("num_hidden_layers"), _dense_first(c)
        one = c(size)
        shared = c("shared_expert_intermediate_size", default=None) or c("n_shared_experts", default=0) * one
        weights = _weights(c)
        return {
            "n_layers": layers, "n_dense_layers": dense, "n_experts": c(experts), "top_k": c("num_experts_per_tok"),
            "n_shared_experts": c("n_shared_experts", default=None) or (max(1, shared // one) if shared else 0),
            "hidden": c("hidden_size"), "expert_ffn": one, "shared_ffn": shared,
            "dense_ffn": c("intermediate_size") if dense else 0, "vocab": c("vocab_size"),
            "tied_embeddings": bool(c("tie_word_embeddings", default=False)),
            "attention": _latent(c) if mla else _grouped(c), "router": _router(c), **weights,
            **({"expert_biases": True} if c("model_type") == "gpt_oss" else {}),
        }  # fmt: skip

    return made


def _dense_first(c: _Reader) -> int:
    """Dense layers before the others; InputError where dense and MoE layers alternate, which the short form cannot say."""
    step = c("decoder_sparse_step", "moe_layer_freq", default=1)
    only = c("mlp_only_layers", default=[])
    first: int = c("first_k_dense_replace", default=0)
    if step != 1 or only != list(range(len(only))):
        raise InputError(f"{c.where}: dense and MoE layers alternate, which is not converted for a {c('model_type')}")
    return max(first, len(only))


def _router(c: _Reader) -> dict[str, Any]:
    """How the router was trained, for router=model."""
    if c("n_group", default=None) is not None and c("topk_method", default="noaux_tc") != "greedy":
        sigmoid = c("scoring_func", default="sigmoid") == "sigmoid"
        judged = {"group_score": "top2" if sigmoid else "max"} if c("n_group") > 1 else {}
        return {
            "name": "group_limited", "score": "sigmoid" if sigmoid else "softmax", "n_groups": c("n_group"),
            "best_groups": c("topk_group"), **judged, "renormalise": bool(c("norm_topk_prob", default=True)),
            "scale": float(c("routed_scaling_factor", default=1.0)),
        }  # fmt: skip
    after = c("model_type") in ("mixtral", "gpt_oss")
    rest = {} if after else {"renormalise": bool(c("norm_topk_prob", default=False))}
    scale = c("routed_scaling_factor", default=None)
    return {"name": "top_k", "softmax": "after" if after else "before", **rest, **({"scale": float(scale)} if scale else {})}


def _weights(c: _Reader) -> dict[str, Any]:
    """Bytes of weights and of activations on the wire, from the quantisation of the checkpoint."""
    method = c("quantization_config", default={}).get("quant_method")
    bf16 = {"dispatch_bytes": 2.0, "combine_bytes": 2.0, "expert_weight_bytes": 2.0, "weight_bytes": 2.0, "gemm": "bf16"}
    if method is None:
        return bf16
    if method == "fp8":
        rows, columns = c("quantization_config").get("weight_block_size") or (128, 128)
        each = 1 + 4 / (rows * columns)
        return bf16 | {"dispatch_bytes": 1 + 4 / columns, "expert_weight_bytes": each, "weight_bytes": each, "gemm": "fp8"}
    if method == "mxfp4":
        return bf16 | {"expert_weight_bytes": 0.5 + 1 / 32}
    raise InputError(f"{c.where}: quantization_config.quant_method {method!r} is not converted (known: fp8, mxfp4, none)")


def _attention(c: _Reader) -> dict[str, Any]:
    heads = c("num_attention_heads")
    return {
        "kind": "attention", "heads": heads, "kv_heads": c("num_key_value_heads", default=heads),
        "head_dim": c("head_dim", default=c("hidden_size") // heads),
    }  # fmt: skip


def _grouped(c: _Reader) -> dict[str, Any]:
    window, every, kinds = None, None, c("layer_types", default=None)
    if kinds and "sliding_attention" in kinds:
        window = c("sliding_window")
        full = [i + 1 for i, kind in enumerate(kinds) if kind == "full_attention"]
        every = full[0] if full else None
        if full != list(range(every or 1, len(kinds) + 1, every or 1))[: len(full)]:
            raise InputError(f"{c.where}: layer_types are not one full layer in every so many, which is all that is converted")
    elif c("model_type") in ("mixtral", "qwen2_moe") and c("use_sliding_window", default=c("model_type") == "mixtral"):
        window = c("sliding_window", default=None)
    return {**_attention(c), "kind": "gqa", "sliding_window": window, "full_every": every}


def _latent(c: _Reader) -> dict[str, Any]:
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    ranks = {"q_lora_rank": c("q_lora_rank", default=None), **{key: c(key) for key in keys}}
    return {"kind": "mla", "heads": c("num_attention_heads"), **ranks}


def _ffn(size: int, matrices: int = 3) -> dict[str, Any]:
    return {"kind": "dense", "size": size, "matrices": matrices}


def _general(c: _Reader, parts: dict[str, Any], runs: list[tuple[int, list[str]]]) -> dict[str, Any]:
    used = {name for _, names in runs for text in names for name in text.split()}
    return {
        "hidden": c("hidden_size", "decoder_embed_dim"), "vocab": c("vocab_size"),
        "tied_embeddings": bool(c("tie_word_embeddings", default=False)),
        "parts": {name: part for name, part in parts.items() if name in used}, "layers": [_run(*run) for run in runs],
    }  # fmt: skip


def _run(times: int, names: list[str]) -> dict[str, Any]:
    return {"times": times, "of": names}


def _runs(names: list[str]) -> list[tuple[int, list[str]]]:
    """The shortest period that makes up the whole, or the whole once."""
    period = next(p for p in range(1, len(names) + 1) if len(names) % p == 0 and names == names[:p] * (len(names) // p))
    return [(len(names) // period, names[:period])]


FAMILIES: dict[str, Callable[[_Reader], dict[str, Any]]] = {         # by `model_type`
    "deepseek": _moe("n_routed_experts", "moe_intermediate_size"),
    "deepseek_v2": _moe("n_routed_experts", "moe_intermediate_size", mla=True),
    "deepseek_v3": _moe("n_routed_experts", "moe_intermediate_size", mla=True),
    "glm4_moe": _moe("n_routed_experts", "moe_intermediate_size"),
    "gpt2": _gpt2,
    "gpt_oss": _moe("num_local_experts", "intermediate_size"),
    "jamba": _jamba,
    "kimi_k2": _moe("n_routed_experts", "moe_intermediate_size", mla=True),
    "llama": _dense,
    "llama4": _llama4,
    "llama4_text": _llama4,
    "mamba2": _mamba2,
    "mistral": _dense,
    "mixtral": _moe("num_local_experts", "intermediate_size"),
    "olmoe": _moe("num_experts", "intermediate_size"),
    "qwen2": _dense,
    "qwen2_moe": _moe("num_experts", "moe_intermediate_size"),
    "qwen3": _dense,
    "qwen3_moe": _moe("num_experts", "moe_intermediate_size"),
    "retnet": _retnet,
    "smollm3": _dense,
}
