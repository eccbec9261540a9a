"""What a topology, a trace or a run is, for a person: facts and tables, built and not printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
from rich.console import Group, RenderableType
from rich.text import Text

from clustersim.cluster import Cluster, load_cluster
from clustersim.importers.recognition import detect
from clustersim.network import measures
from clustersim.places import data_folder
from clustersim.results import terminal, training_screen
from clustersim.results.facts import facts_table, numbers_table
from clustersim.results.model_card import model_page
from clustersim.results.trace_report import counts_page, trace_page
from clustersim.types import InputError
from clustersim.units import format_bandwidth, format_bytes, format_seconds

Progress = Callable[[float, str], None]


def inspect_path(path: str, *, progress: Progress = lambda fraction, what: None) -> RenderableType:
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
    if (place / "tokens.parquet").is_file() or (place.suffix == ".parquet" and place.name != "counts.parquet"):
        return trace_page(place, progress=progress)
    if (place / "counts.parquet").is_file() or place.name == "counts.parquet":
        return counts_page(place)
    what = "there is no such file or folder"
    if place.exists():
        what = "holds neither a trace (tokens.parquet, counts.parquet) nor a run (summary.parquet)"
        if (format_of := detect(place)) is not None:
            what = f"is in the format {format_of}: clustersim convert {path} --from {format_of} -o DIR makes a trace of it"
            raise InputError(f"{path}: {what}")
    raise InputError(f"{path}: {what}; inspect takes a trace, the folder of a run, a topology or a model")


def plot(path: str, file: str | None) -> Path:
    """Draw the topology or trace `path` into `file` (left out: its name with .png, here), and say where.

    Raises:
        InputError: it is neither, or the picture cannot be made.
    """
    place = Path(path)
    if not _is_topology(path):
        if not (place / "tokens.parquet").is_file() and place.name != "tokens.parquet":
            raise InputError(f"{path}: --plot draws topologies and traces with tokens, and this is neither")
        from clustersim.results.trace_drawing import draw_trace

        folder = place if place.is_dir() else place.parent
        target = Path(file or f"{folder.resolve().name}.png")
        draw_trace(place, target)
        return target
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
    links = numbers_table("links", "number", "each", "latency", "busy when all send to all")
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
    return Group(facts_table(facts), Text(), links)


def _span(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """One value for all, or the smallest and the largest."""
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} - {high}"


def run(folder: Path) -> RenderableType:
    """The tables that the run ended with."""
    try:
        trained = (folder / "stages.parquet").is_file()
        rows = pl.read_parquet(folder / f"{'stages' if trained else 'layers'}.parquet")
        summary = pl.read_parquet(folder / "summary.parquet").row(0, named=True)
        memory = pl.read_parquet(folder / "memory.parquet") if (folder / "memory.parquet").is_file() else None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{folder}: cannot be read as the folder of a run ({str(error).splitlines()[0]})") from error
    if trained:
        return Group(training_screen.device_table(rows), training_screen.summary(summary, (), memory))
    return Group(terminal.layer_table(rows), terminal.summary(summary, (), memory))
