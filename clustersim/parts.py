"""What layers are made of: mixers along the sequence and feed-forward parts, each counted by itself. No order, no model.

Every kind has `params(hidden)`, weights it holds; `active(hidden)`, those that serve a token (expected, where it depends on the
router); `mixing_flops(context, decode)`, FLOPs of a token beyond two per active weight; `cached(context)`, values that are kept
per sequence of that length. Biases, norms and sinks are left out (below 0.1 % of any model here).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from clustersim.pick import did_you_mean
from clustersim.types import InputError

STATE_FLOPS = 6         # of one value of a state and token: decay, input and output, a multiplication and an addition each


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Multi-head, grouped-query or multi-query attention (kv_heads = heads, fewer, 1), over all or the last `window` tokens."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None           # tokens a token looks at, itself included; null: all
    gated: bool = False                 # an output gate as wide as the heads

    def params(self, hidden: int) -> int:
        return hidden * self.head_dim * ((3 if self.gated else 2) * self.heads + 2 * self.kv_heads)

    def active(self, hidden: int) -> float:
        return self.params(hidden)

    def mixing_flops(self, context: float, decode: bool) -> float:
        return 4.0 * self.heads * self.head_dim * self._seen(context)

    def cached(self, context: float) -> float:
        return 2.0 * self.kv_heads * self.head_dim * self._seen(context)

    def _seen(self, context: float) -> float:
        return context if self.window is None else min(context, self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""

    heads: int
    q_rank: int | None                  # null: queries are projected in one step
    kv_rank: int
    nope_dim: int                       # of a head's query and key without position
    rope_dim: int                       # with position, one key for all heads
    value_dim: int

    def params(self, hidden: int) -> int:
        query = self.heads * (self.nope_dim + self.rope_dim)
        queries = hidden * query if self.q_rank is None else self.q_rank * (hidden + query)
        latent = hidden * (self.kv_rank + self.rope_dim) + self.kv_rank * self.heads * (self.nope_dim + self.value_dim)
        return queries + latent + self.heads * self.value_dim * hidden

    def active(self, hidden: int) -> float:
        return self.params(hidden)

    def mixing_flops(self, context: float, decode: bool) -> float:
        """Prefill with keys and values expanded; decode with the expansion absorbed, over the latents themselves."""
        expanded = self.nope_dim + self.rope_dim + self.value_dim
        absorbed = self.kv_rank + self.rope_dim + self.kv_rank
        return 2.0 * self.heads * (absorbed if decode else expanded) * context

    def cached(self, context: float) -> float:
        return (self.kv_rank + self.rope_dim) * context


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Linear attention whose state is keys times values; with a decay, retention (RetNet, arXiv 2307.08621)."""

    heads: int
    key_dim: int                        # all heads together
    value_dim: int
    gated: bool = True                  # an output gate as wide as the values

    def params(self, hidden: int) -> int:
        return hidden * (2 * self.key_dim + (3 if self.gated else 2) * self.value_dim)

    def active(self, hidden: int) -> float:
        return self.params(hidden)

    def mixing_flops(self, context: float, decode: bool) -> float:
        return STATE_FLOPS * self.cached(context)

    def cached(self, context: float) -> float:
        return self.key_dim * self.value_dim / self.heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba:
    """Selective state space (Mamba, arXiv 2312.00752)."""

    inner: int                          # channels
    state: int                          # per channel
    conv: int                           # width of the convolution
    dt_rank: int

    def params(self, hidden: int) -> int:
        scan = self.inner * (self.dt_rank + 2 * self.state) + self.dt_rank * self.inner + self.inner * (self.state + 2)
        return 3 * hidden * self.inner + self.inner * self.conv + scan

    def active(self, hidden: int) -> float:
        return self.params(hidden)

    def mixing_flops(self, context: float, decode: bool) -> float:
        return float(STATE_FLOPS * self.inner * self.state)

    def cached(self, context: float) -> float:
        return float(self.inner * (self.state + self.conv))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """State space with one decay per head (Mamba-2, arXiv 2405.21060)."""

    inner: int
    state: int
    conv: int
    heads: int
    groups: int = 1                     # that share input and output projections of the state

    def params(self, hidden: int) -> int:
        convolved = self.inner + 2 * self.groups * self.state
        return hidden * (self.inner + convolved + self.heads) + convolved * self.conv + self.inner * hidden + 3 * self.heads

    def active(self, hidden: int) -> float:
        return self.params(hidden)

    def mixing_flops(self, context: float, decode: bool) -> float:
        return float(STATE_FLOPS * self.inner * self.state)

    def cached(self, context: float) -> float:
        return float(self.inner * self.state + (self.inner + 2 * self.groups * self.state) * self.conv)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A feed-forward network: two matrices, or three where it is gated. `share` of the tokens pass it (Mixture-of-Depths)."""

    size: int
    matrices: int = 3
    share: float = 1.0

    def params(self, hidden: int) -> int:
        return self.matrices * hidden * self.size + (hidden if self.share < 1 else 0)

    def active(self, hidden: int) -> float:
        return self.share * self.matrices * hidden * self.size + (hidden if self.share < 1 else 0)

    def mixing_flops(self, context: float, decode: bool) -> float:
        return 0.0

    def cached(self, context: float) -> float:
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """Routed experts, and shared ones that every token passes. Of `experts + zero_experts` a token chooses `top_k`, evenly."""

    experts: int
    top_k: int
    size: int
    matrices: int = 3
    shared_size: int = 0                # intermediate size of the shared experts together
    zero_experts: int = 0               # without weights: they cost a choice and nothing else (LongCat-Flash)
    biased: bool = False                # experts add biases, and what goes into their activation is clamped (GPT-OSS)

    def params(self, hidden: int) -> int:
        return self.experts * self.expert(hidden) + self._others(hidden)

    def active(self, hidden: int) -> float:
        return self.top_k * self.experts / (self.experts + self.zero_experts) * self.expert(hidden) + self._others(hidden)

    def expert(self, hidden: int) -> int:
        """Weights of one routed expert."""
        return self.matrices * hidden * self.size

    def touched(self, tokens: float) -> float:
        """Routed experts that at least one of `tokens` chooses, expected for choices without preference."""
        missed: float = (1 - self.top_k / (self.experts + self.zero_experts)) ** tokens
        return self.experts * (1 - missed)

    def mixing_flops(self, context: float, decode: bool) -> float:
        return 0.0

    def cached(self, context: float) -> float:
        return 0.0

    def _others(self, hidden: int) -> int:
        return self.matrices * hidden * self.shared_size + hidden * (self.experts + self.zero_experts)


Part = Attention | Latent | Retention | Mamba | Mamba2 | Dense | Moe
KINDS: dict[str, type[Part]] = {
    "attention": Attention, "mla": Latent, "retention": Retention, "mamba": Mamba, "mamba2": Mamba2, "dense": Dense, "moe": Moe,
}  # fmt: skip


def part_from(given: Any, key: str) -> Part:
    """The part that a group of keys describes; `kind` says which.

    Raises:
        InputError: no such kind, an unknown or missing key (with the nearest), or a value that cannot be; names `key`.
    """
    if not isinstance(given, Mapping) or "kind" not in given:
        raise InputError(f"{key}: must be a group of keys with a kind ({', '.join(KINDS)})")
    kind = str(given["kind"])
    if kind not in KINDS:
        raise InputError(f"{key}.kind={kind}: must be one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    known = {field.name: field for field in fields(KINDS[kind])}
    values = {str(name): value for name, value in given.items() if name != "kind"}
    for name in values:
        if name not in known:
            raise InputError(f"{key}.{name}: {kind} has no such key{did_you_mean(name, known)} (known: {', '.join(known)})")
    for name, field in known.items():
        if name not in values:
            if field.default is MISSING:
                raise InputError(f"{key}.{name}: is missing")
            continue
        _check(f"{key}.{name}", values[name], str(field.type))
    part = KINDS[kind](**values)
    if isinstance(part, Attention) and part.heads % part.kv_heads:
        raise InputError(f"{key}.kv_heads={part.kv_heads}: must divide heads = {part.heads}")
    if isinstance(part, Moe) and part.top_k > part.experts + part.zero_experts:
        raise InputError(f"{key}.top_k={part.top_k}: asks for more than the {part.experts + part.zero_experts} experts")
    return part


def _check(key: str, value: Any, kind: str) -> None:
    if kind == "bool":
        if not isinstance(value, bool):
            raise InputError(f"{key}={value}: must be true or false")
    elif kind == "float":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise InputError(f"{key}={value}: must be above 0 and at most 1")
    elif not (value is None and "None" in kind):
        least = 0 if key.rpartition(".")[2] in ("shared_size", "zero_experts") else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least or value >= math.inf:
            raise InputError(f"{key}={value}: must be a whole number from {least} up")
