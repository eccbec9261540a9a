"""The tokens of one forward pass and what the router says of them: from a trace or from a sampler. No clock, no drops."""

from __future__ import annotations

from functools import partial

import numpy as np

from clustersim.model import Model
from clustersim.types import Choices, Float32s, InputError, Ints, Trace, Workload
from clustersim.workload.deal import Deal, deal_sequences
from clustersim.workload.sampler import Batch, balanced
from clustersim.workload.sampler_parameters import changed, load_parameters
from clustersim.workload.sampler_process import Process
from clustersim.workload.scores import experts_alone, zipf_token_ids


def from_trace(trace: Trace, model: Model, n_gpus: int, tokens_per_gpu: int, *, name: str = "trace") -> Workload:
    """Recorded tokens, whole sequences dealt to the GPUs in turn (`deal_sequences`); nothing is drawn.

    The trace's layers repeat when the model has more MoE layers, and its first ones are used when it has fewer.

    Args:
        name: what an error calls the trace, for example "trace.path=mine".

    Raises:
        InputError: the trace's experts or top_k are not the model's, or its tokens do not fill one GPU.
    """
    if (trace.n_experts, trace.top_k) != (model.n_experts, model.top_k):
        raise InputError(
            f"{name}: {trace.n_experts} experts, top-{trace.top_k}; "
            f"model {model.name} has {model.n_experts} experts, top-{model.top_k}; trace=sampled draws tokens for any model"
        )
    deal = deal_sequences(trace, n_gpus, tokens_per_gpu)

    weights, logged = trace.gate_weights, trace.scores

    def scores(layer: int, first: int, last: int) -> Float32s:
        assert logged is not None
        return np.asarray(logged[deal.rows[np.arange(first, last) % deal.rows.size], layer % trace.n_layers], np.float32)

    def choose(layer: int) -> Choices:
        recorded = layer % trace.n_layers
        return Choices(
            ids=trace.expert_ids[deal.rows, recorded].astype(np.int64),
            weights=None if weights is None else weights[deal.rows, recorded].astype(np.float64),
            scores=None if logged is None else partial(scores, layer),
        )

    return Workload(
        source=deal.source, index=deal.index, context=deal.context, choose=choose, scores=None if logged is None else scores,
        token_ids=None if trace.token_id is None else partial(np.take, trace.token_id, deal.rows),
        notes=_notes(trace, model, deal), period=trace.n_layers,
    )


def from_sampler(
    model: Model, n_gpus: int, tokens_per_gpu: int, seed: int, extra: int = 0, *, preset: str = "moderate",
    parameters: str | None = None, sequence: int = 128, counts: bool = False, tokens: str | None = None,
    alpha: float | None = None, sigma: float | None = None, zipf: float | None = None, domains: int | None = None,
    dimension: float | None = None, topic: float | None = None, fast: float | None = None, slow: float | None = None,
    alignment: float | None = None,
) -> Workload:
    """Tokens of the sampler (docs/sampler.md): sequences of one length, each of one domain, tokens numbered GPU after GPU.

    Any token of any layer is the same whatever else is asked. Words by Zipf's law.

    Args:
        seed: 0 or more.
        extra: columns of scores beside those of the experts, for routers that have use for them.
        preset, parameters: a preset, or a file in place of one.
        sequence: tokens per sequence; a GPU's batch is whole sequences, the last one cut.
        counts: offer only how many tokens of a GPU choose each expert.
        tokens, alpha, ...: change one thing of the preset or file.

    Raises:
        InputError: less than one token per GPU or per sequence; a preset, file or value that is wrong.
    """
    source, index, context = uniform_blocks(n_gpus, tokens_per_gpu, sequence)
    keys = {
        "tokens": tokens, "alpha": alpha, "sigma": sigma, "zipf": zipf, "domains": domains, "dimension": dimension,
        "topic": topic, "fast": fast, "slow": slow, "alignment": alignment,
    }  # fmt: skip
    process = Process(
        changed(load_parameters(preset, parameters), keys), n_layers=model.n_moe_layers, n_experts=model.n_experts,
        top_k=model.top_k, seed=seed, extra=extra,
    )
    batch = Batch(process=process, n_gpus=n_gpus, tokens_per_gpu=tokens_per_gpu, sequence=sequence)

    def choose(layer: int) -> Choices:
        assert not counts, "there are no tokens"
        ids, weights = batch.choose(layer)
        return Choices(ids=ids, weights=weights, scores=partial(experts_alone, batch.scores, layer, model.n_experts))

    return Workload(
        source=source, index=index, context=context, choose=choose, scores=None if counts else batch.scores,
        count=batch.count if counts else None, notes=(*process.notes, *batch.notes) if counts else process.notes,
        token_ids=partial(zipf_token_ids, seed, source.size, model.vocab),
    )


def from_balanced(model: Model, n_gpus: int, tokens_per_gpu: int, seed: int = 0, *, sequence: int = 128) -> Workload:
    """Tokens of `balanced`, numbered GPU after GPU: every expert gets as much as any other.

    Raises:
        InputError: less than one token per GPU or per sequence.
    """
    source, index, context = uniform_blocks(n_gpus, tokens_per_gpu, sequence)

    def choose(layer: int) -> Choices:
        numbers = np.arange(source.size)
        ids, weights = balanced(numbers, n_experts=model.n_experts, top_k=model.top_k, seed=seed, layer=layer)
        return Choices(ids=ids, weights=weights)

    return Workload(source=source, index=index, context=context, choose=choose)


def uniform_blocks(n_gpus: int, tokens_per_gpu: int, sequence: int) -> tuple[Ints, Ints, Ints]:
    """Source, index and context of made-up tokens: on every GPU sequences of the same length, the last one cut."""
    if tokens_per_gpu < 1:
        raise InputError(f"workload.tokens_per_gpu={tokens_per_gpu}: each GPU needs at least one token")
    if sequence < 1:
        raise InputError(f"trace.sequence={sequence}: a sequence has at least one token")
    source = np.repeat(np.arange(n_gpus), tokens_per_gpu)
    index = np.tile(np.arange(tokens_per_gpu), n_gpus)
    return source, index, index % sequence + 1


def _notes(trace: Trace, model: Model, deal: Deal) -> tuple[str, ...]:
    """What a reader has to know about how the trace was used."""
    notes = []
    if trace.n_layers < model.n_moe_layers:
        notes.append(f"the trace's {trace.n_layers} layers repeat to fill the {model.n_moe_layers} MoE layers of {model.name}")
    elif trace.n_layers > model.n_moe_layers:
        notes.append(f"the first {model.n_moe_layers} of the trace's {trace.n_layers} layers are used, as {model.name} has")
    if deal.most_used > 1:
        notes.append(f"sequences are dealt again: a recorded token is used {deal.reuse:.3g} times, at most {deal.most_used}")
    if deal.distinct < trace.n_tokens:
        notes.append(f"{deal.distinct:,} of the trace's {trace.n_tokens:,} tokens are used")
    return tuple(notes)
