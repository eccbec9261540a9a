"""The kind `moe_layer`: one MoE layer of training, forward or backward, kernel after kernel on one stream. Fits nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clustersim.engine import blocks
from clustersim.engine.gemm import Kernels, Precision, grouped_seconds
from clustersim.engine.timing import kernels_of
from clustersim.kernels import load_kernel
from clustersim.types import InputError, Ints
from clustersim.validation import exchanges
from clustersim.validation.machines import machine
from clustersim.validation.notes import needed, note, only

WIDE = 2.0                      # bytes of an activation outside GEMMs: BF16
TILES = "deepgemm_2025_07"
PASSED = ("gpu", "gpus", "gpus_per_node", "nic", "exchange", "tokens_per_gpu", "hidden", "top_k", "experts", "sms")


@dataclass(frozen=True, slots=True)
class _Layer:
    kernels: Kernels
    precision: Precision
    rows: Ints                  # [experts of a GPU]
    tokens: int
    hidden: int
    ffn: int
    first: int                  # columns of the first matrix: ffn, twice that where it is gated
    joined: bool                # copies of a token to one GPU travel as one, and are spread there

    def passes(self, count: int, nbytes: float) -> float:
        """Kernels that move bytes through memory."""
        achieved = self.kernels.gpu.memory_achieved
        assert achieved is not None
        return count * self.kernels.pass_s + nbytes / achieved

    def gemm(self, rows: Ints, n: int, k: int) -> float:
        """One grouped GEMM over the GPU's experts."""
        owner, layout = np.zeros(rows.size, np.int64), "contiguous" if rows.size > 1 else "dense"
        seconds = grouped_seconds(rows, owner, 1, n, k, layout=layout, precision=self.precision, kernels=self.kernels)
        return float(seconds[0]) + self.kernels.launch_s

    def quantised(self, values: float) -> float:
        """Values turned from BF16 into FP8, along rows and along columns; 0 in BF16."""
        return self.passes(1, values * (WIDE + 2 * self.precision.activation_bytes)) if self.precision.scaled else 0.0


def moe_layer(case: Mapping[str, Any]) -> float:
    """Seconds of one MoE layer on a GPU, as Megatron-Core runs it: router, permutation, exchange, experts, and back.

    Keys: those of an exchange (`exchange`: nccl_alltoall, deepep_normal, hybrid_ep), `phase` (forward, backward), `expert_ffn`,
    `dtype` (bf16, fp8: of the experts' GEMMs), `gated` (false: an expert has two matrices), `shared_ffn` (0).

    A backward pass has two GEMMs for each of the forward's, the exchanges run the other way round. Source: NVIDIA/Megatron-LM,
    core/transformer/moe (token_dispatcher.py, experts.py), and tests/functional_tests/test_cases/common/moe_perf.
    """
    only(case, *PASSED, "phase", "expert_ffn", "dtype", "gated", "shared_ffn")
    tokens, hidden, top_k, experts, gpus, ffn, phase = needed(
        case, "tokens_per_gpu", "hidden", "top_k", "experts", "gpus", "expert_ffn", "phase"
    )
    if phase not in ("forward", "backward"):
        raise InputError(f"case.phase={phase}: must be forward or backward")
    if experts % gpus:
        raise InputError(f"case.experts={experts}: cannot be spread evenly over {gpus} GPUs")
    if case.get("dtype") not in ("bf16", "fp8"):
        raise InputError(f"case.dtype={case.get('dtype')}: a layer in training is modelled in bf16 or fp8")
    for key, kind in (("gated", bool), ("shared_ffn", int)):
        if not isinstance(case.get(key, kind()), kind):
            raise InputError(f"case.{key}={case[key]}: must be {'true or false' if kind is bool else 'a whole number'}")
    gpu, mine, reached = machine({"gpu": case["gpu"]}).gpu, experts // gpus, load_kernel("megatron")
    gpu = replace(
        gpu, bf16_achieved=_share(gpu.bf16_achieved, reached["bf16_share"]),
        fp8_achieved=_share(gpu.fp8_achieved, reached["fp8_share"]),
    )  # fmt: skip
    for text in reached.beyond({"tokens_per_gpu": tokens, "gpus": gpus}):
        note(text)
    total, gated = tokens * top_k, bool(case.get("gated", False))
    layer = _Layer(
        kernels=kernels_of(gpu, TILES, "gemm", 0), precision=blocks.PRECISIONS[case["dtype"]],
        rows=total // mine + (np.arange(mine) < total % mine).astype(np.int64), tokens=tokens, hidden=hidden, ffn=ffn,
        first=ffn * (2 if gated else 1), joined=case.get("exchange") != "nccl_alltoall",
    )  # fmt: skip
    sent = sum(_exchange(case, one) for one in ("dispatch", "combine"))
    forward = phase == "forward"
    around = (_router(layer, experts, gpus) if forward else 0.0) + _moved(layer, total, forward)
    shared = int(case.get("shared_ffn", 0))
    dense = _experts(layer, np.array([tokens]), shared, shared * (2 if gated else 1), forward) if shared else 0.0
    return sent + around + _experts(layer, layer.rows, ffn, layer.first, forward) + dense


