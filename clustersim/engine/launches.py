"""What launching the kernels of a layer costs the host, part by part, where a framework runs operator by operator. Plays nothing.

A GPU that is through with a kernel before the host has launched the next one waits. The host runs ahead as far as it can, so that
over a pass the longer of the two counts. A CUDA graph is one launch, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clustersim.engine.gemm import Precision
from clustersim.kernels import load_kernel
from clustersim.matrices import gemms
from clustersim.parts import Attention, Latent, Moe, Part

GRAPHS = {          # what of a layer is replayed from CUDA graphs
    "none": "nothing",
    "attention": "all but the routed experts (Megatron-LM: attn, moe_router, moe_preprocess)",
    "all": "whole steps",
}
FUSED = ("deepep_normal", "deepep_v2", "hybrid_ep")       # exchanges that prepare themselves in a kernel of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    """Seconds of the host."""

    forward_s: float = 0.0
    input_s: float = 0.0        # of the gradients of inputs
    weight_s: float = 0.0

    def __add__(self, other: Launches) -> Launches:
        return Launches(
            forward_s=self.forward_s + other.forward_s, input_s=self.input_s + other.input_s,
            weight_s=self.weight_s + other.weight_s,
        )  # fmt: skip


NOTHING = Launches()


def own_launches(layer: Sequence[Part], hidden: int, precision: Precision, *, exchange: str, graphs: str = "none") -> Launches:
    """All of a layer but its routed experts.

    Per part: a norm (two kernels back), a residual, a rotation or an activation, its products, and attention itself (three back,
    as FlashAttention). Routers count as published, forward alone.
    """
    host = load_kernel("host")
    if graphs == "all":
        return NOTHING
    if graphs == "attention":
        return Launches(forward_s=host["op"] * len(layer), input_s=host["op"] * len(layer))
    each = host["gemm"] * (host["quantised"] if precision.rate != "bf16" else 1.0)
    total = NOTHING
    for part in layer:
        products, mixes = len(gemms(part, hidden)), isinstance(part, Attention | Latent)
        router = host["router_fused" if exchange in FUSED else "router"] if isinstance(part, Moe) else 0.0
        total += Launches(
            forward_s=products * each + host["op"] * (3 + mixes + router), input_s=products * each + host["op"] * (3 + 3 * mixes),
            weight_s=products * each,
        )  # fmt: skip
    return total


def expert_launches(slots: float, precision: Precision, *, graphs: str = "none") -> Launches:
    """The routed experts of a layer on a GPU with so many `slots`: a GEMM for each and product, two permutations, an activation.

    Source: github:NVIDIA/TransformerEngine GroupedLinear, many streams with a cuBLAS GEMM for every expert.
    """
    if graphs == "all":
        return NOTHING
    host = load_kernel("host")
    each = host["gemm"] * (host["quantised"] if precision.rate != "bf16" else 1.0)
    products = 2 * slots                    # gate and up are one
    return Launches(
        forward_s=products * each + 3 * host["op"], input_s=products * each + 3 * host["op"], weight_s=products * each,
    )  # fmt: skip


def head_launches(graphs: str = "none") -> Launches:
    """Unembedding and loss: products in BF16."""
    if graphs == "all":
        return NOTHING
    host = load_kernel("host")
    return Launches(forward_s=host["gemm"] + 2 * host["op"], input_s=host["gemm"] + host["op"], weight_s=host["gemm"])
