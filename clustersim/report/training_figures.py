"""The figures of a training step beside its pipeline: where the time goes, device by device, and what its GPUs hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from clustersim.report.axes import SMALL, Frame, count_ticks, legend, nice_ticks, plain, seconds_unit, x_ticks, y_grid
from clustersim.report.pipeline_figures import figures_of_pipeline
from clustersim.report.reading import RunData
from clustersim.report.shapes import Box, Figure, Label, Line, Picture, Shape
from clustersim.report.wording import nbytes, percent, seconds

SHARES = (                      # of a device's step: colour, name, columns of the stages; from below in the bars
    ("compute", "computes", ("computed_s",)), ("dispatch", "sent in tensor, context groups", ("sent_s",)),
    ("combine", "exchanges for experts", ("exchanged_s",)), ("wait", "waits for other GPUs", ("waited_s",)),
    ("faint", "waits for the host", ("launched_s",)),
    ("gradients", "gradients, weights", ("reduce_s", "gather_s")), ("optimiser", "optimiser", ("optimiser_s",)),
    ("bubble", "bubble", ("bubble_s",)),
)  # fmt: skip
HELD = {                        # colours of what a GPU holds
    "weights": "compute", "gathered": "faint", "gradients": "gradients", "optimiser": "optimiser", "activations": "forward",
    "working": "combine", "logits": "input", "cache": "best", "buffers": "wait",
}  # fmt: skip
LEAST = 1e-9            # shares of a step that are nothing but rounding


def figures_of_training(run: RunData) -> list[Figure]:
    """All figures that the run's tables have something for."""
    figures = figures_of_pipeline(run)
    if run.summary["step_s"]:
        figures.append(_split(run))
        if run.tables["stages"].height > 1:
            figures.append(_devices(run))
    if run.tables["memory"].height and run.summary["gpu_memory_bytes"]:
        figures.append(_memory(run))
    return figures


def shares_of(run: RunData) -> list[tuple[str, str, list[float]]]:
    """What a step consists of on every device: colour, name, seconds of each; what is nothing anywhere is left out."""
    stages, step = run.tables["stages"].sort("device"), run.summary["step_s"] or 0.0
    found = []
    for fill, name, columns in SHARES:
        values = [value if value > LEAST * step else 0.0 for value in stages.select(pl.sum_horizontal(*columns)).to_series()]
        if any(values):
            found.append((fill, name, values))
    return found


def _split(run: RunData) -> Figure:
    """The mean device's step, as bars that add up to it."""
    parts = [(fill, name, sum(values) / len(values)) for fill, name, values in shares_of(run)]
    step = float(run.summary["step_s"])

    def draw(width: float) -> Picture:
        room = min(190.0, width * 0.46)
        high = max(value for _, _, value in parts)
        unit, name = seconds_unit(high)
        frame = Frame(left=room, right=width - 104, top=8, bottom=14 + 26 * len(parts), x_high=high)
        shapes = x_ticks(frame, [(tick * unit, plain(tick)) for tick in nice_ticks(0.0, high / unit, 4)], grid=True)
        for i, (fill, text, value) in enumerate(parts):
            y = frame.top + 5 + 26 * i
            shapes += [
                Label(room - 8, y + 12, _short(text, width), "end", SMALL + 0.5, "ink"),
                Box(frame.left, y, max(1.0, frame.x(value) - frame.left), 15, fill),
                Label(frame.x(value) + 6, y + 12, f"{seconds(value)}, {percent(value / step)}", size=SMALL, ink="ink"),
            ]
        shapes.append(Label(frame.right, frame.bottom + 32, name, "end", SMALL))
        return Picture(width=width, height=frame.bottom + 38, shapes=shapes, says="What a step consists of, mean over devices")

    return Figure(
        name="split", title="What a step consists of", draw=draw,
        caption=f"Mean over the pipeline devices; together {seconds(step)}. Only communication that nothing hides is counted.",
    )  # fmt: skip


