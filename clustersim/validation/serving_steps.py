"""Whole steps of serving: a case as a run of its model on its machine, to seconds or tokens per second. Fits nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from clustersim.cluster import Cluster
from clustersim.config import Run, compose
from clustersim.engine.gpu import PARTS
from clustersim.outcome import Result
from clustersim.pick import did_you_mean
from clustersim.places import group_folder, options
from clustersim.simulation import simulate
from clustersim.types import InputError
from clustersim.validation.imbalances import DRIFT
from clustersim.validation.machines import TOPOLOGIES, machine
from clustersim.validation.notes import needed, note, only

KEYS = (
    "model", "gpu", "gpus", "gpus_per_node", "nic", "phase", "schedule", "shared", "tokens_per_gpu", "batch", "context",
    "context_spread", "sequence", "draft", "accepted", "drafter", "dtype", "exchange", "sms", "load", "router", "slots",
    "drift", "network", "batch_spread", "batches", "prompt_spread", "padded",
)  # fmt: skip
SIZES = ("tensor", "expert_tensor", "context_parallel", "pipeline", "expert")       # of parallel groups
METRICS = (
    "seconds per step", "seconds per layer", "seconds per token", "tokens/s/GPU", "tokens/s/node", "tokens/s/user", "tokens/s",
)  # fmt: skip
PLAYED = 4              # MoE layers of a long model that are played; the others take what those between first and last take
EXACT = 64              # GPUs up to which links are shared exactly; beyond they are bound


def serving_step(case: Mapping[str, Any]) -> float:
    """One pass of prefill or one step of decoding, in the metric of the case.

    Raises:
        InputError: what the case asks for is not modelled; names the key.
    """
    only(case, *KEYS, *SIZES)
    metric = str(case.get("metric", METRICS[0]))
    if metric not in METRICS:
        raise InputError(f"case.metric={metric}: must be one of {', '.join(METRICS)}{did_you_mean(metric, METRICS)}")
    cluster = machine(case)
    asked = [*_machine(case, cluster), *_work(case), *_options(case, cluster)]
    whole = compose(asked)
    result = simulate(compose([*asked, *_shorter(whole)]))
    step, left = float(result.summary["step_s"]), whole.model.n_layers - result.run.model.n_layers
    if left:
        step += left * _middle_layer_s(result)
        note(f"{PLAYED} of {whole.model.n_moe_layers} MoE layers were played; the others take what those between their ends take")
    return _in(metric, result, step, whole.model.n_layers, cluster)


def _machine(case: Mapping[str, Any], cluster: Cluster) -> list[str]:
    asked = [
        f"topology={TOPOLOGIES[case['gpu']]}", f"topology.nodes={cluster.n_nodes}",
        f"topology.gpus_per_node={cluster.gpus_per_node}",
    ]  # fmt: skip
    if case.get("nic") is not None:
        rate = str(case["nic"]).partition(" ")[0]
        asked += [f"topology.nic.bandwidth={rate}", "topology.nic.achievable=null", "topology.nic.per_gpu=1"]
    return asked


def _work(case: Mapping[str, Any]) -> list[str]:
    """What the GPUs are given."""
    phase = case["phase"]
    if phase == "prefill":
        others = ("batch", "context", "context_spread", "draft", "accepted", "drafter", "padded")
        if unused := [key for key in others if case.get(key) is not None]:
            raise InputError(f"case.{unused[0]}: belongs to phase decode")
        tokens, sequence = needed(case, "tokens_per_gpu", "sequence")
        passes = -(-sequence // tokens)                 # of a prompt in pieces
        asked = [f"workload.tokens_per_gpu={tokens}", f"trace.sequence={sequence}", f"workload.steps={passes}"]
        return asked + _given(case, "batch_spread", "batches", "prompt_spread")
    if case.get("tokens_per_gpu") is not None:
        raise InputError("case.tokens_per_gpu: belongs to phase prefill; decode has batch, sequences of a GPU or its group")
    batch, context = needed(case, "batch", "context")
    asked = ["workload=decode", f"workload.tokens_per_group={batch}", f"workload.context={context}"]
    for key, default in (("context_spread", 0), ("draft", 0), ("accepted", 1), ("drafter", "null")):
        asked.append(f"workload.{key}={case.get(key, default)}")
    if case.get("prompt_spread") is not None:
        raise InputError("case.prompt_spread: belongs to phase prefill; decode has context_spread")
    return asked + _given(case, "batch_spread", "batches", "padded")


def _given(case: Mapping[str, Any], *keys: str) -> list[str]:
    """Keys of `workload` that a case may give."""
    return [f"workload.{key}={json.dumps(case[key])}" for key in keys if case.get(key) is not None]


def _options(case: Mapping[str, Any], cluster: Cluster) -> list[str]:
    """Model, experts and exchange, and what overlaps."""
    (model,) = needed(case, "model")
    known = options(group_folder("model"))
    if model not in known:
        raise InputError(f"case.model={model}: no such model{did_you_mean(str(model), known)} (known: {', '.join(known)})")
    asked = [f"model={model}", "memory=ignore", *(f"parallel.{key}={case.get(key) or 1}" for key in ("tensor", "expert_tensor"))]
    plain = compose([*asked, *_machine(case, cluster)])
    asked += _numbers(case, plain)
    network = case.get("network") or ("fluid" if cluster.n_gpus <= EXACT else "bound")
    asked += [f"network={network}", *(["network.resolution=0.01"] if network == "fluid" else [])]
    for key, fixed in (("context_parallel", 1), ("pipeline", 1), ("expert", cluster.n_gpus)):
        if case.get(key) not in (None, fixed):
            raise InputError(
                f"case.{key}={case[key]}: serving shares attention (tensor), spreads experts over all {cluster.n_gpus} GPUs "
                f"or shares them, too (expert_tensor), and splits nothing else; use {fixed}"
            )
    if not plain.model.n_experts:
        return [*asked, "trace=balanced"]
    exchange = case.get("exchange") or ("deepep_low_latency" if case["phase"] == "decode" else "deepep_normal")
    asked.append(f"exchange={exchange}")
    if case.get("sms") is not None:
        asked.append(f"exchange.sms={case['sms']}")
    asked += _load(case, plain)
    schedule = case.get("schedule") or "in_order"
    shared = case.get("shared") or ("hidden" if schedule == "staggered" else "after")
    asked += [f"schedule={schedule}", f"schedule.shared={shared}"]
    return asked


def _numbers(case: Mapping[str, Any], run: Run) -> list[str]:
    """The format of weights and products; the model's own where the case says none."""
    dtype = case.get("dtype")
    if dtype is None:
        return []
    sizes = {"bf16": 2.0, "fp8": 1 + 4 / 128**2, "fp4": 0.5 + 1 / 16, "nvfp4": 0.5 + 1 / 16}
    if dtype not in sizes:
        raise InputError(f"case.dtype={dtype}: must be one of {', '.join(sizes)}{did_you_mean(str(dtype), sizes)}")
    gemm, stored = ("fp4", "nvfp4") if dtype in ("fp4", "nvfp4") else (dtype, dtype)
    if "layers" in run.config["model"]:
        return [f"++model.gemm={gemm}", f"++model.dtypes.experts={stored}", f"++model.dtypes.weights={stored}"]
    return [f"++model.gemm={gemm}", f"++model.weight_bytes={sizes[dtype]}", f"++model.expert_weight_bytes={sizes[dtype]}"]


