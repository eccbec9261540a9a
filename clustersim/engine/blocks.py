"""How long the blocks of a layer take in real kernels: GEMMs, and the passes over memory around them. No clock, no traffic.

Left out, because it is small beside the GEMMs: sampling, and the norms inside of multi-head latent attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.engine.compute import cache_traffic, mixing_flops
from clustersim.engine.gemm import Kernels, Precision, dense_gemm_seconds, grouped_seconds
from clustersim.matrices import entries, gemms, per_head
from clustersim.parts import Attention, Latent, Mamba, Mamba2, Part, Retention
from clustersim.types import Floats, Ints

SCALED = 128            # values of an activation that share a scale, in FP8
PRECISIONS = {          # per value with scales: FP8 of blocks (DeepSeek-V3), MXFP8, NVFP4
    "bf16": Precision(rate="bf16", activation_bytes=2.0, weight_bytes=2.0),
    "fp8": Precision(rate="fp8", activation_bytes=1 + 4 / SCALED, weight_bytes=1 + 4 / SCALED**2),
    "mxfp8": Precision(rate="fp8", activation_bytes=1 + 1 / 32, weight_bytes=1 + 1 / 32),
    "fp4": Precision(rate="fp4", activation_bytes=0.5 + 1 / 16, weight_bytes=0.5 + 1 / 16),
}


def expert_kernels_seconds(
    rows: Ints, owner: Ints, n_gpus: int, kernels: Kernels, precision: Precision, *, hidden: int, ffn: int, layout: str,
    through: Floats, buffered: Floats | None = None, matrices: int = 3,
) -> Floats:  # fmt: skip
    """The routed experts of one layer on each GPU: permute, gate and up, activation, down, unpermute.

    As SGLang runs them with DeepGEMM. `contiguous` (prefill): arrived tokens are scattered to their experts' rows, SiLU and
    quantisation are a pass each, and every token that came gathers its experts' rows. `masked` (decode): rows arrive where
    they belong, one fused pass between the GEMMs. FP8 activation scales are turned to columns before either GEMM.

    Args:
        rows: int [slots], tokens each expert works on.
        owner: int [slots], GPU that holds it.
        n_gpus: length of the result.
        precision: of both GEMMs.
        hidden, ffn: shape of an expert.
        layout: `contiguous` or `masked`.
        through: float [gpus], tokens that arrived: read once, and written once at the end.
        matrices: 3 gated; 2 not: gate is left out.
        buffered: float [gpus], rows of scales that are turned in `masked`: those of the whole buffer; None: those in use.

    Returns:
        float [gpus] seconds; 0 where nothing is to be done.

    Source: sgl-project/sglang, srt/layers/moe/moe_runner/deep_gemm.py and ep_moe/kernels.py (`ep_scatter`, `ep_gather`).
    """
    used: Floats = np.bincount(owner, rows, n_gpus).astype(np.float64)
    busy = (used > 0) | (through > 0)
    seconds = np.zeros(n_gpus)
    for n, k in (((matrices - 1) * ffn, hidden), (hidden, ffn)):
        gemm = grouped_seconds(rows, owner, n_gpus, n, k, layout=layout, precision=precision, kernels=kernels)
        seconds += gemm + kernels.launch_s * (used > 0)
    narrow, wide = precision.activation_bytes, 2.0
    quantised = narrow < wide
    turned = used if buffered is None else buffered
    count, nbytes = 0, np.zeros(n_gpus)
    if precision.scaled:
        count, nbytes = count + 2, nbytes + turned * (hidden + ffn) / SCALED * 4 * 2
    if layout == "masked":
        count, nbytes = count + 1, nbytes + used * ffn * ((matrices - 1) * wide + narrow)
    else:
        scatter, silu = through * hidden * narrow + used * hidden * narrow, used * ffn * matrices * wide
        quantise = used * ffn * (wide + narrow) if quantised else 0.0
        gather = used * hidden * wide + through * hidden * wide
        count, nbytes = count + 3 + quantised, nbytes + scatter + silu + quantise + gather
    return seconds + _passes(kernels, count, nbytes, busy)


def ffn_kernels_seconds(
    rows: Ints, kernels: Kernels, precision: Precision, *, hidden: int, ffn: int, matrices: int = 3
) -> Floats:
    """An FFN over a GPU's own tokens (shared experts, dense layers), float [gpus] seconds; rows int [gpus]."""
    narrow, wide = precision.activation_bytes, 2.0
    quantised = narrow < wide
    nbytes = rows * ffn * matrices * wide + quantised * rows * (hidden + ffn) * (wide + narrow)
    both: Floats = _gemm(kernels, rows, (matrices - 1) * ffn, hidden, precision) + _gemm(kernels, rows, hidden, ffn, precision)
    return both + _passes(kernels, 1 + 2 * quantised, nbytes, rows > 0)


