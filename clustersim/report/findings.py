"""What a run says, in sentences: the first lines of its page. Every sentence is computed from the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from clustersim.report.reading import RunData
from clustersim.report.run_figures import by_link
from clustersim.report.wording import NONE, class_in_words, in_words, known, nbytes, number, percent, seconds, times
from clustersim.results.tables import link_class

EVEN, FREE = 1.05, 1.05  # ratios below which bytes count as evenly spread, and exchanges as free of contention


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The head of a page."""

    headline: str
    sentences: tuple[str, ...]
    tiles: tuple[tuple[str, str, str], ...]  # name, number, remark


def findings_of_run(run: RunData) -> Findings:
    """What limits a run, and its main numbers."""
    row = run.summary
    step, exposed, compute = row["step_s"], row["exposed_comm_s"] or 0.0, row["compute_s"] or 0.0
    if not step:
        return Findings(
            headline="This run took no time", sentences=("Neither computing nor an exchange took any.",), tiles=_tiles(run)
        )
    share = exposed / step
    if share >= 0.5:
        headline = f"Communication limits this step: {percent(share, 0)} of {seconds(step)}"
    elif share >= 0.02:
        headline = f"Computing limits this step: {percent(compute / step, 0)} of {seconds(step)}"
    else:
        headline = f"Computing is all of this step: {seconds(step)}, next to nothing waits for the network"
    return Findings(headline=headline, sentences=tuple(_sentences(run, share)), tiles=_tiles(run))


def _sentences(run: RunData, share: float) -> list[str]:
    row = run.summary
    if not row["moe_layers"]:
        return [f"A GPU computes for {seconds(row['compute_s'])}; without routed experts nothing is exchanged."]
    told = [
        f"A GPU computes for {seconds(row['compute_s'])} and stands still for {seconds(row['exposed_comm_s'])}, waiting for "
        f"dispatch and combine" + (f"; {seconds(row['wait_s'])} of that because others are late." if row["wait_s"] else ".")
    ]
    if row["bottleneck"] and share >= 0.02:
        told += [*_of_the_class(row), _of_the_link(run), _of_the_exchange(row["over_bound"])]
    if known(row["imbalance"]) and row["imbalance"] > 1.1:
        told.append(f"The busiest GPU computes {times(row['imbalance'])} the mean tokens, on average over the layers.")
    if row["drop_rate"]:
        saved = row["seconds_saved_by_dropping"] or 0.0
        effect = f"saves {seconds(saved)}" if saved >= 0 else f"with its padding costs {seconds(-saved)}"
        told.append(
            f"The capacity drops {percent(row['drop_rate'], 2)} of the choices and {effect} against the same run without it."
        )
    return told


def _of_the_class(row: Mapping[str, Any]) -> list[str]:
    """What kind of links exchanges wait for."""
    kind, share = row.get("bottleneck_class"), row.get("bottleneck_class_share")
    if kind is None or share is None:               # a run of before this was told
        return []
    most = "always" if share > 0.995 else f"for {percent(share, 0)} of the time that they need"
    return [f"The busiest link of an exchange is {most} {class_in_words(kind)}."]


def _of_the_link(run: RunData) -> str:
    links = by_link(run)
    first = links.row(0, named=True)
    kind = run.summary["bottleneck_class"]
    if kind is not None and kind != link_class(first["name"]):
        which = in_words(first["name"])
        return f"Over the whole step {which} carries most ({seconds(first['busy_s'])}), but others hold exchanges up."
    peers = links.filter(pl.col("kind") == first["kind"])
    even = first["busy_s"] / float(peers["busy_s"].to_numpy().mean())
    text = f"Over the whole step the busiest link is {in_words(first['name'])}: its bytes alone take {seconds(first['busy_s'])}"
    if peers.height == 1:
        return f"{text}."
    if even < EVEN:
        text += f", and the other {peers.height - 1:,} of its class are about as busy"
        return f"{text}: fewer bytes would help, spreading them would not."
    return (
        f"{text}, {times(even)} the mean of its class: spreading its bytes could save up to {percent(1 - 1 / even, 0)} of that."
    )


def _of_the_exchange(over: float | None) -> str:
    if over is None:
        return ""
    rest = "the wires are as good as full" if over < FREE else f"{percent(over - 1, 0)} more goes to contention and order"
    return f"Exchanges take {times(over)} what their busiest links need by themselves: {rest}."


def _tiles(run: RunData) -> tuple[tuple[str, str, str], ...]:
    row = run.summary
    step = row["step_s"]
    dropped = percent(row["drop_rate"], 2) if row["drop_rate"] else "none"
    remark = f"{percent(row['fully_dropped'], 2)} of the tokens wholly" if row["drop_rate"] else "of the choices"
    return (
        ("step", seconds(step), "one forward pass"),
        ("tokens/s", number(row["tokens_per_s"]), f"{number(row['tokens_per_s_per_gpu'])} per GPU"),
        ("computing", percent((row["compute_s"] or 0.0) / step) if step else NONE, f"{seconds(row['compute_s'])} a GPU"),
        ("exposed", percent((row["exposed_comm_s"] or 0.0) / step) if step else NONE, f"waits {seconds(row['exposed_comm_s'])}"),
        ("expert load", times(row["imbalance"]), "busiest GPU / mean"),
        ("time over bound", number(row["over_bound"], 3), "1: busiest link full"),
        ("dropped", dropped, remark),
        ("over the network", nbytes(row["nic_bytes"]), f"{nbytes(row['nvlink_bytes'])} over NVLink"),
    )
