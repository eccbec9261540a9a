"""What a kernel makes of a machine: ports as fast as it drives them, SMs and message issue as lanes. Moves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clustersim.cluster import Cluster
from clustersim.exchange.collective import clock_of
from clustersim.kernels import Kernel, load_kernel
from clustersim.lanes import equip
from clustersim.types import InputError


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


def _normal(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    sms = options.get("sms", 24)
    if cluster.gpu.sms is not None and sms > cluster.gpu.sms:
        raise InputError(f"exchange.sms={sms}: {cluster.gpu.name} has {cluster.gpu.sms} SMs")
    rate = sms / 2 * kernel["sm_rate"]
    return equip(
        cluster, {"sm_send": rate, "sm_forward": rate}, nvlink=kernel["nvlink_share"], nic=kernel["nic_share"]
    )


def _two_ways(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    return _normal(kernel, cluster, {"sms": SMS.get(kernel.name, 24), **options})


def _low_latency(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    return equip(cluster, {"issue": 1 / kernel["message"]}, nvlink=kernel["nvlink_share"], nic=kernel["nic_share"])


def _one_sided(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    return equip(cluster, {}, nvlink=kernel["nvlink_share"])


def _nccl(kernel: Kernel, cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    """A channel is an SM that sends and receives, so half of what it can copy each way; every peer has one per NVLink."""
    links = round(cluster.nominal["nvlink"] / kernel["nvlink_lane"])
    channels = max(1.0, min(kernel["channels"], (cluster.gpus_per_node - 1) * links))
    rate = channels * kernel["sm_rate"] / 2 * clock_of(cluster, kernel) / kernel["clock"]
    return equip(cluster, {"channel": rate}, nvlink=kernel["nvlink_share"], nic=kernel["nic_share"])


EQUIPMENT: dict[str, Callable[[Kernel, Cluster, Mapping[str, Any]], Cluster]] = {
    "deepep_normal": _normal, "deepep_low_latency": _low_latency, "deepep_low_latency_rdma": _low_latency,
    "trtllm_one_sided": _one_sided, "nccl_alltoall": _nccl, "hybrid_ep": _two_ways, "deepep_v2": _two_ways,
}  # fmt: skip
DEFAULT_KERNEL = {
    "deepep_normal": "deepep_v1", "deepep_low_latency": "deepep_low_latency", "deepep_low_latency_rdma": "deepep_low_latency",
    "trtllm_one_sided": "trtllm_one_sided", "nccl_alltoall": "nccl", "hybrid_ep": "hybrid_ep", "deepep_v2": "deepep_v2",
}  # fmt: skip
SMS = {"hybrid_ep": 16}     # that an exchange takes unless told; else 24
