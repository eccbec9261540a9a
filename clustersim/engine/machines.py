"""How long the products and moves of training take on a GPU, for each `compute=`. Plain functions; knows no layer.

Every function takes and gives arrays over GPUs. The products of weights and activations run at `model.gemm`'s rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.engine import blocks
from clustersim.engine.gemm import Kernels, Precision, dense_gemm_seconds, grouped_seconds
from clustersim.engine.tiles import CONTIGUOUS_ROWS
from clustersim.engine.timing import kernels_of
from clustersim.gpuspec import GpuSpec
from clustersim.kernels import Kernel, load_kernel
from clustersim.types import Ints

Values = NDArray[Any]       # numbers of GPUs

WIDE = 2.0              # bytes of a value between kernels: BF16
GRADIENT = 4.0          # bytes of a gradient that is added up: FP32
SCALINGS = {            # of FP8: what shares a scale
    "block": blocks.PRECISIONS["fp8"],                                          # 128 values, 128 x 128 weights (arXiv 2412.19437)
    "tensor": Precision(rate="fp8", activation_bytes=1.0, weight_bytes=1.0, one_scale=True),    # all of an operand, as it is now
    "mx": blocks.PRECISIONS["mxfp8"],                                           # 32 values, applied by the tensor cores
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Seconds on each GPU, float [gpus]."""

    product: Callable[[Ints, int, int], Values]             # rows [gpus], columns, inner dimension
    weight_product: Callable[[Ints, int, int], Values]      # the gradient of those weights
    grouped: Callable[[Ints, Ints, int, int, int], Values]  # rows [slots], GPU of each, GPUs, columns, inner dimension
    grouped_weight: Callable[[Ints, Ints, int, int, int], Values]
    mixing: Callable[[Values, bool, float], Values]         # FLOPs of scores or of a scan, whether back, width of a head
    move: Callable[[int | Values, Values], Values]          # kernels, bytes through memory


def none() -> Machine:
    """Computing takes no time."""
    return Machine(
        product=lambda rows, n, k: np.zeros(rows.size),
        weight_product=lambda rows, n, k: np.zeros(rows.size),
        grouped=lambda rows, owner, n_gpus, n, k: np.zeros(n_gpus),
        grouped_weight=lambda rows, owner, n_gpus, n, k: np.zeros(n_gpus),
        mixing=lambda flops, back, width: np.zeros(flops.size),
        move=lambda count, nbytes: np.zeros(nbytes.size),
    )


def roofline(gpu: GpuSpec, gemm: str) -> Machine:
    """Every product at the data sheet's rate or at its memory's, whichever is later; nothing else takes time: a lower bound."""
    precision, peak = blocks.PRECISIONS[gemm], gpu.peak_flops(gemm)

    def product(rows: Ints, n: int, k: int) -> Values:
        nbytes = rows * (k * precision.activation_bytes + n * 2.0) + (rows > 0) * float(n * k) * precision.weight_bytes
        seconds: Values = np.maximum(2.0 * rows * n * k / peak, nbytes / gpu.memory_bandwidth)
        return seconds

    def weight_product(rows: Ints, n: int, k: int) -> Values:
        nbytes = rows * float(n + k) * precision.activation_bytes + (rows > 0) * float(n * k) * GRADIENT
        seconds: Values = np.maximum(2.0 * rows * n * k / peak, nbytes / gpu.memory_bandwidth)
        return seconds

    def summed(one: Callable[[Ints, int, int], Values]) -> Callable[[Ints, Ints, int, int, int], Values]:
        return lambda rows, owner, n_gpus, n, k: np.bincount(owner, one(rows, n, k), n_gpus)

    return Machine(
        product=product, weight_product=weight_product, grouped=summed(product), grouped_weight=summed(weight_product),
        mixing=lambda flops, back, width: flops / gpu.bf16_flops, move=lambda count, nbytes: np.zeros(nbytes.size),
    )  # fmt: skip


