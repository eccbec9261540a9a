"""Flows that are all known beforehand, played to the end: which of the solvers plays them, and how few of them it has to."""

from __future__ import annotations

import numpy as np

from clustersim.network import coarse, sharing
from clustersim.network.changes import Changes
from clustersim.types import Floats, Routes, independent


def drain_times(
    capacity: Floats, routes: Routes, nbytes: Floats, release: Floats, resolution: float, least: float,
    changes: Changes | None = None,
) -> tuple[Floats, int]:
    """When each flow has drained, [flows] seconds, and how many times rates were recomputed.

    Args:
        capacity: bytes/s [links].
        routes, nbytes, release: of the flows, none of which follows another; bytes above 0.
        resolution: 0 is exact; else rates are agreed on at most once in `resolution` x `least`.
        least: seconds that it takes at least, from the first release on.
        changes: capacities to come.

    Raises:
        InputError: flows never end, as a link stays down.
    """
    from clustersim.network import pruning, symmetry

    small = symmetry.one_of_each(capacity, routes, nbytes, release) if changes is None else None
    if small is not None:
        kind, example, capacity, routes = small
        drain, solves = _played(capacity, routes, nbytes[example], release[example], resolution, least, None)
        each: Floats = np.empty(kind.size)
        symmetry.spread(np.ascontiguousarray(drain), kind, each)
        return each, solves
    if changes is None:
        routes = pruning.pruned(capacity, sharing.each_link_once(routes))
    return _played(capacity, routes, nbytes, release, resolution, least, changes)


def _played(
    capacity: Floats, routes: Routes, nbytes: Floats, release: Floats, resolution: float, least: float, changes: Changes | None
) -> tuple[Floats, int]:
    if resolution > 0 and changes is None and (release == release[0]).all():
        from clustersim.network import steps

        drain, n = steps.drain_times(capacity, routes, nbytes, resolution * least, coarse.GROWTH * resolution)
        return release[0] + drain, n
    zero = np.zeros(nbytes.size, np.int64)
    flows = independent(np.arange(nbytes.size), zero, nbytes)         # each between GPUs of its own
    if resolution > 0:
        steps_of = coarse.extend(coarse.empty(capacity, changes), routes, flows, inbox=zero, outbox=zero, n_counters=1)
        coarse.set_resolution(steps_of, resolution, least)
        coarse.play_all(steps_of, release)
        return steps_of.flows["drain"], coarse.solves(steps_of)
    state = sharing.extend(sharing.empty(capacity, changes), routes, flows, inbox=zero, outbox=zero, n_counters=1)
    sharing.solve_all(state, release)
    return state.flows["drain"], sharing.solves(state)
