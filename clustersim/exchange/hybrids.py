"""Later kernels between domains: DeepEP V2 and Hybrid-EP; and all-gather with reduce-scatter. No clock, no links."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clustersim.exchange.copies import Gpus, TokenBytes, distinct_copies, token_bytes
from clustersim.exchange.hierarchical import copy_bytes_of, forwarders_of, two_hops
from clustersim.exchange.onesided import rank_dedup
from clustersim.exchange.payloads import loaded
from clustersim.kernels import launched, load_kernel
from clustersim.lanes import lanes_from
from clustersim.types import Ints, Lanes, Placement, Routing, Transfers


def hybrid_ep(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, kernel: str = "hybrid_ep", sms: int = 16, chunk_tokens: int = 32, metadata_bytes: float = 0.0,
    dispatch_payload: str | None = None, combine_payload: str | None = None,
) -> Transfers:
    """One copy per token and NVLink domain between GPUs of one place, spread inside the domain; as NVIDIA's Hybrid-EP.

    The copies of `node_dedup` with a node of as many GPUs as NVLink joins (72 in a rack), copied by `sms` SMs. The routing map
    goes ahead in an all-gather of its own, which is part of the launch. Source: github:deepseek-ai/DeepEP, branch hybrid-ep,
    docs/README_Hybrid-EP.md.
    """
    constants, model = load_kernel(kernel), loaded(model, dispatch_payload, combine_payload)
    copy_bytes = copy_bytes_of(phase, model, metadata_bytes)
    to_gpu, to_node = distinct_copies(routing, placement, cluster)
    plain = two_hops(phase, to_gpu, to_node, cluster, copy_bytes, chunk_tokens)
    counted = to_node if cluster.n_nodes > 1 else to_gpu
    return replace(
        plain, release=np.full(plain.n, launched(constants, cluster.gpu)), lanes=_by_sms(plain, cluster),
        logical_bytes=float(counted.sum() * copy_bytes),
    )  # fmt: skip


def deepep_v2(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, kernel: str = "deepep_v2", sms: int = 24, hybrid: bool = True, multiple_reduction: bool = True, chunk_tokens: int = 16,
    dispatch_payload: str | None = None, combine_payload: str | None = None,
) -> Transfers:
    """DeepEP V2: with `hybrid` the copies of `node_dedup`, without it those of `rank_dedup`, straight by NVLink or RDMA.

    Args:
        multiple_reduction: whether forwarders sum a token's results over their node, so that one copy goes home; without it
            one per GPU does, and all are summed there.
    """
    constants, model = load_kernel(kernel), loaded(model, dispatch_payload, combine_payload)
    copy_bytes = copy_bytes_of(phase, model, None)
    token = token_bytes(phase, model)
    if not hybrid:
        plain = rank_dedup(phase, routing, placement, cluster, model, metadata_bytes=0.0)
        plain = replace(plain, nbytes=plain.nbytes / token * copy_bytes)
    else:
        to_gpu, to_node = distinct_copies(routing, placement, cluster)
        plain = two_hops(phase, to_gpu, to_node, cluster, copy_bytes, chunk_tokens)
        if phase == "combine" and not multiple_reduction:
            plain = _unsummed(plain, to_gpu, cluster, copy_bytes)
        plain = replace(plain, logical_bytes=float((to_node if cluster.n_nodes > 1 else to_gpu).sum() * token))
    return replace(
        plain, release=np.full(plain.n, launched(constants, cluster.gpu)), lanes=_by_sms(plain, cluster),
        chunk=np.minimum(plain.nbytes, chunk_tokens * copy_bytes),
    )  # fmt: skip


def allgather(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes, *, chunk_tokens: int = 16,
    combine_payload: str | None = None,
) -> Transfers:
    """Every token to every GPU, whatever the routing, and a reduce-scatter home: (GPUs - 1) x tokens received by each GPU.

    By rails: each GPU's tokens go once to GPU i of every other node, and from there to all of that node, as rings over all NICs
    of a node carry them. On the way home nodes sum first.

    Args:
        combine_payload: format of partial sums, for example fp32; None: the model's.
    """
    model = loaded(model, None, combine_payload)
    tokens = np.bincount(routing.source, minlength=cluster.n_gpus)
    token = token_bytes(phase, model)
    to_node = np.repeat(tokens[:, None], cluster.n_nodes, axis=1)
    to_gpu = np.repeat(tokens[:, None], cluster.n_gpus, axis=1)
    return two_hops(phase, to_gpu, to_node, cluster, token, chunk_tokens)


def _by_sms(t: Transfers, cluster: Gpus) -> Lanes:
    """Bytes that leave and that arrive at a GPU pass its SMs once each: lane 0 out, lane 1 in."""
    ones = np.ones(t.n)
    return lanes_from((0, t.src, ones), (1, t.dst, ones), n_gpus=cluster.n_gpus)


def _unsummed(t: Transfers, to_gpu: Ints, cluster: Gpus, copy_bytes: float) -> Transfers:
    """The transfers home with one copy per token and GPU on the NICs."""
    nbytes = t.nbytes.copy()
    over_nic = np.flatnonzero(cluster.node_of[t.src] != cluster.node_of[t.dst])
    per_node = np.zeros((cluster.n_gpus, cluster.n_nodes))
    np.add.at(per_node.T, cluster.node_of, to_gpu.T)
    nbytes[over_nic] = per_node[t.dst[over_nic], cluster.node_of[t.src[over_nic]]] * copy_bytes
    assert (forwarders_of(cluster)[t.dst[over_nic], cluster.node_of[t.src[over_nic]]] == t.src[over_nic]).all()
    return replace(t, nbytes=nbytes)
