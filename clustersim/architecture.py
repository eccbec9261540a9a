"""A whole model as data: blocks in order, and what follows from them in weights, FLOPs and bytes. Plays nothing.

The language (files of `conf/model`, docs/models.md): `parts` names what layers are made of (see `parts`), `layers` says
their order as a list of `{times, of: ["part part", ...]}`, each text one layer. A file without `layers` is the short form of a
mixture-of-experts transformer (`Model`). `played` makes what the engine plays of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clustersim.model import Model, model_from
from clustersim.parts import Moe, Part, part_from
from clustersim.pick import did_you_mean
from clustersim.stacks import Encoder, Retrieval, Stack
from clustersim.types import InputError

DTYPES = {                      # bytes per weight, scales included
    "bf16": 2.0,
    "fp8": 1 + 4 / 128**2,      # a 4-byte scale per 128 x 128 (DeepSeek-V3)
    "int8": 1 + 2 / 128,        # a BF16 scale per 128
    "int4": 0.5 + 2 / 128,
    "mxfp4": 0.5 + 1 / 32,      # an 8-bit scale per 32 (OCP MX)
    "nvfp4": 0.5 + 1 / 16,      # an 8-bit scale per 16
}
PHASES = ("prefill", "decode", "training")
PLAYED = ("router", "dispatch_bytes", "combine_bytes", "activation_bytes", "cache_bytes", "gemm")        # as in the short form
KEYS = (
    "name", "hidden", "vocab", "tied_embeddings", "positions", "parts", "layers", "encoders", "retrieval", "dtypes", "status",
    *PLAYED,
)  # fmt: skip
NEEDED = ("name", "hidden", "vocab", "parts", "layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model as blocks in order."""

    name: str
    core: Stack
    vocab: int
    tied_embeddings: bool
    positions: int                          # learned ones
    encoders: Mapping[str, Encoder]
    retrieval: Retrieval | None
    expert_dtype: float                     # bytes per weight of routed experts, as published
    dtype: float                            # of all other weights
    status: str                             # "" as published; rumour or estimate

    @property
    def embedding_params(self) -> int:
        """Weights of one table."""
        return self.vocab * self.core.hidden

    @property
    def total_params(self) -> int:
        """All weights of core, tables and encoders."""
        around = sum(encoder.stack.params + encoder.projection for encoder in self.encoders.values())
        return self.core.params + self._tables + around

    @property
    def active_params(self) -> float:
        """Weights that serve one token of text; both tables count, encoders do not."""
        return self.core.active + self._tables

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights in the formats they were published in."""
        return self._experts * self.expert_dtype + (self.total_params - self._experts) * self.dtype

    def weight_bytes_as(self, dtype: str) -> float:
        """Bytes of all weights in one format of `DTYPES`."""
        return self.total_params * DTYPES[_known(dtype, DTYPES, "dtype")]

    def flops(self, phase: str, context: float) -> float:
        """FLOPs of one token that looks at `context` tokens, itself included. Training: forward and twice that back.

        The embedding is a look-up; the unembedding counts for every token.
        """
        _known(phase, PHASES, "phase")
        mixing = sum(part.mixing_flops(context, phase == "decode") for part in self.core.parts)
        forward = 2.0 * (self.core.active + self.embedding_params) + mixing
        return 3.0 * forward if phase == "training" else forward

    def encoder_flops(self, name: str) -> float:
        """FLOPs of one image or piece of sound; every token of it looks at all."""
        encoder = self.encoders[_known(name, self.encoders, "encoder")]
        mixing = sum(part.mixing_flops(encoder.tokens, False) for part in encoder.stack.parts)
        return encoder.tokens * (2.0 * encoder.stack.active + mixing) + 2.0 * encoder.outputs * encoder.projection

    def cache_bytes(self, context: float, bytes_per_value: float = 2.0) -> float:
        """Keys and values, latents and states of one sequence of `context` tokens."""
        return bytes_per_value * sum(part.cached(context) for part in self.core.parts)

    def decode_bytes(self, batch: float, context: float, bytes_per_value: float = 2.0) -> float:
        """Bytes between memory and chip per token, `batch` sequences at a time: weights that anyone needs once, caches each."""
        tables = self._tables - (0 if self.tied_embeddings else self.embedding_params)
        read = tables * self.dtype
        for part in self.core.parts:
            experts = part.touched(batch) * part.expert(self.core.hidden) if isinstance(part, Moe) else 0.0
            read += experts * self.expert_dtype + (part.params(self.core.hidden) - self._routed(part)) * self.dtype
        return read / batch + self.cache_bytes(context, bytes_per_value)

    @property
    def _tables(self) -> int:
        return self.embedding_params * (1 if self.tied_embeddings else 2) + self.positions * self.core.hidden

    @property
    def _experts(self) -> int:
        return sum(self._routed(part) for part in self.core.parts)

    def _routed(self, part: Part) -> int:
        return part.experts * part.expert(self.core.hidden) if isinstance(part, Moe) else 0


def describe(config: Mapping[str, Any]) -> Architecture:
    """The model that a file of `conf/model` describes, in either form.

    Raises:
        InputError: an unknown, missing or impossible key, with the nearest known one.
    """
    if "layers" not in config:
        return _of_model(model_from(config))
    for key in config:
        if key not in KEYS:
            raise InputError(f"model.{key}: there is no such key{did_you_mean(str(key), KEYS)} (known: {', '.join(KEYS)})")
    for key in NEEDED:
        if config.get(key) is None:
            raise InputError(f"model.{key}: is missing")
    status = config.get("status", "")
    if status not in ("", "rumour", "estimate"):
        raise InputError(f"model.status={status}: must be rumour or estimate, or left out")
    tied = config.get("tied_embeddings", False)
    if not isinstance(tied, bool):
        raise InputError(f"model.tied_embeddings={tied}: must be true or false")
    dtypes = config.get("dtypes") or {}
    if unknown := [key for key in dtypes if key not in ("experts", "weights")]:
        raise InputError(f"model.dtypes.{unknown[0]}: there is no such key (known: experts, weights)")
    dtype = DTYPES[_known(dtypes.get("weights", "bf16"), DTYPES, "model.dtypes.weights")]
    core = _stack(config, "model")
    given = config.get("encoders") or {}
    encoders = {str(name): _encoder(one, f"model.encoders.{name}", core.hidden) for name, one in given.items()}
    return Architecture(
        name=str(config["name"]), core=core, vocab=_whole(config, "model", "vocab"), tied_embeddings=tied,
        positions=_whole(config, "model", "positions", 0), encoders=encoders, retrieval=_retrieval(config.get("retrieval")),
        expert_dtype=DTYPES[_known(dtypes.get("experts", dtypes.get("weights", "bf16")), DTYPES, "model.dtypes.experts")],
        dtype=dtype, status=status,
    )  # fmt: skip


def played(config: Mapping[str, Any]) -> Model:
    """The model that the engine plays, of a file of `conf/model` in either form.

    Raises:
        InputError: what `describe` raises; layers with mixtures of experts of more than one shape, or two in one layer.
    """
    if "layers" not in config:
        return model_from(config)
    given = describe(config)
    shapes = list(dict.fromkeys(part for part in given.core.parts if isinstance(part, Moe)))
    if len(shapes) > 1:
        raise InputError(f"model={given.name}: its layers mix experts of {len(shapes)} shapes; a placement holds experts of one")
    if double := [i for i, layer in enumerate(given.core.layers) if sum(isinstance(part, Moe) for part in layer) > 1]:
        raise InputError(f"model={given.name}: layer {double[0]} has two mixtures of experts; make them two layers")
    moe = shapes[0] if shapes else None
    wire = {key: config[key] for key in PLAYED if key in config}
    return Model(
        name=given.name, n_layers=len(given.core.layers), hidden=given.core.hidden, vocab=given.vocab,
        n_experts=moe.experts if moe else 0, top_k=moe.top_k if moe else 0, expert_ffn=moe.size if moe else 0,
        n_shared_experts=int(moe is not None and moe.shared_size > 0), shared_ffn=moe.shared_size if moe else 0,
        zero_experts=moe.zero_experts if moe else 0, expert_matrices=moe.matrices if moe else 3,
        expert_biases=moe.biased if moe else False,
        tied_embeddings=given.tied_embeddings, positions=given.positions, blocks=given.core.layers,
        encoders=tuple(given.encoders.items()), retrieval=given.retrieval, expert_weight_bytes=given.expert_dtype,
        weight_bytes=given.dtype, **wire,
    )  # fmt: skip


def _of_model(model: Model) -> Architecture:
    """The short form, written out."""
    return Architecture(
        name=model.name, core=Stack(hidden=model.hidden, layers=model.layers), vocab=model.vocab,
        tied_embeddings=model.tied_embeddings, positions=0, encoders={}, retrieval=None, expert_dtype=model.expert_weight_bytes,
        dtype=model.weight_bytes, status="",
    )  # fmt: skip


def _stack(given: Mapping[str, Any], key: str) -> Stack:
    if not isinstance(given.get("parts"), Mapping) or not isinstance(given.get("layers"), list):
        raise InputError(f"{key}: needs parts, by name, and layers, a list of times and of")
    parts = {str(name): part_from(one, f"{key}.parts.{name}") for name, one in given["parts"].items()}
    layers: list[tuple[Part, ...]] = []
    used: set[str] = set()
    for i, run in enumerate(given["layers"]):
        where = f"{key}.layers[{i}]"
        if not isinstance(run, Mapping) or set(run) != {"times", "of"} or not isinstance(run["of"], list) or not run["of"]:
            raise InputError(f"{where}={run}: must have times, a number, and of, a list of layers")
        pattern = []
        for text in run["of"]:
            names = str(text).split()
            for name in names:
                if name not in parts:
                    raise InputError(f"{where}: there is no part {name}{did_you_mean(name, parts)} (known: {', '.join(parts)})")
            used.update(names)
            pattern.append(tuple(parts[name] for name in names))
        layers += pattern * _whole(run, where, "times")
    if idle := [name for name in parts if name not in used]:
        raise InputError(f"{key}.parts.{idle[0]}: no layer has it")
    return Stack(hidden=_whole(given, key, "hidden"), layers=tuple(layers))


def _encoder(given: Any, key: str, hidden: int) -> Encoder:
    known = ("hidden", "parts", "layers", "tokens", "outputs", "projection")
    if not isinstance(given, Mapping):
        raise InputError(f"{key}: must have {', '.join(known)}")
    for name in given:
        if name not in known:
            raise InputError(f"{key}.{name}: there is no such key{did_you_mean(str(name), known)} (known: {', '.join(known)})")
    stack, tokens = _stack(given, key), _whole(given, key, "tokens")
    return Encoder(
        stack=stack, tokens=tokens, outputs=_whole(given, key, "outputs", tokens),
        projection=_whole(given, key, "projection", stack.hidden * hidden),
    )  # fmt: skip


def _retrieval(given: Any) -> Retrieval | None:
    from clustersim.units import parse_bytes, parse_seconds

    if given is None:
        return None
    known = ("latency", "bytes", "tokens")
    if not isinstance(given, Mapping) or set(given) != set(known):
        raise InputError(f"model.retrieval={given}: must have {', '.join(known)}")
    return Retrieval(
        latency_s=parse_seconds(given["latency"], "model.retrieval.latency"),
        nbytes=parse_bytes(given["bytes"], "model.retrieval.bytes"), tokens=_whole(given, "model.retrieval", "tokens"),
    )  # fmt: skip


def _known(value: Any, known: Any, key: str) -> str:
    if value not in known:
        raise InputError(f"{key}={value}: must be one of {', '.join(known)}{did_you_mean(str(value), known)}")
    return str(value)


def _whole(given: Mapping[str, Any], key: str, name: str, default: int | None = None) -> int:
    value = given.get(name, default)
    least = 0 if default == 0 else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}.{name}={value}: must be a whole number from {least} up")
    return value
