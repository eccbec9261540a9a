"""Exchanges in two hops: over the NIC to a forwarder on the other node, from there over NVLink. No clock, no links."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from clustersim.exchange.copies import Gpus, TokenBytes, distinct_copies, token_bytes
from clustersim.types import InputError, Ints, Placement, Routing, Transfers


def node_dedup(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, chunk_tokens: int = 16, metadata_bytes: float | None = None,
) -> Transfers:
    """One copy per token and node over the NIC, then one per token and GPU over NVLink; as DeepEP's normal kernels.

    Dispatch: GPU i of a node sends each token once to every other node that holds one of its experts, to GPU i there (the
    forwarder), which passes it on once to every GPU of its node that does, itself excepted. Tokens for the own node take
    the second hop only. Combine is the transpose: every GPU sums what its experts made of a token, the forwarder sums over
    its node, and one copy goes home. On a single node what remains is one copy per token and GPU.

    The hops are coupled by chunks: forwarding follows the NIC transfer from that source; the NIC transfer home follows all
    NVLink transfers that bring that source's tokens to the forwarder.

    Source: DeepEP dd758caf, csrc/kernels/legacy/internode.cu. A copy there carries, beside the token and its scales, 8
    bytes of source meta, and per choice a 4-byte expert index (dispatch only) and a 4-byte gate weight (both ways), in all
    a multiple of 16 bytes: hidden 7168, top-8 gives 7,472 bytes to dispatch FP8 and 14,384 to combine BF16.

    Args:
        phase: "dispatch" or "combine".
        chunk_tokens: tokens that move as one piece from hop to hop (DeepEP's RDMA chunk: 16).
        metadata_bytes: beside the token in every copy, both ways, not rounded; 0 counts the token alone. None: as DeepEP.

    Returns:
        Dispatch: NIC hops, then NVLink hops; combine: NVLink hops, then NIC hops.

    Raises:
        InputError: chunk_tokens below 1 or metadata_bytes below 0.
    """
    copy_bytes = copy_bytes_of(phase, model, metadata_bytes)
    to_gpu, to_node = distinct_copies(routing, placement, cluster)
    token = token_bytes(phase, model)
    logical = float((to_node if cluster.n_nodes > 1 else to_gpu).sum() * token)
    return replace(two_hops(phase, to_gpu, to_node, cluster, copy_bytes, chunk_tokens), logical_bytes=logical)


def two_hops(
    phase: str, to_gpu: Ints, to_node: Ints, cluster: Gpus, copy_bytes: float, chunk_tokens: float
) -> Transfers:
    """The two hops of `node_dedup`, from the tokens of each GPU wanted on each GPU [gpus, gpus] and node [gpus, nodes].

    What is wanted on the own node takes no first hop.

    Raises:
        InputError: chunk_tokens below 1.
    """
    if not chunk_tokens >= 1:
        raise InputError(f"exchange.chunk_tokens={chunk_tokens}: at least one token moves at a time")
    to_node = np.where(np.arange(cluster.n_nodes) == cluster.node_of[:, None], 0, to_node)
    nic_home, nic_node = np.nonzero(to_node)
    nic_row = np.full(to_node.shape, -1, dtype=np.int64)        # [gpus, nodes] which NIC hop it is, own node: none
    nic_row[nic_home, nic_node] = np.arange(nic_home.size)

    home, away = np.nonzero(to_gpu)
    node = cluster.node_of[away]
    forwarders = forwarders_of(cluster)                         # [gpus, nodes]; on its own node a GPU forwards for itself
    forwarder = forwarders[home, node]
    travels = forwarder != away
    home, away, forwarder, node = home[travels], away[travels], forwarder[travels], node[travels]
    nvlink_nic = nic_row[home, node]                            # the NIC hop that belongs to each NVLink hop; -1 none
    nic_far = forwarders[nic_home, nic_node]
    nic_bytes, nvlink_bytes = to_node[nic_home, nic_node] * copy_bytes, to_gpu[home, away] * copy_bytes

    if phase == "dispatch":
        src, dst = np.concatenate([nic_home, forwarder]), np.concatenate([nic_far, away])
        nbytes = np.concatenate([nic_bytes, nvlink_bytes])
        parents = np.concatenate([np.zeros(nic_home.size, dtype=np.int64), nvlink_nic >= 0])
        after = nvlink_nic[nvlink_nic >= 0]
    else:
        src, dst = np.concatenate([away, nic_far]), np.concatenate([forwarder, nic_home])
        nbytes = np.concatenate([nvlink_bytes, nic_bytes])
        by_nic = np.argsort(nvlink_nic, kind="stable")
        after = by_nic[np.count_nonzero(nvlink_nic < 0) :]
        fed = np.bincount(nvlink_nic[after], minlength=nic_home.size)
        parents = np.concatenate([np.zeros(home.size, dtype=np.int64), fed])
    return Transfers(
        src=src, dst=dst, nbytes=nbytes, release=np.zeros(src.size), chunk=np.full(src.size, chunk_tokens * copy_bytes),
        after_start=np.concatenate([[0], np.cumsum(parents)]), after=after,
    )


def forwarders_of(cluster: Gpus) -> Ints:
    """The GPU on each node with the same place in its node as each GPU, int [gpus, nodes]."""
    at = np.zeros((cluster.n_nodes, cluster.gpus_per_node), dtype=np.int64)
    at[cluster.node_of, cluster.local_of] = np.arange(cluster.n_gpus)
    return at[:, cluster.local_of].T


def copy_bytes_of(phase: str, model: TokenBytes, metadata_bytes: float | None) -> float:
    """Bytes of one copy of a token on the wire."""
    token = token_bytes(phase, model)
    if metadata_bytes is None:
        choice_bytes = 8 if phase == "dispatch" else 4
        return 16.0 * math.ceil((token + 8 + choice_bytes * model.top_k) / 16)
    if not metadata_bytes >= 0:
        raise InputError(f"exchange.metadata_bytes={metadata_bytes}: cannot be negative (null: DeepEP's format)")
    return float(token + metadata_bytes)
