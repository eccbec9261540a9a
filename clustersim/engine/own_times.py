"""How long a GPU takes for its own tokens in every layer: what stands before and after the routed experts. No traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clustersim.engine.compute import context_sums
from clustersim.engine.timing import Timing
from clustersim.model import Model
from clustersim.parts import Dense, Moe, Part
from clustersim.types import Floats, InputError, Ints, Workload


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shared:
    """The shared experts of a mixture of experts, as something to be timed apart from its router."""

    moe: Moe


class OwnTimes:
    """Seconds [gpus] by layer. Each kind of part is timed once: its tokens are the same in all layers.

    Args:
        per_sequence: tokens of a sequence that decoding passes side by side; None: prefill.
        inputs: images or pieces of sound per sequence, through the model's encoders.
        inbound: bytes/s at which retrieved text comes to a GPU.
        ends: int [gpus], tokens that a next one is made of, where `workload` is a part of a batch; None: found in it.

    Raises:
        InputError: inputs for a model without encoders.
    """

    def __init__(
        self, timing: Timing, model: Model, workload: Workload, n_gpus: int, *, per_sequence: int | None = None, inputs: int = 0,
        inbound: float = np.inf, ends: Ints | None = None,
    ) -> None:  # fmt: skip
        self._per_sequence = per_sequence
        self._timing, self._model, self._n = timing, model, n_gpus
        self._source, self._tokens = workload.source, np.bincount(workload.source, minlength=n_gpus)
        self._context = workload.context + (model.retrieval.tokens if model.retrieval else 0)
        self._of: dict[Part, Floats] = {}
        if ends is None:
            ends = sequence_ends(workload, n_gpus) if per_sequence is None else self._tokens        # those that are verified
        sequences = ends
        self.encoders_s = self._encoders(sequences * inputs)
        self.retrieval_s: Floats = np.zeros(n_gpus)
        if model.retrieval is not None and per_sequence is None:
            found = model.retrieval
            self.retrieval_s = np.where(sequences > 0, found.latency_s + sequences * found.nbytes / inbound, 0.0)
        self.head_s = timing.matrix(model.vocab, model.hidden, sequences)

    def layer(self, layer: int) -> tuple[Floats, Floats]:
        """Seconds before the dispatch, router included, and after the combine, shared experts included.

        In a layer without routed experts: of its mixers and of its FFNs. What goes before the first layer and after the last
        (encoders, retrieval; the unembedding) is counted with them.
        """
        before, shared, after = self.pieces(layer)
        return before, shared + after

    def pieces(self, layer: int) -> tuple[Floats, Floats, Floats]:
        """As `layer`, with the shared experts by themselves between the two."""
        before, behind = around_experts(self._model.layers[layer])
        shared = [part for part in behind if isinstance(part, Shared)]
        first, second, third = (
            sum((self._seconds(part) for part in some), np.zeros(self._n))
            for some in (before, shared, [part for part in behind if not isinstance(part, Shared)])
        )
        if layer == 0:
            first = first + self.encoders_s + self.retrieval_s
        return first, second, third + self.head_s if layer == self._model.n_layers - 1 else third

    def _seconds(self, part: Part | Shared) -> Floats:
        if isinstance(part, Shared):
            return self._timing.shared(self._tokens)
        if part not in self._of:
            if isinstance(part, Moe):
                own = self._timing.matrix(part.experts + part.zero_experts, self._model.hidden, self._tokens)
            else:
                own = self._mixer_or_ffn(part)
            self._of[part] = own + self._timing.residual(self._model.hidden, self._tokens)
        return self._of[part]

    def _mixer_or_ffn(self, part: Part) -> Floats:
        hidden, tokens = self._model.hidden, self._tokens
        pairs = context_sums(part, self._context, self._source, self._n)
        if self._per_sequence is None:
            return self._timing.part_seconds(part, hidden, tokens, pairs)
        last = slice(self._per_sequence - 1, None, self._per_sequence)      # of every sequence: it looks at all that is cached
        cached = context_sums(part, self._context[last], self._source[last], self._n)
        return self._timing.part_seconds(
            part, hidden, tokens, pairs, phase="decode", cached=cached, sequences=tokens // self._per_sequence
        )

    def _encoders(self, inputs: Ints) -> Floats:
        """All encoders over so many inputs [gpus] each; every token of an input looks at all of it."""
        seconds = np.zeros(self._n)
        if inputs.any() and not self._model.encoders:
            raise InputError(f"workload.encoder_inputs: model={self._model.name} has no encoder; leave it at 0")
        for _, encoder in self._model.encoders if inputs.any() else ():
            tokens, wide = inputs * encoder.tokens, encoder.stack.hidden
            pairs = (tokens * encoder.tokens).astype(np.float64)
            for part in encoder.stack.parts:
                seconds = seconds + self._timing.part_seconds(part, wide, tokens, pairs) + self._timing.residual(wide, tokens)
            columns = max(1, encoder.projection // self._model.hidden)
            seconds = seconds + self._timing.matrix(columns, self._model.hidden, inputs * encoder.outputs)
        return seconds


def around_experts(layer: Sequence[Part]) -> tuple[list[Part | Shared], list[Part | Shared]]:
    """What a layer does before the dispatch (its `Moe` stands for the router) and after the combine.

    A layer without routed experts: its mixers, then its FFNs.
    """
    at = next((i for i, part in enumerate(layer) if isinstance(part, Moe)), None)
    if at is None:
        return [part for part in layer if not isinstance(part, Dense)], [part for part in layer if isinstance(part, Dense)]
    moe = layer[at]
    assert isinstance(moe, Moe)
    return list(layer[: at + 1]), [Shared(moe=moe), *layer[at + 1 :]]


def sequence_ends(workload: Workload, n_gpus: int) -> Ints:
    """int [gpus], tokens of each GPU after which the sequence does not go on in the batch: those that a next token is made of."""
    ends: Ints = np.bincount(workload.source[last_of_sequence(workload)], minlength=n_gpus)
    return ends


def last_of_sequence(workload: Workload) -> NDArray[np.bool_]:
    """bool [tokens], whether the sequence ends with it or goes on outside of the batch."""
    source, context = workload.source, workload.context
    if not source.size:
        return np.zeros(0, bool)
    return np.append((source[1:] != source[:-1]) | (context[1:] != context[:-1] + 1), True)
