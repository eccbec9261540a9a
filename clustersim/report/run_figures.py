"""The figures of one run: tables in, figures out. Computes sums and shares of what is in the tables, simulates nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clustersim.report.axes import (
    SMALL,
    Frame,
    count_ticks,
    heat_map,
    legend,
    nice_ticks,
    plain,
    seconds_unit,
    x_ticks,
    y_grid,
)
from clustersim.report.reading import RunData
from clustersim.report.shapes import Box, Dots, Figure, Label, Line, Picture, Shape
from clustersim.report.wording import nbytes, percent, seconds, times

PARTS = ("attention_s", "dispatch_s", "expert_s", "combine_s", "other_s", "tensor_s")  # of a GPU's layer


def figures_of_run(run: RunData) -> list[Figure]:
    """All figures that the run's tables have something for."""
    figures = [_layer_stack(run)]
    late = finish_times(run.tables["gpus"])
    late = late - late.min(axis=1, keepdims=True)
    if late.any():
        figures.append(_finish_times(run, late))
    if run.summary["moe_s"]:
        figures.append(_causes(run))
    if _has_bytes(run.tables["links"]):
        figures += [_link_classes(run), _byte_matrix(run)] if run.tables["pairs"].height else [_link_classes(run)]
    if run.tables["experts"].height and run.tables["gpus"]["expert_tokens"].sum():
        figures += [_loads(run), _expert_load(run), _gpu_load(run)]
    return figures


def _has_bytes(links: pl.DataFrame) -> bool:
    return bool(links.height) and float(links["busy_s"].sum()) > 0


# ---- time


def _layer_stack(run: RunData) -> Figure:
    layers = run.tables["layers"]
    compute, dispatch, combine, wait, exposed = (
        _floats(layers[name]) for name in ("compute_s", "dispatch_s", "combine_s", "wait_s", "exposed_comm_s")
    )
    idle = np.maximum(exposed - dispatch - combine, 0.0)
    idle[idle < 1e-3 * (compute + exposed).max(initial=0.0)] = 0.0
    parts = [("compute", "computes", compute), ("dispatch", "dispatch", dispatch), ("combine", "combine", combine)]
    if idle.any():
        parts.append(("idle", "idle at the end", idle))

    def draw(width: float) -> Picture:
        entries = [(fill, name) for fill, name, _ in parts] + [("wait", "of it waiting for others")]
        shapes, tall = legend(46, 4, width - 50, entries)
        top = float(np.sum([values for _, _, values in parts], axis=0).max(initial=0.0))
        frame = Frame(
            left=46, right=width - 4, top=tall + 24, bottom=270, x_high=max(1, len(layers)), y_high=float(top) * 1.02 or 1.0
        )
        unit, name = seconds_unit(float(top))
        shapes += [Label(frame.left, tall + 16, f"time of a layer, {name}, mean over the GPUs", size=SMALL)]
        shapes += y_grid(frame, unit)
        each = (frame.right - frame.left) / max(1, len(layers))
        gap = min(3.0, each * 0.18)
        for i, layer in enumerate(layers["layer"].to_list()):
            shapes += _bar(frame, i, gap, [(fill, name, float(values[i])) for fill, name, values in parts], float(wait[i]), layer)
        ticks = [(at, str(layers["layer"][int(at)])) for at, _ in count_ticks(len(layers), frame.right - frame.left)]
        shapes += [*x_ticks(frame, ticks), Label((frame.left + frame.right) / 2, 302, "layer", "middle", SMALL)]
        return Picture(width=width, height=308, shapes=shapes, says="Time of each layer: computing, dispatch, combine, waiting")

    return Figure(
        name="layers", title="Where the time of each layer goes", draw=draw,
        caption="Mean over the GPUs. Dispatch and combine are the time that computing stands still for the exchange; the narrow "
        "bar in them is the part in which nothing of or for the GPU moves, because others are late.",
    )  # fmt: skip


def _bar(frame: Frame, i: int, gap: float, parts: Sequence[tuple[str, str, float]], wait: float, layer: int) -> list[Shape]:
    """One layer's stack, from below; the wait as a narrower bar hanging from the top."""
    left, wide = frame.x(i) + gap / 2, frame.x(1) - frame.x(0) - gap
    shapes: list[Shape] = []
    below = 0.0
    for fill, name, value in parts:
        if value > 0:
            high = frame.y(below) - frame.y(below + value)
            shapes.append(Box(left, frame.y(below + value), wide, high, fill, f"layer {layer}: {name} {seconds(value)}"))
            below += value
    if wait > 0:
        top = frame.y(below)
        shapes.append(
            Box(left + wide * 0.3, top, wide * 0.4, frame.y(below - wait) - top, "wait", f"layer {layer}: waits {seconds(wait)}")
        )
    return shapes


