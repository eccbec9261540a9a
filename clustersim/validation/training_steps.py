"""Measured training steps and attention kernels: cases as overrides of a run. Fits nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from clustersim.architecture import describe
from clustersim.cluster import load_cluster
from clustersim.config import compose
from clustersim.engine.machines import kernels
from clustersim.kernels import tried
from clustersim.parts import Latent
from clustersim.pick import did_you_mean
from clustersim.training.step import train
from clustersim.training.tables import training_row
from clustersim.types import InputError
from clustersim.validation.machines import TOPOLOGIES, machine
from clustersim.validation.notes import needed, only

GEMMS = {                               # dtype of a case -> rate of the GEMMs, and what shares a scale
    "bf16": ("bf16", "block"), "fp8_block128": ("fp8", "block"), "fp8_tensor": ("fp8", "tensor"), "mxfp8": ("fp8", "mx"),
    "fp4": ("fp4", "block"), "nvfp4": ("fp4", "block"),
}  # fmt: skip
SIZES = (
    "tensor", "tensor_overlap", "context", "pipeline", "virtual", "expert", "expert_tensor", "zero", "order", "stage_layers",
)
BATCHES = ("sequence", "micro_batch", "global_batch", "recompute", "cuda_graphs")
SHORT = {                               # as tables of published runs head their columns
    "tp": "tensor", "cp": "context", "pp": "pipeline", "vp": "virtual", "vpp": "virtual", "ep": "expert", "etp": "expert_tensor",
    "mbs": "micro_batch", "gbs": "global_batch", "seq_len": "sequence", "precision": "dtype", "schedule": "order",
}  # fmt: skip
METRICS: dict[str, str] = {             # metric of a case -> column of the summary
    "seconds per step": "step_s", "tokens/s": "tokens_per_s", "tokens/s/GPU": "tokens_per_s_per_gpu",
    "model FLOP/s/GPU": "model_flops_per_s_per_gpu", "GPU-hours per trillion tokens": "gpu_hours_per_trillion_tokens",
}  # fmt: skip
PASSES_BACK = 2.5                       # FLOPs of attention's way back over those of its way forward


def training_step(case: Mapping[str, Any]) -> float:
    """One optimiser step in the metric of the case (see `METRICS`).

    Keys: `model` (a name of the catalogue), `gpu`, `gpus`, `gpus_per_node`, `nic`; the sizes of `conf/parallel` (`tensor`, ...,
    `order`, `stage_layers`) or their short names (`SHORT`); `overlap` (passes beside each other: order combined); `sequence`,
    `micro_batch`, `global_batch`, `recompute`, `cuda_graphs`; `dtype` (of the GEMMs); `exchange`, `sms`; `load`: balanced (random
    scores), or a preset of docs/sampler.md, with the model's own router; `layers` (another number of them than the model has);
    `framework` (megatron, or "null": DeepSeek's own, with DeepGEMM). What a case leaves out is as `recipe` has it.
    """
    case = {SHORT.get(key, key): value for key, value in case.items()}
    only(
        case, "phase", "model", "gpu", "gpus", "gpus_per_node", "nic", *SIZES, *BATCHES, "dtype", "exchange", "sms", "load",
        "layers", "framework", "overlap",
    )  # fmt: skip
    metric = str(case.get("metric"))
    if metric not in METRICS:
        raise InputError(f"case.metric={metric}: must be one of {', '.join(METRICS)}{did_you_mean(metric, METRICS)}")
    model, gpu, gpus = needed(case, "model", "gpu", "gpus")
    if gpu not in TOPOLOGIES:
        raise InputError(f"case.gpu={gpu}: no topology has it{did_you_mean(str(gpu), TOPOLOGIES)}")
    inside = _domain(TOPOLOGIES[gpu], int(gpus), int(case.get("gpus_per_node") or 0))
    case = recipe(case, inside)
    asked = [
        "workload=training", f"model={model}", f"topology={TOPOLOGIES[gpu]}", f"topology.nodes={int(gpus) // inside}",
        f"topology.gpus_per_node={inside}", "memory=ignore", "network=bound",
    ]  # fmt: skip
    asked += [f"parallel.{key}={_said(case[key])}" for key in SIZES if case.get(key) is not None]
    asked += [f"workload.{key}={case[key]}" for key in BATCHES if case.get(key) is not None]
    asked += [f"topology.nic.bandwidth={str(case['nic']).removesuffix(' per GPU')}"] if case.get("nic") else []
    asked += _gemm(case) if case.get("dtype") else []
    asked += [f"exchange={case['exchange']}"] if case.get("exchange") else []
    asked += [f"exchange.sms={case['sms']}"] if case.get("sms") else []
    asked += [f"model.n_layers={case['layers']}"] if case.get("layers") else []
    asked += [f"workload.framework={case['framework']}"] if "framework" in case else []
    if _megatron(case) and "dispatch_bytes" in compose([f"model={model}"]).config["model"]:
        asked.append("model.dispatch_bytes=2.0")                # its dispatchers send what the router saw, in BF16
    return _simulated((*asked, *_load(case)), METRICS[metric], tried())


def recipe(case: Mapping[str, Any], inside: int) -> dict[str, Any]:
    """A case with what it leaves out, as the recipes of the framework have it.

    Chunks go through the pipeline interleaved. Megatron splits its optimiser (ZeRO 1). Of its recipes for machines: tensor groups
    overlap in FP8 and dense models, Grace's hosts replay attention and routers from CUDA graphs, and tokens go by all-to-all
    inside a node, by Hybrid-EP inside a rack, by DeepEP beyond. Up-projections of MLA are computed again, and norms and
    activations of GPT-OSS where a GPU has less than 200 GB (github:NVIDIA-NeMo/Megatron-Bridge scripts/performance/configs).

    Args:
        inside: GPUs of an NVLink domain.
    """
    full = dict(case)

    def unless_told(key: str, value: Any) -> None:
        if full.get(key) is None:
            full[key] = value

    chunks = int(full.get("virtual") or 1) > 1
    if full.pop("overlap", None):
        unless_told("order", "combined")
    if chunks:
        unless_told("order", "interleaved")
    if not _megatron(case):
        return full
    unless_told("zero", 1)
    model = compose([f"model={case['model']}"]).model
    experts = model.n_experts
    if int(full.get("tensor") or 1) > 1 and not experts and full.get("dtype") not in (None, "bf16"):
        unless_told("tensor_overlap", True)
    unless_told("cuda_graphs", "attention" if str(case["gpu"]).startswith("gb") else "none")
    if any(isinstance(part, Latent) for layer in model.layers for part in layer):
        unless_told("recompute", "latents")
    if model.expert_biases and not str(case["gpu"]).endswith("300"):
        unless_told("recompute", "norm_act")
    if experts:
        group = int(full.get("expert") or inside) * int(full.get("expert_tensor") or 1)
        unless_told("exchange", "deepep_normal" if group > inside else "nccl_alltoall" if inside <= 8 else "hybrid_ep")
    return full


def _megatron(case: Mapping[str, Any]) -> bool:
    return str(case.get("framework", "megatron")) == "megatron"


def _said(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list) else str(value)


def attention(case: Mapping[str, Any]) -> float:
    """Seconds of attention's scores and sums on one GPU, projections apart.

    Keys: `gpu`, `heads`, `query_dim`, `value_dim` (of a head), `sequence`, `sequences` (1), `causal` (true), `backward` (false),
    `sms` (left for it; all).
    """
    only(case, "gpu", "heads", "query_dim", "value_dim", "sequence", "sequences", "causal", "backward", "sms")
    gpu, heads, query, value, length = needed(case, "gpu", "heads", "query_dim", "value_dim", "sequence")
    spec = machine({"gpu": gpu}).gpu
    taken = int(spec.sms or 0) - int(case["sms"]) if case.get("sms") else 0
    pairs = length * (length + 1) / 2 if case.get("causal", True) else float(length) ** 2
    back = bool(case.get("backward", False))
    flops = 2.0 * heads * (query + value) * pairs * int(case.get("sequences", 1)) * (PASSES_BACK if back else 1)
    rule = kernels(spec, "bf16", "deepgemm_2025_07", "gemm", taken)
    return float(rule.mixing(np.array([flops]), back, (query + value) / 2)[0])


def _domain(topology: str, gpus: int, most: int) -> int:
    """GPUs of a node, of `most` (0: the machine's) what shares out evenly: 64 of a rack of 72 where there are 256 in all."""
    most = most or load_cluster(topology, nodes=1).gpus_per_node
    return next(inside for inside in range(min(most, gpus), 0, -1) if gpus % inside == 0)


@lru_cache(maxsize=32)
def _simulated(overrides: tuple[str, ...], column: str, _: tuple[tuple[str, float], ...]) -> float:
    run = compose(list(overrides))
    return float(training_row(train(run), describe(run.config["model"]))[column])


def _gemm(case: Mapping[str, Any]) -> list[str]:
    """Rate and scaling of the products; `fp8` is what the framework means by it: Megatron one scale for all, DeepSeek blocks."""
    dtype = {"fp8": "fp8_tensor" if _megatron(case) else "fp8_block128"}.get(case["dtype"], case["dtype"])
    if dtype not in GEMMS:
        known = (*GEMMS, "fp8")
        near = did_you_mean(str(case["dtype"]), known)
        raise InputError(f"case.dtype={case['dtype']}: must be one of {', '.join(known)}{near}")
    gemm, scaling = GEMMS[dtype]
    return [f"++model.gemm={gemm}", f"workload.scaling={scaling}"]


def _load(case: Mapping[str, Any]) -> list[str]:
    load = case.get("load") or "balanced"
    if load == "balanced":                  # Megatron-LM, --moe-router-force-load-balancing: random scores
        return ["trace=balanced", "router=random"]
    return ["trace=sampled", f"trace.preset={load}", "router=model"]

