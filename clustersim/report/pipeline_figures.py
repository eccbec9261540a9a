"""The pipeline of a training step as a picture: devices by time, thinned out where there are more passes than pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from clustersim.report.axes import SMALL, WIDE, Frame, count_ticks, legend, nice_ticks, plain, seconds_unit, x_ticks
from clustersim.report.reading import RunData
from clustersim.report.shapes import Bars, Figure, Label, Picture, Shape, Words
from clustersim.report.wording import percent
from clustersim.types import Floats, Ints

FILLS = {"F": "forward", "B": "backward", "I": "input", "W": "weight"}
NAMES = {
    "forward": "F forward", "backward": "B backward", "input": "I gradient of inputs", "weight": "W gradient of weights",
    "gradients": "gradients, weights", "optimiser": "optimiser", "bubble": "bubble",
}  # fmt: skip
MOST = 12.0         # bars for every pixel of width, at most: a page has room for two pictures of so many
TEXT = 10.5         # of the number of a micro-batch
READABLE = 19.0     # pixels that a pass has in the picture of the beginning


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Row:
    """What a device does, in seconds from the start of the step."""

    begin: Floats
    end: Floats
    fills: Sequence[tuple[str, ...]]            # one colour, or two that share the height
    batches: Sequence[tuple[str, ...]]          # micro-batches, likewise; empty after the passes


def figures_of_pipeline(run: RunData) -> list[Figure]:
    """The whole step, and its beginning where the whole is too small to read."""
    rows = rows_of(run)
    step = float(run.summary["step_s"] or 0.0)
    if not step:
        return []
    used = {fill for row in rows for fills in row.fills for fill in fills} | {"bubble"}
    entries = [(fill, name) for fill, name in NAMES.items() if fill in used]
    idle = run.tables["stages"]["bubble_s"].to_numpy()
    both = any(len(fills) > 1 for row in rows for fills in row.fills)
    caption = (
        f"{_count(len(rows), 'pipeline device')}, {_count(run.summary['micro_batches'], 'micro-batch')}, order "
        f"{run.summary['parallel.order']}. A device waits for its neighbours {percent(float(idle.mean()) / step)} of the step, "
        f"from {percent(float(idle.min()) / step)} to {percent(float(idle.max()) / step)}."
    )
    caption += " Above and below: two passes at once, each beside the exchanges of the other." if both else ""
    whole = Figure(
        name="pipeline", title="The pipeline", caption=caption,
        draw=lambda width: _picture(width, rows, 0.0, step, entries, "What every pipeline device does, from begin to end"),
    )  # fmt: skip
    median = _median_pass(rows)
    if len(rows) == 1 or median * 830 / step >= READABLE:
        return [whole]
    numbered = _tall(len(rows)) > TEXT + 3
    begin = Figure(
        name="pipeline_begin", title="How it begins",
        caption="The same, larger; the numbers are micro-batches." if numbered else "The same, larger.",
        draw=lambda width: _picture(
            width, rows, 0.0, min(step, median * (width - 50) / READABLE), entries, "The beginning of the step, enlarged"
        ),
    )  # fmt: skip
    return [whole, begin]


def rows_of(run: RunData) -> list[Row]:
    """Every device's passes, then its gradients, optimiser and weights."""
    rows = []
    for after in run.tables["stages"].sort("device").iter_rows(named=True):
        tasks = run.tables["tasks"].filter(pl.col("device") == after["device"]).sort("begin_s")
        begin, end = tasks["begin_s"].to_list(), tasks["end_s"].to_list()
        fills: list[tuple[str, ...]] = [tuple(FILLS[kind] for kind in kinds.split("+")) for kinds in tasks["kind"]]
        batches: list[tuple[str, ...]] = [
            (str(one),) if other is None else (str(one), str(other))
            for one, other in zip(tasks["batch"], tasks["batch_back"], strict=True)
        ]
        for fill, name in (("gradients", "reduce_s"), ("optimiser", "optimiser_s"), ("gradients", "gather_s")):
            if after[name] > 0:
                begin.append(end[-1] if end else 0.0)
                end.append(begin[-1] + after[name])
                fills.append((fill,))
                batches.append(())
        rows.append(Row(begin=np.array(begin, float), end=np.array(end, float), fills=fills, batches=batches))
    return rows


def _median_pass(rows: Sequence[Row]) -> float:
    took = np.concatenate([row.end - row.begin for row in rows])
    return float(np.median(took[took > 0])) if (took > 0).any() else 0.0


