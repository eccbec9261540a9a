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

    Per part: its products, a norm, a residual and an activation; of attention what was measured of all of it, and as much on the
    way back, where each of its operations has one. Routers count as published, forward alone.
    """
    host = load_kernel("host")
    if graphs == "all":
        return NOTHING
    if graphs == "attention":
        return Launches(forward_s=host["op"] * len(layer), input_s=host["op"] * len(layer))
    each = host["gemm"] * (host["quantised"] if precision.rate != "bf16" else 1.0)
    total = NOTHING
    for part in layer:
        products = len(gemms(part, hidden)) * each
        around = host["attention"] if isinstance(part, Attention | Latent) else 3
        router = host["router_fused" if exchange in FUSED else "router"] if isinstance(part, Moe) else 0.0
        total += Launches(
            forward_s=products + host["op"] * (around + router), input_s=products + host["op"] * around, weight_s=products
        )
    return total


def expert_launches(
    slots: float, precision: Precision, *, exchange: str, graphs: str = "none", biased: bool = False
) -> Launches:
    """The routed experts of a layer on a GPU with so many `slots`: a GEMM for each and product, permutations, an activation.

    Exchanges that do not prepare themselves are a handful of operations on either side. Biases are added expert by expert, in two
    operations, and have six on the way back.

    Source: github:NVIDIA/TransformerEngine GroupedLinear, many streams with a cuBLAS GEMM for every expert;
    github:NVIDIA/Megatron-LM core/transformer/moe/experts.py, `_apply_bias`.
    """
    if graphs == "all":
        return NOTHING
    host = load_kernel("host")
    each = host["gemm"] * (host["quantised"] if precision.rate != "bf16" else 1.0)
    products, op = 2 * slots * each, host["op"]                     # gate and up are one
    around = (2 if exchange in FUSED else host["dispatcher"]) + 1
    added, back = (2 * slots, 6 * slots) if biased else (0.0, 0.0)
    return Launches(forward_s=products + op * (around + added), input_s=products + op * (around + back), weight_s=products)


def head_launches(graphs: str = "none") -> Launches:
    """Unembedding and loss: products in BF16."""
    if graphs == "all":
        return NOTHING
    host = load_kernel("host")
    return Launches(forward_s=host["gemm"] + 2 * host["op"], input_s=host["gemm"] + host["op"], weight_s=host["gemm"])
