"""Exchanges whose copies meet at a GPU on the way, without any being joined: PXN, 2D hierarchical, tensor x expert parallel."""

from __future__ import annotations

from typing import Any

import numpy as np

from clustersim.exchange.copies import Gpus, TokenBytes, choice_copies, count_copies, destinations, token_bytes
from clustersim.types import Floats, InputError, Ints, Placement, Routing, Transfers


def pxn(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes, *, chunk_tokens: int = 16
) -> Transfers:
    """The copies of `direct` as NCCL's PXN carries them: over NVLink to the own GPU on the rail of the destination, then by NIC.

    What GPUs of a node send to one GPU of another leaves by one NIC, as one transfer that follows all that feed it. On the
    way home the relays are those of the experts' node. Bytes on the NICs are those of `direct`, all on one rail.
    Source: NVIDIA, Doubling all2all performance with NCCL 2.12.

    Raises:
        InputError: chunk_tokens below 1.
    """
    if not chunk_tokens >= 1:
        raise InputError(f"exchange.chunk_tokens={chunk_tokens}: at least one token moves at a time")
    sent, token = _matrix(phase, routing, placement, cluster, model)
    return _by_relay(sent, cluster, chunk_tokens * token)


def hierarchical_2d(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes
) -> Transfers:
    """An all-to-all inside the nodes, then one between GPUs of one rail (Tutel's 2DH): the second begins when the first is over.

    GPU i of a node first gets all that its node sends to GPUs i, wherever, so the NICs carry few large messages. Bytes are
    those of `pxn`; the two strided copies in memory are not priced. Source: Tutel (arXiv 2206.03382) §3.4.
    """
    sent, _ = _matrix(phase, routing, placement, cluster, model)
    return _by_relay(sent, cluster, np.inf)


def tensor_expert(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes, *, tensor: int = 2,
) -> Transfers:
    """Experts cut over `tensor` neighbouring GPUs: a copy per token and expert to one of them, which hands it to the others.

    GPU j of a group sends to GPU j of the expert's group; there an all-gather makes (tensor - 1) more copies of all that
    came. On the way home a reduce-scatter brings as many partial sums back to it. Source: Megatron-LM's alltoall dispatcher
    with expert tensor parallelism, core_r0.13 token_dispatcher.py.

    Raises:
        InputError: GPUs of a node that cannot be dealt to groups of `tensor`.
    """
    n = cluster.n_gpus
    if tensor < 1 or cluster.gpus_per_node % tensor:
        raise InputError(f"exchange.tensor={tensor}: nodes of {cluster.gpus_per_node} GPUs cannot be cut into such groups")
    gpus = destinations(routing, placement, cluster)
    first = np.where(gpus >= 0, gpus // tensor * tensor + routing.source % tensor, -1)
    copies = count_copies(routing.source, first, n, n)
    token = token_bytes(phase, model)
    home, away = np.nonzero(copies * ~np.eye(n, dtype=bool))
    arrived = copies.sum(axis=0)                            # copies at each GPU, those of its own tokens too
    shares = np.flatnonzero(arrived)
    other = (shares // tensor * tensor)[:, None] + np.arange(tensor)
    giver, taker = np.repeat(shares, tensor), other.ravel()
    giver, taker = giver[giver != taker], taker[giver != taker]
    far: Floats = copies[home, away].astype(np.float64) * token
    near: Floats = arrived[giver].astype(np.float64) * token
    none = np.zeros(0, np.int64)
    if phase == "dispatch":
        feeds = [np.flatnonzero(away == g) for g in giver]
        return _chained((home, away, far), (giver, taker, near), feeds, np.inf)
    feeds = [np.flatnonzero(giver == g) for g in away] if tensor > 1 else [none] * home.size
    return _chained((taker, giver, near), (away, home, far), feeds, np.inf)


def _matrix(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes
) -> tuple[Floats, float]:
    """Bytes [gpus, gpus] from row to column, and of one copy."""
    copies, token = choice_copies(routing, placement, cluster), token_bytes(phase, model)
    return (copies if phase == "dispatch" else copies.T).astype(np.float64) * token, token


def _by_relay(nbytes: Floats, cluster: Gpus, chunk: float) -> Transfers:
    """Bytes [gpus, gpus] over NVLink to the GPU of the own node that has the destination's place, and by its NIC from there."""
    n, each, nodes = cluster.n_gpus, cluster.gpus_per_node, cluster.n_nodes
    at = np.zeros((nodes, each), np.int64)
    at[cluster.node_of, cluster.local_of] = np.arange(n)
    relay = at[cluster.node_of[:, None], cluster.local_of[None, :]]         # [from, to]
    first, src, dst = np.zeros((n, n)), *np.indices((n, n))
    np.add.at(first, (src, relay), nbytes)                                  # to the relay: also what stays there
    np.fill_diagonal(first, 0)
    second = np.zeros((n, n))
    outside = cluster.node_of[:, None] != cluster.node_of[None, :]
    np.add.at(second, (relay[outside], dst[outside]), nbytes[outside])
    a, b = np.nonzero(first)
    c, d = np.nonzero(second)
    feeds = []
    for relayed, to in zip(c, d, strict=True):
        feeding = b == relayed
        if np.isfinite(chunk):
            feeding &= nbytes[a, to] > 0
        feeds.append(np.flatnonzero(feeding))
    return _chained((a, b, first[a, b]), (c, d, second[c, d]), feeds, chunk)


def _chained(
    first: tuple[Any, Any, Floats], second: tuple[Any, Any, Floats], feeds: list[Ints], chunk: float
) -> Transfers:
    """Two hops: each transfer of the second follows the rows of the first in `feeds`, by pieces of `chunk` bytes."""
    src, dst, nbytes = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    parents = np.concatenate((np.zeros(first[0].size, np.int64), np.array([rows.size for rows in feeds], np.int64)))
    return Transfers(
        src=src, dst=dst, nbytes=nbytes.astype(np.float64), release=np.zeros(src.size), chunk=np.minimum(nbytes, chunk),
        after_start=np.concatenate(([0], np.cumsum(parents))).astype(np.int64),
        after=np.concatenate([*feeds, np.zeros(0, np.int64)]).astype(np.int64),
    )  # fmt: skip
