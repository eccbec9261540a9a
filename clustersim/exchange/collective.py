"""NCCL's all-to-all: a send and a receive for every pair in one group, by channels of chunks. No clock, no links."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clustersim.exchange.alltoall import direct
from clustersim.exchange.copies import Gpus, TokenBytes
from clustersim.exchange.payloads import loaded
from clustersim.kernels import Kernel, load_kernel
from clustersim.lanes import lanes_from
from clustersim.types import Floats, Placement, Routing, Transfers, independent

CHANNEL = 0                     # its lane


def nccl_alltoall(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, kernel: str = "nccl", dispatch_payload: str | None = None, combine_payload: str | None = None,
) -> Transfers:
    """The copies of `direct` as NCCL sends them: all pairs at once, each by its channels; pairs without bytes are skipped."""
    plain = direct(phase, routing, placement, cluster, loaded(model, dispatch_payload, combine_payload))
    return in_channels(plain, cluster, load_kernel(kernel))


def nccl_bytes(nbytes: Floats, cluster: Gpus, *, kernel: str = "nccl") -> Transfers:
    """The same for bytes [gpus, gpus] from row to column, whatever they are; what a GPU keeps is copied in its memory."""
    src, dst = np.nonzero(nbytes * ~np.eye(cluster.n_gpus, dtype=bool))
    return in_channels(independent(src, dst, nbytes[src, dst].astype(np.float64)), cluster, load_kernel(kernel))


def in_channels(plain: Transfers, cluster: Gpus, kernel: Kernel) -> Transfers:
    """Transfers with NCCL's start, protocol and chunks.

    Small messages go by the protocol LL, with a flag beside every word: twice the bytes, and a shorter way to begin. Larger
    ones go by chunks through a buffer of the receiver, whose channel copies the last one out after it has arrived.
    """
    small = plain.nbytes <= kernel["ll_threshold"]
    slowness = kernel["clock"] / clock_of(cluster, kernel)
    inside = cluster.node_of[plain.src] == cluster.node_of[plain.dst]
    base = np.where(small, kernel["base_ll"], kernel["base_simple"])
    hop = np.where(inside, np.where(small, kernel["nvlink_ll"], kernel["nvlink_simple"]),
                   np.where(small, kernel["net_ll"], kernel["net_simple"]))
    channels = min(kernel["channels_per_peer"], kernel["channels"] / 2 ** np.ceil(np.log2(max(2, cluster.n_gpus))))
    piece = np.minimum(plain.nbytes / max(1.0, channels), np.where(inside, kernel["chunk_nvlink"], kernel["chunk_net"]))
    copied_out = np.where(small, 0.0, 2 * piece / kernel["sm_rate"])       # by an SM that sends at the same time
    release = slowness * (base + np.maximum(0.0, hop - kernel["hop_in_wires"]) + copied_out)
    logical = float(plain.nbytes.sum()) if plain.logical_bytes is None else plain.logical_bytes
    return replace(
        plain, release=release, nbytes=np.where(small, 2 * plain.nbytes, plain.nbytes), chunk=plain.chunk,
        messages=np.ceil(plain.nbytes / piece), logical_bytes=logical,
        lanes=lanes_from((CHANNEL, np.where(inside, plain.src, -1), np.ones(plain.n)), n_gpus=cluster.n_gpus),
    )  # fmt: skip


def clock_of(cluster: Gpus, kernel: Kernel) -> float:
    """Boost clock of the GPU in Hz, as the kernel's file has it; that of the GPU its constants belong to where it has none."""
    name = cluster.gpu.name.lower()
    found = [float(one.value) for key, one in kernel.constants.items() if key.startswith("clock_") and key[6:] in name]
    return found[0] if found else kernel["clock"]
