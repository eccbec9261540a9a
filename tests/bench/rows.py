"""The rows of the benchmark: each measures one case and says what it must be. CPU seconds of this process, compiled and warm."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

import clustersim as cs
from clustersim.network import bound, fluid
from clustersim.types import Floats
from tests.bench.counts import direct_cost
from tests.bench.forwards import forward
from tests.bench.packet_costs import costs
from tests.bench.workloads import layer, replicated
from tests.matrices import skewed
from tests.oracle import simgrid
from tests.oracle.systems import direct_skewed

SCANS = {64: 2366, 128: 9313, 256: 43144}               # list entries that a plain prefix-reuse prototype read per solve
SKEWED_MUST = {64: (0.025, 40), 128: (0.22, 80), 256: (3.4, 200)}       # CPU s; times faster than SimGrid


@dataclass(frozen=True)
class Line:
    """One quantity of a case; `holds` is None where nothing is demanded."""

    case: str
    quantity: str
    measured: str
    must: str = ""
    holds: bool | None = None


def at_most(case: str, quantity: str, value: float, most: float, form: str = "{:.3g}") -> Line:
    return Line(case, quantity, form.format(value), f"<= {form.format(most)}", value <= most)


def best_of(times: int, what: Callable[[], object]) -> float:
    """The least CPU seconds of several calls."""
    seconds = []
    for _ in range(times):
        began = time.process_time()
        what()
        seconds.append(time.process_time() - began)
    return min(seconds)


def skewed_exchange(n_gpus: int, *, quick: bool, with_simgrid: bool) -> Iterator[Line]:
    """A direct exchange of `tests.matrices.skewed`, exact."""
    case = f"skewed, {n_gpus} GPUs, exact"
    cluster, nbytes = cs.load_cluster("ideal_rail", nodes=n_gpus // 8), skewed(n_gpus)
    result = cs.transfer(cluster, nbytes)
    seconds = best_of(1 if quick or n_gpus > 128 else 5, lambda: cs.transfer(cluster, nbytes))
    most, times = SKEWED_MUST[n_gpus]
    yield at_most(case, "CPU s", seconds, most)
    work = direct_cost("skewed", n_gpus)
    yield Line(case, "solves", f"{work.solves:,}")
    yield at_most(case, "flow visits / solve", work.flow_visits, SCANS[n_gpus] / 3, "{:,.0f}")
    yield at_most(case, "link visits / solve", work.link_visits, SCANS[n_gpus] / 3, "{:,.0f}")
    system = direct_skewed(n_gpus, 0)
    if with_simgrid and n_gpus <= 128:
        answer, told = simgrid.play(system, simgrid.FLUID), "SimGrid CPU s"
    elif n_gpus > 128:
        [(_, answer)], told = simgrid.stored(long=True).values(), "SimGrid CPU s, as stored"
    else:
        _, answer = simgrid.stored()["direct, skewed", system.name]
        told = "SimGrid CPU s, as stored"
    yield Line(case, told, f"{answer.cpu_s:.3g}")
    ratio = answer.cpu_s / seconds
    yield Line(case, "times faster", f"{ratio:.0f}", f">= {times}", ratio >= times)
    sent = nbytes > 0
    apart = np.abs(result.finish[sent] / answer.finish - 1)
    yield at_most(case, "flows apart, p99", float(np.quantile(apart, 0.99)), 1e-6, "{:.0e}")
    yield at_most(case, "flows apart, worst", float(apart.max()), 1e-4, "{:.0e}")


def uniform_exchange(*, quick: bool, with_simgrid: bool) -> Iterator[Line]:
    """261,632 equal flows, in a process of its own."""
    case = "uniform, 512 GPUs, exact"
    child = [sys.executable, "-m", "tests.bench.memory", "512"]
    told = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    yield at_most(case, "CPU ms", told["seconds"] * 1e3, 20)
    yield at_most(case, "MiB beyond imports", told["mib"], 150)
    yield Line(case, "solves", str(told["solves"]))


def large_exchange(*, hashed: bool, quick: bool, with_simgrid: bool) -> Iterator[Line]:
    """2,048 GPUs under a 2:1 spine, each expert on eight of them."""
    n_gpus = 512 if quick else 2048
    case = f"{n_gpus:,} GPUs, 2:1, replica {'hash(src)' if hashed else 'src // 256'}"
    cluster = cs.load_cluster("ideal_rail", nodes=n_gpus // 8, nic={"oversubscription": 2.0})
    nbytes = replicated(n_gpus, hashed=hashed)
    cs.transfer(cs.load_cluster("ideal_rail", nodes=2, nic={"oversubscription": 2.0}), skewed(16), resolution=0.01)     # compiles
    yield Line(case, "flows", f"{np.count_nonzero(nbytes):,}")
    ends: dict[float, Floats] = {}
    for resolution in (0.01, 0.001):
        began = time.process_time()
        result = cs.transfer(cluster, nbytes, resolution=resolution)
        seconds = time.process_time() - began
        ends[resolution] = np.fmax.reduce(result.finish, axis=0)
        name = f"CPU s at {resolution:.1%}"
        yield at_most(case, name, seconds, 3) if resolution == 0.01 else Line(case, name, f"{seconds:.3g}")
        yield Line(case, f"solves at {resolution:.1%}", f"{result.solves:,}")
    coarse, fine = ends.values()
    yield at_most(case, "makespan, 1 % against 0.1 %", abs(coarse.max() / fine.max() - 1), 0.01, "{:.3%}")
    yield at_most(case, "GPU finish p99, the same", float(np.quantile(np.abs(coarse / fine - 1), 0.99)), 0.015, "{:.3%}")


def layers(n_gpus: int, exchange: str, network: str, must: float, *, quick: bool, with_simgrid: bool) -> Iterator[Line]:
    """116 exchanges of 58 layers; `network` is "exact", "1 %" or "bound"."""
    n_layers = 4 if quick else 58
    case = f"{2 * n_layers} exchanges, {n_gpus:,} GPUs, {exchange}, {network}"
    net = {"exact": fluid, "1 %": partial(fluid, resolution=0.01), "bound": bound}[network]
    sent = list(layer(exchange, n_gpus))
    jitter = np.random.default_rng(n_gpus).exponential(100e-6, (2 * n_layers, n_gpus))
    cluster = cs.load_cluster("ideal_rail", nodes=n_gpus // 8)
    forward(cluster, net, sent, jitter[:2], accounts=False)
    took = forward(cluster, net, sent * n_layers, jitter)
    yield Line(case, "flows of one", f"{sent[0].n:,}")
    yield at_most(case, "CPU s", took.seconds, must) if not quick else Line(case, "CPU s", f"{took.seconds:.3g}")
    yield Line(case, "CPU s of the engine's accounts", f"{took.account_s:.3g}")
    yield at_most(case, "events / GPU and exchange", took.events, 5)
    yield Line(case, "solves", f"{took.solves:,}")


def packets_64(*, quick: bool, with_simgrid: bool) -> Iterator[Line]:
    """Exchanges of 64 GPUs in packets: events are packets times links."""
    for row in costs():
        told = f"{row.packet_hops:,} over links, {row.seconds:.3g} s, {row.rate / 1e6:.1f} M/s"
        yield Line("64 GPUs, packets", f"{row.case}, {row.chunk}, {row.queue}", told)


ROWS: dict[str, Callable[..., Iterator[Line]]] = {
    **{f"skewed_{n}": partial(skewed_exchange, n) for n in (64, 128, 256)},
    "uniform_512": uniform_exchange,
    "large_local": partial(large_exchange, hashed=False),
    "large_hash": partial(large_exchange, hashed=True),
    "packets_64": packets_64,
    "forward_64_node_dedup": partial(layers, 64, "node_dedup", "exact", 3),
    "forward_64_direct": partial(layers, 64, "direct", "exact", 8),
    "forward_256_node_dedup": partial(layers, 256, "node_dedup", "1 %", 10),
    "forward_256_direct": partial(layers, 256, "direct", "1 %", 20),
    "forward_2048_node_dedup": partial(layers, 2048, "node_dedup", "bound", 5),
    "forward_2048_direct": partial(layers, 2048, "direct", "bound", 10),
}
