"""Bytes that every GPU needs over a step, by what takes them, and what to change where they do not fit. No clock, no traffic.

Counted are weights, gradients, optimiser states, activations at their peak, caches and buffers. Not counted are the context of
the driver, libraries and fragmentation: they have what a GPU has beyond its data sheet (an "80 GB" H100 shows 79.6 GiB, 85.5 GB).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, product
from math import ceil
from typing import Any

from clustersim.architecture import DTYPES, Architecture
from clustersim.engine.activations import RECOMPUTE, Keeping, in_hand, kept_of_layer
from clustersim.engine.buffers import buffer_bytes
from clustersim.engine.stages import chunks_of, most_kept, ordered
from clustersim.parallel import Parallel
from clustersim.parts import Attention, Latent, Moe, Part
from clustersim.pick import did_you_mean
from clustersim.types import InputError
from clustersim.units import format_bytes

Change = Callable[[Parallel, "Load"], tuple[Parallel, "Load"]]
PARTS = ("weights", "gathered", "gradients", "optimiser", "activations", "working", "logits", "cache", "buffers")
OPTIMISERS = {          # bytes per parameter
    "adam": 12.0,           # FP32 master weights and two FP32 moments
    "adam_bf16": 8.0,       # the moments in BF16 (arXiv 2412.19437 §3.3.3)
    "muon": 8.0,            # FP32 master weights and one FP32 momentum (arXiv 2502.16982)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the GPUs are given, and how they keep it."""

    phase: str                      # prefill | decode | training
    micro_batch: int = 1            # sequences at a time, of a data-parallel group; decode: all sequences it serves
    sequence: int = 1               # tokens of one that are computed; decode: 1, or more when it speculates
    micro_batches: int = 1          # training: of a step
    order: str = "one_f_one_b"      # training: one of `pipelines`
    keeping: Keeping = field(default_factory=Keeping)       # training
    weights: str | None = None      # format of `DTYPES`; None: as published, in training BF16
    gradients: float = 4.0          # bytes per parameter
    optimiser: str = "adam"         # one of `OPTIMISERS`
    context: int | None = None      # tokens that a sequence has in the cache; None: `sequence`
    cache_value: float = 2.0        # bytes of a cached value
    exchange: str = ""              # for its buffers
    slots: int | None = None        # experts of a layer that the fullest GPU holds; None: evenly spread
    imbalance: float = 1.0          # rows of the busiest GPU over the mean


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Memory:
    """What a step needs."""

    arch: Architecture
    parallel: Parallel
    load: Load
    stages: tuple[dict[str, float], ...]        # of a GPU of every pipeline stage: bytes by what takes them, `PARTS`

    @property
    def fullest(self) -> int:
        """The stage that needs most."""
        return max(range(len(self.stages)), key=lambda stage: sum(self.stages[stage].values()))

    @property
    def parts(self) -> dict[str, float]:
        """Of a GPU of the fullest stage."""
        return self.stages[self.fullest]

    @property
    def nbytes(self) -> float:
        """The most that any GPU needs."""
        return sum(self.parts.values())

    def check(self, gpu_memory: float, *, name: str = "", offers: Mapping[str, str] | None = None) -> None:
        """Refuse what does not fit.

        Args:
            gpu_memory: bytes of a GPU.
            name: of the machine.
            offers: what may be changed, fields of `Parallel` and `Load`, `recompute` and `gpus`, and how each is said with {}
                for its value; None: all, as they are called here.

        Raises:
            InputError: one line that says what takes how much, and the least changes that would do.
        """
        if self.nbytes <= gpu_memory:
            return
        of = f" of stage {self.fullest}" if len(self.stages) > 1 else ""
        machine = f"{self.parallel.gpus} GPUs{' of ' if name else ''}{name}"
        changes = {key: tries for key, tries in _changes(self).items() if offers is None or key in offers}
        found = list(self._would_fit(gpu_memory, changes, offers or {}, 1)) or list(
            self._would_fit(gpu_memory, changes, offers or {}, 2)
        )
        would = f"would fit: {', or '.join(found[:6])}" if found else "no two changes of those that are tried make it fit"
        raise InputError(
            f"memory: {self.arch.name} does not fit on {machine}: a GPU{of} has {format_bytes(gpu_memory)} and needs "
            f"{said(self)}; {would}; memory=ignore plays it all the same"
        )

    def _would_fit(
        self, gpu_memory: float, changes: Mapping[str, list[tuple[Any, Change]]], offers: Mapping[str, str], many: int
    ) -> Iterator[str]:
        """Of every so many things that may be changed the least change that is enough."""
        for keys in combinations(changes, many):
            for tried in sorted(product(*(list(enumerate(changes[key])) for key in keys)), key=lambda t: sum(i for i, _ in t)):
                sizes, load = self.parallel, self.load
                try:
                    for _, (_, change) in tried:
                        sizes, load = change(sizes, load)
                    now = need(self.arch, sizes, load).nbytes
                except InputError:              # sizes that do not divide, or layers that do not suffice
                    continue
                if now <= gpu_memory:
                    told = zip(keys, tried, strict=True)
                    text = " with ".join(offers.get(key, f"{key}={{}}").format(value) for key, (_, (value, _)) in told)
                    yield f"{text} ({format_bytes(now)})"
                    break


