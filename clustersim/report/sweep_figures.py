"""The figures of a sweep: its jobs by time, what time costs in drops, and what each swept key does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from clustersim.report.axes import SMALL, WIDE, Frame, legend, nice_ticks, plain, seconds_unit, x_ticks, y_grid
from clustersim.report.reading import Job, SweepData, value_of
from clustersim.report.shapes import Box, Dots, Figure, Label, Line, Picture, Shape
from clustersim.report.sweep_findings import Effect, as_number, cost, effects, front, measure, named, ranked
from clustersim.report.wording import percent, seconds, times
from clustersim.results.comparing import same_work

BARS = 30  # jobs that are drawn one by one
KEYS = 8  # keys that have a figure of their own
LINES = 60  # groups of jobs that are drawn as lines of their own


def figures_of_sweep(sweep: SweepData) -> list[Figure]:
    """All figures that the jobs have something for."""
    timed = [job for job in ranked(sweep.jobs) if cost(job) < math.inf]
    if not timed:
        return []
    figures = [_bars(sweep, timed) if len(timed) <= BARS else _ranks(timed)]
    if any(job.summary.get("drop_rate") for job in timed) and len(timed) > 1:
        figures.append(_trade(sweep, timed))
    found = effects(sweep) if len(timed) > 1 else []
    if len(found) > 1:
        figures.append(_strengths(found, measure(timed)))
    return figures + [_effect(effect, number, measure(timed)) for number, effect in enumerate(found[:KEYS])]


def _bars(sweep: SweepData, timed: Sequence[Job]) -> Figure:
    rest = any(job.summary.get("exposed_comm_s") for job in timed)
    bubbles = any(job.summary.get("bubble_s") for job in timed)

    def draw(width: float) -> Picture:
        names = [" · ".join(value_of(job, key) for key in sweep.swept) or job.folder.name for job in timed]
        room = min(width * 0.42, max(len(name) for name in names) * (SMALL + 0.5) * WIDE + 12)
        high = max(float(job.summary["step_s"]) for job in timed)
        entries = [("compute", "computes"), ("plain", "exposed communication")] + [("bubble", "bubble")] * bubbles
        shapes, tall = legend(4, 4, width - 8, entries if rest else [])
        head = " · ".join(sweep.swept)
        bottom = tall + 26 + 24 * len(timed)
        frame = Frame(left=room, right=width - 62, top=tall + 22, bottom=bottom, x_high=high)
        unit, name = seconds_unit(high)
        shapes += x_ticks(frame, [(tick * unit, plain(tick)) for tick in nice_ticks(0, high / unit)], grid=True)
        shapes.append(Label(4, tall + 14, _cut(head, width - 8), size=SMALL))
        for i, job in enumerate(timed):
            row, y = job.summary, frame.top + 4 + 24 * i
            compute = min(float(row.get("compute_s") or 0.0), float(row["step_s"])) if rest else 0.0
            note = f"{named(job, sweep.swept)}: {seconds(row['step_s'])}, of it computing {seconds(compute)}"
            ends = frame.x(float(row["step_s"]))
            idle = frame.x(float(row["step_s"]) - float(row.get("bubble_s") or 0.0))
            shapes += [
                Label(room - 8, y + 12.5, _cut(names[i], room - 12), "end", SMALL + 0.5, "ink", bold=i == 0),
                Box(frame.left, y, frame.x(compute) - frame.left, 16, "compute", note),
                Box(frame.x(compute), y, max(0.0, idle - frame.x(compute)), 16, "plain", note),
                *([Box(idle, y, ends - idle, 16, "bubble", note)] if ends > idle else []),
                Label(ends + 6, y + 12.5, seconds(row["step_s"]), size=SMALL, ink="ink", bold=i == 0),
            ]
        shapes.append(Label(frame.right, bottom + 32, f"step, {name}", "end", SMALL))
        return Picture(width=width, height=bottom + 38, shapes=shapes, says="The time of every job, computing and communication")

    caption = "From the best to the worst; computing is the mean over the GPUs."
    if not same_work([job.summary for job in timed]):
        caption += " The jobs do not do the same work: the order is by GPU time per token."
    return Figure(name="jobs", title="The jobs", caption=caption, draw=draw)


def _ranks(timed: Sequence[Job]) -> Figure:
    values = [float(job.summary["step_s"]) for job in timed]

    def draw(width: float) -> Picture:
        high = max(values)
        unit, name = seconds_unit(high)
        frame = Frame(left=46, right=width - 18, top=26, bottom=230, x_high=len(values), y_high=high * 1.04)
        shapes: list[Shape] = [Label(frame.left, 14, f"step, {name}", size=SMALL), *y_grid(frame, unit)]
        shapes.append(Dots([(frame.x(i + 0.5), frame.y(value)) for i, value in enumerate(values)], 1.6, "plain"))
        shapes.append(Dots([(frame.x(0.5), frame.y(values[0]))], 4, "best"))
        shapes += x_ticks(frame, [(tick, plain(tick)) for tick in nice_ticks(0, len(values))])
        shapes.append(Label((frame.left + frame.right) / 2, 262, "jobs, from the best to the worst", "middle", SMALL))
        return Picture(width=width, height=268, shapes=shapes, says="The time of every job, from the best to the worst")

    half = values[len(values) // 2]
    return Figure(
        name="jobs", title="The jobs", draw=draw,
        caption=f"{len(values):,} jobs. Best {seconds(values[0])}, median {seconds(half)}, worst {seconds(max(values))}.",
    )  # fmt: skip


def _trade(sweep: SweepData, timed: Sequence[Job]) -> Figure:
    best = front(timed)
    points = [
        (float(job.summary["drop_rate"]), float(job.summary["step_s"]))
        for job in timed
        if job.summary.get("drop_rate") is not None
    ]

    def draw(width: float) -> Picture:
        shapes, tall = legend(46, 4, width - 50, [("faint", "jobs"), ("best", "not beaten in both")])
        low, high = min(y for _, y in points), max(y for _, y in points)
        pad = 0.06 * (high - low) or 0.1 * high
        unit, name = seconds_unit(high)
        frame = Frame(
            left=46, right=width - 14, top=tall + 26, bottom=280, x_high=max(x for x, _ in points) * 1.04 or 1.0,
            y_low=max(0.0, low - pad), y_high=high + pad,
        )  # fmt: skip
        shapes += [Label(frame.left, tall + 17, f"step, {name}", size=SMALL), *y_grid(frame, unit)]
        shapes += x_ticks(frame, [(t, f"{plain(round(100 * t, 9))} %") for t in nice_ticks(0, frame.x_high)])
        shapes.append(Dots([(frame.x(x), frame.y(y)) for x, y in points], 4 if len(points) < 200 else 2.5, "faint"))
        steps: list[tuple[float, float]] = []
        at = [(frame.x(float(job.summary["drop_rate"])), frame.y(float(job.summary["step_s"]))) for job in best]
        for x, y in at:
            steps += [(steps[-1][0], y), (x, y)] if steps else [(x, y)]
        shapes.append(Line(steps, "best", 1.4, dash=True))
        free = math.inf
        for job, (x, y) in zip(best, at, strict=True):
            row = job.summary
            shapes.append(
                Dots([(x, y)], 5, "best", f"{named(job, sweep.swept)}: {seconds(row['step_s'])}, {percent(row['drop_rate'], 2)}")
            )
            text = _cut(" · ".join(value_of(job, key) for key in sweep.swept), width * 0.4)
            wide = len(text) * SMALL * WIDE
            left = x + 9 + wide > frame.right
            if len(best) <= 12 and abs(y - free) > 13:
                shapes.append(Label(x - 9 if left else x + 9, y - 5, text, "end" if left else "start", SMALL, "ink"))
                free = y
        shapes.append(Label((frame.left + frame.right) / 2, 312, "choices dropped", "middle", SMALL))
        return Picture(width=width, height=318, shapes=shapes, says="Step time against the share of dropped choices")

    count = f"{len(best)} of {len(timed)} jobs are" if len(best) > 1 else "One job is"
    return Figure(
        name="pareto", title="Time against drops", draw=draw,
        caption=f"Left and low is good. {count} not beaten by another in both; the dashed line joins such jobs."
        if len(best) > 1 else "Left and low is good. One job beats all others in both, or equals them: there is no trade.",
    )  # fmt: skip


def _strengths(found: Sequence[Effect], what: str) -> Figure:
    def draw(width: float) -> Picture:
        high = max(1.02, max(effect.largest for effect in found))
        room = min(width * 0.45, max(len(effect.key) for effect in found) * (SMALL + 0.5) * WIDE + 12)
        frame = Frame(left=room, right=width - 54, top=10, bottom=14 + 26 * len(found), x_low=1.0, x_high=high)
        shapes = x_ticks(frame, [(tick, f"{plain(tick)} ×") for tick in nice_ticks(1.0, high, 4)], grid=True)
        for i, effect in enumerate(found):
            y = frame.top + 5 + 26 * i
            note = f"{effect.key}: {times(effect.typical)} typically, {times(effect.largest)} at most"
            shapes += [
                Label(room - 8, y + 12, _cut(effect.key, room - 12), "end", SMALL + 0.5, "ink"),
                Box(frame.left, y, frame.x(effect.largest) - frame.left, 14, "faint", note),
                Box(frame.left, y, max(1.0, frame.x(effect.typical) - frame.left), 14, "plain", note),
                Label(frame.x(effect.largest) + 6, y + 12, times(effect.typical), size=SMALL, ink="ink"),
            ]
        bottom = frame.bottom + 36
        shapes.append(Label(frame.right, bottom, "worst value / best value", "end", SMALL))
        return Picture(width=width, height=bottom + 6, shapes=shapes, says="By how much each swept key changes the time")

    caption = (
        f"By how much the {what} grows from a key's best value to its worst, all other keys equal: the median and (pale) "
        "the most."
    )
    if any(not effect.matched for effect in found):
        caption += " Of keys that never change alone: between the means of their values."
    return Figure(name="keys", title="Which key matters", caption=caption, draw=draw)


def _effect(effect: Effect, number: int, what: str) -> Figure:
    numeric = all(as_number(value) is not None for value in effect.values if value != "null")
    relative = [_relative(group) for group in effect.groups]
    middle = [_median([group[i] for group in relative]) for i in range(len(effect.values))]

    def draw(width: float) -> Picture:
        high = max([x for group in relative for x in group if x] + [1.02])
        return (_curve if numeric and len(effect.values) > 1 else _rows)(width, effect.values, relative, middle, high)

    lines = f"{len(effect.groups)} groups of jobs" if len(effect.groups) > 1 else "One group of jobs"
    how = f"{lines} that differ in nothing else" if effect.matched else "Means of all jobs with that value"
    best = effect.values[min(range(len(middle)), key=lambda i: middle[i] or math.inf)]
    return Figure(
        name=f"key_{number}", title=effect.key, draw=draw,
        caption=f"{what[0].upper()}{what[1:]} over the best of each group; the bold line is the median. {how}. Best: {best}.",
    )  # fmt: skip


def _curve(
    width: float, values: Sequence[str], groups: Sequence[Sequence[float | None]], middle: Sequence[float | None], high: float
) -> Picture:
    frame = Frame(left=56, right=width - 10, top=12, bottom=200, x_high=len(values), y_low=1.0, y_high=1 + (high - 1) * 1.08)
    shapes = y_grid(frame, suffix=" ×")
    for group in groups[:LINES]:
        shapes.append(Line([(frame.x(i + 0.5), _y(frame, value)) for i, value in enumerate(group)], "faint", 1.2))
    points = [(frame.x(i + 0.5), _y(frame, value)) for i, value in enumerate(middle)]
    shapes += [Line(points, "plain", 2.4), Dots(points, 3.4, "plain")]
    shapes += x_ticks(frame, [(i + 0.5, value) for i, value in enumerate(values)])
    return Picture(width=width, height=224, shapes=shapes, says="Time over the best, for each value of the key")


def _rows(
    width: float, values: Sequence[str], groups: Sequence[Sequence[float | None]], middle: Sequence[float | None], high: float
) -> Picture:
    room = min(width * 0.45, max(len(value) for value in values) * (SMALL + 0.5) * WIDE + 14)
    frame = Frame(left=room, right=width - 16, top=6, bottom=10 + 22 * len(values), x_low=1.0, x_high=1 + (high - 1) * 1.05)
    shapes = x_ticks(frame, [(tick, f"{plain(tick)} ×") for tick in nice_ticks(1.0, frame.x_high, 4)], grid=True)
    for i, value in enumerate(values):
        y = frame.top + 13 + 22 * i
        shapes.append(Label(room - 10, y + 4, _cut(value or "(none)", room - 14), "end", SMALL + 0.5, "ink"))
        shapes.append(Dots([(frame.x(x), y) for group in groups if (x := group[i])], 2.6, "faint"))
        if (half := middle[i]) is not None:
            shapes.append(Dots([(frame.x(half), y)], 4.5, "plain", f"{value}: {times(half)}"))
    return Picture(width=width, height=frame.bottom + 24, shapes=shapes, says="Time over the best, for each value of the key")


def _relative(group: Sequence[float | None]) -> list[float | None]:
    least = min((value for value in group if value), default=1.0)
    return [value / least if value else None for value in group]


def _median(values: Sequence[float | None]) -> float | None:
    real = [value for value in values if value is not None]
    return median(real) if real else None


def _y(frame: Frame, value: float | None) -> float:
    return frame.y(value) if value is not None else math.nan


def _cut(text: str, room: float) -> str:
    """The text as far as it fits into so many pixels."""
    most = max(4, int(room / (SMALL * WIDE)))
    return text if len(text) <= most else text[: most - 1] + "…"
