"""How many places an expert has: the formulas of the frameworks, found by name. Pure NumPy; who gets them is decided elsewhere.

A size is `name(tokens, top_k, n_units, factor, largest, *, options) -> places`, int [pools], or [pools, units] where they differ:

    tokens: int [pools], tokens of each pool (a source GPU, a local group, or all).
    n_units: experts; GPUs where the capacity is one of GPUs.
    factor: the capacity factor. Every formula but Tutel's wants it above 0.
    largest: the most choices that any pool has for any one unit.

A product that is whole in decimals stays whole (10 · 1.1 is 11), where floats would round it to 12 or, downwards, to 10.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, InputError, Ints

__all__ = [
    "deepspeed", "fastmoe_gshard", "fastmoe_switch", "flaxformer", "megatron", "megatron_rank", "mesh_tensorflow",
    "moe_plus_plus", "tutel", "vmoe",
]  # fmt: skip


def megatron(tokens: Ints, top_k: int, n_units: int, factor: float, largest: int) -> Ints:
    """ceil(tokens · top_k / units · factor).

    Source: Megatron-LM d98e8a64, megatron/core/transformer/moe/moe_utils.py (`get_capacity`, on the tokens of one rank).
    """
    return _up(tokens * top_k * _above_zero(factor) / n_units)


def megatron_rank(tokens: Ints, top_k: int, n_units: int, factor: float, largest: int, *, multiple: int = 1) -> Ints:
    """floor(tokens · top_k · factor / GPUs), up to a multiple: the static receive buffer of one rank.

    Source: Megatron-LM d98e8a64, megatron/core/transformer/moe/token_dispatcher.py (moe_expert_rank_capacity_factor).
    """
    return _to_multiple(_down(tokens * top_k * _above_zero(factor) / n_units), "multiple", multiple)


def deepspeed(tokens: Ints, top_k: int, n_units: int, factor: float, largest: int, *, min_capacity: int = 8) -> Ints:
    """ceil(tokens / experts · factor · top_k), at least min_capacity.

    Source: DeepSpeed edaa7221, deepspeed/moe/sharded_moe.py (`_capacity`; factor times 1, 2 or k by gate).

    Raises:
        InputError: top-1, and a GPU with fewer tokens than min_capacity, which DeepSpeed's gate asserts against.
    """
    least = _at_least("min_capacity", min_capacity, 0)
    if top_k == 1 and (tokens < least).any():
        raise InputError(
            f"capacity.min_capacity={least}: DeepSpeed's top-1 gate needs that many tokens in every batch, and one has "
            f"{int(tokens.min())}; set a smaller capacity.min_capacity, or more workload.tokens_per_gpu"
        )
    return np.maximum(_up(tokens * top_k * _above_zero(factor) / n_units), least)


def mesh_tensorflow(tokens: Ints, top_k: int, n_units: int, factor: float, largest: int, *, min_capacity: int = 4) -> Ints:
    """max(min(tokens, floor(tokens · factor / experts)), min_capacity): the factor counts tokens, not choices.

    Source: mesh_tensorflow/transformer/moe.py (`transformer_moe_layer_v1`), on the tokens of one group.
    """
    places = np.minimum(tokens, _down(tokens * _above_zero(factor) / n_units))
    return np.maximum(places, _at_least("min_capacity", min_capacity, 0))


def flaxformer(tokens: Ints, top_k: int, n_units: int, factor: float, largest: int, *, min_capacity: int = 4) -> Ints:
    """max(round(tokens · factor / experts), min_capacity), half to even: the factor counts tokens, not choices.

    Source: flaxformer/architectures/moe/moe_layers.py (`MoeLayer`), on the tokens of one group.
    """
    places = np.rint(tokens * _above_zero(factor) / n_units).astype(np.int64)
    return np.maximum(places, _at_least("min_capacity", min_capacity, 0))


def vmoe(
    tokens: Ints, top_k: int, n_units: int, factor: float, largest: int, *, rounding: str = "ceil", multiple: int = 4
) -> Ints:
    """ceil or round (tokens · top_k · factor / experts), up to a multiple.

    Source: google-research/vmoe, vmoe/moe.py (`compute_capacity`).

    Raises:
        InputError: a capacity below 1 before it is made a multiple, or a rounding that is neither.
    """
    if rounding not in ("ceil", "round"):
        raise InputError(f"capacity.rounding={rounding}: must be ceil or round")
    exact = tokens * top_k * _above_zero(factor) / n_units
    places = _up(exact) if rounding == "ceil" else np.rint(exact).astype(np.int64)
    if ((places < 1) & (tokens > 0)).any():
        raise InputError(f"capacity.factor={factor}: leaves an expert no place at all, which V-MoE refuses; give it more")
    return _to_multiple(places, "multiple", multiple)


def tutel(tokens: Ints, top_k: int, n_units: int, factor: float, largest: int, *, alignment: int = 1) -> Ints:
    """top_k · floor(factor · ceil(tokens / experts)), up to a multiple of alignment.

    Factor 0 is the largest load there is, anywhere; a negative one that, but no more than the factor's amount allows.

    Source: Tutel ac0e51b9, tutel/impls/fast_dispatch.py (`extract_critical`).
    """
    fixed = top_k * _down(abs(factor) * -(-tokens // n_units))
    places = fixed if factor > 0 else np.full_like(fixed, largest)
    return _to_multiple(np.minimum(places, fixed) if factor < 0 else places, "alignment", alignment)


def fastmoe_gshard(tokens: Ints, top_k: int, n_units: int, factor: float, largest: int) -> Ints:
    """floor(ceil(factor · tokens) · top_k / experts).

    Source: laekov/fastmoe, fmoe/gates/gshard_gate.py, on the tokens of one worker.
    """
    return _up(tokens * _above_zero(factor)) * top_k // n_units


def fastmoe_switch(tokens: Ints, top_k: int, n_units: int, factor: float, largest: int) -> Ints:
    """ceil(factor · tokens / experts): the factor counts tokens, not choices.

    Source: laekov/fastmoe, fmoe/gates/switch_gate.py: tokens of one worker over the experts of one worker, for what all
    workers send to an expert. With the same batch on all workers that is all tokens over all experts.
    """
    return _up(tokens * _above_zero(factor) / n_units)


def moe_plus_plus(
    tokens: Ints, top_k: int, n_units: int, factor: float, largest: int, *, zero_experts: int = 4, tau: float = 0.75
) -> Ints:
    """factor · tau · top_k · tokens / (tau · experts + zero_experts), rounded up (how the original rounds is not known).

    Zero-computation experts are beside the model's experts; every GPU has them, and choosing them is not limited here.

    Source: MoE++, arXiv 2410.07348, section 3.

    Raises:
        InputError: zero_experts is below 0, or tau is not in (0, 1].
    """
    return _up(tokens * moe_plus_plus_shares(top_k, n_units, zero_experts, factor, tau)[0])


def moe_plus_plus_shares(top_k: int, ffn_experts: int, zero_experts: int, factor: float, tau: float) -> Floats:
    """Places per token, not rounded: of an FFN expert, and of a zero-computation one (MoE++, arXiv 2410.07348, section 3)."""
    if not 0 < tau <= 1:
        raise InputError(f"capacity.tau={tau}: must be above 0 and at most 1")
    share = _above_zero(factor) * top_k / (tau * ffn_experts + _at_least("zero_experts", zero_experts, 0))
    return np.array([tau * share, share])


def _up(exact: NDArray[Any]) -> Ints:
    return np.ceil(exact * (1 - 1e-12)).astype(np.int64)


def _down(exact: NDArray[Any]) -> Ints:
    return np.floor(exact * (1 + 1e-12)).astype(np.int64)


def _to_multiple(places: Ints, key: str, multiple: int) -> Ints:
    step = _at_least(key, multiple, 1)
    return -(-places // step) * step


def _at_least(key: str, value: int, least: int) -> int:
    if value < least:
        raise InputError(f"capacity.{key}={value}: must be a whole number from {least} up")
    return value


def _above_zero(factor: float) -> float:
    if not 0 < factor < math.inf:
        raise InputError(f"capacity.factor={factor}: must be a number above 0, for example 1.25 (null: no limit)")
    return factor