def said(memory: Memory) -> str:
    """`61.2 GB: weights 40.1 GB, cache 21.1 GB`, of the fullest GPU, largest first."""
    parts = sorted(((nbytes, part) for part, nbytes in memory.parts.items() if nbytes), reverse=True)
    return f"{format_bytes(memory.nbytes)}: " + ", ".join(f"{part} {format_bytes(nbytes)}" for nbytes, part in parts)


def need(arch: Architecture, parallel: Parallel, load: Load) -> Memory:
    """What every GPU needs over a step.

    Every GPU of a stage holds as much, but for `slots` and `imbalance`, which are of the fullest. Encoders' weights are
    counted on the first stage, their activations not.

    Raises:
        InputError: no such phase, format, optimiser or order; more chunks than layers.
    """
    if load.phase not in (phases := ("prefill", "decode", "training")):
        raise InputError(f"phase={load.phase}: must be one of {', '.join(phases)}{did_you_mean(load.phase, phases)}")
    if load.optimiser not in OPTIMISERS:
        near = did_you_mean(load.optimiser, OPTIMISERS)
        raise InputError(f"optimiser={load.optimiser}: must be one of {', '.join(OPTIMISERS)}{near}")
    if load.weights is not None and load.weights not in DTYPES:
        raise InputError(f"weights={load.weights}: must be one of {', '.join(DTYPES)}{did_you_mean(load.weights, DTYPES)}")
    chunks = chunks_of(len(arch.core.layers), parallel.pipeline, parallel.virtual)
    return Memory(
        arch=arch, parallel=parallel, load=load,
        stages=tuple(_of_stage(arch, parallel, load, chunks, stage) for stage in range(parallel.pipeline)),
    )  # fmt: skip


def _of_stage(
    arch: Architecture, parallel: Parallel, load: Load, chunks: tuple[range, ...], stage: int
) -> dict[str, float]:
    training, n_chunks = load.phase == "training", len(chunks)
    held = tuple(range(stage, n_chunks, parallel.pipeline))
    if training:
        pipeline = ordered(load.order, parallel.pipeline, load.micro_batches, parallel.virtual)
        held = pipeline.held[stage]
    every = Counter(arch.core.layers[i] for chunk in held for i in chunks[chunk])       # equal layers once
    parts_of = {part for layer in every for part in layer}
    hidden, keeping = arch.core.hidden, load.keeping
    parts = _states(arch, parallel, load, _tables(arch, parallel, first=0 in held, last=n_chunks - 1 in held), every)
    tokens = load.micro_batch * load.sequence / parallel.context
    sizes: dict[str, Any] = {"sequence": load.sequence, "imbalance": load.imbalance}
    parts["working"] = tokens * max((in_hand((part,), hidden, parallel, keeping, **sizes) for part in parts_of), default=0.0)
    if training:
        of_layer = {layer: kept_of_layer(layer, hidden, parallel, keeping, **sizes) for layer in every}
        kept = [sum(of_layer[arch.core.layers[i]] for i in chunks[c]) if c in held else 0.0 for c in range(n_chunks)]
        parts["activations"] = tokens * most_kept(pipeline, stage, kept)
        if keeping.recompute == "full":
            whole = (in_hand(layer, hidden, parallel, keeping, **sizes) for layer in every)
            parts["working"] += tokens * max(whole, default=0.0)
    else:
        context = load.sequence if load.context is None else load.context
        values = sum(many * _cached(part, context, parallel) for layer, many in every.items() for part in layer)
        parts["cache"] = load.micro_batch * values * load.cache_value
    if n_chunks - 1 in held:
        spoken = tokens if training or load.phase == "decode" else load.micro_batch
        parts["logits"] = spoken * 4.0 * arch.vocab / parallel.tensor
        if training:        # inputs of the last norm and of the unembedding
            between = parallel.tensor if parallel.sequence_parallel else 1
            parts["logits"] += tokens * (keeping.value + keeping.linear) * hidden / between
    parts["buffers"] = max((_buffers(part, arch, parallel, load, tokens) for part in parts_of), default=0.0)
    return {name: parts.get(name, 0.0) for name in PARTS}


