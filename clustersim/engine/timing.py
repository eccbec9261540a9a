"""Which model of compute a run uses (`compute=`): plain functions that give the times of a layer's parts. Plays nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from clustersim.engine import blocks, compute, tiles
from clustersim.engine.gemm import Kernels
from clustersim.gpuspec import GpuSpec
from clustersim.kernels import load_kernel
from clustersim.matrices import split
from clustersim.model import Model
from clustersim.parts import Dense, Part
from clustersim.pick import find
from clustersim.types import Floats, InputError, Ints

__all__ = ["kernels", "none", "roofline"]


class PartSeconds(Protocol):
    """Seconds of a mixer or a dense FFN on every GPU, float [gpus]; 0 without tokens.

    Args:
        part: no `Moe`.
        hidden: width of the stack it is in.
        tokens: int [gpus].
        context_sum: float [gpus], pairs of a token and one that it looks at (`compute.context_sums`); only attention asks.
        phase: `prefill` (training runs alike), or `decode`.
        tensor: GPUs that share heads or columns (`matrices.split`).
        cached: float [gpus], tokens in the caches that decoding reads; None: `context_sum`, one token per sequence.
        sequences: int [gpus], that states are kept of; None: `tokens`, the same.
    """

    def __call__(
        self, part: Part, hidden: int, tokens: Ints, context_sum: Floats, *, phase: str = "prefill", tensor: int = 1,
        cached: Floats | None = None, sequences: Ints | None = None,
    ) -> Floats: ...  # fmt: skip


class ExpertSeconds(Protocol):
    """Seconds of the routed experts of a layer on every GPU: tokens int [slots], GPU of each slot, GPUs.

    `layout`: rows behind each other (`contiguous`), or a buffer per expert (`masked`: low latency exchanges), of which
    `buffered` float [gpus] rows of scales are turned (None: those in use). `tensor`: GPUs that share an expert's columns.
    """

    def __call__(
        self, tokens: Ints, gpu_of: Ints, n_gpus: int, *, layout: str = "contiguous", buffered: Floats | None = None,
        tensor: int = 1,
    ) -> Floats: ...  # fmt: skip


class SharedSeconds(Protocol):
    """Seconds of the shared experts over a GPU's own tokens int [gpus]; `tensor`: GPUs that share their columns."""

    def __call__(self, tokens: Ints, *, tensor: int = 1) -> Floats: ...


