"""How long a GPU takes for its own tokens in every layer: what stands before and after the routed experts. No traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clustersim.engine.compute import context_sums
from clustersim.engine.tensor_groups import WIDE, TensorGroups, alone
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

    GPUs that share attention do what their group holds together, each its part of it; norms and routers each its share of the
    tokens where these are scattered. What they hand to each other meanwhile is in their seconds (`sent`).

    Args:
        groups: of GPUs that share attention; None: every GPU by itself.
        per_sequence: tokens of a sequence that decoding passes side by side; None: prefill.
        inputs: images or pieces of sound per sequence, through the model's encoders.
        inbound: bytes/s at which retrieved text comes to a GPU.
        ends: int [gpus], tokens that a next one is made of, where `workload` is a part of a batch; None: found in it.
        padded: every GPU computes as many rows as the one with most; caches are its own.

    Raises:
        InputError: inputs for a model without encoders, parts that a group cannot share.
    """

    def __init__(
        self, timing: Timing, model: Model, workload: Workload, n_gpus: int, *, groups: TensorGroups | None = None,
        per_sequence: int | None = None, inputs: int = 0, inbound: float = np.inf, ends: Ints | None = None, padded: bool = False,
    ) -> None:  # fmt: skip
        self._groups = alone(n_gpus) if groups is None else groups
        self._per_sequence = per_sequence
        self._timing, self._model, self._n = timing, model, n_gpus
        self._source, self._own = workload.source, np.bincount(workload.source, minlength=n_gpus)
        if padded:
            self._own = np.full_like(self._own, self._own.max(initial=0))
        self._tokens = self._groups.together(self._own)
        self._between = self._own if self._groups.group.scattered else self._tokens
        self._context = workload.context + (model.retrieval.tokens if model.retrieval else 0)
        self._of: dict[Part, Floats] = {}
        self._sent: dict[Part, Floats] = {}
        if ends is None:
            spoken = sequence_ends(workload, n_gpus, self._groups.size)
            ends = spoken if per_sequence is None else self._own            # those that are verified
        sequences = ends
        self.encoders_s = self._encoders(sequences * inputs)
        self.retrieval_s: Floats = np.zeros(n_gpus)
        if model.retrieval is not None and per_sequence is None:
            found = model.retrieval
            self.retrieval_s = np.where(sequences > 0, found.latency_s + sequences * found.nbytes / inbound, 0.0)
        spoken = self._groups.together(ends)
        self.head_s = timing.matrix(-(-model.vocab // self._groups.size), model.hidden, spoken)
        if model.drafting:              # each has the unembedding once more, and takes in a token and what the layers made of it
            joined = timing.matrix(model.hidden, 2 * model.hidden, self._between)
            self.head_s = (1 + model.drafting) * self.head_s + model.drafting * joined
        self.head_sent_s = (1 + model.drafting) * self._gathered(spoken, model.vocab)
        if self._groups.group.scattered:
            self.head_sent_s = self.head_sent_s + self._gathered(spoken, model.hidden)

    def layer(self, layer: int) -> tuple[Floats, Floats]:
        """Seconds before the dispatch, router included, and after the combine, shared experts included.

        In a layer without routed experts: of its mixers and of its FFNs. What goes before the first layer and after the last
        (encoders, retrieval; the unembedding) is counted with them.
        """
        before, shared, after = self.pieces(layer)
        return before, shared + after

    def pieces(self, layer: int) -> tuple[Floats, Floats, Floats]:
        """As `layer`, with the shared experts by themselves between the two."""
        before, shared, after = self._summed(layer, self._seconds)
        if layer == 0:
            before = before + self.encoders_s + self.retrieval_s
        if layer == self._model.n_layers - 1:
            after = after + self.head_s
        if self._groups.size == 1:
            return before, shared, after
        sent = self.sent(layer)
        return before + sent[0], shared + sent[1], after + sent[2]

    def entry(self, layer: int) -> Floats:
        """Seconds [gpus] of the first of `pieces` up to scores, states or scan of the layer's first mixer, its norm included."""
        mixer = around_experts(self._model.layers[layer])[0][0]
        assert not isinstance(mixer, Shared | Moe | Dense), "a layer begins with its mixer"
        phase = "prefill" if self._per_sequence is None else "decode"
        hidden = self._model.hidden
        inward = self._timing.entry(mixer, hidden, self._tokens, phase=phase, tensor=self._groups.size)
        found = inward + self._timing.residual(hidden, self._between)
        return found + self.encoders_s + self.retrieval_s if layer == 0 else found

    def sent(self, layer: int) -> tuple[Floats, Floats, Floats]:
        """What of `pieces` is collectives of the groups; the embedding's rows are added up like the sums of a part."""
        before, shared, after = self._summed(layer, self._handed)
        if layer == 0:
            groups, nbytes = self._groups, self._tokens * (self._model.hidden * WIDE)
            before = before + (groups.gathered_s(nbytes) if groups.group.scattered else groups.reduced_s(nbytes))
        if layer == self._model.n_layers - 1:
            after = after + self.head_sent_s
        return before, shared, after

    def _summed(self, layer: int, of: Callable[[Part | Shared], Floats]) -> tuple[Floats, Floats, Floats]:
        """Sums over what a layer does before the dispatch, its shared experts, and what it does after the combine."""
        before, behind = around_experts(self._model.layers[layer])
        shared = [part for part in behind if isinstance(part, Shared)]
        after = [part for part in behind if not isinstance(part, Shared)]
        first, second, third = (sum((of(part) for part in some), np.zeros(self._n)) for some in (before, shared, after))
        return first, second, third

    def _seconds(self, part: Part | Shared) -> Floats:
        inside = self._groups.group.inside
        if isinstance(part, Shared):
            return self._timing.shared(self._tokens, tensor=self._groups.size) if inside else self._timing.shared(self._own)
        if part not in self._of:
            if isinstance(part, Moe):
                rows = self._tokens if inside else self._own
                own = self._timing.matrix(part.experts + part.zero_experts, self._model.hidden, rows)
            else:
                own = self._mixer_or_ffn(part)
            self._of[part] = own + self._timing.residual(self._model.hidden, self._between)
        return self._of[part]

    def _handed(self, part: Part | Shared) -> Floats:
        """What a group sends for a part. Experts on other GPUs are sent each GPU's share of the tokens; where every GPU has all
        tokens between the parts, results are gathered when they have come home."""
        group = self._groups.group
        if isinstance(part, Moe):
            return np.zeros(self._n)                # with its shared experts, behind all of them
        if isinstance(part, Shared) and not group.inside:
            return np.zeros(self._n) if group.scattered else self._gathered(self._tokens, self._model.hidden)
        key = part.moe if isinstance(part, Shared) else part
        if key not in self._sent:
            self._sent[key] = self._groups.around_s(self._tokens * (self._model.hidden * WIDE))
        return self._sent[key]

    def _gathered(self, rows: Ints, values: int) -> Floats:
        return self._groups.gathered_s(rows * (values * WIDE))

    def _mixer_or_ffn(self, part: Part) -> Floats:
        hidden, tokens, tensor = self._model.hidden, self._tokens, self._groups.size
        pairs = self._looked_at(part, slice(None))
        if self._per_sequence is None:
            return self._timing.part_seconds(part, hidden, tokens, pairs, tensor=tensor)
        last = slice(self._per_sequence - 1, None, self._per_sequence)      # of every sequence: it looks at all that is cached
        return self._timing.part_seconds(
            part, hidden, tokens, pairs, phase="decode", tensor=tensor, cached=self._looked_at(part, last),
            sequences=tokens // self._per_sequence,
        )  # fmt: skip

    def _looked_at(self, part: Part, some: slice) -> Floats:
        """What these tokens of a GPU's group look at, float [gpus]."""
        source, n = self._groups.members(self._source[some])
        return self._groups.spread(context_sums(part, self._context[some], source, n))

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


def sequence_ends(workload: Workload, n_gpus: int, tensor: int = 1) -> Ints:
    """int [gpus], tokens of each GPU after which the sequence does not go on in the batch: those that a next token is made of."""
    ends: Ints = np.bincount(workload.source[last_of_sequence(workload, tensor)], minlength=n_gpus)
    return ends


def last_of_sequence(workload: Workload, tensor: int = 1) -> NDArray[np.bool_]:
    """bool [tokens], whether the sequence ends with it or goes on outside of the batch, that of `tensor` GPUs."""
    source, context = workload.source // tensor, workload.context
    if not source.size:
        return np.zeros(0, bool)
    return np.append((source[1:] != source[:-1]) | (context[1:] != context[:-1] + 1), True)
