"""Layers of parts in order, and what stands before the core: encoders and retrieval. Shapes only, counted nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustersim.parts import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layers of one width."""

    hidden: int
    layers: tuple[tuple[Part, ...], ...]

    @property
    def parts(self) -> Iterator[Part]:
        return (part for layer in self.layers for part in layer)

    @property
    def params(self) -> int:
        return sum(part.params(self.hidden) for part in self.parts)

    @property
    def active(self) -> float:
        return sum(part.active(self.hidden) for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A stack before the core, for images or sound, whose outputs stand among the tokens of the core."""

    stack: Stack
    tokens: int             # of one image or piece of sound, inside the encoder
    outputs: int            # places they take in the core
    projection: int         # weights from the encoder's width to the core's


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """A look-up before the core (RAG; RETRO has its cross-attention among the parts)."""

    latency_s: float
    nbytes: float           # that come back
    tokens: int             # of context that they add
