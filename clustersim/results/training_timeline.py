"""A training step on a time line, for ui.perfetto.dev: the tasks of every pipeline device, and who hands on to whom.

Plays nothing. The format is that of `timeline`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

INSIDE = 1e-9           # seconds before the end of a slice at which an arrow still finds it
KINDS = {"F": "forward", "B": "backward", "I": "gradient of inputs", "W": "gradient of weights"}
AFTER = (("reduce_s", "gradients"), ("optimiser_s", "optimiser"), ("gather_s", "weights"))
ROOM = 6                # events that a task may make: two slices, and an arrow to each


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A task, or one of two that overlap."""

    kind: str
    stage: int
    batch: int
    track: int
    begin: float
    end: float
    waited: bool                            # whether its device had been without a task before
    told: Mapping[str, Any]


class Window:
    """The tasks of a step that are shown: from its begin on, as many as make no more than `most` events.

    Args:
        arrows: "all" joins every pass to the next of its micro-batch, "last" only to passes that their device waited for.
    """

    def __init__(self, tasks: pl.DataFrame, stages: pl.DataFrame, *, most: int, arrows: str) -> None:
        every = tasks.sort("begin_s", "device", maintain_order=True)
        room = (most - 3 * 2 * stages.height - len(AFTER) * stages.height) // ROOM
        self.n, self.shown = every.height, max(0, min(every.height, room))
        self.stages, self.most, self.arrows = stages, most, arrows
        self.slices = _slices(every.head(self.shown), stages)
        self.whole = self.shown == every.height

    def note(self) -> str:
        """What of the step is in the file."""
        if self.whole:
            return f"timeline: the whole step, {self.n:,} tasks"
        return f"timeline: the first {self.shown:,} of {self.n:,} tasks, as many as make {self.most:,} events (export.events)"

    def events(self) -> Iterator[str]:
        """The events, as JSON each: names, slices, arrows from a stage to the next."""
        yield from self._names()
        for one in self.slices:
            if one.end > one.begin:
                yield _slice(one.track, f"{one.kind} {one.batch}", one.begin, one.end, one.told)
        if self.whole:
            yield from self._after()
        yield from self._arrows()

    def _names(self) -> Iterator[str]:
        def named(what: str, tid: int, args: Mapping[str, Any]) -> str:
            return f'{{"ph":"M","name":"{what}","pid":1,"tid":{tid},"args":{json.dumps(dict(args))}}}'

        yield named("process_name", 0, {"name": "pipeline"})
        used = {one.track for one in self.slices}
        for row in self.stages.iter_rows(named=True):
            for track, beside in ((_track(row["device"]), ""), (_track(row["device"], 1), ", beside it")):
                if not beside or track in used:
                    yield named("thread_name", track, {"name": f"device {row['device']} (stages {row['stages']}){beside}"})
                    yield named("thread_sort_index", track, {"sort_index": track})

    def _after(self) -> Iterator[str]:
        """Gradients, optimiser and weights behind a device's last task."""
        last: dict[int, float] = {}
        for one in self.slices:
            last[one.track] = max(last.get(one.track, 0.0), one.end)
        for row in self.stages.iter_rows(named=True):
            at = last.get(_track(row["device"]), 0.0)
            for column, name in AFTER:
                if row[column] > 0:
                    yield _slice(_track(row["device"]), name, at, at + row[column], {})
                    at += row[column]

    def _arrows(self) -> Iterator[str]:
        """Two events from the end of a pass to the begin of the one that needs what it made, on another device."""
        passes = {(_way(one.kind), one.stage, one.batch): one for one in self.slices if one.kind != "W"}
        number = 0
        for (way, stage, batch), one in passes.items():
            before = passes.get((way, stage - 1 if way == "F" else stage + 1, batch))
            if before is None or before.end <= before.begin or one.end <= one.begin or before.track == one.track:
                continue
            if self.arrows == "last" and not one.waited:
                continue
            number += 1
            name = "activations" if way == "F" else "gradients"
            common = f'"cat":"send","name":"{name}","id":{number},"pid":1'
            leaves = max(before.begin, before.end - INSIDE)
            yield f'{{"ph":"s",{common},"tid":{before.track},"ts":{leaves * 1e6:.6f}}}'
            yield f'{{"ph":"f","bp":"e",{common},"tid":{one.track},"ts":{one.begin * 1e6:.6f}}}'


def _slices(tasks: pl.DataFrame, stages: pl.DataFrame) -> Sequence[Slice]:
    found: list[Slice] = []
    free = dict.fromkeys(stages["device"], 0.0)
    for row in tasks.iter_rows(named=True):
        waited = row["begin_s"] > free[row["device"]]
        free[row["device"]] = row["end_s"]
        spent = {name: row[f"{name}_s"] * 1e6 for name in ("computed", "sent", "exchanged", "waited", "launched")}
        both = ((row["stage"], row["batch"]), (row["stage_back"], row["batch_back"]))
        for i, (kind, (stage, batch)) in enumerate(zip(row["kind"].split("+"), both, strict=False)):
            told = {"what": KINDS[kind], "stage": stage, "micro-batch": batch}
            told |= {} if i else {f"{name}_us": round(value, 3) for name, value in spent.items()}
            found.append(Slice(
                kind=kind, stage=stage, batch=batch, track=_track(row["device"], i), begin=row["begin_s"], end=row["end_s"],
                waited=waited, told=told,
            ))  # fmt: skip
    return found


def _track(device: int, beside: int = 0) -> int:
    return 2 * device + 1 + beside


def _way(kind: str) -> str:
    return "F" if kind == "F" else "B"


def _slice(track: int, name: str, begin: float, end: float, told: Mapping[str, Any]) -> str:
    start, stop = round(begin * 1e6, 6), round(end * 1e6, 6)        # rounded alike: neighbours touch and do not overlap
    args = json.dumps(dict(told), separators=(",", ":"))
    return f'{{"ph":"X","pid":1,"tid":{track},"name":"{name}","ts":{start:.6f},"dur":{stop - start:.6f},"args":{args}}}'
