"""What an exchange costs the exact network, counted: solves and visits mean the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clustersim.cluster import Cluster, load_cluster
from clustersim.config import compose
from clustersim.exchange import node_dedup
from clustersim.network import exact_records, sharing
from clustersim.network.bounds import chained
from clustersim.places import PACKAGE
from clustersim.types import Floats, Routes, Routing, Transfers, independent
from clustersim.workload.source import from_trace
from clustersim.workload.trace import read_trace
from tests import placed
from tests.matrices import skewed, uniform


@dataclass(frozen=True)
class Cost:
    """Work of one exchange."""

    flows: int
    solves: int
    flow_visits: float          # per solve
    link_visits: float          # per solve
    events: int


def cost(transfers: Transfers, cluster: Cluster) -> Cost:
    """Play transfers that are all released at 0."""
    routes = cluster.routes(transfers.src, transfers.dst)
    latency, _ = chained(transfers, routes.latency, transfers.release)
    routes = Routes(start=routes.start, links=routes.links, weights=routes.weights, latency=latency)
    one = np.zeros(transfers.n, np.int64)
    state = sharing.extend(sharing.empty(cluster.capacity), routes, transfers, inbox=one, outbox=one, n_counters=1)
    sharing.solve_all(state, transfers.release)
    solves = int(state.tally[exact_records.SOLVES])
    visits = [float(state.tally[of]) / solves for of in (exact_records.FLOW_VISITS, exact_records.LINK_VISITS)]
    return Cost(transfers.n, solves, *visits, int(state.tally[exact_records.EVENTS]))


def pairs(nbytes: Floats) -> Transfers:
    """One transfer for every pair with something to send."""
    src, dst = np.nonzero(nbytes)
    return independent(src, dst, nbytes[src, dst])


def direct_cost(pattern: str, n_gpus: int) -> Cost:
    """A direct all-to-allv on `ideal_rail`, "skewed" or "uniform"."""
    nbytes = skewed(n_gpus) if pattern == "skewed" else uniform(n_gpus)
    return cost(pairs(nbytes), load_cluster("ideal_rail", nodes=n_gpus // 8))


def default_run_transfers(phase: str) -> Transfers:
    """The first layer of the default run: two hops, coupled by chunks."""
    run, cluster = compose([]), load_cluster("h100_sxm", nodes=8)
    work = from_trace(
        read_trace(PACKAGE / "workload" / "data" / "tiny"), run.model, cluster.n_gpus, run.tokens_per_gpu, name="trace=tiny"
    )
    chosen = work.choose(0)
    routing = Routing(
        asked=chosen.ids, assigned=chosen.ids, weights=chosen.weights, source=work.source, index=work.index, capacity=None
    )
    placement = placed.contiguous(run.model.n_experts, 64, cluster.n_gpus)
    return node_dedup(phase, routing, placement, cluster, run.model)


def default_run_cost(phase: str) -> Cost:
    """That layer, fluid."""
    return cost(default_run_transfers(phase), load_cluster("h100_sxm", nodes=8))
