"""The page of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from clustersim.report import html
from clustersim.report.reading import SweepData, differences, value_of
from clustersim.report.shapes import Figure
from clustersim.report.sweep_findings import as_number, cost, findings_of_sweep, front, ranked
from clustersim.report.wording import NONE, known, number, percent, seconds, times
from clustersim.results.comparing import limit_of

SHOWN = 12  # values of a key that the list of differences shows

# heading, summary column, how it is shown; of costs only those that some job has
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("step", "step_s", seconds), ("computes", "compute_s", seconds), ("exposed", "exposed_comm_s", seconds),
    ("bubble", "bubble_s", seconds), ("tokens/s", "tokens_per_s", number), ("per GPU", "tokens_per_s_per_gpu", number),
    ("$ a million tokens", "dollars_per_million_tokens", lambda value: number(value, 3)),
    ("model TFLOP/s", "model_flops_per_s_per_gpu", lambda value: number(value / 1e12, 1) if known(value) else NONE),
    ("load", "imbalance", lambda value: number(value, 2)), ("T/bound", "over_bound", lambda value: number(value, 3)),
)  # fmt: skip
_TRAINED = ("compute_s", "bubble_s", "model_flops_per_s_per_gpu")       # only where some job is a training step
_COSTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("dropped", "drop_rate", lambda value: percent(value, 2)), ("tokens lost", "fully_dropped", lambda value: percent(value, 2)),
    ("gate lost", "gate_mass_lost", lambda value: percent(value, 2)),
    ("rerouted", "rerouted_rate", lambda value: percent(value, 2)),
    ("padding", "padding_share", lambda value: percent(value, 1)), ("saved", "seconds_saved_by_dropping", seconds),
)  # fmt: skip


def page_of_sweep(sweep: SweepData, figures: Sequence[Figure]) -> str:
    """The whole page, from what `figures_of_sweep` made of the same sweep."""
    by_name = {figure.name: figure for figure in figures}
    findings = findings_of_sweep(sweep)
    kind = f"{sweep.study} · {sweep.about}" if sweep.about else f"{sweep.study} · {len(sweep.jobs)} jobs"
    parts = [html.head(kind, findings)]
    parts += [html.figure(by_name[name]) for name in ("jobs", "pareto") if name in by_name]
    if sweep.jobs:
        parts.append(_comparison(sweep))
    if sweep.failed:
        parts.append(_list("failed", "Failed jobs", ("job", "reason"), sweep.failed))
    if sweep.unreadable:
        parts.append(_list("unreadable", "Folders that cannot be read", ("folder", "reason"), sweep.unreadable))
    keys = [figure for figure in figures if figure.name.startswith("key_")]
    if keys:
        parts.append("<h2>What each key does</h2>")
        if "keys" in by_name:
            parts.append(html.figure(by_name["keys"]))
        parts += [html.row(keys[i : i + 2]) for i in range(0, len(keys), 2)]
    parts += [_differences(sweep), f"<footer>{_where(sweep)}</footer>"]
    return html.page(f"{sweep.study}: {findings.headline}", [part for part in parts if part])


def _where(sweep: SweepData) -> str:
    """Where the runs are, and what is there besides."""
    others = f"; {sweep.others:,} more there, not of this sweep (clustersim report --all)" if sweep.others else ""
    return f"{len(sweep.jobs):,} runs in {escape(str(sweep.folder))}{others}"


def _comparison(sweep: SweepData) -> str:
    """One row per job, the best first and marked."""
    jobs = ranked(sweep.jobs)
    costs = [column for column in _COSTS if any(known(job.summary.get(column[1])) and job.summary[column[1]] for job in jobs)]
    trained = [known(job.summary.get("bubble_s")) for job in jobs]
    left_out: tuple[str, ...] = ("over_bound",) if all(trained) else () if any(trained) else _TRAINED
    left_out += ("tokens_per_s_per_gpu",) if len({job.summary.get("gpus") for job in jobs}) == 1 else ()
    paid = any(known(job.summary.get("dollars_per_million_tokens")) for job in jobs)
    left_out += () if paid else ("dollars_per_million_tokens",)
    columns = [column for column in _COLUMNS if column[1] not in left_out]
    best = cost(jobs[0])
    unbeaten = {job.folder for job in front(jobs)} if any(name == "dropped" for name, _, _ in costs) else set()
    headings = [
        *sweep.swept,
        *(name for name, _, _ in (*columns, *costs)),
        "bottleneck",
        "to best",
        *(["unbeaten"] * bool(unbeaten)),
        "run",
    ]
    rows = []
    for job in jobs:
        cells: list[html.Cell] = [(value, as_number(value)) for value in (value_of(job, key) for key in sweep.swept)]
        for _, column, shown in (*columns, *costs):
            value = job.summary.get(column)
            spread = job.summary.get(f"{column}_ci95")         # of a job with replicates
            text = f"{shown(value)} ± {shown(spread)}" if known(spread) and known(value) else shown(value)
            cells.append((text, float(value) if value is not None and known(value) else None))
        own = cost(job)
        cells += [limit_of(job.summary) if job.summary.get("bottleneck") else NONE, times(own / best) if own < math.inf else NONE]
        cells += ["●" if job.folder in unbeaten else ""] * bool(unbeaten)
        rows.append([*cells, job.folder.name])
    caption = (
        "The best first. exposed: communication a GPU waits for; load: tokens of the busiest GPU / mean; T/bound: time of the "
    )
    caption += "exchanges / that of their busiest links."
    if all(trained):
        caption = "The best first. exposed: communication that nothing hides; bubble: a pipeline device has nothing to do; "
        caption += "model TFLOP/s: of a GPU; load: tokens of the busiest GPU / mean."
    caption += " saved: against the same without a capacity." if any(name == "saved" for name, _, _ in costs) else ""
    caption += " ±: 95 % confidence over the seeds." if any(known(job.summary.get("step_s_ci95")) for job in jobs) else ""
    caption += " unbeaten: no other job is better in both time and drops." if unbeaten else ""
    caption += f" On paper: the first {html.FAR}." if len(rows) > html.FAR else ""
    marked = [0] if best < math.inf else []
    return html.card("All jobs", caption, html.table(headings, rows, best=marked))


def _list(name: str, title: str, headings: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    return html.card(f"{title}: {len(rows):,}", "", html.table(headings, rows, text=True, sortable=False))


def _differences(sweep: SweepData) -> str:
    """Every key of the config that is not the same in all jobs, whether it was swept or followed from what was."""
    found = differences(sweep.jobs)
    if not found:
        return ""
    rows = []
    for key, values in found.items():
        more = f", … ({len(values)} values)" if len(values) > SHOWN else ""
        rows.append((key, ", ".join(values[:SHOWN]) + more))
    body = html.card("", "", html.table(("key", "values"), rows, text=True, sortable=False))
    count = "1 key" if len(rows) == 1 else f"{len(rows)} keys"
    return f"<details><summary>What differs in the configs: {count}</summary>{body}</details>"
