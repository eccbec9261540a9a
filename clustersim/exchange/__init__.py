"""How tokens travel: plain functions from a routing and a placement to the transfers between GPUs. Pure NumPy, no clock.

An exchange is `name(phase, routing, placement, cluster, model, *, options) -> Transfers`; phase "dispatch" takes tokens to
their experts, "combine" takes the results home. Options are keyword-only. What a link costs is not known here.
"""

from clustersim.exchange.alltoall import direct
from clustersim.exchange.collective import nccl_alltoall
from clustersim.exchange.deepep import deepep_low_latency, deepep_low_latency_rdma, deepep_normal
from clustersim.exchange.hierarchical import node_dedup
from clustersim.exchange.hybrids import allgather, deepep_v2, hybrid_ep
from clustersim.exchange.onesided import rank_dedup, trtllm_one_sided
from clustersim.exchange.relayed import hierarchical_2d, pxn, tensor_expert
from clustersim.exchange.rounds import pairwise

__all__ = [
    "allgather", "deepep_low_latency", "deepep_low_latency_rdma", "deepep_normal", "deepep_v2", "direct", "hierarchical_2d",
    "hybrid_ep", "nccl_alltoall", "node_dedup", "pairwise", "pxn", "rank_dedup", "tensor_expert", "trtllm_one_sided",
]  # fmt: skip

PADDING = frozenset({"direct", "nccl_alltoall", "pairwise"})     # send the rows of `routing.padding`; others get none
