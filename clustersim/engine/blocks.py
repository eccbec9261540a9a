"""How long the blocks of a layer take in real kernels: GEMMs, and the passes over memory around them. No clock, no traffic.

Left out, because kernels fuse them or they are small beside the GEMMs: norms, rotary embedding, residual additions, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.engine.gemm import Kernels, Precision, dense_gemm_seconds, grouped_seconds
from clustersim.model import Model
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
    through: Floats, buffered: Floats | None = None,
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
        buffered: float [gpus], rows of scales that are turned in `masked`: those of the whole buffer; None: those in use.

    Returns:
        float [gpus] seconds; 0 where nothing is to be done.

    Source: sgl-project/sglang, srt/layers/moe/moe_runner/deep_gemm.py and ep_moe/kernels.py (`ep_scatter`, `ep_gather`).
    """
    used: Floats = np.bincount(owner, rows, n_gpus).astype(np.float64)
    busy = (used > 0) | (through > 0)
    seconds = np.zeros(n_gpus)
    for n, k in ((2 * ffn, hidden), (hidden, ffn)):
        gemm = grouped_seconds(rows, owner, n_gpus, n, k, layout=layout, precision=precision, kernels=kernels)
        seconds += gemm + kernels.launch_s * (used > 0)
    narrow, wide = precision.activation_bytes, 2.0
    quantised = narrow < wide
    turned = used if buffered is None else buffered
    count, nbytes = 0, np.zeros(n_gpus)
    if precision.scaled:
        count, nbytes = count + 2, nbytes + turned * (hidden + ffn) / SCALED * 4 * 2
    if layout == "masked":
        count, nbytes = count + 1, nbytes + used * ffn * (2 * wide + narrow)
    else:
        scatter, silu = through * hidden * narrow + used * hidden * narrow, used * ffn * 3 * wide
        quantise = used * ffn * (wide + narrow) if quantised else 0.0
        gather = used * hidden * wide + through * hidden * wide
        count, nbytes = count + 3 + quantised, nbytes + scatter + silu + quantise + gather
    return seconds + _passes(kernels, count, nbytes, busy)


def ffn_kernels_seconds(rows: Ints, kernels: Kernels, precision: Precision, *, hidden: int, ffn: int) -> Floats:
    """A gated FFN over a GPU's own tokens (shared experts, dense layers), float [gpus] seconds; rows int [gpus]."""
    narrow, wide = precision.activation_bytes, 2.0
    quantised = narrow < wide
    nbytes = rows * ffn * 3 * wide + quantised * rows * (hidden + ffn) * (wide + narrow)
    gemms: Floats = _gemm(kernels, rows, 2 * ffn, hidden, precision) + _gemm(kernels, rows, hidden, ffn, precision)
    return gemms + _passes(kernels, 1 + 2 * quantised, nbytes, rows > 0)


def attention_kernels_seconds(
    model: Model, kernels: Kernels, precision: Precision, tokens: Ints, context_sum: Floats, *, router: bool
) -> Floats:
    """Attention of one layer in prefill, and its router (gate GEMM, BF16): float [gpus] seconds.

    Args:
        tokens: int [gpus].
        context_sum: float [gpus], pairs of a token and one that it looks at (`compute.context_sums`).
        router: whether the layer has one.
    """
    narrow, wide = precision.activation_bytes, 2.0
    shapes = projections(model)
    seconds = np.zeros(len(tokens))
    for n, k in shapes:
        seconds = seconds + _gemm(kernels, tokens, n, k, precision)
    if narrow < wide:
        nbytes = tokens * float(sum(k for _, k in shapes)) * (wide + narrow)
        seconds = seconds + _passes(kernels, len(shapes), nbytes, tokens > 0)
    left = kernels.sms / (kernels.gpu.sms or kernels.sms)
    scores = model.score_flops * context_sum / (kernels.gpu.bf16_flops * kernels.score_share * left)
    seconds = seconds + np.where(tokens > 0, scores + kernels.launch_s, 0.0)
    if router:
        seconds = seconds + _gemm(kernels, tokens, model.n_experts, model.hidden, PRECISIONS["bf16"])
    return seconds


def projections(model: Model) -> Sequence[tuple[int, int]]:
    """Columns and inner dimension of the GEMMs around the scores; weights that read the same input are one GEMM."""
    a = model.attention
    if a.kind == "gqa":
        assert a.head_dim is not None
        assert a.kv_heads is not None
        return ((a.heads + 2 * a.kv_heads) * a.head_dim, model.hidden), (model.hidden, a.heads * a.head_dim)
    rank, nope, rope, value = a.latent
    query = a.heads * (nope + rope)
    first = [(query + rank + rope, model.hidden)]
    if a.q_lora_rank is not None:
        first = [(a.q_lora_rank + rank + rope, model.hidden), (query, a.q_lora_rank)]
    return *first, (a.heads * (nope + value), rank), (model.hidden, a.heads * value)


def _gemm(kernels: Kernels, rows: Ints, n: int, k: int, precision: Precision) -> Floats:
    """One dense GEMM, its launch included; rows int [gpus]."""
    return dense_gemm_seconds(rows, n, k, precision=precision, kernels=kernels) + kernels.launch_s * (rows > 0)


def _passes(kernels: Kernels, count: int, nbytes: NDArray[Any], busy: NDArray[Any]) -> Floats:
    """`count` kernels that move `nbytes` [gpus] in all, where `busy`."""
    assert kernels.gpu.memory_achieved is not None
    result: Floats = np.where(busy, count * kernels.pass_s + nbytes / kernels.gpu.memory_achieved, 0.0)
    return result
