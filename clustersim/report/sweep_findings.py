"""What a sweep says: which job is best, which key matters, what time costs in drops. Every number is one of the jobs'."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from clustersim.report.findings import Findings
from clustersim.report.reading import Job, SweepData, value_of
from clustersim.report.wording import number, percent, seconds, times
from clustersim.results.comparing import gpu_seconds, limit_of, same_work

FEW_DROPS = 0.01  # share of the choices that a capacity may drop before a reader has to think about it


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one swept key does to the time. A group is the jobs that agree in all other swept keys."""

    key: str
    values: tuple[str, ...]  # in the order in which an axis has them
    groups: tuple[tuple[float | None, ...], ...]  # per group, the time at each value; None where no job has it
    typical: float  # slowest / fastest value in a group: median over groups
    largest: float
    matched: bool  # False: no two jobs differ in this key alone, and the mean of each value is used


def cost(job: Job) -> float:
    """What jobs are ranked by."""
    return gpu_seconds(job.summary)


def ranked(jobs: Sequence[Job]) -> list[Job]:
    """Jobs from the best to the worst; those without a time last."""
    return sorted(jobs, key=cost)


def front(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that no other one beats in both time and drops, from the fastest to the one that drops least."""
    timed = [job for job in ranked(jobs) if cost(job) < math.inf and job.summary.get("drop_rate") is not None]
    kept: list[Job] = []
    for job in sorted(timed, key=lambda job: (cost(job), job.summary["drop_rate"])):
        if not kept or job.summary["drop_rate"] < kept[-1].summary["drop_rate"]:
            kept.append(job)
    return kept


def effects(sweep: SweepData) -> list[Effect]:
    """What every swept key does, the strongest first."""
    timed = [job for job in sweep.jobs if cost(job) < math.inf]
    found = [_effect(key, timed, [other for other in sweep.swept if other != key]) for key in sweep.swept] if timed else []
    return sorted(found, key=lambda effect: -effect.typical)


def _effect(key: str, jobs: Sequence[Job], others: Sequence[str]) -> Effect:
    values = tuple(in_order({value_of(job, key) for job in jobs}))
    cells: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        cells[tuple(value_of(job, other) for other in others)][value_of(job, key)].append(cost(job))
    groups = [tuple(_mean(cell.get(value)) for value in values) for cell in cells.values() if len(cell) > 1]
    matched = bool(groups)
    if not matched:
        pooled = {value: [cost(job) for job in jobs if value_of(job, key) == value] for value in values}
        groups = [tuple(_mean(pooled[value]) for value in values)]
    ratios = sorted(max(real) / min(real) for group in groups if (real := [x for x in group if x]))
    typical = median(ratios) if ratios else 1.0
    return Effect(
        key=key, values=values, groups=tuple(groups), typical=typical, largest=max(ratios, default=1.0), matched=matched
    )


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def in_order(values: set[str]) -> list[str]:
    """Numbers by size, then words by name."""

    def place(text: str) -> tuple[bool, float, str]:
        value = as_number(text)
        return value is None, value or 0.0, text

    return sorted(values, key=place)


def as_number(text: str) -> float | None:
    """The number that a value is, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def named(job: Job, swept: Sequence[str]) -> str:
    """The job in its swept keys, as they are written on the command line."""
    return " ".join(f"{key}={value_of(job, key)}" for key in swept) or "the only job"


def findings_of_sweep(sweep: SweepData) -> Findings:
    """The answer first: the best job, what it gains, and what matters."""
    timed = [job for job in ranked(sweep.jobs) if cost(job) < math.inf]
    if not timed:
        text = f"{len(sweep.jobs)} jobs ran without any time passing." if sweep.jobs else "No job came to an end."
        return Findings(
            headline=f"No times to compare: {len(sweep.failed)} jobs failed", sentences=(text,), tiles=_tiles(sweep, timed)
        )
    best = timed[0]
    told = [_best(sweep, timed)]
    told += _keys(sweep)
    told += _drops(sweep, timed)
    told += _limits(timed)
    if sweep.failed:
        told.append(f"{len(sweep.failed)} of {len(sweep.jobs) + len(sweep.failed)} jobs failed; they are listed below.")
    if sweep.left:
        told.append(f"{sweep.left} jobs of the sweep have not been run yet; the command that began it goes on with them.")
    headline = _headline(sweep, timed) if len(timed) > 1 else f"One job: {seconds(best.summary['step_s'])} a step"
    return Findings(headline=headline, sentences=tuple(told), tiles=_tiles(sweep, timed))


def _headline(sweep: SweepData, timed: Sequence[Job]) -> str:
    """The trade where time is bought with drops, else the fastest job."""
    best, worst = timed[0], timed[-1]
    whole = next((job for job in timed if not job.summary.get("drop_rate")), None)
    if whole is not None and whole is not best and best.summary["drop_rate"] >= FEW_DROPS:
        return (
            f"Dropping {percent(best.summary['drop_rate'])} of the choices makes the step "
            f"{times(cost(whole) / cost(best))} faster than dropping none"
        )
    gain = cost(worst) / cost(best)
    if gain < 1.005:
        every = seconds(best.summary["step_s"])
        what = f"take {every}" if same_work([job.summary for job in timed]) else "make as many tokens per GPU-second"
        return f"It makes no difference: all {len(timed):,} jobs {what}"
    name = named(best, sweep.swept) if len(sweep.swept) <= 3 else best.folder.name
    name = name if len(name) <= 90 else best.folder.name
    if not same_work([job.summary for job in timed]):
        return f"Best: {name}, {times(gain)} the tokens per GPU-second of the worst"
    return f"Fastest: {name}, {times(gain)} faster than the slowest"


def measure(jobs: Sequence[Job]) -> str:
    """What `cost` is called."""
    return "time" if same_work([job.summary for job in jobs]) else "GPU time per token"


def _speed(row: Mapping[str, Any]) -> str:
    """Tokens per second, and of one GPU."""
    return f"{number(row['tokens_per_s'])} tokens per second, {number(row['tokens_per_s'] / row['gpus'])} per GPU"


def _ends(timed: Sequence[Job]) -> tuple[str, str]:
    """What the first and the last job are called: a shorter step is no merit where it is of less work, or of more GPUs."""
    return ("fastest", "slowest") if same_work([job.summary for job in timed]) else ("best", "worst")


def _best(sweep: SweepData, timed: Sequence[Job]) -> str:
    best = timed[0]
    row = best.summary
    first, last = _ends(timed)
    text = f"The {first} job ({named(best, sweep.swept)}) takes " if len(timed) > 1 else "It takes "
    text += f"{seconds(row['step_s'])} a step, {_speed(row)}"
    if row.get("drop_rate"):
        text += f", and drops {percent(row['drop_rate'], 2)} of the choices"
    if len(timed) > 1:
        other = timed[-1].summary
        text += f"; the {last} ({named(timed[-1], sweep.swept)}) takes {seconds(other['step_s'])}"
        text += f" and makes {_speed(other)}" if measure(timed) != "time" else ""
    ties = sum(cost(job) <= cost(best) * 1.001 for job in timed) - 1
    return text + (
        f". {ties} other jobs are as good to 0.1 %." if ties > 1 else ". One other job is as good to 0.1 %." if ties else "."
    )


def _keys(sweep: SweepData) -> list[str]:
    found = effects(sweep)
    if len(sweep.jobs) < 2 or not found:
        return []
    first, what = found[0], measure(sweep.jobs)
    how = "by itself" if first.matched else "on average, as no two jobs differ in it alone"
    told = [f"What matters most is {first.key}: from its best value to its worst the {what} grows {times(first.typical)} {how}."]
    weak = [effect.key for effect in found if effect.matched and effect.largest < 1.01]
    if weak:
        told.append(f"{' and '.join(weak) if len(weak) < 3 else f'{len(weak)} keys'} change it by less than 1 %.")
    elif len(found) == 2:
        told.append(f"{found[1].key} changes it {times(found[1].typical)}.")
    return told


def _drops(sweep: SweepData, timed: Sequence[Job]) -> list[str]:
    """What time costs in dropped choices: the fastest job that drops nothing, and the fastest that drops little."""
    if not any(job.summary.get("drop_rate") for job in timed):
        return []
    whole = next((job for job in timed if not job.summary.get("drop_rate")), None)
    few = next((job for job in timed if 0 < (job.summary.get("drop_rate") or 0.0) <= FEW_DROPS), None)
    best, told = timed[0], []
    if whole is not None and whole is not best:
        told.append(
            f"Dropping nothing takes {seconds(whole.summary['step_s'])} at best ({named(whole, sweep.swept)}), "
            f"{times(cost(whole) / cost(best))} the fastest."
        )
        told += _prices(sweep, timed, whole)
    elif whole is best:
        told.append("Dropping buys no time here: the fastest job drops nothing.")
    if few is not None and few is not best:
        told.append(
            f"The fastest that drops at most 1 % is {named(few, sweep.swept)}: {seconds(few.summary['step_s'])} and "
            f"{percent(few.summary['drop_rate'], 2)}."
        )
    losing = [job for job in timed if (job.summary.get("seconds_saved_by_dropping") or 0.0) < 0]
    if losing:
        told.append(
            f"In {len(losing)} of {len(timed)} jobs the capacity costs time instead of saving it: its padding takes longer than "
            "what it drops."
        )
    return told


def _prices(sweep: SweepData, timed: Sequence[Job], whole: Job) -> list[str]:
    """What each unbeaten job between these two saves and drops."""
    unbeaten = [job for job in front(timed) if job.summary["drop_rate"] and cost(job) < cost(whole)]
    keys = [key for key in sweep.swept if len({value_of(job, key) for job in unbeaten}) > 1]
    if not 2 <= len(unbeaten) <= 8 or not keys:
        return []
    prices = [
        f"{value_of(job, keys[0]) if len(keys) == 1 else named(job, keys)} saves {percent(1 - cost(job) / cost(whole), 0)} and "
        f"drops {percent(job.summary['drop_rate'])}"
        for job in reversed(unbeaten)
    ]
    return [f"{'Of ' + keys[0] + ', ' if len(keys) == 1 else ''}{'; '.join(prices)}."]


def _limits(timed: Sequence[Job]) -> list[str]:
    shares = [
        job.summary["exposed_comm_s"] / job.summary["step_s"] for job in timed if job.summary.get("exposed_comm_s") is not None
    ]
    trained = [job for job in timed if job.summary.get("bubble_s") is not None]
    kinds = {limit_of(job.summary).partition(" ")[0] for job in timed if job.summary.get("bottleneck")} - {"pipeline"}
    if not shares:
        return []
    if len(trained) == len(timed):
        return [_of_training(trained, shares)]
    low, high = percent(min(shares), 0), percent(max(shares), 0)
    span = low if low == high else f"{low} to {high}"
    limit = "Communication" if min(shares) >= 0.5 else "Computing" if max(shares) < 0.5 else "Now communication and now computing"
    text = f"{limit} limits {'it' if len(timed) == 1 else 'them'}: exposed communication is {span} of the step"
    return [text + (f", and the busiest link is of class {' or '.join(sorted(kinds))}." if kinds else ".")]


def _of_training(trained: Sequence[Job], shares: Sequence[float]) -> str:
    """What keeps training steps from computing all the time."""
    idle = [job.summary["bubble_s"] / job.summary["step_s"] for job in trained]
    spans = [
        low if low == high else f"{low} to {high}"
        for low, high in ((percent(min(values), 0), percent(max(values), 0)) for values in (idle, shares))
    ]
    return f"The pipeline's bubble is {spans[0]} of the step, exposed communication {spans[1]}."


def _tiles(sweep: SweepData, timed: Sequence[Job]) -> tuple[tuple[str, str, str], ...]:
    tiles = [("jobs", number(len(sweep.jobs)), f"{len(sweep.failed)} failed" if sweep.failed else "none failed")]
    if timed:
        row, slow = timed[0].summary, timed[-1].summary
        first, last = _ends(timed)
        tiles += [
            (f"{first} step", seconds(row["step_s"]), "of the best job"),
            (f"{last} step", seconds(slow["step_s"]), f"{times(cost(timed[-1]) / cost(timed[0]))} the best"),
            ("tokens/s", number(row["tokens_per_s"]), f"{number(row['tokens_per_s'] / row['gpus'])} per GPU, of the best job"),
            ("dropped", percent(row.get("drop_rate"), 2) if row.get("drop_rate") else "none", "by the best job"),
        ]  # fmt: skip
    tiles.append(("keys swept", number(len(sweep.swept)), ", ".join(sweep.swept[:2]) + (", …" if len(sweep.swept) > 2 else "")))
    return tuple(tiles)
