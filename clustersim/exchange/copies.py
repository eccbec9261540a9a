"""How many copies of its tokens each GPU owes each other one: the counting that every exchange begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from weakref import ref

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


def token_bytes(phase: str, model: TokenBytes) -> float:
    """Bytes of one token in a phase, scales included, headers not."""
    return model.dispatch_token_bytes if phase == "dispatch" else model.combine_token_bytes


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


def choice_copies(routing: Routing, placement: Placement, cluster: Gpus) -> Ints:
    """Copies of each GPU to each GPU, itself too, one per token and kept choice, int [gpus, gpus].

    Raises:
        InputError: a token asks for an expert without a slot.
    """
    from clustersim.exchange import copies_kernel as kernel

    n = cluster.n_gpus
    ids, table = _places(routing, placement, cluster)
    if table.shape[0] > 1:
        counts = np.zeros((n, n + 1), np.int64)
        _known(kernel.count_places(ids, routing.source, routing.index, table, counts), routing, placement, cluster)
        return counts[:, 1:]
    by_id = np.zeros((n, table.shape[1]), np.int64)
    _known(kernel.count_choices(ids, routing.source, by_id), routing, placement, cluster)
    gpu_of, by_id = table[0, 1:], by_id[:, 1:]
    if gpu_of.size == n and (gpu_of == np.arange(n)).all():
        return by_id
    order = np.argsort(gpu_of, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(gpu_of[order]) > 0)) if gpu_of.size else np.zeros(0, np.int64)
    copies = np.zeros((n, n), np.int64)
    if gpu_of.size:
        by_id = by_id if (order == np.arange(order.size)).all() else by_id[:, order]
        copies[:, gpu_of[order[first]]] = by_id if first.size == order.size else np.add.reduceat(by_id, first, axis=1)
    return copies


def distinct_copies(routing: Routing, placement: Placement, cluster: Gpus) -> tuple[Ints, Ints]:
    """Tokens of each GPU wanted on each GPU [gpus, gpus] and on each node [gpus, nodes], its own too.

    Raises:
        InputError: a token asks for an expert without a slot.
    """
    to_gpu, to_node = channel_copies(routing, placement, cluster, 1)
    return to_gpu[:, 0], to_node


def channel_copies(routing: Routing, placement: Placement, cluster: Gpus, channels: int) -> tuple[Ints, Ints]:
    """Tokens of each GPU and channel wanted on each GPU [gpus, channels, gpus], and of each GPU on each node [gpus, nodes].

    A channel has a run of its GPU's tokens, as many as any other.

    Raises:
        InputError: a token asks for an expert without a slot.
    """
    global _counted
    from clustersim.exchange import copies_kernel as kernel

    if _counted is not None and _counted.of(routing, placement, cluster, channels):
        return _counted.to_gpu.copy(), _counted.to_node.copy()
    ids, table = _places(routing, placement, cluster)
    n, nodes = cluster.n_gpus, cluster.n_nodes
    row = routing.source
    if channels > 1:
        mine = np.maximum(1, np.bincount(row, minlength=n))
        row = row * channels + routing.index * channels // mine[row]
    by_gpu, by_node = np.zeros((n * channels, n), np.int64), np.zeros((n * channels, nodes), np.int64)
    known = kernel.count_distinct(
        ids, row, routing.index, table, np.ascontiguousarray(cluster.node_of), np.full(n, -1), np.full(nodes, -1),
        by_gpu, by_node,
    )
    _known(known, routing, placement, cluster)
    to_gpu: Ints = by_gpu.reshape(n, channels, n)
    to_node: Ints = by_node.reshape(n, channels, nodes).sum(axis=1)
    _counted = _Counted.by(routing, placement, cluster, to_gpu.copy(), to_node.copy())
    return to_gpu, to_node


@dataclass(frozen=True, slots=True, eq=False)
class _Counted:
    """What a call was given and what it gave: a combine mostly counts what the dispatch before it has counted."""

    given: tuple[ref[Ints], ...]        # they are not kept alive for it
    replica: str
    node_of: Ints
    to_gpu: Ints                        # [gpus, channels, gpus]
    to_node: Ints

    @classmethod
    def by(cls, routing: Routing, placement: Placement, cluster: Gpus, to_gpu: Ints, to_node: Ints) -> _Counted:
        given = tuple(map(ref, _arrays(routing, placement)))
        return cls(given, placement.replica, cluster.node_of, to_gpu, to_node)

    def of(self, routing: Routing, placement: Placement, cluster: Gpus, channels: int) -> bool:
        same = all(known() is one for known, one in zip(self.given, _arrays(routing, placement), strict=True))
        same = same and self.replica == placement.replica and self.to_gpu.shape[1] == channels
        return same and np.array_equal(self.node_of, cluster.node_of)


_counted: _Counted | None = None


def _arrays(routing: Routing, placement: Placement) -> tuple[Ints, ...]:
    return routing.assigned, routing.source, routing.index, placement.gpu_of, placement.expert_of


def _known(known: bool, routing: Routing, placement: Placement, cluster: Gpus) -> None:
    if not known:
        chosen_slots(routing, placement, cluster)       # says which expert has no slot
        raise AssertionError("an expert is beyond the table and has a slot")


def _places(routing: Routing, placement: Placement, cluster: Gpus) -> tuple[Ints, Ints]:
    """What tokens are counted by, int [tokens, top_k], and the GPU of each of it, int [replicas, ids + 1]; column 0 is nowhere.

    Experts, where each has as many slots as any other and a hash of the token's index picks one; else slots.
    """
    n_slots, n_experts = placement.n_slots, int(placement.expert_of.max(initial=-1)) + 1
    each, rest = divmod(n_slots, max(1, n_experts))
    order = np.argsort(placement.expert_of, kind="stable")
    even = rest == 0 and (placement.expert_of[order] == np.repeat(np.arange(n_experts), each)).all()
    if even and (each == 1 or placement.replica == "token_hash"):
        ids, table = routing.assigned, placement.gpu_of[order].reshape(n_experts, each).T
    else:
        ids, table = chosen_slots(routing, placement, cluster), placement.gpu_of[None, :]
    nowhere = np.full((table.shape[0], 1), -1)
    return np.ascontiguousarray(ids), np.ascontiguousarray(np.concatenate((nowhere, table), axis=1))
