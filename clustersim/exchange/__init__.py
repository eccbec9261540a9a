"""How tokens travel: plain functions from a routing and a placement to the transfers between GPUs. Pure NumPy, no clock.

An exchange is `name(phase, routing, placement, cluster, model, *, options) -> Transfers`; phase "dispatch" takes tokens to
their experts, "combine" takes the results home. Options are keyword-only. What a link costs is not known here.
"""

from clustersim.exchange.alltoall import direct
from clustersim.exchange.collective import nccl_alltoall
from clustersim.exchange.deepep import deepep_low_latency, deepep_low_latency_rdma, deepep_normal
from clustersim.exchange.hierarchical import node_dedup
from clustersim.exchange.onesided import rank_dedup, trtllm_one_sided

__all__ = [
    "deepep_low_latency", "deepep_low_latency_rdma", "deepep_normal", "direct", "nccl_alltoall", "node_dedup", "rank_dedup",
    "trtllm_one_sided",
]  # fmt: skip

PADDING = frozenset({"direct"})         # those that send the rows of `routing.padding`; the others must not be given any
