"""Collectives of NCCL's rings inside a parallel group: closed forms over the ports of one node. Contends with nothing.

A ring passes every byte through every member once, (n - 1) / n of them for a reduce-scatter or an all-gather, twice that for an
all-reduce (Patarasuk and Yuan 2009). Inside a node the port to NVLink is the narrowest; between nodes there are as many rings
as members in a node, each over a NIC of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clustersim.cluster import Cluster
from clustersim.exchange.software import equipped
from clustersim.kernels import load_kernel
from clustersim.types import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Wires:
    """What a GPU's rings have."""

    gpus_per_node: int
    nvlink: float           # bytes/s that NCCL gets out of a GPU's port, each way
    nic: float              # bytes/s out of a GPU's share of the NICs; 0: there is none
    nvlink_hop_s: float     # from one member to the next
    nic_hop_s: float
    start_s: float


def wires_of(cluster: Cluster) -> Wires:
    """The wires of a machine, as NCCL drives them."""
    found = equipped("nccl_alltoall", {"kernel": "nccl"}, cluster)
    kernel = load_kernel("nccl")

    def of(kind: str) -> tuple[float, float]:
        each = [link for link in found.links if link.kind == kind]
        rate = min((link.capacity for link in each), default=0.0)
        return rate * min(1.0, len(each) / cluster.n_gpus), 2 * max((link.latency for link in each), default=0.0)

    nvlink, nvlink_hop = of("nvlink_up")
    nic, nic_hop = of("nic_up")
    return Wires(
        gpus_per_node=cluster.gpus_per_node, nvlink=nvlink, nic=nic, start_s=kernel["base_simple"],
        nvlink_hop_s=max(nvlink_hop, kernel["nvlink_simple"]), nic_hop_s=max(nic_hop, kernel["net_simple"]),
    )  # fmt: skip


def ring_s(nbytes: float, ranks: Ints, wires: Wires, passes: int = 1) -> float:
    """Seconds of a reduce-scatter or all-gather of `nbytes` over `ranks`; an all-reduce has two `passes`."""
    n = len(ranks)
    if n < 2 or nbytes <= 0:
        return 0.0
    members = np.bincount(ranks // wires.gpus_per_node)
    inside = int(members.max())
    nodes = int((members > 0).sum())
    through = nbytes * (n - 1) / n
    seconds = through / wires.nvlink if inside > 1 else 0.0
    hop = wires.nvlink_hop_s
    if nodes > 1:
        assert wires.nic > 0, "a group over several nodes that nothing connects"
        seconds = max(seconds, through / int(members[members > 0].min()) / wires.nic)
        hop = (wires.nic_hop_s * nodes + wires.nvlink_hop_s * (n - nodes)) / n
    return passes * (seconds + (n - 1) * hop) + wires.start_s


def send_s(nbytes: float, source: int, target: int, wires: Wires) -> float:
    """Seconds from one GPU to another."""
    if source == target or nbytes <= 0:
        return 0.0
    if source // wires.gpus_per_node == target // wires.gpus_per_node:
        return nbytes / wires.nvlink + wires.nvlink_hop_s
    return nbytes / wires.nic + wires.nic_hop_s