def _share(rate: float | None, share: float) -> float | None:
    return None if rate is None else rate * share


def _exchange(case: Mapping[str, Any], phase: str) -> float:
    asked = {key: case[key] for key in PASSED if case.get(key) is not None}
    return exchanges.exchange({
        **asked, "what": "exchange", "phase": phase, "payload": "bf16", "routing": "uniform", "metric": "seconds",
        "statistic": "mean",
    })  # fmt: skip


def _router(layer: _Layer, experts: int, gpus: int) -> float:
    """Logits in FP32 (the operands are widened first), scores, choice, loss, and the round of counts among the GPUs."""
    gpu, nccl = layer.kernels.gpu, load_kernel("nccl")
    widened = layer.passes(1, layer.tokens * layer.hidden * (WIDE + 4.0))
    values = float(layer.tokens * layer.hidden)
    assert gpu.memory_achieved is not None
    logits = max(2 * values * experts / (gpu.bf16_flops / 2), 4 * values / gpu.memory_achieved)        # TF32: half of BF16
    counts = nccl["base_ll"] + (gpus - 1) * nccl["nvlink_ll"]
    return widened + logits + layer.passes(4, 4 * layer.tokens * experts * 4.0) + counts


def _moved(layer: _Layer, total: int, forward: bool) -> float:
    """Permutations on both sides of both exchanges: tokens to copies, copies to their experts' rows, and both back.

    Copies to one GPU that travel as one are made where they arrive, so there is nothing to permute at home.
    """
    copies, own = total * layer.hidden * WIDE, layer.tokens * layer.hidden * WIDE
    home = 0.0 if layer.joined else 2 * layer.passes(1, copies + own + (0.0 if forward else copies / 2))
    away = 2 * layer.passes(1, 2 * copies) if layer.joined or layer.rows.size > 1 else 0.0
    return home + away


def _experts(layer: _Layer, rows: Ints, ffn: int, first: int, forward: bool) -> float:
    total, weights = float(rows.sum()), rows.size * float(layer.hidden) * (first + ffn)
    scaled, hidden = layer.quantised, layer.hidden
    if forward:
        gemms = layer.gemm(rows, first, hidden) + layer.gemm(rows, hidden, ffn)
        between = layer.passes(1, total * (first + ffn) * WIDE)
        return gemms + between + scaled(total * hidden) + scaled(total * ffn) + scaled(weights)
    gemms = layer.gemm(rows, ffn, hidden) + layer.gemm(rows, hidden, first)                          # of what came in
    each = np.full(rows.size, 1)
    gemms += layer.gemm(each * ffn, hidden, round(total / rows.size)) + layer.gemm(each * hidden, first, round(total / rows.size))
    between = layer.passes(1, total * (2 * first + ffn) * WIDE)
    return gemms + between + scaled(total * hidden) + scaled(total * first)
