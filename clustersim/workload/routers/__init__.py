"""Routers: plain functions from scores to experts, `name(scores, *, options) -> (ids, weights)`. No clock, no drops.

    scores: float [tokens, experts], of the tokens of one GPU, before softmax or sigmoid.
    ids: int [tokens, width], distinct experts of each token; -1 no expert.
    weights: float [tokens, width], gate weights; 0 where there is no expert.

What a router needs beside scores and options it names as a keyword-only parameter, and gets it (`workload.routing`):

    k: experts per token; the model's top_k unless the option says otherwise.
    rng: a random stream of its own for this GPU's tokens in this layer.
    bias: float [experts], added for the choice alone; what `router.bias` has made of it.
    token_ids: int [tokens], word of each token.
    sequence: int [tokens], which sequence of the GPU's batch a token belongs to.
    layer: number of the MoE layer.
    near: bool [experts], experts of which the GPU's node holds a copy.
"""

from clustersim.workload.routers.assignment import base
from clustersim.workload.routers.batch import expert_choice, mixture_of_depths, sinkhorn, soft_moe
from clustersim.workload.routers.fixed import hash_table, random, round_robin
from clustersim.workload.routers.tiered import hierarchical, swipe, topology_aware
from clustersim.workload.routers.token_choice import group_limited, gshard, noisy_top_k, switch, top_k
from clustersim.workload.routers.variable import quantile_balanced, remoe, threshold, top_p
from clustersim.workload.routers.zero import longcat, moe_plus_plus

__all__ = [
    "base", "expert_choice", "group_limited", "gshard", "hash_table", "hierarchical", "longcat", "mixture_of_depths",
    "moe_plus_plus", "noisy_top_k", "quantile_balanced", "random", "remoe", "round_robin", "sinkhorn", "soft_moe", "swipe",
    "switch", "threshold", "top_k", "top_p", "topology_aware",
]  # fmt: skip
