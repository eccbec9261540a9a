"""What the exact network costs, counted: `python -m tests.bench.network` prints solves, visits and seconds in one table.

Solves and visits mean the same on every machine; seconds (CPU, compiled) do not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clustersim.cluster import load_cluster
from clustersim.config import compose
from clustersim.network import kernel, sharing
from clustersim.network.bounds import chained
from clustersim.simulation import _assemble, _layer
from clustersim.types import Routes, Transfers, independent


@dataclass(frozen=True)
class Cost:
    """What one exchange cost."""

    case: str
    flows: int
    solves: int
    flow_visits: float          # per solve
    link_visits: float          # per solve
    events: int
    seconds: float


def skewed(n_gpus: int, seed: int = 0) -> NDArray[np.float64]:
    """Bytes of a direct dispatch, [gpus, gpus]: 8 experts per GPU of Zipf(0.8) popularity, 4,096 tokens, top-8, 7,168 bytes."""
    rng = np.random.default_rng([seed, n_gpus])
    popularity = rng.permutation(np.arange(1, 8 * n_gpus + 1) ** -0.8)
    choices = rng.multinomial(4096 * 8, popularity / popularity.sum(), size=n_gpus)
    return choices.reshape(n_gpus, n_gpus, 8).sum(axis=2) * 7168.0 * ~np.eye(n_gpus, dtype=bool)


def uniform(n_gpus: int) -> NDArray[np.float64]:
    """1 MiB from every GPU to every other one."""
    return 2.0**20 * ~np.eye(n_gpus, dtype=bool)


def cost(case: str, transfers: Transfers, topology: str, nodes: int) -> Cost:
    """Play transfers that are all released at 0, on a machine of `topologies/`."""
    cluster = load_cluster(topology, nodes=nodes)
    routes = cluster.routes(transfers.src, transfers.dst)
    latency, _ = chained(transfers, routes.latency, transfers.release)
    routes = Routes(start=routes.start, links=routes.links, weights=routes.weights, latency=latency)
    one = np.zeros(transfers.n, np.int64)
    sharing.run(sharing.empty(np.ones(1)), 0.0)             # compile
    began = time.process_time()
    state = sharing.extend(sharing.empty(cluster.capacity), routes, transfers, inbox=one, outbox=one, n_counters=1)
    sharing.solve_all(state, transfers.release)
    seconds = time.process_time() - began
    solves = int(state.tally[kernel.SOLVES])
    visits = [float(state.tally[of]) / solves for of in (kernel.FLOW_VISITS, kernel.LINK_VISITS)]
    return Cost(case, transfers.n, solves, *visits, int(state.tally[kernel.EVENTS]), seconds)


def pairs(nbytes: NDArray[np.float64]) -> Transfers:
    """One transfer for every pair with something to send."""
    src, dst = np.nonzero(nbytes)
    return independent(src, dst, nbytes[src, dst])


def direct_cost(pattern: str, n_gpus: int) -> Cost:
    """A direct all-to-allv on `ideal_rail`."""
    nbytes = skewed(n_gpus) if pattern == "skewed" else uniform(n_gpus)
    return cost(f"direct, {pattern}, {n_gpus} GPUs", pairs(nbytes), "ideal_rail", n_gpus // 8)


def default_run_cost(phase: str) -> Cost:
    """The first layer of the default run: two hops, coupled by chunks."""
    parts = _assemble(compose([]))
    work, _ = _layer(parts, 0, parts.rule)
    return cost(f"node_dedup, default run, {phase}", getattr(work, phase), "h100_sxm", 8)


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in ("case", "flows", "solves", "flow visits / solve", "link visits / solve", "events", "CPU s"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    rows = [direct_cost(*case) for case in (("uniform", 64), ("uniform", 256), ("skewed", 64), ("skewed", 128))]
    rows += [default_run_cost(phase) for phase in ("dispatch", "combine")]
    for row in rows:
        table.add_row(
            row.case, f"{row.flows:,}", f"{row.solves:,}", f"{row.flow_visits:,.0f}", f"{row.link_visits:,.0f}",
            f"{row.events:,}", f"{row.seconds:.3f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
