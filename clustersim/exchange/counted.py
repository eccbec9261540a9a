"""What a whole trace of any size sends, layer by layer: read once, in parts, counted by source and expert GPU. No clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clustersim.exchange.copies import Gpus
from clustersim.types import Floats, InputError, Ints, Placement
from clustersim.workload.trace_file import open_trace
from clustersim.workload.trace_kernel import count_choices, count_distinct
from clustersim.workload.trace_stream import stream_columns

Owner = Callable[[Ints, int], Ints]         # (recorded ranks of some tokens, number of the first) -> the GPU of each


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Traffic:
    """Copies of tokens, by layer and source GPU."""

    copies: NDArray[np.int32]       # [layers, gpus, hosts] to the GPUs that hold experts
    host: Ints                      # [hosts] these GPUs
    nodes: NDArray[np.int32] | None         # [layers, gpus, nodes] one per token and other node; None without dedup
    n_gpus: int

    def matrix(self, layer: int, token_bytes: float) -> Floats:
        """Bytes from GPU to GPU in one layer's dispatch, float [gpus, gpus]; what stays on a GPU is 0."""
        found = np.zeros((self.n_gpus, self.n_gpus))
        found[:, self.host] = self.copies[layer] * token_bytes
        np.fill_diagonal(found, 0.0)
        return found


def traffic_of(path: str | Path, owner: Owner, placement: Placement, cluster: Gpus, *, node_dedup: bool = False) -> Traffic:
    """What the tokens of the trace at `path` send to their experts, in every layer; memory is that of a part of the trace and
    of the result, whatever its size.

    Args:
        owner: which GPU each token starts on.
        placement: one slot per expert, the same in all layers.
        node_dedup: one copy per token and GPU, and per token and node, as `node_dedup`; else one per choice, as `direct`.

    Raises:
        InputError: a placement with replicas or for another number of experts, or what `open_trace` raises.
    """
    file = open_trace(path)
    shape, n = file.shape, cluster.n_gpus
    if not np.array_equal(np.sort(placement.expert_of), np.arange(shape.n_experts)):
        raise InputError(f"{file.path}: {shape.n_experts} experts need a placement with one slot for each")
    gpu = np.empty(shape.n_experts, np.int64)
    gpu[placement.expert_of] = placement.gpu_of
    host, place = np.unique(gpu, return_inverse=True)
    place_of, node_of = place.astype(np.int32), cluster.node_of[gpu].astype(np.int32)
    copies = np.zeros((shape.n_layers, n, host.size), np.int32)
    nodes = np.zeros((shape.n_layers, n, cluster.n_nodes), np.int32) if node_dedup else None
    for begin, columns in stream_columns(file, ["rank", "expert_ids"]):
        ids = columns["expert_ids"].view(shape.id_dtype).reshape(-1, shape.n_layers, shape.top_k)
        source = owner(columns["rank"], begin)
        if nodes is None:
            count_choices(ids, source, place_of, copies)
        else:
            count_distinct(ids, source, place_of, node_of, cluster.node_of, copies, nodes)
    return Traffic(copies=copies, host=host, nodes=nodes, n_gpus=n)
