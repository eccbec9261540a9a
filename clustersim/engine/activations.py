"""What a layer keeps of a token between its forward and its backward pass, part by part. Bytes only: no weights, no schedule.

The accounting is that of arXiv 2205.05198 (what each operator needs of its inputs to go back), taken operator by operator so
that it holds for every part: with dropout and kept scores it is that paper's `s b h (34 + 5 a s / h)`, and with its splits.
"""

from __future__ import annotations

from dataclasses import dataclass

from clustersim.parallel import Parallel
from clustersim.parts import Attention, Dense, Latent, Mamba, Moe, Part, Retention
from clustersim.pick import did_you_mean
from clustersim.types import InputError

RECOMPUTE = {       # what is computed again going back, and so not kept
    "none": "nothing",
    "selective": "scores of attention (arXiv 2205.05198; with flash attention they never are kept)",
    "norm_act": "norms and what comes out of activations (Megatron-LM: layernorm, moe_act)",
    "latents": "up-projections of multi-head latent attention (Megatron-LM: mla_up_proj)",
    "deepseek_v3": "norms, up-projections of multi-head latent attention, outputs of SwiGLU (arXiv 2412.19437 §3.2.3)",
    "full": "whole layers, from their inputs",
}
OUTPUTS = ("norm_act", "deepseek_v3")       # those that keep no outputs of norms and activations
LATENTS = ("latents", "deepseek_v3")        # those that keep latents and not what is made of them
STATISTICS = 4.0    # bytes per head and token that flash attention keeps: the logarithm of the sum, in FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How activations are kept."""

    recompute: str = "none"         # one of `RECOMPUTE`
    value: float = 2.0              # bytes of an activation
    linear: float = 2.0             # of an input of a linear operator: FP8 with a 4-byte scale per 128 = 1 + 4/128
    flash: bool = True              # scores are never written
    dropout: bool = False           # masks are kept, as models up to GPT-3 had it

    def __post_init__(self) -> None:
        if self.recompute not in RECOMPUTE:
            near = did_you_mean(self.recompute, RECOMPUTE)
            raise InputError(f"recompute={self.recompute}: must be one of {', '.join(RECOMPUTE)}{near}")


def kept_of_layer(
    layer: tuple[Part, ...], hidden: int, parallel: Parallel, keeping: Keeping, *, sequence: int, imbalance: float = 1.0
) -> float:
    """Bytes that a GPU keeps of one token of its sequences in one layer.

    What lies between parts is split over the tensor group with `sequence_parallel`. Routed rows are those that arrive, over the
    GPUs of a stage evenly times `imbalance`.

    Args:
        sequence: tokens that a token may look at, where scores are kept.
    """
    if keeping.recompute == "full":
        return keeping.value * hidden / _between(parallel)
    return sum(_kept_of_part(part, hidden, parallel, keeping, sequence, imbalance) for part in layer)


def in_hand(
    layer: tuple[Part, ...], hidden: int, parallel: Parallel, keeping: Keeping, *, sequence: int, imbalance: float = 1.0
) -> float:
    """Bytes per token of a layer whose forward pass is computed again, or that nobody goes back through."""
    whole = Keeping(value=keeping.value, linear=keeping.linear, flash=keeping.flash, dropout=keeping.dropout)
    return kept_of_layer(layer, hidden, parallel, whole, sequence=sequence, imbalance=imbalance)


def _between(parallel: Parallel) -> int:
    return parallel.tensor if parallel.sequence_parallel else 1


def _kept_of_part(
    part: Part, hidden: int, parallel: Parallel, keeping: Keeping, sequence: int, imbalance: float
) -> float:
    """A part with the norm before it and what is added after it."""
    between, a, linear = _between(parallel), keeping.value, keeping.linear
    normed = 0.0 if keeping.recompute in OUTPUTS else linear * hidden / between
    around = a * hidden / between + normed + (hidden / between if keeping.dropout else 0.0)
    if isinstance(part, Attention):
        return around + _attention(part, parallel.tensor, keeping, sequence)
    if isinstance(part, Latent):
        return around + _latent(part, parallel, keeping, sequence)
    if isinstance(part, Dense):
        return around + part.share * _ffn(part.size / parallel.tensor, part.matrices, keeping)
    if isinstance(part, Moe):
        rows = imbalance * part.top_k * part.experts / (part.experts + part.zero_experts) / parallel.tensor
        arrived = linear * hidden * parallel.expert_tensor + _ffn(part.size, part.matrices, keeping)
        router = 2 * STATISTICS * (part.experts + part.zero_experts) / between      # FP32 scores, before and after
        shared = _ffn(part.shared_size / parallel.tensor, part.matrices, keeping) if part.shared_size else 0.0
        return around + rows * arrived + router + shared
    if isinstance(part, Retention):
        gate = 2 * a if part.gated else 0.0
        return around + (2 * a * part.key_dim + (a + gate + linear) * part.value_dim) / parallel.tensor
    if isinstance(part, Mamba):         # input and gate, convolved, dt with B and C, scanned, gated
        return around + ((5 * a + linear) * part.inner + 2 * a * part.state) / parallel.tensor
    convolved = part.inner + 2 * part.groups * part.state
    return around + (a * (part.inner + 2 * convolved + part.heads) + (a + linear) * part.inner) / parallel.tensor


def _ffn(size: float, matrices: int, keeping: Keeping) -> float:
    """What goes into the activation function, and what comes out of it."""
    activated = 0.0 if keeping.recompute in OUTPUTS else keeping.linear * size
    inward = keeping.linear if keeping.recompute == "deepseek_v3" else keeping.value
    return (matrices - 1) * inward * size + activated


def _attention(part: Attention, tensor: int, keeping: Keeping, sequence: int) -> float:
    query, keys = part.heads * part.head_dim / tensor, 2 * max(part.kv_heads / tensor, 1) * part.head_dim
    gate = 2 * keeping.value * query if part.gated else 0.0
    seen = sequence if part.window is None else min(sequence, part.window)
    return keeping.value * (2 * query + keys) + gate + _scores(part.heads / tensor, keeping, seen)


def _latent(part: Latent, parallel: Parallel, keeping: Keeping, sequence: int) -> float:
    """Latents are whole on every GPU of a tensor group, or split along the sequence; heads are split."""
    latents = (part.q_rank or 0) + part.kv_rank
    each = part.heads / parallel.tensor
    out, scores = keeping.value * each * part.value_dim, _scores(each, keeping, sequence)
    down = keeping.value * (latents + part.rope_dim) / _between(parallel)
    normed = 0.0 if keeping.recompute in OUTPUTS else keeping.linear * latents / _between(parallel)
    if keeping.recompute in LATENTS:
        return down + normed + out + scores
    up = keeping.value * each * (2 * (part.nope_dim + part.rope_dim) + part.value_dim)
    return down + normed + up + out + scores


def _scores(heads: float, keeping: Keeping, seen: int) -> float:
    if keeping.flash:
        return STATISTICS * heads
    if keeping.recompute != "none":
        return 0.0
    dropped = keeping.value + 1 if keeping.dropout else 0.0         # the output of dropout and its mask
    return (keeping.value + dropped) * heads * seen
