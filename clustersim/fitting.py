"""Whether what a run's GPUs hold fits into them: from config and workload to bytes, before anything is played."""

from __future__ import annotations

import numpy as np

from clustersim.architecture import describe
from clustersim.cluster import Cluster
from clustersim.config import Run
from clustersim.engine.activations import Keeping
from clustersim.engine.memory import Load, Memory, need
from clustersim.parallel import Parallel
from clustersim.types import Ints, Workload

OFFERS = {          # what the config of a forward pass lets one change, and how it is said
    "gpus": "{} GPUs", "sequence": "sequences of {} tokens", "micro_batch": "{} sequences per GPU", "weights": "weights in {}",
}  # fmt: skip


def memory_of(run: Run, cluster: Cluster, workload: Workload, slots_of: Ints) -> Memory:
    """What a prefill pass needs: every GPU has its own sequences, and experts are spread over all.

    Args:
        slots_of: [gpus] experts of a layer that each holds.
    """
    tokens = int(np.bincount(workload.source, minlength=cluster.n_gpus).max())
    sequence = min(tokens, int(workload.context.max()))
    load = Load(
        phase="prefill", sequence=sequence, micro_batch=-(-tokens // sequence), exchange=run.options("exchange")[0],
        keeping=Keeping(value=run.model.activation_bytes, linear=run.model.activation_bytes), slots=int(slots_of.max()),
    )  # fmt: skip
    return need(describe(run.config["model"]), Parallel(gpus=cluster.n_gpus, expert=cluster.n_gpus), load)


def check_memory(run: Run, cluster: Cluster, memory: Memory) -> None:
    """Refuse a run that does not fit, unless `memory=ignore`.

    Raises:
        InputError: what takes how much, and what would fit.
    """
    if run.config["memory"] == "check":
        memory.check(cluster.gpu.memory, name=run.topology, offers=OFFERS)