def _finish_times(run: RunData, late: NDArray[np.float64]) -> Figure:
    n = late.shape[1]
    most = float(late.max(initial=0.0))
    worst = np.unravel_index(int(late.argmax()), late.shape)

    def draw(width: float) -> Picture:
        shapes = heat_map(
            width, late.T, low=0.0, high=most, shown=seconds, title="later than the first GPU", x_name="layer", y_name="GPU",
            height=_tall(width),
        )  # fmt: skip
        return Picture(width=width, height=_tall(width), shapes=shapes, says="When each GPU ends each layer, after the first one")

    caption = f"When each GPU ends each layer, after the first GPU to end it. Latest: GPU {worst[1]} in layer {worst[0]}, "
    caption += f"{seconds(most)} "
    caption += f"behind; the last to end the step is GPU {int(late[-1].argmax())}."
    if n > 256:
        caption += f" Each row is the latest of {-(-n // 256)} GPUs."
    return Figure(name="finish", title="Who is late", caption=caption, draw=draw)


def finish_times(gpus: pl.DataFrame) -> NDArray[np.float64]:
    """When each GPU ends each layer, seconds from the start, float [layers, gpus]: its parts, summed up."""
    took = gpus.sort("layer", "gpu").select(pl.sum_horizontal(*(name for name in PARTS if name in gpus.columns))).to_series()
    n = int(gpus["gpu"].n_unique())
    return np.cumsum(_floats(took).reshape(-1, n), axis=0)


CAUSES = {
    "ideal_s": "without any cause",
    "popularity_s": "popularity of experts",
    "source_s": "uneven sources",
    "placement_s": "placement",
    "exchange_s": "exchange: copies, software",
    "topology_s": "contention on links",
    "joint_s": "only together",
}


def _causes(run: RunData) -> Figure:
    """What the MoE layers of a step would save without each cause, where the run was asked (`causes=true`)."""
    row, whole = run.summary, float(run.summary["moe_s"])
    parts = [(name, text, float(row[name])) for name, text in CAUSES.items() if row[name] is not None]

    def draw(width: float) -> Picture:
        low, high = min(0.0, *(value for _, _, value in parts)), max(value for _, _, value in parts)
        unit, name = seconds_unit(high)
        frame = Frame(left=178, right=width - 62, top=8, bottom=14 + 26 * len(parts), x_low=low, x_high=high)
        shapes = x_ticks(frame, [(tick * unit, plain(tick)) for tick in nice_ticks(low / unit, high / unit, 4)], grid=True)
        for i, (key, text, value) in enumerate(parts):
            y = frame.top + 5 + 26 * i
            left, right = sorted((frame.x(0.0), frame.x(value)))
            shapes += [
                Label(170, y + 12, text, "end", SMALL + 0.5, "ink"),
                Box(left, y, max(1.0, right - left), 15, "compute" if key == "ideal_s" else "plain"),
                Label(right + 6, y + 12, seconds(value), size=SMALL, ink="ink"),
            ]
        shapes.append(Label(frame.right, frame.bottom + 32, f"of the MoE layers of a step, {name}", "end", SMALL))
        return Picture(width=width, height=frame.bottom + 38, shapes=shapes, says="What each cause adds to the MoE layers")

    _, text, value = max(parts[1:], key=lambda part: part[2])
    return Figure(
        name="causes", title="Why the layers take as long as they do", draw=draw,
        caption=f"The step played again without each cause. The largest is {text}: {seconds(value)} of {seconds(whole)}, "
        f"{percent(value / whole)}. What only goes when several go is in the last bar; below zero, they cure the same.",
    )  # fmt: skip


# ---- links


def by_link(run: RunData) -> pl.DataFrame:
    """Every link over the first step, the busiest first: kind, name, busy_s, bytes and `used`, the share of the step."""
    step_s = float(finish_times(run.tables["gpus"])[-1].max())
    whole = run.tables["links"].group_by("link", maintain_order=True).agg(
        pl.first("kind", "name", "capacity_bytes_per_s"), pl.sum("busy_s"),
        (pl.col("dispatch_bytes") + pl.col("combine_bytes")).sum().alias("bytes"),
    )  # fmt: skip
    return whole.with_columns(used=pl.col("busy_s") / (step_s or math.inf)).sort("busy_s", "link", descending=[True, False])


