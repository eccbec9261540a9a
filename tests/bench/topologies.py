"""What machines of 2,048 GPUs cost: `python -m tests.bench.topologies` prints CPU seconds to load, to route and to measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from clustersim.cluster import load_cluster
from clustersim.network.measures import all_to_all, bisection_bandwidth

FLAT: dict[str, Any] = {"rails": False}
CASES: dict[str, dict[str, Any]] = {
    "crossbar": {"nodes": 256},
    "leaf, one spine, 2:1": {"nodes": 256, "nic": {"oversubscription": 2.0}},
    "64 leaves, 32 spines, ecmp": {
        "nodes": 256, "fabric": {"name": "leaf_spine", "spines": 32, "nodes_per_leaf": 32}, "routing": {"name": "ecmp"},
    },
    "64 leaves, 32 spines, spray": {
        "nodes": 256, "fabric": {"name": "leaf_spine", "spines": 32, "nodes_per_leaf": 32}, "routing": {"name": "spray"},
    },
    "rail_only, pxn": {"nodes": 256, "fabric": {"name": "rail_only"}, "routing": {"name": "pxn"}},
    "fat tree, k = 32, ecmp": {"nodes": 256, "nic": FLAT, "fabric": {"name": "fat_tree", "k": 32}, "routing": {"name": "ecmp"}},
    "dragonfly, 17 groups of 16, ecmp": {
        "nodes": 272, "nic": FLAT, "fabric": {"name": "dragonfly", "groups": 17, "routers": 16, "global_links": 4},
        "routing": {"name": "ecmp"},
    },
    "8 planes, pxn, ecmp": {
        "nodes": 256, "fabric": {"name": "multi_plane", "planes": 8, "spines": 8, "nodes_per_leaf": 32},
        "routing": {"name": "pxn", "then": "ecmp"},
    },
    "two GPUs to a NIC": {"nodes": 256, "nic": {"per_gpu": "1/2"}},
}  # fmt: skip


def seconds(function: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """The least CPU seconds of several calls, and what the last one gave."""
    least, value = np.inf, None
    for _ in range(times):
        began = time.process_time()
        value = function()
        least = min(least, time.process_time() - began)
    return least, value


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in ("machine", "GPUs", "load", "255 routes a GPU", "links in them", "bisection", "all to all"):
        table.add_column(heading, justify="left" if heading == "machine" else "right")
    for name, fields in CASES.items():
        load, cluster = seconds(lambda fields=fields: load_cluster("h100_sxm", **fields))
        n = cluster.n_gpus
        src = np.repeat(np.arange(n), 255)
        dst = (src + 1 + np.random.default_rng(0).integers(0, n - 1, src.size)) % n
        route, routes = seconds(lambda c=cluster, s=src, d=dst: c.routes(s, d), 2)
        cut, _ = seconds(lambda c=cluster: bisection_bandwidth(c), 2)
        whole = seconds(lambda c=cluster: all_to_all(c), 1)[0]
        times = (f"{value:.3f}" for value in (load, route))
        table.add_row(name, f"{n:,}", *times, f"{routes.links.size:,}", f"{cut:.3f}", f"{whole:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
