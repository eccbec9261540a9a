"""The matrices of a part: the shapes of its GEMMs, and what one GPU of a tensor group holds of it. No time, no bytes."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np

from clustersim.parts import Attention, Dense, Latent, Mamba, Mamba2, Moe, Part, Retention
from clustersim.types import InputError, Ints

_SPLIT: dict[type, tuple[str, ...]] = {         # what a tensor group shares out; all else every GPU has
    Attention: ("heads",), Latent: ("heads",), Retention: ("heads", "key_dim", "value_dim"), Mamba: ("inner",),
    Mamba2: ("inner", "heads"), Dense: ("size",), Moe: ("size", "shared_size"),
}  # fmt: skip


def gemms(part: Part, hidden: int, *, absorbed: bool = False) -> tuple[tuple[int, int], ...]:
    """Columns n and inner dimension k of the GEMMs that a token passes in a part, in order; of `Moe` those of the shared experts.

    Weights that read the same input are one GEMM. A backward pass has two of each: m x k x n for the input, n x m x k for the
    weights. `absorbed`: multi-head latent attention as it decodes, where the expansion of latents to keys and values is
    a part of queries and outputs; the heads' own small products (`per_head`) stand as one of the same weights and FLOPs.
    """
    match part:
        case Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, gated=gated):
            return ((heads * (2 if gated else 1) + 2 * kv_heads) * dim, hidden), (hidden, heads * dim)
        case Latent(heads=heads, q_rank=q_rank, kv_rank=rank, nope_dim=nope, rope_dim=rope, value_dim=value):
            query = heads * (nope + rope)
            first = [(query + rank + rope, hidden)]
            if q_rank is not None:
                first = [(q_rank + rank + rope, hidden), (query, q_rank)]
            middle = [(heads * rank, nope), (heads * value, rank)] if absorbed else [(heads * (nope + value), rank)]
            return *first, *middle, (hidden, heads * value)
        case Retention(key_dim=keys, value_dim=values, gated=gated):
            return (2 * keys + (2 if gated else 1) * values, hidden), (hidden, values)
        case Mamba(inner=inner, state=state, dt_rank=rank):
            return (2 * inner, hidden), (rank + 2 * state, inner), (inner, rank), (hidden, inner)
        case Mamba2(inner=inner, state=state, heads=heads, groups=groups):
            return (2 * inner + 2 * groups * state + heads, hidden), (hidden, inner)
        case Dense(size=size, matrices=matrices) | Moe(shared_size=size, matrices=matrices):
            return (((matrices - 1) * size, hidden), (hidden, size)) if size else ()


def entries(part: Part, hidden: int, *, absorbed: bool = False) -> tuple[tuple[int, int], ...]:
    """Of `gemms` those before scores, states or scans: all but the last, and of absorbed latents but the last two."""
    return gemms(part, hidden, absorbed=absorbed)[: -2 if absorbed and isinstance(part, Latent) else -1]


def per_head(part: Part) -> slice:
    """Which of absorbed `gemms` and `entries` every head multiplies by itself, in a batched GEMM: the expansion of latents."""
    first = 0 if not isinstance(part, Latent) else 1 if part.q_rank is None else 2
    return slice(first, first + 2 if isinstance(part, Latent) else 0)


def split(part: Part, gpus: int) -> Part:
    """What one GPU holds of a part whose heads or columns a tensor group of `gpus` shares out.

    Keys and values are shared out as far as their heads go and then repeated; MLA's latents and what reads them, the input of
    a state space and the router are on every GPU.

    Raises:
        InputError: heads or columns that the group cannot share evenly, with the nearest size of a group that can.
    """
    if gpus == 1:
        return part
    names = _SPLIT[type(part)]
    sizes = {name: int(getattr(part, name)) for name in names}
    if any(size % gpus for size in sizes.values()):
        name, size = next((name, size) for name, size in sizes.items() if size % gpus)
        common = gcd(*sizes.values())
        near = min((d for d in range(1, 4 * gpus) if common % d == 0), key=lambda d: max(d / gpus, gpus / d))
        raise InputError(
            f"parallel.tensor={gpus}: does not divide {name} = {size} of {type(part).__name__.lower()}; nearest that does: {near}"
        )
    shared: dict[str, Any] = {name: size // gpus for name, size in sizes.items()}
    if isinstance(part, Attention):
        shared["kv_heads"] = max(1, part.kv_heads // gpus)
        if shared["heads"] % shared["kv_heads"]:
            shared["kv_heads"] = gcd(shared["heads"], shared["kv_heads"])
    if isinstance(part, Mamba2):
        shared["groups"] = max(1, part.groups // gpus)
    return replace(part, **shared)


def seen(part: Part, context: Ints) -> Ints:
    """int [tokens], how many tokens each looks at, given those before it and itself: no more than an attention's window."""
    if isinstance(part, Attention) and part.window is not None:
        result: Ints = np.minimum(context, part.window)
        return result
    return context
