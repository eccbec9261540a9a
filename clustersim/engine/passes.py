"""Forward and backward passes of a layer's parts in training: which matrices are multiplied and what is moved. Times nothing itself.

A backward pass gives the gradient of the input (I) and that of the weights (W): two products as large as the forward one. Beside
the products a part reads its input through a norm, adds what it makes to the residual stream, and moves its intermediate values
through memory; `share` of a tensor group's GPUs splits matrices by columns and rows, and what lies between parts by tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clustersim.engine.machines import Machine
from clustersim.matrices import gemms, split
from clustersim.parts import Attention, Dense, Latent, Mamba, Mamba2, Moe, Part, Retention
from clustersim.types import Floats, Ints

WIDE = 2.0              # bytes of a value between kernels: BF16
BACK_MIXING = 2.5       # of the forward FLOPs: scores again, then four products (FlashAttention-2, arXiv 2307.08691)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Passes:
    """Seconds of one part on each GPU, [gpus]."""

    forward_s: Floats       # F
    input_s: Floats         # I
    weight_s: Floats        # W

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            forward_s=self.forward_s + other.forward_s, input_s=self.input_s + other.input_s,
            weight_s=self.weight_s + other.weight_s,
        )  # fmt: skip


def part_passes(
    part: Part, hidden: int, tokens: Ints, pairs: Floats, machine: Machine, tensor: int = 1, pieces: int = 1
) -> Passes:
    """A part of a layer, without its routed experts and without what a tensor group sends.

    Args:
        tokens: int [gpus], that pass through the part on the GPU: all of a tensor group's.
        pairs: float [gpus], (token, token it looks at) of these.
        machine: how long products and moves take.
        tensor: GPUs that share the part.
        pieces: into how many the tokens are split between the parts: `tensor` with sequence parallelism, else 1.
    """
    rows = tokens if not isinstance(part, Dense) else np.ceil(tokens * part.share).astype(np.int64)
    forward, back, weight = np.zeros(tokens.size), np.zeros(tokens.size), np.zeros(tokens.size)
    if isinstance(part, Moe):
        forward, back, weight = _product(machine, rows, part.experts + part.zero_experts, hidden)
    for n, k in gemms(split(part, tensor), hidden):
        one = _product(machine, rows, n, k)
        forward, back, weight = forward + one[0], back + one[1], weight + one[2]
    mixing = part.mixing_flops(1.0, False) * pairs if _by_pairs(part) else part.mixing_flops(1.0, False) * tokens
    if mixing.any():
        forward = forward + machine.mixing(mixing / tensor, False)
        back = back + machine.mixing(BACK_MIXING * mixing / tensor, True)
    between, inside = tokens * (hidden * WIDE / pieces), rows * (_inner(part) * WIDE / tensor)
    # norm: in and out; residual: two in, one out. Back: gradient and input in, gradient out; sum with the one passed by
    forward = forward + machine.move(2, 5 * between) + machine.move(1, 2 * inside)
    back = back + machine.move(2, 6 * between) + machine.move(1, 4 * inside)
    return Passes(forward_s=forward, input_s=back, weight_s=weight)


def expert_passes(part: Moe, hidden: int, rows: Ints, owner: Ints, n_gpus: int, machine: Machine, through: Floats) -> Passes:
    """The routed experts of one layer: permutation, products, activation, and the way back of each.

    Args:
        rows: int [slots], tokens each expert works on.
        owner: int [slots], GPU that holds it.
        through: float [gpus], tokens that arrived.
    """
    wide = (part.matrices - 1) * part.size
    used: Floats = np.bincount(owner, rows, n_gpus).astype(np.float64)
    forward, back, weight = np.zeros(n_gpus), np.zeros(n_gpus), np.zeros(n_gpus)
    for n, k in ((wide, hidden), (hidden, part.size)):
        forward = forward + machine.grouped(rows, owner, n_gpus, n, k)
        back = back + machine.grouped(rows, owner, n_gpus, k, n)
        weight = weight + machine.grouped_weight(rows, owner, n_gpus, n, k)
    moved = (used + through) * hidden * WIDE
    # rows scattered to their experts and gathered from them; activation: wide in, size out
    forward = forward + machine.move(2, 2 * moved) + machine.move(1, used * (wide + part.size) * WIDE)
    back = back + machine.move(2, 2 * moved) + machine.move(1, used * (2 * wide + part.size) * WIDE)
    return Passes(forward_s=forward, input_s=back, weight_s=weight)


def head_passes(vocab: int, hidden: int, tokens: Ints, machine: Machine, tensor: int = 1) -> Passes:
    """Unembedding and cross-entropy: logits in FP32, read twice and written back as their gradient."""
    columns = vocab // tensor
    logits = tokens * (columns * 4.0)
    return Passes(
        forward_s=machine.product(tokens, columns, hidden) + machine.move(2, 2 * logits),
        input_s=machine.product(tokens, hidden, columns) + machine.move(1, 2 * logits),
        weight_s=machine.weight_product(tokens, columns, hidden),
    )


def _product(machine: Machine, rows: Ints, n: int, k: int) -> tuple[Floats, Floats, Floats]:
    return machine.product(rows, n, k), machine.product(rows, k, n), machine.weight_product(rows, n, k)


def _by_pairs(part: Part) -> bool:
    return isinstance(part, Attention | Latent)


def _inner(part: Part) -> float:
    """Values of a token inside a part that pass through memory beside the products: rotation, activation, scan."""
    match part:
        case Attention():
            return (part.heads + part.kv_heads) * part.head_dim
        case Latent():
            return part.heads * (part.nope_dim + 2 * part.rope_dim + part.value_dim)
        case Retention():
            return 2 * part.key_dim + 2 * part.value_dim
        case Mamba() | Mamba2():
            return 4 * part.inner
        case Dense():
            return part.matrices * part.size / 2
        case Moe():
            return part.matrices * part.shared_size / 2
