"""What a kernel makes of a machine: ports as fast as it drives them, SMs and message issue as lanes. Moves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from clustersim.cluster import Cluster
from clustersim.exchange.collective import clock_of
from clustersim.kernels import Kernel, load_kernel
from clustersim.lanes import equip
from clustersim.types import Floats, InputError, Transfers


class SmSeconds(Protocol):
    """Seconds [gpus] of all SMs of a GPU for sending off, and for taking in, what is exchanged; `added`: sums of what came."""

    def __call__(self, transfers: Transfers, *, added: bool) -> tuple[Floats, Floats]: ...


def equipped(name: str, options: Mapping[str, Any], cluster: Cluster) -> Cluster:
    """The machine as an exchange finds it: its lanes added and its ports slowed. Exchanges without a kernel leave it as it is.

    Args:
        name, options: of the exchange, the kernel's name under `kernel`.

    Raises:
        InputError: SMs beyond the GPU's, more GPUs or nodes than the kernel supports.
    """
    if name not in EQUIPMENT:
        return cluster
    kernel = load_kernel(options.get("kernel") or DEFAULT_KERNEL[name])
    kernel.refuse({"nodes": cluster.n_nodes, "gpus_per_node": cluster.gpus_per_node, "gpus": cluster.n_gpus})
    return EQUIPMENT[name](kernel, cluster, options)


def beyond(name: str, options: Mapping[str, Any], cluster: Cluster, **more: float) -> tuple[str, ...]:
    """What to say of an exchange used outside the range that its kernel's constants were found in; () inside or without one."""
    if name not in EQUIPMENT:
        return ()
    asked = {"gpus": cluster.n_gpus, "nodes": cluster.n_nodes, **more}
    asked |= {"sms": options["sms"]} if options.get("sms") is not None else {}
    return load_kernel(options.get("kernel") or DEFAULT_KERNEL[name]).beyond(asked)


def sms_held(name: str, options: Mapping[str, Any], cluster: Cluster) -> int:
    """Streaming multiprocessors of every GPU that an exchange keeps from computing for as long as it runs.

    Those it is told or takes by default; one for each channel of NCCL; all of the GPU's where the grid follows the tokens
    (TensorRT-LLM one-sided), so that nothing computes beside it. None where the NIC moves what was posted (low latency: its
    receiver is called when it is needed), and where no kernel is priced.

    Args:
        name, options: of the exchange, the kernel's name under `kernel`; other options are passed over.

    Raises:
        InputError: SMs beyond the GPU's, or a topology that does not say how many there are.
    """
    if name not in HELD:
        return 0
    kernel = load_kernel(options.get("kernel") or DEFAULT_KERNEL[name])
    held, there = HELD[name](kernel, cluster, options), cluster.gpu.sms
    if there is None:
        raise InputError(f"gpu.sms: {cluster.gpu.name} says nothing of it, and exchange={name} keeps some")
    if held > there:
        raise InputError(f"exchange.sms={held}: {cluster.gpu.name} has {there} SMs")
    return held


def wait_beside(name: str, options: Mapping[str, Any]) -> float:
    """Seconds that the ranks of an exchange wait for each other to begin, where another micro-batch computes meanwhile.

    0 for kernels of which nobody has measured it.
    """
    if name not in HELD:
        return 0.0
    kernel = load_kernel(options.get("kernel") or DEFAULT_KERNEL[name])
    return float(kernel["beside"]) if "beside" in kernel.constants else 0.0


