"""How long a GPU computes: the roofline, block by block. Pure functions, no clock, no communication.

Every figure is an optimistic bound: data-sheet peaks with no efficiency factor, each weight read once, intermediate
results never leaving the chip. A kernel is slower, by how much is for calibration to say. A GPU without tokens
computes nothing and takes no time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.gpuspec import GpuSpec
from clustersim.model import Model
from clustersim.types import Floats, Ints


def roofline_seconds(flop_seconds: NDArray[Any], nbytes: NDArray[Any], gpu: GpuSpec) -> Floats:
    """The later of arithmetic and memory traffic (Williams et al., CACM 2009).

    Args:
        flop_seconds: [gpus] seconds of arithmetic at the peak rate.
        nbytes: [gpus] bytes between the chip and its memory.
        gpu: gives the memory bandwidth.

    Returns:
        [gpus] seconds.
    """
    seconds: Floats = np.maximum(flop_seconds, nbytes / gpu.memory_bandwidth)
    return seconds


def context_sums(model: Model, layer: int, context: Ints, source: Ints, n_gpus: int) -> Floats:
    """Pairs of (query token, token it looks at) on each GPU in `layer`; a sliding window caps every token's share.

    Args:
        model: its attention says which layers have a window.
        layer: from 0, dense layers counted.
        context: int [tokens], tokens up to and with itself in its sequence.
        source: int [tokens], GPU that holds the token.
        n_gpus: length of the result.

    Returns:
        float [gpus].
    """
    sums = np.bincount(source, weights=model.attention.layer_context(context, layer), minlength=n_gpus)
    return sums.astype(np.float64, copy=False)      # bincount without any token counts in integers


def attention_seconds(model: Model, gpu: GpuSpec, layer: int, tokens: Ints, context_sum: Floats) -> Floats:
    """Attention of one layer during prefill and, in a MoE layer, its router: optimistic bound.

    Projections run at the model's GEMM rate, scores and router at the BF16 rate. Memory: weights, activations in and
    out, and the new entries of the KV cache.

    Args:
        model: shapes and bytes per value.
        gpu: data-sheet peaks.
        layer: from 0, dense layers counted.
        tokens: int [gpus].
        context_sum: float [gpus], what `context_sums` gives for this layer.

    Returns:
        float [gpus] seconds.
    """
    router = model.router_params if layer >= model.n_dense_layers else 0
    flop_seconds = 2.0 * model.attention_params * tokens / gpu.peak_flops(model.gemm)
    flop_seconds += (2.0 * router * tokens + float(model.score_flops) * context_sum) / gpu.bf16_flops
    nbytes = (model.attention_params + router) * model.weight_bytes * (tokens > 0)
    nbytes += tokens * (2.0 * model.hidden + model.attention.kv_values) * model.activation_bytes
    return roofline_seconds(flop_seconds, nbytes, gpu)


def expert_seconds(model: Model, gpu: GpuSpec, tokens_per_slot: Ints, gpu_of: Ints, n_gpus: int) -> Floats:
    """The grouped GEMMs of the experts of one layer: optimistic bound.

    One roofline per GPU, over all its slots: FLOPs of all its tokens; bytes of the weights of every slot that has a
    token, and of the activations as they arrive (`dispatch_bytes`) and leave (`combine_bytes`).

    Args:
        model: shapes and bytes per value.
        gpu: data-sheet peaks.
        tokens_per_slot: int [slots], tokens each slot works on; a token at two experts counts at both.
        gpu_of: int [slots], GPU that holds the slot.
        n_gpus: length of the result.

    Returns:
        float [gpus] seconds.
    """
    tokens = np.bincount(gpu_of, weights=tokens_per_slot, minlength=n_gpus)
    used = np.bincount(gpu_of, weights=tokens_per_slot > 0, minlength=n_gpus)
    weights = used * model.expert_params * model.expert_weight_bytes
    activations = tokens * (model.dispatch_token_bytes + model.combine_token_bytes)
    return roofline_seconds(2.0 * model.expert_params * tokens / gpu.peak_flops(model.gemm), weights + activations, gpu)


def shared_seconds(model: Model, gpu: GpuSpec, tokens: Ints) -> Floats:
    """The shared experts of one MoE layer over a GPU's own tokens, float [gpus] seconds: optimistic bound; 0 without any.

    Args:
        model: shapes and bytes per value.
        gpu: data-sheet peaks.
        tokens: int [gpus].
    """
    if not model.shared_params:
        return np.zeros(len(tokens))
    return _ffn_seconds(model, gpu, tokens, model.shared_params, model.expert_weight_bytes)


def dense_seconds(model: Model, gpu: GpuSpec, tokens: Ints) -> Floats:
    """The FFN of one dense layer, float [gpus] seconds: optimistic bound; 0 for a model without dense layers.

    Args:
        model: shapes and bytes per value.
        gpu: data-sheet peaks.
        tokens: int [gpus].
    """
    if not model.n_dense_layers:
        return np.zeros(len(tokens))
    return _ffn_seconds(model, gpu, tokens, model.dense_params, model.weight_bytes)


def _ffn_seconds(model: Model, gpu: GpuSpec, tokens: Ints, params: int, bytes_per_weight: float) -> Floats:
    nbytes = params * bytes_per_weight * (tokens > 0) + tokens * 2.0 * model.hidden * model.activation_bytes
    return roofline_seconds(2.0 * params * tokens / gpu.peak_flops(model.gemm), nbytes, gpu)
