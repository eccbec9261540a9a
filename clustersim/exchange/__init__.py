"""How tokens travel: plain functions from a routing and a placement to the transfers between GPUs. Pure NumPy, no clock.

An exchange is `name(phase, routing, placement, cluster, model, *, options) -> Transfers`; phase "dispatch" takes tokens to
their experts, "combine" takes the results home. Options are keyword-only. What a link costs is not known here.
"""

from clustersim.exchange.alltoall import direct
from clustersim.exchange.hierarchical import node_dedup

__all__ = ["direct", "node_dedup"]

PADDING = frozenset({"direct"})         # those that send the rows of `routing.padding`; the others must not be given any
