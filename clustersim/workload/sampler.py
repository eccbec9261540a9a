"""Routing without a trace: the tokens of a pass, from the sampler or dealt out evenly. No trace, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Float32s, Floats, Ints
from clustersim.workload.sampler_process import Pieces, Process

DECK_STREAM = 5077      # of the seed: the shuffles of `balanced`
POOL = 2048             # sequences whose choices are counted one by one, where only counts are asked for
ROOM = 1 << 20          # numbers set aside for the sequences of one GPU: what a GPU has does not depend on the others
BEYOND = 1 << 40        # no pass has so many tokens: from here on they are the same whatever the pass has


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Batch:
    """The tokens of a pass: on every GPU sequences of one length, the last one cut. Tokens are numbered GPU after GPU.

    Numbers beyond the last GPU's are those of more GPUs of the same kind; from BEYOND on, sequence after sequence.
    """

    process: Process
    n_gpus: int
    tokens_per_gpu: int
    sequence: int                   # tokens
    known: dict[tuple[int, int], Pieces] = field(init=False, repr=False, default_factory=dict)     # alike in all layers

    def choose(self, layer: int) -> tuple[Ints, Floats]:
        """Experts and gate weights of all tokens, both [tokens, top_k], largest weight first."""
        return self.process.choose(layer, self.pieces(0, self.n_gpus * self.tokens_per_gpu))

    def scores(self, layer: int, first: int, last: int) -> Float32s:
        """Router scores of tokens first to last - 1, float32 [tokens, experts + extra]."""
        return self.process.scores(layer, self.pieces(first, last))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of counts has to know."""
        n = self.n_gpus * -(-self.tokens_per_gpu // self.sequence)
        return (f"counts of {n:,} sequences are put together from those of {POOL:,}",) if n > POOL else ()

    def count(self, layer: int) -> Ints:
        """Choices of each expert by the tokens of each GPU, int [gpus, experts].

        The first POOL sequences are sampled as they are; each later one takes the counts of one of them, always the same in
        all layers. So up to POOL sequences the counts are those of `choose`.
        """
        each = -(-self.tokens_per_gpu // self.sequence)
        n_pool = min(POOL, self.n_gpus * each)
        gpu, number = np.divmod(np.arange(self.n_gpus * each), each)
        key = self.process.keys(gpu * ROOM + number)
        which = np.where(np.arange(key.size) < n_pool, np.arange(key.size), (key % np.uint64(n_pool)).astype(np.int64))
        cut = self.tokens_per_gpu - (each - 1) * self.sequence          # tokens of a GPU's last sequence
        whole = self._sequence_counts(layer, key[:n_pool], self.sequence) if each > 1 else None
        last = self._sequence_counts(layer, key[:n_pool], cut)
        counts = np.zeros((self.n_gpus, self.process.n_experts), np.int64)
        for at, of in enumerate(which.reshape(self.n_gpus, each).T):
            counts += last[of] if at == each - 1 or whole is None else whole[of]
        return counts

    def _sequence_counts(self, layer: int, key: NDArray[np.uint64], length: int) -> Ints:
        """Choices of each expert by the first `length` tokens of sequences, int [sequences, experts]."""
        n_experts = self.process.n_experts
        pieces = Pieces(
            key=key, domain=self.process.domains(key), skip=np.zeros(key.size, np.int64), count=np.full(key.size, length)
        )
        ids, _ = self.process.choose(layer, pieces)
        of = np.repeat(np.arange(key.size), length)[:, None] * n_experts + ids
        return np.bincount(of.ravel(), minlength=key.size * n_experts).reshape(key.size, n_experts)

    def pieces(self, first: int, last: int) -> Pieces:
        """Tokens first to last - 1 as pieces of sequences."""
        found = self.known.get((first, last))
        if found is None:
            found = self.known[first, last] = self._pieces(first, last)
        return found

    def _pieces(self, first: int, last: int) -> Pieces:
        far = first >= BEYOND
        first, last = (first - BEYOND, last - BEYOND) if far else (first, last)
        of_gpu = self.sequence if far else self.tokens_per_gpu
        each = -(-of_gpu // self.sequence)                      # sequences of a GPU
        one, until = (at // of_gpu * each + at % of_gpu // self.sequence for at in (first, last - 1))
        gpu, number = np.divmod(np.arange(one, until + 1 if last > first else one), each)
        begin = gpu * of_gpu + number * self.sequence
        behind = np.minimum(begin + self.sequence, (gpu + 1) * of_gpu)
        key = self.process.keys((gpu + BEYOND if far else gpu) * ROOM + number)
        return Pieces(
            key=key, domain=self.process.domains(key), skip=np.maximum(first - begin, 0),
            count=np.minimum(behind, last) - np.maximum(begin, first),
        )


def balanced(number: Ints, *, n_experts: int, top_k: int, seed: int, layer: int) -> tuple[Ints, Floats]:
    """Experts dealt like cards: shuffled anew for every `n_experts` tokens, token t takes the next top_k, all weights equal.

    Every expert gets the same number from tokens that stand together, where tokens · top_k is a multiple of the experts. A token
    visits as many GPUs and nodes as one that takes its experts at random.

    Args:
        number: int [tokens], tokens counted over all GPUs.
    """
    deck, place = np.divmod(number, n_experts)
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(layer, DECK_STREAM))))
    decks = rng.permuted(np.tile(np.arange(n_experts), (int(deck.max(initial=0)) + 1, 1)), axis=1)
    ids = decks[deck[:, None], (place[:, None] * top_k + np.arange(top_k)) % n_experts]
    return ids, np.full(ids.shape, 1.0 / top_k)
