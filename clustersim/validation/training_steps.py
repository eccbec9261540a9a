"""Measured training steps and attention kernels: cases as overrides of a run. Fits nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from clustersim.architecture import describe
from clustersim.cluster import load_cluster
from clustersim.config import compose
from clustersim.engine.machines import kernels
from clustersim.kernels import tried
from clustersim.pick import did_you_mean
from clustersim.training.step import train
from clustersim.training.tables import training_row
from clustersim.types import InputError
from clustersim.validation.machines import TOPOLOGIES, machine
from clustersim.validation.notes import needed, only

GEMMS = {"bf16": "bf16", "fp8": "fp8", "mxfp8": "fp8", "fp4": "fp4", "nvfp4": "fp4"}
SIZES = ("tensor", "context", "pipeline", "virtual", "expert", "expert_tensor", "zero", "order", "stage_layers")
BATCHES = ("sequence", "micro_batch", "global_batch", "recompute")
METRICS: dict[str, str] = {             # metric of a case -> column of the summary
    "seconds per step": "step_s", "tokens/s": "tokens_per_s", "tokens/s/GPU": "tokens_per_s_per_gpu",
    "model FLOP/s/GPU": "model_flops_per_s_per_gpu", "GPU-hours per trillion tokens": "gpu_hours_per_trillion_tokens",
}  # fmt: skip
PASSES_BACK = 2.5                       # FLOPs of attention's way back over those of its way forward


def training_step(case: Mapping[str, Any]) -> float:
    """One optimiser step in the metric of the case (see `METRICS`).

    Keys: `model` (a name of the catalogue), `gpu`, `gpus`, `gpus_per_node`, `nic`; the sizes of `conf/parallel` (`tensor`, ...,
    `order`, `stage_layers`); `sequence`, `micro_batch`, `global_batch`, `recompute`; `dtype` (of the GEMMs); `exchange`,
    `sms`; `load`: balanced (even by force), or a preset of docs/sampler.md, with the model's own router; `layers` (another
    number of them than the model has); `framework` (whose GEMMs: megatron, or "null": DeepGEMM's, at what they reach alone).
    """
    only(
        case, "phase", "model", "gpu", "gpus", "gpus_per_node", "nic", *SIZES, *BATCHES, "dtype", "exchange", "sms", "load",
        "layers", "framework",
    )  # fmt: skip
    metric = str(case.get("metric"))
    if metric not in METRICS:
        raise InputError(f"case.metric={metric}: must be one of {', '.join(METRICS)}{did_you_mean(metric, METRICS)}")
    model, gpu, gpus = needed(case, "model", "gpu", "gpus")
    if gpu not in TOPOLOGIES:
        raise InputError(f"case.gpu={gpu}: no topology has it{did_you_mean(str(gpu), TOPOLOGIES)}")
    inside = int(case.get("gpus_per_node") or 0) or _domain(TOPOLOGIES[gpu], int(gpus))
    asked = [
        "workload=training", f"model={model}", f"topology={TOPOLOGIES[gpu]}", f"topology.nodes={int(gpus) // inside}",
        f"topology.gpus_per_node={inside}", "memory=ignore", "network=bound",
    ]  # fmt: skip
    asked += [f"parallel.{key}={case[key]}" for key in SIZES if case.get(key) is not None]
    asked += [f"workload.{key}={case[key]}" for key in BATCHES if case.get(key) is not None]
    asked += [f"topology.nic.bandwidth={str(case['nic']).removesuffix(' per GPU')}"] if case.get("nic") else []
    asked += [f"++model.gemm={_gemm(case)}"] if case.get("dtype") else []
    asked += [f"exchange={case['exchange']}"] if case.get("exchange") else []
    asked += [f"exchange.sms={case['sms']}"] if case.get("sms") else []
    asked += [f"model.n_layers={case['layers']}"] if case.get("layers") else []
    asked += [f"workload.framework={case['framework']}"] if "framework" in case else []
    return _simulated((*asked, *_load(case)), METRICS[metric], tried())


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
    return float(rule.mixing(np.array([flops]), back)[0])


def _domain(topology: str, gpus: int) -> int:
    """GPUs of a node, the most that share out evenly: 64 of a rack of 72 where there are 256 in all."""
    most = load_cluster(topology, nodes=1).gpus_per_node
    return next(inside for inside in range(min(most, gpus), 0, -1) if gpus % inside == 0)


@lru_cache(maxsize=32)
def _simulated(overrides: tuple[str, ...], column: str, _: tuple[tuple[str, float], ...]) -> float:
    run = compose(overrides)
    return float(training_row(train(run), describe(run.config["model"]))[column])


def _gemm(case: Mapping[str, Any]) -> str:
    if case["dtype"] not in GEMMS:
        near = did_you_mean(str(case["dtype"]), GEMMS)
        raise InputError(f"case.dtype={case['dtype']}: must be one of {', '.join(GEMMS)}{near}")
    return GEMMS[case["dtype"]]


def _load(case: Mapping[str, Any]) -> list[str]:
    load = case.get("load") or "balanced"
    if load == "balanced":
        return ["trace=balanced"]
    return ["trace=sampled", f"trace.preset={load}", "router=model"]