def mixer_kernels_seconds(
    part: Part, hidden: int, kernels: Kernels, precision: Precision, tokens: Ints, context_sum: Floats, *, decode: bool,
    cached: Floats, sequences: Ints, cache_bytes: float,
) -> Floats:  # fmt: skip
    """A mixer of one layer, its projections included: float [gpus] seconds.

    Decoding, attention takes the longer of its arithmetic and of streaming what it looks at, and two passes: a tile of queries is
    read before and its output written behind, and what parts of a long cache make is added up. The expansion of latents is not
    quantised: engines multiply it in BF16, head by head. States are read and written.
    Prefill of a state space is the longer of its arithmetic and of two passes over its channels, a convolution and a scan.

    Args:
        tokens: int [gpus].
        context_sum: float [gpus], pairs of a token and one that it looks at (`compute.context_sums`).
        decode, cached, sequences: as in `compute.part_seconds`.
        cache_bytes: per value that is cached.
    """
    wide = 2.0
    seconds = _multiplied(part, gemms(part, hidden, absorbed=decode), tokens, kernels, precision, decode)
    if rotated := _rotated(part, decode):
        seconds = seconds + _passes(kernels, 1, tokens * rotated * wide, tokens > 0)
    assert kernels.gpu.memory_achieved is not None
    left = (kernels.free or kernels.sms) / (kernels.gpu.sms or kernels.sms)
    rate = kernels.gpu.bf16_flops * kernels.score_share * left
    scores = mixing_flops(part, tokens, context_sum, decode=decode) / rate
    if decode:
        scores = np.maximum(scores, cache_traffic(part, cached, sequences) * cache_bytes / kernels.gpu.memory_achieved)
    if isinstance(part, Attention | Latent):
        around = _passes(kernels, 2, tokens * _asked(part) * wide, tokens > 0) if decode else kernels.launch_s
        return seconds + np.where(tokens > 0, scores + around, 0.0)
    streamed = tokens * float(_channels(part)) * wide / kernels.gpu.memory_achieved
    mixed: Floats = seconds + np.where(tokens > 0, np.maximum(scores, streamed) + 2 * kernels.pass_s, 0.0)
    return mixed


def entry_kernels_seconds(
    part: Part, hidden: int, kernels: Kernels, precision: Precision, tokens: Ints, *, decode: bool
) -> Floats:
    """What of `mixer_kernels_seconds` stands before scores, states or scans: products on the way in, and what rotates them."""
    seconds = _multiplied(part, entries(part, hidden, absorbed=decode), tokens, kernels, precision, decode)
    if rotated := _rotated(part, decode):
        seconds = seconds + _passes(kernels, 1, tokens * rotated * 2.0, tokens > 0)
    return seconds


def _multiplied(
    part: Part, shapes: Sequence[tuple[int, int]], tokens: Ints, kernels: Kernels, precision: Precision, decode: bool
) -> Floats:
    """Products of a mixer, those of every head by itself in BF16: each reads inputs of its own."""
    if not (decode and isinstance(part, Latent)):
        return _products(shapes, tokens, kernels, precision)
    own = per_head(part)
    seconds = _products([*shapes[: own.start], *shapes[own.stop :]], tokens, kernels, precision)
    assert kernels.gpu.memory_achieved is not None
    for n, k in shapes[own]:
        others = tokens * ((part.heads - 1) * k * 2.0) / kernels.gpu.memory_achieved        # `_gemm` reads k values of a token
        seconds = seconds + _gemm(kernels, tokens, n, k, PRECISIONS["bf16"]) + others
    return seconds


