"""Which model of compute a run uses (`compute=`): plain functions that give the times of a layer's blocks. Plays nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from clustersim.engine import blocks, compute, tiles
from clustersim.engine.gemm import Kernels, Precision
from clustersim.gpuspec import GpuSpec
from clustersim.kernels import load_kernel
from clustersim.model import Model
from clustersim.pick import find
from clustersim.types import Floats, InputError, Ints

__all__ = ["kernels", "none", "roofline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of a layer's blocks, float [gpus] each."""

    attention: Callable[[int, Ints, Floats], Floats]            # layer, tokens [gpus], context sums [gpus]; with the router
    experts: Callable[[Ints, Ints, int], Floats]                # tokens [slots], GPU of each slot, GPUs
    shared: Callable[[Ints], Floats]                            # tokens [gpus]
    dense: Callable[[Ints], Floats]                             # tokens [gpus]


def none(model: Model, gpu: GpuSpec) -> Timing:
    """Computing takes no time: communication alone."""
    return Timing(
        attention=lambda layer, tokens, context: np.zeros(len(tokens)),
        experts=lambda tokens, gpu_of, n_gpus: np.zeros(n_gpus),
        shared=lambda tokens: np.zeros(len(tokens)),
        dense=lambda tokens: np.zeros(len(tokens)),
    )


def roofline(model: Model, gpu: GpuSpec) -> Timing:
    """The later of arithmetic and memory traffic at data-sheet peaks: a lower bound (see `compute`)."""
    return Timing(
        attention=lambda layer, tokens, context: compute.attention_seconds(model, gpu, layer, tokens, context),
        experts=lambda tokens, gpu_of, n_gpus: compute.expert_seconds(model, gpu, tokens, gpu_of, n_gpus),
        shared=lambda tokens: compute.shared_seconds(model, gpu, tokens),
        dense=lambda tokens: compute.dense_seconds(model, gpu, tokens),
    )


def kernels(
    model: Model, gpu: GpuSpec, *, tiles: str = "deepgemm_2025_07", constants: str = "gemm", sms_taken: int = 0
) -> Timing:
    """GEMMs in tiles and waves at the rates that kernels reach, and the passes over memory around them (see `blocks`).

    Every token that arrives is taken to need one expert of the GPU: those that need two pass the permutation once, not twice,
    which is less.

    Args:
        tiles: which tiles GEMMs are cut into, a function of `engine.tiles`.
        constants: file of `conf/kernel/` with the fixed costs.
        sms_taken: SMs that communication keeps to itself.

    Raises:
        InputError: an unknown rule or file, a GPU whose topology does not say what kernels ask, no SM left.
    """
    made = kernels_of(gpu, tiles, constants, sms_taken)
    hidden = model.hidden
    plain = replace(blocks.PRECISIONS[model.gemm], weight_bytes=model.weight_bytes)
    routed = replace(plain, weight_bytes=model.expert_weight_bytes)

    def experts(tokens: Ints, gpu_of: Ints, n_gpus: int) -> Floats:
        through = np.bincount(gpu_of, tokens, n_gpus).astype(np.float64)
        return blocks.expert_kernels_seconds(
            tokens, gpu_of, n_gpus, made, routed, hidden=hidden, ffn=model.expert_ffn, layout="contiguous", through=through
        )

    def ffn(size: int, precision: Precision) -> Callable[[Ints], Floats]:
        if not size:
            return lambda tokens: np.zeros(len(tokens))
        return lambda tokens: blocks.ffn_kernels_seconds(tokens, made, precision, hidden=hidden, ffn=size)

    def attention(layer: int, tokens: Ints, context: Floats) -> Floats:
        router = layer >= model.n_dense_layers
        return blocks.attention_kernels_seconds(model, made, plain, tokens, context, router=router)

    return Timing(
        attention=attention, experts=experts, shared=ffn(model.shared_ffn, routed), dense=ffn(model.dense_ffn, plain)
    )


def kernels_of(gpu: GpuSpec, rule: str, constants: str, sms_taken: int) -> Kernels:
    """The kernels of a GPU; what `kernels` says of its arguments and errors holds."""
    gpu.need_kernels()
    assert gpu.sms is not None
    if not 0 <= sms_taken < gpu.sms:
        raise InputError(f"compute.sms_taken={sms_taken}: must leave some of the {gpu.sms} SMs of {gpu.name}")
    fixed = load_kernel(constants)
    return Kernels(
        gpu=gpu, rule=find(tiles, rule, "compute.tiles"), sms=gpu.sms - sms_taken, overlap=fixed["overlap"],
        launch_s=fixed["launch"], pass_s=fixed["memory_pass"], score_share=fixed["score_share"],
    )  # fmt: skip
