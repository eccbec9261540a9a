"""What placements cost and bring: `python -m tests.bench.placement` prints speed, small cases against the optimum, imbalance.

`python -m tests.bench.placement TRACE MODEL blocks|batched` prints the layer time of every placement over EPLB's on a
recorded load: nodes of 4 (EP8) and 8 GPUs (EP16, EP32) of h100_sxm, slots per GPU the fewest and one and two more, `nearest`
replicas, exact network, roofline of compute. Decided and played (a) on alternate sequences of every domain, (b) on one
domain and then the next. With `blocks` every domain is one step, of which each GPU has a block; with `batched` each GPU has
64 sequences, which give a token per step each, and a domain lasts two steps. Single runs are kept in
results/placement_bench.jsonl: what was interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from clustersim import exchange, load_cluster
from clustersim.config import compose
from clustersim.deciding import Setting, price_of
from clustersim.engine.timing import roofline
from clustersim.model import model_from
from clustersim.placement.deepseek import rebalance
from clustersim.placement.objective import Goal
from clustersim.placement.past import Past
from clustersim.placement.searches import searched
from clustersim.types import InputError
from clustersim.workload.trace import read_trace
from tests.bench.placement_traces import METHODS, SPARE, cells, measured
from tests.imbalance import FAMILIES, PUBLISHED, drift_of, expected_loads, left_over
from tests.placed import room, small_cases, tokens


def best_of(times: int, work: Callable[[], float]) -> float:
    """The least of some CPU seconds per unit of work; `work` returns how many units it did."""
    took = []
    for _ in range(times):
        began = time.process_time()
        done = work()
        took.append((time.process_time() - began) / done)
    return min(took)


def speed() -> Table:
    """EPLB of DeepSeek-V3's layers, and moves of a search; CPU seconds of one core, compiled and warm."""
    table = _table("what", "measured", "must")
    loads = np.random.default_rng(0).lognormal(size=(58, 256))

    def eplb() -> float:
        rebalance(loads, n_slots=320, n_groups=1, n_nodes=1, n_gpus=64)
        return 1.0

    table.add_row("EPLB, 58 layers x 256 -> 320 slots on 64 GPUs", f"{1e3 * best_of(5, eplb):.1f} ms", "50 ms")
    model = model_from(compose(["model=deepseek_v3"]).config["model"])
    cluster = load_cluster("h100_sxm", nodes=8, gpus_per_node=8)
    goals = {"load": Goal(seconds=0, load=1), "seconds": Goal()}
    for name, per_gpu in (("load", 128), ("seconds", 32), ("seconds", 128), ("seconds", 512)):
        where = room(320, 64, 8)
        setting = Setting(
            model=model, cluster=cluster, room=where, exchange=exchange.node_dedup, timing=roofline(model, cluster.gpu),
            replica="nearest", seed=0,
        )
        past = tokens(256, 64, top_k=8, per_gpu=per_gpu, price=lambda setting=setting: price_of(setting))

        def search(past: Past = past, goal: Goal = goals[name], setting: Setting = setting) -> float:
            return searched(
                np.random.default_rng(0), past, setting.room, goal, start="contiguous", replica="nearest", moves=20_000, heat=0.0
            ).moves

        search()                                # compiled
        what = f"local search for {name}, 256 experts on 64 GPUs, {per_gpu} tokens each"
        table.add_row(what, f"{1 / best_of(3, search):,.0f} moves/s", "20,000 moves/s")
    return table


def small() -> Table:
    """300 cases of at most 12 experts on at most 4 GPUs: the best heuristic's largest load over the optimum's."""
    gaps, best = zip(*small_cases(300), strict=True)
    table = _table("300 small cases against the optimum", "measured", "must")
    table.add_row("mean gap", f"{100 * np.mean(gaps):.2f} %", "1 %")
    table.add_row("worst gap", f"{100 * max(gaps):.2f} %", "5 %")
    table.add_row("optimal", f"{np.mean(np.array(gaps) < 1e-6):.0%}", "")
    for name in sorted(set(best)):
        table.add_row(f"the best was {name}", f"{best.count(name)}", "")
    return table


def imbalance(drift: str | None) -> Table:
    """TensorRT-LLM's imbalance of DeepSeek-R1 on 32 GPUs with 288 slots; see `tests.imbalance`."""
    table = _table("(max - mean) / mean of 32 GPUs, 256 experts, 288 slots", *FAMILIES, "must")
    loads = {family: expected_loads(family) for family in FAMILIES}
    drifts = {} if drift is None else drift_of(read_trace(drift))
    rows: list[tuple[str, dict[str, object], str]] = [
        ("the load itself", {"sampled": False}, "0.003 ± 0.005"),
        ("independent batches of 1,024 choices per GPU", {}, "0.056 ± 0.01"),
    ]
    must = f"published {PUBLISHED} ± 0.03"
    rows += [(f"drift {by:.3f}, as between {name}", {"drift": by}, must) for name, by in drifts.items()]
    for what, options, must in rows:
        table.add_row(what, *(f"{left_over(p, every=2, **options).mean():.4f}" for p in loads.values()), must)
    return table


def on_trace(options: argparse.Namespace) -> Table:
    """Mean layer time over EPLB's, by method, split and number of GPUs; the last column is the mean of all cells."""
    wanted = [
        cell for cell in cells(str(Path(options.trace).resolve()), options.model, options.deal, options.layers)
        if options.split in (None, cell.split) and options.gpus in (None, cell.gpus)
    ]  # fmt: skip
    ratio: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    reuse = {}
    seconds: dict[str, float] = {}
    for cell, method, got in measured(wanted):
        seconds[method] = got["moe_layer_s"]
        reuse[cell.split, cell.gpus] = got["reuse"]
        if method == METHODS[-1]:
            for each, took in seconds.items():
                ratio[each, cell.split, cell.gpus].append(took / seconds["eplb"])
            if len(ratio[method, cell.split, cell.gpus]) == len(SPARE):
                print(f"{cell.split} EP{cell.gpus}: {reuse[cell.split, cell.gpus] or 'no token is used twice'}", file=sys.stderr)
    columns = list(dict.fromkeys((split, gpus) for _, split, gpus in ratio))
    table = _table("layer time / EPLB's", *(f"{split} EP{gpus}" for split, gpus in columns), "mean")
    for method in METHODS:
        means = [float(np.mean(ratio[method, *column])) for column in columns]
        table.add_row(method, *(f"{mean:.3f}" for mean in means), f"{np.mean(means):.3f}")
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.placement", description=__doc__.splitlines()[0])
    parser.add_argument("trace", nargs="?", help="folder of a trace; without it speed, small cases and imbalance")
    parser.add_argument("model", nargs="?")
    parser.add_argument("deal", nargs="?", choices=("blocks", "batched"))
    parser.add_argument("--layers", type=int, help="MoE layers that are played, from the first on; all of them if not given")
    parser.add_argument("--split", choices=("a", "b"))
    parser.add_argument("--gpus", type=int, choices=(8, 16, 32))
    parser.add_argument("--drift", metavar="TRACE", help="a trace whose drift within a sequence the imbalance is computed with")
    options = parser.parse_args()
    console = Console(width=140)
    if options.trace is not None:
        if options.deal is None:
            parser.error("TRACE MODEL blocks|batched: all three")
        try:
            console.print(on_trace(options))
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    for part in (speed, small, lambda: imbalance(options.drift)):
        console.print(part(), "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
