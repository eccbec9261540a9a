"""Routing without a trace: experts, gate weights and scores of any token of any layer, from parameters and a seed. No clock.

Everything is a pure function of (parameters, model, seed, sequence, place in it, layer): nothing depends on what was asked
before, on blocks or on workers. A replicate is a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.pick import find
from clustersim.types import Float32s, Floats, Ints
from clustersim.workload import sampler_popularity as families
from clustersim.workload.sampler_parameters import Parameters
from clustersim.workload.sampler_popularity import inclusion, plackett_luce_weights, probits

ROUNDS, POINTS = 32, 512                # of settling a bias: 16,384 latent vectors in all
UNROLLED = 4                            # the kernel takes dimensions four at a time: directions have a multiple of it
DIRECTIONS, POPULARITY, TOKENS, SETTLING = range(4)         # what a random stream is for


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pieces:
    """Tokens of sequences, piece after piece."""

    key: NDArray[np.uint64]             # of the sequence
    domain: Ints
    skip: Ints                          # tokens of the sequence that come before the piece
    count: Ints

    @property
    def n_tokens(self) -> int:
        return int(self.count.sum())


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Layer:
    """What the kernel needs to know of one layer."""

    directions: Float32s                # [dimensions, experts], unit columns
    bias: Float32s                      # [domains, experts]
    mixture: Any                        # sampler_kernel.Mixture


class Process:
    """A sampler of `n_layers` MoE layers.

    Per-layer parameters of another number of layers are stretched over the depth. Recorded loads are used where layers and
    experts are the model's own, and else drawn anew, as unevenly as they are (`redrawn`).
    """

    def __init__(self, parameters: Parameters, *, n_layers: int, n_experts: int, top_k: int, seed: int, extra: int = 0) -> None:
        """extra: columns of scores beside those of the experts, which no token chooses."""
        self.parameters = parameters
        self.n_layers, self.n_experts, self.top_k, self.extra = n_layers, n_experts, top_k, extra
        self.seed = seed
        self.redrawn = parameters.shape is not None and parameters.shape != (n_layers, n_experts)
        self._key = np.uint64(_stream(seed, TOKENS).integers(0, 1 << 63))
        self._layer: Callable[[int], _Layer] = cache(self._make_layer)
        self._tables: Callable[[int], tuple[Any, Any, Floats]] = cache(self._make_tables)
        self._all_directions: Callable[[], list[Floats]] = cache(self._make_directions)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know."""
        if not self.redrawn or self.parameters.shape is None:
            return ()
        layers, experts = self.parameters.shape
        return (
            f"{self.parameters.name} has the loads of {experts} experts in {layers} layers; "
            f"those of this model's {self.n_experts} in {self.n_layers} are drawn anew, as unevenly",
        )

    # ---- sequences

    def keys(self, sequence: Ints) -> NDArray[np.uint64]:
        """Keys of sequences, by their number; a domain and all tokens follow from the key."""
        from clustersim.workload.sampler_kernel import mixed

        return np.asarray(mixed(self._key, sequence.astype(np.uint64)), np.uint64)

    def domains(self, key: NDArray[np.uint64]) -> Ints:
        """Domain of each sequence: drawn by the domains' shares."""
        from clustersim.workload.sampler_kernel import mixed

        edges = np.cumsum([domain.share for domain in self.parameters.domains])[:-1]
        u = (mixed(key, np.full_like(key, 1 << 62)) >> np.uint64(11)) * 2.0**-53
        return np.asarray(np.searchsorted(edges, u, side="right"), np.int64)

    # ---- what a layer's router says

    def choose(self, layer: int, pieces: Pieces) -> tuple[Ints, Floats]:
        """Experts and gate weights, both [tokens, top_k], largest weight first."""
        from clustersim.workload import sampler_kernel as kernel

        ids, weights = np.empty((pieces.n_tokens, self.top_k), np.int64), np.empty((pieces.n_tokens, self.top_k))
        sharpness = float(self.parameters.sharpness)
        where = (pieces.domain, pieces.skip, pieces.count)
        if self.parameters.tokens == "independent":
            kernel.choose_independent(self._anew(pieces.key, layer), *where, *self._tables(layer), sharpness, ids, weights)
            return ids, weights
        it = self._layer(layer)
        experts = slice(0, self.n_experts)
        directions, bias = np.ascontiguousarray(it.directions[:, experts]), np.ascontiguousarray(it.bias[:, experts])
        kernel.choose(pieces.key, *where, directions, bias, it.mixture, kernel.quantiles(), sharpness, ids, weights)
        return ids, weights

    def scores(self, layer: int, pieces: Pieces) -> Float32s:
        """Router scores, before softmax or sigmoid, float32 [tokens, experts + extra].

        Only their differences are known, so they are centred: an expert's bias (the logarithm of its weight, for independent
        tokens) has mean 0 over the experts of a domain, which is that of every extra column.
        """
        from clustersim.workload import sampler_kernel as kernel

        out = np.empty((pieces.n_tokens, self.n_experts + self.extra), np.float32)
        where = (pieces.domain, pieces.skip, pieces.count)
        sharpness = np.float32(self.parameters.sharpness)
        if self.parameters.tokens == "independent":
            heavy = self._tables(layer)[2]
            heavy = np.concatenate([heavy, np.ones((len(heavy), self.extra))], axis=1)
            kernel.score_independent(self._anew(pieces.key, layer), *where, heavy, sharpness, out)
            return out
        it = self._layer(layer)
        kernel.score(pieces.key, *where, it.directions, it.bias, it.mixture, kernel.quantiles(), sharpness, out)
        return out

    @staticmethod
    def _anew(key: NDArray[np.uint64], layer: int) -> NDArray[np.uint64]:
        """Keys of the same sequences for one layer, for tokens whose layers know nothing of each other."""
        from clustersim.workload.sampler_kernel import mixed

        return np.asarray(mixed(key, np.full_like(key, (1 << 61) + layer)), np.uint64)

    def used(self, layer: int) -> Floats:
        """Fraction of a domain's tokens that use each expert, float [domains, experts]: what the biases are settled to."""
        parameters = self.parameters
        rows = []
        for number, domain in enumerate(parameters.domains):
            if domain.load is not None and not self.redrawn:
                shares = domain.load[layer]
            else:
                family = find(families, parameters.popularity, "popularity")
                spread = float(_at(domain.spread, layer, self.n_layers))
                shares = family(_stream(self.seed, POPULARITY, layer, number), self.n_experts, spread)
            rows.append(inclusion(shares, self.top_k))
        return np.array(rows)

    # ---- made once for a layer

    def _make_layer(self, layer: int) -> _Layer:
        from clustersim.workload import sampler_kernel as kernel

        directions = unit_directions(self._all_directions()[layer], float(_at(self.parameters.dimension, layer, self.n_layers)))
        key = np.uint64(_stream(self.seed, SETTLING).integers(0, 1 << 63))
        experts = np.ascontiguousarray(directions[:, : self.n_experts])
        bias = np.zeros((len(self.parameters.domains), self.n_experts + self.extra), np.float32)
        for domain, used in enumerate(self.used(layer)):
            start, slope = probits(used)
            own = start.astype(np.float32)
            if self.top_k < self.n_experts:
                kernel.settle(key, experts, used, slope, ROUNDS, POINTS, self.top_k, kernel.quantiles(), own)
            bias[domain, : self.n_experts] = own - own.mean()
        return _Layer(directions=directions, bias=bias, mixture=self._mixture(layer))

    def _make_directions(self) -> list[Floats]:
        """Before they are cut to a layer's dimensions and to length 1: normal, each layer's aligned with the one before."""
        most = math.ceil(self.parameters.dimension.max())
        made: list[Floats] = []
        for layer in range(self.n_layers):
            rng = _stream(self.seed, DIRECTIONS, layer)
            fresh = rng.standard_normal((most, self.n_experts + self.extra))
            if made:
                like = float(_at(self.parameters.alignment, layer, self.n_layers))
                partner = rng.permutation(fresh.shape[1])
                fresh = like * made[-1][:, partner] + math.sqrt(1 - like * like) * fresh
            made.append(fresh)
        return made

    def _mixture(self, layer: int) -> Any:
        from clustersim.workload.sampler_kernel import Mixture

        p = self.parameters
        angle = p.turn * layer / max(self.n_layers - 1, 1)
        topic, fast, slow, own = (float(_at(values, layer, self.n_layers)) for values in (p.topic, p.fast, p.slow, p.own))
        rest, common = math.sqrt(1 - topic), p.memory_correlation
        return Mixture(*(np.float32(value) for value in (
            math.cos(angle), math.sin(angle), math.sqrt(topic), rest * own, rest * fast, rest * slow,
            p.fast_memory, math.sqrt(1 - p.fast_memory**2), p.slow_memory, math.sqrt(1 - p.slow_memory**2),
            common, math.sqrt(1 - common * common),
        )))  # fmt: skip

    def _make_tables(self, layer: int) -> tuple[Any, Any, Floats]:
        from clustersim.workload.sampler_kernel import alias_tables

        weights = np.array([plackett_luce_weights(used, self.top_k) for used in self.used(layer)])
        weights /= np.exp(np.log(weights).mean(axis=1, keepdims=True))
        return (*alias_tables(weights), weights)


def unit_directions(normal: Floats, dimension: float) -> Float32s:
    """Unit columns float32 [a multiple of 4, experts] with `dimension` dimensions; a broken part weighs the last one less."""
    weight = np.sqrt(np.clip(dimension - np.arange(normal.shape[0]), 0.0, 1.0))
    cut = (normal * weight[:, None])[: math.ceil(dimension)]
    out = np.zeros((-(-cut.shape[0] // UNROLLED) * UNROLLED, cut.shape[1]), np.float32)
    out[: cut.shape[0]] = cut / np.linalg.norm(cut, axis=0)
    return out


def _at(values: Floats, layer: int, n_layers: int) -> float:
    """The value for a layer, of values for another number of layers: that of the same depth."""
    return float(values[layer * values.size // n_layers])


def _stream(seed: int, *purpose: int) -> np.random.Generator:
    """A random stream for a purpose, independent of all others of the seed."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(7919, *purpose))))
