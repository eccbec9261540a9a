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
from clustersim.matrices import entries, seen
from clustersim.model import Model
from clustersim.parts import Attention, Dense, Latent, Moe, Part
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


def context_sums(part: Part, context: Ints, source: Ints, n_gpus: int) -> Floats:
    """Pairs of (query token, token it looks at) on each GPU in a part; a sliding window caps every token's share.

    Args:
        context: int [tokens], tokens up to and with itself in its sequence.
        source: int [tokens], GPU that holds the token.
        n_gpus: length of the result.

    Returns:
        float [gpus].
    """
    sums = np.bincount(source, weights=seen(part, context), minlength=n_gpus)
    return sums.astype(np.float64, copy=False)      # bincount without any token counts in integers


def passing(part: Part, tokens: Ints) -> Ints:
    """int [gpus], how many of a GPU's tokens pass a part: all, or with Mixture-of-Depths their share, rounded."""
    share = part.share if isinstance(part, Dense) else 1.0
    result: Ints = np.rint(tokens * share).astype(np.int64)
    return result


def mixing_flops(part: Part, tokens: Ints, context_sum: Floats, *, decode: bool) -> Floats:
    """FLOPs [gpus] of a mixer beyond its matrices: by pairs in attention, by tokens where a state is kept."""
    each = part.mixing_flops(1.0, decode)
    result: Floats = each * (context_sum if isinstance(part, Attention | Latent) else tokens.astype(np.float64))
    return result


def cache_traffic(part: Part, cached: Floats, sequences: Ints) -> Floats:
    """Values [gpus] that decoding moves of what is kept: keys and values of every token once, states there and back."""
    if isinstance(part, Attention | Latent):
        result: Floats = part.cached(1.0) * cached
        return result
    return np.asarray(2.0 * part.cached(1.0) * sequences, np.float64)


def part_seconds(
    part: Part, hidden: int, model: Model, gpu: GpuSpec, tokens: Ints, context_sum: Floats, *, decode: bool, cached: Floats,
    sequences: Ints,
) -> Floats:  # fmt: skip
    """A mixer or a dense FFN over a GPU's own tokens: optimistic bound.

    Matrices run at the model's GEMM rate, what they mix at the BF16 rate. Memory: weights, activations in and out, new
    entries of the cache and, decoding, all that the tokens look at.

    Args:
        hidden: width of the stack.
        model: bytes per value and the rate.
        tokens: int [gpus].
        context_sum: float [gpus], what `context_sums` gives for this part.
        decode: multi-head latent attention works on the latents themselves, and what is cached is read.
        cached: float [gpus], tokens in the caches of the GPU's sequences, as far as the part looks back.
        sequences: int [gpus].

    Returns:
        float [gpus] seconds; 0 without tokens.
    """
    assert not isinstance(part, Moe), "experts have times of their own"
    rows = passing(part, tokens)
    flop_seconds = 2.0 * part.params(hidden) * rows / gpu.peak_flops(model.gemm)
    flop_seconds += mixing_flops(part, tokens, context_sum, decode=decode) / gpu.bf16_flops
    kept = part.cached(1.0) if isinstance(part, Attention | Latent) else 0.0
    nbytes = part.params(hidden) * model.weight_bytes * (rows > 0)
    nbytes += rows * 2.0 * hidden * model.activation_bytes + tokens * kept * model.cache_bytes
    if decode:
        nbytes += cache_traffic(part, cached, sequences) * model.cache_bytes
    return roofline_seconds(flop_seconds, nbytes, gpu)


def entry_seconds(part: Part, hidden: int, model: Model, gpu: GpuSpec, tokens: Ints, *, decode: bool) -> Floats:
    """What of a mixer's bound stands before its scores, states or scans: its products on the way in, float [gpus] seconds."""
    params = float(sum(n * k for n, k in entries(part, hidden, absorbed=decode)))
    return roofline_seconds(2.0 * params * tokens / gpu.peak_flops(model.gemm), params * model.weight_bytes * (tokens > 0), gpu)


def matrix_seconds(n: int, k: int, rows: Ints, weight_bytes: float, model: Model, gpu: GpuSpec) -> Floats:
    """rows [gpus] x k times k x n at the BF16 rate (router, unembedding): optimistic bound, float [gpus]."""
    nbytes = float(n * k) * weight_bytes * (rows > 0) + rows * float(n + k) * model.activation_bytes
    return roofline_seconds(2.0 * n * k * rows / gpu.bf16_flops, nbytes, gpu)


def expert_seconds(model: Model, gpu: GpuSpec, tokens_per_slot: Ints, gpu_of: Ints, n_gpus: int, tensor: int = 1) -> Floats:
    """The grouped GEMMs of the experts of one layer: optimistic bound.

    One roofline per GPU, over all its slots: FLOPs of all its tokens; bytes of the weights of every slot that has a
    token, and of the activations as they arrive (`dispatch_bytes`) and leave (`combine_bytes`).

    Args:
        model: shapes and bytes per value.
        gpu: data-sheet peaks.
        tokens_per_slot: int [slots], tokens each slot works on; a token at two experts counts at both.
        gpu_of: int [slots], GPU that holds the slot.
        n_gpus: length of the result.
        tensor: GPUs that share the columns of an expert.

    Returns:
        float [gpus] seconds.
    """
    tokens = np.bincount(gpu_of, weights=tokens_per_slot, minlength=n_gpus)
    used = np.bincount(gpu_of, weights=tokens_per_slot > 0, minlength=n_gpus)
    params = model.expert_params / tensor
    weights = used * params * model.expert_weight_bytes
    activations = tokens * (model.dispatch_token_bytes + model.combine_token_bytes)
    return roofline_seconds(2.0 * params * tokens / gpu.peak_flops(model.gemm), weights + activations, gpu)


def shared_seconds(model: Model, gpu: GpuSpec, tokens: Ints, tensor: int = 1) -> Floats:
    """The shared experts of one MoE layer over a GPU's own tokens, float [gpus] seconds: optimistic bound; 0 without any.

    Args:
        model: shapes and bytes per value.
        gpu: data-sheet peaks.
        tokens: int [gpus].
        tensor: GPUs that share their columns.
    """
    params = model.shared_params / tensor
    if not params:
        return np.zeros(len(tokens))
    nbytes = params * model.expert_weight_bytes * (tokens > 0) + tokens * 2.0 * model.hidden * model.activation_bytes
    return roofline_seconds(2.0 * params * tokens / gpu.peak_flops(model.gemm), nbytes, gpu)
