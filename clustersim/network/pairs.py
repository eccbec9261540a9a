"""One exchange given as a byte matrix, outside the event loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from clustersim.cluster import Cluster
from clustersim.network import packets, sharing
from clustersim.network.bounds import busiest_link_end, latest_end, link_bytes
from clustersim.types import InputError, TransferResult, independent


def transfer(
    cluster: Cluster, nbytes: ArrayLike, network: str = "fluid", resolution: float = 0.0, release: ArrayLike = 0.0,
    *, chunk: str | float = packets.CHUNK, queue: str = "round_robin",
) -> TransferResult:  # fmt: skip
    """How long it takes to send nbytes[i, j] bytes from GPU i to GPU j, all pairs over the links at once.

    Args:
        nbytes: float [gpus, gpus], not negative. What a GPU keeps (the diagonal) takes no time and loads no link.
        network: "fluid" (max-min fair sharing), "bound" (every pair ends when the busiest link could be through) or "packet".
        resolution: of "fluid": 0 is exact; else rates are agreed on at most once in `resolution` x the bound.
        release: seconds, one for all or float [gpus]: when each source starts.
        chunk, queue: of "packet": bytes per packet, and "round_robin" or "fifo".

    Raises:
        InputError: a matrix of the wrong size, a negative or non-finite number, an unknown network.
    """
    n = cluster.n_gpus
    sizes = np.asarray(nbytes, np.float64)
    if sizes.shape != (n, n):
        raise InputError(f"nbytes: the shape is {sizes.shape}; the cluster has {n} GPUs, so it must be ({n}, {n})")
    starts = np.asarray(release, np.float64)
    if starts.shape not in ((), (n,)):
        raise InputError(f"release: the shape is {starts.shape}; it must be one number or ({n},)")
    for name, values in (("nbytes", sizes), ("release", starts)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise InputError(f"{name}: must be finite and not negative")
    if network not in ("fluid", "bound", "packet"):
        raise InputError(f"network={network}: must be fluid, bound or packet")
    sharing.check_resolution(resolution)
    if network == "packet" and resolution != 0:
        raise InputError(f"resolution={resolution}: network=packet plays every packet; give a larger chunk instead")
    starts = np.broadcast_to(starts, (n,))
    src, dst = np.nonzero(sizes * ~np.eye(n, dtype=bool))
    transfers, routes = independent(src, dst, sizes[src, dst]), cluster.routes(src, dst)
    by_hop = cluster.latency if network == "packet" else None
    bound, _ = busiest_link_end(cluster.capacity, routes, transfers.nbytes, starts[src], by_hop)
    solves = 1
    finish = np.full((n, n), np.nan)
    own = np.flatnonzero(np.diagonal(sizes))
    finish[own, own] = starts[own]
    if network == "bound":
        finish[src, dst] = bound
    elif network == "packet":
        waiting = packets.empty(cluster.capacity, cluster.latency, chunk, queue)
        zero = np.zeros(src.size, np.int64)
        packed = packets.extend(waiting, routes, transfers, inbox=zero, outbox=zero, n_counters=1)
        packets.play_all(packed, starts[src])
        finish[src, dst] = packets.finish(packed)
        solves = packets.solves(packed)
    elif src.size:
        least = bound - starts[src].min()
        drain, solves = sharing.drain_times(cluster.capacity, routes, transfers.nbytes, starts[src], resolution, least)
        finish[src, dst] = drain + routes.latency
    sent = finish[np.isfinite(finish)]
    carried = link_bytes(routes, transfers.nbytes, len(cluster.links))
    return TransferResult(
        finish=finish,
        makespan=float(sent.max()) if sent.size else 0.0,
        link_bytes=carried,
        solves=solves,
        bound=bound,
        upper_bound=latest_end(cluster.capacity, routes, carried, starts[src]),
    )
