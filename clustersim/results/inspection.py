"""What a topology, a trace or a run is, for a person: facts and tables, built and not printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clustersim.cluster import Cluster, load_cluster
from clustersim.network import measures
from clustersim.places import data_folder
from clustersim.results import terminal
from clustersim.results.model_card import model_page
from clustersim.types import InputError, Trace
from clustersim.units import format_bandwidth, format_bytes, format_seconds
from clustersim.workload import statistics
from clustersim.workload.trace import read_trace


def inspect_path(path: str) -> RenderableType:
    """What stands at `path`: a trace (folder or tokens.parquet), a run's folder, a topology or a model (file, or name of ours).

    Raises:
        InputError: nothing there, or none of these.
    """
    place = Path(path)
    if (page := model_page(path)) is not None:
        return page
    if _is_topology(path):
        return topology(load_cluster(path))
    if (place / "summary.parquet").is_file():
        return run(place)
    if (place / "tokens.parquet").is_file() or place.suffix == ".parquet":
        return trace(read_trace(place), path)
    what = "there is no such file or folder"
    if place.exists():
        what = "holds neither a trace (tokens.parquet) nor a run (summary.parquet)"
    raise InputError(f"{path}: {what}; inspect takes a trace, the folder of a run, a topology or a model")


def plot(path: str, file: str | None) -> Path:
    """Draw the topology `path` into `file` (left out: its name with .png, here), and say where.

    Raises:
        InputError: it is no topology, or the picture cannot be made.
    """
    if not _is_topology(path):
        raise InputError(f"{path}: --plot draws topologies, and this is none")
    from clustersim.results.drawing import draw_machine

    cluster = load_cluster(path)
    target = Path(file or f"{cluster.name}.png")
    draw_machine(cluster, target)
    return target


def _is_topology(path: str) -> bool:
    return path in [file.stem for file in data_folder("topologies").glob("*.yaml")] or path.endswith((".yaml", ".yml"))


def topology(cluster: Cluster) -> RenderableType:
    """Links by kind, and what they amount to."""
    kinds = measures.by_kind(cluster)
    whole = measures.all_to_all(cluster)
    loads = whole.link_bytes / cluster.capacity * whole.gpu_bytes_per_s / max(1, cluster.n_gpus - 1)
    links = _table("links", "number", "each", "latency", "busy when all send to all")
    for kind, members in kinds.items():
        busy = loads[[link.id for link in members]]
        links.add_row(
            kind, f"{len(members):,}", _span([link.capacity for link in members], format_bandwidth),
            _span([link.latency for link in members], format_seconds),
            f"{100 * busy.mean():.0f} %" + (f", one {100 * busy.max():.0f} %" if busy.max() > 1.005 * busy.mean() else ""),
        )  # fmt: skip
    gpu = cluster.gpu
    tiers = measures.oversubscription(cluster)
    uneven = {kind: ratio for kind, ratio in measures.collisions(cluster, whole.link_bytes).items() if ratio > 1.005}
    facts = {
        "topology": f"{cluster.name}: {cluster.n_gpus:,} GPUs; {cluster.gpus_per_node} to a node, nodes: {cluster.n_nodes:,}",
        "gpu": f"{gpu.name}: BF16 {gpu.bf16_flops / 1e12:,.0f} TFLOP/s, FP8 {gpu.fp8_flops / 1e12:,.0f} TFLOP/s (dense), "
        f"{format_bytes(gpu.memory)} at {format_bandwidth(gpu.memory_bandwidth)}",
        "bisection": f"{format_bandwidth(measures.bisection_bandwidth(cluster))} each way, first half of the "
        f"{'nodes' if cluster.n_nodes > 1 else 'GPUs'} to the rest",
        "oversubscription": ", ".join(f"{tier} {ratio:.3g}:1" for tier, ratio in tiers.items()) or "none behind the ports",
        "diameter": f"{whole.hops} links, {format_seconds(whole.latency_s)}",
        "routing": cluster.routing,
        "all to all": f"{format_bandwidth(whole.gpu_bytes_per_s)} from each GPU, limited by {whole.busiest or 'nothing'}",
    }
    if measures.parallel_links(cluster).max(initial=-1) >= 0:
        shown = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in uneven.items())
        facts["collisions"] = f"busiest of parallel links to an even spread: {shown}" if uneven else "parallel links are even"
    return Group(_facts(facts), Text(), links)


def _span(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """One value for all, or the smallest and the largest."""
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} - {high}"


def trace(recorded: Trace, path: str) -> RenderableType:
    """Size and origin, load per layer, and how choices hang together."""
    layers = _table("layer", "load max/mean", "load CV", "least/mean", "distinct experts")
    chosen = statistics.membership(recorded.expert_ids, recorded.n_experts).sum(0, dtype=np.int64)
    for layer, (load, cv) in enumerate(zip(chosen, statistics.load_cv(recorded.expert_ids, recorded.n_experts), strict=True)):
        mean = load.mean()
        layers.add_row(
            str(layer), f"{load.max() / mean:.2f}", f"{cv:.3f}", f"{load.min() / mean:.2f}", f"{np.count_nonzero(load)}",
        )  # fmt: skip
    domains = sorted(set(recorded.domain.values()))
    by_lag = ", ".join(f"{statistics.overlap(recorded, lag).mean():.3f}" for lag in (1, 8, 64))
    n_seqs, n_steps, n_ranks = (np.unique(column).size for column in (recorded.seq, recorded.step, recorded.rank))
    facts = {
        "trace": f"{path}: {recorded.meta.get('model', 'model not named')}",
        "tokens": f"{recorded.n_tokens:,}; sequences {n_seqs:,}, steps {n_steps:,}, ranks {n_ranks:,}",
        "router": f"{recorded.n_layers} MoE layers, {recorded.n_experts} experts, top-{recorded.top_k}, gate weights "
        f"{'recorded' if recorded.gate_weights is not None else 'not recorded'}",
        "domains": ", ".join(domains) or "not named",
        "overlap": f"{by_lag} of a token's experts were those of the token 1, 8, 64 before; "
        f"{statistics.chance_overlap(recorded).mean():.3f} by chance",
    }
    if recorded.n_layers > 1 and n_seqs > 1:
        recall, popular = (found.mean() for found in statistics.next_layer_recall(recorded))
        facts["next layer"] = f"{recall:.3f} of its experts guessed from the layer before, {popular:.3f} from popularity"
    return Group(_facts(facts), Text(), layers)


def run(folder: Path) -> RenderableType:
    """The tables that the run ended with."""
    try:
        layers = pl.read_parquet(folder / "layers.parquet")
        summary = pl.read_parquet(folder / "summary.parquet").row(0, named=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{folder}: cannot be read as the folder of a run ({str(error).splitlines()[0]})") from error
    return Group(terminal.layer_table(layers), terminal.summary(summary, ()))


def _facts(facts: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in facts.items():
        table.add_row(name, text)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    return table
