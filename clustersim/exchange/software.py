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
