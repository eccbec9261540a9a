"""Forward and backward passes of a layer's parts in training: what is multiplied and what is moved. Times nothing itself.

A backward pass gives the gradient of the input (I) and that of the weights (W): two products as large as the forward one. Beside
the products a part reads its input through a norm, adds what it makes to the residual stream, and moves its intermediate values
through memory; `share` of a tensor group's GPUs splits matrices by columns and rows, and what lies between parts by tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from clustersim.engine.machines import Machine, Values
from clustersim.matrices import gemms, split
from clustersim.parts import Attention, Dense, Latent, Mamba, Mamba2, Moe, Part, Retention
from clustersim.types import Ints

WIDE = 2.0              # bytes of a value between kernels: BF16
BIAS = 28.0             # bytes of a value that experts' biases move: times probability (4), added (10), joined (8), narrowed (6)
BIAS_BACK = 40.0        # the same on the way back: widened (6), narrowed (6), joined (4), for biases and probabilities (12 each)
BACK_MIXING = 2.5       # of the forward FLOPs: scores again, then four products (FlashAttention-2, arXiv 2307.08691)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Passes:
    """Seconds of one part on each GPU, [gpus]."""

    forward_s: Values       # F
    input_s: Values         # I
    weight_s: Values        # W

    @staticmethod
    def none(n_gpus: int) -> Passes:
        """Nothing to do."""
        return Passes(forward_s=np.zeros(n_gpus), input_s=np.zeros(n_gpus), weight_s=np.zeros(n_gpus))

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            forward_s=self.forward_s + other.forward_s, input_s=self.input_s + other.input_s,
            weight_s=self.weight_s + other.weight_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a framework goes about a layer, beyond its products."""

    router: int = 0             # kernels of a router forward, in FP32 as Megatron-LM has it; 0: one product and nothing around it
    copies: bool = False        # a token is copied for each of its experts before it is sent, and its results are summed at home
    padded: bool = False        # experts' rows are padded for quantised products by a pass of their own, and cut off after them
    norms_again: bool = False   # norms are computed again on the way back, not kept
    activations_again: bool = False     # the same of the activations of FFNs and experts
    latents_again: bool = False         # and of the up-projections of multi-head latent attention


PLAIN = Habits()


def part_passes(
    part: Part, hidden: int, tokens: Ints, pairs: Values, machine: Machine, tensor: int = 1, pieces: int = 1,
    habits: Habits = PLAIN,
) -> Passes:  # fmt: skip
    """A part of a layer, without its routed experts and without what a tensor group sends.

    Args:
        tokens: int [gpus], that pass through the part on the GPU: all of a tensor group's.
        pairs: float [gpus], (token, token it looks at) of these.
        machine: how long products and moves take.
        tensor: GPUs that share the part.
        pieces: into how many the tokens are split between the parts: `tensor` with sequence parallelism, else 1.
    """
    rows = tokens if not isinstance(part, Dense) else np.ceil(tokens * part.share).astype(np.int64)
    total = Passes.none(tokens.size)
    if isinstance(part, Moe):
        total += _product(machine, rows, part.experts + part.zero_experts, hidden)
        total += _around_experts(part, hidden, tokens / pieces, machine, habits)
    for n, k in gemms(split(part, tensor), hidden):
        total += _product(machine, rows, n, k)
    mixing = part.mixing_flops(1.0, False) * pairs if _by_pairs(part) else part.mixing_flops(1.0, False) * tokens
    if mixing.any():
        total += Passes(
            forward_s=machine.mixing(mixing / tensor, False, _width(part)),
            input_s=machine.mixing(BACK_MIXING * mixing / tensor, True, _width(part)), weight_s=np.zeros(tokens.size),
        )  # fmt: skip
    between, inside = tokens * (hidden * WIDE / pieces), rows * (_inner(part) * WIDE / tensor)
    # norm: in and out; residual: two in, one out. Back: gradient and input in, gradient out; sum with the one passed by
    again = _again(part, hidden, rows, between, machine, tensor, habits)
    back = machine.move(2, 6 * between) + machine.move(1, 4 * inside) + again
    return total + Passes(
        forward_s=machine.move(2, 5 * between) + machine.move(1, 2 * inside), input_s=back, weight_s=np.zeros(tokens.size)
    )


def _around_experts(part: Moe, hidden: int, tokens: Values, machine: Machine, habits: Habits) -> Passes:
    """What a router does beside its product, and the copies made of tokens before they are sent, and what is summed of them.

    The operand is widened to FP32, and four kernels go over all scores; the others of a router are small.
    """
    scores = tokens * ((part.experts + part.zero_experts) * 4.0)
    none = np.zeros(tokens.size)
    forward = machine.move(habits.router, tokens * (hidden * (WIDE + 4.0)) + 8 * scores) if habits.router else none
    moved = tokens * ((1 + part.top_k) * hidden * WIDE)
    both = machine.move(2, 2 * moved) if habits.copies else none
    return Passes(forward_s=forward + both, input_s=both, weight_s=none)


