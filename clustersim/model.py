"""The part of a model that decides bytes and FLOPs, as the engine plays it. Shapes only: no weights, no clock, no cluster."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clustersim import parts
from clustersim.parts import Dense, Latent, Moe, Part
from clustersim.pick import did_you_mean
from clustersim.stacks import Encoder, Retrieval
from clustersim.types import InputError

_KEYS_OF = {
    "gqa": ("kv_heads", "head_dim", "sliding_window", "full_every"),
    "mla": ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
}
_MAY_BE_NULL = ("sliding_window", "full_every", "q_lora_rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One attention block: grouped-query (`gqa`; multi-head where kv_heads = heads) or multi-head latent (`mla`)."""

    kind: str                                # gqa | mla
    heads: int
    # gqa
    kv_heads: int | None = None
    head_dim: int | None = None
    sliding_window: int | None = None        # tokens a windowed layer looks at, itself included; null: none is windowed
    full_every: int | None = None            # of n layers in a row the last sees everything; null: all are windowed
    # mla (DeepSeek-V2, arXiv 2405.04434)
    q_lora_rank: int | None = None           # null: queries are projected in one step
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _KEYS_OF:
            raise InputError(f"model.attention.kind = {self.kind!r}: must be gqa or mla{did_you_mean(str(self.kind), _KEYS_OF)}")
        _positive_int("model.attention.heads", self.heads)
        for kind, keys in _KEYS_OF.items():
            for key in keys:
                value = getattr(self, key)
                if kind != self.kind and value is not None:
                    raise InputError(f"model.attention.{key} = {value!r}: belongs to kind {kind}, not {self.kind}")
                if kind == self.kind and not (value is None and key in _MAY_BE_NULL):
                    _positive_int(f"model.attention.{key}", value)
        if self.kind == "gqa" and self.heads % _int(self.kv_heads):
            raise InputError(f"model.attention.kv_heads = {self.kv_heads}: must divide heads = {self.heads}")
        if self.full_every is not None and self.sliding_window is None:
            raise InputError(f"model.attention.full_every = {self.full_every}: needs sliding_window, which the other layers have")

    def params(self, hidden: int) -> int:
        """Weights of the projections of one layer; biases, norms and sinks left out (below 0.1 % of any model here)."""
        if self.kind == "gqa":
            return hidden * _int(self.head_dim) * (2 * self.heads + 2 * _int(self.kv_heads))
        rank, nope, rope, value = self.latent
        query = self.heads * (nope + rope)
        queries = hidden * query if self.q_lora_rank is None else self.q_lora_rank * (hidden + query)
        return queries + hidden * (rank + rope) + rank * self.heads * (nope + value) + self.heads * value * hidden

    def windowed(self, layer: int) -> bool:
        """Whether `layer` (from 0, dense ones counted) looks only at the last `sliding_window` tokens."""
        return self.sliding_window is not None and (self.full_every is None or (layer + 1) % self.full_every != 0)

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """MLA: rank of the latent, then the heads' sizes of query and key without and with position, and of value."""
        return _int(self.kv_lora_rank), _int(self.qk_nope_head_dim), _int(self.qk_rope_head_dim), _int(self.v_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as it is played. In the short form a transformer: `n_dense_layers` dense layers, then MoE layers, gated FFNs.

    In the long form `blocks` are the layers, and what is said of experts holds for all layers that have any; without any,
    `n_experts`, `top_k` and `expert_ffn` are 0. Parameter counts leave out norms and biases (below 0.1 % of any model here).
    """

    name: str
    n_layers: int
    n_dense_layers: int = 0             # the first ones (`first_k_dense_replace`); of the short form only
    n_experts: int                      # routed experts per layer
    top_k: int
    n_shared_experts: int = 0           # never leave their GPU
    zero_experts: int = 0               # experts without weights, on every GPU
    hidden: int                         # activations per token
    expert_ffn: int                     # intermediate size of one routed expert
    expert_matrices: int = 3            # of a routed or shared expert: 3 gated, 2 not
    expert_biases: bool = False         # experts add biases, and what goes into their activation is clamped (GPT-OSS)
    shared_ffn: int = 0                 # intermediate size of the shared experts together
    dense_ffn: int = 0                  # intermediate size of the FFN of a dense layer; of the short form only
    vocab: int
    tied_embeddings: bool = False       # one table serves as embedding and unembedding
    positions: int = 0                  # learned ones
    attention: Attention | None = None  # of every layer; None in the long form
    blocks: tuple[tuple[Part, ...], ...] | None = None      # the layers of the long form
    encoders: tuple[tuple[str, Encoder], ...] = ()          # before the core, by name
    retrieval: Retrieval | None = None                      # the same
    drafting: int = 0                   # of the layers the last ones, which make drafts (multi-token prediction)
    router: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)     # name and options, for router=model
    dispatch_bytes: float = 2.0         # on the wire per activation: BF16 = 2, FP8 with a 4-byte scale per 128 = 1 + 4/128
    combine_bytes: float = 2.0
    expert_weight_bytes: float = 2.0    # in memory per parameter of a routed or shared expert: BF16 = 2, FP8 = 1, MXFP4 = 4.25/8
    weight_bytes: float = 2.0           # in memory per other parameter
    activation_bytes: float = 2.0       # in memory per activation
    cache_bytes: float = 2.0            # in memory per value of keys and values, latents and states that are kept
    gemm: str = "bf16"                  # the rate of its GEMMs: bf16 | fp8 | fp4

    def __post_init__(self) -> None:
        dense = self.blocks is not None and not any(isinstance(part, Moe) for layer in self.blocks for part in layer)
        for key in ("n_layers", "hidden", "vocab", *(() if dense else ("n_experts", "top_k", "expert_ffn"))):
            _positive_int(f"model.{key}", getattr(self, key))
        if (self.attention is None) == (self.blocks is None):
            raise InputError("model.attention: must be given exactly where layers are not")
        if not isinstance(self.name, str):
            raise InputError(f"model.name = {self.name!r}: must be text")
        if not isinstance(self.expert_biases, bool):
            raise InputError(f"model.expert_biases = {self.expert_biases!r}: must be true or false")
        for key in ("n_dense_layers", "n_shared_experts", "shared_ffn", "dense_ffn"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"model.{key} = {value!r}: must be a whole number from 0 up")
        for key in ("dispatch_bytes", "combine_bytes", "expert_weight_bytes", "weight_bytes", "activation_bytes", "cache_bytes"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"model.{key} = {value!r}: must be a number of bytes above 0, for example 2 (BF16)")
        if self.n_dense_layers >= self.n_layers:
            raise InputError(
                f"model.n_dense_layers = {self.n_dense_layers}: leaves no MoE layer of n_layers = {self.n_layers}"
            )
        if self.top_k > self.n_experts + self.zero_experts:
            raise InputError(
                f"model.top_k = {self.top_k}: asks for more experts than n_experts = {self.n_experts}; "
                "each token picks distinct experts"
            )
        if (self.n_shared_experts > 0) != (self.shared_ffn > 0):
            raise InputError(
                f"model.shared_ffn = {self.shared_ffn}: must be above 0 exactly when there are shared experts "
                f"(n_shared_experts = {self.n_shared_experts})"
            )
        if self.n_dense_layers and not self.dense_ffn:
            raise InputError(f"model.dense_ffn = 0: the {self.n_dense_layers} dense layers need an intermediate size")
        if not isinstance(self.tied_embeddings, bool):
            raise InputError(f"model.tied_embeddings = {self.tied_embeddings!r}: must be true or false")
        if self.gemm not in (rates := ("bf16", "fp8", "fp4")):
            raise InputError(f"model.gemm = {self.gemm!r}: must be bf16, fp8 or fp4{did_you_mean(str(self.gemm), rates)}")

    @property
    def layers(self) -> tuple[tuple[Part, ...], ...]:
        """The parts of every layer, in order."""
        return _written_out(self) if self.blocks is None else self.blocks

    def with_drafter(self, drafts: int) -> Model:
        """The model with a layer like its last behind it for each draft: multi-token prediction (arXiv 2412.19437 §2.2)."""
        blocks = None if self.blocks is None else self.blocks + self.blocks[-1:] * drafts
        return dataclasses.replace(self, n_layers=self.n_layers + drafts, blocks=blocks, drafting=drafts)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers that have a mixture of experts, from 0."""
        return _moe_layers(self.layers)

    @property
    def n_moe_layers(self) -> int:
        return len(self.moe_layers)

    @property
    def dispatch_token_bytes(self) -> float:
        """Bytes of one token on its way to an expert, scales included."""
        return self.hidden * self.dispatch_bytes

    @property
    def combine_token_bytes(self) -> float:
        """Bytes of one token on its way back."""
        return self.hidden * self.combine_bytes

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert."""
        return self.expert_matrices * self.hidden * self.expert_ffn

    @property
    def shared_params(self) -> int:
        """Weights of the shared experts of one MoE layer, together."""
        return self.expert_matrices * self.hidden * self.shared_ffn

    @property
    def embedding_params(self) -> int:
        """Weights of the token embedding; the unembedding has as many, or is the same table (`tied_embeddings`)."""
        return self.vocab * self.hidden

    @property
    def total_params(self) -> int:
        """All weights; the multi-token-prediction module of DeepSeek-V3 is no part of the model here."""
        around = sum(encoder.stack.params + encoder.projection for _, encoder in self.encoders)
        return self._tables + sum(part.params(self.hidden) for layer in self.layers for part in layer) + around

    @property
    def active_params(self) -> float:
        """Weights that serve one token: all but encoders and the experts it does not go to. Both embedding tables count."""
        return self._tables + sum(part.active(self.hidden) for layer in self.layers for part in layer)

    @property
    def _tables(self) -> int:
        return self.embedding_params * (1 if self.tied_embeddings else 2) + self.positions * self.hidden


@lru_cache(maxsize=64)
def _written_out(model: Model) -> tuple[tuple[Part, ...], ...]:
    """The layers of a model in the short form."""
    a = model.attention
    assert a is not None

    def attention(layer: int) -> Part:
        if a.kind == "gqa":
            window = a.sliding_window if a.windowed(layer) else None
            return parts.Attention(heads=a.heads, kv_heads=_int(a.kv_heads), head_dim=_int(a.head_dim), window=window)
        rank, nope, rope, value = a.latent
        return Latent(heads=a.heads, q_rank=a.q_lora_rank, kv_rank=rank, nope_dim=nope, rope_dim=rope, value_dim=value)

    moe = Moe(
        experts=model.n_experts, top_k=model.top_k, size=model.expert_ffn, shared_size=model.shared_ffn,
        matrices=model.expert_matrices, zero_experts=model.zero_experts, biased=model.expert_biases,
    )  # fmt: skip
    n_dense = model.n_dense_layers
    return tuple((attention(i), Dense(size=model.dense_ffn) if i < n_dense else moe) for i in range(model.n_layers))


@lru_cache(maxsize=64)
def _moe_layers(layers: tuple[tuple[Part, ...], ...]) -> tuple[int, ...]:
    return tuple(i for i, layer in enumerate(layers) if any(isinstance(part, Moe) for part in layer))


def model_from(config: Mapping[str, Any]) -> Model:
    """The model a config in the short form describes: keys are those of `Model`, `attention` holds those of `Attention`.

    Raises:
        InputError: an unknown key (with the nearest known one), a missing key, or a value that cannot be.
    """
    values = _known(config, Model, "model", apart=("blocks", "encoders", "retrieval", "drafting"), needed=("attention",))
    attention = values["attention"]
    if not isinstance(attention, Mapping):
        raise InputError(f"model.attention = {attention!r}: must be a group of keys with a kind (gqa or mla)")
    return Model(**(values | {"attention": Attention(**_known(attention, Attention, "model.attention"))}))


def _known(
    config: Mapping[str, Any], kind: type, key: str, *, apart: Sequence[str] = (), needed: Sequence[str] = ()
) -> dict[str, Any]:
    """`config` as a dict, once its keys are known fields of the dataclass `kind`, but those `apart`, and none is missing."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in apart}
    for name in config:
        if name not in fields:
            raise InputError(f"{key}.{name}: there is no such key; known: {', '.join(fields)}{did_you_mean(str(name), fields)}")
    for name, field in fields.items():
        optional = not (field.default is field.default_factory is dataclasses.MISSING)
        if name not in config and (name in needed or not optional):
            raise InputError(f"{key}.{name}: is missing")
    return dict(config)


def _int(value: int | None) -> int:
    assert value is not None, "checked when the attention was made"
    return value


def _positive_int(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key} = {value!r}: must be a whole number above 0")