class EntrySeconds(Protocol):
    """Seconds of a mixer's products on the way in, with what rotates their outcome; part, width, tokens and the rest as above."""

    def __call__(self, part: Part, hidden: int, tokens: Ints, *, phase: str = "prefill", tensor: int = 1) -> Floats: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of what GPUs compute, float [gpus] each."""

    part_seconds: PartSeconds
    experts: ExpertSeconds
    shared: SharedSeconds
    residual: Callable[[int, Ints], Floats]         # width, tokens [gpus]: sum and norm before a mixer, an FFN or a router
    matrix: Callable[[int, int, Ints], Floats]      # columns, inner dimension, rows [gpus]: a GEMM in BF16 (router, unembedding)
    entry: EntrySeconds                             # of `part_seconds` what stands before scores, states or scans


def none(model: Model, gpu: GpuSpec) -> Timing:
    """Computing takes no time: communication alone."""
    return Timing(
        part_seconds=lambda part, hidden, tokens, *given, **options: np.zeros(len(tokens)),
        experts=lambda tokens, gpu_of, n_gpus, **options: np.zeros(n_gpus),
        shared=lambda tokens, **options: np.zeros(len(tokens)),
        residual=lambda hidden, tokens: np.zeros(len(tokens)),
        matrix=lambda n, k, rows: np.zeros(len(rows)),
        entry=lambda part, hidden, tokens, **options: np.zeros(len(tokens)),
    )


def roofline(model: Model, gpu: GpuSpec) -> Timing:
    """The later of arithmetic and memory traffic at data-sheet peaks: a lower bound (see `compute`)."""

    def part_seconds(
        part: Part, hidden: int, tokens: Ints, context_sum: Floats, *, phase: str = "prefill", tensor: int = 1,
        cached: Floats | None = None, sequences: Ints | None = None,
    ) -> Floats:  # fmt: skip
        return compute.part_seconds(
            split(part, tensor), hidden, model, gpu, tokens, context_sum, decode=phase == "decode",
            cached=context_sum if cached is None else cached, sequences=tokens if sequences is None else sequences,
        )  # fmt: skip

    def experts(
        tokens: Ints, gpu_of: Ints, n_gpus: int, *, layout: str = "contiguous", buffered: Floats | None = None, tensor: int = 1
    ) -> Floats:
        return compute.expert_seconds(model, gpu, tokens, gpu_of, n_gpus, tensor)

    return Timing(
        part_seconds=part_seconds,
        experts=experts,
        shared=lambda tokens, tensor=1: compute.shared_seconds(model, gpu, tokens, tensor),
        residual=lambda hidden, tokens: np.zeros(len(tokens)),          # never leaves the chip
        matrix=lambda n, k, rows: compute.matrix_seconds(n, k, rows, 2.0, model, gpu),
        entry=lambda part, hidden, tokens, phase="prefill", tensor=1: compute.entry_seconds(
            split(part, tensor), hidden, model, gpu, tokens, decode=phase == "decode"
        ),
    )


def kernels(
    model: Model, gpu: GpuSpec, *, tiles: str = "deepgemm_2025_07", constants: str = "gemm", sms_taken: int = 0,
    sms_spared: int = 0,
) -> Timing:  # fmt: skip
    """GEMMs in tiles and waves at the rates that kernels reach, and the passes over memory around them (see `blocks`).

    Every token that arrives is taken to need one expert of the GPU: those that need two pass the permutation once, not twice,
    which is less.

    Args:
        tiles: which tiles GEMMs are cut into, a function of `engine.tiles`.
        constants: file of `conf/kernel/` with the fixed costs.
        sms_taken: SMs that communication keeps to itself.
        sms_spared: SMs that GEMMs leave alone whether or not anything else runs.

    Raises:
        InputError: an unknown rule or file, a GPU whose topology does not say what kernels ask, no SM left.
    """
    made = kernels_of(gpu, tiles, constants, sms_taken)
    if sms_spared > sms_taken:
        made = replace(kernels_of(gpu, tiles, constants, sms_spared), free=made.sms)
    plain = replace(blocks.PRECISIONS[model.gemm], weight_bytes=model.weight_bytes)
    routed = replace(plain, weight_bytes=model.expert_weight_bytes)

    def experts(
        tokens: Ints, gpu_of: Ints, n_gpus: int, *, layout: str = "contiguous", buffered: Floats | None = None, tensor: int = 1
    ) -> Floats:
        through = np.bincount(gpu_of, tokens, n_gpus).astype(np.float64)
        return blocks.expert_kernels_seconds(
            tokens, gpu_of, n_gpus, made, routed, hidden=model.hidden, ffn=model.expert_ffn // tensor, layout=layout,
            through=through if layout == "contiguous" else np.zeros(n_gpus), buffered=buffered, matrices=model.expert_matrices,
        )  # fmt: skip

    def shared(tokens: Ints, *, tensor: int = 1) -> Floats:
        if not model.shared_ffn:
            return np.zeros(len(tokens))
        return blocks.ffn_kernels_seconds(
            tokens, made, routed, hidden=model.hidden, ffn=model.shared_ffn // tensor, matrices=model.expert_matrices
        )

    def part_seconds(
        part: Part, hidden: int, tokens: Ints, context_sum: Floats, *, phase: str = "prefill", tensor: int = 1,
        cached: Floats | None = None, sequences: Ints | None = None,
    ) -> Floats:  # fmt: skip
        part, rows = split(part, tensor), compute.passing(part, tokens)
        if isinstance(part, Dense):
            return blocks.ffn_kernels_seconds(rows, made, plain, hidden=hidden, ffn=part.size, matrices=part.matrices)
        return blocks.mixer_kernels_seconds(
            part, hidden, made, plain, tokens, context_sum, decode=phase == "decode", cache_bytes=model.cache_bytes,
            cached=context_sum if cached is None else cached, sequences=tokens if sequences is None else sequences,
        )  # fmt: skip

    return Timing(
        part_seconds=part_seconds, experts=experts, shared=shared,
        residual=lambda hidden, tokens: blocks.residual_kernel_seconds(hidden, tokens, made),
        matrix=lambda n, k, rows: blocks.matrix_kernel_seconds(n, k, rows, made),
        entry=lambda part, hidden, tokens, phase="prefill", tensor=1: blocks.entry_kernels_seconds(
            split(part, tensor), hidden, made, plain, tokens, decode=phase == "decode"
        ),
    )  # fmt: skip


def fewer_sms(name: str, options: Mapping[str, Any], gpu: GpuSpec, held: int) -> tuple[dict[str, Any], GpuSpec]:
    """Options and GPU of a model of compute for what is left while something holds so many SMs.

    `kernels` cuts its GEMMs for fewer SMs; a roofline has fewer FLOP/s.

    Raises:
        InputError: no SM is left.
    """
    _leaves_some(gpu, held)
    assert gpu.sms is not None
    if name == "kernels":
        return {**options, "sms_taken": int(options.get("sms_taken", 0)) + held}, gpu
    left = 1 - held / gpu.sms
    fp4 = None if gpu.fp4_flops is None else gpu.fp4_flops * left
    slower = replace(gpu, bf16_achieved=None, fp8_achieved=None, fp4_achieved=None)        # a roofline does not look at them
    return dict(options), replace(slower, bf16_flops=gpu.bf16_flops * left, fp8_flops=gpu.fp8_flops * left, fp4_flops=fp4)


def sparing_sms(name: str, options: Mapping[str, Any], gpu: GpuSpec, held: int) -> dict[str, Any]:
    """Options of a model of compute whose GEMMs are cut for what an exchange leaves even where none runs: engines set that number
    once for a pass in which micro-batches overlap (sgl-project/sglang, srt/batch_overlap/operations_strategy.py,
    `deep_gemm_num_sms`; vllm-project/vllm, v1/worker/gpu_ubatch_wrapper.py, `_create_sm_control_context`).

    Raises:
        InputError: no SM is left.
    """
    if held:
        _leaves_some(gpu, held)
    return {**options, "sms_spared": held} if name == "kernels" else dict(options)


def _leaves_some(gpu: GpuSpec, held: int) -> None:
    assert gpu.sms is not None
    if held >= gpu.sms:
        raise InputError(f"exchange: holds all {gpu.sms} SMs of {gpu.name}, nothing computes beside it; use schedule=in_order")


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
