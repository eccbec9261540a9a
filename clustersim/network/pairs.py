"""One exchange given as a byte matrix, outside the event loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from clustersim.cluster import Cluster
from clustersim.network import drains, packets, sharing
from clustersim.network.bounds import busiest_link_end, latest_end, link_bytes
from clustersim.types import Floats, InputError, TransferResult, independent
from clustersim.ways import in_one_block


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
    from clustersim.network import loads

    if not isinstance(cluster, Cluster):
        raise InputError(f"cluster: must be a Cluster, as cs.load_cluster(NAME) gives, and is {cluster!r}")
    n = cluster.n_gpus
    sizes = np.ascontiguousarray(_numbers("nbytes", nbytes))
    if sizes.shape != (n, n):
        raise InputError(f"nbytes: the shape is {sizes.shape}; the cluster has {n} GPUs, so it must be ({n}, {n})")
    starts = _numbers("release", release)
    if starts.shape not in ((), (n,)):
        raise InputError(f"release: the shape is {starts.shape}; it must be one number or ({n},)")
    starts = np.broadcast_to(starts, n).copy()
    n_pairs = int(loads.count_pairs(sizes))
    for name, holds in (("nbytes", n_pairs >= 0), ("release", (np.isfinite(starts) & (starts >= 0)).all())):
        if not holds:
            raise InputError(f"{name}: must be finite and not negative")
    if network not in ("fluid", "bound", "packet"):
        raise InputError(f"network={network}: must be fluid, bound or packet")
    sharing.check_resolution(resolution)
    if network == "packet" and resolution != 0:
        raise InputError(f"resolution={resolution}: network=packet plays every packet; give a larger chunk instead")
    (src, dst), (each, begin) = in_one_block([n_pairs, n_pairs], [n_pairs, n_pairs])
    loads.list_pairs(sizes, starts, src, dst, each, begin)
    routes = cluster.routes(src, dst)
    by_hop = cluster.latency if network == "packet" else None
    carried = link_bytes(routes, each, len(cluster.links))
    bound, _ = busiest_link_end(cluster.capacity, routes, each, begin, by_hop, load=carried)
    solves = 1
    finish = np.full((n, n), np.nan)
    own = np.flatnonzero(np.diagonal(sizes))
    finish[own, own] = starts[own]
    if network == "bound":
        finish[src, dst] = bound
    elif network == "packet":
        waiting = packets.empty(cluster.capacity, cluster.latency, chunk, queue)
        zero = np.zeros(src.size, np.int64)
        packed = packets.extend(waiting, routes, independent(src, dst, each), inbox=zero, outbox=zero, n_counters=1)
        packets.play_all(packed, begin)
        finish[src, dst] = packets.finish(packed)
        solves = packets.solves(packed)
    elif src.size:
        least = bound - float(begin.min())
        drain, solves = drains.drain_times(cluster.capacity, routes, each, begin, resolution, least)
        loads.write_pairs(src, dst, drain, routes.latency, finish)
    last = np.fmax.reduce(finish, axis=None)            # of those that are known; NaN without any
    return TransferResult(
        finish=finish,
        makespan=0.0 if np.isnan(last) else float(last),
        link_bytes=carried,
        solves=solves,
        bound=bound,
        upper_bound=latest_end(cluster.capacity, routes, carried, begin),
    )


def _numbers(name: str, values: ArrayLike) -> Floats:
    """An array of floats; raises InputError where it cannot be one."""
    try:
        if not np.iscomplexobj(values):
            return np.asarray(values, np.float64)
    except (TypeError, ValueError):         # text; rows of different lengths
        pass
    raise InputError(f"{name}: must be an array of numbers, all rows of one length")
