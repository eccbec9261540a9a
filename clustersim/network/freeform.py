"""Any flows over any links, without a cluster: when does each end. What the user gave is judged here."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from clustersim.network import drains, sharing
from clustersim.network.bounds import busiest_link_end
from clustersim.network.changes import Changes
from clustersim.types import Floats, InputError, Ints, Routes


def flow_times(
    capacity: Sequence[float] | Floats,
    routes: Sequence[Sequence[int]],
    nbytes: Sequence[float] | Floats,
    release: float | Sequence[float] | Floats,
    resolution: float = 0.0,
    *,
    weights: Sequence[Sequence[float]] | None = None,
    rate_cap: Sequence[float] | Floats | None = None,
    changes: Sequence[tuple[float, int, float]] = (),
) -> Floats:
    """When each of any flows over any links has drained, under max-min fair sharing.

    Args:
        capacity: bytes/s [links].
        routes: for each flow the links it crosses; an empty route takes no time.
        nbytes: bytes [flows].
        release: seconds, one for all or [flows].
        resolution: 0 is exact; else rates are agreed on at most once in `resolution` x the least time that all flows take.
        weights: for each flow the share of its bytes on each link of its route; 1 when not given.
        rate_cap: bytes/s [flows] that each flow may have at most; inf for none. It is a link of the flow's own.
        changes: (seconds, link, bytes/s): what capacity a link has from then on; 0 while it is down.

    Returns:
        Seconds [flows]; a flow of zero bytes ends when it is released.

    Raises:
        InputError: a negative or non-finite number, an unknown link, a link without capacity in use, sizes that differ,
            flows that never end because a link stays down.
    """
    sharing.check_resolution(resolution)
    caps, sizes = _numbers("capacity", capacity), _numbers("nbytes", nbytes)
    if caps.ndim != 1:
        raise InputError(f"flow_times: capacity of shape {caps.shape}: must be one number per link")
    length = np.fromiter((len(route) for route in routes), np.int64, len(routes))
    if sizes.shape != (len(routes),):
        raise InputError(f"flow_times: {len(routes)} routes for nbytes of shape {sizes.shape}")
    released = _per_flow("release", release, sizes.size)
    limits = _per_flow("rate_cap", np.inf if rate_cap is None else rate_cap, sizes.size)
    for name, values in (("nbytes", sizes), ("release", released)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise InputError(f"flow_times: {name} must be finite and not negative")
    if not (limits > 0).all():
        raise InputError("flow_times: rate_cap must be above 0 (inf: none)")
    links = _whole_numbers("routes", [link for route in routes for link in route])
    shares = np.ones(links.size)
    if weights is not None:
        if [len(row) for row in weights] != length.tolist():
            raise InputError("flow_times: weights must have one number for each link of each route")
        shares = np.fromiter((share for row in weights for share in row), np.float64)
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise InputError("flow_times: weights must be finite and above 0")
    _check_links(caps, links)
    moving = np.flatnonzero((sizes > 0) & (length > 0))
    of_moving = np.repeat((sizes > 0) & (length > 0), length)
    start = np.concatenate(([0], np.cumsum(length[moving]))).astype(np.int64)
    routed = Routes(start=start, links=links[of_moving], weights=shares[of_moving], latency=np.zeros(moving.size))
    to_come = _changes(changes, caps)
    caps, routed = private_links(caps, routed, limits[moving])
    ends = released
    if moving.size:
        with np.errstate(over="ignore"):
            end, link = busiest_link_end(caps, routed, sizes[moving], released[moving])
        if not np.isfinite(end):
            raise InputError(f"flow_times: link {link} would take longer for its bytes than a number can say")
        least = end - released[moving].min()
        ends[moving], _ = drains.drain_times(caps, routed, sizes[moving], released[moving], resolution, least, to_come)
    return ends


def private_links(capacity: Floats, routes: Routes, rate_cap: Floats) -> tuple[Floats, Routes]:
    """Capacities and routes with a link of its own for every flow whose rate is capped (`rate_cap` [flows], inf for none)."""
    capped = np.isfinite(rate_cap)
    if not capped.any():
        return capacity, routes
    after_row = routes.start[1:][capped]
    own = capacity.size + np.arange(after_row.size)
    start = routes.start + np.concatenate(([0], np.cumsum(capped)))
    grown = Routes(
        start=start, links=np.insert(routes.links, after_row, own), weights=np.insert(routes.weights, after_row, 1.0),
        latency=routes.latency,
    )  # fmt: skip
    return np.concatenate((capacity, rate_cap[capped])), grown


def _per_flow(name: str, values: float | Sequence[float] | Floats, n: int) -> Floats:
    """One number for all, or one each, as an array of its own."""
    given = _numbers(name, values)
    if given.shape not in ((), (n,)):
        raise InputError(f"flow_times: {name} of shape {given.shape} for {n} flows")
    return np.broadcast_to(given, (n,)).copy()


def _numbers(name: str, values: ArrayLike) -> Floats:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"flow_times: {name}: must be numbers ({error})") from error


def _whole_numbers(name: str, values: Sequence[int]) -> Ints:
    try:
        return np.fromiter(map(operator.index, values), np.int64, len(values))
    except TypeError as error:
        raise InputError(f"flow_times: {name}: must be the numbers of links ({error})") from error


def _check_links(capacity: Floats, links: Ints) -> None:
    if (unknown := links[(links < 0) | (links >= capacity.size)]).size:
        raise InputError(f"flow_times: a route names link {unknown[0]}; there are {capacity.size}, from 0 on")
    if (unfit := links[~((capacity[links] > 0) & np.isfinite(capacity[links]))]).size:
        raise InputError(
            f"flow_times: a route crosses link {unfit[0]}, whose capacity is {capacity[unfit[0]]}; it must be positive and finite"
        )


def _changes(given: Sequence[tuple[float, int, float]], capacity: Floats) -> Changes | None:
    if not len(given):
        return None
    if wrong := [change for change in given if len(change) != 3]:
        raise InputError(f"flow_times: changes: {wrong[0]}: must be (seconds, link, bytes/s)")
    for time, link, value in given:
        if not 0 <= link < capacity.size:
            raise InputError(f"flow_times: changes name link {link}; there are {capacity.size}, from 0 on")
        if not (np.isfinite(time) and time >= 0 and np.isfinite(value) and value >= 0):
            raise InputError(f"flow_times: changes: ({time}, {link}, {value}): both numbers must be finite and not negative")
    rows = sorted(given, key=lambda row: row[0])
    return Changes(
        time=np.array([row[0] for row in rows]), link=np.array([row[1] for row in rows], np.int64),
        capacity=np.array([row[2] for row in rows], np.float64),
    )  # fmt: skip
