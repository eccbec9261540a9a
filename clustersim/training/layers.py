"""What the layers of a stage cost a micro-batch, forward and back: seconds of every GPU of an expert group. Plays nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from clustersim.engine.collectives import Wires, ring_s
from clustersim.engine.machines import Machine, Values
from clustersim.engine.passes import PLAIN, WIDE, Habits, Passes, expert_passes, head_passes, part_passes
from clustersim.matrices import seen
from clustersim.model import Model
from clustersim.parallel import Parallel
from clustersim.parts import Attention, Latent, Moe, Part
from clustersim.training.folding import gathered_s, shared_rows
from clustersim.types import Ints


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Batch:
    """A micro-batch as one GPU's tensor group sees it."""

    sequences: int
    sequence: int           # tokens of each
    context: int            # GPUs that share a sequence

    @property
    def tokens(self) -> int:
        return self.sequences * self.sequence // self.context

    def pairs(self, part: Part) -> float:
        """(Token, token it looks at) on one GPU: the sequence is dealt so that all have as many."""
        looks = seen(part, np.arange(1, self.sequence + 1))
        return float(looks.sum()) * self.sequences / self.context


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Own:
    """What a GPU does with its own tokens in one layer: computing, and what its tensor and context groups send meanwhile.

    Of what is sent only what is exposed counts: a tensor group's second gather of inputs goes on beside the gradient of the
    inputs, its scatter beside that of the weights, as in Megatron-LM.
    """

    computed: Passes
    sent: Passes


def own_passes(
    layer: Sequence[Part], model: Model, batch: Batch, parallel: Parallel, wires: Wires, machine: Machine, n_gpus: int,
    habits: Habits = PLAIN,
) -> Own:  # fmt: skip
    """All of a layer but its routed experts, on `n_gpus` that do the same."""
    tokens = np.full(n_gpus, batch.tokens)
    pieces = parallel.tensor if parallel.sequence_parallel else 1
    computed = sent = Passes.none(n_gpus)
    for part in layer:
        pairs = np.full(n_gpus, batch.pairs(part))
        one = part_passes(part, model.hidden, tokens, pairs, machine, parallel.tensor, pieces, habits)
        computed += one
        if not isinstance(part, Moe) or part.shared_size:
            sent += _tensor_sends(one, batch.tokens * model.hidden * WIDE, parallel, wires)
        if isinstance(part, Attention | Latent):
            sent += _context_sends(part, batch, parallel, wires, n_gpus)
    return Own(computed=computed, sent=sent)


def _tensor_sends(one: Passes, nbytes: float, parallel: Parallel, wires: Wires) -> Passes:
    """A gather before and a scatter behind a part (or, without sequence parallelism, one all-reduce that is both).

    With `tensor_overlap` a part's first product takes up pieces as they come and its last one sends them as they are made: each
    is taken for half of the part; of a gather the own piece needs no waiting, of a scatter the last has nothing to hide behind.
    """
    n = one.forward_s.size
    if parallel.tensor == 1:
        return Passes.none(n)
    ranks = parallel.groups("tensor")[0]
    if parallel.tensor_overlap:
        each, hidden = ring_s(nbytes, ranks, wires), (parallel.tensor - 1) / parallel.tensor / 2
        ahead, back = (np.maximum(0.0, each - hidden * product) for product in (one.forward_s, one.input_s))
        last = each / parallel.tensor           # the piece that the last product leaves
        return Passes(
            forward_s=ahead + np.maximum(last, ahead), input_s=back + np.maximum(last, back),
            weight_s=np.maximum(0.0, each - one.weight_s),
        )  # fmt: skip
    if parallel.sequence_parallel:
        each = ring_s(nbytes, ranks, wires)
        return Passes(
            forward_s=np.full(n, 2 * each), input_s=each + np.maximum(0.0, each - one.input_s),
            weight_s=np.maximum(0.0, each - one.weight_s),
        )
    both = ring_s(nbytes, ranks, wires, passes=2)
    return Passes(forward_s=np.full(n, both), input_s=np.zeros(n), weight_s=np.maximum(0.0, both - one.weight_s))


def _context_sends(part: Attention | Latent, batch: Batch, parallel: Parallel, wires: Wires, n_gpus: int) -> Passes:
    """Keys and values gathered before attention, both ways, and their gradients scattered (Llama 3, arXiv 2407.21783 §3.3.2)."""
    if parallel.context == 1:
        return Passes.none(n_gpus)
    values = part.cached(1.0) * batch.sequences * batch.sequence * WIDE / parallel.tensor
    each = ring_s(values, parallel.groups("context")[0], wires)
    return Passes(forward_s=np.full(n_gpus, each), input_s=np.full(n_gpus, 2 * each), weight_s=np.zeros(n_gpus))


def routed_passes(
    model: Model, rows: Ints, gpu_of: Ints, n_gpus: int, machine: Machine, tensor: int = 1, habits: Habits = PLAIN
) -> Passes:
    """The routed experts of a layer; rows int [slots], GPU of each, the first of `tensor` that share it."""
    moe = moe_of(model)
    moe, (rows, gpu_of) = replace(moe, size=moe.size // tensor), shared_rows(rows, gpu_of, tensor)
    through: Values = np.bincount(gpu_of, rows, n_gpus)
    return expert_passes(moe, model.hidden, rows, gpu_of, n_gpus, machine, through, habits)


def routed_sends(model: Model, rows: Ints, gpu_of: Ints, n_gpus: int, parallel: Parallel, wires: Wires) -> Passes:
    """What expert-tensor groups gather before the experts and scatter behind them, both ways."""
    sent = gathered_s(rows, gpu_of, n_gpus, parallel.expert_tensor, model, wires)
    both: Values = sent["gather"] + sent["scatter"]
    return Passes(forward_s=both, input_s=both, weight_s=np.zeros(n_gpus))


def unembedding(model: Model, batch: Batch, parallel: Parallel, machine: Machine, n_gpus: int) -> Passes:
    """Unembedding and loss, on the last stage."""
    return head_passes(model.vocab, model.hidden, np.full(n_gpus, batch.tokens), machine, parallel.tensor)


@lru_cache(maxsize=8)
def moe_of(model: Model) -> Moe:
    """The mixture of experts of a model's layers."""
    return next(part for layer in model.layers for part in layer if isinstance(part, Moe))