def _picture(
    width: float, rows: Sequence[Row], low: float, high: float, entries: Sequence[tuple[str, str]], says: str
) -> Picture:
    shapes, tall = legend(46, 4, width - 50, entries)
    each = _tall(len(rows))
    top = tall + 10
    frame = Frame(
        left=46, right=width - 8, top=top, bottom=top + each * len(rows), x_low=low, x_high=high, y_low=len(rows), y_high=0
    )
    gap = 2.0 if each > 12 else 0.8
    spans: dict[str, list[tuple[float, float, float]]] = {"bubble": []}
    half: dict[str, list[tuple[float, float, float]]] = {}
    words: list[tuple[float, float, str]] = []
    most = int(MOST * width / len(rows))
    for i, row in enumerate(rows):
        y = frame.top + i * each + gap / 2
        spans["bubble"].append((frame.left, y, frame.right - frame.left))
        for begin, end, fills, batches in thinned(row, low, high, most, (high - low) / (frame.right - frame.left)):
            left, right = frame.x(max(begin, low)), frame.x(min(end, high))
            wide = right - left - (0.6 if right - left > 3 else 0.0)
            to = spans if len(fills) == 1 else half
            for level, fill in enumerate(fills):
                to.setdefault(fill, []).append((left, y + level * (each - gap) / 2, wide))
            words += _numbers(left, wide, y, each - gap, batches if begin >= low and end <= high * (1 + 1e-12) else ())
    for fill, bars in spans.items():
        shapes.append(Bars(bars, each - gap, fill))
    for fill, bars in half.items():
        shapes.append(Bars(bars, (each - gap) / 2, fill))
    shapes.append(Words(words, TEXT, "surface"))
    return Picture(width=width, height=frame.bottom + 38, shapes=[*shapes, *_axes(frame, len(rows), each)], says=says)


def _tall(devices: int) -> float:
    """Pixels of a row."""
    return max(3.0, min(26.0, 440.0 / devices))


def _axes(frame: Frame, devices: int, each: float) -> list[Shape]:
    unit, name = seconds_unit(frame.x_high - frame.x_low)
    ticks = nice_ticks(frame.x_low / unit, frame.x_high / unit, max(2, int((frame.right - frame.left) / 90)))
    shapes = x_ticks(frame, [(tick * unit, plain(tick)) for tick in ticks])
    for place, text in count_ticks(devices, each * devices * 2.4):
        shapes.append(Label(frame.left - 6, frame.y(place) + 4, text, "end", SMALL))
    shapes.append(Label((frame.left + frame.right) / 2, frame.bottom + 32, f"time, {name}", "middle", SMALL))
    if each * devices > 60:
        shapes.append(Label(12, (frame.top + frame.bottom) / 2, "device", "middle", SMALL, turn=True))
    return shapes


def _numbers(left: float, wide: float, y: float, tall: float, batches: Sequence[str]) -> list[tuple[float, float, str]]:
    """The micro-batches of a bar, where there is room for them."""
    each = tall / max(1, len(batches))
    if not batches or each < TEXT + 1 or wide < max(map(len, batches)) * TEXT * WIDE + 3:
        return []
    return [(left + wide / 2, y + (level + 0.5) * each + TEXT * 0.36, text) for level, text in enumerate(batches)]


def thinned(
    row: Row, low: float, high: float, most: int, pixel: float
) -> list[tuple[float, float, tuple[str, ...], tuple[str, ...]]]:
    """What is drawn of a row between two times: begin, end, colours, micro-batches.

    All of it where it has no more than `most` pieces and these are no thinner than half a pixel; else the time is cut into
    `most` columns or fewer, each is what takes most of it, and alike neighbours are one.
    """
    seen = np.flatnonzero((row.end > low) & (row.begin < high) & (row.end > row.begin))
    if seen.size <= most and (not seen.size or float(np.median((row.end - row.begin)[seen])) >= pixel / 2):
        return [(float(row.begin[i]), float(row.end[i]), row.fills[i], row.batches[i]) for i in seen.tolist()]
    edges = np.linspace(low, high, max(2, min(most, int((high - low) / pixel)) + 1))
    kinds: Mapping[tuple[str, ...], int] = {fills: i for i, fills in enumerate(dict.fromkeys(row.fills))}
    own = np.array([kinds[fills] for fills in row.fills])
    shares = np.zeros((len(kinds), edges.size - 1))
    for kind in range(len(kinds)):
        begin, end = row.begin[own == kind], row.end[own == kind]
        knots = np.stack([begin, end], axis=1).ravel()
        spent = np.stack([np.cumsum(end - begin) - (end - begin), np.cumsum(end - begin)], axis=1).ravel()
        shares[kind] = np.diff(np.interp(edges, knots, spent))
    first: Ints = shares.argmax(axis=0)
    first[np.diff(edges) - shares.sum(axis=0) > shares.max(axis=0)] = -1
    names = list(kinds)
    cuts = np.flatnonzero(np.diff(first)) + 1
    return [
        (float(edges[a]), float(edges[b]), names[int(first[a])], ())
        for a, b in zip([0, *cuts], [*cuts, first.size], strict=True) if first[a] >= 0
    ]  # fmt: skip


def _count(n: int, what: str) -> str:
    many = f"{what}es" if what.endswith("ch") else f"{what}s"
    return f"{n:,} {what if n == 1 else many}"