def _products(shapes: Sequence[tuple[int, int]], tokens: Ints, kernels: Kernels, precision: Precision) -> Floats:
    """GEMMs of these columns and inner dimensions one after the other, each with the pass that quantises its input."""
    narrow, wide = precision.activation_bytes, 2.0
    seconds = np.zeros(len(tokens))
    for n, k in shapes:
        seconds = seconds + _gemm(kernels, tokens, n, k, precision)
    if narrow < wide:
        nbytes = tokens * float(sum(k for _, k in shapes)) * (wide + narrow)
        seconds = seconds + _passes(kernels, len(shapes), nbytes, tokens > 0)
    return seconds


def _rotated(part: Part, decode: bool) -> float:
    """Values per token that a pass moves between projections and scores: rotary embedding, and MLA's keys put together.

    Expanded keys of MLA have a part without position, per head, and one with it, for all heads (`forward_normal` of SGLang's
    deepseek_v2.py copies both into one tensor).
    """
    match part:
        case Attention(heads=heads, kv_heads=kv_heads, head_dim=dim):
            return 2.0 * (heads + kv_heads) * dim
        case Latent(heads=heads, nope_dim=nope, rope_dim=rope):
            keys = 0.0 if decode else heads * (2.0 * nope + rope)
            return 2.0 * (heads + 1) * rope + keys
        case _:
            return 0.0


def _asked(part: Attention | Latent) -> float:
    """Values per token that attention is given as queries, and makes, while it decodes."""
    match part:
        case Attention(heads=heads, head_dim=dim):
            return 2.0 * heads * dim
        case Latent(heads=heads, kv_rank=rank, rope_dim=rope):
            return float(heads * (2 * rank + rope))


def residual_kernel_seconds(hidden: int, tokens: Ints, kernels: Kernels) -> Floats:
    """What goes before a part of a layer, one kernel: its input and the residual stream are read, sum and norm are written."""
    return _passes(kernels, 1, tokens * (4.0 * hidden * 2.0), tokens > 0)


def _channels(part: Part) -> int:
    """Values per token that the convolution and the scan of a state space, or a retention, read and write."""
    match part:
        case Mamba(inner=inner, state=state):
            return 2 * inner + 4 * inner + 2 * state                # convolved; then x, step, gate, out, and both projections
        case Mamba2(inner=inner, state=state, heads=heads, groups=groups):
            return 2 * (inner + 2 * groups * state) + 3 * inner + 2 * groups * state + heads
        case Retention(key_dim=keys, value_dim=values, gated=gated):
            return 2 * keys + (3 if gated else 2) * values
        case _:
            raise AssertionError(f"{type(part).__name__} keeps no state")


def matrix_kernel_seconds(n: int, k: int, rows: Ints, kernels: Kernels) -> Floats:
    """One dense GEMM in BF16 (router, unembedding), its launch included: float [gpus] seconds; rows int [gpus]."""
    return _gemm(kernels, rows, n, k, PRECISIONS["bf16"])


def _gemm(kernels: Kernels, rows: Ints, n: int, k: int, precision: Precision) -> Floats:
    """One dense GEMM, its launch included; rows int [gpus]."""
    return dense_gemm_seconds(rows, n, k, precision=precision, kernels=kernels) + kernels.launch_s * (rows > 0)


def _passes(kernels: Kernels, count: int, nbytes: NDArray[Any], busy: NDArray[Any]) -> Floats:
    """`count` kernels that move `nbytes` [gpus] in all, where `busy`."""
    assert kernels.gpu.memory_achieved is not None
    result: Floats = np.where(busy, count * kernels.pass_s + nbytes / kernels.gpu.memory_achieved, 0.0)
    return result
