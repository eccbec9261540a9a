"""What is kept of an exchange that is over: who waited, who was busy, what the links carried. Pure NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from clustersim.network.fabric import Exchange
from clustersim.types import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Exchanged:
    """One exchange, summed up. Seconds and bytes."""

    wait_s: Floats          # [gpus] between entering and going on, with none of the GPU's own transfers or software in progress
    busy_s: Floats          # [gpus] with at least one of them in progress
    link_bytes: Floats      # [links]
    sent: Floats            # [gpus] bytes that left, forwarded ones included
    received: Floats        # [gpus]
    span_s: float           # from the first GPU's entry to the last finish
    bound_s: float          # the same at best, given who entered when
    logical_bytes: float = math.nan         # `Transfers.logical_bytes`; nan where nothing is known


def account(exchange: Exchange, resumed: Floats) -> Exchanged:
    """Sum up an exchange that is over; `resumed` [gpus] is when each GPU's compute went on."""
    transfers, entered = exchange.transfers, exchange.entered
    n = entered.size
    software = np.zeros(n) if transfers.least is None else transfers.least.copy()       # until its own software is through
    np.maximum.at(software, transfers.src, transfers.release)
    gpu = np.concatenate((transfers.src, transfers.dst, np.arange(n)))
    start = np.concatenate((exchange.start, exchange.start, entered))
    finish = np.concatenate((exchange.finish, exchange.finish, entered + software))
    busy = covered(gpu, start, finish, n)
    live = covered(gpu, np.maximum(start, entered[gpu]), np.minimum(finish, resumed[gpu]), n)
    carried = exchange.link_bytes().astype(np.float64, copy=False)
    hops = float((np.repeat(transfers.nbytes, np.diff(exchange.routes.start)) * exchange.routes.weights).sum())
    assert abs(float(carried.sum()) - hops) <= 1e-9 * hops, "bytes over links are not bytes asked times hops"
    first = float(entered.min())
    bound, _ = exchange.bound()
    last = float(exchange.finish.max()) if transfers.n else first
    wait = resumed - entered - live
    wait[wait < 1e-12 * resumed.max()] = 0.0            # rounding is not waiting
    result = Exchanged(
        wait_s=wait,
        busy_s=busy,
        link_bytes=carried,
        sent=_sums(transfers.src, transfers.nbytes, n),
        received=_sums(transfers.dst, transfers.nbytes, n),
        span_s=last - first,
        bound_s=bound - first if transfers.n else 0.0,
        logical_bytes=math.nan if transfers.logical_bytes is None else transfers.logical_bytes,
    )
    slack = 1e-9 + exchange.fabric.resolution
    assert result.span_s >= result.bound_s * (1 - slack) - 1e-15, "an exchange was faster than its busiest link"
    return result


def covered(owner: Ints, start: Floats, finish: Floats, n: int) -> Floats:
    """How much of the time line the intervals [start, finish] of each owner cover together, float [n]. Empty ones count 0."""
    real = finish > start
    owner, start, finish = owner[real], start[real], finish[real]
    if not owner.size:
        return np.zeros(n)
    origin = start.min()
    if finish.min() == finish.max():                # all end together: no need to sort
        covers = np.zeros(n)
        np.maximum.at(covers, owner, finish - start)
        return covers
    order = np.lexsort((start, owner))
    owner, start, finish = owner[order], start[order] - origin, finish[order] - origin
    stride = finish.max() * 2                       # puts the owners behind each other on one line
    reached = np.maximum.accumulate(finish + owner * stride) - owner * stride
    new = np.append(True, owner[1:] != owner[:-1])
    before = np.where(new, start, np.append(0.0, reached[:-1]))
    return _sums(owner, np.maximum(0.0, finish - np.maximum(start, before)), n)


def _sums(owner: Ints, values: Floats, n: int) -> Floats:
    """Sum of the values of each owner, float [n]; without any values bincount would count in integers."""
    return np.bincount(owner, values, n).astype(np.float64, copy=False)