def _states(
    arch: Architecture, parallel: Parallel, load: Load, tables: float, layers: Mapping[tuple[Part, ...], int]
) -> dict[str, float]:
    """Weights, gradients and optimiser states of tables and layers, split as ZeRO says (arXiv 1910.02054)."""
    of_layer = {
        layer: [sum(kind) for kind in zip(*(_params(p, arch.core.hidden, parallel, load) for p in layer), strict=True)]
        for layer in layers
    }
    others = tables + sum(many * of_layer[layer][0] for layer, many in layers.items())
    experts = sum(many * of_layer[layer][1] for layer, many in layers.items())
    training = load.phase == "training"
    form = load.weights or ("bf16" if training else None)
    dtype, expert_dtype = (arch.dtype, arch.expert_dtype) if form is None else (DTYPES[form], DTYPES[form])
    if not training:
        return {"weights": others * dtype + experts * expert_dtype}
    copies = 2 if load.order == "dualpipe" else 1           # either end has one of every chunk
    data, expert_data = copies * parallel.data * parallel.context, copies * parallel.expert_data

    def split(level: int, other_bytes: float, expert_bytes: float) -> float:
        if parallel.zero >= level:
            return other_bytes / data + expert_bytes / expert_data
        return other_bytes + expert_bytes

    states = {
        "weights": split(3, others * dtype, experts * expert_dtype),
        "gradients": split(2, others * load.gradients, experts * load.gradients),
        "optimiser": split(1, others * OPTIMISERS[load.optimiser], experts * OPTIMISERS[load.optimiser]),
    }
    if parallel.zero == 3:          # the layer in hand and the next
        states["gathered"] = 2 * dtype * max(map(sum, of_layer.values()), default=0.0)
    return states


def _params(part: Part, hidden: int, parallel: Parallel, load: Load) -> tuple[float, float]:
    """Parameters of a part on a GPU, without routed experts, and of routed experts.

    A tensor group splits heads and inner sizes; keys and values are not split further than into heads, latents and routers not.
    Beside experts that are served from other GPUs, shared ones are whole: each GPU has its share of the tokens there (SGLang).
    """
    tensor = parallel.tensor
    if isinstance(part, Moe):
        room = ceil(part.experts / parallel.expert) if load.slots is None else load.slots
        router = hidden * (part.experts + part.zero_experts)
        apart = load.phase != "training" and parallel.expert_tensor == 1
        shared = part.matrices * hidden * part.shared_size / (1 if apart else tensor)
        return router + shared, room * part.expert(hidden) / parallel.expert_tensor
    if isinstance(part, Attention):
        queries = (3 if part.gated else 2) * part.heads / tensor
        return hidden * part.head_dim * (queries + 2 * max(part.kv_heads / tensor, 1)), 0.0
    if isinstance(part, Latent):
        whole = hidden * ((part.q_rank or 0) + part.kv_rank + part.rope_dim)
        return whole + (part.params(hidden) - whole) / tensor, 0.0
    return part.params(hidden) / tensor, 0.0


def _tables(arch: Architecture, parallel: Parallel, *, first: bool, last: bool) -> float:
    """Parameters of both ends on a GPU; a table that serves both is there once on every stage that needs it."""
    around = sum(encoder.stack.params + encoder.projection for encoder in arch.encoders.values())
    tables = (first or last) if arch.tied_embeddings else first + last
    return (tables * arch.embedding_params + first * (arch.positions * arch.core.hidden + around)) / parallel.tensor


