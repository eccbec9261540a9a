"""Links whose capacity changes while a run is played: what a user writes of them, what they can carry by when. Moves no flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from clustersim import units
from clustersim.cluster import Cluster
from clustersim.pick import did_you_mean
from clustersim.types import Floats, InputError, Ints

KEYS = ("at", "link", "share")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Changes:
    """Capacities that links will have."""

    time: Floats                # seconds, rising
    link: Ints
    capacity: Floats            # bytes/s from then on; 0 while a link is down


def read_changes(cluster: Cluster, given: Sequence[Mapping[str, Any]]) -> Changes | None:
    """The changes that a user lists; None for none.

    Args:
        given: each with `at` (a time with its unit), `link` (a name, or a pattern: `nic_up *`) and `share` (of the machine's
            capacity from then on: 1 is whole again, 0 is down).

    Raises:
        InputError: something else, a link that is not there, or one that stays down: its bytes would never arrive.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InputError(f"network.changes={given}: must be a list of changes with {', '.join(KEYS)}")
    names = [link.name for link in cluster.links]
    rows: list[tuple[float, int, float]] = []
    for i, change in enumerate(given):
        key = f"network.changes[{i}]"
        if not isinstance(change, Mapping) or set(change) != set(KEYS):
            raise InputError(f"{key}={change}: must have {', '.join(KEYS)} and nothing else")
        share = change["share"]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < np.inf:
            raise InputError(f"{key}.share={share}: must be a number from 0 (down) up; 1 is the machine's own capacity")
        time, pattern = units.parse_seconds(change["at"], f"{key}.at"), str(change["link"])
        meant = [link for link, name in enumerate(names) if fnmatchcase(name, pattern)]
        if not meant:
            raise InputError(f"{key}.link={pattern}: {cluster.name} has no such link{did_you_mean(pattern, names)}")
        rows += [(time, link, share * cluster.capacity[link]) for link in meant]
    if not rows:
        return None
    rows.sort(key=lambda row: row[0])
    last = {link: capacity for _, link, capacity in rows}
    if down := [link for link, capacity in last.items() if capacity == 0]:
        raise InputError(f"network.changes: {names[down[0]]} stays down, so nothing would get through; give it a share again")
    times, links, capacities = zip(*rows, strict=True)
    return Changes(time=np.array(times), link=np.array(links, np.int64), capacity=np.array(capacities, np.float64))


def earliest_end(capacity: float, changes: Changes, link: int, release: Floats, nbytes: Floats) -> float:
    """When this link, by itself, can have carried its flows at the earliest: it carries the integral of its capacity.

    Args:
        capacity: bytes/s until its first change.
        release, nbytes: seconds and bytes of the flows that cross it.

    Returns:
        Seconds: the latest, over the flows, of when it can have carried, from that flow's release on, all that is not released
        before it; inf when it stays down.
    """
    mine = changes.link == link
    times = np.concatenate(([0.0], changes.time[mine]))
    rates = np.concatenate(([capacity], changes.capacity[mine]))
    by_then = np.concatenate(([0.0], np.cumsum(rates[:-1] * np.diff(times))))       # bytes it can have carried by each change
    order = np.argsort(release, kind="stable")
    piece = np.searchsorted(times, release[order], side="right") - 1
    before = by_then[piece] + rates[piece] * (release[order] - times[piece])
    need = before + np.cumsum(nbytes[order][::-1])[::-1]
    piece = np.maximum(np.searchsorted(by_then, need, side="left") - 1, 0)
    with np.errstate(divide="ignore"):
        ends = times[piece] + (need - by_then[piece]) / rates[piece]
    return float(ends.max())