def kernels(
    gpu: GpuSpec, gemm: str, tiles: str, constants: str, sms_taken: int, framework: str | None = None, scaling: str = "block"
) -> Machine:
    """Products in tiles and waves, passes over memory at the rate that streaming reaches (see `gemm`, `blocks`).

    Args:
        framework: file of `conf/kernel` with the share of the achieved rates that its GEMMs keep up inside a step; None: all.
        scaling: one of `SCALINGS`, of FP8.
    """
    made = kernels_of(gpu, tiles, constants, sms_taken)
    precision = precision_of(gemm, scaling)
    if framework is not None:
        made = replace(made, gpu=_kept_up(gpu, framework, scaling))
        gpu = made.gpu
    assert gpu.sms is not None
    assert gpu.memory_achieved is not None
    left = made.sms / gpu.sms
    bandwidth, fixed = gpu.memory_achieved, load_kernel(constants)

    def product(rows: Ints, n: int, k: int) -> Values:
        seconds: Values = dense_gemm_seconds(rows, n, k, precision=precision, kernels=made) + made.launch_s * (rows > 0)
        if precision.rate != "bf16":                # what goes in is quantised first
            seconds = seconds + _quantised(made, rows, k, precision, scaling)
        return seconds

    def weight_product(rows: Ints, n: int, k: int) -> Values:
        seconds: Values = _weight(made, precision, rows, n, k, left) + made.launch_s * (rows > 0)
        return seconds + _turned(made, rows, n, k, precision, scaling)

    def grouped(rows: Ints, owner: Ints, n_gpus: int, n: int, k: int) -> Values:
        seconds: Values = grouped_seconds(rows, owner, n_gpus, n, k, layout="contiguous", precision=precision, kernels=made)
        used: Ints = np.bincount(owner, rows, n_gpus).astype(np.int64)
        if precision.rate != "bf16":                # what every expert works on is quantised by itself
            slots: Ints = np.bincount(owner, rows > 0, n_gpus).astype(np.int64)
            seconds = seconds + _quantised(made, used, k, precision, scaling, slots)
        launched: Values = seconds + made.launch_s * (used > 0)
        return launched

    def grouped_weight(rows: Ints, owner: Ints, n_gpus: int, n: int, k: int) -> Values:
        padded = -(-rows // CONTIGUOUS_ROWS) * CONTIGUOUS_ROWS
        used: Ints = np.bincount(owner, rows, n_gpus).astype(np.int64)
        each = _weight(made, precision, padded, n, k, left) + made.launch_s * (rows > 0)
        return _turned(made, used, n, k, precision, scaling) + np.bincount(owner, each, n_gpus)

    def mixing(flops: Values, back: bool, width: float) -> Values:
        rate = gpu.bf16_flops * _score_share(fixed, back, width) * left
        return np.where(flops > 0, flops / rate + made.launch_s, 0.0)

    return Machine(
        product=product, weight_product=weight_product, grouped=grouped, grouped_weight=grouped_weight,
        mixing=mixing, move=lambda count, nbytes: np.where(nbytes > 0, count * made.pass_s + nbytes / bandwidth, 0.0),
    )  # fmt: skip


def _score_share(fixed: Kernel, back: bool, width: float) -> float:
    """Of the BF16 peak what attention's scores reach with heads of `width`: each score has an exponential, however wide they are.

    Going back has five products for an exponential where the way forward has two. Heads wider than those that a share was found
    with are given no more of it.
    """
    share, found, weighs = fixed["score_share"], fixed["score_width"], fixed["score_exponential"]
    if back:
        share, found, weighs = fixed["score_back_share"], fixed["score_back_width"], weighs / 2.5
    width = min(width, found)
    return share * width / (width + weighs) * (found + weighs) / found


def precision_of(gemm: str, scaling: str) -> Precision:
    """What operands weigh: FP8 in its scaling, others as they are."""
    return SCALINGS[scaling] if gemm == "fp8" else blocks.PRECISIONS[gemm]


def _kept_up(gpu: GpuSpec, framework: str, scaling: str) -> GpuSpec:
    """Blocks of 128 are scaled by the SMs on GPUs without FP4 units, which costs FP8 more; else it keeps up as much as BF16."""
    share = load_kernel(framework)
    fp8_share = share["fp8_share" if scaling == "block" and gpu.fp4_flops is None else "bf16_share"]
    return replace(
        gpu, bf16_achieved=_given(gpu.bf16_achieved) * share["bf16_share"],
        fp8_achieved=None if gpu.fp8_achieved is None else gpu.fp8_achieved * fp8_share,
        fp4_achieved=None if gpu.fp4_achieved is None else gpu.fp4_achieved * share["bf16_share"],
    )  # fmt: skip


def _given(value: float | None) -> float:
    assert value is not None, "GpuSpec.need_kernels was not asked"
    return value


def _weight(made: Kernels, precision: Precision, rows: Ints, n: int, k: int, left: float) -> Values:
    """The gradient of n x k weights from `rows` tokens: arithmetic of whole tiles, or memory; it is added to the one there."""
    gpu = made.gpu
    assert gpu.memory_achieved is not None
    tiles = -(-n // 128) * -(-k // 128)
    waves = -(-tiles // made.sms) * made.sms / tiles         # the last wave is not full
    flops = 2.0 * rows * n * k * waves / (gpu.achieved_flops(precision.rate) * left)
    nbytes = rows * float(n + k) * precision.activation_bytes + (rows > 0) * float(n * k) * 2 * GRADIENT
    seconds: Values = np.maximum(flops, nbytes / gpu.memory_achieved)
    return seconds


def _turned(made: Kernels, rows: Ints, n: int, k: int, precision: Precision, scaling: str) -> Values:
    """Both operands of a gradient of weights with scales along the tokens: what was kept and what came back, rewritten.

    Source: arXiv 2412.19437 §3.3.2: 1 x 128 tiles of the way forward become 128 x 1 tiles on the way back. Other scalings write
    both forms when they quantise.
    """
    if precision.rate == "bf16" or scaling != "block":
        return np.zeros(rows.size)
    assert made.gpu.memory_achieved is not None
    moved = rows * (k * 2 * precision.activation_bytes + n * (WIDE + precision.activation_bytes))
    return np.where(rows > 0, 2 * made.pass_s + moved / made.gpu.memory_achieved, 0.0)


def _quantised(
    made: Kernels, rows: Ints, k: int, precision: Precision, scaling: str, tensors: int | Ints = 1
) -> Values:
    """Values read and written in FP8: once, or by rows and by columns; a scale of the whole is found by reading them before.

    A kernel for each tensor; of a scale of the whole three, of which one makes the scale.

    Source: github:NVIDIA/TransformerEngine pytorch/csrc (`split_quantize`, `Float8CurrentScalingQuantizer::quantize_impl`).
    """
    assert made.gpu.memory_achieved is not None
    read, written, each = (2 if scaling == "tensor" else 1), (1 if scaling == "block" else 2), (3 if scaling == "tensor" else 1)
    moved = rows * k * (read * WIDE + written * precision.activation_bytes)
    return np.where(rows > 0, each * tensors * made.pass_s + moved / made.gpu.memory_achieved, 0.0)