def _again(
    part: Part, hidden: int, rows: Ints, between: Values, machine: Machine, tensor: int, habits: Habits
) -> Values:
    """What of a part is computed once more on the way back."""
    seconds: Values = machine.move(1, 2 * between) if habits.norms_again else np.zeros(between.size)
    if habits.activations_again and isinstance(part, Dense | Moe):
        seconds = seconds + machine.move(1, rows * (2 * _inner(part) * WIDE / tensor))
    if habits.latents_again and isinstance(part, Latent):
        for n, k in gemms(split(part, tensor), hidden)[1:-1]:
            seconds = seconds + machine.product(rows, n, k)
    return seconds


def expert_passes(
    part: Moe, hidden: int, rows: Ints, owner: Ints, n_gpus: int, machine: Machine, through: Values, habits: Habits = PLAIN
) -> Passes:
    """The routed experts of one layer: permutation, products, activation, and the way back of each.

    Where experts have biases (GPT-OSS), clamping both halves of what goes into the activation and joining them are kernels of
    their own, as are biases of what comes out, in FP32 and expert by expert: what Megatron-LM has not fused.

    Args:
        rows: int [slots], tokens each expert works on.
        owner: int [slots], GPU that holds it.
        through: float [gpus], tokens that arrived.

    Source: github:NVIDIA/Megatron-LM core/fusions/fused_bias_geglu.py (`weighted_bias_quick_geglu_impl`) and
    core/transformer/moe/experts.py (`_apply_bias`, `quantization_padding`, which exchanges that permute for themselves skip).
    """
    wide = (part.matrices - 1) * part.size
    used: Values = np.bincount(owner, rows, n_gpus)
    total = Passes.none(n_gpus)
    for n, k in ((wide, hidden), (hidden, part.size)):
        total += Passes(
            forward_s=machine.grouped(rows, owner, n_gpus, n, k), input_s=machine.grouped(rows, owner, n_gpus, k, n),
            weight_s=machine.grouped_weight(rows, owner, n_gpus, n, k),
        )  # fmt: skip
    moved = (used + through) * hidden * WIDE
    # rows scattered to their experts and gathered from them; activation: wide in, size out
    activation = machine.move(1, used * (wide + part.size) * WIDE)
    back = machine.move(1, used * (2 * wide + part.size) * WIDE)
    forward = machine.move(2, 2 * moved)
    if habits.padded:
        forward = forward + machine.move(2, used * (4 * hidden * WIDE))
        back = back + machine.move(2, used * (4 * hidden * WIDE))
    if part.biased:
        slots: Values = np.bincount(owner, minlength=n_gpus)
        activation = activation + machine.move(3, used * (4 * wide * WIDE))
        back = back + machine.move(3, used * (5 * wide * WIDE))
        forward = forward + machine.move(2 + 2 * slots, used * (BIAS * hidden))
        back = back + machine.move(2 + 6 * slots, used * (BIAS_BACK * hidden))
    again = activation if habits.activations_again else np.zeros(n_gpus)
    return total + Passes(
        forward_s=forward + activation, input_s=machine.move(2, 2 * moved) + back + again, weight_s=np.zeros(n_gpus)
    )


def head_passes(vocab: int, hidden: int, tokens: Ints, machine: Machine, tensor: int = 1) -> Passes:
    """Unembedding and cross-entropy: logits in FP32, read twice and written back as their gradient."""
    columns = vocab // tensor
    logits = tokens * (columns * 4.0)
    return Passes(
        forward_s=machine.product(tokens, columns, hidden) + machine.move(2, 2 * logits),
        input_s=machine.product(tokens, hidden, columns) + machine.move(1, 2 * logits),
        weight_s=machine.weight_product(tokens, columns, hidden),
    )


def _product(machine: Machine, rows: Ints, n: int, k: int) -> Passes:
    return Passes(
        forward_s=machine.product(rows, n, k), input_s=machine.product(rows, k, n), weight_s=machine.weight_product(rows, n, k)
    )


def _by_pairs(part: Part) -> bool:
    return isinstance(part, Attention | Latent)


def _width(part: Part) -> float:
    """Of a head, mean over queries and values; where a state is kept nothing depends on it."""
    match part:
        case Attention():
            return float(part.head_dim)
        case Latent():
            return (part.nope_dim + part.rope_dim + part.value_dim) / 2
        case _:
            return math.inf


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
