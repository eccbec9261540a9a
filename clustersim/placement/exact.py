"""The placement of least load, by a mixed-integer program: a yardstick for small cases. Sees loads, not links."""

from __future__ import annotations

import math

import numpy as np

from clustersim.placement.packing import lpt, placed
from clustersim.placement.past import Past, Room, need_slots
from clustersim.types import Floats, InputError, Ints, Placement


def milp(rng: np.random.Generator, past: Past, room: Room, *, time_limit: float = 10.0) -> Placement:
    """The placement whose busiest GPU has the least load, replicas of an expert sharing it equally (scipy's HiGHS).

    One binary variable per expert and number of replicas, one integer per expert, number and GPU: how many of them stand
    there. Meant for some ten experts. When time is up the best found stands, with the gap to the bound in `notes`; where
    nothing has been found, `lpt` stands, and `notes` says so. What is found by then depends on the machine.

    Args:
        time_limit: seconds, for each layer.

    Raises:
        InputError: fewer slots than experts, or a time limit that is not above 0.
    """
    need_slots(past, room)
    if not 0 < time_limit < math.inf:
        raise InputError(f"placement.time_limit={time_limit}: must be a number of seconds above 0")
    counts, _, gap = least_load(past.total, room.slots_of, time_limit)
    if counts is None:
        greedy = lpt(rng, past, room)
        return Placement(
            gpu_of=greedy.gpu_of, expert_of=greedy.expert_of, notes=(f"milp found nothing in {time_limit:g} s: lpt stands",)
        )
    expert, gpu = np.nonzero(counts)
    times = counts[expert, gpu]
    best = placed(np.repeat(expert, times), np.repeat(gpu, times))
    notes = (f"milp stopped after {time_limit:g} s, at most {100 * gap:.2g} % above the optimum",) if gap > 1e-6 else ()
    return Placement(gpu_of=best.gpu_of, expert_of=best.expert_of, notes=notes)


def least_load(load: Floats, slots_of: Ints, time_limit: float) -> tuple[Ints | None, float, float]:
    """Replicas of each expert on each GPU int [experts, gpus], a bound below the largest load, and the gap relative to it.

    The first is None when no solution was found in time.
    """
    from scipy import optimize
    from scipy.sparse import coo_array

    n, n_gpus, n_slots = load.size, slots_of.size, int(slots_of.sum())
    most = n_slots - n + 1                                  # replicas that one expert can have
    scale = max(float(load.sum()) / n_gpus, np.finfo(float).tiny)
    # columns: number[e, c], stands[e, c, g], the largest load
    number = np.arange(n * most).reshape(n, most)
    stands = n * most + np.arange(n * most * n_gpus).reshape(n, most, n_gpus)
    top = n * most * (1 + n_gpus)
    e, c, g = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(most), np.arange(n_gpus), indexing="ij"))
    cell = stands.ravel()
    share = load[e] / (c + 1) / scale
    ec = np.arange(n * most)
    one = np.ones_like
    rows = [
        (np.repeat(np.arange(n), most), number.ravel(), np.ones(n * most)),                 # one number per expert
        (n + e * most + c, cell, one(share)),                                               # as many stand as the number says
        (n + ec, number.ravel(), -(ec % most + 1.0)),
        (n + n * most + g, cell, one(share)),                                               # slots of a GPU
        (n + n * most + n_gpus + g, cell, share),                                           # load of a GPU
        (n + n * most + n_gpus + np.arange(n_gpus), np.full(n_gpus, top), np.full(n_gpus, -1.0)),
    ]
    row, column, value = (np.concatenate(part) for part in zip(*rows, strict=True))
    n_rows = n + n * most + 2 * n_gpus
    matrix = coo_array((value, (row, column)), shape=(n_rows, top + 1)).tocsc()
    low = np.concatenate((np.ones(n), np.zeros(n * most), slots_of, np.full(n_gpus, -np.inf)))
    high = np.concatenate((np.ones(n), np.zeros(n * most), slots_of, np.zeros(n_gpus)))
    upper = np.concatenate((np.ones(n * most), c + 1.0, [np.inf]))
    objective = np.zeros(top + 1)
    objective[top] = 1.0
    found = optimize.milp(
        objective, integrality=np.append(np.ones(top), 0), bounds=optimize.Bounds(0, upper),
        constraints=optimize.LinearConstraint(matrix, low, high),
        # presolve off: with it HiGHS 1.12 calls 295 the optimum of a case in the tests that has 292
        options={"time_limit": time_limit, "mip_rel_gap": 1e-9, "presolve": False},
    )  # fmt: skip
    if found.x is None:
        return None, 0.0, math.inf
    counts = np.rint(found.x[n * most : top]).astype(np.int64).reshape(n, most, n_gpus).sum(axis=1)
    gap = max(0.0, (found.fun - found.mip_dual_bound) / max(found.mip_dual_bound, np.finfo(float).tiny))
    return counts, float(found.mip_dual_bound * scale), float(gap)
