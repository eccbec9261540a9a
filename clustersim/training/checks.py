"""What a training step's config may say, where nobody else judges it. Plays nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from clustersim.cluster import Cluster
from clustersim.composition import shown
from clustersim.config import Run
from clustersim.engine.activations import RECOMPUTE
from clustersim.engine.launches import GRAPHS
from clustersim.engine.machines import SCALINGS
from clustersim.engine.memory import OPTIMISERS
from clustersim.engine.pipelines import Pipeline
from clustersim.engine.stages import ordered
from clustersim.model import Model
from clustersim.parallel import Parallel
from clustersim.pick import did_you_mean
from clustersim.training.folding import check_split
from clustersim.types import InputError


def check_words(run: Run) -> None:
    """Judge keys that take one of a few words.

    Raises:
        InputError: another word, or one that a training step cannot follow.
    """
    for key, known in (("recompute", RECOMPUTE), ("optimiser", OPTIMISERS), ("cuda_graphs", GRAPHS), ("scaling", SCALINGS)):
        _one_of(f"workload.{key}", run.config["workload"][key], known)
    decide = run.config["decide"]["name"]
    if run.model.n_moe_layers and decide == "periodic":
        raise InputError("decide=periodic: a training step has one placement, and moves no experts; use decide=once")


def _one_of(key: str, value: Any, known: Iterable[str]) -> None:
    words = list(known)
    if value not in words:
        raise InputError(f"{key}={shown(value)}: must be one of {', '.join(words)}{did_you_mean(shown(value), words)}")


def pipeline_of(run: Run, parallel: Parallel, micro_batches: int) -> Pipeline:
    """The pipeline in the order that the config asks for.

    Raises:
        InputError: no such order, or sizes that it cannot take.
    """
    order, workload = run.config["parallel"]["order"], run.config["workload"]
    try:
        return ordered(shown(order), parallel.pipeline, micro_batches, parallel.virtual)
    except InputError as error:
        if "micro-batches" not in str(error):
            raise
        each = workload["micro_batch"] * parallel.data
        one = f"one is micro_batch {workload['micro_batch']} x {parallel.data} data parallel groups = {each} sequences"
        raise InputError(f"{error} ({one} of workload.global_batch={workload['global_batch']})") from error


def check_experts(model: Model, parallel: Parallel, per_node: int) -> None:
    """InputError where experts cannot be spread like that."""
    check_split(model, parallel.expert_tensor)
    if parallel.expert > model.n_experts:
        raise InputError(
            f"parallel.expert={parallel.expert}: more than the {model.n_experts} experts of a layer; "
            f"nearest that works: {model.n_experts}"
        )
    group = parallel.expert * parallel.expert_tensor
    if group > per_node and group % per_node:
        near, by = max(1, round(group / per_node)) * per_node, parallel.expert_tensor
        said, times = (f"; nearest that is: {near // by}", f" x expert_tensor {by}") if near % by == 0 else ("", "")
        raise InputError(
            f"parallel.expert={parallel.expert}{times if by > 1 else ''}: must be whole nodes of {per_node} GPUs{said}"
        )


def check_beside(run: Run, pipeline: Pipeline, cluster: Cluster, held: int) -> bool:
    """Whether some passes overlap, so that exchanges share the SMs with them.

    Args:
        held: SMs that the exchange has while it runs.

    Raises:
        InputError: it leaves none to compute with.
    """
    overlap = any(len(tasks) > 1 for device in pipeline.tasks for tasks in device)
    if overlap and cluster.gpu.sms is not None and held >= cluster.gpu.sms and run.config["compute"]["name"] == "kernels":
        raise InputError(
            f"exchange={run.options('exchange')[0]}: copies with all {cluster.gpu.sms} SMs, and parallel.order="
            f"{run.config['parallel']['order']} computes beside it; use parallel.order=one_f_one_b or another exchange"
        )
    return overlap


def first_built(build: Callable[[int], Cluster], *nodes: int) -> Cluster:
    """The machine of the first of these numbers of nodes that its topology can be built of; the error of the last otherwise."""
    for n in nodes[:-1]:
        try:
            return build(n)
        except InputError:
            continue
    return build(nodes[-1])


def told_of_group(error: InputError, run: Run) -> InputError:
    """What is wrong with an expert group, in keys that a training step has."""
    text = str(error)
    if not text.startswith("workload.tokens_per_gpu="):
        return error
    sizes = " ".join(f"workload.{key}={json.dumps(run.config['workload'][key])}" for key in ("sequence", "micro_batch", "steps"))
    return InputError(f"{sizes}: a GPU's share is {text.removeprefix('workload.tokens_per_gpu=').replace(': ', ' tokens: ', 1)}; "
                      "or use trace=sampled, which has as many as are asked for")
