"""Measured GEMMs and experts, simulated by the engine's kernel model. Fits nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from clustersim.engine import blocks
from clustersim.engine.gemm import Kernels, Precision, grouped_seconds
from clustersim.engine.timing import kernels_of
from clustersim.gpuspec import GpuSpec
from clustersim.pick import did_you_mean
from clustersim.types import InputError, Ints
from clustersim.validation.machines import machine
from clustersim.validation.notes import needed, note, only

LAYOUTS = {"dense": "dense", "contig": "contiguous", "contiguous": "contiguous", "masked": "masked"}
FIRST, LATER = "deepgemm_2025_02", "deepgemm_2025_07"
COMPARED_SMS = 132              # those of the only GPUs with rows to compare with: Hopper
BUFFERED = 128                  # tokens of each rank that SGLang's decode buffers have room for


def gemm(case: Mapping[str, Any]) -> float:
    """One GEMM kernel on one GPU: FLOP/s (2 groups m n k over the time) where `metric` begins so, else seconds.

    Keys: `gpu`, `dtype` (bf16, fp8, mxfp8, fp4), `m` (rows of each group), `n`, `k`; `groups` (1), `layout` (dense, contig,
    masked), `sms` (left for it; all), `kernel` (a rule of `engine.tiles`: for FP8 on GPUs without FP4 the first release of
    DeepGEMM, whose figures are those that were published, else the later one).
    """
    only(case, "gpu", "dtype", "m", "n", "k", "groups", "layout", "kernel", "gpus", "sms")
    gpu, precision = machine({"gpu": needed(case, "gpu")[0]}).gpu, _precision(case)
    m, n, k = (_whole(case, key) for key in ("m", "n", "k"))
    groups = _whole(case, "groups", 1)
    layout = _choice(case, "layout", LAYOUTS, "dense")
    if layout == "dense" and groups != 1:
        raise InputError(f"case.groups={groups}: a dense GEMM has one; layout must be contig or masked")
    first = case["dtype"] == "fp8" and gpu.fp4_flops is None
    kernels = _kernels(case, gpu, FIRST if first else LATER)
    if case.get("sms") is not None:
        kernels = replace(kernels, sms=_whole(case, "sms"))
    seconds = grouped_seconds(
        np.full(groups, m), np.zeros(groups, np.int64), 1, n, k, layout=layout, precision=precision, kernels=kernels
    )[0]
    return float(2.0 * groups * m * n * k / seconds) if str(case.get("metric", "")).startswith("FLOP/s") else float(seconds)


def expert_compute(case: Mapping[str, Any]) -> float:
    """Seconds of the routed experts of one MoE layer on the busiest rank, permutation included.

    Keys: `gpu`, `gpus` (ranks), `phase` (prefill, decode), `tokens` (of the whole group), `hidden`, `expert_ffn`, `top_k`,
    `experts`, `dtype` (as `gemm`); `load`: uniform (even, as far as whole tokens go), or the busiest rank's tokens over the
    mean; `expert_tokens`: a list, the tokens of each expert of that rank, in place of `load`; `through`: group (prefill, as
    measured where one GPU emulates a rank: all tokens of the group pass it) or arrived (those with an expert on the
    rank); `buffer_tokens` (decode: 128 tokens of each rank have room, and their scales are turned); `kernel` (as `gemm`).
    """
    only(
        case, "gpu", "gpus", "gpus_per_node", "phase", "tokens", "hidden", "expert_ffn", "top_k", "experts", "dtype", "load",
        "expert_tokens", "through", "buffer_tokens", "kernel",
    )  # fmt: skip
    gpu, precision = machine({"gpu": needed(case, "gpu")[0]}).gpu, _precision(case)
    ranks, tokens, experts, top_k, hidden, ffn = (
        _whole(case, key) for key in ("gpus", "tokens", "experts", "top_k", "hidden", "expert_ffn")
    )
    if experts % ranks:
        raise InputError(f"case.gpus={ranks}: must divide the {experts} experts")
    rows = _rows(case, tokens * top_k, experts, ranks)
    layout = _choice(case, "phase", {"prefill": "contiguous", "decode": "masked"})
    through = _choice(case, "through", {"group": "group", "arrived": "arrived"}, "group")
    passing = tokens * (1.0 if through == "group" else 1 - math.comb(experts - rows.size, top_k) / math.comb(experts, top_k))
    buffered = np.array([float(_whole(case, "buffer_tokens", BUFFERED)) * ranks * rows.size]) if layout == "masked" else None
    return float(
        blocks.expert_kernels_seconds(
            rows, np.zeros(rows.size, np.int64), 1, _kernels(case, gpu, LATER), precision, hidden=hidden, ffn=ffn, layout=layout,
            through=np.array([passing if layout == "contiguous" else 0.0]), buffered=buffered,
        )[0]
    )  # fmt: skip


def _rows(case: Mapping[str, Any], choices: int, experts: int, ranks: int) -> Ints:
    """int [experts of the busiest rank], tokens of each."""
    mine, given, load = experts // ranks, case.get("expert_tokens"), case.get("load", "uniform")
    if given is not None:
        whole = isinstance(given, list) and all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in given)
        if not whole or len(given) > mine:
            raise InputError(f"case.expert_tokens={given}: must be whole numbers, one for each of the rank's {mine} experts")
        return np.array([*given, *[0] * (mine - len(given))])
    if load != "uniform" and (isinstance(load, bool) or not isinstance(load, int | float) or not 0 < load <= ranks):
        raise InputError(
            f"case.load={load}: does not say what the busiest rank gets; give uniform, its tokens over the mean (1 to {ranks}), "
            "or expert_tokens"
        )
    total = round(choices / ranks * (1.0 if load == "uniform" else load))
    return total // mine + (np.arange(mine) < total % mine).astype(np.int64)


def _kernels(case: Mapping[str, Any], gpu: GpuSpec, default: str) -> Kernels:
    if gpu.sms != COMPARED_SMS:
        note(f"the kernel model has been compared with measurements on Hopper only, not on {gpu.name}")
    return kernels_of(gpu, str(case.get("kernel") or default), "gemm", 0)


def _precision(case: Mapping[str, Any]) -> Precision:
    return blocks.PRECISIONS[_choice(case, "dtype", {name: name for name in blocks.PRECISIONS})]


def _choice(case: Mapping[str, Any], key: str, known: Mapping[str, str], default: str | None = None) -> str:
    value = case.get(key) or default
    if value is None:
        needed(case, key)
    if value not in known:
        raise InputError(f"case.{key}={value}: must be one of {', '.join(known)}{did_you_mean(str(value), known)}")
    return known[str(value)]


def _whole(case: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = case.get(key, default)
    if value is None:
        needed(case, key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"case.{key}={value}: must be a whole number from 1 up")
    return value
