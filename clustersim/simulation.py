"""One experiment: what is asked for, played with one seed or several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from clustersim.architecture import describe
from clustersim.assembling import timeline_window
from clustersim.cluster import build_cluster
from clustersim.config import Run, compose
from clustersim.cost import cost_from, cost_row
from clustersim.forward_pass import forward
from clustersim.identity import identify
from clustersim.outcome import Result, keys, named, provenance_of
from clustersim.playing import Progress, part_of
from clustersim.results.footprint import memory_summary, memory_table
from clustersim.results.replicates import INTERVALS, combined
from clustersim.results.tables import summary_table
from clustersim.results.training_timeline import Window
from clustersim.training.checks import first_built
from clustersim.training.step import train
from clustersim.training.tables import stages_table, tasks_table, training_row
from clustersim.types import InputError

EXTRA = ("replicates", *(f"{name}_ci95" for name in INTERVALS))         # columns that several seeds together have
REPLICATE_COLUMNS = (
    "seed", "step_s", "compute_s", "exposed_comm_s", "wait_s", "tokens_per_s", "drop_rate", "fully_dropped", "imbalance",
    "over_bound", "bottleneck", "nvlink_bytes", "nic_bytes", "seconds_saved_by_dropping",
)  # fmt: skip


def simulate(overrides: Sequence[str] | Run = (), *, progress: Progress = lambda fraction, what: None) -> Result:
    """One experiment, from overrides as on the command line (`["model=deepseek_v3", "topology.nodes=8"]`).

    Args:
        progress: told now and then the fraction done, 0 to 1, and what is being done.

    Raises:
        InputError: an override that is wrong, a trace that does not fit, a cluster that cannot be.
    """
    run = overrides if isinstance(overrides, Run) else compose(overrides)
    return _once(run, progress) if run.replicates == 1 else _simulate_seeds(run, progress)


def _once(run: Run, progress: Progress) -> Result:
    """The run with one seed."""
    return _train_once(run, progress) if run.config["workload"]["phase"] == "training" else forward(run, progress)


def _simulate_seeds(run: Run, progress: Progress) -> Result:
    """The run with `replicates` seeds from its own on: the summary is their mean, the other tables are of the first."""
    n, results = run.replicates, []
    for i in range(n):
        alone = {**run.config, "seed": run.seed + i, "replicates": 1}
        results.append(_once(replace(run, seed=run.seed + i, replicates=1, config=alone), part_of(progress, i, n)))
    identity = identify(run)
    rows = [{k: v for k, v in result.summary.items() if "." not in k and k not in EXTRA} for result in results]
    summary = {**combined(rows), **keys(run)}
    notes = tuple(dict.fromkeys(note for result in results for note in result.notes))
    tables = {
        **results[0].tables,
        "summary": summary_table({"run_id": identity.run_id, **summary}),
        "replicates": pl.concat([result.tables["summary"].select(REPLICATE_COLUMNS) for result in results]),
    }
    wall = sum(result.provenance["wall_s"] for result in results)
    provenance = {**provenance_of(run, identity, notes), "wall_s": wall}
    return Result(
        run=run, run_id=identity.run_id, summary=summary, tables=tables, notes=notes, provenance=provenance,
        timeline=results[0].timeline,
    )  # fmt: skip


def _train_once(run: Run, progress: Progress) -> Result:
    """A training step with one seed."""
    first, most, arrows = timeline_window(run)
    if first:
        raise InputError(f"export.first_layer={first}: the time line of a training step shows its first tasks; use 0")
    began = time.perf_counter()
    identity = identify(run)
    rounds, arch = 1 + run.causes, describe(run.config["model"])
    trained = train(run, part_of(progress, 0, rounds))
    numbers = training_row(trained, arch) | memory_summary(trained.memory, trained.gpu_memory)
    if run.causes:
        again = training_row(train(_without_memory_limits(run), part_of(progress, 1, rounds)), arch)
        numbers["memory_bandwidth_s"] = numbers["compute_s"] - again["compute_s"]
    else:
        numbers["memory_bandwidth_s"] = None
    topology = run.config["topology"]
    some = first_built(
        lambda n: build_cluster(run.topology, {**topology, "nodes": n}), min(2, topology["nodes"]), topology["nodes"]
    )
    numbers |= cost_row(numbers, cost_from(run.config["cost"]), some, trained.parallel.gpus)
    summary = {**combined([{**named(run), "gpus": trained.parallel.gpus, **numbers}]), **keys(run)}
    tables = {
        "summary": summary_table({"run_id": identity.run_id, **summary}), "stages": stages_table(trained),
        "tasks": tasks_table(trained), "memory": memory_table(trained.memory),
    }  # fmt: skip
    provenance = {**provenance_of(run, identity, trained.notes), "wall_s": time.perf_counter() - began}
    shown = Window(tables["tasks"], tables["stages"], most=most, arrows=arrows) if run.config["export"]["timeline"] else None
    return Result(
        run=run, run_id=identity.run_id, summary=summary, tables=tables, provenance=provenance,
        notes=(*trained.notes, shown.note()) if shown else trained.notes, timeline=shown.events if shown else None,
    )  # fmt: skip


def _without_memory_limits(run: Run) -> Run:
    """The same with GPUs whose memory is never waited for; the L2 is as it was."""
    topology = run.config["topology"]
    endless = {key: "1 EB/s" for key in ("memory_bandwidth", "memory_achieved") if topology["gpu"].get(key) is not None}
    return replace(run, config={**run.config, "topology": {**topology, "gpu": {**topology["gpu"], **endless}}})
