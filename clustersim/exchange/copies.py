"""How many copies of its tokens each GPU owes each other one: the counting that every exchange begins with."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from clustersim.gpuspec import GpuSpec
from clustersim.placement.replicas import chosen_slots
from clustersim.types import Ints, Placement, Routing


class Gpus(Protocol):
    """What an exchange may know of a cluster: which GPU sits where. Links are the network's business."""

    @property
    def n_gpus(self) -> int: ...
    @property
    def n_nodes(self) -> int: ...
    @property
    def gpus_per_node(self) -> int: ...
    @property
    def node_of(self) -> Ints: ...          # [gpus]
    @property
    def local_of(self) -> Ints: ...         # [gpus] place inside the node
    @property
    def gpu(self) -> GpuSpec: ...


class TokenBytes(Protocol):
    """What an exchange may know of a model."""

    @property
    def top_k(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def dispatch_token_bytes(self) -> float: ...    # one token on its way to an expert, scales included
    @property
    def combine_token_bytes(self) -> float: ...     # one token on its way back


def destinations(routing: Routing, placement: Placement, cluster: Gpus) -> Ints:
    """GPU of every kept choice, int [top_k, tokens]; -1 no expert or dropped.

    One row per choice, unlike everywhere else: what follows works on whole rows.
    """
    gpu_of = np.append(placement.gpu_of, -1)        # slot -1 is nowhere
    return gpu_of[np.ascontiguousarray(chosen_slots(routing, placement, cluster).T)]


def distinct(places: Ints) -> Ints:
    """`places` int [top_k, tokens] with every repeat of a place within one token replaced by -1 (the first stays)."""
    short = places.astype(np.int32)
    again = np.zeros(places.shape, dtype=bool)
    for j in range(1, places.shape[0]):
        for i in range(j):
            again[j] |= short[j] == short[i]
    return np.where(again, -1, places)


def count_copies(source: Ints, places: Ints, n_sources: int, n_places: int) -> Ints:
    """How many entries of `places` int [top_k, tokens] each source has for each place, int [sources, places]; -1 is none."""
    key = source * (n_places + 1) + (places + 1)    # column 0 takes those that go nowhere
    counts = np.bincount(key.ravel(), minlength=n_sources * (n_places + 1))
    return counts.reshape(n_sources, n_places + 1)[:, 1:]
