"""Where experts live: plain functions from past load and room to the `Placement` of one layer. Pure NumPy, no clock.

A placement is `name(rng, past, room, *, options) -> Placement`; it sees what is in `past.Past` and nothing of the steps that
it will serve. Which of an expert's replicas a token goes to is decided in `placement.replicas`.
"""

from clustersim.placement.affinity import coactivation, islands, next_layer, source_aware
from clustersim.placement.deepseek import eplb, eplb_global, eplb_hierarchical
from clustersim.placement.exact import milp
from clustersim.placement.packing import lpt, topology_greedy
from clustersim.placement.searches import annealing, local_search
from clustersim.placement.serving import eplb_vllm, sglang_topology, sglang_vec
from clustersim.placement.shadowing import shadow
from clustersim.placement.static import contiguous, random, round_robin

__all__ = [
    "annealing", "coactivation", "contiguous", "eplb", "eplb_global", "eplb_hierarchical", "eplb_vllm", "islands", "local_search",
    "lpt", "milp", "next_layer", "random", "round_robin", "sglang_topology", "sglang_vec", "shadow", "source_aware",
    "topology_greedy",
]  # fmt: skip