def _link_classes(run: RunData) -> Figure:
    links = by_link(run)
    kinds = links.group_by("kind").agg(
        pl.len(), pl.mean("used").alias("mean"), pl.max("used").alias("most"), pl.first("name").alias("busiest")
    ).sort("most", "kind", descending=[True, False])  # fmt: skip
    rows = kinds.filter(pl.col("most") > 0).to_dicts()

    def draw(width: float) -> Picture:
        shapes, tall = legend(4, 4, width - 8, [("plain", "mean of the class"), ("second", "its busiest link")])
        high = max(row["most"] for row in rows)
        high = min(1.0, max(0.05, high * 1.1))
        bottom = tall + 12 + 46 * len(rows)
        frame = Frame(left=10, right=width - 14, top=tall + 4, bottom=bottom, x_high=high)
        ticks = [(tick, f"{plain(100 * tick)} %") for tick in nice_ticks(0, high, 4)]
        shapes += x_ticks(frame, ticks, grid=True)
        for i, row in enumerate(rows):
            y = frame.top + 8 + 46 * i
            note = f"{row['kind']}: {row['len']:,} links, mean {percent(row['mean'])}, {row['busiest']} {percent(row['most'])}"
            shapes += [
                Label(frame.left, y + 13, f"{row['kind']}, {row['len']:,} links", size=SMALL + 0.5, ink="ink"),
                Box(frame.left, y + 19, frame.x(row["most"]) - frame.left, 12, "faint", note),
                Box(frame.left, y + 19, frame.x(row["mean"]) - frame.left, 12, "plain", note),
                Dots([(frame.x(row["most"]), y + 25)], 5, "second", note),
            ]
        shapes.append(Label(frame.right, bottom + 32, "of the step that the bytes keep a link busy", "end", SMALL))
        return Picture(width=width, height=bottom + 38, shapes=shapes, says="How busy links are, class by class")

    first = rows[0]
    even = first["most"] / first["mean"] if first["mean"] else 1.0
    return Figure(
        name="links", title="How busy the wires are", draw=draw,
        caption=f"Busiest: {first['busiest']}, {percent(first['most'])} of the step; {times(even)} the mean of its class"
        + (", which is what evenly spread bytes would leave it." if even > 1.005 else ": bytes are spread evenly."),
    )  # fmt: skip


def _byte_matrix(run: RunData) -> Figure:
    pairs = run.tables["pairs"]
    n = int(run.summary["gpus"])
    total = np.full((n, n), np.nan)
    sent = _floats(pairs["dispatch_bytes"] + pairs["combine_bytes"])
    total[pairs["src"].to_numpy(), pairs["dst"].to_numpy()] = sent
    low, high = float(sent.min()), float(sent.max())
    by_power = high > 50 * low

    def draw(width: float) -> Picture:
        values, ends = (np.log10(total), (np.log10(low), np.log10(high))) if by_power else (total, (0.0, high))
        shapes = heat_map(
            width, values, low=float(ends[0]), high=float(ends[1]), shown=lambda v: nbytes(10**v) if by_power else nbytes(v),
            title="bytes in the step" + ", log scale" * by_power, x_name="to GPU", y_name="from GPU", height=_tall(width),
            lines=_per_node(run),
        )  # fmt: skip
        return Picture(width=width, height=_tall(width), shapes=shapes, says="Bytes from every GPU to every other one")

    src, dst = np.unravel_index(int(np.nanargmax(total)), total.shape)
    return Figure(
        name="bytes", title="Who sends how much to whom", draw=draw,
        caption=f"Dispatch and combine of all layers, forwarded bytes counted on each hop. Most: {nbytes(high)} from "
        f"GPU {src} to GPU {dst}; the mean of the pairs that send is {nbytes(float(sent.mean()))}.",
    )  # fmt: skip


# ---- loads


