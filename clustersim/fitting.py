"""Whether what a run's GPUs hold fits into them: from config and workload to bytes, before anything is played."""

from __future__ import annotations

from math import ceil

import numpy as np

from clustersim.architecture import describe
from clustersim.cluster import Cluster
from clustersim.config import Run
from clustersim.engine.activations import Keeping
from clustersim.engine.memory import Load, Memory, need
from clustersim.types import Ints, Workload

OFFERS = {          # what the config of a forward pass lets one change, and how it is said
    "gpus": "{} GPUs", "sequence": "sequences of {} tokens", "micro_batch": "{} sequences per GPU",
    "context": "contexts of {} tokens", "weights": "weights in {}", "tensor": "parallel.tensor={}",
}  # fmt: skip


def memory_of(run: Run, cluster: Cluster, workload: Workload, slots_of: Ints) -> Memory:
    """What a forward pass needs on its fullest GPU: every group of GPUs has its own sequences.

    Args:
        slots_of: [gpus] experts of a layer that each holds.
    """
    given, n, tensor = run.config["workload"], cluster.n_gpus, run.group.tensor
    group = workload.source // tensor
    tokens = np.bincount(group, minlength=n // tensor)
    if given["phase"] == "decode":
        held = np.bincount(group, weights=workload.context)             # of all tokens of a sequence alike
        fullest, each = int(held.argmax()), 1 + given["draft"]
        batch = max(1, int(tokens[fullest]) // each)
        sizes = {"sequence": each, "micro_batch": batch, "context": ceil(held[fullest] / max(1, tokens[fullest]))}
    else:
        longest = min(int(tokens.max()), int(workload.context.max()))
        sizes = {"sequence": longest, "micro_batch": -(-int(tokens.max()) // longest)}
    load = Load(
        phase=given["phase"], **sizes, exchange=run.options("exchange")[0], slots=int(slots_of.max()),
        cache_value=run.model.cache_bytes, keeping=Keeping(value=run.model.activation_bytes, linear=run.model.activation_bytes),
    )  # fmt: skip
    return need(describe(run.config["model"]), run.group.of(n), load)


def check_memory(run: Run, cluster: Cluster, memory: Memory) -> None:
    """Refuse a run that does not fit, unless `memory=ignore`.

    Raises:
        InputError: what takes how much, and what would fit.
    """
    if run.config["memory"] == "check":
        memory.check(cluster.gpu.memory, name=run.topology, offers=OFFERS)
