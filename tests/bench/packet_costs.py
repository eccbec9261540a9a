"""What the packet network costs: `python -m tests.bench.packet_costs` prints packets over links, CPU seconds and their rate.

`costs()` gives the same as values. Packets over links mean the same on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clustersim.cluster import load_cluster
from clustersim.network import packets
from clustersim.types import Transfers
from tests.bench.counts import default_run_transfers, pairs
from tests.matrices import skewed


@dataclass(frozen=True)
class PacketCost:
    """What one exchange of 64 GPUs cost."""

    case: str
    queue: str
    chunk: str
    transfers: int
    packet_hops: int            # packets sent over a link, all links counted: the events
    seconds: float              # CPU, preparing included
    makespan: float             # simulated seconds

    @property
    def rate(self) -> float:
        """Packets over links per CPU second."""
        return self.packet_hops / self.seconds


def cost(case: str, transfers: Transfers, topology: str, chunk: str, queue: str = "round_robin") -> PacketCost:
    """Play transfers that are all released at 0 on 8 nodes of a machine of `topologies/`; the best of three."""
    cluster = load_cluster(topology, nodes=8)
    routes, zero = cluster.routes(transfers.src, transfers.dst), np.zeros(transfers.n, np.int64)
    packets.run(packets.empty(np.ones(1), np.zeros(1)), 0.0)            # compile
    seconds = []
    for _ in range(3):
        began = time.process_time()
        state = packets.empty(cluster.capacity, cluster.latency, chunk, queue)
        state = packets.extend(state, routes, transfers, inbox=zero, outbox=zero, n_counters=1)
        packets.play_all(state, transfers.release)
        seconds.append(time.process_time() - began)
    finish = packets.finish(state)
    return PacketCost(case, queue, chunk, transfers.n, packets.solves(state), min(seconds), float(finish.max()))


def costs() -> Iterator[PacketCost]:
    """A two-hop and a direct exchange, with and without latency, both queues."""
    dispatch = default_run_transfers("dispatch")
    for queue in packets.QUEUES:
        for chunk in ("1MiB", "64KiB", "4KiB"):
            yield cost("default run, dispatch", dispatch, "h100_sxm", chunk, queue)
        for topology in ("ideal_rail", "h100_sxm"):
            yield cost(f"skewed direct, {topology}", pairs(skewed(64)), topology, "64KiB", queue)


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in ("case", "queue", "chunk", "transfers", "packets x links", "CPU s", "M/s", "makespan us"):
        table.add_column(heading, justify="left" if heading in ("case", "queue") else "right")
    for row in costs():
        table.add_row(
            row.case, row.queue, row.chunk, f"{row.transfers:,}", f"{row.packet_hops:,}", f"{row.seconds:.3f}",
            f"{row.rate / 1e6:.1f}", f"{row.makespan * 1e6:.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