def _loads(run: RunData) -> Figure:
    experts, gpus = (_grid(run.tables[name], *columns) for name, columns in _LOADS.items())
    moe = run.tables["experts"]["layer"].unique(maintain_order=True).to_list()
    lines = [
        ("second", "experts: busiest / mean", _peak(experts)),
        ("plain", "GPUs: busiest / mean", _peak(gpus[moe])),
    ]

    def draw(width: float) -> Picture:
        shapes, tall = legend(40, 4, width - 44, [(fill, name) for fill, name, _ in lines])
        high = max(1.2, float(max(np.nanmax(values, initial=1.0) for _, _, values in lines)))
        frame = Frame(
            left=40, right=width - 6, top=tall + 8, bottom=190, x_high=max(1, len(moe)), y_low=1.0, y_high=1 + (high - 1) * 1.08
        )
        shapes += y_grid(frame)
        for fill, _, values in lines:
            points = [(frame.x(i + 0.5), frame.y(float(value))) for i, value in enumerate(values)]
            shapes += [Line(points, fill, 1.8), Dots(points, 2.2 if len(moe) > 30 else 3, fill)]
        ticks = [(at, str(moe[int(at)])) for at, _ in count_ticks(len(moe), frame.right - frame.left)]
        shapes += [*x_ticks(frame, ticks), Label((frame.left + frame.right) / 2, 222, "layer", "middle", SMALL)]
        return Picture(width=width, height=228, shapes=shapes, says="Busiest expert and busiest GPU of each layer, over the mean")

    before, after = (float(np.nanmean(values)) if np.isfinite(values).any() else float("nan") for _, _, values in lines)
    slots = f"{run.summary.get('slots')} slots, {run.summary.get('replica')}"
    return Figure(
        name="loads", title="What placement makes of popularity", draw=draw,
        caption=f"Before placement the busiest expert is asked {times(before)} the mean; on the GPUs "
        f"({run.summary.get('placement')}, {slots}) that is {times(after)}. 1 is even.",
    )  # fmt: skip


_LOADS = {"experts": ("expert", "asked"), "gpus": ("gpu", "expert_tokens")}


def _expert_load(run: RunData) -> Figure:
    moe = run.tables["experts"]["layer"].unique(maintain_order=True).to_list()
    loads = _relative(_grid(run.tables["experts"], "expert", "asked"))
    return _load_map("experts", "Before placement: load of each expert", "expert", loads, moe)


def _gpu_load(run: RunData) -> Figure:
    moe = run.tables["experts"]["layer"].unique(maintain_order=True).to_list()
    loads = _relative(_grid(run.tables["gpus"], "gpu", "expert_tokens")[moe])
    return _load_map("gpus", "After placement: load of each GPU", "GPU", loads, moe)


def _load_map(name: str, title: str, what: str, loads: NDArray[np.float64], moe: Sequence[int]) -> Figure:
    high = max(2.0, float(np.nanmax(loads, initial=1.0)))

    def draw(width: float) -> Picture:
        shapes = heat_map(
            width, loads.T, low=0.0, high=high, shown=lambda v: f"{v:.2g} ×", title="of the layer's mean",
            x_name=_counted_from(moe), y_name=what,
            height=_tall(width, 0.75),
        )  # fmt: skip
        return Picture(width=width, height=_tall(width, 0.75), shapes=shapes, says=f"Load of each {what} in each layer")

    at = np.unravel_index(int(np.nanargmax(loads)), loads.shape) if np.isfinite(loads).any() else (0, 0)
    most = f"Most: {what} {at[1]} in layer {moe[int(at[0])]}, {times(float(loads[at]))} the mean." if loads.size else ""
    return Figure(name=f"load_{name}", title=title, caption=most, draw=draw)


def _counted_from(moe: Sequence[int]) -> str:
    """What the axis of MoE layers says of their numbers in the model."""
    if list(moe) != list(range(moe[0], moe[0] + len(moe))):
        return f"MoE layer, one after the other; the first is layer {moe[0]}"
    return "MoE layer" if moe[0] == 0 else f"MoE layer, counted from layer {moe[0]}"


def _grid(table: pl.DataFrame, unit: str, value: str) -> NDArray[np.float64]:
    """A column as float [layers, units]; layers that the table does not have are left out."""
    n = int(table[unit].n_unique())
    return _floats(table.sort("layer", unit)[value]).reshape(-1, n)


def _relative(loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every load over its layer's mean; NaN in a layer without any."""
    mean = loads.mean(axis=1, keepdims=True)
    relative = np.full_like(loads, np.nan)
    np.divide(loads, mean, out=relative, where=mean > 0)
    return relative


def _peak(loads: NDArray[np.float64]) -> NDArray[np.float64]:
    return _relative(loads).max(axis=1) if loads.size else np.zeros(0)


def _floats(column: pl.Series) -> NDArray[np.float64]:
    """A column as floats; null is 0 (a dense layer exchanges nothing)."""
    values = np.array(column.cast(pl.Float64).fill_null(0.0).to_numpy())
    values[~np.isfinite(values)] = 0.0
    return values


def _tall(width: float, part: float = 0.92) -> float:
    """The height of a heat map: a part of its width, and no more than a screen has."""
    return min(width * part, 420.0)


def _per_node(run: RunData) -> int:
    nodes = run.summary.get("nodes") or 1
    return int(run.summary["gpus"] // nodes) if nodes > 1 else 0
