"""A picture of a machine's wires: GPUs, NVLink on one side of them, the network in tiers on the other. Measures nothing."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustersim.cluster import Cluster
from clustersim.network import measures
from clustersim.types import InputError
from clustersim.units import format_bandwidth
from clustersim.writing import not_drawn

NODES, GPUS, SWITCHES, GROUPS = 8, 8, 32, 9         # the most that are drawn: nodes, GPUs of one, switches of a tier, groups
NVLINK, PLAIN = "#76b900", "#7a8088"
RAILS = ("#1f77b4", "#d62728", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#bcbd22")
Drawn = int | str           # a GPU or a switch
Places = dict[Drawn, tuple[float, float]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sketch:
    """The part of a machine that is drawn. Switches are those of the network or of NVLink, by height (1: next to GPUs)."""

    cluster: Cluster
    gpus: list[int]
    nvlink: dict[str, int]              # switch -> height
    network: dict[str, int]
    totals: dict[str, int]              # tier -> its switches, drawn or not
    joins: dict[tuple[Drawn, Drawn], str]       # what is joined -> kind without its way; lower end first


def draw_machine(cluster: Cluster, path: Path) -> None:
    """Draw a machine's wires into a picture at `path`; its suffix is the format (png, svg, pdf).

    Of many nodes, GPUs or switches the first ones and the last are drawn, and the picture says how many there are.

    Raises:
        InputError: matplotlib is not installed, or cannot write that file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("inspect --plot: needs matplotlib; pip install 'clustersim[plot]'") from error
    figure = Figure(figsize=(12, 7.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    if any(group is not None for _, group in cluster.graph.nodes(data="group")):
        axes.set_aspect("equal")
        every = sorted(set(_groups(cluster).values()))
        sketch = _sketch(cluster, _first(every, GROUPS))
        _paint(axes, sketch, _ring(sketch))
        some = f"{len(_first(every, GROUPS))} of {len(every)} groups\n" if len(every) > GROUPS else ""
        axes.text(0.02, 0.02, f"{some}boxes: routers\nsquares: GPUs\ngreen: NVLink", transform=axes.transAxes, fontsize=9)
    else:
        sketch = _sketch(cluster, None)
        places = _tiers(sketch)
        _tier_names(axes, sketch, places)
        _paint(axes, sketch, places)
    figure.suptitle(
        f"{cluster.name}: {cluster.n_gpus:,} GPUs, nodes: {cluster.n_nodes:,}, routing: {cluster.routing}\n{_rates(cluster)}",
        fontsize=11,
    )
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"inspect -o {path}: {not_drawn(error)}") from error


def _first(items: Sequence[Any], most: int) -> list[Any]:
    """All, or the first few and the last."""
    return list(items) if len(items) <= most else [*items[: most // 2], items[-1]]


def _groups(cluster: Cluster) -> dict[str, Any]:
    return {switch: group for switch, group in cluster.graph.nodes(data="group") if group is not None}


def _rates(cluster: Cluster) -> str:
    """`nic 64 × 50.0 GB/s`, for every kind of link, one way counted."""
    texts = []
    for kind, links in measures.by_kind(cluster).items():
        if not kind.endswith("_down"):
            rates = sorted({link.capacity for link in links})
            each = " or ".join(format_bandwidth(rate) for rate in rates[:2]) + (" or more" if len(rates) > 2 else "")
            texts.append(f"{kind.removesuffix('_up')} {len(links):,} × {each}")
    return "  ·  ".join(texts)


def _sketch(cluster: Cluster, groups: Sequence[Any] | None) -> Sketch:
    """What is drawn: some nodes' GPUs (of some groups, the GPUs next to them), then tier by tier what they are joined to."""
    far, group_of = measures.heights(cluster), _groups(cluster)
    inside = set(cluster.wires.nvlink.links.tolist())
    below: dict[Drawn, set[Drawn]] = defaultdict(set)           # joined to it and as far from the GPUs, or nearer
    kinds: dict[tuple[Drawn, Drawn], str] = {}
    nvlink: dict[str, int] = {}
    for tail, head, data in cluster.graph.edges(data=True):
        a, b = ((v if isinstance(v, str) else v[1]) for v in (tail, head))
        if (_height(far, a), str(a)) > (_height(far, b), str(b)):
            a, b = b, a
        below[b].add(a)
        kinds[a, b] = data["kind"].removesuffix("_up").removesuffix("_down")
        nvlink |= {v: far[v] for v in (a, b) if isinstance(v, str) and data["link"] in inside}
    network = {switch: height for switch, height in far.items() if switch not in nvlink}
    if groups is None:
        nodes = _first(range(cluster.n_nodes), NODES)
        each = _first(range(cluster.gpus_per_node), GPUS if len(nodes) > 1 else 3 * GPUS)
        gpus = [node * cluster.gpus_per_node + i for node in nodes for i in each]
    else:
        gpus = [g for g in range(cluster.n_gpus) if any(g in _gpus_below(below, s) for s, q in group_of.items() if q in groups)]
    drawn: set[Drawn] = set(gpus)
    for height in range(1, max(far.values(), default=0) + 1):
        for switches in (nvlink, network):
            tier = sorted((s for s, h in switches.items() if h == height and below[s] & drawn), key=_natural)
            drawn.update(_first(tier, SWITCHES) if groups is None else [s for s in tier if group_of.get(s, groups[0]) in groups])
    totals: dict[str, int] = defaultdict(int)
    for switch in network:
        totals[measures.tier_of(switch)] += 1
    return Sketch(
        cluster=cluster, gpus=gpus, nvlink={s: h for s, h in nvlink.items() if s in drawn}, totals=dict(totals),
        network={s: h for s, h in network.items() if s in drawn},
        joins={ab: kind for ab, kind in kinds.items() if drawn >= set(ab)},
    )  # fmt: skip


def _gpus_below(below: Mapping[Drawn, set[Drawn]], switch: Drawn) -> set[int]:
    """The GPUs next to a switch, or next to what is below it and has nothing to do with other switches."""
    near = below[switch]
    shared = {g for v in near if isinstance(v, str) and v.startswith("nic ") for g in below[v]}
    return {v for v in near | shared if isinstance(v, int)}


def _height(far: Mapping[str, int], node: Drawn) -> int:
    return far[node] if isinstance(node, str) else 0


def _natural(name: str) -> list[Any]:
    """Sorts `leaf 10` behind `leaf 9`."""
    return [int(part) if part.isdecimal() else part for part in name.replace(".", " ").split(" ")]


def _tiers(sketch: Sketch) -> Places:
    """GPUs in a row, node by node; NVLink's switches below them, the network's above, each tier spread over the width."""
    per_node, places = sketch.cluster.gpus_per_node, Places()
    x, last = 0.0, -1
    for g in sketch.gpus:
        x += 1.0 if last >= 0 and g == last + 1 and g // per_node == last // per_node else 2.2 if last >= 0 else 0.0
        places[g], last = (x, 0.0), g
    width = max(x, 1.0)
    for switches, step in ((sketch.nvlink, -1.2), (sketch.network, 2.4)):
        for height in sorted(set(switches.values())):
            tier = [s for s, h in switches.items() if h == height]
            mean = {s: _mean([places[a][0] for a, b in sketch.joins if b == s and a in places]) for s in tier}
            tier.sort(key=lambda s: (round(mean[s], 6), _natural(s)))
            apart = len({round(mean[s], 3) for s in tier}) == len(tier) and step < 0
            for i, switch in enumerate(tier):
                places[switch] = (mean[switch] if apart else width * (i + 0.5) / len(tier), height * step)
    return places


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _ring(sketch: Sketch) -> Places:
    """Groups of switches on a circle, their GPUs outside, NVLink's switches beyond these."""
    group_of, places = _groups(sketch.cluster), Places()
    groups = sorted({group_of[s] for s in sketch.network if s in group_of})
    below: dict[Drawn, set[Drawn]] = defaultdict(set)
    for a, b in sketch.joins:
        below[b].add(a)
    for i, group in enumerate(groups):
        routers = sorted((s for s in sketch.network if group_of.get(s) == group), key=_natural)
        gpus = sorted({g for s in routers for g in _gpus_below(below, s)})
        rows: tuple[tuple[Sequence[Drawn], float], ...] = ((routers, 10.0), (gpus, 12.4))
        for members, radius in rows:
            for j, member in enumerate(members):
                turn = 2 * math.pi * (i + 0.82 * (j + 0.5) / len(members) - 0.41) / len(groups)
                places[member] = (radius * math.sin(turn), radius * math.cos(turn))
    for switch in (*sketch.network, *sketch.nvlink):
        if switch not in places:
            near = [places[a] for a in below[switch] if a in places]
            x, y = _mean([p[0] for p in near]), _mean([p[1] for p in near])
            scale = (11.2 if switch in sketch.network else 13.8) / max(math.hypot(x, y), 1e-9)
            places[switch] = (x * scale, y * scale)
    return places


def _tier_names(axes: Any, sketch: Sketch, places: Places) -> None:
    """To the left of each tier its name and number."""
    rows: dict[float, list[str]] = defaultdict(list)
    for switch in sketch.network:
        rows[places[switch][1]].append(switch)
    for y, switches in rows.items():
        for i, tier in enumerate(sorted({measures.tier_of(s) for s in switches})):
            drawn, total = sum(measures.tier_of(s) == tier for s in switches), sketch.totals[tier]
            text = f"{tier}: {total:,}" + (f"\n({drawn} drawn)" if drawn < total else "")
            axes.text(-1.8, y - 0.5 * i, text, ha="right", va="center", fontsize=10)
    n = sketch.cluster.n_gpus
    text = f"GPU: {n:,}" + (f"\n({len(sketch.gpus)} drawn)" if len(sketch.gpus) < n else "")
    axes.text(-1.8, 0.0, text, ha="right", va="center", fontsize=10)
    per_node = sketch.cluster.gpus_per_node
    gaps = [(a, b) for a, b in zip(sketch.gpus, sketch.gpus[1:], strict=False) if b != a + 1]
    for a, b in gaps:
        axes.text((places[a][0] + places[b][0]) / 2, 0.0, "…", ha="center", va="center", fontsize=12)
    for node in dict.fromkeys(g // per_node for g in sketch.gpus):
        own = [places[g][0] for g in sketch.gpus if g // per_node == node]
        lowest = min((places[s][1] for s in sketch.nvlink), default=0.0)
        axes.text(_mean(own), lowest - 0.5, f"node {node}", ha="center", va="center", fontsize=9)
    for y in {places[s][1] for s in sketch.nvlink}:
        axes.text(-1.8, y, "NVLink", ha="right", va="center", fontsize=10)


def _paint(axes: Any, sketch: Sketch, places: Places) -> None:
    """Lines, then what they join on top of them."""
    level: dict[Drawn, int] = dict.fromkeys(sketch.gpus, 0)
    level.update(sketch.network)
    level.update({s: -h for s, h in sketch.nvlink.items()})
    first = sorted((s for s, h in sketch.network.items() if h == 1), key=_natural)
    colours = {s: RAILS[i % len(RAILS)] for i, s in enumerate(first)} if len(first) <= 4 * len(RAILS) else {}
    crowds = Counter((level[a], level[b]) for a, b in sketch.joins)
    for (a, b), kind in sketch.joins.items():
        colour = NVLINK if b in sketch.nvlink or kind == "nvlink" else colours.get(str(a), colours.get(str(b), PLAIN))
        if level[a] == level[b] and colour != NVLINK:
            colour = PLAIN
        crowd = crowds[level[a], level[b]]
        (x0, y0), (x1, y1) = places[a], places[b]
        bend = 0.0
        if level[a] == level[b] and kind != "global":
            bend = -0.35 if sketch.cluster.graph.nodes.get(a, {}).get("group") is None else -0.5
        axes.annotate(
            "", (x1, y1), (x0, y0), zorder=1,
            arrowprops={
                "arrowstyle": "-", "color": colour, "lw": 1.2 if crowd <= 80 else 0.7, "alpha": 0.8 if crowd <= 160 else 0.45,
                "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0,
            },
        )  # fmt: skip
    for node, (x, y) in places.items():
        if isinstance(node, int):
            axes.plot(x, y, "s", ms=6 if len(sketch.gpus) <= 128 else 3, color="#222222", zorder=2)
            continue
        fill = NVLINK if node in sketch.nvlink else colours.get(node, "#d9dde2")
        text = node.rpartition(" ")[2] if node in sketch.network else ""
        size = 8 if len(sketch.network) <= 48 else 6 if len(sketch.network) <= 72 else 4
        axes.text(
            x, y, text or " ", ha="center", va="center", fontsize=size, zorder=3, color="white" if fill in RAILS else "black",
            bbox={"boxstyle": "round,pad=0.3", "fc": fill, "ec": "#444444", "lw": 0.6},
        )  # fmt: skip
    xs, ys = zip(*places.values(), strict=True)
    axes.set_xlim(min(xs) - 1, max(xs) + 1)
    axes.set_ylim(min(ys) - 0.8, max(ys) + 0.8)