def sm_seconds(name: str, cluster: Cluster) -> SmSeconds | None:
    """How long the kernels of an exchange that are called when they are needed (low latency) keep all SMs of a GPU busy; None for
    exchanges whose kernels stay for as long as they last, or have none.

    Sending off: from the launch until its last message is issued or stored, as `deepep_low_latency` prices it. Taking in: a
    pass over what has come, copied to its place (dispatch) or added up (combine).
    """
    if name not in CALLED:
        return None
    rate = load_kernel(DEFAULT_KERNEL[name])["copy_share"] * cluster.gpu.memory_bandwidth
    nvlink = min((link.capacity for link in cluster.links if link.kind == "nvlink_up"), default=np.inf)

    def seconds(transfers: Transfers, *, added: bool) -> tuple[Floats, Floats]:
        n, lanes = cluster.n_gpus, transfers.lanes
        assert lanes is not None
        rows = np.repeat(np.arange(transfers.n), np.diff(lanes.start))
        busy = np.bincount(lanes.lanes, transfers.nbytes[rows] * lanes.weights, minlength=len(cluster.links) - cluster.n_wires)
        issued = (busy / cluster.capacity[cluster.n_wires :]).reshape(-1, n).sum(axis=0)
        stored = transfers.nbytes * (np.diff(lanes.start) == 0) / nvlink                # no lane prices it: the port does
        sent = issued + np.bincount(transfers.src, stored, n)
        np.maximum.at(begun := np.zeros(n), transfers.src, transfers.release)
        came: Floats = np.bincount(transfers.dst, transfers.nbytes, n).astype(np.float64)
        off: Floats = begun + sent
        return off, came * (1.0 if added else 2.0) / rate

    return seconds


def _normal(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    sms = options.get("sms", 24)
    if cluster.gpu.sms is not None and sms > cluster.gpu.sms:
        raise InputError(f"exchange.sms={sms}: {cluster.gpu.name} has {cluster.gpu.sms} SMs")
    rate = sms / 2 * kernel["sm_rate"]
    return equip(
        cluster, {"sm_send": rate, "sm_forward": rate}, nvlink=kernel["nvlink_share"], nic=kernel["nic_share"]
    )


def _two_ways(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    sms = options.get("sms", SMS.get(kernel.name, 24))
    if sms < 1:
        raise InputError(f"exchange.sms={sms}: it is copied by at least one SM")
    return _normal(kernel, cluster, {"sms": sms})


def _low_latency(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    share = kernel["combine_share"] if cluster.gpu.fp4_flops is None else kernel["nvlink_share"]
    lanes = {"issue": 1 / kernel["message"], "put": share * cluster.nominal["nvlink"]}
    return equip(cluster, lanes, nvlink=kernel["nvlink_share"], nic=kernel["nic_share"])


def _one_sided(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    return equip(cluster, {}, nvlink=kernel["nvlink_share"])


def _nccl(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    """A channel is an SM that sends and receives, so half of what it can copy each way; every peer has one per NVLink."""
    rate = _channels(kernel, cluster) * kernel["sm_rate"] / 2 * clock_of(cluster, kernel) / kernel["clock"]
    return equip(cluster, {"channel": rate}, nvlink=kernel["nvlink_share"], nic=kernel["nic_share"])


def _channels(kernel: Kernel, cluster: Cluster) -> int:
    links = round(cluster.nominal["nvlink"] / kernel["nvlink_lane"])
    return max(1, min(round(kernel["channels"]), (cluster.gpus_per_node - 1) * links))


def _told(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> int:
    given = options.get("sms")
    return int(SMS.get(kernel.name, 24) if given is None else given)


CALLED = ("deepep_low_latency", "deepep_low_latency_rdma")      # whose kernels are called twice, and not in between
EQUIPMENT: dict[str, Callable[[Kernel, Cluster, Mapping[str, Any]], Cluster]] = {
    "deepep_normal": _normal, "deepep_low_latency": _low_latency, "deepep_low_latency_rdma": _low_latency,
    "trtllm_one_sided": _one_sided, "nccl_alltoall": _nccl, "hybrid_ep": _two_ways, "deepep_v2": _two_ways,
}  # fmt: skip
DEFAULT_KERNEL = {
    "deepep_normal": "deepep_v1", "deepep_low_latency": "deepep_low_latency", "deepep_low_latency_rdma": "deepep_low_latency",
    "trtllm_one_sided": "trtllm_one_sided", "nccl_alltoall": "nccl", "hybrid_ep": "hybrid_ep", "deepep_v2": "deepep_v2",
}  # fmt: skip
SMS = {"hybrid_ep": 16}     # that an exchange takes unless told; else 24
HELD: dict[str, Callable[[Kernel, Cluster, Mapping[str, Any]], int]] = {
    "deepep_normal": _told, "hybrid_ep": _told, "deepep_v2": _told, "nccl_alltoall": lambda k, c, o: _channels(k, c),
    "trtllm_one_sided": lambda k, c, o: c.gpu.sms or 0,
}  # fmt: skip