def _load(case: Mapping[str, Any], run: Run) -> list[str]:
    """Where the tokens go: evenly dealt, balanced (even popularity), a preset of the sampler, or a recorded trace's folder."""
    load = str(case.get("load") or "balanced")
    router = case.get("router") or ("model" if run.model.router and load != "even" else "recorded")
    asked = [f"router={router}"]
    if load == "even":
        asked.append("trace=balanced")
    else:
        asked += ["trace=file", f"trace.path={load}"] if Path(load).is_dir() else ["trace=sampled", f"trace.preset={load}"]
    slots = case.get("slots")
    if slots is not None:
        asked.append(f"placement.slots={slots}")
    if slots is not None and slots > run.model.n_experts:
        asked += ["placement=eplb", f"decide.drift={case.get('drift', DRIFT)}"]
    elif case.get("drift") is not None:
        raise InputError(f"case.drift={case['drift']}: is what loads moved since EPLB decided; give slots, more than experts")
    return asked


def _shorter(run: Run) -> list[str]:
    """A long model in the short form with fewer MoE layers; they are all alike."""
    model = run.model
    if model.blocks is not None or model.n_moe_layers <= PLAYED or run.config["trace"]["name"] == "file":
        return []
    return [f"model.n_layers={model.n_layers - model.n_moe_layers + PLAYED}"]


def _middle_layer_s(result: Result) -> float:
    """Seconds of a MoE layer that is neither the first nor the last one."""
    moe = result.run.model.moe_layers
    gpus = result.tables["gpus"].filter(pl.col("layer").is_in(moe[1:-1]))
    whole = gpus.select(pl.sum_horizontal(*PARTS).sum()).item()
    steps, n = gpus["step"].n_unique(), gpus["gpu"].n_unique()
    return float(whole) / steps / n / (len(moe) - 2)


def _in(metric: str, result: Result, step_s: float, layers: int, cluster: Cluster) -> float:
    """The step in the metric of the case."""
    run = result.run
    made = float(result.summary["tokens"])
    if run.decoding is not None:
        made *= run.decoding.accepted / run.decoding.per_sequence
    each = 1.0 if run.decoding is None else run.decoding.accepted
    if metric in ("seconds per token", "tokens/s/user") and run.decoding is None:
        raise InputError(f"case.metric={metric}: belongs to phase decode")
    return {
        "seconds per step": step_s, "seconds per layer": step_s / layers, "seconds per token": step_s / each,
        "tokens/s/user": each / step_s, "tokens/s": made / step_s, "tokens/s/GPU": made / step_s / cluster.n_gpus,
        "tokens/s/node": made / step_s / cluster.n_nodes,
    }[metric]  # fmt: skip