def _devices(run: RunData) -> Figure:
    parts, stages, step = shares_of(run), run.tables["stages"].sort("device"), float(run.summary["step_s"])
    layers, held = stages["layers"].to_list(), stages["stages"].to_list()
    columns = [{name: values[i] for _, name, values in parts} for i in range(stages.height)]

    def draw(width: float) -> Picture:
        shapes, tall = legend(46, 4, width - 50, [(fill, _short(name, width)) for fill, name, _ in parts])
        frame = Frame(left=46, right=width - 4, top=tall + 24, bottom=290 + tall, x_high=len(columns), y_high=step * 1.02)
        unit, name = seconds_unit(step)
        shapes.append(Label(frame.left, tall + 16, f"of the step, {name}", size=SMALL))
        shapes += y_grid(frame, unit)
        for i, column in enumerate(columns):
            spent = [(fill, name, column[name]) for fill, name, _ in parts]
            shapes += _column(frame, i, spent, _named(i, layers[i], held[i]), seconds)
        shapes += x_ticks(frame, count_ticks(len(columns), frame.right - frame.left))
        shapes.append(Label((frame.left + frame.right) / 2, frame.bottom + 32, "pipeline device", "middle", SMALL))
        return Picture(width=width, height=frame.bottom + 38, shapes=shapes, says="What every pipeline device's step consists of")

    busy = [step - column.get("bubble", 0.0) for column in columns]
    most, least = max(range(len(busy)), key=busy.__getitem__), min(range(len(busy)), key=busy.__getitem__)
    return Figure(
        name="devices", title="What each device does", draw=draw,
        caption=f"Busiest: device {most} with {layers[most]} layers, {seconds(busy[most])}; least busy: device {least} with "
        f"{layers[least]}, {seconds(busy[least])}. The first stage also has the embedding, the last one the unembedding.",
    )  # fmt: skip


def _named(device: int, layers: int, held: str) -> str:
    return f"device {device}, {layers} layers, stage{'s' if ',' in held else ''} {held.replace(',', ', ')}"


def _column(
    frame: Frame, i: int, parts: Sequence[tuple[str, str, float]], name: str, shown: Callable[[float], str]
) -> list[Shape]:
    """One stack, from below."""
    each = frame.x(1) - frame.x(0)
    gap = min(3.0, each * 0.18)
    shapes: list[Shape] = []
    below = 0.0
    for fill, what, value in parts:
        if value > 0:
            top = frame.y(below + value)
            note = f"{name}: {what} {shown(value)}" if each > 10 else ""        # notes are long, and such a bar is hard to hit
            shapes.append(Box(frame.x(i) + gap / 2, top, each - gap, frame.y(below) - top, fill, note))
            below += value
    return shapes


def _memory(run: RunData) -> Figure:
    """What a GPU of each stage holds, and what it has."""
    table, has = run.tables["memory"], float(run.summary["gpu_memory_bytes"])
    held = table.filter(pl.col("held_bytes") > 0)["part"].unique(maintain_order=True).to_list()
    stages = sorted(table["stage"].unique().to_list())
    of = {(row["stage"], row["part"]): row["held_bytes"] for row in table.iter_rows(named=True)}
    sums = {stage: sum(of.get((stage, part), 0.0) for part in held) for stage in stages}

    def draw(width: float) -> Picture:
        shapes, tall = legend(52, 4, width - 56, [(HELD.get(part, "axis"), part) for part in held])
        high = max(has, *sums.values())
        frame = Frame(left=52, right=width - 4, top=tall + 24, bottom=250 + tall, x_high=len(stages), y_high=high * 1.06)
        shapes.append(Label(frame.left, tall + 16, "on a GPU, GB", size=SMALL))
        shapes += y_grid(frame, 1e9)
        for i, stage in enumerate(stages):
            parts = [(HELD.get(part, "axis"), part, of.get((stage, part), 0.0)) for part in held]
            shapes += _column(frame, i, parts, f"stage {stage}", nbytes)
        shapes.append(Line([(frame.left, frame.y(has)), (frame.right, frame.y(has))], "ink", 1.2, dash=True))
        shapes.append(Label(frame.right, frame.y(has) - 4, f"the GPU has {nbytes(has)}", "end", SMALL, "ink"))
        shapes += x_ticks(frame, count_ticks(len(stages), frame.right - frame.left))
        shapes.append(Label((frame.left + frame.right) / 2, frame.bottom + 32, "pipeline device", "middle", SMALL))
        return Picture(width=width, height=frame.bottom + 38, shapes=shapes, says="What a GPU of every stage holds")

    fullest = max(stages, key=lambda stage: sums[stage])
    most = max(held, key=lambda part: of.get((fullest, part), 0.0))
    return Figure(
        name="memory", title="What a GPU holds", draw=draw,
        caption=f"Fullest: stage {fullest}, {nbytes(sums[fullest])} of {nbytes(has)}, {percent(sums[fullest] / has)}; most of it "
        f"is {most}, {nbytes(of[fullest, most])}.",
    )  # fmt: skip


def _short(name: str, width: float) -> str:
    """The name of a share on a phone."""
    return {"sent in tensor, context groups": "tensor, context groups", "exchanges for experts": "exchanges"}.get(name, name) \
        if width < 400 else name
