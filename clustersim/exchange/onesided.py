"""Exchanges that write straight into the memory of GPUs of one NVLink domain, one copy per token and GPU. No clock, no links."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clustersim.exchange.copies import Gpus, TokenBytes, distinct_copies, token_bytes
from clustersim.exchange.payloads import loaded
from clustersim.kernels import load_kernel
from clustersim.types import InputError, Placement, Routing, Transfers, independent


def rank_dedup(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, metadata_bytes: float = 0.0,
) -> Transfers:
    """One copy per token and GPU that holds one of its experts, straight there; back comes one sum of what they made of it.

    Args:
        metadata_bytes: beside the token in every copy to an expert (its expert ids and gate weights).

    Raises:
        InputError: metadata_bytes below 0.
    """
    if not metadata_bytes >= 0:
        raise InputError(f"exchange.metadata_bytes={metadata_bytes}: cannot be negative")
    copies, _ = distinct_copies(routing, placement, cluster)
    token = token_bytes(phase, model)
    logical = float(copies.sum() * token)
    np.fill_diagonal(copies, 0)
    home, away = np.nonzero(copies)
    count = copies[home, away].astype(np.float64)
    if phase == "dispatch":
        return replace(independent(home, away, count * (token + metadata_bytes)), messages=count, logical_bytes=logical)
    return replace(independent(away, home, count * token), messages=count, logical_bytes=logical)


def trtllm_one_sided(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, kernel: str = "trtllm_one_sided", dispatch_payload: str | None = None, combine_payload: str | None = None,
) -> Transfers:
    """TensorRT-LLM's one-sided all-to-all: every GPU writes each token once into each GPU that needs it; all in one domain.

    An expert id and a gate weight per choice (4 bytes each) travel with every copy of a dispatch. In a combine the token's
    GPU reads one partial sum from each of them. Source: TensorRT-LLM, tech blog 18.

    Raises:
        InputError: GPUs of more than one NVLink domain.
    """
    if cluster.n_nodes > 1:
        raise InputError(f"exchange=trtllm_one_sided: {cluster.n_nodes} nodes; it works inside one NVLink domain")
    constants = load_kernel(kernel)
    plain = rank_dedup(
        phase, routing, placement, cluster, loaded(model, dispatch_payload, combine_payload), metadata_bytes=8.0 * model.top_k
    )
    least = np.full(cluster.n_gpus, constants[f"handshake_{phase}"])
    if phase == "combine":                  # results are copied into the buffer that others read; what was read is summed
        passed = np.bincount(plain.src, plain.nbytes, cluster.n_gpus) + np.bincount(plain.dst, plain.nbytes, cluster.n_gpus)
        least += 2 * passed / (constants["copy_share"] * cluster.gpu.memory_bandwidth)
    return replace(plain, release=np.full(plain.n, constants["launch"]), least=least)
