"""Collectives inside a parallel group: closed forms over the ports of one node. Contends with nothing.

A ring passes every byte through every member once, (n - 1) / n of them for a reduce-scatter or an all-gather, twice that for an
all-reduce (Patarasuk and Yuan 2009). Inside a node the port to NVLink is the narrowest; between nodes there are as many rings
as members in a node, each over a NIC of its own. NCCL has three protocols for it and takes the one that its own model finds
fastest. Engines that serve have all-reduces of their own, by kernels that read the memory of all peers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clustersim.cluster import Cluster
from clustersim.exchange.software import equipped
from clustersim.kernels import load_kernel
from clustersim.types import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a ring moves bytes: flags in them (fewer bytes, sooner begun), or chunks through a buffer."""

    start_s: float
    nvlink_hop_s: float     # from one member to the next
    nic_hop_s: float
    nvlink: float           # bytes/s out of a GPU's port, each way
    nic: float              # bytes/s out of a GPU's share of the NICs
    nic_most: float         # bytes/s of all rings of a node together


@dataclass(frozen=True, slots=True, kw_only=True)
class Wires:
    """What a GPU's rings have."""

    gpus_per_node: int
    nvlink: float           # bytes/s that NCCL gets out of a GPU's port, each way
    nic: float              # bytes/s out of a GPU's share of the NICs; 0: there is none
    nvlink_hop_s: float     # from one member to the next
    nic_hop_s: float
    start_s: float
    flagged: tuple[Protocol, ...] = ()      # protocols for smaller messages: LL and LL128
    one_shot_s: float | None = None         # a kernel that reads its peers, from launch to end, without its bytes; None: no such


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

    def flagged(name: str, nvlink_rate: float, nic_share: float, nic_most: float) -> Protocol:
        return Protocol(
            start_s=kernel[f"base_{name}"], nvlink_hop_s=max(nvlink_hop, kernel[f"nvlink_{name}"]),
            nic_hop_s=max(nic_hop, kernel[f"net_{name}"]), nvlink=nvlink_rate, nic=nic * nic_share, nic_most=nic_most,
        )  # fmt: skip

    few = min(kernel["ll_share"] * nvlink, kernel["ll_most"] * cluster.nominal.get("nvlink", 0.0))
    return Wires(
        gpus_per_node=cluster.gpus_per_node, nvlink=nvlink, nic=nic, start_s=kernel["base_simple"],
        nvlink_hop_s=max(nvlink_hop, kernel["nvlink_simple"]), nic_hop_s=max(nic_hop, kernel["net_simple"]),
        flagged=(
            flagged("ll", few, kernel["ll_share"], kernel["ll_net_most"]),
            flagged("ll128", kernel["ll128_share"] * nvlink, kernel["ll128_share"], np.inf),
        ),
        one_shot_s=load_kernel("peer_all_reduce")["one_shot"],
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A reduce-scatter, all-gather (one pass) or all-reduce (two) as NCCL runs it. Seconds; bytes of all passes."""

    seconds: float
    moving_s: float         # of them, while bytes are on their way; the others are hops and the start
    through: float          # bytes that pass every member
    nodes: int              # that the group is on
    rings: int              # a node's members, each of which has a NIC's part of the bytes
    by: Protocol


def ring_of(nbytes: float, ranks: Ints, wires: Wires, passes: int = 1) -> Ring | None:
    """The ring over `ranks` by the fastest of NCCL's protocols, whose choice is by the same sums (src/graph/tuning.cc).

    Returns:
        None where there is nothing to send, or nobody to send it to.
    """
    n = len(ranks)
    if n < 2 or nbytes <= 0:
        return None
    members = np.bincount(ranks // wires.gpus_per_node)
    inside, fewest = int(members.max()), int(members[members > 0].min())
    nodes = int((members > 0).sum())
    assert nodes == 1 or wires.nic > 0, "a group over several nodes that nothing connects"
    simple = Protocol(
        start_s=wires.start_s, nvlink_hop_s=wires.nvlink_hop_s, nic_hop_s=wires.nic_hop_s, nvlink=wires.nvlink, nic=wires.nic,
        nic_most=np.inf,
    )  # fmt: skip
    through = nbytes * (n - 1) / n

    def ring(by: Protocol) -> Ring:
        moving = through / by.nvlink if inside > 1 else 0.0
        hop = by.nvlink_hop_s
        if nodes > 1:
            moving = max(moving, through / min(fewest * by.nic, by.nic_most))
            hop = (by.nic_hop_s * nodes + by.nvlink_hop_s * (n - nodes)) / n
        return Ring(
            seconds=passes * (moving + (n - 1) * hop) + by.start_s, moving_s=passes * moving, through=passes * through,
            nodes=nodes, rings=fewest, by=by,
        )  # fmt: skip

    return min((ring(by) for by in (simple, *wires.flagged)), key=lambda one: one.seconds)


def ring_s(nbytes: float, ranks: Ints, wires: Wires, passes: int = 1) -> float:
    """Seconds of a reduce-scatter or all-gather of `nbytes` over `ranks`; an all-reduce has two `passes`. See `ring_of`."""
    ring = ring_of(nbytes, ranks, wires, passes)
    return 0.0 if ring is None else ring.seconds


def all_reduce_s(nbytes: float, ranks: Ints, wires: Wires) -> float:
    """Seconds of an all-reduce of `nbytes` over `ranks` as an engine that serves has it: the fastest of three.

    NCCL's ring; inside a node a kernel in which every GPU reads all of its peers at once (one shot), or reads a share of each,
    adds it up and reads the sums of all others (two shots, so two meetings of all GPUs).

    Source: vllm-project/vllm csrc/custom_all_reduce.cuh and NVIDIA/TensorRT-LLM customAllReduceKernels.cu.
    """
    n = len(ranks)
    ring = ring_s(nbytes, ranks, wires, passes=2)
    if n < 2 or nbytes <= 0 or wires.one_shot_s is None or wires.nvlink <= 0 or np.ptp(ranks // wires.gpus_per_node):
        return ring
    one = wires.one_shot_s + (n - 1) * nbytes / wires.nvlink
    two = 2 * wires.one_shot_s + 2 * (n - 1) / n * nbytes / wires.nvlink
    return min(ring, one, two)


def send_s(nbytes: float, source: int, target: int, wires: Wires) -> float:
    """Seconds from one GPU to another."""
    if source == target or nbytes <= 0:
        return 0.0
    if source // wires.gpus_per_node == target // wires.gpus_per_node:
        return nbytes / wires.nvlink + wires.nvlink_hop_s
    return nbytes / wires.nic + wires.nic_hop_s