def _cached(part: Part, context: int, parallel: Parallel) -> float:
    """Values of one sequence on a GPU. Every GPU of a tensor group has the latents; what stays a state is split by channels."""
    if isinstance(part, Attention):
        return part.cached(context) * max(1 / parallel.tensor, 1 / part.kv_heads) / parallel.context
    if isinstance(part, Latent):
        return part.cached(context) / parallel.context
    return part.cached(context) / parallel.tensor


def _buffers(part: Part, arch: Architecture, parallel: Parallel, load: Load, tokens: float) -> float:
    if not isinstance(part, Moe) or not load.exchange or parallel.expert == 1:
        return 0.0
    own = tokens / parallel.tensor
    return buffer_bytes(
        load.exchange, gpus=parallel.expert, experts=part.experts, hidden=arch.core.hidden, tokens=ceil(own),
        rows=own * part.top_k * load.imbalance,
    )  # fmt: skip


def _changes(memory: Memory) -> dict[str, list[tuple[Any, Change]]]:
    """What may be tried, by key: values from the nearest on, and what each makes of sizes and load."""
    parallel, load = memory.parallel, memory.load
    most = max((part.experts for part in memory.arch.core.parts if isinstance(part, Moe)), default=1)
    doubled = [2**i for i in range(1, 11)]

    tries: dict[str, list[tuple[Any, Change]]] = {
        "gpus": [(parallel.gpus * times, partial(_more, times=times, most=most)) for times in doubled],
        "tensor": [(parallel.tensor * times, partial(_wider, times=times)) for times in doubled[:3]],
        "pipeline": _sizes("pipeline", [parallel.pipeline * times for times in doubled[:6]]),
        "micro_batch": _loads("micro_batch", _smaller(load.micro_batch)),
    }
    if load.phase == "training":
        tries["zero"] = _sizes("zero", range(parallel.zero + 1, 4))
        harder = list(RECOMPUTE)[list(RECOMPUTE).index(load.keeping.recompute) + 1 :]
        keepings = _loads("keeping", [replace(load.keeping, recompute=name) for name in harder])
        tries["recompute"] = [(name, change) for name, (_, change) in zip(harder, keepings, strict=True)]
        return tries
    now = load.weights or next((name for name, size in DTYPES.items() if size == memory.arch.expert_dtype), "bf16")
    tries["weights"] = _loads("weights", [name for name in ("fp8", "mxfp4") if DTYPES[name] < DTYPES[now]])
    if load.phase == "prefill":
        tries["sequence"] = _loads("sequence", _smaller(load.sequence))
    elif load.context:
        tries["context"] = _loads("context", _smaller(load.context))
    return tries


def _sizes(key: str, values: Sequence[Any]) -> list[tuple[Any, Change]]:
    def changed(value: Any, parallel: Parallel, load: Load) -> tuple[Parallel, Load]:
        return replace(parallel, **{key: value}), load

    return [(value, partial(changed, value)) for value in values]


def _loads(key: str, values: Sequence[Any]) -> list[tuple[Any, Change]]:
    def changed(value: Any, parallel: Parallel, load: Load) -> tuple[Parallel, Load]:
        return parallel, replace(load, **{key: value})

    return [(value, partial(changed, value)) for value in values]


def _wider(parallel: Parallel, load: Load, *, times: int) -> tuple[Parallel, Load]:
    """Tensor groups of so many times as many GPUs; one that serves takes all their batches, and shares experts if it did."""
    changed = replace(parallel, tensor=parallel.tensor * times)
    if load.phase == "training":
        return changed, load
    if parallel.expert_tensor > 1:
        changed = replace(changed, expert_tensor=parallel.expert_tensor * times)
    return changed, replace(load, micro_batch=load.micro_batch * times)


def _more(parallel: Parallel, load: Load, *, times: int, most: int) -> tuple[Parallel, Load]:
    """So many times as many GPUs: experts spread further as far as there are any, the rest is data parallel."""
    expert = parallel.expert * times
    if expert > most or parallel.stage_gpus * times // parallel.expert_tensor % expert:
        expert = parallel.expert
    slots = None if load.slots is None else ceil(load.slots * parallel.expert / expert)
    return replace(parallel, gpus=parallel.gpus * times, expert=expert), replace(load, slots=slots)


def _smaller(value: int) -> list[int]:
    """Smaller numbers, each about a sixth less than the one before."""
    return sorted({int(value * 2 ** (-i / 4)) for i in range(1, 41)} - {0, value}, reverse=True)
